//! Owners whose time is over.
//!
//! A pointer is written whenever an owner keeps its blob. So one that was not written for as long as an owner may have a
//! blob has owners of which all are due; a listing tells which these are, and only they are read. One origin at a time
//! looks through it for all.
//!
//! That leaves owners who let their time pass while others kept the blob. No listing tells them. They go when somebody
//! keeps the blob, since its pointer is written then, or when all pointers are read anyway, to count what owners hold, which
//! is done once a day where there are few enough.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use waxwing_protocol::{BlobId, Timestamp};

use super::Shared;
use super::bucket::PAGE;
use super::objects::{BLOBS, Pointer, blob_in};
use crate::store::{StoreError, StoreErrorKind};

/// Written when a look through all pointers begins.
const WALK: &str = "turns/walk";

/// Pages of pointers looked through in one go.
const WALK_PAGES: usize = 16;

/// How long an origin that another was faster than waits before it asks for the turn again, at most.
const TURN_PAUSE: Duration = Duration::from_secs(5 * 60);

/// How far pointers were looked through, and until when owners were due.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    walk: tokio::sync::Mutex<Walk>,
    due: Mutex<Option<Due>>,
}

#[derive(Debug, Default)]
struct Walk {
    /// After which key to go on; `None` between two times through.
    after: Option<String>,
    /// When the next time through may begin.
    again_at: Option<Instant>,
}

/// Who is due: whoever has had a blob since `until` or longer, as of `now`. Told by whoever watches the clock for jumps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub(super) until: Timestamp,
    pub(super) now: Timestamp,
}

impl Expiry {
    /// Who was due when it was last asked; `None` before.
    pub(super) fn due(&self) -> Option<Due> {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, due: Due) {
        *self.due.lock().unwrap_or_else(PoisonError::into_inner) = Some(due);
    }
}

impl Shared {
    /// Ends for at most `limit` owners what they have had since `until` or longer; also brings to its end what a crash
    /// left of blobs that went. Gives how many were due.
    pub(super) async fn expire(
        self: &Arc<Self>,
        until: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> Result<usize, StoreError> {
        self.expiry.note(Due { until, now });
        let mut walk = self.expiry.walk.lock().await;
        if walk.again_at.is_some_and(|at| Instant::now() < at) {
            return Ok(0);
        }
        let interval = self.settings.walk_interval;
        if walk.after.is_none() && self.take_turn(WALK, interval, now).await?.is_none() {
            walk.again_at = Some(Instant::now() + interval.min(TURN_PAUSE));
            return Ok(0);
        }
        walk.again_at = None;
        let mut ended = 0;
        for _ in 0..WALK_PAGES {
            let page = self.bucket.list(BLOBS, walk.after.as_deref(), PAGE).await?;
            let is_last = page.len() < PAGE;
            for listed in page {
                let written = listed.modified.minus(self.settings.clock_ahead_max);
                if written <= until
                    && let Some(blob) = blob_in(&listed.key)
                {
                    match self.expire_one(blob, until, now).await {
                        Ok(due) => ended += due,
                        // One that cannot be read keeps no other from going.
                        Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                            tracing::error!(blob.id = %blob, error = %error, "a blob whose time is over was not removed");
                        }
                        Err(error) => return Err(error),
                    }
                }
                walk.after = Some(listed.key);
                if ended >= limit {
                    return Ok(ended);
                }
            }
            if is_last {
                *walk = Walk { after: None, again_at: Some(Instant::now() + interval) };
                break;
            }
        }
        Ok(ended)
    }

    async fn expire_one(self: &Arc<Self>, blob: BlobId, until: Timestamp, now: Timestamp) -> Result<usize, StoreError> {
        let (pointer, _) = self.pointer(blob).await?;
        if pointer.is_unfinished() {
            self.clean(blob).await?;
        }
        self.expire_owners_of(blob, &pointer, Due { until, now }).await
    }

    /// Ends for the owners in `pointer` who are due that they have `blob`. Gives how many.
    pub(super) async fn expire_owners_of(
        self: &Arc<Self>,
        blob: BlobId,
        pointer: &Pointer,
        due: Due,
    ) -> Result<usize, StoreError> {
        let mut ended = 0;
        for (owner, _) in pointer.owners.iter().filter(|(_, share)| share.since <= due.until) {
            ended += usize::from(self.disown(blob, *owner, due.until, due.now).await?);
        }
        Ok(ended)
    }

    /// How many times [`Self::expire`] would end that somebody has a blob, were it to look through everything.
    pub(super) async fn due_owners(self: &Arc<Self>, until: Timestamp) -> Result<u64, StoreError> {
        let (mut due, mut after) = (0, None::<String>);
        loop {
            let page = self.bucket.list(BLOBS, after.as_deref(), PAGE).await?;
            for listed in &page {
                let written = listed.modified.minus(self.settings.clock_ahead_max);
                let Some(blob) = blob_in(&listed.key).filter(|_| written <= until) else { continue };
                match self.pointer(blob).await {
                    Ok((pointer, _)) => {
                        due += pointer.owners.values().filter(|share| share.since <= until).count() as u64;
                    }
                    Err(error) if error.kind() == StoreErrorKind::Corrupt => {}
                    Err(error) => return Err(error),
                }
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                _ => return Ok(due),
            }
        }
    }
}
