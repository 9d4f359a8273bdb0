//! Tombstones: what was purged, so that nothing that was on its way brings it back.
//!
//! A fill that began before a purge ends after it, and would file what nobody may have any more. So each fill carries
//! the *era* in which it began, each purge begins another, and what is older than its blob's tombstone is not filed.
//!
//! Promises:
//! - Filing and purging exclude one another: what is filed is seen by the purge after it, or refused.
//! - The memory is bounded. When the oldest tombstone has to go, everything of its era and before is refused: a fill
//!   that slow is fetched again, rather than a purge forgotten.

use std::collections::{HashMap, VecDeque};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use waxwing_protocol::BlobId;

/// Tombstones remembered at once, about 8 MB. Fills end within minutes; at a thousand purges a second this is a minute,
/// and beyond it the oldest fills are fetched again.
const TOMBSTONES_MAX: usize = 65_536;

/// A time between two purges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Era(u64);

#[derive(Debug, Default)]
struct Buried {
    now: u64,
    /// What began before this is refused, whatever its blob.
    floor: u64,
    by_id: HashMap<BlobId, u64>,
    in_order: VecDeque<(BlobId, u64)>,
}

/// What was purged lately.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    buried: RwLock<Buried>,
}

impl Tombstones {
    /// The era that something begins in now.
    pub(crate) fn era(&self) -> Era {
        Era(self.read().now)
    }

    /// Files something of blob `id` that began in `era`; `None` when it was purged since. A purge waits for `file`.
    pub(crate) fn admit<T>(&self, id: BlobId, era: Era, file: impl FnOnce() -> T) -> Option<T> {
        let buried = self.read();
        buried.allow(id, era).then(file)
    }

    /// Whether something of blob `id` that began in `era` may still be filed.
    pub(crate) fn allow(&self, id: BlobId, era: Era) -> bool {
        self.read().allow(id, era)
    }

    /// Buries blob `id`.
    pub(crate) fn bury(&self, id: BlobId) {
        let mut buried = self.write();
        buried.now += 1;
        let now = buried.now;
        buried.by_id.insert(id, now);
        buried.in_order.push_back((id, now));
        if buried.in_order.len() > TOMBSTONES_MAX
            && let Some((oldest, era)) = buried.in_order.pop_front()
        {
            buried.floor = era;
            // It may have been buried again since.
            if buried.by_id.get(&oldest) == Some(&era) {
                buried.by_id.remove(&oldest);
            }
        }
    }

    /// Buries everything.
    pub(crate) fn bury_all(&self) {
        let mut buried = self.write();
        buried.now += 1;
        buried.floor = buried.now;
        buried.by_id.clear();
        buried.in_order.clear();
    }

    fn read(&self) -> RwLockReadGuard<'_, Buried> {
        // Nothing under this lock can panic half-way through a change.
        self.buried.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Buried> {
        self.buried.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buried {
    fn allow(&self, id: BlobId, Era(era): Era) -> bool {
        era >= self.floor && self.by_id.get(&id).is_none_or(|buried| era >= *buried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BlobId = BlobId::from_bytes([1; 32]);
    const OTHER: BlobId = BlobId::from_bytes([2; 32]);

    #[test]
    fn what_began_before_a_purge_is_not_filed_and_what_began_after_is() {
        let tombstones = Tombstones::default();
        let before = tombstones.era();
        tombstones.bury(ID);
        assert_eq!(tombstones.admit(ID, before, || ()), None);
        assert_eq!(tombstones.admit(OTHER, before, || ()), Some(()));
        assert_eq!(tombstones.admit(ID, tombstones.era(), || ()), Some(()), "a blob may come again");
        tombstones.bury_all();
        assert_eq!(tombstones.admit(OTHER, before, || ()), None);
    }

    /// A forgotten tombstone must not become a way back.
    #[test]
    fn when_tombstones_are_forgotten_what_is_as_old_is_refused() {
        let tombstones = Tombstones::default();
        let before = tombstones.era();
        tombstones.bury(ID);
        let after = tombstones.era();
        for n in 0..TOMBSTONES_MAX as u64 {
            tombstones.bury(BlobId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes()));
        }
        assert_eq!(tombstones.read().by_id.len(), TOMBSTONES_MAX);
        assert!(!tombstones.allow(ID, before) && !tombstones.allow(OTHER, before));
        assert!(tombstones.allow(ID, after));
    }
}
