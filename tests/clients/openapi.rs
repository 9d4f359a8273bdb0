//! schemathesis: requests of every kind that the API's description allows, and of many that it does not.
//!
//! Whoever writes a client from `/v1/openapi.json` must be able to believe it, and whatever they send in error must not
//! break the server. schemathesis makes up thousands of requests from the description, and holds each answer against it.

use std::path::Path;
use std::process::Command;

use libtest_mimic::Trial;

use super::frames::registered;
use super::tools::{installed, scripts, trial};
use crate::support::{Service, register, waxwing};

/// Requests made up for each operation, beside those for every boundary of every parameter.
const EXAMPLES: &str = "40";

/// The same for messaging, whose requests are JSON and soon made.
const MESSAGING_EXAMPLES: &str = "25";

/// What each answer is held against. A grant that is missing or wrong is refused, whatever else the request says.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
    response_headers_conformance,ignored_auth";

pub fn trials() -> Vec<Trial> {
    let there = schemathesis().is_file();
    let tests: [(&str, fn()); 2] = [
        ("schemathesis_finds_no_answer_that_is_not_described", answers_are_as_described),
        ("schemathesis_finds_no_answer_of_messaging_that_is_not_described", messaging_answers_as_described),
    ];
    tests.map(|(name, run)| trial(name, "schemathesis", there, run)).into()
}

fn schemathesis() -> std::path::PathBuf {
    installed().join("venv/bin/schemathesis")
}

fn answers_are_as_described() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    register(dir.path(), &service.url, "alice");
    let grant = |args: &[&str]| waxwing(dir.path(), args).ok().stdout.trim().to_owned();
    let upload = grant(&["grant", "upload", "--home", "alice"]);
    let edge = grant(&["admin", "grant", "edge", "--node", "schemathesis", "--data", "data"]);
    for (paths, grant) in [("^/v1/", &upload), ("^/origin/", &edge)] {
        let mut run = run(dir.path(), &format!("{}/v1/openapi.json", service.url), grant);
        run.args(["--include-path-regex", paths, "--max-examples", EXAMPLES])
            .env("SCHEMATHESIS_HOOKS", "openapi_hooks")
            .env("WAXWING_SERVER", &service.url)
            .env("WAXWING_UPLOAD_GRANT", &upload);
        finds_nothing(&mut run);
    }
}

/// `/v1/ws` is no request with an answer, and is left to `ws`. A poll that waits is left to our own tests.
fn messaging_answers_as_described() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let device = registered(&service, "alice");
    let url = format!("{}/v1/messaging/openapi.json", service.url);
    let mut run = run(dir.path(), &url, device["token"].as_str().unwrap());
    run.args(["--exclude-path", "/v1/ws", "--max-examples", MESSAGING_EXAMPLES]);
    run.env("SCHEMATHESIS_HOOKS", "messaging_hooks");
    finds_nothing(&mut run);
}

fn run(dir: &Path, document: &str, bearer: &str) -> Command {
    let mut run = Command::new(schemathesis());
    run.args(["run", document, "--header", &format!("Authorization: Bearer {bearer}")])
        .args(["--phases", "examples,coverage,fuzzing", "--seed", "1"])
        .args(["--checks", CHECKS, "--no-color", "--generation-database", "none"])
        .env("PYTHONPATH", scripts("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir(dir);
    run
}

fn finds_nothing(run: &mut Command) {
    let run = run.output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
    assert!(said.contains("generated"), "it made requests: {said}");
}
