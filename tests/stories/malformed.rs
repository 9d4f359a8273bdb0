//! Requests that are wrong in every way a generator can think of: each is answered or its connection ends, none of them
//! breaks anything, and the next client finds the service as it was.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use super::bad_networks::{Network, hash};
use crate::support::sample_bytes;

/// Requests that are sent.
const REQUESTS: usize = 1000;

/// xorshift64*, so that what is found can be found again.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33).unwrap() % end
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// Lines instead of the first.
const FIRST_LINES: &[&str] = &[
    "PATCH",
    "PATCH /v1/uploads",
    "PATCH  /v1/uploads HTTP/1.1",
    "PATCH /v1/uploads HTTP/1.1 x",
    "PATCH /v1/up loads HTTP/1.1",
    "PATCH /v1/uploads HTTP/9.9",
    "PATCH /v1/uploads HTTP/1.0",
    "PATCH /v1/uploads HTTP/0.9",
    "PATCH /v1/uploads http/1.1",
    "PA\u{1}TCH /v1/uploads HTTP/1.1",
    "POST http://other.example/v1/uploads HTTP/1.1",
    "POST //v1//uploads HTTP/1.1",
    "POST /v1/uploads?uploadType=resumable&uploadType=%zz HTTP/1.1",
    "POST /v1/uploads/../../etc/passwd HTTP/1.1",
    "PUT /v1/uploads/%00 HTTP/1.1",
    "PUT /v1/blobs HTTP/1.1",
    "POST * HTTP/1.1",
    "CONNECT origin.example:443 HTTP/1.1",
    "TRACE / HTTP/1.1",
    "GET /v1/blobs/x HTTP/1.1",
    "GET /origin/v1/blobs/../outboard HTTP/1.1",
    "PRI * HTTP/2.0",
    "",
];

/// Lines among the headers; they may contradict those that are there.
const LINES: &[&str] = &[
    "Content-Length: 5",
    "Content-Length: 50",
    "Content-Length: -5",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length: 0x5",
    "Content-Length: 18446744073709551616",
    "Content-Length: five",
    "Content-Length:",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: chunked, chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: chunked, identity",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:\u{b}chunked",
    "Host: a, b",
    "Host: ",
    "Host: [::",
    "Connection: upgrade, close, keep-alive",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "Expect: 100-continue",
    "Expect: 200-ok",
    " folded: onto the line before",
    "\tfolded",
    "no colon",
    ": no name",
    "bad name: x",
    "na\u{7f}me: x",
    "X: \u{0}",
    "X: \u{ff}",
    "Upload-Offset: -1",
    "Upload-Offset: 9223372036854775807",
    "Upload-Offset: 99999999999999999999999",
    "Upload-Offset: 0, 0",
    "Upload-Length: 18446744073709551615",
    "Upload-Length: 4.2",
    "Upload-Defer-Length: 2",
    "Upload-Metadata: ,,, a a a",
    "Upload-Concat: final;",
    "Upload-Concat: final;/v1/uploads/aaaaaaaaaaaaaaaaaaaaaaaaaa http://[",
    "Upload-Checksum: sha1",
    "Upload-Checksum: sha1 ////",
    "Upload-Complete: ?2",
    "Upload-Complete: ?1;a=(",
    "Upload-Draft-Interop-Version: 999999999999999",
    "Content-Digest: sha-256=:x:",
    "Repr-Digest: sha-256=::, sha-512",
    "Want-Repr-Digest: sha-256=-1",
    "Content-Range: bytes 9-1/5",
    "Content-Range: bytes 0-18446744073709551615/*",
    "Content-Range: bytes */x",
    "Range: bytes=0-0,1-1,-,9-",
    "X-HTTP-Method-Override: DESTROY",
    "Trailer: Upload-Checksum, Content-Length",
    "Content-Type: application/offset+octet-stream; charset=\"",
    "Content-Type: application/partial-upload",
    "Tus-Resumable: 0.0.1",
    "Authorization: Bearer",
    "Authorization: Basic Og==",
    "Waxwing-Blob: ../../x",
];

