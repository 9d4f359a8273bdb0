//! Downloading one blob: opened while it arrives, resumed where it was cut.
//!
//! One task takes bytes from the network, one thread opens, hashes and writes them; a short channel between the two
//! keeps memory constant and lets neither wait for the other's system calls.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_RANGE, RANGE};
use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::sync::mpsc;
use waxwing_protocol::BlobId;
use waxwing_protocol::range::parse_content_range;
use waxwing_seal::blob::OpenError;
use waxwing_seal::blob_ref::BlobRef;

use crate::account::now;
use crate::grants::Bearer;
use crate::http::{IDLE_TIMEOUT, Service};
use crate::part_file::PartFile;
use crate::upload::needs_grant;
use crate::{ClientError, OnProgress, Progress};

/// Pieces of a body between network and disk. hyper's are 16 to 400 KiB: some MiB at most.
const PIECES_AHEAD: usize = 16;

/// A file that was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedFile {
    /// Where it was saved.
    pub path: PathBuf,
    /// The blob it came from.
    pub blob: BlobId,
    /// Bytes of the file.
    pub bytes: u64,
    /// Time from the first request to the first byte of a body.
    pub first_byte: Duration,
    /// Time from the first request to the file in its place, synced.
    pub total: Duration,
    /// What the edge said in `Cache-Status` (RFC 9211) of the first answer.
    pub cache_status: Option<String>,
}

/// Where a blob is fetched from, and with which grant.
pub(crate) struct Source<'a> {
    pub(crate) service: &'a Service,
    /// The blob's URL.
    pub(crate) url: String,
    pub(crate) bearer: Bearer,
}

/// Downloads a blob and opens it into `target`, or beside it under a number when that exists.
///
/// # Errors
/// [`ClientError::Unreachable`] when the edge stays away: what came is kept and a later call goes on from there;
/// [`ClientError::Sealed`] or [`ClientError::WrongBlob`] when the bytes are not the blob's; [`ClientError::Refused`].
pub(crate) async fn download(
    source: Source<'_>,
    reference: &BlobRef,
    target: &Path,
    on: OnProgress<'_>,
) -> Result<FetchedFile, ClientError> {
    let opened = {
        let (reference, target) = (reference.clone(), target.to_owned());
        tokio::task::spawn_blocking(move || PartFile::open(&reference, &target)).await
    };
    let mut part = opened.expect("opening a part does not panic")?;
    let mut download =
        Download { source, reference, on, started: Instant::now(), first_byte: None, cache_status: None };
    let backoff = download.source.service.backoff();
    let mut setbacks = 0;
    loop {
        let stood = part.next_byte();
        let result;
        (part, result) = download.attempt(part).await;
        let Err(error) = result else { break };
        setbacks = if part.next_byte() > stood { 1 } else { setbacks + 1 };
        let again = error.is_transient() || (needs_grant(&error) && download.source.bearer.refused());
        if !again || setbacks >= backoff.tries {
            // A part is kept for the try that goes on from it; without bytes, or when there is none, it is litter.
            if part.next_byte() == 0 || error.loses_blob() {
                part.discard();
            }
            return Err(error);
        }
        let delay = backoff.pause(setbacks, &error);
        on(Progress::Waiting { attempt: setbacks, delay, reason: error.to_string() });
        tokio::time::sleep(delay).await;
    }
    let server = download.source.service.server().to_owned();
    let path = tokio::task::spawn_blocking(move || part.finish(&server)).await.expect("finishing does not panic")?;
    Ok(FetchedFile {
        path,
        blob: reference.id,
        bytes: reference.true_bytes,
        first_byte: download.first_byte.unwrap_or_default(),
        total: download.started.elapsed(),
        cache_status: download.cache_status,
    })
}

struct Download<'a> {
    source: Source<'a>,
    reference: &'a BlobRef,
    on: OnProgress<'a>,
    started: Instant,
    first_byte: Option<Duration>,
    cache_status: Option<String>,
}

