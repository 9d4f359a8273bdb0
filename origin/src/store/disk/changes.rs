//! What changes in the records, and what follows from it.
//!
//! Each change is entered by one thread, one after the other, and sees what those before it made. So it can decide,
//! without locks, which of two uploads of the same bytes becomes the blob, who is a blob's last owner, and whether an
//! owner's quota has room.

use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::packs::PackLocation;
use super::pending::Pending;
use super::records::{
    BlobPointer, Location, blob_key, blob_owners, corrupt, data_key, event_bytes, event_key, kept_key, outboard_key,
    outboard_prefix, owner_key, owner_of, pack_key, packed_bytes, purge_bytes, purge_key, quota_key, time_bytes,
    time_of, upload_key, used_bytes, used_key, used_of,
};
use crate::store::{Event, NewBlob, OutboardPart, StoreError, StoreErrorKind, UploadRecord};

/// A change of records.
#[derive(Debug)]
pub(super) enum Change {
    /// An upload's record is this from now on, and its outboard has these values more.
    Put { id: UploadId, record: UploadRecord, outboard: OutboardPart },
    /// An upload's bytes, which are at `data`, are a blob from now on. When the blob is there already they are not
    /// needed, unless what is there are the bytes at `damaged`. Whoever saw that it is there gives no `data`.
    Complete {
        id: UploadId,
        record: Option<UploadRecord>,
        blob: NewBlob,
        data: Option<Location>,
        outboard: OutboardPart,
        damaged: Option<Location>,
    },
    /// An upload is no more.
    Remove { id: UploadId },
    /// An owner more has a blob, or has it from `now` on again.
    Keep { blob: BlobId, owner: OwnerTag, quota_bytes: u64, now: Timestamp },
    /// An owner has a blob no more. The last one takes the blob along.
    Disown { blob: BlobId, owner: OwnerTag, now: Timestamp },
    /// The same for many, but for those who kept theirs after `until`.
    Expire { due: Vec<(BlobId, OwnerTag)>, until: Timestamp, now: Timestamp },
    /// An operator lets an owner hold this, or what grants say.
    SetQuota { owner: OwnerTag, quota_bytes: Option<u64> },
    /// Nobody has a blob any more.
    RemoveBlob { blob: BlobId, now: Timestamp },
    /// An event was told.
    Settle { event: Event },
    /// These purges are forgotten.
    ForgetPurges { numbers: Vec<u64> },
    /// Packed blobs have copies, which are what counts from now on.
    Move { moves: Vec<Move> },
}

/// A packed blob that was copied. A blob that is elsewhere by now, or gone, stays so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// Which blob.
    pub(super) blob: BlobId,
    /// Where it was.
    pub(super) from: PackLocation,
    /// Where its copy is.
    pub(super) to: PackLocation,
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// There was nothing to change.
    Absent,
    /// It was made. No record names the files of these uploads any more.
    Made(Vec<UploadId>),
}

impl Change {
    /// Enters the change. Reads before it writes, so that a failure enters nothing.
    pub(super) fn enter(self, pending: &mut Pending<'_>, next_purge: &mut u64) -> Result<Outcome, StoreError> {
        match self {
            Self::Put { id, record, outboard } => put(pending, id, &record, outboard),
            Self::Complete { id, record, blob, data, outboard, damaged } => {
                complete(pending, id, record.as_ref(), &blob, data, outboard, damaged)
            }
            Self::Remove { id } => remove(pending, id),
            Self::Keep { blob, owner, quota_bytes, now } => keep(pending, blob, owner, quota_bytes, now),
            Self::Disown { blob, owner, now } => disown(pending, blob, owner, Timestamp::MAX, now, next_purge),
            Self::Expire { due, until, now } => Ok(expire(pending, due, until, now, next_purge)),
            Self::SetQuota { owner, quota_bytes } => {
                match quota_bytes {
                    Some(bytes) => pending.insert(quota_key(owner), used_bytes(bytes)),
                    None => pending.remove(quota_key(owner)),
                }
                Ok(Outcome::Made(Vec::new()))
            }
            Self::RemoveBlob { blob, now } => remove_blob(pending, blob, now, next_purge),
            Self::Settle { event } => {
                pending.remove(event_key(event.at, event.upload));
                Ok(Outcome::Made(Vec::new()))
            }
            Self::ForgetPurges { numbers } => {
                numbers.into_iter().for_each(|number| pending.remove(purge_key(number)));
                Ok(Outcome::Made(Vec::new()))
            }
            Self::Move { moves } => {
                moves.into_iter().for_each(|moved| move_blob(pending, moved));
                Ok(Outcome::Made(Vec::new()))
            }
        }
    }
}

