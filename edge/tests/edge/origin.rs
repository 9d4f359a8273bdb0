//! A real origin on a real socket, which does as it is told and remembers what it was asked.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use http::{HeaderMap, StatusCode};
use tokio::sync::watch;
use waxwing_protocol::BlobId;
use waxwing_protocol::api::{Purge, PurgeLog};
use waxwing_protocol::blob::{BlobHasher, GROUP_BYTES};
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, parse_ranges};

/// How the origin sends bodies: in pieces that fit no boundary of ours.
const PIECE_BYTES: u64 = 10_007;

/// What the origin does when asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Honest,
    /// Answers everything with this status.
    Status(u16),
    /// Never answers.
    Mute,
    /// Breaks every body off at this offset of the blob.
    CutAt(u64),
    /// Ends every body cleanly at this offset, against its own head.
    ChunkedShortAt(u64),
    /// Falls silent amid every body, at this offset of the blob.
    SilentAt(u64),
    /// Sends a kilobyte at a time, and lets everybody else go first each time.
    Trickle,
    /// Sends this byte of the blob with a bit flipped.
    FlipAt(u64),
    IgnoreRange,
    /// Tells another range than it was asked for.
    ShiftRange,
    /// Claims in `Content-Range` that the blob is one byte longer.
    OtherSize,
    /// Serves the blob with one byte more at its end, consistently.
    Padded,
    /// Sends the outboard of another blob of the same size.
    ForeignOutboard,
    /// Leaves the blob's size out of the outboard's head.
    NoOutboardSize,
}

/// One request the origin had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Outboard,
    Range(u64, u64),
}

#[derive(Clone)]
pub(crate) struct Origin {
    pub(crate) addr: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    blobs: Mutex<HashMap<BlobId, Arc<Stored>>>,
    /// What to do, and how many more answers to do it for.
    manner: Mutex<(Manner, usize)>,
    /// How often it did each kind of wrong, by name.
    misdeeds: Mutex<BTreeMap<String, u64>>,
    asked: watch::Sender<Vec<Asked>>,
    answered: watch::Sender<usize>,
    authorizations: Mutex<Vec<String>>,
    purges: Mutex<PurgeLog>,
    /// The purges after which somebody has asked: that many are known to it.
    purges_known: watch::Sender<u64>,
    /// Offset of the blob up to which bodies may be sent now.
    gate: watch::Sender<u64>,
}

struct Stored {
    bytes: Bytes,
    outboard: Bytes,
}

impl Origin {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(Shared {
            blobs: Mutex::default(),
            manner: Mutex::new((Manner::Honest, usize::MAX)),
            misdeeds: Mutex::default(),
            asked: watch::channel(Vec::new()).0,
            answered: watch::channel(0).0,
            authorizations: Mutex::default(),
            purges: Mutex::new(PurgeLog { oldest: 1, next: 1, purges: Vec::new() }),
            purges_known: watch::channel(0).0,
            gate: watch::channel(u64::MAX).0,
        });
        let origin = Self { addr: listener.local_addr().unwrap(), shared: Arc::clone(&shared) };
        let router = Router::new()
            .route("/origin/v1/blobs/{id}", get(blob))
            .route("/origin/v1/blobs/{id}/outboard", get(outboard))
            .route("/origin/v1/purges", get(purges))
            // As an edge of another make, which says what it is told to.
            .route("/peer/v1/blobs/{id}", get(blob))
            .route("/peer/v1/blobs/{id}/outboard", get(outboard))
            .route("/peer/v1/health", get(health))
            .with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        origin
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn store(&self, bytes: impl Into<Bytes>) -> BlobId {
        let bytes = bytes.into();
        let (id, outboard) = hash(&bytes);
        self.shared.blobs.lock().unwrap().insert(id, Arc::new(Stored { bytes, outboard }));
        id
    }

    /// Makes a blob go.
    pub(crate) fn purge(&self, id: BlobId) {
        self.shared.blobs.lock().unwrap().remove(&id);
        let mut log = self.shared.purges.lock().unwrap();
        let number = log.next;
        log.purges.push(Purge { number, blob: id, at: super::harness::now() });
        log.next += 1;
    }

    /// Forgets the purges before this number.
    pub(crate) fn forget_purges_before(&self, number: u64) {
        let mut log = self.shared.purges.lock().unwrap();
        log.purges.retain(|purge| purge.number >= number);
        log.oldest = number;
    }

    /// Waits until the edge has applied all purges.
    pub(crate) async fn wait_for_purges_known(&self) {
        let newest = self.shared.purges.lock().unwrap().next - 1;
        self.shared.purges_known.subscribe().wait_for(|known| *known >= newest).await.unwrap();
    }

    /// Waits from now on for an edge that has yet to be told of all purges.
    pub(crate) fn forget_who_knows(&self) {
        self.shared.purges_known.send_replace(0);
    }

