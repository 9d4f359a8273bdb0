//! What stands inside an encrypted message: who wrote it to whom, and what it says.
//!
//! A session proves only which key a ciphertext came from. Without more, a server could deliver Alice's message to Bob
//! as Carol's, or a recipient could pass on a message to a third person as if it had been meant for them. So every
//! inner plaintext names both accounts, devices and keys, and the message's id, and [`Message::open`] compares each
//! with the envelope, the session and the device lists the recipient has verified: the first that differs refuses the
//! message.
//!
//! Lengths betray content, so the plaintext is padded to multiples of [`PADDING_BYTES`] before it is encrypted.

use prost::Message as _;
use waxwing_protocol::frames::BODY_BYTES_MAX;
use waxwing_protocol::identity::Device;
use waxwing_protocol::{AccountId, ChannelId, DeviceId, GroupId, Handle, MsgId};
use zeroize::{Zeroize as _, Zeroizing};

use crate::blob_ref::BlobRef;
use crate::session::OVERHEAD_BYTES_MAX;

pub(crate) mod generated {
    #![allow(missing_docs, reason = "prost's oneofs and constructors; the schema documents every message and field")]
    #![allow(unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/waxwing.message.v1.rs"));
}

use generated::content::Kind;

/// The version of inner plaintexts.
pub(crate) const VERSION: u32 = 1;

/// A padded plaintext is a multiple of this many bytes.
pub const PADDING_BYTES: usize = 160;

/// Messages that a message can name as seen before it.
pub const PARENTS_MAX: usize = 8;

/// Messages that one request asks for again at most.
pub const RETRY_IDS_MAX: usize = 64;

/// Contents within a content at most: a copy of what was sent, in a message that is sent once more.
const DEPTH_MAX: usize = 2;

/// Bytes of a padded inner plaintext at most: what still fits a message's body once encrypted.
pub const PLAINTEXT_BYTES_MAX: usize = (BODY_BYTES_MAX - OVERHEAD_BYTES_MAX) / PADDING_BYTES * PADDING_BYTES;

/// A device of an account: one end of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Party {
    /// The account.
    pub account: AccountId,
    /// Its device, with the keys of the verified device list.
    pub device: Device,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// Words.
    Text(String),
    /// A sealed blob.
    File(Box<BlobRef>),
    /// How far the sender has read what the recipient wrote: everything with a clock up to that of `up_to`.
    Read {
        /// The last message read.
        up_to: MsgId,
        /// Its hybrid logical clock.
        client_hlc: u64,
    },
    /// What another device of the sender's account has sent: only between an account's own devices.
    Sent(Box<SentCopy>),
    /// One device could not read these messages of the recipient.
    Retry {
        /// Which device of the sender's account.
        device: DeviceId,
        /// Which messages, [`RETRY_IDS_MAX`] at most.
        msg_ids: Vec<MsgId>,
    },
    /// A message once more.
    Resent(Box<Message>),
    /// The key of what the sender's device sends to a group from here on.
    GroupKey(Box<GroupKey>),
    /// A group's title and picture: the bytes that its state has the BLAKE3 of.
    GroupProfile(Vec<u8>),
    /// The key of a channel that the sender owns.
    ChannelInvite(Box<ChannelInvite>),
    /// A kind this version does not know, from a newer one. Shown as such: it must not block what comes after it.
    Unsupported,
}

/// The key of what one device sends to a group.
#[derive(Clone, PartialEq)]
pub struct GroupKey {
    /// The group.
    pub group: GroupId,
    /// For [`InboundGroup::new`](crate::group::InboundGroup::new).
    pub session_key: Vec<u8>,
    /// The group's title and picture; empty when it has none.
    pub profile: Vec<u8>,
}

impl std::fmt::Debug for GroupKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GroupKey({})", self.group)
    }
}

impl Drop for GroupKey {
    fn drop(&mut self) {
        self.session_key.zeroize();
    }
}

/// The key of a channel, from its owner.
#[derive(Clone, PartialEq)]
pub struct ChannelInvite {
    /// The channel.
    pub channel: ChannelId,
    /// The epoch of a charter whose key it is.
    pub epoch: u64,
    /// For [`ChannelKey::from_bytes`](crate::channel::ChannelKey::from_bytes).
    pub key: Zeroizing<[u8; 32]>,
}

