//! A group whose server is killed with -9 amid its fan-outs.
//!
//! A message to a group is one body and a row in everybody's mailbox. A crash between them would leave a member without
//! the message, or a body that nobody's last row erases, for ever. So two members send without pause, a third receives,
//! a fourth is away all the while; the server is killed while a send is under way, and the receiver, too. In the end every
//! member has every acknowledged message once, and when all have taken theirs, not one body is left.

use std::collections::BTreeSet;
use std::path::Path;

use waxwing_client::Client;
use waxwing_messaging::{Config, Messaging};

use super::cycles::{Chaos, Report, Stage, Worker};
use super::recorder::Recorder;
use crate::support::{register, wait_for, waxwing};

/// Those who send.
const SENDERS: [&str; 2] = ["alice", "bob"];

/// Who receives, and who is away until the end.
const RECEIVER: &str = "carol";
const AWAY: &str = "dave";

/// Everybody in the group.
const MEMBERS: [&str; 4] = ["alice", "bob", RECEIVER, AWAY];

/// Messages to a group amid kills of the server and of a receiver.
pub fn messages(chaos: Chaos) -> Result<Report, String> {
    let mut stage = Stage::set(chaos);
    for handle in [RECEIVER, AWAY] {
        register(stage.dir.path(), &stage.url(), handle);
    }
    let group = found(&stage)?;
    let senders = SENDERS.map(|home| start(&stage, &["group-sender", &path(&stage, home), &group]));
    let mut receiver = start(&stage, &["receiver", &path(&stage, RECEIVER)]);
    let mut amid = 0;
    for _ in 0..stage.cycles() {
        stage.let_run();
        if stage.dice.below(3) > 0 {
            stage.strike_service();
            amid += usize::from(is_sending(&stage.recorder));
            continue;
        }
        // Messages pile up, and the receiver dies amid them.
        receiver.kill();
        stage.let_run();
        let connected = stage.connections();
        receiver = start(&stage, &["receiver", &path(&stage, RECEIVER)]);
        wait_for("the receiver to connect", || (stage.connections() > connected).then_some(()));
        std::thread::sleep(std::time::Duration::from_micros(stage.dice.below(15_000)));
        receiver.kill();
        receiver = start(&stage, &["receiver", &path(&stage, RECEIVER)]);
        stage.kills += 2;
    }
    stage.let_run();
    drop((senders, receiver));
    stage.strike_service();
    eprintln!("{amid} kills of the server amid a send to the group");
    if amid == 0 {
        return Err("no kill met a send: that shows nothing".to_owned());
    }
    if stage.is_dead() {
        return Ok(stage.report(stage.recorder.lines().len(), Vec::new()));
    }
    let waiting = bodies(&mut stage, false)?;
    if waiting == 0 {
        return Err(format!("no body waits for {AWAY}: that nothing is left afterwards would show nothing"));
    }
    settle(&stage)?;
    let report = check(&stage)?;
    let left = bodies(&mut stage, true)?;
    eprintln!("{waiting} bodies waited for {AWAY}, {left} are left");
    let lost = (left > 0).then(|| format!("{left} bodies are left that nobody needs"));
    Ok(Report { losses: report.losses.into_iter().chain(lost).collect(), ..report })
}

/// The group's id.
fn found(stage: &Stage) -> Result<String, String> {
    let with = MEMBERS[1..].iter().flat_map(|name| ["--with", name]);
    let args: Vec<_> = ["--json", "group", "create", "Climbing"].into_iter().chain(with).collect();
    let made = waxwing(stage.dir.path(), &[&args[..], &["--home", "alice"]].concat()).ok().json();
    // Whoever sends has to know of it.
    waxwing(stage.dir.path(), &["watch", "--once", "--home", "bob"]).ok();
    made["group"].as_str().map(str::to_owned).ok_or_else(|| format!("no group: {made}"))
}

fn path(stage: &Stage, home: &str) -> String {
    stage.path(home).to_str().expect("temporary directories are UTF-8").to_owned()
}

fn start(stage: &Stage, args: &[&str]) -> Worker {
    stage.worker(&[args, &[&stage.recorder.address]].concat())
}

/// Whether somebody waits for an acknowledgement.
fn is_sending(recorder: &Recorder) -> bool {
    let lines = recorder.lines();
    let count = |word: &str| lines.iter().filter(|line| line[0] == word).count();
    count("sending") > count("sent")
}

/// Sends what is left in the outboxes and receives until nothing waits: twice, since a key may come after its message.
fn settle(stage: &Stage) -> Result<(), String> {
    let dir = stage.dir.path();
    for _ in 0..2 {
        for home in MEMBERS {
            // Something must come, or there would be no end to wait for; what comes last was sent last.
            let by = if home == "alice" { "bob" } else { "alice" };
            for command in
                [&["send", "--text", "settled?", "--to", home, "--home", by][..], &["watch", "--once", "--home", home]]
            {
                let done = waxwing(dir, command);
                if !done.status.success() {
                    return Err(format!("{home} or {by} can no longer {}: {}", command[0], done.stderr.trim()));
                }
            }
        }
    }
    Ok(())
}

/// Ids of the group's messages that a member has, as often as they are there.
fn held(home: &Path) -> Result<(Vec<String>, Vec<String>), String> {
    let client = Client::open(home).map_err(|error| error.to_string())?;
    let received = client.messages().map_err(|error| error.to_string())?;
    let received = received.into_iter().filter(|it| it.group.is_some() && it.content.is_ok());
    let sent = client.sent_to_groups().map_err(|error| error.to_string())?;
    let sent = sent.into_iter().map(|it| it.msg_id.to_string()).collect();
    Ok((received.map(|it| it.msg_id.to_string()).collect(), sent))
}

fn check(stage: &Stage) -> Result<Report, String> {
    let lines = stage.recorder.lines();
    let acknowledged: BTreeSet<_> = lines.iter().filter(|line| line[0] == "sent").map(|line| line[1].clone()).collect();
    if acknowledged.len() < 2 * stage.cycles() {
        return Err(format!("only {} messages were acknowledged: that shows nothing", acknowledged.len()));
    }
    let mut losses = Vec::new();
    for home in MEMBERS {
        let (received, sent) = held(&stage.path(home))?;
        let all: Vec<_> = received.into_iter().chain(sent).collect();
        let unique: BTreeSet<_> = all.iter().cloned().collect();
        if unique.len() != all.len() {
            losses.push(format!("{home} has {} messages twice", all.len() - unique.len()));
        }
        losses.extend(acknowledged.difference(&unique).map(|id| format!("{home} never got {id}")));
    }
    Ok(stage.report(acknowledged.len(), losses))
}

/// Bodies in the store of a service that is stopped for it and started again: as it left them, or after they have been
/// swept, which is waited for.
fn bodies(stage: &mut Stage, swept: bool) -> Result<usize, String> {
    stage.kill_service();
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let data = stage.path("data").join("messaging");
    let count = runtime.block_on(async {
        let interval = if swept { 1 } else { 3600 };
        let config = Config { sweep_interval_s: interval, ..Config::default() };
        let node = Messaging::open(config, &data).await.map_err(|error| error.to_string())?;
        let mut left = node.stored().await.map_err(|error| error.to_string())?.bodies;
        for _ in 0..SWEEPS_MAX {
            if !swept || left == 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            left = node.stored().await.map_err(|error| error.to_string())?.bodies;
        }
        node.close().await;
        Ok::<_, String>(left)
    });
    drop(runtime);
    stage.start_service();
    count
}

/// Seconds that the sweeper is given, however busy the machine is.
const SWEEPS_MAX: usize = 60;
