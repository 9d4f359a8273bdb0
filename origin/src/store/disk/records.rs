//! The records: what fjall keeps, under which key.
//!
//! One keyspace, since idle ones pin journals; the first byte of a key tells what it leads to:
//!
//! | key                                | value                                                          |
//! |------------------------------------|----------------------------------------------------------------|
//! | `u` upload                         | [`UploadRecord`]                                               |
//! | `o` upload, first group (be64)     | consecutive chaining values of its outboard                    |
//! | `b` blob                           | [`BlobPointer`]: where its bytes are, and their count          |
//! | `d` upload                         | the blob these bytes became: keeps them when the upload goes   |
//! | `p` pack, byte (both be64)         | the blob whose bytes lie there, and their count                |
//! | `w` blob, owner                    | since when that owner has it                                   |
//! | `x` time (be64), blob, owner       | nothing: the same the other way round, to find who had it longest |
//! | `q` owner                          | bytes that this owner's blobs and unfinished uploads hold      |
//! | `l` owner                          | bytes that an operator lets this owner hold, whatever grants say |
//! | `g` number (be64)                  | a purge: which blob went, and when                             |
//! | `e` time (be64), upload            | an event: which blob that upload became, its size and owner    |
//! | `v`                                | the version of this table                                      |
//!
//! A blob's owners are keys of their own, so that the millionth owner of a popular blob costs no more than the first.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use waxwing_protocol::blob::CV_BYTES;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::changes::{Change, Outcome};
use super::committer::Committer;
use super::health::Health;
use super::packs::{Live, PackLocation, entry_bytes};
use crate::store::{Event, OwnedPage, Purge, Purges, StoreError, StoreErrorKind, UploadRecord};

/// Bytes of records held in memory before they are written to tables; bounds memory and the time a restart takes.
const MEMTABLE_BYTES: u64 = 16 << 20;

/// Bytes of fjall's block cache.
const CACHE_BYTES: u64 = 32 << 20;

/// Bytes of journals before fjall makes room.
const JOURNAL_BYTES: u64 = 128 << 20;

/// The key of the table's version, and the version: the first had no counts of owners and no order by time.
const VERSION_KEY: &[u8] = b"v";
const VERSION: u8 = 2;

/// The version of the pointers' form written now.
const POINTER_VERSION: u8 = 2;

/// The version before there were packs, which is still read: an upload, and the rest the same.
const POINTER_VERSION_FILE: u8 = 1;

/// The records of a store, and the one thread that changes them.
pub(super) struct Records {
    table: Table,
    committer: Committer,
}

/// The keyspace, readable from anywhere.
#[derive(Clone)]
pub(super) struct Table {
    pub(super) database: Database,
    pub(super) keyspace: Keyspace,
}

/// Why the records do not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordsError {
    #[error("{path} is in use by another process")]
    Locked { path: PathBuf },
    #[error("cannot open the records in {path}")]
    Database { path: PathBuf, source: fjall::Error },
    #[error("the records in {path} are damaged")]
    Damaged { path: PathBuf, source: Box<StoreError> },
}

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// In a file of their own, named by the upload they came with; their outboard is in the records.
    File(UploadId),
    /// In a pack, their outboard too.
    Pack(PackLocation),
}

/// What a blob id leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlobPointer {
    /// Where the blob's bytes are.
    pub(super) data: Location,
    /// How many they are.
    pub(super) blob_bytes: u64,
    /// When the first owner stored them.
    pub(super) stored_at: Timestamp,
}

