//! What this profile knows of channels: their charters, their keys, and how far it has read.

use serde::{Deserialize, Serialize};
use waxwing_protocol::channel::{Author, Charter, Position, SignedCharter};
use waxwing_protocol::identity::{Base64, PublicKey};
use waxwing_protocol::{AccountId, ChannelId, Handle, MsgId};
use waxwing_seal::channel::ChannelKey;
use waxwing_seal::message::Content;
use zeroize::Zeroizing;

use crate::account::me;
use crate::contacts;
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError};

/// Channels that this profile follows, by id.
const CHANNELS: Table<ChannelRow> = Table::new("channels");

/// Charters, by channel and epoch.
const CHARTERS: Table<SignedCharter> = Table::new("channel_charters");

/// Keys, by channel and the name that charters have for them.
const KEYS: Table<SecretBytes> = Table::new("channel_keys");

/// A channel as it is stored.
#[derive(Serialize, Deserialize)]
struct ChannelRow {
    owner: AccountId,
    owner_key: PublicKey,
    begun: PositionRow,
    head: PositionRow,
    seen: PositionRow,
    followers: Vec<AccountId>,
    owed: Vec<AccountId>,
}

/// A place in a log as it is stored.
#[derive(Serialize, Deserialize)]
struct PositionRow {
    seq: u64,
    hash: Base64,
}

impl PositionRow {
    fn new(position: Position) -> Self {
        Self { seq: position.seq, hash: Base64(position.hash.to_vec()) }
    }

    fn read(&self) -> Result<Position, ClientError> {
        let hash = self.hash.0[..].try_into().map_err(|_| ClientError::Damaged { what: "a channel" })?;
        Ok(Position { seq: self.seq, hash })
    }
}

/// A channel as this profile knows it.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    pub(crate) channel: ChannelId,
    /// Who owns it, as the invite said.
    pub(crate) owner: Author,
    /// By rising epoch; never empty.
    pub(crate) charters: Vec<Charter>,
    /// Where this device began to read.
    pub(crate) begun: Position,
    /// The last entry that was checked.
    pub(crate) head: Position,
    /// The last entry that a person was shown.
    pub(crate) seen: Position,
    /// Whom the owner has invited, beside the authors.
    pub(crate) followers: Vec<AccountId>,
    /// Who is still to be given the newest key.
    pub(crate) owed: Vec<AccountId>,
}

/// What somebody is in a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelRole {
    /// Says who writes.
    Owner,
    /// Writes.
    Author,
    /// Reads.
    Follower,
}

/// A channel, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelInfo {
    /// Its id.
    pub channel: ChannelId,
    /// What it is called, or was when this device last had its key.
    pub title: String,
    /// The epoch of its charter.
    pub epoch: u64,
    /// What this account is in it.
    pub role: ChannelRole,
    /// Who owns it.
    pub owner: AccountId,
    /// The last entry that was shown.
    pub seen_seq: u64,
    /// Its key was replaced, and this device has not been given the new one.
    pub locked: bool,
}

/// An entry of a channel, for a person.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelPost {
    /// The channel.
    pub channel: ChannelId,
    /// Its place.
    pub seq: u64,
    /// Its id.
    pub msg_id: MsgId,
    /// Who wrote it.
    pub author: AccountId,
    /// What they are called, if this profile knows them.
    pub handle: Option<Handle>,
    /// When, in milliseconds since 1970, as the author says; 0 when it cannot be opened.
    pub written_at: u64,
    /// What it says; or why that cannot be told, such as for want of the key.
    pub content: Result<Content, String>,
}

impl Book {
    /// The charter that stands, as far as is known.
    pub(crate) fn charter(&self) -> &Charter {
        self.charters.last().expect("a channel is known with its first charter")
    }

    pub(crate) fn role(&self, account: AccountId) -> ChannelRole {
        if account == self.owner.account {
            ChannelRole::Owner
        } else if self.charter().author(account).is_some() {
            ChannelRole::Author
        } else {
            ChannelRole::Follower
        }
    }

