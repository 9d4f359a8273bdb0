//! Having blobs: keeping, letting go, quotas, and what edges learn of it.

use waxwing_origin::Config;
use waxwing_protocol::api::PurgeLog;
use waxwing_protocol::grant::Grant;
use waxwing_protocol::{BlobId, OwnerTag};

use crate::harness::{Answer, OFFSET_STREAM, TestOrigin, id_of, sample, shown};

impl TestOrigin {
    async fn keep(&self, method: &str, blob: &str, grant: &str) -> Answer {
        self.ask(method, &format!("/v1/blobs/{blob}/keep"), &[("authorization", grant)], b"").await
    }

    async fn purges(&self, query: &str) -> PurgeLog {
        let path = format!("/origin/v1/purges{query}");
        let answer = self.ask("GET", &path, &[("authorization", &self.edge)], b"").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_slice(&answer.body).unwrap()
    }
}

/// Carol may hold this much.
fn carol(quota_bytes: u64) -> String {
    shown(&Grant::Upload { owner: OwnerTag::from_bytes([3; 16]), blob_bytes_max: u64::MAX, quota_bytes })
}

#[tokio::test]
async fn a_blob_stays_as_long_as_somebody_has_it_and_edges_learn_when_it_goes() {
    let origin = TestOrigin::start().await;
    let bytes = sample(2_000_000);
    let blob = origin.put(&bytes).await.to_string();
    assert_eq!(origin.keep("POST", &blob, &origin.bob).await.status, 204);
    assert_eq!(origin.keep("POST", &blob, &origin.bob).await.status, 204);
    assert_eq!(origin.keep("DELETE", &blob, &origin.alice).await.status, 204);
    // Hers no more: for her it is as if there were none.
    let again = origin.keep("DELETE", &blob, &origin.alice).await;
    assert_eq!((again.status, again.problem().slug()), (404, "blob-not-found"));
    assert_eq!(origin.read("GET", &blob, &[]).await.body, bytes);
    assert_eq!(origin.purges("").await, PurgeLog { oldest: 1, next: 1, purges: Vec::new() });

    let origin = origin.crash_and_restart().await;
    assert_eq!(origin.keep("DELETE", &blob, &origin.bob).await.status, 204);
    assert_eq!(origin.read("GET", &blob, &[]).await.status, 404);
    assert_eq!(origin.keep("POST", &blob, &origin.alice).await.status, 404);
    let origin = origin.crash_and_restart().await;
    let log = origin.purges("?after=0").await;
    assert_eq!((log.oldest, log.next, log.purges.len()), (1, 2, 1));
    assert_eq!(log.purges[0].blob.to_string(), blob);
    assert!(origin.purges("?after=1").await.purges.is_empty());
}

#[tokio::test]
async fn keeping_and_purges_are_for_those_they_are_for() {
    let origin = TestOrigin::start().await;
    let blob = origin.put(&sample(100)).await.to_string();
    for method in ["POST", "DELETE"] {
        let none = origin.ask(method, &format!("/v1/blobs/{blob}/keep"), &[], b"").await;
        assert_eq!((none.status, none.problem().slug()), (401, "grant-missing"));
        let edge = origin.keep(method, &blob, &origin.edge).await;
        assert_eq!((edge.status, edge.problem().slug()), (403, "grant-audience"));
        for nothing in ["x", &"a".repeat(52), &BlobId::from_bytes([9; 32]).to_string()] {
            assert_eq!(origin.keep(method, nothing, &origin.alice).await.status, 404);
        }
    }
    let client = origin.ask("GET", "/origin/v1/purges", &[("authorization", &origin.alice)], b"").await;
    assert_eq!((client.status, client.problem().slug()), (403, "grant-audience"));
    for query in ["?after=-1", "?after=x", "?after=99999999999999999999", "?before=3", "?after=1&after=2"] {
        let path = format!("/origin/v1/purges{query}");
        let odd = origin.ask("GET", &path, &[("authorization", &origin.edge)], b"").await;
        assert_eq!((odd.status, odd.problem().slug()), (400, "bad-query"), "{query}");
    }
    let wrong = origin.keep("PUT", &blob, &origin.alice).await;
    assert_eq!((wrong.status, wrong.problem().slug()), (405, "method-not-allowed"));
}

#[tokio::test]
async fn a_quota_is_told_in_every_dialects_words() {
    let origin = TestOrigin::start().await;
    let grant = carol(1000);
    let carol = ("authorization", grant.as_str());
    let held = origin.ask("PUT", "/v1/blobs", &[carol], &sample(900)).await;
    assert_eq!(held.status, 201);
    let tus = ("tus-resumable", "1.0.0");
    let created = origin.ask("POST", "/v1/uploads", &[tus, carol, ("upload-length", "200")], b"").await;
    assert_eq!((created.status, created.problem().slug()), (413, "quota-exceeded"));
    let with_content = [tus, carol, ("upload-length", "200"), OFFSET_STREAM];
    let created = origin.ask("POST", "/v1/uploads", &with_content, &sample(200)).await;
    assert_eq!((created.status, created.problem().slug()), (413, "quota-exceeded"));
    let put = origin.ask("PUT", "/v1/blobs", &[carol], &sample(101)).await;
    assert_eq!((put.status, put.problem().slug()), (413, "quota-exceeded"));
    let ietf = [("upload-draft-interop-version", "8"), ("upload-complete", "?1"), carol];
    let created = origin.ask("POST", "/v1/uploads", &ietf, &sample(101)).await;
    assert_eq!((created.status, created.problem().slug()), (413, "quota-exceeded"));
    let google = [carol, ("x-upload-content-length", "101"), ("x-goog-resumable", "start")];
    let created = origin.ask("POST", "/v1/uploads", &google, b"").await;
    assert_eq!((created.status, created.problem().slug()), (429, "quota-exceeded"));
    assert!(created.header("retry-after").is_some());
    let alices = origin.put(&sample(500)).await.to_string();
    let kept = origin.keep("POST", &alices, &grant).await;
    assert_eq!((kept.status, kept.problem().slug()), (413, "quota-exceeded"));

    // Room again once something goes.
    assert_eq!(origin.keep("DELETE", &held.blob().to_string(), &grant).await.status, 204);
    assert_eq!(origin.keep("POST", &alices, &grant).await.status, 204);
    assert_eq!(origin.origin.held_bytes(OwnerTag::from_bytes([3; 16])).await.unwrap(), 500);
}

