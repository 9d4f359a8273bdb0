//! A table: the engine's keyspace with what was committed lately laid over it.

use std::collections::VecDeque;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use fjall::{Keyspace, Slice};

use super::recent::{Entry, Generation, ROWS, Recent};

/// Entries taken from a generation at once while a range of them is read.
const AHEAD: usize = 256;

/// A table of the store.
#[derive(Clone)]
pub(super) struct Table {
    number: usize,
    keyspace: Keyspace,
    recent: Arc<Recent>,
}

impl Table {
    pub(super) fn new(number: usize, keyspace: Keyspace, recent: Arc<Recent>) -> Self {
        Self { number, keyspace, recent }
    }

    /// Its place among the store's tables: what a journal calls it.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    /// What the engine has of it.
    pub(super) fn keyspace(&self) -> &Keyspace {
        &self.keyspace
    }

    pub(super) fn get(&self, key: impl AsRef<[u8]>) -> fjall::Result<Option<Slice>> {
        match self.recent.get(self.number, key.as_ref()) {
            Some(entry) => Ok(entry.value().cloned()),
            None => self.keyspace.get(key),
        }
    }

    /// What was committed of a key lately: `None` when only the engine may know it.
    pub(super) fn recent(&self, key: &[u8]) -> Option<Entry> {
        self.recent.get(self.number, key)
    }

    pub(super) fn contains_key(&self, key: impl AsRef<[u8]>) -> fjall::Result<bool> {
        match self.recent.get(self.number, key.as_ref()) {
            Some(entry) => Ok(entry.value().is_some()),
            None => self.keyspace.contains_key(key),
        }
    }

    /// Whether a record is in memory alone and, erased now, leaves nothing behind.
    pub(super) fn is_fresh(&self, key: impl AsRef<[u8]>) -> bool {
        self.number == ROWS && matches!(self.recent.active().get(self.number, key.as_ref()), Some(Entry::Fresh(_)))
    }

    /// Records within a range, by rising key. What is committed meanwhile may be among them or not.
    pub(super) fn range<K: AsRef<[u8]>, R: RangeBounds<K>>(&self, range: R) -> Records {
        let owned = |bound: Bound<&K>| bound.map(|key| Slice::from(key.as_ref()));
        let (from, to) = (owned(range.start_bound()), owned(range.end_bound()));
        let (generations, below) = self.recent.with(|| self.keyspace.range((from.clone(), to.clone())));
        let cursor = |generation| Cursor { generation, ahead: VecDeque::new(), from: Some(from.clone()) };
        let above = generations.into_iter().map(cursor).collect();
        Records { table: self.number, to, above, below, next_below: None }
    }

    /// Records whose keys begin with `prefix`.
    pub(super) fn prefix(&self, prefix: impl AsRef<[u8]>) -> Records {
        let (from, to) = fjall::util::prefix_to_range(prefix.as_ref());
        self.range((from, to))
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> Records {
        self.range::<&[u8], _>(..)
    }
}

/// A record that was read, or why it could not be.
pub(super) struct Record(fjall::Result<(Slice, Slice)>);

impl Record {
    pub(super) fn into_inner(self) -> fjall::Result<(Slice, Slice)> {
        self.0
    }

    pub(super) fn key(self) -> fjall::Result<Slice> {
        self.0.map(|(key, _)| key)
    }
}

/// Records by rising key: of several sources that know a key, the newest is right.
pub(super) struct Records {
    table: usize,
    to: Bound<Slice>,
    /// The newest first.
    above: Vec<Cursor>,
    below: fjall::Iter,
    next_below: Option<(Slice, Slice)>,
}

/// How far a generation was read.
struct Cursor {
    generation: Arc<Generation>,
    ahead: VecDeque<(Slice, Entry)>,
    /// Where to go on; `None` at the end.
    from: Option<Bound<Slice>>,
}

impl Cursor {
    /// The next key.
    fn peek(&mut self, table: usize, to: &Bound<Slice>) -> Option<&Slice> {
        if self.ahead.is_empty()
            && let Some(from) = self.from.take()
        {
            let bytes = |bound: &Bound<Slice>| -> Bound<Vec<u8>> { bound.as_ref().map(|key| key.to_vec()) };
            let (from, to) = (bytes(&from), bytes(to));
            let bounds = (from.as_ref().map(Vec::as_slice), to.as_ref().map(Vec::as_slice));
            self.ahead = self.generation.part(table, bounds, AHEAD).into();
            if self.ahead.len() == AHEAD {
                self.from = self.ahead.back().map(|(key, _)| Bound::Excluded(key.clone()));
            }
        }
        self.ahead.front().map(|(key, _)| key)
    }
}

impl Iterator for Records {
    type Item = Record;

    fn next(&mut self) -> Option<Record> {
        loop {
            if self.next_below.is_none() {
                match self.below.next().map(fjall::Guard::into_inner) {
                    Some(Ok(record)) => self.next_below = Some(record),
                    Some(Err(error)) => return Some(Record(Err(error))),
                    None => {}
                }
            }
            let mut first = self.next_below.as_ref().map(|(key, _)| key.clone());
            for cursor in &mut self.above {
                if let Some(key) = cursor.peek(self.table, &self.to)
                    && first.as_ref().is_none_or(|first| key < first)
                {
                    first = Some(key.clone());
                }
            }
            let first = first?;
            let mut found = None;
            for cursor in &mut self.above {
                if cursor.ahead.front().is_some_and(|(key, _)| *key == first) {
                    let entry = cursor.ahead.pop_front().map(|(_, entry)| entry);
                    found = found.or(entry);
                }
            }
            let below = self.next_below.take_if(|(key, _)| *key == first).map(|(_, value)| value);
            let value = match found {
                Some(entry) => entry.value().cloned(),
                None => below,
            };
            if let Some(value) = value {
                return Some(Record(Ok((first, value))));
            }
        }
    }
}
