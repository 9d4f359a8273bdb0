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
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use waxwing_protocol::BlobId;
use waxwing_protocol::api::PurgeLog;
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, parse_content_range};

use crate::cursors::Cursors;
use crate::disk::OriginTag;
use crate::fill::{FillError, Lie};
use crate::metrics::handles;
use crate::peers::{Neighbour, Peers, Route};
use crate::stats::Counters;
use crate::trust;
use crate::via::{Name, Via};
use crate::{Config, EdgeError};

/// Idle connections kept to the origin: more than that are closed as their answers end.
const IDLE_CONNECTIONS_MAX: usize = 64;

/// How long an idle connection is kept: shorter than servers and proxies keep theirs, so that we close first.
const IDLE_CONNECTION_LIFETIME: Duration = Duration::from_secs(30);

/// How long an origin that failed is asked after the others: requests that first wait for a dead one are slow ones.
const DOWN_TIME_MS: u64 = 5_000;

/// Bytes of a page of the purge log at most: ten times what a thousand purges take.
const PURGE_PAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes of what a neighbour says of its cache at most; more says nothing to anybody.
const CACHE_STATUS_BYTES_MAX: usize = 256;

/// The origins, and the edges that stand nearer.
#[derive(Debug)]
pub(crate) struct Upstream {
    /// The edges that stand nearer.
    pub(crate) peers: Peers,
    /// What this edge is called by those that a request passes.
    pub(crate) name: Name,
    /// Up to which purge of each origin everything here is done.
    pub(crate) cursors: Cursors,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
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
    /// What the edge that answered did, RFC 9211; `None` when it was the origin.
    pub(crate) cache_status: Option<Arc<str>>,
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
    /// The edge whose it is; `None` when it is the origin's.
    from: Option<Arc<Neighbour>>,
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
        let is_encrypted = urls.clone().chain(config.neighbours()).any(|url| url.starts_with("https:"));
        let origins = urls.map(Origin::new).collect::<Result<Vec<_>, _>>()?;
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
            .build(trust::connector(connector, config.ca_file.as_deref(), is_encrypted)?);
        let peers = Peers::new(config)?;
        let cursors = Cursors::new(origins.len());
        Ok(Self {
            peers,
            name: Name::new(),
            cursors,
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

    /// Asks along `route` for `range` of blob `id`; the answer may end earlier only where the blob does.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn range(
        &self,
        id: BlobId,
        range: ByteRange,
        route: &mut Route,
    ) -> Result<RangeAnswer, FillError> {
        let asked = HeaderValue::try_from(range.range_header()).expect("digits and a dash are a header value");
        let read = |answer: &Response<Incoming>| range_told(answer, range);
        let (blob_bytes, answer) = self.ask_along(route, &format!("blobs/{id}"), Some(&asked), read).await?;
        let cache_status = route.from().and_then(|_| text(answer.headers(), "cache-status"));
        let cache_status = cache_status.filter(|said| said.len() <= CACHE_STATUS_BYTES_MAX).map(Arc::from);
        Ok(RangeAnswer { blob_bytes, cache_status, body: self.body(answer, route.from()) })
    }

    /// Asks along `route` for the outboard of blob `id`.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn outboard(&self, id: BlobId, route: &mut Route) -> Result<OutboardAnswer, FillError> {
        let (blob_bytes, answer) = self.ask_along(route, &format!("blobs/{id}/outboard"), None, size_told).await?;
        Ok(OutboardAnswer { blob_bytes, body: self.body(answer, route.from()) })
    }

    /// Asks a neighbour whether it lives and takes requests, within `timeout`.
    pub(crate) async fn lives(&self, neighbour: &Neighbour, timeout: Duration) -> bool {
        let request = self.request(&neighbour.at("health"), None, &Via::default(), true);
        let answer = tokio::time::timeout(timeout, self.client.request(request)).await;
        matches!(answer, Ok(Ok(answer)) if answer.status().is_success())
    }

    /// Asks origin `origin` which blobs went after purge `after`.
    ///
    /// # Errors
    /// [`FillError`] when there is no such answer.
    pub(crate) async fn purges(&self, origin: usize, after: u64) -> Result<PurgeLog, FillError> {
        let path = format!("purges?after={after}");
        let answer = self.ask_origin(&self.origins[origin], &path, None, &Via::default()).await?;
        if answer.status() != StatusCode::OK {
            return Err(refusal(answer.status()));
        }
        let mut body = self.body(answer, None);
        let mut page = Vec::new();
        while let Some(bytes) = body.next().await? {
            page.extend_from_slice(&bytes);
            if page.len() > PURGE_PAGE_BYTES_MAX {
                return Err(Lie::Overlong.into());
            }
        }
        serde_json::from_slice(&page).map_err(|_| Lie::PurgeLog.into())
    }

    /// Asks the neighbours of `route` one after another until one gives what `read` takes, and then the origins. What a
    /// neighbour says that is not what was asked for, an absence too, is no last word: it may be behind the origin.
    async fn ask_along<T>(
        &self,
        route: &mut Route,
        path: &str,
        range: Option<&HeaderValue>,
        read: impl Fn(&Response<Incoming>) -> Result<T, FillError>,
    ) -> Result<(T, Response<Incoming>), FillError> {
        while let Some(neighbour) = route.next() {
            let request = self.request(&neighbour.at(path), range, &route.via, true);
            self.counters.peer_requests.fetch_add(1, Relaxed);
            let answer = self.send(request).await.and_then(|answer| Ok((read(&answer)?, answer)));
            match answer {
                Ok(answer) => {
                    neighbour.health.has_served();
                    return Ok(answer);
                }
                Err(error) => drop(route.failed(&error, &self.counters)),
            }
        }
        let answer = self.ask_origins(path, range, &route.via).await?;
        Ok((read(&answer)?, answer))
    }

