//! The people this profile writes to: their account keys, remembered, and their devices, verified.
//!
//! The server says who a handle is. Asked once that is an introduction; believed again and again it would be a door:
//! one day it answers with a key of its own and reads along. So an account key is remembered at first sight, and from
//! then on only that key's signature makes a device list count. A changed key, a handle that moved to another account
//! and a list older than one seen before are errors, and nothing is sent.
//!
//! First sight itself is trusted; [`Client::safety_number`] lets two people check it.

use http::StatusCode;
use serde::{Deserialize, Serialize};
use waxwing_protocol::api::AccountView;
use waxwing_protocol::identity::{Device, DeviceList, PublicKey, SignedDeviceList};
use waxwing_protocol::{AccountId, DeviceId, Handle};
use waxwing_seal::identity::safety_number;
use waxwing_seal::message::Party;

use crate::account::{AccountRow, me};
use crate::profile::{Rows, Table, WriteTx};
use crate::{Client, ClientError};

/// People, by account id.
pub(crate) const CONTACTS: Table<ContactRow> = Table::new("contacts");

/// Account ids, by handle.
pub(crate) const HANDLES: Table<AccountId> = Table::new("handles");

/// What is remembered of a person.
#[derive(Serialize, Deserialize)]
pub(crate) struct ContactRow {
    pub(crate) handle: Handle,
    account_key: PublicKey,
    device_list: SignedDeviceList,
    /// Its owner has compared the safety number.
    #[serde(default)]
    verified: bool,
}

/// A person, as this profile knows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownContact {
    /// What they are called.
    pub handle: Handle,
    /// Their account.
    pub account: AccountId,
    /// Whether the safety number was compared.
    pub verified: bool,
    /// How many devices they have.
    pub devices: usize,
}

/// A person, with the devices their account key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contact {
    pub(crate) account: AccountId,
    pub(crate) handle: Handle,
    pub(crate) account_key: PublicKey,
    pub(crate) devices: DeviceList,
}

/// How a person was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Asked<'a> {
    Handle(&'a Handle),
    Account(AccountId),
}

impl Contact {
    /// One of the person's devices, as one end of messages.
    pub(crate) fn party(&self, device: DeviceId) -> Option<Party> {
        self.devices.device(device).map(|device| Party { account: self.account, device: *device })
    }

    /// Every device to encrypt for: all of the person's, but not the one that sends.
    pub(crate) fn recipients(&self, me: &Party) -> Vec<Device> {
        let own = |device: &&Device| self.account == me.account && device.id == me.device.id;
        self.devices.devices.iter().filter(|device| !own(device)).copied().collect()
    }
}

impl Client {
    /// The number to compare with `with` by voice: equal on both sides when no server stands between.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`] when there is no such person, and those of asking for one.
    pub async fn safety_number(&self, with: &Handle) -> Result<String, ClientError> {
        let contact = self.contact(with).await?;
        Ok(safety_number(&self.whoami()?.account_key, &contact.account_key))
    }

