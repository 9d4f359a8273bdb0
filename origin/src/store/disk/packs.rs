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
//! is dead space.

use std::fs::{self, File};
use std::io::{self, IoSlice, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::{CV_BYTES, outboard_bytes};

use super::files::{Files, corrupt_if_missing, sync_directory};
use crate::store::{StoreError, StoreErrorKind};

/// Bytes of the largest blob that is packed. Above it the sync of a file of its own is small beside the writing.
pub(super) const PACK_BLOB_BYTES_MAX: u64 = 1 << 20;

/// Bytes after which a pack takes no more: few files, and yet none too large to be rewritten in a moment.
const PACK_BYTES_MAX: u64 = 256 << 20;

/// Bytes written with one sync at most: what the first of a group waits for on account of the last.
const GROUP_BYTES_MAX: u64 = 32 << 20;

/// Entries that wait at most; a submitter beyond blocks, which slows it down to the disk's pace.
const QUEUE_MAX: usize = 256;

/// Pieces that one system call takes (`IOV_MAX` on Linux).
const PIECES_MAX: usize = 1024;

/// How an entry begins.
const MAGIC: [u8; 4] = *b"WXPK";

/// The version of an entry's form.
const ENTRY_VERSION: u32 = 1;

/// Magic, version, blob id, blob bytes, outboard values, checksum of all these.
const HEADER_BYTES: usize = 4 + 4 + 32 + 8 + 4 + 4;

/// Where an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackLocation {
    /// Which pack.
    pub(super) pack: u64,
    /// The byte its header begins at.
    pub(super) at: u64,
}

/// A small blob to be packed.
#[derive(Debug)]
pub(super) struct Entry {
    /// The hash of `data`.
    pub(super) id: BlobId,
    /// Its chaining values, all of them.
    pub(super) outboard: Vec<u8>,
    /// Its bytes, in pieces.
    pub(super) data: Vec<Bytes>,
}

/// An entry that was opened.
pub(super) struct OpenEntry {
    /// The pack.
    pub(super) file: File,
    /// Where its outboard begins.
    pub(super) outboard_at: u64,
    /// Where its bytes begin.
    pub(super) data_at: u64,
}

/// The packs, and the thread that writes them. Ends with its last entry when it is dropped.
pub(super) struct Packs {
    root: PathBuf,
    files: Arc<Files>,
    queue: Option<SyncSender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

struct Waiting {
    entry: Entry,
    answer: SyncSender<Result<PackLocation, StoreError>>,
}

impl Packs {
    /// The packs in `root`, which is made when it is not there.
    pub(super) fn open(root: PathBuf, files: Arc<Files>) -> io::Result<Self> {
        fs::create_dir_all(&root)?;
        let newest = newest(&root)?;
        let mut packer = Packer { root: root.clone(), files: Arc::clone(&files), newest, open: None };
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let thread = std::thread::Builder::new().name("origin-packs".into()).spawn(move || {
            let mut next = None;
            while let Some(group) = next_group(&waiting, &mut next) {
                packer.write(group);
            }
        })?;
        Ok(Self { root, files, queue: Some(queue), thread: Some(thread) })
    }

    /// Appends `entry` and waits until it is durable, together with whatever else waits. Blocks.
    pub(super) fn append(&self, entry: Entry) -> Result<PackLocation, StoreError> {
        let gone = || self.files.health().fail("packing blobs", "their thread has ended");
        let (answer, outcome) = sync_channel(1);
        self.queue.as_ref().ok_or_else(gone)?.send(Waiting { entry, answer }).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }

