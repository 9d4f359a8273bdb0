//! `waxwing dev` and `waxwing serve`.

use std::net::{Ipv4Addr, SocketAddr};

use serde_json::json;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;
use waxwing_protocol::api::Registration;

use crate::cli::{DevArgs, ServeArgs};
use crate::config::Config;
use crate::output::{Output, program};
use crate::serve::Serving;

/// Serves every role with open registration, and says what to type next.
pub(crate) async fn dev(args: DevArgs, output: Output) -> anyhow::Result<()> {
    log(output, "warn");
    let mut config = Config { listen: args.listen, data: args.data, ..Config::default() };
    config.messaging.registration = Registration::Open;
    config.admin_listen = beside(args.listen).await;
    let serving = Serving::start(config).await?;
    let address = announce(&serving, output)?;
    if let Some(admin) = serving.admin_address()? {
        output.note(format_args!("admin http://{admin}: metrics, and waxwing admin"));
    }
    let server = if address == format!("http://{}", crate::cli::DEV_ADDRESS) {
        String::new()
    } else {
        format!(" --server {address}")
    };
    let waxwing = program();
    output.note(format_args!(
        "\nIn another terminal:\n\n  \
         {waxwing} register --handle alice --home ./alice{server}\n  \
         {waxwing} register --handle bob --home ./bob{server}\n  \
         {waxwing} send photo.jpg --to bob --home ./alice\n  \
         {waxwing} watch --save ./inbox --home ./bob\n\nCtrl-C stops the service; its data stays.\n"
    ));
    serving.run().await
}

/// The loopback address with the port after that of `listen`, or a free one after a free one. None when it is taken: who
/// tries things out can do without.
async fn beside(listen: SocketAddr) -> Option<SocketAddr> {
    let port = if listen.port() == 0 { 0 } else { listen.port().checked_add(1)? };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).await.ok().map(|_| address)
}

/// Serves the roles of a configuration file.
pub(crate) async fn serve(args: ServeArgs, output: Output) -> anyhow::Result<()> {
    log(output, "info");
    let mut config = Config::load(Some(&args.config))?;
    config.listen = args.listen.unwrap_or(config.listen);
    config.data = args.data.unwrap_or(config.data);
    let serving = Serving::start(config).await?;
    announce(&serving, output)?;
    serving.run().await
}

/// The first line on stdout: tests and scripts wait for it and read the address.
fn announce(serving: &Serving, output: Output) -> anyhow::Result<String> {
    let address = serving.url()?;
    let admin = serving.admin_address()?.map(|admin| format!("http://{admin}"));
    output.result(format_args!("listening {address}"), &json!({ "listening": address, "admin": admin }));
    Ok(address)
}

/// Logs go to stderr: text for a person, JSON lines with `--json`. `WAXWING_LOG` chooses what.
fn log(output: Output, default: &str) {
    let filter = EnvFilter::try_from_env("WAXWING_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if output.is_json() { builder.json().init() } else { builder.init() }
}
