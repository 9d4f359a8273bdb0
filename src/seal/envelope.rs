//! Small things sealed under a key of their own: AES-256-GCM with a random nonce in front.
//!
//! For keys that seal few things, such as one half of a meeting or the name of a device: with 96 random bits a nonce
//! comes twice only after some billions of them.

use aes_gcm::aead::array::Array;
use aes_gcm::aead::{Aead as _, Payload};
use aes_gcm::{Aes256Gcm, KeyInit as _};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a nonce.
const NONCE_BYTES: usize = 12;

/// A key for one purpose, derived from a secret.
pub(crate) struct EnvelopeKey(Zeroizing<[u8; 32]>);

impl EnvelopeKey {
    /// The key for `purpose` under `secret`, which has at least 96 bits that nobody can guess.
    pub(crate) fn derive(secret: &[u8], purpose: &str) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        expand(secret, purpose, &mut *key);
        Self(key)
    }

    /// `plaintext`, sealed.
    pub(crate) fn seal(&self, plaintext: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the operating system provides randomness");
        let cipher = Aes256Gcm::new(&Array::from(*self.0));
        let sealed = cipher.encrypt(&Array::from(nonce), Payload { msg: plaintext, aad: &[] });
        [&nonce[..], &sealed.expect("what is sealed here is far below 64 GiB")].concat()
    }

    /// What was sealed; `None` when it was changed, or sealed under another key.
    pub(crate) fn open(&self, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        let cipher = Aes256Gcm::new(&Array::from(*self.0));
        cipher.decrypt(&Array::from(*nonce), Payload { msg: sealed, aad: &[] }).ok().map(Zeroizing::new)
    }
}

/// Bytes for `purpose`, derived from a secret (HKDF-SHA256, RFC 5869, without salt).
pub(crate) fn expand(secret: &[u8], purpose: &str, bytes: &mut [u8]) {
    let derived = Hkdf::<Sha256>::new(None, secret).expand(purpose.as_bytes(), bytes);
    derived.expect("HKDF-SHA256 gives up to 8,160 bytes");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sealed_opens_whole_or_not_at_all() {
        let key = EnvelopeKey::derive(b"secret", "one");
        let sealed = key.seal(b"name");
        assert_eq!(key.open(&sealed).unwrap()[..], b"name"[..]);
        assert_ne!(key.seal(b"name"), sealed);
        assert!(EnvelopeKey::derive(b"secret", "two").open(&sealed).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(&changed).is_none(), "byte {at}");
            assert!(key.open(&sealed[..at]).is_none(), "cut at {at}");
        }
    }
}
