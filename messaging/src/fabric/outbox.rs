//! What waits to be told to a connection.
//!
//! The one who delivers must not wait for the one who reads slowly, and a million idle connections must not hold a
//! million buffers. So an outbox is a short queue that takes no memory while empty and, when full, forgets what comes
//! and remembers only that it did: the connection then reads the mailbox.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use waxwing_protocol::frames::{EphemeralPush, PresenceItem, ReceiptSummary};
use waxwing_protocol::{AccountId, ChannelId};

use super::relay::ChannelNews;
use crate::store::Committed;

/// Rows that wait at most.
const ROWS_MAX: usize = 64;

/// Bytes of bodies that wait at most.
const BYTES_MAX: usize = 256 * 1024;

/// The same for all connections of this process: ten thousand that read slowly would else hold 2.5 GiB.
const ALL_BYTES_MAX: usize = 64 << 20;

/// Bytes of bodies that wait in all outboxes, or were taken and are being written.
static ALL_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Bytes of bodies that are in memory, until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Held(usize);

impl Held {
    /// Holds so many more, if that is within the bounds.
    fn add(&mut self, bytes: usize) -> bool {
        let fits = self.0 + bytes <= BYTES_MAX && ALL_BYTES.load(Ordering::Relaxed) + bytes <= ALL_BYTES_MAX;
        if fits {
            ALL_BYTES.fetch_add(bytes, Ordering::Relaxed);
            self.0 += bytes;
        }
        fits
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        ALL_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Frames for the moment that wait at most: with the largest payloads about 35 KB. More are dropped.
const EPHEMERALS_MAX: usize = 64;

/// Groups whose receipts wait at most. More are dropped: the next ones say what these would have said.
const RECEIPTS_MAX: usize = 64;

/// Accounts with changed devices that wait at most. Of more a client learns when it writes to them.
const DEVICES_CHANGED_MAX: usize = 64;

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A newer connection of the same device has come.
    Displaced,
    /// The device may not connect any more: it was revoked, or its account deleted.
    Revoked,
    /// The server is going away; those who leave with this one come back within so many milliseconds.
    Draining {
        /// The spread.
        jitter_ms: u32,
    },
}

/// The way to a connection.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    wake: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// None while nothing waits, as nearly always.
    taken: Option<Box<Taken>>,
    /// See [`Taken::stop`].
    stop: Option<Stop>,
}

impl Waiting {
    fn taken(&mut self) -> &mut Taken {
        self.taken.get_or_insert_default()
    }
}

/// What has waited.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Committed rows, each lane's by rising seq.
    pub(crate) rows: Vec<Committed>,
    /// What the rows take of memory: to be kept until they are written.
    pub(crate) held: Held,
    /// Rows were forgotten: the mailbox knows more than this outbox.
    pub(crate) overflowed: bool,
    /// For the moment: the oldest first.
    pub(crate) ephemerals: Vec<EphemeralPush>,
    /// Presence that changed, each account once.
    pub(crate) presence: Vec<PresenceItem>,
    /// How far groups are, each once.
    pub(crate) receipts: Vec<ReceiptSummary>,
    /// What is new in channels, each once. Its bytes are among those held.
    pub(crate) channels: Vec<(ChannelId, ChannelNews)>,
    /// Accounts whose devices changed, with the newest revision of each.
    pub(crate) devices_changed: Vec<(AccountId, u64)>,
    /// One-time keys left, when they are few.
    pub(crate) keys_low: Option<u32>,
    /// The connection has to end. Remains set.
    pub(crate) stop: Option<Stop>,
}

impl Outbox {
    /// Adds a row, or forgets it when there is no room.
    pub(crate) fn push(&self, row: Committed) {
        self.change(|waiting| {
            let taken = waiting.taken();
            // After one was forgotten the rest would only be read again.
            if taken.overflowed || taken.rows.len() >= ROWS_MAX || !taken.held.add(row.envelope.body.len()) {
                taken.overflowed = true;
                return;
            }
            taken.rows.push(row);
        });
    }

    pub(crate) fn keys_low(&self, remaining: u32) {
        self.change(|waiting| waiting.taken().keys_low = Some(remaining));
    }

    /// Adds an account whose devices changed; of each only the newest revision is kept.
    pub(crate) fn devices_changed(&self, account: AccountId, revision: u64) {
        self.change(|waiting| {
            let changed = &mut waiting.taken().devices_changed;
            changed.retain(|(earlier, _)| *earlier != account);
            if changed.len() < DEVICES_CHANGED_MAX {
                changed.push((account, revision));
            }
        });
    }

    /// Adds something for the moment, or drops it when there is no room.
    pub(crate) fn ephemeral(&self, push: EphemeralPush) {
        self.change(|waiting| {
            let ephemerals = &mut waiting.taken().ephemerals;
            if ephemerals.len() < EPHEMERALS_MAX {
                ephemerals.push(push);
            }
        });
    }

