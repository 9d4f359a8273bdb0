//! Entries: what authors write, each naming the one before it.

use prost::Message as _;

use super::{CHANNEL_ENTRY_DOMAIN, ChannelError, Charter, Position, hash};
use crate::frames::{self, BODY_BYTES_MAX};
use crate::{ChannelId, MsgId};

/// An entry of a channel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The epoch of the charter it is written under.
    pub epoch: u64,
    /// The entry before it.
    pub after: Position,
    /// Which of the charter's authors wrote it.
    pub author: u32,
    /// The author's id for it.
    pub msg_id: MsgId,
    /// What it says, sealed.
    pub body: Vec<u8>,
}

/// An entry as its author signed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedEntry {
    /// The bytes of the entry.
    pub entry: Vec<u8>,
    /// By the author's account key, over [`Entry::signed_message`].
    pub signature: Vec<u8>,
}

impl Entry {
    /// Its place.
    pub fn seq(&self) -> u64 {
        self.after.seq.saturating_add(1)
    }

    /// The bytes of the entry, of which there is one spelling.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entry = frames::ChannelEntry {
            epoch: self.epoch,
            seq: self.seq(),
            previous: self.after.hash.to_vec().into(),
            author: self.author,
            msg_id: self.msg_id.as_bytes().to_vec().into(),
            body: self.body.clone().into(),
        };
        entry.encode_to_vec()
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] when the bytes are none, or not in their one spelling.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChannelError> {
        let wire = frames::ChannelEntry::decode(bytes).map_err(|_| ChannelError::Malformed("not an entry"))?;
        let before = wire.seq.checked_sub(1).ok_or(ChannelError::Malformed("an entry without a place"))?;
        let entry = Self {
            epoch: wire.epoch,
            after: Position { seq: before, hash: hash(&wire.previous)? },
            author: wire.author,
            msg_id: MsgId::from_slice(&wire.msg_id).map_err(|_| ChannelError::Malformed("a message id"))?,
            body: wire.body.to_vec(),
        };
        if entry.to_bytes() == bytes { Ok(entry) } else { Err(ChannelError::Malformed("spelled otherwise")) }
    }

    /// What the author's account key signs, in the domain [`CHANNEL_ENTRY_DOMAIN`]: an entry is of one channel, though it does
    /// not name it.
    pub fn signed_message(channel: ChannelId, entry: &[u8]) -> Vec<u8> {
        [&channel.as_bytes()[..], entry].concat()
    }
}

impl SignedEntry {
    /// Both as bytes: what lies in the log.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (entry, signature) = (self.entry.clone().into(), self.signature.clone().into());
        frames::SignedChannelEntry { entry, signature }.encode_to_vec()
    }

    /// Reads what lies in a log; nothing is verified.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] when it is no entry, or not in its one spelling.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChannelError> {
        if bytes.len() > BODY_BYTES_MAX {
            return Err(ChannelError::Malformed("an entry of more than 96 KiB"));
        }
        let wire = frames::SignedChannelEntry::decode(bytes).map_err(|_| ChannelError::Malformed("not an entry"))?;
        let signed = Self { entry: wire.entry.to_vec(), signature: wire.signature.to_vec() };
        if signed.to_bytes() == bytes { Ok(signed) } else { Err(ChannelError::Malformed("spelled otherwise")) }
    }

    /// The entry in the bytes that lie in a log, if one of the charter's authors wrote it behind `after`; and the place that
    /// it takes.
    ///
    /// # Errors
    /// [`ChannelError`] tells what is wrong.
    pub fn verify(bytes: &[u8], charter: &Charter, after: &Position) -> Result<(Entry, Position), ChannelError> {
        let signed = Self::from_bytes(bytes)?;
        let entry = Entry::from_bytes(&signed.entry)?;
        if entry.after != *after {
            return Err(ChannelError::Follows("it is not the one that comes after the entry before it"));
        }
        if entry.epoch != charter.epoch || entry.after.seq < charter.after.seq {
            return Err(ChannelError::Epoch { epoch: entry.epoch });
        }
        let author = usize::try_from(entry.author).ok().and_then(|at| charter.authors.get(at));
        let author = author.ok_or(ChannelError::Malformed("an author whom the charter does not have"))?;
        let message = Entry::signed_message(charter.channel, &signed.entry);
        let is_signed = author.account_key.verify(CHANNEL_ENTRY_DOMAIN, &message, &signed.signature);
        is_signed.map_err(|_| ChannelError::Signature)?;
        let position = Position { seq: entry.seq(), hash: *blake3::hash(bytes).as_bytes() };
        Ok((entry, position))
    }
}
