//! What every story needs: a real service on a free port, and the real command line.

use std::ffi::OsStr;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use serde_json::Value;

/// The binary under test.
pub const WAXWING: &str = env!("CARGO_BIN_EXE_waxwing");

/// A `waxwing dev` (or `serve`) as a child process; killed when dropped.
pub struct Service {
    child: Child,
    /// Where it listens, such as `http://127.0.0.1:41234`.
    pub url: String,
    /// What it says on stderr; shown when a test fails.
    log: tempfile::NamedTempFile,
}

impl Service {
    /// A service with every role, whose data is in `dir/data`.
    pub fn start(dir: &Path) -> Self {
        Self::dev(dir, "127.0.0.1:0", &[])
    }

    /// The same at an address, with environment variables.
    pub fn dev(dir: &Path, listen: &str, env: &[(&str, &str)]) -> Self {
        Self::try_dev(dir, listen, env).unwrap_or_else(|said| panic!("the service does not start: {said}"))
    }

    /// The same, or what it said instead of starting.
    pub fn try_dev(dir: &Path, listen: &str, env: &[(&str, &str)]) -> Result<Self, String> {
        let data = dir.join("data");
        let args = [OsStr::new("dev"), "--listen".as_ref(), listen.as_ref(), "--data".as_ref(), data.as_ref()];
        Self::spawn(Command::new(WAXWING).args(args).envs(env.iter().copied()))
    }

    /// A node of a configuration file.
    pub fn serve(config: &Path) -> Self {
        Self::serve_with(config, &[])
    }

    /// The same with environment variables.
    pub fn serve_with(config: &Path, env: &[(&str, &str)]) -> Self {
        Self::try_serve(config, env).unwrap_or_else(|said| panic!("the node does not start: {said}"))
    }

    /// The same, or what it said instead of starting.
    pub fn try_serve(config: &Path, env: &[(&str, &str)]) -> Result<Self, String> {
        let mut command = Command::new(WAXWING);
        Self::spawn(command.arg("serve").arg("--config").arg(config).envs(env.iter().copied()))
    }

    fn spawn(command: &mut Command) -> Result<Self, String> {
        let log = tempfile::NamedTempFile::new().expect("a temporary file can be made");
        let stderr = log.reopen().expect("it was just made");
        let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().expect("the binary starts");
        let mut first = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout).read_line(&mut first).expect("the service speaks");
        match first.trim().strip_prefix("listening ") {
            Some(url) => Ok(Self { url: url.to_owned(), child, log }),
            None => {
                child.wait().expect("it was started here");
                Err(format!("{first}{}", std::fs::read_to_string(log.path()).unwrap_or_default()))
            }
        }
    }

    /// The address without its scheme.
    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").expect("dev speaks plain HTTP")
    }

    /// The number of its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended by itself, when it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the service was started here")
    }

    /// Memory in use, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the service runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// Lets it do nothing more, as when its machine stops; only [`Self::kill`] ends it.
    pub fn freeze(&self) {
        use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP).expect("the service runs");
        waitpid(Some(pid), WaitOptions::UNTRACED).expect("the service was started here");
    }

    /// kill -9: nothing of the process gets to run any more.
    pub fn kill(mut self) {
        self.child.kill().expect("the service runs");
        self.child.wait().expect("the service was started here");
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        terminate(&self.child);
        self.child.wait().expect("the service was started here")
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It may have been waited for already; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the service said: {}", std::fs::read_to_string(self.log.path()).unwrap_or_default());
        }
    }
}

/// Sends SIGTERM to a child.
pub fn terminate(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("the process runs");
}

/// Sends SIGINT to a child, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("the process runs");
}

/// How a command ended.
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    /// The same, having seen that it went well.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{}\nstdout: {}\nstderr: {}", self.status, self.stdout, self.stderr);
        self
    }

    /// The same, having seen that it failed and said all of `words`.
    #[track_caller]
    pub fn fails_saying(self, words: &[&str]) -> Self {
        assert!(!self.status.success(), "it did not fail: {}", self.stdout);
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in: {}", self.stderr);
        }
        self
    }

    /// The last line of stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let last = self.stdout.lines().last().unwrap_or_else(|| panic!("nothing on stdout; stderr: {}", self.stderr));
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"))
    }
}

/// Runs `waxwing ARGS` in `dir` to its end.
pub fn waxwing<S: AsRef<OsStr>>(dir: &Path, args: &[S]) -> Done {
    let output = Command::new(WAXWING).current_dir(dir).args(args).output().expect("the binary starts");
    Done {
        status: output.status,
        stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("output is UTF-8"),
    }
}

/// Starts `waxwing ARGS` in `dir`, its output piped.
pub fn start_waxwing(dir: &Path, args: &[&str]) -> Child {
    let mut command = Command::new(WAXWING);
    command.current_dir(dir).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary starts")
}

/// Waits for a child whose output is piped.
pub fn finish(mut child: Child) -> Done {
    let (mut stdout, mut stderr) = (String::new(), String::new());
    let mut err = child.stderr.take().expect("stderr is piped");
    let reader = std::thread::spawn(move || err.read_to_string(&mut stderr).map(|_| stderr));
    child.stdout.take().expect("stdout is piped").read_to_string(&mut stdout).expect("output is UTF-8");
    let stderr = reader.join().expect("reading does not panic").expect("output is UTF-8");
    Done { status: child.wait().expect("the child was started here"), stdout, stderr }
}

/// Registers `handle` with a profile in `dir/handle`.
pub fn register(dir: &Path, server: &str, handle: &str) {
    waxwing(dir, &["register", "--handle", handle, "--home", handle, "--server", server]).ok();
}

/// Writes `len` bytes that do not repeat to `dir/name`.
pub fn sample_file(dir: &Path, name: &str, len: usize) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, sample_bytes(len)).expect("the directory is writable");
    path
}

/// `len` bytes that do not repeat: BLAKE3's extendable output of the length.
pub fn sample_bytes(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Ports for servers that have to know theirs before they run: below those from which Linux and others take the near end of
/// connections (32,768 and up), since such a port can be taken between its choice and its use.
const CHOSEN_PORTS: std::ops::Range<u16> = 10_240..32_768;

/// An address on loopback that nobody listens on.
pub fn free_address() -> String {
    free_address_on("127.0.0.1")
}

/// An address of `host` that nobody listens on.
pub fn free_address_on(host: &str) -> String {
    loop {
        // Tests run in processes of their own, which must not choose alike.
        let chosen = RandomState::new().hash_one(0) % u64::from(CHOSEN_PORTS.end - CHOSEN_PORTS.start);
        let port = CHOSEN_PORTS.start + u16::try_from(chosen).expect("it is below the range's length");
        match TcpListener::bind((host, port)) {
            Ok(listener) => return listener.local_addr().expect("it is bound").to_string(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{host} has an address here: {error}"),
        }
    }
}

/// Waits until `seen` gives something, for a minute at most.
#[track_caller]
pub fn wait_for<T>(what: &str, seen: impl FnMut() -> Option<T>) -> T {
    wait_at_most(std::time::Duration::from_secs(60), what, seen)
}

/// The same for what takes long on a busy machine, such as another server's start.
#[track_caller]
pub fn wait_at_most<T>(limit: std::time::Duration, what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let began = std::time::Instant::now();
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(began.elapsed() < limit, "waited {} s for {what}", limit.as_secs());
        std::thread::yield_now();
        std::thread::park_timeout(std::time::Duration::from_millis(2));
    }
}

/// Bytes of all files under `dir`.
pub fn bytes_under(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_under(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    });
    sizes.sum()
}
