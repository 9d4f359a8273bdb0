//! tus 1.0 as clients speak it.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use waxwing_protocol::BlobId;

use crate::harness::{Answer, BLOB_BYTES_MAX, OFFSET_STREAM, TestOrigin, id_of, sample};

/// A phone that lost signal half-way asks where we are and carries on.
#[tokio::test]
async fn an_upload_resumes_at_the_stored_offset() {
    let origin = TestOrigin::start().await;
    let bytes = sample(3_000_000);
    let path = origin.create(bytes.len(), &[]).await;
    let first = origin.append(&path, 0, &bytes[..1_000_000]).await;
    assert_eq!((first.status, first.header("upload-offset")), (204, Some("1000000")));
    assert!(first.header("upload-expires").unwrap().ends_with(" GMT"));
    assert_eq!(first.header("waxwing-blob"), None);

    let offset = origin.offset(&path).await;
    let last = origin.append(&path, offset, &bytes[offset..]).await;
    assert_eq!((last.status, last.header("upload-offset")), (204, Some("3000000")));
    assert_eq!(last.blob(), id_of(&bytes));

    let head = origin.tus("HEAD", &path, &[], b"").await;
    assert_eq!((head.status, head.blob()), (200, last.blob()));
    assert_eq!(head.header("upload-length"), Some("3000000"));
    assert_eq!(head.header("cache-control"), Some("no-store"));
    assert_eq!(head.header("upload-expires"), None);
    assert_eq!(origin.read("GET", &last.blob().to_string(), &[]).await.body, bytes);
}

/// The connection breaks in the middle of a request; nobody answers, and nothing is lost.
#[tokio::test]
async fn a_cut_request_keeps_its_prefix() {
    let origin = TestOrigin::start().await;
    let bytes = sample(500_000);
    for chunked in [false, true] {
        let path = origin.create(bytes.len(), &[]).await;
        let headers =
            [("tus-resumable", "1.0.0"), ("authorization", &origin.alice), ("upload-offset", "0"), OFFSET_STREAM];
        let mut head = origin.head("PATCH", &path, &headers);
        head.push_str(if chunked {
            "transfer-encoding: chunked\r\n\r\n61a80\r\n"
        } else {
            "content-length: 500000\r\n\r\n"
        });
        let mut connection = origin.connect().await;
        connection.write_all(head.as_bytes()).await.unwrap();
        connection.write_all(&bytes[..300_000]).await.unwrap();
        // The end of our side arrives after the bytes; the server closes its side when it has dealt with them.
        connection.shutdown().await.unwrap();
        let _ = Answer::read(connection).await;

        let offset = origin.offset(&path).await;
        assert_eq!(offset, 300_000, "chunked: {chunked}");
        let done = origin.append(&path, offset, &bytes[offset..]).await;
        assert_eq!(done.blob(), id_of(&bytes));
    }
}

#[tokio::test]
async fn acknowledged_bytes_survive_a_crash() {
    let origin = TestOrigin::start().await;
    let bytes = sample(2_500_000);
    let path = origin.create(bytes.len(), &[("upload-metadata", "filename cGhvdG8=")]).await;
    origin.append(&path, 0, &bytes[..1_234_567]).await;
    // Another request is under way when the server goes.
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("authorization", origin.alice.as_str()),
        ("upload-offset", "1234567"),
        OFFSET_STREAM,
    ];
    let head = origin.head("PATCH", &path, &headers);
    let mut connection = origin.connect().await;
    connection.write_all(format!("{head}content-length: 1265433\r\n\r\n").as_bytes()).await.unwrap();
    connection.write_all(&bytes[1_234_567..2_000_000]).await.unwrap();

    let origin = origin.crash_and_restart().await;
    let offset = origin.offset(&path).await;
    assert!((1_234_567..=2_000_000).contains(&offset), "{offset}");
    let head = origin.tus("HEAD", &path, &[], b"").await;
    assert_eq!(head.header("upload-metadata"), Some("filename cGhvdG8="));
    let done = origin.append(&path, offset, &bytes[offset..]).await;
    let blob = done.blob();
    assert_eq!(blob, id_of(&bytes));

    let origin = origin.crash_and_restart().await;
    assert_eq!(origin.tus("HEAD", &path, &[], b"").await.blob(), blob);
    assert_eq!(origin.read("GET", &blob.to_string(), &[]).await.body, bytes);
}

