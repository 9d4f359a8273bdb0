//! Requests that are wrong, by accident or on purpose: a clear answer, and nothing changes.

use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use waxwing_protocol::grant::GrantSigner;

use crate::harness::{Answer, OFFSET_STREAM, TestOrigin, sample, signer, upload_grant};

type Headers<'a> = &'a [(&'a str, &'a str)];

#[tokio::test]
async fn creations_that_make_no_sense_are_refused() {
    let origin = TestOrigin::start().await;
    let metadata = format!("a {}", "A".repeat(9000));
    let many = "99999999999999999999";
    let cases: &[(Headers<'_>, u16, &str)] = &[
        (&[], 400, "bad-header"),
        (&[("upload-length", "5"), ("upload-defer-length", "1")], 400, "bad-header"),
        (&[("upload-defer-length", "2")], 400, "bad-header"),
        (&[("upload-length", "-1")], 400, "bad-header"),
        (&[("upload-length", "+5")], 400, "bad-header"),
        (&[("upload-length", "5 5")], 400, "bad-header"),
        (&[("upload-length", "")], 400, "bad-header"),
        (&[("upload-length", many)], 400, "bad-header"),
        (&[("upload-length", "5"), ("upload-length", "5")], 400, "bad-header"),
        (&[("upload-length", "9223372036854775807")], 413, "too-large"),
        (&[("upload-length", "67108865")], 413, "too-large"),
        (&[("upload-length", "5"), ("upload-metadata", &metadata)], 400, "bad-header"),
        (&[("upload-length", "5"), ("upload-metadata", "a !!!")], 400, "bad-header"),
        (&[("upload-length", "5"), ("upload-metadata", "a eA=="), ("upload-metadata", "b eA==")], 400, "bad-header"),
        (&[("upload-length", "5"), ("waxwing-blob", "../../etc/passwd")], 400, "bad-header"),
        (&[("upload-length", "5"), ("upload-concat", "some")], 400, "bad-concat"),
        (&[("upload-length", "5"), ("upload-checksum", "sha1 x")], 400, "bad-checksum"),
    ];
    for (headers, status, slug) in cases {
        let answer = origin.tus("POST", "/v1/uploads", headers, b"").await;
        assert_eq!((answer.status, answer.problem().slug()), (*status, *slug), "{headers:?}");
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"), "{headers:?}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{headers:?}");
        assert_eq!(answer.header("location"), None);
    }
    let typeless = origin.tus("POST", "/v1/uploads", &[("upload-length", "5")], b"bytes").await;
    assert_eq!((typeless.status, typeless.problem().slug()), (415, "media-type"));
    let more = origin.tus("POST", "/v1/uploads", &[("upload-length", "5"), OFFSET_STREAM], b"more bytes").await;
    assert_eq!((more.status, more.problem().slug()), (413, "too-large"));
}

#[tokio::test]
async fn appends_that_make_no_sense_change_nothing() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    assert_eq!(origin.append(&path, 0, b"1234").await.status, 204);
    let stream = OFFSET_STREAM;
    let cases: &[(Headers<'_>, &[u8], u16, &str)] = &[
        (&[stream], b"56", 400, "bad-header"),
        (&[stream, ("upload-offset", "x")], b"56", 400, "bad-header"),
        (&[stream, ("upload-offset", "4"), ("upload-offset", "4")], b"56", 400, "bad-header"),
        (&[("upload-offset", "4")], b"56", 415, "media-type"),
        (&[("upload-offset", "4"), ("content-type", "text/plain")], b"56", 415, "media-type"),
        (&[stream, ("upload-offset", "0")], b"56", 409, "offset-mismatch"),
        (&[stream, ("upload-offset", "5")], b"56", 409, "offset-mismatch"),
        (&[stream, ("upload-offset", "9223372036854775807")], b"56", 409, "offset-mismatch"),
        (&[stream, ("upload-offset", "4")], b"5678901", 413, "too-large"),
        (&[stream, ("upload-offset", "4"), ("upload-length", "11")], b"5", 400, "length-conflict"),
        (&[stream, ("upload-offset", "4"), ("upload-checksum", "sha1 x")], b"5", 400, "bad-checksum"),
    ];
    for (headers, body, status, slug) in cases {
        let answer = origin.tus("PATCH", &path, headers, body).await;
        assert_eq!((answer.status, answer.problem().slug()), (*status, *slug), "{headers:?}");
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"));
        assert_eq!(origin.offset(&path).await, 4, "{headers:?}");
    }
    let mismatch = origin.append(&path, 0, b"").await;
    assert_eq!(mismatch.problem().extensions["offset"], 4);
    // A type is what it is in any case and with any parameters.
    let typed = [("upload-offset", "4"), ("content-type", "Application/Offset+Octet-Stream; x=y")];
    assert_eq!(origin.tus("PATCH", &path, &typed, b"567890").await.status, 204);
}

/// More bytes than the upload has left, without saying so beforehand.
#[tokio::test]
async fn an_unannounced_excess_is_counted() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let headers = [("tus-resumable", "1.0.0"), ("authorization", &origin.alice), ("upload-offset", "0"), OFFSET_STREAM];
    let head = origin.head("PATCH", &path, &headers) + "transfer-encoding: chunked\r\n";
    let answer = origin.raw(&head, b"b\r\n12345678901\r\n0\r\n\r\n").await;
    assert_eq!((answer.status, answer.problem().slug()), (413, "too-large"));
    assert_eq!(origin.offset(&path).await, 0);
}

