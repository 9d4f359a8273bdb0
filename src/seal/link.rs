//! Linking: how a new device becomes one of an account's without the server having a say in it.
//!
//! The new device has keys and no account, the old one an account and no idea whose keys to trust. All that connects them
//! is a person, who carries a code of 100 bits from one screen to the other ([`LinkCode`]). Everything the two say at
//! their first meeting is sealed under it: a server that passes it on can read none of it, and what it makes up or swaps
//! does not open. So neither can it add a device of its own, nor give the new device an account of its own making.
//!
//! The new device says what it wants to be listed with, and proves that it has the keys ([`Offer`]). The old one answers
//! with the account key, inside a message of the Double Ratchet to exactly those keys ([`Welcome`]): the code, which may
//! have been seen over a shoulder, does not open that. What is handed over is the account key, never a ratchet: the new
//! device makes sessions of its own.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use waxwing_protocol::identity::{Base64, Device, LINK_DOMAIN, PrekeyKind, PublicKey, SignedDeviceList, SignedPrekey};
use waxwing_protocol::{AccountId, DeviceId, Handle, LinkId};
use zeroize::Zeroizing;

use crate::blob_ref::BlobRef;
use crate::device::DeviceKeys;
use crate::envelope::{EnvelopeKey, expand};
use crate::identity::AccountKey;
use crate::secret_bytes::to_secret_bytes;
use crate::session::Sessions;

/// The characters of codes: digits and letters without I, L, O and U, which are misread (Crockford's base 32).
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Characters of a code, 5 bits each: 100 bits, so that a server which tries codes finds none in time.
const CODE_CHARS: usize = 20;

/// Characters between two hyphens.
const GROUP_CHARS: usize = 5;

/// Characters of a device's name at most.
pub const DEVICE_NAME_CHARS_MAX: usize = 48;

/// What stands before a welcome inside its Olm message: no other plaintext begins like this.
const WELCOME_MARK: &[u8] = b"waxwing/link-welcome/v1\0";

/// The code that a new device shows and a person carries to an old one. Secret until the two have met: `Debug` does not show it.
#[derive(Clone)]
pub struct LinkCode(Zeroizing<String>);

/// Not a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a link code has 20 letters and digits, as the new device shows them")]
pub struct LinkCodeError;

/// Why a meeting came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// Sealed under another code, or changed on the way.
    #[error("what came was not sealed under this code: the code is mistyped, or the server changed what it passed on")]
    Sealed,
    /// It opens and does not say what it should.
    #[error("the other device says what makes no sense: {0}")]
    Malformed(&'static str),
    /// The new device does not have the keys it names.
    #[error("the new device does not have the keys it shows")]
    Unproven,
    /// The account does not list the devices that met.
    #[error("the account does not list both devices with the keys they have")]
    NotListed,
}

impl LinkCode {
    /// A new code from the operating system's randomness.
    pub fn generate() -> Self {
        let mut random = Zeroizing::new([0; CODE_CHARS]);
        getrandom::fill(&mut *random).expect("the operating system provides randomness");
        Self(Zeroizing::new(random.iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()))
    }

    /// The name under which the two devices meet. It does not tell the code.
    pub fn id(&self) -> LinkId {
        let mut id = [0; 16];
        expand(self.0.as_bytes(), "waxwing/link/v1 id", &mut id);
        LinkId::from_bytes(id)
    }

    fn offer_key(&self) -> EnvelopeKey {
        EnvelopeKey::derive(self.0.as_bytes(), "waxwing/link/v1 offer")
    }

    fn answer_key(&self) -> EnvelopeKey {
        EnvelopeKey::derive(self.0.as_bytes(), "waxwing/link/v1 answer")
    }
}

impl fmt::Display for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, char) in self.0.char_indices() {
            if at > 0 && at % GROUP_CHARS == 0 {
                f.write_str("-")?;
            }
            write!(f, "{char}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkCode(..)")
    }
}

impl FromStr for LinkCode {
    type Err = LinkCodeError;

    /// As it is typed: lower case, with or without hyphens and spaces, and with letters taken for the digits they look
    /// like.
    fn from_str(text: &str) -> Result<Self, LinkCodeError> {
        let mut code = Zeroizing::new(String::with_capacity(CODE_CHARS));
        for char in text.chars().filter(|char| !matches!(char, '-' | ' ')) {
            let char = match char.to_ascii_uppercase() {
                'O' => '0',
                'I' | 'L' => '1',
                char => char,
            };
            if !char.is_ascii() || !ALPHABET.contains(&(char as u8)) || code.len() == CODE_CHARS {
                return Err(LinkCodeError);
            }
            code.push(char);
        }
        if code.len() == CODE_CHARS { Ok(Self(code)) } else { Err(LinkCodeError) }
    }
}

