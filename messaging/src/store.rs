//! What messaging keeps, and what it may rely on: two small traits that every engine fulfils.
//!
//! [`MailboxStore`] holds what was sent and not yet acked; [`Directory`] holds accounts, devices and prekeys. The
//! guarantees stand on each method; `store/suite.rs` tests them, once for all engines. Stores decide nothing: what a
//! message may contain and who may claim a key was decided before.

mod channels;
mod embedded;
mod groups;
mod postgres;
#[cfg(test)]
mod suite;
mod targets;

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::api::Preferences;
use waxwing_protocol::frames::{Class, DeliveryUpdate, Envelope, Lane};
use waxwing_protocol::identity::{PublicKey, SignedDeviceList, SignedPrekey};
use waxwing_protocol::{AccountId, DeviceId, GroupId, Handle, MsgId, Timestamp};

pub(crate) use channels::{
    ChannelRecord, ChannelStore, CharterCommit, CharterCommitted, CommittedEntry, EntryAppend, EntryError,
    PageCommitted,
};
pub(crate) use embedded::{EmbeddedStore, EmbeddedStoreError};
pub(crate) use groups::{GroupCommit, GroupCommitted, GroupProgress, GroupRecord, GroupSend, GroupStore, Stored};
pub(crate) use postgres::PostgresStore;
pub(crate) use targets::{Place, WakeTarget, WakeTargets};

/// A device of an account: the address of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DeviceAddress {
    pub account: AccountId,
    pub device: DeviceId,
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.account, self.device)
    }
}

/// What kind of failure a store had; it tells whether trying again makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreErrorKind {
    /// More waits than the store can take, or it is closing: later.
    Unavailable,
    /// A record does not say what it should.
    Corrupt,
    /// The engine does not keep such things.
    Unsupported,
    /// The disk or the engine failed; the store takes no more writes.
    Other,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[error("store: {message}")]
pub(crate) struct StoreError {
    pub kind: StoreErrorKind,
    pub message: String,
}

impl StoreError {
    pub(crate) fn new(kind: StoreErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }
}

/// A message on its way into the mailboxes of one account.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    /// Who sends it. With `msg_id` it is the idempotency key.
    pub from: DeviceAddress,
    pub msg_id: MsgId,
    /// BLAKE3 over everything the sender asked for: a repeat must ask for the same.
    pub content_hash: [u8; 32],
    pub to: AccountId,
    /// For every device the sender encrypted for: its reg_id and its ciphertext. By rising device, each once.
    pub bodies: Vec<Body>,
    /// Devices that get no row although the sender encrypted for them, since the message is for connected ones only.
    pub absent: Vec<DeviceId>,
    pub lane: Lane,
    /// Not empty: the message replaces one of the same device and key that waits in the same lane.
    pub coalesce_key: Bytes,
    /// The sender thereby shows that it wants to hear from `to`: it counts as having written to it.
    pub introduces: bool,
    /// What all rows share; `seq`, `prev_seq` and `body` are filled in by the store.
    pub envelope: Envelope,
    /// How much may wait in one lane.
    pub quota: Quota,
}

/// A ciphertext for one device.
#[derive(Clone, Debug)]
pub(crate) struct Body {
    pub device: DeviceId,
    pub reg_id: u32,
    pub ciphertext: Bytes,
}

/// What may wait in one lane of a mailbox.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Quota {
    pub msgs: u64,
    pub bytes: u64,
}

/// What became of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appended {
    /// When it was taken first.
    pub server_ts: Timestamp,
    /// It had been taken before; nothing was stored now.
    pub duplicate: bool,
    /// In a group: its place in the conversation. 0 otherwise.
    pub conv_seq: u64,
}

/// Why an [`Append`] stored nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AppendError {
    #[error("unknown account")]
    UnknownAccount,
    #[error("the message names other devices than the account has")]
    DeviceMismatch { missing: Vec<DeviceId>, extra: Vec<DeviceId> },
    #[error("devices have replaced their keys")]
    StaleDevices { stale: Vec<DeviceId> },
    #[error("the mailbox of device {device} is full")]
    MailboxFull { device: DeviceId },
    #[error("this message id was used for another message")]
    OtherContent,
    #[error("no such group")]
    UnknownGroup,
    #[error("the group is at epoch {epoch}")]
    EpochConflict { epoch: u64 },
    #[error("the message is for other devices than the group's members have")]
    GroupMismatch { accounts: Vec<AccountId> },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A row that was committed: handed to the [`CommitSink`] so that an online recipient needs no read.
#[derive(Clone, Debug)]
pub(crate) struct Committed {
    pub to: DeviceAddress,
    pub lane: Lane,
    /// With `seq`, and with `prev_seq` the seq given before it in the lane (0 when it is the first).
    pub envelope: Envelope,
}