impl Records {
    /// Opens the records in `path`, making them when they are not there; commits become as durable as
    /// `durability` says. Blocks.
    pub(super) fn open(path: &Path, durability: PersistMode, health: Arc<Health>) -> Result<Self, RecordsError> {
        let failed = |error| match error {
            fjall::Error::Locked => RecordsError::Locked { path: path.to_owned() },
            source => RecordsError::Database { path: path.to_owned(), source },
        };
        let database = Database::builder(path).cache_size(CACHE_BYTES).max_journaling_size(JOURNAL_BYTES).open();
        let database = database.map_err(failed)?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let keyspace = database.keyspace("records", options).map_err(failed)?;
        let table = Table { database, keyspace };
        let unreadable = |error: StoreError| RecordsError::Damaged { path: path.to_owned(), source: Box::new(error) };
        table.upgrade(durability).map_err(unreadable)?;
        let next_purge = table.purges(0, 0).map_err(unreadable)?.next;
        let committer = Committer::start(table.clone(), durability, health, next_purge)
            .map_err(|error| RecordsError::Database { path: path.to_owned(), source: error.into() })?;
        Ok(Self { table, committer })
    }

    /// Makes `change` durable, together with whatever else waits. Blocks.
    pub(super) fn submit(&self, change: Change) -> Result<Outcome, StoreError> {
        self.committer.submit(change)
    }

    /// The record of upload `id`.
    pub(super) fn upload(&self, id: UploadId) -> Result<Option<UploadRecord>, StoreError> {
        let Some(bytes) = self.table.get(&upload_key(id))? else { return Ok(None) };
        UploadRecord::from_bytes(&bytes).map(Some)
    }

