//! This device's own account: making it, and who it is.
//!
//! Registering asks a server to bind a handle to keys. Were the keys made anew at every try, a reply lost on the way
//! would leave a handle that nobody can use any more. So account id, keys and token are stored first, and the same
//! request is repeated until it is answered: by `register` itself, or by `register` run again in the same directory.
//!
//! Promise: once [`Client::register`] returns, others can write to this account; its prekeys are at the server.

use std::path::Path;

use serde::{Deserialize, Serialize};
use waxwing_protocol::api::{DeleteRequest, RegisterRequest, RegisterResponse, RenameRequest};
use waxwing_protocol::identity::{Base64, DeviceList, PublicKey, SignedDeviceList};
use waxwing_protocol::token::{DeviceToken, TOKEN_SECRET_BYTES};
use waxwing_protocol::{AccountId, DeviceId, Handle, Timestamp};
use waxwing_seal::device::{DamagedKeys, DeviceKeys};
use waxwing_seal::identity::AccountKey;
use waxwing_seal::message::Party;
use zeroize::Zeroizing;

use crate::http::{CREDENTIALS, Credentials, Service, Token};
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, Profile};

/// Who this device is; put before the server is first asked, kept for good.
pub(crate) const ACCOUNT: Table<AccountRow> = Table::new("account");

/// The device's secret keys, as `DeviceKeys` stores them.
pub(crate) const DEVICE: Table<SecretBytes> = Table::new("device");

/// The key of tables that have one row.
pub(crate) const SELF: &[u8] = b"self";

/// An account as its own device stores it.
#[derive(Serialize, Deserialize)]
pub(crate) struct AccountRow {
    pub(crate) server: String,
    pub(crate) account: AccountId,
    pub(crate) handle: Handle,
    pub(crate) device: DeviceId,
    pub(crate) account_key: SecretBytes,
    /// The first one this device knew. Kept as signed: it names the moment of signing, and a repeated request must be the
    /// same request.
    pub(crate) device_list: SignedDeviceList,
    pub(crate) token: Token,
}

/// What registering needs to know.
#[derive(Clone, Debug)]
pub struct RegisterOptions {
    /// The service's address, such as `https://chat.example`.
    pub server: String,
    /// The handle wanted.
    pub handle: Handle,
    /// An invite code, where registration asks for one.
    pub invite: Option<String>,
}

/// Who this profile is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The account.
    pub account: AccountId,
    /// This device of it.
    pub device: DeviceId,
    /// The account's handle.
    pub handle: Handle,
    /// The service's address.
    pub server: String,
    /// The account's public key, which others remember.
    pub account_key: PublicKey,
}

impl Client {
    /// Makes an account with this directory as its first device; goes on where an earlier try was cut.
    ///
    /// After a refusal, such as of a handle that is taken, another handle can be tried in the same directory.
    ///
    /// # Errors
    /// [`ClientError::AlreadyRegistered`] when the directory holds an account, [`ClientError::Refused`] when the server
    /// does not want it, [`ClientError::Unreachable`] when it does not answer.
    pub async fn register(home: &Path, options: RegisterOptions) -> Result<Self, ClientError> {
        let service = Service::new(&options.server)?;
        let profile = Profile::create(home)?;
        if let Some(row) = profile.read(|tx| match tx.get(&CREDENTIALS, Credentials::KEY)? {
            Some(_) => tx.get(&ACCOUNT, SELF),
            None => Ok(None),
        })? {
            return Err(ClientError::AlreadyRegistered { home: home.to_owned(), handle: row.handle });
        }
        let row = profile.write(|tx| prepare(tx, service.server(), &options.handle, now()))?;

        let url = service.api_url("/v1/register").await?;
        let request = row.request(options.invite);
        let answer: RegisterResponse = service.retry(|| service.json(service.http().post(&url).json(&request))).await?;
        if (answer.account, &answer.handle, answer.device) != (row.account, &row.handle, row.device) {
            return Err(service.nonsense("the registration of another account or device"));
        }
        let credentials = Credentials { server: row.server.clone(), token: row.token.clone() };
        let client = Self::with_credentials(profile, &credentials)?;
        client.replenish_prekeys(now()).await?;
        // Last: only now is there nothing left to continue.
        client.profile.write(|tx| tx.put(&CREDENTIALS, Credentials::KEY, &credentials))?;
        Ok(client)
    }

    /// Takes another handle; the one it had is free for others at once.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when it is taken, [`ClientError::Unreachable`].
    pub async fn rename(&self, handle: &Handle) -> Result<(), ClientError> {
        let row = self.profile.read(|tx| me(tx))?;
        let proof = row.account_key()?.rename_proof(row.account, handle);
        let request = RenameRequest { handle: handle.clone(), proof };
        let service = &self.service;
        let url = service.api_url("/v1/account/handle").await?;
        service.retry(|| service.done(service.authorized(service.http().put(&url)).json(&request))).await?;
        self.profile.write(|tx| {
            let row = AccountRow { handle: handle.clone(), ..me(tx)? };
            tx.put(&ACCOUNT, SELF, &row)
        })
    }

