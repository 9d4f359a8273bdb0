//! `waxwing bench messages`: how many messages a second are durably stored, delivered and acked.

use crate::cli::BenchMessagesArgs;
use crate::output::Output;

use super::figure::Figure;
use super::load::{Generator, Job, Pairs, Peak};
use super::scratch;
use super::server::Server;

/// Runs it.
pub(super) async fn run(args: BenchMessagesArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let mut rate = Figure::new("messages", "durable_per_s", "1/s", "waxwing");
    let mut cpu = Figure::new("messages", "server_cpu_us_per_message", "us", "waxwing");
    for round in 0..args.rounds.max(1) {
        let before = server.process()?.cpu()?;
        let peak = peak(&server, &args, round).await?;
        rate.add(peak);
        // Warming up and registering count too: a little more than the truth.
        let used = server.process()?.cpu()?.saturating_sub(before).as_secs_f64();
        cpu.add(used * 1e6 / (peak * (args.seconds + 1.0)));
    }
    rate.print(output);
    cpu.print(output);
    Ok(())
}

/// One round, with people of its own.
pub(super) async fn peak(server: &Server, args: &BenchMessagesArgs, round: u32) -> anyhow::Result<f64> {
    let mut generator = Generator::start(&Job::Pairs(pairs(server, args, round))).await?;
    Ok(generator.told::<Peak>().await?.per_s)
}

/// The pairs of a round.
pub(super) fn pairs(server: &Server, args: &BenchMessagesArgs, round: u32) -> Pairs {
    Pairs {
        address: server.address.clone(),
        first: round * args.pairs * 2,
        pairs: args.pairs,
        in_flight: args.in_flight,
        seconds: args.seconds,
    }
}
