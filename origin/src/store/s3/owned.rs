//! Which blobs an owner has: asked by operators alone, since in a bucket only the pointers themselves tell. So all of them
//! are read, a request each.

use waxwing_protocol::{BlobId, OwnerTag};

use super::Shared;
use super::bucket::PAGE;
use super::objects::{BLOBS, blob_in, blob_key};
use crate::store::{OwnedPage, StoreError};

impl Shared {
    /// Which blobs behind `after` `owner` has, of about `limit` pointers.
    pub(super) async fn blobs_of(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        limit: usize,
    ) -> Result<OwnedPage, StoreError> {
        let limit = limit.clamp(1, PAGE);
        let listed = self.bucket.list(BLOBS, after.map(blob_key).as_deref(), limit).await?;
        let is_last = listed.len() < limit;
        let mut page = OwnedPage::default();
        for blob in listed.iter().filter_map(|listed| blob_in(&listed.key)) {
            let (pointer, _) = self.pointer(blob).await?;
            if pointer.owners.contains_key(&owner) {
                page.blobs.push(blob);
            }
            page.last = Some(blob);
        }
        if is_last {
            page.last = None;
        }
        Ok(page)
    }
}
