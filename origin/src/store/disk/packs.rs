//! Packs: files that many small blobs share.
//!
//! A small blob in a file of its own costs a sync of that file, one of the directory it is named in, and an inode; a
//! disk does a few hundred of those a second. Appended to one file, whatever waits is written together and made durable
//! by one sync.
//!
//! An entry begins with a header that tells whose bytes follow and how many, so that a pointer which leads to the wrong
//! place is found out when the blob is opened. Then come the outboard and the bytes.
//!
//! Promises: a location is given only once what lies there is durable, the pack's name too. What a record names is never
//! written over: a process goes on at the end of the newest pack, and whatever a crash left before it without a record
//! is dead space. A compactor gives dead space back.

mod compactor;
mod entry;
mod packer;
mod pins;

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use waxwing_protocol::BlobId;

pub(super) use self::compactor::{Compactor, Live};
pub(super) use self::entry::{Entry, OpenEntry, entry_bytes};
pub(super) use self::packer::Packed;
use self::packer::{Packer, Reason, Waiting, next_group};
use self::pins::Pins;
use super::files::{Files, corrupt_if_missing, sync_directory};
use crate::fault::kill_point;
use crate::store::StoreError;

/// Bytes of the largest blob that is packed. Above it the sync of a file of its own is small beside the writing.
pub(super) const PACK_BLOB_BYTES_MAX: u64 = 1 << 20;

/// Entries that wait at most; a submitter beyond blocks, which slows it down to the disk's pace.
const QUEUE_MAX: usize = 256;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackLocation {
    /// Which pack.
    pub(super) pack: u64,
    /// The byte its header begins at.
    pub(super) at: u64,
}

/// The packs, and the thread that writes them. Ends with its last entry when it is dropped.
pub(super) struct Packs {
    root: PathBuf,
    files: Arc<Files>,
    pins: Arc<Pins>,
    queue: Option<SyncSender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

impl Packs {
    /// The packs in `root`, which is made when it is not there.
    pub(super) fn open(root: PathBuf, files: Arc<Files>) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        let pins = Arc::new(Pins::new(newest(&root)?));
        let mut packer = Packer::new(root.clone(), Arc::clone(&files), Arc::clone(&pins));
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("origin-packs".into()).spawn(move || {
            let mut next = None;
            while let Some(group) = next_group(&waiting, &mut next) {
                packer.write(group);
            }
        })?;
        Ok(Self { root, files, pins, queue: Some(queue), thread: Some(thread) })
    }

    /// Appends `entry` and waits until it is durable, together with whatever else waits. Blocks.
    pub(super) fn append(&self, entry: Entry) -> Result<Packed, StoreError> {
        self.submit(entry, Reason::New)?.recv().map_err(|_| self.gone())?
    }

    /// The same for entries that were in other packs, all of them together.
    pub(super) fn append_moved(&self, entries: Vec<Entry>) -> Result<Vec<Packed>, StoreError> {
        let answers: Result<Vec<_>, _> = entries.into_iter().map(|entry| self.submit(entry, Reason::Moved)).collect();
        answers?.into_iter().map(|answer| answer.recv().map_err(|_| self.gone())?).collect()
    }

    fn submit(&self, entry: Entry, reason: Reason) -> Result<Receiver<Result<Packed, StoreError>>, StoreError> {
        let (answer, outcome) = sync_channel(1);
        let queue = self.queue.as_ref().ok_or_else(|| self.gone())?;
        queue.send(Waiting { entry, reason, answer }).map_err(|_| self.gone())?;
        Ok(outcome)
    }

    fn gone(&self) -> StoreError {
        self.files.health().fail("packing blobs", "their thread has ended")
    }

