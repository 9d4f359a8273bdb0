//! What two parties of Waxwing must agree on: ids, the layout of blobs, grants, frames, problems.
//!
//! A client, an origin, an edge and a messaging node are built and upgraded apart. Whatever one of them writes and
//! another reads stands here, once, so that neither can drift. Nothing here does I/O or reads a clock: time and
//! randomness come in as arguments, and the crate builds for the browser.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

pub mod api;
pub mod blob;
pub mod channel;
pub mod client;
pub mod frames;
#[cfg(feature = "grants")]
pub mod grant;
pub mod group;
pub mod http1;
pub mod identity;
pub mod ids;
pub mod problem;
pub mod range;
pub mod time;
pub mod token;

pub use client::{ClientAddress, Secured};
pub use ids::{AccountId, BlobId, ChannelId, DeviceId, GroupId, Handle, IdError, LinkId, MsgId, OwnerTag, UploadId};
pub use problem::Problem;
pub use time::Timestamp;
pub use token::DeviceToken;

/// Names of the HTTP headers that are Waxwing's own.
pub mod headers {
    /// On every answer that completes an upload, and on HEAD of a complete one: the blob's id. On a request that
    /// brings content: the id the client expects, refused when the content has another.
    pub const WAXWING_BLOB: &str = "waxwing-blob";
    /// On an outboard answer: the blob's size in bytes, which the outboard alone does not tell.
    pub const WAXWING_BLOB_BYTES: &str = "waxwing-blob-bytes";
}
