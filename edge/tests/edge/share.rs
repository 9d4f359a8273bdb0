//! The page behind a share link.

use http::{Method, StatusCode};

use super::harness::{TestEdge, sample_bytes};

#[tokio::test]
async fn a_share_link_tells_how_to_open_it_and_carries_nothing_away() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    let page = edge.send(Method::GET, &format!("/s/{id}"), &[]).await;
    assert_eq!(page.status, StatusCode::OK);
    let text = String::from_utf8(page.body.clone()).unwrap();
    assert!(text.contains("waxwing get"));
    for active in ["<script", "<img", "<link", "http:", "https:", "style=", "onload="] {
        assert!(!text.contains(active), "{active}");
    }
    assert!(page.header("content-security-policy").starts_with("default-src 'none'"));
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    assert!(edge.origin.asked().is_empty(), "the page is the same whether the blob exists or not");
    let odd = edge.send(Method::GET, "/s/not-an-id", &[]).await;
    assert_eq!(odd.refusal(), "404 blob-not-found");
}