#[tokio::test]
async fn a_declared_blob_that_its_owner_has_needs_no_bytes() {
    let origin = TestOrigin::start().await;
    let bytes = sample(300_000);
    let id = id_of(&bytes).to_string();
    let declared = [("upload-length", "300000"), ("waxwing-blob", id.as_str())];
    let before = origin.tus("POST", "/v1/uploads", &declared, b"").await;
    assert_eq!((before.status, before.header("upload-offset")), (201, Some("0")), "{before:?}");
    origin.put(&bytes).await;
    let after = origin.tus("POST", "/v1/uploads", &declared, b"").await;
    assert_eq!((after.status, after.header("upload-offset")), (201, Some("300000")), "{after:?}");
    assert_eq!(after.blob().to_string(), id);
    let path = origin.path_of(&after);
    assert_eq!(origin.offset(&path).await, 300_000);

    // Bob learns nothing of what Alice has.
    let headers = [&[("tus-resumable", "1.0.0"), ("authorization", origin.bob.as_str())], &declared[..]].concat();
    let bobs = origin.ask("POST", "/v1/uploads", &headers, b"").await;
    assert_eq!((bobs.status, bobs.header("upload-offset"), bobs.header("waxwing-blob")), (201, Some("0"), None));

    // In the IETF's words, whose creation brings its content along.
    let alice = ("authorization", origin.alice.as_str());
    let ietf = [("upload-draft-interop-version", "8"), ("upload-complete", "?1"), ("waxwing-blob", &id), alice];
    let done = origin.ask("POST", "/v1/uploads", &ietf, &bytes).await;
    assert_eq!((done.status, done.blob().to_string()), (201, id.clone()));
    let google = [alice, ("x-upload-content-length", "300000"), ("x-goog-resumable", "start"), ("waxwing-blob", &id)];
    let session = origin.ask("POST", "/v1/uploads", &google, b"").await;
    let asked = [alice, ("content-range", "bytes */300000")];
    let status = origin.ask("PUT", &origin.path_of(&session), &asked, b"").await;
    assert_eq!((status.status, status.blob().to_string()), (200, id));
}

#[tokio::test]
async fn an_operator_removes_a_blob_whoever_has_it() {
    let origin = TestOrigin::start().await;
    let blob = origin.put(&sample(100)).await;
    assert_eq!(origin.keep("POST", &blob.to_string(), &origin.bob).await.status, 204);
    let owners = origin.origin.owners(None, 10).await.unwrap();
    assert_eq!(owners.iter().map(|(_, bytes)| bytes).sum::<u64>(), 200);
    assert!(origin.origin.remove_blob(blob).await.unwrap());
    assert!(!origin.origin.remove_blob(blob).await.unwrap());
    assert_eq!(origin.read("GET", &blob.to_string(), &[]).await.status, 404);
    assert_eq!(origin.purges("").await.purges.len(), 1);
    assert!(origin.origin.owners(None, 10).await.unwrap().is_empty());
}

/// What `waxwing admin gc` does: whatever the sweeper would come to by and by.
#[tokio::test]
async fn an_operator_ends_at_once_what_is_due() {
    // No sweep comes in between.
    let config = Config { sweep_interval_s: 3600, ..Config::default() };
    let origin = TestOrigin::start_with(config.clone()).await;
    let blob = origin.put(&sample(100)).await.to_string();
    assert_eq!(origin.keep("POST", &blob, &origin.bob).await.status, 204);
    let fresh = origin.origin.collect().await.unwrap();
    assert_eq!((fresh.unfinished, fresh.owners_expired), (0, 0));

    let at_once = Config { blob_retention_s: 0, unacknowledged_expiry_s: 0, ..config };
    let origin = origin.crash_and_restart_with(at_once).await;
    origin.create(1000, &[]).await;
    let would = origin.origin.collectable().await.unwrap();
    assert_eq!((would.unfinished, would.owners_expired, would.leftovers), (1, 2, 0));
    assert_eq!(origin.read("GET", &blob, &[]).await.status, 200, "nothing was done yet");
    assert_eq!(origin.origin.collect().await.unwrap(), would);
    assert_eq!(origin.read("GET", &blob, &[]).await.status, 404);
    assert!(origin.origin.owners(None, 10).await.unwrap().is_empty());
    assert_eq!(origin.purges("").await.purges.len(), 1, "edges learn of it");
}
