//! The server that is measured: this binary as a process of its own, with the kernel's word on what it uses.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use waxwing_client::{Client, RegisterOptions};
use waxwing_protocol::api::GrantRequest;

use crate::commands::own_service;

/// The kernel's unit of CPU time for programs, on every architecture Linux runs on but Alpha.
const TICKS_PER_S: u64 = 100;

/// A node that only plays the messaging role and refuses nobody: what is measured is what it can do, not what it lets
/// strangers do.
const MESSAGING_ALONE: &str = r#"
roles = ["messaging"]
listen = "127.0.0.1:0"
data = "data"
connections_max = 1000000
[cluster]
uploads_base_url = "http://127.0.0.1:9"
blobs_base_url = "http://127.0.0.1:9"
[messaging]
registration = "open"
sends_per_minute = 4000000000
account_sends_per_minute = 4000000000
pair_sends_per_minute = 4000000000
group_sends_per_minute = 4000000000
channel_appends_per_minute = 4000000000
channel_reads_per_minute = 4000000000
"#;

/// A service in a child process.
pub(super) struct Server {
    /// Host and port.
    pub(super) address: String,
    process: Child,
    dir: PathBuf,
    accounts: AtomicUsize,
}

impl Server {
    /// Starts one whose data is in `dir`; pinned to the first core and this process to the second, where there are two.
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let (process, address) = own_service::start(pinned().await?, dir).await?;
        Ok(Self { address, process, dir: dir.to_owned(), accounts: AtomicUsize::new(0) })
    }

    /// The same with the messaging role alone.
    pub(super) async fn start_messaging(dir: &Path) -> anyhow::Result<Self> {
        Self::start_messaging_with(dir, "").await
    }

    /// The same with more in its configuration.
    pub(super) async fn start_messaging_with(dir: &Path, more: &str) -> anyhow::Result<Self> {
        std::fs::write(dir.join("bench.toml"), format!("{MESSAGING_ALONE}{more}"))?;
        let mut command = pinned().await?;
        command.args(["serve", "--config", "bench.toml"]);
        let (process, address) = own_service::listening(command, dir).await?;
        Ok(Self { address, process, dir: dir.to_owned(), accounts: AtomicUsize::new(0) })
    }

    /// An upload grant of a new account, so that no run eats up another's quota.
    pub(super) async fn grant(&self) -> anyhow::Result<String> {
        let handle = format!("bench{}", self.accounts.fetch_add(1, Ordering::Relaxed));
        let server = format!("http://{}", self.address);
        let options = RegisterOptions { server, handle: handle.parse()?, invite: None };
        let client = Client::register(&self.dir.join(&handle), options).await?;
        Ok(client.grant(GrantRequest::Upload).await?.grant.to_string())
    }

    /// Kills it with -9 and waits until it is gone.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        Ok(self.process.kill().await?)
    }

    /// What the kernel tells of it.
    pub(super) fn process(&self) -> anyhow::Result<Process> {
        Ok(Process { pid: self.process.id().context("the service ended by itself")? })
    }
}

/// A process, as the kernel accounts for it.
#[derive(Clone, Copy)]
pub(super) struct Process {
    pub(super) pid: u32,
}

impl Process {
    /// CPU time used so far, user and system.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = self.proc("stat")?;
        // The name may hold blanks: fields are counted from behind its parenthesis.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field = |at: usize| fields.get(at).context("a short stat")?.parse::<u64>().context("a stat of no numbers");
        Ok(Duration::from_millis((field(11)? + field(12)?) * 1000 / TICKS_PER_S))
    }

    /// Memory in use.
    pub(super) fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib * 1024)
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.pid))
            .context("CPU time and memory are read from /proc (Linux)")
    }
}

/// This binary, to be started on the first core, with this process and what it starts later on the second, where there
/// are two.
pub(super) async fn pinned() -> anyhow::Result<Command> {
    let program = std::env::current_exe()?;
    if !pin_generator().await {
        return Ok(Command::new(&program));
    }
    let mut command = Command::new("taskset");
    command.args(["-c", "0"]).arg(&program);
    Ok(command)
}

/// Pins this process to the second core; false where it cannot be.
pub(super) async fn pin_generator() -> bool {
    /// Asked once: a process that is pinned has one core, and what it starts would not be told apart from it.
    static PINNED: OnceCell<bool> = OnceCell::const_new();
    *PINNED
        .get_or_init(async || {
            if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
                return false;
            }
            let pid = std::process::id().to_string();
            let mut command = Command::new("taskset");
            let pinned = command.args(["-acp", "1", &pid]).stdout(Stdio::null()).stderr(Stdio::null()).status();
            pinned.await.is_ok_and(|status| status.success())
        })
        .await
}
