//! Where devices are woken: columns of the device, so that they go with it.

use deadpool_postgres::Object;
use waxwing_protocol::Timestamp;

use super::connections::Failure;
use super::devices::{Key, key};
use super::values::{big, mailbox, number, uuid};
use crate::store::{DeviceAddress, WakeTarget};

/// Sets where a device is woken, and nobody else there any more.
pub(super) async fn set(
    client: &Object,
    device: DeviceAddress,
    target: &WakeTarget,
) -> Result<Option<Vec<DeviceAddress>>, Failure> {
    let sql = "WITH own AS (
                   UPDATE devices SET wake_target = $3, wake_set_at = $4, wake_place = $5
                   WHERE account = $1 AND device = $2 RETURNING account, device
               ), others AS (
                   UPDATE devices SET wake_target = NULL, wake_set_at = NULL, wake_place = NULL
                   WHERE wake_place = $5 AND (account, device) <> ($1, $2) AND EXISTS (SELECT FROM own)
                   RETURNING account, device
               )
               SELECT account, device, false FROM others UNION ALL SELECT account, device, true FROM own";
    let (Key(account, number), at) = (key(device), target.set_at.as_millis().cast_signed());
    let place = target.place.as_ref().map(|place| &place[..]);
    let statement = client.prepare_cached(sql).await?;
    let rows = client.query(&statement, &[&account, &number, &target.target, &at, &place]).await?;
    let (mut found, mut others) = (false, Vec::new());
    for row in &rows {
        if row.try_get(2)? {
            found = true;
        } else {
            others.push(mailbox(row)?);
        }
    }
    Ok(found.then_some(others))
}

/// Forgets where a device is woken; with `only`, if it was set just then.
pub(super) async fn remove(client: &Object, device: DeviceAddress, only: Option<Timestamp>) -> Result<bool, Failure> {
    let sql = "UPDATE devices SET wake_target = NULL, wake_set_at = NULL, wake_place = NULL
               WHERE account = $1 AND device = $2 AND wake_target IS NOT NULL AND ($3::bigint IS NULL OR wake_set_at = $3)";
    let (Key(account, number), only) = (key(device), only.map(|only| only.as_millis().cast_signed()));
    Ok(client.execute(&client.prepare_cached(sql).await?, &[&account, &number, &only]).await? > 0)
}

/// Where a device is woken.
pub(super) async fn target(client: &Object, device: DeviceAddress) -> Result<Option<WakeTarget>, Failure> {
    let sql = "SELECT wake_target, wake_set_at, wake_place FROM devices
               WHERE account = $1 AND device = $2 AND wake_target IS NOT NULL";
    let row = client.query_opt(&client.prepare_cached(sql).await?, &key(device).each()).await?;
    row.map(|row| {
        let place = row.try_get::<_, Option<&[u8]>>(2)?.and_then(|place| place.try_into().ok());
        Ok(WakeTarget { target: row.try_get(0)?, place, set_at: Timestamp::from_millis(big(&row, 1)?) })
    })
    .transpose()
}

/// Devices after one that can be woken, by rising address.
pub(super) async fn wakeable(
    client: &Object,
    after: Option<DeviceAddress>,
    limit: usize,
) -> Result<Vec<DeviceAddress>, Failure> {
    let sql = "SELECT account, device FROM devices
               WHERE wake_target IS NOT NULL AND ($1::uuid IS NULL OR (account, device) > ($1, $2))
               ORDER BY account, device LIMIT $3";
    let (account, device) = (after.map(|after| uuid(after.account)), after.map_or(0, |after| number(after.device)));
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = client.query(&client.prepare_cached(sql).await?, &[&account, &device, &limit]).await?;
    rows.iter().map(|row| Ok(mailbox(row)?)).collect()
}