/// Hears of rows after their commit: in one process, by rising seq within a lane. It must not block.
pub(crate) trait CommitSink: Send + Sync + 'static {
    fn committed(&self, row: Committed);

    /// An entry of a channel, by rising seq.
    fn appended(&self, entry: CommittedEntry);

    /// Somebody has got or seen more of a group that has receipts.
    fn progressed(&self, group: GroupId);
}

/// What a client says it has stored of its mailbox, lane by lane (normal, urgent).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Held {
    /// The mailbox epoch these belong to.
    pub epoch: u64,
    pub up_to: [u64; 2],
    /// For receipts of what this acks.
    pub receipts: ReceiptRows,
}

/// A mailbox as a new connection finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opened {
    pub epoch: u64,
    /// Which opening this is: later ones have higher generations.
    pub generation: u64,
    /// Lane by lane (normal, urgent).
    pub lanes: [LaneView; 2],
}

/// A mailbox as an operator sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MailboxView {
    pub epoch: u64,
    /// How often it was opened.
    pub generation: u64,
    /// Lane by lane (normal, urgent).
    pub lanes: [LaneDepth; 2],
}

/// How much waits in a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneDepth {
    /// Everything up to here is acked.
    pub acked: u64,
    /// The last seq given.
    pub last: u64,
    /// Rows that wait; expired ones are counted until they are swept.
    pub waiting: u64,
    /// Bytes of bodies that wait.
    pub bytes: u64,
    /// When the oldest that waits was taken.
    pub oldest: Option<Timestamp>,
}

/// A lane as a new connection finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneView {
    /// Everything up to here is acked.
    pub acked: u64,
    /// The last seq given.
    pub last: u64,
    /// Rows above `acked` that are not acked out of order; expired ones are counted until they are swept.
    pub waiting: u64,
}

/// Asks for a page of a lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageRequest {
    pub mailbox: DeviceAddress,
    pub lane: Lane,
    /// Rows above this seq only.
    pub after: u64,
    /// Rows at most, at least 1.
    pub msgs: usize,
    /// Bytes of bodies at most; a single larger body comes alone.
    pub bytes: usize,
    /// Rows that have expired by now are left out.
    pub now: Timestamp,
}

/// A page of a lane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    /// Live rows by rising seq, with `seq` set.
    pub rows: Vec<Envelope>,
    /// Every live row up to here is in this page or in one before it.
    pub up_to: u64,
    /// No row above `up_to` was committed when the page was read.
    pub end: bool,
}

/// What the rows are like that tell senders of deliveries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ReceiptRows {
    /// When they are made; rows that had expired by then are not told of.
    pub now: Timestamp,
    pub expires_at: Timestamp,
    /// How much may wait in the sender's lane; beyond it, nothing is told.
    pub quota: Quota,
}

impl ReceiptRows {
    /// What tells a sender that `reader` has the messages `msg_ids`.
    pub(crate) fn envelope(&self, reader: AccountId, msg_ids: Vec<Bytes>) -> Envelope {
        let account = Bytes::copy_from_slice(reader.as_bytes());
        Envelope {
            class: Class::Delivery.into(),
            from_account: account.clone(),
            server_ts: self.now.as_millis(),
            expires_at: self.expires_at.as_millis(),
            delivery: Some(DeliveryUpdate { account, msg_ids }),
            ..Envelope::default()
        }
    }
}

/// "Durably stored by this client".
#[derive(Clone, Debug)]
pub(crate) struct AckRequest {
    pub mailbox: DeviceAddress,
    pub lane: Lane,
    /// Everything up to and with this seq.
    pub up_to: u64,
    /// Further spans, both ends included.
    pub ranges: Vec<(u64, u64)>,
    /// For receipts of what this acks.
    pub receipts: ReceiptRows,
}

/// What a round of sweeping did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    /// Rows erased because they were acked or had expired.
    pub rows: u64,
    /// Idempotency records erased because they were older than promised.
    pub sends: u64,
    /// There is more to do at once.
    pub more: bool,
}

