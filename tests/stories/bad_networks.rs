//! Networks that lose clients without a word, or bring their bytes one at a time: every upload keeps what came, and
//! nobody else is kept waiting.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Bytes, HttpBody};
use hyper::Request;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::sync::mpsc;
use waxwing_protocol::BlobId;

use crate::support::{Service, register, sample_bytes, waxwing};

/// How long the service waits for a byte in these stories.
const IDLE: Duration = Duration::from_secs(3);

pub(super) struct Network {
    _dir: tempfile::TempDir,
    pub(super) service: Service,
    pub(super) grant: String,
}

/// An answer: its head in lower case, and what came after it.
struct Answer {
    head: String,
}

impl Network {
    pub(super) fn start() -> Self {
        Self::patient(IDLE)
    }

    /// One whose service waits so long for a byte.
    fn patient(idle: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("waxwing.toml");
        let (data, idle_s) = (dir.path().join("data"), idle.as_secs());
        let text = format!(
            "listen = \"127.0.0.1:0\"\ndata = {data:?}\n[messaging]\nregistration = \"open\"\n\
             [origin]\nidle_timeout_s = {idle_s}\n"
        );
        std::fs::write(&config, text).unwrap();
        let service = Service::serve(&config);
        register(dir.path(), &service.url, "alice");
        let grant = waxwing(dir.path(), &["grant", "upload", "--home", "alice"]).ok().stdout.trim().to_owned();
        Self { _dir: dir, service, grant }
    }

    pub(super) fn connect(&self) -> TcpStream {
        let connection = TcpStream::connect(self.service.address()).unwrap();
        connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        connection
    }

    fn head(&self, method: &str, path: &str, headers: &str) -> Vec<u8> {
        let (address, grant) = (self.service.address(), &self.grant);
        let ours = format!("Host: {address}\r\nAuthorization: Bearer {grant}\r\nTus-Resumable: 1.0.0\r\n");
        format!("{method} {path} HTTP/1.1\r\n{ours}{headers}\r\n").into_bytes()
    }

    fn append_head(&self, path: &str, offset: u64, length: &str) -> Vec<u8> {
        let headers =
            format!("Upload-Offset: {offset}\r\nContent-Type: application/offset+octet-stream\r\n{length}\r\n");
        self.head("PATCH", path, &headers)
    }

    fn ask(&self, request: &[u8]) -> Answer {
        let mut connection = self.connect();
        connection.write_all(request).unwrap();
        Answer::read(connection).expect("the service answers")
    }

    pub(super) fn create(&self, length: usize) -> String {
        let headers = format!("Upload-Length: {length}\r\nContent-Length: 0\r\nConnection: close\r\n");
        let answer = self.ask(&self.head("POST", "/v1/uploads", &headers));
        let url = answer.field("location").unwrap_or_else(|| panic!("{}", answer.head));
        url.strip_prefix(&self.service.url).unwrap().to_owned()
    }

    pub(super) fn offset(&self, path: &str) -> u64 {
        let answer = self.ask(&self.head("HEAD", path, "Connection: close\r\n"));
        answer.field("upload-offset").unwrap_or_else(|| panic!("{}", answer.head)).parse().unwrap()
    }

    /// The rest of an upload in one request, and the blob it becomes.
    pub(super) fn finish(&self, path: &str, offset: u64, rest: &[u8]) -> BlobId {
        let head = self.append_head(path, offset, &format!("Content-Length: {}\r\nConnection: close", rest.len()));
        let answer = self.ask(&[&head, rest].concat());
        answer.field("waxwing-blob").unwrap_or_else(|| panic!("{}", answer.head)).parse().unwrap()
    }
}

impl Answer {
    /// Reads to the end of the connection; `None` when it ended without an answer.
    fn read(mut connection: TcpStream) -> Option<Self> {
        let mut read = Vec::new();
        // A reset after the answer does not take the answer away.
        let _ = connection.read_to_end(&mut read);
        let end = read.windows(4).position(|four| four == b"\r\n\r\n")?;
        Some(Self { head: String::from_utf8(read[..end].to_vec()).unwrap().to_ascii_lowercase() })
    }

