//! Requests to push providers: resolved once, connected to what was checked, and nowhere else.
//!
//! Where a Web Push endpoint leads is chosen by whoever registers it. A server that just fetched it would be a hand
//! inside the operator's network: a name that resolves to 127.0.0.1, or resolves to it the second time, or an answer
//! that redirects there. So a name is resolved once, every address is checked, the connection goes to an address that
//! was, nothing is followed, no proxy of the environment is used, and of the answer a few kilobytes are read.
//!
//! Providers want few connections that last. One HTTP/2 connection a place carries all requests to it; a place that
//! speaks HTTP/1.1 alone gets a connection a request.

mod address;
mod endpoint;
mod tls;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::debug;

pub(super) use self::address::is_public;
pub(super) use self::endpoint::{Endpoint, EndpointRefused, EndpointRules};
pub(super) use self::tls::client_config;

/// The longest a request may take, from the name to the last byte of the answer.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Times that a request goes out which the other end did not look at. A provider that shuts servers down one after the
/// other may send it on more than once.
const ATTEMPTS: usize = 3;

/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 3;

/// Bytes of an answer's body that are read. Providers' errors have a few hundred.
const ANSWER_BYTES_MAX: usize = 4096;

/// Places with a connection at most; endpoints are chosen by strangers.
const PLACES_MAX: usize = 256;

/// How long a connection is silent before it is pinged: providers close what they believe dead, and so do NATs.
const PING_AFTER: Duration = Duration::from_secs(30 * 60);

/// Looks names up.
pub(crate) trait Resolver: Send + Sync + 'static {
    /// The addresses of a host.
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The operating system's.
pub(super) struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) })
    }
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
    /// Whether an operator named it, so that it may be in their own network.
    pub(super) trusted: bool,
}

impl Place {
    /// The place of a URL that an operator configured.
    pub(super) fn configured(url: &str) -> Result<Self, EndpointRefused> {
        let url = url::Url::parse(url).map_err(|_| EndpointRefused::Malformed)?;
        let host = url.host_str().filter(|_| url.scheme() == "https").ok_or(EndpointRefused::NotHttps)?;
        let host = host.trim_matches(['[', ']']).to_owned();
        Ok(Self { host, port: url.port_or_known_default().unwrap_or(443), trusted: true })
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum NetError {
    #[error("the name does not resolve")]
    Unresolved,
    #[error("the name resolves to an address that is not public")]
    NotPublic,
    #[error("not reachable: {0}")]
    Unreachable(io::Error),
    #[error("no TLS: {0}")]
    Tls(io::Error),
    #[error("no answer within {} s", REQUEST_LIMIT.as_secs())]
    TooSlow,
    /// The other end did not look at it: sending it again doubles nothing.
    #[error("the connection went away before the request was looked at")]
    NotProcessed,
    #[error("the connection broke: {0}")]
    Broken(hyper::Error),
    #[error("no valid request: {0}")]
    Malformed(http::Error),
}

impl NetError {
    /// For metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Unresolved => "unresolved",
            Self::NotPublic => "not-public",
            Self::Unreachable(_) => "unreachable",
            Self::Tls(_) => "tls",
            Self::TooSlow => "too-slow",
            Self::NotProcessed | Self::Broken(_) => "broken",
            Self::Malformed(_) => "malformed",
        }
    }
}

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    /// With the query, if any.
    pub(super) path: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What was answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// As much of it as was read.
    pub(super) body: Bytes,
}

/// The connections to providers.
pub(super) struct Net {
    tls: TlsConnector,
    resolver: Arc<dyn Resolver>,
    places: Mutex<HashMap<Place, Arc<tokio::sync::Mutex<Kept>>>>,
    /// How many connections there were: each has a number.
    connected: AtomicU64,
}

/// What is kept of a place.
#[derive(Default)]
enum Kept {
    #[default]
    Nothing,
    /// With its number.
    Http2(http2::SendRequest<Full<Bytes>>, u64),
    /// It speaks HTTP/1.1: a connection a request.
    Http1,
}

enum Connection {
    Http2(http2::SendRequest<Full<Bytes>>, u64),
    Http1(http1::SendRequest<Full<Bytes>>),
}

impl Net {
    pub(super) fn new(tls: rustls::ClientConfig, resolver: Arc<dyn Resolver>) -> Self {
        Self {
            tls: TlsConnector::from(Arc::new(tls)),
            resolver,
            places: Mutex::default(),
            connected: AtomicU64::new(0),
        }
    }

    /// POSTs, and waits for the answer. What the other end said it did not look at goes out again by a new connection.
    pub(super) async fn post(&self, place: &Place, ask: Ask) -> Result<Answer, NetError> {
        let asked = async {
            for _ in 1..ATTEMPTS {
                match self.post_once(place, ask.clone()).await {
                    Err(NetError::NotProcessed) => {}
                    other => return other,
                }
            }
            self.post_once(place, ask).await
        };
        // Boxed: two attempts with their handshakes are kilobytes.
        match tokio::time::timeout(REQUEST_LIMIT, Box::pin(asked)).await {
            Ok(answer) => answer,
            Err(_) => {
                // A connection that swallows requests is not given another.
                self.forget(place);
                Err(NetError::TooSlow)
            }
        }
    }

