//! A network and a server as they are on a bad day: between a store and SeaweedFS, each request may meet one fault.
//!
//! What a store does about a lost reply cannot be tried on a server that loses none. The faults are rolled from a seed and
//! counted, so that a run can say which of them it met, and one that met none of a kind shows nothing about it.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

use super::server::{runtime, wait};

/// How long a store under test waits for one answer: what comes later than this was given up.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(1500);

/// What can happen to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fault {
    /// 503 `SlowDown`; the request was not done.
    SlowDown,
    /// 500 `InternalError`; the request was not done.
    Broken,
    /// It takes a while.
    Delay,
    /// A part is held back until another part has overtaken it.
    Reordered,
    /// The request is done, and the connection breaks before the answer.
    LostReply,
    /// The request is done, and the answer does not come in time.
    TimeOutAfterSuccess,
    /// The request is done, and the answer takes a while.
    SlowReply,
    /// The request is done long after its sender gave it up.
    Late,
    /// The answer to the end of a multipart upload is 200 and carries an error; it may have been done or not.
    ErrorIn200,
    /// The connection breaks amid the request's body.
    CutRequest,
    /// The connection breaks amid the answer's body.
    CutAnswer,
    /// A part fails however often it is sent.
    FailedPart,
    /// A conditional write is made and called refused.
    MadeThen412,
    /// A conditional write meets another that is under way: 409, not done.
    Conflict409,
    /// 403 `RequestTimeTooSkewed`: the clocks differ.
    ClockSkew,
    /// A listing tells times of a clock that is behind.
    OldTimes,
}

/// All that are rolled.
pub(super) const ROLLED: [Fault; 15] = [
    Fault::SlowDown,
    Fault::Broken,
    Fault::Delay,
    Fault::Reordered,
    Fault::LostReply,
    Fault::TimeOutAfterSuccess,
    Fault::SlowReply,
    Fault::Late,
    Fault::ErrorIn200,
    Fault::CutRequest,
    Fault::CutAnswer,
    Fault::FailedPart,
    Fault::MadeThen412,
    Fault::Conflict409,
    Fault::ClockSkew,
];

/// How often a part that fails does: more often than the client sends it.
const PART_FAILURES: u32 = 6;

/// How long a slow reply takes: less than its sender waits.
const SLOW_REPLY: Duration = Duration::from_millis(1200);

/// How long after half of an answer the connection breaks.
const CUT_AFTER: Duration = Duration::from_millis(20);

/// How long a part waits to be overtaken.
const OVERTAKE_WAIT: Duration = Duration::from_millis(600);

/// A small generator of pseudo-random numbers (Marsaglia's xorshift64).
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// The proxy; it runs as long as the test's process.
pub(super) struct Proxy {
    /// Where it listens.
    pub(super) endpoint: String,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: SocketAddr,
    dice: Mutex<Dice>,
    /// How many of a thousand requests meet a fault; 0 ends it.
    per_mille: AtomicU64,
    counts: Mutex<BTreeMap<Fault, u64>>,
    /// Faults that the next request of a kind meets whose path has this in it.
    ordered: Mutex<Vec<(&'static str, &'static str, Fault)>>,
    requests: Mutex<BTreeMap<&'static str, u64>>,
    failing: Mutex<HashMap<String, u32>>,
    /// Parts that arrived.
    parts: AtomicU64,
    has_old_times: AtomicBool,
}

type Body = BoxBody<Bytes, io::Error>;

impl Proxy {
    /// A proxy to the server at `endpoint`; `per_mille` of a thousand requests meet a fault.
    pub(super) fn start(endpoint: &str, seed: u64, per_mille: u64) -> Self {
        let upstream = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = wait(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            upstream,
            dice: Mutex::new(Dice::new(seed)),
            per_mille: AtomicU64::new(per_mille),
            counts: Mutex::default(),
            ordered: Mutex::default(),
            requests: Mutex::default(),
            failing: Mutex::default(),
            parts: AtomicU64::new(0),
            has_old_times: AtomicBool::new(false),
        });
        let serving = Arc::clone(&shared);
        runtime().spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(|request| Arc::clone(&shared).answer(request));
                    let served = hyper::server::conn::http1::Builder::new();
                    // It ends with an error whenever a fault breaks it off.
                    let _ = served.serve_connection(TokioIo::new(client), service).await;
                });
            }
        });
        Self { endpoint, shared }
    }

    /// How many of a thousand requests meet a fault from now on.
    pub(super) fn set_rate(&self, per_mille: u64) {
        self.shared.per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// Lets the next request of this kind whose path has `path` in it meet `fault`.
    pub(super) fn order(&self, kind: &'static str, path: &'static str, fault: Fault) {
        self.shared.ordered.lock().unwrap().push((kind, path, fault));
    }

    /// Whether everything that was ordered was met.
    pub(super) fn has_delivered(&self) -> bool {
        self.shared.ordered.lock().unwrap().is_empty()
    }

    /// Lets listings tell times of 2001.
    pub(super) fn set_old_times(&self) {
        self.shared.has_old_times.store(true, Ordering::Relaxed);
    }

    /// How often each fault was met.
    pub(super) fn counts(&self) -> BTreeMap<Fault, u64> {
        self.shared.counts()
    }

    /// How many requests of each kind came since this was asked last.
    pub(super) fn take_requests(&self) -> BTreeMap<&'static str, u64> {
        std::mem::take(&mut *self.shared.requests.lock().unwrap())
    }
}

