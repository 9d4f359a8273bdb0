//! The raw hit path beside hyper: the same requests, the same answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use waxwing_edge::Config;
use waxwing_edge::raw::{Left, Terms};
use waxwing_protocol::grant::Grant;
use waxwing_protocol::{BlobId, ClientAddress};

use super::harness::{GROUP, SLICE, TestEdge, media_grant, now, sample_bytes, signer};

/// One edge, served on the raw path at one address and by hyper at another.
struct Both {
    edge: TestEdge,
    raw: SocketAddr,
    stopping: CancellationToken,
    blobs: Vec<(BlobId, usize)>,
}

/// An answer as it came: status, fields but those of the moment, body.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    fields: BTreeMap<String, Vec<String>>,
    body: Vec<u8>,
}

impl Both {
    async fn start(config: Config) -> Self {
        let edge = TestEdge::start_with(config).await;
        let mut blobs = Vec::new();
        for len in [0, 5, GROUP, GROUP + 1, 100 * 1024, SLICE, 3 * SLICE + 77] {
            let bytes = sample_bytes(len);
            let id = edge.origin.store(bytes.clone());
            blobs.push((id, len));
            assert_eq!(edge.get(id, &[]).await.body, bytes);
        }
        edge.edge.close().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let raw = listener.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let terms = Terms {
            router: edge.edge.router(),
            head_timeout: Duration::from_secs(5),
            stopping: stopping.clone(),
            measured: Arc::new(|_, _, _| {}),
        };
        let served = edge.edge.clone();
        tokio::spawn(async move {
            while let Ok((stream, address)) = listener.accept().await {
                let (edge, terms, client) = (served.clone(), terms.clone(), ClientAddress::new(address));
                tokio::spawn(async move {
                    if let Left::Over { mut stream, read } = Box::pin(edge.serve_raw(stream, client, &terms)).await {
                        let said = format!("handed over with {}", read.len());
                        stream.write_all(said.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self { edge, raw, stopping, blobs }
    }

    /// Sends all of `heads` on one connection before it reads, to both; gives what came if it is the same.
    async fn ask(&self, heads: &[String]) -> Vec<Seen> {
        let (raw, hyper) = (exchange(self.raw, heads).await, exchange(self.edge.addr(), heads).await);
        for ((raw, hyper), head) in raw.iter().zip(&hyper).zip(heads) {
            assert_eq!((raw.status, &raw.fields), (hyper.status, &hyper.fields), "{head}");
            assert!(raw.body == hyper.body, "the bodies differ for {head}");
        }
        assert_eq!(raw.len(), hyper.len());
        raw
    }
}

async fn exchange(address: SocketAddr, heads: &[String]) -> Vec<Seen> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(heads.concat().as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let mut seen = Vec::new();
    for head in heads {
        let Some(end) =
            until(&mut stream, &mut read, |read| read.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4))
                .await
        else {
            break;
        };
        let text = String::from_utf8(read.drain(..end).collect()).unwrap();
        let mut lines = text.lines();
        let status = lines.next().unwrap()[9..12].parse().unwrap();
        let mut fields = BTreeMap::<String, Vec<String>>::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            if !["date", "server-timing"].contains(&name) {
                fields.entry(name.to_owned()).or_default().push(value.to_owned());
            }
        }
        // Both are asked within a moment, but not within the same second.
        for name in ["age", "cache-control"] {
            if let Some(values) = fields.get_mut(name) {
                values.iter_mut().for_each(|value| value.retain(|letter| !letter.is_ascii_digit()));
            }
        }
        let length = fields.get("content-length").map_or(0, |values| values[0].parse().unwrap());
        let length = if head.starts_with("HEAD") { 0 } else { length };
        until(&mut stream, &mut read, |read| (read.len() >= length).then_some(length)).await.expect("a whole body");
        seen.push(Seen { status, fields, body: read.drain(..length).collect() });
    }
    seen
}

async fn until(stream: &mut TcpStream, read: &mut Vec<u8>, found: impl Fn(&[u8]) -> Option<usize>) -> Option<usize> {
    loop {
        if let Some(found) = found(read) {
            return Some(found);
        }
        let reading = tokio::time::timeout(Duration::from_secs(10), stream.read_buf(read));
        if reading.await.expect("an answer or an end").unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn head(method: &str, id: impl std::fmt::Display, grant: &str, lines: &str) -> String {
    format!("{method} /v1/blobs/{id} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {grant}\r\n{lines}\r\n")
}

fn on_disk() -> Config {
    Config { disk_bytes: 128 << 20, ..Config::default() }
}

/// Every kind of request, to every kind of blob, with and without a disk beneath.
#[tokio::test]
async fn the_raw_path_answers_as_hyper_does() {
    for config in [on_disk(), Config::default()] {
        let both = Both::start(config).await;
        let grant = media_grant();
        let mut hits = 0;
        for (id, len) in &both.blobs {
            let ranges =
                ["", "0-0", "1-", "-1", "-0", "0-999999999999", "5-4", "99999999-", "65000-66000", "1048000-1049000"];
            for range in ranges {
                let line = if range.is_empty() { String::new() } else { format!("Range: bytes={range}\r\n") };
                for method in ["GET", "HEAD"] {
                    for answer in both.ask(&[head(method, id, &grant, &line)]).await {
                        hits += usize::from(
                            answer.fields.get("cache-status").is_some_and(|said| said[0] == "waxwing; hit"),
                        );
                    }
                }
            }
            let etag = format!("\"{id}\"");
            for line in [
                format!("If-None-Match: {etag}\r\n"),
                format!("If-Range: {etag}\r\nRange: bytes=0-3\r\n"),
                "If-Match: \"other\"\r\n".into(),
                "Range: items=0-1\r\n".into(),
                "Range: bytes=0-1\r\nRange: bytes=2-3\r\n".into(),
                "Origin: https://page.example\r\nConnection: close\r\n".into(),
                "Authorization: Bearer twice\r\n".into(),
            ] {
                assert_eq!(both.ask(&[head("GET", id, &grant, &line)]).await.len(), 1, "{line}");
            }
            both.ask(&[head("OPTIONS", id, &grant, "Origin: x\r\nAccess-Control-Request-Method: GET\r\n")]).await;
            let whole = both.ask(&[head("GET", id, &grant, "")]).await;
            assert_eq!((whole[0].status, &whole[0].body), (200, &sample_bytes(*len)));
        }
        assert!(hits >= 40, "{hits}");
    }
}

/// Grants are checked here too, after a warm hit as before it.
#[tokio::test]
async fn the_raw_path_refuses_what_hyper_refuses() {
    let both = Both::start(on_disk()).await;
    let (id, other) = (both.blobs[1].0, both.blobs[2].0);
    let minute = Duration::from_secs(60);
    let long_ago = waxwing_protocol::Timestamp::from_secs(1_000_000);
    let mint = |grant: &Grant, at| signer().mint(grant, at, minute, [1; 16]).text;
    for (grant, status) in [
        (media_grant(), 200),
        (mint(&Grant::Share { blob: id }, now()), 200),
        (mint(&Grant::Share { blob: other }, now()), 403),
        (mint(&Grant::Edge { node: "e".into() }, now()), 403),
        (mint(&Grant::Media, long_ago), 401),
        ("nonsense".into(), 401),
        (String::new(), 401),
    ] {
        for method in ["GET", "HEAD"] {
            assert_eq!(both.ask(&[head(method, id, &grant, "")]).await[0].status, status, "{grant}");
        }
    }
    let nobody = format!("GET /v1/blobs/{id} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(both.ask(&[nobody]).await[0].status, 401);
    for no_id in ["x", "", &id.to_string().to_uppercase(), &format!("{id}?x=y"), &format!("{id}/outboard")] {
        both.ask(&[head("GET", no_id, &media_grant(), "")]).await;
    }
    assert_eq!(both.ask(&[head("GET", BlobId::from_bytes([9; 32]), &media_grant(), "")]).await[0].status, 404);
}

#[tokio::test]
async fn requests_sent_at_once_are_answered_in_their_order() {
    let both = Both::start(on_disk()).await;
    let grant = media_grant();
    let mut heads: Vec<_> = both.blobs.iter().map(|(id, _)| head("GET", id, &grant, "")).collect();
    heads.insert(2, head("GET", "x", &grant, ""));
    heads.insert(4, head("HEAD", both.blobs[3].0, &grant, ""));
    let last = heads.len();
    heads.push(head("GET", both.blobs[1].0, &grant, "Connection: close\r\n"));
    heads.push(head("GET", both.blobs[2].0, &grant, ""));
    assert_eq!(both.ask(&heads).await.len(), last + 1, "nothing comes after the answer that closes");
}

/// What is not for readers of blobs goes to another server with every byte that was read of it.
#[tokio::test]
async fn anything_else_is_handed_over_whole() {
    let both = Both::start(Config::default()).await;
    let first = head("HEAD", both.blobs[1].0, &media_grant(), "");
    for other in
        ["POST /v1/uploads HTTP/1.1\r\n\r\n", "GET /v1/info HTTP/1.1\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(both.raw).await.unwrap();
        stream.write_all(format!("{first}{other}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with(&format!("handed over with {}", other.len())), "{answer}");
    }
}

/// SIGTERM ends what is idle, and lets an answer under way end.
#[tokio::test]
async fn a_drain_ends_idle_connections_and_lets_answers_end() {
    let both = Both::start(on_disk()).await;
    let (id, len) = both.blobs[6];
    let mut idle = TcpStream::connect(both.raw).await.unwrap();
    let mut reading = TcpStream::connect(both.raw).await.unwrap();
    reading.write_all(head("GET", id, &media_grant(), "").as_bytes()).await.unwrap();
    reading.readable().await.unwrap();
    both.stopping.cancel();
    assert_eq!(idle.read(&mut [0; 9]).await.unwrap(), 0);
    let mut answer = Vec::new();
    reading.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&sample_bytes(len)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Heads nobody thought of, several on one connection.
    #[test]
    fn any_requests_are_answered_alike(
        asked in proptest::collection::vec((0..7_usize, any::<bool>(), range(), 0..6_usize), 1..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let both = Both::start(on_disk()).await;
            let grant = media_grant();
            let heads: Vec<_> = asked.iter().map(|(blob, is_head, range, line)| {
                let line = ["", "X: y\r\n", "if-none-match: *\r\n", "IF-RANGE: \"x\"\r\n", "Accept:\t*/*  \r\n", "range: bytes=1-1\r\n"][*line];
                let lines = format!("{line}{range}");
                head(if *is_head { "HEAD" } else { "GET" }, both.blobs[*blob].0, &grant, &lines)
            }).collect();
            // One after the other as well: several at once take other turns through the buffers.
            for head in &heads {
                both.ask(std::slice::from_ref(head)).await;
            }
            both.ask(&heads).await;
        });
    }
}

fn range() -> impl Strategy<Value = String> {
    let near = prop_oneof![0..10_u64, 65_530..65_545_u64, 1_048_570..1_048_580_u64, 3_145_800..3_145_810_u64];
    prop_oneof![
        Just(String::new()),
        (near.clone(), near.clone()).prop_map(|(first, last)| format!("Range: bytes={first}-{last}\r\n")),
        near.clone().prop_map(|first| format!("Range: bytes={first}-\r\n")),
        near.prop_map(|length| format!("Range: bytes=-{length}\r\n")),
    ]
}
