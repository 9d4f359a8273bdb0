//! Who may read: checked before anything is looked up, and not passed on.

use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Method, StatusCode};
use waxwing_protocol::grant::{Grant, GrantSigner, MEDIA_LIFETIME};
use waxwing_protocol::{BlobId, OwnerTag, Timestamp};

use super::harness::{Answer, EDGE_GRANT, TestEdge, media_grant, now, path, sample_bytes, signer};

async fn get(edge: &TestEdge, id: BlobId, authorization: &str) -> Answer {
    edge.send(Method::GET, &path(id), &[(AUTHORIZATION, authorization)]).await
}

fn minted(grant: &Grant, at: Timestamp) -> String {
    format!("Bearer {}", signer().mint(grant, at, MEDIA_LIFETIME, [1; 16]).text)
}

#[tokio::test]
async fn without_a_valid_grant_nothing_is_even_looked_up() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    let long_ago = Timestamp::from_millis(now().as_millis() - 3_600_000);
    let foreign = GrantSigner::from_seed(&[6; 32]).mint(&Grant::Media, now(), MEDIA_LIFETIME, [1; 16]).text;
    let mut forged = media_grant().into_bytes();
    let last = forged.len() - 5;
    forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for (authorization, expected) in [
        ("Bearer nonsense".to_owned(), "401 grant-invalid"),
        ("Bearer ".to_owned(), "401 grant-invalid"),
        (format!("Basic {}", media_grant()), "401 grant-invalid"),
        (format!("Bearer {foreign}"), "401 grant-invalid"),
        (format!("Bearer {forged}"), "401 grant-invalid"),
        (format!("Bearer {}", "x".repeat(10_000)), "401 grant-invalid"),
        (minted(&Grant::Media, long_ago), "401 grant-expired"),
    ] {
        let refused = get(&edge, id, &authorization).await;
        assert_eq!(refused.refusal(), expected, "{authorization}");
        assert!(refused.header("www-authenticate").starts_with("Bearer"));
        assert!(!refused.problem().to_string().contains(&authorization[7..]) || authorization.len() < 10);
    }
    let none = edge.send(Method::GET, &path(id), &[]).await;
    assert_eq!((none.refusal().as_str(), none.header("www-authenticate")), ("401 grant-missing", "Bearer"));
    let one = format!("Bearer {}", media_grant());
    let two = edge.send(Method::GET, &path(id), &[(AUTHORIZATION, &one), (AUTHORIZATION, &one)]).await;
    assert_eq!(two.refusal(), "401 grant-invalid");
    assert!(edge.origin.asked().is_empty());
}

#[tokio::test]
async fn a_genuine_grant_for_something_else_is_forbidden() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10));
    let owner = OwnerTag::from_bytes([1; 16]);
    for grant in [
        Grant::Upload { owner, blob_bytes_max: 10, quota_bytes: 10 },
        Grant::Edge { node: "edge-2".into() },
        Grant::Share { blob: BlobId::from_bytes([8; 32]) },
    ] {
        assert_eq!(get(&edge, id, &minted(&grant, now())).await.refusal(), "403 grant-insufficient", "{grant:?}");
    }
    assert!(edge.origin.asked().is_empty());
}

#[tokio::test]
async fn a_share_grant_opens_its_blob_and_lasts_at_most_a_day_in_a_browser() {
    let edge = TestEdge::start().await;
    let bytes = sample_bytes(10);
    let id = edge.origin.store(bytes.clone());
    let share = Grant::Share { blob: id };
    let month = Duration::from_secs(30 * 86_400);
    let token = signer().mint(&share, now(), month, [1; 16]).text;
    let answer = get(&edge, id, &format!("Bearer {token}")).await;
    answer.assert_is(StatusCode::OK, &bytes);
    assert_eq!(answer.header("cache-control"), "private, max-age=86400, immutable");
}

/// The origin would learn from clients' grants who reads what, and could use them.
#[tokio::test]
async fn the_origin_sees_the_edges_grant_only() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(100_000));
    edge.get(id, &[]).await;
    let shown = edge.origin.authorizations();
    assert_eq!(shown, [format!("Bearer {EDGE_GRANT}"), format!("Bearer {EDGE_GRANT}")]);
}

#[tokio::test]
async fn what_is_not_an_id_names_no_blob() {
    let edge = TestEdge::start().await;
    let id = edge.origin.store(sample_bytes(10)).to_string();
    let grant = format!("Bearer {}", media_grant());
    for text in ["x", "..%2f..%2fetc%2fpasswd", "%00", "%ff", &id.to_uppercase(), &id[..51], &format!("{id}a")] {
        let answer = edge.send(Method::GET, &format!("/v1/blobs/{text}"), &[(AUTHORIZATION, &grant)]).await;
        assert_eq!(answer.refusal(), "404 blob-not-found", "{text}");
    }
    assert!(edge.origin.asked().is_empty());
}
