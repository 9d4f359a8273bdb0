//! Channels: charters, the entries that are in no page yet, and the manifest of those that are.
//!
//! Entries lie beside groups' bodies, under channel and place. The end of the log is one small record, written with each
//! entry; the writer keeps it in memory for the channels it works on. A follower costs nothing here.

use std::ops::Bound;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message;
use waxwing_protocol::api::ChannelPageView;
use waxwing_protocol::channel::{Charter, Position, SignedCharter, fills_page};
use waxwing_protocol::{AccountId, BlobId, ChannelId, Timestamp};

use super::EmbeddedStore;
use super::records::{SEND_HASH_BYTES, SendRow};
use super::tables::{self, Tables, corrupt, engine_error, tag};
use super::writer::{Command, Turn};
use crate::store::{
    Appended, ChannelRecord, ChannelStore, CharterCommit, CharterCommitted, CommittedEntry, EntryAppend, EntryError,
    PageCommitted, StoreError,
};

/// Last byte of an entry's key: groups' bodies have others.
const ENTRY: u8 = 2;

/// Bytes of an entry's key.
const ENTRY_KEY_BYTES: usize = 16 + 8 + 1;

/// What an account's record of a channel says when the channel is its own.
const OWNED: &[u8] = b"o";

/// How far a channel's log has come.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LogRow {
    /// The epoch of the charter that stands.
    #[prost(uint64, tag = "1")]
    epoch: u64,
    /// The last entry and its hash.
    #[prost(uint64, tag = "2")]
    head_seq: u64,
    #[prost(bytes = "vec", tag = "3")]
    head_hash: Vec<u8>,
    /// The first entry that is held, and the bytes of all that are.
    #[prost(uint64, tag = "4")]
    tail_seq: u64,
    #[prost(uint64, tag = "5")]
    tail_bytes: u64,
    /// Pages so far.
    #[prost(uint64, tag = "6")]
    pages: u64,
}

/// A page.
#[derive(Clone, PartialEq, Message)]
struct PageRow {
    #[prost(uint64, tag = "1")]
    page: u64,
    #[prost(uint64, tag = "2")]
    first_seq: u64,
    #[prost(bytes = "vec", tag = "3")]
    blob: Vec<u8>,
}

impl LogRow {
    fn head(&self) -> Result<Position, StoreError> {
        let hash = self.head_hash[..].try_into().map_err(|_| corrupt("a channel"))?;
        Ok(Position { seq: self.head_seq, hash })
    }

    fn read(tables: &Tables, channel: ChannelId) -> Result<Option<Self>, StoreError> {
        let Some(value) = tables.directory.get(log_key(channel)).map_err(engine_error)? else { return Ok(None) };
        Self::decode(&value[..]).map(Some).map_err(|_| corrupt("a channel"))
    }
}

fn log_key(channel: ChannelId) -> Vec<u8> {
    [&[tag::CHANNEL], &channel.as_bytes()[..]].concat()
}

fn charter_key(channel: ChannelId, epoch: u64) -> Vec<u8> {
    [&[tag::CHARTER], &channel.as_bytes()[..], &epoch.to_be_bytes()].concat()
}

/// A page stands under its last entry, so that whoever has an entry finds the page of the next one behind it.
fn page_key(channel: ChannelId, last_seq: u64) -> Vec<u8> {
    [&[tag::CHANNEL_PAGE], &channel.as_bytes()[..], &last_seq.to_be_bytes()].concat()
}

/// Every channel of an account, or `channel` alone.
fn author_key(account: AccountId, channel: Option<ChannelId>) -> Vec<u8> {
    let channel = channel.as_ref().map_or(&[][..], |channel| &channel.as_bytes()[..]);
    [&[tag::AUTHOR], &account.as_bytes()[..], channel].concat()
}

fn entry_key(channel: ChannelId, seq: u64) -> Vec<u8> {
    [&channel.as_bytes()[..], &seq.to_be_bytes(), &[ENTRY]].concat()
}

/// Whether a record beside groups' bodies is of a channel.
pub(super) fn is_entry(key: &[u8]) -> bool {
    key.len() == ENTRY_KEY_BYTES && key.last() == Some(&ENTRY)
}

