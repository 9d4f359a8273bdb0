//! This account's other devices: welcoming a new one, naming, listing and removing them.
//!
//! A device is in an account when the account key says so, so every change here is the next revision of the signed list.
//! The server stores it; what it shows is believed only as far as this device's own key signed it.
//!
//! Linking can be cut between any two steps. So what was sealed for the new device is stored before it leaves, and the
//! same code again goes on: a device that the list has already is not added a second time, and is given the same answer.

use serde::{Deserialize, Serialize};
use waxwing_protocol::api::{AccountView, DeviceName, DevicesView, LinkRequest, LinkResponse, RevokeRequest, Sealed};
use waxwing_protocol::identity::{Base64, Device, DeviceList, SignedDeviceList};
use waxwing_protocol::{DeviceId, LinkId, Timestamp};
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::link::{LinkCode, Offer, Welcome};

use crate::account::{AccountRow, device_keys, me, now};
use crate::contacts::{self, accept};
use crate::http::{CREDENTIALS, Credentials};
use crate::profile::{Rows as _, Table};
use crate::{Client, ClientError, OnProgress, archive, sessions};

/// Answers to devices that were welcomed, by link id.
const WELCOMES: Table<WelcomeRow> = Table::new("welcomes");

/// How often a change of the list is made again when another device was quicker.
const LIST_TRIES: usize = 5;

/// An answer, as sealed once for a device.
#[derive(Serialize, Deserialize)]
struct WelcomeRow {
    device: DeviceId,
    answer: Base64,
}

/// One of the account's devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its number.
    pub device: DeviceId,
    /// What its owner calls it; empty when it has no name.
    pub name: String,
    /// Whether it is this one.
    pub is_this: bool,
    /// When it was linked; zero for the first one of an account.
    pub added_at: Timestamp,
    /// When it connected last, as the server says; zero when it never has.
    pub connected_at: Timestamp,
}

impl Client {
    /// Makes the device that shows `code` one of this account's: adds it to the signed list, and gives it the account key
    /// and, with `history`, contacts and messages. Called again after a cut, it goes on.
    ///
    /// # Errors
    /// [`ClientError::Link`] when nobody waits under the code or what came does not open; those of uploading.
    pub async fn link_device(
        &self,
        code: &LinkCode,
        history: bool,
        on: OnProgress<'_>,
    ) -> Result<DeviceInfo, ClientError> {
        let id = code.id();
        let offer = self.offered(code).await?;
        if self.profile.read(|tx| tx.get(&WELCOMES, id.as_bytes()))?.is_none() {
            let history = if history { Some(Box::pin(archive::upload(self, on)).await?) } else { None };
            let (device, list) = self.add_device(&offer).await?;
            self.welcome(code, &offer, device, list, history)?;
        }
        let row = self.profile.read(|tx| tx.get(&WELCOMES, id.as_bytes()))?;
        let row = row.ok_or(ClientError::Damaged { what: "a device that was welcomed" })?;
        let service = &self.service;
        let url = service.api_url(&format!("/v1/links/{id}/answer")).await?;
        let answer = Sealed { sealed: row.answer };
        service.retry(|| service.done(service.authorized(service.http().put(&url)).json(&answer))).await?;
        let (added_at, connected_at) = (now(), Timestamp::default());
        Ok(DeviceInfo { device: row.device, name: offer.name, is_this: false, added_at, connected_at })
    }

    /// The account's devices, by rising number.
    ///
    /// # Errors
    /// [`ClientError::BadIdentity`] when the server shows a list that the account did not sign.
    pub async fn devices(&self) -> Result<Vec<DeviceInfo>, ClientError> {
        let view = self.devices_view().await?;
        let list = self.accept_own(&view.device_list)?;
        let me = self.profile.read(|tx| me(tx))?;
        let key = me.account_key()?;
        let devices = list.devices.iter().map(|device| {
            let shown = view.devices.iter().find(|it| it.device == device.id);
            DeviceInfo {
                device: device.id,
                name: shown.and_then(|it| key.open_name(&it.name)).unwrap_or_default(),
                is_this: device.id == me.device,
                added_at: shown.map_or(Timestamp::default(), |it| it.added_at),
                connected_at: shown.map_or(Timestamp::default(), |it| it.connected_at),
            }
        });
        Ok(devices.collect())
    }

    /// Names one of the account's devices. The server learns no names.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when there is no such device.
    pub async fn name_device(&self, device: DeviceId, name: &str) -> Result<(), ClientError> {
        let key = self.profile.read(|tx| me(tx))?.account_key()?;
        let request = DeviceName { name: key.seal_name(name) };
        let service = &self.service;
        let url = service.api_url(&format!("/v1/devices/{device}/name")).await?;
        service.retry(|| service.done(service.authorized(service.http().put(&url)).json(&request))).await
    }