    /// Records of uploads after `after`, at most `limit`. A damaged one is told in the log and left out, so that it
    /// hides no other from the sweeper.
    pub(super) fn uploads(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> Result<Vec<(UploadId, UploadRecord)>, StoreError> {
        let from = after.map_or_else(|| vec![b'u'], |id| [&upload_key(id)[..], &[0]].concat());
        let mut found = Vec::new();
        for entry in self.table.keyspace.range(from..vec![b'u' + 1]) {
            if found.len() == limit {
                break;
            }
            let (key, value) = entry.into_inner().map_err(reading)?;
            let id = key[1..].try_into().map(UploadId::from_bytes).map_err(|_| corrupt("an upload's key"))?;
            match UploadRecord::from_bytes(&value) {
                Ok(record) => found.push((id, record)),
                Err(error) => tracing::error!(upload.id = %id, error = %error, "an upload's record is damaged"),
            }
        }
        Ok(found)
    }

    /// Where the bytes of blob `id` are.
    pub(super) fn blob(&self, id: BlobId) -> Result<Option<BlobPointer>, StoreError> {
        self.table.blob(id)
    }

    /// Whether any record needs the file of upload `id`.
    pub(super) fn names_data(&self, id: UploadId) -> Result<bool, StoreError> {
        if self.table.get(&data_key(id))?.is_some() {
            return Ok(true);
        }
        // A damaged record counts: what it speaks of is not thrown away because it cannot be read.
        let record = self.table.get(&upload_key(id))?;
        Ok(record.is_some_and(|bytes| {
            !matches!(
                UploadRecord::from_bytes(&bytes),
                Ok(UploadRecord { state: crate::store::UploadState::Complete { .. }, .. })
            )
        }))
    }

    /// The outboard of upload `id` from byte `from`, about `bytes` of it.
    pub(super) fn outboard(&self, id: UploadId, from: u64, bytes: u64) -> Result<Vec<u8>, StoreError> {
        let mut found = Vec::new();
        let group = from / CV_BYTES as u64;
        for entry in self.table.keyspace.range(outboard_key(id, group)..=outboard_key(id, u64::MAX)) {
            let (key, value) = entry.into_inner().map_err(reading)?;
            let expected = outboard_key(id, group + (found.len() / CV_BYTES) as u64);
            if *key != expected || value.len() % CV_BYTES != 0 {
                return Err(corrupt("an outboard with a gap"));
            }
            found.extend_from_slice(&value);
            if found.len() as u64 >= bytes {
                break;
            }
        }
        Ok(found)
    }

    /// Tears the record of upload `id`, as a bad disk would.
    #[cfg(test)]
    pub(super) fn damage(&self, id: UploadId) {
        let whole = self.table.get(&upload_key(id)).unwrap().unwrap();
        self.table.keyspace.insert(upload_key(id), &whole[..whole.len() / 2]).unwrap();
    }

    /// Since when `owner` has blob `id`, if they do.
    pub(super) fn kept_since(&self, id: BlobId, owner: OwnerTag) -> Result<Option<Timestamp>, StoreError> {
        self.table.get(&owner_key(id, owner))?.map(|bytes| time_of(&bytes)).transpose()
    }

    /// Which blobs behind `after` `owner` has, of `limit` records of who has one.
    pub(super) fn blobs_of(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        limit: usize,
    ) -> Result<OwnedPage, StoreError> {
        let from = after.map_or_else(|| vec![b'w'], |blob| [&blob_owners(blob)[..], &[0xff; 17]].concat());
        let mut page = OwnedPage::default();
        let mut looked_at: Option<BlobId> = None;
        for (n, entry) in self.table.keyspace.range(from..vec![b'w' + 1]).enumerate() {
            let key = entry.key().map_err(reading)?;
            let blob = key.get(1..).and_then(|rest| rest.first_chunk::<32>()).copied().map(BlobId::from_bytes);
            let blob = blob.ok_or_else(|| corrupt("the key of a blob's owner"))?;
            // A page ends between two blobs, since it goes on behind the last.
            if n >= limit && looked_at != Some(blob) {
                page.last = looked_at;
                return Ok(page);
            }
            if owner_of(&key)? == owner {
                page.blobs.push(blob);
            }
            looked_at = Some(blob);
        }
        Ok(page)
    }

    /// Who has had which blob since `until` or longer, at most `limit`, the longest first.
    pub(super) fn kept_until(&self, until: Timestamp, limit: usize) -> Result<Vec<(BlobId, OwnerTag)>, StoreError> {
        let end = kept_prefix(until.as_millis().saturating_add(1));
        let keys = self.table.keyspace.range(kept_prefix(0)..end).take(limit).map(|entry| {
            let key = entry.key().map_err(reading)?;
            let parse = || {
                let (blob, owner) = key.get(9..)?.split_first_chunk::<32>()?;
                Some((BlobId::from_bytes(*blob), OwnerTag::from_bytes(owner.try_into().ok()?)))
            };
            parse().ok_or_else(|| corrupt("the key of who had a blob longest"))
        });
        keys.collect()
    }

    /// How many times somebody has had a blob since `until` or longer.
    pub(super) fn count_kept_until(&self, until: Timestamp) -> Result<u64, StoreError> {
        let end = kept_prefix(until.as_millis().saturating_add(1));
        let mut count = 0;
        for entry in self.table.keyspace.range(kept_prefix(0)..end) {
            entry.key().map_err(reading)?;
            count += 1;
        }
        Ok(count)
    }

    /// Bytes that `owner` holds.
    pub(super) fn used(&self, owner: OwnerTag) -> Result<u64, StoreError> {
        self.table.get(&used_key(owner))?.map_or(Ok(0), |bytes| used_of(&bytes))
    }

    /// What an operator lets `owner` hold.
    pub(super) fn quota(&self, owner: OwnerTag) -> Result<Option<u64>, StoreError> {
        self.table.get(&quota_key(owner))?.map(|bytes| used_of(&bytes)).transpose()
    }

    /// Owners after `after` who hold anything, at most `limit`, and how much.
    pub(super) fn owners(&self, after: Option<OwnerTag>, limit: usize) -> Result<Vec<(OwnerTag, u64)>, StoreError> {
        let from = after.map_or_else(|| vec![b'q'], |owner| [&used_key(owner)[..], &[0]].concat());
        let owners = self.table.keyspace.range(from..vec![b'q' + 1]).take(limit).map(|entry| {
            let (key, value) = entry.into_inner().map_err(reading)?;
            Ok((owner_of(&key)?, used_of(&value)?))
        });
        owners.collect()
    }

    /// Bytes of every pack that records name. Reads a key for every packed blob.
    pub(super) fn packed_bytes(&self) -> Result<BTreeMap<u64, u64>, StoreError> {
        let mut packs = BTreeMap::new();
        for entry in self.table.keyspace.prefix(b"p") {
            let live = self.table.live(entry)?;
            *packs.entry(live.location.pack).or_insert(0) += entry_bytes(live.blob_bytes);
        }
        Ok(packs)
    }

    /// What lives in pack `pack` behind byte `after`, at most `limit`.
    pub(super) fn packed(&self, pack: u64, after: Option<u64>, limit: usize) -> Result<Vec<Live>, StoreError> {
        let key = |at| pack_key(PackLocation { pack, at });
        let from = match after.map(|at| at.checked_add(1)) {
            None => key(0),
            Some(Some(at)) => key(at),
            Some(None) => return Ok(Vec::new()),
        };
        self.table.keyspace.range(from..=key(u64::MAX)).take(limit).map(|entry| self.table.live(entry)).collect()
    }

    /// Events, the oldest first, at most `limit`.
    pub(super) fn events(&self, limit: usize) -> Result<Vec<Event>, StoreError> {
        let events = self.table.keyspace.prefix(b"e").take(limit).map(|entry| {
            let (key, value) = entry.into_inner().map_err(reading)?;
            event_of(&key, &value).ok_or_else(|| corrupt("an event"))
        });
        events.collect()
    }

    /// Purges after number `after`, at most `limit`.
    pub(super) fn purges(&self, after: u64, limit: usize) -> Result<Purges, StoreError> {
        self.table.purges(after, limit)
    }

    /// The owners of blob `id`.
    #[cfg(test)]
    pub(super) fn blob_owners(&self, id: BlobId) -> Result<Vec<OwnerTag>, StoreError> {
        let keys = self.table.keyspace.prefix(blob_owners(id));
        keys.map(|entry| owner_of(&entry.key().map_err(reading)?)).collect()
    }

    /// Takes away what the first version did not write.
    #[cfg(test)]
    pub(super) fn as_the_first_version_left_them(&self) {
        let keys = [&b"q"[..], b"x", VERSION_KEY].into_iter().flat_map(|prefix| self.table.keyspace.prefix(prefix));
        let keys: Vec<_> = keys.map(|entry| entry.key().unwrap()).collect();
        keys.into_iter().for_each(|key| self.table.keyspace.remove(key).unwrap());
    }
}

impl Table {
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<fjall::UserValue>, StoreError> {
        self.keyspace.get(key).map_err(reading)
    }

