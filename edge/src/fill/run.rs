//! A run: slices that lie side by side, fetched by one ranged request, checked group by group and handed out at once.

use std::collections::VecDeque;
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
use crate::slice::{SLICE_BYTES, SLICE_GROUPS, Slice, slice_count, slice_range};
use crate::tombstones::Era;
use crate::upstream::AnswerBody;
use crate::via::Via;

/// The task that fills adjacent slices of one blob.
pub(super) struct Run {
    shared: Arc<Shared>,
    id: BlobId,
    source: CardSource,
    /// Whence the bytes are to come. What the disk turns out not to have, the origin is asked for.
    tier: Tier,
    /// The way of the request for which it was begun.
    via: Arc<Via>,
    /// The slices not complete yet, in order and without a gap.
    slices: VecDeque<SliceWriter>,
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
        Self { shared, id, source, tier, via, slices: VecDeque::from([first]) }
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
        slice.progress.send_modify(|progress| progress.groups = read.groups().cloned().collect());
        if let Some(slice) = self.slices.pop_front() {
            slice.end(End::Complete);
        }
        Ok(true)
    }

    /// One request for all that is left, from the first chunk group not verified yet.
    async fn attempt(&mut self, route: &mut Route) -> Result<(), FillError> {
        let (Some(first), Some(last)) = (self.slices.front(), self.slices.back()) else { return Ok(()) };
        let asked = ByteRange { start: first.offset(), end: (last.index + 1) * SLICE_BYTES };
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
        let count = slice_count(card.blob_bytes());
        self.slices.retain(|slice| slice.index < count);
        let mut body = Groups { body: answer.body, frame: Bytes::new() };
        while let Some(slice) = self.slices.front() {
            self.fill_slice(slice, &card, &mut body).await?;
            let slice = self.slices.pop_front().expect("the front was there a line above");
            slice.file(&card);
        }
        Ok(())
    }

    /// Fetches what `slice` lacks. Each chunk group is one view of one allocation, and is shown only when verified.
    async fn fill_slice(&self, slice: &SliceWriter, card: &Arc<Card>, body: &mut Groups) -> Result<(), FillError> {
        let range = slice_range(slice.index, card.blob_bytes()).ok_or(FillError::Beyond)?;
        let lacking = range.end - slice.offset();
        let mut room = BytesMut::with_capacity(usize::try_from(lacking).expect("a slice fits in memory"));
        for group in slice.offset() / GROUP_BYTES..group_count(range.end) {
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
            slice.progress.send_modify(|progress| progress.groups.push(checked));
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
        (Self { shared, id, index, era, progress, end: End::Failed(FillError::Abandoned) }, watched)
    }

    /// Where in the blob the first byte not verified yet is.
    fn offset(&self) -> u64 {
        let groups = self.progress.borrow().groups.len() as u64;
        self.index * SLICE_BYTES + groups.min(SLICE_GROUPS) * GROUP_BYTES
    }

    /// Files the slice, all of whose groups are verified, and ends its fill.
    fn file(self, card: &Card) {
        let slice = Slice::new(&self.progress.borrow().groups);
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