/// The old socket of a phone that changed networks is still open: it is told to go, not waited for.
#[tokio::test]
async fn a_half_open_connection_locks_nobody_out() {
    let origin = TestOrigin::start().await;
    let bytes = sample(100_000);
    let path = origin.create(bytes.len(), &[]).await;
    let headers = [
        ("tus-resumable", "1.0.0"),
        ("authorization", &origin.alice),
        ("upload-offset", "0"),
        ("expect", "100-continue"),
        ("content-length", "100000"),
        OFFSET_STREAM,
    ];
    let head = origin.head("PATCH", &path, &headers) + "\r\n";
    let mut old = origin.connect().await;
    old.write_all(head.as_bytes()).await.unwrap();
    // The server says so when it has begun to read.
    let mut go_on = [0; b"HTTP/1.1 100 Continue\r\n\r\n".len()];
    old.read_exact(&mut go_on).await.unwrap();
    assert!(go_on.starts_with(b"HTTP/1.1 100 "));
    old.write_all(&bytes[..40_000]).await.unwrap();

    let offset = origin.offset(&path).await;
    assert_eq!(offset, 40_000, "what had reached the origin is kept");
    let done = origin.append(&path, offset, &bytes[offset..]).await;
    assert_eq!(done.blob(), id_of(&bytes));
    let told = Answer::read(old).await.expect("the old request is answered");
    assert_eq!((told.status, told.problem().slug()), (409, "taken-over"));
}

#[tokio::test]
async fn creation_takes_the_first_bytes_along() {
    let origin = TestOrigin::start().await;
    let bytes = sample(1000);
    let whole = origin.tus("POST", "/v1/uploads", &[("upload-length", "1000"), OFFSET_STREAM], &bytes).await;
    assert_eq!((whole.status, whole.header("upload-offset")), (201, Some("1000")));
    assert_eq!(whole.blob(), id_of(&bytes));

    let part = origin.tus("POST", "/v1/uploads", &[("upload-length", "1000"), OFFSET_STREAM], &bytes[..10]).await;
    assert_eq!((part.status, part.header("upload-offset")), (201, Some("10")));
    let path = origin.path_of(&part);
    assert_eq!(origin.append(&path, 10, &bytes[10..]).await.blob(), id_of(&bytes));
}

#[tokio::test]
async fn an_upload_of_nothing_is_complete_at_once() {
    let origin = TestOrigin::start().await;
    let answer = origin.tus("POST", "/v1/uploads", &[("upload-length", "0")], b"").await;
    assert_eq!((answer.status, answer.header("upload-offset")), (201, Some("0")));
    let blob = answer.blob();
    assert_eq!(blob, id_of(b""));
    let read = origin.read("GET", &blob.to_string(), &[]).await;
    assert_eq!((read.status, read.header("content-length")), (200, Some("0")));
    assert_eq!(origin.read("GET", &format!("{blob}/outboard"), &[]).await.header("waxwing-blob-bytes"), Some("0"));
    assert_eq!(origin.read("GET", &blob.to_string(), &[("range", "bytes=0-0")]).await.status, 416);
}

/// A camera that records does not know how long the film will be.
#[tokio::test]
async fn a_length_may_be_told_last() {
    let origin = TestOrigin::start().await;
    let bytes = sample(100_000);
    let created = origin.tus("POST", "/v1/uploads", &[("upload-defer-length", "1")], b"").await;
    let path = origin.path_of(&created);
    origin.append(&path, 0, &bytes[..70_000]).await;
    let head = origin.tus("HEAD", &path, &[], b"").await;
    assert_eq!((head.header("upload-defer-length"), head.header("upload-length")), (Some("1"), None));
    let last = [("upload-offset", "70000"), ("upload-length", "100000"), OFFSET_STREAM];
    assert_eq!(origin.tus("PATCH", &path, &last, &bytes[70_000..]).await.blob(), id_of(&bytes));
}

#[tokio::test]
async fn the_last_request_repeated_gets_the_same_answer() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let blob = origin.append(&path, 0, &sample(10)).await.blob();
    let again = origin.append(&path, 10, b"").await;
    assert_eq!((again.status, again.blob()), (204, blob));
    let more = origin.append(&path, 10, b"x").await;
    assert_eq!((more.status, more.problem().slug()), (409, "upload-complete"));
}

