//! The memory tier: what was verified, for as long as it earns its place.
//!
//! Without a bound in bytes a cache is a leak; without weighing how often a thing is asked for, one film pushes out
//! every photo of the day. moka (TinyLFU) does both.
//!
//! Units: a blob of up to one chunk group (64 KiB) is one entry, found in one look-up. A larger blob has a *card* (its
//! size and outboard) and slices of 1 MiB, each an entry of its own.
//!
//! Promise: what is in here was checked against the id it is filed under. Entries are immutable; an evicted one lives
//! on in the hands of whoever is reading it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use waxwing_protocol::blob::{GROUP_BYTES, Outboard, outboard_bytes};
use waxwing_protocol::{BlobId, Timestamp};

use crate::slice::Slice;

/// How long the edge remembers that the origin has no such blob: long enough to shield it from a storm, short enough
/// that a blob which arrives a moment late is not missed.
const ABSENT_LIFETIME: Duration = Duration::from_secs(2);

/// How many absent blobs are remembered at once, about 1 MB: ids are free to invent.
const ABSENT_MAX: u64 = 10_000;

/// Bytes of memory an entry costs beside its content: key, hash table, frequency and order lists of moka.
const ENTRY_BYTES: usize = 256;

/// What is known of a blob that has more than one entry: its size and its outboard.
#[derive(Debug)]
pub(crate) struct Card {
    /// Checked against the id; holds the size.
    pub(crate) outboard: Outboard,
    /// When the fill that brought it began.
    pub(crate) stored: Timestamp,
    /// Whether the last chunk group was verified: until then the size is the origin's word alone, since the tree over
    /// the groups does not hold it.
    size_proven: AtomicBool,
}

impl Card {
    /// The card of a blob whose size nothing but the outboard's length speaks for yet.
    pub(crate) fn new(outboard: Outboard, stored: Timestamp) -> Self {
        // An empty blob has no group to wait for: its id was compared with the hash of nothing.
        let size_proven = AtomicBool::new(outboard.blob_bytes() == 0);
        Self { outboard, stored, size_proven }
    }

    /// The blob's size in bytes; provisional until [`Self::is_size_proven`].
    pub(crate) const fn blob_bytes(&self) -> u64 {
        self.outboard.blob_bytes()
    }

    /// Whether the blob's last chunk group has been verified, and its size with it.
    pub(crate) fn is_size_proven(&self) -> bool {
        self.size_proven.load(Ordering::Relaxed)
    }

    /// Notes that the last chunk group was verified.
    pub(crate) fn size_is_proven(&self) {
        self.size_proven.store(true, Ordering::Relaxed);
    }
}

/// A blob of one chunk group at most, verified.
#[derive(Clone, Debug)]
pub(crate) struct Whole {
    /// All its bytes.
    pub(crate) bytes: Bytes,
    /// When the fill that brought it began.
    pub(crate) stored: Timestamp,
}

/// What a blob's first look-up finds.
#[derive(Clone, Debug)]
pub(crate) enum Head {
    /// All of it.
    Whole(Whole),
    /// Its size and outboard; its bytes are in slices.
    Card(Arc<Card>),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    Head(BlobId),
    Slice(BlobId, u64),
}

#[derive(Clone)]
enum Entry {
    Head(Head),
    Slice(Slice),
}

/// The memory tier.
pub(crate) struct Cache {
    entries: moka::sync::Cache<Key, Entry>,
    absent: moka::sync::Cache<BlobId, ()>,
}

impl Cache {
    /// A tier of `memory_bytes` at most.
    pub(crate) fn new(memory_bytes: u64) -> Self {
        let entries = moka::sync::Cache::builder().max_capacity(memory_bytes).weigher(|_, entry| weight(entry)).build();
        let absent = moka::sync::Cache::builder().max_capacity(ABSENT_MAX).time_to_live(ABSENT_LIFETIME).build();
        Self { entries, absent }
    }

    /// What is known of blob `id`.
    pub(crate) fn head(&self, id: BlobId) -> Option<Head> {
        match self.entries.get(&Key::Head(id))? {
            Entry::Head(head) => Some(head),
            Entry::Slice(_) => None,
        }
    }

    /// Slice `index` of blob `id`; a blob kept whole is its own first slice.
    pub(crate) fn slice(&self, id: BlobId, index: u64) -> Option<Slice> {
        match self.entries.get(&Key::Slice(id, index)) {
            Some(Entry::Slice(slice)) => Some(slice),
            Some(Entry::Head(_)) => None,
            None => self.whole(id, index).map(|whole| Slice::new(&[whole.bytes])),
        }
    }

