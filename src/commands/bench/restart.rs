//! `waxwing bench restart`: how long after a kill -9 a server with a million mailboxes serves again.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use crate::output::Output;

use super::figure::Figure;
use super::load::{Generator, Job, Pairs, Peak, greet, unsigned};
use super::scratch;
use super::server::Server;
use super::soak::bytes_under;

#[derive(Debug, Args)]
pub(crate) struct BenchRestartArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Mailboxes, of as many accounts.
    #[arg(long, default_value_t = 1_000_000)]
    pub mailboxes: u32,
    /// Pairs that send until the server is killed.
    #[arg(long, default_value_t = 64)]
    pub pairs: u32,
    /// How often it is killed.
    #[arg(long, default_value_t = 5)]
    pub rounds: u32,
}

/// Seconds of load before the server is killed.
const LOAD_SECONDS: f64 = 3.0;

/// Messages of a pair under way meanwhile.
const IN_FLIGHT: u64 = 16;

/// Runs it. A server serves when it has welcomed somebody.
pub(super) async fn run(args: BenchRestartArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let data = dir.path().join("data/messaging");
    let people = args.mailboxes;
    let began = Instant::now();
    tokio::task::spawn_blocking(move || waxwing_messaging::fill(&data, (0..people).map_while(|n| unsigned(n).ok())))
        .await??;
    let figure = |metric, unit| Figure::new("restart", metric, unit, "waxwing");
    let mut filled = figure("fill_s", "s");
    filled.add(began.elapsed().as_secs_f64());
    filled.print(output);
    let mut serving = figure("serving_ms", "ms");
    let mut server = Server::start_messaging(dir.path()).await?;
    for round in 0..args.rounds.max(1) {
        // Others in each round, and none of the mailboxes that are there.
        let pairs = Pairs {
            address: server.address.clone(),
            first: people + round * args.pairs * 2,
            pairs: args.pairs,
            in_flight: IN_FLIGHT,
            seconds: LOAD_SECONDS,
        };
        Generator::start(&Job::Pairs(pairs)).await?.told::<Peak>().await?;
        server.kill().await?;
        let began = Instant::now();
        server = Server::start_messaging(dir.path()).await?;
        greet(&server.address, people - 1 - round).await?;
        serving.add(began.elapsed().as_secs_f64() * 1000.0);
    }
    serving.print(output);
    let mut store = figure("store_bytes", "B");
    store.add(super::as_f64(usize::try_from(bytes_under(dir.path())?)?));
    store.print(output);
    Ok(())
}
