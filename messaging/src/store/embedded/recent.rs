//! What was committed lately: in the journal and in memory, and not in the engine yet.
//!
//! Most messages are acked within a second. Given to the engine at once, each would be written three times more (its own
//! journal, a table, the tables that are merged with it) and erased by a tombstone that every later read steps over; and
//! the threads that do this compete with those that deliver. So changes stay here for a while, in a *generation*: a row
//! that is acked before its generation is full never gets to the engine.
//!
//! One generation takes changes. When it is full it is *frozen*: it is written to the engine (`checkpoint.rs`), and
//! forgotten once it is there. A read looks into both before it asks the engine.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use fjall::Slice;

use super::batch::{Batch, Change};
use super::pace::Pace;

/// Tables that stand in generations.
pub(super) const TABLES: usize = 5;

/// The table of the waiting messages, whose keys are written once and never again.
pub(super) const ROWS: usize = 2;

/// The table of the sends.
pub(super) const SENDS: usize = 3;

/// Entries let go of before a rest.
const DROPPED_AT_ONCE: usize = 1024;

/// What a generation says of a key.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// A record of a key that nobody knew before: erased, it leaves nothing behind.
    Fresh(Slice),
    Put(Slice),
    Removed,
}

impl Entry {
    pub(super) fn value(&self) -> Option<&Slice> {
        match self {
            Self::Fresh(value) | Self::Put(value) => Some(value),
            Self::Removed => None,
        }
    }
}

type Maps = [BTreeMap<Slice, Entry>; TABLES];

/// Changes of a while, the last of each key.
#[derive(Debug, Default)]
pub(super) struct Generation(RwLock<Maps>);

impl Generation {
    /// Takes the changes of a batch. `replayed`: they come from a journal, and how much of it the engine has seen is
    /// not known: then what is erased leaves its mark.
    pub(super) fn apply(&self, batch: Batch, replayed: bool) {
        let mut maps = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for Change { table, key, value } in batch.0 {
            let map = &mut maps[table];
            match value {
                Some(value) if table == ROWS && !replayed && !map.contains_key(&key) => {
                    map.insert(key, Entry::Fresh(value));
                }
                Some(value) => {
                    map.insert(key, Entry::Put(value));
                }
                None if matches!(map.get(&key), Some(Entry::Fresh(_))) => {
                    map.remove(&key);
                }
                None => {
                    map.insert(key, Entry::Removed);
                }
            }
        }
    }

    pub(super) fn get(&self, table: usize, key: &[u8]) -> Option<Entry> {
        self.read()[table].get(key).cloned()
    }

    /// Up to `limit` entries of a table within bounds, by rising key.
    pub(super) fn part(&self, table: usize, bounds: (Bound<&[u8]>, Bound<&[u8]>), limit: usize) -> Vec<(Slice, Entry)> {
        if is_empty(bounds) {
            return Vec::new();
        }
        let maps = self.read();
        let entries = maps[table].range::<[u8], _>(bounds).take(limit);
        entries.map(|(key, entry)| (key.clone(), entry.clone())).collect()
    }

    /// Lets go of it a little at a time.
    pub(super) fn dismantle(self, pace: &Pace) {
        let maps = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (nth, entry) in (1..).zip(maps.into_iter().flatten()) {
            drop(entry);
            if nth % DROPPED_AT_ONCE == 0 {
                pace.rest();
            }
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether bounds contradict each other: a map would panic.
fn is_empty((from, to): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match (from, to) {
        (Bound::Excluded(from), Bound::Excluded(to)) => from >= to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => from > to,
        _ => false,
    }
}

/// The generations of a store.
#[derive(Debug, Default)]
pub(super) struct Recent(RwLock<Slots>);

#[derive(Clone, Debug, Default)]
struct Slots {
    active: Arc<Generation>,
    frozen: Option<Arc<Generation>>,
}

impl Recent {
    /// A store that begins with a frozen generation.
    pub(super) fn with_frozen(frozen: Option<Arc<Generation>>) -> Self {
        Self(RwLock::new(Slots { active: Arc::default(), frozen }))
    }

    /// The generation that takes changes.
    pub(super) fn active(&self) -> Arc<Generation> {
        self.slots().active.clone()
    }

    /// Begins a new generation and gives the old one, unless one is frozen already.
    pub(super) fn freeze(&self) -> Option<Arc<Generation>> {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if slots.frozen.is_some() {
            return None;
        }
        slots.frozen = Some(std::mem::take(&mut slots.active));
        slots.frozen.clone()
    }

    /// The generation that is being written to the engine.
    pub(super) fn frozen(&self) -> Option<Arc<Generation>> {
        self.slots().frozen.clone()
    }

    /// Forgets the frozen generation: the engine has it.
    pub(super) fn thaw(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).frozen = None;
    }

    /// What the newest generation that knows a key says of it.
    pub(super) fn get(&self, table: usize, key: &[u8]) -> Option<Entry> {
        let slots = self.slots();
        let active = slots.active.get(table, key);
        active.or_else(|| slots.frozen.as_ref()?.get(table, key))
    }

    /// The generations, the newer one first, and what `read` makes meanwhile of the engine below them: the two belong
    /// together.
    pub(super) fn with<T>(&self, read: impl FnOnce() -> T) -> (Vec<Arc<Generation>>, T) {
        let slots = self.slots();
        let generations = std::iter::once(slots.active.clone()).chain(slots.frozen.clone()).collect();
        (generations, read())
    }

    fn slots(&self) -> RwLockReadGuard<'_, Slots> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}