impl std::fmt::Debug for ChannelInvite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChannelInvite({}, {})", self.channel, self.epoch)
    }
}

/// What one device of an account has sent, for the others.
#[derive(Clone, Debug, PartialEq)]
pub struct SentCopy {
    /// To whom.
    pub account: AccountId,
    /// What they were called.
    pub handle: Handle,
    /// The message's id.
    pub msg_id: MsgId,
    /// Its hybrid logical clock.
    pub client_hlc: u64,
    /// What it says.
    pub content: Content,
}

/// A message as people know it.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Its id, chosen by the sender.
    pub id: MsgId,
    /// The sender's hybrid logical clock: milliseconds since 1970 in the upper 48 bits, a counter in the lower 16.
    pub client_hlc: u64,
    /// Messages the sender had seen last, [`PARENTS_MAX`] at most.
    pub parents: Vec<MsgId>,
    /// What it says.
    pub content: Content,
}

/// Which statement of an inner plaintext is not true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The sender's account.
    SenderAccount,
    /// The sender's device.
    SenderDevice,
    /// The sender's keys.
    SenderKey,
    /// The recipient's account.
    RecipientAccount,
    /// The recipient's device.
    RecipientDevice,
    /// The recipient's keys.
    RecipientKey,
    /// The message's id.
    MessageId,
    /// The group it was sent to.
    Group,
    /// The channel it was written in.
    Channel,
    /// Who is in the group: its sender was told otherwise than its reader.
    GroupState,
}

/// Why a message could not be written or believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It names something else than the envelope, the session or the device lists.
    #[error("the message claims another {0:?} than the one it came with")]
    Mismatch(Claim),
    /// The padding is not as it is made.
    #[error("the message is not padded properly")]
    Padding,
    /// Not an inner plaintext.
    #[error("malformed message: {0}")]
    Malformed(&'static str),
    /// Of a version that says its content must not be guessed at.
    #[error("a message of version {0}: this software is too old for it")]
    Version(u32),
    /// Longer than a message can be; send it as a file.
    #[error("a message of {bytes} bytes is over the limit of {PLAINTEXT_BYTES_MAX}")]
    TooLarge {
        /// Bytes it would have, padding included.
        bytes: usize,
    },
}

impl Message {
    /// The padded inner plaintext of this message from one device to another, to be encrypted with their session.
    ///
    /// # Errors
    /// [`MessageError::TooLarge`]; [`MessageError::Malformed`] when there is no content or too many parents.
    pub fn seal(&self, from: &Party, to: &Party) -> Result<Zeroizing<Vec<u8>>, MessageError> {
        if self.parents.len() > PARENTS_MAX {
            return Err(MessageError::Malformed("more than 8 parents"));
        }
        if self.content == Content::Unsupported {
            return Err(MessageError::Malformed("no content"));
        }
        let mut inner = generated::Inner {
            version: VERSION,
            sender: Some(from.to_wire()),
            recipient: Some(to.to_wire()),
            msg_id: self.id.as_bytes().to_vec(),
            client_hlc: self.client_hlc,
            parents: self.parents.iter().map(|id| id.as_bytes().to_vec()).collect(),
            content: Some(self.content.to_wire()),
        };
        let bytes = padded_bytes(inner.encoded_len());
        let mut plaintext = Zeroizing::new(Vec::with_capacity(bytes));
        inner.encode(&mut *plaintext).expect("a Vec grows as needed");
        erase(inner.content.as_mut());
        if bytes > PLAINTEXT_BYTES_MAX {
            return Err(MessageError::TooLarge { bytes });
        }
        plaintext.push(PADDING_MARK);
        plaintext.resize(bytes, 0);
        Ok(plaintext)
    }