    /// Removes one of the account's devices: it is told nothing more, and nobody encrypts for it any more. Removing this
    /// one ends the profile; what was received stays in its directory.
    ///
    /// # Errors
    /// [`ClientError::NoDevice`] when the list has none of this number or no other; those of asking.
    pub async fn remove_device(&self, device: DeviceId) -> Result<(), ClientError> {
        let me = self.profile.read(|tx| me(tx))?;
        let service = &self.service;
        let url = service.api_url(&format!("/v1/devices/{device}")).await?;
        for _ in 0..LIST_TRIES {
            let view = self.devices_view().await?;
            let list = self.accept_own(&view.device_list)?;
            let left: Vec<_> = list.devices.iter().copied().filter(|it| it.id != device).collect();
            if left.len() == list.devices.len() || left.is_empty() {
                return Err(ClientError::NoDevice { device });
            }
            let device_list = self.sign_next(&me, &list, left)?;
            let request = RevokeRequest { device_list };
            let ask = || service.done(service.authorized(service.http().delete(&url)).json(&request));
            match service.retry(ask).await {
                Err(error) if is_conflict(&error) => continue,
                // An earlier try whose answer was lost: this device is the account's no more.
                Err(ClientError::Removed { .. }) if device == me.device => {}
                done => done?,
            }
            if device == me.device {
                return self.profile.write(|tx| tx.remove(&CREDENTIALS, Credentials::KEY)).map(drop);
            }
            self.accept_own(&request.device_list)?;
            return Ok(());
        }
        Err(ClientError::DevicesUnsettled { handle: me.handle })
    }

    async fn devices_view(&self) -> Result<DevicesView, ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/devices").await?;
        service.retry(|| service.json(service.authorized(service.http().get(&url)))).await
    }

    /// What the device that shows the code wants to be listed with.
    async fn offered(&self, code: &LinkCode) -> Result<Offer, ClientError> {
        let service = &self.service;
        let url = service.api_url(&format!("/v1/links/{}", code.id())).await?;
        let offered = service.retry(|| service.json(service.authorized(service.http().get(&url)))).await;
        let Sealed { sealed } = offered.map_err(|error| match error {
            ClientError::Refused { problem, .. } if problem.status == 404 => ClientError::NobodyToLink,
            error => error,
        })?;
        Ok(Offer::open(code, &sealed.0)?)
    }

    /// Adds the device of an offer to the account's list, unless it is there.
    async fn add_device(&self, offer: &Offer) -> Result<(DeviceId, SignedDeviceList), ClientError> {
        let me = self.profile.read(|tx| me(tx))?;
        let service = &self.service;
        let url = service.api_url("/v1/devices/link").await?;
        for _ in 0..LIST_TRIES {
            let view = self.devices_view().await?;
            let list = self.accept_own(&view.device_list)?;
            let mine = |it: &&Device| (it.curve25519, it.ed25519) == (offer.curve25519, offer.ed25519);
            if let Some(listed) = list.devices.iter().find(mine) {
                return Ok((listed.id, view.device_list));
            }
            // The server says which numbers were used; what this device sees itself it does not take its word for.
            let highest = list.devices.last().map_or(0, |last| last.id.get());
            let next = DeviceId::new(view.next_device.get().max(highest.saturating_add(1)))?;
            let devices = [&list.devices[..], &[offer.device(next)]].concat();
            let device_list = self.sign_next(&me, &list, devices)?;
            let request = LinkRequest {
                device_list,
                token_hash: offer.token_hash.clone(),
                name: me.account_key()?.seal_name(&offer.name),
                fallback: offer.fallback.clone(),
            };
            let ask = || service.json::<LinkResponse>(service.authorized(service.http().post(&url)).json(&request));
            match service.retry(ask).await {
                Ok(_) => {
                    self.accept_own(&request.device_list)?;
                    return Ok((next, request.device_list));
                }
                Err(error) if is_conflict(&error) => continue,
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::DevicesUnsettled { handle: me.handle })
    }

    /// Seals the account key for a device that is listed. The session that begins and what is sealed with it are stored
    /// together, before anything leaves.
    fn welcome(
        &self,
        code: &LinkCode,
        offer: &Offer,
        device: DeviceId,
        device_list: SignedDeviceList,
        history: Option<BlobRef>,
    ) -> Result<(), ClientError> {
        let id: LinkId = code.id();
        self.profile.write(|tx| {
            let (me, keys) = (me(tx)?, device_keys(tx)?);
            let (account, by) = (me.account, me.device);
            let account_key = me.account_key()?;
            let welcome = Welcome { account, handle: me.handle, account_key, device_list, device, by, history };
            let (answer, begun) = welcome.seal(code, &keys, offer)?;
            sessions::store(tx, account, &offer.device(device), begun)?;
            tx.put(&WELCOMES, id.as_bytes(), &WelcomeRow { device, answer: Base64(answer) })
        })
    }

    fn sign_next(
        &self,
        me: &AccountRow,
        before: &DeviceList,
        devices: Vec<Device>,
    ) -> Result<SignedDeviceList, ClientError> {
        let revision = before.revision + 1;
        let next = DeviceList { account: me.account, revision, signed_at: now(), devices };
        Ok(me.account_key()?.sign_device_list(&next))
    }

    /// Takes a list of this account's own devices, if its key signed it and it is not older than one seen before.
    fn accept_own(&self, device_list: &SignedDeviceList) -> Result<DeviceList, ClientError> {
        self.profile.write(|tx| {
            let me = me(tx)?;
            // What was seen before counts, also when nobody has asked for it yet.
            contacts::remember_own(tx, &me)?;
            let account_key = me.public_key()?;
            let view =
                AccountView { account: me.account, handle: me.handle, account_key, device_list: device_list.clone() };
            Ok(accept(tx, view)?.devices)
        })
    }
}

/// Whether another device has changed the list meanwhile.
fn is_conflict(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if problem.slug() == "revision-conflict")
}
