//! The thread that fills packs: whatever waits is written together and made durable by one sync.

use std::fs::File;
use std::io::{self, IoSlice, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};

use super::entry::Entry;
use super::pins::{Pin, Pins};
use super::{PackLocation, path};
use crate::fault::Fault;
use crate::store::StoreError;
use crate::store::disk::files::Files;

/// Bytes after which a pack takes no more: few files, and yet none too large to be rewritten in a moment.
pub(super) const PACK_BYTES_MAX: u64 = 256 << 20;

/// The same where tests want to see many packs.
const SMALL_PACK_BYTES: u64 = 2 << 20;

/// Bytes written with one sync at most: what the first of a group waits for on account of the last.
const GROUP_BYTES_MAX: u64 = 32 << 20;

/// Pieces that one system call takes (`IOV_MAX` on Linux).
const PIECES_MAX: usize = 1024;

/// Why an entry is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store::disk) enum Reason {
    /// It is new.
    New,
    /// The pack it was in is being given back.
    Moved,
}

/// An entry that waits.
pub(super) struct Waiting {
    pub(super) entry: Entry,
    pub(super) reason: Reason,
    pub(super) answer: SyncSender<Result<Packed, StoreError>>,
}

/// An entry that is durable. As long as this is held its pack stays, so that there is time to commit the record of it.
#[derive(Debug)]
pub(in crate::store::disk) struct Packed {
    /// Where it is.
    pub(in crate::store::disk) location: PackLocation,
    _pin: Pin,
}

/// The next entry and whatever waits behind it, as far as one group goes; the entry that did not fit any more is kept in
/// `next`. `None` when there will be no more.
pub(super) fn next_group(waiting: &Receiver<Waiting>, next: &mut Option<Waiting>) -> Option<Vec<Waiting>> {
    let first = next.take().or_else(|| waiting.recv().ok())?;
    let (mut bytes, reason) = (first.entry.bytes(), first.reason);
    let mut group = vec![first];
    while let Ok(more) = waiting.try_recv() {
        bytes += more.entry.bytes();
        // New entries and moved ones may take different shares of the disk.
        if bytes > GROUP_BYTES_MAX || more.reason != reason {
            *next = Some(more);
            break;
        }
        group.push(more);
    }
    Some(group)
}

/// The thread's own: the pack being filled.
pub(super) struct Packer {
    root: PathBuf,
    files: Arc<Files>,
    /// Knows which pack is the newest, and which have entries without a record.
    pins: Arc<Pins>,
    open: Option<ActivePack>,
}

struct ActivePack {
    number: u64,
    file: File,
    /// Where the next entry goes. What lies behind it, no answer spoke of.
    end: u64,
}

impl Packer {
    /// Fills the newest of the packs in `root`.
    pub(super) const fn new(root: PathBuf, files: Arc<Files>, pins: Arc<Pins>) -> Self {
        Self { root, files, pins, open: None }
    }

    /// Writes `group` and answers each of it.
    pub(super) fn write(&mut self, group: Vec<Waiting>) {
        match self.append(&group) {
            Ok(packed) => {
                for (waiting, packed) in group.into_iter().zip(packed) {
                    // Its submitter may have gone: then nobody misses the answer, here and below.
                    drop(waiting.answer.send(Ok(packed)));
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
    fn append(&mut self, group: &[Waiting]) -> Result<Vec<Packed>, StoreError> {
        self.files.health().writable()?;
        let bytes: u64 = group.iter().map(|waiting| waiting.entry.bytes()).sum();
        let (files, pins) = (Arc::clone(&self.files), Arc::clone(&self.pins));
        let pack = self.pack_with_room(bytes)?;
        if group.iter().all(|waiting| waiting.reason == Reason::Moved) {
            files.check_room_to_move(&pack.file, bytes)?;
        } else {
            files.check_room(&pack.file, bytes)?;
        }
        let heads: Vec<Vec<u8>> = group.iter().map(|waiting| waiting.entry.head()).collect();
        let mut pieces = Vec::new();
        let mut packed = Vec::with_capacity(group.len());
        let mut at = pack.end;
        for (waiting, head) in group.iter().zip(&heads) {
            let location = PackLocation { pack: pack.number, at };
            packed.push(Packed { location, _pin: pins.pin(pack.number) });
            pieces.push(IoSlice::new(head));
            pieces.extend(waiting.entry.data.iter().map(|piece| IoSlice::new(piece)));
            at += waiting.entry.bytes();
        }
        write_at(&pack.file, pack.end, &mut pieces).map_err(|error| StoreError::io("writing a pack", error))?;
        files.sync_pack(&pack.file)?;
        pack.end = at;
        Ok(packed)
    }

    /// The pack being filled, or a new one when `bytes` more are too many for it.
    fn pack_with_room(&mut self, bytes: u64) -> Result<&mut ActivePack, StoreError> {
        let failed = |error| StoreError::io("opening a pack", error);
        let pack = match self.open.take() {
            Some(pack) => Some(pack),
            None => self.pins.newest().map(|number| open(&self.root, number)).transpose().map_err(failed)?,
        };
        let max = if self.files.has_fault(Fault::SmallPacks) { SMALL_PACK_BYTES } else { PACK_BYTES_MAX };
        let pack = match pack.filter(|pack| pack.end + bytes <= max) {
            Some(pack) => pack,
            None => {
                let number = self.pins.newest().map_or(0, |newest| newest + 1);
                let pack = open(&self.root, number).map_err(failed)?;
                self.files.sync_pack_name(&self.root)?;
                self.pins.begin(number);
                pack
            }
        };
        Ok(self.open.insert(pack))
    }
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
