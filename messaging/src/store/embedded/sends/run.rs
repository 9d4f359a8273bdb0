//! A run: the sends of one checkpoint in a file, written once.
//!
//! Records stand in blocks of a page, by rising key, each block with its checksum. Keys are hashes and spread evenly, so a
//! record is found where its key lies among all keys, or a block or two beside. Before that a filter is asked, since
//! nearly every send is one that was never seen: of a hundred that are in no run, it lets one through.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use waxwing_protocol::Timestamp;

use crate::store::embedded::journal::Key;
use crate::store::embedded::pace::Pace;

/// What the name of a run's file ends with.
pub(super) const EXTENSION: &str = "sends";

/// And with what until it is whole.
pub(super) const UNFINISHED: &str = "part";

/// Bytes of a block, and of the checksum at its beginning.
const BLOCK_BYTES: usize = 4096;
const CHECKSUM_BYTES: usize = 16;

/// Bytes of a record: key, epoch, hash of the content, time, place in a conversation.
const RECORD_BYTES: usize = 16 + 8 + 16 + 8 + 8;

/// Records of a block.
const BLOCK_RECORDS: usize = (BLOCK_BYTES - CHECKSUM_BYTES) / RECORD_BYTES;

/// Bytes of a part of the filter: what a processor reads at once.
const CELL_BYTES: usize = 64;

/// Bits of the filter for each record.
const FILTER_BITS: usize = 12;

/// Bits that a record sets in its cell.
const PROBES: u32 = 6;

/// Bytes at the end of a file: what is in it, with a checksum.
const FOOTER_BYTES: usize = MAGIC.len() + 6 * 8 + CHECKSUM_BYTES;
const MAGIC: &[u8; 8] = b"wxsends1";

/// Bytes that are written between two syncs: whoever syncs a journal meanwhile waits for no more than those.
const SYNC_BYTES: usize = 256 * 1024;

/// Records sorted and written before a rest: some 100 us of work.
const STEP: usize = 512;

/// Parts of a run that are sorted at once: keys with the same first byte.
const PARTS: usize = 256;

/// That a message was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: [u8; 16],
    /// The time in the message's id. Not in the file.
    pub(super) id_ms: u64,
    pub(super) epoch: u64,
    pub(super) content_hash: [u8; 16],
    pub(super) server_ts: u64,
    pub(super) conv_seq: u64,
}

/// Records of a run to be, by the first byte of their keys.
#[derive(Debug, Default)]
pub(super) struct Records {
    parts: Vec<Vec<Record>>,
    len: usize,
}

impl Records {
    pub(super) fn push(&mut self, record: Record) {
        self.parts.resize(PARTS, Vec::new());
        self.parts[usize::from(record.key[0])].push(record);
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn iter(&self) -> impl Iterator<Item = &Record> {
        self.parts.iter().flatten()
    }
}

/// A run, as much of it as is in memory.
#[derive(Debug)]
pub(in crate::store::embedded) struct Run {
    path: PathBuf,
    about: About,
    /// The latest id in this run and those before it.
    reach: u64,
    filter: Option<Box<[[u8; CELL_BYTES]]>>,
}

/// What the end of a file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct About {
    records: u64,
    blocks: u64,
    cells: u64,
    /// The times in the ids: the first and the last.
    first_id_ms: u64,
    last_id_ms: u64,
    /// When the newest was taken.
    newest: u64,
}

impl Run {
    /// Writes records. They are durable when it returns; the name is when its directory was synced.
    pub(super) fn write(path: PathBuf, records: Records, key: &Key, pace: &Pace) -> io::Result<Self> {
        let cells = (records.len() * FILTER_BITS).div_ceil(CELL_BYTES * 8);
        let ids = || records.iter().map(|record| record.id_ms);
        let about = About {
            records: records.len() as u64,
            blocks: records.len().div_ceil(BLOCK_RECORDS) as u64,
            cells: cells as u64,
            first_id_ms: ids().min().unwrap_or(0),
            last_id_ms: ids().max().unwrap_or(0),
            newest: records.iter().map(|record| record.server_ts).max().unwrap_or(0),
        };
        let mut filter = vec![[0; CELL_BYTES]; cells];
        let mut file = Unfinished::create(&path, key)?;
        let mut worked = 0;
        for mut part in records.parts {
            part.sort_unstable_by_key(|record| record.key);
            for record in &part {
                let (cell, bits) = probes(&record.key, cells);
                bits.for_each(|bit| filter[cell][bit / 8] |= 1 << (bit % 8));
                file.put(record)?;
            }
            worked += part.len();
            if worked >= STEP {
                worked = 0;
                pace.rest();
            }
        }
        file.end_block();
        file.bytes.extend_from_slice(filter.as_flattened());
        about.put(&mut file.bytes, key);
        file.write()?;
        std::fs::rename(&file.path, &path)?;
        Ok(Self { path, about, reach: about.last_id_ms, filter: Some(filter.into()) })
    }

