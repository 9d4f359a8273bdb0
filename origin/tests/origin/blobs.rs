//! Reading as an edge, and blobs in one request.

use waxwing_protocol::blob::{GROUP_BYTES, Outboard};
use waxwing_protocol::grant::Grant;

use crate::harness::{TestOrigin, id_of, sample, shown, upload_grant};

#[tokio::test]
async fn a_blob_in_one_request_comes_back() {
    let origin = TestOrigin::start().await;
    let bytes = sample(100_000);
    let declared = id_of(&bytes).to_string();
    let headers = [("authorization", origin.alice.as_str()), ("waxwing-blob", declared.as_str())];
    let stored = origin.ask("PUT", "/v1/blobs", &headers, &bytes).await;
    assert_eq!((stored.status, stored.blob().to_string()), (201, declared.clone()));
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&stored.body).unwrap()["blob"], declared);
    // Whether another has it already is nobody's business: the answer is the same.
    let again = origin.ask("PUT", "/v1/blobs", &[("authorization", &origin.bob)], &bytes).await;
    assert_eq!((again.status, again.body), (stored.status, stored.body));
    let other = origin.ask("PUT", "/v1/blobs", &headers, b"other bytes").await;
    assert_eq!((other.status, other.problem().slug()), (422, "blob-mismatch"));

    let origin = origin.crash_and_restart().await;
    assert_eq!(origin.read("GET", &declared, &[]).await.body, bytes);
}

#[tokio::test]
async fn a_blob_is_read_whole_or_by_one_range() {
    let origin = TestOrigin::start().await;
    let size = 3 * GROUP_BYTES as usize + 5;
    let bytes = sample(size);
    let blob = origin.put(&bytes).await.to_string();
    let tag = format!("\"{blob}\"");

    let whole = origin.read("GET", &blob, &[]).await;
    assert_eq!((whole.status, whole.header("etag")), (200, Some(tag.as_str())));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(whole.body, bytes);
    let head = origin.read("HEAD", &blob, &[("range", "bytes=0-0")]).await;
    assert_eq!((head.status, head.header("content-length")), (200, Some(size.to_string().as_str())));
    assert_eq!(head.header("etag"), Some(tag.as_str()));

    let group = GROUP_BYTES as usize;
    let edges = [0, 1, group - 1, group, group + 1, 2 * group, size - 1];
    for first in edges {
        for last in edges.into_iter().filter(|last| *last >= first) {
            let part = origin.read("GET", &blob, &[("range", &format!("bytes={first}-{last}"))]).await;
            assert_eq!(part.status, 206);
            assert_eq!(part.header("content-range"), Some(format!("bytes {first}-{last}/{size}").as_str()));
            assert_eq!(part.header("content-length"), Some((last - first + 1).to_string().as_str()));
            assert_eq!(part.body, bytes[first..=last]);
        }
    }
    assert_eq!(origin.read("GET", &blob, &[("range", "bytes=-7")]).await.body, bytes[size - 7..]);
    assert_eq!(origin.read("GET", &blob, &[("range", "bytes=65536-")]).await.body, bytes[group..]);
    let beyond = origin.read("GET", &blob, &[("range", &format!("bytes={size}-"))]).await;
    assert_eq!((beyond.status, beyond.problem().slug()), (416, "range-not-satisfiable"));
    assert_eq!(beyond.header("content-range"), Some(format!("bytes */{size}").as_str()));
    for ignored in ["bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16", "bytes=5-4", "bytes=x", "lines=1-2", "bytes="]
    {
        assert_eq!(origin.read("GET", &blob, &[("range", ignored)]).await.status, 200, "{ignored}");
    }
}

#[tokio::test]
async fn conditions_are_judged_by_the_blobs_id() {
    let origin = TestOrigin::start().await;
    let blob = origin.put(&sample(1000)).await.to_string();
    let (tag, weak) = (format!("\"{blob}\""), format!("W/\"{blob}\""));
    for known in [tag.as_str(), "*", &format!("\"x\", {weak}")] {
        for method in ["GET", "HEAD"] {
            let answer = origin.read(method, &blob, &[("if-none-match", known)]).await;
            assert_eq!((answer.status, answer.header("etag")), (304, Some(tag.as_str())), "{known}");
            assert!(answer.body.is_empty());
        }
    }
    assert_eq!(origin.read("GET", &blob, &[("if-none-match", "\"x\"")]).await.status, 200);
    let range = ("range", "bytes=0-9");
    assert_eq!(origin.read("GET", &blob, &[range, ("if-range", &tag)]).await.status, 206);
    // A weak tag and a date do not tell one version from another.
    for other in [weak.as_str(), "\"x\"", "Wed, 25 Jun 2014 16:00:00 GMT"] {
        assert_eq!(origin.read("GET", &blob, &[range, ("if-range", other)]).await.status, 200, "{other}");
    }
}

