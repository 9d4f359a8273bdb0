//! What goes wrong, in the words of each dialect: the table of failures, one row a test.
//!
//! A client acts on the status alone: tus-js-client forgets an upload at most 4xx and asks again after a 409 or a 5xx,
//! Google's libraries ask again after a 503 only. A failure told in another dialect's words makes a client give up an
//! upload that is fine, or repeat for ever one that is lost.

use data_encoding::BASE64;
use sha2::Digest as _;
use waxwing_origin::Config;
use waxwing_protocol::grant::Grant;

use crate::dialects::Dialect::{Ietf, Ranges, Tus};
use crate::dialects::{ALL, Client, LENGTH, told};
use crate::harness::{Answer, BLOB_BYTES_MAX, TestOrigin, id_of, sample, shown, upload_grant};

/// As [`told`], for what the IETF's draft has a problem type of its own for.
fn told_by_draft(answer: &Answer, status: u16, kind: &str) {
    let problem = answer.problem();
    let expected = format!("https://iana.org/assignments/http-problem-types#{kind}");
    assert_eq!((answer.status, problem.kind), (status, expected), "{answer:?}");
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
}

#[tokio::test]
async fn an_upload_that_never_was_is_not_found() {
    let origin = TestOrigin::start().await;
    let nowhere = "/v1/uploads/aaaaaaaaaaaaaaaaaaaaaaaaaa";
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        for answer in [client.append(nowhere, 0, b"x", &[]).await, client.standing(nowhere).await] {
            told(&answer, 404, "upload-not-found", dialect);
            assert_eq!((answer.header("upload-offset"), answer.header("range")), (None, None));
        }
    }
}

/// Its time was over before it began: whoever asks learns that it was there, and begins a new one.
#[tokio::test]
async fn an_expired_upload_is_gone() {
    let config = Config { unacknowledged_expiry_s: 0, sweep_interval_s: 3600, ..Config::default() };
    let origin = TestOrigin::start_with(config).await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        for answer in [client.append(&path, 0, b"x", &[]).await, client.standing(&path).await] {
            told(&answer, 410, "upload-expired", dialect);
            assert_eq!((answer.header("upload-offset"), answer.header("range")), (None, None));
        }
    }
}

#[tokio::test]
async fn an_offset_that_is_not_ours_is_told_ours() {
    let origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        client.append(&path, 0, b"abcd", &[]).await;
        let gap = client.append(&path, 6, b"gh", &[]).await;
        let overlap = client.append(&path, 2, b"cdef", &[]).await;
        match dialect {
            Tus => {
                for answer in [gap, overlap] {
                    told(&answer, 409, "offset-mismatch", dialect);
                    assert_eq!(answer.problem().extensions["offset"], 4);
                }
            }
            Ietf => {
                for answer in [gap, overlap] {
                    told_by_draft(&answer, 409, "mismatching-upload-offset");
                    let standing = (answer.header("upload-offset"), answer.header("upload-complete"));
                    assert_eq!(standing, (Some("4"), Some("?0")));
                }
            }
            Ranges => {
                told(&gap, 503, "offset-mismatch", dialect);
                assert_eq!(gap.header("range"), Some("bytes=0-3"));
                // What is held already is passed over, the rest appended.
                assert_eq!((overlap.status, overlap.header("range")), (308, Some("bytes=0-5")));
            }
        }
        assert_eq!(client.offset(&path).await, if dialect == Ranges { 6 } else { 4 });
    }
}

#[tokio::test]
async fn more_than_the_length_announced_is_refused() {
    let origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        client.append(&path, 0, b"abcd", &[]).await;
        let answer = client.append_of(&path, 4, b"efghijkl", Some(12), &[]).await;
        match dialect {
            Tus => {
                told(&answer, 413, "too-large", dialect);
                assert_eq!(client.offset(&path).await, 4);
            }
            // The draft wants the upload to be invalid from then on.
            Ietf => {
                told(&answer, 413, "too-large", dialect);
                assert_eq!(answer.header("upload-complete"), Some("?1"));
                assert!(answer.header("upload-limit").unwrap().starts_with("max-size="));
                assert_eq!(client.standing(&path).await.status, 404);
            }
            Ranges => {
                told(&answer, 400, "length-conflict", dialect);
                let beyond = client.append(&path, 4, b"efghijkl", &[]).await;
                told(&beyond, 400, "bad-header", dialect);
                assert_eq!(client.offset(&path).await, 4);
            }
        }
    }
}