    async fn post_once(&self, place: &Place, ask: Ask) -> Result<Answer, NetError> {
        let authority = match (place.port, place.host.contains(':')) {
            (443, false) => place.host.clone(),
            (port, false) => format!("{}:{port}", place.host),
            (port, true) => format!("[{}]:{port}", place.host),
        };
        let request = |uri: String| {
            let uri: Uri = uri.parse().map_err(|error: http::uri::InvalidUri| NetError::Malformed(error.into()))?;
            let mut request = Request::post(uri).body(Full::new(ask.body.clone())).map_err(NetError::Malformed)?;
            *request.headers_mut() = ask.headers.clone();
            Ok::<_, NetError>(request)
        };
        match self.connection(place).await? {
            Connection::Http2(mut sender, number) => {
                let request = request(format!("https://{authority}{}", ask.path))?;
                let answered = match sender.ready().await {
                    Ok(()) => read(sender.send_request(request).await).await,
                    Err(_) => Err(NetError::NotProcessed),
                };
                if matches!(answered, Err(NetError::NotProcessed)) {
                    self.retire(place, number).await;
                }
                answered
            }
            Connection::Http1(mut sender) => {
                let mut request = request(ask.path.clone())?;
                let host =
                    authority.parse().map_err(|error: header::InvalidHeaderValue| NetError::Malformed(error.into()))?;
                request.headers_mut().insert(header::HOST, host);
                read(sender.send_request(request).await).await
            }
        }
    }

    /// A connection to a place: the one there is, or a new one. Of many that ask at once, one connects.
    async fn connection(&self, place: &Place) -> Result<Connection, NetError> {
        let slot = self.slot(place);
        let mut kept = slot.lock().await;
        match &*kept {
            Kept::Http2(sender, number) if !sender.is_closed() => {
                return Ok(Connection::Http2(sender.clone(), *number));
            }
            Kept::Http1 => drop(kept),
            Kept::Nothing | Kept::Http2(..) => {
                let connection = self.connect(place).await?;
                *kept = match &connection {
                    Connection::Http2(sender, number) => Kept::Http2(sender.clone(), *number),
                    Connection::Http1(_) => Kept::Http1,
                };
                return Ok(connection);
            }
        }
        self.connect(place).await
    }

    async fn connect(&self, place: &Place) -> Result<Connection, NetError> {
        let resolved = match place.host.parse() {
            Ok(ip) => vec![SocketAddr::new(ip, place.port)],
            Err(_) => self.resolver.resolve(&place.host, place.port).await.map_err(|_| NetError::Unresolved)?,
        };
        if resolved.is_empty() {
            return Err(NetError::Unresolved);
        }
        // One that is not public spoils the rest: whoever mixes them is trying something.
        if !place.trusted && !resolved.iter().all(|address| is_public(address.ip())) {
            return Err(NetError::NotPublic);
        }
        let mut connected = Err(NetError::Unresolved);
        for address in resolved.into_iter().take(ADDRESSES_MAX) {
            connected = TcpStream::connect(address).await.map_err(NetError::Unreachable);
            if connected.is_ok() {
                break;
            }
        }
        let stream = connected?;
        stream.set_nodelay(true).map_err(NetError::Unreachable)?;
        let name = ServerName::try_from(place.host.clone());
        let name = name.map_err(|error| NetError::Tls(io::Error::other(error)))?;
        let stream = self.tls.connect(name, stream).await.map_err(NetError::Tls)?;
        let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let stream = TokioIo::new(stream);
        if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            // Until the other end says how many requests it takes at once: APNs takes one before it has seen a token.
            builder.initial_max_send_streams(1).timer(TokioTimer::new());
            builder.keep_alive_interval(PING_AFTER).keep_alive_while_idle(true);
            let (sender, connection) = builder.handshake(stream).await.map_err(NetError::Broken)?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    debug!(%error, "a connection to a push provider ended");
                }
            });
            return Ok(Connection::Http2(sender, self.connected.fetch_add(1, Ordering::Relaxed)));
        }
        let (sender, connection) = http1::handshake(stream).await.map_err(NetError::Broken)?;
        tokio::spawn(async move {
            // Its end is the request's, which tells.
            let _ = connection.await;
        });
        Ok(Connection::Http1(sender))
    }

    fn slot(&self, place: &Place) -> Arc<tokio::sync::Mutex<Kept>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if !places.contains_key(place) && places.len() >= PLACES_MAX {
            // What is in use stays open for those who use it.
            places.retain(|_, slot| Arc::strong_count(slot) > 1);
        }
        places.entry(place.clone()).or_default().clone()
    }

    /// Gives this connection nothing more, even though it is not closed yet: its other end takes nothing.
    async fn retire(&self, place: &Place, number: u64) {
        let slot = self.slot(place);
        let mut kept = slot.lock().await;
        if matches!(&*kept, Kept::Http2(_, it) if *it == number) {
            *kept = Kept::Nothing;
        }
    }

    fn forget(&self, place: &Place) {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).remove(place);
    }
}

/// The answer, and the beginning of its body.
async fn read(answered: hyper::Result<http::Response<Incoming>>) -> Result<Answer, NetError> {
    let (parts, mut body) = answered.map_err(broken)?.into_parts();
    let mut bytes = Vec::new();
    while bytes.len() < ANSWER_BYTES_MAX {
        // A body that breaks off is as good as a short one: the status has come.
        let Some(Ok(frame)) = body.frame().await else { break };
        if let Some(data) = frame.data_ref() {
            bytes.extend_from_slice(&data[..data.len().min(ANSWER_BYTES_MAX - bytes.len())]);
        }
    }
    Ok(Answer { status: parts.status, headers: parts.headers, body: bytes.into() })
}

/// Whether the other end looked at the request. With GOAWAY or REFUSED_STREAM it says that it did not.
fn broken(error: hyper::Error) -> NetError {
    let of_http2 = std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
    let refused = of_http2.is_some_and(|error| {
        error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
    });
    if refused || error.is_canceled() { NetError::NotProcessed } else { NetError::Broken(error) }
}
