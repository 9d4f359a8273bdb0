//! A real S3 server, SeaweedFS, shared by the tests of a run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;

use crate::config::S3Config;
use crate::store::s3::bucket::Bucket;
use crate::store::s3::settings::{Keys, Settings};

/// Where `infra/install-seaweedfs.sh` puts it.
const INSTALLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/seaweedfs");

/// The bucket of all tests; each has a prefix of its own in it.
pub(super) const BUCKET: &str = "waxwing-tests";

/// How long the server may take to start, on a machine that is busy with other tests.
const START: Duration = Duration::from_secs(60);

/// A runtime of its own: connections of the store live in it, so that a test can wait without stopping them.
pub(super) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
    })
}

/// Waits for `work`, also within another runtime.
pub(super) fn wait<T: Send>(work: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| scope.spawn(|| runtime().block_on(work)).join().expect("the work does not panic"))
}

/// The endpoint of the server, started when it is not there; `None` when it is not installed and this is not CI.
pub(super) fn endpoint() -> Option<&'static str> {
    static ENDPOINT: OnceLock<Option<String>> = OnceLock::new();
    ENDPOINT.get_or_init(start).as_deref()
}

fn start() -> Option<String> {
    let weed = Path::new(INSTALLED).join("bin/weed");
    if !weed.exists() {
        assert!(std::env::var_os("CI").is_none(), "SeaweedFS is not installed: run infra/install-seaweedfs.sh");
        eprintln!("skipped: SeaweedFS is not installed (infra/install-seaweedfs.sh)");
        return None;
    }
    let lock = File::create(Path::new(INSTALLED).join("lock")).unwrap();
    lock.lock().unwrap();
    let run = Path::new(INSTALLED).join("run");
    let deadline = Instant::now() + START;
    if let Some(endpoint) = answering(&run) {
        keep_alive(run);
        return Some(endpoint);
    }
    let _ = fs::remove_dir_all(&run);
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../infra/seaweedfs.sh");
    let mut command = Command::new(script);
    command.arg(&weed).arg(&run).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // It outlives this test, which is not its last.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    drop(command.spawn().unwrap());
    loop {
        if let Some(endpoint) = answering(&run) {
            keep_alive(run);
            return Some(endpoint);
        }
        assert!(Instant::now() < deadline, "SeaweedFS did not start: see {}", run.join("log").display());
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The server that runs in `run`, if it can store.
fn answering(run: &Path) -> Option<String> {
    let endpoint = fs::read_to_string(run.join("endpoint")).ok()?.trim().to_owned();
    touch(run);
    let settings = Settings { attempt_timeout: Duration::from_secs(5), ..settings(&endpoint, "") };
    let client = settings.client();
    let stored = wait(async {
        let _there_already = client.create_bucket().bucket(BUCKET).send().await;
        client.put_object().bucket(BUCKET).key("ready").body(vec![1; 10].into()).send().await
    });
    stored.ok().map(|_| endpoint)
}

fn touch(run: &Path) {
    let _ = fs::write(run.join("used"), b"");
}

/// Keeps the server alive as long as this process is.
fn keep_alive(run: PathBuf) {
    std::thread::spawn(move || {
        loop {
            touch(&run);
            std::thread::sleep(Duration::from_secs(20));
        }
    });
}

/// How a store under `prefix` on the server at `endpoint` is opened. Nothing waits: what is due is done.
pub(super) fn settings(endpoint: &str, prefix: &str) -> Settings {
    let config = S3Config { endpoint: Some(endpoint.to_owned()), prefix: prefix.to_owned(), ..S3Config::new(BUCKET) };
    let keys =
        Keys { access_key_id: "waxwing".into(), secret_access_key: "waxwing-secret".into(), session_token: None };
    Settings {
        // Tests give times of their own: every pointer may be due.
        clock_ahead_max: Duration::MAX,
        walk_interval: Duration::ZERO,
        // Requests that a test counts are its own.
        health_interval: Duration::from_secs(24 * 60 * 60),
        settle: Duration::ZERO,
        ..Settings::new(config, keys, 64 << 30, Arc::default())
    }
}

/// What lies there, asked over connections of its own.
pub(super) fn bucket(settings: &Settings) -> Bucket {
    Bucket::new(settings.client(), settings.config.bucket.clone(), settings.config.prefix.clone())
}
