//! The raw hit path: answers what the edge has, on plain HTTP/1.1, straight to the socket.
//!
//! A hit is worth a few microseconds, and a general server spends most of them on what a hit does not need: maps of
//! fields, boxed bodies, copies of what lies in a file already. Here a small body leaves with its head in one `writev`,
//! a large one by `sendfile` from the cache file.
//!
//! What is under `/v1/blobs/` and no plain hit goes through the same router as everywhere, on this connection; at the
//! first request that is anything else the connection is handed over with what was read of it.
//!
//! Promises:
//! - Grants come before the look-up, here too, and nothing is sent that was not verified.
//! - A status, a field or a byte that differs from what the router would have answered is a bug.
//! - A body that cannot be sent to its end is cut off, visibly.

mod answer;
mod buffers;
#[cfg(test)]
mod fuzz;
mod head;
mod send;

use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderName};
use http::{Method, Uri};
use http_body_util::BodyExt as _;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;
use waxwing_protocol::grant::bearer;
use waxwing_protocol::range::{ByteRange, RangeSpec, parse_ranges};
use waxwing_protocol::{BlobId, ClientAddress, Timestamp};

use crate::Edge;
use crate::access_log::Line;
use crate::blobs::{AtHand, Content, How};
use crate::cache::Head;
use crate::slice::{SLICE_BYTES, slice_at};
use answer::Told;
use buffers::Buffers;
use head::{BLOBS, Parsed, Request};
use send::{Corked, send_file, send_head, send_pieces};

/// Bytes of a head at most that is looked at here; a longer one is the router's to judge.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Bytes read at once.
const READ_BYTES: usize = 4 * 1024;

/// Slices of a range that are looked at before it is called a hit: what a reader of the router looks at.
const LOOK_SLICES: u64 = 8;

/// Bytes of a body that are copied rather than sent from a file: below, the copy is cheaper.
const COPIED_BYTES_MAX: u64 = 64 * 1024;

/// Bytes of a body from which on it is sent corked: two system calls more, which a smaller one does not earn.
const CORKED_BYTES_MIN: u64 = 512 * 1024;

/// How long an ended connection waits for its peer to read the last answer and close.
const LINGER: Duration = Duration::from_secs(1);

/// Reads of what a peer still sends meanwhile.
const LINGER_READS_MAX: usize = 64;

/// What a connection is served under.
#[derive(Clone)]
pub struct Terms {
    /// Answers what is no hit: all that the public address answers, its layers included.
    pub router: Router,
    /// How long a request's head may take to arrive, and a connection be idle.
    pub head_timeout: Duration,
    /// Done when no further request is to be answered.
    pub stopping: CancellationToken,
    /// Told of each answer that the router did not give.
    pub measured: Measured,
}

/// Is told of an answer: method, status, time.
pub type Measured = Arc<dyn Fn(&Method, u16, Duration) + Send + Sync>;

impl std::fmt::Debug for Terms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terms").field("head_timeout", &self.head_timeout).finish_non_exhaustive()
    }
}

/// How a connection was left.
#[derive(Debug)]
pub enum Left {
    /// It has ended.
    Ended,
    /// It is for another server, with what was read of it and not answered.
    Over {
        /// The connection.
        stream: TcpStream,
        /// What was read.
        read: Bytes,
    },
}

/// What a request that can be answered at once is answered with.
struct Hit {
    told: Told,
    content: Answered,
}

enum Answered {
    Nothing,
    Pieces(Vec<Bytes>),
    Slices(Range<u64>),
}

