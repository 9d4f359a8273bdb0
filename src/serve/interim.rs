//! Interim responses (1xx) on HTTP/1.1: a word to the client before the answer.
//!
//! An upload that is on its way can be resumed only by a client that knows its URL, and the IETF's protocol tells it in a
//! 104 (Upload Resumption Supported) while the content is still coming. hyper sends no interim response but 100. So one
//! is put on the connection beneath it.
//!
//! Promise: it never falls into the middle of another message. A line is open only from the moment a request is handed
//! to its handler until the handler answers; and what waits on it is written only when hyper flushes, which it does when
//! all it has written so far is out.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use axum::http::{Request, Version};
use tokio::io::AsyncWrite;
use waxwing_origin::Interim;

/// Interim responses that wait at most; who sends more than a client reads loses the rest.
const WAITING_MAX: usize = 4;

/// The way of interim responses to one connection. Clones are the same way.
#[derive(Clone, Debug, Default)]
pub(super) struct Line(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    open: bool,
    waiting: VecDeque<Vec<u8>>,
    /// Begun: it has to be written to its end before anything else.
    begun: Vec<u8>,
    written: usize,
}

impl Line {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `answering`'s handler send interim responses to a client that asked for them.
    pub(super) async fn during<B, R, F: Future<Output = R>>(
        &self,
        mut request: Request<B>,
        answering: impl FnOnce(Request<B>) -> F,
    ) -> R {
        if request.version() != Version::HTTP_11 || !request.headers().contains_key(Interim::ASKED_BY) {
            return answering(request).await;
        }
        let line = self.clone();
        request.extensions_mut().insert(Interim::new(move |head| line.send(head)));
        self.state().open = true;
        let answer = answering(request).await;
        let mut state = self.state();
        state.open = false;
        state.waiting.clear();
        answer
    }

    fn send(&self, head: Vec<u8>) {
        let mut state = self.state();
        if state.open && state.waiting.len() < WAITING_MAX {
            state.waiting.push_back(head);
        }
    }

    /// Writes the rest of an interim response that was begun.
    pub(super) fn poll_rest(&self, cx: &mut Context<'_>, stream: Pin<&mut impl AsyncWrite>) -> Poll<io::Result<()>> {
        self.state().poll_rest(cx, stream)
    }

    /// Writes all that waits. To be called when everything before it has been written.
    pub(super) fn poll_waiting(
        &self,
        cx: &mut Context<'_>,
        mut stream: Pin<&mut impl AsyncWrite>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state();
        loop {
            ready!(state.poll_rest(cx, stream.as_mut()))?;
            let Some(next) = state.waiting.pop_front() else { return Poll::Ready(Ok(())) };
            state.begun = next;
        }
    }
}

impl State {
    fn poll_rest(&mut self, cx: &mut Context<'_>, mut stream: Pin<&mut impl AsyncWrite>) -> Poll<io::Result<()>> {
        while self.written < self.begun.len() {
            match ready!(stream.as_mut().poll_write(cx, &self.begun[self.written..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.written += n,
            }
        }
        self.begun.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}
