//! The index log: what a restart needs to know where everything is.
//!
//! Without it the cache would be cold after every restart, or every byte of it would have to be read first.
//!
//! Records have one length and a checksum each. A torn tail is cut; a damaged record in the middle costs its unit
//! alone, since the next one still stands where it must; what it said of purges is another matter, so whoever reads the
//! log is told where one was. The log is not synced for units: what a power cut makes of it
//! is caught when the bytes are verified at their first use.
//!
//! Promise: what [`Log::sync`] returned after is there after a power cut.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use waxwing_protocol::BlobId;

use super::index::Place;
use super::unit::Key;

const NAME: &str = "index.log";

/// Bytes of a record.
pub(super) const RECORD_BYTES: usize = 64;

/// The first record's id field: whose log this is, and in which layout.
const MAGIC: [u8; 32] = *b"waxwing edge disk index log, v1\n";

/// Bytes read and written at a time where records pass in bulk.
const BUFFER_BYTES: usize = 1 << 20;

/// Which origin: the BLAKE3 hash of its URL.
pub(crate) type OriginTag = [u8; 32];

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// A unit was written.
    Put(Key, Place),
    /// It went to the main queue.
    Promoted(Key),
    /// The unit at that place went.
    Gone(Key, Place),
    /// Every purge up to this number has been applied, of the origin with this tag.
    Purged(OriginTag, u64),
}

const KIND_HEADER: u8 = 1;
const KIND_PUT: u8 = 2;
const KIND_PROMOTED: u8 = 3;
pub(super) const KIND_GONE: u8 = 4;
const KIND_PURGED: u8 = 5;

const NOWHERE: Place = Place { file: 0, block: 0, bytes: 0 };

fn encode(kind: u8, id: &[u8; 32], part: u32, place: Place, number: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[0] = kind;
    bytes[4..36].copy_from_slice(id);
    for (at, value) in [(36, part), (40, place.file), (44, place.block), (48, place.bytes)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes[52..60].copy_from_slice(&number.to_le_bytes());
    let sum = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        match self {
            Self::Put(key, place) => encode(KIND_PUT, key.id.as_bytes(), key.part, place, 0),
            Self::Promoted(key) => encode(KIND_PROMOTED, key.id.as_bytes(), key.part, NOWHERE, 0),
            Self::Gone(key, place) => encode(KIND_GONE, key.id.as_bytes(), key.part, place, 0),
            Self::Purged(origin, number) => encode(KIND_PURGED, &origin, 0, NOWHERE, number),
        }
    }

    /// The record; `None` when the bytes are none.
    pub(super) fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if crc32fast::hash(&bytes[..60]) != word(60)? {
            return None;
        }
        let key = Key { id: BlobId::from_bytes(*bytes.get(4..)?.first_chunk()?), part: word(36)? };
        let place = Place { file: word(40)?, block: word(44)?, bytes: word(48)? };
        match bytes[0] {
            KIND_PUT => Some(Self::Put(key, place)),
            KIND_PROMOTED => Some(Self::Promoted(key)),
            KIND_GONE => Some(Self::Gone(key, place)),
            KIND_PURGED => Some(Self::Purged(*key.id.as_bytes(), u64::from_le_bytes(*bytes.get(52..)?.first_chunk()?))),
            _ => None,
        }
    }
}

/// The log, open for appending.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    path: PathBuf,
    /// Where the next record goes. A record that was half written is written over.
    end: u64,
}

