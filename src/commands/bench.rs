//! `waxwing bench`: what this machine and this binary do together, measured.
//!
//! A figure means something only beside another of the same minute on the same machine. So the server is a process of its
//! own with its CPU time and memory read from the kernel, and where there are two cores, server and generator have one
//! each.

mod broker;
mod channel;
mod connections;
mod drain;
mod edge;
mod figure;
mod group;
mod latency;
mod load;
mod messages;
mod push;
mod restart;
mod server;
mod slow;
mod soak;
mod upload;

use std::path::Path;

use tokio::task::JoinSet;

use crate::cli::BenchCommand;
use crate::output::Output;
pub(crate) use broker::Broker;
pub(crate) use edge::Peer as EdgePeer;
pub(crate) use push::BenchPushArgs;
pub(crate) use restart::BenchRestartArgs;
pub(crate) use soak::BenchSoakArgs;
pub(crate) use upload::Peer;

/// Runs a benchmark.
pub(crate) async fn run(command: BenchCommand, output: Output) -> anyhow::Result<()> {
    match command {
        BenchCommand::Upload(args) => upload::run(args, output).await,
        BenchCommand::Edge(args) => edge::run(args, output).await,
        BenchCommand::Messages(args) => messages::run(args, output).await,
        BenchCommand::Latency(args) => latency::run(args, output).await,
        BenchCommand::Connections(args) => connections::run(args, output).await,
        BenchCommand::Drain(args) => drain::run(args, output).await,
        BenchCommand::Channel(args) => channel::run(args, output).await,
        BenchCommand::Group(args) => group::run(args, output).await,
        BenchCommand::Push(args) => push::run(args, output).await,
        BenchCommand::Slow(args) => slow::run(args, output).await,
        BenchCommand::Soak(args) => soak::run(args, output).await,
        BenchCommand::Restart(args) => restart::run(args, output).await,
        BenchCommand::Load => load::run(output).await,
    }
}

/// A directory for one benchmark's data, on the disk that `dir` lies on.
fn scratch(dir: &Path) -> std::io::Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix("waxwing-bench-").tempdir_in(dir)
}

/// What each of them gave, or the first error.
async fn all<T: 'static>(mut running: JoinSet<anyhow::Result<T>>) -> anyhow::Result<Vec<T>> {
    let mut given = Vec::with_capacity(running.len());
    while let Some(done) = running.join_next().await {
        given.push(done??);
    }
    Ok(given)
}

/// Bytes that do not repeat within a page, another row for each seed.
fn noise(len: usize, seed: usize) -> Vec<u8> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut noise = Vec::with_capacity(len + 8);
    while noise.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&state.to_be_bytes()[..4]);
    }
    noise.truncate(len);
    noise
}

#[allow(clippy::cast_precision_loss, reason = "figures for a table, all far below 2^53")]
const fn as_f64(count: usize) -> f64 {
    count as f64
}
