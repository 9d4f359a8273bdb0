//! What an operator sees and does: metrics, readiness, the admin commands.

mod edge;

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::Client;
use serde_json::Value;

use crate::support::{Service, free_address, free_address_on, register, sample_bytes, waxwing};

/// A node with every role and an admin address, whose origin sweeps often.
struct Node {
    dir: tempfile::TempDir,
    service: Service,
    admin: String,
    client: Client,
}

impl Node {
    fn start() -> Self {
        Self::with("127.0.0.1", &[])
    }

    /// Its admin address on `host`, with environment variables.
    fn with(host: &str, env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin = free_address_on(host);
        let config = config(dir.path(), &admin);
        let service = Service::serve_with(&config, env);
        register(dir.path(), &service.url, "alice");
        Self { dir, service, admin: format!("http://{admin}"), client: Client::new() }
    }

    fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn grant(&self, kind: &str) -> String {
        waxwing(self.dir(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned()
    }

    fn put(&self, bytes: &[u8]) -> reqwest::blocking::Response {
        let url = format!("{}/v1/blobs", self.service.url);
        self.client.put(url).bearer_auth(self.grant("upload")).body(bytes.to_vec()).send().unwrap()
    }

    /// An upload of `length` bytes by tus that has none yet.
    fn begin(&self, length: usize) -> String {
        let request = self.client.post(format!("{}/v1/uploads", self.service.url)).bearer_auth(self.grant("upload"));
        let answer = request.header("tus-resumable", "1.0.0").header("upload-length", length).send().unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        answer.headers()["location"].to_str().unwrap().to_owned()
    }

    /// The value of one series.
    fn metric(&self, series: &str) -> Option<f64> {
        let page = self.client.get(format!("{}/metrics", self.admin)).send().unwrap().text().unwrap();
        let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned));
        line.map(|value| value.parse().unwrap())
    }

    fn admin(&self, args: &[&str]) -> crate::support::Done {
        let args = [&["--json", "admin"], args, &["--admin", &self.admin]].concat();
        waxwing(self.dir(), &args)
    }
}