    /// Deletes the account at the service, with its devices and everything that waits for them, and ends this profile:
    /// what was received stays in its directory, but nothing can be sent or received with it any more. Blobs go from
    /// the origin when their time is over.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::Unreachable`].
    pub async fn delete_account(&self) -> Result<(), ClientError> {
        let row = self.profile.read(|tx| me(tx))?;
        let request = DeleteRequest { proof: row.account_key()?.delete_proof(row.account) };
        let service = &self.service;
        let url = service.api_url("/v1/account/delete").await?;
        let ask = || service.done(service.authorized(service.http().post(&url)).json(&request));
        match service.retry(ask).await {
            // An earlier try whose answer was lost: the token is nobody's any more.
            Err(ClientError::Removed { .. }) => {}
            done => done?,
        }
        self.profile.write(|tx| tx.remove(&CREDENTIALS, Credentials::KEY)).map(drop)
    }

    /// Who this profile is.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when it cannot be read.
    pub fn whoami(&self) -> Result<Identity, ClientError> {
        let row = self.profile.read(|tx| me(tx))?;
        Ok(Identity {
            account: row.account,
            device: row.device,
            account_key: row.public_key()?,
            handle: row.handle,
            server: row.server,
        })
    }
}

impl AccountRow {
    /// The account key.
    pub(crate) fn account_key(&self) -> Result<AccountKey, ClientError> {
        let seed = self.account_key.0.as_slice().try_into().map_err(|_| damaged())?;
        Ok(AccountKey::from_bytes(seed))
    }

    /// The account's public key.
    pub(crate) fn public_key(&self) -> Result<PublicKey, ClientError> {
        Ok(self.account_key()?.public())
    }

    fn request(&self, invite: Option<String>) -> RegisterRequest {
        let key = self.account_key().expect("a key of 32 bytes was just stored");
        let token: DeviceToken = self.token.as_str().parse().expect("a token in its own text form");
        let hash = token.hash();
        RegisterRequest {
            account: self.account,
            handle: self.handle.clone(),
            account_key: key.public(),
            device_list: self.device_list.clone(),
            token_hash: Base64(hash.to_vec()),
            proof: key.registration_proof(self.account, &hash, &self.handle),
            invite,
        }
    }
}

/// The account to ask for: the one of an earlier try at the same server, else a new one, stored here.
fn prepare(tx: &WriteTx<'_>, server: &str, handle: &Handle, now: Timestamp) -> Result<AccountRow, ClientError> {
    let row = match tx.get(&ACCOUNT, SELF)? {
        Some(row) if row.server == server => AccountRow { handle: handle.clone(), ..row },
        _ => {
            let keys = DeviceKeys::generate(DeviceId::FIRST);
            let row = generate(server, handle, &keys, now);
            tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
            row
        }
    };
    tx.put(&ACCOUNT, SELF, &row)?;
    Ok(row)
}

fn generate(server: &str, handle: &Handle, keys: &DeviceKeys, now: Timestamp) -> AccountRow {
    let mut id = [0; 16];
    let mut secret = Zeroizing::new([0; TOKEN_SECRET_BYTES]);
    for bytes in [&mut id[..], &mut secret[..]] {
        getrandom::fill(bytes).expect("the operating system provides randomness");
    }
    // A UUID of version 4 (RFC 9562 §5.4): random but for version and variant.
    id[6] = id[6] & 0x0f | 0x40;
    id[8] = id[8] & 0x3f | 0x80;
    let (account, device) = (AccountId::from_bytes(id), keys.device().id);
    let key = AccountKey::generate();
    let list = DeviceList { account, revision: 1, signed_at: now, devices: vec![keys.device()] };
    AccountRow {
        server: server.to_owned(),
        account,
        handle: handle.clone(),
        device,
        account_key: SecretBytes(key.to_bytes().to_vec().into()),
        device_list: key.sign_device_list(&list),
        token: Token::new(DeviceToken::new(account, device, *secret).to_text()),
    }
}

/// This device's account.
///
/// # Errors
/// [`ClientError::Profile`] when the store fails, [`ClientError::Damaged`] when there is none.
pub(crate) fn me(tx: &impl Rows) -> Result<AccountRow, ClientError> {
    tx.get(&ACCOUNT, SELF)?.ok_or_else(damaged)
}

