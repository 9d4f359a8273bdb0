//! A claim on an upload's file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::UploadId;

use super::committer::{Change, DataFate};
use super::slots::Slot;
use super::{Disk, blocking};
use crate::store::{NewBlob, OutboardPart, StoreError, StoreErrorKind, UploadRecord, UploadWriter};

/// A claim on an upload's file. The blocking work of a call holds the upload's slot to its end, whether or not anyone
/// still waits for it, so that the next claim finds nothing half done.
pub(super) struct DiskWriter {
    disk: Arc<Disk>,
    id: UploadId,
    slot: Slot,
    epoch: u64,
    file: Option<Arc<File>>,
    /// Bytes were written since the last sync.
    unsynced: bool,
    /// The file's name may not be durable yet.
    unnamed: bool,
}

impl DiskWriter {
    pub(super) fn new(disk: Arc<Disk>, id: UploadId, slot: Slot, epoch: u64, file: Option<File>) -> Self {
        // Whoever committed an offset synced the name before it.
        let unnamed = file.is_none();
        Self { disk, id, slot, epoch, file: file.map(Arc::new), unsynced: false, unnamed }
    }

    /// Syncs what was written and commits the change that `change` makes.
    async fn sync_and_submit(
        &mut self,
        change: impl FnOnce(&Disk, UploadId) -> Result<Change, StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let slot = self.slot.enter(self.epoch).await?;
        let (disk, id, file) = (Arc::clone(&self.disk), self.id, self.file.clone());
        let (unsynced, unnamed) = (self.unsynced, self.unnamed);
        blocking(move || {
            let _slot = slot;
            disk.health.writable()?;
            if let Some(file) = &file
                && unsynced
            {
                disk.files.sync(file)?;
                if unnamed {
                    disk.files.sync_name(id)?;
                }
            }
            // The blob was there already. A failure only leaves a file for the next collection.
            if disk.records.submit(change(&disk, id)?)? == DataFate::Drop
                && let Err(error) = disk.files.remove(id)
            {
                tracing::warn!(upload.id = %id, error = %error, "bytes of a known blob were not removed");
            }
            Ok(())
        })
        .await?;
        self.unnamed &= !self.unsynced;
        self.unsynced = false;
        Ok(())
    }
}

impl UploadWriter for DiskWriter {
    fn write(&mut self, at: u64, data: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let slot = self.slot.enter(self.epoch).await?;
            let (disk, id, file) = (Arc::clone(&self.disk), self.id, self.file.clone());
            self.unsynced = true;
            let file = blocking(move || {
                let _slot = slot;
                disk.health.writable()?;
                let file = file.map_or_else(|| disk.files.create(id).map(Arc::new), Ok)?;
                disk.files.write(&file, at, &data)?;
                Ok(file)
            })
            .await?;
            self.file = Some(file);
            Ok(())
        })
    }

    fn read(&mut self, at: u64, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, StoreError>> {
        let file = self.file.clone();
        Box::pin(blocking(move || {
            let doing = "reading an upload's data";
            let bytes = usize::try_from(bytes).expect("less than a chunk group is read back");
            let mut data = vec![0; bytes];
            if !data.is_empty() {
                let file = file.ok_or_else(|| StoreError::new(StoreErrorKind::Corrupt, doing))?;
                file.read_exact_at(&mut data, at).map_err(|error| StoreError::io(doing, error))?;
            }
            Ok(data)
        }))
    }

    fn commit(&mut self, mut record: UploadRecord, outboard: OutboardPart) -> BoxFuture<'_, Result<(), StoreError>> {
        record.epoch = self.epoch;
        Box::pin(self.sync_and_submit(move |_, id| Ok(Change::Put { id, record, outboard })))
    }

    fn complete(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        outboard: OutboardPart,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let epoch = self.epoch;
        let record = record.map(|record| UploadRecord { epoch, ..record });
        Box::pin(self.sync_and_submit(move |disk, id| {
            let damaged = disk.damaged(blob.id)?;
            Ok(Change::Complete { id, record, blob, outboard, damaged })
        }))
    }
}