fn config(dir: &Path, admin: &str) -> PathBuf {
    let path = dir.join("waxwing.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\nadmin_listen = \"{admin}\"\ndata = {:?}\n[messaging]\nregistration = \"open\"\n\
         [origin]\nsweep_interval_s = 1\n",
        dir.join("data")
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn metrics_tell_what_came_and_what_it_cost() {
    let node = Node::start();
    let bytes = sample_bytes(3 << 20);
    assert!(node.put(&bytes).status().is_success());
    let upload = node.begin(100);
    let patch = || node.client.patch(&upload).bearer_auth(node.grant("upload")).header("tus-resumable", "1.0.0");
    let patch = patch().header("upload-offset", 0).header("content-type", "application/offset+octet-stream");
    assert_eq!(patch.body(vec![7; 60]).send().unwrap().status(), StatusCode::NO_CONTENT);
    let blob = node.put(b"small").headers()["waxwing-blob"].to_str().unwrap().to_owned();
    for _ in 0..2 {
        let read = node.client.get(format!("{}/v1/blobs/{blob}", node.service.url)).bearer_auth(node.grant("media"));
        assert_eq!(read.send().unwrap().bytes().unwrap(), "small");
    }

    let count = |series: &str| node.metric(series).unwrap_or_else(|| panic!("{series} is not there"));
    assert_eq!(count("waxwing_upload_bytes_total{dialect=\"put\"}"), bytes.len() as f64 + 5.0);
    assert_eq!(count("waxwing_upload_bytes_total{dialect=\"tus\"}"), 60.0);
    assert_eq!(count("waxwing_uploads_completed_total"), 2.0);
    assert!(count("waxwing_upload_fsync_seconds_count{of=\"record\"}") >= 4.0);
    assert!(count("waxwing_upload_fsync_seconds_count{of=\"data\"}") >= 2.0);
    assert!(count("waxwing_upload_fsync_seconds_bucket{of=\"pack\",le=\"+Inf\"}") >= 1.0);
    let requests = |route: &str, method: &str| {
        count(&format!("waxwing_http_requests_total{{route=\"{route}\",method=\"{method}\",status=\"2xx\"}}"))
    };
    assert_eq!(requests("/v1/blobs", "PUT"), 2.0);
    assert_eq!(requests("/v1/uploads/{id}", "PATCH"), 1.0);
    assert!(count("waxwing_http_request_seconds_count{route=\"/v1/blobs/{id}\"}") >= 2.0);
    assert_eq!(count("waxwing_edge_reads_total{cache=\"hit\"}"), 1.0);
    assert_eq!(count("waxwing_edge_fill_bytes_total"), 5.0);
    assert_eq!(count("waxwing_ready{role=\"origin\"}"), 1.0);
    assert!(count("process_resident_memory_bytes") > 1e6 && count("process_open_fds") > 5.0);
    // Counted at the next sweep.
    crate::support::wait_for("a sweep", || {
        (node.metric("waxwing_uploads{state=\"receiving\"}") == Some(1.0)).then_some(())
    });
}

#[test]
fn a_newer_request_is_counted_as_a_takeover() {
    let node = Node::start();
    let upload = node.begin(1 << 20);
    let stuck = std::net::TcpStream::connect(node.service.address()).unwrap();
    let path = upload.strip_prefix(&node.service.url).unwrap();
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\n\
         content-type: application/offset+octet-stream\r\ncontent-length: 1000\r\n\r\nhalf of it",
        node.grant("upload")
    );
    std::io::Write::write_all(&mut &stuck, head.as_bytes()).unwrap();
    crate::support::wait_for("the stuck request's bytes", || {
        (node.metric("waxwing_upload_bytes_total{dialect=\"tus\"}") == Some(10.0)).then_some(())
    });
    let status = node.client.head(&upload).bearer_auth(node.grant("upload")).send().unwrap();
    assert_eq!(status.headers()["upload-offset"], "10");
    assert_eq!(node.metric("waxwing_upload_takeovers_total"), Some(1.0));
}

/// Many of these at once are an attack, so they are told apart from clients that merely fell silent.
#[test]
fn a_request_that_is_too_slow_is_counted() {
    let env = [("WAXWING_ORIGIN__SLOW_BYTES_PER_S", "1000"), ("WAXWING_ORIGIN__SLOW_WINDOW_S", "1")];
    let node = Node::with("127.0.0.1", &env);
    let upload = node.begin(1 << 20);
    let path = upload.strip_prefix(&node.service.url).unwrap();
    let head = format!(
        "PATCH {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\n\
         content-type: application/offset+octet-stream\r\ncontent-length: 1000000\r\n\r\na few bytes",
        node.grant("upload")
    );
    let connection = std::net::TcpStream::connect(node.service.address()).unwrap();
    std::io::Write::write_all(&mut &connection, head.as_bytes()).unwrap();
    let mut answer = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&connection), &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let given_up = |why: &str| node.metric(&format!("waxwing_upload_requests_given_up_total{{why=\"{why}\"}}"));
    assert_eq!((given_up("slow"), given_up("idle").unwrap_or(0.0)), (Some(1.0), 0.0));
    let status = node.client.head(&upload).bearer_auth(node.grant("upload")).send().unwrap();
    assert_eq!(status.headers()["upload-offset"], "11", "what came is kept");
}

