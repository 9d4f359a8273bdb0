//! WebSocket as others read it: Autobahn's cases, run by kosoku against this server's own wire.
//!
//! Our client and our server use the same library, so a reading of RFC 6455 that both share goes unnoticed between them.
//! The cases are for a server that sends back what it is sent, so there is one here, of the same parts as the real one:
//! the upgrade with its bounds, and [`Wire`] with its judgement of errors and its ways to close.
//!
//! `infra/install-clients.sh` installs kosoku. Without it the test says so and does nothing; on CI it fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axum::Router;
use axum::extract::ws::Message;
use axum::routing::get;

use super::*;
use crate::wire::WireError;

/// Not for this server: messages larger than a frame may be (4 MiB and more), and compression, which it never negotiates.
const EXCLUDED: [&str; 10] = ["9.1.4", "9.1.5", "9.1.6", "9.2.4", "9.2.5", "9.2.6", "9.3.*", "9.4.*", "12.*", "13.*"];

/// Cases that are run at least: fewer, and something was left out unseen.
const CASES_MIN: usize = 270;

fn kosoku() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/clients/venv/bin/kosoku")
}

async fn echo(upgrade: WebSocketUpgrade) -> Response {
    bounded(upgrade, Codec::Json).on_upgrade(async |socket| {
        let mut wire = Wire::socket(socket, Codec::Json, Duration::from_secs(20));
        let error = loop {
            match wire.message().await {
                Ok(message @ (Message::Binary(_) | Message::Text(_))) => match wire.write(message).await {
                    Ok(()) => {}
                    Err(error) => break error,
                },
                Ok(Message::Ping(_) | Message::Pong(_)) => {}
                Ok(Message::Close(_)) => break WireError::Gone,
                Err(error) => break error,
            }
        };
        connection::End::from(error).say(wire).await;
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn autobahns_cases_pass() {
    let kosoku = kosoku();
    if !kosoku.is_file() {
        assert!(std::env::var_os("CI").is_none(), "kosoku is not installed; infra/install-clients.sh does");
        eprintln!("SKIPPED: kosoku is not installed; infra/install-clients.sh does");
        return;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("ws://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(echo))).await });
    let reports = tempfile::tempdir().unwrap();
    let outdir = reports.path().to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let excluded = EXCLUDED.iter().flat_map(|case| ["--exclude", case]);
        Command::new(kosoku).arg(address).args(excluded).arg("--outdir").arg(outdir).output().unwrap()
    });
    let run = run.await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said}");
    let passed = said.lines().find_map(|line| line.strip_suffix(" cases passed")?.parse::<usize>().ok());
    assert!(passed.is_some_and(|cases| cases >= CASES_MIN), "{said}");
}
