//! Bytes on their way to S3, and the memory that all of them share.
//!
//! A part is sent from memory, since it may have to be sent again. Without a bound over all uploads, a thousand slow
//! ones would each keep most of a part.
//!
//! What is counted is what is there: a share of the memory belongs to a *block* of it and comes back when the block is
//! freed, not when somebody has done with it. What is sent is the block itself ([`Buffer::lend`], [`Buffer::take`]), so
//! what waits to be sent, and what is kept to be sent again, has no second copy and is counted as long as anybody has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::store::{StoreError, StoreErrorKind};

/// The unit in which memory is counted.
const UNIT_BYTES: usize = 16 * 1024;

/// Blocks up to this size grow by doubling, so that a slow client has little more memory than bytes. One that needs more
/// gets room for a whole part at once.
pub(super) const SMALL_BYTES: usize = 1 << 20;

/// The room that is asked for a larger block, whatever of it will be used. Beyond 32 MiB glibc's allocator gives a block
/// pages of its own, which it gives back when the block is freed; below, blocks come from heaps in which they leave gaps,
/// and which stay as large as they ever were. The binary's own allocator, jemalloc, came out the same. Pages that are not used
/// cost nothing.
const OWN_PAGES_BYTES: usize = 33 << 20;

/// Memory for bytes on their way, over all uploads.
#[derive(Clone, Debug)]
pub(in crate::store::s3) struct Budget {
    units: Arc<Semaphore>,
    total: usize,
    counts: Arc<Counts>,
}

/// Bytes in blocks, whoever has them, counted beside the shares.
#[derive(Debug, Default)]
struct Counts {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Budget {
    pub(in crate::store::s3) fn new(bytes: usize) -> Self {
        let total = bytes / UNIT_BYTES;
        Self { units: Arc::new(Semaphore::new(total)), total, counts: Arc::default() }
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

    /// Bytes in blocks: how many there are, and how many there were at most.
    #[cfg(test)]
    pub(in crate::store::s3) fn held_bytes(&self) -> (usize, usize) {
        (self.counts.now.load(Ordering::SeqCst), self.counts.most.load(Ordering::SeqCst))
    }

    /// A block of `bytes` bytes, if there is memory for it.
    fn try_block(&self, bytes: usize) -> Option<Block> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).ok()?;
        let share = Arc::clone(&self.units).try_acquire_many_owned(units).ok()?;
        Some(Block::new(share, Arc::clone(&self.counts)))
    }
}

/// A piece of memory, and the share it is of the whole. The share comes back after the bytes are freed.
#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    share: OwnedSemaphorePermit,
    counts: Arc<Counts>,
}

impl Block {
    fn new(share: OwnedSemaphorePermit, counts: Arc<Counts>) -> Self {
        let mut block = Self { bytes: Vec::new(), share, counts };
        block.make_room();
        block
    }

    /// Bytes that its share is for.
    fn limit(&self) -> usize {
        self.share.num_permits() * UNIT_BYTES
    }

    /// Asks for the room that its share is for.
    fn make_room(&mut self) {
        let (limit, len) = (self.limit(), self.bytes.len());
        let has_pages = limit > SMALL_BYTES && self.bytes.try_reserve_exact(OWN_PAGES_BYTES.max(limit) - len).is_ok();
        if !has_pages {
            self.bytes.reserve_exact(limit - len);
        }
    }

    /// Takes a larger share, if there is one.
    fn try_grow(&mut self, budget: &Budget, bytes: usize) -> bool {
        let units = bytes.div_ceil(UNIT_BYTES).saturating_sub(self.share.num_permits());
        let Ok(units) = u32::try_from(units) else { return false };
        let Ok(more) = Arc::clone(&budget.units).try_acquire_many_owned(units) else { return false };
        self.share.merge(more);
        self.make_room();
        true
    }

    fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.bytes.len() + bytes.len() <= self.limit(), "no more than its share");
        self.bytes.extend_from_slice(bytes);
        let now = self.counts.now.fetch_add(bytes.len(), Ordering::SeqCst) + bytes.len();
        self.counts.most.fetch_max(now, Ordering::SeqCst);
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.counts.now.fetch_sub(self.bytes.len(), Ordering::SeqCst);
    }
}

