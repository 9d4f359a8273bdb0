//! Every byte of every range, at every boundary, cold and warm.

use std::sync::LazyLock;

use http::StatusCode;
use http::header::RANGE;
use proptest::prelude::*;
use waxwing_edge::Config;

use super::harness::{Answer, GROUP, SLICE, TestEdge, sample_bytes};
use super::origin::Manner;

#[tokio::test]
async fn a_blob_of_any_shape_arrives_whole_cold_and_warm() {
    let edge = TestEdge::start().await;
    for len in [0, 1, 541, GROUP - 1, GROUP, GROUP + 1, SLICE - 1, SLICE, SLICE + 1, 9 * SLICE + GROUP + 1] {
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        for _ in 0..2 {
            let answer = edge.get(id, &[]).await;
            answer.assert_is(StatusCode::OK, &bytes);
            assert_eq!(answer.header("content-length"), len.to_string());
        }
    }
}

#[tokio::test]
async fn a_range_says_where_it_is() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(1000);
    let id = edge.origin.store(bytes.clone());
    for (range, told, expected) in [
        ("bytes=0-0", "bytes 0-0/1000", &bytes[..1]),
        ("bytes=990-", "bytes 990-999/1000", &bytes[990..]),
        ("bytes=990-5000", "bytes 990-999/1000", &bytes[990..]),
        ("bytes=-7", "bytes 993-999/1000", &bytes[993..]),
        ("bytes=-5000", "bytes 0-999/1000", &bytes[..]),
    ] {
        let answer = edge.get(id, &[(RANGE, range)]).await;
        answer.assert_is(StatusCode::PARTIAL_CONTENT, expected);
        assert_eq!(answer.header("content-range"), told, "{range}");
        assert_eq!(answer.header("content-length"), expected.len().to_string(), "{range}");
    }
}

#[tokio::test]
async fn a_range_beyond_the_end_is_refused_with_the_size() {
    for len in [0, 1000, 2 * SLICE] {
        let edge = TestEdge::start().await;
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        let beyond = format!("bytes={len}-");
        for range in [beyond.as_str(), "bytes=-0", "bytes=9999999999999999-", "bytes=99999999999999999999999-"] {
            let refused = edge.get(id, &[(RANGE, range)]).await;
            assert_eq!(refused.refusal(), "416 range-not-satisfiable", "{range} of {len}");
            assert_eq!(refused.header("content-range"), format!("bytes */{len}"));
        }
        edge.get(id, &[]).await.assert_is(StatusCode::OK, &bytes);
    }
}

/// What a multipart answer holds: where each part says it is, and its bytes.
fn parts_of(answer: &Answer) -> Vec<(String, Vec<u8>)> {
    let content_type = answer.header("content-type");
    let boundary = content_type.strip_prefix("multipart/byteranges; boundary=").expect("a multipart answer");
    let marker = format!("\r\n--{boundary}");
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|window| window == what);
    let mut left = &answer.body[..];
    let mut parts = Vec::new();
    loop {
        assert!(left.starts_with(marker.as_bytes()));
        left = &left[marker.len()..];
        if left == b"--\r\n" {
            return parts;
        }
        let head_end = find(left, b"\r\n\r\n").unwrap();
        let head = String::from_utf8(left[..head_end].to_vec()).unwrap();
        assert!(head.contains("\r\ncontent-type: application/octet-stream"));
        let range = head.split("content-range: ").nth(1).unwrap().lines().next().unwrap().to_owned();
        left = &left[head_end + 4..];
        let end = find(left, marker.as_bytes()).unwrap();
        parts.push((range, left[..end].to_vec()));
        left = &left[end..];
    }
}

#[tokio::test]
async fn several_ranges_come_in_one_answer_cold_and_warm() {
    let edge = TestEdge::start().await;
    let len = 2 * SLICE + 1000;
    for (ranges, expected) in [
        ("bytes=0-1,5-6", vec![(0, 2), (5, 7)]),
        ("bytes=5-6, 0-1", vec![(5, 7), (0, 2)]),
        ("bytes=-1,0-70000", vec![(len - 1, len), (0, 70_001)]),
        ("bytes=0-9,2000000-2097159,1048570-1048580", vec![(0, 10), (2_000_000, 2_097_160), (1_048_570, 1_048_581)]),
        ("bytes=0-9,99999999-,20-29", vec![(0, 10), (20, 30)]),
    ] {
        let bytes = sample_bytes(len);
        let id = edge.origin.store(bytes.clone());
        for _ in 0..2 {
            let answer = edge.get(id, &[(RANGE, ranges)]).await;
            assert_eq!((answer.status, answer.is_whole), (StatusCode::PARTIAL_CONTENT, true));
            assert_eq!(answer.header("content-length"), answer.body.len().to_string());
            assert_eq!(answer.header("content-range"), "");
            let told = |(start, end): &(usize, usize)| {
                (format!("bytes {start}-{}/{len}", end - 1), bytes[*start..*end].to_vec())
            };
            assert!(parts_of(&answer) == expected.iter().map(told).collect::<Vec<_>>(), "{ranges}");
        }
    }
}

