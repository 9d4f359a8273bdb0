//! Where the records of sends stand that are no longer in the journal.
//!
//! Each message leaves a record for two days, so that sending it again is not sending it twice. At 30,000 messages a
//! second the engine would sort and merge those against one another without end, on the core that delivers. But they are
//! never changed, they all end after the same time, and hardly one is ever read again. So each checkpoint writes its own
//! as *runs*: files that are written once, never merged, and unlinked whole when the last record in them has ended.
//!
//! To look only into few of them, a send is sought by the time in its id, a UUIDv7: it stands in a run whose ids begin and
//! end around that. Ids that do not tell the time at which they came would be in every run and make every look-up long;
//! their records are left to the engine.
//!
//! Promise: a record that was given to [`Writing`] is found from [`Sends::add`] on, over restarts and power cuts, until
//! [`Sends::expire`] finds it older than it must be.

mod run;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use fjall::Slice;
use prost::Message as _;
use waxwing_protocol::Timestamp;

use self::run::{EXTENSION, Record, Records, Run, UNFINISHED};
use super::journal::Key;
use super::pace::Pace;
use super::records::SendRow;
use super::tables::ADDRESS_BYTES;

/// How long a send is remembered: 48 h are promised.
pub(super) const SENDS_KEPT: Duration = Duration::from_secs(50 * 60 * 60);

/// How far an id may be ahead of the server's clock. Every new send is sought in the runs of as long a while.
const AHEAD_MS: u64 = 30_000;

/// How far an id may be behind: a message that waited for a signal. Ones that waited longer are few.
const BEHIND_MS: u64 = 600_000;

/// Records of a run at most: some megabytes, so that no sync is long.
const RUN_RECORDS_MAX: usize = 64 * 1024;

/// Bytes of filters that are kept in memory at most, those of the newest runs: 20 million sends. Others are read where
/// they stand.
const FILTER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// What the checksums and keys of records are derived for.
const CONTEXT: &str = "waxwing messaging 2026-11 send records";

/// The runs of a store.
#[derive(Debug)]
pub(super) struct Sends {
    dir: PathBuf,
    key: Key,
    /// The oldest first.
    runs: RwLock<Vec<Run>>,
}

/// A record that was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Found {
    /// Of the sender's mailbox when it was written: another one's sends are not the sender's.
    pub(super) epoch: u64,
    pub(super) row: SendRow,
}

