//! A thread for each core, with a runtime, a listener and connections of its own.
//!
//! An edge's hit takes a few microseconds. On a runtime that all cores share, a connection wakes up now here, now there,
//! and its state travels between the cores' caches each time; here it stays where the kernel put it. The price is that
//! busy connections are not spread anew, so that only the edge, whose requests are all short, is served this way.
//!
//! What is no request (fills' clocks, purges, health checks) stays on the runtime of the process.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZero;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use tokio::runtime::Builder;
use tokio_util::sync::CancellationToken;
use tracing::info;
use waxwing_edge::Edge;

use super::listener::{self, Entry, Limits};

/// Connections that wait to be accepted at most, as tokio has it.
const BACKLOG: i32 = 1024;

/// Listens `count` times on `address`; the kernel spreads connections over them (`SO_REUSEPORT`).
pub(super) fn bind(address: SocketAddr, count: NonZero<usize>) -> io::Result<Vec<TcpListener>> {
    // Alone first: who shares an address is not told that a process of another configuration has it too.
    drop(TcpListener::bind(address)?);
    let first = bind_one(address)?;
    let address = first.local_addr()?;
    std::iter::once(Ok(first)).chain((1..count.get()).map(|_| bind_one(address))).collect()
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // A restart does not wait for connections that linger.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    sockopt::set_socket_reuseport(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// What each thread serves.
#[derive(Clone)]
pub(super) struct Served {
    pub(super) router: Router,
    pub(super) edge: Option<Edge>,
    pub(super) limits: Limits,
    pub(super) entry: Entry,
    /// How long running requests may take to end.
    pub(super) drain: Duration,
}

/// Serves on each of `listeners` until `stop`, and until what ran then has ended.
pub(super) async fn serve(listeners: Vec<TcpListener>, served: Served, stop: CancellationToken) -> anyhow::Result<()> {
    let connections_max = served.limits.connections_max.div_ceil(listeners.len().max(1));
    let mut threads = Vec::with_capacity(listeners.len());
    for (core, listener) in listeners.into_iter().enumerate() {
        let limits = Limits { connections_max, ..served.limits.clone() };
        let (served, stop) = (Served { limits, ..served.clone() }, stop.clone());
        let runtime = Builder::new_current_thread().enable_all().build().context("cannot start a core's runtime")?;
        let (told, ended) = tokio::sync::oneshot::channel();
        thread::Builder::new().name(format!("edge-core-{core}")).spawn(move || {
            let _ = told.send(runtime.block_on(serve_one(listener, served, stop)));
            // What still runs had its time.
            runtime.shutdown_background();
        })?;
        threads.push(ended);
    }
    for ended in threads {
        ended.await.context("a core's thread panicked")??;
    }
    Ok(())
}

async fn serve_one(listener: TcpListener, served: Served, stop: CancellationToken) -> anyhow::Result<()> {
    let Served { router, edge, limits, entry, drain } = served;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let draining = listener::serve(listener, router, edge, limits, entry, stop.cancelled_owned()).await;
    if tokio::time::timeout(drain, draining.ended()).await.is_err() {
        info!(drain_s = drain.as_secs(), "stopped with requests still running");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read as _, Write as _};
    use std::net::TcpStream;

    const TWO: NonZero<usize> = NonZero::new(2).unwrap();

    fn ask(address: SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[tokio::test]
    async fn every_core_answers_and_all_of_them_end() {
        let listeners = bind("127.0.0.1:0".parse().unwrap(), TWO).unwrap();
        let address = listeners[0].local_addr().unwrap();
        assert_eq!(listeners[1].local_addr().unwrap(), address);
        let core = async || thread::current().name().unwrap_or_default().to_owned();
        let (limits, entry, drain) = (Limits::default(), Entry::default(), Duration::from_secs(20));
        let served = Served { router: Router::new().route("/", get(core)), edge: None, limits, entry, drain };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listeners, served, stop.clone()));
        // The kernel spreads by a hash of both ports: until both were seen.
        let seen = tokio::task::spawn_blocking(move || {
            let (mut first, mut second) = (false, false);
            while !(first && second) {
                let answer = ask(address);
                first |= answer.ends_with("edge-core-0");
                second |= answer.ends_with("edge-core-1");
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
        });
        seen.await.unwrap();
        stop.cancel();
        serving.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    }

    #[test]
    fn an_address_that_another_has_is_not_shared() {
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = other.local_addr().unwrap();
        assert_eq!(bind(address, TWO).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(other);
        let shared = bind(address, TWO).unwrap();
        assert_eq!(bind(address, TWO).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(shared);
    }
}
