//! An edge on port 0 before a test origin, and a client that shows its grants.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tempfile::TempDir;
use tower::ServiceExt as _;
use waxwing_edge::{Config, Edge, EdgeError};
use waxwing_protocol::grant::{Grant, GrantKeys, GrantSigner, MEDIA_LIFETIME};
use waxwing_protocol::{BlobId, Problem, Timestamp};

use super::origin::Origin;

pub(crate) const GROUP: usize = 65_536;
pub(crate) const SLICE: usize = 1 << 20;

/// Bytes that differ from group to group and slice to slice.
pub(crate) fn sample_bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + i / 65_521) as u8).collect()
}

pub(crate) fn signer() -> GrantSigner {
    GrantSigner::from_seed(&[5; 32])
}

pub(crate) fn now() -> Timestamp {
    Timestamp::from(SystemTime::now())
}

pub(crate) fn media_grant() -> String {
    signer().mint(&Grant::Media, now(), MEDIA_LIFETIME, [1; 16]).text
}

/// What the edges of these tests show their origin. The test origin compares nothing.
pub(crate) const EDGE_GRANT: &str = "the-edge's-own";

pub(crate) struct TestEdge {
    pub(crate) origin: Origin,
    pub(crate) edge: Edge,
    addr: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
    server: tokio::task::JoinHandle<()>,
    pub(crate) dir: TempDir,
    grant: String,
}

/// An answer whose body has been read, or broke off.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// What came, and whether it ended as announced.
    pub(crate) body: Vec<u8>,
    pub(crate) is_whole: bool,
}

/// An answer whose body is still coming.
pub(crate) struct Open {
    body: Incoming,
}

impl TestEdge {
    pub(crate) async fn start() -> Self {
        Self::start_with(Config::default()).await
    }

    pub(crate) async fn start_with(config: Config) -> Self {
        let origin = Origin::start().await;
        let url = origin.url();
        Self::before(origin, url, config).await
    }

    pub(crate) async fn before(origin: Origin, origin_url: String, config: Config) -> Self {
        let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
        let dir = TempDir::new().unwrap();
        let edge = Edge::open(config, dir.path(), origin_url, EDGE_GRANT.to_owned(), keys).await.unwrap();
        Self::serve(origin, edge, dir).await
    }

    pub(crate) async fn try_start_with(config: Config) -> Result<Edge, EdgeError> {
        let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
        let dir = TempDir::new().unwrap();
        Edge::open(config, dir.path(), "http://127.0.0.1:1".into(), EDGE_GRANT.to_owned(), keys).await
    }

