//! Taking in a request's content: batches of bounded size, and why each ended.
//!
//! The network gives bytes in pieces of any size and at any pace; the disk wants few large writes. In between, memory
//! must stay bounded whatever clients do: thousands of stalled uploads, or one that sends a byte at a time.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::pace::{Pace, Patience};

/// Bytes after which a batch is written.
const BATCH_BYTES: u64 = 1 << 20;

/// Bytes a batch has at most when it is made of small pieces alone: the last may go over.
const BATCH_ROOM: usize = (1 << 20) + COPY_MAX;

/// A batch is written at the latest after this long, so that a slow client's bytes do not wait in memory.
const BATCH_AGE_MAX: Duration = Duration::from_secs(1);

/// A client that sends nothing for this long has stalled: what came is committed, and its memory is free for others.
const STALL: Duration = Duration::from_secs(1);

/// How long a request that has to make way may go on bringing what had reached this machine before. A client that asks
/// where to go on sends nothing twice that was here already.
const DRAIN_MAX: Duration = Duration::from_millis(250);

/// How long nothing may come meanwhile. What waits in a socket comes at once; this is for threads that are busy.
const DRAIN_QUIET: Duration = Duration::from_millis(50);

/// Pieces up to this size, that of HTTP/2's frames, are copied together. Each would keep alive the whole buffer it was
/// received into, which for a client that sends single bytes is thousands of times their size; and many pieces that begin
/// anywhere are hashed and written at twice the cost of a whole one.
const COPY_MAX: usize = 16 * 1024;

/// Copied bytes after which room is made for a whole batch: whoever sends as much most likely sends on.
const COPIED_MUCH: usize = 64 * 1024;

/// Memory for bytes on their way to the store, over all requests. When it is used up batches get smaller, not slower.
pub(super) const BUFFER_BYTES_MAX: usize = 32 << 20;

/// The unit in which that memory is counted.
pub(super) const BUFFER_UNIT_BYTES: usize = 16 * 1024;

/// The bytes of a request as they come.
pub(crate) type Content = BoxStream<'static, Result<Bytes, ContentError>>;

/// The client, or the network before it, broke off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client broke off")]
pub(crate) struct ContentError;

/// A request's content, in batches.
pub(super) struct Intake<'a> {
    content: Content,
    stop: &'a CancellationToken,
    pace: Pace,
    buffers: &'a Arc<Semaphore>,
    /// Bytes that may still come.
    room: u64,
    /// Until when it may go on, once it has to make way.
    drains_until: Option<Instant>,
}

/// Bytes to be written at once.
#[derive(Debug)]
pub(super) struct Batch {
    /// The bytes, in pieces.
    pub(super) chunks: Vec<Bytes>,
    /// How many they are.
    pub(super) bytes: u64,
    /// Why it ends here.
    pub(super) pause: Pause,
    /// Small pieces, copied together, that come after `chunks`.
    small: BytesMut,
    /// Its share of the memory for all.
    memory: Option<OwnedSemaphorePermit>,
}

/// Why a batch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// It is full, or old. More will come.
    Full,
    /// Nothing came for a while. More may come.
    Stall,
    /// The content ended as it should.
    End,
    /// The client broke off.
    Cut,
    /// Nothing came for so long that it is given up.
    Idle,
    /// Too little came for so long that it is given up.
    Slow,
    /// The request has to make way.
    Stopped,
    /// More came than there is room for.
    Over,
}

impl<'a> Intake<'a> {
    /// The batches of `content`, of which `room` bytes are taken at most.
    pub(super) fn new(
        content: Content,
        stop: &'a CancellationToken,
        patience: Patience,
        buffers: &'a Arc<Semaphore>,
        room: u64,
    ) -> Self {
        Self { content, stop, pace: Pace::start(patience), buffers, room, drains_until: None }
    }

