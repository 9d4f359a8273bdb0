//! The data files: one for each upload, in directories by the first two characters of its id.
//!
//! Promise: a name is built from a parsed id and from nothing else, so no request reaches another path.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use waxwing_protocol::{Timestamp, UploadId};

use super::health::Health;
use crate::fault::{Fault, Faults, kill_point};
use crate::metrics::{handles, timed};
use crate::store::{StoreError, StoreErrorKind};

/// The directory of data files.
pub(super) struct Files {
    root: PathBuf,
    reserve_bytes: u64,
    faults: Arc<Faults>,
    health: Arc<Health>,
    /// Held while room is looked for and taken, so that two do not find the same.
    reserving: Mutex<()>,
    /// Directories whose own name is known to be durable; 1,024 at most.
    durable: Mutex<HashSet<PathBuf>>,
}

impl Files {
    /// The files in `root`, which is made when it is not there.
    pub(super) fn open(
        root: PathBuf,
        reserve_bytes: u64,
        faults: Arc<Faults>,
        health: Arc<Health>,
    ) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        Ok(Self { root, reserve_bytes, faults, health, reserving: Mutex::default(), durable: Mutex::default() })
    }

    fn directory(&self, id: UploadId) -> PathBuf {
        self.root.join(&id.to_string()[..2])
    }

    fn path(&self, id: UploadId) -> PathBuf {
        self.directory(id).join(id.to_string())
    }

    /// Opens the file of upload `id`, making it when it is not there.
    pub(super) fn create(&self, id: UploadId) -> Result<File, StoreError> {
        let open = || {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false).open(self.path(id))
        };
        let made = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(self.directory(id)).and_then(|()| open())
            }
            other => other,
        };
        made.map_err(|error| StoreError::io("creating a data file", error))
    }

    /// Opens the file of upload `id` and cuts it to the `offset` bytes its record speaks of: what a crash left beyond
    /// was never acknowledged.
    pub(super) fn open_cut(&self, id: UploadId, offset: u64) -> Result<File, StoreError> {
        let doing = "opening an upload's data";
        let file = File::options().read(true).write(true).open(self.path(id));
        let file = file.map_err(|error| corrupt_if_missing(doing, error))?;
        let actual = file.metadata().map_err(|error| StoreError::io(doing, error))?.len();
        if actual < offset {
            return Err(StoreError::new(StoreErrorKind::Corrupt, doing)
                .because(format!("{actual} bytes on disk, {offset} acknowledged")));
        }
        if actual > offset {
            file.set_len(offset).map_err(|error| StoreError::io(doing, error))?;
        }
        Ok(file)
    }

    /// Opens the file `id` of a blob of `blob_bytes`; an empty blob may have none.
    pub(super) fn open_whole(&self, id: UploadId, blob_bytes: u64) -> Result<Option<File>, StoreError> {
        let doing = "opening a blob's data";
        if blob_bytes == 0 {
            return Ok(None);
        }
        let file = File::open(self.path(id)).map_err(|error| corrupt_if_missing(doing, error))?;
        let actual = file.metadata().map_err(|error| StoreError::io(doing, error))?.len();
        if actual < blob_bytes {
            return Err(StoreError::new(StoreErrorKind::Corrupt, doing)
                .because(format!("{actual} bytes on disk, {blob_bytes} recorded")));
        }
        Ok(Some(file))
    }

    /// Whether what was synced can still be believed.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// Whether `fault` is switched on.
    pub(super) fn has_fault(&self, fault: Fault) -> bool {
        self.faults.is_on(fault)
    }

    /// An error unless `wanted` bytes find room on the disk of `file` while the reserve stays free.
    pub(super) fn check_room(&self, file: &File, wanted: u64) -> Result<(), StoreError> {
        self.check_free(file, self.reserve_bytes.saturating_add(wanted))
    }

    /// The same for bytes that are moved so that others can go. Half of the reserve is there for it: a full disk that
    /// could not be compacted would stay full, whatever is deleted.
    pub(super) fn check_room_to_move(&self, file: &File, wanted: u64) -> Result<(), StoreError> {
        self.check_free(file, (self.reserve_bytes / 2).saturating_add(wanted))
    }

    fn check_free(&self, file: &File, wanted: u64) -> Result<(), StoreError> {
        let doing = "looking for room";
        let disk = rustix::fs::fstatvfs(file).map_err(|error| StoreError::io(doing, error.into()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < wanted || self.faults.is_on(Fault::DiskFull) {
            return Err(StoreError::new(StoreErrorKind::Full, doing));
        }
        Ok(())
    }

    /// Takes room on the disk for `bytes` bytes in `file` while the reserve stays free. False when this file system takes no
    /// room beforehand.
    pub(super) fn reserve(&self, file: &File, bytes: u64) -> Result<bool, StoreError> {
        let doing = "reserving room for an upload";
        let failed = |error| StoreError::io(doing, error);
        let _alone = self.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        let before = file.metadata().map_err(failed)?;
        // Linux counts blocks of 512 bytes here, whatever the file system's own are.
        let wanted = bytes.saturating_sub(before.blocks() * 512);
        if wanted == 0 {
            return Ok(true);
        }
        self.check_room(file, wanted)?;
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
            Err(error) => {
                // Part of it may have been taken.
                self.give_back(file, before.len())?;
                Err(failed(error.into()))
            }
        }
    }

    /// Gives back the room that `file` has beyond `kept` bytes, and what was written there.
    pub(super) fn give_back(&self, file: &File, kept: u64) -> Result<(), StoreError> {
        // The size may stay: what was reserved beyond it goes all the same.
        file.set_len(kept).map_err(|error| StoreError::io("giving back an upload's room", error))
    }

    /// Bytes of the disk that the file of upload `id` holds; `None` when there is no such file.
    pub(super) fn held_bytes(&self, id: UploadId) -> Result<Option<u64>, StoreError> {
        match fs::metadata(self.path(id)) {
            // As above, whatever the file system's own blocks are.
            Ok(metadata) => Ok(Some(metadata.blocks() * 512)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("looking at a data file", error)),
        }
    }

    /// Writes `data` at byte `at`, where room `is_reserved` or the reserve stays free.
    pub(super) fn write(&self, file: &File, mut at: u64, data: &[Bytes], is_reserved: bool) -> Result<(), StoreError> {
        let bytes = data.iter().map(|chunk| chunk.len() as u64).sum();
        if !is_reserved || self.faults.is_on(Fault::DiskFull) {
            self.check_room(file, bytes)?;
        }
        for chunk in data {
            file.write_all_at(chunk, at).map_err(|error| StoreError::io("writing an upload's data", error))?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    /// Makes what was written to `file` durable.
    pub(super) fn sync(&self, file: &File) -> Result<(), StoreError> {
        timed(&handles().fsync_data, || self.sync_now(file))
    }

    /// Makes the end of a pack durable.
    pub(super) fn sync_pack(&self, file: &File) -> Result<(), StoreError> {
        timed(&handles().fsync_pack, || self.sync_now(file))
    }

    fn sync_now(&self, file: &File) -> Result<(), StoreError> {
        while self.faults.is_on(Fault::HoldSync) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let synced = if self.faults.is_on(Fault::SkipSync) {
            Ok(())
        } else if self.faults.is_on(Fault::FailSync) {
            Err(Errno::IO.into())
        } else {
            file.sync_data()
        };
        synced.map_err(|error| self.health.fail("syncing data", error))?;
        kill_point("data-synced");
        Ok(())
    }

    /// Makes the name of upload `id`'s file durable, and that of the directory it is in.
    pub(super) fn sync_name(&self, id: UploadId) -> Result<(), StoreError> {
        if self.faults.is_on(Fault::SkipSync) {
            return Ok(());
        }
        let failed = |error| self.health.fail("syncing a data directory", error);
        let directory = self.directory(id);
        sync_directory(&directory).map_err(failed)?;
        // Whoever made the directory may not have synced it yet: each asks for itself, once.
        let durable = || self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if !durable().contains(&directory) {
            sync_directory(&self.root).map_err(failed)?;
            durable().insert(directory);
        }
        kill_point("name-synced");
        Ok(())
    }

    /// Makes the names of the packs in `directory` durable.
    pub(super) fn sync_pack_name(&self, directory: &Path) -> Result<(), StoreError> {
        if self.faults.is_on(Fault::SkipSync) {
            return Ok(());
        }
        sync_directory(directory).map_err(|error| self.health.fail("syncing the directory of packs", error))
    }

    /// Removes the file of upload `id`, if there is one.
    pub(super) fn remove(&self, id: UploadId) -> Result<(), StoreError> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("removing a data file", error)),
            _ => Ok(()),
        }
    }

    /// Calls `each` with every data file's upload and when it was last written. Names that are not ids are not ours
    /// and are left alone.
    pub(super) fn for_each(
        &self,
        mut each: impl FnMut(UploadId, Timestamp) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("listing data files", error);
        for directory in fs::read_dir(&self.root).map_err(failed)? {
            let directory = directory.map_err(failed)?.path();
            if !directory.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&directory).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
                match entry.metadata().and_then(|metadata| metadata.modified()) {
                    Ok(modified) => each(id, modified.into())?,
                    // Removed since it was listed.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(failed(error)),
                }
            }
        }
        Ok(())
    }
}

/// Makes the names in a directory durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A file its record speaks of is not there: that is damage, not absence.
pub(super) fn corrupt_if_missing(doing: &'static str, error: io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::NotFound {
        StoreError::new(StoreErrorKind::Corrupt, doing).because(error)
    } else {
        StoreError::io(doing, error)
    }
}
