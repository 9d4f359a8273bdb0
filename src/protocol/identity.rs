//! Who an account is: its key, and the device list that key signs. Public halves only.
//!
//! A server that could add a device to an account could read along. So the list of devices is signed by the account
//! key, which no server ever holds; clients encrypt only to listed devices and refuse a lower revision than they saw.
//!
//! Signatures are Ed25519 (RFC 8032), verified strictly, over a domain string, a zero byte and the signed bytes: what
//! was signed as one thing is never valid as another.

use data_encoding::BASE64;
use ed25519_dalek::{Signature, VerifyingKey};
use prost::Message as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::frames;
use crate::{AccountId, DeviceId, Timestamp};

/// The domain of device list signatures.
pub const DEVICE_LIST_DOMAIN: &str = "waxwing/device-list/v1";

/// The domain of prekey signatures.
pub const PREKEY_DOMAIN: &str = "waxwing/prekey/v1";

/// The domain of registration proofs: the account key signs account, handle and token hash.
pub const REGISTER_DOMAIN: &str = "waxwing/register/v1";

/// The domain of a change of handle: the account key signs account and handle.
pub const RENAME_DOMAIN: &str = "waxwing/rename/v1";

/// The domain of an account's deletion: the account key signs the account's id.
pub const DELETE_DOMAIN: &str = "waxwing/delete-account/v1";

/// The domain of what a new device signs while it is linked: its device key signs what it asks to be listed with.
pub const LINK_DOMAIN: &str = "waxwing/link-device/v1";

/// The most devices an account can list.
pub const DEVICES_MAX: usize = 32;

/// Bytes that are base64 (RFC 4648, with padding) in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Base64(pub Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&BASE64.encode_display(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A 32-byte public key, base64 in JSON: Ed25519 or Curve25519, as its place says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    /// The key in these bytes.
    ///
    /// # Errors
    /// When there are not 32 of them.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, IdentityError> {
        bytes.try_into().map(Self).map_err(|_| IdentityError::Malformed("a public key has 32 bytes"))
    }

    /// Checks an Ed25519 signature by this key over `domain`, a zero byte and `message`.
    ///
    /// # Errors
    /// [`IdentityError::Signature`] when it is not one.
    pub fn verify(&self, domain: &str, message: &[u8], signature: &[u8]) -> Result<(), IdentityError> {
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| IdentityError::Signature)?;
        let signature = Signature::from_slice(signature).map_err(|_| IdentityError::Signature)?;
        key.verify_strict(&signed_bytes(domain, message), &signature).map_err(|_| IdentityError::Signature)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&BASE64.encode_display(&self.0))
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_slice(&Base64::deserialize(deserializer)?.0).map_err(serde::de::Error::custom)
    }
}

/// What a signature covers: the domain, a zero byte, the message.
pub fn signed_bytes(domain: &str, message: &[u8]) -> Vec<u8> {
    [domain.as_bytes(), &[0], message].concat()
}

/// Why an identity was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes do not say what they should.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The signature is not by the key it must be by.
    #[error("the signature is not valid")]
    Signature,
}

/// A device as its account lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number in the account.
    pub id: DeviceId,
    /// Random per installation; another one means other keys.
    pub reg_id: u32,
    /// Its Curve25519 identity key, for sessions.
    pub curve25519: PublicKey,
    /// Its Ed25519 key, which signs its prekeys.
    pub ed25519: PublicKey,
}

/// An account's devices at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceList {
    /// The account.
    pub account: AccountId,
    /// Rises by one with every change.
    pub revision: u64,
    /// When it was signed.
    pub signed_at: Timestamp,
    /// The devices, by rising number; at least one, at most [`DEVICES_MAX`].
    pub devices: Vec<Device>,
}

impl DeviceList {
    /// The bytes that the account key signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let devices = self.devices.iter().map(|device| frames::DeviceEntry {
            device: device.id.get(),
            reg_id: device.reg_id,
            curve25519: device.curve25519.0.to_vec().into(),
            ed25519: device.ed25519.0.to_vec().into(),
        });
        frames::DeviceList {
            account: self.account.as_bytes().to_vec().into(),
            revision: self.revision,
            signed_at: self.signed_at.as_millis(),
            devices: devices.collect(),
        }
        .encode_to_vec()
    }

    /// The device numbered `id`, if it is listed.
    pub fn device(&self, id: DeviceId) -> Option<&Device> {
        self.devices.iter().find(|device| device.id == id)
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, IdentityError> {
        let list = frames::DeviceList::decode(bytes).map_err(|_| IdentityError::Malformed("not a device list"))?;
        let devices = list.devices.iter().map(|entry| {
            Ok(Device {
                id: DeviceId::new(entry.device).map_err(|_| IdentityError::Malformed("device 0"))?,
                reg_id: entry.reg_id,
                curve25519: PublicKey::from_slice(&entry.curve25519)?,
                ed25519: PublicKey::from_slice(&entry.ed25519)?,
            })
        });
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        if devices.is_empty() || devices.len() > DEVICES_MAX {
            return Err(IdentityError::Malformed("an account lists 1 to 32 devices"));
        }
        if !devices.is_sorted_by(|a, b| a.id < b.id) {
            return Err(IdentityError::Malformed("devices stand by rising number, each once"));
        }
        Ok(Self {
            account: AccountId::from_slice(&list.account).map_err(|_| IdentityError::Malformed("account id"))?,
            revision: list.revision,
            signed_at: Timestamp::from_millis(list.signed_at),
            devices,
        })
    }
}

