//! kill -9 of origins and of SeaweedFS amid uploads.

use std::process::{Child, Command};
use std::time::Duration;

use libtest_mimic::{Failed, Trial};

use super::listing::look;
use super::scene::Scene;
use super::seaweed::RETURN;
use crate::harness::recorder::Recorder;
use crate::harness::uploader::Dice;
use crate::harness::verdict::lost_uploads;
use crate::support::wait_at_most;

/// Kills of the origin; each costs half a second.
const ORIGIN_KILLS: usize = 40;

/// Kills of SeaweedFS; each costs some seconds.
const SERVER_KILLS: usize = 4;

/// Kills of an origin that breaks its promise, until the harness should have seen it.
const BROKEN_KILLS: usize = 10;

/// Workers that upload at once.
const UPLOADERS: usize = 4;

/// Uploads have less: up to two parts and tails behind them.
const UPLOAD_BYTES_MAX: u64 = 14 << 20;

/// What workers are told after each kill of SeaweedFS before the next one: it shows that they went on.
const PROGRESS: usize = 8;

pub fn trials() -> Vec<Trial> {
    vec![
        Trial::test("acknowledged_uploads_survive_kill_9_of_origin_and_bucket", survive),
        Trial::test("the_harness_sees_tails_that_were_not_written_at_kill_9", is_seen),
    ]
}

/// Origins, workers and the server die, some together; nothing acknowledged is lost and nothing is left over.
fn survive() -> Result<(), Failed> {
    let mut stage = Stage::set(&[]);
    for _ in 0..ORIGIN_KILLS {
        stage.let_run();
        stage.strike_origin();
        if stage.dice.below(3) == 0 {
            stage.strike_worker();
        }
    }
    for _ in 0..SERVER_KILLS {
        stage.let_run();
        stage.strike_server();
        stage.wait_for_progress();
    }
    let losses = stage.losses(&[("WAXWING_FAULT", "collect-at-once")])?;
    if !losses.is_empty() {
        return Err(format!("lost: {losses:#?}").into());
    }
    let collected = stage.scene.admin(&["gc"]).ok().json();
    let looked = look(&stage.scene.seaweed);
    eprintln!("{stage}; collected {collected}; {} blobs, {} unfinished", looked.blobs, looked.unfinished);
    if stage.origin_kills == 0 || stage.server_kills == 0 || looked.blobs == 0 {
        return Err("nobody was killed, or nothing was uploaded: that shows nothing".into());
    }
    if looked.wrong.is_empty() { Ok(()) } else { Err(format!("after collecting: {:#?}", looked.wrong).into()) }
}

/// The harness must be able to fail.
fn is_seen() -> Result<(), Failed> {
    let mut stage = Stage::set(&[("WAXWING_FAULT", "skip-sync")]);
    for _ in 0..BROKEN_KILLS {
        stage.let_run();
        stage.strike_origin();
        stage.strike_worker();
    }
    let losses = stage.losses(&[])?;
    eprintln!("{stage}; {} lost", losses.len());
    if losses.is_empty() {
        return Err("the switch broke the promise and the harness saw nothing".into());
    }
    Ok(())
}

struct Stage {
    workers: Vec<Worker>,
    recorder: Recorder,
    scene: Scene,
    dice: Dice,
    env: &'static [(&'static str, &'static str)],
    generation: u64,
    origin_kills: usize,
    server_kills: usize,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (origin, server, told) = (self.origin_kills, self.server_kills, self.recorder.lines().len());
        write!(f, "{origin} kills of the origin, {server} of SeaweedFS, {told} acknowledgements")
    }
}

impl Stage {
    /// An origin with these environment variables, and workers that upload to it.
    fn set(env: &'static [(&'static str, &'static str)]) -> Self {
        let mut scene = Scene::start();
        scene.service.take().expect("it was just started").stop();
        scene.start_node(env);
        let seed = u64::from(std::process::id());
        eprintln!("seed {seed}");
        let recorder = Recorder::start(scene.dir());
        let dice = Dice::new(seed);
        let (origin_kills, server_kills) = (0, 0);
        let mut stage =
            Self { workers: Vec::new(), recorder, scene, dice, env, generation: 0, origin_kills, server_kills };
        for _ in 0..UPLOADERS {
            let worker = stage.worker();
            stage.workers.push(worker);
        }
        stage.wait_for_progress();
        stage
    }

    fn worker(&mut self) -> Worker {
        self.generation += 1_000_000;
        let (url, seed) = (self.scene.url(), self.generation.to_string());
        let most = UPLOAD_BYTES_MAX.to_string();
        let args = ["uploader", &url, &self.scene.upload_grant, &self.recorder.address, &seed, &most];
        let mut command = Command::new(std::env::current_exe().expect("this binary has a path"));
        Worker(command.args(args).spawn().expect("a worker starts"))
    }

    /// Lets everything run for a moment whose length nobody chose.
    fn let_run(&mut self) {
        std::thread::sleep(Duration::from_millis(50 + self.dice.below(500)));
    }

    fn strike_worker(&mut self) {
        let victim = usize::try_from(self.dice.below(UPLOADERS as u64)).expect("there are few");
        self.workers[victim] = self.worker();
    }

    fn strike_origin(&mut self) {
        self.origin_kills += 1;
        if let Some(service) = self.scene.service.take() {
            service.kill();
        }
        self.scene.start_node(self.env);
    }

    /// Kills SeaweedFS, with every other kill the origin too, before or after it.
    fn strike_server(&mut self) {
        self.server_kills += 1;
        let with_origin = self.dice.below(2) == 0;
        if with_origin && let Some(service) = self.scene.service.take() {
            self.origin_kills += 1;
            service.kill();
        }
        self.scene.seaweed.kill();
        self.scene.seaweed.start_again();
        if with_origin {
            self.scene.start_node(self.env);
        }
    }

    fn wait_for_progress(&self) {
        let before = self.recorder.lines().len();
        wait_at_most(RETURN, "workers to go on", || (self.recorder.lines().len() >= before + PROGRESS).then_some(()));
    }

    /// What was acknowledged and does not hold, with nobody working and a new origin.
    fn losses(&mut self, env: &'static [(&'static str, &'static str)]) -> Result<Vec<String>, String> {
        self.workers.clear();
        self.env = env;
        self.strike_origin();
        let (upload, media) = (&self.scene.upload_grant, &self.scene.media_grant);
        lost_uploads(&self.recorder.lines(), &self.scene.url(), upload, media)
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
