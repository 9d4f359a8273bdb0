//! Sealing a file while it is uploaded, on a thread of its own.
//!
//! Sealing is work for a processor and must not hold up the tasks that talk to the network. So one blocking thread
//! reads, checks, seals and hashes segment by segment and hands them over a short channel; the request's body takes them
//! from there. When the network is slower, which it is, the thread waits.
//!
//! Memory: the channel's segments and the one in work, at most 2 MiB, at any size of the file.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::{BlobHasher, GROUP_BYTES};
use waxwing_seal::blob::{Changed, SealPlan, Sealer, SegmentDigest};

use crate::ClientError;
use crate::progress::Meter;

/// Segments sealed ahead of the network: 2 MiB.
const SEGMENTS_AHEAD: usize = 32;

/// Bytes of digests read at once.
const DIGESTS_BUFFER_BYTES: usize = 8 * 1024;

/// Why sealing stopped.
#[derive(Debug)]
pub(crate) enum SealError {
    /// The file is not the one that was planned: it needs a new plan.
    Changed(Changed),
    /// It could not be read.
    Client(ClientError),
}

impl From<Changed> for SealError {
    fn from(changed: Changed) -> Self {
        Self::Changed(changed)
    }
}

/// A file and its plan, sealed segment by segment and hashed into the blob's id.
pub(crate) struct SealedFile {
    path: PathBuf,
    file: File,
    digests_path: PathBuf,
    digests: BufReader<File>,
    sealer: Sealer,
    /// The segment at which `file` and `digests` stand.
    next: u32,
    hasher: BlobHasher,
    /// How many segments the hash has taken: each once, in order, however often it is sealed again.
    hashed: u32,
    spent: Duration,
}

impl SealedFile {
    /// Opens the file and its digests.
    ///
    /// # Errors
    /// [`ClientError::File`] when one is gone.
    pub(crate) fn open(path: &Path, digests_path: &Path, plan: &SealPlan) -> Result<Self, ClientError> {
        let file = File::open(path).map_err(ClientError::file(path))?;
        let digests = File::open(digests_path).map_err(ClientError::file(digests_path))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            digests_path: digests_path.to_owned(),
            digests: BufReader::with_capacity(DIGESTS_BUFFER_BYTES, digests),
            sealer: plan.sealer(),
            next: 0,
            hasher: BlobHasher::new(),
            hashed: 0,
            spent: Duration::ZERO,
        })
    }

    /// How long reading, checking, sealing and hashing took so far.
    pub(crate) fn spent(&self) -> Duration {
        self.spent
    }

    /// Seals the blob and sends its bytes from `offset` on to `out`; ends early, without error, when nobody takes them
    /// any more. What the server has already is sealed again all the same, as far as the id does not cover it yet: a
    /// part of an edited file must not be the beginning of another.
    ///
    /// # Errors
    /// [`SealError`] when the file changed or cannot be read.
    pub(crate) fn send_from(&mut self, offset: u64, out: &mpsc::Sender<Bytes>) -> Result<(), SealError> {
        let layout = *self.sealer.layout();
        let first_wanted = u32::try_from(offset / GROUP_BYTES).unwrap_or(u32::MAX);
        for index in self.hashed.min(first_wanted)..layout.segments() {
            if out.is_closed() {
                return Ok(());
            }
            let started = Instant::now();
            let segment = self.segment(index)?;
            if index == self.hashed {
                self.hasher.update(&segment, |_| ());
                self.hashed += 1;
            }
            self.spent += started.elapsed();
            let range = layout.sealed_range(index);
            if range.end <= offset {
                continue;
            }
            let mut segment = Bytes::from(segment);
            if offset > range.start {
                let known = usize::try_from(offset - range.start).expect("within a segment");
                segment = segment.slice(known..);
            }
            if out.blocking_send(segment).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The blob's id, when the whole blob was sealed.
    pub(crate) fn blob_id(&self) -> Option<BlobId> {
        let whole = self.hashed == self.sealer.layout().segments();
        whole.then(|| self.hasher.clone().finish(|_| ()))
    }

    fn segment(&mut self, index: u32) -> Result<Vec<u8>, SealError> {
        let layout = *self.sealer.layout();
        let in_file = layout.file_range(index);
        if index != self.next {
            self.seek(index)?;
        }
        let mut segment = Vec::new();
        let plain = self.sealer.prepare(index, &mut segment);
        read_exact(&mut self.file, plain, index, &self.path)?;
        let digest = if in_file.is_empty() {
            SegmentDigest::of_padding()
        } else {
            let mut digest = [0; SegmentDigest::BYTES];
            read_exact(&mut self.digests, &mut digest, index, &self.digests_path)?;
            SegmentDigest::from_bytes(digest)
        };
        self.sealer.seal(index, &digest, &mut segment)?;
        self.next = index + 1;
        if layout.is_last(index) && self.file.read(&mut [0]).map_err(|error| failed(&self.path, error))? > 0 {
            // It grew: what is sealed is no longer all of it.
            return Err(Changed { segment: index }.into());
        }
        Ok(segment)
    }

    fn seek(&mut self, index: u32) -> Result<(), SealError> {
        let at = self.sealer.layout().file_range(index).start;
        self.file.seek(SeekFrom::Start(at)).map_err(|error| failed(&self.path, error))?;
        let digest_at = u64::from(index) * SegmentDigest::BYTES as u64;
        self.digests.seek(SeekFrom::Start(digest_at)).map_err(|error| failed(&self.digests_path, error))?;
        Ok(())
    }
}

/// Fills `into`; a file that ends early is not the one that was planned.
fn read_exact(from: &mut impl io::Read, into: &mut [u8], index: u32, path: &Path) -> Result<(), SealError> {
    from.read_exact(into).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Changed { segment: index }.into(),
        _ => failed(path, error),
    })
}

