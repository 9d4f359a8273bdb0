//! The key directory: prekeys, so that one can write to a device that is offline.
//!
//! Every prekey is signed by its device, and the signature is checked on the way in: a device that uploaded keys its
//! peers refuse would be one that nobody can write to. A one-time key is handed out once, and durably so before it is;
//! when none is left, or claims come too fast, the fallback key serves.

use std::sync::Arc;
use std::time::Duration;

use waxwing_protocol::api::{ONE_TIME_KEYS_MAX, PrekeyClaim, PrekeyCount, PrekeyUpload};
use waxwing_protocol::identity::{PrekeyKind, PublicKey, SignedPrekey};
use waxwing_protocol::{DeviceId, Timestamp};

use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::store::{DeviceAddress, Directory, PrekeysHeld, StoreError, StoreErrorKind};

/// One-time keys left below which the device is told, if it is connected.
const KEYS_LOW: usize = 20;

/// Takes and hands out prekeys.
pub(crate) struct Keys {
    directory: Arc<dyn Directory>,
    fabric: Arc<Fabric>,
    one_time_claims: Limit<DeviceAddress>,
}

/// Why prekeys were not taken or handed out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeysError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("a prekey is not signed by device {0}")]
    Signature(DeviceId),
    #[error("no such device, or it has no prekeys")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keys {
    pub(crate) fn new(directory: Arc<dyn Directory>, fabric: Arc<Fabric>, one_time_claims_per_hour: u32) -> Self {
        let one_time_claims = Limit::new("one-time-claims", one_time_claims_per_hour, Duration::from_secs(60 * 60));
        Self { directory, fabric, one_time_claims }
    }

    /// Takes prekeys of `device`; keys it has or had already change nothing.
    pub(crate) async fn add(
        &self,
        device: DeviceAddress,
        upload: PrekeyUpload,
        now: Timestamp,
    ) -> Result<PrekeyCount, KeysError> {
        if upload.one_time.len() > ONE_TIME_KEYS_MAX {
            return Err(KeysError::Malformed("at most 100 one-time keys at once"));
        }
        let record = self.directory.account(device.account).await?.ok_or(KeysError::NotFound)?;
        let list = record.device_list.verify(record.account, &record.account_key);
        let key = list.ok().and_then(|list| list.device(device.device).map(|device| device.ed25519));
        let key = key.ok_or(KeysError::NotFound)?;
        // A hundred signatures take some milliseconds: not on a thread that serves connections.
        let checked = tokio::task::spawn_blocking(move || check(&upload, &key, device.device).map(|()| upload)).await;
        let upload = checked.map_err(|error| StoreError::new(StoreErrorKind::Other, error))??;
        let held = self.directory.add_prekeys(device, upload.one_time, upload.fallback, now).await?;
        Ok(count(held))
    }

    /// What the directory holds for `device`.
    pub(crate) async fn held(&self, device: DeviceAddress) -> Result<PrekeyCount, KeysError> {
        Ok(count(self.directory.prekeys_held(device).await?))
    }

    /// The limit of claims.
    pub(crate) fn claim_limit(&self) -> LimitView {
        self.one_time_claims.view()
    }

    /// Hands out a prekey of `device`.
    pub(crate) async fn claim(&self, device: DeviceAddress, now: Timestamp) -> Result<PrekeyClaim, KeysError> {
        let one_time = self.one_time_claims.spend(device, now).is_ok();
        let claimed = self.directory.claim_prekey(device, one_time, now).await?.ok_or(KeysError::NotFound)?;
        if claimed.one_time_left < KEYS_LOW {
            self.fabric.keys_low(device, claimed.one_time_left);
        }
        Ok(PrekeyClaim { prekey: claimed.prekey })
    }
}

fn check(upload: &PrekeyUpload, key: &PublicKey, device: DeviceId) -> Result<(), KeysError> {
    let of_kind = |prekey: &SignedPrekey, kind| {
        if prekey.kind != kind {
            return Err(KeysError::Malformed("a prekey stands under another kind than its own"));
        }
        prekey.verify(key).map_err(|_| KeysError::Signature(device))
    };
    upload.one_time.iter().try_for_each(|prekey| of_kind(prekey, PrekeyKind::OneTime))?;
    upload.fallback.iter().try_for_each(|prekey| of_kind(prekey, PrekeyKind::Fallback))
}

fn count(held: PrekeysHeld) -> PrekeyCount {
    PrekeyCount { one_time: held.one_time, fallback: held.fallback }
}
