//! Request coalescing: many readers, one fetch from the origin.
//!
//! A photo sent to a large group is asked for hundreds of times in the same second. Without this module each of those
//! cache misses would travel to the origin.
//!
//! The first reader to miss a slice starts a *fill*; everyone else follows its chunk groups as they are verified. Slices
//! that lie side by side and are missed together share one ranged request, a [`run`]. A blob seen for the first time is
//! *opened*: its outboard is fetched, once, beside the first slices.
//!
//! Promises:
//! - A slice is asked for once however many wait. Whoever looks while it is filled follows; whoever looks afterwards
//!   finds it in the cache, since it is filed there before its fill is struck off.
//! - A fill belongs to the cache, not to the request that began it: it outlives a client that hangs up, and no reader's
//!   pace slows it. It asks again by itself, within a bound, and goes on where it stood; when it gives up, a reader that
//!   had only joined it may begin another.
//! - Nobody gets a byte of a chunk group before it is checked against the blob's id, and a fill that fails ends
//!   [`End::Failed`], which no reader can take for the end of the blob.

mod error;
mod opening;
mod run;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use waxwing_protocol::{BlobId, Timestamp};

use crate::Config;
use crate::cache::{Cache, Head, Tier};
use crate::peers::begins_stretch;
use crate::stats::Counters;
use crate::upstream::Upstream;
use crate::via::Via;

pub(crate) use error::{FillError, Lie};
pub(crate) use opening::{CardSource, Opening};
use run::{Run, SliceWriter};

/// How often a fill asks again after a failure that may pass, and how long it waits before each: in all well under the
/// time a client waits for its first byte.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(400)];

/// The fills under way. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Fills {
    shared: Arc<Shared>,
    /// The way of the requests for which these fills are begun.
    via: Arc<Via>,
}

#[derive(Debug)]
struct Shared {
    cache: Arc<Cache>,
    upstream: Arc<Upstream>,
    under_way: Mutex<UnderWay>,
    /// Turns for runs and for openings are apart: a run waits for its blob's opening, never the other way round.
    run_turns: Semaphore,
    opening_turns: Semaphore,
    turn_wait: Duration,
    blob_bytes_max: u64,
    counters: Arc<Counters>,
}

/// What is being fetched now. Held for look-ups only, never over an await.
#[derive(Debug, Default)]
struct UnderWay {
    slices: HashMap<(BlobId, u64), watch::Receiver<Progress>>,
    openings: HashMap<BlobId, watch::Receiver<Opening>>,
}

/// A slice on its way in.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// The chunk groups of the slice, those that were verified so far.
    groups: Vec<Option<Bytes>>,
    /// Whether the origin is asked for it: a miss. Else it comes from this edge's disk.
    pub(crate) is_from_origin: bool,
    /// What the edge it comes from did, RFC 9211; `None` when it comes from the origin.
    pub(crate) cache_status: Option<Arc<str>>,
    /// How it ended; `None` while more is to come.
    pub(crate) end: Option<End>,
}

impl Progress {
    /// Chunk group `index` within the slice, if it was verified.
    pub(crate) fn group(&self, index: usize) -> Option<&Bytes> {
        self.groups.get(index)?.as_ref()
    }

    /// The first of these chunk groups that is not there.
    fn lacks(&self, mut groups: Range<usize>) -> Option<usize> {
        groups.find(|index| self.group(*index).is_none())
    }

    /// Notes a verified chunk group.
    fn put(&mut self, index: usize, bytes: Bytes) {
        if self.groups.len() <= index {
            self.groups.resize(index + 1, None);
        }
        self.groups[index] = Some(bytes);
    }
}

/// The two ways a fill ends. Only one of them means that all bytes are there.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// Every chunk group of the slice has been verified.
    Complete,
    /// No more will come.
    Failed(FillError),
}

/// A slice on its way in, as one reader follows it.
#[derive(Clone, Debug)]
pub(crate) struct Following {
    /// Which slice.
    pub(crate) index: u64,
    /// How far it is.
    pub(crate) progress: watch::Receiver<Progress>,
    /// Whether this reader's look began the fill, rather than joining one.
    pub(crate) begun: bool,
}

/// A blob being opened, or opened already.
#[derive(Debug)]
pub(crate) enum Opened {
    /// It was in the cache after all.
    Already(Head),
    /// It is on its way.
    UnderWay {
        /// Where size and outboard will come from.
        source: CardSource,
        /// Whether this call began it.
        begun: bool,
        /// The first slices, as far as they are not in the cache.
        following: Vec<Following>,
    },
}

impl Fills {
    /// Fills into `cache` from `upstream`.
    pub(crate) fn new(config: &Config, cache: Arc<Cache>, upstream: Arc<Upstream>, counters: Arc<Counters>) -> Self {
        let turns = usize::try_from(config.fills_max).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
        let shared = Shared {
            cache,
            upstream,
            under_way: Mutex::default(),
            run_turns: Semaphore::new(turns),
            opening_turns: Semaphore::new(turns),
            turn_wait: config.fill_wait(),
            blob_bytes_max: config.blob_bytes_max,
            counters,
        };
        Self { shared: Arc::new(shared), via: Arc::default() }
    }

