//! The one thread that changes the disk: it makes room, appends, and keeps the log in step.
//!
//! Fills hand over what they verified and go on; nobody waits for a disk but this thread. When it cannot follow, what
//! comes is passed over: a slice that is not cached costs a fetch, a reader who waits for a disk costs a reader.
//!
//! Promises:
//! - Room is made before it is taken, log and block sizes counted, so the tier never takes more than it may.
//! - A full or failing disk makes units go, or not come; it is nobody's error.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::Shared;
use super::files::Tail;
use super::index::{BLOCK_BYTES, Evicted, Place};
use super::log::{Log, OriginTag, RECORD_BYTES, Record};
use super::unit::{Content, Key};
use crate::tombstones::Era;

/// Records that a log may have beyond twice those it needs: 1 MiB of them.
const SPARE_RECORDS: u64 = 16_384;

/// Units under lease that are passed over to make room once; when so many in a row are being sent, what comes is.
const LEASED_MAX: usize = 64;

/// Units taken out of the index at a time to be logged anew, so that no look-up waits long for the lock.
const REWRITE_CHUNK: usize = 4096;

/// The share of the tier left to what the file system keeps of the files (extents, directory): a 64th.
const METADATA_SHARE: u64 = 64;

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    /// Keep this, if no purge after `era` is against it.
    Keep { key: Key, content: Content, era: Era },
    /// Give back the room of what was taken out of the index.
    Release,
    /// Make durable that all purges of an origin up to this number have been applied.
    Purged { origin: OriginTag, number: u64, done: oneshot::Sender<()> },
    /// Do everything asked before.
    Flush { done: oneshot::Sender<()> },
}

/// The thread's own.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) log: Log,
    pub(super) tail: Option<Tail>,
    pub(super) next_file: u32,
    pub(super) purged: HashMap<OriginTag, u64>,
    /// Room that is to be given back when its lease has ended.
    pub(super) deferred: Vec<Place>,
}

