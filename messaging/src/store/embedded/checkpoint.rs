//! Checkpoints: giving the engine what was committed a while ago, so that the journal's segments can be used again.
//!
//! A thread of its own does it, which yields to those that serve. Nothing that serves waits for it, unless it falls so
//! far behind that the journal would take more room than it may. A thread that yields still keeps the core for a
//! millisecond or two once it has it, and a message wakes three threads one after the other; so this one also rests
//! between small steps ([`Pace`]).

use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use fjall::PersistMode;
use tracing::{debug, error};

use super::batch::Batch;
use super::journal::{Journal, Replayed, Segment, Shelf};
use super::pace::Pace;
use super::recent::{Generation, Recent, SENDS, TABLES};
use super::records::MailboxRow;
use super::tables::{ADDRESS_BYTES, Tables, yielding};
use crate::fault;
use crate::store::{StoreError, StoreErrorKind};

/// Segments that wait for the engine at most; then commits wait. At their largest they are 512 MiB.
const SEGMENTS_WAITING_MAX: usize = 16;

/// And from how many on a checkpoint does not rest.
const SEGMENTS_HURRY: usize = 2;

/// Records given to the engine at once: some 100 us of work.
const PART: usize = 256;

/// The end of a store through which every commit goes. The writer thread has it.
pub(super) struct Commits {
    journal: Journal,
    recent: Arc<Recent>,
    /// Full segments of the generation that takes changes.
    full: Vec<Segment>,
    orders: Sender<Order>,
    idle: Arc<Idle>,
    failed: Arc<AtomicBool>,
}

/// Something for the checkpoint thread to do.
enum Order {
    /// A segment is wanted.
    Segment,
    Checkpoint(Frozen),
}

/// A generation to be written to the engine.
struct Frozen {
    generation: Arc<Generation>,
    /// The number of the last record that is in it.
    up_to: u64,
    segments: Vec<Segment>,
}

/// Whether a checkpoint is under way, for whoever has to wait for its end.
#[derive(Default)]
struct Idle {
    busy: Mutex<bool>,
    changed: Condvar,
    pace: Arc<Pace>,
}

impl Idle {
    fn set(&self, busy: bool) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = busy;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.pace.hurry(true);
        while *busy {
            busy = self.changed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        self.pace.hurry(false);
    }
}

impl Commits {
    /// Begins where `journal` ended: what it held that `tables` have not seen is in the frozen generation of `recent`, and
    /// becomes the first checkpoint. `failed` is set when the engine takes no more.
    pub(super) fn start(
        journal: Journal,
        replayed: Replayed,
        recent: Arc<Recent>,
        tables: Tables,
        failed: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let (orders, waiting) = channel();
        let idle = Arc::new(Idle::default());
        if let Some(generation) = recent.frozen() {
            idle.set(true);
            let frozen = Frozen { generation, up_to: journal.last(), segments: replayed.segments };
            // The thread that takes it begins below.
            let _ = orders.send(Order::Checkpoint(frozen));
        }
        let thread =
            Checkpoints { tables, shelf: journal.shelf(), waiting, idle: idle.clone(), failed: failed.clone() };
        std::thread::Builder::new().name("checkpoints".into()).spawn(move || yielding(|| thread.run()))?;
        Ok(Self { journal, recent, full: Vec::new(), orders, idle, failed })
    }

