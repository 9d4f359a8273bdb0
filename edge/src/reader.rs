//! One reader's way through a range: slice by slice, chunk group by chunk group, a little ahead of itself.
//!
//! A reader that fetched everything at once would hold a 10 GiB film in memory for a client on a train; one that
//! fetched only what it is asked for would wait a round trip a slice. So it looks a window ahead, and its own pace is
//! what moves the window.
//!
//! Promise: a reader keeps at most [`WINDOW_SLICES`] slices alive beside the cache, and what it looked at stays alive in
//! its hands until it has passed, so that nothing is fetched twice because the cache had no room for it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::GROUP_BYTES;

use crate::cache::{Cache, Tier};
use crate::fill::{CardSource, End, FillError, Fills, Following, Progress};
use crate::slice::{SLICE_BYTES, Slice, slice_at};

/// How many slices a reader looks ahead at most, the one it is in included: 8 MiB. Enough for 640 Mbit/s over a round
/// trip of 100 ms to the origin.
const WINDOW_SLICES: u64 = 8;

/// How often a reader begins a fill anew after one that it had only joined failed: whoever came last to a fill that was
/// about to give up deserves a try of its own, and when that fails too, what the origin cannot give is known.
const TAKEOVERS_MAX: u8 = 2;

/// Looks at a slice that leaves the cache between look and use, before the reader gives up: it takes a cache that turns
/// itself over in microseconds to need the second.
const LOOKS_MAX: usize = 3;

/// A reader of a range of a blob that has slices.
#[derive(Debug)]
pub(crate) struct Reader {
    cache: Arc<Cache>,
    fills: Fills,
    id: BlobId,
    source: CardSource,
    /// The next byte to give, and the one after the last.
    left: Range<u64>,
    /// A group read before it was asked for, to see that there is one.
    first: Option<Bytes>,
    /// The slice being read.
    current: Option<(u64, Current)>,
    /// Slices looked at that were on their way in, in order.
    following: VecDeque<Following>,
    /// The first slice not looked at.
    looked_until: u64,
    takeovers_left: u8,
    ahead: ReadAhead,
    /// This reader's share of it, taken when something is missing and given back when the reader is dropped.
    share: Option<OwnedSemaphorePermit>,
    /// This reader's place among those served at once, given back when it is dropped.
    place: Option<OwnedSemaphorePermit>,
}

/// What all readers together may fetch ahead of themselves: without a common bound, a thousand slow readers of a
/// thousand films would keep eight thousand slices alive. A reader that gets no share goes on slice by slice.
#[derive(Clone, Debug)]
pub(crate) struct ReadAhead {
    slices: Arc<Semaphore>,
}

impl ReadAhead {
    /// A budget of `bytes`, in whole slices.
    pub(crate) fn new(bytes: u64) -> Self {
        let slices = usize::try_from(bytes / SLICE_BYTES).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { slices: Arc::new(Semaphore::new(slices)) }
    }

    /// A share for a reader who has `slices` before it; `None` when it needs none or the budget is used up.
    pub(crate) fn reserve(&self, slices: u64) -> Option<OwnedSemaphorePermit> {
        let wanted = u32::try_from(slices.min(WINDOW_SLICES).saturating_sub(1)).ok().filter(|wanted| *wanted > 0)?;
        Arc::clone(&self.slices).try_acquire_many_owned(wanted).ok()
    }

    /// How many slices a reader with this share may look at, the one it is in included.
    pub(crate) fn window(share: Option<&OwnedSemaphorePermit>) -> u64 {
        1 + share.map_or(0, |share| share.num_permits() as u64)
    }
}

#[derive(Debug)]
enum Current {
    Held(Slice),
    Following(Following),
}

/// What was done for a reader before the blob's size was known.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// The slices looked at that were not in the cache.
    pub(crate) following: Vec<Following>,
    /// The first slice not looked at.
    pub(crate) looked_until: u64,
    /// The reader's share of the read-ahead budget, if it has one already.
    pub(crate) share: Option<OwnedSemaphorePermit>,
}