impl Writer {
    /// Works until every handle on the tier is gone.
    pub(super) fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.release();
        self.make_room(0);
        while let Some(command) = commands.blocking_recv() {
            match command {
                Command::Keep { key, content, era } => self.keep(key, &content, era),
                Command::Release => {}
                Command::Purged { origin, number, done } => {
                    if let Err(error) = self.purged(origin, number) {
                        tracing::error!("purge {number} could not be made durable: {error}");
                    }
                    let _ = done.send(());
                }
                Command::Flush { done } => {
                    let _ = done.send(());
                }
            }
            self.release();
            self.rewrite_log_when_due();
        }
    }

    fn keep(&mut self, key: Key, content: &Content, era: Era) {
        let is_here = self.shared.lock().index.get(key).is_some();
        if is_here || !self.shared.tombstones.allow(key.id, era) {
            return;
        }
        let bytes = content.byte_count();
        if bytes as u64 > self.shared.file_bytes || !self.make_room(bytes as u64) {
            self.shared.counters.disk_bypassed.fetch_add(1, Relaxed);
            return;
        }
        let pieces = content.pieces();
        let written = self.append(bytes, &pieces).or_else(|error| {
            // Somebody else filled the disk: the tier shrinks by what it needs, and tries once more.
            if error.kind() != io::ErrorKind::StorageFull {
                return Err(error);
            }
            self.evict_bytes(2 * bytes as u64);
            self.append(bytes, &pieces)
        });
        let place = match written {
            Ok(place) => place,
            Err(error) => {
                self.failed("a unit was not written", &error);
                self.shared.counters.disk_bypassed.fetch_add(1, Relaxed);
                return;
            }
        };
        // The index last and under the tombstones' lock: a purge sees it there, or keeps it from getting there.
        let filed = self.shared.tombstones.admit(key.id, era, || self.shared.lock().index.insert(key, place, true));
        match filed {
            Some(is_main) => {
                self.shared.counters.disk_written.fetch_add(1, Relaxed);
                self.record(Record::Put(key, place));
                if is_main {
                    self.record(Record::Promoted(key));
                }
            }
            None => {
                self.give_back(place);
            }
        }
    }

    fn append(&mut self, bytes: usize, pieces: &[bytes::Bytes]) -> io::Result<Place> {
        if !self.tail.as_ref().is_some_and(|tail| tail.has_room(bytes, self.shared.file_bytes)) {
            let tail = self.shared.files.begin(self.next_file);
            self.next_file += 1;
            if let Some(full) = self.tail.replace(tail?) {
                self.unlink_when_empty(full.number());
            }
        }
        let Some(tail) = &mut self.tail else { return Err(io::ErrorKind::Other.into()) };
        tail.append(pieces)
    }

    /// Makes units go until `bytes` more fit. Gives whether they do.
    fn make_room(&mut self, bytes: u64) -> bool {
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        loop {
            let capacity = self.capacity();
            let used = self.shared.lock().index.blocks();
            if used + blocks <= capacity {
                return true;
            }
            if !self.evict(capacity) {
                return false;
            }
        }
    }

    fn evict_bytes(&mut self, bytes: u64) {
        let capacity = self.capacity();
        let goal = self.shared.lock().index.blocks().saturating_sub(bytes.div_ceil(BLOCK_BYTES));
        while self.shared.lock().index.blocks() > goal && self.evict(capacity) {}
    }

    /// Blocks that units may take: what is left beside the log, the log that may be written to replace it, and what the
    /// file system needs.
    fn capacity(&self) -> u64 {
        let live = self.shared.lock().index.len() as u64;
        let beside = self.log.bytes() + (live + 2) * RECORD_BYTES as u64 + self.shared.disk_bytes / METADATA_SHARE;
        let deferred: u64 = self.deferred.iter().map(|place| place.blocks()).sum();
        (self.shared.disk_bytes.saturating_sub(beside) / BLOCK_BYTES).saturating_sub(deferred)
    }

    fn evict(&mut self, capacity: u64) -> bool {
        for _ in 0..LEASED_MAX {
            let mut state = self.shared.lock();
            let (promoted, evicted) = state.index.evict(capacity);
            let is_leased = evicted.is_some_and(|evicted| state.leases.hold(evicted.place, Instant::now()));
            let is_main = match evicted {
                // It is being sent, so it was used: it has another turn.
                Some(Evicted { key, place }) if is_leased => state.index.insert(key, place, true),
                _ => false,
            };
            drop(state);
            promoted.into_iter().for_each(|key| self.record(Record::Promoted(key)));
            match evicted {
                None => return false,
                Some(evicted) if is_leased && is_main => self.record(Record::Promoted(evicted.key)),
                Some(_) if is_leased => {}
                Some(evicted) => {
                    self.has_gone(evicted);
                    return true;
                }
            }
        }
        false
    }

    fn has_gone(&mut self, evicted: Evicted) {
        self.shared.counters.disk_evicted.fetch_add(1, Relaxed);
        // Logged before its room goes: a restart must not look for it there.
        self.record(Record::Gone(evicted.key, evicted.place));
        self.give_back(evicted.place);
    }

    /// Gives back the room of what others took out of the index.
    fn release(&mut self) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let gone = std::mem::take(&mut state.gone);
        if gone.is_empty() && self.deferred.is_empty() {
            return;
        }
        let waited = std::mem::take(&mut self.deferred);
        let places = gone.iter().map(|(_, place)| *place).chain(waited);
        let (held, free): (Vec<_>, Vec<_>) = places.partition(|place| state.leases.hold(*place, now));
        state.has_deferred = !held.is_empty();
        drop(state);
        self.deferred = held;
        for (key, place) in gone {
            self.record(Record::Gone(key, place));
        }
        let mut emptied = HashSet::new();
        for place in free {
            if !emptied.contains(&place.file) && self.give_back(place) {
                emptied.insert(place.file);
            }
        }
    }

    /// Gives the room at `place` back. Gives whether its whole file went.
    fn give_back(&mut self, place: Place) -> bool {
        if self.unlink_when_empty(place.file) {
            return true;
        }
        match self.shared.files.punch(place) {
            // Its file went as a whole while it waited.
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.failed("no hole could be punched", &error),
            _ => {}
        }
        false
    }

    fn unlink_when_empty(&mut self, number: u32) -> bool {
        let is_tail = self.tail.as_ref().is_some_and(|tail| tail.number() == number);
        if is_tail || self.shared.lock().index.blocks_of_file(number) > 0 {
            return false;
        }
        match self.shared.files.unlink(number) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                self.failed("an empty cache file could not be unlinked", &error);
                false
            }
            _ => true,
        }
    }

    /// First what went, then that it went: a cursor that outlived the records before it would bring a blob back.
    fn purged(&mut self, origin: OriginTag, number: u64) -> io::Result<()> {
        self.release();
        self.log.sync()?;
        self.purged.insert(origin, number);
        self.log.append(Record::Purged(origin, number))
    }

    fn record(&mut self, record: Record) {
        if let Err(error) = self.log.append(record) {
            self.failed("the index log was not written", &error);
        }
    }

    fn rewrite_log_when_due(&mut self) {
        let live = self.shared.lock().index.len() as u64;
        let records = self.log.bytes() / RECORD_BYTES as u64;
        // A unit in the main queue has two records.
        if records > 3 * live + SPARE_RECORDS {
            self.rewrite_log();
        }
    }

    /// Puts a log of what is here in the place of the log of how it came here.
    pub(super) fn rewrite_log(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut at = 0;
        let units = std::iter::from_fn(move || {
            let state = shared.lock();
            let chunk: Vec<_> = state.index.in_order(at..at + REWRITE_CHUNK).collect();
            let is_end = at >= state.index.queued();
            at += REWRITE_CHUNK;
            (!is_end).then_some(chunk)
        });
        let puts = units.flatten().flat_map(|(is_main, key, place)| {
            [Some(Record::Put(key, place)), is_main.then_some(Record::Promoted(key))].into_iter().flatten()
        });
        let purged = self.purged.clone();
        let records = purged.into_iter().map(|(origin, number)| Record::Purged(origin, number)).chain(puts);
        if let Err(error) = self.log.rewrite(records) {
            self.failed("the index log could not be rewritten", &error);
        }
    }

    fn failed(&self, what: &str, error: &io::Error) {
        self.shared.counters.disk_errors.fetch_add(1, Relaxed);
        // A disk that fails fails often: once in a while is enough to be seen.
        if self.shared.counters.disk_errors.load(Relaxed).is_power_of_two() {
            tracing::warn!("disk tier: {what}: {error}");
        }
    }
}
