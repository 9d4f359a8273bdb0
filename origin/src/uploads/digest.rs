//! Digests of what a request carries: the client says what its bytes should hash to, and they count whole or not at all.
//!
//! TCP's checksum lets an error through now and then, and proxies and bad memory add their own. A client that sends a
//! digest with each request finds out at once, not after gigabytes.

use std::sync::{Arc, OnceLock};

use md5::Md5;
use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha512};

/// How a digest is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DigestAlgorithm {
    /// MD5: against accidents alone.
    Md5,
    /// SHA-1: against accidents alone; every tus client has it.
    Sha1,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// CRC-32/ISO-HDLC, as in zlib; four bytes, the most significant first.
    Crc32,
    /// BLAKE3-256.
    Blake3,
}

impl DigestAlgorithm {
    /// How many bytes its digests have.
    pub(crate) const fn digest_bytes(self) -> usize {
        match self {
            Self::Crc32 => 4,
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digest {
    algorithm: DigestAlgorithm,
    value: Vec<u8>,
}

impl Digest {
    /// The digest `value` made by `algorithm`; `None` when it has not as many bytes.
    pub(crate) fn new(algorithm: DigestAlgorithm, value: Vec<u8>) -> Option<Self> {
        (value.len() == algorithm.digest_bytes()).then_some(Self { algorithm, value })
    }
}

/// The digest that a request's content must have.
#[derive(Clone, Debug)]
pub(crate) enum ContentDigest {
    /// Told before the content.
    Told(Digest),
    /// Told after it, in a trailer. All algorithms that a trailer may name are computed.
    ToCome(DigestToCome),
}

/// Where a digest is put that comes after the content.
#[derive(Clone, Debug, Default)]
pub(crate) struct DigestToCome(Arc<OnceLock<Digest>>);

impl DigestToCome {
    /// Puts it there; the first counts.
    pub(crate) fn tell(&self, digest: Digest) {
        // A second one is a client's mistake that the first must not be lost to.
        let _ = self.0.set(digest);
    }
}

/// Digests content as it comes, for the check at its end.
#[derive(Clone)]
pub(super) struct Checker {
    hashers: Vec<Hasher>,
    expected: ContentDigest,
}

/// What became of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Match,
    Mismatch,
    /// The digest that was to come did not.
    Missing,
}

#[derive(Clone)]
enum Hasher {
    Md5(Md5),
    Sha1(Sha1),
    Sha256(Sha256),
    Sha512(Box<Sha512>),
    Crc32(crc32fast::Hasher),
    Blake3(Box<blake3::Hasher>),
}

impl Checker {
    pub(super) fn new(expected: ContentDigest) -> Self {
        use DigestAlgorithm::{Blake3, Crc32, Md5, Sha1, Sha256};
        let hashers = match &expected {
            ContentDigest::Told(digest) => vec![Hasher::new(digest.algorithm)],
            ContentDigest::ToCome(_) => [Md5, Sha1, Sha256, Crc32, Blake3].map(Hasher::new).into(),
        };
        Self { hashers, expected }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.hashers.iter_mut().for_each(|hasher| hasher.update(bytes));
    }

    /// Whether the content is what it should be. Asked at its end.
    pub(super) fn verdict(self) -> Verdict {
        let expected = match self.expected {
            ContentDigest::Told(digest) => digest,
            ContentDigest::ToCome(to_come) => match to_come.0.get() {
                Some(digest) => digest.clone(),
                None => return Verdict::Missing,
            },
        };
        let actual = self.hashers.into_iter().map(Hasher::finish).find(|actual| actual.algorithm == expected.algorithm);
        if actual == Some(expected) { Verdict::Match } else { Verdict::Mismatch }
    }
}

impl Hasher {
    fn new(algorithm: DigestAlgorithm) -> Self {
        match algorithm {
            DigestAlgorithm::Md5 => Self::Md5(Md5::new()),
            DigestAlgorithm::Sha1 => Self::Sha1(Sha1::new()),
            DigestAlgorithm::Sha256 => Self::Sha256(Sha256::new()),
            DigestAlgorithm::Sha512 => Self::Sha512(Box::default()),
            DigestAlgorithm::Crc32 => Self::Crc32(crc32fast::Hasher::new()),
            DigestAlgorithm::Blake3 => Self::Blake3(Box::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
            Self::Crc32(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => drop(hasher.update(bytes)),
        }
    }

    fn finish(self) -> Digest {
        let (algorithm, value) = match self {
            Self::Md5(hasher) => (DigestAlgorithm::Md5, hasher.finalize().to_vec()),
            Self::Sha1(hasher) => (DigestAlgorithm::Sha1, hasher.finalize().to_vec()),
            Self::Sha256(hasher) => (DigestAlgorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (DigestAlgorithm::Sha512, hasher.finalize().to_vec()),
            Self::Crc32(hasher) => (DigestAlgorithm::Crc32, hasher.finalize().to_be_bytes().to_vec()),
            Self::Blake3(hasher) => (DigestAlgorithm::Blake3, hasher.finalize().as_bytes().to_vec()),
        };
        Digest { algorithm, value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    /// "123456789": the check values of the CRC catalogue, and those `md5sum`, `sha1sum`, … print.
    #[test]
    fn digests_are_what_everybody_computes() {
        use DigestAlgorithm::{Crc32, Md5, Sha1, Sha256};
        for (algorithm, hex) in [
            (Crc32, "cbf43926"),
            (Md5, "25f9e794323b453885f5181f1b624d0b"),
            (Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            (Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ] {
            let digest = Digest::new(algorithm, HEXLOWER.decode(hex.as_bytes()).unwrap()).unwrap();
            let to_come = DigestToCome::default();
            to_come.tell(digest.clone());
            for expected in [ContentDigest::Told(digest.clone()), ContentDigest::ToCome(to_come)] {
                let mut checker = Checker::new(expected);
                checker.update(b"1234");
                let mut other = checker.clone();
                checker.update(b"56789");
                other.update(b"5678x");
                assert_eq!((checker.verdict(), other.verdict()), (Verdict::Match, Verdict::Mismatch), "{algorithm:?}");
            }
        }
    }

    #[test]
    fn a_digest_that_never_comes_is_missing() {
        assert_eq!(Checker::new(ContentDigest::ToCome(DigestToCome::default())).verdict(), Verdict::Missing);
        assert_eq!(Digest::new(DigestAlgorithm::Sha1, vec![0; 19]), None);
    }
}
