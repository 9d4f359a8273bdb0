//! Blobs: who has them, for how long, and how edges read them.
//!
//! A blob stays as long as somebody has it. Without owners nobody could delete anything, since the next message may name
//! the same bytes; without an end to what owners have, every blob of a lost phone would stay for ever.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp};

use crate::config::Config;
use crate::metrics::handles;
use crate::store::{BlobReader, BlobStore, Purges, StoreError, Urgency};
use crate::uploads::Allowance;

/// How long it is remembered which blobs went: an edge that was away for longer cannot ask what it missed.
const PURGE_MEMORY: Duration = Duration::from_secs(60 * 24 * 60 * 60);

/// What is ended or forgotten in one commit.
const PAGE: usize = 1024;

/// Pages at most in one sweep, so that other work of the sweeper is not kept waiting for long.
const PAGES_MAX: usize = 64;

/// All blobs of an origin. Clones share them.
#[derive(Clone)]
pub(crate) struct Blobs {
    store: Arc<dyn BlobStore>,
    retention: Duration,
}

impl Blobs {
    /// The blobs in `store`.
    pub(crate) fn new(store: Arc<dyn BlobStore>, config: &Config) -> Self {
        Self { store, retention: config.blob_retention() }
    }

    /// Opens blob `id`; `None` when it is not here.
    pub(crate) async fn open(&self, id: BlobId) -> Result<Option<Box<dyn BlobReader>>, StoreError> {
        self.store.blob(id).await
    }

    /// Makes whoever asks an owner of blob `id`, at the cost of their quota, or lets them be one for the whole time
    /// again. False when it is not here. To know its id is to be allowed.
    pub(crate) async fn keep(&self, id: BlobId, who: &Allowance, now: Timestamp) -> Result<bool, StoreError> {
        self.store.keep(id, who.owner, who.quota_bytes, now).await
    }

    /// Ends that `owner` has blob `id`; it goes with its last owner. False when they had it not.
    pub(crate) async fn let_go(&self, id: BlobId, owner: OwnerTag, now: Timestamp) -> Result<bool, StoreError> {
        self.store.disown(id, owner, now).await
    }

    /// Ends that `owner` has any of the next blobs behind `after`; each goes with its last owner. Gives of how many, and
    /// behind which blob to go on until there is none.
    pub(crate) async fn let_all_go(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        now: Timestamp,
    ) -> Result<(u64, Option<BlobId>), StoreError> {
        let page = self.store.blobs_of(owner, after, PAGE).await?;
        let mut ended = 0;
        for blob in page.blobs {
            ended += u64::from(self.store.disown(blob, owner, now).await?);
        }
        Ok((ended, page.last))
    }

    /// Removes blob `id`, whoever has it. False when it is not here.
    pub(crate) async fn remove(&self, id: BlobId, now: Timestamp) -> Result<bool, StoreError> {
        self.store.remove_blob(id, now).await
    }

    /// Bytes that `owner` holds.
    pub(crate) async fn held_bytes(&self, owner: OwnerTag) -> Result<u64, StoreError> {
        self.store.used(owner).await
    }

    /// What an operator lets `owner` hold, whatever grants say.
    pub(crate) async fn quota(&self, owner: OwnerTag) -> Result<Option<u64>, StoreError> {
        self.store.quota(owner).await
    }

    /// Sets it; `None` for what grants say.
    pub(crate) async fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> Result<(), StoreError> {
        self.store.set_quota(owner, quota_bytes).await
    }

    /// Owners who hold anything, in the order of their tags, at most `limit`, those after `after`.
    pub(crate) async fn owners(
        &self,
        after: Option<OwnerTag>,
        limit: usize,
    ) -> Result<Vec<(OwnerTag, u64)>, StoreError> {
        self.store.owners(after, limit).await
    }

    /// What went after the purge numbered `after`, at most `limit`.
    pub(crate) async fn purges(&self, after: u64, limit: usize) -> Result<Purges, StoreError> {
        self.store.purges(after, limit).await
    }

    /// Ends what owners have had for too long by `now`, and forgets old purges. Gives how many owners lost a blob.
    pub(crate) async fn sweep(&self, now: Timestamp) -> Result<usize, StoreError> {
        let until = now.minus(self.retention);
        let mut ended = 0;
        for _ in 0..PAGES_MAX {
            let page = self.store.expire_owners(until, PAGE, now).await?;
            ended += page;
            if page < PAGE {
                break;
            }
        }
        for _ in 0..PAGES_MAX {
            if self.store.forget_purges(now.minus(PURGE_MEMORY), PAGE).await? < PAGE {
                break;
            }
        }
        handles().owners_expired.increment(ended as u64);
        Ok(ended)
    }

    /// [`Self::sweep`] until nothing is left to end. Gives how many times somebody had a blob too long.
    pub(crate) async fn sweep_all(&self, now: Timestamp) -> Result<u64, StoreError> {
        let mut ended = 0;
        loop {
            let more = self.sweep(now).await?;
            ended += more as u64;
            if more < PAGE * PAGES_MAX {
                return Ok(ended);
            }
        }
    }

    /// How many times somebody has had a blob too long by `now`.
    pub(crate) async fn due(&self, now: Timestamp) -> Result<u64, StoreError> {
        self.store.due_owners(now.minus(self.retention)).await
    }

    /// Gives back the space of blobs that went, until `stop`. Gives how many bytes came back.
    pub(crate) async fn compact(&self, urgency: Urgency, stop: CancellationToken) -> Result<u64, StoreError> {
        let freed_bytes = self.store.compact(urgency, stop).await?;
        handles().pack_freed_bytes.increment(freed_bytes);
        Ok(freed_bytes)
    }

    /// How many bytes [`Self::compact`] would give back.
    pub(crate) async fn compactable(&self) -> Result<u64, StoreError> {
        self.store.compactable().await
    }
}
