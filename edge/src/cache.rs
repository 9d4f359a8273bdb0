//! The cache: what was verified, for as long as it earns its place, in memory and beneath that on disk.
//!
//! Without a bound in bytes a cache is a leak; without weighing how often a thing is asked for, one film pushes out
//! every photo of the day. moka (TinyLFU) does both in memory, [`crate::disk`] on disk. What is on disk is brought to
//! memory before it is served, so that a unit that is hot is read and checked once.
//!
//! Units: a blob of up to one chunk group (64 KiB) is one entry, found in one look-up. A larger blob has a *card* (its
//! size and outboard) and slices of 1 MiB, each an entry of its own.
//!
//! Promises:
//! - What is in here was checked against the id it is filed under. Entries are immutable; an evicted one lives on in the
//!   hands of whoever is reading it.
//! - What was purged is not filed by anything that began before the purge.

pub(crate) mod held;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use waxwing_protocol::blob::{GROUP_BYTES, Outboard, outboard_bytes};
use waxwing_protocol::{BlobId, Timestamp};

use crate::disk::{self, Disk};
use crate::peers::Neighbour;
use crate::slice::{SLICE_GROUPS, Slice, slice_count, slice_range};
use crate::tombstones::{Era, Tombstones};

/// How many absent blobs are remembered at once, about 1 MB: ids are free to invent.
const ABSENT_MAX: u64 = 10_000;

/// Bytes of memory an entry costs beside its content: key, hash table, frequency and order lists of moka.
const ENTRY_BYTES: usize = 256;

/// Locks for bringing heads from disk to memory: two blobs share one once in a while, which costs one a disk read's time.
const LOADING_LOCKS: usize = 256;

/// What is known of a blob that has more than one entry: its size and its outboard.
#[derive(Debug)]
pub(crate) struct Card {
    /// Checked against the id; holds the size.
    pub(crate) outboard: Outboard,
    /// When the fill that brought it began.
    pub(crate) stored: Timestamp,
    /// The edge that told it; `None` when it was the origin, or this edge's own disk.
    pub(crate) told_by: Option<Arc<Neighbour>>,
    /// Whether the last chunk group was verified: until then the size is the origin's word alone, since the tree over
    /// the groups does not hold it.
    size_proven: AtomicBool,
}

impl Card {
    /// The card of a blob whose size nothing but the outboard's length speaks for yet.
    pub(crate) fn new(outboard: Outboard, stored: Timestamp) -> Self {
        // An empty blob has no group to wait for: its id was compared with the hash of nothing.
        let size_proven = AtomicBool::new(outboard.blob_bytes() == 0);
        Self { outboard, stored, told_by: None, size_proven }
    }

    /// The same, as another edge told it.
    pub(crate) fn told_by(self, neighbour: Option<Arc<Neighbour>>) -> Self {
        Self { told_by: neighbour, ..self }
    }

    /// The blob's size in bytes; provisional until [`Self::is_size_proven`].
    pub(crate) const fn blob_bytes(&self) -> u64 {
        self.outboard.blob_bytes()
    }

    /// Whether the blob's last chunk group has been verified, and its size with it.
    pub(crate) fn is_size_proven(&self) -> bool {
        self.size_proven.load(Ordering::Relaxed)
    }

    /// Whether `bytes` are slice `index` of this blob, each chunk group checked.
    pub(crate) fn has_slice(&self, index: u64, bytes: &Bytes) -> bool {
        let Some(range) = slice_range(index, self.blob_bytes()) else { return false };
        let slice = disk::slice_of(bytes);
        let mut groups = slice.groups().zip(index * SLICE_GROUPS..);
        bytes.len() as u64 == range.byte_count()
            && groups.all(|(group, at)| self.outboard.verify_group(at, group).is_ok())
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Head(BlobId),
    Slice(BlobId, u64),
}

#[derive(Clone, Debug)]
enum Content {
    Head(Head),
    Slice(Slice),
}

/// An entry of the memory tier.
#[derive(Debug)]
struct Entry {
    content: Content,
    /// Hits, modulo 256.
    hits: AtomicU8,
}

/// Whence something came that was not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Tier {
    /// The disk of this edge.
    Disk,
    /// The origin.
    Origin,
}

/// What was verified: the memory tier, and the disk tier beneath it if there is one.
pub(crate) struct Cache {
    entries: moka::sync::Cache<Key, Arc<Entry>>,
    absent: moka::sync::Cache<BlobId, ()>,
    disk: Option<Disk>,
    tombstones: Arc<Tombstones>,
    /// One at a time brings a head from disk to memory, of those whose ids share a lock.
    loading: Vec<tokio::sync::Mutex<()>>,
}

