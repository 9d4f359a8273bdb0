//! Bytes on their way to S3, and the memory that all of them share.
//!
//! A part is sent from memory, since it may have to be sent again. Without a bound over all uploads, a thousand slow
//! ones would each keep most of a part.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::{StoreError, StoreErrorKind};

/// The unit in which memory is counted.
const UNIT_BYTES: usize = 16 * 1024;

/// Memory for bytes on their way, over all uploads.
#[derive(Clone, Debug)]
pub(in crate::store::s3) struct Budget {
    units: Arc<Semaphore>,
    total: usize,
}

/// A share of it.
pub(super) type Share = Option<OwnedSemaphorePermit>;

impl Budget {
    pub(in crate::store::s3) fn new(bytes: usize) -> Self {
        let total = bytes / UNIT_BYTES;
        Self { units: Arc::new(Semaphore::new(total)), total }
    }

    /// Whether less than half of it is left.
    pub(super) fn is_scarce(&self) -> bool {
        self.units.available_permits() < self.total / 2
    }

    /// Bytes that nobody uses.
    #[cfg(test)]
    pub(in crate::store::s3) fn free_bytes(&self) -> usize {
        self.units.available_permits() * UNIT_BYTES
    }
}

/// Consecutive bytes of one upload, and their share of the memory.
///
/// Nobody who holds a share waits for more of it: two who did would wait for one another.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    bytes: BytesMut,
    share: Share,
}

impl Buffer {
    pub(super) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// The bytes from the `from`th on.
    pub(super) fn copy_from(&self, from: u64) -> Bytes {
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(self.bytes.len());
        Bytes::copy_from_slice(&self.bytes[from..])
    }

    pub(super) fn slice(&self, from: u64, bytes: u64) -> Option<&[u8]> {
        let from = usize::try_from(from).ok()?;
        self.bytes.get(from..from.checked_add(usize::try_from(bytes).ok()?)?)
    }

    /// Adds bytes if there is memory for them.
    pub(super) fn try_push(&mut self, budget: &Budget, bytes: &[u8]) -> bool {
        let held = self.share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let needed = (self.bytes.len() + bytes.len()).div_ceil(UNIT_BYTES).saturating_sub(held);
        let Ok(units) = u32::try_from(needed) else { return false };
        if units > 0 {
            let Ok(more) = Arc::clone(&budget.units).try_acquire_many_owned(units) else { return false };
            match &mut self.share {
                Some(share) => share.merge(more),
                share => *share = Some(more),
            }
        }
        self.bytes.extend_from_slice(bytes);
        true
    }

    /// Waits, holding nothing, until there is memory for `bytes` bytes. Only when it is empty.
    pub(super) async fn reserve(&mut self, budget: &Budget, bytes: u64) -> Result<(), StoreError> {
        debug_assert!(self.bytes.is_empty(), "whoever waits for memory holds none");
        self.clear();
        let refused = || StoreError::new(StoreErrorKind::Other, "waiting for memory");
        let units = usize::try_from(bytes).map_err(|_| refused())?.div_ceil(UNIT_BYTES).min(budget.total);
        let units = u32::try_from(units).map_err(|_| refused())?;
        let share = Arc::clone(&budget.units).acquire_many_owned(units).await;
        self.share = Some(share.map_err(|error| refused().because(error))?);
        Ok(())
    }

    /// Adds bytes for which memory was reserved.
    pub(super) fn push_reserved(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// All bytes, and their share: to be held as long as they are.
    pub(super) fn take(&mut self) -> (Bytes, Share) {
        (std::mem::take(&mut self.bytes).freeze(), self.share.take())
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn memory_is_counted_once_and_given_back() {
        let budget = Budget::new(4 * UNIT_BYTES);
        let mut first = Buffer::default();
        for _ in 0..UNIT_BYTES {
            assert!(first.try_push(&budget, &[1, 2]));
        }
        assert_eq!(budget.free_bytes(), 2 * UNIT_BYTES);
        let mut second = Buffer::default();
        assert!(!second.try_push(&budget, &vec![0; 3 * UNIT_BYTES]));
        let (bytes, share) = first.take();
        assert_eq!((bytes.len(), budget.free_bytes()), (2 * UNIT_BYTES, 2 * UNIT_BYTES));
        drop(share);
        second.reserve(&budget, 3 * UNIT_BYTES as u64).await.unwrap();
        assert_eq!(budget.free_bytes(), UNIT_BYTES);
        second.clear();
        assert_eq!(budget.free_bytes(), 4 * UNIT_BYTES);
    }
}