fn failed(path: &Path, error: io::Error) -> SealError {
    SealError::Client(ClientError::file(path)(error))
}

/// A sealing thread at work.
pub(crate) struct Sealing {
    thread: tokio::task::JoinHandle<(SealedFile, Result<(), SealError>)>,
    feed: Feed,
}

impl Sealing {
    /// Starts sealing from `offset` of the blob on.
    pub(crate) fn start(mut sealed: SealedFile, offset: u64) -> Self {
        let (out, segments) = mpsc::channel(SEGMENTS_AHEAD);
        let thread = tokio::task::spawn_blocking(move || {
            let done = sealed.send_from(offset, &out);
            (sealed, done)
        });
        Self { thread, feed: Feed(Arc::new(Mutex::new(Queue { segments, rest: Bytes::new() }))) }
    }

    /// The next `part_bytes` of the blob as a request's body; `sent` counts them as they leave. One body at a time.
    pub(crate) fn part(&self, part_bytes: u64, sent: &Meter) -> PartBody {
        PartBody { feed: self.feed.clone(), left: part_bytes, sent: sent.clone() }
    }

    /// Ends the thread, or waits for it, and gives the file back with what became of it.
    ///
    /// `whole` waits until everything is sealed; otherwise the thread stops at its next segment.
    pub(crate) async fn end(self, whole: bool) -> (SealedFile, Result<(), SealError>) {
        if !whole {
            self.feed.queue().segments.close();
        }
        self.thread.await.expect("sealing does not panic")
    }
}

/// Sealed segments on their way into request bodies.
#[derive(Clone)]
struct Feed(Arc<Mutex<Queue>>);

struct Queue {
    segments: mpsc::Receiver<Bytes>,
    /// What the last part left of a segment.
    rest: Bytes,
}

impl Feed {
    fn queue(&self) -> std::sync::MutexGuard<'_, Queue> {
        self.0.lock().expect("nothing panics while it holds the queue")
    }
}

/// The body of one request: a part of the blob.
pub(crate) struct PartBody {
    feed: Feed,
    left: u64,
    sent: Meter,
}

impl Stream for PartBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let feed = self.feed.clone();
        let mut queue = feed.queue();
        if queue.rest.is_empty() {
            match ready!(queue.segments.poll_recv(cx)) {
                Some(segment) => queue.rest = segment,
                // An error cuts the request: the server keeps what came, and counts nothing as complete.
                None => return Poll::Ready(Some(Err(io::Error::other("sealing stopped")))),
            }
        }
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(queue.rest.len());
        let piece = queue.rest.split_to(wanted);
        drop(queue);
        self.left -= piece.len() as u64;
        self.sent.add(piece.len() as u64);
        Poll::Ready(Some(Ok(piece)))
    }
}