    fn status(&self) -> u16 {
        self.head.split(' ').nth(1).unwrap().parse().unwrap()
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

pub(super) fn hash(bytes: &[u8]) -> BlobId {
    BlobId::from_bytes(*blake3::hash(bytes).as_bytes())
}

/// A phone leaves the network amid a request: no end of the connection ever arrives. It comes back on another network at
/// once, or after a while, and goes on; then the old network delivers what it had kept.
#[test]
fn uploads_whose_peers_vanished_are_taken_over_within_two_seconds() {
    let network = Network::patient(Duration::from_secs(60));
    let data = sample_bytes(2 << 20);
    let vanish = |sent: usize| {
        let path = network.create(data.len());
        let mut connection = network.connect();
        let head = network.append_head(&path, 0, &format!("Content-Length: {}", data.len()));
        connection.write_all(&head).unwrap();
        connection.write_all(&data[..sent]).unwrap();
        (path, connection, sent)
    };
    let sizes = [1, 1000, 65_536, 70_001, 300_000, 1 << 20, (1 << 20) + 7, 2_000_000];
    let (mut injected, mut overtaken) = (0, Vec::new());
    for waits in [false, true] {
        let vanished: Vec<_> = sizes.map(vanish).into();
        if waits {
            // What came is read, and made safe when nothing more comes for a second.
            std::thread::sleep(Duration::from_millis(1500));
        }
        for (path, mut old, sent) in vanished {
            injected += 1;
            let began = Instant::now();
            let offset = network.offset(&path);
            assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
            assert!(offset <= sent as u64 && (!waits || offset == sent as u64), "{offset} of {sent}");
            // Other bytes than the upload's: were they written, the blob would be another.
            let _ = old.write_all(&vec![0xEE; 100_000]);
            assert_eq!(network.finish(&path, offset, &data[usize::try_from(offset).unwrap()..]), hash(&data));
            overtaken.push(old);
        }
    }
    let told = overtaken.into_iter().map(|old| Answer::read(old).expect("the old request is answered"));
    let fenced = told.filter(|told| told.status() == 409).count();
    assert!(injected == 2 * sizes.len() && fenced == injected, "{fenced} of {injected} old writers were fenced off");
}

/// 200 connections that bring a byte now and then hold little memory and keep nobody waiting; those that bring none are
/// ended, with what they brought kept.
#[test]
fn slow_bodies_cost_little_and_are_ended_when_they_fall_silent() {
    const SLOW: usize = 200;
    let network = Network::start();
    let data = sample_bytes(300_000);
    // Whatever the first requests need of caches and threads is there before anything is measured.
    network.finish(&network.create(data.len()), 0, &data);
    let before = network.service.resident_bytes();
    let mut slow = Vec::new();
    for n in 0..SLOW {
        let path = network.create(data.len());
        let mut connection = network.connect();
        let length = if n % 2 == 0 { "Content-Length: 300000" } else { "Transfer-Encoding: chunked" };
        connection.write_all(&network.append_head(&path, 0, length)).unwrap();
        slow.push((path, connection, n % 2 == 1));
    }
    let began = Instant::now();
    let (mut bytes, mut slowest) = (0, Duration::ZERO);
    while began.elapsed() < IDLE * 2 {
        for (_, connection, chunked) in &mut slow {
            let byte = &data[bytes..=bytes];
            let written = if *chunked {
                connection.write_all(&[b"1\r\n", byte, b"\r\n"].concat())
            } else {
                connection.write_all(byte)
            };
            written.expect("a client that still sends is not ended");
        }
        bytes += 1;
        let asked = Instant::now();
        assert_eq!(network.finish(&network.create(data.len()), 0, &data), hash(&data));
        slowest = slowest.max(asked.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    let grown = network.service.resident_bytes().saturating_sub(before);
    assert!(grown < SLOW as u64 * 96 * 1024, "{SLOW} slow uploads hold {grown} bytes");
    assert!(slowest < Duration::from_secs(2), "an ordinary upload took {slowest:?}");

    let (mut ended, silent) = (0, Instant::now());
    for (path, connection, _) in slow {
        let answer = Answer::read(connection).expect("a silent client is told");
        assert_eq!(answer.status(), 408, "{}", answer.head);
        assert_eq!(network.offset(&path), bytes as u64);
        ended += 1;
    }
    assert_eq!(ended, SLOW);
    assert!(silent.elapsed() < IDLE * 5, "{:?}", silent.elapsed());
}

/// Whoever takes for ever to say what is wanted loses the connection, however busily the bytes come.
#[test]
fn slow_heads_are_ended() {
    const SLOW: usize = 100;
    let network = Network::start();
    let head = network.head("POST", "/v1/uploads", "Upload-Length: 5\r\n");
    let mut slow: Vec<_> = (0..SLOW).map(|_| network.connect()).collect();
    let (began, mut ended) = (Instant::now(), 0);
    for byte in head.iter().cycle().filter(|byte| **byte != b'\r').take(10_000) {
        slow.retain_mut(|connection| {
            // Nothing is to come but an end; a write fails when it has come.
            let alive = connection.write_all(&[*byte]).is_ok();
            ended += usize::from(!alive);
            alive
        });
        if slow.is_empty() {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{} heads are still read", slow.len());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(ended, SLOW);
    let data = sample_bytes(1000);
    assert_eq!(network.finish(&network.create(data.len()), 0, &data), hash(&data));
}

/// A connection ends in the midst of a body; what came is kept, and goes on from there.
#[test]
fn cut_bodies_keep_their_prefix() {
    let network = Network::start();
    let data = sample_bytes(500_000);
    let mut injected = 0;
    for length in ["Content-Length: 500000\r\n", "Transfer-Encoding: chunked\r\n"] {
        for vanishes in [false, true] {
            let path = network.create(data.len());
            let mut connection = network.connect();
            connection.write_all(&network.append_head(&path, 0, length.trim_end())).unwrap();
            if length.starts_with('T') {
                connection.write_all(b"7a120\r\n").unwrap();
            }
            connection.write_all(&data[..300_000]).unwrap();
            if vanishes {
                // Not read to its end, a connection that is closed is reset.
                std::thread::sleep(Duration::from_millis(300));
                drop(connection);
            } else {
                connection.shutdown(Shutdown::Write).unwrap();
                let _ = Answer::read(connection);
            }
            injected += 1;
            assert_eq!(network.offset(&path), 300_000, "{length}");
            assert_eq!(network.finish(&path, 300_000, &data[300_000..]), hash(&data));
        }
    }
    assert_eq!(injected, 4);
}

/// A body that comes when the test says, and that fails when the test drops it without an end.
struct Pieces(mpsc::Receiver<Option<Bytes>>);

#[derive(Debug)]
struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("broken on purpose")
    }
}

impl std::error::Error for Broken {}

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.0.poll_recv(cx).map(|piece| match piece {
            Some(Some(piece)) => Some(Ok(Frame::data(piece))),
            Some(None) => None,
            None => Some(Err(Broken)),
        })
    }
}

/// How an HTTP/2 upload is cut.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// The client resets the stream.
    Stream,
    /// The connection goes.
    Connection,
    /// The stream ends as if all had been sent.
    Short,
}

#[tokio::test]
async fn cut_streams_of_http2_keep_their_prefix() {
    let network = tokio::task::spawn_blocking(Network::start).await.unwrap();
    let data = Bytes::from(sample_bytes(500_000));
    let mut injected = 0;
    for (cut, announced) in [
        (Cut::Stream, true),
        (Cut::Stream, false),
        (Cut::Connection, true),
        (Cut::Connection, false),
        (Cut::Short, true),
    ] {
        let path = network.create(data.len());
        let stream = tokio::net::TcpStream::connect(network.service.address()).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        let connection = tokio::spawn(connection);
        let (pieces, body) = mpsc::channel(1);
        let mut request = Request::patch(format!("{}{path}", network.service.url))
            .header("authorization", format!("Bearer {}", network.grant))
            .header("tus-resumable", "1.0.0")
            .header("upload-offset", "0")
            .header("content-type", "application/offset+octet-stream");
        if announced {
            request = request.header("content-length", data.len());
        }
        let answer = tokio::spawn(send.send_request(request.body(Pieces(body)).unwrap()));
        pieces.send(Some(data.slice(..200_000))).await.unwrap();
        pieces.send(Some(data.slice(200_000..300_000))).await.unwrap();
        // Until the bytes are read: what a peer resets with a stream may be lost with it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        match cut {
            Cut::Stream => drop(pieces),
            Cut::Connection => connection.abort(),
            Cut::Short => pieces.send(None).await.unwrap(),
        }
        injected += 1;
        if let Ok(Ok(Ok(answer))) = tokio::time::timeout(Duration::from_secs(5), answer).await {
            assert!(answer.status().is_client_error(), "{cut:?}: {answer:?}");
        }
        assert_eq!(network.offset(&path), 300_000, "{cut:?}");
        assert_eq!(network.finish(&path, 300_000, &data[300_000..]), hash(&data), "{cut:?}");
    }
    assert_eq!(injected, 5);
}
