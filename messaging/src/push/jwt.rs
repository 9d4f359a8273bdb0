//! The signed tokens by which providers know us: ES256 for APNs and VAPID, RS256 for Google.

use aws_lc_rs::agreement;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256};
use data_encoding::BASE64URL_NOPAD;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::Value;

/// Why a key cannot be used. What is in the file is never shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("no private key in PEM")]
    NotPem,
    #[error("not a P-256 private key")]
    NotP256,
    #[error("not an RSA private key of 2048 bits or more")]
    NotRsa,
    #[error("the key cannot sign")]
    Failed,
}

/// A P-256 key.
#[derive(Debug)]
pub(super) struct Es256(EcdsaKeyPair);

impl Es256 {
    /// The key in a PEM file: PKCS#8, as Apple gives it, or SEC1.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::NotPem)?;
        let pair = match &key {
            PrivateKeyDer::Pkcs8(key) => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_pkcs8_der())
            }
            key => EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der()),
        };
        pair.map(Self).map_err(|_| KeyError::NotP256)
    }

    /// The key whose 32 bytes these are.
    pub(super) fn from_secret(secret: &[u8]) -> Result<Self, KeyError> {
        let private = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, secret);
        let public = private.map_err(|_| KeyError::NotP256)?.compute_public_key().map_err(|_| KeyError::NotP256)?;
        EcdsaKeyPair::from_private_key_and_public_key(&ECDSA_P256_SHA256_FIXED_SIGNING, secret, public.as_ref())
            .map(Self)
            .map_err(|_| KeyError::NotP256)
    }

    /// Its public key: 65 bytes.
    pub(super) fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    /// A token.
    pub(super) fn sign(&self, header: &Value, claims: &Value) -> Result<String, KeyError> {
        let message = message(header, claims);
        let signature = self.0.sign(&SystemRandom::new(), message.as_bytes()).map_err(|_| KeyError::Failed)?;
        Ok(format!("{message}.{}", BASE64URL_NOPAD.encode(signature.as_ref())))
    }
}

/// An RSA key.
#[derive(Debug)]
pub(super) struct Rs256(rsa::KeyPair);

impl Rs256 {
    /// The key in PEM: PKCS#8, as Google gives it.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| KeyError::NotPem)?;
        let PrivateKeyDer::Pkcs8(key) = &key else { return Err(KeyError::NotRsa) };
        rsa::KeyPair::from_pkcs8(key.secret_pkcs8_der()).map(Self).map_err(|_| KeyError::NotRsa)
    }

    /// A token.
    pub(super) fn sign(&self, header: &Value, claims: &Value) -> Result<String, KeyError> {
        let message = message(header, claims);
        let mut signature = vec![0; self.0.public_modulus_len()];
        let signed = self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature);
        signed.map_err(|_| KeyError::Failed)?;
        Ok(format!("{message}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}

fn message(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    format!("{}.{}", part(header), part(claims))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_token_is_three_parts_of_which_the_last_signs_the_others() {
        let key = Es256::from_secret(&[7; 32]).unwrap();
        assert_eq!(key.public().len(), 65);
        let token = key.sign(&json!({ "alg": "ES256" }), &json!({ "iat": 5 })).unwrap();
        let (message, signature) = token.rsplit_once('.').unwrap();
        let signature = BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap();
        assert_eq!(signature.len(), 64, "r and s, not DER");
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.public());
        public.verify(message.as_bytes(), &signature).unwrap();
        let claims = BASE64URL_NOPAD.decode(message.rsplit_once('.').unwrap().1.as_bytes()).unwrap();
        assert_eq!(claims, br#"{"iat":5}"#);
    }

    #[test]
    fn what_is_no_key_says_so_and_nothing_of_itself() {
        assert_eq!(Es256::from_secret(&[0; 32]).unwrap_err(), KeyError::NotP256);
        assert_eq!(Es256::from_secret(&[0xff; 32]).unwrap_err(), KeyError::NotP256, "above the order");
        assert_eq!(Es256::from_pem(b"secret").unwrap_err(), KeyError::NotPem);
        let pem = b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        assert_eq!(Es256::from_pem(pem).unwrap_err(), KeyError::NotP256);
        assert_eq!(Rs256::from_pem(pem).unwrap_err(), KeyError::NotRsa);
    }
}
