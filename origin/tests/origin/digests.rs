//! Requests that say what their bytes hash to: they count whole or not at all.

use data_encoding::BASE64;
use sha2::Digest as _;
use tokio::io::AsyncWriteExt as _;

use crate::harness::{Answer, OFFSET_STREAM, TestOrigin, id_of, sample};

fn sha1(bytes: &[u8]) -> String {
    format!("sha1 {}", BASE64.encode(&sha1::Sha1::digest(bytes)))
}

fn content_digest(bytes: &[u8]) -> String {
    format!("md5=:AAAA:, sha-256=:{}:", BASE64.encode(&sha2::Sha256::digest(bytes)))
}

impl TestOrigin {
    async fn append_checked(&self, path: &str, offset: &str, checksum: &str, body: &[u8]) -> Answer {
        self.tus("PATCH", path, &[("upload-offset", offset), OFFSET_STREAM, ("upload-checksum", checksum)], body).await
    }

    /// A chunked PATCH with `trailers`, which are complete lines.
    async fn append_with_trailer(&self, path: &str, body: &[u8], trailers: &str) -> Answer {
        let headers = [
            ("tus-resumable", "1.0.0"),
            ("authorization", self.alice.as_str()),
            ("upload-offset", "0"),
            OFFSET_STREAM,
            ("transfer-encoding", "chunked"),
            ("trailer", "Upload-Checksum"),
        ];
        let chunk = format!("{:x}\r\n", body.len());
        let body = [chunk.as_bytes(), body, b"\r\n0\r\n", trailers.as_bytes(), b"\r\n"].concat();
        self.raw(&self.head("PATCH", path, &headers), &body).await
    }
}

#[tokio::test]
async fn bytes_with_the_right_checksum_count() {
    let origin = TestOrigin::start().await;
    let bytes = sample(3_000_000);
    let path = origin.create(bytes.len(), &[]).await;
    let first = &bytes[..2_000_000];
    let checksums = [
        sha1(first),
        format!("sha256 {}", BASE64.encode(&sha2::Sha256::digest(first))),
        format!("md5 {}", BASE64.encode(&md5::Md5::digest(first))),
        format!("crc32 {}", BASE64.encode(&crc32fast::hash(first).to_be_bytes())),
        format!("blake3 {}", BASE64.encode(blake3::hash(first).as_bytes())),
    ];
    for checksum in &checksums {
        let path = origin.create(bytes.len(), &[]).await;
        let answer = origin.append_checked(&path, "0", checksum, first).await;
        assert_eq!((answer.status, answer.header("upload-offset")), (204, Some("2000000")), "{checksum}");
        let wrong = origin.append_checked(&path, "2000000", checksum, &bytes[2_000_000..]).await;
        assert_eq!((wrong.status, wrong.problem().slug()), (460, "digest-mismatch"), "{checksum}");
        assert_eq!(origin.offset(&path).await, 2_000_000);
    }
    let whole = origin.append_checked(&path, "0", &sha1(&bytes), &bytes).await;
    assert_eq!((whole.status, whole.blob()), (204, id_of(&bytes)));

    let discovered = origin.ask("OPTIONS", "/v1/uploads", &[], b"").await;
    assert_eq!(discovered.header("tus-checksum-algorithm"), Some("sha1,sha256,md5,crc32,blake3"));
    assert!(discovered.header("tus-extension").unwrap().contains("checksum,checksum-trailer"));
}

