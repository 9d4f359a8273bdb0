//! What lies in the bucket, under which key.
//!
//! | key                       | value                                                                                |
//! |---------------------------|--------------------------------------------------------------------------------------|
//! | `uploads/U`               | [`Draft`]: an upload's record, and where its bytes are                                |
//! | `tails/U-N`               | bytes of an upload that are not in a part yet                                         |
//! | `data/U-N`, `data/U-N.B`  | bytes of a blob: sent in parts; sent at once, when its id B was known                 |
//! | `named/U-N`               | the id of the blob whose bytes are in `data/U-N`, so that garbage is told from a blob |
//! | `outboards/U-N`           | consecutive chaining values of an outboard                                           |
//! | `blobs/B`                 | [`Pointer`]: where a blob's bytes are, and who has it                                 |
//! | `owners/O`                | [`Ledger`](super::ledger::Ledger): what an owner holds, and which charges are open    |
//! | `purges/NUMBER`           | which blob went, and when                                                            |
//! | `events/TIME-U`           | which blob an upload is about to become, for whoever waits to be told                 |
//! | `turns/WORK`              | when an origin last began something that one of them does for all                     |
//! | `turns/health`            | nothing: it is written to see whether writing is possible                             |
//! | `clocks/N`, `probes/N`    | nothing: written to be told the time, or what the server can do, and removed          |
//!
//! U and O are ids in hexadecimal, whose order is that of the ids; N is a random number, so that no two writes ever meet
//! under one key; B is the blob id as everywhere. `uploads`, `blobs` and `owners` change, each only by a conditional
//! write; all others are written once.

use std::collections::BTreeMap;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::bucket::PartTag;
use crate::store::{Event, NewBlob, StoreError, StoreErrorKind, UploadRecord};

/// The version of the form of every object that is JSON.
const VERSION: u8 = 1;

/// Bytes of an outboard that stand in the object that speaks of it; more are written to objects of their own.
pub(super) const OUTBOARD_INLINE_MAX: usize = 32 * 1024;

/// An upload: what the engine remembers of it, and where its bytes are.
///
/// Bytes lie in equal parts of a multipart upload, and behind them in tails.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Draft {
    /// The newest claim.
    pub(super) epoch: u64,
    /// Which process made it.
    pub(super) node: String,
    /// What is remembered. `None` for a large blob in one request, which nobody can go on with.
    pub(super) record: Option<UploadRecord>,
    pub(super) parts: Option<Parts>,
    pub(super) tails: Vec<Tail>,
    pub(super) outboard: StoredOutboard,
    /// It is becoming a blob: whoever finds this brings it to its end.
    pub(super) ending: Option<Ending>,
    /// It was removed: whoever finds this cleans up.
    pub(super) removed: bool,
}

/// A multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parts {
    /// The name of the object it becomes.
    pub(super) name: String,
    /// S3's id of it.
    pub(super) upload: String,
    /// Bytes of each part but the last.
    pub(super) part_bytes: u64,
    /// The parts, in order.
    pub(super) tags: Vec<PartTag>,
    /// The number after the highest that the newest claim may use: what it sends late never meets a part that a later
    /// claim wrote, since that begins here.
    pub(super) reserved: u16,
}

/// Bytes behind the parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tail {
    pub(super) name: String,
    pub(super) bytes: u64,
}

/// An outboard, or what of it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredOutboard {
    /// Objects with the first of it.
    pub(super) objects: Vec<Tail>,
    /// What follows.
    #[serde(with = "base64_bytes")]
    pub(super) inline: Vec<u8>,
}

/// What an upload is about to become.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ending {
    pub(super) blob: NewBlob,
    pub(super) record: Option<UploadRecord>,
    pub(super) place: Place,
    /// The name of the ledger's change that charged the owner for it.
    pub(super) charge: String,
}

/// Where a blob's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The name of its data; `None` for the blob without bytes.
    pub(super) data: Option<String>,
    pub(super) outboard: StoredOutboard,
}

