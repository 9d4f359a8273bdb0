//! Charters: who owns a channel, who writes in it, under which key.

use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{
    CHANNEL_AUTHORS_MAX, CHANNEL_CHARTER_DOMAIN, CHANNEL_EPOCHS_MAX, CHANNEL_SEALED_TITLE_BYTES_MAX, ChannelError,
    Position, hash,
};
use crate::identity::{Base64, PublicKey};
use crate::{AccountId, ChannelId, Timestamp, frames};

/// Somebody who may write in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Author {
    /// Their account.
    pub account: AccountId,
    /// Its key, as the owner knows it.
    pub account_key: PublicKey,
}

/// Who writes in a channel from an entry on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charter {
    /// Which channel.
    pub channel: ChannelId,
    /// Rises by one with every charter; 1 at first.
    pub epoch: u64,
    /// BLAKE3 of the charter before; `None` in the first.
    pub previous: Option<[u8; 32]>,
    /// Who signs charters.
    pub owner: AccountId,
    /// The owner's account key.
    pub owner_key: PublicKey,
    /// Whoever may write, by rising account, the owner among them.
    pub authors: Vec<Author>,
    /// Names the key of the entries from here on.
    pub key_id: [u8; 32],
    /// The title, sealed under that key.
    pub title: Vec<u8>,
    /// The last entry before it.
    pub after: Position,
    /// When, as the owner says.
    pub made_at: Timestamp,
}

/// A charter as its owner signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedCharter {
    /// The bytes of the charter.
    pub charter: Base64,
    /// By the owner's account key.
    pub signature: Base64,
}

impl Charter {
    /// The bytes that the owner signs, in the domain [`CHANNEL_CHARTER_DOMAIN`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let author = |author: &Author| frames::ChannelAuthor {
            account: author.account.as_bytes().to_vec().into(),
            account_key: author.account_key.0.to_vec().into(),
        };
        let charter = frames::ChannelCharter {
            channel: self.channel.as_bytes().to_vec().into(),
            epoch: self.epoch,
            previous: self.previous.map_or_else(Vec::new, |hash| hash.to_vec()).into(),
            owner: self.owner.as_bytes().to_vec().into(),
            owner_key: self.owner_key.0.to_vec().into(),
            authors: self.authors.iter().map(author).collect(),
            key_id: self.key_id.to_vec().into(),
            title: self.title.clone().into(),
            after_seq: self.after.seq,
            after_hash: self.after.hash.to_vec().into(),
            made_at: self.made_at.as_millis(),
        };
        charter.encode_to_vec()
    }

    /// Reads a charter; who signed it is not looked at.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] when the bytes are none, or not in their one spelling; [`ChannelError::Full`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChannelError> {
        let wire = frames::ChannelCharter::decode(bytes).map_err(|_| ChannelError::Malformed("not a charter"))?;
        if wire.authors.len() > CHANNEL_AUTHORS_MAX || wire.epoch > CHANNEL_EPOCHS_MAX {
            return Err(ChannelError::Full);
        }
        if wire.title.len() > CHANNEL_SEALED_TITLE_BYTES_MAX {
            return Err(ChannelError::Malformed("a title that is too long"));
        }
        let authors = wire.authors.iter().map(|author| {
            Ok(Author { account: account(&author.account)?, account_key: PublicKey(hash(&author.account_key)?) })
        });
        let previous = if wire.previous.is_empty() { None } else { Some(hash(&wire.previous)?) };
        let charter = Self {
            channel: ChannelId::from_slice(&wire.channel).map_err(|_| ChannelError::Malformed("a channel id"))?,
            epoch: wire.epoch,
            previous,
            owner: account(&wire.owner)?,
            owner_key: PublicKey(hash(&wire.owner_key)?),
            authors: authors.collect::<Result<_, ChannelError>>()?,
            key_id: hash(&wire.key_id)?,
            title: wire.title.to_vec(),
            after: Position { seq: wire.after_seq, hash: hash(&wire.after_hash)? },
            made_at: Timestamp::from_millis(wire.made_at),
        };
        if !charter.authors.is_sorted_by(|a, b| a.account < b.account) {
            return Err(ChannelError::Malformed("authors stand by rising account, each once"));
        }
        let owner = Author { account: charter.owner, account_key: charter.owner_key };
        if !charter.authors.contains(&owner) {
            return Err(ChannelError::Malformed("the owner is an author"));
        }
        if charter.to_bytes() == bytes { Ok(charter) } else { Err(ChannelError::Malformed("spelled otherwise")) }
    }

    /// BLAKE3 of the charter, which the next one names it by.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }

    /// Which of the authors an account is.
    pub fn author(&self, account: AccountId) -> Option<u32> {
        let at = self.authors.binary_search_by_key(&account, |author| author.account).ok()?;
        u32::try_from(at).ok()
    }

    fn check_follows(&self, before: Option<&Self>) -> Result<(), ChannelError> {
        let Some(before) = before else {
            let first = self.epoch == 1 && self.previous.is_none() && self.after == Position::default();
            return if first { Ok(()) } else { Err(ChannelError::Follows("it is not a channel's first charter")) };
        };
        if (self.channel, self.owner, self.owner_key) != (before.channel, before.owner, before.owner_key) {
            return Err(ChannelError::Follows("it is of another channel, or of another owner"));
        }
        if self.epoch != before.epoch + 1 || self.previous != Some(before.hash()) {
            return Err(ChannelError::Follows("another charter stands"));
        }
        let same = self.after.seq != before.after.seq || self.after == before.after;
        if self.after.seq < before.after.seq || !same {
            return Err(ChannelError::Follows("it begins before the charter that it follows"));
        }
        Ok(())
    }
}

impl SignedCharter {
    /// Reads it; whether it is signed is not looked at.
    ///
    /// # Errors
    /// Those of [`Charter::from_bytes`].
    pub fn read(&self) -> Result<Charter, ChannelError> {
        Charter::from_bytes(&self.charter.0)
    }

    /// The charter, if its owner signed it and it follows `before`; the first one names its owner itself, which whoever
    /// reads it has to know.
    ///
    /// # Errors
    /// [`ChannelError`] tells what is wrong.
    pub fn verify(&self, before: Option<&Charter>) -> Result<Charter, ChannelError> {
        let charter = self.read()?;
        charter.check_follows(before)?;
        let signed = charter.owner_key.verify(CHANNEL_CHARTER_DOMAIN, &self.charter.0, &self.signature.0);
        signed.map_err(|_| ChannelError::Signature)?;
        Ok(charter)
    }

    /// Both as bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (charter, signature) = (self.charter.0.clone().into(), self.signature.0.clone().into());
        frames::SignedChannelCharter { charter, signature }.encode_to_vec()
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] when it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChannelError> {
        let wire = frames::SignedChannelCharter::decode(bytes);
        let wire = wire.map_err(|_| ChannelError::Malformed("not a signed charter"))?;
        Ok(Self { charter: Base64(wire.charter.to_vec()), signature: Base64(wire.signature.to_vec()) })
    }
}

fn account(bytes: &[u8]) -> Result<AccountId, ChannelError> {
    AccountId::from_slice(bytes).map_err(|_| ChannelError::Malformed("an account id"))
}