/// The origin's own bound, and the bound of a grant; told at creation, or found by counting.
#[tokio::test]
async fn more_than_is_allowed_is_refused() {
    let origin = TestOrigin::start().await;
    let Grant::Upload { owner, quota_bytes, .. } = upload_grant(1) else { unreachable!() };
    let small = shown(&Grant::Upload { owner, blob_bytes_max: 5, quota_bytes });
    for dialect in ALL {
        let answer = Client::of_alice(&origin, dialect).create(Some(BLOB_BYTES_MAX as usize + 1), &[]).await;
        told(&answer, 413, "too-large", dialect);
        let client = Client { grant: Some(&small), ..Client::of_alice(&origin, dialect) };
        let refused = client.create(Some(6), &[]).await;
        told(&refused, 413, "too-large", dialect);
        assert_eq!(refused.problem().extensions["bytes_max"], 5);
        let path = client.created(None, &[]).await;
        let appended = client.append_of(&path, 0, b"abcdef", None, &[]).await;
        told(&appended, 413, "too-large", dialect);
        if dialect == Ietf {
            for answer in [answer, refused, appended] {
                let size = answer.header("upload-limit").unwrap().strip_prefix("max-size=").unwrap();
                assert!([BLOB_BYTES_MAX.to_string().as_str(), "5"].contains(&size));
            }
        }
        assert_eq!(client.offset(&path).await, 0);
    }
}

#[tokio::test]
async fn bytes_that_do_not_have_the_digest_they_came_with_are_not_kept() {
    let origin = TestOrigin::start().await;
    let checksum = |bytes: &[u8]| format!("sha1 {}", BASE64.encode(&sha1::Sha1::digest(bytes)));
    let content = |bytes: &[u8]| format!("sha-256=:{}:", BASE64.encode(&sha2::Sha256::digest(bytes)));
    for (dialect, header, status) in
        [(Tus, "upload-checksum", 460), (Ietf, "content-digest", 400), (Ranges, "content-digest", 400)]
    {
        let client = Client::of_alice(&origin, dialect);
        let digest = |bytes: &[u8]| if dialect == Tus { checksum(bytes) } else { content(bytes) };
        let path = client.created(Some(LENGTH), &[]).await;
        assert!(client.append(&path, 0, b"abcd", &[(header, &digest(b"abcd"))]).await.status < 400);
        let wrong = client.append(&path, 4, b"efgh", &[(header, &digest(b"abcd"))]).await;
        told(&wrong, status, "digest-mismatch", dialect);
        assert_eq!(client.offset(&path).await, 4);
        if dialect == Ietf {
            assert_eq!(wrong.header("upload-complete"), Some("?0"));
        }
        if dialect == Ranges {
            // A range that overlaps what is held speaks of both: what is held must be what was meant.
            let other = client.append(&path, 2, b"xyef", &[(header, &digest(b"xyef"))]).await;
            told(&other, status, "digest-mismatch", dialect);
            assert_eq!(client.offset(&path).await, 4);
            let overlap = client.append(&path, 2, b"cdef", &[(header, &digest(b"cdef"))]).await;
            assert_eq!((overlap.status, overlap.header("range")), (308, Some("bytes=0-5")));
        }
    }
}

/// The whole is not what was announced: nothing of it can be mended, so the upload is gone.
#[tokio::test]
async fn an_upload_that_is_not_the_blob_announced_is_gone() {
    let origin = TestOrigin::start().await;
    let announced = id_of(b"something else").to_string();
    for (dialect, status) in [(Tus, 460), (Ietf, 422), (Ranges, 400)] {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[("waxwing-blob", &announced)]).await;
        client.append(&path, 0, b"abcde", &[]).await;
        let last = client.append(&path, 5, b"fghij", &[("upload-complete", "?1")]).await;
        told(&last, status, "blob-mismatch", dialect);
        assert_eq!(last.problem().extensions["actual"], id_of(b"abcdefghij").to_string());
        if dialect == Ietf {
            assert_eq!(last.header("upload-complete"), Some("?1"));
        }
        assert_eq!(client.standing(&path).await.status, 404);
    }
    let (client, wrong) = (Client::of_alice(&origin, Ietf), "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:");
    let path = client.created(Some(LENGTH), &[("repr-digest", wrong)]).await;
    let last = client.append(&path, 0, b"abcdefghij", &[("upload-complete", "?1")]).await;
    told(&last, 422, "repr-digest-mismatch", Ietf);
    assert_eq!((last.header("upload-complete"), client.standing(&path).await.status), (Some("?1"), 404));
}

