//! The journal: where a commit becomes durable.
//!
//! A sync of a file that grows also waits for the file system's own journal, and with it for whatever tables are being
//! written at that moment: tens of milliseconds, again and again. So the journal's files (*segments*) are made in advance,
//! full of zeros, and used again when the engine has what is in them: a sync then writes bytes and nothing else.
//!
//! A segment holds records, one for each batch, numbered without gaps. What stands behind the last one is what an earlier
//! use has left, or what a crash has cut: a record counts only with the next number and the right checksum. The checksum
//! has a key that is random for each store, so that no message can be made to look like a record.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::batch::Batch;
use super::recent::TABLES;
use crate::fault;

/// Bytes of a segment at most. Two seconds of 30,000 messages each: a message that is acked by then goes nowhere else.
pub(super) const SEGMENT_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Bytes of a store's first segment. Later ones are each four times larger, so that an idle node takes no room.
const SEGMENT_BYTES_FIRST: u64 = 256 * 1024;

/// Bytes of a new segment that are written between two syncs: a disk finishes what it was given before, so whoever syncs
/// another segment meanwhile waits for no more than those.
const SYNC_BYTES: u64 = 1024 * 1024;

/// Segments kept for later at most.
const SPARE_MAX: usize = 2;

/// Bytes before a record's content: its length, its number, its checksum.
const HEAD_BYTES: usize = 4 + 8 + CHECKSUM_BYTES;
const CHECKSUM_BYTES: usize = 16;

/// What the name of a segment's file ends with.
const EXTENSION: &str = "journal";

/// The key of a store's checksums.
pub(super) type Key = [u8; 32];

/// A file of the journal.
#[derive(Debug)]
pub(super) struct Segment {
    file: File,
    path: PathBuf,
    bytes: u64,
}

/// The writing end. One thread has it.
#[derive(Debug)]
pub(super) struct Journal {
    shelf: Arc<Shelf>,
    key: Key,
    segment: Segment,
    /// Bytes of the segment that are used.
    at: u64,
    /// The number of the next record.
    next: u64,
    buffer: Vec<u8>,
}

/// What a journal held that the engine had not seen.
#[derive(Debug, Default)]
pub(super) struct Replayed {
    /// By rising number.
    pub(super) batches: Vec<Batch>,
    /// The files they stand in.
    pub(super) segments: Vec<Segment>,
}

impl Journal {
    /// Opens the journal in `dir`, and reads what stands in it above the record `seen`.
    pub(super) fn open(dir: &Path, key: Key, seen: u64) -> io::Result<(Self, Replayed)> {
        std::fs::create_dir_all(dir)?;
        let mut found = Vec::new();
        let mut number = 0;
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
            number = number.max(name.unwrap_or(0));
            let content = std::fs::read(&path)?;
            let file = OpenOptions::new().write(true).open(&path)?;
            let segment = Segment { file, path, bytes: content.len() as u64 };
            found.push((segment, content));
        }
        let shelf = Arc::new(Shelf {
            dir: dir.to_owned(),
            ready: Mutex::default(),
            last: AtomicU64::new(number),
            wanted: AtomicU64::new(0),
        });
        let (mut held, mut free) = (Vec::new(), Vec::new());
        for (segment, content) in found {
            let records = records(&content, &key);
            match (records.first(), records.last()) {
                (Some(first), Some(last)) if last.number > seen => held.push((first.number, segment, content, records)),
                _ => free.push(segment),
            }
        }
        held.sort_by_key(|(first, ..)| *first);
        let (mut replayed, mut last) = (Replayed::default(), seen);
        let mut end = None;
        for (first, segment, content, records) in held {
            if first > last + 1 {
                // Records are written one after the other: what lies between was there.
                return Err(io::Error::other(format!("the journal lacks records from {} to {}", last + 1, first - 1)));
            }
            let mut used = false;
            for Placed { number, content: place } in records {
                if number == last + 1 {
                    let batch = Batch::decode(&content[place.clone()].into(), TABLES);
                    replayed.batches.push(batch.ok_or_else(|| io::Error::other("a damaged record"))?);
                    (last, used) = (number, true);
                    end = Some((
                        replayed.segments.len(),
                        place.start - HEAD_BYTES,
                        content[place.start - HEAD_BYTES..place.end].to_vec(),
                    ));
                }
            }
            if used { replayed.segments.push(segment) } else { free.push(segment) }
        }
        if let Some((segment, at, record)) = end {
            // Each record was synced before the next was written, but the last one perhaps never, or in vain: what a failed
            // sync has left can be read, but need not be on the disk. It is written once more, or later records could
            // survive a power cut that this one does not.
            let file = &replayed.segments[segment].file;
            file.write_all_at(&record, at as u64)?;
            file.sync_data()?;
        }
        free.sort_by_key(|segment: &Segment| segment.bytes);
        let segment = match free.pop() {
            Some(segment) => segment,
            None => shelf.make(SEGMENT_BYTES_FIRST)?,
        };
        free.into_iter().try_for_each(|segment| shelf.put_back(segment))?;
        Ok((Self { shelf, key, segment, at: 0, next: last + 1, buffer: Vec::new() }, replayed))
    }

    /// Where segments come from and go to.
    pub(super) fn shelf(&self) -> Arc<Shelf> {
        self.shelf.clone()
    }

    /// The number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.next - 1
    }

    /// Makes a record of a batch, to be written next; returns whether it has room in the segment.
    pub(super) fn prepare(&mut self, batch: &Batch) -> bool {
        self.buffer.clear();
        self.buffer.resize(HEAD_BYTES, 0);
        batch.encode(&mut self.buffer);
        let len = u32::try_from(self.buffer.len() - HEAD_BYTES).expect("a turn is bounded far below 4 GiB");
        self.buffer[..4].copy_from_slice(&len.to_be_bytes());
        self.buffer[4..12].copy_from_slice(&self.next.to_be_bytes());
        let checksum = checksum(&self.key, self.next, &self.buffer[HEAD_BYTES..]);
        self.buffer[12..HEAD_BYTES].copy_from_slice(&checksum);
        self.at + self.buffer.len() as u64 <= self.segment.bytes
    }

    /// Begins another segment, in which the prepared record has room; returns the full one.
    pub(super) fn turn_over(&mut self) -> io::Result<Segment> {
        let needed = self.buffer.len() as u64;
        let next = match self.shelf.take(needed) {
            Some(segment) => segment,
            // None is ready. A small one is made soon.
            None => self.shelf.make(needed.max(SEGMENT_BYTES_FIRST))?,
        };
        self.at = 0;
        Ok(std::mem::replace(&mut self.segment, next))
    }

    /// The content of the prepared record: the batch.
    pub(super) fn prepared(&self) -> &[u8] {
        &self.buffer[HEAD_BYTES..]
    }

    /// Writes the prepared record; it is durable on return. After an error nothing must be written any more: what is on
    /// the disk is not known.
    pub(super) fn write(&mut self) -> io::Result<()> {
        self.segment.file.write_all_at(&self.buffer, self.at)?;
        if !fault::skip_sync() {
            self.segment.file.sync_data()?;
        }
        self.at += self.buffer.len() as u64;
        self.next += 1;
        Ok(())
    }

    /// How large a segment should be made ready: there is none, and this one is half full.
    pub(super) fn wants(&self) -> Option<u64> {
        let wanted = self.segment.bytes.saturating_mul(4).clamp(SEGMENT_BYTES_FIRST, SEGMENT_BYTES_MAX);
        (self.at > self.segment.bytes / 2 && self.shelf.wants(wanted)).then_some(wanted)
    }
}