    /// Everybody this profile knows, by handle.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn contacts(&self) -> Result<Vec<KnownContact>, ClientError> {
        let mut known = self.profile.read(|tx| {
            let own = me(tx)?.account;
            let mut known = Vec::new();
            for (account, row) in tx.list(&CONTACTS)? {
                let (account, verified) = (AccountId::from_slice(&account)?, row.verified);
                let contact = read(account, row.handle, row.account_key, &row.device_list)?;
                let devices = contact.devices.devices.len();
                if account != own {
                    known.push(KnownContact { handle: contact.handle, account, verified, devices });
                }
            }
            Ok(known)
        })?;
        known.sort_by(|a, b| a.handle.cmp(&b.handle));
        Ok(known)
    }

    /// Takes note of whether the safety number with `who` was compared.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`] when this profile does not know them.
    pub fn set_verified(&self, who: &Handle, verified: bool) -> Result<(), ClientError> {
        self.profile.write(|tx| {
            let unknown = || ClientError::UnknownRecipient { handle: who.clone() };
            let account = tx.get(&HANDLES, who.as_str().as_bytes())?.ok_or_else(unknown)?;
            let row = tx.get(&CONTACTS, account.as_bytes())?.ok_or_else(unknown)?;
            tx.put(&CONTACTS, account.as_bytes(), &ContactRow { verified, ..row })
        })
    }

    /// Trusts whoever the server says `who` is now, after a change of key that would otherwise stop every message. Gives
    /// the new safety number, which is worth comparing.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`] and those of asking.
    pub async fn accept_identity(&self, who: &Handle) -> Result<String, ClientError> {
        let view = self.fetch_view(Asked::Handle(who)).await?;
        let (account, account_key) = (view.account, view.account_key);
        let own = self.whoami()?;
        if account == own.account {
            return Err(ClientError::OwnAccount);
        }
        self.profile.write(|tx| {
            tx.remove(&HANDLES, who.as_str().as_bytes())?;
            let changed = tx.get(&CONTACTS, account.as_bytes())?.is_some_and(|row| row.account_key != account_key);
            if changed {
                tx.remove(&CONTACTS, account.as_bytes())?;
            }
            accept(tx, view)
        })?;
        Ok(safety_number(&own.account_key, &account_key))
    }

    /// The person called `handle`: as remembered, else as the server introduces them.
    pub(crate) async fn contact(&self, handle: &Handle) -> Result<Contact, ClientError> {
        match self.profile.read(|tx| known_by_handle(tx, handle))? {
            Some(contact) => Ok(contact),
            None => self.look_up(Asked::Handle(handle)).await,
        }
    }

    /// Asks the server for a person's devices, and accepts them if they may be believed.
    pub(crate) async fn look_up(&self, asked: Asked<'_>) -> Result<Contact, ClientError> {
        let view = self.fetch_view(asked).await?;
        self.profile.write(|tx| accept(tx, view))
    }

    /// What the server says of a person.
    async fn fetch_view(&self, asked: Asked<'_>) -> Result<AccountView, ClientError> {
        let name = match asked {
            Asked::Handle(handle) => handle.to_string(),
            Asked::Account(account) => account.to_string(),
        };
        let service = &self.service;
        let url = service.api_url(&format!("/v1/accounts/{name}")).await?;
        let view = service.retry(|| service.json(service.authorized(service.http().get(&url)))).await;
        let view: AccountView = view.map_err(|error| match (error, asked) {
            (ClientError::Refused { problem, .. }, Asked::Handle(handle))
                if problem.status == StatusCode::NOT_FOUND.as_u16() =>
            {
                ClientError::UnknownRecipient { handle: handle.clone() }
            }
            (error, _) => error,
        })?;
        let as_asked = match asked {
            Asked::Handle(handle) => view.handle == *handle,
            Asked::Account(account) => view.account == account,
        };
        if !as_asked {
            return Err(service.nonsense("an account that was not asked for"));
        }
        Ok(view)
    }
}

/// Accepts what the server says of a person, if it agrees with what is remembered.
pub(crate) fn accept(tx: &WriteTx<'_>, view: AccountView) -> Result<Contact, ClientError> {
    let AccountView { account, handle, account_key, device_list } = view;
    let changed = || ClientError::IdentityChanged { handle: handle.clone() };
    let owner = tx.get(&HANDLES, handle.as_str().as_bytes())?;
    if owner.is_some_and(|owner| owner != account) {
        return Err(changed());
    }
    let devices = device_list
        .verify(account, &account_key)
        .map_err(|source| ClientError::BadIdentity { handle: handle.clone(), source })?;
    let mut verified = false;
    if let Some(row) = tx.get(&CONTACTS, account.as_bytes())? {
        if row.account_key != account_key {
            return Err(changed());
        }
        verified = row.verified;
        let known = read(account, row.handle, row.account_key, &row.device_list)?.devices;
        let newer = devices.revision > known.revision;
        if !newer && devices != known {
            return Err(ClientError::DevicesRolledBack { handle });
        }
    }
    let own = me(tx)?;
    if own.account == account && own.public_key()? != account_key {
        return Err(changed());
    }
    let row = ContactRow { handle: handle.clone(), account_key, device_list, verified };
    tx.put(&CONTACTS, account.as_bytes(), &row)?;
    tx.put(&HANDLES, handle.as_str().as_bytes(), &account)?;
    Ok(Contact { account, handle, account_key, devices })
}

/// The person with this account, if remembered.
pub(crate) fn known(tx: &impl Rows, account: AccountId) -> Result<Option<Contact>, ClientError> {
    let row = tx.get(&CONTACTS, account.as_bytes())?;
    row.map(|row| read(account, row.handle, row.account_key, &row.device_list)).transpose()
}

/// The accounts of everybody remembered.
pub(crate) fn all(tx: &impl Rows) -> Result<Vec<AccountId>, ClientError> {
    let rows = tx.list(&HANDLES)?;
    Ok(rows.into_iter().map(|(_, account)| account).collect())
}

/// This account, with its devices as far as this one knows.
pub(crate) fn own(tx: &impl Rows) -> Result<Contact, ClientError> {
    let me = me(tx)?;
    match known(tx, me.account)? {
        Some(own) => Ok(own),
        None => read(me.account, me.handle.clone(), me.public_key()?, &me.device_list),
    }
}

/// Makes the list that this device began with one that was seen, so that no older one is believed.
pub(crate) fn remember_own(tx: &WriteTx<'_>, me: &AccountRow) -> Result<(), ClientError> {
    if tx.get(&CONTACTS, me.account.as_bytes())?.is_some() {
        return Ok(());
    }
    let (handle, account_key, device_list) = (me.handle.clone(), me.public_key()?, me.device_list.clone());
    tx.put(&CONTACTS, me.account.as_bytes(), &ContactRow { handle, account_key, device_list, verified: true })
}

