//! Opening a blob as it arrives.

use zeroize::Zeroize as _;

use super::Layout;
use super::key::{BlobHeader, BlobKey};
use super::segment::{OpenError, SegmentCipher};

/// Opens a blob piece by piece, as a network gives it, holding one segment in memory.
///
/// Promises: bytes come out only of whole segments that are what was sealed in their place, in order, padding removed;
/// after the first segment that is not, nothing comes out any more; and [`Opener::finish`] tells a blob that was cut off
/// from a whole one.
pub struct Opener {
    cipher: SegmentCipher,
    header: BlobHeader,
    layout: Layout,
    /// The segment being filled.
    index: u32,
    segment: Vec<u8>,
    failed: bool,
}

impl Opener {
    /// Opens a blob from its beginning.
    pub fn new(key: &BlobKey, header: &BlobHeader, layout: Layout) -> Self {
        Self::at_segment(key, header, layout, 0)
    }

    /// Opens a blob from segment `index` on: the next byte to push is the first of [`Layout::sealed_range`], the next
    /// to come out the first of [`Layout::file_range`]. `index` may be the number of segments: nothing is left then.
    pub fn at_segment(key: &BlobKey, header: &BlobHeader, layout: Layout, index: u32) -> Self {
        let cipher = SegmentCipher::new(key, header);
        Self { cipher, header: *header, layout, index, segment: Vec::new(), failed: false }
    }

    /// How many segments are open: where to go on after an interruption.
    pub fn segments_open(&self) -> u32 {
        self.index
    }

    /// Takes the next bytes of the blob; calls `on_plain` with what they complete of the file.
    ///
    /// # Errors
    /// [`OpenError`] at the first segment that is not what was sealed there, and from then on.
    pub fn push(&mut self, mut sealed: &[u8], mut on_plain: impl FnMut(&[u8])) -> Result<(), OpenError> {
        if self.failed {
            return Err(OpenError::Closed);
        }
        while !sealed.is_empty() {
            if self.index == self.layout.segments() {
                return Err(self.fail(OpenError::TooLong { expected: self.layout.sealed_bytes() }));
            }
            let range = self.layout.sealed_range(self.index);
            let size = usize::try_from(range.end - range.start).expect("a segment's size fits usize");
            let room = size - self.segment.len();
            let (now, later) = sealed.split_at(room.min(sealed.len()));
            self.segment.extend_from_slice(now);
            sealed = later;
            if self.segment.len() == size {
                self.open(&mut on_plain)?;
            }
        }
        Ok(())
    }

