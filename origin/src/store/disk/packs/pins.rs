//! Which packs stay although no record names them: the one being filled, and those with entries on their way to a record.
//!
//! An entry is durable before its record is committed. In between a compactor sees a pack that nobody names, and would
//! remove what is about to be acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The newest pack, and how many entries of which packs are on their way.
#[derive(Debug)]
pub(super) struct Pins(Mutex<State>);

#[derive(Debug)]
struct State {
    newest: Option<u64>,
    pinned: BTreeMap<u64, usize>,
}

/// Holds a pack until it is dropped.
#[derive(Debug)]
pub(super) struct Pin {
    pins: Arc<Pins>,
    pack: u64,
}

impl Pins {
    /// Nothing pinned; the newest pack, if there is one, goes on being filled.
    pub(super) const fn new(newest: Option<u64>) -> Self {
        Self(Mutex::new(State { newest, pinned: BTreeMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pack being filled.
    pub(super) fn newest(&self) -> Option<u64> {
        self.state().newest
    }

    /// Lets `pack` be the one being filled.
    pub(super) fn begin(&self, pack: u64) {
        self.state().newest = Some(pack);
    }

    /// Holds `pack`, which is the newest.
    pub(super) fn pin(self: &Arc<Self>, pack: u64) -> Pin {
        *self.state().pinned.entry(pack).or_insert(0) += 1;
        Pin { pins: Arc::clone(self), pack }
    }

    /// Whether nothing is added to `pack` any more and no entry of it waits for its record.
    pub(super) fn is_settled(&self, pack: u64) -> bool {
        let state = self.state();
        state.newest.is_some_and(|newest| pack < newest) && !state.pinned.contains_key(&pack)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.pins.state();
        if let Some(count) = state.pinned.get_mut(&self.pack) {
            *count -= 1;
            if *count == 0 {
                state.pinned.remove(&self.pack);
            }
        }
    }
}
