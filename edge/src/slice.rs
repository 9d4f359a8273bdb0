//! Slices: the pieces in which blobs are fetched, kept and forgotten.
//!
//! Kept whole, a film of which one minute was watched would push a thousand photos out; kept by chunk group, every
//! minute would cost a thousand look-ups. A slice of 1 MiB is sixteen chunk groups; a blob of up to one chunk group is
//! one unit of its own (see [`crate::cache`]).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use waxwing_protocol::blob::GROUP_BYTES;
use waxwing_protocol::range::ByteRange;

/// Bytes of a slice: 1 MiB. The last slice of a blob may have fewer.
pub(crate) const SLICE_BYTES: u64 = 1 << 20;

/// Chunk groups of a slice: 16.
pub(crate) const SLICE_GROUPS: u64 = SLICE_BYTES / GROUP_BYTES;

/// How many slices a blob of `blob_bytes` has; none when it is empty.
pub(crate) const fn slice_count(blob_bytes: u64) -> u64 {
    blob_bytes.div_ceil(SLICE_BYTES)
}

/// Which slice holds the byte at `offset`.
pub(crate) const fn slice_at(offset: u64) -> u64 {
    offset / SLICE_BYTES
}

/// The bytes of slice `index` of a blob of `blob_bytes`; `None` when it has no such slice.
pub(crate) fn slice_range(index: u64, blob_bytes: u64) -> Option<ByteRange> {
    let start = index.checked_mul(SLICE_BYTES)?;
    (start < blob_bytes).then(|| ByteRange { start, end: blob_bytes.min(start.saturating_add(SLICE_BYTES)) })
}

/// The verified bytes of one slice, by chunk group. The groups are views of one allocation or two; a clone shares
/// them.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    groups: Arc<[Bytes]>,
}

impl Slice {
    /// The slice of these verified chunk groups, in order.
    pub(crate) fn new(groups: &[Bytes]) -> Self {
        Self { groups: groups.into() }
    }

    /// Chunk group `index` within the slice.
    pub(crate) fn group(&self, index: usize) -> Option<&Bytes> {
        self.groups.get(index)
    }

    /// The bytes `range` of the blob, which lie in this slice; `None` when it has not all of them.
    pub(crate) fn bytes(&self, range: Range<u64>) -> Option<Vec<Bytes>> {
        let mut at = range.start;
        let mut pieces = Vec::new();
        while at < range.end {
            let group = self.group(usize::try_from(at % SLICE_BYTES / GROUP_BYTES).ok()?)?;
            let from = usize::try_from(at % GROUP_BYTES).ok()?;
            let until = usize::try_from(range.end - (at - at % GROUP_BYTES)).ok()?.min(group.len());
            if from >= until {
                return None;
            }
            pieces.push(group.slice(from..until));
            at += (until - from) as u64;
        }
        Some(pieces)
    }

    /// All its chunk groups, in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = &Bytes> {
        self.groups.iter()
    }

    /// Bytes of memory this takes, bookkeeping included.
    pub(crate) fn weight(&self) -> usize {
        self.groups.iter().map(|group| group.len() + size_of::<Bytes>()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_tile_a_blob_exactly() {
        for blob_bytes in [0, 1, SLICE_BYTES - 1, SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES + 7] {
            let mut at = 0;
            for index in 0..slice_count(blob_bytes) {
                let range = slice_range(index, blob_bytes).unwrap();
                assert_eq!(range.start, at);
                assert_eq!((slice_at(range.start), slice_at(range.end - 1)), (index, index));
                at = range.end;
            }
            assert_eq!(at, blob_bytes);
            assert_eq!(slice_range(slice_count(blob_bytes), blob_bytes), None);
            assert_eq!(slice_range(u64::MAX, blob_bytes), None);
        }
    }
}
