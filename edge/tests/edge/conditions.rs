//! Conditions, HEAD, and what every answer carries.

use http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, ORIGIN, RANGE,
};
use http::{Method, StatusCode};

use super::harness::{SLICE, TestEdge, path, sample_bytes};
use super::origin::Asked;

#[tokio::test]
async fn a_copy_that_stands_is_not_sent_again() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(1000));
    let etag = edge.get(id, &[]).await.header("etag").to_owned();
    assert_eq!(etag, format!("\"{id}\""));
    for method in [edge.get(id, &[(IF_NONE_MATCH, &etag)]).await, edge.head(id, &[(IF_NONE_MATCH, &etag)]).await] {
        assert_eq!((method.status, method.body.len()), (StatusCode::NOT_MODIFIED, 0));
        assert_eq!(method.header("etag"), etag);
        assert!(method.header("cache-control").starts_with("private, max-age="));
    }
    let other = edge.get(id, &[(IF_NONE_MATCH, "\"other\"")]).await;
    other.assert_is(StatusCode::OK, &sample_bytes(1000));
}

#[tokio::test]
async fn preconditions_decide_before_bytes_do() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(1000));
    let etag = format!("\"{id}\"");
    edge.get(id, &[(IF_MATCH, &etag)]).await.assert_is(StatusCode::OK, &sample_bytes(1000));
    for answer in [edge.get(id, &[(IF_MATCH, "\"other\"")]).await, edge.head(id, &[(IF_MATCH, "\"other\"")]).await] {
        assert_eq!(answer.status, StatusCode::PRECONDITION_FAILED);
    }
    for answer in [edge.get(id, &[(IF_NONE_MATCH, "*")]).await, edge.head(id, &[(IF_NONE_MATCH, "*")]).await] {
        assert_eq!((answer.status, answer.body.len()), (StatusCode::NOT_MODIFIED, 0));
    }
    let nothing = super::origin::Origin::start().await.store(sample_bytes(5));
    assert_eq!(edge.get(nothing, &[(IF_NONE_MATCH, "*")]).await.refusal(), "404 blob-not-found");
    let dated = edge.get(id, &[(IF_MODIFIED_SINCE, "Wed, 21 Oct 2099 07:28:00 GMT")]).await;
    dated.assert_is(StatusCode::OK, &sample_bytes(1000));
}

#[tokio::test]
async fn a_part_is_joined_to_a_copy_of_this_blob_only() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(1000);
    let id = edge.origin.store(bytes.clone());
    let etag = format!("\"{id}\"");
    let range = (RANGE, "bytes=500-");
    let part = edge.get(id, &[range.clone(), (IF_RANGE, &etag)]).await;
    part.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[500..]);
    let whole = edge.get(id, &[range, (IF_RANGE, "\"other\"")]).await;
    whole.assert_is(StatusCode::OK, &bytes);
}

/// HEAD tells the size and fetches no byte of the blob.
#[tokio::test]
async fn head_says_what_get_would_and_costs_the_outboard_at_most() {
    let edge = TestEdge::start().await;
    for len in [0, 1000, 3 * SLICE] {
        let id = edge.origin.store(sample_bytes(len));
        let before = edge.origin.asked().len();
        let head = edge.head(id, &[(RANGE, "bytes=0-1")]).await;
        assert_eq!((head.status, head.body.len()), (StatusCode::OK, 0));
        assert_eq!(edge.origin.asked().split_off(before), [Asked::Outboard]);
        let get = edge.get(id, &[]).await;
        for name in ["content-length", "content-type", "etag", "accept-ranges", "content-security-policy"] {
            assert_eq!(head.header(name), get.header(name), "{name}");
            assert_ne!(head.header(name), "", "{name}");
        }
    }
}

#[tokio::test]
async fn a_blob_can_do_nothing_in_a_browser() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store("<script>alert(1)</script>");
    let answer = edge.get(id, &[]).await;
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("content-security-policy"), "default-src 'none'; sandbox");
    assert_eq!(answer.header("accept-ranges"), "bytes");
    let cache_control = answer.header("cache-control");
    let max_age = cache_control.strip_prefix("private, max-age=").and_then(|rest| rest.strip_suffix(", immutable"));
    assert!((1..=900).contains(&max_age.unwrap().parse::<u64>().unwrap()), "{cache_control}");
}

#[tokio::test]
async fn any_page_may_read_answers_and_errors() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    let page = (ORIGIN, "https://chat.example");
    let preflight = [
        page.clone(),
        (ACCESS_CONTROL_REQUEST_METHOD, "GET"),
        (ACCESS_CONTROL_REQUEST_HEADERS, "authorization, range"),
    ];
    let allowed = edge.send(Method::OPTIONS, &path(id), &preflight).await;
    assert_eq!(allowed.status, StatusCode::OK);
    assert_eq!(allowed.header("access-control-allow-origin"), "*");
    for name in ["authorization", "range", "if-range", "if-none-match"] {
        assert!(allowed.header("access-control-allow-headers").contains(name), "{name}");
    }
    let refused = edge.send(Method::GET, &path(id), std::slice::from_ref(&page)).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    for answer in [refused, edge.get(id, &[page]).await] {
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        for name in ["content-range", "cache-status", "etag", "age", "server-timing", "content-length", "accept-ranges"]
        {
            assert!(answer.header("access-control-expose-headers").contains(name), "{name}");
        }
    }
}

#[tokio::test]
async fn blobs_are_only_read_here() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    for method in [Method::PUT, Method::POST, Method::DELETE, Method::PATCH] {
        let refused = edge.send(method, &path(id), &[]).await;
        assert_eq!(refused.refusal(), "405 method-not-allowed");
        assert!(refused.header("allow").contains("GET"));
    }
}
