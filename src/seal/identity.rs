//! Who signs for an account: its key, and the number two people compare to know that no server stands between them.
//!
//! A server hands out everybody's keys. If it could make up an account's devices it could read along, so a device list
//! counts only when the account key signed it, and that key is made by the account's first device and never leaves its
//! owner's devices. What is left to trust is the account key itself, once: [`safety_number`] lets two people check it
//! by voice.

use ed25519_dalek::{Signer as _, SigningKey};
use sha2::{Digest as _, Sha512};
use waxwing_protocol::api::{RegisterRequest, RenameRequest};
use waxwing_protocol::group::{GROUP_CHANGE_DOMAIN, GroupChange, SignedGroupChange};
use waxwing_protocol::identity::{
    Base64, DELETE_DOMAIN, DEVICE_LIST_DOMAIN, DeviceList, PublicKey, RENAME_DOMAIN, SignedDeviceList, signed_bytes,
};
use waxwing_protocol::{AccountId, Handle};
use zeroize::Zeroizing;

use crate::envelope::EnvelopeKey;

/// An account's Ed25519 key (RFC 8032): signs its device list. Erased from memory when dropped, never printed.
pub struct AccountKey(SigningKey);

impl AccountKey {
    /// A new key from the operating system's randomness.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).expect("the operating system provides randomness");
        Self(SigningKey::from_bytes(&seed))
    }

    /// The key with this 32-byte seed, as [`AccountKey::to_bytes`] gave it.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The key's seed, to be stored in the owner's profile and nowhere else.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, which others remember.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs a device list. Whoever knows the public half accepts exactly these devices.
    pub fn sign_device_list(&self, list: &DeviceList) -> SignedDeviceList {
        let bytes = list.to_bytes();
        let signature = self.0.sign(&signed_bytes(DEVICE_LIST_DOMAIN, &bytes));
        SignedDeviceList { list: Base64(bytes), signature: Base64(signature.to_bytes().to_vec()) }
    }

    /// The proof in a [`RegisterRequest`]: this key's owner wants this handle for this account, reached with the token
    /// whose hash this is.
    pub fn registration_proof(&self, account: AccountId, token_hash: &[u8; 32], handle: &Handle) -> Base64 {
        let signature = self.0.sign(&RegisterRequest::proof_bytes(account, token_hash, handle));
        Base64(signature.to_bytes().to_vec())
    }
}

impl AccountKey {
    /// The proof in a [`RenameRequest`]: this key's owner wants this handle.
    pub fn rename_proof(&self, account: AccountId, handle: &Handle) -> Base64 {
        self.sign(RENAME_DOMAIN, &RenameRequest::proof_message(account, handle))
    }

    /// The proof in a [`DeleteRequest`](waxwing_protocol::api::DeleteRequest): this key's owner wants the account gone.
    pub fn delete_proof(&self, account: AccountId) -> Base64 {
        self.sign(DELETE_DOMAIN, account.as_bytes())
    }

    /// A change of a group, signed.
    pub fn sign_group_change(&self, change: &GroupChange) -> SignedGroupChange {
        let bytes = change.to_bytes();
        SignedGroupChange { signature: self.sign(GROUP_CHANGE_DOMAIN, &bytes), change: Base64(bytes) }
    }

    /// A device's name, sealed for everybody who has this key: the account's devices.
    pub fn seal_name(&self, name: &str) -> Base64 {
        Base64(self.names().seal(name.as_bytes()))
    }

    /// The name that was sealed; `None` when it was not sealed under this key.
    pub fn open_name(&self, sealed: &Base64) -> Option<String> {
        String::from_utf8(self.names().open(&sealed.0)?.to_vec()).ok()
    }

    fn names(&self) -> EnvelopeKey {
        EnvelopeKey::derive(&*self.to_bytes(), "waxwing/device-name/v1")
    }

    pub(crate) fn sign(&self, domain: &str, message: &[u8]) -> Base64 {
        Base64(self.0.sign(&signed_bytes(domain, message)).to_bytes().to_vec())
    }
}

impl std::fmt::Debug for AccountKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AccountKey").field(&self.public()).finish()
    }
}

/// How often a key is hashed for its half of a safety number: makes searching for a look-alike key 5,200 times dearer.
const SAFETY_NUMBER_ROUNDS: usize = 5200;

/// Domain and version of safety numbers. Another way of computing them needs another one.
const SAFETY_NUMBER_DOMAIN: &[u8] = b"waxwing/safety-number/v1";

