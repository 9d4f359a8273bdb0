//! What a crash leaves behind: bytes that nothing names, charges for what nobody has.
//!
//! Every write order of this store leaves garbage rather than a gap. Garbage is told from what is about to be named by
//! its age, and by asking, just before it is removed, everything that could name it. Nothing here takes a lock: origins
//! go on meanwhile, and two collections at once remove the same things twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::try_join_all;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::Shared;
use super::bucket::{Expect, Listed, PAGE, Swap};
use super::objects::{
    BLOBS, CLOCKS, DATA, Draft, GRAVE_BYTES_MAX, NAMED, OUTBOARDS, OWNERS, PROBES, Place, TAILS, UPLOADS, blob_in,
    blob_of_name, encode, named_key, owner_in, owner_key, random_name, upload_in, upload_of,
};
use crate::store::{StoreError, StoreErrorKind};

/// The object that is written when a count begins, so that one origin counts for all.
const RECOUNT: &str = "turns/recount";

/// How often everything is counted: each count reads every pointer.
const RECOUNT_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// Pointers that are counted at most: of more, nobody counts all, and ledgers' own proofs have to do
/// ([`super::proofs`]). Reading so many costs eight cents by AWS's prices, and listing them 20 MB of memory.
pub(super) const RECOUNT_POINTERS_MAX: usize = 200_000;

/// How far the bucket's clock may be behind this one without anybody being told.
const CLOCK_BEHIND_WARN: Duration = Duration::from_secs(60);

/// Objects looked at side by side.
const PARALLEL: usize = 16;

/// Garbage that was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Garbage {
    /// Keys of objects, and of multipart uploads.
    pub(super) keys: Vec<String>,
    /// How many uploads they are of.
    pub(super) uploads: u64,
}

impl Shared {
    /// Every object under `under`, page by page.
    async fn all(&self, under: &'static str) -> Result<Vec<Listed>, StoreError> {
        Ok(self.all_of_few(under, usize::MAX).await?.unwrap_or_default())
    }

    /// The same, when they are at most about `most`.
    async fn all_of_few(&self, under: &'static str, most: usize) -> Result<Option<Vec<Listed>>, StoreError> {
        let mut found: Vec<Listed> = Vec::new();
        loop {
            let after = found.last().map(|listed| listed.key.clone());
            let page = self.bucket.list(under, after.as_deref(), PAGE).await?;
            let full = page.len() == PAGE;
            found.extend(page);
            if found.len() > most {
                return Ok(None);
            }
            if !full {
                return Ok(Some(found));
            }
        }
    }

    /// Finds what was last written from `since` on and before `older_than` and is named by nothing, and removes it unless it
    /// is a `dry_run`.
    pub(super) async fn collect(
        self: &Arc<Self>,
        since: Timestamp,
        older_than: Timestamp,
        dry_run: bool,
    ) -> Result<Garbage, StoreError> {
        // What this process is removing anyway is no garbage.
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
        let mut garbage = Garbage::default();
        let mut uploads = std::collections::BTreeSet::new();
        // Times in listings are by the bucket's clock: were it behind, what was just written would look old.
        let behind = self.clock_behind().await?;
        let (since, older_than) = (since.minus(behind), older_than.minus(behind));
        let is_old = |listed: &Listed| since <= listed.modified && listed.modified < older_than;
        for listed in self.all(UPLOADS).await?.iter().filter(|listed| is_old(listed)) {
            let Some(id) = upload_in(&listed.key) else { continue };
            // Nobody goes on with these: one that was being removed, and a blob in one request that was cut.
            let is_dead = matches!(
                self.draft(id).await,
                Ok(Some((draft, _))) if draft.removed || (draft.record.is_none() && draft.ending.is_none())
            );
            if is_dead && !self.slots.is_taken(id) {
                garbage.keys.push(listed.key.clone());
                uploads.insert(id);
                if !dry_run {
                    Box::pin(self.remove(id)).await?;
                }
            }
        }
        for (under, kind) in [(TAILS, Kind::Tail), (OUTBOARDS, Kind::Outboard), (DATA, Kind::Data), (NAMED, Kind::Name)]
        {
            for listed in self.all(under).await?.iter().filter(|listed| is_old(listed)) {
                let Some(name) = listed.key.strip_prefix(under) else { continue };
                let Some(id) = upload_of(name) else { continue };
                if self.slots.is_taken(id) {
                    continue;
                }
                match self.named_by(id, name, kind).await? {
                    Named::Nothing => {}
                    Named::Something => continue,
                    Named::Leftover(blob) => {
                        if !dry_run {
                            self.clean(blob).await?;
                        }
                        continue;
                    }
                }
                // Somebody else may have removed it since it was listed.
                if self.bucket.size(&listed.key).await?.is_some() {
                    garbage.keys.push(listed.key.clone());
                    uploads.insert(id);
                    if !dry_run {
                        self.bucket.remove(&listed.key).await?;
                    }
                }
            }
        }
        let multiparts = if self.abilities.lists_multiparts { self.bucket.multiparts(DATA).await? } else { Vec::new() };
        for found in multiparts {
            let id = found.key.strip_prefix(DATA).and_then(upload_of);
            let Some(id) =
                id.filter(|id| since <= found.initiated && found.initiated < older_than && !self.slots.is_taken(*id))
            else {
                continue;
            };
            let draft = self.draft_if_readable(id).await?;
            let named = draft.is_some_and(|draft| draft.parts.is_some_and(|parts| parts.upload == found.upload));
            if !named {
                garbage.keys.push(found.key.clone());
                uploads.insert(id);
                if !dry_run {
                    self.bucket.abort(&found.key, &found.upload).await?;
                }
            }
        }
        // What was written for a moment, by an origin that did not live to remove it.
        for under in [CLOCKS, PROBES] {
            for listed in self.all(under).await?.into_iter().filter(is_old) {
                if !dry_run {
                    self.bucket.remove(&listed.key).await?;
                }
                garbage.keys.push(listed.key);
            }
        }
        if !dry_run {
            for listed in self.all(BLOBS).await?.iter().filter(|listed| is_old(listed)) {
                if let Some(blob) = blob_in(&listed.key).filter(|_| listed.bytes <= GRAVE_BYTES_MAX) {
                    self.remove_grave(blob).await?;
                }
            }
        }
        garbage.uploads = uploads.len() as u64;
        Ok(garbage)
    }