impl Edge {
    /// Serves what readers of blobs ask on `stream`, which comes from `client`, as long as they ask nothing else.
    pub async fn serve_raw(&self, mut stream: TcpStream, client: ClientAddress, terms: &Terms) -> Left {
        let mut buffers = Buffers::default();
        let stopped = terms.stopping.cancelled();
        tokio::pin!(stopped);
        let timer = tokio::time::sleep(terms.head_timeout);
        tokio::pin!(timer);
        // When the last answer ended: the next head has to be here a while later.
        let mut quiet_since = Instant::now();
        loop {
            let Buffers { read, head } = &mut buffers;
            match head::parse(read) {
                Parsed::Other => return Left::Over { stream, read: buffers.into_read() },
                Parsed::Partial if read.len() >= HEAD_BYTES_MAX => {
                    return Left::Over { stream, read: buffers.into_read() };
                }
                Parsed::Partial => {}
                Parsed::Request(mut request) => {
                    request.keeps &= !terms.stopping.is_cancelled();
                    let began = Instant::now();
                    let answered = match self.hit(&request, began) {
                        Some(hit) => self.answer(&stream, &request, hit, head, began, terms).await,
                        // Boxed: what is no hit is seldom, and its future large.
                        None => match Box::pin(self.route(&stream, &request, client, head, terms)).await {
                            Some(answered) => answered,
                            None => return Left::Over { stream, read: buffers.into_read() },
                        },
                    };
                    if answered.is_err() {
                        return Left::Ended;
                    }
                    if !request.keeps {
                        // Boxed: every connection would keep room for its end.
                        Box::pin(linger(&stream)).await;
                        return Left::Ended;
                    }
                    let taken = request.bytes;
                    bytes::Buf::advance(read, taken);
                    quiet_since = Instant::now();
                    continue;
                }
            }
            loop {
                if buffers.read.is_empty() {
                    // An idle connection keeps no buffer.
                    std::mem::take(&mut buffers).give_back();
                }
                tokio::select! {
                    biased;
                    ready = stream.readable() => if ready.is_err() { return Left::Ended },
                    () = &mut stopped => return Left::Ended,
                    () = &mut timer => {
                        let ends = quiet_since + terms.head_timeout;
                        if ends <= Instant::now() {
                            return Left::Ended;
                        }
                        timer.as_mut().reset(ends.into());
                        continue;
                    }
                }
                if buffers.read.is_empty() {
                    buffers = Buffers::take();
                }
                let read = &mut buffers.read;
                read.reserve(READ_BYTES);
                // Unlike `try_read_buf`, what fills less than its room is known to have emptied the socket: the next
                // request is waited for without asking in vain whether it is there.
                let arrived = poll_fn(|cx| Poll::Ready(poll_read_buf(Pin::new(&mut stream), cx, read))).await;
                match arrived {
                    Poll::Ready(Ok(1..)) => break,
                    Poll::Ready(Ok(0) | Err(_)) => return Left::Ended,
                    Poll::Pending => {}
                }
            }
        }
    }

    /// What `request` is answered with, when that is at hand.
    fn hit(&self, request: &Request<'_>, began: Instant) -> Option<Hit> {
        if !request.is_plain || request.method == Method::OPTIONS {
            return None;
        }
        let id: BlobId = request.target.strip_prefix(BLOBS)?.parse().ok()?;
        let now = Timestamp::from(SystemTime::now());
        let expires = self.grants().admit(bearer(request.authorization?)?, id, now).ok()?;
        let head = self.blobs().cache().head(id)?;
        let (blob_bytes, stored) = match &head {
            Head::Whole(whole) => (whole.bytes.len() as u64, whole.stored),
            Head::Card(card) => (card.blob_bytes(), card.stored),
        };
        let is_head = request.method == Method::HEAD;
        let part = match request.range.filter(|_| !is_head).map(parse_ranges) {
            None | Some(None) => None,
            Some(Some(specs)) => match specs.as_slice() {
                [spec] => Some(spec.resolve(blob_bytes)?),
                _ => return None,
            },
        };
        let range = part.map_or(0..blob_bytes, ByteRange::as_range);
        let (content, is_from_disk) = match &head {
            _ if is_head => (Answered::Nothing, false),
            Head::Whole(whole) => {
                let in_memory = |offset: u64| usize::try_from(offset).expect("a blob kept whole is in memory");
                (Answered::Pieces(vec![whole.bytes.slice(in_memory(range.start)..in_memory(range.end))]), false)
            }
            Head::Card(_) if range.is_empty() => return None,
            Head::Card(_) => {
                let is_from_disk = self.blobs().all_at_hand(id, range.clone(), LOOK_SLICES)?;
                (Answered::Slices(range), is_from_disk)
            }
        };
        let age = now.since(stored);
        let max_age = crate::http::client_lifetime(expires.since(now), age);
        let (max_age_s, age_s) = (max_age.as_secs(), age.as_secs());
        let (took, keeps) = (began.elapsed(), request.keeps);
        Some(Hit { told: Told { id, blob_bytes, part, is_from_disk, max_age_s, age_s, took, keeps }, content })
    }

