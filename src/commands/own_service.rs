//! A service of a command's own: this binary once more, on a port of its own, for as long as the command runs.

use std::path::Path;
use std::process::Stdio;

use anyhow::Context as _;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// Starts `waxwing dev` by way of `command`, which ends with the program and has no arguments for it yet, with its data in
/// `dir`. Gives the process, which is killed when dropped, and its host and port once it listens.
pub(super) async fn start(mut command: Command, dir: &Path) -> anyhow::Result<(Child, String)> {
    command.args(["dev", "--listen", "127.0.0.1:0", "--data", "data"]);
    listening(command, dir).await
}

/// The same with what `config` says, but for where it listens and has its data.
pub(super) async fn start_with(mut command: Command, dir: &Path, config: &Path) -> anyhow::Result<(Child, String)> {
    command.arg("serve").arg("--config").arg(config).args(["--listen", "127.0.0.1:0", "--data", "data"]);
    listening(command, dir).await
}

/// The same with whatever service `command` is.
pub(super) async fn listening(mut command: Command, dir: &Path) -> anyhow::Result<(Child, String)> {
    let mut process =
        command.current_dir(dir).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true).spawn()?;
    let stdout = process.stdout.take().context("stdout is piped")?;
    let first = BufReader::new(stdout).lines().next_line().await?.context("the service did not start")?;
    let address = first.strip_prefix("listening http://").context("the service did not say where it listens")?;
    Ok((process, address.to_owned()))
}