#[test]
fn an_operator_lists_uploads_and_owners_and_removes_a_blob() {
    let node = Node::start();
    let unfinished = node.begin(1000);
    let blob = node.put(&sample_bytes(2000)).headers()["waxwing-blob"].to_str().unwrap().to_owned();

    let listed = node.admin(&["uploads", "--state", "receiving"]).ok().json();
    assert!(unfinished.ends_with(listed["id"].as_str().unwrap()));
    assert_eq!((&listed["offset"], &listed["length"]), (&Value::from(0), &Value::from(1000)));
    assert_eq!(node.admin(&["uploads", "--state", "complete"]).ok().stdout, "");
    let owner = listed["owner"].as_str().unwrap();
    let held = node.admin(&["quota"]).ok().json();
    assert_eq!((held["owner"].as_str(), held["held_bytes"].as_u64()), (Some(owner), Some(3000)));

    let text = waxwing(node.dir(), &["admin", "uploads", "--admin", &node.admin]).ok().stdout;
    assert!(text.contains("receiving") && text.contains(owner), "{text}");

    node.admin(&["blob", "rm", &blob]).ok();
    assert_eq!(node.admin(&["quota", owner]).ok().json()["held_bytes"], 1000);
    node.admin(&["blob", "rm", &blob]).fails_saying(&["there is no such blob"]);

    // Somebody fills the disk: the operator stops them, and lets them again.
    let set = node.admin(&["quota", owner, "--set", "0"]).ok().json();
    assert_eq!((&set["held_bytes"], &set["quota_bytes"]), (&Value::from(1000), &Value::from(0)));
    let refused = node.put(b"one more");
    assert_eq!(refused.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(refused.json::<Value>().unwrap()["type"], "urn:problem-type:waxwing:quota-exceeded");
    let text = waxwing(node.dir(), &["admin", "quota", "--admin", &node.admin]).ok().stdout;
    assert!(text.contains("of 0 B that an operator set"), "{text}");
    assert!(node.admin(&["quota", owner, "--unset"]).ok().json()["quota_bytes"].is_null());
    assert!(node.put(b"one more").status().is_success());
    node.admin(&["quota", "--set", "5"]).fails_saying(&["OWNER"]);

    // What nothing names any more, as a crash leaves it.
    let leftover = node.dir().join("data/origin/blobs");
    assert!(leftover.is_dir(), "blobs lie where they are documented");
    let would = node.admin(&["gc", "--dry-run"]).ok().json();
    assert_eq!((&would["unfinished"], &would["leftovers"]), (&Value::from(0), &Value::from(0)));
    let did = node.admin(&["gc"]).ok().json();
    assert_eq!(would, did, "nothing was due");
    assert_eq!((&did["owners_expired"], &did["compacted_bytes"]), (&Value::from(0), &Value::from(0)));
    let text = waxwing(node.dir(), &["admin", "gc", "--admin", &node.admin]).ok().stdout;
    assert!(text.contains("freed") && text.contains("of packs"), "{text}");
}

/// Pages are asked for until there is none left.
#[test]
fn long_lists_come_whole() {
    let node = Node::start();
    let begun: std::collections::BTreeSet<String> = (1..=5).map(|length| node.begin(length)).collect();
    let mut listed = std::collections::BTreeSet::new();
    let mut after = String::new();
    loop {
        let url = format!("{}/admin/v1/uploads?limit=2{after}", node.admin);
        let page: Value = node.client.get(url).send().unwrap().json().unwrap();
        let ids = page["uploads"].as_array().unwrap().iter().map(|upload| upload["id"].as_str().unwrap().to_owned());
        listed.extend(ids.map(|id| format!("{}/v1/uploads/{id}", node.service.url)));
        let Some(next) = page["next"].as_str() else { break };
        after = format!("&after={next}");
    }
    assert_eq!(listed, begun);
}

/// A page in the operator's own browser can reach loopback; it must get nothing.
#[test]
fn pages_and_foreign_hosts_are_refused_on_the_admin_address() {
    let node = Node::start();
    let gc = || node.client.post(format!("{}/admin/v1/gc", node.admin));
    for refused in [
        gc().header("host", "evil.example"),
        gc().header("origin", "https://evil.example"),
        gc().header("sec-fetch-site", "cross-site"),
        node.client.get(format!("{}/metrics", node.admin)).header("host", "evil.example"),
    ] {
        let answer = refused.send().unwrap();
        assert_eq!(answer.status(), StatusCode::FORBIDDEN);
        assert_eq!(answer.json::<Value>().unwrap()["type"], "urn:problem-type:waxwing:host-refused");
    }
    assert_eq!(gc().send().unwrap().status(), StatusCode::OK);
    // The public address knows nothing of it.
    for path in ["/metrics", "/admin/v1/uploads", "/readyz"] {
        let answer = node.client.get(format!("{}{path}", node.service.url)).send().unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
}

#[test]
fn an_admin_address_that_others_reach_serves_probes_and_nothing_else() {
    let node = Node::with("0.0.0.0", &[]);
    let reached = node.admin.replace("0.0.0.0", "127.0.0.1");
    let get = |path: &str| node.client.get(format!("{reached}{path}")).header("host", "node-3.example").send().unwrap();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(path).status(), StatusCode::OK, "{path}");
    }
    let answer = get("/admin/v1/uploads");
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert_eq!(answer.json::<Value>().unwrap()["type"], "urn:problem-type:waxwing:not-on-loopback");
}

/// Somebody asks why a message has not come: the operator sees that it waits, and not what it is.
#[test]
fn an_operator_sees_whose_mailbox_fills_and_nothing_of_what_is_in_it() {
    let node = Node::start();
    register(node.dir(), &node.service.url, "bob");
    waxwing(node.dir(), &["send", "--text", "sealed words", "--to", "bob", "--home", "alice"]).ok();

    let accounts = node.admin(&["accounts"]).ok().stdout;
    let accounts: Vec<Value> = accounts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let bob = accounts.iter().find(|account| account["handle"] == "bob").unwrap();
    assert_eq!((accounts.len(), &bob["devices"], &bob["connected"]), (2, &1.into(), &0.into()));

    let device = node.admin(&["devices", "bob"]).ok().json();
    assert_eq!((&device["device"], &device["connected"]), (&1.into(), &false.into()), "{device}");
    let id = bob["account"].as_str().unwrap();
    assert_eq!(node.admin(&["devices", id]).ok().json(), device, "by id as by handle");

    let lanes = node.admin(&["mailbox", "bob", "--device", "1"]).ok().stdout;
    let normal: Value = serde_json::from_str(lanes.lines().next().unwrap()).unwrap();
    assert_eq!((&normal["lane"], &normal["mailbox"]["waiting"]), (&"normal".into(), &1.into()), "{normal}");
    assert!(normal["mailbox"]["oldest"].is_u64() && !lanes.contains("sealed words"), "{lanes}");
    let text = waxwing(node.dir(), &["admin", "mailbox", "bob", "--admin", &node.admin]).ok().stdout;
    assert!(text.contains("normal  1 wait") && text.contains("urgent  0 wait"), "{text}");

    let limits = node.admin(&["limits"]).ok().stdout;
    assert!(limits.contains("sends-of-pair") && limits.contains("requests-of-address"), "{limits}");
    assert_eq!(node.metric("waxwing_sends_total{class=\"message\"}"), Some(1.0));
    node.admin(&["devices", "nobody"]).fails_saying(&["there is no such account"]);
    node.admin(&["devices", "../owners"]).fails_saying(&["neither a handle nor an account's id"]);
}

