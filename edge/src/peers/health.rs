//! Whether a neighbour takes requests: found out by asking it again and again, and by what becomes of requests.
//!
//! One lost packet must not move a neighbour's whole share elsewhere, and one that comes and goes must not be taken back
//! at its first word. So it takes several failures to be down and several good checks to be up again. But nobody waits
//! for several time-outs meanwhile: a neighbour that failed a request is not asked again before a check has found it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The state of one neighbour.
#[derive(Debug)]
pub(crate) struct Health {
    state: Mutex<State>,
    /// Failures in a row that make it down.
    fall: u32,
    /// Good checks in a row that make it up again.
    rise: u32,
}

#[derive(Debug, Default)]
struct State {
    is_down: bool,
    /// A request failed since the last good check.
    is_doubted: bool,
    failures: u32,
    good_checks: u32,
}

impl Health {
    /// Of a neighbour of which nothing is known: it is asked.
    pub(crate) fn new(fall: u32, rise: u32) -> Self {
        Self { state: Mutex::default(), fall, rise }
    }

    /// Whether it is to be asked.
    pub(crate) fn is_usable(&self) -> bool {
        let state = self.state();
        !state.is_down && !state.is_doubted
    }

    /// A request or a check failed. Gives whether the neighbour went down by it.
    pub(crate) fn has_failed(&self) -> bool {
        let mut state = self.state();
        let was_down = state.is_down;
        state.is_doubted = true;
        state.good_checks = 0;
        state.failures = state.failures.saturating_add(1);
        state.is_down |= state.failures >= self.fall;
        state.is_down && !was_down
    }

    /// It gave what cannot be true: whatever checks say, it has to show itself good for a while.
    pub(crate) fn is_not_to_be_trusted(&self) {
        let mut state = self.state();
        state.is_down = true;
        state.good_checks = 0;
    }

    /// A request went well.
    pub(crate) fn has_served(&self) {
        let mut state = self.state();
        state.failures = 0;
    }

    /// A check went well. Gives whether the neighbour came up by it.
    pub(crate) fn is_found(&self) -> bool {
        let mut state = self.state();
        state.is_doubted = false;
        state.good_checks = state.good_checks.saturating_add(1);
        let is_up_again = state.is_down && state.good_checks >= self.rise;
        if is_up_again {
            state.is_down = false;
            state.failures = 0;
        }
        is_up_again
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_made_up_for_by_one_check_and_several_are_not() {
        let health = Health::new(3, 2);
        health.has_failed();
        assert!(!health.is_usable(), "nobody else waits for it");
        assert!(!health.is_found());
        assert!(health.is_usable());
        health.has_served();
        for _ in 0..3 {
            health.has_failed();
        }
        assert!(!health.is_found() && !health.is_usable(), "one good check is not enough");
        assert!(health.is_found() && health.is_usable());
    }

    /// One that answers checks and fails requests must not be asked for ever.
    #[test]
    fn checks_alone_do_not_keep_a_neighbour_up() {
        let health = Health::new(3, 2);
        for _ in 0..3 {
            health.has_failed();
            health.is_found();
        }
        // The last check was the first good one since it went down.
        assert!(!health.is_usable());
    }

    #[test]
    fn who_lied_has_to_show_itself_good_for_a_while() {
        let health = Health::new(3, 2);
        health.is_not_to_be_trusted();
        assert!(!health.is_usable());
        assert!(!health.is_found() && !health.is_usable());
        assert!(health.is_found() && health.is_usable());
    }
}
