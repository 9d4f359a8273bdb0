//! Group commit: one thread that makes durable, with one sync, whatever waits.
//!
//! A sync costs the same for one record as for a hundred. While one is under way further changes queue up; the next
//! takes them all. Since this thread alone changes records, it can also decide, without locks, which of two uploads of
//! the same bytes becomes the blob and which adds an owner to it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use fjall::{OwnedWriteBatch, PersistMode};
use waxwing_protocol::{BlobId, UploadId};

use super::health::Health;
use super::records::{
    BlobPointer, Location, Table, blob_key, data_key, outboard_key, outboard_prefix, owner_key, pack_key, reading,
    upload_key,
};
use crate::store::{NewBlob, OutboardPart, StoreError, StoreErrorKind, UploadRecord};

/// Changes committed together at most; bounds what one sync has to carry.
const GROUP_MAX: usize = 1024;

/// Changes that wait at most; a submitter beyond blocks, which slows it down to the disk's pace.
const QUEUE_MAX: usize = 1024;

/// A change of records.
#[derive(Debug)]
pub(super) enum Change {
    /// An upload's record is this from now on, and its outboard has these values more.
    Put { id: UploadId, record: UploadRecord, outboard: OutboardPart },
    /// An upload's bytes, which are at `data`, are a blob from now on. When the blob is there already they are not
    /// needed, unless what is there are the bytes at `damaged`. Whoever saw that it is there gives no `data`.
    Complete {
        id: UploadId,
        record: Option<UploadRecord>,
        blob: NewBlob,
        data: Option<Location>,
        outboard: OutboardPart,
        damaged: Option<Location>,
    },
    /// An upload is no more.
    Remove { id: UploadId },
}

/// What becomes of the upload's own file after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DataFate {
    /// It is needed.
    Keep,
    /// No record speaks of it any more.
    Drop,
}

/// The thread, and the way to it. Ends with its last change when it is dropped.
pub(super) struct Committer {
    health: Arc<Health>,
    queue: Option<SyncSender<Waiting>>,
    thread: Option<JoinHandle<()>>,
}

struct Waiting {
    change: Change,
    answer: SyncSender<Result<DataFate, StoreError>>,
}

impl Committer {
    pub(super) fn start(table: Table, durability: PersistMode, health: Arc<Health>) -> std::io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE_MAX);
        let group = Group { table, durability, health: Arc::clone(&health) };
        let thread = std::thread::Builder::new().name("origin-records".into()).spawn(move || {
            while let Some(changes) = next_group(&waiting) {
                group.commit(changes);
            }
        })?;
        Ok(Self { health, queue: Some(queue), thread: Some(thread) })
    }

    /// Queues `change` and waits until it is durable. Blocks.
    pub(super) fn submit(&self, change: Change) -> Result<DataFate, StoreError> {
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
}

