//! A claim on an upload's file.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::UploadId;
use waxwing_protocol::blob::{CV_BYTES, outboard_bytes};

use super::changes::Change;
use super::packs::{Entry, PACK_BLOB_BYTES_MAX, Packed};
use super::reader::read_at;
use super::records::Location;
use super::{Disk, Known, blocking};
use crate::fault::kill_point;
use crate::store::slots::Slot;
use crate::store::{NewBlob, OutboardPart, StoreError, StoreErrorKind, UploadRecord, UploadWriter};

/// A claim on an upload's file. The blocking work of a call holds the upload's slot to its end, whether or not anyone
/// still waits for it, so that the next claim finds nothing half done.
pub(super) struct DiskWriter {
    disk: Arc<Disk>,
    id: UploadId,
    slot: Slot,
    epoch: u64,
    file: Option<Arc<File>>,
    /// Bytes at its beginning for which there is room.
    reserved: u64,
    /// Bytes were written since the last sync.
    unsynced: bool,
    /// The file's name may not be durable yet.
    unnamed: bool,
}

impl DiskWriter {
    pub(super) fn new(disk: Arc<Disk>, id: UploadId, slot: Slot, epoch: u64, file: Option<File>) -> Self {
        // Whoever committed an offset synced the name before it.
        let unnamed = file.is_none();
        Self { disk, id, slot, epoch, file: file.map(Arc::new), reserved: 0, unsynced: false, unnamed }
    }
}

impl UploadWriter for DiskWriter {
    fn reserve(&mut self, bytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            if bytes <= PACK_BLOB_BYTES_MAX {
                // It will most likely never have a file of its own.
                return Ok(());
            }
            let slot = self.slot.enter(self.epoch).await?;
            let (disk, id, file) = (Arc::clone(&self.disk), self.id, self.file.clone());
            let (file, is_reserved) = blocking(move || {
                let _slot = slot;
                disk.health.writable()?;
                let is_new = file.is_none();
                let file = file.map_or_else(|| disk.files.create(id).map(Arc::new), Ok)?;
                let reserved = disk.files.reserve(&file, bytes);
                if is_new && reserved.is_err() {
                    disk.files.remove(id)?;
                }
                Ok((file, reserved?))
            })
            .await?;
            self.file = Some(file);
            self.reserved = if is_reserved { bytes } else { 0 };
            Ok(())
        })
    }

    fn give_back(&mut self, kept: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let slot = self.slot.enter(self.epoch).await?;
            let Some(file) = self.file.clone() else { return Ok(()) };
            let disk = Arc::clone(&self.disk);
            self.reserved = 0;
            blocking(move || {
                let _slot = slot;
                disk.files.give_back(&file, kept)
            })
            .await
        })
    }

    fn write(&mut self, at: u64, data: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let slot = self.slot.enter(self.epoch).await?;
            let (disk, id, file) = (Arc::clone(&self.disk), self.id, self.file.clone());
            self.unsynced = true;
            let bytes: u64 = data.iter().map(|chunk| chunk.len() as u64).sum();
            let is_reserved = at + bytes <= self.reserved;
            let file = blocking(move || {
                let _slot = slot;
                disk.health.writable()?;
                let file = file.map_or_else(|| disk.files.create(id).map(Arc::new), Ok)?;
                disk.files.write(&file, at, &data, is_reserved)?;
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
        Box::pin(async move {
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
                disk.submit(Change::Put { id, record, outboard }).map(drop)
            })
            .await?;
            self.unnamed &= !self.unsynced;
            self.unsynced = false;
            Ok(())
        })
    }

    fn complete(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: OutboardPart,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let epoch = self.epoch;
        let record = record.map(|record| UploadRecord { epoch, ..record });
        Box::pin(async move {
            let slot = self.slot.enter(epoch).await?;
            let (disk, id, file) = (Arc::clone(&self.disk), self.id, self.file.clone());
            let (reserved, unsynced, unnamed) = (self.reserved, self.unsynced, self.unnamed);
            self.unsynced |= !tail.is_empty();
            blocking(move || {
                let _slot = slot;
                disk.health.writable()?;
                let known = disk.known(blob.id)?;
                let damaged = if let Known::Damaged(location) = known { Some(location) } else { None };
                let mut own = OwnFile { disk: &disk, id, file, reserved, unsynced, unnamed };
                // Held until the record is committed.
                let mut packed = None;
                let data = match known {
                    Known::Whole => None,
                    _ if blob.blob_bytes == 0 => Some(Location::File(id)),
                    _ if blob.blob_bytes <= PACK_BLOB_BYTES_MAX => {
                        let packed = packed.insert(own.pack(&blob, tail, &outboard)?);
                        kill_point("blob-packed");
                        Some(Location::Pack(packed.location))
                    }
                    _ => Some(own.finish(&blob, &tail)?),
                };
                disk.submit(Change::Complete { id, record, blob, data, outboard, damaged }).map(drop)
            })
            .await
        })
    }
}

