//! Cache files: appended to, read at any place, and given back to the file system hole by hole.
//!
//! Space returns by punching holes rather than by unlinking files whose last hot units were copied away first: what
//! stays is never written twice, any unit can go at any time, and the tier can be full to the brim instead of to the
//! last file. The price is a file system that has holes (ext4, XFS, btrfs, tmpfs, ZFS), which is tried at the start.
//!
//! A file is opened for each read, and a bounded number stay open to be sent from, so that a tier of any size keeps few
//! file descriptors. Bytes are never written over
//! and numbers never used twice, so a read that raced with an eviction gets zeroes or no file, never another's bytes.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};

use super::index::{BLOCK_BYTES, Place};

/// How a cache file's name ends.
const SUFFIX: &str = ".cache";

/// Files that stay open at most, to be sent from: 64 GiB of a large tier.
const OPEN_MAX: usize = 256;

/// The directory of the cache files.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    open: Mutex<HashMap<u32, Arc<File>>>,
    /// Held as long as the tier is open: two processes in one directory would unlink each other's files.
    _lock: File,
}

/// The file being appended to.
#[derive(Debug)]
pub(super) struct Tail {
    file: File,
    number: u32,
    next_block: u32,
}

impl Files {
    /// The files in `dir`, which exists.
    ///
    /// # Errors
    /// When another process uses the directory, when its file system has no holes, or when it cannot be written to.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let lock = File::options().create(true).truncate(true).read(true).write(true).open(dir.join("lock"))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io::Error::new(io::ErrorKind::ResourceBusy, "another process uses it"),
            TryLockError::Error(error) => error,
        })?;
        punch(&lock, 0..BLOCK_BYTES)?;
        Ok(Self { dir: dir.to_owned(), open: Mutex::default(), _lock: lock })
    }

    /// Reads the unit at `place`.
    pub(super) fn read(&self, place: Place) -> io::Result<Bytes> {
        let mut file = File::open(self.path(place.file))?;
        file.seek(SeekFrom::Start(place.offset()))?;
        let mut bytes = Vec::with_capacity(place.bytes as usize);
        file.take(u64::from(place.bytes)).read_to_end(&mut bytes)?;
        if bytes.len() < place.bytes as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(bytes.into())
    }

    /// File `number`, open, shared by all who send from it.
    pub(super) fn shared(&self, number: u32) -> io::Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = open.get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(self.path(number))?);
        if open.len() >= OPEN_MAX {
            open.clear();
        }
        open.insert(number, Arc::clone(&file));
        Ok(file)
    }

    /// Begins file `number`, which must not exist.
    pub(super) fn begin(&self, number: u32) -> io::Result<Tail> {
        let file = File::options().create_new(true).read(true).write(true).open(self.path(number))?;
        Ok(Tail { file, number, next_block: 0 })
    }

    /// Gives the room of the unit at `place` back.
    pub(super) fn punch(&self, place: Place) -> io::Result<()> {
        punch(&File::options().write(true).open(self.path(place.file))?, place.span())
    }

    /// Gives all the room of file `number` back.
    pub(super) fn unlink(&self, number: u32) -> io::Result<()> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
        fs::remove_file(self.path(number))
    }

    /// The files there are, with what each takes in bytes and how long it is.
    pub(super) fn list(&self) -> io::Result<BTreeMap<u32, (u64, u64)>> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).and_then(|name| name.parse().ok());
            if let Some(number) = number {
                let metadata = entry.metadata()?;
                found.insert(number, (metadata.blocks() * 512, metadata.len()));
            }
        }
        Ok(found)
    }

    /// Gives everything of file `number` back but the `live` spans, which are in order.
    pub(super) fn punch_all_but(&self, number: u32, file_bytes: u64, live: &[Range<u64>]) -> io::Result<()> {
        let file = File::options().write(true).open(self.path(number))?;
        let mut at = 0;
        for span in live {
            if span.start > at {
                punch(&file, at..span.start)?;
            }
            at = at.max(span.end);
        }
        let end = file_bytes.next_multiple_of(BLOCK_BYTES);
        if end > at { punch(&file, at..end) } else { Ok(()) }
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:010}{SUFFIX}"))
    }
}

impl Tail {
    /// Whether `bytes` more fit in a file of `file_bytes`; an empty file takes anything.
    pub(super) fn has_room(&self, bytes: usize, file_bytes: u64) -> bool {
        self.next_block == 0 || u64::from(self.next_block) * BLOCK_BYTES + bytes as u64 <= file_bytes
    }

    /// Which file this is.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// Appends the pieces of one unit. On failure what was written of it has been given back, and nothing will ever
    /// stand there.
    pub(super) fn append(&mut self, pieces: &[Bytes]) -> io::Result<Place> {
        let bytes = pieces.iter().map(Bytes::len).sum::<usize>();
        let bytes = u32::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let place = Place { file: self.number, block: self.next_block, bytes };
        let blocks = u32::try_from(place.blocks()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        self.next_block = self.next_block.checked_add(blocks).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut at = place.offset();
        for piece in pieces {
            if let Err(error) = self.file.write_all_at(piece, at) {
                // The error that counts is the first; a hole that cannot be punched is punched at the next start.
                drop(punch(&self.file, place.span()));
                return Err(error);
            }
            at += piece.len() as u64;
        }
        Ok(place)
    }
}

fn punch(file: &File, span: Range<u64>) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, span.start, span.end - span.start)?)
}
