//! `DiskStore`: uploads and blobs in local files, their records in fjall.
//!
//! An upload has a file of its own, named by its id and written at explicit offsets; when it is complete the file stays
//! where it is, and a pointer named by the blob id leads to it. So becoming a blob renames and copies nothing: it is one
//! record commit, which a crash either has or has not made. Small blobs are appended to shared packs instead, most of
//! them without ever having had a file.
//!
//! The outboard of a file lives in the records, not beside the data. Committed in the same batch as the offset it
//! belongs to, it can never be ahead of it or behind it, and costs no sync of its own. A packed blob's lies in the pack.
//!
//! What a write order promises, from the bottom up: bytes are synced, then the file's name, then the record.

mod changes;
mod committer;
mod files;
mod health;
mod packs;
mod pending;
mod reader;
mod records;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fjall::PersistMode;
use futures_util::future::BoxFuture;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use self::changes::{Change, Outcome};
use self::files::{Files, sync_directory};
use self::health::Health;
use self::packs::{Compactor, Packs};
use self::reader::DiskReader;
use self::records::{BlobPointer, Location, Records};
use self::writer::DiskWriter;
use super::slots::{CLAIM_WAIT, SlotGuard, Slots};
use super::{
    BlobReader, BlobStore, Claim, Event, OwnedPage, Purges, StoreError, StoreErrorKind, UploadRecord, UploadState,
    UploadWriter, Urgency,
};
use crate::fault::{Fault, Faults, kill_point};

pub(crate) use self::records::RecordsError;

/// Uploads and blobs in a directory.
#[derive(Clone)]
pub(crate) struct DiskStore(Arc<Disk>);

struct Disk {
    files: Arc<Files>,
    packs: Packs,
    compactor: Compactor,
    records: Arc<Records>,
    slots: Slots,
    health: Arc<Health>,
}

/// What a file may hold beyond its bytes without room having been taken for it: the rest of its last block, and what file
/// systems add of themselves.
const ROOM_SLACK_BYTES: u64 = 128 * 1024;

/// What is stored of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// Nothing.
    Not,
    /// All of it.
    Whole,
    /// Less than its record says, at this place.
    Damaged(Location),
}

/// Why a [`DiskStore`] does not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskOpenError {
    #[error("cannot use {path}")]
    Directory { path: std::path::PathBuf, source: std::io::Error },
    #[error(transparent)]
    Records(#[from] RecordsError),
}

impl DiskStore {
    /// Opens the store in `data_dir`, making it when it is not there: data in `blobs/` and `packs/`, records in
    /// `records/`. Leaves `reserve_bytes` of the disk free. Blocks.
    pub(crate) fn open(data_dir: &Path, reserve_bytes: u64, faults: Arc<Faults>) -> Result<Self, DiskOpenError> {
        let health = Arc::new(Health::default());
        let root = data_dir.join("blobs");
        let durability = if faults.is_on(Fault::SkipSync) { PersistMode::Buffer } else { PersistMode::SyncData };
        let files = Files::open(root.clone(), reserve_bytes, faults, Arc::clone(&health))
            .map(Arc::new)
            .map_err(|source| DiskOpenError::Directory { path: root, source })?;
        let records = Arc::new(Records::open(&data_dir.join("records"), durability, Arc::clone(&health))?);
        let root = data_dir.join("packs");
        let packs = Packs::open(root.clone(), Arc::clone(&files))
            .map_err(|source| DiskOpenError::Directory { path: root, source })?;
        // Records and files are no safer than the names of the directories they are in.
        let named = data_dir.canonicalize().and_then(|path| path.ancestors().take(2).try_for_each(sync_directory));
        named.map_err(|source| DiskOpenError::Directory { path: data_dir.to_owned(), source })?;
        let (compactor, slots) = (Compactor::default(), Slots::default());
        let disk = Arc::new(Disk { files, packs, compactor, records, slots, health });
        if disk.files.has_fault(Fault::ChurnPacks) {
            churn(Arc::downgrade(&disk));
        }
        Ok(Self(disk))
    }
}

impl Disk {
    fn claim(
        &self,
        id: UploadId,
        slot: &mut SlotGuard,
    ) -> Result<Option<(UploadRecord, Option<std::fs::File>)>, StoreError> {
        let Some(record) = self.records.upload(id)? else { return Ok(None) };
        slot.bump(record.epoch);
        let file = match record.state {
            UploadState::Receiving { .. } if record.offset > 0 => Some(self.files.open_cut(id, record.offset)?),
            _ => None,
        };
        Ok(Some((record, file)))
    }

    /// Whether the file of upload `id` holds more of the disk than its committed bytes need.
    fn has_room_beyond(&self, id: UploadId) -> Result<bool, StoreError> {
        let Some(record) = self.records.upload(id)? else { return Ok(false) };
        let UploadState::Receiving { .. } = record.state else { return Ok(false) };
        Ok(self.files.held_bytes(id)?.is_some_and(|held| held > record.offset.saturating_add(ROOM_SLACK_BYTES)))
    }