impl Download<'_> {
    /// Fetches what the part lacks. Gives the part back with all that came, whatever happened.
    async fn attempt(&mut self, mut part: PartFile) -> (PartFile, Result<(), ClientError>) {
        let start = part.next_byte();
        let total = match self.reference.layout() {
            Ok(layout) => layout.sealed_bytes(),
            Err(error) => return (part, Err(error.into())),
        };
        if start == total {
            return (part, Ok(()));
        }
        let (response, skip) = match self.ask(start, total).await {
            Ok(answer) => answer,
            Err(error) => return (part, Err(error)),
        };
        let (pieces, mut arriving) = mpsc::channel(PIECES_AHEAD);
        let reference = self.reference.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let absorbed = part.absorb(&reference, &mut arriving);
            (part, absorbed)
        });
        let received = self.receive(response, skip, start, total, pieces).await;
        let (part, absorbed) = writer.await.expect("writing a part does not panic");
        // A writer that stopped is why the rest was not received.
        (part, absorbed.and(received))
    }

    /// Asks for the blob from `start` on. Gives the answer and how many bytes of its body come before `start`.
    async fn ask(&mut self, start: u64, total: u64) -> Result<(Response, u64), ClientError> {
        let service = self.source.service;
        let grant = self.source.bearer.grant(service, now()).await?;
        let mut request = service.http().get(&self.source.url).bearer_auth(grant);
        if start > 0 {
            request = request.header(RANGE, format!("bytes={start}-"));
        }
        let answer = tokio::time::timeout(IDLE_TIMEOUT, service.send(request)).await;
        let response = answer.map_err(|_| service.lost("no answer within a minute"))??;
        if self.cache_status.is_none() {
            self.cache_status = text(response.headers(), "cache-status");
        }
        match response.status() {
            StatusCode::OK => {
                // A server may ignore a range; what is known already is passed over then.
                match response.content_length().filter(|length| *length != total) {
                    Some(length) => Err(self.other_size(length, total)),
                    None => Ok((response, start)),
                }
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), CONTENT_RANGE.as_str());
                match range.as_deref().and_then(parse_content_range) {
                    Some((range, size)) if range.start == start && size == total => Ok((response, 0)),
                    Some((range, size)) if range.start == start => Err(self.other_size(size, total)),
                    _ => Err(service.nonsense("another range of the blob than was asked for")),
                }
            }
            status => Err(service.nonsense(format!("status {status} to a download"))),
        }
    }

    /// The blob is not the one its reference describes: for good, since neither ever changes.
    fn other_size(&self, actual: u64, expected: u64) -> ClientError {
        let source =
            if actual < expected { OpenError::Truncated { expected, actual } } else { OpenError::TooLong { expected } };
        ClientError::Sealed { blob: self.reference.id, source }
    }

    async fn receive(
        &mut self,
        mut response: Response,
        mut skip: u64,
        mut at: u64,
        total: u64,
        pieces: mpsc::Sender<Bytes>,
    ) -> Result<(), ClientError> {
        let service = self.source.service;
        loop {
            let chunk = tokio::time::timeout(IDLE_TIMEOUT, response.chunk()).await;
            let chunk = chunk.map_err(|_| service.lost("nothing came for a minute"))?;
            let Some(mut piece) = chunk.map_err(|error| service.unreachable(error))? else { break };
            self.first_byte.get_or_insert_with(|| self.started.elapsed());
            let known = usize::try_from(skip).unwrap_or(usize::MAX).min(piece.len());
            let _ = piece.split_to(known);
            skip -= known as u64;
            at += piece.len() as u64;
            if pieces.send(piece).await.is_err() {
                // The writer says why.
                return Ok(());
            }
            let done = at.min(self.reference.true_bytes);
            (self.on)(Progress::Downloading { done, total: self.reference.true_bytes });
        }
        if at < total {
            return Err(service.lost("the blob was cut off"));
        }
        Ok(())
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}
