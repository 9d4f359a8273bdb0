//! What operators ask of an origin, and may do to it.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::Origin;
use crate::store::{StoreError, UploadState, Urgency};
use crate::uploads::UploadError;

/// Why an operator's request failed. The message says what; there is nothing for a program to tell apart.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct AdminError(Box<dyn std::error::Error + Send + Sync>);

impl From<StoreError> for AdminError {
    fn from(error: StoreError) -> Self {
        Self(error.into())
    }
}

impl From<UploadError> for AdminError {
    fn from(error: UploadError) -> Self {
        Self(error.into())
    }
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UploadStage {
    /// It takes bytes.
    Receiving,
    /// It became a blob, and its answer is still remembered.
    Complete,
}

/// An upload as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UploadInfo {
    /// Which.
    pub id: UploadId,
    /// How far it is.
    pub state: UploadStage,
    /// Whose.
    pub owner: OwnerTag,
    /// Bytes that are durable.
    pub offset: u64,
    /// Bytes it will have, when known.
    pub length: Option<u64>,
    /// When it was begun.
    pub created: Timestamp,
    /// When it is forgotten unless something happens.
    pub expires: Timestamp,
    /// What it became.
    pub blob: Option<BlobId>,
}

/// What a collection freed, or would free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Collected {
    /// Uploads that expired before they were finished.
    pub unfinished: u64,
    /// Finished uploads whose answer need not be remembered any more.
    pub finished: u64,
    /// Uploads of which a crash left bytes without a record.
    pub leftovers: u64,
    /// Times that somebody had a blob for too long; it went with its last owner.
    pub owners_expired: u64,
    /// Bytes that blobs left in packs when they went, given back by compaction.
    pub compacted_bytes: u64,
}

impl Origin {
    /// Uploads in the order of their ids, at most `limit`, those after `after`.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn uploads(&self, after: Option<UploadId>, limit: usize) -> Result<Vec<UploadInfo>, AdminError> {
        let page = self.uploads.list(after, limit).await?;
        let info = page.into_iter().map(|(id, record)| {
            let (state, blob) = match record.state {
                UploadState::Receiving { .. } => (UploadStage::Receiving, None),
                UploadState::Complete { blob } => (UploadStage::Complete, Some(blob)),
            };
            let (owner, offset, length) = (record.owner, record.offset, record.length);
            UploadInfo { id, state, owner, offset, length, created: record.created, expires: record.expires, blob }
        });
        Ok(info.collect())
    }

    /// Does now what the sweeper does by and by: forgets expired uploads, ends what owners have had for too long, frees
    /// bytes that a crash left, and gives back the space of blobs that went.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn collect(&self) -> Result<Collected, AdminError> {
        let now = SystemTime::now().into();
        let swept = self.uploads.sweep(now).await?;
        let owners_expired = self.blobs.sweep_all(now).await?;
        let leftovers = self.uploads.collect(now).await?;
        // Last: what went before leaves space behind.
        let compacted_bytes = self.blobs.compact(Urgency::Waiting, self.stop.clone()).await?;
        let (unfinished, finished) = (swept.unfinished, swept.finished);
        Ok(Collected { unfinished, finished, leftovers, owners_expired, compacted_bytes })
    }

    /// What [`Self::collect`] would do; changes nothing. Space that blobs will leave which are only due to go does not count
    /// yet.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn collectable(&self) -> Result<Collected, AdminError> {
        let now = SystemTime::now().into();
        let due = self.uploads.due(now).await?;
        let owners_expired = self.blobs.due(now).await?;
        let leftovers = self.uploads.leftovers(now).await?;
        let compacted_bytes = self.blobs.compactable().await?;
        let (unfinished, finished) = (due.unfinished, due.finished);
        Ok(Collected { unfinished, finished, leftovers, owners_expired, compacted_bytes })
    }

    /// Owners who hold anything, in the order of their tags, at most `limit`, those after `after`; and how many bytes:
    /// the sizes of their blobs and of their unfinished uploads.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn owners(&self, after: Option<OwnerTag>, limit: usize) -> Result<Vec<(OwnerTag, u64)>, AdminError> {
        Ok(self.blobs.owners(after, limit).await?)
    }

    /// Bytes that `owner` holds.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn held_bytes(&self, owner: OwnerTag) -> Result<u64, AdminError> {
        Ok(self.blobs.held_bytes(owner).await?)
    }

    /// Bytes that `owner` may hold by [`Self::set_quota`]; `None` when grants say how many.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn quota(&self, owner: OwnerTag) -> Result<Option<u64>, AdminError> {
        Ok(self.blobs.quota(owner).await?)
    }

    /// Lets `owner` hold `quota_bytes` from now on, more or less than their grants say; `None` lets grants say it again.
    /// What they hold beyond stays, and what they upload meanwhile meets it at its next commit.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> Result<(), AdminError> {
        Ok(self.blobs.set_quota(owner, quota_bytes).await?)
    }

    /// Ends that `owner` has any of the next blobs behind `after`. Those that nobody else has go, and edges learn of it from
    /// the purge log. Gives how many they had, and behind which blob to go on until there is none. What they are uploading
    /// is not touched: a quota of 0 keeps it from becoming blobs.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn purge_owner(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
    ) -> Result<(u64, Option<BlobId>), AdminError> {
        Ok(self.blobs.let_all_go(owner, after, SystemTime::now().into()).await?)
    }

    /// Removes blob `id`, whoever has it; edges learn of it from the purge log. False when there is none. An upload that
    /// is bringing the same bytes brings it back.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn remove_blob(&self, id: BlobId) -> Result<bool, AdminError> {
        Ok(self.blobs.remove(id, SystemTime::now().into()).await?)
    }
}