#[tokio::test]
async fn lengths_that_contradict_one_another_change_nothing() {
    let origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        client.append(&path, 0, b"abcd", &[]).await;
        let length = if dialect == Ranges { None } else { Some(("upload-length", "11")) };
        let answer = client.append_of(&path, 4, b"ef", Some(11), length.as_slice()).await;
        match dialect {
            Ietf => {
                told_by_draft(&answer, 400, "inconsistent-upload-length");
                assert_eq!(answer.header("upload-complete"), Some("?0"));
            }
            _ => told(&answer, 400, "length-conflict", dialect),
        }
        assert_eq!(client.offset(&path).await, 4);
        assert!(client.append(&path, 4, b"efghij", &[]).await.header("waxwing-blob").is_some(), "{dialect:?}");
    }
}

/// No room above the reserve: the client waits, and goes on when there is some.
#[tokio::test]
async fn a_full_disk_keeps_what_is_acknowledged_and_takes_the_rest_later() {
    let roomy = Config { blob_bytes_max: BLOB_BYTES_MAX, ..Config::default() };
    let full = Config { reserve_bytes: u64::MAX, ..roomy.clone() };
    let mut origin = TestOrigin::start_with(roomy.clone()).await;
    for (n, dialect) in ALL.into_iter().enumerate() {
        // Other bytes each time: those of a blob that is there need no room.
        let bytes = sample(400_000 + n);
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(bytes.len()), &[]).await;
        client.append_of(&path, 0, &bytes[..100_000], Some(bytes.len()), &[]).await;
        origin = origin.crash_and_restart_with(full.clone()).await;
        let client = Client::of_alice(&origin, dialect);
        let refused = client.append_of(&path, 100_000, &bytes[100_000..], Some(bytes.len()), &[]).await;
        told(&refused, if dialect == Ranges { 503 } else { 507 }, "store-full", dialect);
        if dialect == Ietf {
            assert_eq!(refused.header("upload-complete"), Some("?0"));
        }
        assert_eq!(client.offset(&path).await, 100_000, "{dialect:?}");
        origin = origin.crash_and_restart_with(roomy.clone()).await;
        let client = Client::of_alice(&origin, dialect);
        let rest = client.append_of(&path, 100_000, &bytes[100_000..], Some(bytes.len()), &[]).await;
        assert_eq!(rest.blob(), id_of(&bytes), "{dialect:?}");
    }
}

#[tokio::test]
async fn no_grant_and_the_wrong_grant_are_told_apart() {
    let origin = TestOrigin::start().await;
    let media = shown(&Grant::Media);
    for dialect in ALL {
        let path = Client::of_alice(&origin, dialect).created(Some(LENGTH), &[]).await;
        for (grant, status, slug) in [
            (None, 401, "grant-missing"),
            (Some("Bearer x"), 401, "grant-invalid"),
            (Some(&*media), 403, "grant-audience"),
        ] {
            let client = Client { origin: &origin, dialect, grant };
            for answer in [
                client.create(Some(LENGTH), &[]).await,
                client.append(&path, 0, b"x", &[]).await,
                client.standing(&path).await,
            ] {
                told(&answer, status, slug, dialect);
                assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
            }
        }
    }
}

/// The Content-Range dialect takes content of any type.
#[tokio::test]
async fn content_of_another_type_is_not_taken_for_a_part() {
    let origin = TestOrigin::start().await;
    for dialect in [Tus, Ietf] {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        told(&client.append(&path, 0, b"x", &[("content-type", "text/plain")]).await, 415, "media-type", dialect);
        assert_eq!(client.offset(&path).await, 0);
    }
    let client = Client::of_alice(&origin, Ranges);
    let path = client.created(Some(LENGTH), &[]).await;
    assert_eq!(client.append(&path, 0, b"x", &[("content-type", "text/plain")]).await.status, 308);
}
