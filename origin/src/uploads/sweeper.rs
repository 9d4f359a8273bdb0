//! Forgetting: uploads that nobody finished, answers that nobody will ask for again, blobs whose time is over, bytes that
//! a crash left behind.
//!
//! Without it every upload that a phone gave up would take disk for ever.
//!
//! Promise: nothing that is being written is touched, and a clock that jumps erases nothing.

use std::time::{Duration, Instant, SystemTime};

use tokio_util::sync::CancellationToken;
use waxwing_protocol::{Timestamp, UploadId};

use super::{UploadError, Uploads};
use crate::blobs::Blobs;
use crate::metrics::handles;
use crate::store::{Lives, UploadRecord, UploadState, Urgency};

/// Records looked at in one go.
const PAGE: usize = 256;

/// Bytes without a record are left alone until they are this old: their record may be about to be written.
const COLLECT_AGE: Duration = Duration::from_secs(60 * 60);

/// How far the wall clock may run away from the monotonic clock between two sweeps.
const JUMP_MAX: Duration = Duration::from_secs(5 * 60);

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Uploads removed that were not finished.
    pub(crate) unfinished: u64,
    /// Finished uploads whose answer is no longer remembered.
    pub(crate) finished: u64,
}

impl Uploads {
    /// Removes the uploads that have expired by `now`, and enters into the metrics how many are left.
    pub(crate) async fn sweep(&self, now: Timestamp) -> Result<Swept, UploadError> {
        let mut swept = Swept::default();
        let (mut receiving, mut complete, mut unread) = (0_u32, 0_u32, 0_u32);
        let limits = &self.0.limits;
        let lives = Lives {
            shortest: limits.upload_expiry.min(limits.unacknowledged_expiry),
            longest: limits.upload_expiry.max(limits.unacknowledged_expiry),
        };
        let mut after = None;
        loop {
            let Some(page) = self.0.store.due(after, PAGE, now, lives).await? else { return Ok(swept) };
            unread = unread.saturating_add(page.unread);
            for (id, record) in page.entries {
                // What a request is busy with has not expired, whatever its record said before.
                if record.expires > now || self.0.turns.is_taken(id) {
                    self.give_back_idle_room(id, &record, now).await;
                    match record.state {
                        UploadState::Receiving { .. } => receiving = receiving.saturating_add(1),
                        UploadState::Complete { .. } => complete = complete.saturating_add(1),
                    }
                    continue;
                }
                // Its turn is taken and its record asked for again: a request that came between may have moved it on.
                let _turn = self.0.turns.take(id).await;
                let record = self.0.store.upload(id).await?.filter(|record| record.expires <= now);
                let Some(record) = record else { continue };
                self.0.store.remove(id).await?;
                match record.state {
                    UploadState::Receiving { .. } => swept.unfinished += 1,
                    UploadState::Complete { .. } => swept.finished += 1,
                }
            }
            after = page.last;
            if after.is_none() {
                break;
            }
        }
        let handles = handles();
        handles.unread.set(unread);
        handles.receiving.set(receiving);
        handles.complete.set(complete);
        handles.expired_receiving.increment(swept.unfinished);
        handles.expired_complete.increment(swept.finished);
        Ok(swept)
    }

    /// What [`Self::sweep`] would remove as of `now`.
    pub(crate) async fn due(&self, now: Timestamp) -> Result<Swept, UploadError> {
        let mut due = Swept::default();
        let mut after = None;
        loop {
            let page = self.0.store.uploads(after, PAGE).await?;
            let Some((last, _)) = page.last() else { return Ok(due) };
            after = Some(*last);
            for (_, record) in page.iter().filter(|(id, record)| record.expires <= now && !self.0.turns.is_taken(*id)) {
                match record.state {
                    UploadState::Receiving { .. } => due.unfinished += 1,
                    UploadState::Complete { .. } => due.finished += 1,
                }
            }
        }
    }

