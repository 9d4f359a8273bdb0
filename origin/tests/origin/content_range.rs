//! `PUT` with `Content-Range`, as Google's client libraries and curl speak it.

use crate::harness::{Answer, TestOrigin, id_of, sample};

impl TestOrigin {
    async fn begin(&self, query: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers = [&[("authorization", self.alice.as_str())], headers].concat();
        self.ask("POST", &format!("/v1/uploads{query}"), &headers, body).await
    }

    /// Begins a session and gives its path.
    async fn session(&self) -> String {
        let begun = self.begin("?uploadType=resumable", &[], b"").await;
        assert_eq!(begun.status, 200, "{begun:?}");
        self.path_of(&begun)
    }

    async fn send(&self, path: &str, range: &str, body: &[u8]) -> Answer {
        let headers = [("authorization", self.alice.as_str()), ("content-range", range)];
        self.ask("PUT", path, &headers, body).await
    }
}

fn finished(answer: &Answer, bytes: &[u8]) {
    assert_eq!((answer.status, answer.blob()), (200, id_of(bytes)), "{answer:?}");
    let resource: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(resource["size"], bytes.len().to_string());
    assert_eq!(resource["id"], id_of(bytes).to_string());
}

fn unfinished(answer: &Answer, range: Option<&str>) {
    assert_eq!((answer.status, answer.header("range")), (308, range), "{answer:?}");
    assert_eq!(answer.header("location"), None, "a 308 with a place is followed as a redirect");
    assert!(answer.body.is_empty());
}

#[tokio::test]
async fn ranges_are_stored_until_the_last_makes_a_blob() {
    let origin = TestOrigin::start().await;
    let bytes = sample(700_000);
    let path = origin.session().await;
    unfinished(&origin.send(&path, "bytes */*", b"").await, None);
    unfinished(&origin.send(&path, "bytes 0-262143/700000", &bytes[..262_144]).await, Some("bytes=0-262143"));
    unfinished(&origin.send(&path, "bytes */700000", b"").await, Some("bytes=0-262143"));
    finished(&origin.send(&path, "bytes 262144-699999/700000", &bytes[262_144..]).await, &bytes);
    // Whatever a client repeats, it learns that all is there.
    finished(&origin.send(&path, "bytes */*", b"").await, &bytes);
    finished(&origin.send(&path, "bytes 262144-699999/700000", &bytes[262_144..]).await, &bytes);
    assert_eq!(origin.read("GET", &id_of(&bytes).to_string(), &[]).await.body, bytes);
}

/// A client that lost an answer sends the range again, or more of it.
#[tokio::test]
async fn an_overlap_is_passed_over_and_a_gap_is_not_bridged() {
    let origin = TestOrigin::start().await;
    let bytes = sample(1000);
    let path = origin.session().await;
    origin.send(&path, "bytes 0-499/1000", &bytes[..500]).await;
    unfinished(&origin.send(&path, "bytes 0-499/1000", &bytes[..500]).await, Some("bytes=0-499"));
    unfinished(&origin.send(&path, "bytes 100-299/1000", &bytes[100..300]).await, Some("bytes=0-499"));
    let gap = origin.send(&path, "bytes 600-999/1000", &bytes[600..]).await;
    assert_eq!((gap.status, gap.header("range")), (503, Some("bytes=0-499")));
    finished(&origin.send(&path, "bytes 300-999/1000", &bytes[300..]).await, &bytes);
}

/// Live recordings end when they end.
#[tokio::test]
async fn a_total_may_be_told_last() {
    let origin = TestOrigin::start().await;
    let bytes = sample(2000);
    let path = origin.session().await;
    unfinished(&origin.send(&path, "bytes 0-999/*", &bytes[..1000]).await, Some("bytes=0-999"));
    unfinished(&origin.send(&path, "bytes 1000-1999/*", &bytes[1000..]).await, Some("bytes=0-1999"));
    // No other total finishes it, and neither does asking.
    for other in ["bytes */*", "bytes */1999", "bytes */2001"] {
        unfinished(&origin.send(&path, other, b"").await, Some("bytes=0-1999"));
    }
    finished(&origin.send(&path, "bytes */2000", b"").await, &bytes);

    let empty = origin.session().await;
    finished(&origin.send(&empty, "bytes */0", b"").await, b"");
}

#[tokio::test]
async fn everything_may_come_in_one_request() {
    let origin = TestOrigin::start().await;
    let bytes = sample(5000);
    let path = origin.session().await;
    let whole = origin.ask("PUT", &path, &[("authorization", &origin.alice)], &bytes).await;
    finished(&whole, &bytes);
}

