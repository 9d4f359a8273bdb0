//! The JSON bodies of Waxwing's HTTP interface, as clients and servers both read them.
//!
//! Paths: [`ServiceInfo`] at `GET /v1/info`; accounts at `POST /v1/register` and `GET /v1/accounts/{handle}`; the key
//! directory at `/v1/keys`; an account's further devices at `/v1/devices`; grants at `POST /v1/grants`; the grants' public keys at `GET /.well-known/jwks.json`.

mod channels;
mod devices;
mod groups;
mod push;

use serde::{Deserialize, Serialize};

pub use self::channels::*;
pub use self::devices::*;
pub use self::groups::*;
pub use self::push::*;
use crate::identity::{Base64, PublicKey, REGISTER_DOMAIN, SignedDeviceList, SignedPrekey, signed_bytes};
use crate::{AccountId, BlobId, DeviceId, Handle, MsgId, Timestamp};

/// Answer of `GET /v1/info`: where the roles of this service are. The only address a client is configured with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// The software and its version, such as `waxwing/0.1.0`.
    pub server: String,
    /// Where uploads are created, such as `https://up.example/v1/uploads`.
    pub uploads_url: String,
    /// Where blobs are downloaded: append `/` and the blob id.
    pub blobs_url: String,
    /// Where the socket is, such as `wss://chat.example/v1/ws`.
    pub socket_url: String,
    /// Where accounts, keys and grants are: append `/v1/…`.
    pub api_url: String,
    /// The largest blob in bytes.
    pub blob_bytes_max: u64,
    /// Who may register.
    pub registration: Registration,
}

/// Who may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Registration {
    /// Anyone.
    Open,
    /// Whoever has an invite code.
    Invite,
    /// Nobody.
    Closed,
}

/// Body of `POST /v1/register`: a new account with its first device.
///
/// The client makes account id, keys and token, stores them, and then asks; the same request again gets the same
/// answer, so a lost reply costs nothing. The token itself does not travel: its hash does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterRequest {
    /// The account's id.
    pub account: AccountId,
    /// The handle wanted.
    pub handle: Handle,
    /// The account's Ed25519 public key.
    pub account_key: PublicKey,
    /// Revision 1: the first device alone.
    pub device_list: SignedDeviceList,
    /// BLAKE3-256 of the secret in the first device's token: [`crate::DeviceToken::hash`].
    pub token_hash: Base64,
    /// By the account key, domain [`REGISTER_DOMAIN`], over [`RegisterRequest::proof_message`].
    pub proof: Base64,
    /// An invite code, where registration asks for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub invite: Option<String>,
}

impl RegisterRequest {
    /// What `proof` covers after its domain: account id, token hash, handle. It binds the token to the account key, so
    /// that nobody registers a token of their own under a device list they saw.
    pub fn proof_message(account: AccountId, token_hash: &[u8], handle: &Handle) -> Vec<u8> {
        [account.as_bytes(), token_hash, handle.as_str().as_bytes()].concat()
    }

    /// The bytes to sign for `proof`.
    pub fn proof_bytes(account: AccountId, token_hash: &[u8], handle: &Handle) -> Vec<u8> {
        signed_bytes(REGISTER_DOMAIN, &Self::proof_message(account, token_hash, handle))
    }
}

/// Answer of `POST /v1/register`: 201, or 200 when the same request was taken before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterResponse {
    /// The account.
    pub account: AccountId,
    /// Its handle.
    pub handle: Handle,
    /// The device registered.
    pub device: DeviceId,
}

/// Body of `PUT /v1/account/handle`: another handle for the calling account. The one it had is free at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenameRequest {
    /// The handle wanted.
    pub handle: Handle,
    /// By the account key, domain [`crate::identity::RENAME_DOMAIN`], over [`RenameRequest::proof_message`].
    pub proof: Base64,
}

impl RenameRequest {
    /// What `proof` covers after its domain: account id, handle.
    pub fn proof_message(account: AccountId, handle: &Handle) -> Vec<u8> {
        [account.as_bytes(), handle.as_str().as_bytes()].concat()
    }
}

/// Body of `POST /v1/account/delete`: the calling account goes for good, with its devices and everything that waits for
/// them. Its handle is free at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeleteRequest {
    /// By the account key, domain [`crate::identity::DELETE_DOMAIN`], over the account's id.
    pub proof: Base64,
}

