//! Web Push's encryption (RFC 8291): what is sent by a push service is for the device alone.
//!
//! A push service carries it and learns a size. So all plaintexts are padded to one.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use data_encoding::BASE64URL_NOPAD;
use waxwing_protocol::api::Subscription;

/// Bytes of a P-256 point, uncompressed.
const POINT_BYTES: usize = 65;

/// Bytes of a subscription's secret.
const AUTH_BYTES: usize = 16;

/// The record size that the header names: one record holds everything.
const RECORD_BYTES: u32 = 4096;

/// Bytes that every plaintext is padded to.
pub(super) const PADDED_BYTES: usize = 64;

/// Why something cannot be sealed for a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SealError {
    #[error("p256dh is a P-256 point of 65 bytes in base64url")]
    PublicKey,
    #[error("auth is 16 bytes in base64url")]
    Auth,
    #[error("the cipher failed")]
    Failed,
}

/// The keys of a subscription.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    public: [u8; POINT_BYTES],
    auth: [u8; AUTH_BYTES],
}

impl Keys {
    pub(super) fn parse(subscription: &Subscription) -> Result<Self, SealError> {
        let public = decode(&subscription.p256dh).and_then(|bytes| bytes.try_into().ok());
        let auth = decode(&subscription.auth).and_then(|bytes| bytes.try_into().ok());
        Ok(Self { public: public.ok_or(SealError::PublicKey)?, auth: auth.ok_or(SealError::Auth)? })
    }
}

/// Base64 of either alphabet, padded or not: browsers and libraries differ.
fn decode(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=').replace('+', "-").replace('/', "_");
    BASE64URL_NOPAD.decode(text.as_bytes()).ok()
}

/// Seals a plaintext for a subscription.
pub(super) fn seal(keys: &Keys, plaintext: &[u8]) -> Result<Vec<u8>, SealError> {
    let own = PrivateKey::generate(&ECDH_P256).map_err(|_| SealError::Failed)?;
    seal_with(keys, plaintext, PADDED_BYTES, &own, crate::node::random())
}

/// Seals with these particulars; each pair of key and salt is used once.
fn seal_with(
    keys: &Keys,
    plaintext: &[u8],
    padded_bytes: usize,
    own: &PrivateKey,
    salt: [u8; 16],
) -> Result<Vec<u8>, SealError> {
    let failed = |_| SealError::Failed;
    let own_public = own.compute_public_key().map_err(failed)?;
    let peer = UnparsedPublicKey::new(&ECDH_P256, &keys.public[..]);
    // A point that is not on the curve fails here.
    let shared = agreement::agree(own, peer, SealError::PublicKey, |secret| Ok(secret.to_vec()))?;
    let info = [&b"WebPush: info\0"[..], &keys.public, own_public.as_ref()].concat();
    let ikm: [u8; 32] = derive(&keys.auth, &shared, &info).map_err(failed)?;
    let key: [u8; 16] = derive(&salt, &ikm, b"Content-Encoding: aes128gcm\0").map_err(failed)?;
    let nonce: [u8; 12] = derive(&salt, &ikm, b"Content-Encoding: nonce\0").map_err(failed)?;

    // The last record's delimiter, then padding.
    let mut record = plaintext.to_vec();
    record.push(2);
    record.resize(record.len().max(padded_bytes + 1), 0);
    let cipher = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key).map_err(failed)?);
    let nonce = Nonce::assume_unique_for_key(nonce);
    cipher.seal_in_place_append_tag(nonce, Aad::empty(), &mut record).map_err(failed)?;

    let mut body = Vec::with_capacity(86 + record.len());
    body.extend_from_slice(&salt);
    body.extend_from_slice(&RECORD_BYTES.to_be_bytes());
    body.push(u8::try_from(POINT_BYTES).expect("65 fits a byte"));
    body.extend_from_slice(own_public.as_ref());
    body.extend_from_slice(&record);
    Ok(body)
}

/// HKDF-SHA-256.
fn derive<const N: usize>(salt: &[u8], ikm: &[u8], info: &[u8]) -> Result<[u8; N], aws_lc_rs::error::Unspecified> {
    struct Bytes(usize);
    impl KeyType for Bytes {
        fn len(&self) -> usize {
            self.0
        }
    }
    let mut out = [0; N];
    Salt::new(HKDF_SHA256, salt).extract(ikm).expand(&[info], Bytes(N))?.fill(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        decode(text).unwrap().try_into().unwrap()
    }

    fn subscription() -> Subscription {
        Subscription {
            endpoint: String::new(),
            p256dh: "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4".into(),
            auth: "BTBZMqHH6r4Tts7J_aSIgg".into(),
        }
    }

    /// RFC 8291, appendix A.
    #[test]
    fn the_rfcs_example_comes_out_byte_for_byte() {
        let own: [u8; 32] = bytes("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
        let own = PrivateKey::from_private_key(&ECDH_P256, &own).unwrap();
        let salt = bytes("DGv6ra1nlYgDCS1FRnbzlw");
        let keys = Keys::parse(&subscription()).unwrap();
        let body = seal_with(&keys, b"When I grow up, I want to be a watermelon", 0, &own, salt).unwrap();
        let known = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK\
                     6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
        assert_eq!(BASE64URL_NOPAD.encode(&body), known);
    }

    #[test]
    fn all_wakes_have_one_size_and_no_two_are_alike() {
        let keys = Keys::parse(&subscription()).unwrap();
        let (short, long) = (seal(&keys, b"a").unwrap(), seal(&keys, &[b'b'; PADDED_BYTES]).unwrap());
        assert_eq!(short.len(), long.len());
        assert_ne!(short, seal(&keys, b"a").unwrap());
    }

    #[test]
    fn keys_come_in_every_spelling_and_a_point_off_the_curve_is_refused() {
        let spelt = Subscription { auth: "BTBZMqHH6r4Tts7J/aSIgg==".into(), ..subscription() };
        assert_eq!(Keys::parse(&spelt).unwrap().auth, Keys::parse(&subscription()).unwrap().auth);
        let short = Subscription { auth: "AAAA".into(), ..subscription() };
        assert_eq!(Keys::parse(&short).unwrap_err(), SealError::Auth);
        let off = [&[4][..], &[1; 64]].concat();
        let off = Subscription { p256dh: BASE64URL_NOPAD.encode(&off), ..subscription() };
        assert_eq!(seal(&Keys::parse(&off).unwrap(), b"a").unwrap_err(), SealError::PublicKey);
    }
}
