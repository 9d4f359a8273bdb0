//! Connections in, requests to a router, within limits; and a drain at the end.
//!
//! hyper serves whoever connects for as long as they like. The limits here are what stands between the process and
//! clients that open a connection and say nothing, or a thousand streams at once.

mod acme;
mod placed;
mod proxy;
mod tls;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::http::Version;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use waxwing_edge::Edge;
use waxwing_edge::raw::{Left, Terms};
use waxwing_protocol::http1::PREFACE;
use waxwing_protocol::{ClientAddress, Secured};

use super::interim::Line;
use super::metrics::REFUSED;
use super::strict::{Strict, Switched};
use crate::config::Network;
pub(crate) use acme::{Keeper, certificate_file};
use placed::Placed;
pub(crate) use tls::{LOOK_PAUSE, Tls};

/// How long written bytes may stay unacknowledged by the peer's network (RFC 5482).
#[cfg(target_os = "linux")]
const UNACKED_TIMEOUT_MS: u32 = 30_000;

/// Bytes of hyper's buffer for a connection at most, and so of a request's head: one that names all the parts a final
/// upload may have takes some 80 KiB.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// Bytes of a request's fields at most on HTTP/2, as hyper has it by default. A head that goes on in CONTINUATION frames
/// beyond that ends the connection.
const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// Streams of an HTTP/2 connection that the client opened and reset before anybody looked at them; one more ends the
/// connection (rapid reset, CVE-2023-44487).
const RESETS_PENDING_MAX: usize = 20;

/// Streams of an HTTP/2 connection that were reset for the client's errors; one more ends the connection
/// (CVE-2025-8671).
const RESETS_OWN_MAX: usize = 256;

/// What the requests count as that the raw path answers.
const BLOB_ROUTE: &str = "/v1/blobs/{id}";

/// What one listener allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections at most.
    pub connections_max: usize,
    /// How long a request's head may take to arrive, and before it a PROXY header and a handshake: a phone on a bad
    /// network takes round trips of a second.
    pub head_timeout: Duration,
    /// HTTP/2 streams of one connection at once.
    pub streams_max: u32,
    /// HTTP/2 flow control window in bytes; 64 KiB, the protocol's default, makes uploads slower than HTTP/1.1.
    pub window_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 16_384,
            head_timeout: Duration::from_secs(15),
            streams_max: 128,
            window_bytes: 2 * 1024 * 1024,
        }
    }
}

/// Connections that are still open after the listener stopped.
pub(crate) struct Draining(GracefulShutdown);

impl Draining {
    /// Waits for every request that runs to end.
    pub(crate) async fn ended(self) {
        self.0.shutdown().await;
    }
}

/// What connections bring before requests.
#[derive(Clone, Default)]
pub(crate) struct Entry {
    /// The networks whose connections begin with a PROXY header.
    pub proxies: Vec<Network>,
    /// The certificate, when connections are encrypted.
    pub tls: Option<Tls>,
}

/// A connection on its way to its first request, and what its requests need.
struct Arriving {
    peer: SocketAddr,
    place: OwnedSemaphorePermit,
    watcher: Watcher,
    shared: Arc<Shared>,
}

/// What all connections of a listener share.
struct Shared {
    router: Router,
    builder: auto::Builder<TokioExecutor>,
    h1_builder: auto::Builder<TokioExecutor>,
    h2_builder: auto::Builder<TokioExecutor>,
    entry: Entry,
    edge: Option<Edge>,
    /// What the raw path of `edge` goes by.
    terms: Terms,
}

/// Serves `router` on `listener` until `stop` is done; what `edge` has leaves plain HTTP/1.1 by its raw path.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    edge: Option<Edge>,
    limits: Limits,
    entry: Entry,
    stop: impl Future<Output = ()>,
) -> Draining {
    let stopping = CancellationToken::new();
    // However this ends, what is idle on the raw path ends with it.
    let _stopped = stopping.clone().drop_guard();
    let terms = Terms {
        router: router.clone(),
        head_timeout: limits.head_timeout,
        stopping,
        measured: Arc::new(super::metrics::measured(BLOB_ROUTE)),
    };
    let shared = Arc::new(Shared {
        router,
        builder: builder(&limits),
        h1_builder: builder(&limits).http1_only(),
        h2_builder: builder(&limits).http2_only(),
        entry,
        edge,
        terms,
    });
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            () = &mut stop => return Draining(graceful),
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, peer) = tokio::select! {
            () = &mut stop => return Draining(graceful),
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of files, or a client gone before it was accepted: neither ends the service.
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        // Small frames of the socket must not wait for more to come.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot switch off Nagle's algorithm");
        }
        // A peer that has gone without a word is not written to for a quarter of an hour.
        #[cfg(target_os = "linux")]
        if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKED_TIMEOUT_MS) {
            debug!(%error, "cannot bound how long written bytes stay unacknowledged");
        }
        let arriving = Arriving { peer, place, watcher: graceful.watcher(), shared: Arc::clone(&shared) };
        tokio::spawn(arriving.serve(stream));
    }
}

