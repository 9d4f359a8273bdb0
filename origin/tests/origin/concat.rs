//! tus's concatenation: uploads that come side by side and become one.

use crate::harness::{Answer, OFFSET_STREAM, TestOrigin, id_of, sample};

const PARTIAL: (&str, &str) = ("upload-concat", "partial");

impl TestOrigin {
    /// A partial upload with all its bytes.
    async fn part(&self, bytes: &[u8]) -> String {
        let path = self.create(bytes.len(), &[PARTIAL]).await;
        let appended = self.append(&path, 0, bytes).await;
        assert_eq!((appended.status, appended.header("waxwing-blob")), (204, None));
        path
    }

    async fn concatenate(&self, parts: &[&str]) -> Answer {
        let named = format!("final;{}", parts.join(" "));
        self.tus("POST", "/v1/uploads", &[("upload-concat", &named), ("upload-metadata", "filename eA==")], b"").await
    }
}

#[tokio::test]
async fn parts_that_came_side_by_side_become_one_blob() {
    let origin = TestOrigin::start().await;
    let bytes = sample(3_000_000);
    let (first, second, third) = (&bytes[..1_000_000], &bytes[1_000_000..1_000_001], &bytes[1_000_001..]);
    // In any order, one of them in pieces.
    let c = origin.create(third.len(), &[PARTIAL]).await;
    let (a, b) = (origin.part(first).await, origin.part(second).await);
    origin.append(&c, 0, &third[..700_000]).await;
    assert_eq!(origin.append(&c, 700_000, &third[700_000..]).await.status, 204);
    let head = origin.tus("HEAD", &c, &[], b"").await;
    assert_eq!((head.header("upload-concat"), head.header("waxwing-blob")), (Some("partial"), None));
    assert_eq!(head.header("upload-offset"), head.header("upload-length"));

    let absolute = format!("http://any.example{b}");
    let done = origin.concatenate(&[&a, &absolute, &c]).await;
    assert_eq!((done.status, done.blob()), (201, id_of(&bytes)), "{done:?}");
    assert_eq!(origin.read("GET", &done.blob().to_string(), &[]).await.body, bytes);
    let path = origin.path_of(&done);
    let head = origin.tus("HEAD", &path, &[], b"").await;
    assert_eq!(head.header("upload-concat"), Some(format!("final;{a} {absolute} {c}").as_str()));
    assert_eq!((head.header("upload-offset"), head.header("upload-length")), (Some("3000000"), Some("3000000")));
    assert_eq!(head.header("upload-metadata"), Some("filename eA=="));
    assert_eq!(head.blob(), id_of(&bytes));

    // The answer was lost, and the server with it: the same parts are the same upload.
    let origin = origin.crash_and_restart().await;
    let again = origin.concatenate(&[&a, &absolute, &c]).await;
    assert_eq!((again.status, origin.path_of(&again), again.blob()), (201, path.clone(), id_of(&bytes)));
    // Another order is another upload, and a part may be there twice.
    let other = origin.concatenate(&[&b, &a, &b]).await;
    assert_eq!(other.blob(), id_of(&[second, first, second].concat()));
    assert_ne!(origin.path_of(&other), path);
}

#[tokio::test]
async fn nothing_can_be_added_to_what_is_made_of_parts() {
    let origin = TestOrigin::start().await;
    let a = origin.part(b"bytes").await;
    let path = origin.path_of(&origin.concatenate(&[&a]).await);
    for offset in [0, 5] {
        let answer = origin.append(&path, offset, b"more").await;
        assert_eq!((answer.status, answer.problem().slug()), (403, "final-upload"));
    }
    let empty = origin.path_of(&origin.concatenate(&[&origin.part(b"").await]).await);
    assert_eq!(origin.tus("HEAD", &empty, &[], b"").await.blob(), id_of(b""));
}