#[tokio::test]
async fn a_terminated_upload_is_gone() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    assert_eq!(origin.tus("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(origin.tus("HEAD", &path, &[], b"").await.status, 404);
    assert_eq!(origin.append(&path, 0, &sample(10)).await.problem().slug(), "upload-not-found");
    assert_eq!(origin.tus("DELETE", &path, &[], b"").await.status, 404);

    // A finished one as well; what it became stays, since a message may name it.
    let path = origin.create(10, &[]).await;
    let blob = origin.append(&path, 0, &sample(10)).await.blob();
    assert_eq!(origin.tus("DELETE", &path, &[], b"").await.status, 204);
    assert_eq!(origin.tus("HEAD", &path, &[], b"").await.status, 404);
    assert_eq!(origin.read("GET", &blob.to_string(), &[]).await.status, 200);
}

#[tokio::test]
async fn other_bytes_than_declared_are_refused() {
    let origin = TestOrigin::start().await;
    let declared = id_of(b"something else").to_string();
    let path = origin.create(10, &[("waxwing-blob", &declared)]).await;
    let refused = origin.append(&path, 0, &sample(10)).await;
    assert_eq!(refused.status, 460);
    let problem = refused.problem();
    assert_eq!(problem.slug(), "blob-mismatch");
    assert_eq!(problem.extensions["expected"], declared);
    assert_eq!(problem.extensions["actual"], id_of(&sample(10)).to_string());
    assert_eq!(origin.tus("HEAD", &path, &[], b"").await.status, 404);

    let right = id_of(&sample(10)).to_string();
    let path = origin.create(10, &[("waxwing-blob", &right)]).await;
    assert_eq!(origin.append(&path, 0, &sample(10)).await.blob().to_string(), right);
}

/// Some networks let only GET and POST through.
#[tokio::test]
async fn methods_can_be_overridden() {
    let origin = TestOrigin::start().await;
    let path = origin.create(10, &[]).await;
    let patch = [("x-http-method-override", "PATCH"), ("upload-offset", "0"), OFFSET_STREAM];
    assert_eq!(origin.tus("POST", &path, &patch, &sample(5)).await.status, 204);
    let head = origin.tus("POST", &path, &[("x-http-method-override", "HEAD")], b"").await;
    assert_eq!((head.status, head.header("upload-offset")), (200, Some("5")));
    assert_eq!(origin.tus("POST", &path, &[("x-http-method-override", "DELETE")], b"").await.status, 204);
    assert_eq!(origin.tus("HEAD", &path, &[], b"").await.status, 404);
    assert_eq!(origin.tus("POST", &path, &[], b"").await.problem().slug(), "method-not-allowed");
}

#[tokio::test]
async fn discovery_tells_what_there_is() {
    let origin = TestOrigin::start().await;
    let answer = origin.ask("OPTIONS", "/v1/uploads", &[], b"").await;
    assert_eq!(answer.status, 204);
    assert_eq!(answer.header("tus-version"), Some("1.0.0"));
    assert_eq!(answer.header("tus-resumable"), Some("1.0.0"));
    assert_eq!(answer.header("tus-max-size"), Some(BLOB_BYTES_MAX.to_string().as_str()));
    for extension in ["creation", "creation-with-upload", "creation-defer-length", "expiration", "termination"] {
        assert!(answer.header("tus-extension").unwrap().split(',').any(|has| has == extension), "{extension}");
    }
}

/// A browser asks before it sends, and reads only what it is allowed to.
#[tokio::test]
async fn browsers_on_any_site_may_upload() {
    let origin = TestOrigin::start().await;
    let ask = [("origin", "https://app.example"), ("access-control-request-method", "PATCH")];
    for path in ["/v1/uploads", "/v1/uploads/x", "/v1/blobs", "/origin/v1/blobs/x"] {
        let preflight = origin.ask("OPTIONS", path, &ask, b"").await;
        assert_eq!(preflight.status, 204, "{path}");
        assert_eq!(preflight.header("access-control-allow-origin"), Some("*"));
        assert!(preflight.header("access-control-allow-methods").unwrap().contains("PATCH"));
        let allowed = preflight.header("access-control-allow-headers").unwrap();
        for name in ["Authorization", "Tus-Resumable", "Upload-Offset", "Waxwing-Blob", "Range"] {
            assert!(allowed.contains(name), "{name}");
        }
    }
    let refused = origin.ask("POST", "/v1/uploads", &[("origin", "https://app.example")], b"").await;
    assert_eq!(refused.header("access-control-allow-origin"), Some("*"));
    assert!(refused.header("access-control-expose-headers").unwrap().contains("Waxwing-Blob"));
}

#[tokio::test]
async fn uploads_run_side_by_side() {
    let origin = std::sync::Arc::new(TestOrigin::start().await);
    let uploads = (0..16_usize).map(|n| {
        let origin = std::sync::Arc::clone(&origin);
        tokio::spawn(async move {
            let bytes = sample(300_000 + n);
            let path = origin.create(bytes.len(), &[]).await;
            for at in (0..bytes.len()).step_by(100_000) {
                let end = (at + 100_000).min(bytes.len());
                assert_eq!(origin.append(&path, at, &bytes[at..end]).await.status, 204);
            }
            let blob: BlobId = origin.tus("HEAD", &path, &[], b"").await.blob();
            assert_eq!(origin.read("GET", &blob.to_string(), &[]).await.body, bytes);
        })
    });
    for upload in uploads.collect::<Vec<_>>() {
        upload.await.unwrap();
    }
}

/// A server that is being replaced keeps what it has and sends clients on.
#[tokio::test]
async fn a_closing_origin_commits_and_refuses() {
    let origin = TestOrigin::start().await;
    let path = origin.create(100_000, &[]).await;
    assert!(origin.origin.is_ready());
    origin.origin.close().await;
    assert!(!origin.origin.is_ready());
    let refused = origin.append(&path, 0, &sample(10)).await;
    assert_eq!((refused.status, refused.problem().slug()), (503, "closing"));
    assert!(refused.header("retry-after").is_some());
    let origin = origin.crash_and_restart().await;
    assert_eq!(origin.offset(&path).await, 0);
}
