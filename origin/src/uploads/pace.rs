//! How slowly a request may bring its bytes.
//!
//! A client that sends a byte a minute is never idle, and keeps a connection, a task and the turn of an upload for as
//! long as it likes; a few thousand of them keep everyone else out (slow loris). So a request that is waited for must
//! bring a few bytes a second.
//!
//! Promise: only time spent waiting for the client counts. A request that waits for a slow disk is never called slow.

use std::time::Duration;

/// How long requests are waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// Without any byte.
    pub(super) idle_timeout: Duration,
    /// Bytes a second that are enough; 0 takes any pace.
    pub(super) bytes_per_s_min: u64,
    /// Waiting over which the pace is measured, and below which it does not matter: a phone in a tunnel is not a slow one.
    pub(super) window: Duration,
}

/// The pace of one request.
#[derive(Debug)]
pub(super) struct Pace {
    patience: Patience,
    waited: Duration,
    brought: u64,
}

impl Pace {
    /// That of a request that has begun.
    pub(super) const fn start(patience: Patience) -> Self {
        Self { patience, waited: Duration::ZERO, brought: 0 }
    }

    /// How long no byte may come.
    pub(super) const fn idle_timeout(&self) -> Duration {
        self.patience.idle_timeout
    }

    /// Enters that `bytes` came after a wait. False when the request is too slow.
    pub(super) fn keeps_up(&mut self, bytes: u64, waited: Duration) -> bool {
        self.waited += waited;
        self.brought = self.brought.saturating_add(bytes);
        if self.waited < self.patience.window {
            return true;
        }
        let enough = u128::from(self.patience.bytes_per_s_min) * self.waited.as_millis();
        let keeps_up = u128::from(self.brought) * 1000 >= enough;
        (self.waited, self.brought) = (Duration::ZERO, 0);
        keeps_up
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(bytes_per_s_min: u64) -> Pace {
        let (idle_timeout, window) = (Duration::from_secs(60), Duration::from_secs(10));
        Pace::start(Patience { idle_timeout, bytes_per_s_min, window })
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_slow_request_is_found_out_when_the_window_is_over() {
        let mut pace = pace(100);
        assert!((0..9).all(|_| pace.keeps_up(99, SECOND)));
        assert!(!pace.keeps_up(99, SECOND));
    }

    #[test]
    fn a_request_that_brings_enough_goes_on_for_ever() {
        let mut pace = pace(100);
        assert!((0..1000).all(|_| pace.keeps_up(100, SECOND)));
    }

    /// What was brought fast once does not make up for ever.
    #[test]
    fn each_window_counts_by_itself() {
        let mut pace = pace(100);
        assert!(pace.keeps_up(1 << 30, SECOND));
        assert!((0..18).all(|_| pace.keeps_up(1, SECOND)));
        assert!(!pace.keeps_up(1, SECOND));
    }

    /// A slow disk takes all the time there is, and the client's bytes are there whenever they are asked for.
    #[test]
    fn time_that_is_not_waited_does_not_count() {
        let mut pace = pace(100);
        assert!((0..1000).all(|_| pace.keeps_up(1, Duration::from_micros(5))));
    }

    #[test]
    fn no_minimum_takes_any_pace() {
        let mut pace = pace(0);
        assert!((0..1000).all(|_| pace.keeps_up(0, SECOND)));
    }
}
