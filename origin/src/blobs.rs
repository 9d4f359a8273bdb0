//! Blobs as edges read them.

use std::sync::Arc;

use waxwing_protocol::BlobId;

use crate::store::{BlobReader, BlobStore, StoreError};

/// All blobs of an origin.
#[derive(Clone)]
pub(crate) struct Blobs(Arc<dyn BlobStore>);

impl Blobs {
    /// The blobs in `store`.
    pub(crate) fn new(store: Arc<dyn BlobStore>) -> Self {
        Self(store)
    }

    /// Opens blob `id`; `None` when it is not here.
    pub(crate) async fn open(&self, id: BlobId) -> Result<Option<Box<dyn BlobReader>>, StoreError> {
        self.0.blob(id).await
    }
}