/// What a new device wants to be listed with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Offer {
    /// Its reg_id.
    pub reg_id: u32,
    /// Its identity key.
    pub curve25519: PublicKey,
    /// Its signing key.
    pub ed25519: PublicKey,
    /// BLAKE3-256 of its token's secret.
    pub token_hash: Base64,
    /// A one-time prekey, for the session in which it is welcomed and for nothing else.
    pub prekey: SignedPrekey,
    /// A fallback prekey, for everybody from the moment it is listed.
    pub fallback: SignedPrekey,
    /// What its owner calls it.
    pub name: String,
    /// By its signing key, over all of this.
    proof: Base64,
}

impl Offer {
    /// The offer of the device with these keys, which have to be stored with what this leaves in them.
    pub fn new(keys: &mut DeviceKeys, token_hash: [u8; 32], name: &str) -> Self {
        let device = keys.device();
        let prekey = keys.one_time_prekeys(1).pop().expect("one was asked for");
        let mut offer = Self {
            reg_id: device.reg_id,
            curve25519: device.curve25519,
            ed25519: device.ed25519,
            token_hash: Base64(token_hash.to_vec()),
            prekey,
            fallback: keys.fallback_prekey(),
            name: name.chars().take(DEVICE_NAME_CHARS_MAX).collect(),
            proof: Base64::default(),
        };
        offer.proof = keys.sign(LINK_DOMAIN, &offer.message());
        offer
    }

    /// The offer as it travels.
    pub fn seal(&self, code: &LinkCode) -> Vec<u8> {
        code.offer_key().seal(&to_secret_bytes(self))
    }

    /// Reads an offer, and checks that the device has the keys it shows.
    ///
    /// # Errors
    /// [`LinkError`] when it was not sealed under this code or does not prove itself.
    pub fn open(code: &LinkCode, sealed: &[u8]) -> Result<Self, LinkError> {
        let bytes = code.offer_key().open(sealed).ok_or(LinkError::Sealed)?;
        let offer: Self = serde_json::from_slice(&bytes).map_err(|_| LinkError::Malformed("not an offer"))?;
        offer.ed25519.verify(LINK_DOMAIN, &offer.message(), &offer.proof.0).map_err(|_| LinkError::Unproven)?;
        for (prekey, kind) in [(&offer.prekey, PrekeyKind::OneTime), (&offer.fallback, PrekeyKind::Fallback)] {
            prekey.verify(&offer.ed25519).map_err(|_| LinkError::Unproven)?;
            if prekey.kind != kind {
                return Err(LinkError::Malformed("a prekey of another kind"));
            }
        }
        if offer.token_hash.0.len() != 32 || offer.name.chars().count() > DEVICE_NAME_CHARS_MAX {
            return Err(LinkError::Malformed("a field of the wrong length"));
        }
        Ok(offer)
    }

    /// The device as the account will list it under this number.
    pub fn device(&self, id: DeviceId) -> Device {
        Device { id, reg_id: self.reg_id, curve25519: self.curve25519, ed25519: self.ed25519 }
    }

    /// What `proof` covers after its domain.
    fn message(&self) -> Vec<u8> {
        let fixed = [&self.reg_id.to_be_bytes()[..], &self.curve25519.0, &self.ed25519.0, &self.token_hash.0];
        let keys = [&self.prekey.key.0[..], &self.fallback.key.0, self.name.as_bytes()];
        [fixed.concat(), keys.concat()].concat()
    }
}

/// What a new device is given by an old one.
pub struct Welcome {
    /// The account it belongs to from now on.
    pub account: AccountId,
    /// What the account is called.
    pub handle: Handle,
    /// The account key.
    pub account_key: AccountKey,
    /// The newest device list, which has the new device.
    pub device_list: SignedDeviceList,
    /// The new device's number.
    pub device: DeviceId,
    /// The number of the device that welcomes it.
    pub by: DeviceId,
    /// Contacts and history, as a sealed blob.
    pub history: Option<BlobRef>,
}

/// A welcome inside its Olm message.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Inner {
    account: AccountId,
    handle: Handle,
    account_key: Base64,
    device_list: SignedDeviceList,
    device: DeviceId,
    by: DeviceId,
    history: Option<Base64>,
}

/// An answer under the code: the Olm message, and whose it is.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    from: PublicKey,
    body: Base64,
}

/// What a new device has after it was welcomed.
pub struct Welcomed {
    /// What it was told.
    pub welcome: Welcome,
    /// The device that welcomed it, as the account lists it.
    pub by: Device,
    /// The session with that device.
    pub sessions: Sessions,
}

