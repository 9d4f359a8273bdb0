//! Taking turns on an upload: the newest request has it, older ones make way.
//!
//! When a phone changes networks its old connection looks alive to the server for minutes. Were uploads locked by it,
//! the phone would be locked out of its own upload by itself.
//!
//! A request takes the upload's turn: whoever has it is told to stop, commits what it received, and leaves. If it does
//! not leave in time the new one goes on regardless; the store fences the old one off.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;
use waxwing_protocol::UploadId;

use crate::metrics::handles;

/// How long a newcomer waits for its predecessor to commit.
const HANDOVER_WAIT: Duration = Duration::from_secs(2);

/// Who has, or waits for, the turn of which upload.
#[derive(Debug)]
pub(super) struct Turns {
    table: Arc<Mutex<HashMap<UploadId, Newest>>>,
    closing: CancellationToken,
}

/// The newest request for an upload.
#[derive(Debug)]
struct Newest {
    /// Tells it to make way.
    stop: CancellationToken,
    /// Which of the requests since this entry was made it is.
    number: u64,
    /// Held by whoever has the turn.
    held: Arc<tokio::sync::Mutex<()>>,
}

/// A turn. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    table: Arc<Mutex<HashMap<UploadId, Newest>>>,
    id: UploadId,
    number: u64,
    stop: CancellationToken,
    /// `None` when the predecessor did not leave in time.
    _held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// No turns taken. When `closing` is cancelled, everyone who has one is told to stop.
    pub(super) fn new(closing: CancellationToken) -> Self {
        Self { table: Arc::default(), closing }
    }

    /// Takes the turn of upload `id`, once the request that has it has committed, and at the latest after
    /// [`HANDOVER_WAIT`].
    pub(super) async fn take(&self, id: UploadId) -> Turn {
        let stop = self.closing.child_token();
        let (number, held) = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            let newest = table.entry(id).or_insert_with(|| Newest {
                stop: CancellationToken::new(),
                number: 0,
                held: Arc::default(),
            });
            if newest.number > 0 {
                handles().takeovers.increment(1);
            }
            newest.stop.cancel();
            newest.stop = stop.clone();
            newest.number += 1;
            (newest.number, Arc::clone(&newest.held))
        };
        // Made before the wait: a request that is dropped while it waits gives its entry back.
        let mut turn = Turn { table: Arc::clone(&self.table), id, number, stop, _held: None };
        turn._held = tokio::time::timeout(HANDOVER_WAIT, held.lock_owned()).await.ok();
        turn
    }

    /// Takes the turn of upload `id` unless somebody has it or waits for it.
    pub(super) fn take_if_free(&self, id: UploadId) -> Option<Turn> {
        let stop = self.closing.child_token();
        let held = Arc::new(tokio::sync::Mutex::new(()));
        let guard = Arc::clone(&held).try_lock_owned().ok();
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let Entry::Vacant(free) = table.entry(id) else { return None };
        free.insert(Newest { stop: stop.clone(), number: 1, held });
        Some(Turn { table: Arc::clone(&self.table), id, number: 1, stop, _held: guard })
    }

    /// Whether a request has the turn of upload `id`.
    pub(super) fn is_taken(&self, id: UploadId) -> bool {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}

impl Turn {
    /// Cancelled when this request has to make way.
    pub(super) const fn stop(&self) -> &CancellationToken {
        &self.stop
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table.get(&self.id).is_some_and(|newest| newest.number == self.number) {
            table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: UploadId = UploadId::from_bytes([1; 16]);

    #[tokio::test]
    async fn a_newcomer_stops_the_holder_and_waits_for_it_to_leave() {
        let turns = Arc::new(Turns::new(CancellationToken::new()));
        let first = turns.take(ID).await;
        let newcomer = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(ID).await }
        });
        first.stop().cancelled().await;
        assert!(!newcomer.is_finished());
        drop(first);
        let second = newcomer.await.unwrap();
        assert!(second._held.is_some());
        assert!(!second.stop().is_cancelled());
        drop(second);
        assert!(!turns.is_taken(ID));
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_that_does_not_leave_locks_nobody_out() {
        let turns = Turns::new(CancellationToken::new());
        let stuck = turns.take(ID).await;
        let next = turns.take(ID).await;
        assert!(stuck.stop().is_cancelled());
        assert!(next._held.is_none());
    }

    /// Whoever only tidies up makes nobody stop, and a request that comes meanwhile waits for it to end.
    #[tokio::test]
    async fn a_turn_is_taken_in_passing_only_when_nobody_has_it() {
        let turns = Arc::new(Turns::new(CancellationToken::new()));
        let busy = turns.take(ID).await;
        assert!(turns.take_if_free(ID).is_none());
        assert!(!busy.stop().is_cancelled());
        drop(busy);
        let tidying = turns.take_if_free(ID).unwrap();
        let request = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move { turns.take(ID).await }
        });
        tidying.stop().cancelled().await;
        assert!(!request.is_finished());
        drop(tidying);
        assert!(request.await.unwrap()._held.is_some());
    }

    #[tokio::test]
    async fn closing_stops_everyone() {
        let closing = CancellationToken::new();
        let turns = Turns::new(closing.clone());
        let turn = turns.take(ID).await;
        closing.cancel();
        turn.stop().cancelled().await;
    }
}
