//! Requests as the access log sees them: until the last byte of the answer, or its end before that.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE};
use http::{HeaderName, Method};
use http_body::{Body as _, Frame, SizeHint};
use waxwing_protocol::Timestamp;

use super::CACHE_STATUS;
use crate::access_log::{AccessLog, Line};

/// Bytes of a path that are logged at most: a blob's is shorter; a stranger's may be as long as a request.
const PATH_MAX: usize = 200;

/// Answers a request and logs it.
pub(super) async fn log(State(log): State<Arc<AccessLog>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let at_ms = SystemTime::now().into();
    let method = request.method().clone();
    let path = request.uri().path().chars().take(PATH_MAX).collect();
    let answer = next.run(request).await;
    let (parts, body) = answer.into_parts();
    let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let length = text(CONTENT_LENGTH).and_then(|length| length.parse().ok()).or_else(|| body.size_hint().exact());
    let expected = if method == Method::HEAD { Some(0) } else { length };
    let (range, cache) = (text(CONTENT_RANGE), text(CACHE_STATUS));
    let (status, head_us) = (parts.status.as_u16(), micros(began));
    let (sent_bytes, has_ended) = (0, false);
    let logged = Logged {
        body,
        at_ms,
        method,
        path,
        status,
        range,
        cache,
        head_us,
        sent_bytes,
        has_ended,
        expected,
        began,
        log,
    };
    Response::from_parts(parts, Body::new(logged))
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A body whose end is logged.
struct Logged {
    body: Body,
    at_ms: Timestamp,
    method: Method,
    path: String,
    status: u16,
    range: Option<String>,
    cache: Option<String>,
    head_us: u64,
    sent_bytes: u64,
    has_ended: bool,
    /// Bytes of the body, when they are known.
    expected: Option<u64>,
    began: Instant,
    log: Arc<AccessLog>,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(context);
        match &next {
            Poll::Ready(Some(Ok(frame))) => self.sent_bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64),
            Poll::Ready(None) => self.has_ended = true,
            _ => {}
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        self.log.write(&Line {
            at_ms: self.at_ms,
            method: self.method.as_str(),
            path: &self.path,
            status: self.status,
            range: self.range.as_deref(),
            cache: self.cache.as_deref(),
            sent_bytes: self.sent_bytes,
            is_whole: self.has_ended || self.expected == Some(self.sent_bytes),
            head_us: self.head_us,
            took_us: micros(self.began),
        });
    }
}
