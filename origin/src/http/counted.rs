//! Counting the bytes that uploads bring, by the dialect they come in.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use http_body::{Frame, SizeHint};
use metrics::Counter;

use super::dialect::Dialect;
use crate::metrics::handles;

/// `body` with its bytes counted as those of `dialect`; `whole` tells that it is a blob in one request.
pub(super) fn counted(body: Body, dialect: Dialect, whole: bool) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let handles = handles();
    let counter = match dialect {
        Dialect::Ietf => &handles.bytes_ietf,
        Dialect::ContentRange if whole => &handles.bytes_put,
        Dialect::ContentRange => &handles.bytes_content_range,
        Dialect::Tus | Dialect::Any => &handles.bytes_tus,
    };
    Body::new(Counted { body, counter: counter.clone() })
}

struct Counted {
    body: Body,
    counter: Counter,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.counter.increment(data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
