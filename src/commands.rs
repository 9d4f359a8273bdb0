//! The commands, one file a noun. Each turns arguments into one call and shapes what it prints.

mod admin;
mod bench;
mod blobs;
mod blocks;
mod channels;
mod config;
mod contacts;
mod demo;
mod devices;
mod doctor;
mod groups;
mod messages;
mod own_service;
mod profile;
mod push;
mod serve;
mod transfers;
mod watch;

pub(crate) use bench::{BenchPushArgs, BenchRestartArgs, BenchSoakArgs, Broker, EdgePeer, Peer};
pub(crate) use blobs::BlobArgs;

use crate::cli::Command;
use crate::output::Output;

/// Runs a command to its end.
pub(crate) async fn run(command: Command, output: &Output) -> anyhow::Result<()> {
    let output = *output;
    match command {
        Command::Dev(args) => serve::dev(args, output).await,
        Command::Serve(args) => serve::serve(args, output).await,
        Command::Register(args) => profile::register(args, output).await,
        Command::Link(args) => devices::link(args, output).await,
        Command::Devices(command) => devices::devices(command, output).await,
        Command::Doctor { profile } => doctor::doctor(profile, output).await,
        Command::Verify(args) => contacts::verify(args, output).await,
        Command::Contacts(args) => contacts::contacts(args, output).await,
        Command::Account(command) => profile::account(command, output).await,
        Command::Send(args) => transfers::send(args, output).await,
        Command::Watch(args) => watch::watch(args, output).await,
        Command::Messages(args) => messages::messages(&args, output),
        Command::Settings(args) => messages::settings(args, output).await,
        Command::Block(args) => blocks::block(args, output).await,
        Command::Unblock(args) => blocks::unblock(args, output).await,
        Command::Keep(args) => blobs::keep(args, output).await,
        Command::Drop(args) => blobs::let_go(args, output).await,
        Command::Blocks { profile } => blocks::blocks(profile, output).await,
        Command::Channel(args) => channels::channel(args, output).await,
        Command::Group(args) => groups::group(args, output).await,
        Command::Push(command) => push::run(command, output).await,
        Command::Get(args) => transfers::get(args, output).await,
        Command::Share(args) => transfers::share(args, output).await,
        Command::Resume(args) => transfers::resume(args, output).await,
        Command::Grant(args) => profile::grant(args, output).await,
        Command::Config(command) => config::run(command, output),
        Command::Admin(command) => admin::run(command, output).await,
        Command::Bench(command) => bench::run(command, output).await,
        Command::Demo(args) => demo::run(args, output).await,
    }
}