    /// Reads a padded inner plaintext and checks everything it claims.
    ///
    /// `from` is the device whose session opened it, in the account the envelope names, as its verified list has it;
    /// `to` is the device reading; `id` is the envelope's.
    ///
    /// # Errors
    /// [`MessageError`] when any claim differs or the bytes are not an inner plaintext.
    pub fn open(plaintext: &[u8], id: MsgId, from: &Party, to: &Party) -> Result<Self, MessageError> {
        let inner = generated::Inner::decode(unpad(plaintext)?)
            .map_err(|_| MessageError::Malformed("not an inner plaintext"))?;
        if inner.version != VERSION {
            return Err(MessageError::Version(inner.version));
        }
        let (sender, recipient) = (inner.sender.unwrap_or_default(), inner.recipient.unwrap_or_default());
        from.check(&sender, [Claim::SenderAccount, Claim::SenderDevice, Claim::SenderKey])?;
        to.check(&recipient, [Claim::RecipientAccount, Claim::RecipientDevice, Claim::RecipientKey])?;
        if inner.msg_id != id.as_bytes() {
            return Err(MessageError::Mismatch(Claim::MessageId));
        }
        if inner.parents.len() > PARENTS_MAX {
            return Err(MessageError::Malformed("more than 8 parents"));
        }
        let parents = inner.parents.iter().map(|parent| MsgId::from_slice(parent));
        let parents = parents.collect::<Result<_, _>>().map_err(|_| MessageError::Malformed("a parent's id"))?;
        let content = Content::from_wire(inner.content)?;
        Ok(Self { id, client_hlc: inner.client_hlc, parents, content })
    }
}