/// What the first look of a reader found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The farthest that anything has to come from; `None` when all was in memory.
    pub(crate) farthest: Option<Tier>,
    /// Whether this look began to fetch any of it.
    pub(crate) begun: bool,
}

impl Reader {
    /// A reader of `range`, which lies within the blob and is not empty, and what it found at its first look.
    pub(crate) fn new(
        cache: Arc<Cache>,
        fills: Fills,
        id: BlobId,
        source: CardSource,
        range: Range<u64>,
        ahead: ReadAhead,
        start: Start,
    ) -> (Self, Look) {
        let first = slice_at(range.start);
        let mut reader = Self {
            cache,
            fills,
            id,
            source,
            left: range,
            first: None,
            current: None,
            following: start.following.into(),
            looked_until: start.looked_until.max(first),
            takeovers_left: TAKEOVERS_MAX,
            ahead,
            share: start.share,
            place: None,
        };
        reader.look_ahead(first);
        let look = reader.look();
        (reader, look)
    }

    /// What of the slices looked at, but not read yet, is not in memory.
    pub(crate) fn look(&self) -> Look {
        let current = self.current.iter().filter_map(|(_, current)| match current {
            Current::Held(_) => None,
            Current::Following(following) => Some(following),
        });
        let mut look = Look { farthest: None, begun: false };
        for following in current.chain(&self.following) {
            let is_miss = following.progress.borrow().is_from_origin;
            look.farthest = if is_miss { Some(Tier::Origin) } else { look.farthest.or(Some(Tier::Disk)) };
            look.begun |= following.begun;
        }
        look
    }

    /// What the edge did from which the slice being read comes, RFC 9211; `None` when it comes from the origin or is here.
    pub(crate) fn cache_status(&self) -> Option<Arc<str>> {
        match &self.current {
            Some((_, Current::Following(following))) => following.progress.borrow().cache_status.clone(),
            _ => None,
        }
    }

    /// Takes its place among the readers served at once.
    pub(crate) fn hold(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(place);
    }

    /// All the range at once, when it lies in one slice of the cache.
    pub(crate) fn held(&self) -> Option<Vec<Bytes>> {
        let index = slice_at(self.left.start);
        if slice_at(self.left.end - 1) != index || !self.following.is_empty() {
            return None;
        }
        let slice = self.cache.slice(self.id, index)?;
        let mut left = self.left.clone();
        let mut groups = Vec::new();
        while !left.is_empty() {
            let group = slice.group(group_in_slice(left.start))?;
            groups.push(take(&mut left, group)?);
        }
        Some(groups)
    }

    /// Waits for the first chunk group, so that a blob that cannot be had is an error before anything was answered.
    pub(crate) async fn wait_for_first(&mut self) -> Result<(), FillError> {
        self.first = self.read().await?;
        Ok(())
    }

