//! An origin that is gone, breaks off or lies: visible, never cached, and over when it is over.

use http::StatusCode;
use http::header::RANGE;
use http_body_util::BodyExt as _;
use waxwing_edge::Config;

use super::harness::{GROUP, SLICE, TestEdge, sample_bytes};
use super::origin::{Manner, Origin};

const LEN: usize = 2 * SLICE + 1_234;

/// A connection that is cut may lose what was written last, so less than what was verified may arrive; never more.
#[track_caller]
fn assert_verified_prefix(body: &[u8], verified: &[u8]) {
    assert!(!body.is_empty() && verified.starts_with(body), "{} bytes of {}", body.len(), verified.len());
}

/// A bit flipped on the way once is asked for again; no reader notices.
#[tokio::test]
async fn a_flipped_bit_is_fetched_again() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(LEN);
    let id = edge.origin.store(bytes.clone());
    edge.origin.behave_for(1, Manner::FlipAt(SLICE as u64 + 3 * GROUP as u64 + 17));
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    let resumed = SLICE as u64 + 3 * GROUP as u64;
    assert_eq!(edge.origin.ranges_asked(), [(0, 8 * SLICE as u64), (resumed, 3 * SLICE as u64)]);
}

/// A bit that stays flipped ends the body before its group, visibly; and nothing of it is kept.
#[tokio::test]
async fn a_bit_that_stays_flipped_is_never_served_and_never_cached() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(LEN);
    let id = edge.origin.store(bytes.clone());
    edge.origin.behave(Manner::FlipAt(SLICE as u64 + 3 * GROUP as u64 + 17));
    let spoiled = edge.get(id, &[]).await;
    assert!(!spoiled.is_whole, "no clean end of file");
    assert_eq!(spoiled.header("content-length"), LEN.to_string());
    assert_verified_prefix(&spoiled.body, &bytes[..SLICE + 3 * GROUP]);

    edge.origin.behave(Manner::Honest);
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    let warm = edge.get(id, &[]).await;
    warm.assert_is(StatusCode::OK, &bytes);
    assert_eq!(warm.header("cache-status"), "waxwing; hit");
}

/// The server cuts the connection when fewer bytes come than were announced; but the body must not rely on that, since
/// other servers and other versions of HTTP end bodies in other ways.
#[tokio::test]
async fn a_failed_fill_is_an_error_of_the_body_itself() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(LEN));
    edge.origin.behave(Manner::FlipAt(SLICE as u64 + 17));
    let cut = edge.body_without_socket(id).await.collect().await;
    assert!(cut.is_err());
}

/// When not even the first group can be had, there is a status to say so.
#[tokio::test]
async fn a_bit_flipped_in_the_first_group_is_a_problem_and_no_body() {
    let edge = TestEdge::start().await;
    for len in [1, 500, GROUP, LEN] {
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        edge.origin.behave(Manner::FlipAt(0));
        assert_eq!(edge.get(id, &[]).await.refusal(), "502 origin-untrue", "{len} bytes");
        edge.origin.behave(Manner::Honest);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_taken_up_where_it_stood() {
    for manner in [Manner::CutAt(GROUP as u64 * 5 + 33), Manner::ChunkedShortAt(GROUP as u64 * 5 + 33)] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(LEN);
        let id = edge.origin.store(bytes.clone());
        edge.origin.behave_for(1, manner);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        let resumed = edge.origin.ranges_asked()[1].0;
        assert!(resumed > 0 && resumed <= 5 * GROUP as u64 && resumed % GROUP as u64 == 0, "{manner:?}: {resumed}");
    }
}

#[tokio::test]
async fn a_body_that_always_breaks_off_is_a_visible_truncation_within_a_bound() {
    for manner in [Manner::CutAt(SLICE as u64 + 33), Manner::ChunkedShortAt(SLICE as u64 + 33)] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(LEN);
        let id = edge.origin.store(bytes.clone());
        edge.origin.behave(manner);
        let cut = edge.get(id, &[]).await;
        assert!(!cut.is_whole, "{manner:?}: no clean end of file");
        assert_verified_prefix(&cut.body, &bytes[..SLICE]);
        assert_eq!(edge.origin.ranges_asked().len(), 3, "{manner:?}");

        edge.origin.behave(Manner::Honest);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    }
}

