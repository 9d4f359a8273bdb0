//! Admission: what a crowd that comes at once may take of this node.
//!
//! After an outage everybody reconnects in the same seconds, each with a mailbox to be opened, which is a commit, and a
//! backlog to be read. Without bounds the node holds a page for each of them, answers nobody, and whoever gives up comes
//! again. So mailboxes are opened by a bounded number at a time, others stand in a line of bounded length, and who finds
//! the line full is told when to come back: a random moment, so that they do not come at once again. Pages on their way
//! to clients share a budget of bytes; who finds it spent waits for a page that another has finished writing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::node::random;

/// Mailboxes opened at a time: they share commits, so more of them would only wait further on.
const OPENED_AT_ONCE: usize = 256;

/// When those come back who found the line full: after so long, and up to as long again for each time the line's length
/// that a small machine opens in a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Mailboxes that a small machine opens in a second.
const OPENED_PER_S: u64 = 1_000;

/// The unit in which pages are counted.
const KIB: usize = 1024;

/// What a page takes beside its bodies.
const PAGE_OVERHEAD: usize = 32 * KIB;

/// The bodies of a page when the budget is nearly spent: smaller ones, so that more clients get on.
const PAGE_BYTES_SCARCE: usize = 32 * KIB;

/// The bounds of a node.
pub(crate) struct Admission {
    opening: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
    pages: Arc<Semaphore>,
    pages_kib: usize,
}

/// Too many come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crowded {
    pub(crate) retry_after: Duration,
}

/// Leave to open a mailbox: held until that is done.
pub(crate) struct Turn<'a>(#[expect(dead_code, reason = "held, not used")] tokio::sync::SemaphorePermit<'a>);

/// Room for a page: held until the page is written.
pub(crate) struct Room {
    _permit: OwnedSemaphorePermit,
    /// Bytes of bodies that it is for.
    pub(crate) bytes: usize,
}

/// Somebody in the line, which is one shorter when this is dropped.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(config: &Config) -> Self {
        let pages_kib = usize::try_from(config.pages_bytes_max).unwrap_or(usize::MAX) / KIB;
        let pages_kib = pages_kib.clamp((PAGE_BYTES_SCARCE + PAGE_OVERHEAD) / KIB, Semaphore::MAX_PERMITS);
        Self {
            opening: Semaphore::new(OPENED_AT_ONCE),
            waiting: AtomicUsize::new(0),
            waiting_max: usize::try_from(config.connecting_max).unwrap_or(usize::MAX),
            pages: Arc::new(Semaphore::new(pages_kib)),
            pages_kib,
        }
    }

    /// Refuses whoever would find the line full, before anything was done for it.
    pub(crate) fn check(&self) -> Result<(), Crowded> {
        if self.waiting.load(Ordering::Relaxed) < self.waiting_max { Ok(()) } else { Err(self.crowded()) }
    }

    /// Waits in line to open a mailbox.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Crowded> {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _place = Place(&self.waiting);
        if before >= self.waiting_max {
            return Err(self.crowded());
        }
        let permit = self.opening.acquire().await.map_err(|_| self.crowded())?;
        Ok(Turn(permit))
    }

    /// Waits for room for a page of `bytes` at most; there may be room for less.
    pub(crate) async fn room(&self, bytes: usize) -> Option<Room> {
        let scarce = self.pages.available_permits() < self.pages_kib / 4;
        let bytes = if scarce { bytes.min(PAGE_BYTES_SCARCE) } else { bytes };
        let kib = ((bytes + PAGE_OVERHEAD) / KIB).min(self.pages_kib);
        let permit = Arc::clone(&self.pages).acquire_many_owned(u32::try_from(kib).unwrap_or(u32::MAX)).await;
        permit.ok().map(|permit| Room { _permit: permit, bytes })
    }

    fn crowded(&self) -> Crowded {
        let spread_ms = 1 + self.waiting_max as u64 * 1000 / OPENED_PER_S;
        let late = Duration::from_millis(u64::from_le_bytes(random()) % spread_ms);
        Crowded { retry_after: RETRY_AFTER + late }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn admission(connecting_max: u32, pages_bytes_max: u64) -> Admission {
        Admission::new(&Config { connecting_max, pages_bytes_max, ..Config::default() })
    }

    #[tokio::test]
    async fn who_finds_the_line_full_is_told_to_come_back_at_a_moment_of_its_own() {
        let admission = admission(2, 1 << 20);
        let mut turns = Vec::new();
        for _ in 0..OPENED_AT_ONCE {
            turns.push(admission.turn().await.ok().unwrap());
        }
        let mut line: Vec<_> = (0..2).map(|_| Box::pin(admission.turn())).collect();
        for waiting in &mut line {
            assert!(waiting.as_mut().now_or_never().is_none(), "it waits");
        }
        let (refused, again) = (admission.turn().await.err().unwrap(), admission.check().unwrap_err());
        assert!(refused.retry_after >= RETRY_AFTER && again.retry_after >= RETRY_AFTER);
        drop(line);
        assert_eq!(admission.check(), Ok(()), "who hangs up leaves the line");
        turns.pop();
        assert!(admission.turn().await.is_ok());
    }

    #[tokio::test]
    async fn pages_never_take_more_than_their_budget_and_get_smaller_when_it_is_short() {
        let budget = 1 << 20;
        let admission = admission(2, budget);
        let (mut rooms, mut bytes) = (Vec::new(), 0);
        while let Some(room) = admission.room(256 * KIB).now_or_never() {
            let room = room.unwrap();
            bytes += room.bytes + PAGE_OVERHEAD;
            rooms.push(room);
        }
        assert!(bytes as u64 <= budget, "{bytes}");
        assert!(rooms.len() > 4 && rooms.last().unwrap().bytes == PAGE_BYTES_SCARCE, "{}", rooms.len());
        rooms.pop();
        assert!(admission.room(256 * KIB).now_or_never().is_some(), "another goes on when one was written");
    }

    #[test]
    fn a_crowd_comes_back_over_some_time() {
        let admission = admission(4_000, 1 << 20);
        let mut moments: Vec<_> = (0..100).map(|_| admission.crowded().retry_after.as_millis()).collect();
        moments.sort_unstable();
        assert!(moments[0] >= 1_000 && moments[99] <= 5_001, "{moments:?}");
        assert!(moments[75] - moments[25] > 500, "{moments:?}");
    }
}