fn put(
    pending: &mut Pending<'_>,
    id: UploadId,
    record: &UploadRecord,
    outboard: OutboardPart,
) -> Result<Outcome, StoreError> {
    let held = held_bytes(pending, id)?;
    charge(pending, record.owner, record.held_bytes(), held, record.quota_bytes)?;
    pending.insert(upload_key(id), record.to_bytes());
    put_outboard(pending, id, outboard);
    Ok(Outcome::Made(Vec::new()))
}

fn complete(
    pending: &mut Pending<'_>,
    id: UploadId,
    record: Option<&UploadRecord>,
    blob: &NewBlob,
    data: Option<Location>,
    outboard: OutboardPart,
    damaged: Option<Location>,
) -> Result<Outcome, StoreError> {
    let stored = pointer(pending, blob.id)?.map(|pointer| pointer.data);
    let whole = stored.filter(|stored| damaged != Some(*stored));
    let Some(kept) = whole.or(data) else {
        return Err(StoreError::new(StoreErrorKind::Busy, "completing an upload of a blob that just went"));
    };
    let mut unneeded = Vec::new();
    let mut gone = Vec::new();
    if kept != Location::File(id) {
        // An upload that was never committed before has no values in the records, as most small ones have not.
        if outboard.first_group > 0 {
            gone.extend(pending.keys(&outboard_prefix(id), usize::MAX)?);
        }
        unneeded.push(id);
    }
    if let Some(old) = stored.filter(|old| *old != kept) {
        gone.extend(location_keys(pending, old)?);
        unneeded.extend(file_of(old));
    }
    let since = kept_since(pending, blob.id, blob.owner)?;
    let held = if record.is_some() { held_bytes(pending, id)? } else { 0 };
    let added = if since.is_none() { blob.blob_bytes } else { 0 };
    charge(pending, blob.owner, added, held, blob.quota_bytes)?;
    gone.into_iter().for_each(|key| pending.remove(key));
    if stored != Some(kept) {
        let pointer = BlobPointer { data: kept, blob_bytes: blob.blob_bytes, stored_at: blob.stored_at };
        pending.insert(blob_key(blob.id), pointer.to_bytes());
        match kept {
            Location::File(upload) => {
                pending.insert(data_key(upload), *blob.id.as_bytes());
                put_outboard(pending, upload, outboard);
            }
            Location::Pack(at) => pending.insert(pack_key(at), packed_bytes(blob.id, blob.blob_bytes)),
        }
    }
    own(pending, blob.id, blob.owner, blob.stored_at, since);
    if blob.announced {
        let NewBlob { id: blob, blob_bytes, owner, stored_at: at, .. } = *blob;
        let event = Event { upload: id, at, blob, blob_bytes, owner };
        pending.insert(event_key(at, id), event_bytes(&event));
    }
    if let Some(record) = record {
        pending.insert(upload_key(id), record.to_bytes());
    }
    Ok(Outcome::Made(unneeded))
}

fn remove(pending: &mut Pending<'_>, id: UploadId) -> Result<Outcome, StoreError> {
    let is_blob = pending.get(&data_key(id))?.is_some();
    let outboard = if is_blob { Vec::new() } else { pending.keys(&outboard_prefix(id), usize::MAX)? };
    if let Some(record) = readable_record(pending, id)? {
        charge(pending, record.owner, 0, record.held_bytes(), u64::MAX)?;
    }
    outboard.into_iter().for_each(|key| pending.remove(key));
    pending.remove(upload_key(id));
    Ok(Outcome::Made(if is_blob { Vec::new() } else { vec![id] }))
}

fn keep(
    pending: &mut Pending<'_>,
    blob: BlobId,
    owner: OwnerTag,
    quota_bytes: u64,
    now: Timestamp,
) -> Result<Outcome, StoreError> {
    let Some(pointer) = pointer(pending, blob)? else { return Ok(Outcome::Absent) };
    let since = kept_since(pending, blob, owner)?;
    let added = if since.is_none() { pointer.blob_bytes } else { 0 };
    charge(pending, owner, added, 0, quota_bytes)?;
    own(pending, blob, owner, now, since);
    Ok(Outcome::Made(Vec::new()))
}

