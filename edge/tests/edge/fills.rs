//! Many readers, one fetch.

use http::StatusCode;
use http::header::RANGE;
use http_body_util::BodyExt as _;
use waxwing_edge::Config;

use super::harness::{GROUP, SLICE, TestEdge, sample_bytes};
use super::origin::{Asked, Manner};

const SLICES: usize = 3;

/// A photo sent to a large group is asked for by all of it in the same second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_cold_readers_cost_the_origin_one_request_a_slice() {
    let edge = TestEdge::start().await;
    for len in [1, 5_000, GROUP, GROUP + 1, SLICES * SLICE + 77] {
        let bytes = sample_bytes(len);
        let before = edge.origin.asked().len();
        let id = edge.origin.store(bytes.clone());
        edge.origin.open_gate_to(0);
        let readers = (0..100).map(|_| edge.get(id, &[]));
        let all = futures_util::future::join_all(readers);
        let release = async {
            edge.origin.wait_for_range_asked().await;
            edge.origin.open_gate_to(u64::MAX);
        };
        let (answers, ()) = tokio::join!(all, release);
        answers.iter().for_each(|answer| answer.assert_is(StatusCode::OK, &bytes));
        let mut asked = edge.origin.asked().split_off(before);
        asked.sort_by_key(|asked| *asked != Asked::Outboard);
        assert_eq!(asked, [Asked::Outboard, Asked::Range(0, 8 * SLICE as u64)], "{len} bytes");
    }
}

/// Readers stream from the first verified group; nobody waits for a whole slice.
#[tokio::test]
async fn the_first_groups_arrive_while_the_origin_still_stalls() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(2 * SLICE);
    let id = edge.origin.store(bytes.clone());
    edge.origin.open_gate_to(2 * GROUP as u64 + 5);
    let mut first = edge.open(id).await;
    let mut second = edge.open(id).await;
    assert_eq!(first.read(2 * GROUP).await, bytes[..2 * GROUP]);
    assert_eq!(second.read(2 * GROUP).await, bytes[..2 * GROUP], "not a byte of the unverified third group");

    edge.origin.open_gate_to(u64::MAX);
    assert_eq!(first.rest().await, (bytes[2 * GROUP..].to_vec(), true));
    assert_eq!(second.rest().await, (bytes[2 * GROUP..].to_vec(), true));
    assert_eq!(edge.origin.ranges_asked().len(), 1);
}

#[tokio::test]
async fn a_fill_outlives_the_client_that_began_it() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(2 * SLICE + 9);
    let id = edge.origin.store(bytes.clone());
    edge.origin.open_gate_to(GROUP as u64);
    let mut first = edge.open(id).await;
    first.read(GROUP).await;
    let mut second = edge.open(id).await;
    second.read(GROUP).await;
    drop(first);
    edge.origin.open_gate_to(u64::MAX);
    assert_eq!(second.rest().await, (bytes[GROUP..].to_vec(), true));
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(edge.origin.ranges_asked().len(), 1);
}

/// Even with nobody left waiting: what was begun is there for the next.
#[tokio::test]
async fn a_fill_ends_in_the_cache_when_all_its_readers_are_gone() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(2 * SLICE + 9);
    let id = edge.origin.store(bytes.clone());
    edge.origin.open_gate_to(GROUP as u64);
    let mut only = edge.open(id).await;
    only.read(GROUP).await;
    drop(only);
    edge.origin.open_gate_to(u64::MAX);
    edge.origin.wait_for_answered(1).await;
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(edge.origin.ranges_asked().len(), 1);
}

