//! Token buckets: how often somebody may do something.
//!
//! Handles can be guessed and prekeys used up; without a limit one device could walk through all of them. A bucket
//! holds as many tokens as may be spent at once and fills again at a steady rate. Buckets live in memory, and full ones
//! are dropped, so that their number is bounded by who was active lately.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use waxwing_protocol::Timestamp;

/// Buckets above which full ones are dropped.
const BUCKETS_HIGH: usize = 10_000;

/// A limit for each `K`.
#[derive(Debug)]
pub(crate) struct Limit<K> {
    burst: f64,
    per_ms: f64,
    buckets: Mutex<Buckets<K>>,
}

#[derive(Debug)]
struct Buckets<K> {
    by_key: HashMap<K, Bucket>,
    /// When so many are there, full ones are dropped; doubles while none are full.
    prune_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

impl<K: Eq + Hash> Limit<K> {
    /// `count` in each `period`, and as many at once after a pause.
    pub(crate) fn new(count: u32, period: Duration) -> Self {
        let per_ms = f64::from(count) / (period.as_secs_f64() * 1000.0);
        let buckets = Buckets { by_key: HashMap::new(), prune_at: BUCKETS_HIGH };
        Self { burst: f64::from(count), per_ms, buckets: Mutex::new(buckets) }
    }

    /// Spends a token of `key` at `now`.
    ///
    /// # Errors
    /// How long until there is one, when there is none.
    pub(crate) fn spend(&self, key: K, now: Timestamp) -> Result<(), Duration> {
        // A panic while holding the lock leaves numbers behind, which are valid whatever they are.
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.by_key.len() >= buckets.prune_at {
            buckets.by_key.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
            buckets.prune_at = BUCKETS_HIGH.max(buckets.by_key.len() * 2);
        }
        let bucket = buckets.by_key.entry(key).or_insert(Bucket { tokens: self.burst, at: now });
        let tokens = self.filled(*bucket, now);
        *bucket = Bucket { tokens, at: bucket.at.max(now) };
        if tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - tokens) / self.per_ms / 1000.0));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn filled(&self, bucket: Bucket, now: Timestamp) -> f64 {
        let elapsed_ms = now.since(bucket.at).as_secs_f64() * 1000.0;
        (bucket.tokens + elapsed_ms * self.per_ms).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_secs(1000);

    #[test]
    fn a_burst_is_allowed_and_then_the_rate() {
        let limit = Limit::new(60, Duration::from_secs(60));
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
        let limit = Limit::new(1, Duration::from_secs(60));
        assert_eq!(limit.spend(1, START), Ok(()));
        assert!(limit.spend(1, Timestamp::from_secs(1)).is_err());
        assert!(limit.spend(1, START.plus(Duration::from_secs(59))).is_err());
    }

    #[test]
    fn strangers_that_pass_by_leave_nothing_behind() {
        let limit = Limit::new(1, Duration::from_secs(1));
        let mut now = START;
        for n in 0..BUCKETS_HIGH * 3 {
            now = now.plus(Duration::from_millis(1));
            assert_eq!(limit.spend(n, now), Ok(()));
        }
        assert!(limit.buckets.lock().unwrap().by_key.len() <= BUCKETS_HIGH);
    }
}
