//! The outboard: what lets a part of a blob be checked without the rest.
//!
//! Without it, an edge that fetched one slice of a film would have to trust whoever sent it, or fetch the whole.
//!
//! The outboard is the chaining value of every 64 KiB chunk group, in order: 32 bytes a group, 0.05 % of the blob. The
//! inner nodes of the BLAKE3 tree follow from them, so they are computed rather than stored: half the bytes of a
//! pre-order tree, appended as the blob arrives, and one hash checks a group once the outboard itself is checked. (A
//! slice of a blob needs the whole outboard; an edge fetches it once a blob anyway.)
//!
//! Promise: a group that [`Outboard::verify_group`] accepts is that very group of the blob with that id.

use blake3::hazmat::{ChainingValue, HasherExt as _};

use super::hasher::HasherState;
use super::{CV_BYTES, GROUP_BYTES, group_count, outboard_bytes};
use crate::BlobId;

/// The chaining values of a blob's chunk groups, checked against its id.
#[derive(Clone, Debug)]
pub struct Outboard {
    id: BlobId,
    blob_bytes: u64,
    cvs: Box<[ChainingValue]>,
}

/// Why bytes are not the outboard of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutboardError {
    /// A blob of the claimed size has an outboard of another length.
    #[error("the outboard has {actual} bytes, a blob of that size needs {expected}")]
    Length {
        /// Bytes needed.
        expected: u64,
        /// Bytes given.
        actual: u64,
    },
    /// The chaining values do not make the blob's id.
    #[error("the outboard does not belong to this blob id")]
    Root,
}

/// Why a chunk group was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The blob has no such group, or the group has another length.
    #[error("chunk group {index} of this blob is not {actual} bytes long")]
    Length {
        /// Which group.
        index: u64,
        /// Bytes given.
        actual: usize,
    },
    /// The bytes are not those of the blob.
    #[error("chunk group {index} does not match the blob id")]
    Mismatch {
        /// Which group.
        index: u64,
    },
}

impl Outboard {
    /// Checks `bytes` as the outboard of the blob `id`, said to be `blob_bytes` long.
    ///
    /// The size stays a claim until the last group verifies: the tree over the groups does not hold it.
    ///
    /// # Errors
    /// [`OutboardError`] when the length or the root is wrong.
    pub fn verify(id: BlobId, blob_bytes: u64, bytes: &[u8]) -> Result<Self, OutboardError> {
        let expected = outboard_bytes(blob_bytes);
        let wrong_length = OutboardError::Length { expected, actual: bytes.len() as u64 };
        let (cvs, []) = bytes.as_chunks::<CV_BYTES>() else { return Err(wrong_length) };
        if bytes.len() as u64 != expected {
            return Err(wrong_length);
        }
        if blob_bytes == 0 && id.as_bytes() != blake3::hash(&[]).as_bytes() {
            return Err(OutboardError::Root);
        }
        if cvs.is_empty() {
            return Ok(Self { id, blob_bytes, cvs: Box::default() });
        }
        let mut tree = HasherState::default();
        cvs.iter().for_each(|cv| tree.push(*cv));
        if tree.root() != id {
            return Err(OutboardError::Root);
        }
        Ok(Self { id, blob_bytes, cvs: cvs.into() })
    }

    /// The blob this belongs to.
    pub const fn id(&self) -> BlobId {
        self.id
    }

    /// The blob's size in bytes, as claimed to [`Self::verify`].
    pub const fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The outboard as it travels, and as [`Self::verify`] takes it.
    pub const fn as_bytes(&self) -> &[u8] {
        self.cvs.as_flattened()
    }

    /// How many bytes group `index` has; `None` when the blob has no such group.
    pub fn group_bytes(&self, index: u64) -> Option<u64> {
        let start = index.checked_mul(GROUP_BYTES)?;
        (index < group_count(self.blob_bytes)).then(|| (self.blob_bytes - start).min(GROUP_BYTES))
    }