/// Who jumps into the midst of a film waits for the bytes there, not for those before them in their slice; those come
/// afterwards, and nothing is asked for twice.
#[tokio::test]
async fn what_is_waited_for_is_fetched_before_what_lies_before_it() {
    // Of the origin's bytes none is to be of its purge log.
    let edge = TestEdge::start_with(Config { purge_poll_ms: 0, ..Config::default() }).await;
    let bytes = sample_bytes(2 * SLICE + 10 * GROUP + 5);
    let id = edge.origin.store(bytes.clone());
    let (from, end) = (2 * SLICE + 9 * GROUP, bytes.len());
    edge.origin.open_gate_to((from + GROUP) as u64);
    let first = format!("bytes={}-{}", from + 7, from + GROUP - 1);
    edge.get(id, &[(RANGE, &first)]).await.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[from + 7..from + GROUP]);
    let slice_end = 3 * SLICE as u64;
    assert_eq!(edge.origin.ranges_asked(), [(from as u64, slice_end)], "not a byte before it was asked for");

    // Somebody who waits for the slice's beginning gets it as soon as its end is there.
    let beginning = format!("bytes={}-{}", 2 * SLICE, 2 * SLICE + 99);
    let headers = [(RANGE, &*beginning)];
    let (answer, ()) = tokio::join!(edge.get(id, &headers), async { edge.origin.open_gate_to(u64::MAX) });
    answer.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[2 * SLICE..2 * SLICE + 100]);
    assert_eq!(edge.origin.ranges_asked(), [(2 * SLICE as u64, from as u64), (from as u64, slice_end)]);
    let all = format!("bytes={}-", 2 * SLICE);
    edge.get(id, &[(RANGE, &all)]).await.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[2 * SLICE..]);
    assert_eq!(edge.origin.ranges_asked().len(), 2, "all of it was there");
    assert_eq!(edge.edge.stats().origin_bytes, (end - 2 * SLICE + 43 * 32) as u64, "the slice and the outboard");
}

/// A place beyond the end of a blob spoils nothing for those who wait for what is there.
#[tokio::test]
async fn a_range_beyond_the_end_is_refused_and_its_slice_filled_all_the_same() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(SLICE + 3 * GROUP);
    let id = edge.origin.store(bytes.clone());
    let (beyond, within) = (format!("bytes={}-", SLICE + 12 * GROUP), format!("bytes={SLICE}-"));
    let (beyond, within) = ([(RANGE, &*beyond)], [(RANGE, &*within)]);
    let (refused, given) = tokio::join!(edge.get(id, &beyond), edge.get(id, &within));
    assert_eq!(refused.status, StatusCode::RANGE_NOT_SATISFIABLE);
    given.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[SLICE..]);
}

/// A fill that broke off amid either part goes on where it stood.
#[tokio::test]
async fn a_fill_from_the_midst_of_a_slice_goes_on_where_it_broke_off() {
    for (is_first, cut) in [(true, 11 * GROUP + 5), (false, 3 * GROUP + 5)] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(SLICE);
        let id = edge.origin.store(bytes.clone());
        let outboard = edge.head(id, &[]).await;
        assert_eq!(outboard.status, StatusCode::OK);
        edge.origin.open_gate_to(0);
        let range = format!("bytes={}-", 9 * GROUP);
        let headers = [(RANGE, &*range)];
        let asked = edge.get(id, &headers);
        let cut = || edge.origin.behave_for(1, Manner::CutAt(cut as u64));
        if is_first {
            cut();
        }
        let release = async {
            edge.origin.wait_for_range_asked().await;
            // The manner of the first answer is settled by now.
            if !is_first {
                cut();
            }
            edge.origin.open_gate_to(u64::MAX);
        };
        let (answer, ()) = tokio::join!(asked, release);
        answer.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[9 * GROUP..]);
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
        let bytes_asked: u64 = edge.origin.ranges_asked().iter().map(|(start, end)| end - start).sum();
        assert!(bytes_asked > SLICE as u64, "nothing broke off: {:?}", edge.origin.ranges_asked());
        assert_eq!(edge.edge.stats().fill_bytes, SLICE as u64, "no group was verified twice");
    }
}

#[tokio::test]
async fn a_slow_reader_holds_nobody_back() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(12 * SLICE + 1);
    let id = edge.origin.store(bytes.clone());
    let mut slow = edge.body_without_socket(id).await;
    slow.frame().await.unwrap().unwrap();
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
}