/// What a blob id leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pointer {
    /// Where its bytes are. `None`: it went, and only `leftovers` keep this object here.
    pub(super) place: Option<Place>,
    pub(super) blob_bytes: u64,
    /// When the first owner stored it.
    pub(super) stored_at: Timestamp,
    /// Who has it.
    pub(super) owners: BTreeMap<OwnerTag, Share>,
    /// It went at this time, which the purge log does not tell yet.
    pub(super) unlogged: Option<Timestamp>,
    /// Who let it go, or whose time was over, and may still be charged for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) unfreed: Vec<Unfreed>,
    /// Bytes that are not needed any more and not removed yet.
    pub(super) leftovers: Vec<Place>,
    /// Of bytes that were removed, the random numbers in their names. Whoever comes late with the news that they are this
    /// blob must not be believed.
    #[serde(default)]
    pub(super) buried: Vec<String>,
}

/// Names of removed bytes that a pointer remembers: more than can be under way for one blob in an hour, which is how long
/// a pointer outlives its blob.
const BURIED_MAX: usize = 4;

/// Bytes of a pointer without place, owners and leftovers at most; one that leads to bytes has more.
pub(super) const GRAVE_BYTES_MAX: u64 = 256;

impl Pointer {
    /// Whether its blob went and nothing of it is left to be done.
    pub(super) fn is_grave(&self) -> bool {
        self.place.is_none() && !self.is_unfinished()
    }

    /// Whether something is left to be done about who or what went.
    pub(super) fn is_unfinished(&self) -> bool {
        self.unlogged.is_some() || !self.unfreed.is_empty() || !self.leftovers.is_empty()
    }

    /// Remembers that the bytes at `place` were removed.
    pub(super) fn bury(&mut self, place: &Place) {
        if let Some(number) = place.number()
            && !self.has_buried(place)
        {
            if self.buried.len() >= BURIED_MAX {
                self.buried.remove(0);
            }
            self.buried.push(number.to_owned());
        }
    }

    /// Whether the bytes at `place` were this blob's, and were removed.
    pub(super) fn has_buried(&self, place: &Place) -> bool {
        place.number().is_some_and(|number| self.buried.iter().any(|buried| buried == number))
    }
}

/// An owner who went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Unfreed {
    pub(super) owner: OwnerTag,
    /// The name of the ledger's change that charged them.
    pub(super) charge: String,
    /// When they went.
    pub(super) at: Timestamp,
}

/// What an owner has of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Share {
    /// Since when.
    pub(super) since: Timestamp,
    /// The name of the ledger's change that charged them for it.
    pub(super) charge: String,
}

/// A purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StoredPurge {
    pub(super) blob: BlobId,
    pub(super) at: Timestamp,
}

/// When something began that one origin does for all.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct StoredTurn {
    pub(super) at: Timestamp,
}

/// An object as JSON, with its version and the random number that makes it unlike any other.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u8,
    write: String,
    #[serde(flatten)]
    value: T,
}

/// `value` as an object that was never written before.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, StoreError> {
    let envelope = Envelope { v: VERSION, write: random_name()?, value };
    Ok(serde_json::to_vec(&envelope).expect("numbers, strings and lists always serialize, into memory").into())
}

/// Reads what [`encode`] wrote.
pub(super) fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    let corrupt = || StoreError::new(StoreErrorKind::Corrupt, format!("reading {key}"));
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(|error| corrupt().because(error))?;
    if envelope.v != VERSION {
        return Err(corrupt().because("unknown version"));
    }
    Ok(envelope.value)
}

/// 64 random bits in hexadecimal.
pub(super) fn random_name() -> Result<String, StoreError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| StoreError::new(StoreErrorKind::Other, "naming an object").because(error))?;
    Ok(HEXLOWER.encode(&bytes))
}

/// A name for bytes of upload `id` that nothing has yet.
pub(super) fn new_name(id: UploadId) -> Result<String, StoreError> {
    Ok(format!("{}-{}", HEXLOWER.encode(id.as_bytes()), random_name()?))
}

/// The upload whose bytes have this name.
pub(super) fn upload_of(name: &str) -> Option<UploadId> {
    id_of(name.get(..32)?).map(UploadId::from_bytes)
}

/// The blob that a name of data tells.
pub(super) fn blob_of_name(name: &str) -> Option<BlobId> {
    name.split_once('.')?.1.parse().ok()
}

