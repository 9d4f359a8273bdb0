//! What goes wrong, in the words of each dialect: the table of failures, one row a test.
//!
//! A client acts on the status alone: tus-js-client forgets an upload at most 4xx and asks again after a 409 or a 5xx,
//! Google's libraries ask again after a 503 only. A failure told in another dialect's words makes a client give up an
//! upload that is fine, or repeat for ever one that is lost.

use std::time::Duration;

use data_encoding::BASE64;
use sha2::Digest as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use waxwing_origin::Config;
use waxwing_protocol::grant::Grant;

use crate::harness::{Answer, BLOB_BYTES_MAX, OFFSET_STREAM, TestOrigin, id_of, sample, shown, upload_grant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    Tus,
    Ietf,
    Ranges,
}

use Dialect::{Ietf, Ranges, Tus};

const ALL: [Dialect; 3] = [Tus, Ietf, Ranges];

/// The length that uploads here are announced to have.
const LENGTH: usize = 10;

type Headers<'a> = &'a [(&'a str, &'a str)];

impl Dialect {
    /// Method, path and headers of a creation.
    fn creation(self, length: Option<usize>) -> (&'static str, &'static str, Vec<(&'static str, String)>) {
        let length = length.map(|length| length.to_string());
        match self {
            Tus => {
                let length = length.map_or(("upload-defer-length", "1".into()), |length| ("upload-length", length));
                ("POST", "/v1/uploads", vec![("tus-resumable", "1.0.0".into()), length])
            }
            Ietf => {
                let mut headers = vec![("upload-complete", "?0".to_owned())];
                headers.extend(length.map(|length| ("upload-length", length)));
                ("POST", "/v1/uploads", headers)
            }
            Ranges => {
                let length = length.map(|length| ("x-upload-content-length", length));
                ("POST", "/v1/uploads?uploadType=resumable", length.into_iter().collect())
            }
        }
    }

    /// Method and headers of an append of `bytes` at `offset` of an upload of `length` bytes.
    fn append(self, offset: usize, bytes: usize, length: Option<usize>) -> (&'static str, Vec<(&'static str, String)>) {
        match self {
            Tus => {
                let typed = (OFFSET_STREAM.0, OFFSET_STREAM.1.to_owned());
                ("PATCH", vec![("tus-resumable", "1.0.0".into()), typed, ("upload-offset", offset.to_string())])
            }
            Ietf => {
                let typed = ("content-type", "application/partial-upload".to_owned());
                ("PATCH", vec![typed, ("upload-complete", "?0".into()), ("upload-offset", offset.to_string())])
            }
            Ranges => {
                let total = length.map_or("*".to_owned(), |length| length.to_string());
                let range = match bytes {
                    0 => format!("bytes */{total}"),
                    _ => format!("bytes {offset}-{}/{total}", offset + bytes - 1),
                };
                ("PUT", vec![("content-range", range)])
            }
        }
    }

    /// Method and headers of the question where an upload stands.
    fn question(self) -> (&'static str, Headers<'static>) {
        match self {
            Tus => ("HEAD", &[("tus-resumable", "1.0.0")]),
            Ietf => ("HEAD", &[("upload-draft-interop-version", "8")]),
            Ranges => ("PUT", &[("content-range", "bytes */*")]),
        }
    }
}

/// Someone who speaks a dialect to an origin.
struct Client<'a> {
    origin: &'a TestOrigin,
    dialect: Dialect,
    grant: Option<&'a str>,
}

