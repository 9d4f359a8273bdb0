//! Sealing and opening one segment, in place.
//!
//! The cipher is AES-256-GCM in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár: "Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015): the nonce tells a segment's place and whether
//! it is the last. A buffer is sealed where it lies; nothing is copied.

use aead_stream::aead::array::Array;
use aead_stream::aead::{self, Buffer};
use aead_stream::{NewStream as _, StreamBE32, StreamPrimitive as _};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use hkdf::Hkdf;
use sha2::Sha256;
use waxwing_protocol::blob::TAG_BYTES;
use zeroize::Zeroizing;

use super::key::{BlobHeader, BlobKey};
use super::{ASSOCIATED_DATA, Layout};

/// Why a segment or a blob did not open. Nothing of what failed was let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The segment was changed, moved, or sealed under another key.
    #[error("segment {segment} is not what was sealed there")]
    Tampered {
        /// Which segment.
        segment: u32,
    },
    /// The blob's header is not the one its reference names.
    #[error("the blob begins with another header than its reference names")]
    Header,
    /// The blob ends early.
    #[error("the blob ends after {actual} of {expected} bytes")]
    Truncated {
        /// Bytes that the blob has by its reference.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// The blob goes on after its last segment.
    #[error("the blob goes on after its {expected} bytes")]
    TooLong {
        /// Bytes that the blob has by its reference.
        expected: u64,
    },
    /// An earlier segment did not open, so nothing more is opened.
    #[error("an earlier segment did not open")]
    Closed,
}

/// Seals and opens the segments of one blob, in any order.
pub struct SegmentCipher {
    stream: StreamBE32<Aes256Gcm>,
}

impl SegmentCipher {
    /// The cipher for the blob with this key and header.
    pub fn new(key: &BlobKey, header: &BlobHeader) -> Self {
        let mut segment_key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(header.salt()), key.as_bytes())
            .expand(ASSOCIATED_DATA, &mut *segment_key)
            .expect("HKDF-SHA256 gives up to 8,160 bytes");
        let cipher = Aes256Gcm::new(&Array::from(*segment_key));
        Self { stream: StreamBE32::from_aead(cipher, &Array::from(header.nonce_prefix())) }
    }

    /// Seals segment `index`: `buffer` holds its plaintext and room for the tag, 16 bytes, and holds the ciphertext
    /// afterwards. Callers see to it that a place is sealed with one plaintext only: see [`super::SealPlan`].
    ///
    /// # Panics
    /// When the buffer is shorter than a tag or longer than a segment.
    pub fn seal_in_place(&self, index: u32, last: bool, buffer: &mut [u8]) {
        let filled = buffer.len().checked_sub(TAG_BYTES).expect("room for the tag");
        let mut place = Place { bytes: buffer, filled };
        self.stream
            .encrypt_in_place(index, last, &[], &mut place)
            .expect("a segment is far below AES-GCM's limit of 64 GiB and has room for its tag");
    }

    /// Opens segment `index` in place and gives its plaintext.
    ///
    /// # Errors
    /// [`OpenError::Tampered`] when it is not what was sealed there; the buffer holds no plaintext then.
    pub fn open_in_place<'a>(&self, index: u32, last: bool, buffer: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let filled = buffer.len();
        let mut place = Place { bytes: buffer, filled };
        self.stream
            .decrypt_in_place(index, last, &[], &mut place)
            .map_err(|aead::Error| OpenError::Tampered { segment: index })?;
        let Place { bytes, filled } = place;
        Ok(&bytes[..filled])
    }

    /// Opens the whole segment `index` of a blob with this layout, the first with its header, and gives the part of the
    /// file that it holds.
    ///
    /// # Errors
    /// [`OpenError::Tampered`] when it has another length or is not what was sealed there.
    pub fn open_segment<'a>(&self, layout: &Layout, index: u32, sealed: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let tampered = OpenError::Tampered { segment: index };
        let range = layout.sealed_range(index);
        if sealed.len() as u64 != range.end - range.start {
            return Err(tampered);
        }
        let plain = self.open_in_place(index, layout.is_last(index), &mut sealed[Layout::header_bytes(index)..])?;
        let file = layout.file_range(index);
        let file_bytes = usize::try_from(file.end - file.start).map_err(|_| tampered)?;
        Ok(&plain[..file_bytes])
    }
}

/// A fixed slice as the buffer of an AEAD: the tag goes into the room after what is filled.
struct Place<'a> {
    bytes: &'a mut [u8],
    filled: usize,
}

impl AsRef<[u8]> for Place<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl AsMut<[u8]> for Place<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.filled]
    }
}

impl Buffer for Place<'_> {
    fn extend_from_slice(&mut self, other: &[u8]) -> aead::Result<()> {
        let room = self.bytes.get_mut(self.filled..self.filled + other.len()).ok_or(aead::Error)?;
        room.copy_from_slice(other);
        self.filled += other.len();
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.filled = self.filled.min(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cipher() -> SegmentCipher {
        SegmentCipher::new(
            &BlobKey::from_bytes([1; 32]),
            &BlobHeader::parse(&[[0x28].as_slice(), &[2; 39]].concat()).unwrap(),
        )
    }

    #[test]
    fn a_segment_opens_only_in_its_place() {
        let mut sealed = [b"hello".as_slice(), &[0; TAG_BYTES]].concat();
        cipher().seal_in_place(3, false, &mut sealed);
        for (index, last) in [(2, false), (4, false), (3, true), (0, false)] {
            let refused = cipher().open_in_place(index, last, &mut sealed.clone()).map(<[u8]>::to_vec);
            assert_eq!(refused, Err(OpenError::Tampered { segment: index }));
        }
        assert_eq!(cipher().open_in_place(3, false, &mut sealed), Ok(b"hello".as_slice()));
    }

    #[test]
    fn nothing_of_a_bad_segment_is_left_in_the_buffer() {
        let plain = b"the very same plaintext".as_slice();
        let mut sealed = [plain, &[0; TAG_BYTES]].concat();
        cipher().seal_in_place(0, true, &mut sealed);
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 0x80;
            assert!(cipher().open_in_place(0, true, &mut changed).is_err(), "byte {at}");
            assert!(!changed.windows(4).any(|window| plain.windows(4).any(|piece| piece == window)), "byte {at}");
        }
        for cut in 0..sealed.len() {
            assert!(cipher().open_in_place(0, true, &mut sealed.clone()[..cut]).is_err());
        }
    }
}
