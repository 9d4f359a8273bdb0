//! The disk tier: what was verified, kept beyond memory and beyond a restart.
//!
//! Without it an edge holds what fits in memory, and begins cold each time it starts: the origin then pays for every
//! deployment.
//!
//! Units (`unit`) are appended to cache files (`files`), found through an index in memory (`index`) that a log (`log`)
//! brings back at the next start, and go in the order of two queues (`queues`). One thread changes the disk (`writer`);
//! reads go to the blocking pool, a bounded number at a time.
//!
//! Promises:
//! - Never more bytes on disk than configured, log included, also after a crash.
//! - A unit's bytes are checked before they are handed out for the first time since the start, and by the scrub later
//!   on. What fails is dropped and counted, and the caller fetches it.
//! - No error of the disk is an error of a request.

mod files;
#[cfg(test)]
mod fuzz;
mod index;
mod leases;
mod log;
mod queues;
pub(crate) mod trace;
mod unit;
mod writer;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use waxwing_protocol::BlobId;

use crate::stats::Counters;
use crate::tombstones::{Era, Tombstones};
use files::Files;
use index::{BLOCK_BYTES, Index, Place};
use leases::Leases;
use log::{Log, Record};
use writer::{Command, Writer};

pub(crate) use leases::Lease;
pub(crate) use log::OriginTag;
pub(crate) use unit::{Content, Head, Key, slice_of};

/// Units that wait to be written at most: 64 slices are 64 MiB of memory. One more is passed over.
const QUEUE_MAX: usize = 64;

/// Reads under way at once at most: as many as a disk with a deep queue works on at once, and 32 MiB of memory.
const READS_MAX: usize = 32;

/// The largest cache file. Small tiers have smaller ones, so that there are several.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// The smallest; a larger unit, such as the outboard of a blob over 8 GiB, stays in memory.
const FILE_BYTES_MIN: u64 = 4 << 20;

/// What a cache file may take beyond its units before it is looked through at the start: what the file system needs to
/// know of its holes.
const EXTENTS_BYTES_MAX: u64 = 64 << 10;

/// Units for which room is made in memory at once at the start, as the log's length suggests: 400 MB at most.
const RESERVED_UNITS_MAX: usize = 4_000_000;

/// Where the tier is and how large.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Its directory; made when it is not there.
    pub(crate) dir: PathBuf,
    /// Bytes at most.
    pub(crate) disk_bytes: u64,
}

/// The tier. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
    reads: Arc<Semaphore>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    files: Files,
    tombstones: Arc<Tombstones>,
    counters: Arc<Counters>,
    disk_bytes: u64,
    file_bytes: u64,
}

#[derive(Debug)]
struct State {
    index: Index,
    /// Taken out of the index by others than the writer, and still to be logged and given back.
    gone: Vec<(Key, Place)>,
    /// What is being sent from the files themselves.
    leases: Leases,
    /// Whether room waits to be given back until a lease has ended.
    has_deferred: bool,
}