    /// How often it did each kind of wrong, by name.
    pub(crate) fn misdeeds(&self) -> BTreeMap<String, u64> {
        self.shared.misdeeds.lock().unwrap().clone()
    }

    /// From now on.
    pub(crate) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = (manner, usize::MAX);
    }

    /// For the next `times` answers with bytes of a blob.
    pub(crate) fn behave_for(&self, times: usize, manner: Manner) {
        *self.shared.manner.lock().unwrap() = (manner, times);
    }

    /// Lets bodies go on up to this offset of the blob.
    pub(crate) fn open_gate_to(&self, offset: u64) {
        self.shared.gate.send_replace(offset);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.asked.borrow().clone()
    }

    /// What was asked of the blob itself, in the order of the bytes.
    pub(crate) fn ranges_asked(&self) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> = self.asked().into_iter().filter_map(Asked::range).collect();
        ranges.sort_unstable();
        ranges
    }

    pub(crate) fn outboards_asked(&self) -> usize {
        self.asked().iter().filter(|asked| **asked == Asked::Outboard).count()
    }

    /// Waits until the last piece of `count` bodies of blobs has been handed out.
    pub(crate) async fn wait_for_answered(&self, count: usize) {
        self.shared.answered.subscribe().wait_for(|answered| *answered >= count).await.unwrap();
    }

    /// Waits until a range of the blob has been asked for.
    pub(crate) async fn wait_for_range_asked(&self) {
        let mut asked = self.shared.asked.subscribe();
        asked.wait_for(|asked| asked.iter().any(|asked| *asked != Asked::Outboard)).await.unwrap();
    }

    pub(crate) fn authorizations(&self) -> Vec<String> {
        self.shared.authorizations.lock().unwrap().clone()
    }
}

impl Asked {
    fn range(self) -> Option<(u64, u64)> {
        match self {
            Self::Range(start, end) => Some((start, end)),
            Self::Outboard => None,
        }
    }
}

impl Shared {
    fn note(&self, asked: Asked, headers: &HeaderMap) {
        self.asked.send_modify(|all| all.push(asked));
        let authorization = headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        self.authorizations.lock().unwrap().push(authorization.unwrap_or_default());
    }

    /// Counts what it is about to do wrong.
    fn does(&self, manner: Manner) {
        let name = format!("{manner:?}");
        let name = name.split('(').next().unwrap_or_default();
        *self.misdeeds.lock().unwrap().entry(name.to_owned()).or_default() += 1;
    }

    fn find(&self, id: &str) -> Option<Arc<Stored>> {
        self.blobs.lock().unwrap().get(&id.parse().unwrap()).cloned()
    }

    /// The manner of an answer with bytes of a blob.
    fn manner(&self) -> Manner {
        let mut manner = self.manner.lock().unwrap();
        if manner.1 == 0 {
            return Manner::Honest;
        }
        manner.1 -= 1;
        manner.0
    }
}

async fn blob(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let spec = headers.get(RANGE).and_then(|range| parse_ranges(range.to_str().unwrap())).unwrap()[0];
    let manner = shared.manner();
    let asked = spec.resolve(u64::MAX).unwrap();
    shared.note(Asked::Range(asked.start, asked.end), &headers);
    let Some(stored) = shared.find(&id) else { return StatusCode::NOT_FOUND.into_response() };
    let mut bytes = stored.bytes.clone();
    let takes_effect = match manner {
        Manner::Honest | Manner::ForeignOutboard | Manner::NoOutboardSize => false,
        Manner::CutAt(at) | Manner::ChunkedShortAt(at) | Manner::SilentAt(at) | Manner::FlipAt(at) => {
            spec.resolve(bytes.len() as u64).is_some_and(|range| (range.start..range.end).contains(&at))
        }
        _ => true,
    };
    if takes_effect {
        shared.does(manner);
    }
    match manner {
        Manner::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Manner::Mute => return std::future::pending().await,
        Manner::Padded => bytes = [&bytes[..], &[0]].concat().into(),
        Manner::FlipAt(offset) => {
            let mut flipped = bytes.to_vec();
            if let Some(byte) = flipped.get_mut(offset as usize) {
                *byte ^= 1;
            }
            bytes = flipped.into();
        }
        _ => {}
    }
    let size = bytes.len() as u64;
    let Some(range) = spec.resolve(size) else {
        return (StatusCode::RANGE_NOT_SATISFIABLE, [(CONTENT_RANGE, format!("bytes */{size}"))]).into_response();
    };
    let told = match manner {
        Manner::IgnoreRange => return bytes.into_response(),
        Manner::ShiftRange => ByteRange { start: range.start + 1, end: range.end }.content_range(size),
        Manner::OtherSize => range.content_range(size + 1),
        _ => range.content_range(size),
    };
    let (is_cut, end) = match manner {
        Manner::CutAt(offset) if offset < range.end => (true, offset),
        Manner::ChunkedShortAt(offset) if offset < range.end => (false, offset),
        _ => (false, range.end),
    };
    let pace = match manner {
        Manner::SilentAt(at) => Pace { silent_at: at, ..Pace::default() },
        Manner::Trickle => Pace { piece_bytes: 1_021, ..Pace::default() },
        _ => Pace::default(),
    };
    let chunked = matches!(manner, Manner::ChunkedShortAt(_));
    let body = Body::from_stream(pieces(shared, bytes, range.start..end, is_cut, pace));
    let length = if chunked { None } else { Some((CONTENT_LENGTH, range.byte_count().to_string())) };
    let mut answer = (StatusCode::PARTIAL_CONTENT, [(CONTENT_RANGE, told)], body).into_response();
    answer.headers_mut().extend(length.map(|(name, value)| (name, value.parse().unwrap())));
    answer
}

