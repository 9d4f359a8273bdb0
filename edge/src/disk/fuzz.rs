//! Index logs that no edge wrote: of what lies on a disk nothing is assumed.

use std::fs;

use tempfile::TempDir;
use waxwing_protocol::BlobId;

use super::index::{Index, Place};
use super::log::{Log, RECORD_BYTES, Record};
use super::unit::Key;
use crate::mutations::fuzz;

/// A log of these records.
fn log_of(records: &[Record]) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    let (mut log, _) = Log::open(dir.path(), |_| {}).unwrap();
    records.iter().for_each(|record| log.append(*record).unwrap());
    fs::read(dir.path().join("index.log")).unwrap()
}

/// The same with checksums that are right: damage that a checksum finds gets no further than that.
fn signed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for record in bytes.chunks_exact_mut(RECORD_BYTES) {
        let sum = crc32fast::hash(&record[..RECORD_BYTES - 4]);
        record[RECORD_BYTES - 4..].copy_from_slice(&sum.to_le_bytes());
    }
    bytes
}

/// Whatever lies there, it is read to its end, and what was taken from it is read again, without damage, by the next start.
/// The index that comes of it counts right.
#[test]
fn fuzz_index_logs() {
    let id = |n: u8| BlobId::from_bytes([n; 32]);
    let place = |block| Place { file: 1, block, bytes: 5000 };
    // A file without the first record is no log and not looked at, so that one stays.
    let header = log_of(&[]);
    let of = |records: &[Record]| log_of(records).split_off(RECORD_BYTES);
    let whole = of(&[
        Record::Put(Key::slice(id(1), 0), place(0)),
        Record::Put(Key::outboard(id(1)), place(2)),
        Record::Put(Key::whole(id(2)), place(4)),
        Record::Promoted(Key::slice(id(1), 0)),
        Record::Gone(Key::whole(id(2)), place(4)),
        Record::Purged([3; 32], 7),
        Record::Put(Key::slice(id(1), 1), place(6)),
    ]);
    let short = of(&[Record::Put(Key::whole(id(1)), place(0)), Record::Gone(Key::whole(id(1)), place(9))]);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("index.log");
    let opened = || {
        let (mut records, mut index) = (Vec::new(), Index::new());
        let (log, _) = Log::open(dir.path(), |record| {
            records.extend(record);
            match record {
                Some(Record::Put(key, place)) => index.restore(key, place),
                Some(Record::Promoted(key)) => index.restore_main(key),
                Some(Record::Gone(key, place)) => {
                    index.remove(key, Some(place));
                }
                Some(Record::Purged(..)) | None => {}
            }
        })
        .unwrap();
        let units: Vec<_> = (0..index.slot_count()).filter_map(|slot| index.at_slot(slot)).collect();
        assert_eq!(index.len(), units.len());
        assert_eq!(index.blocks(), units.iter().map(|(_, place)| place.blocks()).sum::<u64>());
        assert!(units.iter().all(|(key, place)| index.get(*key) == Some((*place, false))));
        (log.bytes(), records)
    };
    fs::write(&path, b"").unwrap();
    fuzz("index logs", &[&whole, &short, b""], |input| {
        // Every other one.
        let input = if input.iter().fold(0, |sum, byte| sum ^ byte) % 2 == 0 { signed(input) } else { input.to_vec() };
        // Made anew: a file system writes one that was emptied to the disk at once.
        fs::remove_file(&path).unwrap();
        fs::write(&path, [&header[..], &input].concat()).unwrap();
        let (_, records) = opened();
        let (end, again) = opened();
        assert_eq!(again, records);
        assert_eq!(end, fs::metadata(&path).unwrap().len());
    });
}
