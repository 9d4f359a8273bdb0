//! The layout of blobs that sealing clients, origin and edge share: sizes, the hash that names a blob, its outboard.
//!
//! A blob is sealed bytes, named by their BLAKE3 hash. BLAKE3 is a tree, and Waxwing works on it in *chunk groups* of
//! 64 KiB: an origin that was cut continues the hash from its last complete group, and an edge checks each group it
//! caches on its own. One cipher segment is one chunk group, so what an edge checks is exactly what a client opens.

mod hasher;
mod outboard;

pub use hasher::{BlobHasher, HasherState, StateError};
pub use outboard::{GroupError, Outboard, OutboardError};

/// Bytes of a chunk group, and of a cipher segment: 65,536.
pub const GROUP_BYTES: u64 = 65_536;

/// Bytes of the header with which a sealed blob begins: 1 of length, 32 of salt, 7 of nonce prefix.
pub const HEADER_BYTES: usize = 40;

/// Bytes of the authentication tag that ends every cipher segment.
pub const TAG_BYTES: usize = 16;

/// Bytes of a chaining value, of which the outboard holds one for each chunk group.
pub const CV_BYTES: usize = 32;

/// The largest blob, in bytes: 2^32 segments (Tink's segment counter has 32 bits), 256 TiB.
pub const BLOB_BYTES_MAX: u64 = GROUP_BYTES << 32;

/// How many chunk groups a blob of `blob_bytes` has; none when it is empty.
pub const fn group_count(blob_bytes: u64) -> u64 {
    blob_bytes.div_ceil(GROUP_BYTES)
}

/// Bytes of the outboard of a blob of `blob_bytes`; none when it has but one group, which its id checks by itself.
pub const fn outboard_bytes(blob_bytes: u64) -> u64 {
    if blob_bytes <= GROUP_BYTES { 0 } else { group_count(blob_bytes) * CV_BYTES as u64 }
}