impl Cache {
    /// A cache of `memory_bytes` in memory above `disk`; it remembers for `absent_lifetime` what is absent.
    pub(crate) fn new(
        memory_bytes: u64,
        absent_lifetime: Duration,
        disk: Option<Disk>,
        tombstones: Arc<Tombstones>,
    ) -> Self {
        let weigher = |_: &Key, entry: &Arc<Entry>| weight(&entry.content);
        let entries = moka::sync::Cache::builder().max_capacity(memory_bytes).weigher(weigher).build();
        let absent_max = if absent_lifetime.is_zero() { 0 } else { ABSENT_MAX };
        let absent = moka::sync::Cache::builder().max_capacity(absent_max).time_to_live(absent_lifetime).build();
        let loading = (0..LOADING_LOCKS).map(|_| tokio::sync::Mutex::default()).collect();
        Self { entries, absent, disk, tombstones, loading }
    }

    /// What is known of blob `id` in memory.
    pub(crate) fn head(&self, id: BlobId) -> Option<Head> {
        match self.hit(Key::Head(id))? {
            Content::Head(head) => Some(head),
            Content::Slice(_) => None,
        }
    }

    /// What is known of blob `id` on disk, brought to memory.
    pub(crate) async fn load_head(&self, id: BlobId) -> Option<Head> {
        let disk = self.disk.as_ref()?;
        if !has_head(disk, id) {
            return None;
        }
        // Of a thousand who come at once, one reads; the others find it in memory.
        let _turn = self.loading[usize::from(id.as_bytes()[0]) % LOADING_LOCKS].lock().await;
        if let Some(head) = self.head(id) {
            return Some(head);
        }
        let era = self.tombstones.era();
        let head = match read_whole(disk, id).await {
            Some(whole) => Head::Whole(whole),
            None => Head::Card(read_card(disk, id).await?),
        };
        // A purge amid the read: it is gone, however well it was read.
        self.admit(id, era, Key::Head(id), Content::Head(head.clone()))?;
        Some(head)
    }

    /// Slice `index` of blob `id` from memory; a blob kept whole is its own first slice.
    pub(crate) fn slice(&self, id: BlobId, index: u64) -> Option<Slice> {
        match self.hit(Key::Slice(id, index)) {
            Some(Content::Slice(slice)) => Some(slice),
            Some(Content::Head(_)) => None,
            None => self.whole(id, index).map(|whole| Slice::new(&[whole.bytes])),
        }
    }

    /// Slice `index` of the blob of `card` from disk, checked and brought to memory.
    pub(crate) async fn load_slice(&self, card: &Arc<Card>, index: u64) -> Option<Slice> {
        let id = card.outboard.id();
        let era = self.tombstones.era();
        let checked = Arc::clone(card);
        let read = self.disk.as_ref()?.read(disk::Key::slice(id, index), move |bytes| checked.has_slice(index, bytes));
        let slice = disk::slice_of(&read.await?);
        if index + 1 == slice_count(card.blob_bytes()) {
            card.size_is_proven();
        }
        self.admit(id, era, Key::Slice(id, index), Content::Slice(slice.clone()))?;
        Some(slice)
    }

    /// Whether slice `index` of blob `id` is in memory.
    pub(crate) fn has_slice(&self, id: BlobId, index: u64) -> bool {
        self.entries.contains_key(&Key::Slice(id, index)) || self.whole(id, index).is_some()
    }

    /// Slice `index` of blob `id` in its file, when it has been verified and can be sent from there without waiting for
    /// the disk.
    pub(crate) fn lease_slice(&self, id: BlobId, index: u64) -> Option<disk::Lease> {
        let lease = self.disk.as_ref()?.lease(disk::Key::slice(id, index))?;
        (self.has_slice(id, index) || lease.is_read_ahead()).then_some(lease)
    }