    /// Opens the entry of blob `id`, of `blob_bytes`, at `location`.
    pub(super) fn entry(&self, location: PackLocation, id: BlobId, blob_bytes: u64) -> Result<OpenEntry, StoreError> {
        let file = File::open(path(&self.root, location.pack));
        let file = file.map_err(|error| corrupt_if_missing("opening a packed blob", error))?;
        OpenEntry::open(file, location.at, id, blob_bytes)
    }

    /// The entry of blob `id`, of `blob_bytes`, at `location`, read and checked.
    fn read(&self, location: PackLocation, id: BlobId, blob_bytes: u64) -> Result<Entry, StoreError> {
        self.entry(location, id, blob_bytes)?.read_checked(id, blob_bytes)
    }

    /// The packs to which nothing will be added, in the order of their numbers, and how many bytes each has. Whatever
    /// entry of theirs has no record by now will never have one.
    fn settled(&self) -> io::Result<Vec<(u64, u64)>> {
        let mut settled = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            if let Some(number) = number(&entry).filter(|number| self.pins.is_settled(*number)) {
                settled.push((number, entry.metadata()?.len()));
            }
        }
        settled.sort_unstable();
        Ok(settled)
    }

    /// Removes pack `number`, which is settled and which no record names. Whoever reads it reads on.
    fn remove(&self, number: u64) -> Result<(), StoreError> {
        fs::remove_file(path(&self.root, number)).map_err(|error| StoreError::io("removing a pack", error))?;
        kill_point("pack-removed");
        self.files.sync_pack_name(&self.root)
    }
}

impl Drop for Packs {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It ends once the queue is empty; a panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

fn path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{number}.pack"))
}

/// The number of the pack that `entry` is. Names that are not a pack's are not ours and are left alone.
fn number(entry: &DirEntry) -> Option<u64> {
    entry.file_name().to_str()?.strip_suffix(".pack")?.parse().ok()
}