/// Who comes late to a fill that is about to give up has a try of its own.
#[tokio::test]
async fn a_waiter_takes_over_from_a_fill_that_gave_up() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(LEN);
    let id = edge.origin.store(bytes.clone());
    edge.origin.behave_for(3, Manner::CutAt(2 * GROUP as u64));
    edge.origin.open_gate_to(GROUP as u64);
    let beginner = edge.open(id).await;
    let joiner = edge.open(id).await;
    edge.origin.open_gate_to(u64::MAX);
    let (cut, whole) = tokio::join!(beginner.rest(), joiner.rest());
    assert!(!cut.1, "three tries is what a fill has");
    assert!(whole.1 && whole.0 == bytes);
    assert_eq!(edge.origin.ranges_asked().len(), 4);
}

/// All that wait for a fill that fails are told, and none takes it for the end.
#[tokio::test]
async fn every_waiter_sees_the_failure() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(LEN);
    let id = edge.origin.store(bytes.clone());
    edge.origin.behave(Manner::CutAt(2 * GROUP as u64));
    edge.origin.open_gate_to(GROUP as u64);
    let mut readers = Vec::new();
    for _ in 0..10 {
        readers.push(edge.open(id).await);
    }
    edge.origin.open_gate_to(u64::MAX);
    for reader in readers {
        let (read, is_whole) = reader.rest().await;
        assert!(!is_whole);
        assert_verified_prefix(&read, &bytes[..2 * GROUP]);
    }
}

#[tokio::test]
async fn answers_that_cannot_be_true_are_refused_and_leave_no_trace() {
    for manner in [
        Manner::IgnoreRange,
        Manner::ShiftRange,
        Manner::OtherSize,
        Manner::ForeignOutboard,
        Manner::NoOutboardSize,
        Manner::Status(302),
    ] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(LEN);
        let id = edge.origin.store(bytes.clone());
        edge.origin.behave(manner);
        assert_eq!(edge.get(id, &[]).await.refusal(), "502 origin-untrue", "{manner:?}");
        edge.origin.behave(Manner::Honest);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    }
}

/// The tree over the groups does not hold the size: only the last group's own hash does.
#[tokio::test]
async fn a_false_size_is_found_out_at_the_last_group_and_forgotten() {
    for len in [500, LEN] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        edge.origin.behave(Manner::Padded);
        let padded = edge.get(id, &[]).await;
        assert!(!padded.is_whole || padded.status == StatusCode::BAD_GATEWAY);
        assert!(padded.body.len() < len || padded.status == StatusCode::BAD_GATEWAY);
        edge.origin.behave(Manner::Honest);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        assert_eq!(edge.head(id, &[]).await.header("content-length"), len.to_string());
    }
}

#[tokio::test]
async fn what_the_origin_does_not_have_is_not_found() {
    let edge = TestEdge::start().await;
    let elsewhere = Origin::start().await.store(sample_bytes(10));
    let missing = edge.get(elsewhere, &[]).await;
    assert_eq!(missing.refusal(), "404 blob-not-found");
    assert_eq!(missing.header("cache-status"), "waxwing; fwd=uri-miss; fwd-status=404");
    assert_eq!(edge.head(elsewhere, &[]).await.status, StatusCode::NOT_FOUND);
}

/// An origin that is down takes only with it what the edge does not have.
#[tokio::test]
async fn hits_go_on_while_the_origin_is_down() {
    let edge = TestEdge::start().await;
    let (bytes, others) = (sample_bytes(LEN), sample_bytes(999));
    let (here, not_here) = (edge.origin.store(bytes.clone()), edge.origin.store(others.clone()));
    edge.get(here, &[]).await.assert_is(StatusCode::OK, &bytes);
    edge.origin.behave(Manner::Status(503));
    edge.get(here, &[(RANGE, "bytes=5-2000000")]).await.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[5..=2_000_000]);
    let miss = edge.get(not_here, &[]).await;
    assert_eq!(miss.refusal(), "504 origin-unavailable");
    assert!(miss.header("retry-after").parse::<u64>().unwrap() > 0);
    edge.origin.behave(Manner::Honest);
    edge.get(not_here, &[]).await.assert_is(StatusCode::OK, &others);
}