    /// The next batch. `uncommitted`: whether bytes of earlier batches wait for their commit, so that a stall must be
    /// told even when this batch is empty.
    pub(super) async fn gather(&mut self, uncommitted: bool) -> Batch {
        let mut batch = Batch::new();
        let mut began = None;
        batch.pause = loop {
            if batch.bytes >= BATCH_BYTES || began.is_some_and(|began: Instant| began.elapsed() >= BATCH_AGE_MAX) {
                break Pause::Full;
            }
            let stalls = uncommitted || batch.bytes > 0;
            let item = match self.next(stalls).await {
                Ok(item) => item,
                Err(pause) => break pause,
            };
            let chunk = match item {
                None => break Pause::End,
                Some(Err(ContentError)) => break Pause::Cut,
                Some(Ok(chunk)) => chunk,
            };
            let Some(room) = self.room.checked_sub(chunk.len() as u64) else { break Pause::Over };
            self.room = room;
            began.get_or_insert_with(Instant::now);
            if !batch.push(chunk, self.buffers) {
                break Pause::Full;
            }
        };
        batch.close();
        batch
    }

    /// What comes next, or why nothing did. `stalls`: whether something waits for its commit meanwhile.
    async fn next(&mut self, stalls: bool) -> Result<Option<Result<Bytes, ContentError>>, Pause> {
        if let Some(until) = self.drains_until {
            return self.drain(until).await;
        }
        let idle = self.pace.idle_timeout();
        let patience = if stalls { STALL.min(idle) } else { idle };
        let asked = Instant::now();
        let item = tokio::select! {
            biased;
            () = self.stop.cancelled() => None,
            item = timeout(patience, self.content.next()) => Some(item),
        };
        let Some(item) = item else {
            let until = *self.drains_until.insert(Instant::now() + DRAIN_MAX);
            return self.drain(until).await;
        };
        let bytes = match &item {
            Ok(Some(Ok(chunk))) => chunk.len() as u64,
            _ => 0,
        };
        let keeps_up = self.pace.keeps_up(bytes, asked.elapsed());
        match item {
            Err(_) if !stalls => Err(Pause::Idle),
            Ok(Some(Ok(_))) | Err(_) if !keeps_up => Err(Pause::Slow),
            Err(_) => Err(Pause::Stall),
            Ok(item) => Ok(item),
        }
    }

    /// What had come before the request had to make way.
    async fn drain(&mut self, until: Instant) -> Result<Option<Result<Bytes, ContentError>>, Pause> {
        let now = Instant::now();
        if now >= until {
            return Err(Pause::Stopped);
        }
        let quiet = until.min(now + DRAIN_QUIET);
        timeout_at(quiet, self.content.next()).await.map_err(|_| Pause::Stopped)
    }
}

impl Batch {
    fn new() -> Self {
        Self { chunks: Vec::new(), bytes: 0, pause: Pause::Full, small: BytesMut::new(), memory: None }
    }

    /// Adds `chunk`. False when the memory for all is used up: then the batch should be written now.
    fn push(&mut self, chunk: Bytes, buffers: &Arc<Semaphore>) -> bool {
        self.bytes += chunk.len() as u64;
        let units = u32::try_from(chunk.len().div_ceil(BUFFER_UNIT_BYTES)).unwrap_or(u32::MAX);
        if chunk.len() <= COPY_MAX {
            if self.small.len() >= COPIED_MUCH {
                self.small.reserve(BATCH_ROOM.saturating_sub(self.small.len()).max(chunk.len()));
            }
            self.small.extend_from_slice(&chunk);
        } else {
            self.close();
            self.chunks.push(chunk);
        }
        match Arc::clone(buffers).try_acquire_many_owned(units) {
            Ok(more) => {
                match &mut self.memory {
                    Some(memory) => memory.merge(more),
                    none => *none = Some(more),
                }
                true
            }
            Err(_) => false,
        }
    }

    fn close(&mut self) {
        if !self.small.is_empty() {
            self.chunks.push(self.small.split().freeze());
        }
    }
}

