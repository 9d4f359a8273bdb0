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
    let line = Line {
        at_ms,
        method: method.to_string(),
        path,
        status: parts.status.as_u16(),
        range: text(CONTENT_RANGE),
        cache: text(CACHE_STATUS),
        sent_bytes: 0,
        is_whole: false,
        head_us: micros(began),
        took_us: 0,
    };
    let expected = if method == Method::HEAD { Some(0) } else { length };
    let logged = Logged { body, line: Some(line), expected, began, log };
    Response::from_parts(parts, Body::new(logged))
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A body whose end is logged.
struct Logged {
    body: Body,
    /// Until it has been handed to the log.
    line: Option<Line>,
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
        match (&next, &mut self.line) {
            (Poll::Ready(Some(Ok(frame))), Some(line)) => {
                line.sent_bytes += frame.data_ref().map_or(0, |bytes| bytes.len() as u64);
            }
            (Poll::Ready(None), Some(line)) => line.is_whole = true,
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
        if let Some(mut line) = self.line.take() {
            line.is_whole |= self.expected == Some(line.sent_bytes);
            line.took_us = micros(self.began);
            self.log.write(line);
        }
    }
}