impl Content {
    /// The content as bytes, to be stored in a profile; they hold a file's key.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut wire = self.to_wire();
        let mut bytes = Zeroizing::new(Vec::with_capacity(wire.encoded_len()));
        wire.encode(&mut *bytes).expect("a Vec grows as needed");
        erase(Some(&mut wire));
        bytes
    }

    /// The content that [`Content::to_bytes`] stored.
    ///
    /// # Errors
    /// [`MessageError::Malformed`] when the bytes are something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MessageError> {
        let wire = generated::Content::decode(bytes).map_err(|_| MessageError::Malformed("not a message's content"))?;
        Self::from_wire(Some(wire))
    }

    pub(crate) fn to_wire(&self) -> generated::Content {
        let kind = match self {
            Self::Text(text) => Some(Kind::Text(text.clone())),
            Self::File(file) => Some(Kind::File(file.encode().to_vec())),
            Self::Read { up_to, client_hlc } => {
                Some(Kind::Read(generated::ReadReceipt { up_to: up_to.as_bytes().to_vec(), client_hlc: *client_hlc }))
            }
            Self::Sent(copy) => Some(Kind::Sent(Box::new(generated::SentCopy {
                account: copy.account.as_bytes().to_vec(),
                handle: copy.handle.to_string(),
                msg_id: copy.msg_id.as_bytes().to_vec(),
                client_hlc: copy.client_hlc,
                content: Some(Box::new(copy.content.to_wire())),
            }))),
            Self::Retry { device, msg_ids } => Some(Kind::Retry(generated::Retry {
                device: device.get(),
                msg_ids: msg_ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
            })),
            Self::Resent(message) => Some(Kind::Resent(Box::new(generated::Resent {
                msg_id: message.id.as_bytes().to_vec(),
                client_hlc: message.client_hlc,
                parents: message.parents.iter().map(|id| id.as_bytes().to_vec()).collect(),
                content: Some(Box::new(message.content.to_wire())),
            }))),
            Self::GroupKey(key) => Some(Kind::GroupKey(generated::GroupKey {
                group: key.group.as_bytes().to_vec(),
                session_key: key.session_key.clone(),
                profile: key.profile.clone(),
            })),
            Self::GroupProfile(profile) => Some(Kind::GroupProfile(profile.clone())),
            Self::ChannelInvite(invite) => Some(Kind::ChannelInvite(generated::ChannelInvite {
                channel: invite.channel.as_bytes().to_vec(),
                epoch: invite.epoch,
                key: invite.key.to_vec(),
            })),
            Self::Unsupported => None,
        };
        generated::Content { kind }
    }

    pub(crate) fn from_wire(mut wire: Option<generated::Content>) -> Result<Self, MessageError> {
        let content = Self::read(wire.as_ref(), DEPTH_MAX);
        erase(wire.as_mut());
        content
    }

    /// Reads a content with at most `depth` others inside it.
    fn read(wire: Option<&generated::Content>, depth: usize) -> Result<Self, MessageError> {
        let inner = |content: Option<&generated::Content>| match depth.checked_sub(1) {
            Some(depth) => Self::read(content, depth),
            None => Err(MessageError::Malformed("a content in a content in a content")),
        };
        let id = |bytes: &[u8]| MsgId::from_slice(bytes).map_err(|_| MessageError::Malformed("a message's id"));
        match wire.and_then(|content| content.kind.as_ref()) {
            Some(Kind::Text(text)) => Ok(Self::Text(text.clone())),
            Some(Kind::File(file)) => match BlobRef::decode(file) {
                Ok(file) => Ok(Self::File(Box::new(file))),
                Err(_) => Err(MessageError::Malformed("not a reference to a blob")),
            },
            Some(Kind::Read(read)) => Ok(Self::Read { up_to: id(&read.up_to)?, client_hlc: read.client_hlc }),
            Some(Kind::Sent(copy)) => Ok(Self::Sent(Box::new(SentCopy {
                account: AccountId::from_slice(&copy.account)
                    .map_err(|_| MessageError::Malformed("an account's id"))?,
                handle: copy.handle.parse().map_err(|_| MessageError::Malformed("a handle"))?,
                msg_id: id(&copy.msg_id)?,
                client_hlc: copy.client_hlc,
                content: inner(copy.content.as_deref())?,
            }))),
            Some(Kind::Retry(retry)) if retry.msg_ids.len() > RETRY_IDS_MAX => {
                Err(MessageError::Malformed("more than 64 messages asked for"))
            }
            Some(Kind::Retry(retry)) => Ok(Self::Retry {
                device: DeviceId::new(retry.device).map_err(|_| MessageError::Malformed("device 0"))?,
                msg_ids: retry.msg_ids.iter().map(|bytes| id(bytes)).collect::<Result<_, _>>()?,
            }),
            Some(Kind::Resent(resent)) if resent.parents.len() > PARENTS_MAX => {
                Err(MessageError::Malformed("more than 8 parents"))
            }
            Some(Kind::Resent(resent)) => Ok(Self::Resent(Box::new(Message {
                id: id(&resent.msg_id)?,
                client_hlc: resent.client_hlc,
                parents: resent.parents.iter().map(|bytes| id(bytes)).collect::<Result<_, _>>()?,
                content: inner(resent.content.as_deref())?,
            }))),
            Some(Kind::GroupKey(key)) => Ok(Self::GroupKey(Box::new(GroupKey {
                group: GroupId::from_slice(&key.group).map_err(|_| MessageError::Malformed("a group's id"))?,
                session_key: key.session_key.clone(),
                profile: key.profile.clone(),
            }))),
            Some(Kind::GroupProfile(profile)) => Ok(Self::GroupProfile(profile.clone())),
            Some(Kind::ChannelInvite(invite)) => Ok(Self::ChannelInvite(Box::new(ChannelInvite {
                channel: ChannelId::from_slice(&invite.channel)
                    .map_err(|_| MessageError::Malformed("a channel's id"))?,
                epoch: invite.epoch,
                key: Zeroizing::new(invite.key[..].try_into().map_err(|_| MessageError::Malformed("a channel's key"))?),
            }))),
            None => Ok(Self::Unsupported),
        }
    }
}

/// Wipes words and keys from a message that was read or written.
pub(crate) fn erase(content: Option<&mut generated::Content>) {
    match content.and_then(|content| content.kind.as_mut()) {
        Some(Kind::Text(text)) => text.zeroize(),
        Some(Kind::File(file)) => file.zeroize(),
        Some(Kind::Sent(copy)) => erase(copy.content.as_deref_mut()),
        Some(Kind::Resent(resent)) => erase(resent.content.as_deref_mut()),
        Some(Kind::GroupKey(key)) => key.session_key.zeroize(),
        Some(Kind::ChannelInvite(invite)) => invite.key.zeroize(),
        Some(Kind::Read(_) | Kind::Retry(_) | Kind::GroupProfile(_)) | None => {}
    }
}

