//! kill -9 at any moment: the edge is back with its disk as it was, and every byte it serves is right.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http::StatusCode;
use waxwing_edge::{Config, Edge};
use waxwing_protocol::BlobId;
use waxwing_protocol::grant::GrantKeys;

use super::harness::{EDGE_GRANT, GROUP, SLICE, ask_at, media_grant, sample_bytes, signer};
use super::origin::Origin;

const DISK: u64 = 64 << 20;
const KILLS: usize = 8;

/// The process that is killed: an edge, told by its environment where its origin and its disk are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs within another test"]
async fn victim() {
    let origin = std::env::var("WAXWING_TEST_ORIGIN").expect("this is not a test of its own");
    let dir = std::env::var("WAXWING_TEST_DIR").unwrap();
    let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
    // A memory so small that the disk is what is tested.
    let config = Config { memory_bytes: 4 << 20, disk_bytes: DISK, purge_poll_ms: 20, ..Config::default() };
    let edge = Edge::open(config, Path::new(&dir), origin, EDGE_GRANT.to_owned(), keys).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("listening on {}", listener.local_addr().unwrap());
    axum::serve(listener, edge.router()).await.unwrap();
}

fn start(origin: &Origin, dir: &Path) -> (Child, SocketAddr) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "edge::crash::victim", "--ignored", "--nocapture"])
        .env("WAXWING_TEST_ORIGIN", origin.url())
        .env("WAXWING_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let told = lines.map_while(Result::ok).find_map(|line| line.split_once("listening on ")?.1.trim().parse().ok());
    (child, told.expect("the edge says where it listens"))
}

fn bytes_on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_killed_at_random_is_back_and_serves_no_wrong_byte() {
    let origin = Origin::start().await;
    let dir = tempfile::TempDir::new().unwrap();
    let blobs: Arc<Vec<(BlobId, Vec<u8>)>> = Arc::new(
        (0..48_usize)
            .map(|n| {
                let mut bytes = sample_bytes([541, GROUP, GROUP + 1, 2 * SLICE + 9, 5 * SLICE][n % 5]);
                bytes[0] = n as u8;
                (origin.store(bytes.clone()), bytes)
            })
            .collect(),
    );
    let (whole, from_disk) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut dice = 88_172_645_463_325_252_u64;
    for kill in 0..KILLS {
        let (mut edge, addr) = start(&origin, dir.path());
        let served_before = whole.load(Relaxed);
        let clients: Vec<_> = (0..4)
            .map(|client| {
                let (blobs, whole, from_disk) = (Arc::clone(&blobs), Arc::clone(&whole), Arc::clone(&from_disk));
                tokio::spawn(async move {
                    let grant = media_grant();
                    for n in 0.. {
                        // The first ones again and again, so that some of them are on disk when they are asked for.
                        let (id, bytes) = &blobs[(n * n * 7 + client * 11 + kill) % blobs.len()];
                        let Some(answer) = ask_at(addr, *id, &grant).await else { return };
                        assert_eq!(answer.status, StatusCode::OK);
                        assert!(bytes.starts_with(&answer.body), "wrong bytes of {id}");
                        if answer.is_whole {
                            assert_eq!(answer.body.len(), bytes.len());
                            whole.fetch_add(1, Relaxed);
                            from_disk.fetch_add(usize::from(answer.header("cache-status").contains("disk")), Relaxed);
                        }
                    }
                })
            })
            .collect();
        // It serves, and then it dies at a moment that nobody chose.
        while whole.load(Relaxed) < served_before + 4 {
            assert!(!clients.iter().any(tokio::task::JoinHandle::is_finished), "a client saw something wrong");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        tokio::time::sleep(Duration::from_millis(dice % 500)).await;
        edge.kill().unwrap();
        edge.wait().unwrap();
        for client in clients {
            client.await.unwrap();
        }
        let taken = bytes_on_disk(dir.path());
        assert!(taken <= DISK, "{taken} bytes on disk");
    }
    // One that nobody hurries finds on disk what is there.
    let (mut edge, addr) = start(&origin, dir.path());
    let grant = media_grant();
    for (id, bytes) in blobs.iter().chain(blobs.iter()) {
        let answer = ask_at(addr, *id, &grant).await.unwrap();
        answer.assert_is(StatusCode::OK, bytes);
        from_disk.fetch_add(usize::from(answer.header("cache-status").contains("disk")), Relaxed);
    }
    edge.kill().unwrap();
    edge.wait().unwrap();
    assert!(from_disk.load(Relaxed) > 5, "{} answers from disk: that shows nothing", from_disk.load(Relaxed));
}

/// A disk that others have filled makes units go or not come; no request notices. Needs root, for a disk of its own.
#[tokio::test]
async fn a_full_disk_is_nobodys_error() {
    let dir = tempfile::TempDir::new().unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(dir.path()).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("not root: no disk of its own, nothing tested");
        return;
    }
    // Twice what the disk has.
    let config = Config {
        memory_bytes: 4 << 20,
        disk_bytes: DISK,
        disk_path: Some(dir.path().join("edge")),
        ..Config::default()
    };
    let edge = super::harness::TestEdge::start_with(config.clone()).await;
    let mut blobs = Vec::new();
    for n in 0..12 {
        let mut bytes = sample_bytes(4 * SLICE);
        bytes[0] = n;
        let id = edge.origin.store(bytes.clone());
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        edge.edge.close().await;
        blobs.push((id, bytes));
    }
    let stats = edge.edge.stats();
    assert!(stats.disk_evicted > 0 && stats.disk_written > 30, "{stats:?}");
    let edge = edge.restart(config, |_| {}).await;
    let (newest, bytes) = blobs.last().unwrap();
    let answer = edge.get(*newest, &[]).await;
    answer.assert_is(StatusCode::OK, bytes);
    assert!(edge.edge.stats().origin_bytes < bytes.len() as u64, "some of what was written last is there");
    for (id, bytes) in &blobs {
        edge.get(*id, &[]).await.assert_is(StatusCode::OK, bytes);
    }
    drop(edge);
    // Lazily: the edge's thread lets go of its files in its own time.
    assert!(Command::new("umount").arg("-l").arg(dir.path()).status().unwrap().success());
}
