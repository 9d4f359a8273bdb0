//! Purges: what went from an origin goes from here.
//!
//! Without this a blob that its owner deleted would be served for as long as it is popular. The edge asks each origin
//! for its numbered log, again and again, from the number it knows: what it missed while it or the wire was down, it
//! hears of afterwards. When the log has forgotten what the edge has not heard yet, everything cached is suspect, and
//! goes.
//!
//! Promises:
//! - The number is durable only after what it stands for: a crash repeats purges, never skips one.
//! - A fill that began before a purge does not bring the blob back (see [`crate::tombstones`]).
//!
//! An origin's log names blobs. What belongs to one owner cannot be purged as one, since no edge knows owners.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime};

use waxwing_protocol::Timestamp;
use waxwing_protocol::api::PurgeLog;

use crate::cache::Cache;
use crate::fill::Fills;
use crate::metrics::handles;
use crate::stats::Counters;
use crate::upstream::Upstream;

/// What purging works on.
#[derive(Clone, Debug)]
pub(crate) struct Purges {
    pub(crate) cache: Arc<Cache>,
    pub(crate) fills: Fills,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) counters: Arc<Counters>,
}

impl Purges {
    /// Follows the log of origin `origin`, of which every purge up to `known` has been applied, asking each `pause`; never
    /// ends. `None` stands for a cache that began empty: to that, all that the log remembers is applied.
    pub(crate) async fn follow(self, origin: usize, mut known: Option<u64>, pause: Duration) {
        let mut was_reached = true;
        self.upstream.cursors.set(origin, known.unwrap_or(0));
        loop {
            match self.upstream.purges(origin, known.unwrap_or(0)).await {
                Ok(log) => {
                    was_reached = true;
                    let next = log.next;
                    let before = known.unwrap_or(log.oldest.saturating_sub(1));
                    let applied = self.apply(before, log, Timestamp::from(SystemTime::now()));
                    if known != Some(applied) {
                        self.keep(origin, applied).await;
                    }
                    known = Some(applied);
                    if before < applied && applied + 1 < next {
                        continue;
                    }
                }
                Err(error) => {
                    // Once for each time it fails, not for each second of it.
                    if std::mem::replace(&mut was_reached, false) {
                        tracing::warn!("the purge log of origin {origin} cannot be read: {error}");
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Applies a page of the log to a cache to which all up to `known` was applied. Gives up to which number all is now.
    fn apply(&self, known: u64, log: PurgeLog, now: Timestamp) -> u64 {
        let newest = log.next.saturating_sub(1);
        // Numbers that went backwards are another log's: that of an origin that was set up anew, or restored.
        if log.oldest > known.saturating_add(1) || newest < known {
            tracing::warn!("purges were missed: everything cached is dropped");
            self.counters.purged_all.fetch_add(1, Relaxed);
            self.cache.purge_all();
            self.fills.strike_off(None);
            return newest;
        }
        let mut applied = known;
        for purge in log.purges.into_iter().filter(|purge| purge.number > known) {
            self.cache.purge(purge.blob);
            self.fills.strike_off(Some(purge.blob));
            handles().purge.record(now.since(purge.at));
            self.counters.purges.fetch_add(1, Relaxed);
            tracing::debug!(blob.id = %purge.blob, "purged {}", purge.blob);
            applied = applied.max(purge.number);
        }
        applied
    }

    /// Makes durable that every purge up to `number` has been applied.
    async fn keep(&self, origin: usize, number: u64) {
        self.counters.purge_cursor.store(number, Relaxed);
        self.upstream.cursors.set(origin, number);
        if let Some(disk) = self.cache.disk() {
            disk.purged(self.upstream.origin_tag(origin), number).await;
        }
    }
}