impl ChannelStore for EmbeddedStore {
    fn put_charter(&self, commit: CharterCommit) -> BoxFuture<'static, Result<CharterCommitted, StoreError>> {
        self.write(|reply| Command::PutCharter { commit: Box::new(commit), reply })
    }

    fn append_entry(&self, append: EntryAppend) -> BoxFuture<'static, Result<Appended, EntryError>> {
        self.write(|reply| Command::AppendEntry { append: Box::new(append), reply })
    }

    fn put_page(
        &self,
        channel: ChannelId,
        page: ChannelPageView,
    ) -> BoxFuture<'static, Result<PageCommitted, StoreError>> {
        self.write(|reply| Command::PutPage { channel, page, reply })
    }

    fn channel(&self, channel: ChannelId) -> BoxFuture<'static, Result<Option<ChannelRecord>, StoreError>> {
        self.read_with(move |tables| {
            let Some(log) = LogRow::read(tables, channel)? else { return Ok(None) };
            let charter = charter_at(tables, channel, log.epoch)?;
            let (head, tail_seq, tail_bytes) = (log.head()?, log.tail_seq, log.tail_bytes);
            Ok(Some(ChannelRecord { charter, head, tail_seq, tail_bytes, pages: log.pages }))
        })
    }

    fn charters(
        &self,
        channel: ChannelId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedCharter>, StoreError>> {
        self.read_with(move |tables| {
            let bounds =
                (Bound::Excluded(charter_key(channel, after)), Bound::Included(charter_key(channel, u64::MAX)));
            let charters = tables.directory.range::<Vec<u8>, _>(bounds).take(limit).map(|guard| {
                let (_, value) = guard.into_inner().map_err(engine_error)?;
                SignedCharter::from_bytes(&value).map_err(|_| corrupt("a charter"))
            });
            charters.collect()
        })
    }

    fn entries(&self, channel: ChannelId, after: u64) -> BoxFuture<'static, Result<Vec<Bytes>, StoreError>> {
        self.read_with(move |tables| {
            let (mut entries, mut bytes, mut next) = (Vec::new(), 0, after.saturating_add(1));
            let bounds = (Bound::Included(entry_key(channel, next)), Bound::Included(entry_key(channel, u64::MAX)));
            for guard in tables.bodies.range::<Vec<u8>, _>(bounds) {
                let (key, value) = guard.into_inner().map_err(engine_error)?;
                if !is_entry(&key) {
                    continue;
                }
                if key[..] != entry_key(channel, next)[..] || fills_page(entries.len(), bytes) {
                    break;
                }
                (bytes, next) = (bytes + value.len(), next + 1);
                entries.push(Bytes::copy_from_slice(&value));
            }
            Ok(entries)
        })
    }

    fn pages(
        &self,
        channel: ChannelId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ChannelPageView>, StoreError>> {
        self.read_with(move |tables| {
            let bounds = (Bound::Excluded(page_key(channel, after)), Bound::Included(page_key(channel, u64::MAX)));
            let pages = tables.directory.range::<Vec<u8>, _>(bounds).take(limit).map(|guard| {
                let (key, value) = guard.into_inner().map_err(engine_error)?;
                let last_seq = key.last_chunk().copied().map(u64::from_be_bytes);
                let row = PageRow::decode(&value[..]).map_err(|_| corrupt("a page"))?;
                let blob = row.blob[..].try_into().map(BlobId::from_bytes).map_err(|_| corrupt("a page"))?;
                let last_seq = last_seq.ok_or_else(|| corrupt("a page"))?;
                Ok(ChannelPageView { page: row.page, first_seq: row.first_seq, last_seq, blob })
            });
            pages.collect()
        })
    }

    fn channels_of(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<ChannelId>, StoreError>> {
        self.read_with(move |tables| {
            let channels = tables.directory.prefix(author_key(account, None)).map(|guard| {
                let key = guard.key().map_err(engine_error)?;
                channel_of(&key)
            });
            channels.collect()
        })
    }
}

/// The channel at the end of an account's record.
fn channel_of(key: &[u8]) -> Result<ChannelId, StoreError> {
    key.get(17..).and_then(|id| ChannelId::from_slice(id).ok()).ok_or_else(|| corrupt("an author"))
}

fn charter_at(tables: &Tables, channel: ChannelId, epoch: u64) -> Result<Charter, StoreError> {
    let value = tables.directory.get(charter_key(channel, epoch)).map_err(engine_error)?;
    let signed = value.and_then(|value| SignedCharter::from_bytes(&value).ok());
    signed.and_then(|signed| signed.read().ok()).ok_or_else(|| corrupt("a charter"))
}

/// A channel as the writer remembers it.
#[derive(Debug)]
pub(super) struct ChannelMemory {
    charter: Charter,
    log: LogRow,
}

impl Turn<'_> {
    /// Takes a charter, or nothing of it.
    pub(super) fn put_charter(&mut self, commit: &CharterCommit) -> Result<CharterCommitted, StoreError> {
        let CharterCommit { signed, charter, owned_max } = commit;
        let channel = charter.channel;
        self.load_channel(channel)?;
        let before = self.memory.channels.get(&channel).and_then(Option::as_ref);
        let follows = match before {
            Some(before) => {
                let is_next = charter.previous == Some(before.charter.hash());
                is_next && charter.after == before.log.head()?
            }
            // What a deleted account's channel has left must not become part of another one.
            None => {
                let left = self.tables.directory.contains_key(charter_key(channel, 1)).map_err(engine_error)?;
                charter.epoch == 1 && !left && !self.memory.channels.contains_key(&channel)
            }
        };
        let key = charter_key(channel, charter.epoch);
        if !follows {
            let standing = before.map(|before| &before.charter);
            let same = standing == Some(charter);
            let taken = self.tables.directory.get(key).map_err(engine_error)?;
            let repeated = same || taken.is_some_and(|taken| taken[..] == signed.to_bytes()[..]);
            let epoch = standing.map_or(0, |standing| standing.epoch);
            return Ok(if repeated { CharterCommitted::Repeated } else { CharterCommitted::Conflict { epoch } });
        }
        if before.is_none() && self.owned(charter.owner)?.len() >= *owned_max {
            return Ok(CharterCommitted::TooMany);
        }
        let zero = || LogRow { head_hash: vec![0; 32], tail_seq: 1, ..LogRow::default() };
        let log = before.map_or_else(zero, |before| before.log.clone());
        let log = LogRow { epoch: charter.epoch, ..log };
        let directory = &self.tables.directory;
        for author in before.iter().flat_map(|before| &before.charter.authors) {
            if charter.author(author.account).is_none() {
                self.batch.remove(directory, author_key(author.account, Some(channel)));
            }
        }
        for author in &charter.authors {
            let value = if author.account == charter.owner { OWNED } else { &[] };
            self.batch.insert(directory, author_key(author.account, Some(channel)), value);
        }
        self.batch.insert(directory, key, signed.to_bytes());
        self.batch.insert(directory, log_key(channel), log.encode_to_vec());
        self.memory.channels.insert(channel, Some(ChannelMemory { charter: charter.clone(), log }));
        Ok(CharterCommitted::Done)
    }

    /// Takes an entry, or nothing of it.
    pub(super) fn append_entry(&mut self, append: &EntryAppend) -> Result<Appended, EntryError> {
        let send_key = tables::send(append.from, append.msg_id);
        if let Some(earlier) = self.earlier_send(&send_key)? {
            if !append.content_hash.starts_with(&earlier.content_hash) {
                return Err(EntryError::OtherContent);
            }
            let server_ts = Timestamp::from_millis(earlier.server_ts);
            return Ok(Appended { server_ts, duplicate: true, conv_seq: earlier.conv_seq });
        }
        let channel = append.channel;
        self.load_channel(channel)?;
        let memory = self.memory.channels.get_mut(&channel).and_then(Option::as_mut).ok_or(EntryError::Unknown)?;
        let log = &mut memory.log;
        if log.epoch != append.epoch || log.head()? != append.after {
            return Err(EntryError::Conflict { epoch: log.epoch });
        }
        let held = log.head_seq + 1 - log.tail_seq;
        let bytes = log.tail_bytes.saturating_add(append.body.len() as u64);
        if held >= append.tail.msgs || bytes > append.tail.bytes {
            return Err(EntryError::Full);
        }
        log.head_seq += 1;
        log.head_hash = blake3::hash(&append.body).as_bytes().to_vec();
        log.tail_bytes = bytes;
        let (epoch, seq) = (log.epoch, log.head_seq);
        self.batch.insert(&self.tables.directory, log_key(channel), log.encode_to_vec());
        self.batch.insert(&self.tables.bodies, entry_key(channel, seq), &append.body[..]);
        let content_hash = append.content_hash[..SEND_HASH_BYTES].to_vec();
        let row = SendRow { content_hash, server_ts: append.server_ts.as_millis(), conv_seq: seq };
        self.batch.insert(&self.tables.sends, send_key, row.encode_to_vec());
        self.sends.insert(send_key, row);
        self.entries.push(CommittedEntry { channel, epoch, seq, body: append.body.clone() });
        Ok(Appended { server_ts: append.server_ts, duplicate: false, conv_seq: seq })
    }

    /// Notes a page and lets go of its entries, or does nothing.
    pub(super) fn put_page(&mut self, channel: ChannelId, page: &ChannelPageView) -> Result<PageCommitted, StoreError> {
        self.load_channel(channel)?;
        let memory = self.memory.channels.get_mut(&channel).and_then(Option::as_mut);
        let Some(ChannelMemory { log, .. }) = memory else { return Ok(PageCommitted::Conflict) };
        let row = PageRow { page: page.page, first_seq: page.first_seq, blob: page.blob.as_bytes().to_vec() };
        let key = page_key(channel, page.last_seq);
        let next = (page.page, page.first_seq) == (log.pages + 1, log.tail_seq);
        if !next || page.last_seq > log.head_seq || page.last_seq < page.first_seq {
            let named = self.tables.directory.get(key).map_err(engine_error)?;
            let repeated = named.is_some_and(|named| named[..] == row.encode_to_vec()[..]);
            return Ok(if repeated { PageCommitted::Repeated } else { PageCommitted::Conflict });
        }
        let mut bytes = 0;
        for seq in page.first_seq..=page.last_seq {
            let entry = entry_key(channel, seq);
            // Committed before this turn: whoever names a page has read its entries.
            bytes += self.tables.bodies.get(&entry).map_err(engine_error)?.map_or(0, |value| value.len() as u64);
            self.batch.remove(&self.tables.bodies, entry);
        }
        log.pages += 1;
        log.tail_seq = page.last_seq + 1;
        log.tail_bytes = log.tail_bytes.saturating_sub(bytes);
        self.batch.insert(&self.tables.directory, key, row.encode_to_vec());
        self.batch.insert(&self.tables.directory, log_key(channel), log.encode_to_vec());
        Ok(PageCommitted::Done)
    }

    /// Takes away the channels that an account owns; what is left of them goes with [`Self::erase_channels`].
    pub(super) fn delete_channels(&mut self, owner: AccountId) -> Result<(), StoreError> {
        for channel in self.owned(owner)? {
            self.batch.remove(&self.tables.directory, log_key(channel));
            // Within this turn the engine still shows it.
            self.memory.channels.insert(channel, None);
        }
        Ok(())
    }

    /// Erases what deleted channels of an account have left, and what says where else it wrote: as much as is `left` of the
    /// step.
    pub(super) fn erase_channels(&mut self, account: AccountId, left: &mut usize) -> Result<(), StoreError> {
        for guard in self.tables.directory.prefix(author_key(account, None)) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let channel = channel_of(&key)?;
            if value[..] == *OWNED {
                for kind in [tag::CHARTER, tag::CHANNEL_PAGE] {
                    let prefix = [&[kind], &channel.as_bytes()[..]].concat();
                    self.erase(&self.tables.directory, &prefix, left)?;
                }
                for guard in self.tables.bodies.prefix(channel.as_bytes()).take(*left) {
                    let entry = guard.key().map_err(engine_error)?;
                    *left -= 1;
                    // A group of the same id is somebody else's.
                    if is_entry(&entry) {
                        self.batch.remove(&self.tables.bodies, entry);
                    }
                }
            }
            if *left == 0 {
                return Ok(());
            }
            self.batch.remove(&self.tables.directory, key);
            *left -= 1;
        }
        Ok(())
    }

    /// The channels that an account owns, as the engine shows them: a turn changes them once at most.
    fn owned(&self, owner: AccountId) -> Result<Vec<ChannelId>, StoreError> {
        let mut owned = Vec::new();
        for guard in self.tables.directory.prefix(author_key(owner, None)) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            if value[..] == *OWNED {
                owned.push(channel_of(&key)?);
            }
        }
        Ok(owned)
    }

    /// Brings a channel to memory, if there is one.
    fn load_channel(&mut self, channel: ChannelId) -> Result<(), StoreError> {
        if self.memory.channels.contains_key(&channel) {
            return Ok(());
        }
        if let Some(log) = LogRow::read(self.tables, channel)? {
            let charter = charter_at(self.tables, channel, log.epoch)?;
            self.memory.channels.insert(channel, Some(ChannelMemory { charter, log }));
        }
        Ok(())
    }
}
