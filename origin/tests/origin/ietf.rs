//! The IETF's resumable uploads, interop versions 5 to 8.

use tokio::io::AsyncWriteExt as _;

use crate::harness::{Answer, BLOB_BYTES_MAX, TestOrigin, id_of, sample};

const DRAFT: (&str, &str) = ("upload-draft-interop-version", "8");
const PARTIAL: (&str, &str) = ("content-type", "application/partial-upload");

impl TestOrigin {
    async fn ietf(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers = [&[("authorization", self.alice.as_str()), DRAFT], headers].concat();
        self.ask(method, path, &headers, body).await
    }

    async fn ietf_create(&self, complete: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        self.ietf("POST", "/v1/uploads", &[&[("upload-complete", complete)], headers].concat(), body).await
    }

    async fn ietf_append(&self, path: &str, offset: usize, complete: &str, body: &[u8]) -> Answer {
        let offset = offset.to_string();
        let headers = [PARTIAL, ("upload-offset", offset.as_str()), ("upload-complete", complete)];
        self.ietf("PATCH", path, &headers, body).await
    }
}

fn standing(answer: &Answer) -> (u16, Option<&str>, Option<&str>) {
    (answer.status, answer.header("upload-offset"), answer.header("upload-complete"))
}

#[tokio::test]
async fn one_request_is_an_upload() {
    let origin = TestOrigin::start().await;
    let bytes = sample(300_000);
    for path in ["/v1/uploads", "/v1/blobs"] {
        let answer = origin.ietf("PUT", path, &[("upload-complete", "?1")], &bytes).await;
        assert_eq!(standing(&answer), (201, Some("300000"), Some("?1")), "{answer:?}");
        assert_eq!(answer.blob(), id_of(&bytes));
        assert!(answer.header("location").is_some());
    }
    let empty = origin.ietf_create("?1", &[], b"").await;
    assert_eq!((standing(&empty), empty.blob()), ((201, Some("0"), Some("?1")), id_of(b"")));
}

#[tokio::test]
async fn an_upload_begun_with_care_is_appended_to_and_ended() {
    let origin = TestOrigin::start().await;
    let bytes = sample(300_000);
    let created = origin.ietf_create("?0", &[("upload-length", "300000")], b"").await;
    assert_eq!(standing(&created), (201, Some("0"), Some("?0")));
    assert!(created.header("upload-limit").unwrap().starts_with(&format!("max-size={BLOB_BYTES_MAX}, max-age=")));
    let path = origin.path_of(&created);

    let first = origin.ietf_append(&path, 0, "?0", &bytes[..100_000]).await;
    assert_eq!(standing(&first), (204, Some("100000"), Some("?0")));
    let head = origin.ietf("HEAD", &path, &[], b"").await;
    assert_eq!(standing(&head), (204, Some("100000"), Some("?0")));
    assert_eq!((head.header("upload-length"), head.header("cache-control")), (Some("300000"), Some("no-store")));

    let last = origin.ietf_append(&path, 100_000, "?1", &bytes[100_000..]).await;
    assert_eq!((standing(&last), last.blob()), ((200, Some("300000"), Some("?1")), id_of(&bytes)));
    // Its answer was lost: asked again, it is the same.
    let again = origin.ietf_append(&path, 300_000, "?1", b"").await;
    assert_eq!((standing(&again), again.blob()), ((200, Some("300000"), Some("?1")), id_of(&bytes)));
    assert_eq!(standing(&origin.ietf("HEAD", &path, &[], b"").await), (204, Some("300000"), Some("?1")));
}

/// Whoever streams does not know the length until the end.
#[tokio::test]
async fn an_end_may_come_without_a_length_or_without_bytes() {
    let origin = TestOrigin::start().await;
    let bytes = sample(5000);
    let path = origin.path_of(&origin.ietf_create("?0", &[], &bytes[..2000]).await);
    let head = origin.head(
        "PATCH",
        &path,
        &[("authorization", &origin.alice), PARTIAL, ("upload-offset", "2000"), ("upload-complete", "?1")],
    );
    let body = [b"bb8\r\n", &bytes[2000..], b"\r\n0\r\n\r\n"].concat();
    let ended = origin.raw(&(head + "transfer-encoding: chunked\r\n"), &body).await;
    assert_eq!((standing(&ended), ended.blob()), ((200, Some("5000"), Some("?1")), id_of(&bytes)));

    let path = origin.path_of(&origin.ietf_create("?0", &[], &bytes).await);
    let ended = origin.ietf_append(&path, 5000, "?1", b"").await;
    assert_eq!((standing(&ended), ended.blob()), ((200, Some("5000"), Some("?1")), id_of(&bytes)));
}

/// The connection broke while everything was on its way in one request; what came is kept, and HEAD finds it.
#[tokio::test]
async fn a_cut_request_keeps_its_prefix() {
    let origin = TestOrigin::start().await;
    let bytes = sample(500_000);
    let path = origin.path_of(&origin.ietf_create("?0", &[("upload-length", "500000")], b"").await);
    let headers = [
        ("authorization", origin.alice.as_str()),
        DRAFT,
        PARTIAL,
        ("upload-offset", "0"),
        ("upload-complete", "?1"),
        ("content-length", "500000"),
    ];
    let mut connection = origin.connect().await;
    connection.write_all(format!("{}\r\n", origin.head("PATCH", &path, &headers)).as_bytes()).await.unwrap();
    connection.write_all(&bytes[..300_000]).await.unwrap();
    connection.shutdown().await.unwrap();
    let _ = Answer::read(connection).await;
    assert_eq!(standing(&origin.ietf("HEAD", &path, &[], b"").await), (204, Some("300000"), Some("?0")));
    let done = origin.ietf_append(&path, 300_000, "?1", &bytes[300_000..]).await;
    assert_eq!(done.blob(), id_of(&bytes));
}