/// Answer of `GET /v1/accounts/{handle or account id}`: what one needs to write to somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccountView {
    /// The account.
    pub account: AccountId,
    /// Its handle.
    pub handle: Handle,
    /// Its Ed25519 public key. Clients remember it and warn when it changes.
    pub account_key: PublicKey,
    /// Its devices, signed by that key.
    pub device_list: SignedDeviceList,
}

/// Body and answer of `PUT /v1/preferences`, answer of `GET /v1/preferences`: what an account lets others know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preferences {
    /// Whether people this account has written to are told when its devices have stored their messages.
    pub delivery_receipts: bool,
    /// Who is told when this account is online and when it was last seen.
    pub presence: Visibility,
}

impl Default for Preferences {
    fn default() -> Self {
        Self { delivery_receipts: true, presence: Visibility::Contacts }
    }
}

/// Answer of `GET /v1/blocks`: whom the calling account hears nothing of. `PUT /v1/blocks/{account}` adds somebody,
/// `DELETE /v1/blocks/{account}` takes somebody off it. Whoever is blocked is not told and cannot find out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockList {
    /// The accounts, by rising id.
    pub blocked: Vec<AccountId>,
}

/// Body of `POST /v1/report`: somebody whom the operator of the service should look at. Whoever reports decides what of
/// their own messages to give away; nothing else is known to the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportRequest {
    /// Whom.
    pub account: AccountId,
    /// Why, for a person to read.
    pub reason: String,
    /// Messages of that account, as the reporting device opened them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<ReportedMessage>,
}

/// A message that is given away with a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedMessage {
    /// Its id.
    pub msg_id: MsgId,
    /// What it says.
    pub text: String,
}

/// Bytes of a report's reason and messages at most.
pub const REPORT_BYTES_MAX: usize = 16 * 1024;

/// Accounts that one account can block.
pub const BLOCKS_MAX: usize = 1000;

/// To whom something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Visibility {
    /// To whoever asks.
    Everyone,
    /// To accounts that this one has written to.
    Contacts,
    /// To nobody.
    Nobody,
}

/// Body of `PUT /v1/keys`: prekeys of the calling device. Keys that the directory has already are counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrekeyUpload {
    /// One-time keys to add; the directory keeps [`ONE_TIME_KEYS_MAX`] at most a device.
    #[serde(default)]
    pub one_time: Vec<SignedPrekey>,
    /// A fallback key to replace the one there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<SignedPrekey>,
}

/// One-time keys the directory keeps for a device at most.
pub const ONE_TIME_KEYS_MAX: usize = 100;

/// Answer of `GET /v1/keys` and `PUT /v1/keys`: what the directory holds for the calling device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrekeyCount {
    /// One-time keys left.
    pub one_time: usize,
    /// Whether a fallback key is there.
    pub fallback: bool,
}

/// Answer of `POST /v1/keys/{account}/{device}/claim`: one prekey, a one-time key as long as there are any. A POST,
/// since a claim uses up a key: nothing on the way may repeat or cache it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrekeyClaim {
    /// The key. The claimer verifies its signature by the device's key from the signed device list.
    pub prekey: SignedPrekey,
}

/// Body of `POST /v1/grants`: which grant the calling device asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum GrantRequest {
    /// To upload blobs as this account.
    Upload,
    /// To download any blob whose id one knows.
    Media,
    /// To let somebody without an account download one blob.
    Share {
        /// The blob.
        blob: BlobId,
        /// How long, in seconds; the server's limit when it is less.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lifetime_s: Option<u64>,
    },
}

/// Answer of `POST /v1/grants`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantResponse {
    /// The JWT, for `Authorization: Bearer`.
    pub grant: String,
    /// When it ends, in milliseconds since 1970.
    pub expires_at: Timestamp,
}

/// Answer of `GET /origin/v1/purges?after=N`: blobs that went from an origin, for the edges that may have them.
///
/// An edge asks with the number of the last purge it knows. When `oldest` is greater than that number plus one, some
/// have been forgotten since: whatever it has cached may be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PurgeLog {
    /// The lowest number that is still remembered; that of the next purge when none is.
    pub oldest: u64,
    /// The number that the next purge will have. More are waiting when it is not the last one's of these plus one.
    pub next: u64,
    /// Purges after the one asked for, by number.
    pub purges: Vec<Purge>,
}

/// A blob that went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purge {
    /// Its place among all that went from this origin, counted from 1.
    pub number: u64,
    /// Which blob.
    pub blob: BlobId,
    /// When it went.
    pub at: Timestamp,
}
