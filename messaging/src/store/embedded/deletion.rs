//! Deleting accounts and devices so that nothing of them stays.
//!
//! A mailbox can hold a hundred thousand messages: erased in one commit they would hold everybody else up. So deleting
//! takes away at once what makes an account an account, and leaves a mark; the sweeper erases the rest a step at a time
//! and the mark last, so that a crash in between only makes it go on later.

use waxwing_protocol::AccountId;

use super::directory;
use super::table::Table;
use super::tables::{self, corrupt, engine_error, of_device, tag};
use super::writer::Turn;
use crate::store::{DeviceAddress, StoreError};

/// Records erased in one step.
const STEP: usize = 1024;

impl Turn<'_> {
    /// Takes an account away and marks what is left of it.
    pub(super) fn delete(&mut self, id: AccountId) -> Result<bool, StoreError> {
        let Some(record) = directory::account(self.tables, id)? else {
            return Ok(false);
        };
        let tables = self.tables;
        for (device, _) in directory::devices(tables, id)? {
            let device = DeviceAddress { account: id, device };
            self.batch.remove(&tables.directory, of_device(tag::DEVICE, device, &[]));
            self.batch.remove(&tables.directory, of_device(tag::FALLBACK, device, &[]));
            self.forget_wake_target(device)?;
            self.batch.remove(&tables.mailboxes, tables::address(device));
            self.memory.mailboxes.remove(&device);
            self.changed.remove(&device);
            self.unswept.remove(&device);
        }
        self.delete_channels(id)?;
        self.batch.remove(&tables.directory, tables::account(id));
        self.batch.remove(&tables.directory, tables::handle(&record.handle));
        self.batch.remove(&tables.directory, tables::preferences(id));
        self.batch.insert(&tables.directory, tables::deleted(id), []);
        self.memory.devices.remove(&id);
        self.forget_audiences(id);
        self.memory.preferences.remove(&id);
        self.memory.written.retain(|(account, peer), _| *account != id && *peer != id);
        self.memory.blocks.remove(&id);
        // What this turn has done to it before is not seen by the engine yet; what comes after must not find it.
        self.deleted = Some(id);
        Ok(true)
    }

    /// A step of erasing what deleted accounts have left; returns whether there is more.
    pub(super) fn sweep_deleted(&mut self) -> Result<bool, StoreError> {
        let Some(guard) = self.tables.directory.prefix([tag::DELETED]).next() else {
            return Ok(false);
        };
        let (mark, _) = guard.into_inner().map_err(engine_error)?;
        let tables = self.tables;
        let mut left = STEP;
        if let Some(device) = mark.get(1..).and_then(tables::address_of) {
            self.erase_device(device, &mut left)?;
            if left > 0 {
                self.batch.remove(&tables.directory, mark);
            }
            return Ok(true);
        }
        let id = mark.get(1..).and_then(|id| AccountId::from_slice(id).ok()).ok_or_else(|| corrupt("a deletion"))?;
        for peers in [tag::WRITTEN, tag::WRITTEN_BY] {
            self.erase_pairs(peers, id, &mut left)?;
        }
        for kind in [tag::ONE_TIME, tag::USED, tag::COALESCE, tag::BLOCKED, tag::MEMBER] {
            self.erase(&tables.directory, &[&[kind], &id.as_bytes()[..]].concat(), &mut left)?;
        }
        self.erase_channels(id, &mut left)?;
        self.erase_rows(id.as_bytes(), &mut left)?;
        self.erase(&tables.sends, id.as_bytes(), &mut left)?;
        if left > 0 {
            self.batch.remove(&tables.directory, mark);
        }
        Ok(true)
    }

    /// Erases what a removed device has left.
    fn erase_device(&mut self, device: DeviceAddress, left: &mut usize) -> Result<(), StoreError> {
        let tables = self.tables;
        for kind in [tag::ONE_TIME, tag::USED, tag::COALESCE] {
            self.erase(&tables.directory, &of_device(kind, device, &[]), left)?;
        }
        self.erase_rows(&tables::address(device), left)?;
        self.erase(&tables.sends, &tables::address(device), left)
    }

    /// Erases records under a prefix, as many as are `left` of the step.
    pub(super) fn erase(&mut self, table: &Table, prefix: &[u8], left: &mut usize) -> Result<(), StoreError> {
        for guard in table.prefix(prefix).take(*left) {
            self.batch.remove(table, guard.key().map_err(engine_error)?);
            *left -= 1;
        }
        Ok(())
    }

    /// Erases with whom an account had to do, on both sides.
    fn erase_pairs(&mut self, kind: u8, id: AccountId, left: &mut usize) -> Result<(), StoreError> {
        let directory = &self.tables.directory;
        for guard in directory.prefix([&[kind], &id.as_bytes()[..]].concat()).take(*left) {
            let key = guard.key().map_err(engine_error)?;
            let peer = tables::second_account(&key).ok_or_else(|| corrupt("a pair of accounts"))?;
            let mirror = if kind == tag::WRITTEN { tables::written_by(peer, id) } else { tables::written(peer, id) };
            self.batch.remove(directory, mirror);
            self.batch.remove(directory, key);
            *left -= 1;
        }
        Ok(())
    }
}