/// How a body is sent.
#[derive(Clone, Copy)]
struct Pace {
    piece_bytes: u64,
    /// Where nothing more comes.
    silent_at: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { piece_bytes: PIECE_BYTES, silent_at: u64::MAX }
    }
}

/// The bytes, as far as the gate is open; at the end either the end or a broken connection.
fn pieces(
    shared: Arc<Shared>,
    bytes: Bytes,
    range: std::ops::Range<u64>,
    is_cut: bool,
    pace: Pace,
) -> impl futures_util::Stream<Item = Result<Bytes, std::io::Error>> {
    let gate = shared.gate.subscribe();
    stream::unfold((range, gate, shared), move |(mut range, mut gate, shared)| {
        let bytes = bytes.clone();
        async move {
            if range.start >= range.end {
                let cut = std::io::Error::other("told to break off");
                return is_cut.then(|| (Err(cut), (0..0, gate, shared)));
            }
            if pace.silent_at <= range.start {
                return std::future::pending().await;
            }
            if pace.piece_bytes < PIECE_BYTES {
                tokio::task::yield_now().await;
            }
            let limit = *gate.wait_for(|limit| *limit > range.start).await.unwrap();
            let end = range.end.min(range.start + pace.piece_bytes).min(limit).min(pace.silent_at);
            let piece = bytes.slice(range.start as usize..end as usize);
            range.start = end;
            // Not at the end of the stream: a server that has sent what it announced does not ask for more.
            if range.is_empty() {
                shared.answered.send_modify(|answered| *answered += 1);
            }
            Some((Ok(piece), (range, gate, shared)))
        }
    })
}

async fn purges(State(shared): State<Arc<Shared>>, Query(after): Query<HashMap<String, u64>>) -> Response {
    if let Manner::Status(status) = shared.manner.lock().unwrap().0 {
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    let mut log = shared.purges.lock().unwrap().clone();
    let after = after["after"];
    shared.purges_known.send_modify(|known| *known = (*known).max(after));
    log.purges.retain(|purge| purge.number > after);
    log.purges.truncate(2);
    Json(log).into_response()
}

async fn health(State(shared): State<Arc<Shared>>) -> Response {
    let manner = shared.manner.lock().unwrap().0;
    match manner {
        Manner::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        Manner::Mute => std::future::pending().await,
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn outboard(State(shared): State<Arc<Shared>>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let manner = shared.manner.lock().unwrap().0;
    shared.note(Asked::Outboard, &headers);
    let Some(stored) = shared.find(&id) else { return StatusCode::NOT_FOUND.into_response() };
    let mut size = stored.bytes.len() as u64;
    let mut outboard = stored.outboard.clone();
    if matches!(
        manner,
        Manner::Status(_) | Manner::Mute | Manner::NoOutboardSize | Manner::Padded | Manner::ForeignOutboard
    ) {
        shared.does(manner);
    }
    match manner {
        Manner::Status(status) => return StatusCode::from_u16(status).unwrap().into_response(),
        Manner::Mute => return std::future::pending().await,
        Manner::NoOutboardSize => return outboard.into_response(),
        Manner::Padded => size += 1,
        Manner::ForeignOutboard => outboard = hash(&vec![9; stored.bytes.len()]).1,
        _ => {}
    }
    Ok::<_, Infallible>(([(WAXWING_BLOB_BYTES, size.to_string())], outboard)).into_response()
}

fn hash(bytes: &[u8]) -> (BlobId, Bytes) {
    let mut outboard = Vec::new();
    let mut hasher = BlobHasher::new();
    hasher.update(bytes, |cv| outboard.extend_from_slice(cv));
    let id = hasher.finish(|cv| outboard.extend_from_slice(cv));
    if bytes.len() as u64 <= GROUP_BYTES {
        outboard.clear();
    }
    (id, outboard.into())
}
