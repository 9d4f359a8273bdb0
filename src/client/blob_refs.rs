//! The references to blobs that this profile has received or sent: what lets it open a blob by id.
//!
//! Rows are the protobuf bytes of a `BlobRef`, by blob id.

use waxwing_protocol::identity::Base64;

use crate::profile::Table;

/// The `BlobRef` of every blob received or sent, encoded, by the blob id's 32 bytes.
pub(crate) const BLOB_REFS: Table<Base64> = Table::new("blob_refs");
