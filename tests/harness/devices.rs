//! Two people with two devices each, killed with -9 wherever they happen to be.
//!
//! With one device a message has one ratchet to lose; with two there are four sessions a message, a copy for the sender's
//! other device that leaves after it, and a device list that both sides hold. Whatever dies at whatever moment, in the end
//! every device has every message exactly once.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use waxwing_client::Client;

use super::cycles::{Report, Stage, Worker};
use crate::support::{finish, start_waxwing, waxwing};

/// Those who send, both of alice, and those who receive, both of bob.
const SENDERS: [&str; 2] = ["alice", "laptop"];
const RECEIVERS: [&str; 2] = ["bob", "phone"];

/// Messages from both devices of one account to both of another, amid kills of all four.
pub fn messages(cycles: usize) -> Result<Report, String> {
    let mut stage = Stage::set(super::cycles::Chaos::kills(cycles));
    link(&stage, "alice", "laptop");
    link(&stage, "bob", "phone");
    let mut senders = SENDERS.map(|home| start(&stage, "sender", home));
    let mut receivers = RECEIVERS.map(|home| start(&stage, "receiver", home));
    for _ in 0..cycles {
        stage.let_run();
        stage.kills += 1;
        // The old one is killed before the new one starts: a profile has one owner.
        let at = usize::from(stage.dice.below(2) == 1);
        let (workers, role, homes) = match stage.dice.below(2) {
            0 => (&mut senders, "sender", SENDERS),
            _ => (&mut receivers, "receiver", RECEIVERS),
        };
        workers[at].kill();
        workers[at] = start(&stage, role, homes[at]);
    }
    stage.let_run();
    drop((senders, receivers));
    settle(&stage)?;
    check(&stage)
}

/// Links a device with a profile in `home` to the account of the profile `by`.
fn link(stage: &Stage, by: &str, home: &str) {
    let (dir, url) = (stage.dir.path(), stage.url());
    let mut child = start_waxwing(dir, &["--json", "link", "--home", home, "--server", &url, "--name", home]);
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut first = String::new();
    stdout.read_line(&mut first).expect("it shows its code");
    child.stdout = Some(stdout.into_inner());
    let shown: serde_json::Value = serde_json::from_str(&first).expect("a line of JSON");
    let code = shown["code"].as_str().expect("a code");
    waxwing(dir, &["devices", "link", code, "--home", by]).ok();
    finish(child).ok();
}

fn start(stage: &Stage, role: &str, home: &str) -> Worker {
    let home = stage.path(home);
    let home = home.to_str().expect("temporary directories are UTF-8");
    match role {
        "sender" => stage.worker(&["sender", home, "bob", &stage.recorder.address]),
        _ => stage.worker(&["receiver", home, &stage.recorder.address]),
    }
}

/// Sends what is left in the outboxes and receives until nothing waits: twice, since what is received may call for
/// something to be sent, such as a session begun anew.
fn settle(stage: &Stage) -> Result<(), String> {
    for _ in 0..2 {
        for home in SENDERS.iter().chain(&RECEIVERS).chain(&SENDERS) {
            // Something must come, or there would be no end to wait for.
            let (by, to) = if SENDERS.contains(home) { ("bob", "alice") } else { ("alice", "bob") };
            let sent = waxwing(stage.dir.path(), &["send", "--text", "settled?", "--to", to, "--home", by]);
            if !sent.status.success() {
                return Err(format!("{by} can no longer send: {}", sent.stderr.trim()));
            }
            let done = waxwing(stage.dir.path(), &["watch", "--once", "--home", home]);
            if !done.status.success() {
                return Err(format!("{home} can no longer watch: {}", done.stderr.trim()));
            }
        }
    }
    Ok(())
}

/// Message ids that a device has, as often as it has them.
fn held(home: &Path, sent: bool) -> Result<Vec<String>, String> {
    let client = Client::open(home).map_err(|error| error.to_string())?;
    let ids: Result<Vec<_>, _> = match sent {
        true => client.sent_messages().map(|all| all.iter().map(|it| it.msg_id.to_string()).collect()),
        false => client.messages().map(|all| all.iter().map(|it| it.msg_id.to_string()).collect()),
    };
    ids.map_err(|error| error.to_string())
}

fn check(stage: &Stage) -> Result<Report, String> {
    let lines = stage.recorder.lines();
    let acknowledged: BTreeSet<_> = lines.iter().filter(|line| line[0] == "sent").map(|line| line[1].clone()).collect();
    if acknowledged.len() < 20 {
        return Err(format!("only {} messages were acknowledged: that shows nothing", acknowledged.len()));
    }
    let mut losses = Vec::new();
    for (homes, sent) in [(RECEIVERS, false), (SENDERS, true)] {
        let all = homes.map(|home| held(&stage.path(home), sent));
        for (home, held) in homes.iter().zip(all) {
            let held = held?;
            let unique: BTreeSet<_> = held.iter().cloned().collect();
            if unique.len() != held.len() {
                losses.push(format!("{home} has {} messages twice", held.len() - unique.len()));
            }
            losses.extend(acknowledged.difference(&unique).map(|id| format!("{home} never got {id}")));
        }
    }
    Ok(stage.report(acknowledged.len(), losses))
}