    /// How far the bucket's clock is behind this one.
    async fn clock_behind(&self) -> Result<Duration, StoreError> {
        let key = format!("{CLOCKS}{}", random_name()?);
        let before = Timestamp::from(SystemTime::now());
        self.bucket.put(&key, Bytes::from_static(b"-")).await?;
        let listed = self.bucket.list(&key, None, 1).await;
        self.bucket.remove(&key).await?;
        let untold = || StoreError::new(StoreErrorKind::Unavailable, "reading the bucket's clock");
        let behind = before.since(listed?.first().ok_or_else(untold)?.modified);
        if behind > CLOCK_BEHIND_WARN {
            let behind_s = behind.as_secs();
            tracing::warn!(behind_s, "the bucket's clock is {behind_s} s behind this one");
        }
        Ok(behind)
    }

    /// The upload's object. One that cannot be read counts as naming everything: what it speaks of is not thrown away
    /// because it cannot be read.
    async fn draft_if_readable(&self, id: UploadId) -> Result<Option<Draft>, StoreError> {
        Ok(self.draft(id).await?.map(|(draft, _)| draft))
    }

    /// What names these bytes of upload `id`. The upload is asked before the blob, since what it names goes over to the
    /// blob before it is gone.
    async fn named_by(&self, id: UploadId, name: &str, kind: Kind) -> Result<Named, StoreError> {
        let draft = match self.draft_if_readable(id).await {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => return Ok(Named::Something),
            draft => draft?,
        };
        if let Some(draft) = draft
            && (draft.names(name, kind) || draft.ending.as_ref().is_some_and(|ending| ending.place.names(name, kind)))
        {
            return Ok(Named::Something);
        }
        let blob = match kind {
            Kind::Tail => return Ok(Named::Nothing),
            Kind::Data | Kind::Name => self.blob_of_data(name).await?,
            Kind::Outboard => self.blob_of_upload(id).await?,
        };
        let Some(blob) = blob else { return Ok(Named::Nothing) };
        let (pointer, _) = match self.pointer(blob).await {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => return Ok(Named::Something),
            pointer => pointer?,
        };
        if pointer.place.is_some_and(|place| place.names(name, kind)) {
            return Ok(Named::Something);
        }
        let is_leftover = pointer.leftovers.iter().any(|place| place.names(name, kind));
        Ok(if is_leftover { Named::Leftover(blob) } else { Named::Nothing })
    }

    /// The blob that data of this name is the bytes of, if it became one.
    async fn blob_of_data(&self, name: &str) -> Result<Option<BlobId>, StoreError> {
        if let Some(blob) = blob_of_name(name) {
            return Ok(Some(blob));
        }
        let Some(found) = self.bucket.get(&named_key(name)).await? else { return Ok(None) };
        Ok(std::str::from_utf8(&found.bytes).ok().and_then(|text| text.parse().ok()))
    }