    /// Who is to have the newest key, but for the owner.
    pub(crate) fn readers(&self) -> Vec<AccountId> {
        let authors = self.charter().authors.iter().map(|author| author.account);
        let mut readers: Vec<_> = authors.chain(self.followers.iter().copied()).collect();
        readers.retain(|account| *account != self.owner.account);
        readers.sort_unstable();
        readers.dedup();
        readers
    }

    /// Takes note of an entry that was checked; `shown` when a person was shown it as well.
    pub(crate) fn reached(&mut self, at: Position, shown: bool) {
        if at.seq > self.head.seq {
            self.head = at;
        }
        if shown && at.seq > self.seen.seq {
            self.seen = at;
        }
    }
}

fn charter_key(channel: ChannelId, epoch: u64) -> Vec<u8> {
    [&channel.as_bytes()[..], &epoch.to_be_bytes()].concat()
}

/// Reads a channel.
pub(crate) fn load(tx: &impl Rows, channel: ChannelId) -> Result<Option<Book>, ClientError> {
    let Some(row) = tx.get(&CHANNELS, channel.as_bytes())? else { return Ok(None) };
    let (from, to) = (charter_key(channel, 0), charter_key(channel, u64::MAX));
    let bounds = (std::ops::Bound::Included(&from[..]), std::ops::Bound::Included(&to[..]));
    let charters = tx.range(&CHARTERS, bounds)?.into_iter().map(|(_, signed)| signed.read());
    let damaged = |_| ClientError::Damaged { what: "a channel" };
    let charters = charters.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
    if charters.is_empty() {
        return Err(ClientError::Damaged { what: "a channel" });
    }
    Ok(Some(Book {
        channel,
        owner: Author { account: row.owner, account_key: row.owner_key },
        charters,
        begun: row.begun.read()?,
        head: row.head.read()?,
        seen: row.seen.read()?,
        followers: row.followers,
        owed: row.owed,
    }))
}

/// The channel, which this profile must know.
pub(crate) fn known(tx: &impl Rows, channel: ChannelId) -> Result<Book, ClientError> {
    load(tx, channel)?.ok_or_else(|| ClientError::UnknownChannel { named: channel.to_string() })
}

/// Writes a channel; its charters are written apart.
pub(crate) fn store(tx: &WriteTx<'_>, book: &Book) -> Result<(), ClientError> {
    let row = ChannelRow {
        owner: book.owner.account,
        owner_key: book.owner.account_key,
        begun: PositionRow::new(book.begun),
        head: PositionRow::new(book.head),
        seen: PositionRow::new(book.seen),
        followers: book.followers.clone(),
        owed: book.owed.clone(),
    };
    tx.put(&CHANNELS, book.channel.as_bytes(), &row)
}

/// Writes a charter that was found to be good.
pub(crate) fn put_charter(tx: &WriteTx<'_>, channel: ChannelId, signed: &SignedCharter) -> Result<(), ClientError> {
    let charter = signed.read().map_err(|_| ClientError::Damaged { what: "a channel" })?;
    tx.put(&CHARTERS, &charter_key(channel, charter.epoch), signed)
}

/// Changes what is remembered of a channel beside its charters.
pub(crate) fn note(tx: &WriteTx<'_>, channel: ChannelId, change: impl FnOnce(&mut Book)) -> Result<(), ClientError> {
    let Some(mut book) = load(tx, channel)? else { return Ok(()) };
    change(&mut book);
    store(tx, &book)
}

/// Follows a channel no more; its keys stay, in case it is followed again.
pub(crate) fn forget(tx: &WriteTx<'_>, channel: ChannelId) -> Result<bool, ClientError> {
    if let Some(book) = load(tx, channel)? {
        for charter in &book.charters {
            tx.remove(&CHARTERS, &charter_key(channel, charter.epoch))?;
        }
    }
    tx.remove(&CHANNELS, channel.as_bytes())
}

