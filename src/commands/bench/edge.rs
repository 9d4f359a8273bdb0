//! `waxwing bench edge`: what a hit costs, beside what it costs others.
//!
//! Server and generator have a core each, so that what one of them spares is not eaten up by the other. Where the server
//! was not busy all the time, the generator was the limit: that is said, and the CPU time of a request stands beside the
//! rate, since that is the server's alone.

mod cold;
mod fetch;
mod target;

use std::time::Duration;

use anyhow::Context as _;

use super::figure::Figure;
use super::{as_f64, scratch};
use crate::cli::{BenchEdgeArgs, EdgePart};
use crate::output::Output;
use fetch::Load;
pub(crate) use target::Peer;
use target::{Service, Target};

const BENCH: &str = "edge";

const MIB: usize = 1 << 20;

/// Connections at once that ask for small bodies, and for large ones: more of those wait for one another.
const CONNECTIONS: usize = 64;
const CONNECTIONS_LARGE: usize = 8;

/// Share of its core that the server has to use to have been the limit.
const BUSY: f64 = 0.95;

/// Blobs, and slices of each, over which the memory of a cached slice is averaged.
const WEIGHED_BLOBS: usize = 2;
const WEIGHED_SLICES: usize = 64;

/// Connections that idle; what a process may open is often 20,000 files.
const IDLE_CONNECTIONS: usize = 10_000;

/// Traces of which hit ratios are told.
const SEEDS: [u64; 3] = [1, 2, 3];

/// How long memory is left to settle before it is read, and the disk tier to write what was fetched.
const SETTLE: Duration = Duration::from_secs(2);

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A thumbnail.
    Small,
    /// A photo.
    Photo,
    /// 1 MiB out of a film.
    Range,
    /// A film, whole.
    Film,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Small, Self::Photo, Self::Range, Self::Film];

    const fn name(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Photo => "100k",
            Self::Range => "1m",
            Self::Film => "64m",
        }
    }

    const fn file_bytes(self) -> usize {
        match self {
            Self::Small => 4096,
            Self::Photo => 100 * 1024,
            Self::Range | Self::Film => 64 * MIB,
        }
    }

    const fn body_bytes(self) -> usize {
        match self {
            Self::Range => MIB,
            _ => self.file_bytes(),
        }
    }

    /// Files asked for in turns.
    const fn files(self) -> usize {
        match self {
            Self::Small | Self::Photo => 16,
            Self::Range | Self::Film => 1,
        }
    }

    /// First and last byte of what is asked for in turns.
    fn ranges(self) -> Vec<Option<(usize, usize)>> {
        match self {
            Self::Range => (0..self.file_bytes() / MIB).map(|n| Some((n * MIB, (n + 1) * MIB - 1))).collect(),
            _ => vec![None],
        }
    }

    const fn is_small(self) -> bool {
        matches!(self, Self::Small | Self::Photo)
    }

    const fn part(self) -> EdgePart {
        match self {
            Self::Small => EdgePart::Small,
            Self::Photo => EdgePart::Photo,
            Self::Range => EdgePart::Range,
            Self::Film => EdgePart::Film,
        }
    }
}

/// Something for each file of each kind.
#[derive(Clone, Debug, Default)]
struct Files<T>([Vec<T>; Kind::ALL.len()]);

impl<T> Files<T> {
    fn of(&mut self, kind: Kind) -> &mut Vec<T> {
        &mut self.0[kind as usize]
    }
}

/// Measures and prints.
pub(super) async fn run(args: BenchEdgeArgs, output: Output) -> anyhow::Result<()> {
    // Boxed: it waits for processes to start, and is awaited once.
    Box::pin(measure(args, output)).await
}

async fn measure(args: BenchEdgeArgs, output: Output) -> anyhow::Result<()> {
    crate::serve::raise_open_files();
    let is_wanted = |part: EdgePart| args.only.is_empty() || args.only.contains(&part);
    let dir = scratch(&args.dir)?;
    let service = Service::start(dir.path()).await?;
    if is_wanted(EdgePart::Memory) {
        memory_of_slices(&service, output).await?;
    }
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| is_wanted(kind.part())).collect();
    if !kinds.is_empty() {
        hits(&args, &service, &kinds, output).await?;
    }
    if is_wanted(EdgePart::Cold) {
        cold::measure(&service, output).await?;
    }
    if is_wanted(EdgePart::Idle) {
        idle(&service, output).await?;
    }
    if is_wanted(EdgePart::Ratios) {
        hit_ratios(output);
    }
    Ok(())
}

/// Rates and CPU time of hits, of all targets in turns.
async fn hits(args: &BenchEdgeArgs, service: &Service, kinds: &[Kind], output: Output) -> anyhow::Result<()> {
    let own = service.target(kinds).await?;
    let mut measured: Vec<(Target, Rates)> = std::iter::once(own)
        .chain(args.peer.iter().cloned().map(|peer| Target::peer(peer, service.is_apart)))
        .map(|target| {
            let rates = Rates::new(&target.who);
            (target, rates)
        })
        .collect();
    for (target, _) in &mut measured {
        warm(target, kinds)?;
    }
    tokio::time::sleep(SETTLE).await;
    let seconds = Duration::from_secs_f64(args.seconds);
    for _ in 0..args.rounds.max(1) {
        for kind in kinds {
            for (target, rates) in &mut measured {
                rates.measure(target, *kind, seconds)?;
            }
            // Whoever comes first in one run is last in the next.
            measured.reverse();
        }
    }
    measured.sort_by_key(|(target, _)| target.who != "waxwing");
    for (target, rates) in &measured {
        rates.print(&target.who, kinds, output);
    }
    Ok(())
}