/// The durable mailboxes of devices: two lanes each.
pub(crate) trait MailboxStore: Send + Sync + 'static {
    /// Stores a message in every mailbox it names, or in none. Idempotent on (`from`, `msg_id`) for 48 h. In one
    /// transaction: the repeat is looked for, the devices are compared with the account's, rows get their seqs, and
    /// everything is durable when this returns `Ok`. Appends take their place in order when this is called, not when
    /// the future is polled: of two calls one after the other, the first gets the lower seqs.
    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// Opens a mailbox for a connection: raises its generation, takes what the client holds as an ack when it is of
    /// the mailbox's epoch. `Ok(None)` when there is no such mailbox. Durable on return.
    fn open(&self, mailbox: DeviceAddress, held: Held) -> BoxFuture<'static, Result<Option<Opened>, StoreError>>;

    /// Reads committed rows. Sees every row whose commit was reported before the call.
    fn read(&self, page: PageRequest) -> BoxFuture<'static, Result<Page, StoreError>>;

    /// Moves the watermark, and puts a row of class DELIVERY into the mailboxes of everybody who sent what it covers, if
    /// the mailbox's account has written to them and does not mind; with a row of the same account that waits there, it
    /// becomes one. Seqs not given yet are ignored, ranges beyond [`ACK_RANGES_MAX`] are forgotten: both only
    /// mean that rows are delivered again. Durable on return. Acks take their place in order when this is called.
    fn ack(&self, ack: AckRequest) -> BoxFuture<'static, Result<(), StoreError>>;

    /// How much waits in a mailbox; `Ok(None)` when there is no such mailbox.
    fn view(&self, mailbox: DeviceAddress) -> BoxFuture<'static, Result<Option<MailboxView>, StoreError>>;

    /// Erases in bulk what was acked or has expired by `now`, a bounded part of it a call.
    fn sweep(&self, now: Timestamp) -> BoxFuture<'static, Result<Swept, StoreError>>;

    /// Whether writing is possible; false for good once the engine cannot tell any more what is durable.
    fn is_writable(&self) -> bool;

    /// Commits what was asked for so far, then refuses everything.
    fn close(&self) -> BoxFuture<'static, ()>;
}

/// Ack ranges that a mailbox's lane keeps at most.
pub(crate) const ACK_RANGES_MAX: usize = 64;

/// A genuine invite code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invite {
    pub number: [u8; 10],
    pub expires_at: Timestamp,
}

/// An account about to be registered, with its first device.
#[derive(Clone, Debug)]
pub(crate) struct NewAccount {
    pub record: AccountRecord,
    pub device: DeviceId,
    pub reg_id: u32,
    /// BLAKE3 of the device token's secret.
    pub token_hash: [u8; 32],
    /// The epoch of the first device's mailbox: random, so that a mailbox made anew is told from the old one.
    pub epoch: u64,
    /// The code that lets it in, to be used up.
    pub invite: Option<Invite>,
}

/// An account as the directory keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AccountRecord {
    pub account: AccountId,
    pub handle: Handle,
    pub account_key: PublicKey,
    pub device_list: SignedDeviceList,
}

/// A device as the directory keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceRecord {
    /// BLAKE3 of its token's secret.
    pub token_hash: [u8; 32],
    /// The same of the token that takes its place once it is used.
    pub next_token_hash: Option<[u8; 32]>,
    pub reg_id: u32,
}

/// A change of an account's devices: the next revision of its list, and what it means.
#[derive(Clone, Debug)]
pub(crate) struct ListChange {
    pub account: AccountId,
    /// The list that the change was made from.
    pub before: SignedDeviceList,
    pub after: SignedDeviceList,
    pub what: DeviceChange,
}

/// What a new revision of a device list means.
#[derive(Clone, Debug)]
pub(crate) enum DeviceChange {
    Added(Box<NewDevice>),
    Removed(DeviceId),
}

/// A device about to be added to an account.
#[derive(Clone, Debug)]
pub(crate) struct NewDevice {
    pub device: DeviceId,
    pub reg_id: u32,
    pub token_hash: [u8; 32],
    /// The epoch of its mailbox: random.
    pub epoch: u64,
    pub name: Vec<u8>,
    pub fallback: SignedPrekey,
    pub now: Timestamp,
}

/// What became of a [`ListChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListChanged {
    Done,
    /// The very same change was made before.
    Repeated,
    /// The account has another list than the change was made from.
    Conflict,
    /// There is no such account.
    NotFound,
}

/// A device as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DeviceDetails {
    pub device: DeviceId,
    pub name: Vec<u8>,
    pub added_at: Timestamp,
    /// When its mailbox was opened last.
    pub connected_at: Timestamp,
}

/// What became of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Registered {
    /// It is new.
    Created,
    /// The very same registration was taken before.
    Repeated,
    /// Another account has the handle.
    HandleTaken,
    /// The account id is registered with other particulars, or was deleted just now.
    AccountTaken,
    /// The invite code let somebody else in.
    InviteUsed,
}

/// What became of a change of handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renamed {
    /// The account has the handle; the one it had is free.
    Done,
    /// Another account has the handle.
    HandleTaken,
    /// There is no such account.
    NotFound,
}

/// How an account stands to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Regard {
    pub preferences: Preferences,
    /// It has written to them.
    pub has_written: bool,
    /// It wants to hear nothing of them.
    pub has_blocked: bool,
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// It is set, or taken off.
    Done,
    /// The account blocks as many as it can.
    TooMany,
    /// There is no such account.
    NotFound,
}

