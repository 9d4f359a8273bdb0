//! Opening a blob: its size and its outboard, fetched once for all who ask.
//!
//! Nothing of a blob can be checked without its outboard, and no range be answered without its size. The size stands
//! in the head of the outboard's answer, so readers learn it before the outboard is there and can ask for their slices
//! side by side with it.

use std::sync::Arc;

use tokio::sync::watch;
use waxwing_protocol::blob::{Outboard, outboard_bytes};
use waxwing_protocol::{BlobId, Timestamp};

use super::error::{FillError, Lie};
use super::{RETRY_PAUSES, Shared, log_failure};
use crate::cache::{Card, Head};
use crate::peers::Route;
use crate::tombstones::Era;
use crate::via::Via;

/// An outboard of more bytes is checked on a blocking thread: 1 MiB of it, for a blob of 2 GiB, takes about 2 ms.
const INLINE_CHECK_BYTES_MAX: usize = 1 << 20;

/// A blob on its way to being known.
#[derive(Debug)]
pub(crate) enum Opening {
    /// Nothing has been heard.
    Waiting,
    /// The origin told its size in bytes.
    Sized(u64),
    /// Its outboard was checked against the id.
    Open(Arc<Card>),
    /// It could not be opened.
    Failed(FillError),
}

/// Where the card of a blob comes from.
#[derive(Clone, Debug)]
pub(crate) enum CardSource {
    /// It is here.
    Known(Arc<Card>),
    /// It is being fetched.
    Opening(watch::Receiver<Opening>),
}

impl CardSource {
    /// The blob's size in bytes, as soon as the origin has told it. Provisional: see [`Card`].
    pub(crate) async fn blob_bytes(&self) -> Result<u64, FillError> {
        match self {
            Self::Known(card) => Ok(card.blob_bytes()),
            Self::Opening(opening) => {
                let mut opening = opening.clone();
                let told = opening.wait_for(|state| !matches!(state, Opening::Waiting)).await;
                match &*told.map_err(|_| FillError::Abandoned)? {
                    Opening::Waiting => Err(FillError::Abandoned),
                    Opening::Sized(blob_bytes) => Ok(*blob_bytes),
                    Opening::Open(card) => Ok(card.blob_bytes()),
                    Opening::Failed(error) => Err(error.clone()),
                }
            }
        }
    }

    /// The card, once the outboard has been checked.
    pub(crate) async fn card(&self) -> Result<Arc<Card>, FillError> {
        match self {
            Self::Known(card) => Ok(Arc::clone(card)),
            Self::Opening(opening) => {
                let mut opening = opening.clone();
                let ended = opening.wait_for(|state| matches!(state, Opening::Open(_) | Opening::Failed(_))).await;
                match &*ended.map_err(|_| FillError::Abandoned)? {
                    Opening::Waiting | Opening::Sized(_) => Err(FillError::Abandoned),
                    Opening::Open(card) => Ok(Arc::clone(card)),
                    Opening::Failed(error) => Err(error.clone()),
                }
            }
        }
    }

    /// Whether the card will never come.
    pub(crate) fn has_failed(&self) -> bool {
        match self {
            Self::Known(_) => false,
            Self::Opening(opening) => matches!(*opening.borrow(), Opening::Failed(_)),
        }
    }
}

/// The task that opens one blob.
pub(super) struct Task {
    shared: Arc<Shared>,
    id: BlobId,
    now: Timestamp,
    via: Arc<Via>,
    era: Era,
    state: watch::Sender<Opening>,
    /// How it ended; still `Abandoned` when the task is dropped on its way.
    end: Result<Arc<Card>, FillError>,
}

impl Task {
    /// The task, and what its readers watch.
    pub(super) fn new(
        shared: Arc<Shared>,
        id: BlobId,
        now: Timestamp,
        via: Arc<Via>,
    ) -> (Self, watch::Receiver<Opening>) {
        let (state, watched) = watch::channel(Opening::Waiting);
        let era = shared.cache.era();
        (Self { shared, id, now, via, era, state, end: Err(FillError::Abandoned) }, watched)
    }

    /// Fetches and checks the outboard, asking again within the bound, and files the card.
    pub(super) async fn open(mut self) {
        self.end = self.try_open().await;
        match &self.end {
            Ok(card) => self.shared.cache.put_head(self.id, Head::Card(Arc::clone(card)), self.era),
            Err(error) => {
                log_failure(&self.shared.counters, self.id, error);
                if matches!(error, FillError::NotFound) {
                    self.shared.cache.put_absent(self.id);
                }
            }
        }
    }

    async fn try_open(&self) -> Result<Arc<Card>, FillError> {
        let _turn = self.shared.turn(&self.shared.opening_turns).await?;
        let mut route = self.shared.upstream.peers.route(self.id, 0, &self.via);
        let mut pauses = RETRY_PAUSES.iter();
        loop {
            let error = match self.attempt(&mut route).await {
                Ok(card) => return Ok(card),
                Err(error) => error,
            };
            if route.failed(&error, &self.shared.counters) {
                continue;
            }
            // Who asked this edge for it asks again by itself.
            match pauses.next().filter(|_| error.may_pass() && self.via.is_from_client()) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(error),
            }
        }
    }

    async fn attempt(&self, route: &mut Route) -> Result<Arc<Card>, FillError> {
        let mut answer = self.shared.upstream.outboard(self.id, route).await?;
        let (id, blob_bytes) = (self.id, answer.blob_bytes);
        if blob_bytes > self.shared.blob_bytes_max {
            return Err(FillError::TooLarge { blob_bytes });
        }
        if let Opening::Sized(told) = *self.state.borrow()
            && told != blob_bytes
        {
            return Err(Lie::TwoSizes.into());
        }
        self.state.send_modify(|state| *state = Opening::Sized(blob_bytes));
        let bytes = answer.body.collect(outboard_bytes(blob_bytes)).await?;
        let checked = if bytes.len() <= INLINE_CHECK_BYTES_MAX {
            Outboard::verify(id, blob_bytes, &bytes)
        } else {
            let check = tokio::task::spawn_blocking(move || Outboard::verify(id, blob_bytes, &bytes));
            check.await.map_err(|_| FillError::Abandoned)?
        };
        Ok(Arc::new(Card::new(checked.map_err(Lie::from)?, self.now).told_by(route.from().cloned())))
    }
}

impl Drop for Task {
    /// Strikes the opening off and tells the end, also when the task is dropped on its way. In this order: whoever
    /// looks after the end was told begins anew.
    fn drop(&mut self) {
        let mut under_way = self.shared.under_way();
        // After a purge another opening may stand in this one's place.
        if under_way.openings.get(&self.id).is_some_and(|other| other.same_channel(&self.state.subscribe())) {
            under_way.openings.remove(&self.id);
        }
        drop(under_way);
        let end = match std::mem::replace(&mut self.end, Err(FillError::Abandoned)) {
            Ok(card) => Opening::Open(card),
            Err(error) => Opening::Failed(error),
        };
        self.state.send_modify(|state| *state = end);
    }
}
