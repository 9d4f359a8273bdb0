//! Accounts, and how they stand to one another.
//!
//! What must be unique is unique by a key of the table: two nodes that register one handle at once both try, and one is
//! refused by the database.

use deadpool_postgres::Object;
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;
use waxwing_protocol::api::{BLOCKS_MAX, Preferences, Visibility};
use waxwing_protocol::identity::{Base64, PublicKey, SignedDeviceList};
use waxwing_protocol::{AccountId, Handle};

use super::connections::Failure;
use super::values::{self, damaged, number, uuid};
use crate::store::{AccountRecord, Blocked, NewAccount, Regard, Registered, Renamed, StoreError};

/// Registers an account with its first device.
pub(super) async fn register(client: &mut Object, new: &NewAccount) -> Result<Registered, Failure> {
    let (record, id, device) = (&new.record, uuid(new.record.account), number(new.device));
    let transaction = client.transaction().await?;
    let insert = transaction
        .prepare_cached(
            "INSERT INTO accounts (account, handle, account_key, device_list, list_signature, last_device)
             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
        )
        .await?;
    let (key, list, signature) =
        (&record.account_key.0[..], &record.device_list.list.0[..], &record.device_list.signature.0[..]);
    let inserted =
        transaction.execute(&insert, &[&id, &record.handle.as_str(), &key, &list, &signature, &device]).await?;
    if inserted == 0 {
        let token = transaction.prepare_cached("SELECT token_hash FROM devices WHERE account = $1 AND device = $2");
        let known = transaction.query_opt(&account_by_id(&transaction).await?, &[&id]).await?;
        let Some(known) = known else { return Ok(Registered::HandleTaken) };
        let token = transaction.query_opt(&token.await?, &[&id, &device]).await?;
        let token = token.map(|row| row.try_get::<_, Vec<u8>>(0)).transpose()?;
        let same = record_of(&known)? == *record && token.as_deref() == Some(&new.token_hash[..]);
        return Ok(if same { Registered::Repeated } else { Registered::AccountTaken });
    }
    // Asked for after the id was taken: a deletion on its way has ended by now.
    let erasing = transaction.prepare_cached("SELECT FROM erasing WHERE account = $1 AND device = 0").await?;
    if transaction.query_opt(&erasing, &[&id]).await?.is_some() {
        return Ok(Registered::AccountTaken);
    }
    if let Some(invite) = &new.invite {
        let sql = "INSERT INTO invites (number, expires_at, account) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
        let expires = invite.expires_at.as_millis().cast_signed();
        let used = transaction.prepare_cached(sql).await?;
        if transaction.execute(&used, &[&&invite.number[..], &expires, &id]).await? == 0 {
            return Ok(Registered::InviteUsed);
        }
    }
    let sql =
        "INSERT INTO devices (account, device, reg_id, token_hash, name, added_at) VALUES ($1, $2, $3, $4, '', 0)";
    let insert = transaction.prepare_cached(sql).await?;
    let reg_id = new.reg_id.cast_signed();
    transaction.execute(&insert, &[&id, &device, &reg_id, &&new.token_hash[..]]).await?;
    super::devices::make_mailbox(&transaction, id, device, new.epoch).await?;
    commit(transaction).await?;
    Ok(Registered::Created)
}

/// Commits; whoever is not answered does not know whether it happened, and everything here can be done again.
pub(super) async fn commit(transaction: deadpool_postgres::Transaction<'_>) -> Result<(), Failure> {
    transaction.commit().await.map_err(|error| Failure::of_commit(&error))
}

/// Columns of an account, in the order that [`record_of`] reads.
const RECORD: &str = "SELECT account, handle, account_key, device_list, list_signature FROM accounts";

async fn account_by_id(
    client: &deadpool_postgres::Transaction<'_>,
) -> Result<tokio_postgres::Statement, tokio_postgres::Error> {
    client.prepare_cached(&format!("{RECORD} WHERE account = $1")).await
}