    /// Whether slice `index` of blob `id` is on disk.
    pub(crate) fn has_slice_on_disk(&self, id: BlobId, index: u64) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.has(disk::Key::slice(id, index)))
    }

    /// The blob kept whole of which `index` is a slice: the first, or none.
    fn whole(&self, id: BlobId, index: u64) -> Option<Whole> {
        if index > 0 {
            return None;
        }
        match self.peek(id)? {
            Head::Whole(whole) => Some(whole),
            Head::Card(_) => None,
        }
    }

    /// What is known of blob `id` in memory, without counting a use.
    fn peek(&self, id: BlobId) -> Option<Head> {
        match &self.entries.get(&Key::Head(id))?.content {
            Content::Head(head) => Some(head.clone()),
            Content::Slice(_) => None,
        }
    }

    /// A look-up in memory. What is used again and again is told to the disk tier, so that it keeps what is hot: at the
    /// first uses, and then once in 256, since the disk's own count is small and fades.
    fn hit(&self, key: Key) -> Option<Content> {
        let entry = self.entries.get(&key)?;
        if let Some(disk) = &self.disk {
            let hits = entry.hits.fetch_add(1, Ordering::Relaxed);
            if hits <= 2 {
                self.touch(disk, key, &entry.content);
            }
        }
        Some(entry.content.clone())
    }

    fn touch(&self, disk: &Disk, key: Key, content: &Content) {
        if let Some((key, content)) = for_disk(key, content)
            && !disk.touch(key)
        {
            // It lives on in memory: whoever wants it now, wants it on disk too.
            disk.offer(key, content, self.tombstones.era());
        }
    }

    /// Whether the origin said a moment ago that it has no blob `id`.
    pub(crate) fn is_absent(&self, id: BlobId) -> bool {
        self.absent.contains_key(&id)
    }

    /// The era in which something begins that may be filed later.
    pub(crate) fn era(&self) -> Era {
        self.tombstones.era()
    }

    /// Files what is known of blob `id` by something that began in `era`, unless the blob was purged since.
    pub(crate) fn put_head(&self, id: BlobId, head: Head, era: Era) {
        self.put(id, Key::Head(id), &Content::Head(head), era);
    }

    /// Files a verified slice of blob `id`, as [`Self::put_head`] does.
    pub(crate) fn put_slice(&self, id: BlobId, index: u64, slice: Slice, era: Era) {
        self.put(id, Key::Slice(id, index), &Content::Slice(slice), era);
    }

    fn put(&self, id: BlobId, key: Key, content: &Content, era: Era) {
        let is_filed = self.admit(id, era, key, content.clone()).is_some();
        if let Some(disk) = self.disk.as_ref().filter(|_| is_filed)
            && let Some((key, content)) = for_disk(key, content)
        {
            disk.offer(key, content, era);
        }
    }

    fn admit(&self, id: BlobId, era: Era, key: Key, content: Content) -> Option<()> {
        let entry = Arc::new(Entry { content, hits: AtomicU8::new(0) });
        self.tombstones.admit(id, era, || self.entries.insert(key, entry))?;
        if matches!(key, Key::Slice(..)) {
            // Left to itself moka evicts once in dozens of insertions: dozens of megabytes above what is configured.
            self.entries.run_pending_tasks();
        }
        Some(())
    }

    /// Remembers for a moment that the origin has no blob `id`.
    pub(crate) fn put_absent(&self, id: BlobId) {
        self.absent.insert(id, ());
    }

    /// Drops `card`, whose size turned out to be false, unless another has taken its place.
    pub(crate) fn drop_card(&self, card: &Arc<Card>) {
        let id = card.outboard.id();
        if matches!(self.peek(id), Some(Head::Card(filed)) if Arc::ptr_eq(&filed, card)) {
            self.entries.invalidate(&Key::Head(id));
            if let Some(disk) = &self.disk {
                disk.forget(disk::Key::outboard(id));
            }
        }
    }

    /// Forgets blob `id`, and whatever of it is on its way here.
    pub(crate) fn purge(&self, id: BlobId) {
        self.tombstones.bury(id);
        // Slices that no card leads to are found by nobody, and lose their places to others.
        let count = match self.peek(id) {
            Some(Head::Card(card)) => slice_count(card.blob_bytes()),
            _ => 0,
        };
        self.entries.invalidate(&Key::Head(id));
        let on_disk = self.disk.as_ref().map(|disk| disk.forget_blob(id)).unwrap_or_default();
        for index in (0..count).chain(on_disk) {
            self.entries.invalidate(&Key::Slice(id, index));
        }
    }

    /// Forgets everything, and whatever is on its way here.
    pub(crate) fn purge_all(&self) {
        self.tombstones.bury_all();
        self.entries.invalidate_all();
        if let Some(disk) = &self.disk {
            disk.forget_all();
        }
    }

    /// The disk tier.
    pub(crate) const fn disk(&self) -> Option<&Disk> {
        self.disk.as_ref()
    }

    /// Bytes of memory in use, as weighed; evictions under way may not be counted yet.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.entries.weighted_size()
    }

    /// Bytes of memory in use once pending evictions are done.
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

/// Whether the disk knows blob `id`, so that it can be opened without the origin.
fn has_head(disk: &Disk, id: BlobId) -> bool {
    disk.has(disk::Key::whole(id)) || disk.has(disk::Key::outboard(id))
}