impl Pause {
    /// Whether no batch comes after this one.
    pub(super) const fn is_last(self) -> bool {
        !matches!(self, Self::Full | Self::Stall)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn buffers(bytes: usize) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(bytes / BUFFER_UNIT_BYTES))
    }

    fn chunks(sizes: &[usize]) -> Content {
        stream::iter(sizes.iter().map(|size| Ok(Bytes::from(vec![7; *size]))).collect::<Vec<_>>()).boxed()
    }

    const PATIENCE: Patience =
        Patience { idle_timeout: Duration::from_secs(60), bytes_per_s_min: 1, window: Duration::from_secs(60) };

    #[tokio::test]
    async fn batches_are_bounded_and_end_with_the_content() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let mut intake = Intake::new(chunks(&[400_000; 4]), &stop, PATIENCE, &buffers, u64::MAX);
        let first = intake.gather(false).await;
        assert_eq!((first.bytes, first.pause), (1_200_000, Pause::Full));
        let last = intake.gather(true).await;
        assert_eq!((last.bytes, last.pause), (400_000, Pause::End));
    }

    /// A thousand single bytes must not keep a thousand receive buffers alive.
    #[tokio::test]
    async fn small_pieces_are_copied_together() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let mut intake = Intake::new(chunks(&[1; 1000]), &stop, PATIENCE, &buffers, u64::MAX);
        let batch = intake.gather(false).await;
        assert_eq!((batch.bytes, batch.chunks.len(), batch.pause), (1000, 1, Pause::End));
    }

    /// HTTP/2 brings nothing but frames of 16 KiB at most, which begin anywhere.
    #[tokio::test]
    async fn frames_are_copied_into_one_piece_of_a_whole_batch() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let mut intake = Intake::new(chunks(&[16_384, 9_000, 16_384].repeat(40)), &stop, PATIENCE, &buffers, u64::MAX);
        let batch = intake.gather(false).await;
        assert_eq!((batch.chunks.len(), batch.pause), (1, Pause::Full));
        assert!(batch.bytes >= BATCH_BYTES && batch.bytes <= BATCH_ROOM as u64, "{}", batch.bytes);
        assert_eq!(intake.gather(true).await.bytes + batch.bytes, 40 * 41_768);
    }

    #[tokio::test]
    async fn batches_shrink_when_memory_is_used_up() {
        let (stop, buffers) = (CancellationToken::new(), buffers(2 * BUFFER_UNIT_BYTES));
        let mut intake = Intake::new(chunks(&[BUFFER_UNIT_BYTES; 6]), &stop, PATIENCE, &buffers, u64::MAX);
        let first = intake.gather(false).await;
        assert_eq!((first.bytes, first.pause), (3 * BUFFER_UNIT_BYTES as u64, Pause::Full));
        drop(first);
        assert_eq!(buffers.available_permits(), 2);
        assert_eq!(intake.gather(true).await.bytes, 3 * BUFFER_UNIT_BYTES as u64);
    }

    #[tokio::test]
    async fn nothing_beyond_the_room_is_taken() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let mut intake = Intake::new(chunks(&[10, 10]), &stop, PATIENCE, &buffers, 19);
        let batch = intake.gather(false).await;
        assert_eq!((batch.bytes, batch.pause), (10, Pause::Over));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_is_told_once_and_then_the_client_is_given_up() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let content = chunks(&[10]).chain(stream::pending()).boxed();
        let mut intake = Intake::new(content, &stop, PATIENCE, &buffers, u64::MAX);
        let batch = intake.gather(false).await;
        assert_eq!((batch.bytes, batch.pause), (10, Pause::Stall));
        assert_eq!(intake.gather(false).await.pause, Pause::Idle);
    }

    #[tokio::test]
    async fn a_request_that_has_to_make_way_keeps_what_it_gathered() {
        let (stop, buffers) = (CancellationToken::new(), buffers(BUFFER_BYTES_MAX));
        let stopping = stop.clone();
        let content = chunks(&[10]).chain(stream::once(async move {
            stopping.cancel();
            std::future::pending().await
        }));
        let mut intake = Intake::new(content.boxed(), &stop, PATIENCE, &buffers, u64::MAX);
        let batch = intake.gather(false).await;
        assert_eq!((batch.bytes, batch.pause), (10, Pause::Stopped));
    }
}