impl Group {
    fn commit(&self, waiting: Vec<Waiting>) {
        let mut batch = self.table.database.batch().durability(Some(self.durability));
        let mut new_blobs = HashMap::new();
        let mut pending = Vec::with_capacity(waiting.len());
        for Waiting { change, answer } in waiting {
            let entered = self.health.writable().and_then(|()| self.enter(&mut batch, &mut new_blobs, change));
            match entered {
                Ok(fate) => pending.push((answer, fate)),
                // Its submitter may have gone: then nobody misses the answer, here and below.
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        match batch.commit() {
            Ok(()) => pending.into_iter().for_each(|(answer, fate)| drop(answer.send(Ok(fate)))),
            Err(error) => {
                let error = Arc::new(error);
                for (answer, _) in pending {
                    let failed = self.health.fail("committing records", Arc::clone(&error));
                    drop(answer.send(Err(failed)));
                }
            }
        }
    }

    /// Enters `change` into the batch. Reads before it writes, so that a failure enters nothing.
    fn enter(
        &self,
        batch: &mut OwnedWriteBatch,
        new_blobs: &mut HashMap<BlobId, Location>,
        change: Change,
    ) -> Result<DataFate, StoreError> {
        match change {
            Change::Put { id, record, outboard } => {
                self.put(batch, id, &record, outboard);
                Ok(DataFate::Keep)
            }
            Change::Complete { id, record, blob, data, outboard, damaged } => {
                let stored = match new_blobs.get(&blob.id) {
                    Some(stored) => Some(*stored),
                    None => self.table.blob(blob.id)?.map(|pointer| pointer.data),
                };
                let whole = stored.filter(|stored| damaged != Some(*stored));
                let Some(kept) = whole.or(data) else {
                    return Err(StoreError::new(StoreErrorKind::Busy, "completing an upload of a blob that just went"));
                };
                let fate = if kept == Location::File(id) { DataFate::Keep } else { DataFate::Drop };
                if fate == DataFate::Drop {
                    self.drop_outboard(batch, id)?;
                }
                if let Some(old) = stored.filter(|old| *old != kept) {
                    self.drop_location(batch, old)?;
                }
                if stored != Some(kept) {
                    new_blobs.insert(blob.id, kept);
                    let pointer = BlobPointer { data: kept, blob_bytes: blob.blob_bytes, stored_at: blob.stored_at };
                    batch.insert(&self.table.keyspace, blob_key(blob.id), pointer.to_bytes());
                    match kept {
                        Location::File(upload) => {
                            batch.insert(&self.table.keyspace, data_key(upload), *blob.id.as_bytes());
                            self.put_outboard(batch, upload, outboard);
                        }
                        Location::Pack(at) => batch.insert(&self.table.keyspace, pack_key(at), *blob.id.as_bytes()),
                    }
                }
                let stored_at = blob.stored_at.as_millis().to_le_bytes();
                batch.insert(&self.table.keyspace, owner_key(blob.id, blob.owner), stored_at);
                if let Some(record) = record {
                    batch.insert(&self.table.keyspace, upload_key(id), record.to_bytes());
                }
                Ok(fate)
            }
            Change::Remove { id } => {
                let is_blob = self.table.get(&data_key(id))?.is_some();
                if !is_blob {
                    self.drop_outboard(batch, id)?;
                }
                batch.remove(&self.table.keyspace, upload_key(id));
                Ok(if is_blob { DataFate::Keep } else { DataFate::Drop })
            }
        }
    }

    fn put(&self, batch: &mut OwnedWriteBatch, id: UploadId, record: &UploadRecord, outboard: OutboardPart) {
        batch.insert(&self.table.keyspace, upload_key(id), record.to_bytes());
        self.put_outboard(batch, id, outboard);
    }

    /// Enters that no blob's bytes are at `location` any more. A file there is named by nothing from now on, and collected.
    fn drop_location(&self, batch: &mut OwnedWriteBatch, location: Location) -> Result<(), StoreError> {
        match location {
            Location::File(upload) => {
                self.drop_outboard(batch, upload)?;
                batch.remove(&self.table.keyspace, data_key(upload));
            }
            Location::Pack(at) => batch.remove(&self.table.keyspace, pack_key(at)),
        }
        Ok(())
    }

    fn put_outboard(&self, batch: &mut OwnedWriteBatch, id: UploadId, outboard: OutboardPart) {
        if !outboard.cvs.is_empty() {
            batch.insert(&self.table.keyspace, outboard_key(id, outboard.first_group), outboard.cvs);
        }
    }

    fn drop_outboard(&self, batch: &mut OwnedWriteBatch, id: UploadId) -> Result<(), StoreError> {
        let keys: Result<Vec<_>, _> =
            self.table.keyspace.prefix(outboard_prefix(id)).map(|entry| entry.key().map_err(reading)).collect();
        for key in keys? {
            batch.remove(&self.table.keyspace, key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use waxwing_protocol::OwnerTag;

    use super::*;
    use crate::store::suite::{ALICE, BOB, blob_of, id};

    /// Two uploads of the same bytes may end in the very same commit, when the first is not yet in the records.
    #[test]
    fn the_same_bytes_twice_in_one_group_are_one_blob() {
        let (group, _directory) = group();
        let ((first, first_fate), (second, second_fate)) =
            (complete(1, ALICE, Some(Location::File(id(1)))), complete(2, BOB, Some(Location::File(id(2)))));
        group.commit(vec![first, second]);
        assert_eq!(first_fate.recv().unwrap().unwrap(), DataFate::Keep);
        assert_eq!(second_fate.recv().unwrap().unwrap(), DataFate::Drop);
        let pointer = group.table.blob(blob_of(b"the same", ALICE).0.id).unwrap().unwrap();
        assert_eq!(pointer.data, Location::File(id(1)));
    }

    /// Whoever saw the blob wrote nothing: when it is gone by now, a pointer to nowhere must not come of it.
    #[test]
    fn an_upload_without_bytes_of_its_own_adds_an_owner_or_fails() {
        let (group, _directory) = group();
        let (early, early_fate) = complete(1, ALICE, None);
        let (stored, _fate) = complete(2, ALICE, Some(Location::File(id(2))));
        let (late, late_fate) = complete(3, BOB, None);
        group.commit(vec![early, stored, late]);
        assert_eq!(early_fate.recv().unwrap().unwrap_err().kind(), StoreErrorKind::Busy);
        assert_eq!(late_fate.recv().unwrap().unwrap(), DataFate::Drop);
    }

    fn group() -> (Group, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        let database = fjall::Database::builder(directory.path()).open().unwrap();
        let keyspace = database.keyspace("records", fjall::KeyspaceCreateOptions::default).unwrap();
        let table = Table { database, keyspace };
        (Group { table, durability: PersistMode::Buffer, health: Arc::default() }, directory)
    }

    fn complete(n: u8, owner: OwnerTag, data: Option<Location>) -> (Waiting, Receiver<Result<DataFate, StoreError>>) {
        let (blob, outboard) = blob_of(b"the same", owner);
        let (answer, outcome) = sync_channel(1);
        let change = Change::Complete { id: id(n), record: None, blob, data, outboard, damaged: None };
        (Waiting { change, answer }, outcome)
    }
}