    /// Frees bytes that a crash left without a record, as of `now`.
    pub(crate) async fn collect(&self, now: Timestamp) -> Result<u64, UploadError> {
        Ok(self.0.store.collect(now.minus(COLLECT_AGE)).await?)
    }

    /// The same, called again and again.
    async fn collect_again(&self, now: Timestamp) -> Result<u64, UploadError> {
        Ok(self.0.store.collect_again(now.minus(COLLECT_AGE), now).await?)
    }

    /// Of how many uploads [`Self::collect`] would free bytes.
    pub(crate) async fn leftovers(&self, now: Timestamp) -> Result<u64, UploadError> {
        Ok(self.0.store.leftovers(now.minus(COLLECT_AGE)).await?)
    }

    /// Records of uploads in the order of their ids, at most `limit`, those after `after`.
    pub(crate) async fn list(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<(UploadId, UploadRecord)>, UploadError> {
        Ok(self.0.store.uploads(after, limit).await?)
    }
}

/// Sweeps every `interval` until `stop`. Reads the clock: the only part of the engine that does.
pub(crate) async fn run(uploads: Uploads, blobs: Blobs, interval: Duration, stop: CancellationToken) {
    let mut clocks = Clocks::read();
    collect(&uploads, clocks.wall).await;
    let mut collected = clocks.monotonic;
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        let now = Clocks::read();
        // Again after a while: what a crash left just before this start was too young the first time.
        if now.monotonic.duration_since(collected) >= COLLECT_AGE {
            collect(&uploads, now.wall).await;
            collected = now.monotonic;
        }
        if now.jumped_since(clocks) {
            tracing::error!("the wall clock jumped: nothing is expired until the next sweep");
        } else {
            match uploads.sweep(now.wall).await {
                Ok(swept) if swept == Swept::default() => {}
                Ok(swept) => tracing::info!(swept.unfinished, swept.finished, "forgot expired uploads"),
                Err(error) => tracing::warn!(error = %error, "a sweep failed"),
            }
            match blobs.sweep(now.wall).await {
                Ok(0) => {}
                Ok(ended) => {
                    tracing::info!(ended, "ended {ended} times that somebody had a blob");
                }
                Err(error) => tracing::warn!(error = %error, "a sweep of blobs failed"),
            }
        }
        match blobs.compact(Urgency::NowAndThen, stop.clone()).await {
            Ok(0) => {}
            Ok(freed_bytes) => tracing::info!(freed_bytes, "gave back {freed_bytes} bytes of blobs that went"),
            Err(error) => tracing::warn!(error = %error, "the space of blobs that went was not given back"),
        }
        clocks = now;
    }
}

async fn collect(uploads: &Uploads, now: Timestamp) {
    match uploads.collect_again(now).await {
        Ok(0) => {}
        Ok(freed) => tracing::info!(freed, "freed the bytes of {freed} uploads that a crash cut off"),
        Err(error) => tracing::warn!(error = %error, "looking for bytes without a record failed"),
    }
}

/// Both clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    wall: Timestamp,
    monotonic: Instant,
}

impl Clocks {
    fn read() -> Self {
        Self { wall: SystemTime::now().into(), monotonic: Instant::now() }
    }

    /// Whether the wall clock was moved between `earlier` and now.
    fn jumped_since(self, earlier: Self) -> bool {
        let passed = self.monotonic.saturating_duration_since(earlier.monotonic);
        let expected = earlier.wall.plus(passed);
        self.wall.since(expected).max(expected.since(self.wall)) > JUMP_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_seen_in_both_directions() {
        let start = Clocks { wall: Timestamp::from_secs(1_000_000), monotonic: Instant::now() };
        let later = |wall_s: u64, passed_s: u64| Clocks {
            wall: Timestamp::from_secs(wall_s),
            monotonic: start.monotonic + Duration::from_secs(passed_s),
        };
        assert!(!later(1_000_060, 60).jumped_since(start));
        assert!(later(1_086_460, 60).jumped_since(start));
        assert!(later(913_660, 60).jumped_since(start));
    }
}
