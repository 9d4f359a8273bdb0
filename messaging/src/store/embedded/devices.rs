//! An account's devices: adding and removing one together with the list that says so.
//!
//! Were a list and the rows behind it changed apart, there would be a moment in which senders must encrypt for a device
//! that has no mailbox, or leave out one that still gets messages. So both are one commit, and the writer's memory of who
//! is in an account changes with it.

use prost::Message as _;
use waxwing_protocol::identity::SignedDeviceList;
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use super::directory;
use super::records::{AccountRow, DeviceRow, MailboxRow, PrekeyRow};
use super::tables::{self, Tables, corrupt, engine_error, of_device, tag};
use super::writer::Turn;
use crate::store::{
    AccountRecord, DeviceAddress, DeviceChange, DeviceDetails, ListChange, ListChanged, NewDevice, StoreError,
};

/// The highest number that a device of an account ever had.
pub(super) fn last(tables: &Tables, account: AccountId) -> Result<Option<DeviceId>, StoreError> {
    let Some(value) = tables.directory.get(tables::account(account)).map_err(engine_error)? else {
        return Ok(None);
    };
    let row = AccountRow::decode(&value[..]).map_err(|_| corrupt("an account"))?;
    Ok(Some(DeviceId::new(row.last_device).unwrap_or(DeviceId::FIRST)))
}

/// An account's devices for its owner, by rising number.
pub(super) fn details(tables: &Tables, account: AccountId) -> Result<Vec<DeviceDetails>, StoreError> {
    let details = directory::devices(tables, account)?.into_iter().map(|(device, _)| {
        let address = DeviceAddress { account, device };
        let Some(row) = row(tables, address)? else { return Ok(None) };
        let mailbox = tables.mailboxes.get(tables::address(address)).map_err(engine_error)?;
        let opened_at = mailbox.map(|value| MailboxRow::read(&value)).transpose()?.map_or(0, |row| row.opened_at);
        Ok(Some(DeviceDetails {
            device,
            name: row.name,
            added_at: Timestamp::from_millis(row.added_at),
            connected_at: Timestamp::from_millis(opened_at),
        }))
    });
    details.filter_map(Result::transpose).collect()
}

/// Accounts that have written to one, `limit` at most.
pub(super) fn writers(tables: &Tables, account: AccountId, limit: usize) -> Result<Vec<AccountId>, StoreError> {
    let pairs = tables.directory.prefix(tables::writers(account)).take(limit).map(|guard| {
        let key = guard.key().map_err(engine_error)?;
        tables::second_account(&key).ok_or_else(|| corrupt("a pair of accounts"))
    });
    pairs.collect()
}

fn row(tables: &Tables, device: DeviceAddress) -> Result<Option<DeviceRow>, StoreError> {
    let value = tables.directory.get(of_device(tag::DEVICE, device, &[])).map_err(engine_error)?;
    value.map(|value| DeviceRow::decode(&value[..]).map_err(|_| corrupt("a device"))).transpose()
}

