//! `waxwing bench push`: how many devices a second can be woken, through a provider that answers at once.
//!
//! Apple's own service is neither here nor ours to load. The one here speaks HTTP/2 over TLS as Apple's does, takes every
//! wake, and counts: a device that was woken twice for one message would be a mistake, whatever the rate.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use axum::body::Body;
use clap::Args;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::figure::{Figure, percentile};
use super::load::{Generator, Job, Waking};
use super::server::Server;
use super::{as_f64, scratch};
use crate::output::Output;

/// What the benchmark's app is called.
const TOPIC: &str = "bench.example";

/// Requests that the provider lets be under way on one connection, as Apple's does.
const STREAMS_MAX: u32 = 1000;

/// How long no further wake may come before those that are missing are called lost.
const SILENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(crate) struct BenchPushArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Devices that are away, each of which is sent one message.
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub devices: u32,
}

/// Runs it.
pub(crate) async fn run(args: BenchPushArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let (told, mut wakes) = mpsc::unbounded_channel();
    let counts: Arc<[AtomicU32]> = (0..args.devices).map(|_| AtomicU32::new(0)).collect();
    let provider = Provider::start(dir.path(), counts.clone(), told).await?;
    let server = Server::start_messaging_with(dir.path(), &provider.configuration(dir.path())?).await?;
    let job = Waking { address: server.address.clone(), devices: args.devices, topic: TOPIC.to_owned() };
    let mut generator = Generator::start(&Job::Waking(job)).await?;
    generator.told::<String>().await?;

    let cpu = server.process()?.cpu()?;
    let began = Instant::now();
    generator.go().await?;
    let mut after_ms = Vec::new();
    let mut times = Vec::new();
    while times.len() < args.devices as usize {
        let Ok(Some(at)) = tokio::time::timeout(SILENCE, wakes.recv()).await else { break };
        times.push(at);
        after_ms.push(at.saturating_duration_since(began).as_secs_f64() * 1000.0);
    }
    let cpu = server.process()?.cpu()? - cpu;
    let woken = counts.iter().filter(|count| count.load(Ordering::Relaxed) > 0).count();
    let (first, last) = (times.iter().min(), times.iter().max());
    let (first, last) = first.zip(last).context("nobody was woken")?;
    let seconds = (*last - *first).as_secs_f64();
    ensure!(seconds > 0.0, "one wake has no rate: name more --devices");

    let figure = |metric, unit| Figure::new("push", metric, unit, "waxwing");
    let per_s = as_f64(times.len()) / seconds;
    figure("wakes_per_s", "1/s").worth(per_s, &[per_s]).print(output);
    let each = cpu.as_secs_f64() * 1e6 / as_f64(times.len());
    figure("server_cpu_us_per_wake", "us").worth(each, &[each]).print(output);
    let p99 = percentile(&mut after_ms, 99);
    figure("woken_p99_ms", "ms").worth(p99, &after_ms).print(output);
    let (lost, doubled) = (args.devices as usize - woken, times.len() - woken);
    figure("lost", "1").worth(as_f64(lost), &[as_f64(lost)]).print(output);
    figure("doubled", "1").worth(as_f64(doubled), &[as_f64(doubled)]).print(output);
    let connections = f64::from(provider.connections.load(Ordering::Relaxed));
    figure("connections", "1").worth(connections, &[connections]).print(output);
    Ok(())
}

/// A provider on loopback that takes every wake.
struct Provider {
    port: u16,
    connections: Arc<AtomicU32>,
}

impl Provider {
    /// Starts one; the certificate that vouches for it is put into `dir`.
    async fn start(dir: &Path, counts: Arc<[AtomicU32]>, told: mpsc::UnboundedSender<Instant>) -> anyhow::Result<Self> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        std::fs::write(dir.join("authority.pem"), made.cert.pem())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
        let crypto = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(crypto)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (port, connections) = (listener.local_addr()?.port(), Arc::new(AtomicU32::new(0)));
        let counted = connections.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let (acceptor, counts, told) = (acceptor.clone(), counts.clone(), told.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request| std::future::ready(take(&request, &counts, &told)));
                    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    let _ = builder
                        .max_concurrent_streams(STREAMS_MAX)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { port, connections })
    }

    /// What a node is configured with that wakes by it: at once, since a random pause is not what is measured.
    fn configuration(&self, dir: &Path) -> anyhow::Result<String> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        std::fs::write(dir.join("key.p8"), key.serialize_pem())?;
        let port = self.port;
        Ok(format!(
            r#"
[messaging.push]
hold_ms_max = 0
authorities_file = "authority.pem"
[messaging.push.apns]
key_file = "key.p8"
key_id = "BENCHKEY01"
team_id = "BENCHTEAM1"
topics = ["{TOPIC}"]
url = "https://localhost:{port}"
sandbox_url = "https://localhost:{port}"
"#
        ))
    }
}

/// Takes a wake.
fn take(
    request: &Request<Incoming>,
    counts: &[AtomicU32],
    told: &mpsc::UnboundedSender<Instant>,
) -> hyper::Result<Response<Body>> {
    let token = request.uri().path().strip_prefix("/3/device/");
    let number = token.and_then(|token| usize::from_str_radix(token, 16).ok());
    let mut response = Response::new(Body::empty());
    match number.and_then(|number| counts.get(number)) {
        Some(count) => {
            count.fetch_add(1, Ordering::Relaxed);
            // Nobody counts any more when the benchmark is over.
            let _ = told.send(Instant::now());
        }
        None => *response.status_mut() = hyper::StatusCode::NOT_FOUND,
    }
    Ok(response)
}
