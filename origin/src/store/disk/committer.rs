//! Group commit: one thread that makes durable, with one sync, whatever waits.
//!
//! A sync costs the same for one record as for a hundred. While one is under way further changes queue up; the next
//! takes them all. Since this thread alone changes records, what a change decides by what it reads (`changes.rs`) needs no
//! locks.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use fjall::PersistMode;

use super::changes::{Change, Outcome};
use super::health::Health;
use super::pending::Pending;
use super::records::Table;
use crate::fault::kill_point;
use crate::metrics::{handles, timed};
use crate::store::StoreError;

/// Changes committed together at most; bounds what one sync has to carry.
const GROUP_MAX: usize = 1024;

/// Changes that wait at most; a submitter beyond blocks, which slows it down to the disk's pace.
const QUEUE_MAX: usize = 1024;

/// The thread, and the way to it. Ends with its last change when it is dropped.
pub(super) struct Committer {
    health: Arc<Health>,
    queue: Option<SyncSender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

struct Waiting {
    change: Change,
    answer: SyncSender<Result<Outcome, StoreError>>,
}

impl Committer {
    /// Starts it over `table`; its commits become as durable as `durability` says. The next purge is `next_purge`.
    pub(super) fn start(
        table: Table,
        durability: PersistMode,
        health: Arc<Health>,
        next_purge: u64,
    ) -> std::io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let mut group = Group { table, durability, health: Arc::clone(&health), next_purge };
        let thread = std::thread::Builder::new().name("origin-records".into()).spawn(move || {
            while let Some(changes) = next_group(&waiting) {
                group.commit(changes);
            }
        })?;
        Ok(Self { health, queue: Some(queue), thread: Some(thread) })
    }

    /// Queues `change` and waits until it is durable. Blocks.
    pub(super) fn submit(&self, change: Change) -> Result<Outcome, StoreError> {
        let gone = || self.health.fail("committing records", "their thread has ended");
        let (answer, outcome) = sync_channel(1);
        self.queue.as_ref().ok_or_else(gone)?.send(Waiting { change, answer }).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // It ends once the queue is empty; a panic in it was reported where it happened.
            let _ = thread.join();
        }
    }
}

/// The next change and whatever waits behind it; `None` when there will be no more.
fn next_group(waiting: &Receiver<Waiting>) -> Option<Vec<Waiting>> {
    let mut group = vec![waiting.recv().ok()?];
    group.extend(waiting.try_iter().take(GROUP_MAX - 1));
    Some(group)
}

struct Group {
    table: Table,
    durability: PersistMode,
    health: Arc<Health>,
    /// The number that the next purge gets.
    next_purge: u64,
}

impl Group {
    fn commit(&mut self, waiting: Vec<Waiting>) {
        let mut pending = Pending::new(&self.table);
        let mut entered = Vec::with_capacity(waiting.len());
        for Waiting { change, answer } in waiting {
            let outcome = self.health.writable().and_then(|()| change.enter(&mut pending, &mut self.next_purge));
            match outcome {
                Ok(outcome) => entered.push((answer, outcome)),
                // Its submitter may have gone: then nobody misses the answer, here and below.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        match timed(&handles().fsync_record, || pending.commit(self.durability)) {
            Ok(()) => {
                kill_point("records-committed");
                entered.into_iter().for_each(|(answer, outcome)| drop(answer.send(Ok(outcome))));
            }
            Err(error) => {
                let error = Arc::new(error);
                for (answer, _) in entered {
                    let failed = self.health.fail("committing records", Arc::clone(&error));
                    drop(answer.send(Err(failed)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use waxwing_protocol::OwnerTag;

    use super::*;
    use crate::store::StoreErrorKind;
    use crate::store::disk::records::Location;
    use crate::store::suite::{ALICE, BOB, blob_of, id};

    /// Two uploads of the same bytes may end in the very same commit, when the first is not yet in the records.
    #[test]
    fn the_same_bytes_twice_in_one_group_are_one_blob() {
        let (mut group, _directory) = group();
        let ((first, first_outcome), (second, second_outcome)) =
            (complete(1, ALICE, Some(Location::File(id(1)))), complete(2, BOB, Some(Location::File(id(2)))));
        group.commit(vec![first, second]);
        assert_eq!(first_outcome.recv().unwrap().unwrap(), Outcome::Made(Vec::new()));
        assert_eq!(second_outcome.recv().unwrap().unwrap(), Outcome::Made(vec![id(2)]));
        let pointer = group.table.blob(blob_of(b"the same", ALICE).0.id).unwrap().unwrap();
        assert_eq!(pointer.data, Location::File(id(1)));
    }

    /// Whoever saw the blob wrote nothing: when it is gone by now, a pointer to nowhere must not come of it.
    #[test]
    fn an_upload_without_bytes_of_its_own_adds_an_owner_or_fails() {
        let (mut group, _directory) = group();
        let (early, early_outcome) = complete(1, ALICE, None);
        let (stored, _outcome) = complete(2, ALICE, Some(Location::File(id(2))));
        let (late, late_outcome) = complete(3, BOB, None);
        group.commit(vec![early, stored, late]);
        assert_eq!(early_outcome.recv().unwrap().unwrap_err().kind(), StoreErrorKind::Busy);
        assert_eq!(late_outcome.recv().unwrap().unwrap(), Outcome::Made(vec![id(3)]));
    }

    /// The last two owners may let go at the same moment: one of them is the last, and only one.
    #[test]
    fn a_blob_that_comes_and_goes_in_one_group_leaves_one_purge() {
        let (mut group, _directory) = group();
        let blob = blob_of(b"the same", ALICE).0.id;
        let now = crate::store::suite::NOW;
        let (first, _) = complete(1, ALICE, Some(Location::File(id(1))));
        let (second, _) = complete(2, BOB, None);
        let (one, one_outcome) = waiting(Change::Disown { blob, owner: ALICE, now });
        let (other, other_outcome) = waiting(Change::Disown { blob, owner: BOB, now });
        let (again, again_outcome) = waiting(Change::Disown { blob, owner: BOB, now });
        group.commit(vec![first, second, one, other, again]);
        assert_eq!(one_outcome.recv().unwrap().unwrap(), Outcome::Made(Vec::new()));
        assert_eq!(other_outcome.recv().unwrap().unwrap(), Outcome::Made(vec![id(1)]));
        assert_eq!(again_outcome.recv().unwrap().unwrap(), Outcome::Absent);
        assert!(group.table.blob(blob).unwrap().is_none());
        assert_eq!(group.next_purge, 2);
        let left: Vec<_> = group.table.keyspace.iter().map(|entry| entry.key().unwrap()[0]).collect();
        assert_eq!(left, [b'g'], "nothing but the purge is left");
    }

    fn group() -> (Group, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let database = fjall::Database::builder(directory.path()).open().unwrap();
        let keyspace = database.keyspace("records", fjall::KeyspaceCreateOptions::default).unwrap();
        let table = Table { database, keyspace };
        (Group { table, durability: PersistMode::Buffer, health: Arc::default(), next_purge: 1 }, directory)
    }

    fn complete(n: u8, owner: OwnerTag, data: Option<Location>) -> (Waiting, Receiver<Result<Outcome, StoreError>>) {
        let (blob, outboard) = blob_of(b"the same", owner);
        waiting(Change::Complete { id: id(n), record: None, blob, data, outboard, damaged: None })
    }

    fn waiting(change: Change) -> (Waiting, Receiver<Result<Outcome, StoreError>>) {
        let (answer, outcome) = sync_channel(1);
        (Waiting { change, answer }, outcome)
    }
}
