//! What a sender keeps before the first byte leaves, so that starting again never uses a nonce twice.
//!
//! A sender killed half-way seals the rest of its file later. Had the file been edited meanwhile, segment 7 would be
//! sealed a second time, with the same key and nonce, over other bytes: whoever holds both ciphertexts learns the
//! difference of the plaintexts and can forge more. So the sender first writes down the key, the header and the BLAKE3
//! digest of every segment's plaintext, and a segment is sealed only while it still has that digest.
//!
//! The digests are a stream of their own, 32 bytes for each segment with bytes of the file: a plan is as small for a
//! film as for a photo, and memory does not grow with the file.

use waxwing_protocol::blob::HEADER_BYTES;
use zeroize::{Zeroize as _, Zeroizing};

use super::key::{BlobHeader, BlobKey};
use super::segment::SegmentCipher;
use super::{Layout, TooLarge};

/// The version of [`SealPlan::encode`].
const PLAN_VERSION: u8 = 1;

/// Bytes of an encoded plan.
const PLAN_BYTES: usize = 1 + BlobKey::BYTES + HEADER_BYTES + 8;

/// How one file is sealed: key, header, sizes. Stored with the digests of its segments before anything is sent.
pub struct SealPlan {
    /// The blob's key.
    pub key: BlobKey,
    /// The blob's header.
    pub header: BlobHeader,
    /// The blob's sizes.
    pub layout: Layout,
}

/// Why stored bytes are not a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stored plan for sealing a file")]
pub struct PlanError;

impl SealPlan {
    /// A plan with a new key, for a file of `true_bytes`.
    ///
    /// # Errors
    /// [`TooLarge`] when no blob can hold the file.
    pub fn generate(true_bytes: u64) -> Result<Self, TooLarge> {
        let layout = Layout::of(true_bytes)?;
        Ok(Self { key: BlobKey::generate(), header: BlobHeader::generate(), layout })
    }

    /// The plan as bytes to store; they hold the key.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(PLAN_BYTES));
        bytes.push(PLAN_VERSION);
        bytes.extend_from_slice(self.key.as_bytes());
        bytes.extend_from_slice(self.header.as_bytes());
        bytes.extend_from_slice(&self.layout.true_bytes().to_be_bytes());
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`PlanError`] when the bytes cannot have come from it.
    pub fn decode(bytes: &[u8]) -> Result<Self, PlanError> {
        let [PLAN_VERSION, rest @ ..] = bytes else { return Err(PlanError) };
        let (key, rest) = rest.split_first_chunk::<{ BlobKey::BYTES }>().ok_or(PlanError)?;
        let (header, rest) = rest.split_first_chunk::<HEADER_BYTES>().ok_or(PlanError)?;
        let true_bytes = u64::from_be_bytes(rest.try_into().map_err(|_| PlanError)?);
        Ok(Self {
            key: BlobKey::from_bytes(*key),
            header: BlobHeader::parse(header).map_err(|_| PlanError)?,
            layout: Layout::of(true_bytes).map_err(|_| PlanError)?,
        })
    }

    /// What seals this plan's segments.
    pub fn sealer(&self) -> Sealer {
        Sealer { cipher: SegmentCipher::new(&self.key, &self.header), header: self.header, layout: self.layout }
    }

    /// What makes the digests of this plan's segments.
    pub fn digester(&self) -> SegmentDigester {
        SegmentDigester::new(self.layout)
    }
}

/// The BLAKE3 digest of the bytes of the file that one segment holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentDigest([u8; 32]);

impl SegmentDigest {
    /// Bytes of a digest.
    pub const BYTES: usize = 32;

    /// The digest of a segment that is padding alone: it has no bytes of the file.
    pub fn of_padding() -> Self {
        Self::of(&[])
    }

    /// The digest of these bytes of a file.
    pub fn of(plain: &[u8]) -> Self {
        Self(*blake3::hash(plain).as_bytes())
    }