    /// The blob that upload `id` became, by the name of its data.
    async fn blob_of_upload(&self, id: UploadId) -> Result<Option<BlobId>, StoreError> {
        let hex = data_encoding::HEXLOWER.encode(id.as_bytes());
        for under in [NAMED, DATA] {
            for listed in self.bucket.list(&format!("{under}{hex}-"), None, PAGE).await? {
                if let Some(name) = listed.key.strip_prefix(under)
                    && let Some(blob) = self.blob_of_data(name).await?
                {
                    return Ok(Some(blob));
                }
            }
        }
        Ok(None)
    }

    /// Counts what every owner holds when no origin has for a day. Gives for how many it was wrong; `None` when it was not
    /// due.
    pub(super) async fn recount_if_due(self: &Arc<Self>, now: Timestamp) -> Result<Option<usize>, StoreError> {
        if self.take_turn(RECOUNT, RECOUNT_INTERVAL, now).await?.is_none() {
            return Ok(None);
        }
        self.recount(self.settings.settle).await.map(Some)
    }

    /// Counts what every owner holds and sets right the ledgers that say otherwise, unless there is too much to count. Gives
    /// how many.
    ///
    /// Owners who let their time pass while others kept a blob go meanwhile, and are charged for it no longer.
    ///
    /// Only a ledger that nobody changed while everything was counted, nor for `settle` after, is set: what was under way
    /// when the count began has changed its ledger by then.
    pub(super) async fn recount(self: &Arc<Self>, settle: Duration) -> Result<usize, StoreError> {
        if self.all_of_few(BLOBS, self.settings.recount_pointers_max).await?.is_none() {
            tracing::debug!("too many blobs to count what everybody holds");
            return Ok(0);
        }
        let ledgers = self.all(OWNERS).await?;
        let owners: Vec<_> = ledgers.iter().filter_map(|listed| owner_in(&listed.key)).collect();
        let mut before = Vec::with_capacity(owners.len());
        for some in owners.chunks(PARALLEL) {
            let found = try_join_all(some.iter().map(|owner| self.bucket.ledger(*owner))).await?;
            before.extend(some.iter().copied().zip(found));
        }
        let mut counted: BTreeMap<OwnerTag, (u64, BTreeMap<UploadId, u64>)> = BTreeMap::new();
        let pointers = self.all(BLOBS).await?;
        let blobs: Vec<_> = pointers.iter().filter_map(|listed| blob_in(&listed.key)).collect();
        for some in blobs.chunks(PARALLEL) {
            let found = try_join_all(some.iter().map(|blob| self.pointer(*blob))).await?;
            for (blob, (mut pointer, _)) in some.iter().zip(found) {
                if let Some(due) = self.expiry.due()
                    && self.expire_owners_of(*blob, &pointer, due).await? > 0
                {
                    pointer = self.pointer(*blob).await?.0;
                }
                for owner in pointer.owners.into_keys().filter(|_| pointer.place.is_some()) {
                    counted.entry(owner).or_default().0 += pointer.blob_bytes;
                }
            }
        }
        for id in self.all(UPLOADS).await?.iter().filter_map(|listed| upload_in(&listed.key)) {
            let Some((draft, _)) = self.draft(id).await? else { continue };
            if let Some(record) = draft.record.filter(|_| !draft.removed)
                && record.held_bytes() > 0
            {
                counted.entry(record.owner).or_default().1.insert(id, record.held_bytes());
            }
        }
        tokio::time::sleep(settle).await;
        let mut set = 0;
        for (owner, (ledger, found)) in before {
            let (blobs, uploads) = counted.remove(&owner).unwrap_or_default();
            let right = ledger.counted(blobs, uploads);
            let Some(found) = found.filter(|_| !ledger.says_the_same(&right)) else { continue };
            if let Swap::Made(_) = self.bucket.swap(&owner_key(owner), Expect::Tag(&found.tag), encode(&right)?).await?
            {
                let (was, is) = (ledger.used(), right.used());
                tracing::warn!(was, is, "an owner was charged with {was} bytes and holds {is}");
                set += 1;
            }
        }
        Ok(set)
    }
}

/// What names bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Nothing,
    /// An upload, or a blob that is there.
    Something,
    /// The pointer of a blob that went, whose removal a crash cut off.
    Leftover(BlobId),
}

/// What bytes are there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tail,
    Outboard,
    Data,
    Name,
}

impl Draft {
    fn names(&self, name: &str, kind: Kind) -> bool {
        match kind {
            Kind::Tail => self.tails.iter().any(|tail| tail.name == name),
            Kind::Outboard => self.outboard.objects.iter().any(|object| object.name == name),
            Kind::Data | Kind::Name => self.parts.as_ref().is_some_and(|parts| parts.name == name),
        }
    }
}

impl Place {
    fn names(&self, name: &str, kind: Kind) -> bool {
        match kind {
            Kind::Tail => false,
            Kind::Outboard => self.outboard.objects.iter().any(|object| object.name == name),
            Kind::Data | Kind::Name => self.data.as_deref() == Some(name),
        }
    }
}