fn checksum(key: &Key, number: u64, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_be_bytes());
    hasher.update(content);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

/// Where a record's content stands in a segment.
struct Placed {
    number: u64,
    content: Range<usize>,
}

/// The records of a segment: those from its beginning that follow one another.
fn records(segment: &[u8], key: &Key) -> Vec<Placed> {
    let mut records: Vec<Placed> = Vec::new();
    let mut at = 0;
    while let Some(head) = segment.get(at..).and_then(|rest| rest.first_chunk::<HEAD_BYTES>()) {
        let (len, rest_of_head) = head.split_at(4);
        let (number, sum) = rest_of_head.split_at(8);
        let len = u32::from_be_bytes(len.try_into().expect("four bytes")) as usize;
        let number = u64::from_be_bytes(number.try_into().expect("eight bytes"));
        let content = at + HEAD_BYTES..at + HEAD_BYTES + len;
        let Some(record) = segment.get(content.clone()) else { break };
        let follows = records.last().is_none_or(|last| number == last.number + 1);
        if number == 0 || !follows || checksum(key, number, record) != sum {
            break;
        }
        at = content.end;
        records.push(Placed { number, content });
    }
    records
}

/// Segments that are ready to be used, and how more are made.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    ready: Mutex<Vec<Segment>>,
    /// The highest number in a segment's name.
    last: AtomicU64,
    /// Bytes of the segment that is asked for; 0 when none is.
    wanted: AtomicU64,
}

impl Shelf {
    /// Takes a segment of at least `bytes`.
    fn take(&self, bytes: u64) -> Option<Segment> {
        let mut ready = self.ready();
        let at = ready.iter().position(|segment| segment.bytes >= bytes)?;
        Some(ready.swap_remove(at))
    }

