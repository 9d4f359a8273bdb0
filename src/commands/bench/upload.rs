//! `waxwing bench upload`: what this machine's disk and this binary do together.
//!
//! The device's own synced rate is measured in the same directory in the same rounds, since a figure means something only
//! beside another of the same minute on the same disk.

mod target;
mod wire;

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::body::Bytes;
use tokio::task::JoinSet;

use super::figure::{Figure, percentile};
use super::server::Server;
use super::{all, as_f64, noise};
use crate::cli::BenchUploadArgs;
use crate::output::Output;
pub(crate) use target::Peer;
use target::Target;
use wire::Version;

const BENCH: &str = "upload";

const MIB: usize = 1 << 20;

/// A part, as mobile clients send them; the device's rate is measured with a sync each so many bytes too.
const PART_BYTES: usize = 8 * MIB;

/// Bytes of one throughput run, over all streams: what one new account's grant allows.
const RUN_BYTES: usize = 1 << 30;

/// Bytes of a small blob: a photo's preview.
const SMALL_BYTES: usize = 100 * 1024;

/// Small blobs a run, and how many are under way at once.
const SMALL_BLOBS: usize = 6400;
const SMALL_AT_ONCE: usize = 64;

/// Uploads that send a little and stall, whose memory is measured.
const IDLE_UPLOADS: usize = 1000;

/// What an upload sends before it stalls.
const STALLED_SENDS: usize = 64 * 1024;

/// How long a peer is waited for after its upload's connection went half-open.
const TAKEOVER_WAIT: Duration = Duration::from_secs(60);

/// Uploads whose time is taken, for each size.
const TIMED: usize = 100;

/// Measures and prints.
pub(super) async fn run(args: BenchUploadArgs, output: Output) -> anyhow::Result<()> {
    let rounds = args.rounds.max(1);
    let dir = tempfile::Builder::new().prefix("waxwing-bench-").tempdir_in(&args.dir)?;
    let own = Target::own(Server::start(dir.path()).await?)?;
    let targets = std::iter::once(own).chain(args.peer.into_iter().map(Target::peer));
    let mut measured: Vec<(Target, Rates)> = targets
        .map(|target| {
            let rates = Rates::new(&target.who);
            (target, rates)
        })
        .collect();
    let mut device = Figure::new(BENCH, "mb_per_s", "MB/s", "device");
    for _ in 0..rounds {
        settle();
        device.add(device_rate(&dir.path().join("device.bin"))?);
        for (target, rates) in &mut measured {
            rates.measure(target).await?;
        }
        // Whoever comes first in one round is last in the next.
        measured.reverse();
    }
    device.print(output);
    measured.sort_by_key(|(target, _)| !target.is_own());
    for (target, rates) in &measured {
        rates.print(target.is_own(), output);
        takeover(target, rounds, output).await?;
        for (name, bytes) in [("1kib", 1024), ("100kib", SMALL_BYTES), ("5mib-1", 5 * MIB - 1), ("5mib+1", 5 * MIB + 1)]
        {
            latency(target, name, bytes, output).await?;
        }
        idle(target).await?.print(output);
    }
    Ok(())
}

/// What is measured of a target once a round.
struct Rates {
    one: Figure,
    four: Figure,
    cpu: Figure,
    cpu_four: Figure,
    whole: Figure,
    small: Figure,
    /// One stream over HTTP/2, of our own alone.
    http2: Figure,
    cpu_http2: Figure,
}

impl Rates {
    fn new(who: &str) -> Self {
        Self {
            one: Figure::new(BENCH, "mb_per_s", "MB/s", who),
            four: Figure::new(BENCH, "mb_per_s_4_streams", "MB/s", who),
            cpu: Figure::new(BENCH, "cpu_s_per_gib", "s", who),
            cpu_four: Figure::new(BENCH, "cpu_s_per_gib_4_streams", "s", who),
            whole: Figure::new(BENCH, "complete_ms_1gib", "ms", who),
            small: Figure::new(BENCH, "small_per_s", "1/s", who),
            http2: Figure::new(BENCH, "mb_per_s_http2", "MB/s", who),
            cpu_http2: Figure::new(BENCH, "cpu_s_per_gib_http2", "s", who),
        }
    }

    async fn measure(&mut self, target: &Target) -> anyhow::Result<()> {
        let mut runs = vec![
            (1, Version::Http1, &mut self.one, &mut self.cpu),
            (4, Version::Http1, &mut self.four, &mut self.cpu_four),
        ];
        if target.is_own() {
            runs.push((1, Version::Http2, &mut self.http2, &mut self.cpu_http2));
        }
        for (streams, version, rate, cpu) in runs {
            settle();
            let (began, cpu_before) = (Instant::now(), target.process().cpu()?);
            let uploads = streams_of(target, streams, version).await?;
            let took = began.elapsed().as_secs_f64();
            rate.add(megabytes(RUN_BYTES) / took);
            cpu.add(target.process().cpu()?.saturating_sub(cpu_before).as_secs_f64());
            if streams == 1 && matches!(version, Version::Http1) {
                self.whole.add(took * 1000.0);
            }
            // Ours is one blob however often it comes; a peer keeps every copy, and the disk is not endless.
            if !target.is_own() {
                let mut wire = target.connect(None).await?;
                for upload in uploads {
                    wire.remove(&upload).await?;
                }
            }
        }
        settle();
        self.small.add(small_rate(target).await?);
        Ok(())
    }

    fn print(&self, own: bool, output: Output) {
        for figure in [&self.one, &self.four, &self.cpu, &self.cpu_four, &self.whole, &self.small] {
            figure.print(output);
        }
        if own {
            self.http2.print(output);
            self.cpu_http2.print(output);
        }
    }
}

