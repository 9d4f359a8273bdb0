//! The origin's wire, as an edge asks it: a range of a blob, its outboard, and what was purged.
//!
//! What stands between may be a proxy that answers in the origin's place, ignores `Range`, or cuts bodies. So an
//! answer is taken only when its status, its range and its size are those asked for; its bytes are for the fill to
//! check.
//!
//! Promise: every wait here has an end, and the client's own grant never gets this far: requests carry the edge's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use waxwing_protocol::BlobId;
use waxwing_protocol::api::PurgeLog;
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, parse_content_range};

use crate::disk::OriginTag;
use crate::fill::{FillError, Lie};
use crate::metrics::handles;
use crate::stats::Counters;
use crate::{Config, EdgeError};

/// Idle connections kept to the origin: more than that are closed as their answers end.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// How long an idle connection is kept: shorter than servers and proxies keep theirs, so that we close first.
const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(30);

/// How long an origin that failed is asked after the others: requests that first wait for a dead one are slow ones.
const DOWN_TIME_MS: u64 = 5_000;

/// Bytes of a page of the purge log at most: ten times what a thousand purges take.
const PURGE_PAGE_BYTES_MAX: usize = 1 << 20;

/// The origins.
#[derive(Debug)]
pub(crate) struct Upstream {
    client: Client<HttpConnector, Empty<Bytes>>,
    /// In the order of preference; at least one.
    origins: Vec<Origin>,
    authorization: HeaderValue,
    answer_timeout: Duration,
    idle_timeout: Duration,
    started: Instant,
    counters: Arc<Counters>,
}

/// An origin, or what stands for it.
#[derive(Debug)]
struct Origin {
    /// Up to and including `/origin/v1/`.
    base_url: String,
    /// Milliseconds after the start of this process until which it is asked after the others.
    down_until_ms: AtomicU64,
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
    counters: Arc<Counters>,
}

