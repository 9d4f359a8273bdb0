//! tus-js-client in Node: what most web applications upload with.

use std::process::Command;

use libtest_mimic::Trial;
use serde_json::{Value, json};

use super::proxy::Cut;
use super::scene::Scene;
use super::tools::{Running, blob, installed, node_script, on_path, trial};
use crate::support::wait_for;

const MIB: usize = 1 << 20;

pub fn trials() -> Vec<Trial> {
    let there = on_path("node").is_some() && installed().join("node_modules/tus-js-client").is_dir();
    let tests: [(&str, fn()); 7] = [
        ("tus_js_client_goes_on_after_every_lost_connection", goes_on_after_every_lost_connection),
        ("tus_js_client_resumes_from_a_stored_url_when_it_was_killed", resumes_when_killed),
        ("tus_js_client_uploads_what_it_does_not_know_the_length_of", defers_the_length),
        ("tus_js_client_uploads_four_parts_side_by_side", uploads_in_parallel),
        ("tus_js_client_terminates_what_it_aborts", terminates),
        ("tus_js_client_uploads_an_empty_file", uploads_an_empty_file),
        ("tus_js_client_sends_the_first_bytes_with_the_creation", creates_with_data),
    ];
    tests.map(|(name, run)| trial(name, "tus-js-client", there, run)).into()
}

/// Starts an upload of the scene's file.
fn upload(scene: &Scene, options: &Value) -> Running {
    let script = node_script(scene.dir.path(), "tus.mjs");
    Running::start(
        Command::new("node")
            .arg(&script)
            .args([&scene.endpoint(), &scene.grant, scene.file(), &scene.path("urls.json")])
            .arg(options.to_string()),
    )
}

fn requests<'a>(told: &'a [Value], method: &str) -> Vec<&'a Value> {
    told.iter().filter(|line| line["method"] == method).collect()
}

fn goes_on_after_every_lost_connection() {
    let mib = MIB as u64;
    let scene = Scene::new(12 * MIB, &[(3 * mib + 17, Cut::Close), (2 * mib, Cut::Close), (mib / 2, Cut::Close)]);
    let told = upload(&scene, &json!({})).finish();
    assert_eq!(scene.wire.cuts(), 3);
    assert_eq!(requests(&told, "POST").len(), 1, "it began anew: {told:?}");
    scene.is_stored(blob(&told));
}

/// The connection goes silent, as when a phone changes networks, and then the process dies. The origin still holds the
/// old connection open when the new process comes.
fn resumes_when_killed() {
    let scene = Scene::new(12 * MIB, &[(5 * MIB as u64, Cut::Silence)]);
    let first = upload(&scene, &json!({ "chunkSize": 8 * MIB }));
    wait_for("the cut", || (scene.wire.cuts() == 1).then_some(()));
    first.kill();

    let told = upload(&scene, &json!({ "chunkSize": 8 * MIB })).finish();

    assert_eq!(requests(&told, "POST").len(), 0, "it began anew: {told:?}");
    let head = requests(&told, "HEAD")[0];
    let offset: usize = head["offset"].as_str().unwrap().parse().unwrap();
    assert!(offset > 4 * MIB && offset <= 5 * MIB, "of 5 MiB sent, {offset} bytes were kept");
    scene.is_stored(blob(&told));
}

fn defers_the_length() {
    let scene = Scene::new(5 * MIB + 1, &[(2 * MIB as u64, Cut::Close)]);
    let told = upload(&scene, &json!({ "uploadLengthDeferred": true, "chunkSize": MIB })).finish();
    assert_eq!(scene.wire.cuts(), 1);
    scene.is_stored(blob(&told));
}

/// Four uploads of a quarter each, joined by a fifth request that names them.
fn uploads_in_parallel() {
    let scene = Scene::new(12 * MIB + 3, &[(5 * MIB as u64, Cut::Close)]);
    let told = upload(&scene, &json!({ "parallelUploads": 4 })).finish();
    assert_eq!(scene.wire.cuts(), 1);
    assert_eq!(requests(&told, "POST").len(), 5, "{told:?}");
    scene.is_stored(blob(&told));
}

fn terminates() {
    let scene = Scene::new(8 * MIB, &[]);
    let told = upload(&scene, &json!({ "chunkSize": MIB, "abort_at": 2 * MIB })).finish();
    assert_eq!(requests(&told, "DELETE")[0]["status"], 204, "{told:?}");
    let url = told.iter().find_map(|line| line["terminated"].as_str()).unwrap();
    let head = reqwest::blocking::Client::new().head(url).bearer_auth(&scene.grant).header("Tus-Resumable", "1.0.0");
    assert!(matches!(head.send().unwrap().status().as_u16(), 404 | 410));
}

fn uploads_an_empty_file() {
    let scene = Scene::new(0, &[]);
    let told = upload(&scene, &json!({})).finish();
    scene.is_stored(blob(&told).or_else(|| panic!("no blob was told: {told:?}")));
}

fn creates_with_data() {
    let scene = Scene::new(3 * MIB, &[]);
    let told = upload(&scene, &json!({ "uploadDataDuringCreation": true })).finish();
    assert_eq!(requests(&told, "PATCH").len(), 0, "{told:?}");
    scene.is_stored(blob(&told));
}
