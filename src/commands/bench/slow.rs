//! `waxwing bench slow`: what clients that do not read cost the server.

use std::time::{Duration, Instant};

use crate::cli::BenchSlowArgs;
use crate::output::Output;

use super::figure::Figure;
use super::load::{Generator, Job, Slow};
use super::server::Server;
use super::{as_f64, scratch};

/// Readers of one generator, well below what a process may open.
const PER_GENERATOR: u32 = 5_000;

/// How long they are held: the time after which the server cuts those off that take nothing, and some more.
const HELD: Duration = Duration::from_secs(25);

/// How often the server's memory is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Runs it.
pub(super) async fn run(args: BenchSlowArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let mut generators = Vec::new();
    for first in (0..args.readers).step_by(PER_GENERATOR as usize) {
        let readers = PER_GENERATOR.min(args.readers - first);
        let slow = Slow { address: server.address.clone(), first: first * 2, readers };
        let mut generator = Generator::start(&Job::Slow(slow)).await?;
        generator.told::<String>().await?;
        generators.push(generator);
    }
    // What filling took is given back, and tables that were full are written.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = server.process()?.resident_bytes()?;
    let (mut most, mut held) = (before, 0);
    for generator in &mut generators {
        generator.go().await?;
        let mut told = Box::pin(generator.told::<u32>());
        held += loop {
            tokio::select! {
                told = &mut told => break told?,
                () = tokio::time::sleep(LOOK) => most = most.max(server.process()?.resident_bytes()?),
            }
        };
    }
    let began = Instant::now();
    while began.elapsed() < HELD {
        most = most.max(server.process()?.resident_bytes()?);
        tokio::time::sleep(LOOK).await;
    }
    for (metric, unit, value) in [
        ("readers", "1", f64::from(held)),
        ("server_growth_bytes", "B", as_f64(usize::try_from(most - before)?)),
        ("server_growth_bytes_per_reader", "B", as_f64(usize::try_from(most - before)?) / f64::from(held.max(1))),
    ] {
        let mut figure = Figure::new("slow", metric, unit, "waxwing");
        figure.add(value);
        figure.print(output);
    }
    Ok(())
}