/// An account from its row.
pub(super) fn record_of(row: &Row) -> Result<AccountRecord, StoreError> {
    let bytes = |column| row.try_get::<_, Vec<u8>>(column).map_err(damaged);
    Ok(AccountRecord {
        account: values::account(row.try_get(0).map_err(damaged)?),
        handle: row.try_get::<_, &str>(1).map_err(damaged)?.parse().map_err(damaged)?,
        account_key: PublicKey::from_slice(&bytes(2)?).map_err(damaged)?,
        device_list: SignedDeviceList { list: Base64(bytes(3)?), signature: Base64(bytes(4)?) },
    })
}

/// Reads an account.
pub(super) async fn account(client: &Object, account: AccountId) -> Result<Option<AccountRecord>, Failure> {
    let statement = client.prepare_cached(&format!("{RECORD} WHERE account = $1")).await?;
    let row = client.query_opt(&statement, &[&uuid(account)]).await?;
    Ok(row.as_ref().map(record_of).transpose()?)
}

/// Reads the account that has a handle.
pub(super) async fn account_by_handle(client: &Object, handle: &Handle) -> Result<Option<AccountRecord>, Failure> {
    let statement = client.prepare_cached(&format!("{RECORD} WHERE handle = $1")).await?;
    let row = client.query_opt(&statement, &[&handle.as_str()]).await?;
    Ok(row.as_ref().map(record_of).transpose()?)
}

/// Reads the accounts after one, by rising id.
pub(super) async fn accounts(
    client: &Object,
    after: Option<AccountId>,
    limit: usize,
) -> Result<Vec<AccountRecord>, Failure> {
    let sql = format!("{RECORD} WHERE $1::uuid IS NULL OR account > $1 ORDER BY account LIMIT $2");
    let statement = client.prepare_cached(&sql).await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = client.query(&statement, &[&after.map(uuid), &limit]).await?;
    Ok(rows.iter().map(record_of).collect::<Result<_, _>>()?)
}

/// Gives an account another handle.
pub(super) async fn rename(client: &Object, account: AccountId, handle: &Handle) -> Result<Renamed, Failure> {
    let statement = client.prepare_cached("UPDATE accounts SET handle = $2 WHERE account = $1").await?;
    match client.execute(&statement, &[&uuid(account), &handle.as_str()]).await {
        Ok(0) => Ok(Renamed::NotFound),
        Ok(_) => Ok(Renamed::Done),
        Err(error) if error.code() == Some(&SqlState::UNIQUE_VIOLATION) => Ok(Renamed::HandleTaken),
        Err(error) => Err(error.into()),
    }
}

/// Reads what an account lets others know.
pub(super) async fn preferences(client: &Object, account: AccountId) -> Result<Preferences, Failure> {
    let sql = "SELECT delivery_receipts, presence FROM accounts WHERE account = $1";
    let row = client.query_opt(&client.prepare_cached(sql).await?, &[&uuid(account)]).await?;
    Ok(row.map(|row| preferences_of(&row, 0)).transpose()?.unwrap_or_default())
}

/// Preferences from two columns.
fn preferences_of(row: &Row, column: usize) -> Result<Preferences, StoreError> {
    let presence = match row.try_get::<_, i16>(column + 1).map_err(damaged)? {
        0 => Visibility::Contacts,
        1 => Visibility::Everyone,
        2 => Visibility::Nobody,
        other => return Err(damaged(format_args!("presence {other}"))),
    };
    Ok(Preferences { delivery_receipts: row.try_get(column).map_err(damaged)?, presence })
}

/// Changes what an account lets others know.
pub(super) async fn set_preferences(
    client: &Object,
    account: AccountId,
    preferences: Preferences,
) -> Result<(), Failure> {
    let presence: i16 = match preferences.presence {
        Visibility::Contacts => 0,
        Visibility::Everyone => 1,
        Visibility::Nobody => 2,
    };
    let sql = "UPDATE accounts SET delivery_receipts = $2, presence = $3 WHERE account = $1";
    let statement = client.prepare_cached(sql).await?;
    client.execute(&statement, &[&uuid(account), &preferences.delivery_receipts, &presence]).await?;
    Ok(())
}