    /// The digest with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The digest's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Makes the digests of a file's segments as the file is read.
pub struct SegmentDigester {
    layout: Layout,
    segment: u32,
    offset: u64,
    hasher: blake3::Hasher,
}

impl SegmentDigester {
    fn new(layout: Layout) -> Self {
        Self { layout, segment: 0, offset: 0, hasher: blake3::Hasher::new() }
    }

    /// Takes the next bytes of the file; calls `on_digest` with the digest of each segment they fill, in order.
    ///
    /// # Errors
    /// [`Changed`] when the file is longer than planned.
    pub fn update(&mut self, mut bytes: &[u8], mut on_digest: impl FnMut(&SegmentDigest)) -> Result<(), Changed> {
        while !bytes.is_empty() {
            if self.segment >= self.layout.file_segments() {
                return Err(Changed { segment: self.segment });
            }
            let end = self.layout.file_range(self.segment).end;
            let room = usize::try_from(end - self.offset).expect("a segment's size fits usize");
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.hasher.update(now);
            self.offset += now.len() as u64;
            bytes = later;
            if self.offset == end {
                on_digest(&SegmentDigest(*self.hasher.finalize().as_bytes()));
                self.hasher.reset();
                self.segment += 1;
            }
        }
        Ok(())
    }

    /// Ends the file.
    ///
    /// # Errors
    /// [`Changed`] when it is shorter than planned.
    pub fn finish(self) -> Result<(), Changed> {
        let whole = self.offset == self.layout.true_bytes();
        if whole { Ok(()) } else { Err(Changed { segment: self.segment }) }
    }
}

/// A segment of the file is no longer what the plan was made for. It must be sealed under a new plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file changed since its sealing was planned (segment {segment})")]
pub struct Changed {
    /// The first segment found changed.
    pub segment: u32,
}

/// Seals the segments of one plan, in any order, each with the one plaintext planned for it.
pub struct Sealer {
    cipher: SegmentCipher,
    header: BlobHeader,
    layout: Layout,
}

impl Sealer {
    /// The blob's sizes.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes `segment` ready for segment `index` and gives the place into which the bytes of the file go, those of
    /// [`Layout::file_range`]. A buffer used again keeps its memory.
    pub fn prepare<'a>(&self, index: u32, segment: &'a mut Vec<u8>) -> &'a mut [u8] {
        let sealed = self.layout.sealed_range(index);
        let file = self.layout.file_range(index);
        let start = Layout::header_bytes(index);
        let end = start + in_memory(file.end - file.start);
        segment.resize(in_memory(sealed.end - sealed.start), 0);
        segment[..start].copy_from_slice(&self.header.as_bytes()[..start]);
        segment[end..].fill(0);
        &mut segment[start..end]
    }

    /// Seals segment `index` in place: `segment` was made ready by [`Self::prepare`] and filled since.
    ///
    /// # Errors
    /// [`Changed`] when the plaintext is not the one whose digest was planned; nothing was sealed, and the plaintext
    /// is gone from the buffer, so that it cannot be sent by mistake.
    pub fn seal(&self, index: u32, planned: &SegmentDigest, segment: &mut [u8]) -> Result<(), Changed> {
        let file = self.layout.file_range(index);
        let start = Layout::header_bytes(index);
        let end = start + in_memory(file.end - file.start);
        let padded =
            segment.len() == in_memory(self.layout.sealed_range(index).end - self.layout.sealed_range(index).start);
        if !padded || SegmentDigest::of(&segment[start..end]) != *planned {
            segment.zeroize();
            return Err(Changed { segment: index });
        }
        self.cipher.seal_in_place(index, self.layout.is_last(index), &mut segment[start..]);
        Ok(())
    }
}

