//! The disk tier: warm after a restart, within its bounds, and never wrong, whatever happened to its files.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use http::StatusCode;
use http::header::RANGE;
use waxwing_edge::Config;
use waxwing_protocol::BlobId;

use super::harness::{GROUP, SLICE, TestEdge, sample_bytes};
use super::origin::{Asked, Manner};

const DISK: u64 = 64 << 20;

fn on_disk() -> Config {
    Config { disk_bytes: DISK, ..Config::default() }
}

fn cache_files(dir: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|ext| ext == "cache")).collect()
}

fn bytes_on_disk(dir: &Path) -> u64 {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

/// Blobs of every shape, fetched once.
async fn warmed(edge: &TestEdge) -> Vec<(BlobId, Vec<u8>)> {
    let mut blobs = Vec::new();
    for len in [1, 541, GROUP, GROUP + 1, SLICE, 3 * SLICE + GROUP + 7] {
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        blobs.push((id, bytes));
    }
    blobs
}

#[tokio::test]
async fn a_restart_finds_everything_and_asks_the_origin_for_nothing() {
    let edge = TestEdge::start_with(on_disk()).await;
    let blobs = warmed(&edge).await;
    let edge = edge.restart(on_disk(), |_| {}).await;
    edge.origin.behave(Manner::Status(503));
    for (id, bytes) in &blobs {
        assert_eq!(edge.head(*id, &[]).await.header("content-length"), bytes.len().to_string());
        let from_disk = edge.get(*id, &[]).await;
        from_disk.assert_is(StatusCode::OK, bytes);
        assert!(from_disk.header("age").parse::<u64>().is_ok());
        let last = format!("bytes={}-", bytes.len() - 1);
        let tail = edge.get(*id, &[(RANGE, &last)]).await;
        tail.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[bytes.len() - 1..]);
    }
    let stats = edge.edge.stats();
    assert_eq!((stats.disk_units, stats.disk_corrupt), (3 + 2 + 2 + 5, 0));
}

#[tokio::test]
async fn the_answer_says_that_it_came_from_disk() {
    let edge = TestEdge::start_with(on_disk()).await;
    let blobs = warmed(&edge).await;
    let edge = edge.restart(on_disk(), |_| {}).await;
    for (id, bytes) in &blobs {
        let first = edge.get(*id, &[]).await;
        first.assert_is(StatusCode::OK, bytes);
        assert_eq!(first.header("cache-status"), "waxwing; hit; detail=disk");
        assert_eq!(edge.get(*id, &[]).await.header("cache-status"), "waxwing; hit");
    }
}

/// Bits flipped while the edge was stopped: seen at the first use, dropped, counted, fetched again.
#[tokio::test]
async fn a_bit_flipped_on_disk_is_found_and_fetched_again() {
    let edge = TestEdge::start_with(on_disk()).await;
    let blobs = warmed(&edge).await;
    let mut flipped = 0_u64;
    let edge = edge
        .restart(on_disk(), |dir| {
            for path in cache_files(dir) {
                let mut bytes = fs::read(&path).unwrap();
                // One bit in every block that holds anything.
                for block in bytes.chunks_mut(4096).filter(|block| block.iter().any(|byte| *byte != 0)) {
                    block[0] ^= 1;
                    flipped += 1;
                }
                fs::write(&path, bytes).unwrap();
            }
        })
        .await;
    assert!(flipped > 1000, "the injector did nothing");
    let before = edge.origin.asked().len();
    for (id, bytes) in &blobs {
        edge.get(*id, &[]).await.assert_is(StatusCode::OK, bytes);
    }
    assert!(edge.edge.stats().disk_corrupt >= blobs.len() as u64);
    assert!(edge.origin.asked().len() >= before + blobs.len());
    // What was fetched again is whole on disk again.
    let edge = edge.restart(on_disk(), |_| {}).await;
    edge.origin.behave(Manner::Status(503));
    for (id, bytes) in &blobs {
        edge.get(*id, &[]).await.assert_is(StatusCode::OK, bytes);
    }
    assert_eq!(edge.edge.stats().disk_corrupt, 0);
}

