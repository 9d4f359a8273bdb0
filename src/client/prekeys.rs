//! Keeping the server supplied with this device's prekeys.
//!
//! A stranger's first message takes a one-time prekey. Without a supply, strangers fall back on one key that serves all
//! of them and is less forgetful. So the device fills up what the directory holds, when it connects and when the server
//! says that few are left, and replaces the fallback key weekly. What it believes to be there it has checked: an upload
//! that was lost, or a directory that was set back, would leave strangers with a key that opens nothing here.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::{KeysCheck, KeysCheckRequest, ONE_TIME_KEYS_MAX, PrekeyCount, PrekeyUpload};
use waxwing_protocol::identity::PublicKey;

use crate::account::{DEVICE, SELF, device_keys};
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError};

/// Below this many one-time keys at the server, more are made.
const ONE_TIME_KEYS_LOW: usize = ONE_TIME_KEYS_MAX / 2;

/// How long a fallback key serves. A replaced one still opens messages until the next replacement.
const FALLBACK_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// When the fallback key at the server was put there.
const FALLBACK: Table<FallbackRow> = Table::new("fallback_prekey");

#[derive(Serialize, Deserialize)]
struct FallbackRow {
    published_at: Timestamp,
    /// Which; `None` in a profile of an older version.
    #[serde(default)]
    key: Option<PublicKey>,
}

impl Client {
    /// Fills up this device's prekeys at the server, as far as needed.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn replenish_prekeys(&self, now: Timestamp) -> Result<(), ClientError> {
        let service = &self.service;
        let url = &service.api_url("/v1/keys").await?;
        let check = &service.api_url("/v1/keys/check").await?;
        // Each try asks anew what the server has, since one-time keys are given out once.
        service
            .retry(|| async move {
                let believed = self.profile.read(|tx| believed(tx))?;
                let held: KeysCheck =
                    service.json(service.authorized(service.http().post(check)).json(&believed)).await?;
                if !held.identity {
                    tracing::error!("the account lists this device with other keys, or no longer");
                }
                let Some(upload) = self.profile.write(|tx| wanted(tx, held, now))? else { return Ok(()) };
                let _: PrekeyCount = service.json(service.authorized(service.http().put(url)).json(&upload)).await?;
                if let Some(fallback) = &upload.fallback {
                    self.profile.write(|tx| fallback_published(tx, fallback.key, now))?;
                }
                Ok(())
            })
            .await
    }
}

/// What this device believes the server has of it.
fn believed(tx: &impl Rows) -> Result<KeysCheckRequest, ClientError> {
    let device = device_keys(tx)?.device();
    let fallback = tx.get(&FALLBACK, SELF)?.and_then(|row| row.key);
    Ok(KeysCheckRequest { curve25519: device.curve25519, ed25519: device.ed25519, fallback })
}

/// What to upload when the server holds this much; its secret halves are stored.
fn wanted(tx: &WriteTx<'_>, held: KeysCheck, now: Timestamp) -> Result<Option<PrekeyUpload>, ClientError> {
    let published_at = tx.get(&FALLBACK, SELF)?.map(|row| row.published_at);
    let replace = !held.fallback || published_at.is_none_or(|at| now.since(at) >= FALLBACK_LIFETIME);
    let low = held.one_time < ONE_TIME_KEYS_LOW;
    if !replace && !low {
        return Ok(None);
    }
    let mut keys = device_keys(tx)?;
    let one_time = if low { keys.one_time_prekeys(ONE_TIME_KEYS_MAX - held.one_time) } else { Vec::new() };
    let fallback = replace.then(|| keys.fallback_prekey());
    tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    Ok(Some(PrekeyUpload { one_time, fallback }))
}

fn fallback_published(tx: &WriteTx<'_>, key: PublicKey, now: Timestamp) -> Result<(), ClientError> {
    let mut keys = device_keys(tx)?;
    keys.fallback_published();
    tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    published(tx, key, now)
}

/// The server has had this fallback key since `now`.
pub(crate) fn published(tx: &WriteTx<'_>, key: PublicKey, now: Timestamp) -> Result<(), ClientError> {
    tx.put(&FALLBACK, SELF, &FallbackRow { published_at: now, key: Some(key) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::tests::registered;

    fn held(one_time: usize, fallback: bool) -> KeysCheck {
        KeysCheck { identity: true, fallback, one_time }
    }

    #[test]
    fn a_supply_is_filled_up_only_when_it_is_low() {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        let now = Timestamp::from_secs(1_000_000);
        let wanted = |one_time, fallback, now| profile.write(|tx| wanted(tx, held(one_time, fallback), now)).unwrap();
        let first = wanted(0, false, now).unwrap();
        assert_eq!(first.one_time.len(), 100);
        profile.write(|tx| fallback_published(tx, PublicKey([7; 32]), now)).unwrap();

        assert!(wanted(50, true, now).is_none());
        let second = wanted(49, true, now).unwrap();
        assert_eq!((second.one_time.len(), &second.fallback), (51, &None));
        assert!(second.one_time.iter().all(|key| !first.one_time.contains(key)));
    }

    #[test]
    fn the_fallback_key_is_replaced_weekly_and_offered_until_taken() {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        let full = held(100, true);
        let start = Timestamp::from_secs(1_000_000);
        let ask = |now| profile.write(|tx| wanted(tx, full, now)).unwrap();
        let first = ask(start).unwrap().fallback;
        assert_eq!(ask(start).unwrap().fallback, first, "the reply was lost");
        profile.write(|tx| fallback_published(tx, PublicKey([7; 32]), start)).unwrap();
        assert!(ask(start.plus(FALLBACK_LIFETIME - Duration::from_secs(1))).is_none());
        let next = ask(start.plus(FALLBACK_LIFETIME)).unwrap();
        assert!(next.one_time.is_empty());
        assert_ne!(next.fallback, first);
    }
}
