//! The cycles: start, let the workers run, kill, start again; then hold the log against what is there.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use waxwing_client::Client;
use waxwing_protocol::BlobId;

use super::disk::Disk;
use super::recorder::Recorder;
use super::uploader::{Dice, Tus, content};
use crate::support::{Service, register, wait_for, waxwing};

/// Workers that upload at once.
const UPLOADERS: usize = 4;

/// What goes wrong, and how often.
#[derive(Clone, Copy)]
pub struct Chaos {
    cycles: usize,
    power_cuts: bool,
    fault: Option<&'static str>,
}

impl Chaos {
    /// kill -9 of servers and clients.
    pub fn kills(cycles: usize) -> Self {
        Self { cycles, power_cuts: false, fault: None }
    }

    /// Power cuts of the server's disk.
    pub fn power_cuts(cycles: usize) -> Self {
        Self { cycles, power_cuts: true, fault: None }
    }

    /// The same, with a server that breaks a promise on purpose.
    pub fn with_fault(self, fault: &'static str) -> Self {
        Self { fault: Some(fault), ..self }
    }
}

/// What a run acknowledged and what it lost.
pub struct Report {
    kills: usize,
    acknowledged: usize,
    /// One line for each acknowledgement that did not hold.
    pub losses: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kills, acknowledged, losses } = self;
        write!(f, "{kills} kills, {acknowledged} acknowledgements, {} lost", losses.len())
    }
}

/// The stage of a run: a service that can die, a recorder, a directory, dice. Taken down in this order: a disk that
/// somebody uses is not unmounted, and a directory with a disk in it not removed.
struct Stage {
    service: Option<Service>,
    recorder: Recorder,
    disk: Option<Disk>,
    dir: tempfile::TempDir,
    listen: String,
    chaos: Chaos,
    dice: Dice,
    kills: usize,
    upload_grant: String,
    media_grant: String,
    /// What the service said when it did not start any more.
    dead: Option<String>,
}

