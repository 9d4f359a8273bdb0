//! Requests that two parsers would read in two ways: whoever stands before this service, nothing is smuggled past it.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::support::Service;

/// A path of each role; what is refused is refused before any of them hears of it.
const PATHS: [&str; 4] = ["/v1/uploads", "/v1/blobs/x", "/v1/messages", "/v1/info"];

/// What is answered to `bytes`, until the service closes the connection.
fn answer(service: &Service, bytes: &[u8]) -> String {
    let mut connection = TcpStream::connect(service.address()).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // A service that has heard enough does not read on.
    let _ = connection.write_all(bytes);
    let mut answer = Vec::new();
    let _ = connection.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn what_has_two_readings_is_refused_and_its_connection_closed() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let mut injected = 0;
    for path in PATHS {
        for lines in [
            "GET {} HTTP/1.1\nHost: x\r\n\r\n",
            "GET {} HTTP/1.1\r\nHost: x\nX: y\r\n\r\n",
            "GET {} HTTP/1.1\r\nHost: x\r\n\n",
            "GET {} HTTP/1.1\n\n",
            "GET {} HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
            "GET {} HTTP/1.1\r\nHost : x\r\n\r\n",
            "GET {} HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
            "GET {} HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n",
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
            "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
            "POST {} HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ] {
            let sent = lines.replace("{}", path);
            let smuggled = format!("{sent}GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n");
            let answer = answer(&service, smuggled.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 400 "), "{sent:?}: {answer}");
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{sent:?}: {answer}");
            injected += 1;
        }
    }
    assert_eq!(injected, 13 * PATHS.len());
}

/// The request before it was right, and has its answer.
#[test]
fn a_request_that_was_right_is_answered_before_the_next_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    for right in ["GET /v1/info", "GET /v1/blobs/x"] {
        let sent = format!("{right} HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/info HTTP/1.1\nHost: x\r\n\r\n");
        let answer = answer(&service, sent.as_bytes());
        let statuses: Vec<_> = answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
        let first = if right.ends_with("info") { "200" } else { "404" };
        assert_eq!(statuses, [first, "400"], "{answer}");
    }
}

/// A chunk that is not one ends its request, and nothing behind it is another.
#[test]
fn a_broken_chunk_hides_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    for body in ["3\nabc\r\n0\r\n\r\n", "3\r\nabcX\r\n0\r\n\r\n", "3 \r\nabc\r\n0\r\n\r\n", "0\r\nX: y\n\r\n"] {
        let head = "POST /v1/uploads HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = answer(&service, format!("{head}{body}GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        assert!(!answer.contains("HTTP/1.1 200"), "{body:?}: {answer}");
    }
}
