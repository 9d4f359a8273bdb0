//! Messaging nodes on one PostgreSQL database.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::{Service, free_address, register, waxwing};

/// A PostgreSQL server of the test's own, listening on a socket in its directory.
struct Postgres {
    dir: PathBuf,
    process: Child,
}

impl Postgres {
    /// Starts one; `None` when PostgreSQL is not installed and this is not CI.
    fn start(dir: &Path) -> Option<Self> {
        if !Path::new("/usr/lib/postgresql").exists() {
            assert!(std::env::var_os("CI").is_none(), "PostgreSQL is not installed: run infra/install-postgres.sh");
            eprintln!("skipped: PostgreSQL is not installed (infra/install-postgres.sh)");
            return None;
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/infra/postgres.sh");
        let process = Command::new(script).arg(dir).stdin(Stdio::null()).spawn().unwrap();
        Some(Self { dir: dir.to_owned(), process })
    }

    fn url(&self) -> String {
        format!("postgres:///postgres?host={}&user=postgres", self.dir.display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The second of two nodes goes on where the first was killed: accounts, tokens, mailboxes, sessions and groups are there.
#[test]
fn another_node_on_the_same_database_goes_on_where_one_was_killed() {
    let (dir, server) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let Some(postgres) = Postgres::start(server.path()) else { return };
    let address = free_address();
    let node = |name: &str| {
        let (path, data) = (dir.join(format!("{name}.toml")), dir.join(name));
        let text = format!(
            "listen = \"{address}\"\ndata = {data:?}\nroles = [\"messaging\"]\n\
             [cluster]\nuploads_base_url = \"http://127.0.0.1:9\"\nblobs_base_url = \"http://127.0.0.1:9\"\n\
             [messaging]\nregistration = \"open\"\n[messaging.postgres]\nurl = {:?}\n",
            postgres.url()
        );
        fs::write(&path, text).unwrap();
        path
    };
    let first = Service::serve(&node("first"));
    register(dir, &first.url, "alice");
    register(dir, &first.url, "bob");
    waxwing(dir, &["send", "--text", "before", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["group", "create", "Climbing", "--with", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["send", "--text", "who comes?", "--group", "Climbing", "--home", "alice"]).ok();
    first.kill();

    // Without the first's secrets it is no node of this cluster.
    let second = node("second");
    let refused = waxwing(dir, &["serve", "--config", second.to_str().unwrap()]);
    refused.fails_saying(&["messaging.postgres", "owner.key"]);
    for secret in ["grant.key", "owner.key", "invite.key"] {
        fs::copy(dir.join("first/messaging").join(secret), dir.join("second/messaging").join(secret)).unwrap();
    }
    let _second = Service::serve(&second);
    waxwing(dir, &["send", "--text", "after", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["send", "--text", "nobody?", "--group", "Climbing", "--home", "alice"]).ok();
    let watched = waxwing(dir, &["watch", "--once", "--home", "bob"]).ok();
    let said = watched.stdout;
    assert!(said.find("before").unwrap() < said.find("after").unwrap(), "{said}");
    assert!(said.find("who comes?").unwrap() < said.find("nobody?").unwrap(), "{said}");
    waxwing(dir, &["group", "rm", "Climbing", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["send", "--text", "alone", "--group", "Climbing", "--home", "alice"]).ok();
    let watched = waxwing(dir, &["--json", "watch", "--once", "--home", "bob"]).ok();
    assert!(watched.stdout.contains("\"left\":true") && !watched.stdout.contains("alone"), "{}", watched.stdout);
}

/// A node outlives its database: what it is asked meanwhile waits, and nothing of it is lost.
#[test]
fn a_message_sent_while_the_database_restarts_arrives() {
    let (dir, server) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = dir.path();
    let Some(mut postgres) = Postgres::start(server.path()) else { return };
    let config = dir.join("node.toml");
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = {:?}\n[messaging]\nregistration = \"open\"\n[messaging.postgres]\nurl = {:?}\n",
        dir.join("node"),
        postgres.url()
    );
    fs::write(&config, text).unwrap();
    let service = Service::serve(&config);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    drop(postgres);
    let restarting = std::thread::spawn({
        let server = server.path().to_owned();
        move || {
            std::thread::sleep(Duration::from_millis(500));
            Postgres::start(&server).unwrap()
        }
    });
    waxwing(dir, &["send", "--text", "patience", "--to", "bob", "--home", "alice"]).ok();
    postgres = restarting.join().unwrap();
    let watched = waxwing(dir, &["watch", "--once", "--home", "bob"]).ok();
    assert!(watched.stdout.contains("patience"), "{}", watched.stdout);
    drop(postgres);
}
