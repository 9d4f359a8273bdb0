//! Sealed blobs: a file as bytes that only whoever holds its key can read, in segments that open one by one.
//!
//! Sealing a whole video under one authentication tag would let nobody see its first second before its last byte came,
//! nor seek, nor resume. So it is cut into segments of 64 KiB, each sealed with a nonce that tells its place and
//! whether it is the last: a segment that was swapped, dropped, repeated, cut off or changed does not open.
//!
//! The format is Google Tink's AES256-GCM-HKDF streaming AEAD, byte for byte: HKDF-SHA256 over the blob's key with the
//! header's salt makes the segments' AES-256 key; segment i has the nonce `prefix || be32(i) || last`; the header counts
//! in the first segment, so that segment i begins at byte `i * 65,536`. Source: Tink, "Streaming AEAD wire format",
//! AES-GCM-HKDF. Before sealing, the plaintext is padded with zeros ([`padded_bytes`]), since a size names a file almost
//! as well as its content does.
//!
//! The promise on which everything rests: no nonce is used twice under one key. [`SealPlan`] keeps it when a sender is
//! killed and starts again.

mod key;
#[cfg(test)]
mod known_answers;
mod layout;
mod opener;
mod padding;
mod plan;
mod segment;

pub use key::{BlobHeader, BlobKey, HeaderError};
pub use layout::{Layout, TooLarge};
pub use opener::Opener;
pub use padding::padded_bytes;
pub use plan::{Changed, PlanError, SealPlan, Sealer, SegmentDigest, SegmentDigester};
pub use segment::{OpenError, SegmentCipher};

/// What every segment's key is bound to, so that a blob's key is of no use for anything else.
pub const ASSOCIATED_DATA: &[u8] = b"waxwing/blob/v1";
