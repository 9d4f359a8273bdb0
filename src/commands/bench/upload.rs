//! `waxwing bench upload`: what this machine's disk and this binary do together.
//!
//! The device's own synced rate is measured in the same directory in the same rounds, since a figure means something only
//! beside another of the same minute on the same disk.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::body::Bytes;
use tokio::task::JoinSet;

use super::figure::{Figure, percentile};
use super::server::Server;
use super::wire::{Stalled, Wire};
use super::{all, as_f64, noise};
use crate::cli::BenchUploadArgs;
use crate::output::Output;

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

/// Uploads whose time is taken, for each size.
const TIMED: usize = 100;

/// Measures and prints.
pub(super) async fn run(args: BenchUploadArgs, output: Output) -> anyhow::Result<()> {
    let rounds = args.rounds.max(1);
    let dir = tempfile::Builder::new().prefix("waxwing-bench-").tempdir_in(&args.dir)?;
    let origin = Server::start(dir.path()).await?;
    let mut device = Figure::new(BENCH, "mb_per_s", "MB/s", "device");
    let mut one = Figure::new(BENCH, "mb_per_s", "MB/s", "waxwing");
    let mut four = Figure::new(BENCH, "mb_per_s_4_streams", "MB/s", "waxwing");
    let mut cpu = Figure::new(BENCH, "cpu_s_per_gib", "s", "waxwing");
    let mut cpu_four = Figure::new(BENCH, "cpu_s_per_gib_4_streams", "s", "waxwing");
    let mut small = Figure::new(BENCH, "small_per_s", "1/s", "waxwing");
    for _ in 0..rounds {
        device.add(device_rate(&dir.path().join("device.bin"))?);
        for (streams, rate, cpu) in [(1, &mut one, &mut cpu), (4, &mut four, &mut cpu_four)] {
            let (began, cpu_before) = (Instant::now(), origin.process()?.cpu()?);
            streams_of(&origin, streams).await?;
            rate.add(megabytes(RUN_BYTES) / began.elapsed().as_secs_f64());
            cpu.add(origin.process()?.cpu()?.saturating_sub(cpu_before).as_secs_f64());
        }
        small.add(small_rate(&origin).await?);
    }
    for figure in [&device, &one, &four, &cpu, &cpu_four, &small] {
        figure.print(output);
    }
    takeover(&origin, rounds).await?.print(output);
    for (name, bytes) in [("1kib", 1024), ("100kib", SMALL_BYTES), ("5mib-1", 5 * MIB - 1), ("5mib+1", 5 * MIB + 1)] {
        latency(&origin, name, bytes, output).await?;
    }
    idle(&origin).await?.print(output);
    Ok(())
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

/// Uploads [`RUN_BYTES`] over so many connections, each its own blob, one part a request.
async fn streams_of(origin: &Server, streams: usize) -> anyhow::Result<()> {
    let grant = origin.grant().await?;
    let mut running = JoinSet::new();
    for stream in 0..streams {
        let (wire, part) = (Wire::connect(&origin.address, &grant).await?, Bytes::from(noise(PART_BYTES, stream)));
        running.spawn(async move {
            let mut wire = wire;
            let url = wire.create(RUN_BYTES / streams).await?;
            for at in (0..RUN_BYTES / streams).step_by(PART_BYTES) {
                wire.append(&url, at, part.clone()).await?;
            }
            anyhow::Ok(())
        });
    }
    all(running).await
}

/// Durable small blobs a second, each put in one request.
async fn small_rate(origin: &Server) -> anyhow::Result<f64> {
    let grant = origin.grant().await?;
    let mut wires = Vec::new();
    for _ in 0..SMALL_AT_ONCE {
        wires.push(Wire::connect(&origin.address, &grant).await?);
    }
    // Blobs are addressed by what they hold: those of another run must be others.
    let run = usize::try_from(origin.process()?.cpu()?.as_millis())?;
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (lane, mut wire) in wires.into_iter().enumerate() {
        running.spawn(async move {
            for turn in 0..SMALL_BLOBS / SMALL_AT_ONCE {
                let mut blob = vec![0; SMALL_BYTES];
                blob[..24].copy_from_slice(&[run.to_le_bytes(), lane.to_le_bytes(), turn.to_le_bytes()].concat());
                wire.put(blob.into()).await?;
            }
            anyhow::Ok(())
        });
    }
    all(running).await?;
    Ok(as_f64(SMALL_BLOBS) / began.elapsed().as_secs_f64())
}

/// Milliseconds until a half-open upload answers the next connection, with every byte that was sent.
async fn takeover(origin: &Server, rounds: usize) -> anyhow::Result<Figure> {
    let grant = origin.grant().await?;
    let mut figure = Figure::new(BENCH, "takeover_ms", "ms", "waxwing");
    for _ in 0..rounds {
        let mut wire = Wire::connect(&origin.address, &grant).await?;
        let url = wire.create(PART_BYTES).await?;
        let _half_open = Stalled::start(&origin.address, &grant, &url, PART_BYTES, MIB).await?;
        // The bytes are on their way; the stall is what comes after them.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let began = Instant::now();
        let offset = wire.offset(&url).await?;
        figure.add(began.elapsed().as_secs_f64() * 1000.0);
        ensure!(offset == MIB, "of {MIB} bytes sent before the stall, {offset} were kept");
    }
    Ok(figure)
}

/// From the request that creates an upload to the answer that completes it.
async fn latency(origin: &Server, name: &str, bytes: usize, output: Output) -> anyhow::Result<()> {
    let grant = origin.grant().await?;
    let mut wire = Wire::connect(&origin.address, &grant).await?;
    let mut times = Vec::with_capacity(TIMED);
    for turn in 0..TIMED {
        let blob = Bytes::from(noise(bytes, turn));
        let began = Instant::now();
        let url = wire.create(bytes).await?;
        wire.append(&url, 0, blob).await?;
        times.push(began.elapsed().as_secs_f64() * 1000.0);
    }
    for (label, share) in [("p50", 50), ("p99", 99)] {
        let value = percentile(&mut times, share);
        Figure::new(BENCH, &format!("complete_{label}_ms_{name}"), "ms", "waxwing").worth(value, &times).print(output);
    }
    Ok(())
}

/// Bytes of the server's memory for each thousand uploads that stall.
async fn idle(origin: &Server) -> anyhow::Result<Figure> {
    let grant = origin.grant().await?;
    let mut wire = Wire::connect(&origin.address, &grant).await?;
    let before = origin.process()?.resident_bytes()?;
    let mut stalled = Vec::with_capacity(IDLE_UPLOADS);
    for _ in 0..IDLE_UPLOADS {
        let url = wire.create(MIB).await?;
        stalled.push(Stalled::start(&origin.address, &grant, &url, MIB, STALLED_SENDS).await?);
    }
    // Until what was sent is on disk and buffers are given back.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let mut figure = Figure::new(BENCH, "idle_bytes", "B", "waxwing");
    figure.add(as_f64(usize::try_from(origin.process()?.resident_bytes()?.saturating_sub(before))?));
    Ok(figure)
}

fn megabytes(bytes: usize) -> f64 {
    as_f64(bytes) / 1e6
}
