//! What went from the origin goes from the edge, from memory and from disk, and does not come back.

use http::StatusCode;
use waxwing_edge::Config;

use super::harness::{GROUP, SLICE, TestEdge, sample_bytes};

fn config() -> Config {
    Config { disk_bytes: 64 << 20, purge_poll_ms: 5, ..Config::default() }
}

#[tokio::test]
async fn a_purged_blob_is_gone_from_memory_and_disk() {
    let edge = TestEdge::start_with(config()).await;
    let mut blobs = Vec::new();
    for len in [10, GROUP, GROUP + 1, 3 * SLICE + 5] {
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        blobs.push(id);
    }
    let (kept, kept_bytes) = (edge.origin.store(sample_bytes(77)), sample_bytes(77));
    edge.get(kept, &[]).await.assert_is(StatusCode::OK, &kept_bytes);
    edge.edge.close().await;
    blobs.iter().for_each(|id| edge.origin.purge(*id));
    edge.origin.wait_for_purges_known().await;
    for id in &blobs {
        assert_eq!(edge.get(*id, &[]).await.refusal(), "404 blob-not-found");
    }
    let stats = edge.edge.stats();
    assert_eq!((stats.purges, stats.purge_cursor, stats.disk_units, stats.purged_all), (4, 4, 1, 0));
    edge.get(kept, &[]).await.assert_is(StatusCode::OK, &kept_bytes);
}

/// A fill that began before the purge ends after it. Who followed it keeps what it was promised; nobody else gets it.
#[tokio::test]
async fn a_fill_from_before_a_purge_does_not_bring_the_blob_back() {
    for len in [GROUP, 2 * SLICE] {
        let edge = TestEdge::start_with(config()).await;
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        edge.origin.open_gate_to(GROUP as u64 / 2);
        let reader = tokio::spawn(edge.body_soon(id));
        edge.origin.wait_for_range_asked().await;
        edge.origin.purge(id);
        edge.origin.wait_for_purges_known().await;
        edge.origin.open_gate_to(u64::MAX);
        assert!(reader.await.unwrap() == bytes);
        edge.edge.close().await;
        assert_eq!(edge.get(id, &[]).await.refusal(), "404 blob-not-found", "{len} bytes");
        assert_eq!(edge.edge.stats().disk_units, 0);
        // Uploaded again, it is a blob like any other.
        edge.origin.store(bytes.clone());
        let edge = edge.restart(Config { absent_ms: 0, ..config() }, |_| {}).await;
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    }
}

/// What was purged while the edge was stopped is purged when it is back, from the number it knew.
#[tokio::test]
async fn purges_missed_while_stopped_are_made_up_for() {
    let edge = TestEdge::start_with(config()).await;
    edge.origin.purge(edge.origin.store(sample_bytes(9)));
    edge.origin.wait_for_purges_known().await;
    let (gone, kept) = (edge.origin.store(sample_bytes(SLICE)), edge.origin.store(sample_bytes(GROUP)));
    edge.get(gone, &[]).await.assert_is(StatusCode::OK, &sample_bytes(SLICE));
    edge.get(kept, &[]).await.assert_is(StatusCode::OK, &sample_bytes(GROUP));
    let origin = edge.origin.clone();
    let edge = edge.restart(config(), |_| origin.purge(gone)).await;
    edge.origin.wait_for_purges_known().await;
    assert_eq!(edge.get(gone, &[]).await.refusal(), "404 blob-not-found");
    let kept = edge.get(kept, &[]).await;
    assert!(kept.header("cache-status").starts_with("waxwing; hit"));
    let stats = edge.edge.stats();
    assert_eq!((stats.purges, stats.purged_all), (1, 0));
    // The number is known the next time.
    let edge = edge.restart(config(), |_| {}).await;
    edge.origin.wait_for_purges_known().await;
    assert_eq!((edge.edge.stats().purges, edge.edge.stats().purged_all), (0, 0));
}

/// The origin has forgotten what this edge has not heard of: nothing here can be trusted.
#[tokio::test]
async fn when_purges_were_forgotten_everything_goes() {
    let edge = TestEdge::start_with(config()).await;
    edge.origin.purge(edge.origin.store(sample_bytes(9)));
    edge.origin.wait_for_purges_known().await;
    let id = edge.origin.store(sample_bytes(GROUP));
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &sample_bytes(GROUP));
    let origin = edge.origin.clone();
    let edge = edge
        .restart(config(), |_| {
            origin.purge(id);
            origin.purge(origin.store(sample_bytes(8)));
            origin.purge(origin.store(sample_bytes(7)));
            origin.forget_purges_before(4);
        })
        .await;
    edge.origin.wait_for_purges_known().await;
    assert_eq!(edge.get(id, &[]).await.refusal(), "404 blob-not-found");
    let stats = edge.edge.stats();
    assert_eq!((stats.purged_all, stats.purge_cursor, stats.disk_units), (1, 4, 0));
}
