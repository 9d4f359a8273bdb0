//! The references to blobs that this profile has received or sent: what lets it open a blob by id.

use waxwing_protocol::BlobId;
use waxwing_protocol::identity::Base64;
use waxwing_seal::blob_ref::BlobRef;

use crate::ClientError;
use crate::profile::{Rows, Table, WriteTx};

/// The `BlobRef` of every blob received or sent, encoded, by the blob id's 32 bytes.
pub(crate) const BLOB_REFS: Table<Base64> = Table::new("blob_refs");

/// Remembers a reference. The first one of a blob stands: a stranger who names a blob of ours with another key must not
/// make it unreadable.
pub(crate) fn put(tx: &WriteTx<'_>, reference: &BlobRef) -> Result<(), ClientError> {
    let key = reference.id.as_bytes();
    if tx.get(&BLOB_REFS, key)?.is_none() {
        tx.put(&BLOB_REFS, key, &Base64(reference.encode().to_vec()))?;
    }
    Ok(())
}

/// The reference to `blob`.
///
/// # Errors
/// [`ClientError::NoKey`] when there is none.
pub(crate) fn get(tx: &impl Rows, blob: &BlobId) -> Result<BlobRef, ClientError> {
    let bytes = tx.get(&BLOB_REFS, blob.as_bytes())?.ok_or(ClientError::NoKey { blob: *blob })?;
    BlobRef::decode(&bytes.0).map_err(|_| ClientError::Damaged { what: "a reference to a blob" })
}
