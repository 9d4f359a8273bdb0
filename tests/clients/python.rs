//! tuspy and google-resumable-media: what Python scripts upload with.

use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Trial;

use super::proxy::Cut;
use super::scene::Scene;
use super::tools::{Running, blob, installed, scripts, trial};
use crate::support::wait_for;

const MIB: usize = 1 << 20;

pub fn trials() -> Vec<Trial> {
    let there = python().is_file();
    vec![
        trial("tuspy_goes_on_after_every_lost_connection", "tuspy", there, tuspy_goes_on),
        trial("tuspy_sends_a_checksum_with_every_chunk", "tuspy", there, tuspy_checksums),
        trial("tuspy_resumes_from_a_stored_url_when_it_was_killed", "tuspy", there, tuspy_resumes),
        trial(
            "googles_library_repeats_the_chunk_of_a_lost_connection",
            "google-resumable-media",
            there,
            google_repeats,
        ),
        trial("googles_library_recovers_after_every_lost_connection", "google-resumable-media", there, google_recovers),
    ]
}

fn python() -> PathBuf {
    installed().join("venv/bin/python")
}

fn tuspy(scene: &Scene, options: &[&str]) -> Running {
    let args = [scene.endpoint(), scene.grant.clone(), scene.file().to_owned(), scene.path("urls.json")];
    Running::start(Command::new(python()).arg(scripts("python").join("upload_tus.py")).args(args).args(options))
}

fn tuspy_goes_on() {
    let scene = Scene::new(6 * MIB + 1, &[(2 * MIB as u64, Cut::Close), (MIB as u64 / 2, Cut::Close)]);
    let told = tuspy(&scene, &[]).finish();
    assert_eq!(scene.wire.cuts(), 2);
    scene.is_stored(blob(&told));
}

/// A chunk whose checksum never came is not kept: it is sent again from its beginning.
fn tuspy_checksums() {
    let scene = Scene::new(4 * MIB + 1, &[(MIB as u64 * 3 / 2, Cut::Close)]);
    let told = tuspy(&scene, &["checksum"]).finish();
    assert_eq!(scene.wire.cuts(), 1);
    scene.is_stored(blob(&told));
}

fn tuspy_resumes() {
    let scene = Scene::new(6 * MIB, &[(3 * MIB as u64 + 700_000, Cut::Silence)]);
    let first = tuspy(&scene, &[]);
    wait_for("the cut", || (scene.wire.cuts() == 1).then_some(()));
    first.kill();

    let told = tuspy(&scene, &[]).finish();

    let offset = told[0]["offset"].as_u64().unwrap();
    assert!(offset >= 3 * MIB as u64, "it resumed at {offset}");
    scene.is_stored(blob(&told));
}

/// Loses two connections amid chunks; gives where the library went on.
fn google(after_loss: &str) -> Vec<u64> {
    let mib = MIB as u64;
    let scene = Scene::new(6 * MIB + 1, &[(2 * mib + 600_000, Cut::Close), (mib / 2, Cut::Close)]);
    let mut command = Command::new(python());
    command.arg(scripts("python").join("upload_google.py"));
    let told = Running::start(command.args([&scene.endpoint(), &scene.grant, scene.file(), after_loss])).finish();
    assert_eq!(scene.wire.cuts(), 2);
    scene.is_stored(blob(&told));
    told[0]["recovered"].as_array().unwrap().iter().map(|at| at.as_u64().unwrap()).collect()
}

/// The chunk begins below what was kept: the origin skips what it has.
fn google_repeats() {
    google("repeat");
}

fn google_recovers() {
    let at = google("recover");
    // It asks the moment a connection is lost: what had reached the origin by then counts, read or not.
    assert!(at.len() == 2 && at[0] > 2 * MIB as u64 && at[1] > at[0], "it went on at {at:?}");
}
