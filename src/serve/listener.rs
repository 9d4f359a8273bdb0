//! Connections in, requests to a router, within limits; and a drain at the end.
//!
//! hyper serves whoever connects for as long as they like. The limits here are what stands between the process and
//! clients that open a connection and say nothing, or a thousand streams at once.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};
use waxwing_protocol::ClientAddress;

use super::interim::Line;

/// How long written bytes may stay unacknowledged by the peer's network (RFC 5482).
#[cfg(target_os = "linux")]
const UNACKED_TIMEOUT_MS: u32 = 30_000;

/// Bytes read at once of a connection that has brought little so far. hyper doubles its buffer with every read that fills
/// it, and keeps it while it waits for more: a thousand uploads that stall after a few pieces would hold a hundred
/// megabytes.
const SHORT_READ_BYTES: usize = 8 * 1024;

/// Bytes after which a connection is read with buffers as large as it fills.
const SHORT_READS_BYTES: usize = 1 << 20;

/// Bytes of hyper's buffer for a connection at most, and so of a request's head: one that names all the parts a final
/// upload may have takes some 80 KiB.
const BUFFER_BYTES_MAX: usize = 128 * 1024;

/// What one listener allows.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// Open connections at most.
    pub connections_max: usize,
    /// How long a request's head may take to arrive.
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

/// Serves `router` on `listener` until `stop` is done.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: impl Future<Output = ()>,
) -> Draining {
    let builder = Arc::new(builder(&limits));
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let place = tokio::select! {
            () = &mut stop => return Draining(graceful),
            place = Arc::clone(&places).acquire_owned() => place.expect("the semaphore is never closed"),
        };
        let (stream, client) = tokio::select! {
            () = &mut stop => return Draining(graceful),
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => (stream, ClientAddress::new(address)),
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
        let service = TowerToHyperService::new(router.clone());
        let line = Line::default();
        let watcher = graceful.watcher();
        let builder = Arc::clone(&builder);
        let head_timeout = limits.head_timeout;
        tokio::spawn(async move {
            if !matches!(tokio::time::timeout(head_timeout, speaks(&stream)).await, Ok(Ok(()))) {
                return;
            }
            let stream = Placed { stream, line: line.clone(), received: 0, _place: place };
            let service = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(client);
                let (line, service) = (line.clone(), service.clone());
                async move { line.during(request, |request| service.call(request)).await }
            });
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
            if let Err(error) = watcher.watch(connection).await {
                debug!(error, "connection ended early");
            }
        });
    }
}

/// Waits until the first bytes tell HTTP/1 from HTTP/2. hyper-util reads those without a limit of time, so a client that
/// says nothing would keep its place for ever.
async fn speaks(stream: &TcpStream) -> io::Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut head = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut head).await?;
        if n == 0 || n == PREFACE.len() || !PREFACE.starts_with(&head[..n]) {
            return Ok(());
        }
        // A part of a preface: peeking gives it again at once, so the rest is waited for.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A connection with its place among those allowed. hyper hands the stream on when it becomes a WebSocket; the place
/// goes with it.
struct Placed {
    stream: TcpStream,
    line: Line,
    /// Bytes that came so far, counted up to [`SHORT_READS_BYTES`].
    received: usize,
    _place: OwnedSemaphorePermit,
}

impl Placed {
    /// Ends what was begun between hyper's messages, before hyper goes on.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line.poll_rest(cx, Pin::new(&mut self.stream))
    }
}

impl AsyncRead for Placed {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.received >= SHORT_READS_BYTES || buf.remaining() <= SHORT_READ_BYTES {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let mut short = ReadBuf::new(buf.initialize_unfilled_to(SHORT_READ_BYTES));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut short))?;
        let n = short.filled().len();
        buf.advance(n);
        self.received += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Placed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let placed = &mut *self;
        ready!(placed.line.poll_waiting(cx, Pin::new(&mut placed.stream)))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(limits.head_timeout).max_buf_size(BUFFER_BYTES_MAX);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_max)
        .initial_stream_window_size(limits.window_bytes)
        .initial_connection_window_size(limits.window_bytes * 2)
        .keep_alive_interval(Duration::from_secs(30));
    builder
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Extension;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    /// Serves one connection at a time until the sender is dropped.
    async fn start() -> (SocketAddr, oneshot::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Limits { connections_max: 1, head_timeout: Duration::from_millis(50), ..Limits::default() };
        let (stop, stopped) = oneshot::channel::<()>();
        let here = get(async |Extension(client): Extension<ClientAddress>| format!("{} is here", client.0));
        let router = Router::new().route("/", here);
        tokio::spawn(async move {
            let stopping = async move { drop(stopped.await) };
            serve(listener, router, limits, stopping).await.ended().await;
        });
        (address, stop)
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Whoever connects and says nothing, or the beginning of an HTTP/2 preface, must not keep others out.
    #[tokio::test]
    async fn silent_connections_give_their_place_back() {
        let (address, _stop) = start().await;
        for said in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n", b"GET / HTTP/1.1\r\n"] {
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(said).await.unwrap();
            let answer = ask(&mut TcpStream::connect(address).await.unwrap()).await;
            assert!(answer.ends_with("here"), "after {said:?}: {answer}");
            // An answer (408), an end or a reset: whichever it is, the connection has ended.
            let _ = silent.read_to_end(&mut Vec::new()).await;
        }
    }

    /// Limits for each address rest on it.
    #[tokio::test]
    async fn every_request_carries_its_clients_address() {
        let (address, _stop) = start().await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let own = stream.local_addr().unwrap();
        let answer = ask(&mut stream).await;
        assert!(answer.ends_with(&format!("{own} is here")), "{answer}");
    }
}
