//! Sender keys: a group's messages encrypted once for everybody in it (Megolm, by vodozemac).
//!
//! Encrypting each message for each of a thousand devices would cost a thousand times the bytes. So each device has a
//! ratchet of its own for each group, whose key it gives to the others over their sessions; a message is encrypted once
//! under the ratchet's next key and signed. What a ratchet gave away it cannot take back: whoever has its key at an index
//! reads everything after it. So it is replaced when somebody goes, and whoever comes gets it at the index it is at.
//!
//! As with sessions, a ratchet is never cloned or rolled back: [`OutboundGroup`] has no `Clone`, and storing consumes it.
//!
//! Limits, documented with their source: Megolm version 1 authenticates with an HMAC-SHA-256 cut to 8 bytes, under a
//! 64-byte Ed25519 signature of the whole (Megolm specification); unlike sessions it does not heal by itself, which is
//! why it is replaced after [`MESSAGES_MAX`] messages or [`LIFETIME`].
//!
//! A ciphertext on the wire: one byte for the suite (2: Megolm version 1), the 32 bytes of the ratchet's signing key,
//! which name it, then Megolm's bytes.

use std::time::Duration;

use data_encoding::BASE64_NOPAD;
use ed25519_dalek::{Signer as _, SigningKey};
use prost::Message as _;
use serde::{Deserialize, Serialize};
use vodozemac::megolm::{
    GroupSession, GroupSessionPickle, InboundGroupSession, InboundGroupSessionPickle, MegolmMessage, SessionConfig,
    SessionKey,
};
use waxwing_protocol::frames::BODY_BYTES_MAX;
use waxwing_protocol::group::{GROUP_LINK_DOMAIN, GROUP_TITLE_BYTES_MAX, LinkProof};
use waxwing_protocol::identity::{Base64, PublicKey, signed_bytes};
use waxwing_protocol::{GroupId, MsgId};
use zeroize::Zeroizing;

use crate::blob_ref::BlobRef;
use crate::message::{
    self, Claim, Content, Message, MessageError, PADDING_MARK, PARENTS_MAX, Party, generated, padded_bytes, unpad,
};
use crate::secret_bytes::to_secret_bytes;

/// Messages that one ratchet encrypts at most before it is replaced.
pub const MESSAGES_MAX: u32 = 1000;

/// How long a ratchet is used before it is replaced.
pub const LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Indexes that a reader follows: whoever goes on with one ratchet for longer does not replace it as everybody must.
const INDEXES_MAX: u32 = 4 * MESSAGES_MAX;

/// The suite byte of Megolm version 1.
const SUITE_MEGOLM_V1: u8 = 2;

/// Bytes that a ciphertext can be longer than its plaintext: 33 of ours; of Megolm's 1 of version, 6 of index, 4 of
/// framing, up to 16 of block padding, 8 of MAC, 64 of signature.
const OVERHEAD_BYTES_MAX: usize = 33 + 1 + 6 + 4 + 16 + 8 + 64;

/// Bytes of a padded inner plaintext at most.
const PLAINTEXT_BYTES_MAX: usize =
    (BODY_BYTES_MAX - OVERHEAD_BYTES_MAX) / message::PADDING_BYTES * message::PADDING_BYTES;

/// What names a ratchet: the public half of the key that signs its messages.
pub type RatchetId = [u8; 32];

/// Why a group's message could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupSealError {
    /// Not a key of a ratchet.
    #[error("not a key of a group's messages")]
    BadKey,
    /// Not a ciphertext of a suite known here.
    #[error("malformed ciphertext")]
    Malformed,
    /// Of an index before the one from which on this device may read, or too far on.
    #[error("it was sent before this device was let in")]
    UnknownIndex,
    /// A message of this index was opened before.
    #[error("it was opened before")]
    Replayed,
    /// Tampered with.
    #[error("the message was changed on its way")]
    Undecryptable,
    /// Stored bytes that are no ratchet.
    #[error("the stored key of a group is damaged")]
    Damaged,
}

/// The ratchet under which this device sends to a group.
pub struct OutboundGroup(GroupSession);

