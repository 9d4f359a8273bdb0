//! The origin's wire, as an edge asks it: a range of a blob, and its outboard.
//!
//! What stands between may be a proxy that answers in the origin's place, ignores `Range`, or cuts bodies. So an
//! answer is taken only when its status, its range and its size are those asked for; its bytes are for the fill to
//! check.
//!
//! Promise: every wait here has an end, and the client's own grant never gets this far: requests carry the edge's.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use waxwing_protocol::BlobId;
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, parse_content_range};

use crate::fill::{FillError, Lie};
use crate::{Config, EdgeError};

/// Idle connections kept to the origin: more than that are closed as their answers end.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// How long an idle connection is kept: shorter than servers and proxies keep theirs, so that we close first.
const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(30);

/// The origin, or what stands for it.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Empty<Bytes>>,
    /// Up to and including `/origin/v1/blobs/`.
    blobs_url: String,
    authorization: HeaderValue,
    answer_timeout: Duration,
    idle_timeout: Duration,
}

/// The head of a range's answer, checked against the question, and its body.
#[derive(Debug)]
pub(crate) struct RangeAnswer {
    /// The whole blob's size in bytes, as the origin says.
    pub(crate) blob_bytes: u64,
    /// The bytes.
    pub(crate) body: AnswerBody,
}

/// The head of an outboard's answer and its body.
#[derive(Debug)]
pub(crate) struct OutboardAnswer {
    /// The blob's size in bytes, as the origin says.
    pub(crate) blob_bytes: u64,
    /// The chaining values.
    pub(crate) body: AnswerBody,
}

/// A body from the origin, frame by frame.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    incoming: Incoming,
    idle_timeout: Duration,
}

impl Upstream {
    /// The origin at `origin_url`, asked with `edge_grant`.
    ///
    /// # Errors
    /// When the URL or the grant cannot be used.
    pub(crate) fn new(config: &Config, origin_url: &str, edge_grant: &str) -> Result<Self, EdgeError> {
        let refuse = |reason| EdgeError::OriginUrl { url: origin_url.to_owned(), reason };
        let url: Uri = origin_url.parse().map_err(|_| refuse("it is not a URL"))?;
        if url.scheme_str() != Some("http") {
            return Err(refuse("it must begin with http://"));
        }
        if url.query().is_some() {
            return Err(refuse("it must not have a query"));
        }
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {edge_grant}")).map_err(|_| EdgeError::EdgeGrant)?;
        authorization.set_sensitive(true);
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_millis(config.upstream_connect_timeout_ms)));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_CONNECTION_LIFETIME)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .build(connector);
        Ok(Self {
            client,
            blobs_url: format!("{}/origin/v1/blobs/", origin_url.trim_end_matches('/')),
            authorization,
            answer_timeout: Duration::from_millis(config.upstream_answer_timeout_ms),
            idle_timeout: Duration::from_millis(config.upstream_idle_timeout_ms),
        })
    }

    /// Asks for `range` of blob `id`; the answer may end earlier only where the blob does.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn range(&self, id: BlobId, range: ByteRange) -> Result<RangeAnswer, FillError> {
        let asked = HeaderValue::try_from(range.range_header()).expect("digits and a dash are a header value");
        let answer = self.ask(format!("{}{id}", self.blobs_url), Some(asked)).await?;
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => {}
            StatusCode::OK => return Err(Lie::RangeIgnored.into()),
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(FillError::Beyond),
            other => return Err(refusal(other)),
        }
        let told = text(answer.headers(), CONTENT_RANGE.as_str()).and_then(parse_content_range);
        let Some((sent, blob_bytes)) = told else { return Err(Lie::WrongRange.into()) };
        if sent.start != range.start || sent.end != range.end.min(blob_bytes) {
            return Err(Lie::WrongRange.into());
        }
        Ok(RangeAnswer { blob_bytes, body: self.body(answer) })
    }

    /// Asks for the outboard of blob `id`.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn outboard(&self, id: BlobId) -> Result<OutboardAnswer, FillError> {
        let answer = self.ask(format!("{}{id}/outboard", self.blobs_url), None).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer.status()));
        }
        let told = text(answer.headers(), WAXWING_BLOB_BYTES).and_then(|size| size.parse().ok());
        let Some(blob_bytes) = told else { return Err(Lie::SizeMissing.into()) };
        Ok(OutboardAnswer { blob_bytes, body: self.body(answer) })
    }

    async fn ask(&self, url: String, range: Option<HeaderValue>) -> Result<Response<Incoming>, FillError> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = url.parse().expect("a URL with a blob id at its end is a URL");
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        if let Some(range) = range {
            request.headers_mut().insert(RANGE, range);
        }
        match tokio::time::timeout(self.answer_timeout, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(FillError::Unreachable { reason: root_cause(&error) }),
            Err(_) => Err(FillError::Silent(self.answer_timeout)),
        }
    }

    fn body(&self, answer: Response<Incoming>) -> AnswerBody {
        AnswerBody { incoming: answer.into_body(), idle_timeout: self.idle_timeout }
    }
}

