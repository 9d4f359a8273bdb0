//! Becoming a further device of an account: the new device's side.
//!
//! Its keys, its token and its code are made and stored before anything is said, so that a cut costs nothing: the same
//! directory goes on where it was. It has nothing of the account until an old device welcomes it, and takes from that one
//! the account key, never a ratchet: sessions with others are its own, made by writing and being written to.
//!
//! Promise: once [`Linking::finish`] returns, others can write to this device and it to them. Contacts and history are
//! fetched after that; if that is cut, watching goes on with it.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use waxwing_protocol::api::{AccountView, Sealed};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::token::{DeviceToken, TOKEN_SECRET_BYTES};
use waxwing_protocol::{DeviceId, Timestamp};
use waxwing_seal::device::DeviceKeys;
use waxwing_seal::link::{LinkCode, Offer, Welcome};
use zeroize::Zeroizing;

use crate::account::{ACCOUNT, AccountRow, DEVICE, SELF, device_keys, me, now};
use crate::contacts::accept;
use crate::http::{CREDENTIALS, Credentials, Service, Token};
use crate::profile::{Rows as _, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, OnProgress, Profile, archive, prekeys, sessions};

/// What a device that wants to be linked has, until it is.
const LINKING: Table<LinkingRow> = Table::new("linking");

/// A code that was shown this long ago may have been seen by anybody: another one is made.
const CODE_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How long to wait before asking again when the server has no answer and did not wait for one.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Serialize, Deserialize)]
struct LinkingRow {
    server: String,
    code: SecretBytes,
    /// The token's secret.
    secret: SecretBytes,
    /// As sealed once.
    offer: Base64,
    made_at: Timestamp,
    /// It has its account; what is left is to supply prekeys.
    welcomed: bool,
}

/// A device that waits to be welcomed.
pub struct Linking {
    profile: Profile,
    service: Service,
    code: LinkCode,
}

impl Linking {
    /// Makes the keys of a device in `home` that is to be linked; goes on where an earlier try was cut. `name` is what its
    /// owner calls it.
    ///
    /// # Errors
    /// [`ClientError::AlreadyRegistered`] when the directory holds an account; [`ClientError::Address`];
    /// [`ClientError::Unreachable`] when the server does not take what this device offers.
    pub async fn begin(home: &Path, server: &str, name: &str) -> Result<Self, ClientError> {
        let service = Service::new(server)?;
        let profile = Profile::create(home)?;
        let server = service.server().to_owned();
        let code = profile.write(|tx| {
            if tx.get(&CREDENTIALS, Credentials::KEY)?.is_some() {
                return Err(ClientError::AlreadyRegistered { home: home.to_owned(), handle: me(tx)?.handle });
            }
            let row = tx.get(&LINKING, SELF)?;
            let fresh =
                |row: &LinkingRow| row.server == server && (row.welcomed || now().since(row.made_at) < CODE_LIFETIME);
            let row = match row.filter(fresh) {
                Some(row) => row,
                None => prepare(tx, &server, name)?,
            };
            let code = Zeroizing::new(String::from_utf8_lossy(&row.code.0).into_owned());
            code.parse().map_err(|_| ClientError::Damaged { what: "this device's link code" })
        })?;
        let linking = Self { profile, service, code };
        let row = linking.row()?;
        if !row.welcomed {
            // Before anybody is shown the code: whoever types it finds the offer.
            linking.offer(&row.offer).await?;
        }
        Ok(linking)
    }

    /// The code to be typed on a device of the account, or shown to its camera.
    pub fn code(&self) -> &LinkCode {
        &self.code
    }

    /// Waits until a device of the account has welcomed this one, and becomes a client.
    ///
    /// # Errors
    /// [`ClientError::Link`] when what came is not from somebody who has the code or does not name this device;
    /// [`ClientError::Unreachable`] when the server stays away.
    pub async fn finish(self, on: OnProgress<'_>) -> Result<Client, ClientError> {
        let row = self.row()?;
        if !row.welcomed {
            let answer = self.answer(&row.offer).await?;
            self.profile.write(|tx| take(tx, &self.code, &answer))?;
        }
        let me = self.profile.read(|tx| me(tx))?;
        let credentials = Credentials { server: row.server, token: me.token };
        let client = Client::with_credentials(self.profile, &credentials)?;
        client.replenish_prekeys(now()).await?;
        client.profile.write(|tx| {
            tx.remove(&LINKING, SELF)?;
            tx.put(&CREDENTIALS, Credentials::KEY, &credentials)
        })?;
        if let Err(error) = Box::pin(archive::import(&client, on)).await {
            // The device is one of the account's; watching tries again.
            tracing::warn!("contacts and history were not fetched: {error}");
        }
        Ok(client)
    }

