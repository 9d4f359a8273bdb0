//! The digest of a whole upload, for clients that name or want one (RFC 9530), or are told one by their dialect, in place of
//! a blob id.
//!
//! An upload comes in many requests, and reading it all back at its end to digest it would cost as much as sending it
//! did. So the digest is computed along, and its state is kept in the upload's record with the offset it belongs to.

use data_encoding::BASE64;
use md5::Md5;
use sha2::digest::common::hazmat::SerializableState;
use sha2::{Digest as _, Sha256, Sha512};

use crate::store::{DigestProgress, StoredDigest, WholeAlgorithm};

/// A digest of a whole upload, computed along.
#[derive(Clone)]
pub(super) enum WholeDigest {
    Sha256(Sha256),
    Sha512(Box<Sha512>),
    Md5Crc32c(Box<Md5>, u32),
}

impl WholeDigest {
    /// Where a record left it; `None` when it is finished, or was never begun as it says.
    pub(super) fn resume(stored: &StoredDigest) -> Option<Self> {
        let DigestProgress::Running { state } = &stored.progress else { return None };
        let state = BASE64.decode(state.as_bytes()).ok()?;
        match stored.algorithm {
            // An upload at its start has no state yet.
            WholeAlgorithm::Sha256 if state.is_empty() => Some(Self::Sha256(Sha256::new())),
            WholeAlgorithm::Sha512 if state.is_empty() => Some(Self::Sha512(Box::default())),
            WholeAlgorithm::Md5Crc32c if state.is_empty() => Some(Self::Md5Crc32c(Box::default(), 0)),
            WholeAlgorithm::Md5Crc32c => {
                let (md5, crc32c) = state.split_last_chunk()?;
                let md5 = Md5::deserialize(md5.try_into().ok()?).ok()?;
                Some(Self::Md5Crc32c(Box::new(md5), u32::from_be_bytes(*crc32c)))
            }
            WholeAlgorithm::Sha256 => Sha256::deserialize(state.as_slice().try_into().ok()?).ok().map(Self::Sha256),
            WholeAlgorithm::Sha512 => {
                Sha512::deserialize(state.as_slice().try_into().ok()?).ok().map(|hasher| Self::Sha512(Box::new(hasher)))
            }
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
            Self::Md5Crc32c(md5, crc32c) => {
                md5.update(bytes);
                *crc32c = crc32c::crc32c_append(*crc32c, bytes);
            }
        }
    }

    /// How far it has come, to be kept.
    pub(super) fn progress(&self) -> DigestProgress {
        let state = match self {
            Self::Sha256(hasher) => BASE64.encode(&hasher.serialize()),
            Self::Sha512(hasher) => BASE64.encode(&hasher.serialize()),
            Self::Md5Crc32c(md5, crc32c) => BASE64.encode(&[&md5.serialize()[..], &crc32c.to_be_bytes()].concat()),
        };
        DigestProgress::Running { state }
    }

    /// The digest, in base64.
    pub(super) fn finish(self) -> String {
        match self {
            Self::Sha256(hasher) => BASE64.encode(&hasher.finalize()),
            Self::Sha512(hasher) => BASE64.encode(&hasher.finalize()),
            Self::Md5Crc32c(md5, crc32c) => BASE64.encode(&[&md5.finalize()[..], &crc32c.to_be_bytes()].concat()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Wherever a crash falls, what is resumed from the record ends as if there had been none.
        #[test]
        fn a_resumed_digest_is_that_of_the_whole(pieces: Vec<Vec<u8>>) {
            for algorithm in [WholeAlgorithm::Sha256, WholeAlgorithm::Sha512, WholeAlgorithm::Md5Crc32c] {
                let mut stored = StoredDigest::new(algorithm, None);
                for piece in &pieces {
                    let mut digest = WholeDigest::resume(&stored).unwrap();
                    digest.update(piece);
                    stored.progress = digest.progress();
                }
                let bytes = pieces.concat();
                let whole = match algorithm {
                    WholeAlgorithm::Sha256 => BASE64.encode(&Sha256::digest(&bytes)),
                    WholeAlgorithm::Sha512 => BASE64.encode(&Sha512::digest(&bytes)),
                    WholeAlgorithm::Md5Crc32c => {
                        BASE64.encode(&[&Md5::digest(&bytes)[..], &crc32c::crc32c(&bytes).to_be_bytes()].concat())
                    }
                };
                prop_assert_eq!(WholeDigest::resume(&stored).unwrap().finish(), whole);
            }
        }
    }
}
