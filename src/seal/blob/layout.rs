//! Where everything stands: which bytes of a file are in which segment, and where that segment is in the blob.

use std::ops::Range;

use waxwing_protocol::blob::{BLOB_BYTES_MAX, GROUP_BYTES, HEADER_BYTES, TAG_BYTES};

use super::padding::padded_bytes;

/// Bytes of plaintext in a full segment.
const SEGMENT_PLAIN_BYTES: u64 = GROUP_BYTES - TAG_BYTES as u64;

/// The sizes of one blob. Everything follows from the size of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    true_bytes: u64,
    padded_bytes: u64,
    sealed_bytes: u64,
    segments: u32,
}

/// A file is too large for one blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{true_bytes} bytes do not fit one blob")]
pub struct TooLarge {
    /// The file's size in bytes.
    pub true_bytes: u64,
}

impl Layout {
    /// The layout of a file of `true_bytes`, padded.
    ///
    /// # Errors
    /// [`TooLarge`] when the sealed blob would be over 256 TiB.
    pub fn of(true_bytes: u64) -> Result<Self, TooLarge> {
        Self::with_padding(true_bytes, padded_bytes(true_bytes))
    }

    /// The layout of a plaintext of `true_bytes` that is not padded, as other implementations of the format make it.
    ///
    /// # Errors
    /// [`TooLarge`] when the sealed blob would be over 256 TiB.
    pub fn unpadded(true_bytes: u64) -> Result<Self, TooLarge> {
        Self::with_padding(true_bytes, true_bytes)
    }

    fn with_padding(true_bytes: u64, padded_bytes: u64) -> Result<Self, TooLarge> {
        let too_large = TooLarge { true_bytes };
        // The header takes its 40 bytes from the first segment. An empty plaintext still has one segment.
        let with_header = padded_bytes.checked_add(HEADER_BYTES as u64).ok_or(too_large)?;
        let segments = with_header.div_ceil(SEGMENT_PLAIN_BYTES);
        let sealed_bytes = with_header.checked_add(segments * TAG_BYTES as u64).ok_or(too_large)?;
        let segments = u32::try_from(segments).map_err(|_| too_large)?;
        if sealed_bytes > BLOB_BYTES_MAX {
            return Err(too_large);
        }
        Ok(Self { true_bytes, padded_bytes, sealed_bytes, segments })
    }

    /// Bytes of the file.
    pub const fn true_bytes(&self) -> u64 {
        self.true_bytes
    }

    /// Bytes of the file and its padding.
    pub const fn padded_bytes(&self) -> u64 {
        self.padded_bytes
    }

    /// Bytes of the sealed blob.
    pub const fn sealed_bytes(&self) -> u64 {
        self.sealed_bytes
    }

    /// How many segments there are; at least one.
    pub const fn segments(&self) -> u32 {
        self.segments
    }

    /// Whether `segment` is the last.
    pub const fn is_last(&self, segment: u32) -> bool {
        segment + 1 == self.segments
    }

    /// The part of the blob that is `segment`, the first with the header before it.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn sealed_range(&self, segment: u32) -> Range<u64> {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        let start = u64::from(segment) * GROUP_BYTES;
        start..(start + GROUP_BYTES).min(self.sealed_bytes)
    }

    /// The part of the padded plaintext that `segment` holds.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn plaintext_range(&self, segment: u32) -> Range<u64> {
        assert!(segment < self.segments, "segment {segment} of {}", self.segments);
        let header = HEADER_BYTES as u64;
        let start = (u64::from(segment) * SEGMENT_PLAIN_BYTES).saturating_sub(header);
        let end = (u64::from(segment) + 1) * SEGMENT_PLAIN_BYTES - header;
        start..end.min(self.padded_bytes)
    }

    /// The part of the file that `segment` holds; empty where there is only padding.
    ///
    /// # Panics
    /// When there is no such segment.
    pub fn file_range(&self, segment: u32) -> Range<u64> {
        let range = self.plaintext_range(segment);
        range.start.min(self.true_bytes)..range.end.min(self.true_bytes)
    }

    /// How many segments hold bytes of the file; those after them are padding alone.
    pub fn file_segments(&self) -> u32 {
        if self.true_bytes == 0 { 0 } else { self.segment_of(self.true_bytes - 1) + 1 }
    }

    /// The segment that holds byte `at` of the padded plaintext: where a seek begins.
    ///
    /// # Panics
    /// When the plaintext has no such byte.
    pub fn segment_of(&self, at: u64) -> u32 {
        assert!(at < self.padded_bytes, "byte {at} of {}", self.padded_bytes);
        let segment = (at + HEADER_BYTES as u64) / SEGMENT_PLAIN_BYTES;
        u32::try_from(segment).expect("a layout has fewer than 2^32 segments")
    }

    /// Bytes of the header that stand before `segment`'s ciphertext.
    pub(super) const fn header_bytes(segment: u32) -> usize {
        if segment == 0 { HEADER_BYTES } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_segment_is_shorter_by_the_header() {
        let sizes = |plain| {
            let layout = Layout::unpadded(plain).unwrap();
            (layout.segments(), layout.sealed_bytes())
        };
        assert_eq!(sizes(0), (1, 56));
        assert_eq!(sizes(1), (1, 57));
        assert_eq!(sizes(65_480), (1, 65_536));
        assert_eq!(sizes(65_481), (2, 65_553));
        assert_eq!(sizes(65_480 + 65_520), (2, 131_072));
        assert_eq!(sizes(65_480 + 65_520 + 1), (3, 131_089));
    }

    #[test]
    fn what_no_blob_can_hold_is_refused() {
        assert_eq!(Layout::of(u64::MAX), Err(TooLarge { true_bytes: u64::MAX }));
        assert!(Layout::of(BLOB_BYTES_MAX).is_err());
        let large = Layout::of(BLOB_BYTES_MAX / 2).unwrap();
        assert!(large.sealed_bytes() <= BLOB_BYTES_MAX);
    }

    proptest! {
        /// Every byte of the file is in exactly one segment, and every segment is where the one before it ends.
        #[test]
        fn segments_cover_file_and_blob_without_gaps(true_bytes in prop_oneof![0..600_u64, 65_000..66_000_u64, 0..2_000_000_u64]) {
            let layout = Layout::of(true_bytes).unwrap();
            let (mut sealed, mut plain, mut file) = (0, 0, 0);
            for segment in 0..layout.segments() {
                let ranges = (layout.sealed_range(segment), layout.plaintext_range(segment), layout.file_range(segment));
                prop_assert_eq!((ranges.0.start, ranges.1.start, ranges.2.start), (sealed, plain, file));
                (sealed, plain, file) = (ranges.0.end, ranges.1.end, ranges.2.end);
                let overhead = TAG_BYTES + Layout::header_bytes(segment);
                prop_assert_eq!(ranges.0.end - ranges.0.start, ranges.1.end - ranges.1.start + overhead as u64);
                prop_assert_eq!(ranges.2.is_empty(), segment >= layout.file_segments());
                prop_assert_eq!(layout.segment_of(ranges.1.start), segment);
                prop_assert_eq!(layout.segment_of(ranges.1.end - 1), segment);
            }
            prop_assert_eq!((sealed, plain, file), (layout.sealed_bytes(), layout.padded_bytes(), true_bytes));
        }
    }
}