/// Whether this account has devices beside this one.
pub(crate) fn has_other_devices(tx: &impl Rows) -> Result<bool, ClientError> {
    Ok(own(tx)?.devices.devices.len() > 1)
}

fn known_by_handle(tx: &impl Rows, handle: &Handle) -> Result<Option<Contact>, ClientError> {
    match tx.get(&HANDLES, handle.as_str().as_bytes())? {
        Some(account) => known(tx, account),
        None => Ok(None),
    }
}

/// Reads a list as it was signed; a profile changed behind our back shows here.
fn read(
    account: AccountId,
    handle: Handle,
    account_key: PublicKey,
    list: &SignedDeviceList,
) -> Result<Contact, ClientError> {
    match list.verify(account, &account_key) {
        Ok(devices) => Ok(Contact { account, handle, account_key, devices }),
        Err(source) => Err(ClientError::BadIdentity { handle, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;
    use crate::account::tests::registered;
    use waxwing_protocol::Timestamp;
    use waxwing_seal::device::DeviceKeys;
    use waxwing_seal::identity::AccountKey;

    /// Bob, as a server that has his key could show him.
    struct Bob {
        account: AccountId,
        key: AccountKey,
        device: Device,
    }

    impl Bob {
        fn new() -> Self {
            let device = DeviceKeys::generate(DeviceId::FIRST).device();
            Self { account: AccountId::from_bytes([8; 16]), key: AccountKey::generate(), device }
        }

        fn at_revision(&self, revision: u64) -> AccountView {
            let signed_at = Timestamp::from_millis(revision);
            let list = DeviceList { account: self.account, revision, signed_at, devices: vec![self.device] };
            AccountView {
                account: self.account,
                handle: "bob".parse().unwrap(),
                account_key: self.key.public(),
                device_list: self.key.sign_device_list(&list),
            }
        }
    }

    fn alice() -> (tempfile::TempDir, Profile) {
        let home = tempfile::tempdir().unwrap();
        let (profile, _) = registered(home.path(), "alice");
        (home, profile)
    }

    #[test]
    fn a_person_is_remembered_and_newer_devices_are_accepted() {
        let (_home, profile) = alice();
        let bob = Bob::new();
        for revision in [1, 1, 2, 5] {
            let contact = profile.write(|tx| accept(tx, bob.at_revision(revision))).unwrap();
            let known = profile.read(|tx| known_by_handle(tx, &contact.handle)).unwrap();
            assert_eq!(known, Some(contact));
        }
    }

    #[test]
    fn an_older_list_and_a_second_one_of_the_same_revision_are_refused() {
        let (_home, profile) = alice();
        let bob = Bob::new();
        let newest = profile.write(|tx| accept(tx, bob.at_revision(3))).unwrap();
        let twin = Bob { device: DeviceKeys::generate(DeviceId::FIRST).device(), ..bob };
        for view in [twin.at_revision(2), twin.at_revision(3)] {
            let refused = profile.write(|tx| accept(tx, view)).unwrap_err();
            assert!(matches!(refused, ClientError::DevicesRolledBack { .. }), "{refused}");
        }
        assert_eq!(profile.read(|tx| known(tx, newest.account)).unwrap(), Some(newest));
    }

    #[test]
    fn a_changed_account_key_is_refused() {
        let (_home, profile) = alice();
        let bob = Bob::new();
        let contact = profile.write(|tx| accept(tx, bob.at_revision(1))).unwrap();
        let ghost = Bob { key: AccountKey::generate(), ..bob };
        let refused = profile.write(|tx| accept(tx, ghost.at_revision(2))).unwrap_err();
        assert!(matches!(refused, ClientError::IdentityChanged { .. }), "{refused}");
        assert_eq!(profile.read(|tx| known(tx, contact.account)).unwrap(), Some(contact));
    }

    #[test]
    fn a_handle_that_moved_to_another_account_is_refused() {
        let (_home, profile) = alice();
        profile.write(|tx| accept(tx, Bob::new().at_revision(1))).unwrap();
        let mut other = Bob::new();
        other.account = AccountId::from_bytes([9; 16]);
        let refused = profile.write(|tx| accept(tx, other.at_revision(1))).unwrap_err();
        assert!(matches!(refused, ClientError::IdentityChanged { .. }), "{refused}");
    }

    #[test]
    fn devices_that_the_account_did_not_sign_are_refused() {
        let (_home, profile) = alice();
        let bob = Bob::new();
        let view = AccountView { account_key: AccountKey::generate().public(), ..bob.at_revision(1) };
        let refused = profile.write(|tx| accept(tx, view)).unwrap_err();
        assert!(matches!(refused, ClientError::BadIdentity { .. }), "{refused}");
        assert_eq!(profile.read(|tx| known(tx, bob.account)).unwrap(), None);
    }
}
