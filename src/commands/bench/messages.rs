//! `waxwing bench messages`: how many messages a second are durably stored, delivered and acked.

use crate::cli::BenchMessagesArgs;
use crate::output::Output;

use super::figure::Figure;
use super::load::{Generator, Job, Pairs, Peak};
use super::scratch;
use super::server::{Process, Server};

/// Runs it: we and every broker in turn, so that whatever changes meanwhile changes for all.
pub(super) async fn run(args: BenchMessagesArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let figures = |who: &str| {
        let rate = Figure::new("messages", "durable_per_s", "1/s", who);
        (rate, Figure::new("messages", "server_cpu_us_per_message", "us", who))
    };
    let (mut ours, mut theirs) = (figures("waxwing"), Vec::new());
    theirs.extend(args.mqtt.iter().map(|broker| figures(&broker.name)));
    for round in 0..args.rounds.max(1) {
        let job = Job::Pairs(pairs(&server, &args, round));
        measure(&job, server.process()?, args.seconds, &mut ours).await?;
        for (broker, figures) in args.mqtt.iter().zip(&mut theirs) {
            let job = Job::MqttPairs(Pairs { address: broker.address.to_string(), ..pairs(&server, &args, round) });
            measure(&job, broker.process(), args.seconds, figures).await?;
        }
    }
    for (rate, cpu) in std::iter::once(ours).chain(theirs) {
        rate.print(output);
        cpu.print(output);
    }
    Ok(())
}

/// One round against one process.
async fn measure(job: &Job, of: Process, seconds: f64, (rate, cpu): &mut (Figure, Figure)) -> anyhow::Result<()> {
    let before = of.cpu()?;
    let peak = Generator::start(job).await?.told::<Peak>().await?.per_s;
    rate.add(peak);
    // Warming up and registering count too: a little more than the truth.
    let used = of.cpu()?.saturating_sub(before).as_secs_f64();
    cpu.add(used * 1e6 / (peak * (seconds + 1.0)));
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
