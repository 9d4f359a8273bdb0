//! Changing an object that others change too: one of a process after the other, and again when another process came
//! before.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};

use crate::store::{StoreError, StoreErrorKind};

/// How often a change is tried that others keep coming before: enough for a hundred at once, each of whom one lets
/// through.
const ATTEMPTS_MAX: u32 = 100;

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// Attempts at one change.
#[derive(Debug)]
pub(super) struct Attempts {
    doing: &'static str,
    made: u32,
    most: u32,
}

impl Attempts {
    pub(super) const fn new(doing: &'static str) -> Self {
        Self::at_most(ATTEMPTS_MAX, doing)
    }

    /// Fewer than usual.
    pub(super) const fn at_most(most: u32, doing: &'static str) -> Self {
        Self { doing, made: 0, most }
    }

    /// Waits before the next attempt, a random time, so that those who met do not meet again. An error when it is time to
    /// give up.
    pub(super) async fn pause(&mut self) -> Result<(), StoreError> {
        self.made += 1;
        if self.made >= self.most {
            return Err(StoreError::new(StoreErrorKind::Busy, self.doing));
        }
        let longest = Duration::from_millis(2 << self.made.min(7)).min(PAUSE_MAX);
        let mut dice = [0; 1];
        // Without randomness the pause is the longest.
        let share = getrandom::fill(&mut dice).map_or(u32::from(u8::MAX), |()| dice[0].into());
        tokio::time::sleep(longest * share / u32::from(u8::MAX)).await;
        Ok(())
    }
}

/// Turns at changing objects of one kind: those of this process who change the same one wait for one another, instead of
/// all trying at once and all but one in vain.
#[derive(Debug)]
pub(super) struct Turns(Vec<Mutex<()>>);

/// Turns there are; objects that share one wait without need.
const TURNS: u64 = 256;

impl Default for Turns {
    fn default() -> Self {
        Self((0..TURNS).map(|_| Mutex::default()).collect())
    }
}

impl Turns {
    /// The turn at the object of `id`.
    pub(super) async fn take(&self, id: impl Hash) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        id.hash(&mut hasher);
        let turn = usize::try_from(hasher.finish() % TURNS).expect("turns are few");
        self.0[turn].lock().await
    }
}