impl Default for OutboundGroup {
    fn default() -> Self {
        Self(GroupSession::new(SessionConfig::version_1()))
    }
}

impl OutboundGroup {
    /// What names it.
    ///
    /// # Errors
    /// [`GroupSealError::Damaged`], which vodozemac's own sessions never cause.
    pub fn id(&self) -> Result<RatchetId, GroupSealError> {
        let id = BASE64_NOPAD.decode(self.0.session_id().as_bytes());
        id.ok().and_then(|id| id.try_into().ok()).ok_or(GroupSealError::Damaged)
    }

    /// How many messages it has encrypted.
    pub fn index(&self) -> u32 {
        self.0.message_index()
    }

    /// Its key from the next message on, for those who may read that.
    pub fn key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.session_key().to_bytes())
    }

    /// Encrypts a padded inner plaintext, and moves the ratchet on.
    ///
    /// # Errors
    /// [`GroupSealError::Damaged`] as of [`Self::id`], before the ratchet moved.
    pub fn encrypt(&mut self, plaintext: &[u8]) -> Result<Vec<u8>, GroupSealError> {
        let id = self.id()?;
        let message = self.0.encrypt(plaintext).to_bytes();
        Ok([&[SUITE_MEGOLM_V1], &id[..], &message[..]].concat())
    }

    /// The ratchet as bytes for the profile. Consumes it: the stored one is the only one.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        to_secret_bytes(&self.0.pickle())
    }

    /// The ratchet that [`Self::into_bytes`] stored. Never call it twice on the same bytes and use both.
    ///
    /// # Errors
    /// [`GroupSealError::Damaged`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GroupSealError> {
        let pickle: GroupSessionPickle = serde_json::from_slice(bytes).map_err(|_| GroupSealError::Damaged)?;
        Ok(Self(GroupSession::from_pickle(pickle)))
    }
}

/// Another device's ratchet, from the index on at which its key was given; and which of its messages were opened.
pub struct InboundGroup {
    session: InboundGroupSession,
    /// A bit for each index.
    opened: Vec<u64>,
}

/// How [`InboundGroup`] is stored.
#[derive(Serialize, Deserialize)]
struct StoredInbound {
    session: InboundGroupSessionPickle,
    opened: Vec<u64>,
}

impl InboundGroup {
    /// The ratchet with this key, and what names it.
    ///
    /// # Errors
    /// [`GroupSealError::BadKey`] when it is none.
    pub fn new(key: &[u8]) -> Result<(RatchetId, Self), GroupSealError> {
        let key = SessionKey::from_bytes(key).map_err(|_| GroupSealError::BadKey)?;
        let session = InboundGroupSession::new(&key, SessionConfig::version_1());
        let id = BASE64_NOPAD.decode(session.session_id().as_bytes()).ok().and_then(|id| id.try_into().ok());
        Ok((id.ok_or(GroupSealError::BadKey)?, Self { session, opened: Vec::new() }))
    }

    /// The index from which on it reads.
    pub fn first_index(&self) -> u32 {
        self.session.first_known_index()
    }

    /// Takes over which messages `earlier`, the same ratchet from a later index on, has opened.
    pub fn remember_opened_of(&mut self, earlier: Self) {
        self.opened = earlier.opened;
    }

    /// Opens a ciphertext, each once.
    ///
    /// # Errors
    /// [`GroupSealError`] tells why not; nothing has changed then.
    pub fn decrypt(&mut self, body: &[u8]) -> Result<Zeroizing<Vec<u8>>, GroupSealError> {
        let (_, message) = parse(body).ok_or(GroupSealError::Malformed)?;
        let message = MegolmMessage::from_bytes(message).map_err(|_| GroupSealError::Malformed)?;
        let index = message.message_index();
        if index >= INDEXES_MAX || index < self.first_index() {
            return Err(GroupSealError::UnknownIndex);
        }
        let (word, bit) = (index as usize / 64, 1_u64 << (index % 64));
        if self.opened.get(word).is_some_and(|opened| opened & bit != 0) {
            return Err(GroupSealError::Replayed);
        }
        let opened = self.session.decrypt(&message).map_err(|_| GroupSealError::Undecryptable)?;
        if self.opened.len() <= word {
            self.opened.resize(word + 1, 0);
        }
        self.opened[word] |= bit;
        Ok(opened.plaintext.into())
    }