    /// Whether writing is possible; false for good once something failed to be written.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Commits a batch: it is durable and can be read on return. After an error nothing is committed any more.
    pub(super) fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        if self.has_failed() {
            return Err(StoreError::new(StoreErrorKind::Other, "the store takes no more writes"));
        }
        if batch.0.is_empty() {
            return Ok(());
        }
        let written = self.write(&batch);
        if written.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        written.map_err(|error| StoreError::new(StoreErrorKind::Other, error))?;
        // What stays is one piece of memory, and not what each command has made.
        drop(batch);
        let batch = Batch::decode(&self.journal.prepared().into(), TABLES).expect("it was encoded a moment ago");
        self.recent.active().apply(batch, false);
        if self.journal.wants().is_some() {
            let _ = self.orders.send(Order::Segment);
        }
        Ok(())
    }

    /// Gives the engine everything, so that a store that was closed in order can also be opened by a version without a
    /// journal.
    pub(super) fn settle(&mut self) {
        self.idle.wait();
        if !self.has_failed() {
            match self.turn_over() {
                Ok(()) => self.idle.wait(),
                // It stays in the journal.
                Err(error) => error!(%error, "the journal was not given to the tables"),
            }
        }
    }

    fn write(&mut self, batch: &Batch) -> io::Result<()> {
        if !self.journal.prepare(batch) {
            self.turn_over()?;
        }
        self.journal.write()
    }

    /// Begins another segment, and a checkpoint of what is in the full ones unless one is under way.
    fn turn_over(&mut self) -> io::Result<()> {
        self.full.push(self.journal.turn_over()?);
        self.idle.pace.hurry(self.full.len() >= SEGMENTS_HURRY);
        if self.full.len() >= SEGMENTS_WAITING_MAX {
            self.idle.wait();
        }
        // What is in memory now is what the full segments hold.
        if let Some(generation) = self.recent.freeze() {
            let segments = std::mem::take(&mut self.full);
            self.idle.set(true);
            let frozen = Frozen { generation, up_to: self.journal.last(), segments };
            let _ = self.orders.send(Order::Checkpoint(frozen));
        }
        Ok(())
    }
}

/// What the checkpoint thread owns.
struct Checkpoints {
    tables: Tables,
    shelf: Arc<Shelf>,
    waiting: Receiver<Order>,
    idle: Arc<Idle>,
    failed: Arc<AtomicBool>,
}

