//! An account's devices: adding and removing one together with the list that says so.
//!
//! A message must be for exactly the devices of the list at its commit. Appends lock the lanes of all of an account's
//! devices and read the devices after that; so does a change here, before it makes or removes any. Whichever comes
//! second sees what the first has done.

use deadpool_postgres::{Object, Transaction};
use uuid::Uuid;
use waxwing_protocol::identity::SignedDeviceList;
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use super::connections::Failure;
use super::directory::commit;
use super::prekeys::put_fallback;
use super::values::{self, big, damaged, number, uuid};
use crate::store::{DeviceAddress, DeviceChange, DeviceDetails, DeviceRecord, ListChange, ListChanged, NewDevice};

/// An account's devices with their reg_ids, by rising number.
pub(super) async fn numbers(client: &Object, account: AccountId) -> Result<Vec<(DeviceId, u32)>, Failure> {
    let sql = "SELECT device, reg_id FROM devices WHERE account = $1 ORDER BY device";
    let rows = client.query(&client.prepare_cached(sql).await?, &[&uuid(account)]).await?;
    let devices = rows.iter().map(|row| {
        let reg_id = row.try_get::<_, i32>(1).map_err(damaged)?.cast_unsigned();
        Ok((values::device(row.try_get(0).map_err(damaged)?)?, reg_id))
    });
    devices.collect()
}

/// Reads a device.
pub(super) async fn device(client: &Object, device: DeviceAddress) -> Result<Option<DeviceRecord>, Failure> {
    let sql = "SELECT token_hash, next_token_hash, reg_id FROM devices WHERE account = $1 AND device = $2";
    let row = client.query_opt(&client.prepare_cached(sql).await?, &key(device).each()).await?;
    let Some(row) = row else { return Ok(None) };
    let hash = |bytes: &[u8]| bytes.try_into().map_err(damaged);
    let next = row.try_get::<_, Option<&[u8]>>(1)?.map(hash).transpose()?;
    let reg_id = row.try_get::<_, i32>(2)?.cast_unsigned();
    Ok(Some(DeviceRecord { token_hash: hash(row.try_get(0)?)?, next_token_hash: next, reg_id }))
}

/// A device's key in most tables.
pub(super) struct Key(pub(super) Uuid, pub(super) i32);

pub(super) fn key(device: DeviceAddress) -> Key {
    Key(uuid(device.account), number(device.device))
}

impl Key {
    /// Its two columns as parameters.
    pub(super) fn each(&self) -> [&(dyn tokio_postgres::types::ToSql + Sync); 2] {
        [&self.0, &self.1]
    }
}

/// The highest number that a device of the account ever had.
pub(super) async fn last(client: &Object, account: AccountId) -> Result<Option<DeviceId>, Failure> {
    let statement = client.prepare_cached("SELECT last_device FROM accounts WHERE account = $1").await?;
    let row = client.query_opt(&statement, &[&uuid(account)]).await?;
    row.map(|row| Ok(values::device(row.try_get(0)?)?)).transpose()
}

/// An account's devices for its owner, by rising number.
pub(super) async fn details(client: &Object, account: AccountId) -> Result<Vec<DeviceDetails>, Failure> {
    let sql = "SELECT device, name, added_at, coalesce(m.opened_at, 0) FROM devices
               LEFT JOIN mailboxes m USING (account, device) WHERE account = $1 ORDER BY device";
    let rows = client.query(&client.prepare_cached(sql).await?, &[&uuid(account)]).await?;
    let details = rows.iter().map(|row| {
        Ok(DeviceDetails {
            device: values::device(row.try_get(0)?)?,
            name: row.try_get(1)?,
            added_at: Timestamp::from_millis(big(row, 2)?),
            connected_at: Timestamp::from_millis(big(row, 3)?),
        })
    });
    details.collect()
}

/// Names a device.
pub(super) async fn name(client: &Object, device: DeviceAddress, name: &[u8]) -> Result<bool, Failure> {
    let sql = "UPDATE devices SET name = $3 WHERE account = $1 AND device = $2";
    let Key(account, number) = key(device);
    Ok(client.execute(&client.prepare_cached(sql).await?, &[&account, &number, &name]).await? > 0)
}

/// Makes a second token valid.
pub(super) async fn add_token(client: &Object, device: DeviceAddress, hash: &[u8; 32]) -> Result<bool, Failure> {
    // The one it has already: an answer was lost, and the new token was used meanwhile.
    let sql = "UPDATE devices SET next_token_hash = CASE WHEN token_hash = $3 THEN next_token_hash ELSE $3 END
               WHERE account = $1 AND device = $2";
    let Key(account, number) = key(device);
    Ok(client.execute(&client.prepare_cached(sql).await?, &[&account, &number, &&hash[..]]).await? > 0)
}

/// Makes the second token the only one.
pub(super) async fn promote_token(client: &Object, device: DeviceAddress, hash: &[u8; 32]) -> Result<(), Failure> {
    let sql = "UPDATE devices SET token_hash = next_token_hash, next_token_hash = NULL
               WHERE account = $1 AND device = $2 AND next_token_hash = $3";
    let Key(account, number) = key(device);
    client.execute(&client.prepare_cached(sql).await?, &[&account, &number, &&hash[..]]).await?;
    Ok(())
}

