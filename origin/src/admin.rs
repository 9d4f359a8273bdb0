//! What operators ask of an origin, and may do to it.

use std::time::SystemTime;

use waxwing_protocol::{BlobId, OwnerTag};

use super::Origin;
use crate::store::StoreError;

/// Why an operator's request failed. The message says what; there is nothing for a program to tell apart.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct AdminError(#[from] StoreError);

impl Origin {
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

    /// Removes blob `id`, whoever has it; edges learn of it from the purge log. False when there is none. An upload that
    /// is bringing the same bytes brings it back.
    ///
    /// # Errors
    /// When the records cannot be read or written.
    pub async fn remove_blob(&self, id: BlobId) -> Result<bool, AdminError> {
        Ok(self.blobs.remove(id, SystemTime::now().into()).await?)
    }
}
