//! Push held against the libraries that others use: they talk to our stand-in for Apple as to Apple, and open what we
//! send as if a browser had got it.
//!
//! `infra/install-clients.sh` installs them. Where they are missing that is said and skipped; on CI it is a failure.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use data_encoding::BASE64URL_NOPAD;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::process::Command;
use waxwing_messaging::{Config, PushConfig, WebConfig};

use crate::node::{TestNode, open_config};
use crate::provider::{Provider, answer};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A program, if what it needs is installed.
fn installed(program: PathBuf, needed: &Path) -> Option<PathBuf> {
    if needed.exists() {
        return Some(program);
    }
    assert!(std::env::var_os("CI").is_none(), "infra/install-clients.sh installs {}", needed.display());
    eprintln!("SKIPPED: infra/install-clients.sh installs {}", needed.display());
    None
}

fn node(package: &str) -> Option<PathBuf> {
    installed("node".into(), &repository().join("target/clients/node_modules").join(package))
}

fn python() -> Option<PathBuf> {
    let python = repository().join("target/clients/venv/bin/python");
    let library = std::process::Command::new(&python).args(["-c", "import pywebpush"]).status();
    let needed = if library.is_ok_and(|status| status.success()) { "target/clients/venv" } else { "target/pywebpush" };
    installed(python, &repository().join(needed))
}

/// Runs a script of `tests/clients`, and returns the JSON lines that it tells.
async fn run(program: &Path, script: &Path, args: &[&str]) -> Vec<Value> {
    let output = Command::new(program).arg(script).args(args).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(output.status.success(), "{}: {}", script.display(), output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A script of `tests/clients/web` in a directory with the packages beside it: Node looks for them where a script is.
fn script(dir: &Path, name: &str) -> PathBuf {
    let script = dir.join(name);
    std::fs::copy(repository().join("tests/clients/web").join(name), &script).unwrap();
    let packages = dir.join("node_modules");
    if !packages.exists() {
        std::os::unix::fs::symlink(repository().join("target/clients/node_modules"), packages).unwrap();
    }
    script
}

#[tokio::test]
async fn libraries_for_apple_take_our_stand_in_for_apple() {
    let Some(node) = node("apns2") else { return };
    let provider = Provider::speaking(&["h2"]).await;
    provider.answer(|asked| match asked.path.as_str() {
        "/3/device/aaaa" => answer(200, ""),
        _ => answer(410, r#"{"reason":"Unregistered","timestamp":1700000000000}"#),
    });
    let dir = tempfile::tempdir().unwrap();
    let (port, authority, key) =
        (provider.address.port().to_string(), provider.authorities_file(), provider.p256_key());
    let args = [port.as_str(), authority.to_str().unwrap(), key.to_str().unwrap()];
    let told = run(&node, &script(dir.path(), "apns.mjs"), &args).await;
    for library in ["apns2", "node-apn"] {
        let of = |device| told.iter().find(|line| line["library"] == library && line["device"] == device).unwrap();
        assert_eq!(of("aaaa")["ok"], true, "{told:?}");
        assert_eq!((&of("dead")["reason"], &of("dead")["status"]), (&json!("Unregistered"), &json!(410)), "{told:?}");
    }
    for asked in provider.all() {
        for header in ["authorization", "apns-push-type", "apns-topic", "apns-priority"] {
            assert!(asked.headers.contains_key(header), "{header}: our wakes have it, as theirs do");
        }
        assert!(asked.headers["authorization"].to_str().unwrap().starts_with("bearer ey"));
    }
}

/// A device subscribes, is woken, and opens what came with `http_ece`; `web-push` would have sent the same headers, and
/// `py_vapid` and Node agree on who sent it.
#[tokio::test]
async fn what_a_browser_gets_is_opened_by_the_libraries_of_browsers_servers() {
    let Some(program) = node("web-push") else { return };
    let provider = Provider::start().await;
    provider.answer(|_| answer(201, ""));
    let host = format!("localhost:{}", provider.address.port());
    let web = WebConfig {
        subject: "mailto:ops@example.com".into(),
        hosts_inside: vec![host.clone()],
        ..WebConfig::default()
    };
    let push =
        PushConfig { web: Some(web), authorities_file: Some(provider.authorities_file()), ..PushConfig::default() };
    let node = TestNode::with(Config { push, ..open_config() }).await;
    let bob = node.register("bob").await;
    let dir = tempfile::tempdir().unwrap();
    let script = script(dir.path(), "web-push.mjs");
    let keys = run(&program, &script, &["keys"]).await.remove(0);
    let endpoint = format!("https://{host}/push/b0b");
    let (p256dh, auth) = (&keys["p256dh"], &keys["auth"]);
    let target = json!({ "provider": "web-push", "endpoint": endpoint, "p256dh": p256dh, "auth": auth });
    assert_eq!(node.call(Method::PUT, "/v1/push", Some(&bob), &target).await.0, StatusCode::NO_CONTENT);
    let (_, test) = node.call(Method::POST, "/v1/push/test", Some(&bob), &()).await;
    assert_eq!(test, json!({ "provider": "web-push", "accepted": true, "reason": "accepted" }));

    let asked = provider.asked(1).await.remove(0);
    let authorization = asked.headers["authorization"].to_str().unwrap();
    let came = json!({
        "private": keys["private"],
        "p256dh": p256dh,
        "auth": auth,
        "body": BASE64URL_NOPAD.encode(&asked.body),
        "authorization": authorization,
        "endpoint": endpoint,
    });
    let opened = run(&program, &script, &["open", &came.to_string()]).await.remove(0);
    // What pads it is zeroes behind the delimiter, which are not the plaintext's.
    assert_eq!(opened["plaintext"], r#"{"wake":"visible"}"#);
    assert_eq!(opened["verified"], true);
    assert_eq!(opened["claims"]["aud"], format!("https://{host}"));
    assert_eq!(opened["claims"]["sub"], "mailto:ops@example.com");
    for header in opened["headers"].as_array().unwrap() {
        let header = header.as_str().unwrap();
        assert!(
            asked.headers.contains_key(header) || asked.version == http::Version::HTTP_2 && header == "content-length",
            "web-push sends {header}"
        );
    }
    let (_, view) = node.get("/v1/push", &bob).await;
    assert!(authorization.ends_with(&format!("k={}", view["vapid_key"].as_str().unwrap())));

    let Some(python) = python() else { return };
    let told = run(&python, &repository().join("tests/clients/python/web_push.py"), &[&came.to_string()]).await;
    assert_eq!(told[0], json!({ "plaintext": r#"{"wake":"visible"}"#, "verified": true, "sealed": true }));
}