    pub(super) fn blob(&self, id: BlobId) -> Result<Option<BlobPointer>, StoreError> {
        self.get(&blob_key(id))?.map(|bytes| BlobPointer::from_bytes(&bytes)).transpose()
    }

    /// The packed blob that `entry` leads to.
    fn live(&self, entry: fjall::Guard) -> Result<Live, StoreError> {
        let damaged = || corrupt("what lives in a pack");
        let (key, value) = entry.into_inner().map_err(reading)?;
        let (pack, at) = key.get(1..).and_then(<[u8]>::split_first_chunk).ok_or_else(damaged)?;
        let at = u64::from_be_bytes(at.try_into().map_err(|_| damaged())?);
        let (blob, bytes) = value.split_first_chunk().ok_or_else(damaged)?;
        let blob = BlobId::from_bytes(*blob);
        let blob_bytes = match bytes {
            // As it was written before packs were compacted.
            [] => self.blob(blob)?.map_or(0, |pointer| pointer.blob_bytes),
            bytes => u64::from_le_bytes(bytes.try_into().map_err(|_| damaged())?),
        };
        Ok(Live { location: PackLocation { pack: u64::from_be_bytes(*pack), at }, blob, blob_bytes })
    }

    /// Purges after number `after`, at most `limit`.
    fn purges(&self, after: u64, limit: usize) -> Result<Purges, StoreError> {
        let number = |entry: fjall::Guard| number_of(&entry.key().map_err(reading)?);
        let oldest = self.keyspace.prefix(b"g").next().map(number).transpose()?;
        let newest = self.keyspace.prefix(b"g").next_back().map(number).transpose()?;
        let next = newest.map_or(1, |newest| newest + 1);
        let mut entries = Vec::new();
        for entry in self.keyspace.range(purge_key(after.saturating_add(1))..vec![b'g' + 1]).take(limit) {
            let (key, value) = entry.into_inner().map_err(reading)?;
            let (blob, at) = value.split_first_chunk::<32>().ok_or_else(|| corrupt("a purge"))?;
            entries.push(Purge { number: number_of(&key)?, blob: BlobId::from_bytes(*blob), at: time_of(at)? });
        }
        Ok(Purges { oldest: oldest.unwrap_or(next), next, entries })
    }

