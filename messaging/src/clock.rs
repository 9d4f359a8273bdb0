//! The clock that decides when messages expire.
//!
//! A server whose wall clock jumps a day ahead would find every short-lived message expired and erase it. So expiry
//! follows the wall clock only while that agrees with the monotonic clock; after a jump it goes on from where it was,
//! says so once, and nothing is erased early.
//!
//! The monotonic clock is the one that runs on while the machine sleeps: with the other one, every suspended laptop would
//! wake up to a jump.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tracing::error;
use waxwing_protocol::Timestamp;

/// How far the wall clock may drift from the monotonic clock before that counts as a jump: more than slewing does.
const JUMP: Duration = Duration::from_secs(5 * 60);

/// Tells the time without jumps.
#[derive(Debug)]
pub(crate) struct Clock {
    wall: Timestamp,
    started: Duration,
    jumped: AtomicBool,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { wall: SystemTime::now().into(), started: since_boot(), jumped: AtomicBool::new(false) }
    }

    /// Now, for deciding what is kept.
    pub(crate) fn now(&self) -> Timestamp {
        self.judge(SystemTime::now().into(), since_boot().saturating_sub(self.started))
    }

    /// Now as the world reads it: for grants, which other servers check against their own clocks.
    pub(crate) fn wall(&self) -> Timestamp {
        SystemTime::now().into()
    }

    fn judge(&self, wall: Timestamp, elapsed: Duration) -> Timestamp {
        let expected = self.wall.plus(elapsed);
        let jumped = wall.since(expected) > JUMP || expected.since(wall) > JUMP;
        if jumped != self.jumped.swap(jumped, Ordering::Relaxed) && jumped {
            error!(wall = %wall, expected = %expected, "the system clock jumped: messages expire by the monotonic clock");
        }
        if jumped { expected } else { wall }
    }
}

/// Time since the machine has started, asleep or awake.
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let now = clock_gettime(ClockId::Boottime);
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let now = clock_gettime(ClockId::Monotonic);
    Duration::try_from(now).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It follows the wall clock: a machine that slept has not jumped.
    #[test]
    fn time_since_boot_runs_on() {
        let (before, clock) = (since_boot(), Clock::start());
        std::thread::sleep(Duration::from_millis(20));
        assert!(since_boot() >= before + Duration::from_millis(20));
        assert!(Timestamp::from(SystemTime::now()).since(clock.now()) < Duration::from_secs(1));
    }

    #[test]
    fn a_jump_of_a_day_moves_nothing_and_a_small_correction_is_followed() {
        let start = Timestamp::from_secs(1_000_000);
        let clock = Clock { wall: start, started: Duration::ZERO, jumped: AtomicBool::new(false) };
        let minute = Duration::from_secs(60);
        let day = Duration::from_secs(86_400);
        assert_eq!(clock.judge(start.plus(day), minute), start.plus(minute));
        assert_eq!(clock.judge(Timestamp::from_secs(1_000_000 - 86_400), minute), start.plus(minute));
        let corrected = start.plus(minute * 2);
        assert_eq!(clock.judge(corrected, minute), corrected);
    }
}