    fn row(&self) -> Result<LinkingRow, ClientError> {
        self.profile.read(|tx| tx.get(&LINKING, SELF))?.ok_or(ClientError::Damaged { what: "this device's link" })
    }

    /// Leaves the offer at the server; the same again keeps the meeting alive.
    async fn offer(&self, offer: &Base64) -> Result<(), ClientError> {
        let service = &self.service;
        let door = service.api_url(&format!("/v1/links/{}", self.code.id())).await?;
        let offer = Sealed { sealed: offer.clone() };
        service.retry(|| service.done(service.http().put(&door).json(&offer))).await
    }

    /// Waits for the answer.
    async fn answer(&self, offer: &Base64) -> Result<Vec<u8>, ClientError> {
        let service = &self.service;
        let door = service.api_url(&format!("/v1/links/{}", self.code.id())).await?;
        loop {
            self.offer(offer).await?;
            match service.retry(|| service.maybe_json(service.http().get(format!("{door}/answer")))).await {
                Ok(Some(Sealed { sealed })) => return Ok(sealed.0),
                // Said again, which keeps the meeting alive.
                Ok(None) => tokio::time::sleep(PAUSE).await,
                // The server has forgotten it, as when it was restarted.
                Err(ClientError::Refused { problem, .. }) if problem.status == 404 => tokio::time::sleep(PAUSE).await,
                Err(error) => return Err(error),
            }
        }
    }
}

/// Makes everything that the device says, and stores it.
fn prepare(tx: &WriteTx<'_>, server: &str, name: &str) -> Result<LinkingRow, ClientError> {
    let mut secret = Zeroizing::new([0; TOKEN_SECRET_BYTES]);
    getrandom::fill(&mut *secret).expect("the operating system provides randomness");
    let code = LinkCode::generate();
    // Whose number it will have is for the account to say.
    let mut keys = DeviceKeys::generate(DeviceId::FIRST);
    let hash = *blake3::hash(&*secret).as_bytes();
    let offer = Offer::new(&mut keys, hash, name).seal(&code);
    tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    let row = LinkingRow {
        server: server.to_owned(),
        code: SecretBytes(Zeroizing::new(code.to_string().into_bytes())),
        secret: SecretBytes(Zeroizing::new(secret.to_vec())),
        offer: Base64(offer),
        made_at: now(),
        welcomed: false,
    };
    tx.put(&LINKING, SELF, &row)?;
    Ok(row)
}

/// Takes a welcome: keys, account, session and what is known of the account's devices change together.
fn take(tx: &WriteTx<'_>, code: &LinkCode, answer: &[u8]) -> Result<(), ClientError> {
    let row = tx.get(&LINKING, SELF)?.ok_or(ClientError::Damaged { what: "this device's link" })?;
    let mut keys = device_keys(tx)?;
    let welcomed = Welcome::open(code, &mut keys, answer)?;
    let welcome = welcomed.welcome;
    let mut keys = keys.numbered(welcome.device);
    // It is at the server since the device is listed.
    let fallback = keys.fallback_prekey().key;
    keys.fallback_published();
    prekeys::published(tx, fallback, now())?;
    tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    let secret = row.secret.0.as_slice().try_into();
    let secret = secret.map_err(|_| ClientError::Damaged { what: "this device's token" })?;
    let token = DeviceToken::new(welcome.account, welcome.device, secret);
    let account_key = welcome.account_key.public();
    let account = AccountRow {
        server: row.server.clone(),
        account: welcome.account,
        handle: welcome.handle.clone(),
        device: welcome.device,
        account_key: SecretBytes(Zeroizing::new(welcome.account_key.to_bytes().to_vec())),
        device_list: welcome.device_list.clone(),
        token: Token::new(token.to_text()),
    };
    tx.put(&ACCOUNT, SELF, &account)?;
    let (handle, device_list) = (welcome.handle, welcome.device_list);
    accept(tx, AccountView { account: welcome.account, handle, account_key, device_list })?;
    sessions::store(tx, welcome.account, &welcomed.by, welcomed.sessions)?;
    if let Some(history) = &welcome.history {
        archive::expect(tx, history)?;
    }
    tx.put(&LINKING, SELF, &LinkingRow { welcomed: true, ..row })
}