/// The file of an upload that is being completed.
struct OwnFile<'a> {
    disk: &'a Disk,
    id: UploadId,
    file: Option<Arc<File>>,
    reserved: u64,
    unsynced: bool,
    unnamed: bool,
}

impl OwnFile<'_> {
    /// Appends the upload to a pack: what the file has, then `tail`.
    fn pack(&self, blob: &NewBlob, tail: Vec<Bytes>, outboard: &OutboardPart) -> Result<Packed, StoreError> {
        let doing = "packing an upload";
        let mut data = Vec::with_capacity(tail.len() + 1);
        let written = bytes_before(blob, &tail)?;
        if written > 0 {
            let bytes = usize::try_from(written).expect("PACK_BLOB_BYTES_MAX fits usize");
            let file = self.file.as_ref().ok_or_else(|| StoreError::new(StoreErrorKind::Corrupt, doing))?;
            data.push(read_at(file, 0, bytes)?);
        }
        data.extend(tail);
        let earlier = match outboard.first_group * CV_BYTES as u64 {
            0 => Vec::new(),
            bytes => self.disk.records.outboard(self.id, 0, bytes)?,
        };
        let values = [earlier, outboard.cvs.clone()].concat();
        if values.len() as u64 != outboard_bytes(blob.blob_bytes) {
            return Err(StoreError::new(StoreErrorKind::Corrupt, doing).because("its outboard has a gap"));
        }
        self.disk.packs.append(Entry { id: blob.id, outboard: values, data })
    }

    /// Writes `tail` behind what the file has, and makes both and their name durable.
    fn finish(&mut self, blob: &NewBlob, tail: &[Bytes]) -> Result<Location, StoreError> {
        let (files, written) = (&self.disk.files, bytes_before(blob, tail)?);
        let file = match self.file.clone() {
            Some(file) => file,
            None => files.create(self.id).map(Arc::new)?,
        };
        if !tail.is_empty() {
            files.write(&file, written, tail, blob.blob_bytes <= self.reserved)?;
            self.unsynced = true;
        }
        if self.reserved > blob.blob_bytes {
            files.give_back(&file, blob.blob_bytes)?;
        }
        if self.unsynced {
            files.sync(&file)?;
            if self.unnamed {
                files.sync_name(self.id)?;
            }
        }
        self.file = Some(file);
        Ok(Location::File(self.id))
    }
}

/// How many bytes of `blob` come before `tail`.
fn bytes_before(blob: &NewBlob, tail: &[Bytes]) -> Result<u64, StoreError> {
    let bytes: u64 = tail.iter().map(|piece| piece.len() as u64).sum();
    let before = blob.blob_bytes.checked_sub(bytes);
    before.ok_or_else(|| StoreError::new(StoreErrorKind::Other, "completing an upload with more bytes than it has"))
}