    /// Asks for a segment, if none is ready and none is asked for.
    fn wants(&self, bytes: u64) -> bool {
        self.ready().is_empty() && self.wanted.compare_exchange(0, bytes, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Makes the segment that is asked for.
    pub(super) fn fulfil(&self) -> io::Result<()> {
        let wanted = self.wanted.load(Ordering::Relaxed);
        if wanted > 0 {
            let segment = self.make(wanted)?;
            self.ready().push(segment);
            self.wanted.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Makes a segment whose every byte has its place on the disk.
    fn make(&self, bytes: u64) -> io::Result<Segment> {
        static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let path = self.dir.join(format!("{number}.{EXTENSION}"));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mut at = 0;
        while at < bytes {
            let some = usize::try_from(bytes - at).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            file.write_all_at(&ZEROS[..some], at)?;
            at += some as u64;
            if at % SYNC_BYTES == 0 && !fault::skip_sync() {
                file.sync_data()?;
            }
        }
        if !fault::skip_sync() {
            file.sync_all()?;
            File::open(&self.dir)?.sync_all()?;
        }
        Ok(Segment { file, path, bytes })
    }

    /// Takes back a segment whose records the engine has. A small one goes: larger ones have followed it.
    pub(super) fn put_back(&self, segment: Segment) -> io::Result<()> {
        let mut ready = self.ready();
        if ready.len() < SPARE_MAX && segment.bytes == SEGMENT_BYTES_MAX {
            ready.push(segment);
            return Ok(());
        }
        drop(ready);
        std::fs::remove_file(&segment.path)
    }

    fn ready(&self) -> MutexGuard<'_, Vec<Segment>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use fjall::Slice;

    use super::*;
    use crate::store::embedded::batch::Change;

    const KEY: Key = [7; 32];

    fn batch(n: u64, bytes: usize) -> Batch {
        let key = n.to_be_bytes().into();
        Batch(vec![Change { table: 1, key, value: Some(Slice::from(vec![u8::try_from(n % 251).unwrap(); bytes])) }])
    }

    fn append(journal: &mut Journal, batch: &Batch) -> Option<Segment> {
        let full = (!journal.prepare(batch)).then(|| journal.turn_over().unwrap());
        journal.write().unwrap();
        full
    }

    #[test]
    fn what_was_written_is_replayed_in_order_across_segments() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, replayed) = Journal::open(dir.path(), KEY, 0).unwrap();
        assert!(replayed.batches.is_empty());
        let batches: Vec<_> = (1..=100).map(|n| batch(n, 10_000)).collect();
        let full: Vec<_> = batches.iter().filter_map(|batch| append(&mut journal, batch)).collect();
        assert!(full.len() > 2, "several segments are in use");
        drop(journal);

        let (journal, replayed) = Journal::open(dir.path(), KEY, 0).unwrap();
        assert_eq!((replayed.batches, journal.last()), (batches.clone(), 100));
        drop(journal);
        let (_, replayed) = Journal::open(dir.path(), KEY, 60).unwrap();
        assert_eq!(replayed.batches, batches[60..], "the engine has the others");
    }

    #[test]
    fn a_record_that_was_cut_ends_the_journal_and_its_number_is_given_again() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), KEY, 0).unwrap();
        (1..=3).for_each(|n| drop(append(&mut journal, &batch(n, 100))));
        let (path, end) = (journal.segment.path.clone(), journal.at);
        drop(journal);
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0xff], end - 1).unwrap();

        let (mut journal, replayed) = Journal::open(dir.path(), KEY, 0).unwrap();
        assert_eq!(replayed.batches, [batch(1, 100), batch(2, 100)]);
        append(&mut journal, &batch(9, 50));
        drop(journal);
        let (journal, replayed) = Journal::open(dir.path(), KEY, 0).unwrap();
        assert_eq!(replayed.batches, [batch(1, 100), batch(2, 100), batch(9, 50)]);
        assert_eq!(journal.last(), 3);
    }

    #[test]
    fn a_journal_that_lacks_records_in_its_midst_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), KEY, 0).unwrap();
        let full: Vec<_> = (1..=100).filter_map(|n| append(&mut journal, &batch(n, 10_000))).collect();
        drop(journal);
        full[1].file.write_all_at(&[0xff; 100], 30_000).unwrap();
        let error = Journal::open(dir.path(), KEY, 0).unwrap_err().to_string();
        assert!(error.contains("lacks records"), "{error}");
    }

    /// A segment is used again without being cleared: what it held before stands behind what it holds now.
    #[test]
    fn what_an_earlier_use_has_left_is_not_taken_for_new() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), KEY, 0).unwrap();
        (1..=8).for_each(|n| drop(append(&mut journal, &batch(n, 100))));
        drop(journal);
        // The engine has all of them.
        let (mut journal, replayed) = Journal::open(dir.path(), KEY, 8).unwrap();
        assert!(replayed.batches.is_empty());
        (9..=10).for_each(|n| drop(append(&mut journal, &batch(n, 100))));
        drop(journal);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the first is used again");
        let (journal, replayed) = Journal::open(dir.path(), KEY, 8).unwrap();
        assert_eq!((replayed.batches, journal.last()), (vec![batch(9, 100), batch(10, 100)], 10));
    }

    #[test]
    fn a_record_under_another_stores_key_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), KEY, 0).unwrap();
        append(&mut journal, &batch(1, 100));
        drop(journal);
        let (_, replayed) = Journal::open(dir.path(), [8; 32], 0).unwrap();
        assert!(replayed.batches.is_empty());
    }

    #[test]
    fn a_batch_larger_than_any_segment_gets_one_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(dir.path(), KEY, 0).unwrap();
        let large = batch(1, usize::try_from(SEGMENT_BYTES_FIRST).unwrap() * 2);
        append(&mut journal, &large);
        drop(journal);
        let (_, replayed) = Journal::open(dir.path(), KEY, 0).unwrap();
        assert_eq!(replayed.batches, [large]);
    }
}
