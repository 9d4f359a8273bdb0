//! Blobs as readers ask for them: look up, else follow or begin a fill, and hand out what was verified.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use waxwing_protocol::blob::BLOB_BYTES_MAX;
use waxwing_protocol::range::RangeSpec;
use waxwing_protocol::{BlobId, Timestamp};

use crate::Config;
use crate::cache::{Cache, Head, Tier, Whole};
use crate::disk::Lease;
use crate::fill::{CardSource, FillError, Fills, Opened};
use crate::reader::{Look, ReadAhead, Reader, Start};
use crate::slice::slice_at;
use crate::via::Via;

/// The blobs that can be had here.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    cache: Arc<Cache>,
    fills: Fills,
    ahead: ReadAhead,
    /// Places for readers: each keeps a slice alive, however slow its client is.
    places: Arc<Semaphore>,
}

/// A range of a blob, ready to be sent: its first bytes are there.
#[derive(Debug)]
pub(crate) struct Reading {
    /// The size and whence it came.
    pub(crate) found: Found,
    /// Which bytes of the blob; empty only for an empty blob.
    pub(crate) range: Range<u64>,
    /// What the edge did from which its first bytes come, RFC 9211; `None` when they are the origin's or were here.
    pub(crate) cache_status: Option<Arc<str>>,
    /// The bytes.
    pub(crate) content: Content,
}

/// A blob that exists.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    /// Its size in bytes. Until its last chunk group has been verified this is the origin's word, consistent with the
    /// verified outboard; a reader of a blob whose size is false is cut off visibly.
    pub(crate) blob_bytes: u64,
    /// Since when this edge has had it; `None` when it is just coming in.
    pub(crate) stored: Option<Timestamp>,
    /// How the cache took part.
    pub(crate) how: How,
}

/// How the cache took part in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// All that was looked at was there: the whole range, or a window of it when it is longer.
    Hit {
        /// Whether some of it came from disk.
        is_from_disk: bool,
    },
    /// Something had to come from the origin.
    Missed {
        /// Whether anything of the blob was known before.
        known: bool,
        /// Whether all that was missing was on its way already, for somebody else.
        collapsed: bool,
    },
}

/// The bytes of a reading.
#[derive(Debug)]
pub(crate) enum Content {
    /// All of them.
    Held(Vec<Bytes>),
    /// Piece by piece.
    Streamed(Box<Reader>),
}

/// Bytes of one slice that can be sent at once.
#[derive(Debug)]
pub(crate) enum AtHand {
    /// From memory.
    Bytes(Vec<Bytes>),
    /// From the slice's file, verified before.
    File(Lease),
}

/// Why a range cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The blob has no such bytes.
    #[error("the blob has {blob_bytes} bytes and none of those asked for")]
    Unsatisfiable {
        /// The blob's size in bytes.
        blob_bytes: u64,
    },
    /// The blob cannot be had.
    #[error(transparent)]
    Fill(#[from] FillError),
}

/// What is known of a blob at the first look.
enum Lookup {
    Whole { whole: Whole, is_from_disk: bool },
    Sliced { source: CardSource, stored: Option<Timestamp>, is_from_disk: bool, begun: bool, start: Start },
}

impl Lookup {
    /// Whether this look joined an opening that another had begun.
    const fn has_joined(&self) -> bool {
        matches!(self, Self::Sliced { stored: None, begun: false, .. })
    }

    /// The blob without its bytes.
    async fn found(self) -> Result<Found, FillError> {
        match self {
            Self::Whole { whole, is_from_disk } => Ok(Found::whole(&whole, is_from_disk)),
            Self::Sliced { source, stored, is_from_disk, begun, .. } => {
                let blob_bytes = source.card().await?.blob_bytes();
                Ok(Found { blob_bytes, stored, how: How::of_head(stored, is_from_disk, begun) })
            }
        }
    }
}