    /// Asks the origins one after another until one answers otherwise than by failing.
    async fn ask_origins(
        &self,
        path: &str,
        range: Option<&HeaderValue>,
        via: &Via,
    ) -> Result<Response<Incoming>, FillError> {
        let now_ms = self.elapsed_ms();
        // Stable: among those that are up, and among those that are down, the order is the configured one.
        let mut order: Vec<&Origin> = self.origins.iter().collect();
        order.sort_by_key(|origin| origin.down_until_ms.load(Relaxed) > now_ms);
        let mut tries = order.into_iter().peekable();
        loop {
            let Some(origin) = tries.next() else { return Err(FillError::Abandoned) };
            let answer = self.ask_origin(origin, path, range, via).await;
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

    async fn ask_origin(
        &self,
        origin: &Origin,
        path: &str,
        range: Option<&HeaderValue>,
        via: &Via,
    ) -> Result<Response<Incoming>, FillError> {
        let request = self.request(&format!("{}{path}", origin.base_url), range, via, false);
        let began = Instant::now();
        let answer = self.send(request).await;
        self.counters.origin_requests.fetch_add(1, Relaxed);
        handles().origin_answer.record(began.elapsed());
        answer
    }

    fn request(&self, url: &str, range: Option<&HeaderValue>, via: &Via, is_to_edge: bool) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = url.parse().expect("a URL with an id or a number at its end is a URL");
        let headers = request.headers_mut();
        headers.insert(AUTHORIZATION, self.authorization.clone());
        headers.extend(range.map(|range| (RANGE, range.clone())));
        via.tell(&self.name, headers);
        if is_to_edge {
            self.cursors.tell(headers);
        }
        request
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, FillError> {
        match tokio::time::timeout(self.answer_timeout, self.client.request(request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(FillError::Unreachable { reason: root_cause(&error) }),
            Err(_) => Err(FillError::Silent(self.answer_timeout)),
        }
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn body(&self, answer: Response<Incoming>, from: Option<&Arc<Neighbour>>) -> AnswerBody {
        let counters = Arc::clone(&self.counters);
        let (incoming, from) = (answer.into_body(), from.cloned());
        AnswerBody { incoming, from, idle_timeout: self.idle_timeout, counters }
    }
}

/// Looks whether `url` can be asked.
///
/// # Errors
/// [`EdgeError::OriginUrl`] when not.
pub(crate) fn check_url(url: &str) -> Result<(), EdgeError> {
    let refuse = |reason| EdgeError::OriginUrl { url: url.to_owned(), reason };
    let parsed: Uri = url.parse().map_err(|_| refuse("it is not a URL"))?;
    if !matches!(parsed.scheme_str(), Some("http" | "https")) {
        return Err(refuse("it must begin with http:// or https://"));
    }
    if parsed.query().is_some() {
        return Err(refuse("it must not have a query"));
    }
    Ok(())
}

/// The blob's size as the answer to a request for `range` tells it.
fn range_told(answer: &Response<Incoming>, range: ByteRange) -> Result<u64, FillError> {
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
    Ok(blob_bytes)
}

/// The blob's size as the answer to a request for its outboard tells it.
fn size_told(answer: &Response<Incoming>) -> Result<u64, FillError> {
    if answer.status() != StatusCode::OK {
        return Err(refusal(answer.status()));
    }
    let told = text(answer.headers(), WAXWING_BLOB_BYTES).and_then(|size| size.parse().ok());
    told.ok_or_else(|| Lie::SizeMissing.into())
}

impl Origin {
    fn new(url: &str) -> Result<Self, EdgeError> {
        check_url(url)?;
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
                        let counter = match self.from {
                            Some(_) => &self.counters.peer_bytes,
                            None => &self.counters.origin_bytes,
                        };
                        counter.fetch_add(bytes.len() as u64, Relaxed);
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

    /// Better no edge than one that shows its grant to whoever answers.
    #[test]
    fn without_authorities_to_believe_there_is_no_edge() {
        let dir = tempfile::TempDir::new().unwrap();
        let ca_file = dir.path().join("ca.pem");
        let config = Config { ca_file: Some(ca_file.clone()), ..Config::default() };
        let refused = || Upstream::new(&config, "https://origin", "grant", Arc::default()).unwrap_err().to_string();
        assert!(refused().contains("ca.pem"), "{}", refused());
        std::fs::write(&ca_file, "no certificate").unwrap();
        assert!(refused().contains("there is no certificate in it"), "{}", refused());
    }

    /// The edge's grant opens every blob of the origin; it must not appear where debug output goes.
    #[test]
    fn the_edge_grant_is_not_shown() {
        let upstream = Upstream::new(&Config::default(), "http://origin", "canary-secret", Arc::default()).unwrap();
        assert!(!format!("{upstream:?}").contains("canary"));
    }
}