impl Welcome {
    /// The welcome as it travels to the device of `offer`. Begins a session with it, which is to be stored together with
    /// these bytes, before they leave.
    ///
    /// # Errors
    /// [`LinkError::Unproven`] when the offer's prekey begins no session.
    pub fn seal(&self, code: &LinkCode, keys: &DeviceKeys, offer: &Offer) -> Result<(Vec<u8>, Sessions), LinkError> {
        let inner = Inner {
            account: self.account,
            handle: self.handle.clone(),
            account_key: Base64(self.account_key.to_bytes().to_vec()),
            device_list: self.device_list.clone(),
            device: self.device,
            by: self.by,
            history: self.history.as_ref().map(|history| Base64(history.encode().to_vec())),
        };
        let plaintext = Zeroizing::new([WELCOME_MARK, &to_secret_bytes(&inner)].concat());
        erase(inner);
        let device = offer.device(self.device);
        let mut sessions = Sessions::with(&device);
        sessions.start(keys, &device, &offer.prekey).map_err(|_| LinkError::Unproven)?;
        let body = sessions.encrypt(&plaintext).map_err(|_| LinkError::Malformed("a welcome that is too long"))?;
        let answer = Answer { from: keys.device().curve25519, body: Base64(body) };
        Ok((code.answer_key().seal(&to_secret_bytes(&answer)), sessions))
    }

    /// Reads a welcome. Nothing of it is believed unless the account's own list has both devices with the keys that were
    /// used: a code alone makes nobody's account.
    ///
    /// `keys` are used up in part and must be stored with what this gives.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn open(code: &LinkCode, keys: &mut DeviceKeys, sealed: &[u8]) -> Result<Welcomed, LinkError> {
        let bytes = code.answer_key().open(sealed).ok_or(LinkError::Sealed)?;
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| LinkError::Malformed("not an answer"))?;
        // Its signing key is not known yet and plays no part in a session; the list is held against it below.
        let unlisted = Device { id: DeviceId::FIRST, reg_id: 0, curve25519: answer.from, ed25519: answer.from };
        let mut sessions = Sessions::with(&unlisted);
        let opened = sessions.decrypt(keys, &answer.body.0).map_err(|_| LinkError::Sealed)?;
        let inner = opened.plaintext.strip_prefix(WELCOME_MARK).ok_or(LinkError::Malformed("not a welcome"))?;
        let inner: Inner = serde_json::from_slice(inner).map_err(|_| LinkError::Malformed("not a welcome"))?;
        let welcome = Self::from_inner(inner)?;
        let list = welcome.device_list.verify(welcome.account, &welcome.account_key.public());
        let list = list.map_err(|_| LinkError::NotListed)?;
        let me = Device { id: welcome.device, ..keys.device() };
        let by = list.device(welcome.by).copied().filter(|by| by.curve25519 == answer.from && by.id != me.id);
        match by {
            Some(by) if list.device(me.id) == Some(&me) => Ok(Welcomed { welcome, by, sessions }),
            _ => Err(LinkError::NotListed),
        }
    }

    fn from_inner(inner: Inner) -> Result<Self, LinkError> {
        let seed = Zeroizing::new(inner.account_key.0);
        let seed = seed.as_slice().try_into().map_err(|_| LinkError::Malformed("an account key has 32 bytes"))?;
        let history = inner.history.map(|bytes| BlobRef::decode(&Zeroizing::new(bytes.0)));
        let history = history.transpose().map_err(|_| LinkError::Malformed("not a reference to a blob"))?;
        Ok(Self {
            account: inner.account,
            handle: inner.handle,
            account_key: AccountKey::from_bytes(seed),
            device_list: inner.device_list,
            device: inner.device,
            by: inner.by,
            history,
        })
    }
}

