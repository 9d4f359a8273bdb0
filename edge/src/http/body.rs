//! The body of a blob's answer: bytes that are there, or a reader that brings them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use http_body::{Frame, SizeHint};

use crate::blobs::Content;
use crate::fill::FillError;
use crate::stats::Counters;

/// A body of exactly as many bytes as its answer's head says, or of fewer and an error: then the server cuts the
/// connection, and no client takes the part for the whole.
pub(super) struct BlobBody {
    left: u64,
    bytes: Source,
    sent: Sent,
}

/// Counts what was sent.
#[derive(Clone, Debug)]
pub(crate) struct Sent(pub(crate) Arc<Counters>);

enum Source {
    Held(VecDeque<Bytes>),
    Streamed(Pin<Box<dyn Stream<Item = Result<Bytes, FillError>> + Send>>),
}

impl BlobBody {
    /// The body with this content, which is `content_bytes` long.
    pub(super) fn new(content: Content, content_bytes: u64, sent: Sent) -> Self {
        let bytes = match content {
            Content::Held(held) => Source::Held(held.into()),
            Content::Streamed(reader) => Source::Streamed(Box::pin(stream::unfold(Some(reader), async |reader| {
                let mut reader = reader?;
                match reader.next().await {
                    Ok(Some(bytes)) => Some((Ok(bytes), Some(reader))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), None)),
                }
            }))),
        };
        Self { left: content_bytes, bytes, sent }
    }

    /// The body of this stream, which is `content_bytes` long.
    pub(super) fn streamed(
        stream: Pin<Box<dyn Stream<Item = Result<Bytes, FillError>> + Send>>,
        content_bytes: u64,
        sent: Sent,
    ) -> Self {
        Self { left: content_bytes, bytes: Source::Streamed(stream), sent }
    }
}

impl http_body::Body for BlobBody {
    type Data = Bytes;
    type Error = FillError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FillError>>> {
        let next = match &mut self.bytes {
            Source::Held(held) => Poll::Ready(held.pop_front().map(Ok)),
            Source::Streamed(stream) => stream.as_mut().poll_next(context),
        };
        next.map(|next| {
            next.map(|bytes| {
                let bytes = bytes?;
                self.left = self.left.saturating_sub(bytes.len() as u64);
                self.sent.0.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
                Ok(Frame::data(bytes))
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
