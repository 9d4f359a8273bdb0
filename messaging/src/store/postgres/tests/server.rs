//! A PostgreSQL server of the test's own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// How a server is run.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/postgres.sh");

/// A running server. It and everything in it goes when this is dropped.
pub(super) struct Server {
    dir: TempDir,
    process: Child,
}

impl Server {
    /// Starts one; `None` when PostgreSQL is not installed and this is not CI.
    pub(super) fn start() -> Option<Self> {
        if !Path::new("/usr/lib/postgresql").exists() {
            assert!(std::env::var_os("CI").is_none(), "PostgreSQL is not installed: run infra/install-postgres.sh");
            eprintln!("skipped: PostgreSQL is not installed (infra/install-postgres.sh)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let process = run(dir.path());
        Some(Self { dir, process })
    }

    /// Where it is reached.
    pub(super) fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=postgres", self.dir.path().display())
    }

    /// A connection, as soon as it answers.
    pub(super) async fn connect(&self) -> Client {
        let (client, connection) = tokio_postgres::connect(&self.url(), NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Kills every process of it at once, as a crash of the machine would, but for what the kernel holds.
    pub(super) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Runs it again on what is there.
    pub(super) fn restart(&mut self) {
        self.process = run(self.dir.path());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its other processes notice at once that the first is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn run(dir: &Path) -> Child {
    let mut command = Command::new(SCRIPT);
    command.arg(dir).stdin(Stdio::null());
    let mut process = command.spawn().unwrap();
    let socket = dir.join(".s.PGSQL.5432");
    loop {
        if let Some(status) = process.try_wait().unwrap() {
            panic!("PostgreSQL ended with {status}: {}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
        }
        // Answers: the socket alone is there a moment earlier, or was left by a killed one.
        if socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_ok() {
            return process;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
