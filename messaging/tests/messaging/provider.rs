//! A push provider on loopback: TLS, HTTP/2 and HTTP/1.1, and whatever answers a test wants.

#![allow(dead_code, unreachable_pub, reason = "the tests within the crate and those around it use different parts")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub version: Version,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// What is answered to a request.
type Answer = dyn Fn(&Asked) -> Response<Full<Bytes>> + Send + Sync;

/// A provider under test's control.
pub struct Provider {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    /// Holds the certificate of the authority that vouches for it.
    dir: tempfile::TempDir,
}

struct Shared {
    asked: Mutex<Vec<Asked>>,
    more: Notify,
    answer: Mutex<Box<Answer>>,
    connections: AtomicUsize,
}

/// An answer with a status and a body.
pub fn answer(status: u16, body: &str) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Bytes::copy_from_slice(body.as_bytes()).into()).unwrap()
}

/// TLS that says it is `localhost`, with the certificate that vouches for it.
pub fn tls(protocols: &[&str]) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

impl Provider {
    /// One that says 200 to everything.
    pub async fn start() -> Self {
        Self::speaking(&["h2", "http/1.1"]).await
    }

    /// One that speaks these protocols.
    pub async fn speaking(protocols: &[&str]) -> Self {
        let (acceptor, certificate) = tls(protocols);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("authority.pem"), certificate).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            asked: Mutex::default(),
            more: Notify::new(),
            answer: Mutex::new(Box::new(|_| answer(200, ""))),
            connections: AtomicUsize::new(0),
        });
        tokio::spawn(serve(listener, acceptor, shared.clone()));
        Self { address, shared, dir }
    }

    /// Answers everything that comes from now on like this.
    pub fn answer(&self, answer: impl Fn(&Asked) -> Response<Full<Bytes>> + Send + Sync + 'static) {
        *self.shared.answer.lock().unwrap() = Box::new(answer);
    }

    /// Everything that was asked so far.
    pub fn all(&self) -> Vec<Asked> {
        self.shared.asked.lock().unwrap().clone()
    }

    /// Waits until `count` requests have come, and returns them all.
    pub async fn asked(&self, count: usize) -> Vec<Asked> {
        loop {
            let more = self.shared.more.notified();
            let asked = self.all();
            if asked.len() >= count {
                return asked;
            }
            more.await;
        }
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    pub fn authorities_file(&self) -> PathBuf {
        self.dir.path().join("authority.pem")
    }

    /// A file beside the authority's.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    /// A P-256 key in PEM.
    pub fn p256_key(&self) -> PathBuf {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        self.file("key.p8", &key.serialize_pem())
    }

    /// A service account whose tokens this provider gives.
    pub fn service_account(&self) -> PathBuf {
        let key = aws_lc_rs::rsa::KeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        let der = aws_lc_rs::encoding::AsDer::<aws_lc_rs::encoding::Pkcs8V1Der<'_>>::as_der(&key).unwrap();
        let text = data_encoding::BASE64.encode(der.as_ref());
        let account = serde_json::json!({
            "type": "service_account",
            "project_id": "waxwing-test",
            "private_key_id": "k1",
            "private_key": format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"),
            "client_email": "push@waxwing-test.iam.gserviceaccount.com",
            "token_uri": format!("{}/token", self.url()),
        });
        self.file("account.json", &account.to_string())
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = service_fn(move |request| reply(shared.clone(), request));
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn reply(shared: Arc<Shared>, request: Request<Incoming>) -> hyper::Result<Response<Full<Bytes>>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let asked = Asked { version: parts.version, path, headers: parts.headers, body };
    let answer = (shared.answer.lock().unwrap())(&asked);
    shared.asked.lock().unwrap().push(asked);
    shared.more.notify_waiters();
    Ok(answer)
}
