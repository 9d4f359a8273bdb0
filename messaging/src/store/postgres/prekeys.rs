//! Prekeys: handed out once, whichever node is asked.
//!
//! Whatever changes a device's keys holds the lock of the device's row, so that two claims never look at the same
//! remaining keys.

use std::collections::HashSet;

use deadpool_postgres::{Object, Transaction};
use tokio_postgres::Row;
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::ONE_TIME_KEYS_MAX;
use waxwing_protocol::identity::{Base64, PrekeyKind, PublicKey, SignedPrekey, Suite};

use super::connections::Failure;
use super::devices::{Key, key};
use super::directory::commit;
use super::values::{big, damaged};
use crate::store::{Claimed, DeviceAddress, PrekeysHeld, StoreError};

/// A prekey from the columns `suite`, `key` and `signature`, which come first.
fn prekey_of(row: &Row, kind: PrekeyKind) -> Result<SignedPrekey, StoreError> {
    let suite = match row.try_get::<_, i16>(0).map_err(damaged)? {
        1 => Suite::OlmV1,
        other => return Err(damaged(format_args!("suite {other}"))),
    };
    let key = PublicKey::from_slice(row.try_get(1).map_err(damaged)?).map_err(damaged)?;
    Ok(SignedPrekey { suite, kind, key, signature: Base64(row.try_get(2).map_err(damaged)?) })
}

fn suite_number(suite: Suite) -> i16 {
    match suite {
        Suite::OlmV1 => 1,
    }
}

/// Replaces a device's fallback key.
pub(super) async fn put_fallback(
    transaction: &Transaction<'_>,
    Key(account, device): &Key,
    prekey: &SignedPrekey,
) -> Result<(), Failure> {
    let sql = "INSERT INTO fallback_prekeys (account, device, suite, key, signature) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (account, device) DO UPDATE
               SET suite = excluded.suite, key = excluded.key, signature = excluded.signature";
    let (suite, public, signature) = (suite_number(prekey.suite), &prekey.key.0[..], &prekey.signature.0);
    let put = transaction.prepare_cached(sql).await?;
    transaction.execute(&put, &[account, device, &suite, &public, signature]).await?;
    Ok(())
}

/// Keeps others from the device's keys until the transaction ends; false when there is no such device.
async fn lock(transaction: &Transaction<'_>, key: &Key) -> Result<bool, Failure> {
    let sql = "SELECT FROM devices WHERE account = $1 AND device = $2 FOR UPDATE";
    Ok(transaction.query_opt(&transaction.prepare_cached(sql).await?, &key.each()).await?.is_some())
}

/// Adds one-time keys and replaces the fallback key.
pub(super) async fn add(
    client: &mut Object,
    device: DeviceAddress,
    one_time: &[SignedPrekey],
    fallback: Option<&SignedPrekey>,
    now: Timestamp,
) -> Result<PrekeysHeld, Failure> {
    let key = key(device);
    let transaction = client.transaction().await?;
    // A device that was removed while its upload was on its way has no keys any more.
    if !lock(&transaction, &key).await? {
        return Ok(PrekeysHeld::default());
    }
    let sql = "SELECT key, position FROM prekeys WHERE account = $1 AND device = $2
               UNION ALL SELECT key, NULL FROM used_prekeys WHERE account = $1 AND device = $2 AND key = ANY($3)";
    let offered: Vec<_> = one_time.iter().map(|prekey| &prekey.key.0[..]).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let rows = transaction.query(&statement, &[&key.0, &key.1, &offered]).await?;
    let mut known = HashSet::new();
    // Positions rise with time, so that the oldest key goes first; milliseconds leave room for a hundred keys.
    let (mut held, mut position) = (0, (now.as_millis() << 8).cast_signed());
    for row in &rows {
        known.insert(row.try_get::<_, Vec<u8>>(0)?);
        if let Some(taken) = row.try_get::<_, Option<i64>>(1)? {
            held += 1;
            position = position.max(taken + 1);
        }
    }
    let sql = "INSERT INTO prekeys (account, device, position, suite, key, signature) VALUES ($1, $2, $3, $4, $5, $6)";
    let insert = transaction.prepare_cached(sql).await?;
    for prekey in one_time {
        if held >= ONE_TIME_KEYS_MAX || !known.insert(prekey.key.0.to_vec()) {
            continue;
        }
        let (suite, public, signature) = (suite_number(prekey.suite), &prekey.key.0[..], &prekey.signature.0);
        transaction.execute(&insert, &[&key.0, &key.1, &position, &suite, &public, signature]).await?;
        held += 1;
        position += 1;
    }
    if let Some(fallback) = fallback {
        put_fallback(&transaction, &key, fallback).await?;
    }
    let sql = "SELECT FROM fallback_prekeys WHERE account = $1 AND device = $2";
    let fallback = transaction.query_opt(&transaction.prepare_cached(sql).await?, &key.each()).await?.is_some();
    commit(transaction).await?;
    Ok(PrekeysHeld { one_time: held, fallback })
}

