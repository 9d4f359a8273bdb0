//! A run: slices that lie side by side, fetched by one ranged request, checked group by group and handed out at once.
//!
//! A reader who jumps into the midst of a film waits for the bytes there, not for those before them in the same slice.
//! So a run begins at what is waited for, and a second request brings what of the first slice lies before it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::{GROUP_BYTES, group_count};
use waxwing_protocol::range::ByteRange;

use super::error::{FillError, Lie};
use super::opening::CardSource;
use super::{End, Progress, RETRY_PAUSES, Shared, log_failure};
use crate::cache::{Card, Head, Tier, Whole, is_whole};
use crate::peers::Route;
use crate::slice::{SLICE_BYTES, SLICE_GROUPS, Slice, slice_at, slice_count, slice_range};
use crate::tombstones::Era;
use crate::upstream::AnswerBody;
use crate::via::Via;

/// Chunk groups before the one waited for that are not fetched first: for less, a second request costs more than the
/// wait.
const PASSED_MIN: usize = 2;

/// The task that fills adjacent slices of one blob.
pub(super) struct Run {
    shared: Arc<Shared>,
    id: BlobId,
    source: CardSource,
    /// Whence the bytes are to come. What the disk turns out not to have, the origin is asked for.
    tier: Tier,
    /// The way of the request for which it was begun.
    via: Arc<Via>,
    /// The slices not complete yet, in order. Only the first has a gap behind it, when it is filled from its midst.
    slices: VecDeque<SliceWriter>,
    /// The chunk group of the first slice at which it is begun to be filled.
    begin: usize,
}