    /// Brings records that an earlier version wrote to this one's form: counts what owners hold, and orders by time who
    /// has had what. One pass over everything, once.
    fn upgrade(&self, durability: PersistMode) -> Result<(), StoreError> {
        if let Some(version) = self.get(VERSION_KEY)? {
            return if *version == [VERSION] { Ok(()) } else { Err(corrupt("records of a later version")) };
        }
        let failed = |error| StoreError::new(StoreErrorKind::Other, "upgrading the records").because(error);
        let mut batch = self.database.batch().durability(Some(durability));
        for entry in self.keyspace.prefix(b"w") {
            let (key, since) = entry.into_inner().map_err(reading)?;
            let blob = key.get(1..).and_then(|key| key.first_chunk()).ok_or_else(|| corrupt("an owner's key"))?;
            let key = kept_key(time_of(&since)?, BlobId::from_bytes(*blob), owner_of(&key)?);
            batch.insert(&self.keyspace, key, []);
        }
        for (owner, bytes) in self.count()? {
            batch.insert(&self.keyspace, used_key(owner), used_bytes(bytes));
        }
        batch.insert(&self.keyspace, VERSION_KEY, [VERSION]);
        batch.commit().map_err(failed)
    }

    /// What every owner holds, counted by blobs and uploads.
    fn count(&self) -> Result<BTreeMap<OwnerTag, u64>, StoreError> {
        let mut used = BTreeMap::new();
        let mut add = |owner, bytes| {
            if bytes > 0 {
                *used.entry(owner).or_insert(0) += bytes;
            }
        };
        // A blob's owners stand side by side, so each pointer is read once.
        let mut last = None;
        for entry in self.keyspace.prefix(b"w") {
            let key = entry.key().map_err(reading)?;
            let blob = key.get(1..).and_then(|key| key.first_chunk()).ok_or_else(|| corrupt("an owner's key"))?;
            let blob = BlobId::from_bytes(*blob);
            let bytes = match last {
                Some((known, bytes)) if known == blob => bytes,
                _ => self.blob(blob)?.map_or(0, |pointer| pointer.blob_bytes),
            };
            last = Some((blob, bytes));
            add(owner_of(&key)?, bytes);
        }
        for entry in self.keyspace.prefix(b"u") {
            let value = entry.value().map_err(reading)?;
            // A damaged record holds nothing that could be known.
            if let Ok(record) = UploadRecord::from_bytes(&value) {
                add(record.owner, record.held_bytes());
            }
        }
        Ok(used)
    }
}

impl BlobPointer {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        let mut bytes = vec![POINTER_VERSION];
        match self.data {
            Location::File(upload) => {
                bytes.push(b'f');
                bytes.extend(upload.as_bytes());
            }
            Location::Pack(PackLocation { pack, at }) => {
                bytes.push(b'p');
                bytes.extend(pack.to_le_bytes());
                bytes.extend(at.to_le_bytes());
            }
        }
        bytes.extend(self.blob_bytes.to_le_bytes());
        bytes.extend(self.stored_at.as_millis().to_le_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let parse = || {
            let (kind, rest) = match bytes.split_first()? {
                (&POINTER_VERSION, rest) => rest.split_first()?,
                (&POINTER_VERSION_FILE, rest) => (&b'f', rest),
                _ => return None,
            };
            let (data, rest) = rest.split_first_chunk::<16>()?;
            let data = match kind {
                b'f' => Location::File(UploadId::from_bytes(*data)),
                b'p' => {
                    let (pack, at) = data.split_first_chunk()?;
                    let at = u64::from_le_bytes(at.try_into().ok()?);
                    Location::Pack(PackLocation { pack: u64::from_le_bytes(*pack), at })
                }
                _ => return None,
            };
            let (blob_bytes, rest) = rest.split_first_chunk()?;
            let stored_at = rest.try_into().ok()?;
            Some(Self {
                data,
                blob_bytes: u64::from_le_bytes(*blob_bytes),
                stored_at: Timestamp::from_millis(u64::from_le_bytes(stored_at)),
            })
        };
        parse().ok_or_else(|| corrupt("a blob's pointer"))
    }
}

pub(super) fn upload_key(id: UploadId) -> [u8; 17] {
    key_of(b'u', id)
}

pub(super) fn data_key(id: UploadId) -> [u8; 17] {
    key_of(b'd', id)
}

pub(super) fn outboard_prefix(id: UploadId) -> [u8; 17] {
    key_of(b'o', id)
}

pub(super) fn outboard_key(id: UploadId, group: u64) -> Vec<u8> {
    [&outboard_prefix(id)[..], &group.to_be_bytes()].concat()
}

pub(super) fn pack_key(location: PackLocation) -> Vec<u8> {
    [&b"p"[..], &location.pack.to_be_bytes(), &location.at.to_be_bytes()].concat()
}

/// What [`pack_key`] leads to.
pub(super) fn packed_bytes(blob: BlobId, blob_bytes: u64) -> Vec<u8> {
    [&blob.as_bytes()[..], &blob_bytes.to_le_bytes()].concat()
}

pub(super) fn blob_key(id: BlobId) -> Vec<u8> {
    [&b"b"[..], id.as_bytes()].concat()
}

/// How the keys of a blob's owners begin.
pub(super) fn blob_owners(id: BlobId) -> Vec<u8> {
    [&b"w"[..], id.as_bytes()].concat()
}

pub(super) fn owner_key(id: BlobId, owner: OwnerTag) -> Vec<u8> {
    [&b"w"[..], id.as_bytes(), owner.as_bytes()].concat()
}

pub(super) fn kept_key(since: Timestamp, id: BlobId, owner: OwnerTag) -> Vec<u8> {
    [&kept_prefix(since.as_millis())[..], id.as_bytes(), owner.as_bytes()].concat()
}

fn kept_prefix(millis: u64) -> Vec<u8> {
    [&b"x"[..], &millis.to_be_bytes()].concat()
}

pub(super) fn used_key(owner: OwnerTag) -> [u8; 17] {
    owner_key_of(b'q', owner)
}

pub(super) fn quota_key(owner: OwnerTag) -> [u8; 17] {
    owner_key_of(b'l', owner)
}

fn owner_key_of(kind: u8, owner: OwnerTag) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..].copy_from_slice(owner.as_bytes());
    key
}