/// Wipes the secrets of a welcome that was written.
fn erase(inner: Inner) {
    drop(Zeroizing::new(inner.account_key.0));
    drop(inner.history.map(|history| Zeroizing::new(history.0)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_protocol::Timestamp;
    use waxwing_protocol::identity::DeviceList;

    /// Alice's account with one device, and a new device.
    struct Meeting {
        code: LinkCode,
        key: AccountKey,
        old: DeviceKeys,
        new: DeviceKeys,
    }

    impl Meeting {
        fn new() -> Self {
            let [old, new] = [(); 2].map(|()| DeviceKeys::generate(DeviceId::FIRST));
            Self { code: LinkCode::generate(), key: AccountKey::generate(), old, new }
        }

        fn offer(&mut self) -> Offer {
            Offer::new(&mut self.new, [3; 32], "phone")
        }

        /// A welcome by a list that has these devices beside the old one.
        fn welcome(&self, devices: &[Device]) -> Welcome {
            let account = AccountId::from_bytes([1; 16]);
            let devices = [&[self.old.device()], devices].concat();
            let list = DeviceList { account, revision: 2, signed_at: Timestamp::from_millis(1), devices };
            Welcome {
                account,
                handle: "alice".parse().unwrap(),
                account_key: AccountKey::from_bytes(&self.key.to_bytes()),
                device_list: self.key.sign_device_list(&list),
                device: DeviceId::new(2).unwrap(),
                by: DeviceId::FIRST,
                history: None,
            }
        }
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let code = LinkCode::generate();
        let shown = code.to_string();
        assert_eq!(shown.len(), 23);
        for typed in [shown.clone(), shown.to_lowercase(), shown.replace('-', " "), shown.replace('0', "o")] {
            assert_eq!(typed.parse::<LinkCode>().unwrap().to_string(), shown);
        }
        assert_eq!("ILOIL-ILOIL-ILOIL-ILOIL".parse::<LinkCode>().unwrap().to_string(), "11011-11011-11011-11011");
        for bad in
            ["", "ABCDE", &shown[1..], &format!("{shown}A"), &shown.replacen('-', "U", 1), "äbcde-fghjk-mnpqr-stvwx"]
        {
            assert!(bad.parse::<LinkCode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_new_device_is_welcomed_and_the_two_go_on_talking() {
        let mut meeting = Meeting::new();
        let sealed = meeting.offer().seal(&meeting.code);
        let offer = Offer::open(&meeting.code, &sealed).unwrap();
        let device = offer.device(DeviceId::new(2).unwrap());
        let (answer, mut there) = meeting.welcome(&[device]).seal(&meeting.code, &meeting.old, &offer).unwrap();
        let welcomed = Welcome::open(&meeting.code, &mut meeting.new, &answer).unwrap();
        assert_eq!(welcomed.welcome.account_key.public(), meeting.key.public());
        assert_eq!((welcomed.by, welcomed.welcome.device), (meeting.old.device(), device.id));
        let mut back = welcomed.sessions;
        let hello = back.encrypt(b"hello").unwrap();
        assert_eq!(there.decrypt(&mut meeting.old, &hello).unwrap().plaintext[..], b"hello"[..]);
    }

    /// A server in the middle: it has no code, and can pass on, swap and change what it sees.
    #[test]
    fn a_server_in_the_middle_gets_no_device_of_its_own_in() {
        let mut meeting = Meeting::new();
        let sealed = meeting.offer().seal(&meeting.code);
        let mut ghost = DeviceKeys::generate(DeviceId::FIRST);
        let ghosts = Offer::new(&mut ghost, [9; 32], "ghost");
        assert_eq!(Offer::open(&meeting.code, &ghosts.seal(&LinkCode::generate())), Err(LinkError::Sealed));
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert_eq!(Offer::open(&meeting.code, &changed), Err(LinkError::Sealed));
        }
        // Somebody who saw the code, but has none of the keys it would pass off as the new device's.
        let stolen = Offer { token_hash: Base64(vec![9; 32]), ..Offer::open(&meeting.code, &sealed).unwrap() };
        assert_eq!(Offer::open(&meeting.code, &stolen.seal(&meeting.code)), Err(LinkError::Unproven));
    }

    /// The answer is the account's only when the account's own list says so.
    #[test]
    fn a_new_device_joins_no_account_that_does_not_list_it() {
        let mut meeting = Meeting::new();
        let offer = meeting.offer();
        let device = offer.device(DeviceId::new(2).unwrap());
        let other = Device { curve25519: PublicKey([7; 32]), ..device };
        let renumbered = Device { id: DeviceId::new(3).unwrap(), ..device };
        for listed in [vec![], vec![other], vec![renumbered]] {
            let (answer, _) = meeting.welcome(&listed).seal(&meeting.code, &meeting.old, &offer).unwrap();
            // Each try uses the prekey up, as a profile that is not stored does not.
            let mut keys = DeviceKeys::from_bytes(&meeting.new.stored()).unwrap();
            assert_eq!(Welcome::open(&meeting.code, &mut keys, &answer).err(), Some(LinkError::NotListed));
        }
        // By somebody with the code, whom the account does not list.
        let mallory = DeviceKeys::generate(DeviceId::FIRST);
        let (answer, _) = meeting.welcome(&[device]).seal(&meeting.code, &mallory, &offer).unwrap();
        let mut keys = DeviceKeys::from_bytes(&meeting.new.stored()).unwrap();
        assert_eq!(Welcome::open(&meeting.code, &mut keys, &answer).err(), Some(LinkError::NotListed));
        let (answer, _) = meeting.welcome(&[device]).seal(&LinkCode::generate(), &meeting.old, &offer).unwrap();
        assert_eq!(Welcome::open(&meeting.code, &mut meeting.new, &answer).err(), Some(LinkError::Sealed));
    }
}