    async fn answer(
        &self,
        stream: &TcpStream,
        request: &Request<'_>,
        hit: Hit,
        head: &mut Vec<u8>,
        began: Instant,
        terms: &Terms,
    ) -> io::Result<()> {
        let Hit { told, content } = hit;
        head.clear();
        told.write(head);
        self.count_read(How::Hit { is_from_disk: told.is_from_disk });
        (terms.measured)(&request.method, told.status(), told.took);
        let mut logging = Logging { edge: self, request, told, began, sent: 0 };
        let sent = &mut logging.sent;
        match content {
            Answered::Nothing => send_pieces(stream, head, &[], sent).await,
            Answered::Pieces(pieces) => send_pieces(stream, head, &pieces, sent).await,
            Answered::Slices(range) => {
                let place = if slice_at(range.start) == slice_at(range.end - 1) { None } else { self.blobs().place() };
                let done = self.send_slices(stream, head, told.id, range, sent).await;
                drop(place);
                done
            }
        }
    }

    /// Sends `head` and behind it what `range` says of blob `id`, slice by slice.
    async fn send_slices(
        &self,
        stream: &TcpStream,
        head: &[u8],
        id: BlobId,
        mut range: Range<u64>,
        sent: &mut u64,
    ) -> io::Result<()> {
        let mut head = head;
        let mut corked = if range.end - range.start >= CORKED_BYTES_MIN { Corked::new(stream) } else { None };
        while !range.is_empty() {
            let index = slice_at(range.start);
            let end = range.end.min((index + 1) * SLICE_BYTES);
            let wanted = range.start..end;
            let went = match self.blobs().at_hand(id, wanted.clone(), COPIED_BYTES_MAX) {
                Some(AtHand::Bytes(pieces)) => {
                    send_pieces(stream, head, &pieces, sent).await?;
                    end - range.start
                }
                Some(AtHand::File(lease)) => {
                    if !head.is_empty() {
                        send_head(stream, head).await?;
                    }
                    let offset = lease.offset + range.start % SLICE_BYTES;
                    let went = send_file(stream, &lease, offset, end - range.start).await?;
                    *sent += went;
                    went
                }
                // It has left since it was looked at: the rest comes as for any reader.
                None => {
                    // It may come slowly, and is not to wait for more.
                    corked.take();
                    return Box::pin(self.send_rest(stream, head, id, range, sent)).await;
                }
            };
            head = &[];
            range.start += went;
        }
        Ok(())
    }

    async fn send_rest(
        &self,
        stream: &TcpStream,
        head: &[u8],
        id: BlobId,
        range: Range<u64>,
        sent: &mut u64,
    ) -> io::Result<()> {
        send_pieces(stream, head, &[], sent).await?;
        let spec = RangeSpec::From { first: range.start, last: Some(range.end - 1) };
        let reading = self.blobs().read(id, Some(spec), Timestamp::from(SystemTime::now())).await;
        match reading.map_err(io::Error::other)?.content {
            Content::Held(pieces) => send_pieces(stream, &[], &pieces, sent).await,
            Content::Streamed(mut reader) => {
                while let Some(bytes) = reader.next().await.map_err(io::Error::other)? {
                    send_pieces(stream, &[], &[bytes], sent).await?;
                }
                Ok(())
            }
        }
    }