    /// Opens the entry of blob `id`, of `blob_bytes`, at `location`.
    pub(super) fn entry(&self, location: PackLocation, id: BlobId, blob_bytes: u64) -> Result<OpenEntry, StoreError> {
        let doing = "opening a packed blob";
        let corrupt = |why: &'static str| StoreError::new(StoreErrorKind::Corrupt, doing).because(why);
        let file = File::open(path(&self.root, location.pack)).map_err(|error| corrupt_if_missing(doing, error))?;
        let pack_bytes = file.metadata().map_err(|error| StoreError::io(doing, error))?.len();
        let outboard_at = location.at + HEADER_BYTES as u64;
        let data_at = outboard_at + outboard_bytes(blob_bytes);
        if pack_bytes < data_at + blob_bytes {
            return Err(corrupt("the pack ends before the blob does"));
        }
        let mut found = [0; HEADER_BYTES];
        file.read_exact_at(&mut found, location.at).map_err(|error| StoreError::io(doing, error))?;
        if found != header(id, blob_bytes, outboard_bytes(blob_bytes) / CV_BYTES as u64) {
            return Err(corrupt("another entry, or a damaged one, is where the blob should be"));
        }
        Ok(OpenEntry { file, outboard_at, data_at })
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

/// The next entry and whatever waits behind it, as far as one group goes; the entry that did not fit any more is kept in
/// `next`. `None` when there will be no more.
fn next_group(waiting: &Receiver<Waiting>, next: &mut Option<Waiting>) -> Option<Vec<Waiting>> {
    let first = next.take().or_else(|| waiting.recv().ok())?;
    let mut bytes = first.entry.bytes();
    let mut group = vec![first];
    while let Ok(more) = waiting.try_recv() {
        bytes += more.entry.bytes();
        if bytes > GROUP_BYTES_MAX {
            *next = Some(more);
            break;
        }
        group.push(more);
    }
    Some(group)
}

/// The thread's own: the pack being filled.
struct Packer {
    root: PathBuf,
    files: Arc<Files>,
    /// The highest number a pack has.
    newest: Option<u64>,
    open: Option<ActivePack>,
}

struct ActivePack {
    number: u64,
    file: File,
    /// Where the next entry goes. What lies behind it, no answer spoke of.
    end: u64,
}

impl Packer {
    fn write(&mut self, group: Vec<Waiting>) {
        match self.append(&group) {
            Ok(locations) => {
                for (waiting, location) in group.into_iter().zip(locations) {
                    // Its submitter may have gone: then nobody misses the answer, here and below.
                    drop(waiting.answer.send(Ok(location)));
                }
            }
            Err(error) => {
                let (kind, error) = (error.kind(), Arc::new(error));
                for waiting in group {
                    let failed = StoreError::new(kind, "packing a blob").because(Arc::clone(&error));
                    drop(waiting.answer.send(Err(failed)));
                }
            }
        }
    }

    /// Appends `group` to the pack being filled and makes it durable. On `Err` the next group begins where this one did.
    fn append(&mut self, group: &[Waiting]) -> Result<Vec<PackLocation>, StoreError> {
        self.files.health().writable()?;
        let bytes: u64 = group.iter().map(|waiting| waiting.entry.bytes()).sum();
        let files = Arc::clone(&self.files);
        let pack = self.pack_with_room(bytes)?;
        files.check_room(&pack.file, bytes)?;
        let heads: Vec<Vec<u8>> = group.iter().map(|waiting| waiting.entry.head()).collect();
        let mut pieces = Vec::new();
        let mut locations = Vec::with_capacity(group.len());
        let mut at = pack.end;
        for (waiting, head) in group.iter().zip(&heads) {
            locations.push(PackLocation { pack: pack.number, at });
            pieces.push(IoSlice::new(head));
            pieces.extend(waiting.entry.data.iter().map(|piece| IoSlice::new(piece)));
            at += waiting.entry.bytes();
        }
        write_at(&pack.file, pack.end, &mut pieces).map_err(|error| StoreError::io("writing a pack", error))?;
        files.sync_pack(&pack.file)?;
        pack.end = at;
        Ok(locations)
    }

    /// The pack being filled, or a new one when `bytes` more are too many for it.
    fn pack_with_room(&mut self, bytes: u64) -> Result<&mut ActivePack, StoreError> {
        let failed = |error| StoreError::io("opening a pack", error);
        let pack = match self.open.take() {
            Some(pack) => Some(pack),
            None => self.newest.map(|number| open(&self.root, number)).transpose().map_err(failed)?,
        };
        let pack = match pack.filter(|pack| pack.end + bytes <= PACK_BYTES_MAX) {
            Some(pack) => pack,
            None => {
                let number = self.newest.map_or(0, |newest| newest + 1);
                let pack = open(&self.root, number).map_err(failed)?;
                self.files.sync_pack_name(&self.root)?;
                self.newest = Some(number);
                pack
            }
        };
        Ok(self.open.insert(pack))
    }
}

impl Entry {
    fn data_bytes(&self) -> u64 {
        self.data.iter().map(|piece| piece.len() as u64).sum()
    }

    fn bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.outboard.len() as u64 + self.data_bytes()
    }

    /// What comes before the data.
    fn head(&self) -> Vec<u8> {
        let header = header(self.id, self.data_bytes(), (self.outboard.len() / CV_BYTES) as u64);
        [&header[..], &self.outboard].concat()
    }
}

fn header(id: BlobId, blob_bytes: u64, outboard_values: u64) -> [u8; HEADER_BYTES] {
    let values = u32::try_from(outboard_values).expect("a packed blob has few chunk groups");
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&ENTRY_VERSION.to_le_bytes());
    header[8..40].copy_from_slice(id.as_bytes());
    header[40..48].copy_from_slice(&blob_bytes.to_le_bytes());
    header[48..52].copy_from_slice(&values.to_le_bytes());
    let checksum = crc32fast::hash(&header[..52]);
    header[52..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Writes all `pieces` at byte `at`.
fn write_at(mut file: &File, at: u64, mut pieces: &mut [IoSlice<'_>]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    IoSlice::advance_slices(&mut pieces, 0);
    while !pieces.is_empty() {
        let many = pieces.len().min(PIECES_MAX);
        match file.write_vectored(&pieces[..many]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut pieces, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn open(root: &Path, number: u64) -> io::Result<ActivePack> {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path(root, number))?;
    let end = file.metadata()?.len();
    Ok(ActivePack { number, file, end })
}

fn path(root: &Path, number: u64) -> PathBuf {
    root.join(format!("{number}.pack"))
}

/// The highest number of a pack in `root`. Names that are not a pack's are not ours and are left alone.
fn newest(root: &Path) -> io::Result<Option<u64>> {
    let mut newest = None;
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".pack")?.parse().ok());
        newest = newest.max(number);
    }
    if newest.is_some() {
        // Whoever made it may have been killed before its name was durable.
        sync_directory(root)?;
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{Fault, Faults};

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
            self.packs.append(entry(data))
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