    /// The ratchet as bytes for the profile.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        to_secret_bytes(&StoredInbound { session: self.session.pickle(), opened: self.opened })
    }

    /// The ratchet that [`Self::into_bytes`] stored.
    ///
    /// # Errors
    /// [`GroupSealError::Damaged`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GroupSealError> {
        let stored: StoredInbound = serde_json::from_slice(bytes).map_err(|_| GroupSealError::Damaged)?;
        Ok(Self { session: InboundGroupSession::from_pickle(stored.session), opened: stored.opened })
    }
}

/// Which ratchet a ciphertext is of; `None` when it is none of a group.
pub fn ratchet_of(body: &[u8]) -> Option<RatchetId> {
    parse(body).map(|(id, _)| id)
}

fn parse(body: &[u8]) -> Option<(RatchetId, &[u8])> {
    let (SUITE_MEGOLM_V1, rest) = body.split_first().map(|(suite, rest)| (*suite, rest))? else { return None };
    let (id, message) = rest.split_first_chunk::<32>()?;
    Some((*id, message))
}

/// The group that a message was written in, as its writer knew it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The group.
    pub group: GroupId,
    /// Its epoch.
    pub epoch: u64,
    /// BLAKE3 of its state.
    pub state: [u8; 32],
}

impl Message {
    /// The padded inner plaintext of this message to a group, to be encrypted under the sender's ratchet.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`]; [`MessageError::Malformed`] when there is no content or too many parents.
    pub fn seal_for_group(&self, from: &Party, setting: &Setting) -> Result<Zeroizing<Vec<u8>>, MessageError> {
        if self.parents.len() > PARENTS_MAX {
            return Err(MessageError::Malformed("more than 8 parents"));
        }
        let mut inner = generated::GroupInner {
            version: message::VERSION,
            group: setting.group.as_bytes().to_vec(),
            epoch: setting.epoch,
            state: setting.state.to_vec(),
            sender: Some(from.to_wire()),
            msg_id: self.id.as_bytes().to_vec(),
            client_hlc: self.client_hlc,
            parents: self.parents.iter().map(|id| id.as_bytes().to_vec()).collect(),
            content: Some(self.content.to_wire()),
        };
        let bytes = padded_bytes(inner.encoded_len());
        let mut plaintext = Zeroizing::new(Vec::with_capacity(bytes));
        inner.encode(&mut *plaintext).expect("a Vec grows as needed");
        message::erase(inner.content.as_mut());
        if bytes > PLAINTEXT_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes });
        }
        plaintext.push(PADDING_MARK);
        plaintext.resize(bytes, 0);
        Ok(plaintext)
    }

    /// Reads a padded inner plaintext of a group, and checks who wrote it, where, and under which id. What its writer
    /// knew of the group is for the caller to compare.
    ///
    /// # Errors
    /// [`MessageError`] when any claim differs or the bytes are not an inner plaintext.
    pub fn open_in_group(
        plaintext: &[u8],
        id: MsgId,
        from: &Party,
        group: GroupId,
    ) -> Result<(Self, Setting), MessageError> {
        let inner = generated::GroupInner::decode(unpad(plaintext)?)
            .map_err(|_| MessageError::Malformed("not an inner plaintext"))?;
        if inner.version != message::VERSION {
            return Err(MessageError::Version(inner.version));
        }
        let sender = inner.sender.unwrap_or_default();
        from.check(&sender, [Claim::SenderAccount, Claim::SenderDevice, Claim::SenderKey])?;
        if inner.group != group.as_bytes() {
            return Err(MessageError::Mismatch(Claim::Group));
        }
        if inner.msg_id != id.as_bytes() {
            return Err(MessageError::Mismatch(Claim::MessageId));
        }
        if inner.parents.len() > PARENTS_MAX {
            return Err(MessageError::Malformed("more than 8 parents"));
        }
        let parents = inner.parents.iter().map(|parent| MsgId::from_slice(parent));
        let parents = parents.collect::<Result<_, _>>().map_err(|_| MessageError::Malformed("a parent's id"))?;
        let state = inner.state[..].try_into().map_err(|_| MessageError::Malformed("a state's hash"))?;
        let content = Content::from_wire(inner.content)?;
        let setting = Setting { group, epoch: inner.epoch, state };
        Ok((Self { id, client_hlc: inner.client_hlc, parents, content }, setting))
    }
}