    /// Answers `request` by way of the router; `None` when it is none for the router's types.
    async fn route(
        &self,
        stream: &TcpStream,
        request: &Request<'_>,
        client: ClientAddress,
        head: &mut Vec<u8>,
        terms: &Terms,
    ) -> Option<io::Result<()>> {
        let mut asked = http::Request::new(Body::empty());
        *asked.method_mut() = request.method.clone();
        *asked.uri_mut() = request.target.parse::<Uri>().ok()?;
        *asked.headers_mut() = request.headers()?;
        asked.extensions_mut().insert(client);
        let Ok(answer) = terms.router.clone().call(asked).await;
        let (parts, mut body) = answer.into_parts();
        head.clear();
        let status = parts.status;
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend_from_slice(status.as_str().as_bytes());
        head.push(b' ');
        head.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
        head.extend_from_slice(b"\r\n");
        // These have no content, and a length of it would be that of another answer. hyper leaves the router's to HEAD.
        let is_bare = status == 304 || status == 204;
        let is_head = request.method == Method::HEAD;
        let is_told = |name: &HeaderName| *name != CONNECTION && !(is_bare && !is_head && *name == CONTENT_LENGTH);
        for (name, value) in parts.headers.iter().filter(|(name, _)| is_told(name)) {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        let has_body = !is_head && !is_bare;
        let length = http_body::Body::size_hint(&body).exact();
        if let Some(length) = length.filter(|_| has_body && !parts.headers.contains_key(CONTENT_LENGTH)) {
            head.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
        }
        // A body whose length nobody knows ends with its connection.
        let keeps = request.keeps && (!has_body || length.is_some());
        answer::end(head, keeps);
        let mut began = &head[..];
        let mut went = 0;
        if has_body {
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return Some(Err(io::ErrorKind::InvalidData.into())) };
                if let Ok(bytes) = frame.into_data() {
                    if let Err(error) = send_pieces(stream, began, &[bytes], &mut went).await {
                        return Some(Err(error));
                    }
                    began = &[];
                }
            }
        }
        if let Err(error) = send_pieces(stream, began, &[], &mut went).await {
            return Some(Err(error));
        }
        Some(if keeps || !request.keeps { Ok(()) } else { Err(io::ErrorKind::ConnectionAborted.into()) })
    }
}

/// Ends the connection without taking back what was sent: a socket closed with bytes unread is reset, and what the peer
/// has not read yet is lost with it.
async fn linger(stream: &TcpStream) {
    if rustix::net::shutdown(stream, rustix::net::Shutdown::Write).is_err() {
        return;
    }
    let mut unread = [0; 1024];
    let ends = tokio::time::Instant::now() + LINGER;
    for _ in 0..LINGER_READS_MAX {
        match tokio::time::timeout_at(ends, stream.readable()).await {
            Ok(Ok(())) => match stream.try_read(&mut unread) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => return,
            },
            _ => return,
        }
    }
}

/// Counts and logs an answer when it has ended, however it did.
struct Logging<'r> {
    edge: &'r Edge,
    request: &'r Request<'r>,
    told: Told,
    began: Instant,
    sent: u64,
}

impl Drop for Logging<'_> {
    fn drop(&mut self) {
        self.edge.parts.counters.sent_bytes.fetch_add(self.sent, Relaxed);
        let Some(log) = &self.edge.parts.access_log else { return };
        let Self { request, told, .. } = self;
        let expected = match (&request.method, told.part) {
            (&Method::HEAD, _) => 0,
            (_, Some(part)) => part.byte_count(),
            (_, None) => told.blob_bytes,
        };
        let micros = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let took = self.began.elapsed();
        log.write(&Line {
            at_ms: (SystemTime::now() - took).into(),
            method: request.method.as_str(),
            path: request.target,
            status: told.status(),
            range: told.part.map(|part| part.content_range(told.blob_bytes)).as_deref(),
            cache: Some(told.cache_status()),
            sent_bytes: self.sent,
            is_whole: self.sent == expected,
            head_us: micros(told.took),
            took_us: micros(took),
        });
    }
}