fn disown(
    pending: &mut Pending<'_>,
    blob: BlobId,
    owner: OwnerTag,
    kept_until: Timestamp,
    now: Timestamp,
    next_purge: &mut u64,
) -> Result<Outcome, StoreError> {
    let Some(since) = kept_since(pending, blob, owner)?.filter(|since| *since <= kept_until) else {
        return Ok(Outcome::Absent);
    };
    let pointer = pointer(pending, blob)?.ok_or_else(|| corrupt("an owner of a blob that is not there"))?;
    let is_last = pending.keys(&blob_owners(blob), 2)?.len() == 1;
    let gone = if is_last { location_keys(pending, pointer.data)? } else { Vec::new() };
    charge(pending, owner, 0, pointer.blob_bytes, u64::MAX)?;
    let_go(pending, blob, owner, since);
    if !is_last {
        return Ok(Outcome::Made(Vec::new()));
    }
    forget(pending, blob, gone, now, next_purge);
    Ok(Outcome::Made(file_of(pointer.data).into_iter().collect()))
}

fn expire(
    pending: &mut Pending<'_>,
    due: Vec<(BlobId, OwnerTag)>,
    until: Timestamp,
    now: Timestamp,
    next_purge: &mut u64,
) -> Outcome {
    let mut unneeded = Vec::new();
    for (blob, owner) in due {
        match disown(pending, blob, owner, until, now, next_purge) {
            Ok(Outcome::Made(files)) => unneeded.extend(files),
            Ok(Outcome::Absent) => {}
            // One that cannot be read keeps no other from going.
            Err(error) => tracing::error!(blob.id = %blob, error = %error, "a blob whose time is over was not removed"),
        }
    }
    Outcome::Made(unneeded)
}

fn remove_blob(
    pending: &mut Pending<'_>,
    blob: BlobId,
    now: Timestamp,
    next_purge: &mut u64,
) -> Result<Outcome, StoreError> {
    let Some(pointer) = pointer(pending, blob)? else { return Ok(Outcome::Absent) };
    let gone = location_keys(pending, pointer.data)?;
    let mut owners = Vec::new();
    for key in pending.keys(&blob_owners(blob), usize::MAX)? {
        let owner = owner_of(&key)?;
        owners.extend(kept_since(pending, blob, owner)?.map(|since| (owner, since)));
    }
    let used: Result<Vec<_>, _> = owners.iter().map(|(owner, _)| used(pending, *owner)).collect();
    for ((owner, since), used) in owners.into_iter().zip(used?) {
        set_used(pending, owner, used.saturating_sub(pointer.blob_bytes));
        let_go(pending, blob, owner, since);
    }
    forget(pending, blob, gone, now, next_purge);
    Ok(Outcome::Made(file_of(pointer.data).into_iter().collect()))
}

fn move_blob(pending: &mut Pending<'_>, Move { blob, from, to }: Move) {
    match pointer(pending, blob) {
        Ok(Some(pointer)) if pointer.data == Location::Pack(from) => {
            let pointer = BlobPointer { data: Location::Pack(to), ..pointer };
            pending.insert(blob_key(blob), pointer.to_bytes());
            pending.insert(pack_key(to), packed_bytes(blob, pointer.blob_bytes));
            pending.remove(pack_key(from));
        }
        // Nothing leads there any more, so what says that something lives there is in nobody's interest.
        Ok(_) => pending.remove(pack_key(from)),
        // One that cannot be read keeps no other from moving, and the bytes it may lead to stay.
        Err(error) => tracing::error!(blob.id = %blob, error = %error, "a packed blob's record cannot be read"),
    }
}

/// Enters that blob `blob` is no more, with the keys that led to its bytes.
fn forget(pending: &mut Pending<'_>, blob: BlobId, gone: Vec<Vec<u8>>, now: Timestamp, next_purge: &mut u64) {
    gone.into_iter().for_each(|key| pending.remove(key));
    pending.remove(blob_key(blob));
    pending.insert(purge_key(*next_purge), purge_bytes(blob, now));
    *next_purge += 1;
}

