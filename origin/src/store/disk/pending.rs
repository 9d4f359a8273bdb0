//! Changes that are being made: a batch, and the records as they will be once it is committed.
//!
//! Several changes of one group may touch the same blob or the same owner's count. Each has to see what those before it
//! did, although none of it is in the records yet.

use std::collections::BTreeMap;

use fjall::PersistMode;

use super::records::{Table, reading};
use crate::store::StoreError;

/// Changes that will be committed together.
pub(super) struct Pending<'a> {
    table: &'a Table,
    /// What the batch makes of a key; `None` when it is removed.
    changed: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl<'a> Pending<'a> {
    /// Nothing yet.
    pub(super) const fn new(table: &'a Table) -> Self {
        Self { table, changed: BTreeMap::new() }
    }

    /// What `key` will lead to.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changed.get(key) {
            Some(changed) => Ok(changed.clone()),
            None => Ok(self.table.get(key)?.map(|value| value.to_vec())),
        }
    }

    /// The keys that will begin with `prefix`, at most `limit`, in no order.
    pub(super) fn keys(&self, prefix: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, StoreError> {
        let changed = self.changed.range(prefix.to_vec()..).take_while(|(key, _)| key.starts_with(prefix));
        let mut keys: Vec<Vec<u8>> =
            changed.filter(|(_, value)| value.is_some()).map(|(key, _)| key.clone()).take(limit).collect();
        for entry in self.table.keyspace.prefix(prefix) {
            if keys.len() == limit {
                break;
            }
            let key = entry.key().map_err(reading)?;
            if !self.changed.contains_key(&*key) {
                keys.push(key.to_vec());
            }
        }
        Ok(keys)
    }

    /// Lets `key` lead to `value`.
    pub(super) fn insert(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changed.insert(key.into(), Some(value.into()));
    }

    /// Lets `key` lead to nothing.
    pub(super) fn remove(&mut self, key: impl Into<Vec<u8>>) {
        self.changed.insert(key.into(), None);
    }

    /// Commits all of it, as durably as `durability` says.
    pub(super) fn commit(self, durability: PersistMode) -> fjall::Result<()> {
        let mut batch = self.table.database.batch().durability(Some(durability));
        for (key, value) in self.changed {
            match value {
                Some(value) => batch.insert(&self.table.keyspace, key, value),
                None => batch.remove(&self.table.keyspace, key),
            }
        }
        batch.commit()
    }
}