/// What a start found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opened {
    /// Units that are here.
    pub(crate) units: usize,
    /// The last purge that was applied of each origin of which any ever was.
    pub(crate) purged: HashMap<OriginTag, u64>,
    /// Records of the log that were damaged.
    pub(crate) damaged: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // An index that panicked half-way through a change cannot be trusted to find anything, but what it finds is
        // verified or was: nothing wrong is served.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Opens the tier, and makes the disk agree with the log: what the log does not name is given back.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub(crate) fn open(
        settings: &Settings,
        tombstones: Arc<Tombstones>,
        counters: Arc<Counters>,
    ) -> io::Result<(Self, Opened)> {
        fs::create_dir_all(&settings.dir)?;
        let files = Files::open(&settings.dir)?;
        let units = Log::records_in(&settings.dir).min(RESERVED_UNITS_MAX);
        let (mut index, mut purged, mut newest) = (Index::with_room(units), HashMap::new(), None);
        let mut has_gap = false;
        let (log, damaged) = Log::open(&settings.dir, |record| match record {
            Some(Record::Put(key, place)) => {
                newest = newest.max(Some(place.file));
                index.restore(key, place);
            }
            Some(Record::Promoted(key)) => index.restore_main(key),
            Some(Record::Gone(key, place)) => {
                index.remove(key, Some(place));
            }
            // What is damaged may have said that something purged went: then it is here, and all purges are applied again.
            Some(Record::Purged(origin, number)) => {
                purged.insert(origin, if has_gap { 0 } else { number });
            }
            None => has_gap = true,
        })?;
        let on_disk = files.list()?;
        let gone = reconcile(&files, &mut index, &on_disk)?;
        let newest = newest.max(on_disk.keys().next_back().copied());
        let opened = Opened { units: index.len(), purged: purged.clone(), damaged };
        let file_bytes = (settings.disk_bytes / 16).clamp(FILE_BYTES_MIN, FILE_BYTES_MAX);
        let state = Mutex::new(State { index, gone, leases: Leases::default(), has_deferred: false });
        let disk_bytes = settings.disk_bytes;
        let shared = Arc::new(Shared { state, files, tombstones, counters, disk_bytes, file_bytes });
        let (commands, received) = mpsc::channel(QUEUE_MAX);
        let next_file = newest.map_or(0, |newest| newest + 1);
        let shared_by_writer = Arc::clone(&shared);
        let mut writer = Writer { shared: shared_by_writer, log, tail: None, next_file, purged, deferred: Vec::new() };
        if has_gap {
            // Or the gap would speak against every number after it at each start.
            writer.rewrite_log();
        }
        std::thread::Builder::new().name("edge-disk".into()).spawn(move || writer.run(received))?;
        Ok((Self { shared, commands, reads: Arc::new(Semaphore::new(READS_MAX)) }, opened))
    }

    /// Whether a unit is here.
    pub(crate) fn has(&self, key: Key) -> bool {
        self.shared.lock().index.get(key).is_some()
    }

    /// Reads a unit and counts the use. Unless it was verified since the start, `check` says whether its bytes are
    /// right; it runs on a thread that may block.
    ///
    /// `None` when it is not here, or not any more.
    pub(crate) async fn read(&self, key: Key, check: impl FnOnce(&Bytes) -> bool + Send + 'static) -> Option<Bytes> {
        self.shared.lock().index.touch(key);
        self.read_and_check(key, check, false).await
    }

    /// Reads a unit and checks it even if it was verified before; tells whether it was right. `None` as for
    /// [`Self::read`].
    pub(crate) async fn check(&self, key: Key, check: impl FnOnce(&Bytes) -> bool + Send + 'static) -> Option<Bytes> {
        self.read_and_check(key, check, true).await
    }

    async fn read_and_check(
        &self,
        key: Key,
        check: impl FnOnce(&Bytes) -> bool + Send + 'static,
        always: bool,
    ) -> Option<Bytes> {
        let (place, is_verified) = self.shared.lock().index.get(key)?;
        let turn = Arc::clone(&self.reads).acquire_owned().await.ok()?;
        let shared = Arc::clone(&self.shared);
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let read = shared.files.read(place);
            let sound = read.as_ref().is_ok_and(|bytes| (is_verified && !always) || check(bytes));
            (read, sound)
        });
        let (read, is_sound) = read.await.ok()?;
        // Whoever evicted it meanwhile may have punched its hole amid the read.
        if self.shared.lock().index.get(key).map(|(now, _)| now) != Some(place) {
            return None;
        }
        match read {
            Ok(bytes) if is_sound => {
                if !is_verified {
                    self.shared.lock().index.set_verified(key, place);
                }
                Some(bytes)
            }
            Ok(_) => {
                tracing::warn!(blob.id = %key.id, "the disk tier held other bytes than it was given: dropped");
                self.shared.counters.disk_corrupt.fetch_add(1, Relaxed);
                self.remove(key, place);
                None
            }
            Err(error) => {
                tracing::warn!(blob.id = %key.id, "the disk tier cannot read a unit: dropped: {error}");
                self.shared.counters.disk_errors.fetch_add(1, Relaxed);
                self.remove(key, place);
                None
            }
        }
    }

    /// The file and the place in it of a unit that was verified since the start, to be sent from there: the room is not
    /// given back while the lease is fresh, nor for a while after. Counts the use.
    ///
    /// `None` when it is not here or has not been verified yet.
    pub(crate) fn lease(&self, key: Key) -> Option<Lease> {
        let (place, fresh_until) = {
            let mut state = self.shared.lock();
            let (place, is_verified) = state.index.get(key)?;
            if !is_verified {
                return None;
            }
            state.index.touch(key);
            (place, state.leases.renew(place, Instant::now()))
        };
        let file = self.shared.files.shared(place.file).ok()?;
        Some(Lease { file, offset: place.offset(), bytes: u64::from(place.bytes), fresh_until })
    }

    /// Gives room back that waited for a lease to end. To be called every second or so.
    pub(crate) fn settle(&self) {
        if self.shared.lock().has_deferred {
            self.wake();
        }
    }

    /// Hands a verified unit over to be kept, if it is not here and no purge after `era` is against it. It is passed
    /// over when the disk cannot follow.
    pub(crate) fn offer(&self, key: Key, content: Content, era: Era) {
        if self.commands.try_send(Command::Keep { key, content, era }).is_err() {
            self.shared.counters.disk_bypassed.fetch_add(1, Relaxed);
        }
    }

    /// Counts a use of a unit that was served from memory. Gives whether it is here.
    pub(crate) fn touch(&self, key: Key) -> bool {
        self.shared.lock().index.touch(key)
    }

    /// Forgets a unit that turned out to be useless.
    pub(crate) fn forget(&self, key: Key) {
        let place = self.shared.lock().index.get(key).map(|(place, _)| place);
        if let Some(place) = place {
            self.remove(key, place);
        }
    }

    fn remove(&self, key: Key, place: Place) {
        let mut state = self.shared.lock();
        if state.index.remove(key, Some(place)).is_some() {
            state.gone.push((key, place));
        }
        drop(state);
        self.wake();
    }

    /// Forgets all of blob `id`. Gives the slices that were here.
    pub(crate) fn forget_blob(&self, id: BlobId) -> Vec<u64> {
        let mut state = self.shared.lock();
        let units = state.index.units_of(id);
        for (key, place) in &units {
            state.index.remove(*key, Some(*place));
        }
        state.gone.extend(&units);
        units.iter().filter_map(|(key, _)| key.slice_index()).collect()
    }

    /// Forgets everything.
    pub(crate) fn forget_all(&self) {
        let mut state = self.shared.lock();
        let all: Vec<_> = (0..state.index.slot_count()).filter_map(|slot| state.index.at_slot(slot)).collect();
        state.index = Index::new();
        state.gone.extend(all);
        drop(state);
        self.wake();
    }

    /// Makes durable that every purge of `origin` up to `number` has been applied.
    pub(crate) async fn purged(&self, origin: OriginTag, number: u64) {
        self.ask(|done| Command::Purged { origin, number, done }).await;
    }

    /// Waits until everything handed over before has been dealt with.
    pub(crate) async fn flush(&self) {
        self.ask(|done| Command::Flush { done }).await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<()>) -> Command) {
        let (done, told) = oneshot::channel();
        // Both fail only when the thread is gone, with the process on its way out.
        if self.commands.send(command(done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// A full queue has work behind which the room is given back anyway.
    fn wake(&self) {
        let _ = self.commands.try_send(Command::Release);
    }

    /// The unit in slot `slot` of those that [`Self::slot_count`] counts.
    pub(crate) fn at_slot(&self, slot: usize) -> Option<(Key, u64)> {
        let (key, place) = self.shared.lock().index.at_slot(slot)?;
        Some((key, u64::from(place.bytes)))
    }

    /// Slots to walk through.
    pub(crate) fn slot_count(&self) -> usize {
        self.shared.lock().index.slot_count()
    }

    /// Units and bytes here, whole blocks counted.
    pub(crate) fn held(&self) -> (u64, u64) {
        let state = self.shared.lock();
        (state.index.len() as u64, state.index.blocks() * BLOCK_BYTES)
    }
}

/// Makes index and files agree: units beyond their file's end are forgotten, files without units unlinked, room that no
/// unit owns given back. Gives the units forgotten.
fn reconcile(files: &Files, index: &mut Index, on_disk: &BTreeMap<u32, (u64, u64)>) -> io::Result<Vec<(Key, Place)>> {
    let units = (0..index.slot_count()).filter_map(|slot| index.at_slot(slot));
    let lost: Vec<_> = units
        .filter(|(_, place)| {
            on_disk.get(&place.file).is_none_or(|(_, len)| place.offset() + u64::from(place.bytes) > *len)
        })
        .collect();
    for (key, place) in &lost {
        index.remove(*key, Some(*place));
    }
    let mut untidy = HashSet::new();
    for (number, (taken, _)) in on_disk {
        let live = index.blocks_of_file(*number) * BLOCK_BYTES;
        if live == 0 {
            files.unlink(*number)?;
        } else if *taken > live + EXTENTS_BYTES_MAX {
            untidy.insert(*number);
        }
    }
    let mut spans: BTreeMap<u32, Vec<Range<u64>>> = BTreeMap::new();
    for (_, place) in (0..index.slot_count()).filter_map(|slot| index.at_slot(slot)) {
        if untidy.contains(&place.file) {
            spans.entry(place.file).or_default().push(place.span());
        }
    }
    for (number, mut live) in spans {
        live.sort_unstable_by_key(|span| span.start);
        files.punch_all_but(number, on_disk[&number].1, &live)?;
    }
    // Those lost have no room to give back: only the log has to hear of them.
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn open(dir: &TempDir, disk_bytes: u64) -> (Disk, Opened) {
        let settings = Settings { dir: dir.path().to_owned(), disk_bytes };
        Disk::open(&settings, Arc::default(), Arc::default()).unwrap()
    }

    fn id(n: u64) -> BlobId {
        BlobId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    /// Run alone, in a release build, it tells how long a start with two million units takes.
    #[test]
    #[ignore = "a measurement"]
    fn two_million_units_are_found_within_seconds() {
        const UNITS: u32 = 2_000_000;
        let dir = TempDir::new().unwrap();
        let (mut log, _) = Log::open(dir.path(), |_| {}).unwrap();
        let put =
            |n: u32| Record::Put(Key::whole(id(u64::from(n))), Place { file: n / 65_536, block: n % 65_536, bytes: 9 });
        log.rewrite((0..UNITS).map(put)).unwrap();
        for file in 0..=UNITS / 65_536 {
            let file = fs::File::create(dir.path().join(format!("{file:010}.cache"))).unwrap();
            file.set_len(FILE_BYTES_MAX).unwrap();
        }
        let began = Instant::now();
        let (disk, opened) = open(&dir, 1 << 40);
        println!("{UNITS} units found in {:?}", began.elapsed());
        assert_eq!(opened.units, UNITS as usize);
        assert!(disk.has(Key::whole(id(77))));
        assert!(began.elapsed() < std::time::Duration::from_secs(5));
    }

    fn headed(bytes: &Bytes) -> Content {
        Content::Headed(
            Head { blob_bytes: bytes.len() as u64, stored: waxwing_protocol::Timestamp::from_secs(1) },
            bytes.clone(),
        )
    }

    /// Units come and go without end: the log is written anew before it outgrows what it describes.
    #[tokio::test]
    async fn the_log_does_not_grow_for_ever() {
        let dir = TempDir::new().unwrap();
        let (disk, _) = open(&dir, 64 << 20);
        let bytes = Bytes::from_static(&[5; 600]);
        let era = disk.shared.tombstones.era();
        for n in 0..60_000 {
            disk.offer(Key::whole(id(n)), headed(&bytes), era);
            if n % 32 == 0 {
                disk.flush().await;
            }
        }
        disk.flush().await;
        let log = fs::metadata(dir.path().join("index.log")).unwrap().len();
        let (units, taken) = disk.held();
        assert!(taken + log <= 64 << 20, "{taken} + {log}");
        assert!(units > 12_000, "{units}");
        assert!(log < (3 * units + 20_000) * 64, "{log} bytes of log for {units} units");
        let newest = disk.read(Key::whole(id(59_999)), |_| true).await.unwrap();
        assert_eq!(Head::split(&newest).unwrap().1, bytes);
    }

    /// A purge that came while a unit waited to be written must win.
    #[tokio::test]
    async fn a_unit_from_before_a_purge_is_not_written() {
        let dir = TempDir::new().unwrap();
        let (disk, _) = open(&dir, 64 << 20);
        let era = disk.shared.tombstones.era();
        disk.shared.tombstones.bury(id(1));
        disk.offer(Key::whole(id(1)), headed(&Bytes::from_static(b"old")), era);
        disk.offer(Key::whole(id(2)), headed(&Bytes::from_static(b"other")), era);
        disk.flush().await;
        assert!(!disk.has(Key::whole(id(1))) && disk.has(Key::whole(id(2))));
    }

    /// A number that stands behind a damaged record says nothing: the record may have been of what that purge took.
    #[tokio::test]
    async fn a_purge_behind_a_damaged_record_is_applied_again_and_once() {
        let dir = TempDir::new().unwrap();
        let origin = [9; 32];
        let at_start = |dir: &TempDir| open(dir, 64 << 20).1.purged.get(&origin).copied();
        {
            let (disk, _) = open(&dir, 64 << 20);
            disk.purged(origin, 3).await;
            disk.offer(Key::whole(id(1)), headed(&Bytes::from_static(b"one")), disk.shared.tombstones.era());
            disk.flush().await;
            disk.forget_blob(id(1));
            disk.purged(origin, 4).await;
        }
        let log = dir.path().join("index.log");
        let mut bytes = fs::read(&log).unwrap();
        let gone = bytes.chunks_mut(log::RECORD_BYTES).find(|record| record[0] == log::KIND_GONE).unwrap();
        gone[9] ^= 1;
        wait_until_let_go(&dir).await;
        fs::write(&log, bytes).unwrap();
        assert_eq!(at_start(&dir), Some(0));
        wait_until_let_go(&dir).await;
        let (disk, opened) = open(&dir, 64 << 20);
        assert_eq!((opened.purged.get(&origin), opened.damaged), (Some(&0), 0), "the gap is gone");
        disk.purged(origin, 4).await;
        drop(disk);
        wait_until_let_go(&dir).await;
        assert_eq!(at_start(&dir), Some(4));
    }

    /// The thread that writes lets go of the directory a moment after the last handle is gone.
    async fn wait_until_let_go(dir: &TempDir) {
        while Files::open(dir.path()).is_err() {
            tokio::task::yield_now().await;
        }
    }

    /// A hole would put zeroes into what the kernel is still sending.
    #[tokio::test]
    async fn what_is_being_sent_stays_on_disk_when_it_is_purged_or_its_turn_has_come() {
        use std::os::unix::fs::FileExt as _;
        let dir = TempDir::new().unwrap();
        let (disk, _) = open(&dir, 64 << 20);
        let era = disk.shared.tombstones.era();
        let bytes = Bytes::from(vec![5; 1 << 20]);
        let offer = async |n: u64| {
            disk.offer(Key::slice(id(n), 0), Content::Slice(slice_of(&bytes)), era);
            disk.flush().await;
        };
        let lease = async |n: u64| {
            offer(n).await;
            disk.lease(Key::slice(id(n), 0)).unwrap()
        };
        let (purged, kept) = (lease(1).await, lease(2).await);
        disk.forget_blob(id(1));
        disk.flush().await;
        assert!(disk.lease(Key::slice(id(1), 0)).is_none(), "what was purged is not leased anew");
        for n in 3..100 {
            offer(n).await;
        }
        assert!(disk.shared.counters.disk_evicted.load(Relaxed) > 30, "the tier was full");
        assert!(disk.has(Key::slice(id(2), 0)));
        for lease in [purged, kept] {
            let mut there = vec![0; bytes.len()];
            lease.file.read_exact_at(&mut there, lease.offset).unwrap();
            assert!(there == bytes, "room was given back under a lease");
        }
        let (_, taken) = disk.held();
        assert!(taken + bytes.len() as u64 <= 64 << 20, "what waits to be given back counts");
    }
}
