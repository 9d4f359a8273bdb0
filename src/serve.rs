//! Serving: one public address for every role this node plays, and an orderly end.
//!
//! The roles are built here and nowhere else, from one configuration, and meet only on the wire: even in one process
//! the edge asks the origin over HTTP, so that what works here works when they stand on different machines.

mod admin;
mod cores;
mod interim;
mod listener;
mod metrics;
mod node;
mod strict;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZero;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::Config;
use cores::Served;
pub(crate) use listener::Limits;
use listener::{Entry, Keeper, LOOK_PAUSE, Tls, certificate_file};
use metrics::Recorder;
use node::{Node, Reached};

/// A node that listens, but does not serve yet.
pub(crate) struct Serving {
    node: Node,
    /// One, or one for each core.
    listeners: Vec<std::net::TcpListener>,
    /// Whether each has a thread of its own.
    is_per_core: bool,
    entry: Entry,
    /// Who keeps the certificate, when it is got by ACME.
    keeper: Option<Keeper>,
    admin: Option<TcpListener>,
    /// Where the edge of this process asks its origin, when the public address speaks more than plain HTTP.
    inner: Option<TcpListener>,
    recorder: Recorder,
    limits: Limits,
    drain: Duration,
}

impl Serving {
    /// Takes the address and the data directory, and brings every role up.
    pub(crate) async fn start(config: Config) -> anyhow::Result<Self> {
        raise_open_files();
        let recorder = Recorder::install()?;
        let threads = config.threads();
        let (listeners, is_per_core) = (bind(config.listen, threads)?, threads.is_some());
        let admin = match config.admin_listen {
            Some(address) => {
                let bound = TcpListener::bind(address).await;
                Some(bound.with_context(|| format!("cannot listen on the admin address {address}"))?)
            }
            None => None,
        };
        let limits = Limits { connections_max: config.connections_max, ..Limits::default() };
        let drain = Duration::from_secs(config.drain_s);
        let (entry, keeper) = entry(&config)?;
        let address = listeners[0].local_addr()?;
        let is_plain = entry.tls.is_none() && entry.proxies.is_empty();
        let inner = if is_plain { None } else { Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?) };
        let origin_at = inner.as_ref().map_or(Ok(address), TcpListener::local_addr)?;
        let reached = Reached { address, scheme: scheme(&entry), origin_at };
        // Boxed: it is awaited once, and what opens three roles is large.
        let node = Box::pin(Node::open(config, reached)).await?;
        Ok(Self { node, listeners, is_per_core, entry, keeper, admin, inner, recorder, limits, drain })
    }

    /// Where it listens, as a URL.
    pub(crate) fn url(&self) -> std::io::Result<String> {
        Ok(format!("{}://{}", scheme(&self.entry), self.listeners[0].local_addr()?))
    }

    /// The admin address, if there is one.
    pub(crate) fn admin_address(&self) -> std::io::Result<Option<SocketAddr>> {
        self.admin.as_ref().map(TcpListener::local_addr).transpose()
    }

    /// Serves until SIGTERM or SIGINT, then lets running requests end.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        if let Some(admin) = self.admin {
            let router = admin::router(&self.node, self.recorder, admin.local_addr()?);
            let (limits, entry) = (self.limits.clone(), Entry::default());
            tokio::spawn(listener::serve(admin, router, None, limits, entry, std::future::pending()));
        }
        if let Some(inner) = self.inner {
            let (router, limits, entry) = (self.node.origin_router(), self.limits.clone(), Entry::default());
            tokio::spawn(listener::serve(inner, router, None, limits, entry, std::future::pending()));
        }
        if let Some(tls) = self.entry.tls.clone() {
            tokio::spawn(tls.follow_files(LOOK_PAUSE));
        }
        if let Some(keeper) = self.keeper {
            tokio::spawn(keeper.keep());
        }
        let node = self.node.clone();
        let stopping = async move {
            stop.await;
            info!("stopping: no new requests, running ones may end");
            // Sockets and half-done appends are told first: they would otherwise hold the drain to its limit.
            node.close().await;
        };
        let (router, edge) = (self.node.router(), self.node.edge().cloned());
        let mut listeners = self.listeners;
        if self.is_per_core {
            let stop = CancellationToken::new();
            let stopped = stop.clone();
            tokio::spawn(async move {
                stopping.await;
                stopped.cancel();
            });
            let served = Served { router, edge, limits: self.limits, entry: self.entry, drain: self.drain };
            return Box::pin(cores::serve(listeners, served, stop)).await;
        }
        let listener = TcpListener::from_std(listeners.remove(0))?;
        let serving = listener::serve(listener, router, edge, self.limits, self.entry, stopping).await;
        if tokio::time::timeout(self.drain, serving.ended()).await.is_err() {
            info!(drain_s = self.drain.as_secs(), "stopped with requests still running");
        }
        Ok(())
    }
}

/// What connections to the public address bring before requests, and who keeps the certificate for them.
fn entry(config: &Config) -> anyhow::Result<(Entry, Option<Keeper>)> {
    let (mut tls, mut keeper) = (None, None);
    if let (Some(cert), Some(key)) = (&config.tls.cert_file, &config.tls.key_file) {
        tls = Some(Tls::from_files(cert, key).context("TLS cannot be offered")?);
    }
    if let Some(acme) = &config.tls.acme {
        let dir = config.data.join("acme");
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let awaiting = Tls::awaiting(&certificate_file(&dir)).context("TLS cannot be offered")?;
        keeper = Some(Keeper::new(acme.clone(), dir, awaiting.clone()));
        tls = Some(awaiting);
    }
    let proxies = if config.listener.proxy_protocol { config.listener.proxy_networks.clone() } else { Vec::new() };
    Ok((Entry { proxies, tls }, keeper))
}

const fn scheme(entry: &Entry) -> &'static str {
    if entry.tls.is_some() { "https" } else { "http" }
}

/// Takes the public address: once, or once for each of so many threads.
fn bind(address: SocketAddr, threads: Option<NonZero<usize>>) -> anyhow::Result<Vec<std::net::TcpListener>> {
    let alone = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(vec![listener])
    };
    threads.map_or_else(alone, |threads| cores::bind(address, threads)).with_context(|| match address.port() {
        0 => format!("cannot listen on {}", address.ip()),
        port => {
            format!("cannot listen on {address}; is port {port} taken? `--listen {}:0` picks a free one", address.ip())
        }
    })
}

/// A connection is an open file, and the usual soft limit of 1,024 is far below what one process can hold.
pub(crate) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        info!(%error, "cannot raise the limit of open files");
    }
}
