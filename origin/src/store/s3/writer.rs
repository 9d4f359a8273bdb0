//! A claim on an upload: bytes in, parts and tails out.
//!
//! S3 takes parts of 5 MiB or more and keeps nothing of a part that is cut, while an upload may pause at any byte and
//! what was acknowledged must be there. So whole parts are sent as parts, while more comes in; what is behind them when
//! an offset is acknowledged goes to a *tail*, an object of its own, and again into the next part once that is whole.
//! Both are written before the record that speaks of them.
//!
//! A claim is the record's version: whoever claims after it from another process writes the record anew, and what this
//! claim then writes to it is refused. What it still sends to the multipart upload cannot meet what the other sends,
//! since each claim has part numbers of its own.

mod buffer;
mod claimed;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, OwnedMutexGuard};
use waxwing_protocol::UploadId;

pub(super) use self::buffer::Budget;
use self::claimed::Claimed;
use super::Shared;
use super::bucket::Tag;
use super::objects::Draft;
use crate::store::slots::{Slot, SlotGuard};
use crate::store::{NewBlob, OutboardPart, Plan, StoreError, StoreErrorKind, UploadRecord, UploadWriter};

/// Parts that come before a commit: they are sent side by side only between two of them.
const COMMIT_PARTS: u64 = 4;

/// A claim. Its work is done by tasks of their own, so that a call that nobody waits for any more ends by itself.
pub(super) struct S3Writer {
    slot: Slot,
    epoch: u64,
    claimed: Arc<Mutex<Claimed>>,
    plan: Plan,
    part_bytes: u64,
}

impl S3Writer {
    /// The claim numbered `epoch` on upload `id`, whose object is `stored` as of now, if there is one.
    pub(super) fn new(shared: Arc<Shared>, id: UploadId, slot: Slot, epoch: u64, stored: Option<(Draft, Tag)>) -> Self {
        let plan = Plan { bytes_max: shared.settings.blob_bytes_max, is_part: false };
        let part_bytes = shared.settings.config.part_bytes;
        Self { part_bytes, slot, epoch, claimed: Arc::new(Mutex::new(Claimed::new(shared, id, epoch, stored))), plan }
    }

    /// What `work` needs: the upload's slot, unless there is a newer claim, and what this one knows.
    fn enter(
        &self,
    ) -> impl Future<Output = Result<(SlotGuard, OwnedMutexGuard<Claimed>), StoreError>> + Send + 'static {
        let (slot, epoch, claimed, plan) = (self.slot.clone(), self.epoch, Arc::clone(&self.claimed), self.plan);
        async move {
            let slot = slot.enter(epoch).await?;
            let mut claimed = claimed.lock_owned().await;
            claimed.plan = plan;
            Ok((slot, claimed))
        }
    }
}

impl UploadWriter for S3Writer {
    fn expect(&mut self, plan: Plan) {
        self.plan = plan;
    }

    fn reserve(&mut self, _bytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        // A bucket has no room to take: it has as much as it is given.
        Box::pin(async { Ok(()) })
    }

    fn give_back(&mut self, _kept: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async { Ok(()) })
    }

    fn commit_bytes(&self) -> u64 {
        COMMIT_PARTS * self.part_bytes
    }

    fn write(&mut self, at: u64, data: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        let entered = self.enter();
        Box::pin(to_its_end(async move {
            let (_slot, mut claimed) = entered.await?;
            claimed.write(at, data).await
        }))
    }

    fn read(&mut self, at: u64, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        let claimed = Arc::clone(&self.claimed);
        Box::pin(async move { claimed.lock_owned().await.read(at, bytes).await })
    }

    fn commit(&mut self, record: UploadRecord, outboard: OutboardPart) -> BoxFuture<'_, Result<(), StoreError>> {
        let entered = self.enter();
        Box::pin(to_its_end(async move {
            let (_slot, mut claimed) = entered.await?;
            claimed.commit(record, outboard).await
        }))
    }

    fn complete(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: OutboardPart,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let entered = self.enter();
        Box::pin(to_its_end(async move {
            let (_slot, mut claimed) = entered.await?;
            claimed.complete(blob, record, tail, outboard).await
        }))
    }
}

/// Does `work` to its end, even when nobody waits for it any more.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    // On the heap, since records make it large.
    tokio::spawn(Box::pin(work))
        .await
        .unwrap_or_else(|error| Err(StoreError::new(StoreErrorKind::Other, "a task of the store").because(error)))
}