    /// Checks that `bytes` are chunk group `index` of the blob.
    ///
    /// # Errors
    /// [`GroupError`] when they are not. An empty blob has no groups.
    pub fn verify_group(&self, index: u64, bytes: &[u8]) -> Result<(), GroupError> {
        if self.group_bytes(index) != Some(bytes.len() as u64) {
            return Err(GroupError::Length { index, actual: bytes.len() });
        }
        let genuine = if self.cvs.is_empty() {
            blake3::hash(bytes) == *self.id.as_bytes()
        } else {
            let at = usize::try_from(index).expect("an outboard in memory has fewer than usize::MAX groups");
            blake3::Hasher::new().set_input_offset(index * GROUP_BYTES).update(bytes).finalize_non_root()
                == self.cvs[at]
        };
        if genuine { Ok(()) } else { Err(GroupError::Mismatch { index }) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::BlobHasher;
    use super::*;

    const GROUP: usize = GROUP_BYTES as usize;

    fn made(len: usize) -> (Vec<u8>, BlobId, Vec<u8>) {
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 + i / 1000) as u8).collect();
        let mut outboard = Vec::new();
        let mut hasher = BlobHasher::new();
        hasher.update(&bytes, |cv| outboard.extend_from_slice(cv));
        let id = hasher.finish(|cv| outboard.extend_from_slice(cv));
        if len <= GROUP {
            outboard.clear();
        }
        (bytes, id, outboard)
    }

    #[test]
    fn every_group_of_every_shape_verifies_and_only_in_its_place() {
        for len in [1, GROUP - 1, GROUP, GROUP + 1, 2 * GROUP, 3 * GROUP + 5, 8 * GROUP, 11 * GROUP + 1] {
            let (bytes, id, outboard) = made(len);
            let outboard = Outboard::verify(id, len as u64, &outboard).unwrap();
            for (index, group) in bytes.chunks(GROUP).enumerate() {
                assert_eq!(outboard.verify_group(index as u64, group), Ok(()));
                assert!(outboard.verify_group(index as u64 + 1, group).is_err());
                let mut flipped = group.to_vec();
                flipped[group.len() / 2] ^= 1;
                assert_eq!(
                    outboard.verify_group(index as u64, &flipped),
                    Err(GroupError::Mismatch { index: index as u64 })
                );
                assert!(outboard.verify_group(index as u64, &group[1..]).is_err());
            }
        }
    }

    #[test]
    fn a_foreign_cut_or_swapped_outboard_is_refused() {
        let (_, id, outboard) = made(5 * GROUP);
        let size = 5 * GROUP_BYTES;
        assert!(Outboard::verify(id, size, &outboard).is_ok());
        assert!(matches!(Outboard::verify(id, size - GROUP_BYTES, &outboard), Err(OutboardError::Length { .. })));
        assert!(matches!(Outboard::verify(id, size, &outboard[1..]), Err(OutboardError::Length { .. })));
        let mut swapped = outboard.clone();
        swapped[..64].rotate_left(32);
        assert_eq!(Outboard::verify(id, size, &swapped).unwrap_err(), OutboardError::Root);
        // A parent passed off as a leaf makes the right root, but no bytes verify under it.
        let (bytes, id4, leaves) = made(4 * GROUP);
        let mut tree = Vec::new();
        for pair in leaves.chunks(64) {
            let (left, right) = pair.split_at(32);
            let (left, right) = (left.try_into().unwrap(), right.try_into().unwrap());
            tree.extend(blake3::hazmat::merge_subtrees_non_root(left, right, blake3::hazmat::Mode::Hash));
        }
        let shorter = Outboard::verify(id4, 2 * GROUP_BYTES, &tree).unwrap();
        assert!(shorter.verify_group(0, &bytes[..GROUP]).is_err());
        assert!(shorter.verify_group(1, &bytes[3 * GROUP..]).is_err());
    }

    #[test]
    fn an_empty_blob_has_nothing_to_verify() {
        let (_, id, outboard) = made(0);
        let outboard = Outboard::verify(id, 0, &outboard).unwrap();
        assert_eq!(outboard.group_bytes(0), None);
        assert!(outboard.verify_group(0, &[]).is_err());
        let (_, other, _) = made(1);
        assert_eq!(Outboard::verify(other, 0, &[]).unwrap_err(), OutboardError::Root);
    }
}
