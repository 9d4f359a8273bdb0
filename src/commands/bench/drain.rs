//! `waxwing bench drain`: someone comes back to thousands of messages, alone and with a crowd.

use std::time::Duration;

use anyhow::Context as _;

use crate::cli::BenchDrainArgs;
use crate::output::Output;

use super::figure::Figure;
use super::load::{Drained, Draining, Generator, Job};
use super::server::Server;
use super::{as_f64, scratch};

/// Messages that wait for each of many clients.
const CROWD_PENDING: u64 = 100;

/// How often the server's memory is looked at during a drain.
const LOOK: Duration = Duration::from_millis(1);

/// Runs it.
pub(super) async fn run(args: BenchDrainArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let figure = |metric, unit| Figure::new("drain", metric, unit, "waxwing");
    let address = || server.address.clone();
    let rounds = args.rounds.max(1);

    let alone = Draining { address: address(), first: 0, clients: 1, pending: args.pending, call: false };
    let (mut time, mut growth) = (figure("drain_ms", "ms"), figure("server_growth_bytes", "B"));
    let mut generator = registered(alone.clone()).await?;
    for _ in 0..rounds {
        let (drained, grown) = round(&server, &mut generator).await?;
        time.add(drained.drain_ms);
        growth.add(grown);
    }
    time.print(output);
    growth.print(output);

    let mut call = figure("call_amid_drain_ms", "ms");
    let mut generator = registered(Draining { first: 2, call: true, ..alone }).await?;
    for _ in 0..rounds {
        let (drained, _) = round(&server, &mut generator).await?;
        call.add(drained.call_ms.context("the call was not answered")?);
    }
    call.print(output);

    let clients = args.clients.max(1);
    let crowd = Draining { address: address(), first: 4, clients, pending: CROWD_PENDING, call: false };
    let (drained, grown) = round(&server, &mut registered(crowd).await?).await?;
    for (metric, unit, value) in [
        ("crowd_clients", "1", f64::from(clients)),
        ("crowd_drain_ms", "ms", drained.drain_ms),
        ("crowd_growth_bytes_per_client", "B", grown / f64::from(clients)),
    ] {
        let mut figure = figure(metric, unit);
        figure.add(value);
        figure.print(output);
    }
    Ok(())
}

async fn registered(job: Draining) -> anyhow::Result<Generator> {
    let mut generator = Generator::start(&Job::Drain(job)).await?;
    generator.told::<String>().await?;
    Ok(generator)
}

/// Fills and drains once: how it went, and the bytes by which the server's memory grew at most meanwhile.
async fn round(server: &Server, generator: &mut Generator) -> anyhow::Result<(Drained, f64)> {
    generator.go().await?;
    generator.told::<String>().await?;
    // What filling took is given back, and tables that were full are written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = server.process()?.resident_bytes()?;
    let mut most = before;
    generator.go().await?;
    let mut drained = Box::pin(generator.told::<Drained>());
    let drained = loop {
        tokio::select! {
            drained = &mut drained => break drained?,
            () = tokio::time::sleep(LOOK) => most = most.max(server.process()?.resident_bytes()?),
        }
    };
    most = most.max(server.process()?.resident_bytes()?);
    Ok((drained, as_f64(usize::try_from(most - before)?)))
}