pub(super) fn purge_key(number: u64) -> Vec<u8> {
    [&b"g"[..], &number.to_be_bytes()].concat()
}

pub(super) fn purge_bytes(blob: BlobId, at: Timestamp) -> Vec<u8> {
    [&blob.as_bytes()[..], &time_bytes(at)].concat()
}

pub(super) fn event_key(at: Timestamp, upload: UploadId) -> Vec<u8> {
    [&b"e"[..], &at.as_millis().to_be_bytes(), upload.as_bytes()].concat()
}

pub(super) fn event_bytes(event: &Event) -> Vec<u8> {
    [event.blob.as_bytes(), &event.blob_bytes.to_le_bytes()[..], event.owner.as_bytes()].concat()
}

fn event_of(key: &[u8], value: &[u8]) -> Option<Event> {
    let (at, upload) = key.get(1..)?.split_first_chunk()?;
    let (blob, value) = value.split_first_chunk()?;
    let (blob_bytes, owner) = value.split_first_chunk()?;
    Some(Event {
        upload: UploadId::from_bytes(upload.try_into().ok()?),
        at: Timestamp::from_millis(u64::from_be_bytes(*at)),
        blob: BlobId::from_bytes(*blob),
        blob_bytes: u64::from_le_bytes(*blob_bytes),
        owner: OwnerTag::from_bytes(owner.try_into().ok()?),
    })
}