/// What cannot be checked is not kept: the client would believe that it was.
#[tokio::test]
async fn nothing_counts_of_a_checked_request_that_is_wrong_or_cut() {
    let origin = TestOrigin::start().await;
    let bytes = sample(12_000_000);
    let path = origin.create(bytes.len(), &[]).await;
    // The last byte is another, and the length is right.
    let mut flipped = bytes.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let wrong = origin.append_checked(&path, "0", &sha1(&bytes), &flipped).await;
    assert_eq!((wrong.status, wrong.problem().slug()), (460, "digest-mismatch"));
    assert_eq!(origin.offset(&path).await, 0);

    // Cut after more than is committed on the way without a checksum.
    let checksum = sha1(&bytes);
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("authorization", origin.alice.as_str()),
        ("upload-offset", "0"),
        ("upload-checksum", checksum.as_str()),
        OFFSET_STREAM,
        ("content-length", "12000000"),
    ];
    let mut connection = origin.connect().await;
    connection.write_all(format!("{}\r\n", origin.head("PATCH", &path, &headers)).as_bytes()).await.unwrap();
    connection.write_all(&bytes[..11_000_000]).await.unwrap();
    connection.shutdown().await.unwrap();
    let _ = Answer::read(connection).await;
    assert_eq!(origin.offset(&path).await, 0);

    // The bytes that were refused do not come back with those that follow.
    let origin = origin.crash_and_restart().await;
    assert_eq!(origin.offset(&path).await, 0);
    assert_eq!(origin.append_checked(&path, "0", &sha1(&bytes), &bytes).await.blob(), id_of(&bytes));
}

#[tokio::test]
async fn a_creation_with_the_wrong_checksum_creates_nothing() {
    let origin = TestOrigin::start().await;
    let create = |checksum: String, body: &'static [u8]| {
        let origin = &origin;
        async move {
            let headers = [("upload-length", "5"), OFFSET_STREAM, ("upload-checksum", checksum.as_str())];
            origin.tus("POST", "/v1/uploads", &headers, body).await
        }
    };
    assert_eq!(create(sha1(b"bytes"), b"bytes").await.blob(), id_of(b"bytes"));
    let wrong = create(sha1(b"bytes"), b"Bytes").await;
    assert_eq!((wrong.status, wrong.header("location")), (460, None));
}

#[tokio::test]
async fn a_checksum_may_come_after_the_bytes() {
    let origin = TestOrigin::start().await;
    let bytes = sample(200_000);
    let good = format!("Upload-Checksum: {}\r\n", sha1(&bytes));
    let path = origin.create(bytes.len(), &[]).await;
    let answer = origin.append_with_trailer(&path, &bytes, &good).await;
    assert_eq!((answer.status, answer.blob()), (204, id_of(&bytes)));

    let path = origin.create(bytes.len(), &[]).await;
    let wrong = format!("Upload-Checksum: {}\r\n", sha1(b"other"));
    for (trailers, status, slug) in [
        (wrong.as_str(), 460, "digest-mismatch"),
        ("", 400, "digest-missing"),
        ("Other: x\r\n", 400, "digest-missing"),
        ("Upload-Checksum: sha1 !!!\r\n", 400, "digest-missing"),
    ] {
        let answer = origin.append_with_trailer(&path, &bytes, trailers).await;
        assert_eq!((answer.status, answer.problem().slug()), (status, slug), "{trailers}");
        assert_eq!(origin.offset(&path).await, 0);
    }
}

#[tokio::test]
async fn checksums_that_make_no_sense_are_refused() {
    let origin = TestOrigin::start().await;
    let path = origin.create(5, &[]).await;
    for checksum in ["", "sha1", "sha1 ", "sha1 AAAA", "SHA1 AAAA", "sha9 AAAA", "sha1 !!!!", "crc32 AAAAAAA="] {
        let answer = origin.append_checked(&path, "0", checksum, b"bytes").await;
        assert_eq!((answer.status, answer.problem().slug()), (400, "bad-checksum"), "{checksum}");
    }
    assert_eq!(origin.offset(&path).await, 0);
}