/// The highest number of a pack in `root`.
fn newest(root: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(root)? {
        newest = newest.max(number(&entry?));
    }
    if newest.is_some() {
        // Whoever made it may have been killed before its name was durable.
        sync_directory(root)?;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;

    use bytes::Bytes;

    use super::packer::PACK_BYTES_MAX;
    use super::*;
    use crate::fault::{Fault, Faults};
    use crate::store::StoreErrorKind;

    struct Shelf {
        packs: Packs,
        faults: Arc<Faults>,
        directory: tempfile::TempDir,
    }

    impl Shelf {
        fn start() -> Self {
            Self::open(tempfile::tempdir().unwrap())
        }

        fn open(directory: tempfile::TempDir) -> Self {
            let faults = Arc::new(Faults::default());
            let files = Files::open(directory.path().join("blobs"), 0, Arc::clone(&faults), Arc::default()).unwrap();
            let packs = Packs::open(directory.path().join("packs"), Arc::new(files)).unwrap();
            Self { packs, faults, directory }
        }

        fn reopen(self) -> Self {
            let Self { packs, directory, .. } = self;
            drop(packs);
            Self::open(directory)
        }

        fn append(&self, data: &[u8]) -> Result<PackLocation, StoreError> {
            self.packs.append(entry(data)).map(|packed| packed.location)
        }

        fn read(&self, location: PackLocation, data: &[u8]) -> Vec<u8> {
            let id = entry(data).id;
            let opened = self.packs.entry(location, id, data.len() as u64).unwrap();
            let mut found = vec![0; data.len()];
            opened.file.read_exact_at(&mut found, opened.data_at).unwrap();
            found
        }

        fn pack(&self, number: u64) -> PathBuf {
            path(&self.directory.path().join("packs"), number)
        }
    }

    fn entry(data: &[u8]) -> Entry {
        let id = BlobId::from_bytes(*blake3::hash(data).as_bytes());
        Entry { id, outboard: Vec::new(), data: data.chunks(7).map(Bytes::copy_from_slice).collect() }
    }

    #[test]
    fn entries_come_back_also_after_a_restart() {
        let shelf = Shelf::start();
        let first = shelf.append(b"the first").unwrap();
        let second = shelf.append(b"a second, longer one").unwrap();
        let shelf = shelf.reopen();
        let third = shelf.append(b"the third").unwrap();
        assert_eq!(shelf.read(first, b"the first"), b"the first");
        assert_eq!(shelf.read(second, b"a second, longer one"), b"a second, longer one");
        assert_eq!(shelf.read(third, b"the third"), b"the third");
        assert_eq!((first.pack, second.pack, third.pack), (0, 0, 0));
    }

    /// What a crash left at the end of a pack may be anything; the next entry goes behind it.
    #[test]
    fn a_torn_end_is_left_behind() {
        let shelf = Shelf::start();
        let first = shelf.append(b"the first").unwrap();
        let pack = File::options().append(true).open(shelf.pack(0)).unwrap();
        (&pack).write_all(b"WXPK torn").unwrap();
        let shelf = shelf.reopen();
        let second = shelf.append(b"the second").unwrap();
        assert_eq!(second.at, pack.metadata().unwrap().len() - entry(b"the second").bytes());
        assert_eq!(shelf.read(first, b"the first"), b"the first");
        assert_eq!(shelf.read(second, b"the second"), b"the second");
    }

    #[test]
    fn a_full_pack_is_followed_by_another() {
        let shelf = Shelf::start();
        let first = shelf.append(b"the first").unwrap();
        drop(shelf.packs);
        File::options()
            .write(true)
            .open(path(&shelf.directory.path().join("packs"), 0))
            .unwrap()
            .set_len(PACK_BYTES_MAX)
            .unwrap();
        let shelf = Shelf::open(shelf.directory);
        let second = shelf.append(b"the second").unwrap();
        assert_eq!(second, PackLocation { pack: 1, at: 0 });
        assert_eq!(shelf.read(first, b"the first"), b"the first");
        let shelf = shelf.reopen();
        assert_eq!(shelf.append(b"the third").unwrap().pack, 1);
    }

    #[test]
    fn a_full_disk_refuses_entries_and_heals() {
        let shelf = Shelf::start();
        shelf.faults.set(Fault::DiskFull, true);
        assert_eq!(shelf.append(b"refused").unwrap_err().kind(), StoreErrorKind::Full);
        shelf.faults.set(Fault::DiskFull, false);
        let location = shelf.append(b"taken").unwrap();
        assert_eq!(shelf.read(location, b"taken"), b"taken");
    }

    #[test]
    fn a_failed_sync_of_a_pack_makes_the_store_read_only() {
        let shelf = Shelf::start();
        shelf.faults.set(Fault::FailSync, true);
        assert_eq!(shelf.append(b"lost").unwrap_err().kind(), StoreErrorKind::ReadOnly);
        shelf.faults.set(Fault::FailSync, false);
        assert_eq!(shelf.append(b"not tried").unwrap_err().kind(), StoreErrorKind::ReadOnly);
    }

    /// A pointer to the wrong place must never serve another blob's bytes.
    #[test]
    fn what_is_not_the_blob_is_told_as_damage() {
        let shelf = Shelf::start();
        let first = shelf.append(b"the first").unwrap();
        let second = shelf.append(b"the other").unwrap();
        let kind = |location, data: &[u8]| {
            shelf.packs.entry(location, entry(data).id, data.len() as u64).err().map(|error| error.kind())
        };
        assert_eq!(kind(first, b"the first"), None);
        let beyond = PackLocation { at: second.at + 1000, ..second };
        let missing = PackLocation { pack: 9, at: 0 };
        for wrong in [second, beyond, missing] {
            assert_eq!(kind(wrong, b"the first"), Some(StoreErrorKind::Corrupt));
        }
        File::options().write(true).open(shelf.pack(0)).unwrap().write_all_at(b"?", first.at + 9).unwrap();
        assert_eq!(kind(first, b"the first"), Some(StoreErrorKind::Corrupt));
    }
}