/// The safety number of two accounts: 60 digits in twelve groups of five, the same whoever asks.
///
/// Equal numbers on both screens mean that both hold each other's true account key, up to about 2^100 work for whoever
/// wants to forge one. The construction is that of Signal's numeric fingerprints, over account keys: each key's half is
/// `h = SHA-512(domain || key)`, then 5,199 times `h = SHA-512(h || key)`; of the first 30 bytes of `h`, each five,
/// read big-endian, modulo 100,000, give five digits. The smaller half stands first.
pub fn safety_number(a: &PublicKey, b: &PublicKey) -> String {
    let mut halves = [half(a), half(b)];
    halves.sort_unstable();
    halves.as_flattened().join(" ")
}

/// One key's six groups of five digits.
fn half(key: &PublicKey) -> [String; 6] {
    let mut hash = Sha512::new().chain_update(SAFETY_NUMBER_DOMAIN).chain_update(key.0).finalize();
    for _ in 1..SAFETY_NUMBER_ROUNDS {
        hash = Sha512::new().chain_update(hash).chain_update(key.0).finalize();
    }
    std::array::from_fn(|group| {
        let five = &hash[group * 5..group * 5 + 5];
        let number = five.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        format!("{:05}", number % 100_000)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceKeys;
    use waxwing_protocol::identity::{IdentityError, REGISTER_DOMAIN};
    use waxwing_protocol::{DeviceId, Timestamp};

    fn account() -> AccountId {
        AccountId::from_bytes([1; 16])
    }

    #[test]
    fn a_signed_list_is_accepted_under_its_own_key_only() {
        let key = AccountKey::generate();
        let device = DeviceKeys::generate(DeviceId::FIRST).device();
        let signed_at = Timestamp::from_millis(7);
        let list = DeviceList { account: account(), revision: 1, signed_at, devices: vec![device] };
        let signed = key.sign_device_list(&list);
        assert_eq!(signed.verify(account(), &key.public()), Ok(list));
        let stranger = AccountKey::generate().public();
        assert_eq!(signed.verify(account(), &stranger), Err(IdentityError::Signature));
    }

    #[test]
    fn a_key_survives_being_stored() {
        let key = AccountKey::generate();
        assert_eq!(AccountKey::from_bytes(&key.to_bytes()).public(), key.public());
    }

    #[test]
    fn a_registration_proof_covers_account_token_and_handle() {
        let key = AccountKey::generate();
        let handle: Handle = "alice".parse().unwrap();
        let proof = key.registration_proof(account(), &[3; 32], &handle);
        let verify = |account, token_hash: [u8; 32], handle: &str| {
            let message = RegisterRequest::proof_message(account, &token_hash, &handle.parse().unwrap());
            key.public().verify(REGISTER_DOMAIN, &message, &proof.0)
        };
        assert_eq!(verify(account(), [3; 32], "alice"), Ok(()));
        assert!(verify(AccountId::from_bytes([2; 16]), [3; 32], "alice").is_err());
        assert!(verify(account(), [4; 32], "alice").is_err());
        assert!(verify(account(), [3; 32], "alicf").is_err());
    }

    #[test]
    fn both_people_read_the_same_safety_number() {
        let (a, b) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let number = safety_number(&a, &b);
        assert_eq!(number, safety_number(&b, &a));
        assert_eq!(number.len(), 12 * 5 + 11);
        assert!(number.split(' ').all(|group| group.len() == 5 && group.bytes().all(|c| c.is_ascii_digit())));
    }

    /// People compare numbers that programs of different age computed: this one must never change. It was computed by
    /// `src/seal/vectors/safety_number.py`.
    #[test]
    fn the_safety_number_is_stable() {
        let number = safety_number(&PublicKey([1; 32]), &PublicKey([2; 32]));
        assert_eq!(number, "32704 24196 19496 82620 11859 90218 44679 10116 93579 08484 97727 05301");
    }

    #[test]
    fn another_key_gives_another_safety_number() {
        let mut other = [2; 32];
        other[31] ^= 1;
        let number = safety_number(&PublicKey([1; 32]), &PublicKey([2; 32]));
        assert_ne!(number, safety_number(&PublicKey([1; 32]), &PublicKey(other)));
    }

    #[test]
    fn printing_a_key_shows_its_public_half_only() {
        let key = AccountKey::from_bytes(&[9; 32]);
        assert!(!format!("{key:?}").contains("9, 9, 9"));
    }
}