    /// The same fills, to be begun for requests that have come this way.
    pub(crate) fn via(&self, via: Via) -> Self {
        Self { shared: Arc::clone(&self.shared), via: Arc::new(via) }
    }

    /// Opens blob `id`, which the cache does not know: joins the opening under way, or begins one and beside it a run
    /// of `first_slices`, those the reader is sure to want when the blob is long enough to have them. It waits for the
    /// byte at `wanted` first.
    pub(crate) fn open(&self, id: BlobId, first_slices: Range<u64>, wanted: u64, now: Timestamp) -> Opened {
        let mut under_way = self.shared.under_way();
        if let Some(opening) = under_way.openings.get(&id) {
            let source = CardSource::Opening(opening.clone());
            return Opened::UnderWay { source, begun: false, following: Vec::new() };
        }
        // An opening files its card before it is struck off, so one that ended since our miss is seen here.
        if let Some(head) = self.shared.cache.head(id) {
            return Opened::Already(head);
        }
        let (task, opening) = opening::Task::new(Arc::clone(&self.shared), id, now, Arc::clone(&self.via));
        under_way.openings.insert(id, opening.clone());
        let source = CardSource::Opening(opening);
        let (following, runs) = self.plan(&mut under_way, id, &source, first_slices, wanted);
        drop(under_way);
        tokio::spawn(task.open());
        runs.into_iter().for_each(|run| drop(tokio::spawn(run.fill())));
        Opened::UnderWay { source, begun: true, following }
    }

    /// Looks at `slices` of blob `id`: follows those on their way in, begins to fetch those that are missing, passes over
    /// those in the cache. All must exist. The reader waits for the byte at `wanted` first.
    pub(crate) fn follow(&self, id: BlobId, source: &CardSource, slices: Range<u64>, wanted: u64) -> Vec<Following> {
        let mut under_way = self.shared.under_way();
        let (following, runs) = self.plan(&mut under_way, id, source, slices, wanted);
        drop(under_way);
        runs.into_iter().for_each(|run| drop(tokio::spawn(run.fill())));
        following
    }

    /// Forgets which fills of blob `id` are under way, so that nobody joins them any more; of all blobs when `None`.
    /// Those who follow them already get what they were promised.
    pub(crate) fn strike_off(&self, id: Option<BlobId>) {
        let mut under_way = self.shared.under_way();
        under_way.slices.retain(|(other, _), _| id.is_some_and(|id| id != *other));
        under_way.openings.retain(|other, _| id.is_some_and(|id| id != *other));
    }

    /// Registers fills for what is missing of `slices`, one run for each stretch without a gap.
    fn plan(
        &self,
        under_way: &mut UnderWay,
        id: BlobId,
        source: &CardSource,
        slices: Range<u64>,
        wanted: u64,
    ) -> (Vec<Following>, Vec<Run>) {
        let mut following = Vec::new();
        let mut runs: Vec<Run> = Vec::new();
        for index in slices {
            if let Some(progress) = under_way.slices.get(&(id, index)) {
                following.push(Following { index, progress: progress.clone(), begun: false });
                continue;
            }
            // After the look at the fills, not before: a fill files its slice before it is struck off.
            if self.shared.cache.has_slice(id, index) {
                continue;
            }
            let tier = if self.shared.cache.has_slice_on_disk(id, index) { Tier::Disk } else { Tier::Origin };
            let (writer, progress) = SliceWriter::new(Arc::clone(&self.shared), id, index, tier);
            under_way.slices.insert((id, index), progress.clone());
            following.push(Following { index, progress, begun: true });
            match runs.last_mut().filter(|run| run.takes(tier, index) && !begins_stretch(index)) {
                Some(run) => run.push(writer),
                None => {
                    let (shared, via) = (Arc::clone(&self.shared), Arc::clone(&self.via));
                    runs.push(Run::new(shared, id, source.clone(), tier, via, writer).beginning_at(wanted));
                }
            }
        }
        (following, runs)
    }
}

impl Shared {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        // Nothing under this lock can panic half-way through a change: a poisoned map is a sound map.
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn, within the bound.
    async fn turn<'s>(&self, turns: &'s Semaphore) -> Result<SemaphorePermit<'s>, FillError> {
        match tokio::time::timeout(self.turn_wait, turns.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) => Err(FillError::Abandoned),
            Err(_) => Err(FillError::Busy),
        }
    }
}

/// Logs and counts why a fill failed: once, here, however many waited for it.
fn log_failure(counters: &Counters, id: BlobId, error: &FillError) {
    counters.fills_failed.fetch_add(1, Relaxed);
    if matches!(error, FillError::Lie(_)) {
        counters.origin_lies.fetch_add(1, Relaxed);
    }
    match error {
        FillError::NotFound | FillError::Beyond => tracing::debug!(blob.id = %id, "fill of {id} ended: {error}"),
        FillError::Denied { .. } => {
            tracing::error!("{error}; nothing new can be served until an operator gives this edge a valid one");
        }
        _ => tracing::warn!(blob.id = %id, "fill of {id} failed: {error}"),
    }
}
