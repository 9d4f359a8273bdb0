//! `waxwing bench soak`: what a server's store and memory grow to while messages go through it for minutes.
//!
//! What is sent and acked leaves nothing but the record that it was sent, which is kept for two days; a store that grows
//! by more than those would be full one night.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::output::Output;

use super::figure::{Figure, percentile};
use super::load::{Generator, Job, Paced, Pairs, Times};
use super::server::Server;
use super::{as_f64, scratch};

#[derive(Debug, Args)]
pub(crate) struct BenchSoakArgs {
    /// Directory on the disk to measure; what is written there is removed at the end.
    #[arg(long, default_value_os_t = std::env::temp_dir(), value_name = "DIR")]
    pub dir: PathBuf,
    /// Messages a second, sent and acked.
    #[arg(long, default_value_t = 20_000.0)]
    pub rate: f64,
    /// Pairs, of each of which one sends and the other receives.
    #[arg(long, default_value_t = 64)]
    pub pairs: u32,
    /// Seconds between two looks at the store and at the server.
    #[arg(long, default_value_t = 20.0)]
    pub seconds: f64,
    /// Looks.
    #[arg(long, default_value_t = 30)]
    pub rounds: u32,
}

/// Runs it. Each look is a line of its own; the last ones say how much a message has left behind.
pub(super) async fn run(args: BenchSoakArgs, output: Output) -> anyhow::Result<()> {
    let dir = scratch(&args.dir)?;
    let server = Server::start_messaging(dir.path()).await?;
    let figure = |metric, unit| Figure::new("soak", metric, unit, "waxwing");
    let mut looks: Vec<(f64, f64)> = Vec::new();
    let mut sent = 0;
    for round in 0..args.rounds.max(2) {
        // Other people each time: the numbers of their messages begin anew.
        let pairs = Pairs {
            address: server.address.clone(),
            first: round * args.pairs * 2,
            pairs: args.pairs,
            in_flight: 0,
            seconds: args.seconds,
        };
        let job = Job::Paced(Paced { pairs, per_s: args.rate });
        let mut times: Times = Generator::start(&job).await?.told().await?;
        sent += times.deliver_ms.len();
        let (store, memory) = (bytes_under(dir.path())?, server.process()?.resident_bytes()?);
        looks.push((as_f64(sent), as_f64(usize::try_from(store)?)));
        for (metric, unit, value) in [
            ("sent", "1", as_f64(sent)),
            ("store_bytes", "B", as_f64(usize::try_from(store)?)),
            ("server_bytes", "B", as_f64(usize::try_from(memory)?)),
            ("deliver_p99_ms", "ms", percentile(&mut times.deliver_ms, 99)),
        ] {
            let mut figure = figure(metric, unit);
            figure.add(value);
            figure.print(output);
        }
    }
    // The second half: the first also makes the journal's files.
    if let (Some(half), Some(last)) = (looks.get(looks.len() / 2 - 1), looks.last()) {
        let mut left = figure("store_bytes_per_message", "B");
        left.add((last.1 - half.1) / (last.0 - half.0));
        left.print(output);
    }
    Ok(())
}

/// Bytes on the disk of everything under a directory. What goes while it is counted does not count.
pub(super) fn bytes_under(dir: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += bytes_under(&entry.path())?,
            Ok(metadata) => bytes += metadata.blocks() * 512,
            Err(_) => {}
        }
    }
    Ok(bytes)
}