/// Accounts that have written to one, `limit` at most.
pub(super) async fn writers(client: &Object, account: AccountId, limit: usize) -> Result<Vec<AccountId>, Failure> {
    let statement =
        client.prepare_cached("SELECT account FROM pairs WHERE peer = $1 ORDER BY account LIMIT $2").await?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    ids(&client.query(&statement, &[&uuid(account), &limit]).await?)
}

fn ids(rows: &[Row]) -> Result<Vec<AccountId>, Failure> {
    let ids = rows.iter().map(|row| row.try_get::<_, Uuid>(0).map(values::account));
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Sets whether `account` wants to hear of `peer`.
pub(super) async fn set_blocked(
    client: &mut Object,
    account: AccountId,
    peer: AccountId,
    blocked: bool,
) -> Result<Blocked, Failure> {
    let (id, peer) = (uuid(account), uuid(peer));
    if !blocked {
        let statement = client.prepare_cached("DELETE FROM blocks WHERE account = $1 AND peer = $2").await?;
        client.execute(&statement, &[&id, &peer]).await?;
        return Ok(Blocked::Done);
    }
    let transaction = client.transaction().await?;
    // Blocks of one account one after the other: a bound that two can pass at once is none.
    let own = transaction.prepare_cached("SELECT FROM accounts WHERE account = $1 FOR NO KEY UPDATE").await?;
    transaction.query_opt(&own, &[&id]).await?;
    let sql = "SELECT EXISTS (SELECT FROM blocks WHERE account = $1 AND peer = $2),
                      EXISTS (SELECT FROM accounts WHERE account = $2),
                      (SELECT count(*) FROM blocks WHERE account = $1)";
    let row = transaction.query_one(&transaction.prepare_cached(sql).await?, &[&id, &peer]).await?;
    let (already, known, count): (bool, bool, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    if already {
        return Ok(Blocked::Done);
    }
    if !known {
        return Ok(Blocked::NotFound);
    }
    if count.cast_unsigned() >= BLOCKS_MAX as u64 {
        return Ok(Blocked::TooMany);
    }
    let insert = transaction.prepare_cached("INSERT INTO blocks (account, peer) VALUES ($1, $2)").await?;
    transaction.execute(&insert, &[&id, &peer]).await?;
    commit(transaction).await?;
    Ok(Blocked::Done)
}

/// Whom an account has blocked.
pub(super) async fn blocks(client: &Object, account: AccountId) -> Result<Vec<AccountId>, Failure> {
    let statement = client.prepare_cached("SELECT peer FROM blocks WHERE account = $1 ORDER BY peer").await?;
    ids(&client.query(&statement, &[&uuid(account)]).await?)
}

/// How each of `accounts` stands to `peer`.
pub(super) async fn regards(
    client: &Object,
    accounts: &[AccountId],
    peer: AccountId,
) -> Result<Vec<Option<Regard>>, Failure> {
    let sql = "SELECT a.account IS NOT NULL,
                      EXISTS (SELECT FROM pairs p WHERE p.account = a.account AND p.peer = $2),
                      EXISTS (SELECT FROM blocks b WHERE b.account = a.account AND b.peer = $2),
                      a.delivery_receipts, a.presence
               FROM unnest($1::uuid[]) WITH ORDINALITY AS asked (account, n)
               LEFT JOIN accounts a ON a.account = asked.account ORDER BY asked.n";
    let asked: Vec<_> = accounts.iter().copied().map(uuid).collect();
    let rows = client.query(&client.prepare_cached(sql).await?, &[&asked, &uuid(peer)]).await?;
    let regard = |row: &Row| {
        if !row.try_get::<_, bool>(0).map_err(damaged)? {
            return Ok(None);
        }
        let (has_written, has_blocked) = (row.try_get(1).map_err(damaged)?, row.try_get(2).map_err(damaged)?);
        Ok(Some(Regard { preferences: preferences_of(row, 3)?, has_written, has_blocked }))
    };
    Ok(rows.iter().map(regard).collect::<Result<_, StoreError>>()?)
}