impl Upstream {
    /// The origin at `origin_url`, and those that the configuration names beside it, asked with `edge_grant`.
    ///
    /// # Errors
    /// When a URL or the grant cannot be used.
    pub(crate) fn new(
        config: &Config,
        origin_url: &str,
        edge_grant: &str,
        counters: Arc<Counters>,
    ) -> Result<Self, EdgeError> {
        let urls = std::iter::once(origin_url).chain(config.other_origins.iter().map(String::as_str));
        let origins = urls.map(Origin::new).collect::<Result<_, _>>()?;
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
            origins,
            authorization,
            answer_timeout: Duration::from_millis(config.upstream_answer_timeout_ms),
            idle_timeout: Duration::from_millis(config.upstream_idle_timeout_ms),
            started: Instant::now(),
            counters,
        })
    }

    /// How many origins there are.
    pub(crate) const fn origin_count(&self) -> usize {
        self.origins.len()
    }

    /// What origin `origin` is known by on disk.
    pub(crate) fn origin_tag(&self, origin: usize) -> OriginTag {
        *blake3::hash(self.origins[origin].base_url.as_bytes()).as_bytes()
    }

    /// Asks for `range` of blob `id`; the answer may end earlier only where the blob does.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn range(&self, id: BlobId, range: ByteRange) -> Result<RangeAnswer, FillError> {
        let asked = HeaderValue::try_from(range.range_header()).expect("digits and a dash are a header value");
        let answer = self.ask_any(&format!("blobs/{id}"), Some(&asked)).await?;
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
        let answer = self.ask_any(&format!("blobs/{id}/outboard"), None).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer.status()));
        }
        let told = text(answer.headers(), WAXWING_BLOB_BYTES).and_then(|size| size.parse().ok());
        let Some(blob_bytes) = told else { return Err(Lie::SizeMissing.into()) };
        Ok(OutboardAnswer { blob_bytes, body: self.body(answer) })
    }

    /// Asks origin `origin` which blobs went after purge `after`.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn purges(&self, origin: usize, after: u64) -> Result<PurgeLog, FillError> {
        let answer = self.ask(&self.origins[origin], &format!("purges?after={after}"), None).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer.status()));
        }
        let mut body = self.body(answer);
        let mut page = Vec::new();
        while let Some(bytes) = body.next().await? {
            page.extend_from_slice(&bytes);
            if page.len() > PURGE_PAGE_BYTES_MAX {
                return Err(Lie::Overlong.into());
            }
        }
        serde_json::from_slice(&page).map_err(|_| Lie::PurgeLog.into())
    }

    /// Asks the origins one after another until one answers otherwise than by failing.
    async fn ask_any(&self, path: &str, range: Option<&HeaderValue>) -> Result<Response<Incoming>, FillError> {
        let now_ms = self.elapsed_ms();
        // Stable: among those that are up, and among those that are down, the order is the configured one.
        let mut order: Vec<&Origin> = self.origins.iter().collect();
        order.sort_by_key(|origin| origin.down_until_ms.load(Relaxed) > now_ms);
        let mut tries = order.into_iter().peekable();
        loop {
            let Some(origin) = tries.next() else { return Err(FillError::Abandoned) };
            let answer = self.ask(origin, path, range).await;
            let has_failed = match &answer {
                Ok(answer) => answer.status().is_server_error(),
                Err(_) => true,
            };
            let until = if has_failed { self.elapsed_ms().saturating_add(DOWN_TIME_MS) } else { 0 };
            origin.down_until_ms.store(until, Relaxed);
            if !has_failed || tries.peek().is_none() {
                return answer;
            }
            self.counters.origin_failovers.fetch_add(1, Relaxed);
        }
    }

    async fn ask(
        &self,
        origin: &Origin,
        path: &str,
        range: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, FillError> {
        let mut request = Request::new(Empty::new());
        let url = format!("{}{path}", origin.base_url);
        *request.uri_mut() = url.parse().expect("a URL with an id or a number at its end is a URL");
        request.headers_mut().insert(AUTHORIZATION, self.authorization.clone());
        if let Some(range) = range {
            request.headers_mut().insert(RANGE, range.clone());
        }
        let began = Instant::now();
        let answer = tokio::time::timeout(self.answer_timeout, self.client.request(request)).await;
        self.counters.origin_requests.fetch_add(1, Relaxed);
        handles().origin_answer.record(began.elapsed());
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(FillError::Unreachable { reason: root_cause(&error) }),
            Err(_) => Err(FillError::Silent(self.answer_timeout)),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn body(&self, answer: Response<Incoming>) -> AnswerBody {
        let counters = Arc::clone(&self.counters);
        AnswerBody { incoming: answer.into_body(), idle_timeout: self.idle_timeout, counters }
    }
}

impl Origin {
    fn new(url: &str) -> Result<Self, EdgeError> {
        let refuse = |reason| EdgeError::OriginUrl { url: url.to_owned(), reason };
        let parsed: Uri = url.parse().map_err(|_| refuse("it is not a URL"))?;
        if parsed.scheme_str() != Some("http") {
            return Err(refuse("it must begin with http://"));
        }
        if parsed.query().is_some() {
            return Err(refuse("it must not have a query"));
        }
        let base_url = format!("{}/origin/v1/", url.trim_end_matches('/'));
        Ok(Self { base_url, down_until_ms: AtomicU64::new(0) })
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
                        self.counters.origin_bytes.fetch_add(bytes.len() as u64, Relaxed);
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
            let refused = Upstream::new(&config, url, "grant", Arc::default()).unwrap_err();
            assert!(matches!(refused, EdgeError::OriginUrl { .. }), "{url}");
        }
        assert_eq!(Upstream::new(&config, "http://origin", "a\nb", Arc::default()).unwrap_err(), EdgeError::EdgeGrant);
        assert!(Upstream::new(&config, "http://origin:8460/under/a/path/", "grant", Arc::default()).is_ok());
    }

    /// The edge's grant opens every blob of the origin; it must not appear where debug output goes.
    #[test]
    fn the_edge_grant_is_not_shown() {
        let upstream = Upstream::new(&Config::default(), "http://origin", "canary-secret", Arc::default()).unwrap();
        assert!(!format!("{upstream:?}").contains("canary"));
    }
}