#[tokio::test]
async fn other_versions_of_tus_are_refused_where_something_would_change() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    for version in [None, Some("0.2.2"), Some("1.0.0, 1.0.0")] {
        let mut headers = vec![("authorization", origin.alice.as_str()), ("upload-offset", "0"), OFFSET_STREAM];
        headers.extend(version.map(|version| ("tus-resumable", version)));
        for (method, path) in [("POST", "/v1/uploads"), ("PATCH", &path), ("DELETE", &path)] {
            let answer = origin.ask(method, path, &headers, b"").await;
            assert_eq!((answer.status, answer.problem().slug()), (412, "tus-version"), "{method} {version:?}");
            assert_eq!(answer.header("tus-version"), Some("1.0.0"));
        }
        assert_eq!(origin.ask("HEAD", &path, &headers, b"").await.status, 200);
    }
}

/// To anyone but its owner an upload does not exist, whatever they ask.
#[tokio::test]
async fn another_accounts_upload_is_not_there() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let headers = [("tus-resumable", "1.0.0"), ("authorization", &origin.bob), ("upload-offset", "0"), OFFSET_STREAM];
    let nowhere = "/v1/uploads/aaaaaaaaaaaaaaaaaaaaaaaaaa";
    for method in ["HEAD", "PATCH", "DELETE"] {
        let theirs = origin.ask(method, &path, &headers, b"").await;
        let nobodys = origin.ask(method, nowhere, &headers, b"").await;
        assert_eq!((theirs.status, &theirs.body), (404, &nobodys.body), "{method}");
        assert_eq!(theirs.header("upload-offset"), None);
    }
    assert_eq!(origin.append(&path, 0, &sample(10)).await.status, 204);
}

#[tokio::test]
async fn names_that_are_no_ids_name_nothing() {
    let origin = TestOrigin::start().await;
    let ids =
        ["x", "..", "%2e%2e%2f%2e%2e", "AAAAAAAAAAAAAAAAAAAAAAAAAA", "a%00", "%ff%fe", "aaaaaaaaaaaaaaaaaaaaaaaaab"];
    for id in ids {
        let upload = origin.append(&format!("/v1/uploads/{id}"), 0, b"").await;
        assert_eq!((upload.status, upload.problem().slug()), (404, "upload-not-found"), "{id}");
        for rest in ["", "/outboard"] {
            let blob = origin.read("GET", &format!("{id}{rest}"), &[]).await;
            assert_eq!((blob.status, blob.problem().slug()), (404, "blob-not-found"), "{id}{rest}");
        }
    }
}

#[tokio::test]
async fn methods_a_path_does_not_have_are_told() {
    let origin = TestOrigin::start().await;
    for (method, path) in
        [("GET", "/v1/uploads"), ("GET", "/v1/uploads/x"), ("POST", "/v1/blobs"), ("DELETE", "/origin/v1/blobs/x")]
    {
        let answer = origin.ask(method, path, &[("tus-resumable", "1.0.0")], b"").await;
        assert_eq!((answer.status, answer.problem().slug()), (405, "method-not-allowed"), "{method} {path}");
        assert!(answer.header("allow").is_some());
    }
}

/// Every part of a grant is covered by its signature; a foreign key or a grant of the past opens nothing.
#[tokio::test]
async fn forged_and_expired_grants_open_nothing() {
    let origin = TestOrigin::start().await;
    let now = std::time::SystemTime::now().into();
    let mint = |signer: &GrantSigner, lifetime| signer.mint(&upload_grant(1), now, lifetime, [0; 16]).text;
    let foreign = mint(&GrantSigner::from_seed(&[6; 32]), Duration::from_secs(60));
    let past = std::time::SystemTime::now() - Duration::from_secs(3600);
    let expired = signer().mint(&upload_grant(1), past.into(), Duration::from_secs(60), [0; 16]).text;
    let genuine = mint(&signer(), Duration::from_secs(60));
    let (front, signature) = genuine.rsplit_once('.').unwrap();
    let other = mint(&signer(), Duration::from_secs(61));
    let spliced = format!("{front}.{}", other.rsplit_once('.').unwrap().1);
    let long = "a".repeat(3000);
    for (token, slug) in [
        (foreign.as_str(), "grant-invalid"),
        (&expired, "grant-expired"),
        (&spliced, "grant-invalid"),
        (signature, "grant-invalid"),
        (&long, "grant-invalid"),
    ] {
        let headers = [("tus-resumable", "1.0.0"), ("authorization", &*format!("Bearer {token}"))];
        let answer = origin.ask("POST", "/v1/uploads", &headers, b"").await;
        assert_eq!((answer.status, answer.problem().slug()), (401, slug));
        assert!(!String::from_utf8_lossy(&answer.body).contains(token), "a token came back");
    }
    let twice = [("tus-resumable", "1.0.0"), ("authorization", &origin.alice), ("authorization", &origin.bob)];
    assert_eq!(origin.ask("POST", "/v1/uploads", &twice, b"").await.status, 400);
}

/// Without care the connection is reset while the client still sends, and the reason never reaches it.
#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let refused = origin.append(&path, 0, &sample(900_000)).await;
    assert_eq!((refused.status, refused.problem().slug()), (413, "too-large"));
    let denied = origin.ask("PUT", "/v1/blobs", &[], &sample(900_000)).await;
    assert_eq!((denied.status, denied.problem().slug()), (401, "grant-missing"));
}

/// A careful client asks first: it is refused without having sent anything.
#[tokio::test]
async fn a_client_that_waits_is_not_told_to_go_on_only_to_be_refused() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("authorization", origin.alice.as_str()),
        ("upload-offset", "5"),
        ("expect", "100-continue"),
        ("content-length", "5"),
        OFFSET_STREAM,
    ];
    let mut connection = origin.connect().await;
    let head = origin.head("PATCH", &path, &headers) + "\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut connection).await.unwrap();
    assert_eq!((answer.status, answer.problem().slug()), (409, "offset-mismatch"));
}
