//! schemathesis: requests of every kind that the API's description allows, and of many that it does not.
//!
//! Whoever writes a client from `/v1/openapi.json` must be able to believe it, and whatever they send in error must not
//! break the server. schemathesis makes up thousands of requests from the description, and holds each answer against it.

use std::process::Command;

use libtest_mimic::Trial;

use super::tools::{installed, scripts, trial};
use crate::support::{Service, register, waxwing};

/// Requests made up for each operation, beside those for every boundary of every parameter.
const EXAMPLES: &str = "40";

/// What each answer is held against. A grant that is missing or wrong is refused, whatever else the request says.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
    response_headers_conformance,ignored_auth";

pub fn trials() -> Vec<Trial> {
    let there = schemathesis().is_file();
    vec![trial("schemathesis_finds_no_answer_that_is_not_described", "schemathesis", there, answers_are_as_described)]
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
        let run = Command::new(schemathesis())
            .arg("run")
            .arg(format!("{}/v1/openapi.json", service.url))
            .args(["--header", &format!("Authorization: Bearer {grant}"), "--include-path-regex", paths])
            .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1"])
            .args(["--checks", CHECKS, "--no-color", "--generation-database", "none"])
            .env("SCHEMATHESIS_HOOKS", "openapi_hooks")
            .env("PYTHONPATH", scripts("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("WAXWING_SERVER", &service.url)
            .env("WAXWING_UPLOAD_GRANT", &upload)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        assert!(run.status.success(), "{said}\n{}", String::from_utf8_lossy(&run.stderr));
        assert!(said.contains("generated"), "it made requests: {said}");
    }
}