/// A second origin answers while the first one does not, and the first is not waited for each time.
#[tokio::test]
async fn another_origin_is_asked_when_the_first_fails() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let url = first.url();
    let config = Config { other_origins: vec![second.url()], ..Config::default() };
    let edge = TestEdge::before(first, url, config).await;
    let bytes = sample_bytes(LEN);
    let both = edge.origin.store(bytes.clone());
    second.store(bytes.clone());
    edge.get(both, &[]).await.assert_is(StatusCode::OK, &bytes);
    assert!(second.asked().is_empty(), "not before the first one failed");

    edge.origin.behave(Manner::Status(503));
    let other = sample_bytes(LEN - 1);
    let there = second.store(other.clone());
    edge.origin.store(other.clone());
    edge.get(there, &[]).await.assert_is(StatusCode::OK, &other);
    assert_eq!(edge.edge.stats().origin_failovers, 2, "outboard and bytes");
    let before = edge.origin.asked().len();
    let third = second.store(sample_bytes(77));
    edge.origin.store(sample_bytes(77));
    edge.get(third, &[]).await.assert_is(StatusCode::OK, &sample_bytes(77));
    assert_eq!(edge.origin.asked().len(), before, "the first has a rest");
    // What both fail to give is a gateway timeout.
    second.behave(Manner::Status(500));
    let lost = second.store(sample_bytes(3));
    edge.origin.store(sample_bytes(3));
    assert_eq!(edge.get(lost, &[]).await.refusal(), "504 origin-unavailable");
}

/// What the origin did not have is asked for again when the short memory of it is over.
#[tokio::test]
async fn absence_is_remembered_shortly() {
    for (absent_ms, asked) in [(60_000, 1), (0, 3)] {
        let edge = TestEdge::start_with(Config { absent_ms, ..Config::default() }).await;
        let id = Origin::start().await.store(sample_bytes(10));
        for _ in 0..3 {
            assert_eq!(edge.get(id, &[]).await.refusal(), "404 blob-not-found");
        }
        assert_eq!(edge.origin.outboards_asked(), asked);
        assert_eq!(edge.edge.stats().absent, 3);
    }
    let edge = TestEdge::start_with(Config { absent_ms: 20, ..Config::default() }).await;
    let bytes = sample_bytes(10);
    let id = Origin::start().await.store(bytes.clone());
    assert_eq!(edge.get(id, &[]).await.refusal(), "404 blob-not-found");
    edge.origin.store(bytes.clone());
    while edge.get(id, &[]).await.status == StatusCode::NOT_FOUND {}
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
}

#[tokio::test]
async fn an_origin_that_cannot_be_reached_is_a_gateway_timeout() {
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let origin = Origin::start().await;
    let id = origin.store(sample_bytes(10));
    let edge = TestEdge::before(origin, format!("http://{closed}"), Config::default()).await;
    assert_eq!(edge.get(id, &[]).await.refusal(), "504 origin-unavailable");
}

#[tokio::test]
async fn an_origin_that_never_answers_is_a_gateway_timeout() {
    let edge = TestEdge::start_with(Config { upstream_answer_timeout_ms: 50, ..Config::default() }).await;
    let id = edge.origin.store(sample_bytes(10));
    edge.origin.behave(Manner::Mute);
    assert_eq!(edge.get(id, &[]).await.refusal(), "504 origin-unavailable");
}

#[tokio::test]
async fn an_origin_that_falls_silent_amid_a_body_is_given_up() {
    // Long enough for what comes at all.
    let edge = TestEdge::start_with(Config { upstream_idle_timeout_ms: 2_000, ..Config::default() }).await;
    let bytes = sample_bytes(LEN);
    let id = edge.origin.store(bytes.clone());
    edge.origin.open_gate_to(GROUP as u64 + 1);
    let silent = edge.get(id, &[]).await;
    assert!(!silent.is_whole);
    assert_verified_prefix(&silent.body, &bytes[..GROUP]);
}

/// A wrong edge grant is the operator's to mend; clients are not told to log in.
#[tokio::test]
async fn an_origin_that_refuses_the_edge_is_a_bad_gateway() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    for status in [401, 403] {
        edge.origin.behave(Manner::Status(status));
        let refused = edge.get(id, &[]).await;
        assert_eq!(refused.refusal(), "502 origin-denied");
        assert_eq!(refused.header("www-authenticate"), "");
    }
}

/// The outboard of a blob is held in memory whole, so there is a size beyond which the edge does not go.
#[tokio::test]
async fn a_blob_beyond_the_configured_size_is_refused() {
    let edge = TestEdge::start_with(Config { blob_bytes_max: SLICE as u64, ..Config::default() }).await;
    let id = edge.origin.store(sample_bytes(SLICE + 1));
    assert_eq!(edge.get(id, &[]).await.refusal(), "502 blob-too-large");
    let bytes = sample_bytes(SLICE);
    let id = edge.origin.store(bytes.clone());
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
}
