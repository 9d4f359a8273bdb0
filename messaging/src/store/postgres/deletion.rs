//! Deleting accounts so that nothing of them stays.
//!
//! What makes an account an account goes at once, with a mark in its place; what lies in its mailboxes is erased by the
//! sweeper a step at a time, and the mark last. Any node goes on where another stopped.

use deadpool_postgres::{Object, Transaction};
use uuid::Uuid;
use waxwing_protocol::AccountId;

use super::connections::Failure;
use super::devices::lock_lanes;
use super::directory::commit;
use super::groups::{body_of, release};
use super::values::uuid;

/// Rows erased in one step.
const STEP: i64 = 1024;

/// What an account or a device leaves, table by table, with the column that names it.
const LEFT_OF_ACCOUNT: [(&str, &str); 9] = [
    ("group_members", "account"),
    ("pairs", "account"),
    ("pairs", "peer"),
    ("blocks", "account"),
    ("prekeys", "account"),
    ("used_prekeys", "account"),
    ("coalesced", "account"),
    ("messages", "account"),
    ("sends", "account"),
];

/// The same of a device.
const LEFT_OF_DEVICE: [&str; 5] = ["prekeys", "used_prekeys", "coalesced", "messages", "sends"];

/// Takes an account away and marks what is left of it.
pub(super) async fn delete(client: &mut Object, account: AccountId) -> Result<bool, Failure> {
    let id = uuid(account);
    let transaction = client.transaction().await?;
    lock_lanes(&transaction, id).await?;
    let gone = transaction.prepare_cached("DELETE FROM accounts WHERE account = $1").await?;
    if transaction.execute(&gone, &[&id]).await? == 0 {
        return Ok(false);
    }
    for table in ["devices", "fallback_prekeys", "mailboxes", "lanes"] {
        let sql = format!("DELETE FROM {table} WHERE account = $1");
        transaction.execute(&transaction.prepare_cached(&sql).await?, &[&id]).await?;
    }
    let mark = transaction.prepare_cached("INSERT INTO erasing (account, device) VALUES ($1, 0)").await?;
    transaction.execute(&mark, &[&id]).await?;
    commit(transaction).await?;
    Ok(true)
}

/// A step of erasing what deleted accounts and removed devices have left; returns whether there is more.
pub(super) async fn sweep(client: &mut Object) -> Result<bool, Failure> {
    let transaction = client.transaction().await?;
    // One node at a time works on a mark; another finds the next one.
    let sql = "SELECT account, device FROM erasing ORDER BY account, device LIMIT 1 FOR UPDATE SKIP LOCKED";
    let Some(mark) = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[]).await? else {
        return Ok(false);
    };
    let (id, device): (Uuid, i32) = (mark.try_get(0)?, mark.try_get(1)?);
    let mut left = STEP;
    if device == 0 {
        for (table, column) in LEFT_OF_ACCOUNT {
            left -= erase(&transaction, table, column, id, None, left).await?;
        }
    } else {
        for table in LEFT_OF_DEVICE {
            left -= erase(&transaction, table, "account", id, Some(device), left).await?;
        }
    }
    if left > 0 {
        let sql = "DELETE FROM erasing WHERE account = $1 AND device = $2";
        transaction.execute(&transaction.prepare_cached(sql).await?, &[&id, &device]).await?;
    }
    commit(transaction).await?;
    Ok(true)
}

/// Erases rows of an account or one device of it, `limit` at most; returns how many.
async fn erase(
    transaction: &Transaction<'_>,
    table: &str,
    column: &str,
    id: Uuid,
    device: Option<i32>,
    limit: i64,
) -> Result<i64, Failure> {
    let of_device = if device.is_some() { "AND device = $3" } else { "AND $3::int IS NULL" };
    // All rows of an account are in one part of a table, within which a place names one row.
    let sql = format!(
        "DELETE FROM {table} WHERE {column} = $1 AND ctid = ANY (ARRAY
             (SELECT ctid FROM {table} WHERE {column} = $1 {of_device} LIMIT $2))"
    );
    if table != "messages" {
        let erased = transaction.execute(&transaction.prepare_cached(&sql).await?, &[&id, &limit, &device]).await?;
        return Ok(erased.cast_signed());
    }
    let sql = format!("{sql} RETURNING body_group, body_seq");
    let erased = transaction.query(&transaction.prepare_cached(&sql).await?, &[&id, &limit, &device]).await?;
    let bodies: Result<Vec<_>, _> = erased.iter().map(|row| body_of(row, 0)).collect();
    release(transaction, bodies?.into_iter().flatten()).await?;
    Ok(i64::try_from(erased.len()).unwrap_or(limit))
}