    /// Opens one that was written.
    pub(super) fn open(path: PathBuf, key: &Key) -> io::Result<Self> {
        let file = File::open(&path)?;
        let len = file.metadata()?.len();
        let mut footer = [0; FOOTER_BYTES];
        let at = len.checked_sub(FOOTER_BYTES as u64).ok_or_else(|| damaged(&path))?;
        file.read_exact_at(&mut footer, at)?;
        let about = About::read(&footer, key).filter(|about| about.filter_at(about.cells) == at);
        let about = about.ok_or_else(|| damaged(&path))?;
        Ok(Self { path, about, reach: about.last_id_ms, filter: None })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn records(&self) -> u64 {
        self.about.records
    }

    /// When the newest of its records was taken.
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp::from_millis(self.about.newest)
    }

    /// Puts it behind `earlier`.
    pub(super) fn follow(&mut self, earlier: Option<&Self>) {
        self.reach = earlier.map_or(0, Self::reach).max(self.about.last_id_ms);
    }

    /// The latest time in an id of this run and those before it.
    pub(super) fn reach(&self) -> u64 {
        self.reach
    }

    /// Whether an id of that time can be in it.
    pub(super) fn covers(&self, id_ms: u64) -> bool {
        (self.about.first_id_ms..=self.about.last_id_ms).contains(&id_ms)
    }

    pub(super) fn filter_bytes(&self) -> usize {
        self.filter.as_ref().map_or(0, |filter| filter.len() * CELL_BYTES)
    }

    pub(super) fn forget_filter(&mut self) {
        self.filter = None;
    }

    /// The record with this key.
    pub(super) fn find(&self, wanted: &[u8; 16], key: &Key) -> io::Result<Option<Record>> {
        let (cell, mut bits) = probes(wanted, usize::try_from(self.about.cells).unwrap_or(usize::MAX));
        let file = match &self.filter {
            Some(filter) if bits.all(|bit| is_set(&filter[cell], bit)) => File::open(&self.path)?,
            Some(_) => return Ok(None),
            None => {
                let file = File::open(&self.path)?;
                let mut bytes = [0; CELL_BYTES];
                file.read_exact_at(&mut bytes, self.about.filter_at(cell as u64))?;
                if !bits.all(|bit| is_set(&bytes, bit)) {
                    return Ok(None);
                }
                file
            }
        };
        let mut number = share(wanted, self.about.blocks);
        let mut before = None;
        loop {
            let block = self.block(&file, number, key)?;
            let (first, last) = (&block[0], &block[block.len() - 1]);
            let next = if *wanted < first.key {
                number.checked_sub(1)
            } else if *wanted > last.key {
                Some(number + 1).filter(|next| *next < self.about.blocks)
            } else {
                let at = block.binary_search_by_key(wanted, |record| record.key);
                return Ok(at.ok().map(|at| block[at]));
            };
            // Between two blocks, or beyond all: it is not there.
            let Some(next) = next.filter(|next| Some(*next) != before) else { return Ok(None) };
            before = Some(number);
            number = next;
        }
    }

    /// The records of a block: at least one.
    fn block(&self, file: &File, number: u64, key: &Key) -> io::Result<Vec<Record>> {
        let mut bytes = [0; BLOCK_BYTES];
        file.read_exact_at(&mut bytes, number * BLOCK_BYTES as u64)?;
        let (sum, content) = bytes.split_at(CHECKSUM_BYTES);
        if checksum(key, number, content) != sum {
            return Err(damaged(&self.path));
        }
        let before = number * BLOCK_RECORDS as u64;
        let count = usize::try_from(self.about.records - before).unwrap_or(usize::MAX).min(BLOCK_RECORDS);
        Ok(content.chunks_exact(RECORD_BYTES).take(count).map(Record::read).collect())
    }
}

/// A run that is being written, under another name until it is whole.
struct Unfinished<'a> {
    path: PathBuf,
    file: File,
    key: &'a Key,
    /// What is not written yet, and where it goes.
    bytes: Vec<u8>,
    at: u64,
    /// Of the block that is being filled: its number, where it begins in `bytes`, its records.
    block: (u64, usize, usize),
}

