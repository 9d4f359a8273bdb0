//! Events: one object each, written before the blob it tells of, and told once that is there.
//!
//! The other way round, a crash between the two would leave a blob that nobody is told of. An event whose blob never came
//! is told to nobody, and removed when it is old enough for no completion to be under way.

use std::time::{Duration, SystemTime};

use waxwing_protocol::{Timestamp, UploadId};

use super::Shared;
use super::bucket::PAGE;
use super::objects::{EVENTS, StoredEvent, decode, encode, event_key};
use crate::store::{Event, NewBlob, StoreError};

/// How long an event's blob may take to come.
const PENDING_MAX: Duration = Duration::from_secs(24 * 60 * 60);

impl Shared {
    /// Writes that upload `upload` is about to become `blob`.
    pub(super) async fn announce(&self, upload: UploadId, blob: &NewBlob) -> Result<(), StoreError> {
        let event = Event { upload, at: blob.stored_at, blob: blob.id, blob_bytes: blob.blob_bytes, owner: blob.owner };
        self.bucket.put(&event_key(&event), encode(&StoredEvent::from(event))?).await
    }

    /// Events whose blobs are there, the oldest first, at most `limit`.
    pub(super) async fn events(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let mut events = Vec::new();
        for listed in self.bucket.list(EVENTS, None, PAGE).await? {
            if events.len() == limit {
                break;
            }
            // Settled by another origin since it was listed.
            let Some(found) = self.bucket.get(&listed.key).await? else { continue };
            let event = Event::from(decode::<StoredEvent>(&listed.key, &found.bytes)?);
            if self.pointer(event.blob).await?.0.owners.contains_key(&event.owner) {
                events.push(event);
            } else if listed.modified.plus(PENDING_MAX) < Timestamp::from(SystemTime::now()) {
                self.bucket.remove(&listed.key).await?;
            }
        }
        Ok(events)
    }
}
