//! An account's further devices: how one is linked, named and revoked, and how two of them meet while it is linked.
//!
//! Paths: [`LinkRequest`] at `POST /v1/devices/link`; [`DevicesView`] at `GET /v1/devices`; [`DeviceName`] at
//! `PUT /v1/devices/{device}/name`; [`RevokeRequest`] at `DELETE /v1/devices/{device}`; the two [`Sealed`] halves of a
//! meeting at `/v1/links/{id}` and `/v1/links/{id}/answer`.

use serde::{Deserialize, Serialize};

use crate::identity::{Base64, PublicKey, SignedDeviceList, SignedPrekey};
use crate::{AccountId, DeviceId, Timestamp};

/// Bytes of a device's sealed name at most.
pub const DEVICE_NAME_BYTES_MAX: usize = 256;

/// Bytes of either half of a meeting at most.
pub const SEALED_BYTES_MAX: usize = 16 * 1024;

/// Body of `POST /v1/devices/link`, by a device of the account: one more device.
///
/// The same request again gets the same answer, so a lost reply costs nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// The next revision: the devices there are, and one more, whose number is higher than any the account ever had.
    pub device_list: SignedDeviceList,
    /// BLAKE3-256 of the secret in the new device's token.
    pub token_hash: Base64,
    /// What its owner calls it, sealed for the account's devices; opaque to the server.
    pub name: Base64,
    /// Its first fallback prekey, so that it can be written to from the moment it is listed.
    pub fallback: SignedPrekey,
}

/// Answer of `POST /v1/devices/link`: 201, or 200 when the same request was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkResponse {
    /// The account.
    pub account: AccountId,
    /// The device that was added.
    pub device: DeviceId,
    /// The revision of the account's device list from now on.
    pub revision: u64,
}

/// Answer of `GET /v1/devices`: the calling account's devices, as the server knows them. Whom to trust is in the device
/// list alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicesView {
    /// The newest device list.
    pub device_list: SignedDeviceList,
    /// The lowest number that a new device can have.
    pub next_device: DeviceId,
    /// The devices, by rising number.
    pub devices: Vec<DeviceView>,
}

/// A device, for its owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// Its number.
    pub device: DeviceId,
    /// Its sealed name; empty when it has none.
    pub name: Base64,
    /// When it was registered or linked; zero when that was not written down.
    pub added_at: Timestamp,
    /// When it connected last; zero when it never has.
    pub connected_at: Timestamp,
}

/// Body of `PUT /v1/devices/{device}/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceName {
    /// The name, sealed for the account's devices.
    pub name: Base64,
}

/// Body of `DELETE /v1/devices/{device}`: the device goes, with its token, its prekeys and everything that waits for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevokeRequest {
    /// The next revision: the devices there are without that one.
    pub device_list: SignedDeviceList,
}

/// One half of a meeting, which only the two devices can open: `PUT /v1/links/{id}` by the new device,
/// `PUT /v1/links/{id}/answer` by one of the account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// [`SEALED_BYTES_MAX`] at most.
    pub sealed: Base64,
}

/// Body of `POST /v1/keys/check`: what the calling device believes the directory has of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysCheckRequest {
    /// Its identity key.
    pub curve25519: PublicKey,
    /// Its signing key.
    pub ed25519: PublicKey,
    /// The fallback key it published last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<PublicKey>,
}

/// Answer of `POST /v1/keys/check`. What is not as the device believes, it uploads again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysCheck {
    /// Whether the device list has it with these keys.
    pub identity: bool,
    /// Whether the fallback key handed out is that one.
    pub fallback: bool,
    /// One-time keys left.
    pub one_time: usize,
}
