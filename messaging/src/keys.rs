//! The key directory: prekeys, so that one can write to a device that is offline.
//!
//! Every prekey is signed by its device, and the signature is checked on the way in: a device that uploaded keys its
//! peers refuse would be one that nobody can write to. A one-time key is handed out once, and durably so before it is;
//! when none is left, or claims come too fast, the fallback key serves.

use std::sync::Arc;
use std::time::Duration;

use waxwing_protocol::api::{KeysCheck, KeysCheckRequest, ONE_TIME_KEYS_MAX, PrekeyClaim, PrekeyCount, PrekeyUpload};
use waxwing_protocol::identity::{PrekeyKind, PublicKey, SignedPrekey};
use waxwing_protocol::{DeviceId, Timestamp};

use crate::config::Config;
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
    claims: Limit<DeviceAddress>,
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
    #[error("too many claims on this device")]
    TooMany { retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keys {
    pub(crate) fn new(directory: Arc<dyn Directory>, fabric: Arc<Fabric>, config: &Config) -> Self {
        let hour = Duration::from_secs(60 * 60);
        let one_time_claims = Limit::new("one-time-claims", config.one_time_claims_per_hour, hour);
        let claims = Limit::new("claims", config.claims_per_hour, hour);
        Self { directory, fabric, one_time_claims, claims }
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

    /// The limits of claims.
    pub(crate) fn claim_limits(&self) -> [LimitView; 2] {
        [self.claims.view(), self.one_time_claims.view()]
    }

    /// Whether the directory has of `device` what the device believes.
    pub(crate) async fn check(
        &self,
        device: DeviceAddress,
        believed: &KeysCheckRequest,
    ) -> Result<KeysCheck, KeysError> {
        let record = self.directory.account(device.account).await?.ok_or(KeysError::NotFound)?;
        let list = record.device_list.verify(record.account, &record.account_key).ok();
        let listed = list.and_then(|list| list.device(device.device).copied());
        let identity =
            listed.is_some_and(|listed| (listed.curve25519, listed.ed25519) == (believed.curve25519, believed.ed25519));
        let fallback = self.directory.fallback_prekey(device).await?.map(|prekey| prekey.key);
        let one_time = self.directory.prekeys_held(device).await?.one_time;
        Ok(KeysCheck { identity, fallback: fallback.is_some() && fallback == believed.fallback, one_time })
    }

    /// Hands out a prekey of `device`. Claims are limited for each device that is claimed from, whoever claims.
    pub(crate) async fn claim(&self, device: DeviceAddress, now: Timestamp) -> Result<PrekeyClaim, KeysError> {
        self.claims.spend(device, now).map_err(|retry_after| KeysError::TooMany { retry_after })?;
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
