//! Storms: everybody at once on one cold blob, and ranges by the thousand.

use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::future::join_all;
use http::StatusCode;
use http::header::RANGE;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use waxwing_edge::Config;
use waxwing_protocol::BlobId;

use super::harness::{GROUP, SLICE, TestEdge, media_grant, path, sample_bytes};
use super::origin::Asked;

/// Clients at once.
const CLIENTS: usize = 10_000;

/// Those of them with a connection of their own: each takes two of this process's files. The others ask the router.
const CONNECTED: usize = 2_500;

/// Connections made at once, well below the backlog of a listener.
const CONNECTING: usize = 250;

/// A client that has sent its request and reads nothing yet.
async fn asked_over_a_socket(edge: &TestEdge, id: BlobId, grant: &str) -> TcpStream {
    let mut stream = TcpStream::connect(edge.addr()).await.unwrap();
    let path = path(id);
    let head = format!("GET {path} HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer {grant}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// A video that goes around the world is asked for by ten thousand phones before the first byte of it is here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_clients_on_one_cold_blob_cost_the_origin_one_request() {
    raise_open_files();
    let edge = TestEdge::start_with(Config { readers_max: 2 * CLIENTS as u32, ..Config::default() }).await;
    let bytes: Arc<Vec<u8>> = Arc::new(sample_bytes(SLICE + GROUP + 7));
    let id = edge.origin.store(bytes.to_vec());
    edge.origin.open_gate_to(0);

    let grant = media_grant();
    let mut connected = Vec::with_capacity(CONNECTED);
    while connected.len() < CONNECTED {
        connected.extend(join_all((0..CONNECTING).map(|_| asked_over_a_socket(&edge, id, &grant))).await);
    }
    let others = (connected.len()..CLIENTS).map(|_| {
        let (bytes, answer) = (Arc::clone(&bytes), edge.answer_without_socket(id));
        async move {
            let mut body = answer.await.into_body();
            let mut at = 0;
            while let Some(frame) = body.frame().await {
                let piece = frame.unwrap().into_data().unwrap();
                assert!(bytes[at..].starts_with(&piece), "other bytes at {at}");
                at += piece.len();
            }
            assert_eq!(at, bytes.len());
        }
    });
    let sockets = connected.len();
    let readers = connected.into_iter().map(|mut stream| {
        let bytes = Arc::clone(&bytes);
        tokio::spawn(async move {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            let head_bytes = answer.windows(4).position(|at| at == b"\r\n\r\n").unwrap() + 4;
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
            assert!(answer[head_bytes..] == **bytes, "{} bytes of a body", answer.len() - head_bytes);
        })
    });
    let readers: Vec<_> = readers.collect();
    let release = async {
        edge.origin.wait_for_range_asked().await;
        edge.origin.open_gate_to(u64::MAX);
    };
    // All of them are polled once before the gate opens: they wait.
    let (rest, ()) = tokio::join!(join_all(others), release);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!((rest.len() + sockets, sockets), (CLIENTS, CONNECTED));
    let mut asked = edge.origin.asked();
    asked.sort_by_key(|asked| *asked != Asked::Outboard);
    assert_eq!(asked, [Asked::Outboard, Asked::Range(0, 8 * SLICE as u64)]);
}

/// A player that hops about, and somebody who wants to make the origin work: a byte here and there costs the origin
/// each slice once, in one request or in a thousand.
#[tokio::test]
async fn a_thousand_tiny_ranges_cost_the_origin_the_blob_once() {
    const RANGES: usize = 1_000;
    let memory_bytes = 64 << 20;
    let edge = TestEdge::start_with(Config { memory_bytes, ..Config::default() }).await;
    let bytes = sample_bytes(16 * SLICE + 5);
    let id = edge.origin.store(bytes.clone());
    // Overlapping, adjacent, apart, backwards.
    let starts = (0..RANGES).map(|n| n * 7_919 * 4_099 % (bytes.len() - 3));
    let ranges: Vec<_> = starts.map(|start| (start, start + n_bytes(start))).collect();
    for ranges in ranges.chunks(50) {
        let answers = join_all(ranges.iter().map(|(start, end)| {
            let edge = &edge;
            async move { edge.get(id, &[(RANGE, &format!("bytes={start}-{}", end - 1))]).await }
        }));
        for (answer, (start, end)) in answers.await.into_iter().zip(ranges) {
            answer.assert_is(StatusCode::PARTIAL_CONTENT, &bytes[*start..*end]);
        }
        assert!(edge.edge.stats().memory_bytes <= memory_bytes);
    }
    // As many as one request may name, and then all of them in one, which is answered with the whole.
    for ranges in ranges.chunks(8).take(40) {
        let answer = edge.get(id, &[(RANGE, &header(ranges))]).await;
        assert!(answer.status == StatusCode::PARTIAL_CONTENT && answer.is_whole);
    }
    edge.get(id, &[(RANGE, &header(&ranges))]).await.assert_is(StatusCode::OK, &bytes);
    let cost = edge.edge.stats().origin_bytes as usize;
    assert!(cost >= bytes.len() && cost * 10 <= bytes.len() * 11, "{cost} bytes for a blob of {}", bytes.len());
    assert!(edge.edge.stats().memory_bytes <= memory_bytes);
}

/// One, two or three bytes.
const fn n_bytes(start: usize) -> usize {
    1 + start % 3
}

fn header(ranges: &[(usize, usize)]) -> String {
    let mut header = String::from("bytes=");
    for (n, (start, end)) in ranges.iter().enumerate() {
        write!(header, "{}{start}-{}", if n == 0 { "" } else { "," }, end - 1).unwrap();
    }
    header
}

/// Sockets are files, and the usual soft limit is far below what is needed here.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let enough = limit.maximum.is_none_or(|files| files > 3 * CONNECTED as u64);
    assert!(enough, "this needs {} open files: raise the hard limit", 3 * CONNECTED);
}