/// A block that somebody else has too.
struct Lent(Arc<Block>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Consecutive bytes of one upload.
///
/// Nobody who holds a share waits for more of it: two who did would wait for one another.
#[derive(Debug, Default)]
pub(super) struct Buffer(Option<Arc<Block>>);

impl Buffer {
    fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |block| &block.bytes)
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes().len() as u64
    }

    pub(super) fn slice(&self, from: u64, bytes: u64) -> Option<&[u8]> {
        let from = usize::try_from(from).ok()?;
        self.bytes().get(from..from.checked_add(usize::try_from(bytes).ok()?)?)
    }

    /// The bytes from the `from`th on, to be sent as they are. Nothing is added as long as somebody has them.
    pub(super) fn lend(&self, from: u64) -> Bytes {
        let Some(block) = &self.0 else { return Bytes::new() };
        let from = usize::try_from(from).unwrap_or(usize::MAX).min(block.bytes.len());
        Bytes::from_owner(Lent(Arc::clone(block))).slice(from..)
    }

    /// Adds bytes if there is memory for them; where the buffer has to grow, for `room` bytes in all.
    pub(super) fn try_push(&mut self, budget: &Budget, bytes: &[u8], room: usize) -> bool {
        if self.0.is_none() {
            self.0 = budget.try_block(room.max(bytes.len())).map(Arc::new);
        }
        // An answer may be there before everybody has let go of the request.
        let Some(block) = self.0.as_mut().and_then(Arc::get_mut) else { return false };
        let needed = block.bytes.len() + bytes.len();
        if needed > block.limit() && !block.try_grow(budget, room.max(needed)) {
            return false;
        }
        block.push(bytes);
        true
    }

    /// Waits, holding nothing, until there is memory for `bytes` bytes. Only when it is empty.
    pub(super) async fn reserve(&mut self, budget: &Budget, bytes: u64) -> Result<(), StoreError> {
        debug_assert!(self.0.is_none(), "whoever waits for memory holds none");
        self.clear();
        let refused = || StoreError::new(StoreErrorKind::Other, "waiting for memory");
        let units = usize::try_from(bytes).map_err(|_| refused())?.div_ceil(UNIT_BYTES).min(budget.total);
        let units = u32::try_from(units).map_err(|_| refused())?;
        let share = Arc::clone(&budget.units).acquire_many_owned(units).await;
        let share = share.map_err(|error| refused().because(error))?;
        self.0 = Some(Arc::new(Block::new(share, Arc::clone(&budget.counts))));
        Ok(())
    }

    /// Adds bytes for which memory was reserved.
    pub(super) fn push_reserved(&mut self, bytes: &[u8]) {
        if let Some(block) = self.0.as_mut().and_then(Arc::get_mut) {
            block.push(bytes);
        }
    }

    /// All bytes; their memory is counted until the last who has them lets go.
    pub(super) fn take(&mut self) -> Bytes {
        self.0.take().map_or_else(Bytes::new, |block| Bytes::from_owner(Lent(block)))
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        self.0 = None;
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
            assert!(first.try_push(&budget, &[1, 2], 0));
        }
        assert_eq!(budget.free_bytes(), 2 * UNIT_BYTES);
        let mut second = Buffer::default();
        assert!(!second.try_push(&budget, &vec![0; 3 * UNIT_BYTES], 0));
        let bytes = first.take();
        assert_eq!((bytes.len(), budget.free_bytes()), (2 * UNIT_BYTES, 2 * UNIT_BYTES));
        drop(bytes);
        second.reserve(&budget, 3 * UNIT_BYTES as u64).await.unwrap();
        assert_eq!(budget.free_bytes(), UNIT_BYTES);
        second.clear();
        assert_eq!((budget.free_bytes(), budget.held_bytes()), (4 * UNIT_BYTES, (0, 2 * UNIT_BYTES)));
    }

    /// A request that was given up may keep its body for a while, and so may one that is sent again.
    #[test]
    fn what_is_sent_is_the_buffer_and_counts_until_the_last_lets_go() {
        let budget = Budget::new(4 * UNIT_BYTES);
        let mut buffer = Buffer::default();
        assert!(buffer.try_push(&budget, &[7; 100], UNIT_BYTES));
        let tail = buffer.lend(40);
        assert!(!buffer.try_push(&budget, &[8], UNIT_BYTES), "nothing moves under whoever sends it");
        assert_eq!(tail.as_ptr(), buffer.slice(40, 1).unwrap().as_ptr(), "no copy");
        let again = tail.clone();
        drop(tail);
        buffer.clear();
        assert_eq!((budget.free_bytes(), budget.held_bytes().0), (3 * UNIT_BYTES, 100));
        drop(again);
        assert_eq!((budget.free_bytes(), budget.held_bytes().0), (4 * UNIT_BYTES, 0));
        assert!(buffer.try_push(&budget, &[8], UNIT_BYTES));
        assert_eq!(&buffer.take()[..], [8]);
    }

    /// Room for a part comes at once and does not move what is there, and no byte more than its share goes in.
    #[test]
    fn a_large_buffer_has_pages_of_its_own() {
        let budget = Budget::new(4 * SMALL_BYTES);
        let mut buffer = Buffer::default();
        assert!(buffer.try_push(&budget, &[1; 10], 2 * SMALL_BYTES));
        let block = buffer.0.as_ref().unwrap();
        assert!(block.bytes.capacity() >= OWN_PAGES_BYTES);
        let at = block.bytes.as_ptr();
        assert_eq!(budget.free_bytes(), 2 * SMALL_BYTES);
        assert!(buffer.try_push(&budget, &vec![2; 2 * SMALL_BYTES - 10], 0));
        assert_eq!(buffer.0.as_ref().unwrap().bytes.as_ptr(), at);
        assert!(!buffer.try_push(&budget, &vec![3; 2 * SMALL_BYTES + 1], 0));
        assert_eq!(budget.free_bytes(), 2 * SMALL_BYTES);
    }
}