    /// Gives back what the file of upload `id` holds beyond its committed bytes. Gives how much that was.
    fn give_back(&self, id: UploadId, slot: &mut SlotGuard) -> Result<u64, StoreError> {
        let Some(before) = self.files.held_bytes(id)? else { return Ok(0) };
        let Some((record, file)) = self.claim(id, slot)? else { return Ok(0) };
        let UploadState::Receiving { .. } = record.state else { return Ok(0) };
        // Without a byte it has no file yet by its record, and has one all the same: room was taken in it.
        let file = file.map_or_else(|| self.files.create(id), Ok)?;
        self.files.give_back(&file, record.offset)?;
        kill_point("room-given-back");
        Ok(before.saturating_sub(self.files.held_bytes(id)?.unwrap_or(0)))
    }

    fn remove(&self, id: UploadId, slot: &mut SlotGuard) -> Result<(), StoreError> {
        slot.bump(0);
        self.submit(Change::Remove { id }).map(drop)
    }

    /// Makes `change` durable, and frees the files that no record names after it. False when there was nothing to change.
    fn submit(&self, change: Change) -> Result<bool, StoreError> {
        let Outcome::Made(unneeded) = self.records.submit(change)? else { return Ok(false) };
        if !unneeded.is_empty() {
            kill_point("files-unneeded");
        }
        for upload in unneeded {
            // A failure only leaves a file for the next collection.
            if let Err(error) = self.files.remove(upload) {
                tracing::warn!(upload.id = %upload, error = %error, "bytes that nothing names any more were not removed");
            }
        }
        Ok(true)
    }

    /// Opens blob `id`; `None` when there is none.
    fn open_blob(&self, id: BlobId) -> Result<Option<DiskReader>, StoreError> {
        let Some(pointer) = self.records.blob(id)? else { return Ok(None) };
        self.open_at(id, pointer)
    }

    /// Opens blob `id`, which was at `pointer` a moment ago; `None` when it is there no more.
    fn open_at(&self, id: BlobId, mut pointer: BlobPointer) -> Result<Option<DiskReader>, StoreError> {
        loop {
            let error = match DiskReader::open(self, id, pointer) {
                Err(error) if error.kind() == StoreErrorKind::Corrupt => error,
                opened => return opened.map(Some),
            };
            // What looks like damage may be a blob that went, or was moved, since its pointer was read.
            match self.records.blob(id)? {
                None => return Ok(None),
                Some(now) if now == pointer => return Err(error),
                Some(now) => pointer = now,
            }
        }
    }

    fn expire_owners(&self, until: Timestamp, limit: usize, now: Timestamp) -> Result<usize, StoreError> {
        let due = self.records.kept_until(until, limit)?;
        let found = due.len();
        if found > 0 {
            self.submit(Change::Expire { due, until, now })?;
        }
        Ok(found)
    }

    fn forget_purges(&self, until: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let purges = self.records.purges(0, limit)?;
        let old = purges.entries.iter().take_while(|purge| purge.at < until && purge.number + 1 < purges.next);
        let numbers: Vec<u64> = old.map(|purge| purge.number).collect();
        let forgotten = numbers.len();
        if forgotten > 0 {
            self.submit(Change::ForgetPurges { numbers })?;
        }
        Ok(forgotten)
    }

    /// Whether blob `id` is here, and all there: if not, good bytes that come are not thrown away.
    fn known(&self, id: BlobId) -> Result<Known, StoreError> {
        let Some(pointer) = self.records.blob(id)? else { return Ok(Known::Not) };
        match self.open_at(id, pointer) {
            Ok(Some(_)) => Ok(Known::Whole),
            Ok(None) => Ok(Known::Not),
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                tracing::error!(blob.id = %id, error = %error, "a stored blob is damaged, and replaced by a new upload of it");
                Ok(Known::Damaged(pointer.data))
            }
            Err(error) => Err(error),
        }
    }

    /// Gives bytes that no record names and that were last written before `older_than` to `found`; and of how many uploads.
    fn leftovers(
        &self,
        older_than: Timestamp,
        found: impl Fn(UploadId) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        let mut count = 0;
        self.files.for_each(|id, modified| {
            // A file whose slot is taken belongs to an upload that has not committed yet.
            if modified < older_than && !self.slots.is_taken(id) && !self.records.names_data(id)? {
                found(id)?;
                count += 1;
            }
            Ok(())
        })?;
        Ok(count)
    }
}

