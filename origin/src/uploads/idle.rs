//! Room that nobody is filling: taken for uploads between whose parts nothing happens any more.
//!
//! A request takes room for all its upload will have, and between orderly parts the room stays, since the next usually comes
//! at once. But a phone that was switched off after its first part would hold the disk for all the others until its upload
//! expires, which takes a day.
//!
//! Promise: nobody is disturbed. An upload that a request is busy with is left alone, and the next request takes the room
//! again, or finds out before its first byte that there is none.

use std::time::Duration;

use waxwing_protocol::{Timestamp, UploadId};

use super::Uploads;
use crate::metrics::handles;
use crate::store::{UploadRecord, UploadState};

/// How long after its last commit an upload keeps the room it has not filled: longer than a phone changes networks, far
/// shorter than a day.
pub(super) const ROOM_KEPT: Duration = Duration::from_secs(5 * 60);

impl Uploads {
    /// Gives back the room that upload `id` took beyond its bytes, if nothing has happened to it for [`ROOM_KEPT`].
    pub(super) async fn give_back_idle_room(&self, id: UploadId, record: &UploadRecord, now: Timestamp) {
        let UploadState::Receiving { .. } = record.state else { return };
        // Without a length no room was taken.
        if record.length.is_none_or(|length| length <= record.offset) {
            return;
        }
        let limits = &self.0.limits;
        let expiry = if record.acknowledged { limits.upload_expiry } else { limits.unacknowledged_expiry };
        if now.since(record.expires.minus(expiry)) < ROOM_KEPT {
            return;
        }
        let Some(_turn) = self.0.turns.take_if_free(id) else { return };
        match self.0.store.give_back(id).await {
            Ok(0) => {}
            Ok(bytes) => {
                handles().idle_room_bytes.increment(bytes);
                tracing::debug!(upload.id = %id, bytes, "gave back {bytes} bytes that an idle upload had reserved");
            }
            // It is tried again at the next sweep.
            Err(error) => {
                tracing::warn!(upload.id = %id, error = %error, "the room of an idle upload was not given back");
            }
        }
    }
}