fn id_of(hex: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(hex.as_bytes()).ok()?.try_into().ok()
}

pub(super) const UPLOADS: &str = "uploads/";
pub(super) const TAILS: &str = "tails/";
pub(super) const DATA: &str = "data/";
pub(super) const NAMED: &str = "named/";
pub(super) const OUTBOARDS: &str = "outboards/";
pub(super) const BLOBS: &str = "blobs/";
pub(super) const OWNERS: &str = "owners/";
pub(super) const PURGES: &str = "purges/";
pub(super) const EVENTS: &str = "events/";
pub(super) const CLOCKS: &str = "clocks/";
pub(super) const PROBES: &str = "probes/";

pub(super) fn upload_key(id: UploadId) -> String {
    format!("{UPLOADS}{}", HEXLOWER.encode(id.as_bytes()))
}

pub(super) fn tail_key(name: &str) -> String {
    format!("{TAILS}{name}")
}

pub(super) fn data_key(name: &str) -> String {
    format!("{DATA}{name}")
}

pub(super) fn named_key(name: &str) -> String {
    format!("{NAMED}{name}")
}

pub(super) fn outboard_key(name: &str) -> String {
    format!("{OUTBOARDS}{name}")
}

pub(super) fn blob_key(id: BlobId) -> String {
    format!("{BLOBS}{id}")
}

pub(super) fn owner_key(owner: OwnerTag) -> String {
    format!("{OWNERS}{}", HEXLOWER.encode(owner.as_bytes()))
}

pub(super) fn purge_key(number: u64) -> String {
    format!("{PURGES}{number:020}")
}

pub(super) fn event_key(event: &Event) -> String {
    format!("{EVENTS}{:020}-{}", event.at.as_millis(), HEXLOWER.encode(event.upload.as_bytes()))
}

/// The id that ends `key`, behind its first part.
pub(super) fn upload_in(key: &str) -> Option<UploadId> {
    key.strip_prefix(UPLOADS).and_then(id_of).map(UploadId::from_bytes)
}

pub(super) fn owner_in(key: &str) -> Option<OwnerTag> {
    key.strip_prefix(OWNERS).and_then(id_of).map(OwnerTag::from_bytes)
}

pub(super) fn blob_in(key: &str) -> Option<BlobId> {
    key.strip_prefix(BLOBS)?.parse().ok()
}

pub(super) fn purge_in(key: &str) -> Option<u64> {
    key.strip_prefix(PURGES)?.parse().ok()
}

/// [`Event`] as it is stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct StoredEvent {
    upload: UploadId,
    at: Timestamp,
    blob: BlobId,
    blob_bytes: u64,
    owner: OwnerTag,
}

impl From<Event> for StoredEvent {
    fn from(event: Event) -> Self {
        let Event { upload, at, blob, blob_bytes, owner } = event;
        Self { upload, at, blob, blob_bytes, owner }
    }
}

impl From<StoredEvent> for Event {
    fn from(stored: StoredEvent) -> Self {
        let StoredEvent { upload, at, blob, blob_bytes, owner } = stored;
        Self { upload, at, blob, blob_bytes, owner }
    }
}

impl Draft {
    /// Bytes that parts and tails have.
    pub(super) fn bytes(&self) -> u64 {
        self.parts.as_ref().map_or(0, Parts::bytes) + self.tail_bytes()
    }

    pub(super) fn tail_bytes(&self) -> u64 {
        self.tails.iter().map(|tail| tail.bytes).sum()
    }
}

impl Parts {
    /// Bytes of the parts so far; right as long as the last one is not there.
    pub(super) fn bytes(&self) -> u64 {
        self.tags.len() as u64 * self.part_bytes
    }
}

impl Place {
    /// The random number in the name of its data.
    fn number(&self) -> Option<&str> {
        self.data.as_ref()?.split_once('-')?.1.split('.').next()
    }

    /// Whether the object was sent in parts, so that a marker of its own names its blob.
    pub(super) fn is_marked(&self) -> bool {
        self.data.as_ref().is_some_and(|name| blob_of_name(name).is_none())
    }
}

/// Bytes as base64 text.
mod base64_bytes {
    use data_encoding::BASE64;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)
    }
}