/// Enters that `owner` has `blob` since `now`; before it was since `before`, if at all.
fn own(pending: &mut Pending<'_>, blob: BlobId, owner: OwnerTag, now: Timestamp, before: Option<Timestamp>) {
    // A clock that went back takes no owner's time away.
    let since = before.map_or(now, |before| before.max(now));
    if let Some(before) = before {
        pending.remove(kept_key(before, blob, owner));
    }
    pending.insert(owner_key(blob, owner), time_bytes(since));
    pending.insert(kept_key(since, blob, owner), []);
}

/// Enters that `owner`, who had `blob` since `since`, has it no more.
fn let_go(pending: &mut Pending<'_>, blob: BlobId, owner: OwnerTag, since: Timestamp) {
    pending.remove(owner_key(blob, owner));
    pending.remove(kept_key(since, blob, owner));
}

/// Adds `added` bytes to what `owner` holds and takes `freed` away; an error when it grows beyond `quota_bytes`, or beyond
/// what an operator set in place of it.
fn charge(
    pending: &mut Pending<'_>,
    owner: OwnerTag,
    added: u64,
    freed: u64,
    quota_bytes: u64,
) -> Result<(), StoreError> {
    if added == freed {
        return Ok(());
    }
    let after = used(pending, owner)?.saturating_sub(freed).saturating_add(added);
    if added > freed && after > set_quota(pending, owner)?.unwrap_or(quota_bytes) {
        crate::metrics::handles().quota_refusals.increment(1);
        return Err(StoreError::new(StoreErrorKind::Quota, "counting an owner's bytes"));
    }
    set_used(pending, owner, after);
    Ok(())
}

fn used(pending: &Pending<'_>, owner: OwnerTag) -> Result<u64, StoreError> {
    pending.get(&used_key(owner))?.map_or(Ok(0), |bytes| used_of(&bytes))
}

/// What an operator lets `owner` hold.
fn set_quota(pending: &Pending<'_>, owner: OwnerTag) -> Result<Option<u64>, StoreError> {
    pending.get(&quota_key(owner))?.map(|bytes| used_of(&bytes)).transpose()
}

fn set_used(pending: &mut Pending<'_>, owner: OwnerTag, bytes: u64) {
    if bytes == 0 {
        pending.remove(used_key(owner));
    } else {
        pending.insert(used_key(owner), used_bytes(bytes));
    }
}

/// Bytes that upload `id` holds by its present record.
fn held_bytes(pending: &Pending<'_>, id: UploadId) -> Result<u64, StoreError> {
    Ok(readable_record(pending, id)?.map_or(0, |record| record.held_bytes()))
}

/// The record of upload `id`. A damaged one holds nothing that could be known; it can still be written over and removed.
fn readable_record(pending: &Pending<'_>, id: UploadId) -> Result<Option<UploadRecord>, StoreError> {
    Ok(pending.get(&upload_key(id))?.and_then(|bytes| UploadRecord::from_bytes(&bytes).ok()))
}

fn pointer(pending: &Pending<'_>, blob: BlobId) -> Result<Option<BlobPointer>, StoreError> {
    pending.get(&blob_key(blob))?.map(|bytes| BlobPointer::from_bytes(&bytes)).transpose()
}

/// Since when `owner` has `blob`, if it does.
fn kept_since(pending: &Pending<'_>, blob: BlobId, owner: OwnerTag) -> Result<Option<Timestamp>, StoreError> {
    pending.get(&owner_key(blob, owner))?.map(|bytes| time_of(&bytes)).transpose()
}

/// The keys that lead to the bytes at `location`, and to their outboard.
fn location_keys(pending: &Pending<'_>, location: Location) -> Result<Vec<Vec<u8>>, StoreError> {
    match location {
        Location::File(upload) => {
            let mut keys = pending.keys(&outboard_prefix(upload), usize::MAX)?;
            keys.push(data_key(upload).to_vec());
            Ok(keys)
        }
        Location::Pack(at) => Ok(vec![pack_key(at)]),
    }
}

/// The upload whose file is at `location`.
const fn file_of(location: Location) -> Option<UploadId> {
    match location {
        Location::File(upload) => Some(upload),
        Location::Pack(_) => None,
    }
}

fn put_outboard(pending: &mut Pending<'_>, id: UploadId, outboard: OutboardPart) {
    if !outboard.cvs.is_empty() {
        pending.insert(outboard_key(id, outboard.first_group), outboard.cvs);
    }
}