/// What a group is called and looks like.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupProfile {
    /// What it is called.
    pub title: String,
    /// What it looks like.
    pub picture: Option<Box<BlobRef>>,
}

impl GroupProfile {
    /// The bytes that only members get, another row of them at every call. The group's state has their
    /// [`GroupProfile::hash`].
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when the title is too long.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MessageError> {
        if self.title.len() > GROUP_TITLE_BYTES_MAX {
            return Err(MessageError::Malformed("a title has at most 256 bytes"));
        }
        let mut salt = vec![0; 16];
        getrandom::fill(&mut salt).expect("the operating system provides randomness");
        let picture = self.picture.as_ref().map_or_else(Vec::new, |picture| picture.encode().to_vec());
        Ok(generated::GroupProfile { title: self.title.clone(), picture, salt }.encode_to_vec())
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when it is something else, or the title too long.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let profile =
            generated::GroupProfile::decode(bytes).map_err(|_| MessageError::Malformed("no group profile"))?;
        if profile.title.len() > GROUP_TITLE_BYTES_MAX {
            return Err(MessageError::Malformed("a title has at most 256 bytes"));
        }
        let picture = match profile.picture.is_empty() {
            true => None,
            false => Some(Box::new(
                BlobRef::decode(&profile.picture).map_err(|_| MessageError::Malformed("not a reference to a blob"))?,
            )),
        };
        Ok(Self { title: profile.title, picture })
    }

    /// What a group's state has of these bytes.
    pub fn hash(bytes: &[u8]) -> [u8; 32] {
        *blake3::hash(bytes).as_bytes()
    }
}

/// The secret in a group's link. Whoever has it may come in.
pub struct LinkSecret(SigningKey);