#[tokio::test]
async fn refusals_are_the_drafts() {
    let origin = TestOrigin::start().await;
    let path = origin.path_of(&origin.ietf_create("?0", &[("upload-length", "10")], b"abc").await);

    let elsewhere = origin.ietf_append(&path, 5, "?0", b"x").await;
    assert_eq!(standing(&elsewhere), (409, Some("3"), Some("?0")));
    let problem = elsewhere.problem();
    assert_eq!(problem.kind, "https://iana.org/assignments/http-problem-types#mismatching-upload-offset");
    assert_eq!(
        (&problem.extensions["expected-offset"], &problem.extensions["provided-offset"]),
        (&3.into(), &5.into())
    );

    let short = origin.ietf_append(&path, 3, "?1", b"def").await;
    assert_eq!((short.status, short.header("upload-complete")), (400, Some("?0")));
    assert_eq!(short.problem().kind, "https://iana.org/assignments/http-problem-types#inconsistent-upload-length");

    for headers in [
        &[PARTIAL, ("upload-offset", "3")][..],
        &[PARTIAL, ("upload-complete", "?0")],
        &[PARTIAL, ("upload-offset", "three"), ("upload-complete", "?0")],
        &[PARTIAL, ("upload-offset", "3"), ("upload-complete", "yes")],
    ] {
        assert_eq!(origin.ietf("PATCH", &path, headers, b"x").await.status, 400, "{headers:?}");
    }
    let wrong_type = [("content-type", "text/plain"), ("upload-offset", "3"), ("upload-complete", "?0")];
    assert_eq!(origin.ietf("PATCH", &path, &wrong_type, b"x").await.status, 415);
    assert_eq!(standing(&origin.ietf("HEAD", &path, &[], b"").await), (204, Some("3"), Some("?0")));

    // More than its length: there is nothing left to resume.
    let long = origin.ietf_append(&path, 3, "?0", b"defghijklm").await;
    assert_eq!((long.status, long.header("upload-complete")), (413, Some("?1")));
    assert_eq!(origin.ietf("HEAD", &path, &[], b"").await.status, 404);
}

#[tokio::test]
async fn creations_refused_say_that_there_is_nothing_to_resume() {
    let origin = TestOrigin::start().await;
    let too_large = origin.ietf_create("?0", &[("upload-length", "999999999999")], b"").await;
    assert_eq!((too_large.status, too_large.header("upload-complete")), (413, Some("?1")));
    assert_eq!(too_large.header("upload-limit"), Some(format!("max-size={BLOB_BYTES_MAX}").as_str()));
    let contradiction = origin.ietf_create("?1", &[("upload-length", "5")], b"abc").await;
    assert_eq!((contradiction.status, contradiction.header("upload-complete")), (400, Some("?1")));
}

#[tokio::test]
async fn a_finished_upload_takes_no_more() {
    let origin = TestOrigin::start().await;
    let path = origin.path_of(&origin.ietf_create("?1", &[], b"abc").await);
    let more = origin.ietf_append(&path, 3, "?1", b"d").await;
    assert_eq!((more.status, more.header("upload-complete")), (400, Some("?1")));
    assert_eq!(more.problem().kind, "https://iana.org/assignments/http-problem-types#completed-upload");
}

#[tokio::test]
async fn a_cancelled_upload_is_gone() {
    let origin = TestOrigin::start().await;
    let path = origin.path_of(&origin.ietf_create("?0", &[], b"abc").await);
    assert_eq!(origin.ietf("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(origin.ietf("HEAD", &path, &[], b"").await.status, 404);
}

/// Clients of the finished RFC will name no draft; a bare HEAD is answered for every dialect.
#[tokio::test]
async fn bare_requests_are_answered_for_all_dialects() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    origin.append(&path, 0, b"abc").await;
    let grant = [("authorization", origin.alice.as_str())];
    let head = origin.ask("HEAD", &path, &grant, b"").await;
    assert_eq!(standing(&head), (200, Some("3"), Some("?0")));
    assert_eq!((head.header("upload-length"), head.header("tus-resumable")), (Some("10"), Some("1.0.0")));
    assert!(head.header("upload-limit").is_some() && head.header("upload-expires").is_some());

    let discovered = origin.ask("OPTIONS", "/v1/uploads", &[], b"").await;
    assert!(discovered.header("upload-limit").unwrap().starts_with("max-size="));
    assert_eq!(discovered.header("tus-version"), Some("1.0.0"));

    // One upload, three dialects.
    let more = [("authorization", origin.alice.as_str()), ("content-range", "bytes 3-5/10")];
    assert_eq!(origin.ask("PUT", &path, &more, b"def").await.header("range"), Some("bytes=0-5"));
    assert_eq!(origin.ietf_append(&path, 6, "?1", b"ghij").await.blob(), id_of(b"abcdefghij"));
    assert_eq!(origin.ask("DELETE", &path, &grant, b"").await.status, 204);
}
