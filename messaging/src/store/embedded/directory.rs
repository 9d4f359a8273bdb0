//! Accounts, devices and prekeys: what a turn of the writer changes, and what is read beside it.
//!
//! A turn holds at most one directory change, so each sees the ones before it committed. That is what makes a claim
//! exclusive: two claims never look at the same remaining keys.

use std::ops::Bound;

use prost::Message as _;
use waxwing_protocol::api::{ONE_TIME_KEYS_MAX, Preferences};
use waxwing_protocol::identity::{PrekeyKind, SignedPrekey};
use waxwing_protocol::{AccountId, DeviceId, Handle, Timestamp};

use super::batch::Batch;
use super::blocks;
use super::records::{AccountRow, DeviceRow, MailboxRow, PreferencesRow, PrekeyRow};
use super::tables::{self, Tables, corrupt, engine_error, of_device, tag};
use super::writer::Turn;
use crate::store::{
    AccountRecord, Claimed, DeviceAddress, DeviceRecord, NewAccount, PrekeysHeld, Regard, Registered, Renamed,
    StoreError,
};

/// Reads an account.
pub(super) fn account(tables: &Tables, account: AccountId) -> Result<Option<AccountRecord>, StoreError> {
    let Some(value) = tables.directory.get(tables::account(account)).map_err(engine_error)? else {
        return Ok(None);
    };
    let row = AccountRow::decode(&value[..]).map_err(|_| corrupt("an account"))?;
    row.into_record(account).map(Some)
}

/// Reads the accounts after one, by rising id.
pub(super) fn accounts(
    tables: &Tables,
    after: Option<AccountId>,
    limit: usize,
) -> Result<Vec<AccountRecord>, StoreError> {
    let from = after.map_or_else(|| vec![tag::ACCOUNT], tables::account);
    let end = [tag::ACCOUNT + 1];
    let range = (Bound::Excluded(&from[..]), Bound::Excluded(&end[..]));
    let rows = tables.directory.range::<&[u8], _>(range).take(limit).map(|guard| {
        let (key, value) = guard.into_inner().map_err(engine_error)?;
        let id = key.get(1..).and_then(|id| AccountId::from_slice(id).ok()).ok_or_else(|| corrupt("an account"))?;
        AccountRow::decode(&value[..]).map_err(|_| corrupt("an account"))?.into_record(id)
    });
    rows.collect()
}

/// Reads the account that has a handle.
pub(super) fn account_by_handle(tables: &Tables, handle: &Handle) -> Result<Option<AccountRecord>, StoreError> {
    let Some(value) = tables.directory.get(tables::handle(handle)).map_err(engine_error)? else {
        return Ok(None);
    };
    account(tables, AccountId::from_slice(&value).map_err(|_| corrupt("a handle"))?)
}

/// Reads a device.
pub(super) fn device(tables: &Tables, device: DeviceAddress) -> Result<Option<DeviceRecord>, StoreError> {
    let key = of_device(tag::DEVICE, device, &[]);
    let Some(value) = tables.directory.get(key).map_err(engine_error)? else {
        return Ok(None);
    };
    let row = DeviceRow::decode(&value[..]).map_err(|_| corrupt("a device"))?;
    let hash = |bytes: Vec<u8>| bytes.try_into().map_err(|_| corrupt("a device"));
    let next_token_hash = Some(row.next_token_hash).filter(|hash| !hash.is_empty()).map(hash).transpose()?;
    Ok(Some(DeviceRecord { token_hash: hash(row.token_hash)?, next_token_hash, reg_id: row.reg_id }))
}

/// Reads an account's devices with their reg_ids, by rising number.
pub(super) fn devices(tables: &Tables, account: AccountId) -> Result<Vec<(DeviceId, u32)>, StoreError> {
    let prefix = tables::devices(account);
    let rows = tables.directory.prefix(&prefix).map(|guard| {
        let (key, value) = guard.into_inner().map_err(engine_error)?;
        let address = tables::address_of(&key[1..]).ok_or_else(|| corrupt("a device"))?;
        let row = DeviceRow::decode(&value[..]).map_err(|_| corrupt("a device"))?;
        Ok((address.device, row.reg_id))
    });
    rows.collect()
}

/// Reads what an account lets others know.
pub(super) fn preferences(tables: &Tables, account: AccountId) -> Result<Preferences, StoreError> {
    let Some(value) = tables.directory.get(tables::preferences(account)).map_err(engine_error)? else {
        return Ok(Preferences::default());
    };
    PreferencesRow::decode(&value[..]).map_err(|_| corrupt("an account's preferences"))?.into_preferences()
}