/// An edge verifies every group with the outboard it got here.
#[tokio::test]
async fn the_outboard_verifies_every_group() {
    let origin = TestOrigin::start().await;
    for size in [1, GROUP_BYTES, GROUP_BYTES + 1, 20 * GROUP_BYTES, 37 * GROUP_BYTES + 1] {
        let bytes = sample(size as usize);
        // In uneven requests, so that the outboard is made of parts.
        let path = origin.create(bytes.len(), &[]).await;
        let mut offset = 0;
        while offset < bytes.len() {
            let end = (offset + 700_001).min(bytes.len());
            assert_eq!(origin.append(&path, offset, &bytes[offset..end]).await.status, 204);
            offset = end;
        }
        let blob = origin.tus("HEAD", &path, &[], b"").await.blob();
        let answer = origin.read("GET", &format!("{blob}/outboard"), &[]).await;
        assert_eq!(answer.status, 200);
        let blob_bytes = answer.header("waxwing-blob-bytes").unwrap().parse().unwrap();
        assert_eq!(blob_bytes, size);
        let outboard = Outboard::verify(blob, blob_bytes, &answer.body).unwrap();
        for (index, group) in bytes.chunks(GROUP_BYTES as usize).enumerate() {
            outboard.verify_group(index as u64, group).unwrap();
        }
        let head = origin.read("HEAD", &format!("{blob}/outboard"), &[]).await;
        assert_eq!(head.header("content-length"), Some(answer.body.len().to_string().as_str()));
    }
}

#[tokio::test]
async fn every_path_asks_for_its_own_grant() {
    let origin = TestOrigin::start().await;
    let blob = origin.put(b"bytes").await.to_string();
    let media = shown(&Grant::Media);
    let tus = ("tus-resumable", "1.0.0");
    let upload_path = origin.create(10, &[]).await;
    let requests = [
        ("POST", "/v1/uploads".to_owned(), &origin.edge),
        ("HEAD", upload_path.clone(), &media),
        ("PATCH", upload_path.clone(), &origin.edge),
        ("DELETE", upload_path, &media),
        ("PUT", "/v1/blobs".to_owned(), &media),
        ("GET", format!("/origin/v1/blobs/{blob}"), &origin.alice),
        ("HEAD", format!("/origin/v1/blobs/{blob}"), &media),
        ("GET", format!("/origin/v1/blobs/{blob}/outboard"), &media),
    ];
    for (method, path, wrong) in requests {
        for (grant, status, slug) in [
            (None, 401, "grant-missing"),
            (Some("Basic YTpi"), 401, "grant-missing"),
            (Some("Bearer x.y.z"), 401, "grant-invalid"),
            (Some(wrong.as_str()), 403, "grant-audience"),
        ] {
            let mut headers = vec![tus];
            headers.extend(grant.map(|grant| ("authorization", grant)));
            let answer = origin.ask(method, &path, &headers, b"").await;
            assert_eq!(answer.status, status, "{method} {path} {grant:?}");
            assert_eq!(answer.header("www-authenticate").is_some(), status == 401);
            if method != "HEAD" {
                assert_eq!(answer.problem().slug(), slug);
            }
        }
    }
}

#[tokio::test]
async fn a_grant_bounds_the_size_of_a_blob() {
    let origin = TestOrigin::start().await;
    let Grant::Upload { owner, quota_bytes, .. } = upload_grant(1) else { unreachable!() };
    let small = shown(&Grant::Upload { owner, blob_bytes_max: 100, quota_bytes });
    let headers = [("authorization", small.as_str()), ("tus-resumable", "1.0.0"), ("upload-length", "101")];
    let refused = origin.ask("POST", "/v1/uploads", &headers, b"").await;
    assert_eq!((refused.status, refused.problem().extensions["bytes_max"].as_u64()), (413, Some(100)));
    assert_eq!(origin.ask("PUT", "/v1/blobs", &headers[..1], &sample(101)).await.status, 413);
    assert_eq!(origin.ask("PUT", "/v1/blobs", &headers[..1], &sample(100)).await.status, 201);
}

/// A player that reads an index at the end and the beginning at once.
#[tokio::test]
async fn several_ranges_come_in_one_answer() {
    let origin = TestOrigin::start().await;
    let size = 200_000;
    let bytes = sample(size);
    let blob = origin.put(&bytes).await.to_string();
    let answer = origin.read("GET", &blob, &[("range", "bytes=-100,0-9,5-19")]).await;
    assert_eq!(answer.status, 206);
    assert_eq!(answer.header("content-length"), Some(answer.body.len().to_string().as_str()));
    let boundary = answer.header("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let expected = [
        format!("\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes 199900-199999/200000\r\n\r\n").as_bytes(),
        &bytes[size - 100..],
        format!("\r\n--{boundary}\r\ncontent-type: application/octet-stream\r\ncontent-range: bytes 0-19/200000\r\n\r\n").as_bytes(),
        &bytes[..20],
        format!("\r\n--{boundary}--\r\n").as_bytes(),
    ]
    .concat();
    assert_eq!(answer.body, expected);
    // Parts that touch are one, and that one comes plain; what does not exist is left out.
    let one = origin.read("GET", &blob, &[("range", "bytes=0-9,10-19,999999-")]).await;
    assert_eq!((one.status, one.header("content-range")), (206, Some("bytes 0-19/200000")));
    assert_eq!(one.body, bytes[..20]);
    // Another version's ranges are not ours.
    let changed = [("range", "bytes=0-0,5-5"), ("if-range", "\"other\"")];
    assert_eq!(origin.read("GET", &blob, &changed).await.status, 200);
}