impl<'a> Unfinished<'a> {
    fn create(path: &Path, key: &'a Key) -> io::Result<Self> {
        let path = path.with_extension(UNFINISHED);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&path)?;
        let bytes = Vec::with_capacity(SYNC_BYTES + BLOCK_BYTES);
        Ok(Self { path, file, key, bytes, at: 0, block: (0, 0, 0) })
    }

    fn put(&mut self, record: &Record) -> io::Result<()> {
        if self.block.2 == BLOCK_RECORDS {
            self.end_block();
            if self.bytes.len() >= SYNC_BYTES {
                self.write()?;
            }
        }
        if self.block.2 == 0 {
            self.block.1 = self.bytes.len();
            self.bytes.resize(self.block.1 + CHECKSUM_BYTES, 0);
        }
        record.put(&mut self.bytes);
        self.block.2 += 1;
        Ok(())
    }

    fn end_block(&mut self) {
        let (number, start, _) = self.block;
        self.bytes.resize(start + BLOCK_BYTES, 0);
        let sum = checksum(self.key, number, &self.bytes[start + CHECKSUM_BYTES..]);
        self.bytes[start..start + CHECKSUM_BYTES].copy_from_slice(&sum);
        self.block = (number + 1, 0, 0);
    }

    fn write(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.bytes, self.at)?;
        self.at += self.bytes.len() as u64;
        self.bytes.clear();
        if crate::fault::skip_sync() { Ok(()) } else { self.file.sync_data() }
    }
}

impl Record {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.key);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.content_hash);
        out.extend_from_slice(&self.server_ts.to_be_bytes());
        out.extend_from_slice(&self.conv_seq.to_be_bytes());
    }

    fn read(mut bytes: &[u8]) -> Self {
        let key = take(&mut bytes);
        let epoch = u64::from_be_bytes(take(&mut bytes));
        let content_hash = take(&mut bytes);
        let (server_ts, conv_seq) = (u64::from_be_bytes(take(&mut bytes)), u64::from_be_bytes(take(&mut bytes)));
        Self { key, id_ms: 0, epoch, content_hash, server_ts, conv_seq }
    }
}

impl About {
    fn put(&self, out: &mut Vec<u8>, key: &Key) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        let Self { records, blocks, cells, first_id_ms, last_id_ms, newest } = *self;
        for number in [records, blocks, cells, first_id_ms, last_id_ms, newest] {
            out.extend_from_slice(&number.to_be_bytes());
        }
        let sum = checksum(key, u64::MAX, &out[start..]);
        out.extend_from_slice(&sum);
    }

    fn read(footer: &[u8; FOOTER_BYTES], key: &Key) -> Option<Self> {
        let (content, sum) = footer.split_at(FOOTER_BYTES - CHECKSUM_BYTES);
        let mut rest = content.strip_prefix(MAGIC)?;
        if checksum(key, u64::MAX, content) != sum {
            return None;
        }
        let mut number = || u64::from_be_bytes(take(&mut rest));
        let (records, blocks, cells) = (number(), number(), number());
        let (first_id_ms, last_id_ms, newest) = (number(), number(), number());
        Some(Self { records, blocks, cells, first_id_ms, last_id_ms, newest })
    }

    /// Where a part of the filter stands.
    fn filter_at(&self, cell: u64) -> u64 {
        self.blocks * BLOCK_BYTES as u64 + cell * CELL_BYTES as u64
    }
}

/// Of a record, its cell among `cells` and its bits in there.
fn probes(key: &[u8; 16], cells: usize) -> (usize, impl Iterator<Item = usize>) {
    let [.., a, b, c, d, e, f, g, h] = *key;
    let (cell, bits) = (share(&[a, b, c, d, e, f, g, h], cells as u64), u64::from_be_bytes(take(&mut &key[..])));
    let bits = (0..PROBES).map(move |nth| usize::try_from((bits >> (9 * nth)) & 0x1ff).unwrap_or_default());
    (usize::try_from(cell).unwrap_or_default(), bits)
}

fn is_set(cell: &[u8; CELL_BYTES], bit: usize) -> bool {
    cell[bit / 8] & 1 << (bit % 8) != 0
}

/// Where a key that begins so lies among `all`, when keys are spread evenly.
fn share(mut key: &[u8], all: u64) -> u64 {
    let key = u128::from(u64::from_be_bytes(take(&mut key)));
    u64::try_from((key * u128::from(all)) >> 64).unwrap_or_default()
}

/// The first bytes, which are there.
fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("records and keys have their size");
    *bytes = rest;
    *taken
}

fn checksum(key: &Key, number: u64, content: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&number.to_be_bytes());
    hasher.update(content);
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&hasher.finalize().as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

fn damaged(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()))
}
