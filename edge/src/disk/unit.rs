//! Units: what the disk tier keeps and forgets as one.
//!
//! A blob of one chunk group is one unit, found and read at once. A larger one is its outboard and its slices, so that
//! a film of which a minute is watched takes the room of a minute.

use bytes::Bytes;
use waxwing_protocol::blob::GROUP_BYTES;
use waxwing_protocol::{BlobId, Timestamp};

use crate::slice::Slice;

/// Which unit of which blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// The blob.
    pub(crate) id: BlobId,
    /// A slice's index, or one of the two below.
    pub(super) part: u32,
}

const WHOLE: u32 = u32::MAX;
const OUTBOARD: u32 = u32::MAX - 1;

impl Key {
    /// All of a blob of one chunk group.
    pub(crate) const fn whole(id: BlobId) -> Self {
        Self { id, part: WHOLE }
    }

    /// The outboard of a larger one.
    pub(crate) const fn outboard(id: BlobId) -> Self {
        Self { id, part: OUTBOARD }
    }

    /// Slice `index` of it.
    pub(crate) fn slice(id: BlobId, index: u64) -> Self {
        // The largest blob, 256 TiB, has 2^28 slices.
        Self { id, part: u32::try_from(index).expect("no blob has so many slices") }
    }

    /// Whether this is all of its blob, so that nothing else of it is here.
    pub(crate) const fn is_whole(self) -> bool {
        self.part == WHOLE
    }

    /// Which slice this is, if it is one.
    pub(crate) fn slice_index(self) -> Option<u64> {
        (self.part < OUTBOARD).then_some(u64::from(self.part))
    }
}

/// Bytes of the head that stands before a whole blob and before an outboard.
const HEAD_BYTES: usize = 20;

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes of the blob.
    pub(crate) blob_bytes: u64,
    /// When the fill that brought it began.
    pub(crate) stored: Timestamp,
}

impl Head {
    fn to_bytes(self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[..8].copy_from_slice(&self.blob_bytes.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.stored.as_millis().to_le_bytes());
        let sum = crc32fast::hash(&bytes[..16]);
        bytes[16..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Takes the head off `bytes`; `None` when it is damaged. What follows has its own proof: the blob's id.
    pub(crate) fn split(bytes: &Bytes) -> Option<(Self, Bytes)> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let number = |at: usize| Some(u64::from_le_bytes(*head.get(at..)?.first_chunk()?));
        let sum = u32::from_le_bytes(*head.last_chunk()?);
        if crc32fast::hash(&head[..16]) != sum {
            return None;
        }
        let said = Self { blob_bytes: number(0)?, stored: Timestamp::from_millis(number(8)?) };
        Some((said, bytes.slice(HEAD_BYTES..)))
    }
}

/// The bytes of a unit, as they are in memory.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Bytes behind a head.
    Headed(Head, Bytes),
    /// A slice.
    Slice(Slice),
}

impl Content {
    /// How many bytes go to the disk.
    pub(super) fn byte_count(&self) -> usize {
        match self {
            Self::Headed(_, bytes) => HEAD_BYTES + bytes.len(),
            Self::Slice(slice) => slice.groups().map(Bytes::len).sum(),
        }
    }

    /// Those bytes, piece by piece.
    pub(super) fn pieces(&self) -> Vec<Bytes> {
        match self {
            Self::Headed(head, bytes) => vec![Bytes::copy_from_slice(&head.to_bytes()), bytes.clone()],
            Self::Slice(slice) => slice.groups().cloned().collect(),
        }
    }
}

/// A slice out of its bytes: every group a view of them.
pub(crate) fn slice_of(bytes: &Bytes) -> Slice {
    let group = usize::try_from(GROUP_BYTES).expect("64 KiB are a usize");
    let groups: Vec<Bytes> =
        (0..bytes.len()).step_by(group).map(|at| bytes.slice(at..bytes.len().min(at + group))).collect();
    Slice::new(&groups)
}