    /// Whether slice `index` of blob `id` is here.
    pub(crate) fn has_slice(&self, id: BlobId, index: u64) -> bool {
        self.entries.contains_key(&Key::Slice(id, index)) || self.whole(id, index).is_some()
    }

    /// The blob kept whole of which `index` is a slice: the first, or none.
    fn whole(&self, id: BlobId, index: u64) -> Option<Whole> {
        if index > 0 {
            return None;
        }
        match self.head(id)? {
            Head::Whole(whole) => Some(whole),
            Head::Card(_) => None,
        }
    }

    /// Whether the origin said a moment ago that it has no blob `id`.
    pub(crate) fn is_absent(&self, id: BlobId) -> bool {
        self.absent.contains_key(&id)
    }

    /// Files what is known of blob `id`.
    pub(crate) fn put_head(&self, id: BlobId, head: Head) {
        self.entries.insert(Key::Head(id), Entry::Head(head));
    }

    /// Files a verified slice of blob `id`.
    pub(crate) fn put_slice(&self, id: BlobId, index: u64, slice: Slice) {
        self.entries.insert(Key::Slice(id, index), Entry::Slice(slice));
    }

    /// Remembers for a moment that the origin has no blob `id`.
    pub(crate) fn put_absent(&self, id: BlobId) {
        self.absent.insert(id, ());
    }

    /// Drops `card`, whose size turned out to be false, unless another has taken its place.
    pub(crate) fn drop_card(&self, card: &Arc<Card>) {
        let id = card.outboard.id();
        if matches!(self.head(id), Some(Head::Card(filed)) if Arc::ptr_eq(&filed, card)) {
            self.entries.invalidate(&Key::Head(id));
        }
    }

    /// Bytes of memory in use, as weighed, once pending evictions are done.
    #[cfg(test)]
    pub(crate) fn weighed_bytes(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.weighted_size()
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("entries", &self.entries.entry_count()).finish_non_exhaustive()
    }
}

/// Bytes an entry takes; at most what moka can weigh in one entry, which is far above the largest outboard allowed.
fn weight(entry: &Entry) -> u32 {
    let content = match entry {
        Entry::Head(Head::Whole(whole)) => whole.bytes.len() as u64,
        Entry::Head(Head::Card(card)) => outboard_bytes(card.blob_bytes()),
        Entry::Slice(slice) => slice.weight() as u64,
    };
    u32::try_from(content + ENTRY_BYTES as u64).unwrap_or(u32::MAX)
}

/// Whether a blob of `blob_bytes` is kept as one entry rather than in slices.
pub(crate) const fn is_whole(blob_bytes: u64) -> bool {
    blob_bytes <= GROUP_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slice::SLICE_BYTES;

    const ID: BlobId = BlobId::from_bytes([7; 32]);

    fn slice() -> Slice {
        Slice::new(&[Bytes::from(vec![1; SLICE_BYTES as usize])])
    }

    #[test]
    fn the_tier_never_holds_more_than_it_may() {
        let cache = Cache::new(8 * SLICE_BYTES);
        for index in 0..100 {
            cache.put_slice(ID, index, slice());
            assert!(cache.weighed_bytes() <= 8 * SLICE_BYTES);
        }
        assert!(cache.weighed_bytes() > 6 * SLICE_BYTES, "it is not merely empty");
    }

    /// A reader in the middle of a slice is not cut off when the slice loses its place.
    #[test]
    fn an_evicted_slice_lives_on_in_its_readers_hands() {
        let cache = Cache::new(4 * SLICE_BYTES);
        cache.put_slice(ID, 0, slice());
        let held = cache.slice(ID, 0).unwrap();
        cache.entries.invalidate_all();
        assert!(cache.slice(ID, 0).is_none());
        assert_eq!(held.group(0).unwrap().len() as u64, SLICE_BYTES);
    }

    #[test]
    fn only_the_card_that_lied_is_dropped() {
        let cache = Cache::new(4 * SLICE_BYTES);
        let id = BlobId::from_bytes(*blake3::hash(b"x").as_bytes());
        let card = || Arc::new(Card::new(Outboard::verify(id, 1, &[]).unwrap(), Timestamp::from_secs(1)));
        let (old, new) = (card(), card());
        cache.put_head(id, Head::Card(Arc::clone(&new)));
        cache.drop_card(&old);
        assert!(cache.head(id).is_some());
        cache.drop_card(&new);
        assert!(cache.head(id).is_none());
    }
}