/// Prekeys that a directory holds for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PrekeysHeld {
    pub one_time: usize,
    pub fallback: bool,
}

/// A prekey handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub prekey: SignedPrekey,
    /// One-time keys left.
    pub one_time_left: usize,
}

/// Accounts, their devices and prekeys.
pub(crate) trait Directory: Send + Sync + 'static {
    /// Registers an account with its first device and that device's mailbox. Durable on return, idempotent.
    fn register(&self, account: NewAccount) -> BoxFuture<'static, Result<Registered, StoreError>>;

    /// Gives an account another handle and frees the one it had. Durable on return, idempotent.
    fn rename(&self, account: AccountId, handle: Handle) -> BoxFuture<'static, Result<Renamed, StoreError>>;

    /// Deletes an account with its devices, prekeys, mailboxes and everything else kept for it. Nobody finds it or
    /// writes to it any more when this returns; what lies in its mailboxes is erased in the next rounds of sweeping,
    /// over crashes too. False when there is no such account.
    fn delete(&self, account: AccountId) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// The account with this id.
    fn account(&self, account: AccountId) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>>;

    /// The account with this handle.
    fn account_by_handle(&self, handle: Handle) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>>;

    /// Accounts with an id above `after`, by rising id, `limit` at most.
    fn accounts(
        &self,
        after: Option<AccountId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<AccountRecord>, StoreError>>;

    /// An account's devices with their reg_ids, by rising number; none when it is unknown.
    fn devices(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<(DeviceId, u32)>, StoreError>>;
    /// Changes an account's devices, if its list is still the one that the change was made from. An added device has a
    /// token, a fallback prekey and a mailbox from that commit on, and none before; a removed one has no token, mailbox
    /// or prekeys any more, and what lies in its mailbox is erased in the next rounds of sweeping, over crashes too.
    /// Messages that commit later are for the new list only. Durable on return, idempotent.
    fn change_devices(&self, change: ListChange) -> BoxFuture<'static, Result<ListChanged, StoreError>>;

    /// The highest number that a device of the account ever had.
    fn last_device(&self, account: AccountId) -> BoxFuture<'static, Result<Option<DeviceId>, StoreError>>;

    /// An account's devices, by rising number.
    fn device_details(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<DeviceDetails>, StoreError>>;

    /// Names a device; false when there is none. Durable on return.
    fn name_device(&self, device: DeviceAddress, name: Vec<u8>) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// Makes a token valid beside the one that the device has; another one that waits to be used is forgotten. False when
    /// there is no such device. Durable on return, idempotent.
    fn add_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// The token that waits was used: from now on it is the only one. Nothing changes when it does not wait. Durable on
    /// return.
    fn promote_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Accounts that have written to this one, `limit` at most.
    fn writers(&self, account: AccountId, limit: usize) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>>;

    /// A device of an account.
    fn device(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<DeviceRecord>, StoreError>>;

    /// What an account lets others know; the default of an account that never said.
    fn preferences(&self, account: AccountId) -> BoxFuture<'static, Result<Preferences, StoreError>>;

    /// Changes what an account lets others know. Durable on return.
    fn set_preferences(
        &self,
        account: AccountId,
        preferences: Preferences,
    ) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Sets whether `account` wants to hear nothing of `peer`: from then on its messages are taken and stored nowhere.
    /// Durable on return, idempotent.
    fn set_blocked(
        &self,
        account: AccountId,
        peer: AccountId,
        blocked: bool,
    ) -> BoxFuture<'static, Result<Blocked, StoreError>>;

    /// Whom an account has blocked, by rising id.
    fn blocks(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>>;

    /// What each of `accounts` lets others know, whether it has written to `peer` and blocked it; `None` for unknown accounts.
    fn regards(
        &self,
        accounts: Vec<AccountId>,
        peer: AccountId,
    ) -> BoxFuture<'static, Result<Vec<Option<Regard>>, StoreError>>;

    /// Adds one-time keys up to `ONE_TIME_KEYS_MAX` in the order given, leaving out those it has or had before, and
    /// replaces the fallback key if one is given. Durable on return, idempotent.
    fn add_prekeys(
        &self,
        device: DeviceAddress,
        one_time: Vec<SignedPrekey>,
        fallback: Option<SignedPrekey>,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>>;

    /// The fallback prekey that is handed out for a device.
    fn fallback_prekey(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<SignedPrekey>, StoreError>>;

    /// Counts a device's prekeys.
    fn prekeys_held(&self, device: DeviceAddress) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>>;

    /// Hands out a prekey: with `one_time` the oldest one-time key, never the same twice and durably so before this
    /// returns; else the fallback key. `Ok(None)` when there is neither.
    fn claim_prekey(
        &self,
        device: DeviceAddress,
        one_time: bool,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<Option<Claimed>, StoreError>>;
}