/// Every channel this profile follows.
pub(crate) fn all(tx: &impl Rows) -> Result<Vec<ChannelId>, ClientError> {
    tx.list(&CHANNELS)?.into_iter().map(|(key, _)| Ok(ChannelId::from_slice(&key)?)).collect()
}

/// Files a key.
pub(crate) fn put_key(tx: &WriteTx<'_>, channel: ChannelId, key: &ChannelKey) -> Result<(), ClientError> {
    let bytes = SecretBytes(Zeroizing::new(key.to_bytes().to_vec()));
    tx.put(&KEYS, &[&channel.as_bytes()[..], &key.id()].concat(), &bytes)
}

/// The key that a charter names, if this profile has it.
pub(crate) fn key(tx: &impl Rows, channel: ChannelId, id: &[u8; 32]) -> Result<Option<ChannelKey>, ClientError> {
    let Some(bytes) = tx.get(&KEYS, &[&channel.as_bytes()[..], id].concat())? else { return Ok(None) };
    let bytes: &[u8; 32] = bytes.0[..].try_into().map_err(|_| ClientError::Damaged { what: "a channel's key" })?;
    Ok(Some(ChannelKey::from_bytes(bytes)))
}

/// What a channel is called, in the newest charter whose key is here.
fn title(tx: &impl Rows, book: &Book) -> Result<String, ClientError> {
    for charter in book.charters.iter().rev() {
        if let Some(key) = key(tx, book.channel, &charter.key_id)? {
            return Ok(key.open_title(&charter.title).unwrap_or_default());
        }
    }
    Ok(String::new())
}

impl Client {
    /// Every channel this profile follows, owns or writes in.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn channels(&self) -> Result<Vec<ChannelInfo>, ClientError> {
        self.profile.read(|tx| {
            let own = me(tx)?.account;
            let mut infos = Vec::new();
            for channel in all(tx)? {
                let Some(book) = load(tx, channel)? else { continue };
                let charter = book.charter();
                let locked = key(tx, channel, &charter.key_id)?.is_none();
                let title = title(tx, &book)?;
                infos.push(ChannelInfo {
                    channel,
                    title,
                    epoch: charter.epoch,
                    role: book.role(own),
                    owner: book.owner.account,
                    seen_seq: book.seen.seq,
                    locked,
                });
            }
            Ok(infos)
        })
    }

    /// The channel that `named` means: an id, or the title of one that this profile follows.
    ///
    /// # Errors
    /// [`ClientError::UnknownChannel`] when there is none, or more than one.
    pub fn find_channel(&self, named: &str) -> Result<ChannelId, ClientError> {
        if let Ok(id) = named.parse::<ChannelId>() {
            return Ok(id);
        }
        let mut found = self.channels()?.into_iter().filter(|info| info.title == named);
        match (found.next(), found.next()) {
            (Some(info), None) => Ok(info.channel),
            _ => Err(ClientError::UnknownChannel { named: named.to_owned() }),
        }
    }

    /// Follows a channel no more. Whoever owns or writes in it does so still.
    ///
    /// # Errors
    /// [`ClientError::UnknownChannel`] when this profile does not follow it.
    pub fn unfollow_channel(&self, channel: ChannelId) -> Result<(), ClientError> {
        let was = self.profile.write(|tx| forget(tx, channel))?;
        if was { Ok(()) } else { Err(ClientError::UnknownChannel { named: channel.to_string() }) }
    }

    /// What an author is called, as far as this profile knows.
    pub(crate) fn author_handle(tx: &impl Rows, author: AccountId) -> Result<Option<Handle>, ClientError> {
        let own = me(tx)?;
        if own.account == author {
            return Ok(Some(own.handle));
        }
        Ok(contacts::known(tx, author)?.map(|contact| contact.handle))
    }
}
