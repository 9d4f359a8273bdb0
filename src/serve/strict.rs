//! Strict HTTP/1.1 before a lenient parser: what has two readings never reaches hyper as it was sent.
//!
//! hyper accepts a bare LF as the end of a line, and a `Content-Length` beside a `Transfer-Encoding`; a proxy that reads
//! either otherwise can be made to pass a request that it never saw. So what a client sends is followed beneath hyper,
//! and from the first byte that breaks the framing on hyper is given [`REFUSED`] instead, and the end: in a head it
//! answers 400 to that and closes, in the answers' order; amid a body it takes the body for broken off.
//!
//! Bodies pass by count, HTTP/2 and what a connection was switched to pass as they are.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use axum::http::{Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use waxwing_protocol::http1::Framing;

/// A byte that hyper refuses wherever a head may have been broken, and the end of the head: hyper looks at one that came
/// in several pieces only when it is complete.
const REFUSED: &[u8] = b"\0\r\n\r\n";

/// A connection whose incoming side is followed.
pub(super) struct Strict<S> {
    stream: S,
    framing: Framing,
    switched: Switched,
    /// What is left of [`REFUSED`], once something was.
    refused: Option<&'static [u8]>,
}

/// Whether an answer has switched the connection to another protocol. Clones are of the same connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Switched(Arc<AtomicBool>);

impl Switched {
    /// Looks at an answer on its way out. A client sends nothing of the other protocol before it has read this one.
    pub(super) fn note<B>(&self, answer: &Response<B>) {
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.0.store(true, Ordering::Release);
        }
    }
}

impl<S> Strict<S> {
    pub(super) fn new(stream: S, switched: Switched) -> Self {
        Self { stream, framing: Framing::new(), switched, refused: None }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Strict<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(refused) = &mut self.refused {
            give(refused, buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if self.switched.0.load(Ordering::Acquire) {
            self.framing.pass();
        }
        if let Err(error) = self.framing.follow(&buf.filled()[before..]) {
            tracing::debug!("request refused: {}", error.why);
            buf.set_filled(before + error.at);
            give(self.refused.insert(REFUSED), buf);
        }
        Poll::Ready(Ok(()))
    }
}

/// Puts as much of `rest` into `buf` as it has room for.
fn give(rest: &mut &'static [u8], buf: &mut ReadBuf<'_>) {
    let (now, later) = rest.split_at(rest.len().min(buf.remaining()));
    buf.put_slice(now);
    *rest = later;
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Strict<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