impl Sends {
    /// Opens the runs in `dir`. `store_key` is the store's own, and random: nobody chooses where a record stands.
    pub(super) fn open(dir: &Path, store_key: &Key) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let key = blake3::derive_key(CONTEXT, store_key);
        let mut runs = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                runs.push(Run::open(path, &key)?);
            } else if path.extension().is_some_and(|extension| extension == UNFINISHED) {
                // One that was not finished: the journal still has what it would have held.
                std::fs::remove_file(&path)?;
            }
        }
        runs.sort_by(|one, other| one.path().cmp(other.path()));
        let sends = Self { dir: dir.to_owned(), key, runs: RwLock::default() };
        runs.into_iter().for_each(|run| sends.put(run));
        Ok(sends)
    }

    /// Begins writing the records of a checkpoint that ends with the journal's record `up_to`.
    pub(super) fn writing(&self, up_to: u64) -> Writing<'_> {
        Writing { sends: self, up_to, sender: None, records: Records::default(), done: Vec::new() }
    }

    /// Makes runs known.
    pub(super) fn add(&self, runs: Vec<Run>) {
        runs.into_iter().for_each(|run| self.put(run));
    }

    fn put(&self, mut run: Run) {
        let mut runs = self.runs.write().unwrap_or_else(PoisonError::into_inner);
        // A checkpoint that a crash cut short is made again under the same name.
        runs.retain(|earlier| earlier.path() != run.path());
        run.follow(runs.last());
        runs.push(run);
        let mut bytes = 0;
        for run in runs.iter_mut().rev() {
            bytes += run.filter_bytes();
            if bytes > FILTER_BYTES_MAX {
                run.forget_filter();
            }
        }
    }

    /// The record of a send, by its key among [`super::tables::send`]'s.
    pub(super) fn find(&self, key: &[u8; ADDRESS_BYTES + 16]) -> io::Result<Option<Found>> {
        let at = id_ms(key);
        let hash = std::cell::OnceCell::new();
        let runs = self.runs.read().unwrap_or_else(PoisonError::into_inner);
        for run in runs.iter().rev() {
            if run.reach() < at {
                break;
            }
            if !run.covers(at) {
                continue;
            }
            if let Some(record) = run.find(hash.get_or_init(|| self.hash(key)), &self.key)? {
                let Record { epoch, content_hash, server_ts, conv_seq, .. } = record;
                let row = SendRow { content_hash: content_hash.to_vec(), server_ts, conv_seq };
                return Ok(Some(Found { epoch, row }));
            }
        }
        Ok(None)
    }

    /// Unlinks up to `limit` runs whose every record has ended; returns how many there were, and how many records in them.
    pub(super) fn expire(&self, now: Timestamp, limit: usize) -> io::Result<(usize, u64)> {
        let mut ended = Vec::new();
        self.runs.write().unwrap_or_else(PoisonError::into_inner).retain(|run| {
            let ends = ended.len() < limit && run.newest().plus(SENDS_KEPT) < now;
            if ends {
                ended.push((run.path().to_owned(), run.records()));
            }
            !ends
        });
        for (path, _) in &ended {
            std::fs::remove_file(path)?;
        }
        Ok((ended.len(), ended.iter().map(|(_, records)| records).sum()))
    }

    /// What stands for a send's key in a run: it names nobody, and is spread evenly.
    fn hash(&self, key: &[u8]) -> [u8; 16] {
        let mut hash = [0; 16];
        hash.copy_from_slice(&blake3::keyed_hash(&self.key, key).as_bytes()[..16]);
        hash
    }
}

/// The time in a message's id, in milliseconds.
fn id_ms(key: &[u8; ADDRESS_BYTES + 16]) -> u64 {
    let mut ms = [0; 8];
    ms[2..].copy_from_slice(&key[ADDRESS_BYTES..ADDRESS_BYTES + 6]);
    u64::from_be_bytes(ms)
}

/// The runs of a checkpoint while they are written.
pub(super) struct Writing<'a> {
    sends: &'a Sends,
    up_to: u64,
    /// The last sender, and the epoch of its mailbox: records come sorted by sender.
    sender: Option<([u8; ADDRESS_BYTES], u64)>,
    records: Records,
    done: Vec<Run>,
}