impl Run {
    /// A run of one slice so far.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: BlobId,
        source: CardSource,
        tier: Tier,
        via: Arc<Via>,
        first: SliceWriter,
    ) -> Self {
        Self { shared, id, source, tier, via, slices: VecDeque::from([first]), begin: 0 }
    }

    /// The same, for somebody who waits for the byte at `wanted` first, if its one slice has it.
    pub(super) fn beginning_at(self, wanted: u64) -> Self {
        let first = self.slices.front().map(|slice| slice.index);
        let passed = wanted % SLICE_BYTES / GROUP_BYTES;
        let passed = usize::try_from(passed).expect("a slice has sixteen chunk groups");
        let is_worth_it = first == Some(slice_at(wanted)) && passed >= PASSED_MIN;
        Self { begin: if is_worth_it { passed } else { 0 }, ..self }
    }

    /// Whether slice `index`, which has to come from `tier`, can be had together with those of this run: it follows
    /// directly on the last, and the origin is asked for all. Of a disk each is read on its own.
    pub(super) fn takes(&self, tier: Tier, index: u64) -> bool {
        let is_next = self.slices.back().is_some_and(|last| last.index + 1 == index);
        is_next && (self.tier, tier) == (Tier::Origin, Tier::Origin)
    }

    /// Makes the run one slice longer.
    pub(super) fn push(&mut self, next: SliceWriter) {
        self.slices.push_back(next);
    }

    /// Fetches the slices, asking again within the bound; tells whoever follows them how it ended.
    pub(super) async fn fill(mut self) {
        let Err(error) = self.try_fill().await else { return };
        if !self.source.has_failed() {
            log_failure(&self.shared.counters, self.id, &error);
        }
        for slice in self.slices.drain(..) {
            slice.end(End::Failed(error.clone()));
        }
    }

    async fn try_fill(&mut self) -> Result<(), FillError> {
        if self.tier == Tier::Disk && self.fill_from_disk().await? {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let _turn = shared.turn(&shared.run_turns).await?;
        let first = self.slices.front().map_or(0, |slice| slice.index);
        let mut route = shared.upstream.peers.route(self.id, first, &self.via);
        let mut pauses = RETRY_PAUSES.iter();
        loop {
            let Err(error) = self.attempt(&mut route).await else { return Ok(()) };
            // The opening has asked again by itself; when it gave up, its error is final.
            if self.source.has_failed() {
                return Err(error);
            }
            if route.failed(&error, &shared.counters) {
                continue;
            }
            // Who asked this edge for it asks again by itself.
            match pauses.next().filter(|_| error.may_pass() && self.via.is_from_client()) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(error),
            }
        }
    }

    /// Brings the one slice of this run from disk. Gives whether it was there after all.
    async fn fill_from_disk(&mut self) -> Result<bool, FillError> {
        let card = self.source.card().await?;
        let Some(slice) = self.slices.front() else { return Ok(true) };
        let Some(read) = self.shared.cache.load_slice(&card, slice.index).await else {
            slice.progress.send_modify(|progress| progress.is_from_origin = true);
            return Ok(false);
        };
        slice.progress.send_modify(|progress| progress.groups = read.groups().cloned().map(Some).collect());
        if let Some(slice) = self.slices.pop_front() {
            slice.end(End::Complete);
        }
        Ok(true)
    }

    /// Asks for all that is left: for what lies behind the place where the run begins, and then for what of the first
    /// slice lies before it.
    async fn attempt(&mut self, route: &mut Route) -> Result<(), FillError> {
        while let Some(asked) = self.left() {
            match self.ask(asked, route).await {
                // There is no such place: somebody else may wait for what is before it.
                Err(FillError::Beyond) if self.begin > 0 => self.begin = 0,
                ended => ended?,
            }
        }
        Ok(())
    }

    /// What is to be asked for next; `None` when nothing is left. The end may lie beyond that of the blob.
    fn left(&self) -> Option<ByteRange> {
        let (first, last) = (self.slices.front()?, self.slices.back()?);
        let behind = self.slices.iter().find_map(|slice| {
            let from = if slice.index == first.index { self.begin } else { 0 };
            Some(slice.offset_of(slice.lacks(from)?))
        });
        if let Some(start) = behind {
            return Some(ByteRange { start, end: (last.index + 1) * SLICE_BYTES });
        }
        Some(ByteRange { start: first.offset_of(first.lacks(0)?), end: first.offset_of(self.begin) })
    }

    /// One request for `asked`.
    async fn ask(&mut self, asked: ByteRange, route: &mut Route) -> Result<(), FillError> {
        self.shared.counters.fills.fetch_add(1, Relaxed);
        let (answer, card) = tokio::try_join!(self.shared.upstream.range(self.id, asked, route), self.source.card())?;
        for slice in &self.slices {
            slice.progress.send_modify(|progress| progress.cache_status.clone_from(&answer.cache_status));
        }
        if answer.blob_bytes != card.blob_bytes() {
            self.doubt_size_of(&card);
            return Err(Lie::TwoSizes.into());
        }
        // A run begun before the size was known may reach beyond the end; nobody can be waiting there.
        let blob_bytes = card.blob_bytes();
        let count = slice_count(blob_bytes);
        self.slices.retain_mut(|slice| {
            slice.group_count = groups_in(slice.index, blob_bytes);
            slice.index < count
        });
        let mut body = Groups { body: answer.body, frame: Bytes::new() };
        let (mut at, end) = (asked.start, asked.end.min(blob_bytes));
        while at < end {
            let index = slice_at(at);
            let place = self.slices.iter().position(|slice| slice.index == index).ok_or(FillError::Abandoned)?;
            let until = end.min((index + 1) * SLICE_BYTES);
            self.fill_slice(&self.slices[place], at..until, &card, &mut body).await?;
            if self.slices[place].lacks(0).is_none() {
                let slice = self.slices.remove(place).expect("it was there a line above");
                slice.file(&card);
                // Whichever is the first now has its beginning still to come.
                self.begin = if place == 0 { 0 } else { self.begin };
            }
            at = until;
        }
        Ok(())
    }

    /// Fetches the bytes `lacking` of `slice`. Each chunk group is one view of one allocation, and is shown only when
    /// verified.
    async fn fill_slice(
        &self,
        slice: &SliceWriter,
        lacking: Range<u64>,
        card: &Arc<Card>,
        body: &mut Groups,
    ) -> Result<(), FillError> {
        let bytes = usize::try_from(lacking.end - lacking.start).expect("a slice fits in memory");
        let mut room = BytesMut::with_capacity(bytes);
        for group in lacking.start / GROUP_BYTES..group_count(lacking.end) {
            let bytes = card.outboard.group_bytes(group).ok_or(FillError::Beyond)?;
            body.read(&mut room, usize::try_from(bytes).expect("a chunk group fits in memory")).await?;
            let checked = room.split().freeze();
            let is_last = group + 1 == group_count(card.blob_bytes());
            if let Err(error) = card.outboard.verify_group(group, &checked) {
                if is_last {
                    self.doubt_size_of(card);
                }
                return Err(Lie::from(error).into());
            }
            if is_last {
                card.size_is_proven();
            }
            self.shared.counters.fill_bytes.fetch_add(bytes, Relaxed);
            let index = usize::try_from(group % SLICE_GROUPS).expect("a slice has sixteen chunk groups");
            slice.progress.send_modify(|progress| progress.put(index, checked));
        }
        Ok(())
    }

    /// Forgets a card whose size is contradicted, unless the blob's last group has proven it: the next reader opens the
    /// blob anew, so that one false answer does not spoil it for as long as the card would live.
    fn doubt_size_of(&self, card: &Arc<Card>) {
        if !card.is_size_proven() {
            self.shared.cache.drop_card(card);
            if let Some(neighbour) = &card.told_by {
                neighbour.blame(&Lie::TwoSizes.into(), &self.shared.counters);
            }
        }
    }
}