/// Whether an account has ever written to another.
pub(super) fn has_written(tables: &Tables, account: AccountId, peer: AccountId) -> Result<bool, StoreError> {
    tables.directory.contains_key(tables::written(account, peer)).map_err(engine_error)
}

/// How each of `accounts` stands to `peer`.
pub(super) fn regards(
    tables: &Tables,
    accounts: &[AccountId],
    peer: AccountId,
) -> Result<Vec<Option<Regard>>, StoreError> {
    let regard = |account: &AccountId| {
        if !tables.directory.contains_key(tables::account(*account)).map_err(engine_error)? {
            return Ok(None);
        }
        let has_written = has_written(tables, *account, peer)?;
        let has_blocked = blocks::has_blocked(tables, *account, peer)?;
        Ok(Some(Regard { preferences: preferences(tables, *account)?, has_written, has_blocked }))
    };
    accounts.iter().map(regard).collect()
}

/// Reads the fallback prekey of a device.
pub(super) fn fallback_prekey(tables: &Tables, device: DeviceAddress) -> Result<Option<SignedPrekey>, StoreError> {
    let Some(value) = tables.directory.get(of_device(tag::FALLBACK, device, &[])).map_err(engine_error)? else {
        return Ok(None);
    };
    let row = PrekeyRow::decode(&value[..]).map_err(|_| corrupt("a prekey"))?;
    row.into_prekey(PrekeyKind::Fallback).map(Some)
}

/// Counts a device's prekeys.
pub(super) fn prekeys_held(tables: &Tables, device: DeviceAddress) -> Result<PrekeysHeld, StoreError> {
    let fallback = of_device(tag::FALLBACK, device, &[]);
    Ok(PrekeysHeld {
        one_time: one_time_keys(tables, device)?.len(),
        fallback: tables.directory.contains_key(fallback).map_err(engine_error)?,
    })
}

/// A device's one-time keys, oldest first. There are [`ONE_TIME_KEYS_MAX`] at most.
fn one_time_keys(tables: &Tables, device: DeviceAddress) -> Result<Vec<(Vec<u8>, PrekeyRow)>, StoreError> {
    let prefix = of_device(tag::ONE_TIME, device, &[]);
    let rows = tables.directory.prefix(&prefix).map(|guard| {
        let (key, value) = guard.into_inner().map_err(engine_error)?;
        let row = PrekeyRow::decode(&value[..]).map_err(|_| corrupt("a prekey"))?;
        Ok((key.to_vec(), row))
    });
    rows.collect()
}

/// Puts the records of a new account and its first device.
pub(super) fn put(batch: &mut Batch, tables: &Tables, new: &NewAccount) {
    let record = &new.record;
    let device = DeviceAddress { account: record.account, device: new.device };
    let row = DeviceRow { token_hash: new.token_hash.to_vec(), reg_id: new.reg_id, ..DeviceRow::default() };
    let directory = &tables.directory;
    batch.insert(directory, tables::account(record.account), AccountRow::new(record, 0).encode_to_vec());
    batch.insert(directory, tables::handle(&record.handle), record.account.as_bytes());
    batch.insert(directory, of_device(tag::DEVICE, device, &[]), row.encode_to_vec());
    let mailbox = MailboxRow::new(new.epoch).encode_to_vec();
    batch.insert(&tables.mailboxes, tables::address(device), mailbox);
}

