//! A SeaweedFS of one test alone, which can be killed and started again with what it has.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest::blocking::Client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::wait_at_most;

/// Where `infra/install-seaweedfs.sh` puts it.
const WEED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/seaweedfs/bin/weed");

/// The bucket.
pub const BUCKET: &str = "waxwing";

/// How often the server is told that it is needed; it ends two minutes after nobody did.
const NEEDED: Duration = Duration::from_secs(20);

/// How long the server, and whoever waits for it, may take to go on, on a machine that is busy with other tests.
pub const RETURN: Duration = Duration::from_secs(300);

/// Entries of a directory in one answer.
const PAGE: usize = 1000;

/// Why there is none here, if there is not.
pub fn missing() -> Option<String> {
    (!Path::new(WEED).exists()).then(|| "SeaweedFS is not installed (infra/install-seaweedfs.sh)".to_owned())
}

/// The server; killed when dropped.
pub struct Seaweed {
    dir: PathBuf,
    script: Option<Child>,
    is_needed: Arc<AtomicBool>,
    http: Client,
}

impl Seaweed {
    /// Starts one whose data is in `dir`, with an empty bucket.
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("the directory can be made");
        let is_needed = Arc::new(AtomicBool::new(true));
        let (needed, used) = (Arc::clone(&is_needed), dir.join("used"));
        std::thread::spawn(move || {
            while needed.load(Ordering::Relaxed) {
                let _ = std::fs::write(&used, b"");
                std::thread::sleep(NEEDED);
            }
        });
        let http = Client::builder().timeout(Duration::from_secs(20)).build().expect("a client needs nothing");
        let mut server = Self { dir: dir.to_owned(), script: None, is_needed, http };
        server.start_again();
        server.make_bucket();
        server
    }

    /// Starts it after [`Self::kill`]: the same addresses, keys and data.
    pub fn start_again(&mut self) {
        let _ = std::fs::remove_file(self.dir.join("endpoint"));
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/seaweedfs.sh");
        let mut command = Command::new(script);
        command.arg(WEED).arg(&self.dir).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.script = Some(command.spawn().expect("the script starts"));
        wait_at_most(RETURN, "SeaweedFS to have an address", || self.dir.join("endpoint").exists().then_some(()));
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        if let Some(mut script) = self.script.take() {
            // It sees that its server is gone, within some seconds; nothing is gained by waiting for that.
            let _ = script.kill();
            let _ = script.wait();
        }
    }

    /// Has it know these keys alone.
    pub fn set_keys(&self, access: &str, secret: &str, actions: &[&str]) {
        let keys = serde_json::json!({"identities": [{
            "name": "tests", "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions,
        }]});
        std::fs::write(self.dir.join("s3.json"), keys.to_string()).expect("the directory is writable");
        self.signal(Signal::HUP);
    }

    fn signal(&self, signal: Signal) {
        let pid = std::fs::read_to_string(self.dir.join("pid")).expect("it has a process");
        let pid = Pid::from_raw(pid.trim().parse().expect("a number")).expect("a process");
        let _ = kill_process(pid, signal);
    }

    /// Its address.
    pub fn endpoint(&self) -> String {
        self.read("endpoint")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).expect("the script wrote it").trim().to_owned()
    }

    fn file(&self, path: &str) -> String {
        format!("{}/buckets/{BUCKET}/{path}", self.read("filer"))
    }

    /// Makes the bucket.
    pub fn make_bucket(&self) {
        wait_at_most(RETURN, "the bucket to be made", || {
            let made = self.http.post(self.file("")).send().ok()?;
            made.status().is_success().then_some(())
        });
    }

    /// Removes the bucket with all that is in it.
    pub fn remove_bucket(&self) {
        let removed = self.http.delete(self.file("?recursive=true")).send().expect("it answers");
        assert!(removed.status().is_success(), "the bucket was not removed: {}", removed.status());
    }

    /// What lies under `path`, by the server's own listing: each key, without the path, with its bytes. Multipart uploads
    /// are directories under `.uploads`.
    pub fn list(&self, path: &str) -> Vec<(String, u64)> {
        let mut found = Vec::new();
        let mut last = String::new();
        loop {
            // Names are digits, letters and what a URL takes as it is.
            let asked = self.http.get(self.file(&format!("{path}/?limit={PAGE}&lastFileName={last}")));
            let page = asked.header("accept", "application/json").send();
            let page = page.expect("the server answers");
            if page.status() == 404 {
                return found;
            }
            let page: Value = page.json().expect("a listing");
            for entry in page["Entries"].as_array().into_iter().flatten() {
                let full = entry["FullPath"].as_str().expect("an entry has a path");
                let name = full.rsplit('/').next().unwrap_or_default().to_owned();
                found.push((name, entry["FileSize"].as_u64().unwrap_or(0)));
            }
            last = page["LastFileName"].as_str().unwrap_or_default().to_owned();
            if page["ShouldDisplayLoadMore"] != true {
                return found;
            }
        }
    }

    /// The object under `key` as JSON.
    pub fn json(&self, key: &str) -> Value {
        let found = self.http.get(self.file(key)).send().and_then(reqwest::blocking::Response::error_for_status);
        found.and_then(reqwest::blocking::Response::json).unwrap_or_else(|error| panic!("{key}: {error}"))
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        self.is_needed.store(false, Ordering::Relaxed);
        self.kill();
    }
}