/// The same in the words of RFC 9530, for the other dialects.
#[tokio::test]
async fn a_content_digest_is_heeded() {
    let origin = TestOrigin::start().await;
    let bytes = sample(100_000);
    let (good, wrong) = (content_digest(&bytes), content_digest(b"other"));
    let put = |digest: String| {
        let (origin, bytes) = (&origin, &bytes);
        async move {
            let headers = [("authorization", origin.alice.as_str()), ("content-digest", digest.as_str())];
            origin.ask("PUT", "/v1/blobs", &headers, bytes).await
        }
    };
    assert_eq!(put(good.clone()).await.blob(), id_of(&bytes));
    assert_eq!(put(wrong.clone()).await.problem().slug(), "digest-mismatch");
    // Unknown algorithms and what cannot be read are ignored.
    for ignored in ["crc32c=:AAAAAA==:", "sha-256", "sha-256=\"text\"", "%%"] {
        assert_eq!(put(ignored.to_owned()).await.status, 201, "{ignored}");
    }

    let headers =
        |digest| [("authorization", origin.alice.as_str()), ("content-digest", digest), ("upload-complete", "?0")];
    let created = origin.ask("POST", "/v1/uploads", &headers(good.as_str()), &bytes).await;
    assert_eq!((created.status, created.header("upload-offset")), (201, Some("100000")));
    let path = origin.path_of(&created);
    let append = |digest| {
        [
            ("authorization", origin.alice.as_str()),
            ("content-digest", digest),
            ("upload-complete", "?1"),
            ("upload-offset", "100000"),
            ("content-type", "application/partial-upload"),
        ]
    };
    let refused = origin.ask("PATCH", &path, &append(wrong.as_str()), &bytes).await;
    assert_eq!((refused.status, refused.header("upload-complete")), (400, Some("?0")));
    let done = origin.ask("PATCH", &path, &append(good.as_str()), &bytes).await;
    assert_eq!(done.blob(), id_of(&[&bytes[..], &bytes[..]].concat()));
}

/// `Repr-Digest` speaks of the whole, whose bytes come in several requests and past a crash.
#[tokio::test]
async fn the_digest_of_a_whole_upload_is_checked_and_told() {
    let mut origin = TestOrigin::start().await;
    let bytes = sample(300_000);
    let sha256 = format!("sha-256=:{}:", BASE64.encode(&sha2::Sha256::digest(&bytes)));
    let sha512 = format!("sha-512=:{}:", BASE64.encode(&sha2::Sha512::digest(&bytes)));
    let other = format!("sha-256=:{}:", BASE64.encode(&sha2::Sha256::digest(b"other")));
    for (field, value, told) in [
        ("repr-digest", sha256.as_str(), Some(&sha256)),
        ("repr-digest", sha512.as_str(), Some(&sha512)),
        ("want-repr-digest", "sha-256=3, sha-512=0", Some(&sha256)),
        ("want-repr-digest", "sha-512=9, sha-256=1", Some(&sha512)),
        ("want-repr-digest", "md5=9", None),
        ("repr-digest", other.as_str(), None),
    ] {
        let headers = [("authorization", origin.alice.as_str()), (field, value), ("upload-complete", "?0")];
        let created = origin.ask("POST", "/v1/uploads", &headers, &bytes[..100_001]).await;
        assert_eq!((created.status, created.header("repr-digest")), (201, None));
        let path = origin.path_of(&created);
        // The origin that finishes it has another port, but the same paths.
        origin = origin.crash_and_restart().await;
        let headers = [
            ("authorization", origin.alice.as_str()),
            ("upload-complete", "?1"),
            ("upload-offset", "100001"),
            ("content-type", "application/partial-upload"),
        ];
        let done = origin.ask("PATCH", &path, &headers, &bytes[100_001..]).await;
        if value == other {
            assert_eq!((done.status, done.problem().slug()), (422, "repr-digest-mismatch"));
            assert_eq!(done.header("upload-complete"), Some("?1"));
            assert_eq!(origin.tus("HEAD", &path, &[], b"").await.status, 404);
        } else {
            assert_eq!(done.blob(), id_of(&bytes));
            assert_eq!(done.header("repr-digest"), told.map(String::as_str), "{field}: {value}");
        }
    }
}