impl Party {
    pub(crate) fn to_wire(self) -> generated::Party {
        generated::Party {
            account: self.account.as_bytes().to_vec(),
            device: self.device.id.get(),
            curve25519: self.device.curve25519.0.to_vec(),
            ed25519: self.device.ed25519.0.to_vec(),
        }
    }

    /// Compares what a plaintext claims with this party; `claims` name account, device and key in errors.
    pub(crate) fn check(&self, claimed: &generated::Party, claims: [Claim; 3]) -> Result<(), MessageError> {
        let [account, device, key] = claims;
        let same_key = claimed.curve25519 == self.device.curve25519.0 && claimed.ed25519 == self.device.ed25519.0;
        if claimed.account != self.account.as_bytes() {
            Err(MessageError::Mismatch(account))
        } else if claimed.device != self.device.id.get() {
            Err(MessageError::Mismatch(device))
        } else if !same_key {
            Err(MessageError::Mismatch(key))
        } else {
            Ok(())
        }
    }
}

/// Begins the padding; zeros follow (ISO/IEC 7816-4).
pub(crate) const PADDING_MARK: u8 = 0x80;

/// Length of `bytes` once padded: there is always the mark.
pub(crate) const fn padded_bytes(bytes: usize) -> usize {
    (bytes + 1).next_multiple_of(PADDING_BYTES)
}

