//! Device tokens: what a device shows to be let in.
//!
//! Without a device's name inside it, a token could only be looked up by scanning hashes; with it, the server reads one
//! row and compares one hash. The secret is 256 random bits, so a plain hash of it may lie at rest: there is nothing to
//! guess that a slow hash would protect.
//!
//! A token travels in `Authorization: Bearer` or in `Hello.token`, never in a URL, and is never logged: it has no
//! `Display`, and its `Debug` leaves the secret out.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use zeroize::Zeroize as _;

use crate::ids::IdError;
use crate::{AccountId, DeviceId};

/// Bytes of a token's secret.
pub const TOKEN_SECRET_BYTES: usize = 32;

/// Bytes of a token's text at most: a UUID, ten digits, 43 characters of base64url, two dots.
pub const TOKEN_TEXT_BYTES_MAX: usize = 36 + 1 + 10 + 1 + 43;

/// A device token: which device, and the secret that proves it.
///
/// Its text is `<account uuid>.<device>.<secret>`, the secret in base64url (RFC 4648 §5) without padding; like every id
/// it has exactly one spelling. The secret is wiped from memory on drop.
#[derive(Clone, PartialEq, Eq)]
pub struct DeviceToken {
    /// The account.
    pub account: AccountId,
    /// The device of it.
    pub device: DeviceId,
    secret: [u8; TOKEN_SECRET_BYTES],
}

impl DeviceToken {
    /// The token of a device whose `secret` is 32 random bytes.
    pub const fn new(account: AccountId, device: DeviceId, secret: [u8; TOKEN_SECRET_BYTES]) -> Self {
        Self { account, device, secret }
    }

    /// BLAKE3-256 of the secret: all that a server keeps. Compare it in constant time.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.secret).as_bytes()
    }

    /// The token as it travels. Whoever reads it is the device.
    pub fn to_text(&self) -> String {
        format!("{}.{}.{}", self.account, self.device, BASE64URL_NOPAD.encode(&self.secret))
    }
}

impl FromStr for DeviceToken {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let error = IdError { kind: "device token" };
        if text.len() > TOKEN_TEXT_BYTES_MAX {
            return Err(error);
        }
        let mut parts = text.split('.');
        let (Some(account), Some(device), Some(secret), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(error);
        };
        let (account, device) = (account.parse().map_err(|_| error)?, device.parse().map_err(|_| error)?);
        let mut bytes = [0; TOKEN_SECRET_BYTES];
        if BASE64URL_NOPAD.decode_len(secret.len()) != Ok(TOKEN_SECRET_BYTES) {
            return Err(error);
        }
        BASE64URL_NOPAD.decode_mut(secret.as_bytes(), &mut bytes).map_err(|_| error)?;
        Ok(Self::new(account, device, bytes))
    }
}

impl fmt::Debug for DeviceToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceToken({}.{})", self.account, self.device)
    }
}

impl Drop for DeviceToken {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn token(secret: [u8; 32]) -> DeviceToken {
        DeviceToken::new(AccountId::from_bytes([1; 16]), DeviceId::FIRST, secret)
    }

    proptest! {
        #[test]
        fn a_token_has_exactly_one_spelling(secret: [u8; 32], device in 1..=u32::MAX) {
            let token = DeviceToken::new(AccountId::from_bytes([9; 16]), DeviceId::new(device).unwrap(), secret);
            let text = token.to_text();
            prop_assert!(text.len() <= TOKEN_TEXT_BYTES_MAX);
            prop_assert_eq!(text.parse(), Ok(token.clone()));
            // The last character carries two spare bits: any but zero would be a second spelling.
            for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".chars() {
                let twin = format!("{}{c}", &text[..text.len() - 1]);
                if let Ok(other) = twin.parse::<DeviceToken>() {
                    prop_assert_eq!(other.to_text(), twin);
                }
            }
        }

        #[test]
        fn no_text_makes_parsing_panic(text in ".{0,120}") {
            let _ = text.parse::<DeviceToken>();
        }
    }

    #[test]
    fn changed_forms_are_refused() {
        let text = token([7; 32]).to_text();
        let upper = text.to_uppercase();
        let no_secret = text.rsplit_once('.').unwrap().0;
        let padded = format!("{text}=");
        let more = format!("{text}.x");
        let device_zero = text.replacen(".1.", ".0.", 1);
        let padded_device = text.replacen(".1.", ".01.", 1);
        for bad in ["", "..", "a.1.b", &upper, no_secret, &padded, &more, &device_zero, &padded_device] {
            assert!(bad.parse::<DeviceToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_hash_is_of_the_secret_alone_and_debug_hides_it() {
        let token = token([7; 32]);
        assert_eq!(token.hash(), *blake3::hash(&[7; 32]).as_bytes());
        let shown = format!("{token:?}");
        assert!(!shown.contains(token.to_text().rsplit('.').next().unwrap()));
    }
}
