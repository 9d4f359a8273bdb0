//! Who may write to an upload: the newest claim, and nobody else.
//!
//! A request that lost its client may sit in a write when its successor arrives. If it wrote after that, it would
//! change bytes that the successor acknowledged. So each upload that is being written has a slot with the number of its
//! newest claim, its *epoch*; every write holds the slot's lock from the check of its epoch to the end of the write. A slot knows
//! this process only; an engine that several share has to fence the others by what it stores.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use waxwing_protocol::UploadId;

use crate::store::{StoreError, StoreErrorKind};

/// The slots of all uploads being written. A slot lives as long as somebody holds it.
#[derive(Debug, Default)]
pub(super) struct Slots(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    slots: HashMap<UploadId, Weak<tokio::sync::Mutex<u64>>>,
    /// Dead entries are swept out when the table has grown past this, so that sweeping costs nothing on average.
    sweep_at: usize,
}

/// How long a claim waits for a write that is under way. A store that takes longer has a problem of its own.
pub(super) const CLAIM_WAIT: Duration = Duration::from_secs(2);

/// The fewest entries worth sweeping.
const SWEEP_MIN: usize = 1024;

/// An upload's slot.
#[derive(Clone, Debug)]
pub(super) struct Slot(Arc<tokio::sync::Mutex<u64>>);

/// A slot held: nobody else writes or claims.
#[derive(Debug)]
pub(super) struct SlotGuard(OwnedMutexGuard<u64>);

impl Slots {
    /// The slot of upload `id`.
    pub(super) fn get(&self, id: UploadId) -> Slot {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = table.slots.get(&id).and_then(Weak::upgrade) {
            return Slot(slot);
        }
        if table.slots.len() >= table.sweep_at {
            table.slots.retain(|_, slot| slot.strong_count() > 0);
            table.sweep_at = (table.slots.len() * 2).max(SWEEP_MIN);
        }
        let slot = Arc::default();
        table.slots.insert(id, Arc::downgrade(&slot));
        Slot(slot)
    }

    /// Whether anybody holds a claim on upload `id`.
    pub(super) fn is_taken(&self, id: UploadId) -> bool {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.slots.get(&id).is_some_and(|slot| slot.strong_count() > 0)
    }
}

impl Slot {
    /// Takes the slot, waiting at most `wait` for whoever has it.
    pub(super) async fn lock(&self, wait: Duration) -> Result<SlotGuard, StoreError> {
        tokio::time::timeout(wait, Arc::clone(&self.0).lock_owned())
            .await
            .map(SlotGuard)
            .map_err(|_| StoreError::new(StoreErrorKind::Busy, "claiming an upload"))
    }

    /// Takes the slot for the claim numbered `epoch`.
    pub(super) async fn enter(&self, epoch: u64) -> Result<SlotGuard, StoreError> {
        let guard = SlotGuard(Arc::clone(&self.0).lock_owned().await);
        if guard.epoch() == epoch {
            Ok(guard)
        } else {
            Err(StoreError::new(StoreErrorKind::Stale, "writing to an upload"))
        }
    }
}

impl SlotGuard {
    /// The newest claim's number.
    pub(super) fn epoch(&self) -> u64 {
        *self.0
    }

    /// Numbers a new claim, higher than any before and than `stored`; all earlier claims are stale from now on.
    pub(super) fn bump(&mut self, stored: u64) -> u64 {
        *self.0 = self.epoch().max(stored) + 1;
        self.epoch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uploads come and go by the million; the table of those in progress must not remember them all.
    #[test]
    fn slots_nobody_holds_are_forgotten() {
        let slots = Slots::default();
        let held = slots.get(UploadId::from_bytes([0xFF; 16]));
        for n in 0..10 * SWEEP_MIN as u128 {
            slots.get(UploadId::from_bytes(n.to_be_bytes()));
        }
        assert!(slots.0.lock().unwrap().slots.len() <= 2 * SWEEP_MIN);
        assert!(slots.is_taken(UploadId::from_bytes([0xFF; 16])));
        drop(held);
        assert!(!slots.is_taken(UploadId::from_bytes([0xFF; 16])));
    }
}