impl Blobs {
    /// Blobs out of `cache`, and of `fills` when they are not there.
    pub(crate) fn new(config: &Config, cache: Arc<Cache>, fills: Fills) -> Self {
        let readers_max = usize::try_from(config.readers_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        let places = Arc::new(Semaphore::new(readers_max));
        Self { cache, fills, ahead: ReadAhead::new(config.read_ahead_bytes), places }
    }

    /// Reads what `asked` says of blob `id`, all of it when `None`. Returns as soon as the first bytes are verified.
    ///
    /// # Errors
    /// [`ReadError`] when there is nothing to send.
    pub(crate) async fn read(
        &self,
        id: BlobId,
        asked: Option<RangeSpec>,
        now: Timestamp,
    ) -> Result<Reading, ReadError> {
        let lookup = self.look_up(id, asked.or(Some(ALL)), now).await?;
        let has_joined = lookup.has_joined();
        match self.read_from(id, asked, lookup).await {
            // An opening that this reader came late to has failed: it opens the blob anew, once.
            Err(ReadError::Fill(error)) if has_joined && error.may_pass() => {
                let lookup = self.look_up(id, asked.or(Some(ALL)), now).await?;
                self.read_from(id, asked, lookup).await
            }
            ended => ended,
        }
    }

    async fn read_from(&self, id: BlobId, asked: Option<RangeSpec>, lookup: Lookup) -> Result<Reading, ReadError> {
        let (source, stored, is_from_disk, opened, start) = match lookup {
            Lookup::Whole { whole, is_from_disk } => return Reading::of_whole(&whole, is_from_disk, asked),
            Lookup::Sliced { source, stored, is_from_disk, begun, start } => {
                (source, stored, is_from_disk, begun, start)
            }
        };
        let blob_bytes = source.blob_bytes().await?;
        let range = match resolve(asked, blob_bytes) {
            Ok(range) if !range.is_empty() => range,
            // Nothing to fetch, but what is said of the blob must rest on a verified outboard.
            other => {
                source.card().await?;
                let found = Found { blob_bytes, stored, how: How::of_head(stored, is_from_disk, opened) };
                return Ok(Reading { found, range: other?, cache_status: None, content: Content::Held(Vec::new()) });
            }
        };
        let (cache, fills) = (Arc::clone(&self.cache), self.fills.clone());
        let (mut reader, look) = Reader::new(cache, fills, id, source, range.clone(), self.ahead.clone(), start);
        let (look, cache_status, content) = match reader.held() {
            Some(held) => (look, None, Content::Held(held)),
            None => {
                reader.hold(Arc::clone(&self.places).try_acquire_owned().map_err(|_| FillError::Busy)?);
                reader.wait_for_first().await?;
                // What was thought to be on disk may have had to be fetched after all.
                let farthest = look.farthest.max(reader.look().farthest);
                (Look { farthest, ..look }, reader.cache_status(), Content::Streamed(Box::new(reader)))
            }
        };
        let farthest = look.farthest.max(is_from_disk.then_some(Tier::Disk));
        let found = Found { blob_bytes, stored, how: How::of(stored, farthest, look.begun || opened) };
        Ok(Reading { found, range, cache_status, content })
    }

    /// The same blobs, asked for by a request that has come this way.
    pub(crate) fn via(&self, via: Via) -> Self {
        Self { fills: self.fills.via(via), ..self.clone() }
    }

    /// The size of blob `id` and its outboard, as another edge asks for them.
    ///
    /// # Errors
    /// [`FillError`] when they cannot be had.
    pub(crate) async fn outboard(&self, id: BlobId, now: Timestamp) -> Result<(u64, Bytes), FillError> {
        match self.look_up(id, None, now).await? {
            // All of it is one chunk group, which has no tree over it.
            Lookup::Whole { whole, .. } => Ok((whole.bytes.len() as u64, Bytes::new())),
            Lookup::Sliced { source, .. } => {
                let card = source.card().await?;
                Ok((card.blob_bytes(), Bytes::copy_from_slice(card.outboard.as_bytes())))
            }
        }
    }

    /// The cache that these blobs come out of.
    pub(crate) fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Lets nobody join what is being fetched of blob `id`.
    pub(crate) fn strike_off(&self, id: BlobId) {
        self.fills.strike_off(Some(id));
    }

    /// A place among the readers served at once; `None` when they are taken.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places).try_acquire_owned().ok()
    }

    /// Whether the first `slices` of `range` can be sent at once; whether some of it is on disk alone, if so.
    pub(crate) fn all_at_hand(&self, id: BlobId, range: Range<u64>, slices: u64) -> Option<bool> {
        let first = slice_at(range.start);
        let mut is_from_disk = false;
        for index in first..(slice_at(range.end - 1) + 1).min(first + slices) {
            if !self.cache.has_slice(id, index) {
                is_from_disk = true;
                self.cache.lease_slice(id, index)?;
            }
        }
        Some(is_from_disk)
    }

    /// The bytes `range` of blob `id`, which lie in one slice, when they are at hand. More than `copied_max` of them come
    /// from the file, if they are in one.
    pub(crate) fn at_hand(&self, id: BlobId, range: Range<u64>, copied_max: u64) -> Option<AtHand> {
        let index = slice_at(range.start);
        if range.end - range.start > copied_max
            && let Some(lease) = self.cache.lease_slice(id, index)
        {
            return Some(AtHand::File(lease));
        }
        match self.cache.slice(id, index) {
            Some(slice) => Some(AtHand::Bytes(slice.bytes(range)?)),
            None => self.cache.lease_slice(id, index).map(AtHand::File),
        }
    }

    /// Finds blob `id` without its bytes.
    ///
    /// # Errors
    /// [`FillError`] when it cannot be found.
    pub(crate) async fn find(&self, id: BlobId, now: Timestamp) -> Result<Found, FillError> {
        let lookup = self.look_up(id, None, now).await?;
        let has_joined = lookup.has_joined();
        match lookup.found().await {
            Err(error) if has_joined && error.may_pass() => self.look_up(id, None, now).await?.found().await,
            ended => ended,
        }
    }

