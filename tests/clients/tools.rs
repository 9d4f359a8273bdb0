//! Where the clients are, whether they are there, and running them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use libtest_mimic::{Failed, Trial};
use serde_json::Value;

/// The longest a client may take; none needs a quarter of it.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(90);

/// Where `infra/install-clients.sh` installs.
pub fn installed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients")
}

/// A directory of `tests/clients`.
pub fn scripts(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// A script of `tests/clients/web` in `dir`, with the packages beside it: Node looks for them where a script is.
pub fn node_script(dir: &Path, name: &str) -> PathBuf {
    let script = dir.join(name);
    std::fs::copy(scripts("web").join(name), &script).unwrap();
    let packages = dir.join("node_modules");
    if !packages.exists() {
        std::os::unix::fs::symlink(installed().join("node_modules"), packages).unwrap();
    }
    script
}

/// The program `name` on the path.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|program| program.is_file())
}

/// A test that needs `client`; said and skipped without it, except on CI.
pub fn trial(name: &str, client: &str, there: bool, run: fn()) -> Trial {
    let skip = !there && std::env::var_os("CI").is_none();
    if skip {
        eprintln!("SKIPPED {name}: {client} is not installed; infra/install-clients.sh does");
    }
    let client = client.to_owned();
    let test = move || {
        if !there {
            return Err(Failed::from(format!("{client} is not installed; infra/install-clients.sh does")));
        }
        run();
        Ok(())
    };
    Trial::test(name, test).with_ignored_flag(skip)
}

/// A client under way, which tells what happens as JSON lines.
pub struct Running {
    child: std::process::Child,
    lines: mpsc::Receiver<Value>,
    /// What was told so far.
    pub told: Vec<Value>,
}

impl Running {
    /// Starts `command`; its stderr is the test's.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the client starts");
        let stdout = child.stdout.take().expect("stdout is piped");
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in std::io::BufRead::lines(std::io::BufReader::new(stdout)).map_while(Result::ok) {
                if let Ok(value) = serde_json::from_str(&line) {
                    let _ = tell.send(value);
                }
            }
        });
        Self { child, lines, told: Vec::new() }
    }

    /// What the client tells until it ends; it must end well.
    #[track_caller]
    pub fn finish(mut self) -> Vec<Value> {
        loop {
            match self.lines.recv_timeout(CLIENT_TIMEOUT) {
                Ok(line) => self.told.push(line),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let _ = self.child.kill();
                    panic!("the client hangs; it told {:?}", self.told);
                }
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the client failed: {status}; it told {:?}", self.told);
        self.told
    }

    /// kill -9, with whatever it had under way.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The blob that a client was told at the end.
pub fn blob(told: &[Value]) -> Option<&str> {
    told.iter().rev().find(|line| line["done"] == true)?["blob"].as_str()
}
