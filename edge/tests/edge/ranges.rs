//! Every byte of every range, at every boundary, cold and warm.

use std::sync::LazyLock;

use http::StatusCode;
use http::header::RANGE;
use proptest::prelude::*;
use waxwing_edge::Config;

use super::harness::{GROUP, SLICE, TestEdge, sample_bytes};

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

/// RFC 9110 allows the whole for what is malformed, in another unit, or of several parts.
#[tokio::test]
async fn odd_ranges_get_the_whole() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(1000);
    let id = edge.origin.store(bytes.clone());
    for range in ["bytes=0-1,5-6", "bytes=5-4", "pages=1-2", "bytes=", "bytes=0x1-2"] {
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