impl AnswerBody {
    /// The next bytes; `None` at the end that the origin announced.
    ///
    /// # Errors
    /// [`FillError::Cut`] at any other end, [`FillError::Silent`] when nothing comes.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            match tokio::time::timeout(self.idle_timeout, self.incoming.frame()).await {
                Err(_) => return Err(FillError::Silent(self.idle_timeout)),
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(FillError::Cut { reason: root_cause(&error) }),
                // Trailers carry nothing we asked for.
                Ok(Some(Ok(frame))) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// All the bytes, `bytes_expected` of them.
    ///
    /// # Errors
    /// As [`Self::next`]; [`FillError::Cut`] and [`Lie::Overlong`] when there are fewer or more.
    pub(crate) async fn collect(&mut self, bytes_expected: u64) -> Result<Vec<u8>, FillError> {
        // Grows as bytes come: the expected length is the origin's word, no reason to take memory in advance.
        let mut all = Vec::new();
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
            if all.len() as u64 > bytes_expected {
                return Err(Lie::Overlong.into());
            }
        }
        if (all.len() as u64) < bytes_expected {
            return Err(FillError::cut_early());
        }
        Ok(all)
    }
}

impl FillError {
    /// A body that ended as announced, but before its range did.
    pub(crate) fn cut_early() -> Self {
        Self::Cut { reason: "the body is shorter than its range".into() }
    }
}

/// What a status that brings no bytes means.
fn refusal(status: StatusCode) -> FillError {
    match status {
        StatusCode::NOT_FOUND | StatusCode::GONE => FillError::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => FillError::Denied { status: status.as_u16() },
        StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
            FillError::Unavailable { status: status.as_u16() }
        }
        _ if status.is_server_error() => FillError::Unavailable { status: status.as_u16() },
        _ => Lie::Status(status.as_u16()).into(),
    }
}

/// The header's value, when there is exactly one and it is text: of two, each reader would pick its own.
fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok(),
        _ => None,
    }
}

/// The innermost cause of an error: `Connection refused`, where the outermost only says `client error`.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Arc<str> {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_that_cannot_be_asked_is_refused_at_start() {
        let config = Config::default();
        for url in ["", "origin", "ftp://origin", "http://", "http://origin/?a=b"] {
            let refused = Upstream::new(&config, url, "grant").unwrap_err();
            assert!(matches!(refused, EdgeError::OriginUrl { .. }), "{url}");
        }
        assert_eq!(Upstream::new(&config, "http://origin", "a\nb").unwrap_err(), EdgeError::EdgeGrant);
        assert!(Upstream::new(&config, "http://origin:8460/under/a/path/", "grant").is_ok());
    }

    /// The edge's grant opens every blob of the origin; it must not appear where debug output goes.
    #[test]
    fn the_edge_grant_is_not_shown() {
        let upstream = Upstream::new(&Config::default(), "http://origin", "canary-secret").unwrap();
        assert!(!format!("{upstream:?}").contains("canary"));
    }
}