impl Turn<'_> {
    /// Registers an account with its first device.
    pub(super) fn register(&mut self, new: &NewAccount) -> Result<Registered, StoreError> {
        let record = &new.record;
        let device = DeviceAddress { account: record.account, device: new.device };
        if let Some(known) = account(self.tables, record.account)? {
            let known_token = self::device(self.tables, device)?.map(|device| device.token_hash);
            let same = known == *record && known_token == Some(new.token_hash);
            return Ok(if same { Registered::Repeated } else { Registered::AccountTaken });
        }
        if self.tables.directory.contains_key(tables::deleted(record.account)).map_err(engine_error)? {
            return Ok(Registered::AccountTaken);
        }
        if self.tables.directory.contains_key(tables::handle(&record.handle)).map_err(engine_error)? {
            return Ok(Registered::HandleTaken);
        }
        if let Some(invite) = &new.invite {
            let key = tables::invite(invite);
            if self.tables.directory.contains_key(&key).map_err(engine_error)? {
                return Ok(Registered::InviteUsed);
            }
            let ends = invite.expires_at.as_millis().to_be_bytes();
            self.batch.insert(&self.tables.directory, key, [&ends[..], record.account.as_bytes()].concat());
        }
        put(&mut self.batch, self.tables, new);
        Ok(Registered::Created)
    }

    /// Gives an account another handle.
    pub(super) fn rename(&mut self, id: AccountId, handle: &Handle) -> Result<Renamed, StoreError> {
        let Some(record) = account(self.tables, id)? else {
            return Ok(Renamed::NotFound);
        };
        if record.handle == *handle {
            return Ok(Renamed::Done);
        }
        let directory = &self.tables.directory;
        if directory.contains_key(tables::handle(handle)).map_err(engine_error)? {
            return Ok(Renamed::HandleTaken);
        }
        self.batch.remove(directory, tables::handle(&record.handle));
        self.batch.insert(directory, tables::handle(handle), id.as_bytes());
        let record = AccountRecord { handle: handle.clone(), ..record };
        let last = super::devices::last(self.tables, id)?.map_or(0, DeviceId::get);
        self.batch.insert(directory, tables::account(id), AccountRow::new(&record, last).encode_to_vec());
        Ok(Renamed::Done)
    }

    /// What an account lets others know, as this turn has it.
    pub(super) fn preferences(&mut self, account: AccountId) -> Result<Preferences, StoreError> {
        if let Some(preferences) = self.memory.preferences.get(&account) {
            return Ok(*preferences);
        }
        let preferences = preferences(self.tables, account)?;
        self.memory.preferences.insert(account, preferences);
        Ok(preferences)
    }

    /// Changes what an account lets others know.
    pub(super) fn set_preferences(&mut self, account: AccountId, preferences: Preferences) {
        let row = PreferencesRow::new(preferences).encode_to_vec();
        self.batch.insert(&self.tables.directory, tables::preferences(account), row);
        self.memory.preferences.insert(account, preferences);
    }

    /// Adds one-time keys and replaces the fallback key.
    pub(super) fn add_prekeys(
        &mut self,
        device: DeviceAddress,
        one_time: &[SignedPrekey],
        fallback: Option<&SignedPrekey>,
        now: Timestamp,
    ) -> Result<PrekeysHeld, StoreError> {
        let directory = &self.tables.directory;
        // A device that was removed while its upload was on its way has no keys any more.
        if !directory.contains_key(of_device(tag::DEVICE, device, &[])).map_err(engine_error)? {
            return Ok(PrekeysHeld::default());
        }
        let held = one_time_keys(self.tables, device)?;
        let mut known: Vec<Vec<u8>> = held.iter().map(|(_, row)| row.key.clone()).collect();
        // Positions rise with time, so that the oldest key goes first; milliseconds leave room for a hundred keys.
        let mut position = now.as_millis() << 8;
        if let Some((key, _)) = held.last() {
            let last = key.last_chunk().copied().map(u64::from_be_bytes).ok_or_else(|| corrupt("a prekey"))?;
            position = position.max(last + 1);
        }
        for prekey in one_time {
            let used = of_device(tag::USED, device, &prekey.key.0);
            let repeated = known.iter().any(|key| key[..] == prekey.key.0);
            // A key handed out once comes back when the device repeats an upload whose answer it lost.
            if known.len() >= ONE_TIME_KEYS_MAX || repeated || directory.contains_key(used).map_err(engine_error)? {
                continue;
            }
            let key = of_device(tag::ONE_TIME, device, &position.to_be_bytes());
            self.batch.insert(directory, key, PrekeyRow::new(prekey).encode_to_vec());
            known.push(prekey.key.0.to_vec());
            position += 1;
        }
        let fallback_key = of_device(tag::FALLBACK, device, &[]);
        if let Some(prekey) = fallback {
            self.batch.insert(directory, fallback_key.clone(), PrekeyRow::new(prekey).encode_to_vec());
        }
        let had_fallback = directory.contains_key(fallback_key).map_err(engine_error)?;
        Ok(PrekeysHeld { one_time: known.len(), fallback: had_fallback || fallback.is_some() })
    }

    /// Hands out a prekey.
    pub(super) fn claim_prekey(
        &mut self,
        device: DeviceAddress,
        one_time: bool,
        now: Timestamp,
    ) -> Result<Option<Claimed>, StoreError> {
        let directory = &self.tables.directory;
        let held = one_time_keys(self.tables, device)?;
        let one_time_left = held.len();
        if let (true, Some((key, row))) = (one_time, held.into_iter().next()) {
            let used = of_device(tag::USED, device, &row.key);
            self.batch.remove(directory, key);
            self.batch.insert(directory, used, now.as_millis().to_be_bytes());
            let prekey = row.into_prekey(PrekeyKind::OneTime)?;
            return Ok(Some(Claimed { prekey, one_time_left: one_time_left - 1 }));
        }
        let fallback = fallback_prekey(self.tables, device)?;
        Ok(fallback.map(|prekey| Claimed { prekey, one_time_left }))
    }
}
