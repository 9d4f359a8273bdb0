//! The `waxwing` binary: command line, configuration, serving.
//!
//! One program plays every role. `waxwing dev` and `waxwing serve` build origin, edge and messaging from one
//! configuration and serve them; the other commands are a client of such a service. Data goes to stdout and progress to
//! stderr, so that every command can stand in a pipe.

mod cli;
mod commands;
mod config;
mod output;
mod serve;

use std::process::ExitCode;

use clap::Parser as _;

/// Messages are taken by the threads that serve and let go by the one that writes, the other way round, and by the hundred
/// thousand when a checkpoint ends. The C library's allocator halts a thread for up to a tenth of a second for that.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Threads that wait for disks and hash at once, at most. tokio would start up to 512, one for each upload that writes in the
/// same moment, and each keeps some 40 kB of the allocator's memory for itself; a disk gets no faster beyond some dozens.
/// Nothing that a server gives to them waits for another of them.
const BLOCKING_THREADS_MAX: usize = 64;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    let output = output::Output::new(cli.json);
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = match builder.enable_all().max_blocking_threads(BLOCKING_THREADS_MAX).build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&anyhow::Error::new(error).context("cannot start")),
    };
    match runtime.block_on(commands::run(cli.command, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}