impl Arriving {
    /// Takes what comes before requests from `stream`, and then requests to its end.
    async fn serve(self, mut stream: TcpStream) {
        let client = match self.client(&mut stream).await {
            Ok(client) => client,
            Err(error) => {
                refused("proxy-header");
                debug!(%error, peer = %self.peer, "closed a connection for its PROXY header");
                return;
            }
        };
        let Some(tls) = self.shared.entry.tls.clone() else {
            let Shared { edge, terms, .. } = &*self.shared;
            let (stream, read) = match edge {
                // Boxed: whoever is handed over needs its room no more.
                Some(edge) => match Box::pin(edge.serve_raw(stream, client, terms)).await {
                    Left::Ended => return,
                    Left::Over { stream, read } => (stream, read),
                },
                None => (stream, Bytes::new()),
            };
            if !matches!(tokio::time::timeout(terms.head_timeout, speaks(&read, &stream)).await, Ok(Ok(()))) {
                return;
            }
            // Plain HTTP, of which the first bytes can be peeked at. Boxed, or whoever stays with the raw path keeps room
            // for hyper.
            return Box::pin(self.hand_to_hyper(stream, read, client)).await;
        };
        // Boxed: a handshake's state is large, and gone when the connection begins.
        match Box::pin(tls.accept(stream, self.shared.terms.head_timeout)).await {
            // An authority has seen what it wanted to see; this protocol has no requests.
            Ok(stream) if stream.get_ref().1.alpn_protocol() == Some(tls::ALPN_ACME) => {}
            Ok(stream) => Box::pin(self.hand_to_hyper(stream, Bytes::new(), client)).await,
            Err(error) => {
                refused("tls-handshake");
                debug!(%error, client = %client.0, "closed a connection for its TLS handshake");
            }
        }
    }

    /// The client: whom the load balancer names, else who is connected.
    async fn client(&self, stream: &mut TcpStream) -> io::Result<ClientAddress> {
        let peer = ClientAddress::new(self.peer);
        if !self.shared.entry.proxies.iter().any(|network| network.contains(peer.ip())) {
            return Ok(peer);
        }
        let named = tokio::time::timeout(self.shared.terms.head_timeout, proxy::read_header(stream)).await??;
        Ok(named.map_or(peer, ClientAddress::new))
    }

    /// Serves the requests on `stream`, of which `read` came already, by hyper.
    async fn hand_to_hyper<S: Conveys>(self, stream: S, read: Bytes, client: ClientAddress) {
        let Self { place, watcher, shared, .. } = self;
        let router = TowerToHyperService::new(shared.router.clone());
        let line = Line::default();
        let (builder, is_preface_due) = match stream.version() {
            // The first bytes are there, and tell.
            None => (&shared.builder, false),
            Some(Version::HTTP_2) => (&shared.h2_builder, true),
            Some(_) => (&shared.h1_builder, false),
        };
        let is_secured = shared.entry.tls.is_some();
        let mut stream = Placed::new(stream, read, line.clone(), place);
        if is_preface_due {
            stream = stream.preface_within(shared.terms.head_timeout);
        }
        let switched = Switched::default();
        let stream = Strict::new(stream, switched.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(client);
            if is_secured {
                request.extensions_mut().insert(Secured);
            }
            let (line, router, switched) = (line.clone(), router.clone(), switched.clone());
            async move {
                let answer = line.during(request, |request| router.call(request)).await;
                answer.inspect(|answer| switched.note(answer))
            }
        });
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        // Boxed here, on the thread that serves, and not with the task on the thread that accepts: the small things that an
        // accepted connection keeps there would lie between, and what goes when it becomes a WebSocket would leave holes of
        // 2 KiB for each that nothing fills.
        if let Err(error) = Box::pin(watcher.watch(connection.into_owned())).await {
            debug!(error, "connection ended early");
        }
    }
}

/// What carries requests.
trait Conveys: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// The version of HTTP that was agreed on, when one was.
    fn version(&self) -> Option<Version>;
}

impl Conveys for TcpStream {
    fn version(&self) -> Option<Version> {
        None
    }
}

impl Conveys for TlsStream<TcpStream> {
    fn version(&self) -> Option<Version> {
        let is_h2 = self.get_ref().1.alpn_protocol() == Some(tls::ALPN_H2);
        Some(if is_h2 { Version::HTTP_2 } else { Version::HTTP_11 })
    }
}

/// Counts a connection that was closed before its first request.
fn refused(why: &'static str) {
    counter!(REFUSED, "why" => why).increment(1);
}

/// Waits until the first bytes tell HTTP/1 from HTTP/2. hyper-util reads those without a limit of time, so a client that
/// says nothing would keep its place for ever.
///
/// What was `read` already counts.
async fn speaks(read: &[u8], stream: &TcpStream) -> io::Result<()> {
    // Nothing between `P` and the end of the preface is handed over by the raw path.
    if !read.is_empty() && !PREFACE.starts_with(read) {
        return Ok(());
    }
    let mut head = [0; PREFACE.len()];
    head[..read.len()].copy_from_slice(read);
    if read.len() == PREFACE.len() {
        return Ok(());
    }
    loop {
        let peeked = stream.peek(&mut head[read.len()..]).await?;
        if peeked == 0 {
            return Ok(());
        }
        let n = read.len() + peeked;
        if n == PREFACE.len() || !PREFACE.starts_with(&head[..n]) {
            return Ok(());
        }
        // A part of a preface: peeking gives it again at once, so the rest is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .max_header_list_size(HEADER_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX)
        .max_local_error_reset_streams(RESETS_OWN_MAX)
        .initial_stream_window_size(limits.window_bytes)
        .initial_connection_window_size(limits.window_bytes * 2)
        .keep_alive_interval(Duration::from_secs(30));
    builder
}

#[cfg(test)]
mod tests;
