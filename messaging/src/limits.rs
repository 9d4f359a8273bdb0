//! Limits: how often somebody may do something.
//!
//! Handles can be guessed, prekeys used up and mailboxes flooded; without a limit one device could walk through all of
//! them. Each key may spend so many at once and then goes on at a steady rate (GCRA: all that is kept of a key is the
//! moment at which it will have everything back).
//!
//! Whoever makes up keys must not make the server remember without bound: a limit is a table of fixed size. A key has
//! room in a few places of it; when all of them are taken, the one that was closest to having everything back is
//! forgotten, so that it is never the worst one.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use metrics::Counter;
use serde::Serialize;
use waxwing_protocol::Timestamp;

use crate::metrics::refusals;

/// Places of a table: a mebibyte, of which the system gives what is touched.
const PLACES: usize = 64 * 1024;

/// Places that a key can have.
const WAYS: usize = 8;

/// Locks of a table, so that the threads of a node seldom wait for one another.
const SHARDS: usize = 16;

const NANOS_PER_MS: u64 = 1_000_000;
const NANOS_PER_S: u64 = 1_000_000_000;

/// A limit as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct LimitView {
    /// What it limits, as in the metric of refusals.
    pub name: &'static str,
    /// So many in each period, and as many at once after a pause.
    pub count: u32,
    /// The period in seconds.
    pub period_s: u64,
    /// Refused since the start.
    pub refused: u64,
}

/// A limit for each `K`.
pub(crate) struct Limit<K> {
    /// Between two of a key that spends steadily.
    interval_ns: u64,
    /// What may be spent at once, as time.
    burst_ns: u64,
    keys: RandomState,
    shards: Vec<Mutex<Vec<Place>>>,
    name: &'static str,
    count: u32,
    refused: AtomicU64,
    refusals: Counter,
    of: std::marker::PhantomData<fn(K)>,
}

/// The hash of a key, and when it has everything back in nanoseconds since 1970. Both zero: nobody's.
type Place = [u64; 2];

impl<K: Hash> Limit<K> {
    /// `count` in each `period`, and as many at once after a pause. `name` stands in the metric of refusals.
    pub(crate) fn new(name: &'static str, count: u32, period: Duration) -> Self {
        let burst_ns = u64::try_from(period.as_nanos()).unwrap_or(u64::MAX);
        let places = || Mutex::new(vec![[0; 2]; PLACES / SHARDS]);
        Self {
            interval_ns: (burst_ns / u64::from(count.max(1))).max(1),
            burst_ns,
            keys: RandomState::new(),
            shards: (0..SHARDS).map(|_| places()).collect(),
            name,
            count,
            refused: AtomicU64::new(0),
            refusals: refusals(name),
            of: std::marker::PhantomData,
        }
    }

    /// What it allows and what it has refused.
    pub(crate) fn view(&self) -> LimitView {
        LimitView {
            name: self.name,
            count: self.count,
            period_s: self.burst_ns / NANOS_PER_S,
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    /// Spends one of `key`'s at `now`.
    ///
    /// # Errors
    /// How long until there is one, when there is none.
    pub(crate) fn spend(&self, key: K, now: Timestamp) -> Result<(), Duration> {
        let hash = self.keys.hash_one(key);
        let now_ns = now.as_millis().saturating_mul(NANOS_PER_MS);
        let [shard, set] = split(hash);
        // A panic while holding the lock leaves numbers behind, which are valid whatever they are.
        let mut places = self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner);
        let places = &mut places[set..set + WAYS];
        let at = places.iter().position(|place| place[0] == hash).unwrap_or_else(|| {
            let soonest = places.iter().enumerate().min_by_key(|(_, place)| place[1]);
            let at = soonest.map_or(0, |(at, _)| at);
            places[at] = [hash, 0];
            at
        });
        let back = places[at][1].max(now_ns).saturating_add(self.interval_ns);
        let over = back.saturating_sub(now_ns.saturating_add(self.burst_ns));
        if over > 0 {
            self.refusals.increment(1);
            self.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Duration::from_nanos(over));
        }
        places[at][1] = back;
        Ok(())
    }
}

/// The shard of a hash, and the first of its places there.
fn split(hash: u64) -> [usize; 2] {
    let [low, high, set, more, ..] = hash.to_le_bytes();
    let set = usize::from(u16::from_le_bytes([set, more])) % (PLACES / SHARDS / WAYS);
    [usize::from(low ^ high) % SHARDS, set * WAYS]
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1000);

    fn limit<K: Hash>(count: u32, period: Duration) -> Limit<K> {
        Limit::new("test", count, period)
    }

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let limit = limit(60, Duration::from_secs(60));
        for _ in 0..60 {
            assert_eq!(limit.spend("alice", START), Ok(()));
        }
        let wait = limit.spend("alice", START).unwrap_err();
        assert!(wait > Duration::from_millis(999) && wait < Duration::from_millis(1001), "{wait:?}");
        assert_eq!(limit.spend("bob", START), Ok(()), "limits are each one's own");
        assert_eq!(limit.spend("alice", START.plus(Duration::from_millis(1001))), Ok(()));
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing_away() {
        let limit = limit(1, Duration::from_secs(60));
        assert_eq!(limit.spend(1, START), Ok(()));
        assert!(limit.spend(1, Timestamp::from_secs(1)).is_err());
        assert!(limit.spend(1, START.plus(Duration::from_secs(59))).is_err());
        assert_eq!(limit.spend(1, START.plus(Duration::from_secs(60))), Ok(()));
    }

    /// A million made-up keys neither take memory nor free the one that has used up what it may.
    #[test]
    fn strangers_that_pass_by_do_not_push_out_who_is_over_the_limit() {
        let limit = limit(10, Duration::from_secs(60));
        for _ in 0..10 {
            assert_eq!(limit.spend(u64::MAX, START), Ok(()));
        }
        for n in 0..1_000_000 {
            assert_eq!(limit.spend(n, START), Ok(()));
        }
        assert!(limit.spend(u64::MAX, START).is_err());
    }

    #[test]
    fn thousands_who_are_active_have_limits_of_their_own() {
        let limit = limit(2, Duration::from_secs(60));
        let kept = (0..10_000).filter(|n| {
            let _ = (limit.spend(*n, START), limit.spend(*n, START));
            limit.spend(*n, START).is_err()
        });
        assert_eq!(kept.count(), 10_000);
        let still = (0..10_000).filter(|n| limit.spend(*n, START).is_err()).count();
        assert!(still > 9_900, "{still} of 10,000 are remembered");
    }
}