/// Content, most of it no chunks.
const BODIES: &[&str] = &[
    "",
    "bytes",
    "5\r\nbytes\r\n0\r\n\r\n",
    "5\r\nbytes",
    "zz\r\nbytes\r\n0\r\n\r\n",
    "-5\r\nbytes\r\n0\r\n\r\n",
    "FFFFFFFFFFFFFFFFF\r\nbytes\r\n",
    "5;ext=\"\r\nbytes\r\n0\r\n\r\n",
    "5\nbytes\n0\n\n",
    "5\r\nbytesX0\r\n\r\n",
    "0\r\nUpload-Checksum: sha1 x\r\nContent-Length: 5\r\n\r\n",
    "0\r\n no name\r\n\r\n",
    "GET /v1/info HTTP/1.1\r\nHost: x\r\n\r\n",
];

/// A request that is right but for one to three things.
fn request(random: &mut Random, network: &Network, path: &str) -> Vec<u8> {
    let method = random.of(&["PATCH", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "GET"]);
    let mut lines = vec![
        format!("{method} {path} HTTP/1.1"),
        format!("Host: {}", network.service.address()),
        format!("Authorization: Bearer {}", network.grant),
        "Connection: close".to_owned(),
    ];
    let dialect: &[&str] = match random.below(3) {
        0 => &["Tus-Resumable: 1.0.0", "Upload-Offset: 0", "Content-Type: application/offset+octet-stream"],
        1 => &["Upload-Complete: ?0", "Upload-Offset: 0", "Content-Type: application/partial-upload"],
        _ => &["Content-Range: bytes 0-4/10"],
    };
    lines.extend(dialect.iter().map(|line| (*line).to_owned()));
    let mut body = random.of(BODIES).to_owned();
    if random.below(2) == 0 {
        lines.push(format!("Content-Length: {}", body.len()));
    }
    let mut end = "\r\n";
    for _ in 0..=random.below(3) {
        match random.below(8) {
            0 => random.of(FIRST_LINES).clone_into(&mut lines[0]),
            1..=4 => {
                let at = 1 + random.below(lines.len());
                lines.insert(at, random.of(LINES).to_owned());
            }
            5 => drop(lines.remove(random.below(lines.len()))),
            6 => end = random.of(&["\n", "\r", "\r\r\n", "\r\n"]),
            _ => match random.below(4) {
                0 => lines.push(format!("X-Long: {}", "x".repeat(200_000))),
                1 => lines.extend((0..500).map(|n| format!("X-{n}: x"))),
                2 => lines[0] = format!("GET /{} HTTP/1.1", "a/".repeat(60_000)),
                _ => body = "x".repeat(300_000),
            },
        }
        if lines.is_empty() {
            lines.push(String::new());
        }
    }
    let mut bytes = (lines.join(end) + end + end).into_bytes();
    bytes.extend(body.as_bytes());
    // Seldom some noise, wherever it hits.
    if random.below(8) == 0 {
        let at = random.below(bytes.len());
        bytes[at] = u8::try_from(random.below(256)).unwrap();
    }
    bytes
}

/// The statuses of the answers that came, however many a malformed stream was taken for.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    let heads = text.match_indices("HTTP/1.").map(|(at, _)| &text[at..]);
    heads.filter_map(|head| head.get(9..12)?.parse().ok()).collect()
}

#[test]
fn a_thousand_malformed_requests_break_nothing() {
    let network = Network::start();
    let data = sample_bytes(100_000);
    let (victim, path) = (network.create(data.len()), network.create(10));
    let mut random = Random(0x5EED);
    let (mut injected, mut refused) = (0, 0);
    for n in 0..REQUESTS {
        let bytes = request(&mut random, &network, &path);
        let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]).into_owned();
        let mut connection = network.connect();
        // A service that has heard enough does not read on.
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(Shutdown::Write);
        let (asked, mut answer) = (Instant::now(), Vec::new());
        let read = connection.read_to_end(&mut answer);
        injected += 1;
        let timed_out = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!timed_out && asked.elapsed() < Duration::from_secs(20), "request {n} hangs: {}", shown());
        for status in statuses(&answer) {
            // Of a range beyond what is held, a 503 tells that dialect's clients to ask and go on.
            let gap = status == 503 && String::from_utf8_lossy(&answer).contains("offset-mismatch");
            assert!(status < 500 || gap, "request {n}: {} for {}", String::from_utf8_lossy(&answer), shown());
            refused += usize::from((400..500).contains(&status));
        }
    }
    assert_eq!(injected, REQUESTS);
    assert!(refused > REQUESTS / 3, "only {refused} of {REQUESTS} were wrong enough to be refused");
    // Nobody else's upload was touched, and the service is as it was.
    assert_eq!(network.offset(&victim), 0);
    assert_eq!(network.finish(&victim, 0, &data), hash(&data));
}
