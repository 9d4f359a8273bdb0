//! Keeping the server supplied with this device's prekeys.
//!
//! A stranger's first message takes a one-time prekey. Without a supply, strangers fall back on one key that serves all
//! of them and is less forgetful. So the device fills up what the directory holds, when it connects and when the server
//! says that few are left, and replaces the fallback key weekly.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::{ONE_TIME_KEYS_MAX, PrekeyCount, PrekeyUpload};

use crate::account::{DEVICE, SELF, device_keys};
use crate::profile::{Rows as _, Table, WriteTx};
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
}

impl Client {
    /// Fills up this device's prekeys at the server, as far as needed.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn replenish_prekeys(&self, now: Timestamp) -> Result<(), ClientError> {
        let service = &self.service;
        let url = &service.api_url("/v1/keys").await?;
        // Each try asks anew what the server has, since one-time keys are given out once.
        service
            .retry(|| async move {
                let held: PrekeyCount = service.json(service.authorized(service.http().get(url))).await?;
                let Some(upload) = self.profile.write(|tx| wanted(tx, held, now))? else { return Ok(()) };
                let _: PrekeyCount = service.json(service.authorized(service.http().put(url)).json(&upload)).await?;
                if upload.fallback.is_some() {
                    self.profile.write(|tx| fallback_published(tx, now))?;
                }
                Ok(())
            })
            .await
    }
}

/// What to upload when the server holds this much; its secret halves are stored.
fn wanted(tx: &WriteTx<'_>, held: PrekeyCount, now: Timestamp) -> Result<Option<PrekeyUpload>, ClientError> {
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

fn fallback_published(tx: &WriteTx<'_>, now: Timestamp) -> Result<(), ClientError> {
    let mut keys = device_keys(tx)?;
    keys.fallback_published();
    tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    tx.put(&FALLBACK, SELF, &FallbackRow { published_at: now })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::tests::registered;

    #[test]
    fn a_supply_is_filled_up_only_when_it_is_low() {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        let now = Timestamp::from_secs(1_000_000);
        let wanted =
            |one_time, fallback, now| profile.write(|tx| wanted(tx, PrekeyCount { one_time, fallback }, now)).unwrap();
        let first = wanted(0, false, now).unwrap();
        assert_eq!(first.one_time.len(), 100);
        profile.write(|tx| fallback_published(tx, now)).unwrap();

        assert!(wanted(50, true, now).is_none());
        let second = wanted(49, true, now).unwrap();
        assert_eq!((second.one_time.len(), &second.fallback), (51, &None));
        assert!(second.one_time.iter().all(|key| !first.one_time.contains(key)));
    }

    #[test]
    fn the_fallback_key_is_replaced_weekly_and_offered_until_taken() {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        let full = PrekeyCount { one_time: 100, fallback: true };
        let start = Timestamp::from_secs(1_000_000);
        let ask = |now| profile.write(|tx| wanted(tx, full, now)).unwrap();
        let first = ask(start).unwrap().fallback;
        assert_eq!(ask(start).unwrap().fallback, first, "the reply was lost");
        profile.write(|tx| fallback_published(tx, start)).unwrap();
        assert!(ask(start.plus(FALLBACK_LIFETIME - Duration::from_secs(1))).is_none());
        let next = ask(start.plus(FALLBACK_LIFETIME)).unwrap();
        assert!(next.one_time.is_empty());
        assert_ne!(next.fallback, first);
    }
}