    fn open(&mut self, on_plain: &mut impl FnMut(&[u8])) -> Result<(), OpenError> {
        if self.index == 0 && !self.segment.starts_with(self.header.as_bytes()) {
            return Err(self.fail(OpenError::Header));
        }
        match self.cipher.open_segment(&self.layout, self.index, &mut self.segment) {
            Ok(plain) => {
                if !plain.is_empty() {
                    on_plain(plain);
                }
                self.segment.clear();
                self.index += 1;
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn fail(&mut self, error: OpenError) -> OpenError {
        self.failed = true;
        self.segment.zeroize();
        error
    }

    /// Ends the blob.
    ///
    /// # Errors
    /// [`OpenError::Truncated`] when segments are missing, [`OpenError::Closed`] when one did not open.
    pub fn finish(self) -> Result<(), OpenError> {
        if self.failed {
            return Err(OpenError::Closed);
        }
        if self.index == self.layout.segments() {
            return Ok(());
        }
        let actual = self.layout.sealed_range(self.index).start + self.segment.len() as u64;
        Err(OpenError::Truncated { expected: self.layout.sealed_bytes(), actual })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SEGMENT: usize = 65_536;

    /// A blob of `segments` segments, whose plaintext names each segment.
    fn blob(segments: usize) -> (BlobKey, BlobHeader, Layout, Vec<u8>) {
        let (key, header) = (BlobKey::from_bytes([9; 32]), BlobHeader::generate());
        let layout = Layout::unpadded((segments * 65_520 - 40 - 1000) as u64).unwrap();
        let cipher = SegmentCipher::new(&key, &header);
        let mut blob = Vec::new();
        for index in 0..layout.segments() {
            let range = layout.sealed_range(index);
            let mut segment = vec![index as u8; (range.end - range.start) as usize];
            let start = Layout::header_bytes(index);
            segment[..start].copy_from_slice(&header.as_bytes()[..start]);
            cipher.seal_in_place(index, layout.is_last(index), &mut segment[start..]);
            blob.extend_from_slice(&segment);
        }
        assert_eq!(layout.segments() as usize, segments);
        (key, header, layout, blob)
    }

    /// Opens `bytes`, and gives what came out, and how it ended.
    fn open(key: &BlobKey, header: &BlobHeader, layout: Layout, bytes: &[u8]) -> (Vec<u8>, Result<(), OpenError>) {
        let mut out = Vec::new();
        let mut opener = Opener::new(key, header, layout);
        for piece in bytes.chunks(40_000) {
            if let Err(error) = opener.push(piece, |plain| out.extend_from_slice(plain)) {
                assert_eq!(
                    opener.push(b"more", |_| panic!("nothing comes out after a failure")),
                    Err(OpenError::Closed)
                );
                return (out, Err(error));
            }
        }
        (out, opener.finish())
    }

    /// The plaintext of the first `segments` segments, and nothing else, may be out.
    fn only_these(out: &[u8], layout: &Layout, segments: u32) {
        let end = if segments == 0 { 0 } else { layout.file_range(segments - 1).end };
        assert_eq!(out.len() as u64, end);
        for index in 0..segments {
            let range = layout.file_range(index);
            assert!(out[range.start as usize..range.end as usize].iter().all(|byte| *byte == index as u8));
        }
    }

    #[test]
    fn swapped_dropped_repeated_and_foreign_segments_never_come_out() {
        let (key, header, layout, blob) = blob(4);
        let segments: Vec<&[u8]> = blob.chunks(SEGMENT).collect();
        let check = |order: &[usize], good: u32| {
            let bytes: Vec<u8> = order.iter().flat_map(|at| segments[*at]).copied().collect();
            let (out, end) = open(&key, &header, layout, &bytes);
            assert!(end.is_err(), "{order:?}");
            only_these(&out, &layout, good);
        };
        check(&[0, 2, 1, 3], 1);
        check(&[0, 2, 3], 1);
        check(&[0, 1, 3], 2);
        check(&[1, 2, 3], 0);
        check(&[0, 0, 1, 2, 3], 1);
        check(&[0, 1, 1, 2, 3], 2);
        check(&[0, 1, 2, 3, 3], 4);
        check(&[0, 1, 2], 3);
        check(&[3], 0);
        check(&[], 0);
    }

    #[test]
    fn a_blob_cut_anywhere_is_not_a_whole_one() {
        let (key, header, layout, blob) = blob(3);
        for cut in
            [0, 1, 39, 40, 41, 56, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT, blob.len() - 16, blob.len() - 1]
        {
            let (out, end) = open(&key, &header, layout, &blob[..cut]);
            assert_eq!(end, Err(OpenError::Truncated { expected: blob.len() as u64, actual: cut as u64 }));
            only_these(&out, &layout, (cut / SEGMENT) as u32);
        }
        let (out, end) = open(&key, &header, layout, &[blob.as_slice(), &[0]].concat());
        assert_eq!(end, Err(OpenError::TooLong { expected: blob.len() as u64 }));
        only_these(&out, &layout, 3);
    }

    #[test]
    fn another_header_key_or_size_opens_nothing() {
        let (key, header, layout, blob) = blob(2);
        let (out, end) = open(&key, &BlobHeader::generate(), layout, &blob);
        assert_eq!((out.len(), end), (0, Err(OpenError::Header)));
        let (out, end) = open(&BlobKey::generate(), &header, layout, &blob);
        assert_eq!((out.len(), end), (0, Err(OpenError::Tampered { segment: 0 })));
        // A blob said to be one segment long: its first segment was not sealed as the last.
        let (out, end) = open(&key, &header, Layout::unpadded(65_480).unwrap(), &blob);
        assert_eq!((out.len(), end), (0, Err(OpenError::Tampered { segment: 0 })));
    }

    #[test]
    fn opening_goes_on_at_any_segment() {
        let (key, header, layout, blob) = blob(3);
        for start in 0..=3 {
            let mut out = Vec::new();
            let mut opener = Opener::at_segment(&key, &header, layout, start);
            opener
                .push(&blob[(start as usize * SEGMENT).min(blob.len())..], |plain| out.extend_from_slice(plain))
                .unwrap();
            assert_eq!(opener.segments_open(), 3);
            opener.finish().unwrap();
            let from = if start == 3 { layout.true_bytes() } else { layout.file_range(start).start };
            assert_eq!(out.len() as u64, layout.true_bytes() - from);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// Whichever bit flips, nothing of its segment or a later one comes out.
        #[test]
        fn a_flipped_bit_stops_everything_from_its_segment_on(at in 0..3 * SEGMENT - 1016, bit in 0..8_u32) {
            let (key, header, layout, mut blob) = blob(3);
            blob[at] ^= 1 << bit;
            let (out, end) = open(&key, &header, layout, &blob);
            prop_assert!(end.is_err());
            only_these(&out, &layout, (at / SEGMENT) as u32);
        }
    }
}