    /// Adds presence; of each account only the newest is kept, so that it is bounded by the subscriptions.
    pub(crate) fn presence(&self, items: Vec<PresenceItem>) {
        self.change(|waiting| {
            let older = &mut waiting.taken().presence;
            older.retain(|old| !items.iter().any(|item| item.account == old.account));
            older.extend(items);
        });
    }

    /// Adds how far a group is; of each only the newest is kept.
    pub(crate) fn receipts(&self, summary: ReceiptSummary) {
        self.change(|waiting| {
            let receipts = &mut waiting.taken().receipts;
            receipts.retain(|earlier| earlier.conv_id != summary.conv_id);
            if receipts.len() < RECEIPTS_MAX {
                receipts.push(summary);
            }
        });
    }

    /// Adds what is new in a channel; of what finds no room, that it is there.
    pub(crate) fn channel(&self, channel: ChannelId, news: &ChannelNews) {
        self.change(|waiting| {
            let taken = waiting.taken();
            let at = taken.channels.iter().position(|(it, _)| *it == channel).unwrap_or_else(|| {
                taken.channels.push((channel, ChannelNews::default()));
                taken.channels.len() - 1
            });
            for (seq, entry) in (news.first_seq..).zip(&news.entries) {
                let waits = &mut taken.channels[at].1;
                let fits = waits.missed.is_none() && waits.entries.len() < ROWS_MAX && !waits.is_behind(seq);
                let room = fits && taken.held.add(entry.len());
                waits.add(news.epoch, seq, entry, room);
            }
            if let Some((from, to)) = news.missed {
                taken.channels[at].1.miss(news.epoch, from, to);
            }
        });
    }

    /// Tells the connection to end. The first reason stands.
    pub(crate) fn stop(&self, stop: Stop) {
        self.change(|waiting| {
            waiting.stop.get_or_insert(stop);
        });
    }

    /// Takes everything that waits.
    pub(crate) fn take(&self) -> Taken {
        let mut waiting = self.lock();
        let mut taken = waiting.taken.take().map_or_else(Taken::default, |taken| *taken);
        taken.stop = waiting.stop;
        taken
    }

    /// Waits until something was added since the last call.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        change(&mut self.lock());
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::DeviceAddress;
    use waxwing_protocol::frames::{Envelope, Lane};
    use waxwing_protocol::{AccountId, DeviceId};

    fn row(seq: u64, bytes: usize) -> Committed {
        let to = DeviceAddress { account: AccountId::from_bytes([1; 16]), device: DeviceId::FIRST };
        Committed {
            to,
            lane: Lane::Normal,
            envelope: Envelope { seq, body: vec![0; bytes].into(), ..Envelope::default() },
        }
    }

    #[test]
    fn a_full_outbox_forgets_what_comes_and_says_so() {
        let outbox = Outbox::default();
        for seq in 1..=ROWS_MAX as u64 + 5 {
            outbox.push(row(seq, 10));
        }
        let taken = outbox.take();
        assert_eq!((taken.rows.len(), taken.overflowed), (ROWS_MAX, true));
        outbox.push(row(100, 10));
        let taken = outbox.take();
        assert_eq!((taken.rows.len(), taken.overflowed), (1, false));
    }

    #[test]
    fn large_bodies_fill_it_sooner() {
        let outbox = Outbox::default();
        for seq in 1..=4 {
            outbox.push(row(seq, 96 * 1024));
        }
        let taken = outbox.take();
        assert_eq!((taken.rows.len(), taken.overflowed), (2, true));
    }

    /// Ten thousand slow readers.
    #[test]
    fn all_outboxes_together_hold_a_bounded_part_of_memory() {
        let outboxes: Vec<_> = (0..10_000).map(|_| Outbox::default()).collect();
        for outbox in &outboxes {
            outbox.push(row(1, 96 * 1024));
            outbox.push(row(2, 96 * 1024));
        }
        assert!(ALL_BYTES.load(Ordering::Relaxed) <= ALL_BYTES_MAX);
        let taken = outboxes[0].take();
        assert_eq!((taken.rows.len(), taken.overflowed), (2, false));
        assert!(outboxes[9_999].take().overflowed, "the last read their mailboxes");
        outboxes[1].push(row(3, 10));
        outboxes[9_999].push(row(3, 96 * 1024));
        assert!(outboxes[9_999].take().overflowed, "what was taken counts until it is written");
        drop(taken);
        outboxes[9_999].push(row(4, 96 * 1024));
        assert!(!outboxes[9_999].take().overflowed);
        drop(outboxes);
        assert_eq!(ALL_BYTES.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_wake_before_the_wait_is_not_lost() {
        let outbox = Outbox::default();
        outbox.stop(Stop::Revoked);
        outbox.stop(Stop::Displaced);
        outbox.woken().await;
        assert_eq!(outbox.take().stop, Some(Stop::Revoked));
        assert_eq!(outbox.take().stop, Some(Stop::Revoked), "a stop stands");
    }
}