/// A device list with the account key's signature, as it travels and is stored: the signed bytes themselves, so that
/// nobody has to encode them the same way again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedDeviceList {
    /// The bytes of the list.
    pub list: Base64,
    /// Ed25519 by the account key, domain [`DEVICE_LIST_DOMAIN`].
    pub signature: Base64,
}

impl SignedDeviceList {
    /// Checks the signature by `account_key` and that the list is of `account`, and reads it.
    ///
    /// # Errors
    /// [`IdentityError`] when it is not this account's list.
    pub fn verify(&self, account: AccountId, account_key: &PublicKey) -> Result<DeviceList, IdentityError> {
        account_key.verify(DEVICE_LIST_DOMAIN, &self.list.0, &self.signature.0)?;
        let list = DeviceList::from_bytes(&self.list.0)?;
        if list.account != account {
            return Err(IdentityError::Malformed("the device list is of another account"));
        }
        Ok(list)
    }
}

/// Which cryptographic protocol a prekey is for. Unknown ones are refused, never guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Suite {
    /// Olm: 3DH over Curve25519 and the Double Ratchet, session version 1.
    OlmV1,
}

/// Whether a prekey serves once or again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrekeyKind {
    /// Handed out once.
    OneTime,
    /// Handed out while no one-time key is left; replaced weekly.
    Fallback,
}

/// A prekey signed by its device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedPrekey {
    /// The protocol it is for.
    pub suite: Suite,
    /// Whether it serves once.
    pub kind: PrekeyKind,
    /// The Curve25519 public key.
    pub key: PublicKey,
    /// Ed25519 by the device, domain [`PREKEY_DOMAIN`], over [`SignedPrekey::message`].
    pub signature: Base64,
}

impl SignedPrekey {
    /// What a prekey's signature covers after its domain: suite, kind, key. A one-time key passed off as a fallback
    /// key would be used twice, so the kind is signed as well.
    pub fn message(suite: Suite, kind: PrekeyKind, key: &PublicKey) -> Vec<u8> {
        let suite = match suite {
            Suite::OlmV1 => 1,
        };
        let kind = match kind {
            PrekeyKind::OneTime => 1,
            PrekeyKind::Fallback => 2,
        };
        [&[suite, kind], &key.0[..]].concat()
    }

    /// Checks the signature by the device whose Ed25519 key is `device_key`.
    ///
    /// # Errors
    /// [`IdentityError::Signature`] when it is not valid.
    pub fn verify(&self, device_key: &PublicKey) -> Result<(), IdentityError> {
        device_key.verify(PREKEY_DOMAIN, &Self::message(self.suite, self.kind, &self.key), &self.signature.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ed25519_dalek::{Signer as _, SigningKey};

    fn sign(key: &SigningKey, domain: &str, message: &[u8]) -> Base64 {
        Base64(key.sign(&signed_bytes(domain, message)).to_bytes().to_vec())
    }

    fn list() -> DeviceList {
        let key = PublicKey([3; 32]);
        let device = Device { id: DeviceId::FIRST, reg_id: 9, curve25519: key, ed25519: key };
        let account = AccountId::from_bytes([1; 16]);
        DeviceList { account, revision: 1, signed_at: Timestamp::from_millis(5), devices: vec![device] }
    }

    #[test]
    fn a_list_verifies_only_by_its_account_and_unchanged() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let list = list();
        let bytes = list.to_bytes();
        let signature = sign(&key, DEVICE_LIST_DOMAIN, &bytes);
        let signed = SignedDeviceList { list: Base64(bytes.clone()), signature };
        assert_eq!(signed.verify(list.account, &public), Ok(list.clone()));
        assert!(signed.verify(AccountId::from_bytes([2; 16]), &public).is_err());
        assert_eq!(signed.verify(list.account, &PublicKey([7; 32])), Err(IdentityError::Signature));
        for at in 0..bytes.len() {
            let mut changed = signed.clone();
            changed.list.0[at] ^= 1;
            assert_eq!(changed.verify(list.account, &public), Err(IdentityError::Signature));
        }
        let other_domain = SignedDeviceList { signature: sign(&key, PREKEY_DOMAIN, &bytes), ..signed };
        assert_eq!(other_domain.verify(list.account, &public), Err(IdentityError::Signature));
    }

    #[test]
    fn lists_without_order_or_devices_are_refused_even_when_signed() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let second = Device { id: DeviceId::new(2).unwrap(), ..list().devices[0] };
        let first = list().devices[0];
        for devices in [vec![], vec![second, first], vec![first, first], vec![first; DEVICES_MAX + 1]] {
            let list = DeviceList { devices, ..list() };
            let bytes = list.to_bytes();
            let signed = SignedDeviceList { signature: sign(&key, DEVICE_LIST_DOMAIN, &bytes), list: Base64(bytes) };
            assert!(matches!(signed.verify(list.account, &public), Err(IdentityError::Malformed(_))));
        }
    }

    #[test]
    fn a_prekey_cannot_change_its_kind() {
        let key = SigningKey::from_bytes(&[7; 32]);
        let public = PublicKey(key.verifying_key().to_bytes());
        let prekey = PublicKey([4; 32]);
        let message = SignedPrekey::message(Suite::OlmV1, PrekeyKind::OneTime, &prekey);
        let signed = SignedPrekey {
            suite: Suite::OlmV1,
            kind: PrekeyKind::OneTime,
            key: prekey,
            signature: sign(&key, PREKEY_DOMAIN, &message),
        };
        assert_eq!(signed.verify(&public), Ok(()));
        let passed_off = SignedPrekey { kind: PrekeyKind::Fallback, ..signed };
        assert_eq!(passed_off.verify(&public), Err(IdentityError::Signature));
    }
}