pub(super) const fn time_bytes(time: Timestamp) -> [u8; 8] {
    time.as_millis().to_le_bytes()
}

pub(super) fn time_of(bytes: &[u8]) -> Result<Timestamp, StoreError> {
    let bytes = bytes.try_into().map_err(|_| corrupt("a time"))?;
    Ok(Timestamp::from_millis(u64::from_le_bytes(bytes)))
}

pub(super) const fn used_bytes(bytes: u64) -> [u8; 8] {
    bytes.to_le_bytes()
}

pub(super) fn used_of(bytes: &[u8]) -> Result<u64, StoreError> {
    Ok(u64::from_le_bytes(bytes.try_into().map_err(|_| corrupt("what an owner holds"))?))
}

/// The owner whose tag ends `key`.
pub(super) fn owner_of(key: &[u8]) -> Result<OwnerTag, StoreError> {
    key.last_chunk().map(|tag| OwnerTag::from_bytes(*tag)).ok_or_else(|| corrupt("an owner's key"))
}

fn number_of(key: &[u8]) -> Result<u64, StoreError> {
    let number = key.get(1..).and_then(|number| number.try_into().ok());
    number.map(u64::from_be_bytes).ok_or_else(|| corrupt("a purge's key"))
}

fn key_of(kind: u8, id: UploadId) -> [u8; 17] {
    let mut key = [kind; 17];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

pub(super) fn reading(error: fjall::Error) -> StoreError {
    StoreError::new(StoreErrorKind::Other, "reading a record").because(error)
}

pub(super) fn corrupt(what: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_pointer_is_told_as_damage() {
        let file = Location::File(UploadId::from_bytes([1; 16]));
        for data in [file, Location::Pack(PackLocation { pack: 3, at: 1 << 27 })] {
            let pointer = BlobPointer { data, blob_bytes: 77, stored_at: Timestamp::from_secs(5) };
            let bytes = pointer.to_bytes();
            assert_eq!(BlobPointer::from_bytes(&bytes).unwrap(), pointer);
            for cut in 0..bytes.len() {
                assert_eq!(BlobPointer::from_bytes(&bytes[..cut]).unwrap_err().kind(), StoreErrorKind::Corrupt);
            }
            let mut longer = bytes;
            longer.push(0);
            assert!(BlobPointer::from_bytes(&longer).is_err());
        }
    }

    /// A store that was filled before there were packs opens all its blobs.
    #[test]
    fn a_pointer_of_the_first_version_is_read() {
        let upload = UploadId::from_bytes([1; 16]);
        let stored = [&[POINTER_VERSION_FILE], &upload.as_bytes()[..], &77u64.to_le_bytes(), &5000u64.to_le_bytes()];
        let pointer = BlobPointer::from_bytes(&stored.concat()).unwrap();
        let expected = BlobPointer { data: Location::File(upload), blob_bytes: 77, stored_at: Timestamp::from_secs(5) };
        assert_eq!(pointer, expected);
    }
}
