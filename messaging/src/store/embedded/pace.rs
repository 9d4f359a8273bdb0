//! The pace of work that nobody waits for.
//!
//! Such work shares a core with the threads that serve. However little of it the kernel grants a thread that yields, it
//! grants that in pieces of a millisecond or two, and whoever is woken meanwhile waits so long. A step of a tenth of a
//! millisecond with a rest behind it holds nobody up, and gets as much done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The rest after a step. The kernel adds some 50 us.
const REST: Duration = Duration::from_micros(400);

/// How fast to go.
#[derive(Debug, Default)]
pub(super) struct Pace {
    hurry: AtomicBool,
}

impl Pace {
    /// Says whether somebody waits for the work after all.
    pub(super) fn hurry(&self, hurry: bool) {
        self.hurry.store(hurry, Ordering::Relaxed);
    }

    /// Rests after a step.
    pub(super) fn rest(&self) {
        if !self.hurry.load(Ordering::Relaxed) {
            std::thread::sleep(REST);
        }
    }
}