impl Turn<'_> {
    /// Changes an account's devices.
    pub(super) fn change_devices(&mut self, change: &ListChange) -> Result<ListChanged, StoreError> {
        let Some(record) = directory::account(self.tables, change.account)? else {
            return Ok(ListChanged::NotFound);
        };
        if record.device_list == change.after {
            return Ok(if self.is_made(change)? { ListChanged::Repeated } else { ListChanged::Conflict });
        }
        if record.device_list != change.before {
            return Ok(ListChanged::Conflict);
        }
        match &change.what {
            DeviceChange::Added(new) => self.add_device(change.account, new)?,
            DeviceChange::Removed(device) => {
                self.remove_device(DeviceAddress { account: change.account, device: *device })?;
            }
        }
        let before = last(self.tables, change.account)?.map_or(0, DeviceId::get);
        let last = match &change.what {
            DeviceChange::Added(new) => before.max(new.device.get()),
            DeviceChange::Removed(_) => before,
        };
        let record = AccountRecord { device_list: SignedDeviceList::clone(&change.after), ..record };
        let row = AccountRow::new(&record, last).encode_to_vec();
        self.batch.insert(&self.tables.directory, tables::account(change.account), row);
        Ok(ListChanged::Done)
    }

    /// Whether the devices are as the change leaves them: it was made before, and its answer was lost.
    fn is_made(&self, change: &ListChange) -> Result<bool, StoreError> {
        match &change.what {
            DeviceChange::Added(new) => {
                let device = DeviceAddress { account: change.account, device: new.device };
                Ok(row(self.tables, device)?.is_some_and(|row| row.token_hash == new.token_hash))
            }
            DeviceChange::Removed(device) => {
                Ok(row(self.tables, DeviceAddress { account: change.account, device: *device })?.is_none())
            }
        }
    }

    fn add_device(&mut self, account: AccountId, new: &NewDevice) -> Result<(), StoreError> {
        let device = DeviceAddress { account, device: new.device };
        let mut devices = self.devices(account)?.to_vec();
        devices.push((new.device, new.reg_id));
        devices.sort_unstable();
        self.memory.devices.insert(account, devices.into());
        self.forget_audiences(account);
        let row = DeviceRow {
            token_hash: new.token_hash.to_vec(),
            reg_id: new.reg_id,
            next_token_hash: Vec::new(),
            name: new.name.clone(),
            added_at: new.now.as_millis(),
        };
        let directory = &self.tables.directory;
        self.batch.insert(directory, of_device(tag::DEVICE, device, &[]), row.encode_to_vec());
        let fallback = PrekeyRow::new(&new.fallback).encode_to_vec();
        self.batch.insert(directory, of_device(tag::FALLBACK, device, &[]), fallback);
        self.memory.mailboxes.insert(device, MailboxRow::new(new.epoch));
        self.changed.insert(device);
        Ok(())
    }

    fn remove_device(&mut self, device: DeviceAddress) -> Result<(), StoreError> {
        let devices = self.devices(device.account)?;
        let left: Vec<_> = devices.iter().copied().filter(|(id, _)| *id != device.device).collect();
        self.memory.devices.insert(device.account, left.into());
        self.forget_audiences(device.account);
        self.forget_wake_target(device)?;
        let directory = &self.tables.directory;
        self.batch.remove(directory, of_device(tag::DEVICE, device, &[]));
        self.batch.remove(directory, of_device(tag::FALLBACK, device, &[]));
        self.batch.remove(&self.tables.mailboxes, tables::address(device));
        self.batch.insert(directory, tables::removed(device), []);
        self.memory.mailboxes.remove(&device);
        self.changed.remove(&device);
        self.unswept.remove(&device);
        self.removed = Some(device);
        Ok(())
    }

    /// Names a device.
    pub(super) fn name_device(&mut self, device: DeviceAddress, name: Vec<u8>) -> Result<bool, StoreError> {
        self.change_device(device, |row| row.name = name)
    }

    /// Makes a second token valid.
    pub(super) fn add_token(&mut self, device: DeviceAddress, hash: [u8; 32]) -> Result<bool, StoreError> {
        self.change_device(device, |row| {
            // The one it has already: an answer was lost, and the new token was used meanwhile.
            if row.token_hash != hash {
                row.next_token_hash = hash.to_vec();
            }
        })
    }

    /// Makes the second token the only one.
    pub(super) fn promote_token(&mut self, device: DeviceAddress, hash: [u8; 32]) -> Result<(), StoreError> {
        self.change_device(device, |row| {
            if row.next_token_hash == hash {
                row.token_hash = std::mem::take(&mut row.next_token_hash);
            }
        })
        .map(drop)
    }

    fn change_device(
        &mut self,
        device: DeviceAddress,
        change: impl FnOnce(&mut DeviceRow),
    ) -> Result<bool, StoreError> {
        let Some(mut row) = row(self.tables, device)? else { return Ok(false) };
        change(&mut row);
        self.batch.insert(&self.tables.directory, of_device(tag::DEVICE, device, &[]), row.encode_to_vec());
        Ok(true)
    }
}
