//! The cycles: start, let the workers run, kill, start again; then hold the log against what is there.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use waxwing_client::Client;

use super::disk::Disk;
use super::recorder::Recorder;
use super::uploader::{Dice, UPLOAD_BYTES_MAX};
use super::verdict::lost_uploads;
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
    pub(super) kills: usize,
    pub(super) acknowledged: usize,
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
pub(super) struct Stage {
    service: Option<Service>,
    pub(super) recorder: Recorder,
    disk: Option<Disk>,
    pub(super) dir: tempfile::TempDir,
    listen: String,
    chaos: Chaos,
    pub(super) dice: Dice,
    pub(super) kills: usize,
    upload_grant: String,
    media_grant: String,
    /// What the service said when it did not start any more.
    dead: Option<String>,
}

impl Stage {
    pub(super) fn set(chaos: Chaos) -> Self {
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

    pub(super) fn start_service(&mut self) {
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

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.listen)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn grant(&self, kind: &str) -> String {
        waxwing(self.dir.path(), &["grant", kind, "--home", "alice"]).ok().stdout.trim().to_owned()
    }

    /// Kills the service, or cuts its power, and starts it again.
    pub(super) fn strike_service(&mut self) {
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

    /// Kills the service, so that somebody else may open what it left.
    pub(super) fn kill_service(&mut self) {
        if let Some(service) = self.service.take() {
            service.kill();
        }
    }

    /// Whether the service did not start any more.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.is_some()
    }

    /// Lets everything run for a moment whose length nobody chose.
    pub(super) fn let_run(&mut self) {
        let (from, to) = if self.chaos.power_cuts { (300, 900) } else { (20, 300) };
        std::thread::sleep(Duration::from_millis(from + self.dice.below(to - from)));
    }

    /// How many cycles the run has.
    pub(super) fn cycles(&self) -> usize {
        self.chaos.cycles
    }

    /// How often the receiver has connected.
    pub(super) fn connections(&self) -> usize {
        self.recorder.lines().iter().filter(|line| line[0] == "connected").count()
    }

    pub(super) fn worker(&self, args: &[&str]) -> Worker {
        let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
        let child = command.args(args).spawn().expect("a worker starts");
        Worker(child)
    }

    pub(super) fn report(&self, acknowledged: usize, mut losses: Vec<String>) -> Report {
        losses.extend(self.dead.iter().map(|said| format!("the service does not start any more: {said}")));
        Report { kills: self.kills, acknowledged, losses }
    }
}

/// A worker process; killed with -9 when dropped.
pub(super) struct Worker(Child);

impl Worker {
    /// kill -9, and its end.
    pub(super) fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Uploads amid chaos.
pub fn uploads(chaos: Chaos) -> Result<Report, String> {
    let mut stage = Stage::set(chaos);
    let grant = stage.upload_grant.clone();
    let mut generation = 0;
    let mut start = |stage: &Stage| {
        generation += 1_000_000;
        let (seed, bytes_max) = (generation.to_string(), UPLOAD_BYTES_MAX.to_string());
        stage.worker(&["uploader", &stage.url(), &grant, &stage.recorder.address, &seed, &bytes_max])
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

fn check_uploads(stage: &Stage) -> Result<Report, String> {
    let lines = stage.recorder.lines();
    if lines.len() < 20 * stage.chaos.cycles.min(20) {
        return Err(format!("only {} acknowledgements: that shows nothing", lines.len()));
    }
    if stage.dead.is_some() {
        return Ok(stage.report(lines.len(), Vec::new()));
    }
    let losses = lost_uploads(&lines, &stage.url(), &stage.upload_grant, &stage.media_grant)?;
    Ok(stage.report(lines.len(), losses))
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