    /// The first look: one look-up when the blob is known. When it is not, its opening is joined or begun, and beside it
    /// a run of the first slices of `wanted`, as far as they can be told without the blob's size.
    async fn look_up(&self, id: BlobId, wanted: Option<RangeSpec>, now: Timestamp) -> Result<Lookup, FillError> {
        let (head, is_from_disk) = match self.cache.head(id) {
            Some(head) => (Some(head), false),
            None => (self.cache.load_head(id).await, true),
        };
        let head = match head {
            Some(head) => head,
            None if self.cache.is_absent(id) => return Err(FillError::NotFound),
            None => {
                let slices = wanted.map_or(0..0, slices_before_size);
                let share = self.ahead.reserve(slices.end - slices.start);
                let looked_until = slices.end.min(slices.start + ReadAhead::window(share.as_ref()));
                match self.fills.open(id, slices.start..looked_until, first_byte(wanted), now) {
                    Opened::UnderWay { source, begun, following } => {
                        // Who joins an opening has looked at no slice yet.
                        let looked_until = if begun { looked_until } else { 0 };
                        let start = Start { following, looked_until, share };
                        return Ok(Lookup::Sliced { source, stored: None, is_from_disk: false, begun, start });
                    }
                    Opened::Already(head) => head,
                }
            }
        };
        Ok(match head {
            Head::Whole(whole) => Lookup::Whole { whole, is_from_disk },
            Head::Card(card) => {
                let stored = Some(card.stored);
                let (source, start) = (CardSource::Known(card), Start::default());
                Lookup::Sliced { source, stored, is_from_disk, begun: false, start }
            }
        })
    }
}

impl Reading {
    fn of_whole(whole: &Whole, is_from_disk: bool, asked: Option<RangeSpec>) -> Result<Self, ReadError> {
        let found = Found::whole(whole, is_from_disk);
        let range = resolve(asked, found.blob_bytes)?;
        let in_memory = |offset: u64| usize::try_from(offset).expect("a blob kept whole is in memory");
        let bytes = whole.bytes.slice(in_memory(range.start)..in_memory(range.end));
        Ok(Self { found, range, cache_status: None, content: Content::Held(vec![bytes]) })
    }
}

impl Found {
    fn whole(whole: &Whole, is_from_disk: bool) -> Self {
        Self { blob_bytes: whole.bytes.len() as u64, stored: Some(whole.stored), how: How::Hit { is_from_disk } }
    }
}

impl How {
    /// Of a blob known since `stored`, whose bytes come from `farthest`.
    fn of(stored: Option<Timestamp>, farthest: Option<Tier>, begun: bool) -> Self {
        match (stored, farthest) {
            (Some(_), None) => Self::Hit { is_from_disk: false },
            (Some(_), Some(Tier::Disk)) => Self::Hit { is_from_disk: true },
            _ => Self::Missed { known: stored.is_some(), collapsed: !begun },
        }
    }

    /// The same when none of its bytes are asked for.
    fn of_head(stored: Option<Timestamp>, is_from_disk: bool, begun: bool) -> Self {
        Self::of(stored, is_from_disk.then_some(Tier::Disk), begun)
    }
}

/// All of a blob, as a range.
const ALL: RangeSpec = RangeSpec::From { first: 0, last: None };

/// The bytes that `asked` means in a blob of `blob_bytes`.
fn resolve(asked: Option<RangeSpec>, blob_bytes: u64) -> Result<Range<u64>, ReadError> {
    match asked {
        None => Ok(0..blob_bytes),
        Some(spec) => {
            let range = spec.resolve(blob_bytes).ok_or(ReadError::Unsatisfiable { blob_bytes })?;
            Ok(range.as_range())
        }
    }
}

/// The byte that `wanted` begins with, as far as it can be told without the blob's size.
const fn first_byte(wanted: Option<RangeSpec>) -> u64 {
    match wanted {
        Some(RangeSpec::From { first, .. }) => first,
        Some(RangeSpec::Suffix { .. }) | None => 0,
    }
}

/// The slices that `asked` means as far as they can be told without the blob's size: none of a suffix, which then waits
/// for the head of the outboard's answer instead.
fn slices_before_size(asked: RangeSpec) -> Range<u64> {
    match asked {
        RangeSpec::From { first, last } if first < BLOB_BYTES_MAX => {
            slice_at(first)..slice_at(last.unwrap_or(u64::MAX).min(BLOB_BYTES_MAX - 1)) + 1
        }
        RangeSpec::From { .. } | RangeSpec::Suffix { .. } => 0..0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slice::SLICE_BYTES;

    #[test]
    fn what_is_fetched_before_the_size_is_known_is_only_what_was_asked_for() {
        let from = |first, last| slices_before_size(RangeSpec::From { first, last });
        assert_eq!(from(0, Some(0)), 0..1);
        assert_eq!(from(SLICE_BYTES - 1, Some(SLICE_BYTES)), 0..2);
        assert_eq!(from(5 * SLICE_BYTES, Some(6 * SLICE_BYTES - 1)), 5..6);
        assert_eq!(from(BLOB_BYTES_MAX - 1, None).count(), 1);
        assert!(from(BLOB_BYTES_MAX, None).is_empty());
        assert!(from(u64::MAX, Some(u64::MAX)).is_empty());
        assert!(slices_before_size(RangeSpec::Suffix { length: 5 }).is_empty());
    }
}