/// This device's secret keys; whoever changes them puts them back in the same transaction.
///
/// # Errors
/// [`ClientError::Profile`] when the store fails, [`ClientError::Damaged`] when the row is damaged.
pub(crate) fn device_keys(tx: &impl Rows) -> Result<DeviceKeys, ClientError> {
    let bytes = tx.get(&DEVICE, SELF)?.ok_or_else(damaged)?;
    DeviceKeys::from_bytes(&bytes.0).map_err(|DamagedKeys| damaged())
}

/// This device as one end of messages.
pub(crate) fn party(row: &AccountRow, keys: &DeviceKeys) -> Party {
    Party { account: row.account, device: keys.device() }
}

/// A profile whose rows do not fit together.
fn damaged() -> ClientError {
    ClientError::Damaged { what: "this device's account" }
}

/// The system's clock.
pub(crate) fn now() -> Timestamp {
    std::time::SystemTime::now().into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use waxwing_protocol::api::AccountView;
    use waxwing_protocol::identity::{Device, REGISTER_DOMAIN};

    /// A profile as registration leaves it, without a server: for tests of what comes after.
    pub(crate) fn registered(home: &Path, handle: &str) -> (Profile, AccountView) {
        let profile = Profile::create(home).unwrap();
        let handle: Handle = handle.parse().unwrap();
        let now = Timestamp::from_millis(1);
        let row = profile.write(|tx| prepare(tx, "http://127.0.0.1:9", &handle, now)).unwrap();
        let view = AccountView {
            account: row.account,
            handle,
            account_key: row.account_key().unwrap().public(),
            device_list: row.device_list.clone(),
        };
        (profile, view)
    }

    /// What a server shows of this profile's account at a revision with these devices, as the account signs it.
    pub(crate) fn view_with(profile: &Profile, revision: u64, devices: Vec<Device>) -> AccountView {
        let row = profile.read(|tx| me(tx)).unwrap();
        let key = row.account_key().unwrap();
        let list = DeviceList { account: row.account, revision, signed_at: Timestamp::from_millis(revision), devices };
        let device_list = key.sign_device_list(&list);
        AccountView { account: row.account, handle: row.handle, account_key: key.public(), device_list }
    }

    /// A reply lost on the way costs nothing: the second request is the first one again.
    #[test]
    fn a_repeated_registration_asks_for_the_same_account() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let handle: Handle = "alice".parse().unwrap();
        let ask = |handle: &Handle, at| {
            let row = profile.write(|tx| prepare(tx, "http://a.example", handle, Timestamp::from_millis(at))).unwrap();
            row.request(None)
        };
        let first = ask(&handle, 1);
        assert_eq!(ask(&handle, 2), first);

        let renamed = ask(&"alice2".parse().unwrap(), 3);
        assert_eq!((renamed.account, &renamed.token_hash), (first.account, &first.token_hash));
        assert_eq!(renamed.handle.as_str(), "alice2");
    }

    #[test]
    fn another_server_gets_other_keys() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let handle: Handle = "alice".parse().unwrap();
        let ask = |server: &str| {
            profile.write(|tx| prepare(tx, server, &handle, Timestamp::from_millis(1))).unwrap().request(None)
        };
        let (one, two) = (ask("http://a.example"), ask("http://b.example"));
        assert_ne!(one.account, two.account);
        assert_ne!(one.account_key, two.account_key);
        assert_ne!(one.token_hash, two.token_hash);
    }

    #[test]
    fn a_registration_request_proves_itself() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let handle: Handle = "alice".parse().unwrap();
        let now = Timestamp::from_millis(1);
        let request =
            profile.write(|tx| prepare(tx, "http://a.example", &handle, now)).unwrap().request(Some("code".to_owned()));
        let list = request.device_list.verify(request.account, &request.account_key).unwrap();
        assert_eq!((list.revision, list.devices.len(), list.devices[0].id), (1, 1, DeviceId::FIRST));
        let message = RegisterRequest::proof_message(request.account, &request.token_hash.0, &handle);
        assert_eq!(request.account_key.verify(REGISTER_DOMAIN, &message, &request.proof.0), Ok(()));
    }

    #[tokio::test]
    async fn a_finished_profile_is_not_registered_again() {
        let home = tempfile::tempdir().unwrap();
        let (profile, view) = registered(home.path(), "alice");
        let row = profile.read(|tx| me(tx)).unwrap();
        let credentials = Credentials { server: row.server, token: row.token };
        profile.write(|tx| tx.put(&CREDENTIALS, Credentials::KEY, &credentials)).unwrap();
        drop(profile);
        let options =
            RegisterOptions { server: "http://127.0.0.1:9".into(), handle: "eve".parse().unwrap(), invite: None };
        let refused = Client::register(home.path(), options).await.err().unwrap();
        assert!(matches!(refused, ClientError::AlreadyRegistered { handle, .. } if handle == view.handle));
        let identity = Client::open(home.path()).unwrap().whoami().unwrap();
        assert_eq!((identity.account, identity.account_key), (view.account, view.account_key));
    }
}
