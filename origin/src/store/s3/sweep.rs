//! Looking for what is due without reading everything.
//!
//! Each record is an object, and to read one costs a request. A million open uploads, read by each origin each minute,
//! would be sixty million requests an hour from every origin. A listing costs a thousandth of that and tells when an object
//! was written. So one origin at a time looks, for all of them, and reads a record only when its age is about what one of
//! the two times is after which uploads expire: once or twice in an upload's life.
//!
//! The same holds for garbage: bytes that a record or a pointer named once are removed by whoever unnames them, so only
//! what was written of late is asked about, and everything once a week.

use std::time::Duration;

use futures_util::future::try_join_all;
use waxwing_protocol::{Timestamp, UploadId};

use super::Shared;
use super::bucket::{Expect, PAGE, Swap};
use super::objects::{Draft, StoredTurn, UPLOADS, decode, encode, upload_in, upload_key};
use crate::store::{DuePage, Lives, StoreError, StoreErrorKind, UploadRecord};

/// Written when a look at all uploads begins.
const SWEEP: &str = "turns/sweep";

/// Written when a look at what was written of late begins.
const RECENT: &str = "turns/recent";

/// Written when a look at everything begins.
const EVERYTHING: &str = "turns/everything";

/// How long no origin looks for garbage after one did: a little less than each of them waits.
const RECENT_INTERVAL: Duration = Duration::from_secs(50 * 60);

/// How often everything is asked about.
const EVERYTHING_INTERVAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How far a look at what is recent reaches back before the one before it: clocks differ, and a look takes a while.
const OVERLAP: Duration = Duration::from_secs(2 * 60 * 60);

/// In how many looks in a row an upload is read whose age is about the shorter time.
const LOOKS: u32 = 3;

/// Records read side by side.
const PARALLEL: usize = 16;

impl Shared {
    /// Takes the turn at `key` for this origin, when nobody has had it for `interval`. Gives when it was had before.
    pub(super) async fn take_turn(
        &self,
        key: &str,
        interval: Duration,
        now: Timestamp,
    ) -> Result<Option<Timestamp>, StoreError> {
        let listed = self.bucket.list(key, None, 1).await?;
        if listed.first().is_some_and(|last| last.key == key && now.since(last.modified) < interval) {
            return Ok(None);
        }
        let found = self.bucket.get(key).await?;
        let before = found.as_ref().map(|found| decode::<StoredTurn>(key, &found.bytes)).transpose()?;
        let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Tag(&found.tag));
        let swap = self.bucket.swap(key, expect, encode(&StoredTurn { at: now })?).await?;
        Ok((swap != Swap::Lost).then(|| before.map_or_else(Timestamp::default, |before| before.at)))
    }

    /// Whether an upload whose object was written so long ago may have expired.
    fn may_be_due(&self, age: Duration, lives: Lives) -> bool {
        let window = self.settings.sweep_interval.saturating_mul(LOOKS);
        age >= lives.longest || (age >= lives.shortest && age < lives.shortest.saturating_add(window))
    }

    pub(super) async fn due(
        &self,
        after: Option<UploadId>,
        now: Timestamp,
        lives: Lives,
    ) -> Result<Option<DuePage>, StoreError> {
        if after.is_none() && self.take_turn(SWEEP, self.settings.sweep_interval, now).await?.is_none() {
            return Ok(None);
        }
        let page = self.bucket.list(UPLOADS, after.map(upload_key).as_deref(), PAGE).await?;
        let mut due = DuePage { entries: Vec::new(), unread: 0, last: None };
        let mut asked = Vec::new();
        for listed in &page {
            let Some(id) = upload_in(&listed.key) else { continue };
            due.last = Some(id);
            if self.may_be_due(now.since(listed.modified), lives) {
                asked.push(id);
            } else {
                due.unread += 1;
            }
        }
        for ids in asked.chunks(PARALLEL) {
            let records = try_join_all(ids.iter().map(|id| self.record_if_readable(*id))).await?;
            due.entries.extend(records.into_iter().flatten());
        }
        due.last = due.last.filter(|_| page.len() == PAGE);
        Ok(Some(due))
    }

    /// The record of an upload. A damaged one is told in the log and left out, so that it hides no other.
    pub(super) async fn record_if_readable(
        &self,
        id: UploadId,
    ) -> Result<Option<(UploadId, UploadRecord)>, StoreError> {
        match self.draft(id).await {
            Ok(Some((Draft { record: Some(record), removed: false, .. }, _))) => Ok(Some((id, record))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                tracing::error!(upload.id = %id, error = %error, "an upload's record is damaged");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// From when on what was written is to be asked about; `None` when another origin sees to it.
    pub(super) async fn collect_since(&self, now: Timestamp) -> Result<Option<Timestamp>, StoreError> {
        let recent = self.take_turn(RECENT, RECENT_INTERVAL, now).await?;
        let Some(before) = recent else { return Ok(None) };
        if self.take_turn(EVERYTHING, EVERYTHING_INTERVAL, now).await?.is_some() {
            return Ok(Some(Timestamp::default()));
        }
        Ok(Some(before.minus(OVERLAP)))
    }
}
