//! A device's own secret keys: its identity, and the prekeys with which strangers begin sessions while it is offline.
//!
//! Whoever writes to a device for the first time has no answer of it to build a secret from. So the device leaves
//! signed *prekeys* at the server: one-time keys, each handed to one stranger and forgotten here once used, and a
//! fallback key for when they run out. The signature is by the device's Ed25519 key from the signed device list, so a
//! server cannot slip in a prekey of its own.
//!
//! Promise: the keys change only together with what the profile stores. [`DeviceKeys`] cannot be cloned, and storing
//! consumes it ([`DeviceKeys::into_bytes`]), so a caller that loads, changes and stores it in one transaction has no
//! second copy that could fall behind.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use vodozemac::Curve25519PublicKey;
use vodozemac::olm::{Account, AccountPickle};
use waxwing_protocol::DeviceId;
use waxwing_protocol::identity::{
    Base64, Device, PREKEY_DOMAIN, PrekeyKind, PublicKey, SignedPrekey, Suite, signed_bytes,
};
use zeroize::Zeroizing;

use crate::secret_bytes::to_secret_bytes;

/// One device's secret keys. Belongs to one profile: a copy restored elsewhere would be the same device twice.
pub struct DeviceKeys {
    id: DeviceId,
    reg_id: u32,
    pub(crate) account: Account,
    fallback_unpublished: Option<PublicKey>,
}

/// How [`DeviceKeys`] is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: DeviceId,
    reg_id: u32,
    account: AccountPickle,
    fallback_unpublished: Option<PublicKey>,
}

/// The stored keys of a device are not what was stored.
#[derive(Debug, thiserror::Error)]
#[error("the stored device keys are damaged")]
pub struct DamagedKeys;

impl DeviceKeys {
    /// New keys for the device numbered `id`, with a random reg_id.
    pub fn generate(id: DeviceId) -> Self {
        let reg_id = getrandom::u32().expect("the operating system provides randomness");
        Self { id, reg_id, account: Account::new(), fallback_unpublished: None }
    }

    /// The device as its account lists it: public halves only.
    pub fn device(&self) -> Device {
        Device {
            id: self.id,
            reg_id: self.reg_id,
            curve25519: PublicKey(self.account.curve25519_key().to_bytes()),
            ed25519: PublicKey(*self.account.ed25519_key().as_bytes()),
        }
    }

    /// `count` new one-time prekeys for the server, given out this one time.
    ///
    /// A key whose upload got lost is never offered again: the server may have it, and may have handed it to somebody
    /// already; offered twice it would be handed out twice, and the second message could not be read. A lost key costs
    /// 32 bytes here; of those never used the newest 5,000 are kept.
    pub fn one_time_prekeys(&mut self, count: usize) -> Vec<SignedPrekey> {
        self.account.generate_one_time_keys(count);
        let by_age: BTreeMap<_, _> = self.account.one_time_keys().into_iter().collect();
        self.account.mark_keys_as_published();
        by_age.values().map(|key| self.sign_prekey(PrekeyKind::OneTime, key)).collect()
    }

    /// The fallback prekey to upload: the one made before, until [`DeviceKeys::fallback_published`], else a new one.
    ///
    /// Offered again after a lost reply, since a fallback key serves many anyway, while each new one displaces one: this
    /// device knows the newest and the one before, for messages still on their way, and forgets older ones.
    pub fn fallback_prekey(&mut self) -> SignedPrekey {
        let key = match self.fallback_unpublished {
            Some(key) => key,
            None => {
                self.account.generate_fallback_key();
                let made = self.account.fallback_key();
                let key = made.values().next().expect("a fallback key just made is unpublished");
                self.fallback_unpublished = Some(PublicKey(key.to_bytes()));
                PublicKey(key.to_bytes())
            }
        };
        self.sign_prekey(PrekeyKind::Fallback, &Curve25519PublicKey::from_bytes(key.0))
    }

    /// The server has the fallback prekey given out last; the next one is a new one.
    pub fn fallback_published(&mut self) {
        self.fallback_unpublished = None;
    }

