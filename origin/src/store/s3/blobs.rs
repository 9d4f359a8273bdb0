//! Blobs: pointers and what changes in them.
//!
//! A pointer is the only thing that says that a blob is there. It appears after the bytes it leads to, and its last
//! owner's going empties it before they are removed, so that a crash leaves bytes without a pointer, which are found
//! again, and never a pointer without bytes. A pointer whose blob went stays until the purge log tells it and the bytes
//! are removed; it names both, so that whoever finds it can bring this to its end.
//!
//! Then it stays an hour longer, as a *grave*. A write that was sent when there was no pointer, and given up, may arrive
//! that late: it finds the grave and is refused, where it would have made a name for bytes that are gone. An origin that
//! was slow to end an upload which another ended long ago finds its bytes' name in the grave. By then S3 takes no request
//! any more that was signed before the blob went.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::Shared;
use super::bucket::{Expect, Swap, Tag};
use super::ledger::{Entry, Open};
use super::objects::{
    Place, Pointer, Share, Unfreed, blob_key, data_key, decode, encode, named_key, outboard_key, random_name,
};
use super::purges::PurgeLog;
use super::reader::S3Reader;
use super::retry::Attempts;
use crate::store::{NewBlob, StoreError};

/// After how long somebody who went may have been freed by another, so long ago that their ledger has forgotten it.
const LATE: Duration = Duration::from_secs(5 * 60);

/// What storing a blob did with the bytes that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stored {
    /// They are the blob's.
    Used,
    /// The blob has bytes already.
    NotNeeded,
    /// The blob has none, and none came.
    Missing,
    /// They were the blob's, and went with it.
    Gone,
}

impl Shared {
    /// The pointer of blob `id`; one that leads nowhere when there is none.
    pub(super) async fn pointer(&self, id: BlobId) -> Result<(Pointer, Option<Tag>), StoreError> {
        let key = blob_key(id);
        let Some(found) = self.bucket.get(&key).await? else { return Ok(Default::default()) };
        Ok((decode(&key, &found.bytes)?, Some(found.tag)))
    }

    async fn swap_pointer(&self, id: BlobId, tag: Option<&Tag>, pointer: &Pointer) -> Result<Swap, StoreError> {
        let expect = tag.map_or(Expect::Absent, Expect::Tag);
        self.bucket.swap(&blob_key(id), expect, encode(pointer)?).await
    }