/// Asks for everything a few times, so that it is in the cache, and where the cache wants to have it.
fn warm(target: &mut Target, kinds: &[Kind]) -> anyhow::Result<()> {
    for kind in kinds {
        for request in target.requests(*kind) {
            let asked = fetch::once(target.address, &request);
            let once = asked.with_context(|| format!("{} has no {}", target.who, kind.name()))?;
            anyhow::ensure!(once.body_bytes == kind.body_bytes(), "{} has another {}", target.who, kind.name());
            if *kind == Kind::Film {
                break;
            }
        }
    }
    Ok(())
}

/// What is measured of a target once a round.
struct Rates {
    /// Answers a second, CPU µs of an answer, CPU seconds of a GB; of each kind.
    figures: Vec<[Figure; 2]>,
    /// Kinds of which the generator was the limit.
    generator_limited: Vec<Kind>,
}

impl Rates {
    fn new(who: &str) -> Self {
        let figures = Kind::ALL.map(|kind| {
            let name = kind.name();
            let (rate, cpu) = match kind.is_small() {
                true => ((format!("req_per_s_{name}"), "1/s"), (format!("cpu_us_{name}"), "us")),
                false => ((format!("gb_per_s_{name}"), "GB/s"), (format!("cpu_s_per_gb_{name}"), "s")),
            };
            [rate, cpu].map(|(metric, unit)| Figure::new(BENCH, &metric, unit, who))
        });
        Self { figures: figures.into(), generator_limited: Vec::new() }
    }

    fn measure(&mut self, target: &mut Target, kind: Kind, time: Duration) -> anyhow::Result<()> {
        let (address, requests) = (target.address, target.requests(kind));
        let connections = if kind.is_small() { CONNECTIONS } else { CONNECTIONS_LARGE };
        let spins = target.is_apart;
        let load = Load { address, requests, body_bytes: kind.body_bytes(), connections, spins };
        let before = target.process.cpu()?;
        // On this thread: nothing else is to be done meanwhile.
        let ran = fetch::run(&load, time).with_context(|| format!("{} and {}", target.who, kind.name()))?;
        let cpu_s = target.process.cpu()?.saturating_sub(before).as_secs_f64();
        let answers = as_f64(ran.answers);
        let gigabytes = answers * as_f64(kind.body_bytes()) / 1e9;
        let [rate, cpu] = &mut self.figures[kind as usize];
        if kind.is_small() {
            rate.add(answers / ran.took_s);
            cpu.add(cpu_s * 1e6 / answers);
        } else {
            rate.add(gigabytes / ran.took_s);
            cpu.add(cpu_s / gigabytes);
        }
        if cpu_s < BUSY * ran.took_s && ran.busy > BUSY && !self.generator_limited.contains(&kind) {
            self.generator_limited.push(kind);
        }
        Ok(())
    }

    fn print(&self, who: &str, kinds: &[Kind], output: Output) {
        for kind in kinds {
            self.figures[*kind as usize].iter().for_each(|figure| figure.print(output));
        }
        for kind in &self.generator_limited {
            output.warn(format_args!("{who}, {}: the generator was the limit; compare CPU time", kind.name()));
        }
    }
}

/// Memory of the process for each slice that it has.
async fn memory_of_slices(service: &Service, output: Output) -> anyhow::Result<()> {
    let mut ids = Vec::new();
    for n in 0..WEIGHED_BLOBS {
        ids.push(service.store(WEIGHED_SLICES * MIB, 500 + n).await?);
    }
    let before = service.process.resident_bytes()?;
    for id in &ids {
        fetch::once(service.edge, &service.request(id, None))?;
    }
    tokio::time::sleep(SETTLE).await;
    let grown = service.process.resident_bytes()?.saturating_sub(before);
    let mut figure = Figure::new(BENCH, "memory_bytes_per_slice", "B", "waxwing");
    figure.add(as_f64(usize::try_from(grown)?) / as_f64(WEIGHED_BLOBS * WEIGHED_SLICES));
    figure.print(output);
    Ok(())
}

/// Bytes of the edge's memory for each connection that was answered and waits.
async fn idle(service: &Service, output: Output) -> anyhow::Result<()> {
    let requests = service.target(&[Kind::Small]).await?.requests(Kind::Small);
    for request in &requests {
        fetch::once(service.edge, request)?;
    }
    let before = service.process.resident_bytes()?;
    let mut open = Vec::with_capacity(IDLE_CONNECTIONS);
    for n in 0..IDLE_CONNECTIONS {
        open.push(fetch::once(service.edge, &requests[n % requests.len()])?.stream);
    }
    tokio::time::sleep(SETTLE).await;
    let grown = service.process.resident_bytes()?.saturating_sub(before);
    let mut figure = Figure::new(BENCH, "idle_bytes_per_connection", "B", "waxwing");
    figure.add(as_f64(usize::try_from(grown)?) / as_f64(open.len()));
    figure.print(output);
    Ok(())
}

/// How well the disk tier chooses, on traces of a chat, beside LRU and SLRU; shares of one, as goals for caches are told.
fn hit_ratios(output: Output) {
    for (percent, suffix) in [(5, ""), (1, "_1_percent")] {
        let runs = SEEDS.map(|seed| waxwing_edge::trace::compare(percent, seed));
        for (at, (who, _)) in runs[0].iter().enumerate() {
            let mut hits = Figure::new(BENCH, &format!("hit_ratio{suffix}"), "", who);
            let mut bytes = Figure::new(BENCH, &format!("byte_hit_ratio{suffix}"), "", who);
            for run in &runs {
                hits.add(run[at].1.hits / 100.0);
                bytes.add(run[at].1.bytes / 100.0);
            }
            hits.print(output);
            bytes.print(output);
        }
    }
}