#[test]
fn a_command_that_reaches_no_node_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = format!("http://{}", free_address());
    let done = waxwing(dir.path(), &["admin", "uploads", "--admin", &nobody]);
    done.fails_saying(&["no node answers at", &nobody, "admin_listen"]);
}

/// A disk that failed a sync cannot be believed: load balancers must learn of it, and the node goes on reading.
#[cfg(feature = "fault-injection")]
#[test]
fn a_store_that_failed_a_sync_is_not_ready() {
    let node = Node::with("127.0.0.1", &[("WAXWING_FAULT", "fail-sync")]);
    let ready = || node.client.get(format!("{}/readyz", node.admin)).send().unwrap();
    assert_eq!(ready().status(), StatusCode::OK);
    assert!(node.put(&sample_bytes(2 << 20)).status().is_server_error());
    let answer = ready();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().unwrap().contains("origin"));
    assert_eq!(node.metric("waxwing_ready{role=\"origin\"}"), Some(0.0));
    assert_eq!(node.metric("waxwing_ready{role=\"messaging\"}"), Some(1.0));
    let alive = node.client.get(format!("{}/healthz", node.admin)).send().unwrap();
    assert_eq!(alive.status(), StatusCode::OK);
}

/// `waxwing dev` has an admin address beside its own, so that the examples of the manual work at once.
#[test]
fn dev_has_an_admin_address() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--json", "dev", "--listen", "127.0.0.1:0", "--data", "data"];
    let mut child = crate::support::start_waxwing(dir.path(), &args);
    let mut first = String::new();
    let stdout = child.stdout.take().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut first).unwrap();
    let told: Value = serde_json::from_str(&first).unwrap();
    let admin = told["admin"].as_str().unwrap();
    waxwing(dir.path(), &["admin", "uploads", "--admin", admin]).ok();
    crate::support::terminate(&child);
    assert!(child.wait().unwrap().success());
}

/// All that an account stored goes at once, from the edge too, which knows no owners: the origin's log names the blobs.
#[test]
fn an_owners_blobs_go_from_origin_and_edge_together() {
    let node = Node::start();
    let sizes = [5, 2000, 300_000];
    let blobs = sizes.map(|size| {
        let stored = node.put(&sample_bytes(size));
        format!("{}/v1/blobs/{}", node.service.url, stored.headers()["waxwing-blob"].to_str().unwrap())
    });
    let grant = node.grant("media");
    let read = |blob: &String| node.client.get(blob).bearer_auth(&grant).send().unwrap();
    for (blob, size) in blobs.iter().zip(sizes) {
        assert_eq!(read(blob).bytes().unwrap(), sample_bytes(size));
        let again = read(blob);
        assert!(again.headers()["cache-status"].to_str().unwrap().contains("hit"), "the edge has it");
    }
    let held = node.admin(&["quota"]).ok().json();
    let owner = held["owner"].as_str().unwrap();
    assert_eq!(node.admin(&["purge", "--owner", owner]).ok().json()["blobs"], sizes.len());
    assert_eq!(node.admin(&["quota", owner]).ok().json()["held_bytes"], 0);
    // The edge asks for the log again and again.
    for blob in &blobs {
        while read(blob).status() != StatusCode::NOT_FOUND {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert!(node.metric("waxwing_edge_purges_total") >= Some(sizes.len() as f64));
    assert_eq!(node.admin(&["purge", "--owner", owner]).ok().json()["blobs"], 0, "nothing is left");
    assert!(node.put(b"more").status().is_success(), "the owner may go on");
    node.admin(&["purge"]).fails_saying(&["--owner"]);
}