impl LinkSecret {
    /// A new one.
    pub fn generate() -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).expect("the operating system provides randomness");
        Self(SigningKey::from_bytes(&seed))
    }

    /// The one with these bytes.
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Its bytes, for the link.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half, which stands in the group's state.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// That somebody has the link.
    pub fn prove(&self, proof: &LinkProof) -> Base64 {
        Base64(self.0.sign(&signed_bytes(GROUP_LINK_DOMAIN, &proof.message())).to_bytes().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceKeys;
    use waxwing_protocol::{AccountId, DeviceId};

    fn party(account: u8) -> Party {
        let device = DeviceKeys::generate(DeviceId::FIRST).device();
        Party { account: AccountId::from_bytes([account; 16]), device }
    }

    fn setting() -> Setting {
        Setting { group: GroupId::from_bytes([9; 16]), epoch: 3, state: [4; 32] }
    }

    fn text(id: u8) -> Message {
        let content = Content::Text("to everybody".into());
        Message { id: MsgId::from_bytes([id; 16]), client_hlc: 1, parents: Vec::new(), content }
    }

    #[test]
    fn everybody_with_the_key_reads_from_its_index_on_and_each_message_once() {
        let alice = party(1);
        let mut out = OutboundGroup::default();
        let (_, mut early) = InboundGroup::new(&out.key()).unwrap();
        let mut bodies = Vec::new();
        for n in 0..3 {
            let plaintext = text(n).seal_for_group(&alice, &setting()).unwrap();
            assert_eq!(plaintext.len() % message::PADDING_BYTES, 0);
            bodies.push(out.encrypt(&plaintext).unwrap());
            out = OutboundGroup::from_bytes(&out.into_bytes()).unwrap();
        }
        assert_eq!(out.index(), 3);
        let (id, mut late) = InboundGroup::new(&out.key()).unwrap();
        bodies.push(out.encrypt(&text(3).seal_for_group(&alice, &setting()).unwrap()).unwrap());
        assert_eq!(bodies.iter().map(|body| ratchet_of(body)).collect::<Vec<_>>(), [Some(id); 4]);

        for n in [2_u8, 0, 3, 1] {
            let plaintext = early.decrypt(&bodies[usize::from(n)]).unwrap();
            let opened = Message::open_in_group(&plaintext, text(n).id, &alice, setting().group).unwrap();
            assert_eq!(opened, (text(n), setting()));
            early = InboundGroup::from_bytes(&early.into_bytes()).unwrap();
            assert_eq!(early.decrypt(&bodies[usize::from(n)]), Err(GroupSealError::Replayed));
        }
        for body in &bodies[..3] {
            assert_eq!(late.decrypt(body), Err(GroupSealError::UnknownIndex), "a new member does not read back");
        }
        assert!(late.decrypt(&bodies[3]).is_ok());
    }

    #[test]
    fn what_was_changed_on_the_way_or_is_of_another_ratchet_is_refused() {
        let mut out = OutboundGroup::default();
        let (_, mut reader) = InboundGroup::new(&out.key()).unwrap();
        let body = out.encrypt(&text(1).seal_for_group(&party(1), &setting()).unwrap()).unwrap();
        for at in 33..body.len() {
            let mut changed = body.clone();
            changed[at] ^= 1;
            assert!(reader.decrypt(&changed).is_err(), "byte {at}");
        }
        let other = OutboundGroup::default().encrypt(b"x").unwrap();
        assert_eq!(reader.decrypt(&other), Err(GroupSealError::Undecryptable));
        for nonsense in [&[][..], &[1; 40], &[2; 20], &body[..34]] {
            assert!(reader.decrypt(nonsense).is_err());
        }
        assert!(reader.decrypt(&body).is_ok(), "nothing of that was held against it");
        assert!(InboundGroup::new(&[1; 229]).is_err());
    }

    /// A member who passes on another's message, or a server that moves one to another group.
    #[test]
    fn a_message_names_its_writer_its_group_and_its_id() {
        let (alice, bob) = (party(1), party(2));
        let plaintext = text(1).seal_for_group(&alice, &setting()).unwrap();
        let open = |id, from, group| Message::open_in_group(&plaintext, id, from, group).map(drop);
        let (id, group) = (text(1).id, setting().group);
        assert_eq!(open(id, &alice, group), Ok(()));
        assert_eq!(open(id, &bob, group), Err(MessageError::Mismatch(Claim::SenderAccount)));
        let twin = Party { account: alice.account, ..bob };
        assert_eq!(open(id, &twin, group), Err(MessageError::Mismatch(Claim::SenderKey)));
        let other = GroupId::from_bytes([8; 16]);
        assert_eq!(open(id, &alice, other), Err(MessageError::Mismatch(Claim::Group)));
        assert_eq!(open(text(2).id, &alice, group), Err(MessageError::Mismatch(Claim::MessageId)));
        let large = Message { content: Content::Text("x".repeat(BODY_BYTES_MAX)), ..text(1) };
        assert!(matches!(large.seal_for_group(&alice, &setting()), Err(MessageError::TooLarge { .. })));
        let fits = Message { content: Content::Text("x".repeat(PLAINTEXT_BYTES_MAX - 300)), ..text(1) };
        let plaintext = fits.seal_for_group(&alice, &setting()).unwrap();
        assert!(OutboundGroup::default().encrypt(&plaintext).unwrap().len() <= BODY_BYTES_MAX);
    }

    #[test]
    fn a_title_is_committed_to_and_not_too_long() {
        let profile = GroupProfile { title: "Climbing".into(), picture: None };
        let bytes = profile.to_bytes().unwrap();
        assert_eq!(GroupProfile::from_bytes(&bytes).unwrap(), profile);
        assert_ne!(
            GroupProfile::hash(&bytes),
            GroupProfile::hash(&profile.to_bytes().unwrap()),
            "it cannot be guessed"
        );
        let long = GroupProfile { title: "x".repeat(257), picture: None };
        assert!(long.to_bytes().is_err());
    }
}
