//! `waxwing bench connections`: what a connection that idles costs the server.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::{Resource, getrlimit};

use crate::cli::BenchConnectionsArgs;
use crate::output::Output;

use super::figure::Figure;
use super::load::{Generator, Holding, Job};
use super::server::Server;
use super::{as_f64, scratch};

/// Connections of one generator, well below what a process may open.
const PER_GENERATOR: u32 = 5_000;

/// Files of the server beside its connections: its store's, its listeners, and those of registering clients.
const OTHER_FILES: u64 = 600;

/// How long memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Runs it.
pub(super) async fn run(args: BenchConnectionsArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let files = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).saturating_sub(OTHER_FILES);
    let count = args.count.unwrap_or(u32::try_from(files).unwrap_or(u32::MAX));
    ensure!(count >= 2, "fewer than two connections say nothing");
    let mut generators = Vec::new();
    for first in (0..count).step_by(PER_GENERATOR as usize) {
        let count = PER_GENERATOR.min(count - first);
        let holding = Holding { address: server.address.clone(), first, count, step: count.div_ceil(2) };
        let mut generator = Generator::start(&Job::Hold(holding)).await?;
        // Everybody is registered before memory is read: accounts are not connections.
        generator.told::<u64>().await?;
        generators.push(generator);
    }
    let mut points = vec![(0, settled(&server).await?)];
    for _ in 0..2 {
        let mut held = 0;
        for generator in &mut generators {
            generator.go().await?;
            held += generator.told::<u64>().await?;
        }
        points.push((held, settled(&server).await?));
    }
    let [none, half, all] = points[..] else { return Ok(()) };
    let figure = |metric, unit| Figure::new("connections", metric, unit, "waxwing");
    let mut held = figure("held", "1");
    held.add(count_of(all.0)?);
    let mut each = figure("server_bytes_per_connection", "B");
    each.add(count_of(all.1.saturating_sub(none.1))? / count_of(all.0)?);
    let mut slope = figure("server_bytes_per_further_connection", "B");
    slope.add(count_of(all.1.saturating_sub(half.1))? / count_of(all.0 - half.0)?);
    [held, each, slope].iter().for_each(|figure| figure.print(output));
    Ok(())
}

async fn settled(server: &Server) -> anyhow::Result<u64> {
    tokio::time::sleep(SETTLE).await;
    server.process()?.resident_bytes()
}

fn count_of(count: u64) -> anyhow::Result<f64> {
    Ok(as_f64(usize::try_from(count).context("a count beyond memory")?))
}