impl Writing<'_> {
    /// Takes the record of a send; false when the engine has to keep it. `epoch` tells that of the mailbox at the beginning
    /// of its key.
    pub(super) fn take(
        &mut self,
        key: &[u8],
        value: &Slice,
        epoch: impl FnOnce() -> fjall::Result<u64>,
        pace: &Pace,
    ) -> fjall::Result<bool> {
        let (Ok(key), Ok(row)) = (<&[u8; ADDRESS_BYTES + 16]>::try_from(key), SendRow::decode(&value[..])) else {
            return Ok(false);
        };
        let (id_ms, at) = (id_ms(key), row.server_ts);
        let Ok(content_hash) = row.content_hash.try_into() else { return Ok(false) };
        if id_ms > at.saturating_add(AHEAD_MS) || at > id_ms.saturating_add(BEHIND_MS) {
            return Ok(false);
        }
        let address = key[..ADDRESS_BYTES].try_into().expect("a key begins with one");
        let epoch = match self.sender {
            Some((last, epoch)) if last == address => epoch,
            _ => epoch()?,
        };
        self.sender = Some((address, epoch));
        let key = self.sends.hash(key);
        self.records.push(Record { key, id_ms, epoch, content_hash, server_ts: at, conv_seq: row.conv_seq });
        if self.records.len() == RUN_RECORDS_MAX {
            self.write(pace)?;
        }
        Ok(true)
    }

    /// Makes what was taken durable, to be added once the engine has the rest.
    pub(super) fn finish(mut self, pace: &Pace) -> io::Result<Vec<Run>> {
        if self.records.len() > 0 {
            self.write(pace)?;
        }
        if !self.done.is_empty() && !crate::fault::skip_sync() {
            std::fs::File::open(&self.sends.dir)?.sync_all()?;
        }
        Ok(self.done)
    }

    fn write(&mut self, pace: &Pace) -> io::Result<()> {
        let name = format!("{:020}-{:04}.{EXTENSION}", self.up_to, self.done.len());
        let path = self.sends.dir.join(name);
        let records = std::mem::take(&mut self.records);
        self.done.push(Run::write(path, records, &self.sends.key, pace)?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const STORE_KEY: Key = [3; 32];
    const NOW_MS: u64 = 1_800_000_000_000;

    type SendKey = [u8; ADDRESS_BYTES + 16];

    /// The key of send `n` whose id tells the time `id_ms`.
    fn send_key(n: u64, id_ms: u64) -> SendKey {
        let mut key = [7; ADDRESS_BYTES + 16];
        key[ADDRESS_BYTES..ADDRESS_BYTES + 6].copy_from_slice(&id_ms.to_be_bytes()[2..]);
        key[ADDRESS_BYTES + 8..].copy_from_slice(&n.to_be_bytes());
        key
    }

    fn row(n: u64, server_ts: u64) -> SendRow {
        SendRow { content_hash: [n.to_be_bytes(), [1; 8]].concat(), server_ts, conv_seq: n / 2 }
    }

    /// Writes a run of those that it takes, and returns how many those were.
    fn write(sends: &Sends, up_to: u64, rows: &[(SendKey, SendRow)]) -> usize {
        let mut writing = sends.writing(up_to);
        let take = |(key, row): &(SendKey, SendRow)| {
            writing.take(key, &row.encode_to_vec().into(), || Ok(5), &Pace::default()).unwrap()
        };
        let taken = rows.iter().map(take).filter(|taken| *taken).count();
        sends.add(writing.finish(&Pace::default()).unwrap());
        taken
    }

    fn found(sends: &Sends, key: &SendKey) -> Option<SendRow> {
        sends.find(key).unwrap().map(|found| {
            assert_eq!(found.epoch, 5);
            found.row
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Whatever clocks the senders have: what a run took is found, also by another process, and nothing else is.
        #[test]
        fn what_was_taken_is_found_and_nothing_else(
            runs in prop::collection::vec(prop::collection::vec((0..5000u64, -700_000..60_000i64), 1..400), 1..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
            let (mut model, mut others) = (HashMap::new(), Vec::new());
            for (nth, run) in (0u64..).zip(runs) {
                let at = NOW_MS + nth * 3_000;
                let mut rows = HashMap::new();
                for (n, off) in run {
                    let id_ms = at.saturating_add_signed(off);
                    let key = send_key(n, id_ms);
                    others.push(send_key(n + 5000, id_ms));
                    if !model.contains_key(&key) {
                        rows.insert(key, (row(n, at), (-600_000..=30_000).contains(&off)));
                    }
                }
                let all: Vec<_> = rows.iter().map(|(key, (row, _))| (*key, row.clone())).collect();
                let honest: Vec<_> = rows.into_iter().filter(|(_, (_, honest))| *honest).collect();
                prop_assert_eq!(write(&sends, nth, &all), honest.len());
                model.extend(honest.into_iter().map(|(key, (row, _))| (key, row)));
            }
            let reopened = Sends::open(dir.path(), &STORE_KEY).unwrap();
            for sends in [&sends, &reopened] {
                for (key, row) in &model {
                    prop_assert_eq!(found(sends, key), Some(row.clone()));
                }
                for key in &others {
                    prop_assert_eq!(found(sends, key), None);
                }
            }
        }
    }

    fn many(count: u64) -> Vec<(SendKey, SendRow)> {
        (0..count).map(|n| (send_key(n, NOW_MS), row(n, NOW_MS))).collect()
    }

    #[test]
    fn a_large_checkpoint_is_several_runs_and_every_record_in_them_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        let rows = many(RUN_RECORDS_MAX as u64 + 10);
        assert_eq!(write(&sends, 1, &rows), rows.len());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        for sends in [&sends, &Sends::open(dir.path(), &STORE_KEY).unwrap()] {
            assert!(rows.iter().step_by(97).all(|(key, row)| found(sends, key).as_ref() == Some(row)));
        }
    }

    #[test]
    fn each_record_has_the_epoch_of_its_own_sender() {
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        let mut writing = sends.writing(1);
        let keys: Vec<_> = (0..9)
            .map(|n| {
                let mut key = send_key(n, NOW_MS);
                key[0] = u8::try_from(n / 3).unwrap();
                key
            })
            .collect();
        for key in &keys {
            let value = row(0, NOW_MS).encode_to_vec().into();
            assert!(writing.take(key, &value, || Ok(key[0].into()), &Pace::default()).unwrap());
        }
        sends.add(writing.finish(&Pace::default()).unwrap());
        assert!(keys.iter().all(|key| sends.find(key).unwrap().unwrap().epoch == u64::from(key[0])));
    }

    /// A crash before the engine noted the checkpoint: the next start makes it again.
    #[test]
    fn a_checkpoint_that_is_made_twice_is_there_once_and_half_of_one_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        write(&sends, 1, &many(100));
        std::fs::write(dir.path().join("00000000000000000002-0000.part"), [0; 100]).unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        write(&sends, 1, &many(100));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let three_days = Timestamp::from_millis(NOW_MS).plus(Duration::from_secs(72 * 60 * 60));
        assert_eq!(sends.expire(three_days, 10).unwrap(), (1, 100));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(found(&sends, &many(1)[0].0), None);
    }

    #[test]
    fn a_run_is_kept_until_its_newest_record_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        let late = NOW_MS + 3_600_000;
        write(&sends, 1, &[(send_key(1, NOW_MS), row(1, NOW_MS)), (send_key(2, late), row(2, late))]);
        let kept = Timestamp::from_millis(NOW_MS).plus(SENDS_KEPT);
        assert_eq!(sends.expire(kept.plus(Duration::from_secs(3600)), 10).unwrap(), (0, 0));
        assert!(found(&sends, &send_key(1, NOW_MS)).is_some());
        assert_eq!(sends.expire(kept.plus(Duration::from_secs(3601)), 10).unwrap(), (1, 2));
    }

    #[test]
    fn a_damaged_block_is_an_error_and_a_damaged_end_no_store() {
        use std::os::unix::fs::FileExt as _;
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        write(&sends, 1, &many(1));
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 50).unwrap();
        assert!(sends.find(&many(1)[0].0).unwrap_err().to_string().contains("is damaged"));
        file.write_all_at(&[0xff], file.metadata().unwrap().len() - 1).unwrap();
        assert!(Sends::open(dir.path(), &STORE_KEY).unwrap_err().to_string().contains("is damaged"));
    }

    /// A megabyte or two of filters a minute on a busy node: they are not kept for all of two days.
    #[test]
    fn runs_whose_filters_are_forgotten_are_still_asked() {
        let dir = tempfile::tempdir().unwrap();
        let sends = Sends::open(dir.path(), &STORE_KEY).unwrap();
        let rows = many(5_000);
        write(&sends, 1, &rows);
        sends.runs.write().unwrap()[0].forget_filter();
        assert!(rows.iter().step_by(41).all(|(key, row)| found(&sends, key).as_ref() == Some(row)));
        assert!((0..200).all(|n| found(&sends, &send_key(n + 10_000, NOW_MS)).is_none()));
    }
}