    /// The same keys under the number that an account has given them.
    #[must_use]
    pub fn numbered(self, id: DeviceId) -> Self {
        Self { id, ..self }
    }

    /// Signs as this device: Ed25519 over `domain`, a zero byte and `message`.
    pub fn sign(&self, domain: &str, message: &[u8]) -> Base64 {
        Base64(self.account.sign(signed_bytes(domain, message)).to_bytes().to_vec())
    }

    /// The keys as bytes for the profile. Consumes them, so that nobody goes on with keys that the profile does not
    /// know about.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        let Self { id, reg_id, account, fallback_unpublished } = self;
        to_secret_bytes(&Stored { id, reg_id, account: account.pickle(), fallback_unpublished })
    }

    /// The keys as bytes without an end to them here, for tests that try several things from one state.
    #[cfg(test)]
    pub(crate) fn stored(&self) -> Zeroizing<Vec<u8>> {
        let fallback_unpublished = self.fallback_unpublished;
        let account = self.account.pickle();
        to_secret_bytes(&Stored { id: self.id, reg_id: self.reg_id, account, fallback_unpublished })
    }

    /// The keys that [`DeviceKeys::into_bytes`] stored.
    ///
    /// # Errors
    /// [`DamagedKeys`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DamagedKeys> {
        let Stored { id, reg_id, account, fallback_unpublished } =
            serde_json::from_slice(bytes).map_err(|_| DamagedKeys)?;
        Ok(Self { id, reg_id, account: Account::from_pickle(account), fallback_unpublished })
    }

    fn sign_prekey(&self, kind: PrekeyKind, key: &Curve25519PublicKey) -> SignedPrekey {
        let key = PublicKey(key.to_bytes());
        let signature = self.sign(PREKEY_DOMAIN, &SignedPrekey::message(Suite::OlmV1, kind, &key));
        SignedPrekey { suite: Suite::OlmV1, kind, key, signature }
    }
}

impl std::fmt::Debug for DeviceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DeviceKeys").field(&self.device()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prekeys_verify_under_their_device() {
        let mut keys = DeviceKeys::generate(DeviceId::FIRST);
        let device = keys.device();
        let mut prekeys = keys.one_time_prekeys(3);
        prekeys.push(keys.fallback_prekey());
        assert_eq!(prekeys.len(), 4);
        let other = DeviceKeys::generate(DeviceId::FIRST).device();
        for prekey in prekeys {
            assert_eq!(prekey.verify(&device.ed25519), Ok(()));
            assert!(prekey.verify(&other.ed25519).is_err());
        }
    }

    /// The server may have handed out a key of an upload whose reply was lost.
    #[test]
    fn one_time_prekeys_are_given_out_once() {
        let mut keys = DeviceKeys::generate(DeviceId::FIRST);
        let first = keys.one_time_prekeys(100);
        assert_eq!(first.len(), 100);
        let mut keys = DeviceKeys::from_bytes(&keys.into_bytes()).unwrap();
        let second = keys.one_time_prekeys(50);
        assert_eq!(second.len(), 50);
        assert!(second.iter().all(|key| !first.contains(key)));
    }

    /// New fallback keys displace old ones, so a device without network must not make one at every try.
    #[test]
    fn a_fallback_prekey_is_offered_until_it_is_published() {
        let mut keys = DeviceKeys::generate(DeviceId::FIRST);
        let fallback = keys.fallback_prekey();
        keys.one_time_prekeys(1);
        let mut keys = DeviceKeys::from_bytes(&keys.into_bytes()).unwrap();
        assert_eq!(keys.fallback_prekey(), fallback);
        keys.fallback_published();
        assert_ne!(keys.fallback_prekey(), fallback);
    }

    #[test]
    fn damaged_keys_are_an_error() {
        let bytes = DeviceKeys::generate(DeviceId::FIRST).into_bytes();
        for cut in [0, 1, bytes.len() / 2, bytes.len() - 1] {
            assert!(DeviceKeys::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
    }
}