/// A blob of one chunk group from disk.
async fn read_whole(disk: &Disk, id: BlobId) -> Option<Whole> {
    let bytes = disk.read(disk::Key::whole(id), move |bytes| is_whole_of(id, bytes)).await?;
    let (head, bytes) = disk::Head::split(&bytes)?;
    Some(Whole { bytes, stored: head.stored })
}

/// Whether `bytes` are what the disk keeps of blob `id`, of one chunk group.
pub(crate) fn is_whole_of(id: BlobId, bytes: &Bytes) -> bool {
    disk::Head::split(bytes).is_some_and(|(_, bytes)| blake3::hash(&bytes) == *id.as_bytes())
}

/// The card of a larger blob from disk.
pub(crate) async fn read_card(disk: &Disk, id: BlobId) -> Option<Arc<Card>> {
    let bytes = disk.read(disk::Key::outboard(id), move |bytes| card_of(id, bytes).is_some()).await?;
    card_of(id, &bytes).map(Arc::new)
}

/// The card that `bytes` from disk make, if they are those of blob `id`.
pub(crate) fn card_of(id: BlobId, bytes: &Bytes) -> Option<Card> {
    let (head, bytes) = disk::Head::split(bytes)?;
    Some(Card::new(Outboard::verify(id, head.blob_bytes, &bytes).ok()?, head.stored))
}

/// What the disk keeps of an entry: nothing of a blob that is empty or has not come yet.
fn for_disk(key: Key, content: &Content) -> Option<(disk::Key, disk::Content)> {
    match (key, content) {
        (Key::Head(id), Content::Head(Head::Whole(whole))) => {
            let head = disk::Head { blob_bytes: whole.bytes.len() as u64, stored: whole.stored };
            Some((disk::Key::whole(id), disk::Content::Headed(head, whole.bytes.clone())))
        }
        (Key::Head(id), Content::Head(Head::Card(card))) if !is_whole(card.blob_bytes()) => {
            let head = disk::Head { blob_bytes: card.blob_bytes(), stored: card.stored };
            let outboard = Bytes::copy_from_slice(card.outboard.as_bytes());
            Some((disk::Key::outboard(id), disk::Content::Headed(head, outboard)))
        }
        (Key::Slice(id, index), Content::Slice(slice)) => {
            Some((disk::Key::slice(id, index), disk::Content::Slice(slice.clone())))
        }
        _ => None,
    }
}

/// Bytes an entry takes; at most what moka can weigh in one entry, which is far above the largest outboard allowed.
fn weight(content: &Content) -> u32 {
    let content = match content {
        Content::Head(Head::Whole(whole)) => whole.bytes.len() as u64,
        Content::Head(Head::Card(card)) => outboard_bytes(card.blob_bytes()),
        Content::Slice(slice) => slice.weight() as u64,
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

    fn cache(memory_bytes: u64) -> Cache {
        Cache::new(memory_bytes, Duration::from_secs(2), None, Arc::default())
    }

    fn slice() -> Slice {
        Slice::new(&[Bytes::from(vec![1; SLICE_BYTES as usize])])
    }

    #[test]
    fn the_tier_never_holds_more_than_it_may() {
        let cache = cache(8 * SLICE_BYTES);
        for index in 0..100 {
            cache.put_slice(ID, index, slice(), cache.era());
            assert!(cache.memory_bytes() <= 8 * SLICE_BYTES, "without waiting for anything");
        }
        assert!(cache.weighed_bytes() > 6 * SLICE_BYTES, "it is not merely empty");
    }

    /// A reader in the middle of a slice is not cut off when the slice loses its place.
    #[test]
    fn an_evicted_slice_lives_on_in_its_readers_hands() {
        let cache = cache(4 * SLICE_BYTES);
        cache.put_slice(ID, 0, slice(), cache.era());
        let held = cache.slice(ID, 0).unwrap();
        cache.entries.invalidate_all();
        assert!(cache.slice(ID, 0).is_none());
        assert_eq!(held.group(0).unwrap().len() as u64, SLICE_BYTES);
    }

    #[test]
    fn only_the_card_that_lied_is_dropped() {
        let cache = cache(4 * SLICE_BYTES);
        let id = BlobId::from_bytes(*blake3::hash(b"x").as_bytes());
        let card = || Arc::new(Card::new(Outboard::verify(id, 1, &[]).unwrap(), Timestamp::from_secs(1)));
        let (old, new) = (card(), card());
        cache.put_head(id, Head::Card(Arc::clone(&new)), cache.era());
        cache.drop_card(&old);
        assert!(cache.head(id).is_some());
        cache.drop_card(&new);
        assert!(cache.head(id).is_none());
    }
}