    pub(super) fn purge_log(&self) -> PurgeLog<'_> {
        PurgeLog { bucket: &self.bucket, newest: &self.newest_purge }
    }

    /// Makes the bytes at `place`, which are most likely the first of blob `blob`, that blob, without looking: its owner
    /// was charged for it by `charge`. False, and nothing was done, when there is something of that blob already.
    ///
    /// What a look would find out, the write does: that the blob is not there, nor was an hour ago.
    pub(super) async fn store_first(&self, blob: &NewBlob, place: &Place, charge: &str) -> Result<bool, StoreError> {
        let _turn = self.blob_turns.take(blob.id).await;
        let mut pointer = Pointer {
            place: Some(place.clone()),
            blob_bytes: blob.blob_bytes,
            stored_at: blob.stored_at,
            ..Pointer::default()
        };
        own(&mut pointer, blob.owner, blob.stored_at, charge);
        let is_first = self.swap_pointer(blob.id, None, &pointer).await? != Swap::Lost;
        if is_first {
            self.bucket.ledgers.prove(blob.owner, charge);
        }
        Ok(is_first)
    }

    /// Makes the bytes at `place`, which upload `upload` brought, blob `blob`, or its owner an owner more of the blob
    /// that is there. Charges the owner before, unless that was done by `charge`. `version`: which version of the upload's
    /// object says that this is about to be done, if one does.
    pub(super) async fn store_blob(
        &self,
        upload: UploadId,
        blob: &NewBlob,
        place: Option<&Place>,
        charge: Option<&str>,
        version: Option<&Tag>,
    ) -> Result<Stored, StoreError> {
        let (owner, bytes) = (blob.owner, blob.blob_bytes);
        let mut charged = charge.is_some();
        let name = charge.map_or_else(random_name, |charge| Ok(charge.to_owned()))?;
        let mut attempts = Attempts::new("storing a blob");
        let _turn = self.blob_turns.take(blob.id).await;
        loop {
            let (mut pointer, tag) = self.pointer(blob.id).await?;
            let before = pointer.clone();
            if let Some(version) = version {
                // After the pointer was read: whoever ended the upload before has changed one of the two, and what its
                // owner did since must not be undone.
                self.still_at(upload, version).await?;
            }
            if pointer.place.is_none() {
                match place {
                    None => {
                        self.refund(charged && version.is_none(), owner, bytes, &name).await;
                        return Ok(Stored::Missing);
                    }
                    Some(place) if pointer.has_buried(place) => return Ok(Stored::Gone),
                    Some(_) => {}
                }
            }
            let share = pointer.owners.get(&owner).filter(|_| pointer.place.is_some());
            let has_otherwise = share.is_some_and(|share| share.charge != name);
            if share.is_some() && !charged {
                self.bucket.charge(owner, Entry::Hold { upload, bytes: 0 }, u64::MAX).await?;
            } else if !charged {
                let entry = Entry::Settle(Open::new(&name, blob.id, bytes, Some(upload)));
                self.bucket.charge(owner, entry, blob.quota_bytes).await?;
                charged = true;
            }
            // The blob went, and comes back: that it went is told all the same.
            if let (None, Some(at)) = (&pointer.place, pointer.unlogged) {
                self.purge_log().append(blob.id, at).await?;
                pointer.unlogged = None;
            }
            if pointer.place.is_none() {
                pointer.place = place.cloned();
                pointer.blob_bytes = bytes;
                pointer.stored_at = blob.stored_at;
            }
            own(&mut pointer, owner, blob.stored_at, &name);
            let made = pointer == before || {
                let swap = self.swap_pointer(blob.id, tag.as_ref(), &pointer).await?;
                matches!(swap, Swap::Made(_))
            };
            if made {
                // They have it, but not by this charge. Given back at the end: as long as they may yet come to have it by
                // this one, it stands.
                self.refund(charged && has_otherwise, owner, bytes, &name).await;
                if charged && !has_otherwise {
                    self.bucket.ledgers.prove(owner, &name);
                }
                let used = place.is_some_and(|place| Some(&place.data) == pointer.place.as_ref().map(|p| &p.data));
                return Ok(if used { Stored::Used } else { Stored::NotNeeded });
            }
            attempts.pause().await?;
        }
    }

    /// Takes back a charge named `name`, when there was one. A failure leaves it open, for a look at the ledger to find.
    pub(super) async fn refund(&self, charged: bool, owner: OwnerTag, bytes: u64, name: &str) {
        if charged {
            let entry = Entry::Free { bytes, name: format!("{name} back"), charge: name.to_owned(), is_late: false };
            if let Err(error) = self.bucket.charge(owner, entry, u64::MAX).await {
                tracing::warn!(error = %error, bytes, "an owner stays charged with bytes until their ledger is looked at");
            }
        }
    }

    /// Takes what owner `gone` had of a blob of `bytes` bytes from what they are charged with.
    async fn free(&self, gone: &Unfreed, bytes: u64) -> Result<(), StoreError> {
        let is_late = Timestamp::from(SystemTime::now()).since(gone.at) >= LATE;
        let (name, charge) = (format!("free {}", gone.charge), gone.charge.clone());
        self.bucket.charge(gone.owner, Entry::Free { bytes, name, charge, is_late }, u64::MAX).await
    }

    pub(super) async fn keep(
        self: &Arc<Self>,
        blob: BlobId,
        owner: OwnerTag,
        quota_bytes: u64,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let name = random_name()?;
        let mut charged = None;
        let mut attempts = Attempts::new("keeping a blob");
        loop {
            let (mut pointer, tag) = self.pointer(blob).await?;
            let before = pointer.clone();
            let has = pointer.owners.contains_key(&owner);
            if pointer.place.is_none() || has {
                self.refund(charged.is_some(), owner, charged.unwrap_or(0), &name).await;
                charged = None;
            }
            if pointer.place.is_none() {
                return Ok(false);
            }
            if !has && charged.is_none() {
                let bytes = pointer.blob_bytes;
                let entry = Entry::Add(Open::new(&name, blob, bytes, None));
                self.bucket.charge(owner, entry, quota_bytes).await?;
                charged = Some(bytes);
            }
            own(&mut pointer, owner, now, &name);
            if pointer == before {
                return Ok(true);
            }
            if let Swap::Made(_) = self.swap_pointer(blob, tag.as_ref(), &pointer).await? {
                if charged.is_some() {
                    self.bucket.ledgers.prove(owner, &name);
                }
                // Who let their time pass goes when somebody looks; no listing tells them while others keep the blob.
                if let Some(due) = self.expiry.due() {
                    self.expire_owners_of(blob, &pointer, due).await?;
                }
                return Ok(true);
            }
            attempts.pause().await?;
        }
    }

    /// Ends that `owner` has `blob`, unless they kept it after `kept_until`.
    pub(super) async fn disown(
        self: &Arc<Self>,
        blob: BlobId,
        owner: OwnerTag,
        kept_until: Timestamp,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let due = move |who: OwnerTag, since: Timestamp| who == owner && since <= kept_until;
        self.disown_all(blob, due, now).await
    }

    pub(super) async fn remove_blob(self: &Arc<Self>, blob: BlobId, now: Timestamp) -> Result<bool, StoreError> {
        self.disown_all(blob, |_, _| true, now).await
    }

    /// Ends that those owners have `blob` for whom `due` says so. False when they were none.
    async fn disown_all(
        self: &Arc<Self>,
        blob: BlobId,
        due: impl Fn(OwnerTag, Timestamp) -> bool,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut attempts = Attempts::new("letting a blob go");
        loop {
            let (mut pointer, tag) = self.pointer(blob).await?;
            let at = Timestamp::from(SystemTime::now());
            let shares = pointer.owners.iter().filter(|(owner, share)| due(**owner, share.since));
            let ended: Vec<_> =
                shares.map(|(owner, share)| Unfreed { owner: *owner, charge: share.charge.clone(), at }).collect();
            if ended.is_empty() || pointer.place.is_none() {
                // An earlier try may have come this far.
                if pointer.is_unfinished() {
                    self.clean(blob).await?;
                }
                return Ok(false);
            }
            pointer.owners.retain(|owner, _| !ended.iter().any(|gone| gone.owner == *owner));
            pointer.unfreed.extend(ended);
            if pointer.owners.is_empty() {
                pointer.leftovers.extend(pointer.place.take());
                pointer.unlogged = Some(now);
            }
            if let Swap::Made(_) = self.swap_pointer(blob, tag.as_ref(), &pointer).await? {
                break;
            }
            attempts.pause().await?;
        }
        self.clean(blob).await?;
        Ok(true)
    }

    /// Brings to its end what blob `id`'s pointer says to be unfinished. Who went is freed; of a blob that went the purge log
    /// tells, its bytes are removed, and its pointer is a grave.
    /// Bytes that somebody reads stay until they have done. What could be done is done, also when an owner could not be
    /// freed: that is an error, so that whoever asked comes again, since nobody else may look at this blob for weeks.
    pub(super) async fn clean(self: &Arc<Self>, id: BlobId) -> Result<(), StoreError> {
        let (mut logged, mut freed, mut failed) = (None, Vec::new(), Vec::new());
        let mut attempts = Attempts::new("removing a blob");
        loop {
            let (mut pointer, tag) = self.pointer(id).await?;
            let Some(tag) = tag else { return Ok(()) };
            let before = pointer.clone();
            if let Some(at) = pointer.unlogged.take()
                && logged != Some(at)
            {
                self.purge_log().append(id, at).await?;
                logged = Some(at);
            }
            failed.clear();
            for gone in std::mem::take(&mut pointer.unfreed) {
                if !freed.contains(&gone) {
                    match self.free(&gone, pointer.blob_bytes).await {
                        Ok(()) => freed.push(gone),
                        Err(error) => {
                            failed.push(error);
                            pointer.unfreed.push(gone);
                        }
                    }
                }
            }
            let mut kept = Vec::new();
            for place in std::mem::take(&mut pointer.leftovers) {
                if place.data.as_ref().is_some_and(|name| self.pins.is_pinned(name)) {
                    kept.push(place);
                } else {
                    self.remove_place(&place).await?;
                    pointer.bury(&place);
                }
            }
            pointer.leftovers = kept;
            let made = if pointer == before {
                true
            } else {
                matches!(self.swap_pointer(id, Some(&tag), &pointer).await?, Swap::Made(_))
            };
            if made {
                return failed.pop().map_or(Ok(()), Err);
            }
            attempts.pause().await?;
        }
    }

    /// Removes the pointer of blob `id` if it is a grave.
    pub(super) async fn remove_grave(&self, id: BlobId) -> Result<(), StoreError> {
        if self.abilities.conditional_delete
            && let (pointer, Some(tag)) = self.pointer(id).await?
            && pointer.is_grave()
        {
            // Where it is another by now, the blob came back.
            self.bucket.remove_if(&blob_key(id), &tag).await?;
        }
        Ok(())
    }

    /// Removes bytes of a blob that no pointer leads to any more.
    pub(super) async fn remove_place(&self, place: &Place) -> Result<(), StoreError> {
        for object in &place.outboard.objects {
            self.bucket.remove(&outboard_key(&object.name)).await?;
        }
        if let Some(name) = &place.data {
            self.bucket.remove(&data_key(name)).await?;
            if place.is_marked() {
                self.bucket.remove(&named_key(name)).await?;
            }
        }
        Ok(())
    }

    /// Opens blob `id`.
    pub(super) async fn open_blob(self: &Arc<Self>, id: BlobId) -> Result<Option<S3Reader>, StoreError> {
        let (pointer, _) = self.pointer(id).await?;
        let Some(place) = pointer.place else { return Ok(None) };
        Ok(Some(S3Reader::new(Arc::clone(self), id, place, pointer.blob_bytes)))
    }
}

/// Enters that `owner` has the blob from `now` on, charged for it by `charge` if they did not have it. A clock that went
/// back takes no owner's time away.
fn own(pointer: &mut Pointer, owner: OwnerTag, now: Timestamp, charge: &str) {
    let share = pointer.owners.entry(owner).or_insert_with(|| Share { since: now, charge: charge.to_owned() });
    share.since = now.max(share.since);
}