/// What a request is, as far as faults care.
struct Kind {
    name: &'static str,
    is_write: bool,
    is_part: bool,
    is_end: bool,
    is_conditional: bool,
    is_list: bool,
}

impl Kind {
    fn of(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        let is_list = parts.method == Method::GET && has("list-type");
        let name = match (&parts.method, has("uploadId"), has("uploads")) {
            (&Method::PUT, true, _) => "UploadPart",
            (&Method::PUT, ..) => "PUT",
            (&Method::POST, true, _) => "CompleteMultipartUpload",
            (&Method::POST, ..) => "CreateMultipartUpload",
            (&Method::DELETE, true, _) => "AbortMultipartUpload",
            (&Method::DELETE, ..) => "DELETE",
            (&Method::HEAD, ..) => "HEAD",
            (_, true, _) => "ListParts",
            (_, _, true) => "ListMultipartUploads",
            _ if is_list => "LIST",
            _ => "GET",
        };
        Self {
            name,
            is_write: !matches!(parts.method, Method::GET | Method::HEAD),
            is_part: name == "UploadPart",
            is_end: name == "CompleteMultipartUpload",
            is_conditional: name == "PUT"
                && (parts.headers.contains_key("if-match") || parts.headers.contains_key("if-none-match")),
            is_list,
        }
    }

    fn may_meet(&self, fault: Fault) -> bool {
        match fault {
            Fault::SlowDown | Fault::Broken | Fault::Delay | Fault::SlowReply | Fault::ClockSkew => true,
            Fault::LostReply | Fault::TimeOutAfterSuccess | Fault::Late => self.is_write,
            Fault::ErrorIn200 => self.is_end,
            Fault::CutRequest => self.name == "PUT" || self.is_part,
            Fault::CutAnswer => self.name == "GET" || self.is_list,
            Fault::FailedPart | Fault::Reordered => self.is_part,
            Fault::MadeThen412 | Fault::Conflict409 => self.is_conditional,
            Fault::OldTimes => false,
        }
    }
}

impl Shared {
    fn roll(&self, below: u64) -> u64 {
        self.dice.lock().unwrap().below(below)
    }

    fn counts(&self) -> BTreeMap<Fault, u64> {
        self.counts.lock().unwrap().clone()
    }

    fn count(&self, fault: Fault) {
        *self.counts.lock().unwrap().entry(fault).or_default() += 1;
    }

    /// The fault that a request meets.
    fn choose(&self, kind: &Kind, path: &str) -> Option<Fault> {
        let mut ordered = self.ordered.lock().unwrap();
        if let Some(at) = ordered.iter().position(|(name, part, _)| *name == kind.name && path.contains(part)) {
            return Some(ordered.remove(at).2);
        }
        drop(ordered);
        let rate = self.per_mille.load(Ordering::Relaxed);
        // Parts and ends are few, and most of what can go wrong is about them.
        let rate = if kind.is_part || kind.is_end { 3 * rate } else { rate };
        if self.roll(1000) >= rate {
            return None;
        }
        let mut possible: Vec<_> = ROLLED.into_iter().filter(|fault| kind.may_meet(*fault)).collect();
        // What was not met yet comes first, so that a run of a minute meets everything.
        let counts = self.counts();
        if possible.iter().any(|fault| !counts.contains_key(fault)) {
            possible.retain(|fault| !counts.contains_key(fault));
        }
        Some(possible[self.roll(possible.len() as u64) as usize])
    }

