//! The parser of the raw path, given what is nearly right.

use waxwing_protocol::http1::Framing;

use super::head::{BLOBS, Parsed, parse};
use crate::mutations::fuzz;

/// What is taken for a request is one for the strict parser too, as long, and has no other reading when it comes in pieces.
#[test]
fn fuzz_raw_heads() {
    let corpus: [&[u8]; 5] = [
        b"GET /v1/blobs/x HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer a.b.c\r\nRange: bytes=0-4\r\n\r\n",
        b"HEAD /v1/blobs/x?y HTTP/1.1\r\nhost:x\r\nConnection: close\r\nIf-Range: \"x\"\r\n\r\nGET /v1/blobs/y HTTP/1.1\r\n\r\n",
        b"OPTIONS /v1/blobs/x HTTP/1.1\r\nOrigin: https://page.example\r\nConnection: keep-alive\r\n\r\n",
        b"GET /v1/blobs/x HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nbytes",
        b"GET /v1/blobs/x HTTP/1.1\r\nRange: bytes=0-0\r\nRange: bytes=1-\r\n folded\r\nX: \xff\t\r\n\r\n",
    ];
    fuzz("raw heads", &corpus, |input| {
        let Parsed::Request(request) = parse(input) else { return };
        let (head, bytes) = (&input[..request.bytes], request.bytes);
        assert!(head.ends_with(b"\r\n\r\n") && request.target.starts_with(BLOBS));
        let mut framing = Framing::new();
        assert!(framing.follow(head).is_ok() && framing.is_between(), "the strict parser reads it otherwise");
        if let Some(headers) = request.headers() {
            assert!(!headers.contains_key("content-length") && !headers.contains_key("transfer-encoding"));
            // One that is no text, or comes twice, is the router's to judge.
            assert!(!request.is_plain || request.range.is_some() == headers.contains_key("range"));
        }
        for end in [bytes / 3, bytes / 2, bytes - 1] {
            assert!(matches!(parse(&input[..end]), Parsed::Partial), "the beginning of a request is no more than that");
        }
        // What comes behind it is another request's.
        let more = [input, b"GET /"].concat();
        assert!(matches!(parse(&more), Parsed::Request(same) if same.bytes == bytes));
    });
}
