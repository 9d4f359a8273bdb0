//! `waxwing bench latency`: how long a send takes to be answered, and a message to arrive, at a steady rate.

use crate::cli::BenchLatencyArgs;
use crate::output::Output;

use super::figure::{Figure, percentile};
use super::load::{Generator, Job, Paced, Times};
use super::messages::{pairs, peak};
use super::scratch;
use super::server::Server;

/// Runs it.
pub(super) async fn run(args: BenchLatencyArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.load.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let per_s = match args.rate {
        Some(rate) => rate,
        None => peak(&server, &args.load, 0).await? / 2.0,
    };
    let figure = |metric, unit| Figure::new("latency", metric, unit, "waxwing");
    let mut rate = figure("per_s", "1/s");
    let mut figures = [
        figure("send_p50_ms", "ms"),
        figure("send_p99_ms", "ms"),
        figure("deliver_p50_ms", "ms"),
        figure("deliver_p99_ms", "ms"),
    ];
    for round in 0..args.load.rounds.max(1) {
        let job = Job::Paced(Paced { pairs: pairs(&server, &args.load, round + 1), per_s });
        let mut times: Times = Generator::start(&job).await?.told().await?;
        rate.add(super::as_f64(times.deliver_ms.len()) / args.load.seconds);
        for (figure, share) in figures.iter_mut().zip([50, 99, 50, 99]).take(2) {
            figure.add(percentile(&mut times.send_ms, share));
        }
        for (figure, share) in figures.iter_mut().skip(2).zip([50, 99]) {
            figure.add(percentile(&mut times.deliver_ms, share));
        }
    }
    rate.print(output);
    figures.iter().for_each(|figure| figure.print(output));
    Ok(())
}