/// Whatever dialect ends a part, it is a part: were it a blob, a stranger's message could name half a film.
#[tokio::test]
async fn a_part_that_another_dialect_ends_is_no_blob() {
    let origin = TestOrigin::start().await;
    let ietf = [
        ("authorization", origin.alice.as_str()),
        ("content-type", "application/partial-upload"),
        ("upload-offset", "0"),
        ("upload-complete", "?1"),
    ];
    let ranges = [("authorization", origin.alice.as_str()), ("content-range", "bytes 0-4/5")];
    let whole = [("authorization", origin.alice.as_str())];
    for (method, headers) in [("PATCH", &ietf[..]), ("PUT", &ranges), ("PUT", &whole)] {
        for length in [Some("5"), None] {
            let length = length.map_or(("upload-defer-length", "1"), |length| ("upload-length", length));
            let created = origin.tus("POST", "/v1/uploads", &[length, PARTIAL], b"").await;
            let part = origin.path_of(&created);
            let ended = origin.ask(method, &part, headers, b"bytes").await;
            assert!([204, 308].contains(&ended.status), "{ended:?}");
            assert_eq!((ended.header("waxwing-blob"), ended.header("upload-complete").unwrap_or("?0")), (None, "?0"));
            let blob = origin.read("GET", &id_of(b"bytes").to_string(), &[]).await;
            assert_eq!((blob.status, blob.problem().slug()), (404, "blob-not-found"), "{method} {headers:?}");
            // It is a part like any other, and can be put together with others.
            let done = origin.concatenate(&[&part, &part]).await;
            assert_eq!((done.status, done.blob()), (201, id_of(b"bytesbytes")), "{method} {headers:?} {length:?}");
        }
    }
}

#[tokio::test]
async fn only_whole_parts_of_ones_own_are_put_together() {
    let origin = TestOrigin::start().await;
    let whole = origin.part(b"bytes").await;
    let unfinished = origin.create(5, &[PARTIAL]).await;
    let ordinary = origin.create(5, &[]).await;
    let headers = [("tus-resumable", "1.0.0"), ("authorization", origin.bob.as_str()), ("upload-length", "0"), PARTIAL];
    let of_bob = origin.path_of(&origin.ask("POST", "/v1/uploads", &headers, b"").await);
    let unknown = format!("/v1/uploads/{}", "a".repeat(26));
    for (other, status, slug) in [
        (&unfinished, 409, "part-unfinished"),
        (&ordinary, 404, "part-not-found"),
        (&of_bob, 404, "part-not-found"),
        (&unknown, 404, "part-not-found"),
    ] {
        let answer = origin.concatenate(&[&whole, other]).await;
        assert_eq!((answer.status, answer.problem().slug()), (status, slug), "{other}");
    }
    // Once it is there, the same request is fine.
    origin.append(&unfinished, 0, b"there").await;
    assert_eq!(origin.concatenate(&[&whole, &unfinished]).await.blob(), id_of(b"bytesthere"));

    let many = vec![whole.as_str(); 1025];
    for parts in [&many[..], &[], &["/v1/uploads/x"], &["/elsewhere"], &["../../etc/passwd"]] {
        let answer = origin.concatenate(parts).await;
        assert!(answer.status == 400 || answer.status == 431, "{:?}", answer.status);
    }
    let named = format!("final;{whole}");
    for (more, body) in [(("upload-length", "5"), &b""[..]), (OFFSET_STREAM, b"bytes")] {
        let answer = origin.tus("POST", "/v1/uploads", &[("upload-concat", &named), more], body).await;
        assert_eq!((answer.status, answer.problem().slug()), (400, "bad-concat"));
    }
}

/// The server went amid the copy: asked again, it goes on where its record is.
#[tokio::test]
async fn a_copy_that_was_cut_goes_on() {
    let origin = TestOrigin::start().await;
    let bytes = sample(60_000_000);
    let mut parts = Vec::new();
    for part in bytes.chunks(20_000_000) {
        parts.push(origin.part(part).await);
    }
    let named: Vec<_> = parts.iter().map(String::as_str).collect();
    // A request for the same final takes over from the one before; whichever of them copies what, the end is the same.
    let (first, second) = tokio::join!(origin.concatenate(&named), origin.concatenate(&named));
    for answer in [&first, &second] {
        assert!(answer.status == 201 || answer.problem().slug() == "taken-over", "{answer:?}");
    }
    let origin = origin.crash_and_restart().await;
    let done = origin.concatenate(&named).await;
    assert_eq!((done.status, done.blob()), (201, id_of(&bytes)));
}