#[tokio::test]
async fn sessions_begin_in_either_style() {
    let origin = TestOrigin::start().await;
    let json = [("content-type", "application/json; charset=UTF-8"), ("x-upload-content-length", "3")];
    let begun = origin.begin("?uploadType=resumable&name=x", &json, br#"{"name": "photo", "other": [1]}"#).await;
    assert_eq!((begun.status, begun.body.len()), (200, 0));
    let path = origin.path_of(&begun);
    let contradicted = origin.send(&path, "bytes 0-3/4", b"abcd").await;
    assert_eq!((contradicted.status, contradicted.problem().slug()), (400, "length-conflict"));
    let done = origin.send(&path, "bytes 0-2/3", b"abc").await;
    let resource: serde_json::Value = serde_json::from_slice(&done.body).unwrap();
    assert_eq!(resource["name"], "photo");

    let begun = origin.begin("", &[("x-goog-resumable", "start"), ("content-type", "video/mp4")], b"").await;
    assert_eq!(begun.status, 201);
    finished(&origin.send(&origin.path_of(&begun), "bytes 0-2/3", b"abc").await, b"abc");

    let broken = origin.begin("?uploadType=resumable", &json, b"{").await;
    assert_eq!((broken.status, broken.problem().slug()), (400, "bad-metadata"));
    let long = vec![b' '; 20_000];
    assert_eq!(origin.begin("?uploadType=resumable", &json, &long).await.status, 400);
}

/// Go's HTTP client would follow a 308.
#[tokio::test]
async fn a_client_that_cannot_bear_a_308_gets_a_200_that_says_it() {
    let origin = TestOrigin::start().await;
    let path = origin.session().await;
    let headers =
        [("authorization", origin.alice.as_str()), ("content-range", "bytes 0-2/*"), ("x-guploader-no-308", "yes")];
    let answer = origin.ask("POST", &path, &headers, b"abc").await;
    let told = (answer.status, answer.header("x-http-status-code-override"), answer.header("range"));
    assert_eq!(told, (200, Some("308"), Some("bytes=0-2")));
}

#[tokio::test]
async fn ranges_that_make_no_sense_are_refused_and_change_nothing() {
    let origin = TestOrigin::start().await;
    let path = origin.session().await;
    origin.send(&path, "bytes 0-2/10", b"abc").await;
    for range in ["bytes 5-4/10", "bytes 3-10/10", "bytes 3-5", "bytes 3-9/10", "bytes x-y/z", "items 3-5/10"] {
        let answer = origin.send(&path, range, b"def").await;
        assert_eq!((answer.status, answer.problem().slug()), (400, "bad-header"), "{range}");
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{range}");
    }
    let other_total = origin.send(&path, "bytes 3-5/11", b"def").await;
    assert_eq!((other_total.status, other_total.problem().slug()), (400, "length-conflict"));
    let query_with_content = origin.send(&path, "bytes */10", b"def").await;
    assert_eq!(query_with_content.status, 400);
    unfinished(&origin.send(&path, "bytes */*", b"").await, Some("bytes=0-2"));

    let headers = [("authorization", origin.bob.as_str()), ("content-range", "bytes */*")];
    assert_eq!(origin.ask("PUT", &path, &headers, b"").await.status, 404);
    assert_eq!(origin.ask("PUT", &path, &headers[1..], b"").await.status, 401);
}

/// More than the range says is not stored as if it were the next.
#[tokio::test]
async fn a_chunked_body_longer_than_its_range_is_cut_there() {
    let origin = TestOrigin::start().await;
    let path = origin.session().await;
    let head = origin.head("PUT", &path, &[("authorization", &origin.alice), ("content-range", "bytes 0-2/10")]);
    let answer = origin.raw(&(head + "transfer-encoding: chunked\r\n"), b"5\r\nabcde\r\n0\r\n\r\n").await;
    assert_eq!((answer.status, answer.problem().slug()), (400, "content-cut"));
    unfinished(&origin.send(&path, "bytes */*", b"").await, Some("bytes=0-2"));
}

#[tokio::test]
async fn what_was_stored_survives_a_crash() {
    let origin = TestOrigin::start().await;
    let bytes = sample(300_000);
    let path = origin.session().await;
    origin.send(&path, "bytes 0-199999/300000", &bytes[..200_000]).await;
    let origin = origin.crash_and_restart().await;
    unfinished(&origin.send(&path, "bytes */*", b"").await, Some("bytes=0-199999"));
    finished(&origin.send(&path, "bytes 200000-299999/300000", &bytes[200_000..]).await, &bytes);
}

/// Google's clients compare these with what they sent; they are computed along, and so survive a crash.
#[tokio::test]
async fn a_finished_upload_tells_the_digests_that_clients_compare() {
    let origin = TestOrigin::start().await;
    let path = origin.session().await;
    unfinished(&origin.send(&path, "bytes 0-0/*", b"a").await, Some("bytes=0-0"));
    let origin = origin.crash_and_restart().await;
    let done = origin.send(&path, "bytes 1-2/3", b"bc").await;
    finished(&done, b"abc");
    let again = origin.send(&path, "bytes */3", b"").await;
    for answer in [done, again] {
        let resource: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        // As `openssl md5` and the CRC catalogue's CRC-32/ISCSI say of "abc".
        assert_eq!(resource["md5Hash"], "kAFQmDzST7DWlj99KOF/cg==", "{resource}");
        assert_eq!(resource["crc32c"], "Nks/tw==", "{resource}");
    }
}