impl Checkpoints {
    /// Works until nobody commits any more.
    fn run(self) {
        while let Ok(order) = self.waiting.recv() {
            let done = match order {
                Order::Segment => self.shelf.fulfil().map_err(fjall::Error::Io),
                Order::Checkpoint(frozen) => {
                    let done = self.checkpoint(frozen);
                    self.idle.set(false);
                    done
                }
            };
            if let Err(error) = done {
                error!(%error, "the store could not write its tables and takes no more writes");
                self.failed.store(true, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Writes a generation to the engine, and only when it is durable there lets go of its segments. Cut anywhere it is
    /// begun again: the same records are put once more.
    fn checkpoint(&self, frozen: Frozen) -> fjall::Result<()> {
        let began = Instant::now();
        let mut records = 0;
        let mut sends = self.tables.sent.writing(frozen.up_to);
        for table in self.tables.all() {
            let mut from = Bound::Unbounded;
            loop {
                let lower = from.as_ref().map(|key: &fjall::Slice| &key[..]);
                let part = frozen.generation.part(table.number(), (lower, Bound::Unbounded), PART);
                let Some((last, _)) = part.last() else { break };
                from = Bound::Excluded(last.clone());
                records += part.len();
                let full = part.len() == PART;
                let mut batch = self.tables.db.batch();
                for (key, entry) in part {
                    match entry.value() {
                        Some(value)
                            if table.number() == SENDS
                                && sends.take(
                                    &key,
                                    value,
                                    || self.epoch(&frozen.generation, &key),
                                    &self.idle.pace,
                                )? => {}
                        Some(value) => batch.insert(table.keyspace(), key, value.clone()),
                        None => batch.remove(table.keyspace(), key),
                    }
                }
                batch.commit()?;
                // The writer is not to make its segments itself because this takes long.
                self.shelf.fulfil()?;
                if full {
                    self.idle.pace.rest();
                }
            }
        }
        let runs = sends.finish(&self.idle.pace)?;
        self.tables.note_checkpoint(frozen.up_to, (!fault::skip_sync()).then_some(PersistMode::SyncData))?;
        // Before they are forgotten: nobody who looks may find them nowhere.
        self.tables.sent.add(runs);
        self.tables.recent.thaw();
        for segment in frozen.segments {
            self.shelf.put_back(segment)?;
        }
        // Whoever still reads in it lets go of it otherwise.
        if let Some(generation) = Arc::into_inner(frozen.generation) {
            generation.dismantle(&self.idle.pace);
        }
        self.tables.relieve_journal()?;
        let took_ms = began.elapsed().as_millis();
        debug!(records, took_ms, "checkpoint");
        Ok(())
    }

    /// The epoch of the mailbox whose address begins `key`, as this checkpoint leaves it; 0 when there is none.
    fn epoch(&self, generation: &Generation, key: &[u8]) -> fjall::Result<u64> {
        let mailboxes = &self.tables.mailboxes;
        let address = &key[..ADDRESS_BYTES];
        let value = match generation.get(mailboxes.number(), address) {
            Some(entry) => entry.value().cloned(),
            None => mailboxes.keyspace().get(address)?,
        };
        // One that is damaged is nobody's, and nobody's sends are looked up.
        Ok(value.and_then(|value| MailboxRow::read(&value).ok()).map_or(0, |mailbox| mailbox.epoch))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// A store's tables without the writer.
    struct Store {
        dir: tempfile::TempDir,
        tables: Tables,
        commits: Commits,
    }

    impl Store {
        fn open(dir: tempfile::TempDir) -> Self {
            loop {
                match Tables::open(dir.path(), &Arc::default()) {
                    Ok((tables, commits)) => return Self { dir, tables, commits },
                    // The threads of the one before let go of the directory when they see that nobody is left.
                    Err(super::super::EmbeddedStoreError::Locked) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        }

        fn reopened(self) -> Self {
            let Self { dir, tables, commits } = self;
            drop((tables, commits));
            Self::open(dir)
        }

        fn checkpoint(&mut self) {
            self.commits.turn_over().unwrap();
        }

        fn checkpointed(&mut self) {
            self.checkpoint();
            self.commits.idle.wait();
        }

        fn directory(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
            let records = self.tables.directory.iter().map(|record| record.into_inner().unwrap());
            records.map(|(key, value)| (key.to_vec(), value.to_vec())).collect()
        }

        /// Rows that stand in the engine.
        fn rows_below(&self) -> usize {
            self.tables.rows.keyspace().iter().count()
        }
    }

    fn store() -> Store {
        Store::open(tempfile::tempdir().unwrap())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(u8, u8),
        Remove(u8),
        Checkpoint,
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..12u8, any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
            4 => (0..12u8).prop_map(Step::Remove),
            2 => Just(Step::Checkpoint),
            1 => Just(Step::Reopen),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever stands in memory, in a checkpoint under way and in the engine: read together it is what a map holds.
        #[test]
        fn a_table_holds_what_a_map_would(steps in prop::collection::vec(step(), 1..40)) {
            let (mut store, mut model) = (store(), BTreeMap::new());
            for step in steps {
                let mut batch = Batch::default();
                match step {
                    Step::Put(key, value) => {
                        batch.insert(&store.tables.directory, [key], [value]);
                        model.insert(vec![key], vec![value]);
                    }
                    Step::Remove(key) => {
                        batch.remove(&store.tables.directory, [key]);
                        model.remove(&vec![key]);
                    }
                    Step::Checkpoint => store.checkpoint(),
                    Step::Reopen => store = store.reopened(),
                }
                store.commits.commit(batch).unwrap();
                let expected: Vec<_> = model.clone().into_iter().collect();
                prop_assert_eq!(store.directory(), expected);
                for key in 0..12 {
                    let value = store.tables.directory.get([key]).unwrap();
                    prop_assert_eq!(value.as_deref(), model.get(&vec![key]).map(Vec::as_slice));
                }
                let some = store.tables.directory.range([3]..[9]).map(|record| record.key().unwrap().to_vec());
                let expected: Vec<_> = model.range(vec![3]..vec![9]).map(|(key, _)| key.clone()).collect();
                prop_assert_eq!(some.collect::<Vec<_>>(), expected);
            }
        }
    }

    #[test]
    fn a_long_range_is_read_whole_across_memory_and_engine() {
        let mut store = store();
        for thousand in 0..3u32 {
            let mut batch = Batch::default();
            for n in (thousand..3000).step_by(3) {
                batch.insert(&store.tables.directory, n.to_be_bytes(), [0]);
            }
            store.commits.commit(batch).unwrap();
            if thousand < 2 {
                store.checkpointed();
            }
        }
        let keys: Vec<_> = store.directory().into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, (0..3000u32).map(|n| n.to_be_bytes().to_vec()).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_that_is_erased_before_a_checkpoint_never_gets_to_the_engine() {
        let mut store = store();
        let (mut put, mut erased) = (Batch::default(), Batch::default());
        for n in 0..10u8 {
            put.insert(&store.tables.rows, [n], [n]);
            if n < 9 {
                erased.remove(&store.tables.rows, [n]);
            }
        }
        store.commits.commit(put).unwrap();
        assert!(store.tables.rows.is_fresh([3]));
        store.commits.commit(erased).unwrap();
        assert!(!store.tables.rows.is_fresh([3]));
        store.checkpointed();
        assert_eq!(store.rows_below(), 1);
        assert!(!store.tables.rows.is_fresh([9]), "the engine has it");
    }

    /// A crash amid a checkpoint leaves rows in the engine that the journal puts and erases once more.
    #[test]
    fn a_row_that_half_a_checkpoint_gave_the_engine_is_erased_by_what_follows() {
        let mut store = store();
        let mut batch = Batch::default();
        batch.insert(&store.tables.rows, [1], [1]);
        store.commits.commit(batch).unwrap();
        let rows = store.tables.rows.keyspace().clone();
        rows.insert([1], [1]).unwrap();
        let mut batch = Batch::default();
        batch.remove(&store.tables.rows, [1]);
        store.commits.commit(batch).unwrap();
        drop(rows);

        let mut store = store.reopened();
        assert_eq!(store.tables.rows.get([1]).unwrap(), None);
        store.commits.idle.wait();
        store.checkpointed();
        assert_eq!(store.rows_below(), 0);
    }

    /// Versions before this one kept everything in the engine alone.
    #[test]
    fn a_store_without_a_journal_is_opened_as_it_is() {
        let mut first = store();
        let mut batch = Batch::default();
        batch.insert(&first.tables.directory, [1], [1]);
        first.commits.commit(batch).unwrap();
        first.commits.settle();
        let Store { dir, tables, commits } = first;
        assert_eq!(tables.directory.keyspace().get([1]).unwrap().as_deref(), Some(&[1][..]), "the engine has it");
        drop((tables, commits));
        std::fs::remove_dir_all(dir.path().join("journal")).unwrap();

        let second = Store::open(dir);
        assert_eq!(second.directory(), [(vec![1], vec![1])]);
    }

    #[test]
    fn segments_are_used_again_once_the_engine_has_what_is_in_them() {
        let mut store = store();
        for n in 0..400u32 {
            let mut batch = Batch::default();
            batch.insert(&store.tables.directory, n.to_be_bytes(), vec![7; 20_000]);
            store.commits.commit(batch).unwrap();
            if n % 10 == 0 {
                store.commits.idle.wait();
            }
        }
        store.checkpointed();
        let journal = std::fs::read_dir(store.dir.path().join("journal")).unwrap();
        let bytes: u64 = journal.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(bytes < 8_000_000 * 3, "{bytes} bytes of journal");
        let store = store.reopened();
        assert_eq!(store.directory().len(), 400);
    }

    #[test]
    fn after_a_failure_nothing_is_committed() {
        let mut store = store();
        store.commits.failed.store(true, Ordering::Relaxed);
        let mut batch = Batch::default();
        batch.insert(&store.tables.directory, [1], [1]);
        assert!(store.commits.commit(batch).is_err());
        assert_eq!(store.tables.directory.get([1]).unwrap(), None);
    }
}