impl Stage {
    fn set(chaos: Chaos) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let seed = u64::from(std::process::id());
        eprintln!("seed {seed}");
        let recorder = Recorder::start(dir.path());
        let disk = chaos.power_cuts.then(|| Disk::mount(dir.path()));
        let dice = Dice::new(seed);
        let mut stage = Self {
            service: None,
            recorder,
            disk,
            dir,
            listen: "127.0.0.1:0".into(),
            chaos: Chaos { fault: None, ..chaos },
            dice,
            kills: 0,
            upload_grant: String::new(),
            media_grant: String::new(),
            dead: None,
        };
        stage.start_service();
        for handle in ["alice", "bob"] {
            register(stage.dir.path(), &stage.url(), handle);
        }
        stage.upload_grant = stage.grant("upload");
        stage.media_grant = stage.grant("media");
        // The accounts were made in good faith; what is broken on purpose is what comes now.
        assert!(stage.service.take().expect("it was just started").stop().success());
        stage.chaos.fault = chaos.fault;
        stage.start_service();
        stage
    }

    fn start_service(&mut self) {
        let fault: Vec<_> = self.chaos.fault.iter().map(|fault| ("WAXWING_FAULT", *fault)).collect();
        let home = self.disk.as_ref().map_or(self.dir.path(), Disk::path);
        match Service::try_dev(home, &self.listen, &fault) {
            Ok(service) => {
                // Always the same address: workers know where to come back to.
                self.listen = service.address().to_owned();
                self.service = Some(service);
            }
            Err(said) => self.dead = Some(said),
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn grant(&self, kind: &str) -> String {
        waxwing(self.dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned()
    }

    /// Kills the service, or cuts its power, and starts it again.
    fn strike_service(&mut self) {
        self.kills += 1;
        if let Some(disk) = &self.disk {
            // Without power nobody acknowledges anything. A service that outlives its disk by a moment does: ext4 may
            // tell it, amid the shutdown, that bytes are durable which are lost (infra/faults/ext4-shutdown.py).
            if let Some(service) = &self.service {
                service.freeze();
            }
            disk.cut().expect("it worked when availability was checked");
        }
        if let Some(service) = self.service.take() {
            service.kill();
        }
        if let Some(disk) = &self.disk {
            disk.restore();
        }
        self.start_service();
    }

    /// Lets everything run for a moment whose length nobody chose.
    fn let_run(&mut self) {
        let (from, to) = if self.chaos.power_cuts { (300, 900) } else { (20, 300) };
        std::thread::sleep(Duration::from_millis(from + self.dice.below(to - from)));
    }

    /// How often the receiver has connected.
    fn connections(&self) -> usize {
        self.recorder.lines().iter().filter(|line| line[0] == "connected").count()
    }

    fn worker(&self, args: &[&str]) -> Worker {
        let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
        let child = command.args(args).spawn().expect("a worker starts");
        Worker(child)
    }

    fn report(&self, acknowledged: usize, mut losses: Vec<String>) -> Report {
        losses.extend(self.dead.iter().map(|said| format!("the service does not start any more: {said}")));
        Report { kills: self.kills, acknowledged, losses }
    }
}

/// A worker process; killed with -9 when dropped.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Uploads amid chaos.
pub fn uploads(chaos: Chaos) -> Result<Report, String> {
    let mut stage = Stage::set(chaos);
    let grant = stage.upload_grant.clone();
    let mut generation = 0;
    let mut start = |stage: &Stage| {
        generation += 1_000_000;
        stage.worker(&["uploader", &stage.url(), &grant, &stage.recorder.address, &generation.to_string()])
    };
    let mut workers: Vec<_> = (0..UPLOADERS).map(|_| start(&stage)).collect();
    for _ in 0..stage.chaos.cycles {
        stage.let_run();
        stage.strike_service();
        if stage.dice.below(3) == 0 {
            let victim = usize::try_from(stage.dice.below(UPLOADERS as u64)).expect("there are few");
            workers[victim] = start(&stage);
            stage.kills += 1;
        }
    }
    stage.let_run();
    drop(workers);
    // A last strike with nobody working: what is checked below comes from the disk.
    stage.strike_service();
    check_uploads(&stage)
}

#[derive(Default)]
struct Acknowledged {
    seed: u64,
    len: u64,
    offset: u64,
    blob: Option<String>,
    gone: Option<String>,
}

fn check_uploads(stage: &Stage) -> Result<Report, String> {
    let mut uploads: BTreeMap<String, Acknowledged> = BTreeMap::new();
    let lines = stage.recorder.lines();
    for line in &lines {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{line:?}: {error}"));
        let upload = uploads.entry(words[1].to_owned()).or_default();
        match words[..] {
            ["created", _, seed, len] => (upload.seed, upload.len) = (number(seed)?, number(len)?),
            ["offset", _, offset] => upload.offset = upload.offset.max(number(offset)?),
            ["blob", _, blob] => upload.blob = Some(blob.to_owned()),
            ["gone", _, status] => upload.gone = Some(status.to_owned()),
            _ => return Err(format!("the recorder has a line it should not: {line:?}")),
        }
    }
    if lines.len() < 20 * stage.chaos.cycles.min(20) {
        return Err(format!("only {} acknowledgements: that shows nothing", lines.len()));
    }
    if stage.dead.is_some() {
        return Ok(stage.report(lines.len(), Vec::new()));
    }
    let tus = Tus::new(&stage.upload_grant);
    let http = reqwest::blocking::Client::new();
    let mut losses = Vec::new();
    for (url, told) in &uploads {
        let bytes = content(told.seed, told.len);
        let expected = BlobId::from_bytes(*blake3::hash(&bytes).as_bytes()).to_string();
        if let Some(status) = &told.gone {
            losses.push(format!("{url}: created, then {status}"));
            continue;
        }
        let blob = match &told.blob {
            Some(blob) => Some(blob.clone()),
            None => finish_upload(&tus, url, told.offset, &bytes, &mut losses),
        };
        let Some(blob) = blob else { continue };
        if blob != expected {
            losses.push(format!("{url}: became {blob}, its bytes are {expected}"));
            continue;
        }
        let got = http.get(format!("{}/v1/blobs/{blob}", stage.url())).bearer_auth(&stage.media_grant).send();
        let got = got.and_then(reqwest::blocking::Response::error_for_status).and_then(|answer| answer.bytes());
        match got {
            Ok(got) if got == bytes => {}
            Ok(got) => losses.push(format!("{blob}: came back as {} other bytes", got.len())),
            Err(error) => losses.push(format!("{blob}: acknowledged complete, now {error}")),
        }
    }
    Ok(stage.report(lines.len(), losses))
}

/// Resumes an upload whose worker is dead and completes it; its blob.
fn finish_upload(tus: &Tus, url: &str, told: u64, bytes: &[u8], losses: &mut Vec<String>) -> Option<String> {
    let (offset, blob) = match tus.head(url) {
        Some(Ok(standing)) => standing,
        other => {
            losses.push(format!("{url}: acknowledged at {told}, now {other:?}"));
            return None;
        }
    };
    if offset < told {
        losses.push(format!("{url}: acknowledged {told}, now at {offset}"));
        return None;
    }
    if blob.is_some() {
        return blob;
    }
    let rest = &bytes[usize::try_from(offset).expect("uploads here are small")..];
    let done = tus.patch(url, offset, rest).and_then(|(_, blob)| blob);
    if done.is_none() {
        losses.push(format!("{url}: cannot be completed from {offset}"));
    }
    done
}

/// Messages amid chaos.
pub fn messages(chaos: Chaos) -> Result<Report, String> {
    let mut stage = Stage::set(chaos);
    let (alice, bob) = (stage.path("alice"), stage.path("bob"));
    let path = |path: &Path| path.to_str().expect("temporary directories are UTF-8").to_owned();
    let (alice_home, bob_home) = (path(&alice), path(&bob));
    let recorder = stage.recorder.address.clone();
    let send = |stage: &Stage| stage.worker(&["sender", &alice_home, "bob", &recorder]);
    let receive = |stage: &Stage| stage.worker(&["receiver", &bob_home, &recorder]);
    let (mut sender, mut receiver) = (send(&stage), receive(&stage));
    for _ in 0..stage.chaos.cycles {
        stage.let_run();
        match stage.dice.below(3) {
            _ if stage.chaos.power_cuts => stage.strike_service(),
            0 => stage.strike_service(),
            // The old one is killed before the new one starts: a profile has one owner.
            1 => {
                drop(sender);
                sender = send(&stage);
                stage.kills += 1;
            }
            // Messages pile up, and the receiver dies amid them.
            _ => {
                drop(receiver);
                stage.let_run();
                let connected = stage.connections();
                receiver = receive(&stage);
                wait_for("the receiver to connect", || (stage.connections() > connected).then_some(()));
                std::thread::sleep(Duration::from_micros(stage.dice.below(15_000)));
                drop(receiver);
                receiver = receive(&stage);
                stage.kills += 2;
            }
        }
    }
    stage.let_run();
    drop(sender);
    drop(receiver);
    stage.strike_service();
    check_messages(&stage, &bob)
}

fn check_messages(stage: &Stage, bob: &Path) -> Result<Report, String> {
    if stage.dead.is_some() {
        return Ok(stage.report(stage.recorder.lines().len(), Vec::new()));
    }
    // Something sent now comes after everything sent before: when it is there, the queue has been drained.
    std::fs::write(stage.path("last.txt"), "the last").map_err(|error| error.to_string())?;
    for command in [
        &["send", "last.txt", "--to", "bob", "--home", "alice"][..],
        &["watch", "--once", "--save", "inbox", "--home", "bob"],
    ] {
        let done = waxwing(stage.dir.path(), command);
        if !done.status.success() {
            let loss = format!("an account can no longer {}: {}", command[0], done.stderr.trim());
            return Ok(stage.report(stage.recorder.lines().len(), vec![loss]));
        }
    }
    let client = Client::open(bob).map_err(|error| error.to_string())?;
    let messages = client.messages().map_err(|error| error.to_string())?;
    let received: Vec<String> = messages.iter().map(|message| message.msg_id.to_string()).collect();
    let unique: std::collections::BTreeSet<_> = received.iter().collect();
    let lines = stage.recorder.lines();
    let sent: Vec<&String> = lines.iter().filter(|line| line[0] == "sent").map(|line| &line[1]).collect();
    if sent.len() < 5 * stage.chaos.cycles.min(20) {
        return Err(format!("only {} messages were acknowledged: that shows nothing", sent.len()));
    }
    let mut losses: Vec<String> =
        sent.iter().filter(|id| !unique.contains(*id)).map(|id| format!("message {id} was acknowledged")).collect();
    if unique.len() != received.len() {
        losses.push(format!("{} messages were stored twice", received.len() - unique.len()));
    }
    Ok(stage.report(sent.len(), losses))
}
