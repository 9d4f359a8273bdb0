//! An account's devices: linked, named, revoked.
//!
//! The server adds nobody: it takes the next revision of a list that the account key signed, and makes rows and list one
//! commit. What it checks is what a mistake of a client would break for others: that a revision follows the one before,
//! that it changes one device and no other, and that a number is never used twice.

use std::sync::Arc;

use waxwing_protocol::api::{DEVICE_NAME_BYTES_MAX, DeviceView, DevicesView, LinkRequest, LinkResponse, RevokeRequest};
use waxwing_protocol::identity::{Base64, Device, DeviceList, IdentityError, PrekeyKind};
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use crate::fabric::Fabric;
use crate::store::{
    AccountRecord, DeviceAddress, DeviceChange, Directory, ListChange, ListChanged, NewDevice, StoreError,
};

/// Accounts that have written to one whose devices changed and are told so, if they are connected. Whoever is not among
/// them finds out with the next message.
const WRITERS_TOLD_MAX: usize = 4096;

/// Changes and shows accounts' devices.
pub(crate) struct Devices {
    directory: Arc<dyn Directory>,
    fabric: Arc<Fabric>,
}

/// Why an account's devices were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DevicesError {
    #[error("the request does not prove itself: {0}")]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the account's device list is at revision {revision}, and its next device is number {next_device}")]
    Conflict { revision: u64, next_device: DeviceId },
    #[error("no such device")]
    NotFound,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Devices {
    pub(crate) fn new(directory: Arc<dyn Directory>, fabric: Arc<Fabric>) -> Self {
        Self { directory, fabric }
    }

    /// Adds a device to an account. `epoch` is random: it becomes that of the device's mailbox. Returns whether it is new;
    /// the identical request again is not an error.
    pub(crate) async fn link(
        &self,
        account: AccountId,
        request: LinkRequest,
        epoch: u64,
        now: Timestamp,
    ) -> Result<(LinkResponse, bool), DevicesError> {
        let LinkRequest { device_list, token_hash, name, fallback } = request;
        let record = self.directory.account(account).await?.ok_or(DevicesError::NotFound)?;
        let list = device_list.verify(account, &record.account_key)?;
        let token_hash = token_hash.0.try_into().map_err(|_| DevicesError::Malformed("token_hash has 32 bytes"))?;
        check_name(&name)?;
        let repeated = device_list == record.device_list;
        let added = match list.devices.last() {
            // Numbers rise, so what was added last stands last.
            Some(last) if repeated => *last,
            _ => self.added(&record, &list).await?,
        };
        if fallback.kind != PrekeyKind::Fallback {
            return Err(DevicesError::Malformed("the fallback key is of another kind"));
        }
        fallback.verify(&added.ed25519)?;
        let (device, reg_id) = (added.id, added.reg_id);
        let new = NewDevice { device, reg_id, token_hash, epoch, name: name.0, fallback, now };
        let what = DeviceChange::Added(Box::new(new));
        let change = ListChange { account, before: record.device_list, after: device_list, what };
        let created = self.change(change).await?;
        let revision = list.revision;
        if created {
            self.tell(account, revision).await?;
        }
        Ok((LinkResponse { account, device, revision }, created))
    }

    /// Removes a device, with its token, its prekeys and everything that waits for it, and ends its connection.
    pub(crate) async fn revoke(
        &self,
        account: AccountId,
        device: DeviceId,
        request: RevokeRequest,
    ) -> Result<(), DevicesError> {
        let RevokeRequest { device_list } = request;
        let record = self.directory.account(account).await?.ok_or(DevicesError::NotFound)?;
        let list = device_list.verify(account, &record.account_key)?;
        let current = current(&record)?;
        if device_list != record.device_list {
            if list.revision != current.revision + 1 {
                return Err(self.conflict(&record).await?);
            }
            if current.device(device).is_none() {
                return Err(DevicesError::NotFound);
            }
            if !list.devices.iter().eq(current.devices.iter().filter(|it| it.id != device)) {
                return Err(DevicesError::Malformed("the list must be the one before without this device"));
            }
        }
        let what = DeviceChange::Removed(device);
        let change = ListChange { account, before: record.device_list, after: device_list, what };
        let done = self.change(change).await?;
        self.fabric.revoke(account, Some(device));
        if done {
            self.tell(account, list.revision).await?;
        }
        Ok(())
    }

    /// Names a device of an account.
    pub(crate) async fn name(&self, device: DeviceAddress, name: Base64) -> Result<(), DevicesError> {
        check_name(&name)?;
        let named = self.directory.name_device(device, name.0).await?;
        if named { Ok(()) } else { Err(DevicesError::NotFound) }
    }

    /// An account's devices.
    pub(crate) async fn view(&self, account: AccountId) -> Result<DevicesView, DevicesError> {
        let record = self.directory.account(account).await?.ok_or(DevicesError::NotFound)?;
        let details = self.directory.device_details(account).await?;
        let devices = details.into_iter().map(|it| DeviceView {
            device: it.device,
            name: Base64(it.name),
            added_at: it.added_at,
            connected_at: it.connected_at,
        });
        let next_device = self.next_device(account).await?;
        Ok(DevicesView { device_list: record.device_list, next_device, devices: devices.collect() })
    }

    /// Makes another token valid for a device; the one it has stays until the new one is used. False when there is no such
    /// device.
    pub(crate) async fn refresh(&self, device: DeviceAddress, token_hash: [u8; 32]) -> Result<bool, StoreError> {
        self.directory.add_token(device, token_hash).await
    }

    /// The one device that a list adds to the account's.
    async fn added(&self, record: &AccountRecord, list: &DeviceList) -> Result<Device, DevicesError> {
        let current = current(record)?;
        if list.revision != current.revision + 1 {
            return Err(self.conflict(record).await?);
        }
        match list.devices.split_last() {
            Some((added, before)) if before == current.devices => {
                if added.id < self.next_device(record.account).await? {
                    return Err(self.conflict(record).await?);
                }
                Ok(*added)
            }
            _ => Err(DevicesError::Malformed("the list must be the one before and one device more")),
        }
    }

    /// Makes a change; false when it was made before.
    async fn change(&self, change: ListChange) -> Result<bool, DevicesError> {
        let account = change.account;
        match self.directory.change_devices(change).await? {
            ListChanged::Done => Ok(true),
            ListChanged::Repeated => Ok(false),
            ListChanged::NotFound => Err(DevicesError::NotFound),
            ListChanged::Conflict => {
                let record = self.directory.account(account).await?.ok_or(DevicesError::NotFound)?;
                Err(self.conflict(&record).await?)
            }
        }
    }

    async fn conflict(&self, record: &AccountRecord) -> Result<DevicesError, DevicesError> {
        let next_device = self.next_device(record.account).await?;
        Ok(DevicesError::Conflict { revision: current(record)?.revision, next_device })
    }

    async fn next_device(&self, account: AccountId) -> Result<DeviceId, DevicesError> {
        let last = self.directory.last_device(account).await?.ok_or(DevicesError::NotFound)?;
        DeviceId::new(last.get().wrapping_add(1)).map_err(|_| DevicesError::Malformed("device numbers have run out"))
    }

    /// Tells the account's devices and those who write to it, as far as they are connected.
    async fn tell(&self, account: AccountId, revision: u64) -> Result<(), StoreError> {
        let writers = self.directory.writers(account, WRITERS_TOLD_MAX).await?;
        for told in std::iter::once(account).chain(writers) {
            self.fabric.devices_changed(told, account, revision);
        }
        Ok(())
    }
}

fn current(record: &AccountRecord) -> Result<DeviceList, IdentityError> {
    record.device_list.verify(record.account, &record.account_key)
}

fn check_name(name: &Base64) -> Result<(), DevicesError> {
    if name.0.len() > DEVICE_NAME_BYTES_MAX {
        return Err(DevicesError::Malformed("a sealed name has at most 256 bytes"));
    }
    Ok(())
}