    /// The same edge after a restart: its memory is gone, its disk is as `meanwhile` left it.
    pub(crate) async fn restart(self, config: Config, meanwhile: impl FnOnce(&Path)) -> Self {
        let Self { origin, edge, dir, server, client, .. } = self;
        edge.close().await;
        server.abort();
        drop((edge, client, server.await));
        meanwhile(dir.path());
        let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
        // The old one lets go of its directory when the last of its tasks has seen that it is over.
        let edge = loop {
            let (grant, keys) = (EDGE_GRANT.to_owned(), Arc::clone(&keys));
            match Edge::open(config.clone(), dir.path(), origin.url(), grant, keys).await {
                Ok(edge) => break edge,
                Err(error) if error.to_string().contains("another process") => {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        };
        Self::serve(origin, edge, dir).await
    }

    async fn serve(origin: Origin, edge: Edge, dir: TempDir) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let router = edge.router();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { origin, edge, addr, client, server, dir, grant: media_grant() }
    }

    /// Where hyper serves it.
    pub(crate) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends a request as it is.
    pub(crate) async fn send(&self, method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Answer {
        let (parts, body) = self.client.request(self.request(method, path, headers)).await.unwrap().into_parts();
        let (body, is_whole) = Open { body }.rest().await;
        Answer { status: parts.status, headers: parts.headers, body, is_whole }
    }

    /// GET of a blob with a media grant.
    pub(crate) async fn get(&self, id: BlobId, headers: &[(HeaderName, &str)]) -> Answer {
        self.ask(Method::GET, id, headers).await
    }

    /// HEAD of a blob with a media grant.
    pub(crate) async fn head(&self, id: BlobId, headers: &[(HeaderName, &str)]) -> Answer {
        self.ask(Method::HEAD, id, headers).await
    }

    /// GET of a blob with a media grant, as far as the head of the answer.
    pub(crate) async fn open(&self, id: BlobId) -> Open {
        let bearer = format!("Bearer {}", self.grant);
        let request = self.request(Method::GET, &path(id), &[(AUTHORIZATION, &bearer)]);
        let (parts, body) = self.client.request(request).await.unwrap().into_parts();
        assert_eq!(parts.status, StatusCode::OK);
        Open { body }
    }

    /// GET of a blob, left with the first bytes of its body; `None` when there was none.
    pub(crate) async fn hang_up(&self, id: BlobId) -> Option<usize> {
        let bearer = format!("Bearer {}", self.grant);
        let request = self.request(Method::GET, &path(id), &[(AUTHORIZATION, &bearer)]);
        let mut body = self.client.request(request).await.unwrap().into_body();
        Some(body.frame().await?.ok()?.into_data().ok()?.len())
    }

    /// A body straight from the router, without a socket whose buffers would read ahead of the test.
    pub(crate) async fn body_without_socket(&self, id: BlobId) -> axum::body::Body {
        let bearer = format!("Bearer {}", self.grant);
        let request = self.request(Method::GET, &path(id), &[(AUTHORIZATION, &bearer)]);
        let answer = self.edge.router().oneshot(request.map(axum::body::Body::new)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        answer.into_body()
    }

    /// The answer to a GET of a blob straight from the router, asked when it is awaited.
    pub(crate) fn answer_without_socket(&self, id: BlobId) -> impl Future<Output = axum::response::Response> + 'static {
        let bearer = format!("Bearer {}", self.grant);
        let request = self.request(Method::GET, &path(id), &[(AUTHORIZATION, &bearer)]);
        let answer = self.edge.router().oneshot(request.map(axum::body::Body::new));
        async move { answer.await.unwrap() }
    }

    /// GET of a blob, to be sent when it is awaited, wherever that is.
    pub(crate) fn body_soon(&self, id: BlobId) -> impl Future<Output = Vec<u8>> + Send + 'static {
        let bearer = format!("Bearer {}", self.grant);
        let request = self.request(Method::GET, &path(id), &[(AUTHORIZATION, &bearer)]);
        let answer = self.client.request(request);
        async move { Open { body: answer.await.unwrap().into_body() }.rest().await.0 }
    }

    async fn ask(&self, method: Method, id: BlobId, headers: &[(HeaderName, &str)]) -> Answer {
        let bearer = format!("Bearer {}", self.grant);
        let headers = [&[(AUTHORIZATION, bearer.as_str())], headers].concat();
        self.send(method, &path(id), &headers).await
    }

    fn request(&self, method: Method, path: &str, headers: &[(HeaderName, &str)]) -> Request<Empty<Bytes>> {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        headers.iter().fold(request, |request, (name, value)| request.header(name, *value)).body(Empty::new()).unwrap()
    }
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn problem(&self) -> Problem {
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem: Problem = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status.as_u16());
        problem
    }

    /// The slug of the problem, with its status before it.
    pub(crate) fn refusal(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.problem().slug())
    }

    #[track_caller]
    pub(crate) fn assert_is(&self, status: StatusCode, bytes: &[u8]) {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body[..self.body.len().min(300)]));
        assert!(self.is_whole, "the body broke off after {} bytes", self.body.len());
        assert!(self.body == bytes, "{} bytes, other than the {} expected", self.body.len(), bytes.len());
    }
}

impl Open {
    /// Reads at least `bytes` bytes.
    pub(crate) async fn read(&mut self, bytes: usize) -> Vec<u8> {
        let mut read = Vec::new();
        while read.len() < bytes {
            let frame = self.body.frame().await.expect("more was promised").unwrap();
            read.extend_from_slice(&frame.into_data().unwrap());
        }
        read
    }

    /// Reads to the end, and tells whether it was the announced one.
    pub(crate) async fn rest(mut self) -> (Vec<u8>, bool) {
        let mut read = Vec::new();
        while let Some(frame) = self.body.frame().await {
            match frame {
                Ok(frame) => read.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Err(_) => return (read, false),
            }
        }
        (read, true)
    }
}

/// GET of a blob from an edge that may be gone at any moment; `None` when there was no answer.
pub(crate) async fn ask_at(addr: SocketAddr, id: BlobId, grant: &str) -> Option<Answer> {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::get(format!("http://{addr}{}", path(id))).header(AUTHORIZATION, format!("Bearer {grant}"));
    let (parts, body) = client.request(request.body(Empty::new()).unwrap()).await.ok()?.into_parts();
    let (body, is_whole) = Open { body }.rest().await;
    Some(Answer { status: parts.status, headers: parts.headers, body, is_whole })
}

pub(crate) fn path(id: BlobId) -> String {
    format!("/v1/blobs/{id}")
}
