//! An origin to be asked, and a client that sends exactly the bytes a test wants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use waxwing_origin::{Config, Origin};
use waxwing_protocol::grant::{Grant, GrantKeys, GrantSigner, UPLOAD_LIFETIME};
use waxwing_protocol::{BlobId, OwnerTag, Problem};

/// An origin on a port of its own, in a runtime of its own, so that it can be ended like a process.
pub(crate) struct TestOrigin {
    pub(crate) origin: Origin,
    runtime: Option<Runtime>,
    address: SocketAddr,
    directory: Option<TempDir>,
    config: Config,
    pub(crate) alice: String,
    pub(crate) bob: String,
    pub(crate) edge: String,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

/// Bytes of the largest blob.
pub(crate) const BLOB_BYTES_MAX: u64 = 64 << 20;

pub(crate) fn signer() -> GrantSigner {
    GrantSigner::from_seed(&[5; 32])
}

/// A header's value that shows `grant`.
pub(crate) fn shown(grant: &Grant) -> String {
    let token = signer().mint(grant, SystemTime::now().into(), UPLOAD_LIFETIME, [0; 16]);
    format!("Bearer {}", token.text)
}

pub(crate) fn upload_grant(owner: u8) -> Grant {
    Grant::Upload { owner: OwnerTag::from_bytes([owner; 16]), blob_bytes_max: u64::MAX, quota_bytes: u64::MAX }
}

pub(crate) fn sample(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

pub(crate) fn id_of(bytes: &[u8]) -> BlobId {
    let mut hasher = waxwing_protocol::blob::BlobHasher::new();
    hasher.update(bytes, |_| ());
    hasher.finish(|_| ())
}

impl TestOrigin {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config { blob_bytes_max: BLOB_BYTES_MAX, ..Config::default() }).await
    }

    /// One with settings of its own.
    pub(crate) async fn start_with(config: Config) -> Self {
        Self::open(tempfile::tempdir().unwrap(), config).await
    }

    async fn open(directory: TempDir, config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (path, settings) = (directory.path().to_owned(), config.clone());
        let serving = runtime.spawn(async move {
            let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
            let origin = Origin::open(settings, &path, keys).await.unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let router = origin.router();
            tokio::spawn(async move { axum::serve(listener, router).await });
            (origin, address)
        });
        let (origin, address) = serving.await.unwrap();
        Self {
            origin,
            runtime: Some(runtime),
            address,
            directory: Some(directory),
            config,
            alice: shown(&upload_grant(1)),
            bob: shown(&upload_grant(2)),
            edge: shown(&Grant::Edge { node: "edge-1".into() }),
        }
    }

    /// Ends the origin in the midst of whatever it does, and starts another on the same data.
    pub(crate) async fn crash_and_restart(self) -> Self {
        let config = self.config.clone();
        self.crash_and_restart_with(config).await
    }

    /// The same, with other settings from then on.
    pub(crate) async fn crash_and_restart_with(mut self, config: Config) -> Self {
        let (runtime, directory) = (self.runtime.take().unwrap(), self.directory.take().unwrap());
        drop(self);
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(Duration::from_secs(60))).await.unwrap();
        Self::open(directory, config).await
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// One request, on a connection of its own.
    pub(crate) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut head = self.head(method, path, headers);
        if method != "GET" && method != "HEAD" || !body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", body.len()));
        }
        self.raw(&head, body).await
    }

    /// The first lines of a request, without the empty one.
    pub(crate) fn head(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head
    }

    /// Sends `head`, an empty line and `body`; what the server does not want to read is not an error.
    pub(crate) async fn raw(&self, head: &str, body: &[u8]) -> Answer {
        let connection = self.connect().await;
        let (reading, mut writing) = connection.into_split();
        let request = [head.as_bytes(), b"\r\n", body].concat();
        let sending = tokio::spawn(async move {
            let _ = writing.write_all(&request).await;
            writing
        });
        let answer = Answer::read(reading).await.expect("the server answers");
        drop(sending.await);
        answer
    }

    /// A tus request of Alice's.
    pub(crate) async fn tus(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let headers = [&[("tus-resumable", "1.0.0"), ("authorization", self.alice.as_str())], headers].concat();
        self.ask(method, path, &headers, body).await
    }

    /// Creates an upload of Alice's and gives its path.
    pub(crate) async fn create(&self, length: usize, headers: &[(&str, &str)]) -> String {
        let length = length.to_string();
        let headers = [&[("upload-length", length.as_str())], headers].concat();
        let answer = self.tus("POST", "/v1/uploads", &headers, b"").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        self.path_of(&answer)
    }

    /// The path in an answer's `Location`.
    pub(crate) fn path_of(&self, answer: &Answer) -> String {
        let base = format!("http://{}", self.address);
        answer.header("location").unwrap().strip_prefix(&base).expect("Location is absolute").to_owned()
    }

    pub(crate) async fn append(&self, path: &str, offset: usize, body: &[u8]) -> Answer {
        let offset = offset.to_string();
        self.tus("PATCH", path, &[("upload-offset", &offset), OFFSET_STREAM], body).await
    }

    pub(crate) async fn offset(&self, path: &str) -> usize {
        let answer = self.tus("HEAD", path, &[], b"").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.header("upload-offset").unwrap().parse().unwrap()
    }

    /// Asks as an edge.
    pub(crate) async fn read(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("authorization", self.edge.as_str())], headers].concat();
        self.ask(method, &format!("/origin/v1/blobs/{path}"), &headers, b"").await
    }

    pub(crate) async fn put(&self, bytes: &[u8]) -> BlobId {
        let answer = self.ask("PUT", "/v1/blobs", &[("authorization", &self.alice)], bytes).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.blob()
    }
}

impl Drop for TestOrigin {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub(crate) const OFFSET_STREAM: (&str, &str) = ("content-type", "application/offset+octet-stream");

impl Answer {
    /// Reads to the end of the connection; `None` when it ended before a head.
    pub(crate) async fn read(mut connection: impl tokio::io::AsyncRead + Unpin) -> Option<Self> {
        let mut bytes = Vec::new();
        // A reset after the answer does not take the answer away.
        let _ = connection.read_to_end(&mut bytes).await;
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().unwrap();
        let headers = lines.map(|line| {
            let (name, value) = line.split_once(": ").unwrap_or((line.trim_end_matches(':'), ""));
            (name.to_ascii_lowercase(), value.to_owned())
        });
        Some(Self { status, headers: headers.collect(), body: bytes[end + 4..].to_vec() })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(crate) fn blob(&self) -> BlobId {
        self.header("waxwing-blob").expect("the answer names a blob").parse().unwrap()
    }

    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        problem
    }
}