/// A size within one segment.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a segment's size fits usize")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::Opener;
    use proptest::prelude::*;

    fn file(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    fn digests(plan: &SealPlan, file: &[u8]) -> Result<Vec<SegmentDigest>, Changed> {
        let mut digests = Vec::new();
        let mut digester = plan.digester();
        for piece in file.chunks(10_007) {
            digester.update(piece, |digest| digests.push(*digest))?;
        }
        digester.finish()?;
        Ok(digests)
    }

    fn seal(plan: &SealPlan, digests: &[SegmentDigest], file: &[u8]) -> Result<Vec<u8>, Changed> {
        let sealer = plan.sealer();
        let (mut blob, mut segment) = (Vec::new(), Vec::new());
        for index in 0..plan.layout.segments() {
            let range = plan.layout.file_range(index);
            sealer.prepare(index, &mut segment).copy_from_slice(&file[range.start as usize..range.end as usize]);
            let digest = digests.get(index as usize).copied().unwrap_or_else(SegmentDigest::of_padding);
            sealer.seal(index, &digest, &mut segment)?;
            blob.extend_from_slice(&segment);
        }
        Ok(blob)
    }

    #[test]
    fn a_plan_survives_its_storage() {
        let plan = SealPlan::generate(123_456).unwrap();
        let back = SealPlan::decode(&plan.encode()).unwrap();
        assert_eq!((back.key, back.header, back.layout), (plan.key.clone(), plan.header, plan.layout));
        for cut in 0..PLAN_BYTES {
            assert!(SealPlan::decode(&plan.encode()[..cut]).is_err());
        }
        let mut newer = plan.encode();
        newer[0] = 2;
        assert!(SealPlan::decode(&newer).is_err());
    }

    /// The whole point: sealed again from the same file, the bytes are the same; from an edited one, there are none.
    #[test]
    fn sealing_again_gives_the_same_bytes_or_none() {
        let mut bytes = file(200_000);
        let plan = SealPlan::generate(bytes.len() as u64).unwrap();
        let digests = digests(&plan, &bytes).unwrap();
        let once = seal(&plan, &digests, &bytes).unwrap();
        let reloaded = SealPlan::decode(&plan.encode()).unwrap();
        assert_eq!(seal(&reloaded, &digests, &bytes).unwrap(), once);
        bytes[150_000] ^= 1;
        let changed = Changed { segment: 2 };
        assert_eq!(seal(&reloaded, &digests, &bytes), Err(changed));

        let sealer = reloaded.sealer();
        let mut segment = Vec::new();
        let range = plan.layout.file_range(2);
        sealer.prepare(2, &mut segment).copy_from_slice(&bytes[range.start as usize..range.end as usize]);
        assert_eq!(sealer.seal(2, &digests[2], &mut segment), Err(changed));
        assert!(segment.iter().all(|byte| *byte == 0), "no plaintext is left to be sent by mistake");
    }

    #[test]
    fn a_file_that_grew_or_shrank_does_not_fit_its_plan() {
        let plan = SealPlan::generate(100_000).unwrap();
        assert!(digests(&plan, &file(100_000)).is_ok());
        assert!(digests(&plan, &file(99_999)).is_err());
        assert!(digests(&plan, &file(100_001)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        /// At every size, and around every border of a segment, what was sealed opens to the same file.
        #[test]
        fn what_was_sealed_opens(len in prop_oneof![
            0..3_usize, 539..545_usize, 65_478..65_484_usize, 130_998..131_004_usize, 196_518..196_524_usize, 0..400_000_usize,
        ]) {
            let bytes = file(len);
            let plan = SealPlan::generate(len as u64).unwrap();
            let digests = digests(&plan, &bytes).unwrap();
            prop_assert_eq!(digests.len() as u32, plan.layout.file_segments());
            let blob = seal(&plan, &digests, &bytes).unwrap();
            prop_assert_eq!(blob.len() as u64, plan.layout.sealed_bytes());
            let mut opened = Vec::new();
            let mut opener = Opener::new(&plan.key, &plan.header, plan.layout);
            for piece in blob.chunks(9_973) {
                opener.push(piece, |plain| opened.extend_from_slice(plain)).unwrap();
            }
            opener.finish().unwrap();
            prop_assert!(opened == bytes);
        }
    }
}