    /// The next bytes of the range, a chunk group at most; `None` after the last.
    ///
    /// # Errors
    /// [`FillError`] when the rest cannot be had; the reader is at its end then, but not at the range's.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        self.read().await
    }

    async fn read(&mut self) -> Result<Option<Bytes>, FillError> {
        while !self.left.is_empty() {
            let index = slice_at(self.left.start);
            if self.current.as_ref().is_none_or(|(current, _)| *current != index) {
                self.look_ahead(index);
                self.current = Some((index, self.find(index)?));
            }
            let group = group_in_slice(self.left.start);
            let bytes = match &mut self.current {
                Some((_, Current::Held(slice))) => slice.group(group).cloned(),
                Some((_, Current::Following(slice))) => match follow(&mut slice.progress, group).await {
                    Ok(bytes) => bytes,
                    Err(error) => {
                        let begun = slice.begun;
                        self.take_over(index, begun, error)?;
                        continue;
                    }
                },
                None => None,
            };
            // A complete slice has all its groups; a reader must not end cleanly should that ever not hold.
            return bytes.and_then(|bytes| take(&mut self.left, &bytes)).ok_or(FillError::Abandoned).map(Some);
        }
        Ok(None)
    }

    /// Makes the reader look anew at slice `index`, whose fill failed, and so begin a fill or join one that another
    /// reader has begun since.
    ///
    /// # Errors
    /// The error given, when this reader had `begun` the fill itself, or another would end no better.
    fn take_over(&mut self, index: u64, begun: bool, error: FillError) -> Result<(), FillError> {
        if begun || self.takeovers_left == 0 || !error.may_pass() || self.source.has_failed() {
            return Err(error);
        }
        self.takeovers_left -= 1;
        self.current = None;
        self.following.clear();
        self.looked_until = index;
        Ok(())
    }

    /// Looks at the slices of the window that were not looked at yet. Not before half of the window is used up, so that
    /// what is missing is asked for several slices at a time.
    fn look_ahead(&mut self, index: u64) {
        let end = self.left.end.div_ceil(SLICE_BYTES);
        let window = ReadAhead::window(self.share.as_ref());
        if index + window / 2 < self.looked_until || self.looked_until >= end {
            return;
        }
        let farthest = (index + WINDOW_SLICES).min(end);
        if self.share.is_none() && (index..farthest).any(|index| !self.cache.has_slice(self.id, index)) {
            self.share = self.ahead.reserve(end - index);
        }
        let until = (index + ReadAhead::window(self.share.as_ref())).min(end);
        let slices = self.looked_until.max(index)..until;
        self.following.extend(self.fills.follow(self.id, &self.source, slices, self.left.start));
        self.looked_until = until;
    }

    /// Slice `index`, which was looked at: on its way in then, or in the cache.
    fn find(&mut self, index: u64) -> Result<Current, FillError> {
        while let Some(following) = self.following.pop_front_if(|following| following.index <= index) {
            if following.index == index {
                return Ok(Current::Following(following));
            }
        }
        for _ in 0..LOOKS_MAX {
            if let Some(slice) = self.cache.slice(self.id, index) {
                return Ok(Current::Held(slice));
            }
            // It was in the cache at the look and has lost its place since.
            if let Some(following) = self.fills.follow(self.id, &self.source, index..index + 1, self.left.start).pop() {
                return Ok(Current::Following(following));
            }
        }
        Err(FillError::Busy)
    }
}

/// Waits for chunk group `group` of a slice on its way in; `None` when the slice is complete without it.
async fn follow(progress: &mut watch::Receiver<Progress>, group: usize) -> Result<Option<Bytes>, FillError> {
    let there = progress.wait_for(|progress| progress.group(group).is_some() || progress.end.is_some()).await;
    let progress = there.map_err(|_| FillError::Abandoned)?;
    match (progress.group(group), &progress.end) {
        (Some(bytes), _) => Ok(Some(bytes.clone())),
        (None, Some(End::Failed(error))) => Err(error.clone()),
        (None, _) => Ok(None),
    }
}

/// What of the chunk group at `left.start` is wanted; moves `left` past it. `None` when the group has no such bytes.
fn take(left: &mut Range<u64>, group: &Bytes) -> Option<Bytes> {
    let group_start = left.start - left.start % GROUP_BYTES;
    let from = usize::try_from(left.start - group_start).ok()?;
    let until = usize::try_from(left.end - group_start).unwrap_or(usize::MAX).min(group.len());
    if from >= until {
        return None;
    }
    left.start = group_start + until as u64;
    Some(group.slice(from..until))
}

/// Which chunk group of its slice the byte at `offset` is in.
fn group_in_slice(offset: u64) -> usize {
    usize::try_from(offset % SLICE_BYTES / GROUP_BYTES).expect("a slice has sixteen chunk groups")
}