/// What touches becomes one range, and one range is a plain answer.
#[tokio::test]
async fn ranges_that_overlap_are_one() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(1000);
    let id = edge.origin.store(bytes.clone());
    let answer = edge.get(id, &[(RANGE, "bytes=10-19,15-29,30-39")]).await;
    answer.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[10..40]);
    assert_eq!(answer.header("content-range"), "bytes 10-39/1000");
    let none = edge.get(id, &[(RANGE, "bytes=1000-,2000-")]).await;
    assert_eq!(none.refusal(), "416 range-not-satisfiable");
    assert_eq!(none.header("content-range"), "bytes */1000");
}

/// A thousand tiny ranges get the whole, and the origin is asked for no byte twice.
#[tokio::test]
async fn a_range_storm_costs_the_origin_the_blob() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(3 * SLICE);
    let id = edge.origin.store(bytes.clone());
    let tiny = (0..1000).map(|n| format!("{}-{}", n * 3000, n * 3000 + 1)).collect::<Vec<_>>().join(",");
    edge.get(id, &[(RANGE, &format!("bytes={tiny}"))]).await.assert_is(StatusCode::OK, &bytes);
    for n in 0..100 {
        let eight =
            (0..8).map(|m| format!("{}-{}", m * 300_000 + n, m * 300_000 + 9 * n)).collect::<Vec<_>>().join(",");
        let answer = edge.get(id, &[(RANGE, &format!("bytes={eight}"))]).await;
        assert_eq!(parts_of(&answer).len(), 8);
    }
    assert_eq!(edge.origin.asked().len(), 2, "outboard and blob");
    let stats = edge.edge.stats();
    assert!(stats.origin_bytes <= 3 * SLICE as u64 * 11 / 10, "{}", stats.origin_bytes);
}

/// A part that cannot be had ends in a visible cut.
#[tokio::test]
async fn a_part_that_fails_cuts_the_answer() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(3 * SLICE));
    edge.get(id, &[(RANGE, "bytes=0-9")]).await;
    edge.origin.behave(Manner::Status(503));
    let cut = edge.get(id, &[(RANGE, "bytes=0-9,2097152-2097160")]).await;
    assert!(!cut.is_whole && cut.body.len() < cut.header("content-length").parse().unwrap());
}

/// RFC 9110 allows the whole for what is malformed, in another unit, or of too many parts.
#[tokio::test]
async fn odd_ranges_get_the_whole() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(1000);
    let id = edge.origin.store(bytes.clone());
    for range in ["bytes=0-1,5-4", "bytes=5-4", "pages=1-2", "bytes=", "bytes=0x1-2"] {
        let answer = edge.get(id, &[(RANGE, range)]).await;
        answer.assert_is(StatusCode::OK, &bytes);
        assert_eq!(answer.header("content-range"), "", "{range}");
    }
}

const LEN: usize = 3 * SLICE + 2 * GROUP + 321;
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| sample_bytes(LEN));

/// An offset near a boundary of groups or slices, or anywhere.
fn offset() -> impl Strategy<Value = usize> {
    let near =
        |unit: usize| (0..=LEN / unit, -2_i64..=2).prop_map(move |(n, d)| (n * unit).saturating_add_signed(d as isize));
    prop_oneof![near(GROUP), near(SLICE), 0..LEN, Just(LEN - 1)].prop_map(|at| at.min(LEN - 1))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Three ranges of one edge after one another: each is cold, warm, or a bit of both.
    #[test]
    fn any_range_is_that_range_of_the_blob(ranges in prop::collection::vec((offset(), offset()), 3), ahead in 0..3_u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config { read_ahead_bytes: ahead * SLICE as u64, ..Config::default() };
            let edge = TestEdge::start_with(config).await;
            let id = edge.origin.store(BYTES.clone());
            for (one, other) in ranges {
                let (first, last) = (one.min(other), one.max(other));
                let answer = edge.get(id, &[(RANGE, &format!("bytes={first}-{last}"))]).await;
                answer.assert_is(StatusCode::PARTIAL_CONTENT, &BYTES[first..=last]);
                assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{LEN}"));
            }
        });
    }
}