impl BlobStore for DiskStore {
    fn begin(&self, id: UploadId) -> BoxFuture<'_, Result<Box<dyn UploadWriter>, StoreError>> {
        Box::pin(async move {
            self.0.health.writable()?;
            let slot = self.0.slots.get(id);
            let epoch = slot.lock(CLAIM_WAIT).await?.bump(0);
            Ok(Box::new(DiskWriter::new(Arc::clone(&self.0), id, slot, epoch, None)) as Box<dyn UploadWriter>)
        })
    }

    fn upload(&self, id: UploadId) -> BoxFuture<'_, Result<Option<UploadRecord>, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.records.upload(id)))
    }

    fn claim(&self, id: UploadId) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        Box::pin(async move {
            let slot = self.0.slots.get(id);
            let mut guard = slot.lock(CLAIM_WAIT).await?;
            let disk = Arc::clone(&self.0);
            let claimed = blocking(move || Ok(disk.claim(id, &mut guard)?.map(|found| (found, guard.epoch())))).await?;
            Ok(claimed.map(|((record, file), epoch)| {
                let writer = DiskWriter::new(Arc::clone(&self.0), id, slot, epoch, file);
                Claim { writer: Box::new(writer), record }
            }))
        })
    }

    fn remove(&self, id: UploadId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut guard = self.0.slots.get(id).lock(CLAIM_WAIT).await?;
            let disk = Arc::clone(&self.0);
            blocking(move || disk.remove(id, &mut guard)).await
        })
    }

    fn give_back(&self, id: UploadId) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let disk = Arc::clone(&self.0);
            // Most have none, and are not disturbed for it.
            if !blocking(move || disk.has_room_beyond(id)).await? {
                return Ok(0);
            }
            let mut guard = self.0.slots.get(id).lock(CLAIM_WAIT).await?;
            let disk = Arc::clone(&self.0);
            blocking(move || disk.give_back(id, &mut guard)).await
        })
    }

    fn uploads(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(UploadId, UploadRecord)>, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.records.uploads(after, limit)))
    }

    fn blob(&self, id: BlobId) -> BoxFuture<'_, Result<Option<Box<dyn BlobReader>>, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || Ok(disk.open_blob(id)?.map(|reader| Box::new(reader) as Box<dyn BlobReader>))))
    }

    fn owned(&self, id: BlobId, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || {
            let owned = records.kept_since(id, owner)?.is_some();
            Ok(records.blob(id)?.filter(|_| owned).map(|pointer| pointer.blob_bytes))
        }))
    }

    fn keep(
        &self,
        blob: BlobId,
        owner: OwnerTag,
        quota_bytes: u64,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.submit(Change::Keep { blob, owner, quota_bytes, now })))
    }

    fn disown(&self, blob: BlobId, owner: OwnerTag, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.submit(Change::Disown { blob, owner, now })))
    }

    fn remove_blob(&self, blob: BlobId, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.submit(Change::RemoveBlob { blob, now })))
    }

    fn blobs_of(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<OwnedPage, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.blobs_of(owner, after, limit)))
    }

    fn expire_owners(
        &self,
        until: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<usize, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.expire_owners(until, limit, now)))
    }

    fn due_owners(&self, until: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.count_kept_until(until)))
    }

    fn purges(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Purges, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.purges(after, limit)))
    }

    fn forget_purges(&self, until: Timestamp, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.forget_purges(until, limit)))
    }

    fn events(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.events(limit)))
    }

    fn settle(&self, event: Event) -> BoxFuture<'_, Result<(), StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.submit(Change::Settle { event }).map(drop)))
    }

    fn used(&self, owner: OwnerTag) -> BoxFuture<'_, Result<u64, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.used(owner)))
    }

    fn quota(&self, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.quota(owner)))
    }

    fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> BoxFuture<'_, Result<(), StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.submit(Change::SetQuota { owner, quota_bytes }).map(drop)))
    }

    fn owners(&self, after: Option<OwnerTag>, limit: usize) -> BoxFuture<'_, Result<Vec<(OwnerTag, u64)>, StoreError>> {
        let records = Arc::clone(&self.0.records);
        Box::pin(blocking(move || records.owners(after, limit)))
    }

    fn collect(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.leftovers(older_than, |id| disk.files.remove(id))))
    }

    fn leftovers(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.leftovers(older_than, |_| Ok(()))))
    }

    fn compact(&self, urgency: Urgency, stop: CancellationToken) -> BoxFuture<'_, Result<u64, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || {
            disk.health.writable()?;
            disk.compactor.run(&disk.packs, &disk.records, urgency, &stop)
        }))
    }

    fn compactable(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        let disk = Arc::clone(&self.0);
        Box::pin(blocking(move || disk.compactor.worth(&disk.packs, &disk.records)))
    }

    fn is_writable(&self) -> bool {
        self.0.health.writable().is_ok()
    }
}

/// Compacts packs for as long as the store is there, so that whatever else is tested meets it.
fn churn(disk: std::sync::Weak<Disk>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(Duration::from_millis(10));
            let Some(disk) = disk.upgrade() else { return };
            if let Err(error) = disk.compactor.churn(&disk.packs, &disk.records) {
                tracing::warn!(error = %error, "packs were not compacted");
            }
        }
    });
}

/// Runs `work` where blocking is allowed. It runs to its end even when nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(StoreError::new(StoreErrorKind::Other, "a storage thread").because(error)))
}

#[cfg(test)]
mod tests;
