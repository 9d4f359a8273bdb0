//! A blob's key, and the header that makes each sealing of it different.

use std::fmt;

use waxwing_protocol::blob::HEADER_BYTES;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Bytes of the salt in a header.
pub(super) const SALT_BYTES: usize = 32;

/// The 256-bit key of one blob. Made for one plaintext and never used for a second; wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct BlobKey([u8; 32]);

impl BlobKey {
    /// Bytes of a key.
    pub const BYTES: usize = 32;

    /// A new random key.
    ///
    /// # Panics
    /// When the operating system has no randomness: nothing can be sealed then.
    pub fn generate() -> Self {
        let mut key = Self([0; 32]);
        getrandom::fill(&mut key.0).expect("the operating system gives randomness");
        key
    }

    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Shows that there is a key, never which.
impl fmt::Debug for BlobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlobKey(..)")
    }
}

/// The 40 bytes with which a sealed blob begins: its own length (0x28), 32 bytes of salt, 7 of nonce prefix.
///
/// Not secret. A reference carries it as well, so that a seek needs no first segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobHeader([u8; HEADER_BYTES]);

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the header of a sealed blob")]
pub struct HeaderError;

impl BlobHeader {
    /// What the first byte says: how long the header is.
    const LENGTH_BYTE: u8 = 0x28;

    /// A header with a new random salt and nonce prefix.
    ///
    /// # Panics
    /// When the operating system has no randomness.
    pub fn generate() -> Self {
        let mut bytes = [0; HEADER_BYTES];
        getrandom::fill(&mut bytes[1..]).expect("the operating system gives randomness");
        bytes[0] = Self::LENGTH_BYTE;
        Self(bytes)
    }

    /// The header in these bytes.
    ///
    /// # Errors
    /// [`HeaderError`] when there are not 40 of them, or the first is not 0x28.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let bytes: [u8; HEADER_BYTES] = bytes.try_into().map_err(|_| HeaderError)?;
        if bytes[0] == Self::LENGTH_BYTE { Ok(Self(bytes)) } else { Err(HeaderError) }
    }

    /// The header's bytes.
    pub const fn as_bytes(&self) -> &[u8; HEADER_BYTES] {
        &self.0
    }

    pub(super) fn salt(&self) -> &[u8] {
        &self.0[1..=SALT_BYTES]
    }

    pub(super) fn nonce_prefix(&self) -> [u8; 7] {
        *self.0.last_chunk().expect("a header is longer than its nonce prefix")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_its_length_and_is_never_the_same_twice() {
        let header = BlobHeader::generate();
        assert_eq!(BlobHeader::parse(header.as_bytes()), Ok(header));
        assert_ne!(header, BlobHeader::generate());
        let mut wrong = *header.as_bytes();
        wrong[0] = 0x29;
        assert_eq!(BlobHeader::parse(&wrong), Err(HeaderError));
        assert_eq!(BlobHeader::parse(&header.as_bytes()[..39]), Err(HeaderError));
        assert_eq!(header.salt().len() + header.nonce_prefix().len(), 39);
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = BlobKey::from_bytes([0xAB; 32]);
        assert_eq!(format!("{key:?}"), "BlobKey(..)");
        assert_ne!(BlobKey::generate(), BlobKey::generate());
    }
}