/// A single damaged slice costs that slice.
#[tokio::test]
async fn one_bad_slice_costs_one_slice() {
    let edge = TestEdge::start_with(on_disk()).await;
    let bytes = sample_bytes(3 * SLICE);
    let id = edge.origin.store(bytes.clone());
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    let edge = edge
        .restart(on_disk(), |dir| {
            let path = cache_files(dir).pop().unwrap();
            let mut held = fs::read(&path).unwrap();
            let blocks = (0..held.len() - SLICE).step_by(4096);
            let at = blocks.into_iter().find(|at| held[*at..at + SLICE] == bytes[SLICE..2 * SLICE]).unwrap();
            held[at + 3 * GROUP] ^= 0x80;
            fs::write(&path, held).unwrap();
        })
        .await;
    let before = edge.origin.asked().len();
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(edge.origin.asked().len(), before + 1, "one ranged request");
    assert_eq!(edge.origin.asked().pop(), Some(Asked::Range(SLICE as u64, 2 * SLICE as u64)));
    assert_eq!(edge.edge.stats().disk_corrupt, 1);
}

/// A torn tail of the index is cut; cache files that no record names are given back; neither is anybody's error.
#[tokio::test]
async fn torn_and_missing_pieces_cost_only_themselves() {
    for damage in ["torn tail", "no log", "garbage log", "no files", "stray file", "short file"] {
        let edge = TestEdge::start_with(on_disk()).await;
        let blobs = warmed(&edge).await;
        let edge = edge
            .restart(on_disk(), |dir| {
                let log = dir.join("index.log");
                let held = fs::read(&log).unwrap();
                let file = cache_files(dir).pop().unwrap();
                match damage {
                    "torn tail" => fs::write(&log, &held[..held.len() - 20]).unwrap(),
                    "no log" => fs::remove_file(&log).unwrap(),
                    "garbage log" => fs::write(&log, sample_bytes(10_000)).unwrap(),
                    "no files" => cache_files(dir).iter().for_each(|path| fs::remove_file(path).unwrap()),
                    "stray file" => fs::write(dir.join("0000000999.cache"), sample_bytes(SLICE)).unwrap(),
                    _ => fs::File::options().write(true).open(file).unwrap().set_len(100_000).unwrap(),
                }
            })
            .await;
        let units = edge.edge.stats().disk_units;
        match damage {
            "torn tail" => assert_eq!(units, 11),
            "stray file" => assert_eq!(units, 12),
            "short file" => assert!((1..12).contains(&units)),
            _ => assert_eq!(units, 0, "{damage}"),
        }
        assert!(bytes_on_disk(edge.dir.path()) < 7 * SLICE as u64, "{damage}: what nobody owns was given back");
        for (id, bytes) in &blobs {
            edge.get(*id, &[]).await.assert_is(StatusCode::OK, bytes);
        }
    }
}

/// Full to the brim and beyond, with restarts in between: never more on disk than configured, and all of it right.
#[tokio::test]
async fn the_tier_never_takes_more_than_it_may() {
    let config = Config { memory_bytes: 4 << 20, ..on_disk() };
    let mut edge = TestEdge::start_with(config.clone()).await;
    let bytes = sample_bytes(24 * SLICE);
    for round in 0..3 {
        for n in 0..4_usize {
            let mut bytes = bytes.clone();
            bytes[0] = (round * 10 + n) as u8;
            let id = edge.origin.store(bytes.clone());
            edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
            edge.edge.close().await;
            let taken = bytes_on_disk(edge.dir.path());
            assert!(taken <= DISK, "{taken} bytes in a tier of {DISK}");
        }
        assert!(bytes_on_disk(edge.dir.path()) > DISK * 8 / 10, "it is used, too");
        assert!(edge.edge.stats().disk_evicted > 0);
        edge = edge.restart(config.clone(), |_| {}).await;
        assert!(bytes_on_disk(edge.dir.path()) <= DISK);
    }
}

/// An operator who makes the tier smaller finds it smaller after the restart.
#[tokio::test]
async fn a_tier_made_smaller_gives_the_room_back() {
    let larger = Config { disk_bytes: 2 * DISK, ..Config::default() };
    let edge = TestEdge::start_with(larger).await;
    let bytes = sample_bytes(100 * SLICE);
    let id = edge.origin.store(bytes.clone());
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    edge.edge.close().await;
    assert!(bytes_on_disk(edge.dir.path()) > DISK);
    let edge = edge.restart(on_disk(), |_| {}).await;
    edge.edge.close().await;
    assert!(bytes_on_disk(edge.dir.path()) <= DISK);
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
}

/// Two edges in one directory would unlink each other's files.
#[tokio::test]
async fn a_directory_belongs_to_one_edge() {
    let edge = TestEdge::start_with(on_disk()).await;
    let config = Config { disk_path: Some(edge.dir.path().to_owned()), ..on_disk() };
    assert!(TestEdge::try_start_with(config).await.unwrap_err().to_string().contains("another process uses it"));
}
