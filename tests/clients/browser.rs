//! Uppy's dashboard in Chromium: what people meet on web sites, cross-origin as it is there.

use std::process::Command;

use libtest_mimic::Trial;

use super::proxy::Cut;
use super::scene::Scene;
use super::tools::{Running, installed, node_script, on_path, scripts, trial};

const MIB: usize = 1 << 20;

/// Slow enough that a pause and a reload fall into the upload.
const BYTES_PER_S: u32 = 4 << 20;

pub fn trials() -> Vec<Trial> {
    let packages = installed().join("node_modules/@uppy/dashboard").is_dir();
    let there = on_path("node").is_some() && on_path("chromium").is_some() && packages;
    vec![trial("uppy_pauses_resumes_and_goes_on_after_a_reload", "Uppy or Chromium", there, pauses_and_reloads)]
}

fn pauses_and_reloads() {
    let scene = Scene::new(24 * MIB, &[(5 * MIB as u64 / 2, Cut::Close)]);
    let wire = scene.wire.clone().paced(BYTES_PER_S);
    let chromium = on_path("chromium").unwrap();
    let script = node_script(scene.dir.path(), "browser.mjs");
    let mut command = Command::new("node");
    command.current_dir(installed()).arg(&script).args([&scene.endpoint(), &scene.grant, scene.file()]);
    let told = Running::start(command.arg(scripts("web")).arg(chromium)).finish();

    assert_eq!(wire.cuts(), 1);
    let seen = &told[0];
    assert!(seen["later"].as_u64() <= seen["paused"].as_u64().map(|at| at + MIB as u64), "it went on: {seen}");
    let posts = |part: &str| seen[part]["requests"].as_array().unwrap().iter().filter(|it| **it == "POST").count();
    assert_eq!((posts("first"), posts("second")), (1, 0), "it began anew: {seen}");
    scene.is_stored(seen["second"]["blob"].as_str());
}