/// What stands before the padding. There is exactly one padding for each plaintext; any other is refused.
pub(crate) fn unpad(plaintext: &[u8]) -> Result<&[u8], MessageError> {
    let mark = plaintext.iter().rposition(|byte| *byte != 0).ok_or(MessageError::Padding)?;
    let proper = plaintext[mark] == PADDING_MARK && plaintext.len() == padded_bytes(mark);
    if proper { Ok(&plaintext[..mark]) } else { Err(MessageError::Padding) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::{BlobHeader, BlobKey};
    use crate::device::DeviceKeys;
    use crate::session::Sessions;
    use proptest::prelude::*;
    use waxwing_protocol::identity::PublicKey;
    use waxwing_protocol::{BlobId, DeviceId};

    fn party(account: u8) -> Party {
        let device = DeviceKeys::generate(DeviceId::FIRST).device();
        Party { account: AccountId::from_bytes([account; 16]), device }
    }

    fn text(words: &str) -> Message {
        let id = MsgId::from_bytes([7; 16]);
        Message {
            id,
            client_hlc: 5 << 16,
            parents: vec![MsgId::from_bytes([6; 16])],
            content: Content::Text(words.into()),
        }
    }

    fn file() -> Message {
        let mut file =
            BlobRef::new(BlobId::from_bytes([1; 32]), BlobKey::generate(), BlobHeader::generate(), 3_000_000);
        file.file_name = Some("photo.jpg".into());
        Message { content: Content::File(Box::new(file)), ..text("") }
    }

    #[test]
    fn what_was_written_is_read() {
        let (alice, bob) = (party(1), party(2));
        let copy = SentCopy {
            account: AccountId::from_bytes([4; 16]),
            handle: "carol".parse().unwrap(),
            msg_id: MsgId::from_bytes([8; 16]),
            client_hlc: 9,
            content: text("words").content,
        };
        let copy = Message { content: Content::Sent(Box::new(copy)), ..text("") };
        let retry = Content::Retry { device: DeviceId::FIRST, msg_ids: vec![MsgId::from_bytes([5; 16])] };
        let retry = Message { content: retry, ..text("") };
        let key = Zeroizing::new([7; 32]);
        let invite = ChannelInvite { channel: ChannelId::from_bytes([3; 16]), epoch: 4, key };
        let invite = Message { content: Content::ChannelInvite(Box::new(invite)), ..text("") };
        let resent = Message { content: Content::Resent(Box::new(copy.clone())), ..text("") };
        for message in [text(""), text("hello"), file(), copy, retry, resent, invite] {
            let plaintext = message.seal(&alice, &bob).unwrap();
            assert_eq!(Message::open(&plaintext, message.id, &alice, &bob), Ok(message.clone()));
            assert_eq!(Content::from_bytes(&message.content.to_bytes()), Ok(message.content));
        }
    }

    #[test]
    fn contents_lie_in_one_another_to_a_bound() {
        let mut message = text("words");
        for depth in 1..=DEPTH_MAX + 1 {
            message = Message { content: Content::Resent(Box::new(message)), ..text("") };
            let read = Content::from_bytes(&message.content.to_bytes());
            assert_eq!(read.is_ok(), depth <= DEPTH_MAX, "{depth}");
        }
    }

    /// A server that delivers Alice's message as Carol's, or to somebody else, or under another id.
    #[test]
    fn each_false_claim_is_refused_by_name() {
        let (alice, bob) = (party(1), party(2));
        let message = text("hello");
        let plaintext = message.seal(&alice, &bob).unwrap();
        let open = |id, from: Party, to: Party| Message::open(&plaintext, id, &from, &to);
        let mismatch = |claim| Err(MessageError::Mismatch(claim));
        let account = |party: Party| Party { account: AccountId::from_bytes([3; 16]), ..party };
        let device = |party: Party| Party { device: Device { id: DeviceId::new(2).unwrap(), ..party.device }, ..party };
        let curve = |party: Party| Party { device: Device { curve25519: PublicKey([9; 32]), ..party.device }, ..party };
        let ed = |party: Party| Party { device: Device { ed25519: PublicKey([9; 32]), ..party.device }, ..party };

        assert_eq!(open(message.id, account(alice), bob), mismatch(Claim::SenderAccount));
        assert_eq!(open(message.id, device(alice), bob), mismatch(Claim::SenderDevice));
        assert_eq!(open(message.id, curve(alice), bob), mismatch(Claim::SenderKey));
        assert_eq!(open(message.id, ed(alice), bob), mismatch(Claim::SenderKey));
        assert_eq!(open(message.id, alice, account(bob)), mismatch(Claim::RecipientAccount));
        assert_eq!(open(message.id, alice, device(bob)), mismatch(Claim::RecipientDevice));
        assert_eq!(open(message.id, alice, curve(bob)), mismatch(Claim::RecipientKey));
        assert_eq!(open(message.id, alice, ed(bob)), mismatch(Claim::RecipientKey));
        assert_eq!(open(MsgId::from_bytes([8; 16]), alice, bob), mismatch(Claim::MessageId));
        assert_eq!(open(message.id, bob, alice), mismatch(Claim::SenderAccount));
        assert!(open(message.id, alice, bob).is_ok());
    }

    /// Three people: what Alice wrote to Bob, Bob cannot pass on to Carol as if Alice had written it to her.
    #[test]
    fn a_message_cannot_be_passed_on_as_its_writers() {
        let mut keys = [1, 2, 3].map(|_| DeviceKeys::generate(DeviceId::FIRST));
        let [alice, bob, carol] = [0, 1, 2]
            .map(|n: u8| Party { account: AccountId::from_bytes([n + 1; 16]), device: keys[usize::from(n)].device() });
        let message = text("I owe you ten");
        let plaintext = message.seal(&alice, &bob).unwrap();
        let [_, bob_keys, carol_keys] = &mut keys;
        let mut bob_to_carol = Sessions::with(&carol.device);
        let prekey = carol_keys.one_time_prekeys(1).remove(0);
        bob_to_carol.start(bob_keys, &carol.device, &prekey).unwrap();
        let body = bob_to_carol.encrypt(&plaintext).unwrap();

        // The server says it is Alice's: then the session does not fit.
        assert!(Sessions::with(&alice.device).decrypt(carol_keys, &body).is_err());
        // It says it is Bob's: then the plaintext does not.
        let opened = Sessions::with(&bob.device).decrypt(carol_keys, &body).unwrap();
        let refused = Message::open(&opened.plaintext, message.id, &bob, &carol);
        assert_eq!(refused, Err(MessageError::Mismatch(Claim::SenderAccount)));
    }

    #[test]
    fn lengths_show_in_steps_only() {
        let (alice, bob) = (party(1), party(2));
        let sizes: Vec<_> = (0..400).map(|n| text(&"x".repeat(n)).seal(&alice, &bob).unwrap().len()).collect();
        assert!(sizes.iter().all(|size| size % PADDING_BYTES == 0));
        assert!(sizes.is_sorted());
        assert!(sizes.iter().collect::<std::collections::BTreeSet<_>>().len() <= 4);
    }

    #[test]
    fn padding_has_one_form() {
        for bytes in 0..3 * PADDING_BYTES {
            let plaintext: Vec<u8> = (0..bytes).map(|n| n as u8 | 1).collect();
            let mut padded = plaintext.clone();
            padded.push(PADDING_MARK);
            padded.resize(padded_bytes(bytes), 0);
            assert_eq!(unpad(&padded), Ok(&plaintext[..]), "{bytes}");

            let longer = [&padded[..], &[0; PADDING_BYTES]].concat();
            let wrong = [&padded[..padded.len() - 1], &longer[..], &plaintext[..], &padded[1..]];
            for wrong in
                wrong.into_iter().filter(|wrong| wrong.len() % PADDING_BYTES != 0 || wrong.len() > padded.len())
            {
                assert_eq!(unpad(wrong), Err(MessageError::Padding), "{bytes}");
            }
        }
        assert_eq!(unpad(&[]), Err(MessageError::Padding));
        assert_eq!(unpad(&[0; PADDING_BYTES]), Err(MessageError::Padding));
    }

    #[test]
    fn the_longest_text_fits_and_a_longer_one_is_refused() {
        let (alice, bob) = (party(1), party(2));
        let longest = (0..2 * PADDING_BYTES)
            .find_map(|spare| text(&"x".repeat(PLAINTEXT_BYTES_MAX - 200 - spare)).seal(&alice, &bob).ok())
            .unwrap();
        assert_eq!(longest.len(), PLAINTEXT_BYTES_MAX);
        let longer = text(&"x".repeat(PLAINTEXT_BYTES_MAX));
        assert!(matches!(longer.seal(&alice, &bob), Err(MessageError::TooLarge { .. })));
    }

    /// A newer client sends what this one does not know: it is shown as such, and nothing behind it is held up.
    #[test]
    fn content_of_the_future_is_unsupported_and_not_an_error() {
        let (alice, bob) = (party(1), party(2));
        let message = Message { content: Content::Unsupported, ..text("") };
        assert!(message.seal(&alice, &bob).is_err(), "nobody sends it on purpose");
        let inner = generated::Inner {
            version: VERSION,
            sender: Some(alice.to_wire()),
            recipient: Some(bob.to_wire()),
            msg_id: message.id.as_bytes().to_vec(),
            client_hlc: message.client_hlc,
            parents: message.parents.iter().map(|id| id.as_bytes().to_vec()).collect(),
            content: None,
        };
        // Field 7, content, of 3 bytes: field 100 as a varint.
        let bytes = [&inner.encode_to_vec()[..], &[0x3a, 3, 0xa0, 0x06, 1]].concat();
        assert_eq!(Message::open(&pad(&bytes), message.id, &alice, &bob), Ok(message.clone()));

        let newer = generated::Inner { version: 2, ..inner };
        let refused = Message::open(&pad(&newer.encode_to_vec()), message.id, &alice, &bob);
        assert_eq!(refused, Err(MessageError::Version(2)));
    }

    #[test]
    fn too_many_parents_are_refused_both_ways() {
        let (alice, bob) = (party(1), party(2));
        let message = Message { parents: vec![MsgId::from_bytes([6; 16]); PARENTS_MAX + 1], ..text("") };
        assert!(matches!(message.seal(&alice, &bob), Err(MessageError::Malformed(_))));
    }

    fn pad(bytes: &[u8]) -> Vec<u8> {
        let mut padded = [bytes, &[PADDING_MARK]].concat();
        padded.resize(padded_bytes(bytes.len()), 0);
        padded
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let (alice, bob) = (party(1), party(2));
            let _ = Message::open(&bytes, MsgId::from_bytes([7; 16]), &alice, &bob);
            let _ = Message::open(&pad(&bytes), MsgId::from_bytes([7; 16]), &alice, &bob);
            let _ = Content::from_bytes(&bytes);
        }
    }
}
