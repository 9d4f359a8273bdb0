//! Frames of a connection whose answer takes a while: Sends that wait for their commit, and look-ups.
//!
//! A million connections that idle must not each hold the room for that, so there is none before the first, and it is
//! given back when a heartbeat passes without one.

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt as _};

use super::Answer;

/// What is under way.
#[derive(Default)]
pub(super) struct Sending(Option<FuturesUnordered<BoxFuture<'static, Answer>>>);

impl Sending {
    /// How many are under way.
    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, FuturesUnordered::len)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn push(&mut self, answer: BoxFuture<'static, Answer>) {
        self.0.get_or_insert_default().push(answer);
    }

    /// The next that is done; `None` at once when nothing is under way. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        match &mut self.0 {
            Some(sending) => sending.next().await,
            None => None,
        }
    }

    /// Gives the room back when nothing is under way.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.0 = None;
        }
    }
}