    /// Whether this part fails, now that it is to (`anew`) or because it was before.
    fn fails(&self, part: &str, anew: bool) -> bool {
        let mut failing = self.failing.lock().unwrap();
        if anew {
            failing.entry(part.to_owned()).or_insert(PART_FAILURES);
        }
        match failing.get_mut(part) {
            Some(left) if *left > 0 && self.per_mille.load(Ordering::Relaxed) > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, mut body) = request.into_parts();
        let kind = Kind::of(&parts);
        *self.requests.lock().unwrap().entry(kind.name).or_default() += 1;
        let fault = self.choose(&kind, parts.uri.path());
        if fault == Some(Fault::CutRequest) {
            self.count(Fault::CutRequest);
            drop(body.frame().await);
            return Err(broken());
        }
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        if kind.is_part && self.fails(parts.uri.query().unwrap_or_default(), fault == Some(Fault::FailedPart)) {
            self.count(Fault::FailedPart);
            return Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
        }
        match fault {
            Some(fault @ Fault::SlowDown) => {
                self.count(fault);
                return Ok(refusal(StatusCode::SERVICE_UNAVAILABLE, "SlowDown"));
            }
            Some(fault @ Fault::Broken) => {
                self.count(fault);
                return Ok(refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"));
            }
            Some(fault @ Fault::Conflict409) => {
                self.count(fault);
                return Ok(refusal(StatusCode::CONFLICT, "ConditionalRequestConflict"));
            }
            Some(fault @ Fault::ClockSkew) => {
                self.count(fault);
                return Ok(refusal(StatusCode::FORBIDDEN, "RequestTimeTooSkewed"));
            }
            Some(fault @ Fault::Delay) => {
                self.count(fault);
                tokio::time::sleep(Duration::from_millis(self.roll(400))).await;
            }
            Some(fault @ Fault::Reordered) => {
                let arrived = self.parts.load(Ordering::Relaxed);
                tokio::time::sleep(OVERTAKE_WAIT).await;
                if self.parts.load(Ordering::Relaxed) > arrived {
                    self.count(fault);
                }
            }
            Some(fault @ Fault::ErrorIn200) if self.roll(2) == 0 => {
                self.count(fault);
                return Ok(refusal(StatusCode::OK, "InternalError"));
            }
            Some(fault @ Fault::Late) => {
                self.count(fault);
                let late = ATTEMPT_TIMEOUT + Duration::from_millis(self.roll(1000));
                tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    let _ = self.forward(parts, body).await;
                });
                return std::future::pending().await;
            }
            _ => {}
        }
        let is_part = kind.is_part;
        let (head, bytes) = Arc::clone(&self).forward(parts, body).await?;
        self.parts.fetch_add(u64::from(is_part), Ordering::Relaxed);
        let made = head.status.is_success();
        match fault {
            Some(fault @ Fault::LostReply) => {
                self.count(fault);
                Err(broken())
            }
            Some(fault @ Fault::TimeOutAfterSuccess) => {
                self.count(fault);
                std::future::pending().await
            }
            Some(fault @ Fault::ErrorIn200) => {
                self.count(fault);
                Ok(refusal(StatusCode::OK, "InternalError"))
            }
            Some(fault @ Fault::SlowReply) => {
                self.count(fault);
                tokio::time::sleep(SLOW_REPLY).await;
                Ok(Response::from_parts(head, whole(bytes)))
            }
            Some(fault @ Fault::MadeThen412) if made => {
                self.count(fault);
                Ok(refusal(StatusCode::PRECONDITION_FAILED, "PreconditionFailed"))
            }
            Some(fault @ Fault::CutAnswer) if bytes.len() > 1 => {
                self.count(fault);
                let half = Ok(Frame::data(bytes.slice(..bytes.len() / 2)));
                // It breaks once the half has gone out: at once, the whole answer would be lost and asked for again.
                let breaks = stream::once(async {
                    tokio::time::sleep(CUT_AFTER).await;
                    Err(broken())
                });
                let body = StreamBody::new(stream::iter([half]).chain(breaks));
                Ok(Response::from_parts(head, BoxBody::new(body)))
            }
            _ if kind.is_list && self.has_old_times.load(Ordering::Relaxed) => {
                self.count(Fault::OldTimes);
                Ok(with_old_times(head, &bytes))
            }
            _ => Ok(Response::from_parts(head, whole(bytes))),
        }
    }

    async fn forward(self: Arc<Self>, parts: Parts, body: Bytes) -> io::Result<(hyper::http::response::Parts, Bytes)> {
        // Asked in a task of its own: a client that goes away does not take back what it sent.
        let asked = tokio::spawn(async move {
            let server = TcpStream::connect(self.upstream).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(server)).await.map_err(io::Error::other)?;
            tokio::spawn(connection);
            let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await;
            let (head, body) = answer.map_err(io::Error::other)?.into_parts();
            Ok((head, body.collect().await.map_err(io::Error::other)?.to_bytes()))
        });
        asked.await.map_err(io::Error::other)?
    }
}

fn broken() -> io::Error {
    io::Error::from(io::ErrorKind::ConnectionReset)
}

fn whole(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

fn refusal(status: StatusCode, code: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    Response::builder().status(status).header(CONTENT_TYPE, "application/xml").body(whole(text.into())).unwrap()
}

/// A listing whose times are those of 2001.
fn with_old_times(mut head: hyper::http::response::Parts, bytes: &Bytes) -> Response<Body> {
    let text = std::str::from_utf8(bytes).unwrap();
    let mut pieces = text.split("<LastModified>");
    let mut told = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let rest = piece.split_once("</LastModified>").map_or("", |(_, rest)| rest);
        told = format!("{told}<LastModified>2001-01-01T00:00:00.000Z</LastModified>{rest}");
    }
    head.headers.remove(hyper::header::CONTENT_LENGTH);
    Response::from_parts(head, whole(told.into()))
}