/// Until nothing waits to be written: what one server left in the page cache is no load for the next.
fn settle() {
    rustix::fs::sync();
}

/// What the disk does by itself: a file written in order, synced after each part.
fn device_rate(path: &Path) -> anyhow::Result<f64> {
    let part = noise(PART_BYTES, 0);
    let began = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..RUN_BYTES / PART_BYTES {
        file.write_all(&part)?;
        file.sync_data()?;
    }
    let took = began.elapsed().as_secs_f64();
    std::fs::remove_file(path)?;
    Ok(megabytes(RUN_BYTES) / took)
}

/// Uploads [`RUN_BYTES`] over so many connections, each its own blob, one part a request. Gives the uploads' paths.
async fn streams_of(target: &Target, streams: usize, version: Version) -> anyhow::Result<Vec<String>> {
    let grant = target.grant().await?;
    let mut running = JoinSet::new();
    for stream in 0..streams {
        let (mut wire, part) =
            (target.connect_by(version, grant.as_deref()).await?, Bytes::from(noise(PART_BYTES, stream)));
        running.spawn(async move {
            let path = wire.create(RUN_BYTES / streams).await?;
            for at in (0..RUN_BYTES / streams).step_by(PART_BYTES) {
                wire.append(&path, at, part.clone()).await?;
            }
            anyhow::Ok(path)
        });
    }
    all(running).await
}

/// Small uploads a second, each in one request: ours a `PUT` of the blob, a peer's a creation with the upload.
async fn small_rate(target: &Target) -> anyhow::Result<f64> {
    let grant = target.grant().await?;
    let mut wires = Vec::new();
    for _ in 0..SMALL_AT_ONCE {
        wires.push(target.connect(grant.as_deref()).await?);
    }
    // Blobs are addressed by what they hold: those of another run must be others.
    let run = usize::try_from(target.process().cpu()?.as_millis())?;
    let own = target.is_own();
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (lane, mut wire) in wires.into_iter().enumerate() {
        running.spawn(async move {
            for turn in 0..SMALL_BLOBS / SMALL_AT_ONCE {
                let mut blob = vec![0; SMALL_BYTES];
                blob[..24].copy_from_slice(&[run.to_le_bytes(), lane.to_le_bytes(), turn.to_le_bytes()].concat());
                if own { wire.put(blob.into()).await? } else { wire.create_whole(blob.into()).await? }
            }
            anyhow::Ok(())
        });
    }
    all(running).await?;
    Ok(as_f64(SMALL_BLOBS) / began.elapsed().as_secs_f64())
}

/// Milliseconds until an upload whose connection is half-open answers the next one, and what it still has of what was
/// sent.
async fn takeover(target: &Target, rounds: usize, output: Output) -> anyhow::Result<()> {
    let grant = target.grant().await?;
    let mut took = Figure::new(BENCH, "takeover_ms", "ms", &target.who);
    let mut kept = Figure::new(BENCH, "takeover_kept_bytes", "B", &target.who);
    for _ in 0..rounds {
        let path = target.connect(grant.as_deref()).await?.create(PART_BYTES).await?;
        let _half_open = target.stall(grant.as_deref(), &path, PART_BYTES, MIB).await?;
        // The bytes are on their way; the stall is what comes after them.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        // A peer may say that the upload is locked, for as long as it likes.
        let offset = loop {
            match target.connect(grant.as_deref()).await?.offset(&path).await {
                Ok(offset) => break Some(offset),
                Err(error) if target.is_own() => return Err(error),
                Err(_) if began.elapsed() > TAKEOVER_WAIT => break None,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        };
        took.add(began.elapsed().as_secs_f64() * 1000.0);
        kept.add(as_f64(offset.unwrap_or(0)));
        ensure!(!target.is_own() || offset == Some(MIB), "of {MIB} bytes sent before the stall, {offset:?} were kept");
    }
    took.print(output);
    kept.print(output);
    Ok(())
}

/// From the request that creates an upload to the answer that completes it.
async fn latency(target: &Target, name: &str, bytes: usize, output: Output) -> anyhow::Result<()> {
    settle();
    let grant = target.grant().await?;
    let mut wire = target.connect(grant.as_deref()).await?;
    let mut times = Vec::with_capacity(TIMED);
    for turn in 0..TIMED {
        let blob = Bytes::from(noise(bytes, turn));
        let began = Instant::now();
        let path = wire.create(bytes).await?;
        wire.append(&path, 0, blob).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    for (label, share) in [("p50", 50), ("p99", 99)] {
        let value = percentile(&mut times, share);
        let metric = format!("complete_{label}_ms_{name}");
        Figure::new(BENCH, &metric, "ms", &target.who).worth(value, &times).print(output);
    }
    Ok(())
}

/// Bytes of the server's memory for each thousand uploads that stall.
async fn idle(target: &Target) -> anyhow::Result<Figure> {
    let grant = target.grant().await?;
    let mut wire = target.connect(grant.as_deref()).await?;
    let before = target.process().resident_bytes()?;
    let mut stalled = Vec::with_capacity(IDLE_UPLOADS);
    for _ in 0..IDLE_UPLOADS {
        let path = wire.create(MIB).await?;
        stalled.push(target.stall(grant.as_deref(), &path, MIB, STALLED_SENDS).await?);
    }
    // Until what was sent is on disk and buffers are given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut figure = Figure::new(BENCH, "idle_bytes", "B", &target.who);
    figure.add(as_f64(usize::try_from(target.process().resident_bytes()?.saturating_sub(before))?));
    Ok(figure)
}

fn megabytes(bytes: usize) -> f64 {
    as_f64(bytes) / 1e6
}