impl<'a> Client<'a> {
    fn of_alice(origin: &'a TestOrigin, dialect: Dialect) -> Self {
        Self { origin, dialect, grant: Some(&origin.alice) }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> Answer {
        let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        all.extend(self.grant.map(|grant| ("authorization", grant)));
        self.origin.ask(method, path, &all, body).await
    }

    async fn create(&self, length: Option<usize>, more: Headers<'_>) -> Answer {
        let (method, path, headers) = self.dialect.creation(length);
        self.ask(method, path, &with(headers, more), b"").await
    }

    /// A new upload's path.
    async fn created(&self, length: Option<usize>, more: Headers<'_>) -> String {
        let answer = self.create(length, more).await;
        assert!([200, 201].contains(&answer.status), "{:?} {answer:?}", self.dialect);
        self.origin.path_of(&answer)
    }

    async fn append(&self, path: &str, offset: usize, body: &[u8], more: Headers<'_>) -> Answer {
        self.append_of(path, offset, body, Some(LENGTH), more).await
    }

    async fn append_of(
        &self,
        path: &str,
        offset: usize,
        body: &[u8],
        length: Option<usize>,
        more: Headers<'_>,
    ) -> Answer {
        let (method, headers) = self.dialect.append(offset, body.len(), length);
        self.ask(method, path, &with(headers, more), body).await
    }

    async fn standing(&self, path: &str) -> Answer {
        let (method, headers) = self.dialect.question();
        self.ask(method, path, &with(Vec::new(), headers), b"").await
    }

    /// Bytes that the origin holds of an upload.
    async fn offset(&self, path: &str) -> usize {
        let answer = self.standing(path).await;
        match self.dialect {
            Tus | Ietf => answer.header("upload-offset").unwrap().parse().unwrap(),
            Ranges if answer.status == 200 => panic!("the upload is finished"),
            Ranges => answer
                .header("range")
                .map_or(0, |range| range.strip_prefix("bytes=0-").unwrap().parse::<usize>().unwrap() + 1),
        }
    }
}

/// `headers` with `more`; one of the same name is replaced.
fn with<'a>(headers: Vec<(&'a str, String)>, more: Headers<'a>) -> Vec<(&'a str, String)> {
    let mut headers = headers;
    for (name, value) in more {
        headers.retain(|(other, _)| other != name);
        headers.push((name, (*value).to_owned()));
    }
    headers
}

/// A failure as it must be told: status and slug; an answer to HEAD has no body to read a slug in.
fn told(answer: &Answer, status: u16, slug: &str, dialect: Dialect) {
    assert_eq!(answer.status, status, "{dialect:?} {answer:?}");
    if !answer.body.is_empty() {
        assert_eq!(answer.problem().slug(), slug, "{dialect:?} {answer:?}");
    }
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{dialect:?}: hidden from browsers");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{dialect:?}: could be answered from a cache");
    if dialect == Tus {
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"));
    }
    if status == 503 || status == 507 {
        assert!(answer.header("retry-after").is_some(), "{dialect:?}: does not say when to come back");
    }
}

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

/// A server that is being replaced keeps what came, and says that its successor will go on.
#[tokio::test]
async fn a_restart_amid_an_append_keeps_what_came() {
    let mut origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        let sending = sending(&client, &path, b"abcd").await;
        origin.origin.close().await;
        told(&Answer::read(sending).await.expect("the request that runs is answered"), 503, "closing", dialect);
        told(&client.append(&path, 4, b"efghij", &[]).await, 503, "closing", dialect);
        origin = origin.crash_and_restart().await;
        assert_eq!(Client::of_alice(&origin, dialect).offset(&path).await, 4, "{dialect:?}");
    }
}

/// An append of [`LENGTH`] bytes that has brought `sent` of them, and that the origin is reading.
async fn sending(client: &Client<'_>, path: &str, sent: &[u8]) -> tokio::net::TcpStream {
    let (method, headers) = client.dialect.append(0, LENGTH, Some(LENGTH));
    let length = LENGTH.to_string();
    let mut all: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.extend(client.grant.map(|grant| ("authorization", grant)));
    all.extend([("expect", "100-continue"), ("content-length", length.as_str())]);
    let mut connection = client.origin.connect().await;
    let head = client.origin.head(method, path, &all) + "\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    // The origin says so when it has begun to read.
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    connection.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 "), "{:?}", client.dialect);
    connection.write_all(sent).await.unwrap();
    // What came is committed when nothing more has come for a second; until then it waits for more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    connection
}

/// The newest request has the upload; the older is told in a way that makes its client ask, and asking is never refused.
#[tokio::test]
async fn an_older_request_makes_way() {
    let origin = TestOrigin::start().await;
    for dialect in ALL {
        let client = Client::of_alice(&origin, dialect);
        let path = client.created(Some(LENGTH), &[]).await;
        let old = sending(&client, &path, b"abcd").await;
        let began = std::time::Instant::now();
        assert_eq!(client.offset(&path).await, 4, "{dialect:?}: what came is kept");
        assert!(began.elapsed() < Duration::from_secs(2), "{dialect:?}: {:?}", began.elapsed());
        let status = if dialect == Ranges { 503 } else { 409 };
        told(&Answer::read(old).await.expect("the old request is answered"), status, "taken-over", dialect);
        assert_eq!(client.append(&path, 4, b"efghij", &[]).await.blob(), id_of(b"abcdefghij"), "{dialect:?}");
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