/// A reader that stops reading stops the fetching, however large the blob. What was fetched for it is not fetched
/// again, although the memory tier is far too small to keep it.
#[tokio::test]
async fn a_stalled_reader_costs_a_window_of_memory_and_no_byte_twice() {
    let config = Config { memory_bytes: 4 << 20, ..Config::default() };
    let edge = TestEdge::start_with(config).await;
    let bytes = sample_bytes(64 * SLICE);
    let id = edge.origin.store(bytes.clone());
    let mut stalled = edge.body_without_socket(id).await;
    let mut read = stalled.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    edge.origin.wait_for_answered(1).await;
    assert_eq!(edge.origin.ranges_asked(), [(0, 8 * SLICE as u64)]);

    while let Some(frame) = stalled.frame().await {
        read.extend_from_slice(&frame.unwrap().into_data().unwrap());
    }
    assert!(read == bytes);
    let ranges = edge.origin.ranges_asked();
    let (mut at, requests) = (0, ranges.len());
    for (start, end) in ranges {
        assert_eq!(start, at, "no gap and no overlap");
        at = end;
    }
    assert_eq!(at, 64 * SLICE as u64);
    assert!(requests <= 16, "adjacent slices share requests: {requests}");
}

/// Without a share of the read-ahead budget a reader goes on slice by slice.
#[tokio::test]
async fn without_read_ahead_a_blob_still_arrives() {
    let edge = TestEdge::start_with(Config { read_ahead_bytes: 0, ..Config::default() }).await;
    let bytes = sample_bytes(3 * SLICE + 5);
    let id = edge.origin.store(bytes.clone());
    edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(edge.origin.ranges_asked().len(), 4);
}

#[tokio::test]
async fn the_end_of_a_large_blob_costs_its_slice_and_the_outboard() {
    let bytes = sample_bytes(16 * SLICE);
    let tail = &bytes[bytes.len() - GROUP..];
    let exact = format!("bytes={}-{}", bytes.len() - GROUP, bytes.len() - 1);
    for range in ["bytes=-65536", exact.as_str()] {
        let edge = TestEdge::start().await;
        let id = edge.origin.store(bytes.clone());
        edge.get(id, &[(RANGE, range)]).await.assert_is(StatusCode::PARTIAL_CONTENT, tail);
        edge.origin.wait_for_answered(2).await;
        let (slice, end) = (15 * SLICE as u64, 16 * SLICE as u64);
        let wanted = end - GROUP as u64;
        assert_eq!(edge.origin.ranges_asked(), [(slice, wanted), (wanted, end)], "{range}");
        assert_eq!(edge.origin.outboards_asked(), 1);
    }
}

/// A gap between cached slices is asked for as one, and only the gap.
#[tokio::test]
async fn only_what_is_missing_is_asked_for_and_neighbours_together() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(5 * SLICE);
    let id = edge.origin.store(bytes.clone());
    let slice = SLICE as u64;
    edge.get(id, &[(RANGE, "bytes=0-0")]).await;
    let last = format!("bytes={}-", 4 * SLICE);
    edge.get(id, &[(RANGE, &last)]).await;
    let answer = edge.get(id, &[]).await;
    answer.assert_is(StatusCode::OK, &bytes);
    assert_eq!(edge.origin.ranges_asked(), [(0, slice), (slice, 4 * slice), (4 * slice, 5 * slice)]);
    assert_eq!(edge.origin.outboards_asked(), 1);
    assert_eq!(answer.header("cache-status"), "waxwing; fwd=partial; fwd-status=206; stored");
}

#[tokio::test]
async fn the_answer_says_what_the_cache_did() {
    let edge = TestEdge::start().await;
    for len in [100, 2 * SLICE] {
        let id = edge.origin.store(sample_bytes(len));
        let cold = edge.get(id, &[]).await;
        assert_eq!(cold.header("cache-status"), "waxwing; fwd=uri-miss; fwd-status=206; stored");
        assert_eq!(cold.header("age"), "");
        assert!(cold.header("server-timing").starts_with("origin;dur="));
        let warm = edge.get(id, &[]).await;
        assert_eq!(warm.header("cache-status"), "waxwing; hit");
        assert!(warm.header("age").parse::<u64>().is_ok());
        assert!(warm.header("server-timing").starts_with("cache;dur="));
    }
}

#[tokio::test]
async fn who_joins_a_fill_is_told_so() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(2 * SLICE);
    let id = edge.origin.store(bytes.clone());
    edge.origin.open_gate_to(GROUP as u64);
    let _first = edge.open(id).await;
    edge.origin.open_gate_to(2 * GROUP as u64);
    let second = edge.get(id, &[(RANGE, "bytes=0-99")]).await;
    assert!(second.header("cache-status").ends_with("; collapsed"), "{}", second.header("cache-status"));
}