/// How many chunk groups slice `index` of a blob of `blob_bytes` has.
fn groups_in(index: u64, blob_bytes: u64) -> usize {
    let bytes = slice_range(index, blob_bytes).map_or(0, ByteRange::byte_count);
    usize::try_from(group_count(bytes)).expect("a slice has sixteen chunk groups")
}

/// A body read in exact lengths.
struct Groups {
    body: AnswerBody,
    /// What of the last frame was not taken yet.
    frame: Bytes,
}

impl Groups {
    /// Reads until `room` holds `bytes`.
    async fn read(&mut self, room: &mut BytesMut, bytes: usize) -> Result<(), FillError> {
        while room.len() < bytes {
            if self.frame.is_empty() {
                self.frame = self.body.next().await?.ok_or_else(FillError::cut_early)?;
            }
            let taken = self.frame.split_to(self.frame.len().min(bytes - room.len()));
            room.extend_from_slice(&taken);
        }
        Ok(())
    }
}

/// The filling side of one slice: what is written here, the followers of the slice see.
pub(super) struct SliceWriter {
    shared: Arc<Shared>,
    id: BlobId,
    index: u64,
    /// Its chunk groups; as many as a slice has until the blob's size is known.
    group_count: usize,
    era: Era,
    progress: watch::Sender<Progress>,
    /// How it ended; still `Abandoned` when the run is dropped on its way.
    end: End,
}

impl SliceWriter {
    /// The writer of slice `index` of blob `id`, and what its followers watch.
    pub(super) fn new(shared: Arc<Shared>, id: BlobId, index: u64, tier: Tier) -> (Self, watch::Receiver<Progress>) {
        let is_from_origin = tier == Tier::Origin;
        let (progress, watched) = watch::channel(Progress { is_from_origin, ..Progress::default() });
        let era = shared.cache.era();
        let (group_count, end) = (groups_in(index, u64::MAX), End::Failed(FillError::Abandoned));
        (Self { shared, id, index, group_count, era, progress, end }, watched)
    }

    /// The first chunk group of the slice, `from` or behind it, that was not verified yet.
    fn lacks(&self, from: usize) -> Option<usize> {
        self.progress.borrow().lacks(from..self.group_count)
    }

    /// Where in the blob chunk group `group` of this slice begins.
    const fn offset_of(&self, group: usize) -> u64 {
        self.index * SLICE_BYTES + group as u64 * GROUP_BYTES
    }

    /// Files the slice, all of whose groups are verified, and ends its fill.
    fn file(self, card: &Card) {
        let groups: Vec<Bytes> = self.progress.borrow().groups.iter().flatten().cloned().collect();
        let slice = Slice::new(&groups);
        let whole = slice.group(0).filter(|_| is_whole(card.blob_bytes())).cloned();
        match whole {
            Some(bytes) => {
                let whole = Whole { bytes, stored: card.stored };
                self.shared.cache.put_head(self.id, Head::Whole(whole), self.era);
            }
            None => self.shared.cache.put_slice(self.id, self.index, slice, self.era),
        }
        self.end(End::Complete);
    }

    fn end(mut self, end: End) {
        self.end = end;
    }
}

impl Drop for SliceWriter {
    /// Strikes the fill off and tells its end, in this order: whoever looks after a failure was told begins anew.
    fn drop(&mut self) {
        let mut under_way = self.shared.under_way();
        let key = (self.id, self.index);
        // After a purge another fill may stand in this one's place.
        if under_way.slices.get(&key).is_some_and(|other| other.same_channel(&self.progress.subscribe())) {
            under_way.slices.remove(&key);
        }
        drop(under_way);
        let end = self.end.clone();
        self.progress.send_modify(|progress| progress.end = Some(end));
    }
}
