//! A connection with its place among those allowed, as hyper reads and writes it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

use crate::serve::interim::Line;

/// Bytes read at once of a connection that has brought little so far. hyper doubles its buffer with every read that fills
/// it, and keeps it while it waits for more: a thousand uploads that stall after a few pieces would hold a hundred
/// megabytes.
const SHORT_READ_BYTES: usize = 8 * 1024;

/// Bytes after which a connection is read with buffers as large as it fills.
const SHORT_READS_BYTES: usize = 1 << 20;

/// Bytes of HTTP/2's preface.
const PREFACE_BYTES: usize = 24;

/// A connection with its place. hyper hands the stream on when it becomes a WebSocket; the place goes with it.
pub(super) struct Placed<S> {
    stream: S,
    /// What was read of it before, still to be given.
    read: Bytes,
    line: Line,
    /// Bytes that came so far, counted up to [`SHORT_READS_BYTES`].
    received: usize,
    /// When the preface has to be there; until it is.
    preface_due: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
}

impl<S> Placed<S> {
    /// `stream`, of which `read` came already, in `place`, with `line` beneath what hyper writes.
    pub(super) fn new(stream: S, read: Bytes, line: Line, place: OwnedSemaphorePermit) -> Self {
        Self { stream, read, line, received: 0, preface_due: None, _place: place }
    }

    /// The same, whose HTTP/2 preface must come within this time: hyper waits for it for ever.
    pub(super) fn preface_within(self, timeout: Duration) -> Self {
        Self { preface_due: Some(Box::pin(sleep(timeout))), ..self }
    }
}

impl<S: AsyncWrite + Unpin> Placed<S> {
    /// Ends what was begun between hyper's messages, before hyper goes on.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.line.poll_rest(cx, Pin::new(&mut self.stream))
    }
}

impl<S: AsyncRead + Unpin> Placed<S> {
    fn poll_some(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.read.is_empty() {
            let n = self.read.len().min(buf.remaining());
            buf.put_slice(&self.read.split_to(n));
            return Poll::Ready(Ok(()));
        }
        if self.received >= SHORT_READS_BYTES {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let room = buf.remaining().min(SHORT_READ_BYTES);
        let mut short = ReadBuf::new(buf.initialize_unfilled_to(room));
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut short))?;
        let n = short.filled().len();
        buf.advance(n);
        self.received += n;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Placed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = self.poll_some(cx, buf);
        match (&read, &mut self.preface_due) {
            (Poll::Pending, Some(due)) => {
                ready!(due.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
            _ => {
                if self.received >= PREFACE_BYTES {
                    self.preface_due = None;
                }
                read
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Placed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let placed = &mut *self;
        ready!(placed.line.poll_waiting(cx, Pin::new(&mut placed.stream)))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