/// Changes an account's devices.
pub(super) async fn change(client: &mut Object, change: &ListChange) -> Result<ListChanged, Failure> {
    let id = uuid(change.account);
    let transaction = client.transaction().await?;
    lock_lanes(&transaction, id).await?;
    let sql = "SELECT device_list, list_signature FROM accounts WHERE account = $1 FOR NO KEY UPDATE";
    let row = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[&id]).await?;
    let Some(row) = row else { return Ok(ListChanged::NotFound) };
    let (list, signature): (&[u8], &[u8]) = (row.try_get(0)?, row.try_get(1)?);
    let is = |other: &SignedDeviceList| other.list.0 == list && other.signature.0 == signature;
    if is(&change.after) {
        return Ok(if is_made(&transaction, id, change).await? {
            ListChanged::Repeated
        } else {
            ListChanged::Conflict
        });
    }
    if !is(&change.before) {
        return Ok(ListChanged::Conflict);
    }
    let highest = match &change.what {
        DeviceChange::Added(new) => add(&transaction, id, new).await?,
        DeviceChange::Removed(device) => remove(&transaction, id, number(*device)).await?,
    };
    let sql = "UPDATE accounts SET device_list = $2, list_signature = $3, last_device = greatest(last_device, $4)
               WHERE account = $1";
    let (list, signature) = (&change.after.list.0, &change.after.signature.0);
    let update = transaction.prepare_cached(sql).await?;
    transaction.execute(&update, &[&id, list, signature, &highest]).await?;
    commit(transaction).await?;
    Ok(ListChanged::Done)
}

/// Whether the devices are as the change leaves them: it was made before, and its answer was lost.
async fn is_made(transaction: &Transaction<'_>, id: Uuid, change: &ListChange) -> Result<bool, Failure> {
    let token = transaction.prepare_cached("SELECT token_hash FROM devices WHERE account = $1 AND device = $2").await?;
    let device = match &change.what {
        DeviceChange::Added(new) => new.device,
        DeviceChange::Removed(device) => *device,
    };
    let token = transaction.query_opt(&token, &[&id, &number(device)]).await?;
    let token = token.as_ref().map(|row| row.try_get::<_, &[u8]>(0)).transpose()?;
    Ok(match &change.what {
        DeviceChange::Added(new) => token == Some(&new.token_hash[..]),
        DeviceChange::Removed(_) => token.is_none(),
    })
}

async fn add(transaction: &Transaction<'_>, id: Uuid, new: &NewDevice) -> Result<i32, Failure> {
    let device = number(new.device);
    let sql =
        "INSERT INTO devices (account, device, reg_id, token_hash, name, added_at) VALUES ($1, $2, $3, $4, $5, $6)";
    let insert = transaction.prepare_cached(sql).await?;
    let (reg_id, token, added_at) = (new.reg_id.cast_signed(), &new.token_hash[..], new.now.as_millis().cast_signed());
    transaction.execute(&insert, &[&id, &device, &reg_id, &token, &new.name, &added_at]).await?;
    put_fallback(transaction, &Key(id, device), &new.fallback).await?;
    make_mailbox(transaction, id, device, new.epoch).await?;
    Ok(device)
}

async fn remove(transaction: &Transaction<'_>, id: Uuid, device: i32) -> Result<i32, Failure> {
    for table in ["devices", "fallback_prekeys", "mailboxes", "lanes"] {
        let sql = format!("DELETE FROM {table} WHERE account = $1 AND device = $2");
        transaction.execute(&transaction.prepare_cached(&sql).await?, &[&id, &device]).await?;
    }
    let mark = transaction.prepare_cached("INSERT INTO erasing (account, device) VALUES ($1, $2)").await?;
    transaction.execute(&mark, &[&id, &device]).await?;
    Ok(0)
}

/// Makes an empty mailbox.
pub(super) async fn make_mailbox(
    transaction: &Transaction<'_>,
    id: Uuid,
    device: i32,
    epoch: u64,
) -> Result<(), Failure> {
    let mailbox =
        transaction.prepare_cached("INSERT INTO mailboxes (account, device, epoch) VALUES ($1, $2, $3)").await?;
    transaction.execute(&mailbox, &[&id, &device, &epoch.cast_signed()]).await?;
    let lanes = "INSERT INTO lanes (account, device, lane) VALUES ($1, $2, 0), ($1, $2, 1)";
    transaction.execute(&transaction.prepare_cached(lanes).await?, &[&id, &device]).await?;
    Ok(())
}

/// Keeps appends to an account waiting until the transaction ends.
pub(super) async fn lock_lanes(transaction: &Transaction<'_>, id: Uuid) -> Result<(), Failure> {
    for sql in [
        "SELECT FROM mailboxes WHERE account = $1 ORDER BY device FOR UPDATE",
        "SELECT FROM lanes WHERE account = $1 ORDER BY device, lane FOR UPDATE",
    ] {
        transaction.query(&transaction.prepare_cached(sql).await?, &[&id]).await?;
    }
    Ok(())
}