impl Log {
    /// Opens the log in `dir` and gives every sound record to `each`, and `None` for each damaged one between them; the
    /// count of damaged ones comes back too. A file that is no log of this layout is begun anew.
    pub(super) fn open(dir: &Path, mut each: impl FnMut(Option<Record>)) -> io::Result<(Self, u64)> {
        let path = dir.join(NAME);
        match fs::remove_file(new_path(&path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, &file);
        let mut bytes = [0; RECORD_BYTES];
        let (mut sound_end, mut at, mut damaged, mut damaged_in_tail) = (0, 0, 0, 0);
        let has_header = reader.read_exact(&mut bytes).is_ok() && bytes == header();
        if has_header {
            (sound_end, at) = (RECORD_BYTES as u64, RECORD_BYTES as u64);
            while read_record(&mut reader, &mut bytes)? {
                at += RECORD_BYTES as u64;
                match Record::from_bytes(&bytes) {
                    Some(record) => {
                        (0..damaged_in_tail).for_each(|_| each(None));
                        each(Some(record));
                        sound_end = at;
                        damaged += std::mem::take(&mut damaged_in_tail);
                    }
                    None => damaged_in_tail += 1,
                }
            }
        }
        let is_torn = at > sound_end;
        let log = Self { file, path, end: sound_end };
        log.file.set_len(sound_end)?;
        let mut log = log;
        if !has_header {
            log.write(&header())?;
        }
        Ok((log, damaged + u64::from(is_torn)))
    }

    /// How many records a log in `dir` has at most, as its length says.
    pub(super) fn records_in(dir: &Path) -> usize {
        let bytes = fs::metadata(dir.join(NAME)).map_or(0, |metadata| metadata.len());
        usize::try_from(bytes).unwrap_or(usize::MAX) / RECORD_BYTES
    }

    /// Bytes of the log.
    pub(super) const fn bytes(&self) -> u64 {
        self.end
    }

    /// Appends a record.
    pub(super) fn append(&mut self, record: Record) -> io::Result<()> {
        self.write(&record.to_bytes())
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, self.end)?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Puts a log of only `records` in the place of this one, durably. On failure this one goes on.
    pub(super) fn rewrite(&mut self, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let new = new_path(&self.path);
        let written = write_new(&new, records).and_then(|written| {
            fs::rename(&new, &self.path)?;
            File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(written)
        });
        match written {
            Ok((file, end)) => {
                (self.file, self.end) = (file, end);
                Ok(())
            }
            Err(error) => {
                // It may be the disk that is full: give the room back.
                drop(fs::remove_file(&new));
                Err(error)
            }
        }
    }
}

fn header() -> [u8; RECORD_BYTES] {
    encode(KIND_HEADER, &MAGIC, 0, NOWHERE, 0)
}

fn new_path(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn write_new(path: &Path, records: impl Iterator<Item = Record>) -> io::Result<(File, u64)> {
    let file = File::options().create(true).truncate(true).read(true).write(true).open(path)?;
    let mut writer = BufWriter::with_capacity(BUFFER_BYTES, &file);
    let mut end = RECORD_BYTES as u64;
    writer.write_all(&header())?;
    for record in records {
        writer.write_all(&record.to_bytes())?;
        end += RECORD_BYTES as u64;
    }
    writer.flush()?;
    drop(writer);
    file.sync_data()?;
    Ok((file, end))
}

/// Reads a whole record; `false` at the end, also one amid a record.
fn read_record(reader: &mut impl io::Read, bytes: &mut [u8; RECORD_BYTES]) -> io::Result<bool> {
    match reader.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn put(n: u64) -> Record {
        let id = BlobId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
        Record::Put(Key::slice(id, n), Place { file: 1, block: 2, bytes: 3 })
    }

    fn read(dir: &TempDir) -> (Log, Vec<Record>, u64) {
        let mut records = Vec::new();
        let (log, damaged) = Log::open(dir.path(), |record| records.extend(record)).unwrap();
        (log, records, damaged)
    }

    fn made(records: &[Record]) -> TempDir {
        let dir = TempDir::new().unwrap();
        let mut log = read(&dir).0;
        records.iter().for_each(|record| log.append(*record).unwrap());
        dir
    }

    #[test]
    fn every_kind_of_record_comes_back() {
        let Record::Put(key, place) = put(7) else { panic!() };
        let all = [put(1), Record::Promoted(key), Record::Gone(key, place), Record::Purged([3; 32], u64::MAX)];
        assert_eq!(read(&made(&all)).1, all);
    }

    /// Cut anywhere, the log gives every record before the cut, and goes on from there.
    #[test]
    fn a_torn_tail_is_cut() {
        let all: Vec<_> = (0..5).map(put).collect();
        for cut in 0..=6 * RECORD_BYTES {
            let dir = made(&all);
            let path = dir.path().join("index.log");
            fs::write(&path, &fs::read(&path).unwrap()[..cut]).unwrap();
            let whole = (cut / RECORD_BYTES).saturating_sub(1);
            let (mut log, records, _) = read(&dir);
            assert_eq!(records, all[..whole], "cut at {cut}");
            log.append(put(9)).unwrap();
            assert_eq!(read(&dir).1, [&all[..whole], &[put(9)]].concat());
        }
    }

    #[test]
    fn a_damaged_record_costs_itself_alone() {
        let all: Vec<_> = (0..5).map(put).collect();
        for byte in RECORD_BYTES..6 * RECORD_BYTES {
            let dir = made(&all);
            let path = dir.path().join("index.log");
            let mut bytes = fs::read(&path).unwrap();
            bytes[byte] ^= 4;
            fs::write(&path, bytes).unwrap();
            let mut expected = all.clone();
            expected.remove(byte / RECORD_BYTES - 1);
            let (_, records, damaged) = read(&dir);
            assert_eq!((records, damaged), (expected, 1));
        }
    }

    /// An older or foreign file is not guessed at.
    #[test]
    fn another_layout_is_begun_anew() {
        let dir = made(&[put(1)]);
        let path = dir.path().join("index.log");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..RECORD_BYTES].copy_from_slice(&encode(KIND_HEADER, &[9; 32], 0, NOWHERE, 0));
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&dir).1, []);
    }

    #[test]
    fn a_rewritten_log_holds_what_it_was_given_and_goes_on() {
        let dir = made(&(0..100).map(put).collect::<Vec<_>>());
        let mut log = read(&dir).0;
        log.rewrite([Record::Purged([3; 32], 5), put(99)].into_iter()).unwrap();
        log.append(put(100)).unwrap();
        assert_eq!(log.bytes(), 4 * RECORD_BYTES as u64);
        assert_eq!(read(&dir).1, [Record::Purged([3; 32], 5), put(99), put(100)]);
    }
}
