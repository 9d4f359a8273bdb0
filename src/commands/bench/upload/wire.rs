//! The generator's side of an upload: as little HTTP as will do, so that the server is what is measured.

use anyhow::{Context as _, ensure};
use axum::body::{Body, Bytes};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, LOCATION};
use axum::http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

const OFFSET_TYPE: &str = "application/offset+octet-stream";

/// One connection, kept open from request to request.
pub(super) struct Wire {
    address: String,
    /// Where uploads are created.
    path: String,
    grant: Option<String>,
    send: Sender,
}

/// The version of HTTP that a connection speaks.
#[derive(Clone, Copy)]
pub(super) enum Version {
    Http1,
    /// From the first byte on, as behind a balancer that ends TLS.
    Http2,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Sender {
    async fn send(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
            Self::Http2(send) => {
                send.ready().await?;
                send.send_request(request).await
            }
        }
    }
}

impl Wire {
    pub(super) async fn connect(
        address: &str,
        path: &str,
        grant: Option<&str>,
        version: Version,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // An error of the connection is one of the request on it as well, which tells.
        let send = match version {
            Version::Http1 => {
                let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Sender::Http1(send)
            }
            Version::Http2 => {
                let (send, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Sender::Http2(send)
            }
        };
        Ok(Self { address: address.to_owned(), path: path.to_owned(), grant: grant.map(str::to_owned), send })
    }

    /// Creates an upload and gives its path.
    pub(super) async fn create(&mut self, bytes: usize) -> anyhow::Result<String> {
        let (path, length) = (self.path.clone(), bytes.to_string());
        let headers = self.ask(Method::POST, &path, &[("upload-length", &length)], Bytes::new()).await?;
        let url: Uri = text(&headers, LOCATION.as_str())?.parse()?;
        Ok(url.path().to_owned())
    }

    /// Creates an upload with its whole content in the same request.
    pub(super) async fn create_whole(&mut self, content: Bytes) -> anyhow::Result<()> {
        let (path, length) = (self.path.clone(), content.len().to_string());
        let asked = [("upload-length", length.as_str()), (CONTENT_TYPE.as_str(), OFFSET_TYPE)];
        let headers = self.ask(Method::POST, &path, &asked, content).await?;
        ensure!(text(&headers, "upload-offset")? == length, "a small upload was not stored whole");
        Ok(())
    }

    /// Removes an upload.
    pub(super) async fn remove(&mut self, path: &str) -> anyhow::Result<()> {
        self.ask(Method::DELETE, path, &[], Bytes::new()).await.map(|_| ())
    }

    /// Appends a part.
    pub(super) async fn append(&mut self, path: &str, at: usize, part: Bytes) -> anyhow::Result<()> {
        let end = (at + part.len()).to_string();
        let offset = at.to_string();
        let asked = [("upload-offset", offset.as_str()), (CONTENT_TYPE.as_str(), OFFSET_TYPE)];
        let headers = self.ask(Method::PATCH, path, &asked, part).await?;
        ensure!(text(&headers, "upload-offset")? == end, "a part was not stored whole");
        Ok(())
    }

    /// How many bytes are held.
    pub(super) async fn offset(&mut self, path: &str) -> anyhow::Result<usize> {
        let headers = self.ask(Method::HEAD, path, &[], Bytes::new()).await?;
        Ok(text(&headers, "upload-offset")?.parse()?)
    }

    /// Stores a blob in one request.
    pub(super) async fn put(&mut self, blob: Bytes) -> anyhow::Result<()> {
        self.ask(Method::PUT, "/v1/blobs", &[], blob).await.map(|_| ())
    }

    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> anyhow::Result<HeaderMap> {
        let mut request = Request::builder().method(method);
        request = match self.send {
            Sender::Http1(_) => request.uri(path).header(HOST, &self.address),
            Sender::Http2(_) => request.uri(format!("http://{}{path}", self.address)),
        };
        if path.starts_with(&self.path) {
            request = request.header("tus-resumable", "1.0.0");
        }
        if let Some(grant) = &self.grant {
            request = request.header(AUTHORIZATION, format!("Bearer {grant}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send.send(request.body(Body::from(body))?).await?;
        ensure!(response.status().is_success(), "the server answered {} for {path}", response.status());
        let headers = response.headers().clone();
        // The connection is free for the next request only when the answer is read.
        axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await?;
        Ok(headers)
    }
}

/// The longest body of an answer that is read; answers to uploads have none or a line of JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// An upload that sent less than it announced and then falls silent, its connection open until it is dropped.
pub(super) struct Stalled {
    _stream: TcpStream,
}

impl Stalled {
    pub(super) async fn start(
        address: &str,
        grant: Option<&str>,
        path: &str,
        announced: usize,
        sent: usize,
    ) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(address).await?;
        let grant = grant.map(|grant| format!("Authorization: Bearer {grant}\r\n")).unwrap_or_default();
        let head = format!(
            "PATCH {path} HTTP/1.1\r\nHost: {address}\r\n{grant}Tus-Resumable: 1.0.0\r\n\
             Upload-Offset: 0\r\nContent-Type: {OFFSET_TYPE}\r\nContent-Length: {announced}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&vec![7; sent]).await?;
        Ok(Self { _stream: stream })
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> anyhow::Result<&'a str> {
    let value = headers.get(name).with_context(|| format!("the server did not tell {name}"))?;
    Ok(value.to_str()?)
}
