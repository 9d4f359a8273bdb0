//! The doctor, asked by somebody whose messages do not come.

use std::fs;

use serde_json::Value;

use super::people::proxy_without_sockets;
use crate::support::{Service, register, waxwing};

/// What the doctor says of one step.
fn verdict<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|it| it["check"] == check).unwrap_or_else(|| panic!("{check} is not in {findings:?}"))
}

#[test]
fn the_doctor_names_what_is_in_the_way() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &proxy_without_sockets(service.address()), "bob");
    let examine = |home: &str| {
        let done = waxwing(dir, &["--json", "doctor", "--home", home]);
        let findings: Vec<Value> = done.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        (done, findings)
    };

    let (done, findings) = examine("alice");
    done.ok();
    assert_eq!(findings.len(), 7);
    assert!(findings.iter().all(|finding| finding["verdict"] == "good"), "{findings:?}");

    let (done, findings) = examine("bob");
    done.ok();
    let socket = verdict(&findings, "socket");
    assert!(socket["verdict"] == "warning" && socket["detail"].as_str().unwrap().contains("proxy"), "{socket}");

    service.stop();
    let (done, findings) = examine("alice");
    done.fails_saying(&["1 of 1 checks failed"]);
    assert_eq!(verdict(&findings, "service")["verdict"], "bad");

    fs::create_dir(dir.join("empty")).unwrap();
    waxwing(dir, &["doctor", "--home", "empty"]).fails_saying(&["empty"]);
}