/// Reads the fallback key of a device.
pub(super) async fn fallback(client: &Object, device: DeviceAddress) -> Result<Option<SignedPrekey>, Failure> {
    let sql = "SELECT suite, key, signature FROM fallback_prekeys WHERE account = $1 AND device = $2";
    let row = client.query_opt(&client.prepare_cached(sql).await?, &key(device).each()).await?;
    Ok(row.map(|row| prekey_of(&row, PrekeyKind::Fallback)).transpose()?)
}

/// Counts a device's prekeys.
pub(super) async fn held(client: &Object, device: DeviceAddress) -> Result<PrekeysHeld, Failure> {
    let sql = "SELECT (SELECT count(*) FROM prekeys WHERE account = $1 AND device = $2),
                      EXISTS (SELECT FROM fallback_prekeys WHERE account = $1 AND device = $2)";
    let row = client.query_one(&client.prepare_cached(sql).await?, &key(device).each()).await?;
    Ok(PrekeysHeld { one_time: usize::try_from(big(&row, 0)?).unwrap_or(usize::MAX), fallback: row.try_get(1)? })
}

/// Hands out a prekey.
pub(super) async fn claim(
    client: &mut Object,
    device: DeviceAddress,
    one_time: bool,
    now: Timestamp,
) -> Result<Option<Claimed>, Failure> {
    let key = key(device);
    let transaction = client.transaction().await?;
    if one_time && lock(&transaction, &key).await? {
        let sql = "DELETE FROM prekeys WHERE account = $1 AND device = $2 AND position =
                       (SELECT min(position) FROM prekeys WHERE account = $1 AND device = $2)
                   RETURNING suite, key, signature";
        let taken = transaction.query_opt(&transaction.prepare_cached(sql).await?, &key.each()).await?;
        if let Some(taken) = taken {
            let prekey = prekey_of(&taken, PrekeyKind::OneTime)?;
            let sql = "INSERT INTO used_prekeys (account, device, key, used_at) VALUES ($1, $2, $3, $4)
                       ON CONFLICT DO NOTHING";
            let (public, at) = (&prekey.key.0[..], now.as_millis().cast_signed());
            let used = transaction.prepare_cached(sql).await?;
            transaction.execute(&used, &[&key.0, &key.1, &public, &at]).await?;
            let sql = "SELECT count(*) FROM prekeys WHERE account = $1 AND device = $2";
            let left = transaction.query_one(&transaction.prepare_cached(sql).await?, &key.each()).await?;
            let one_time_left = usize::try_from(big(&left, 0)?).unwrap_or(usize::MAX);
            commit(transaction).await?;
            return Ok(Some(Claimed { prekey, one_time_left }));
        }
    }
    drop(transaction);
    let one_time_left = held(client, device).await?.one_time;
    Ok(fallback(client, device).await?.map(|prekey| Claimed { prekey, one_time_left }))
}
