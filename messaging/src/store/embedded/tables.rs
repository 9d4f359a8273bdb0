//! The embedded store's keyspaces and the keys in them.
//!
//! Few keyspaces, since an idle one keeps journals from being removed. Numbers in keys are big-endian, so that order of
//! bytes is order of numbers: a lane is one contiguous range, and a read starts right above the watermark.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use tracing::info;
use waxwing_protocol::frames::Lane;
use waxwing_protocol::{AccountId, DeviceId, GroupId, Handle, MsgId};

use super::EmbeddedStoreError;
use super::checkpoint::Commits;
use super::journal::Journal;
use super::recent::{Generation, ROWS, Recent, SENDS, TABLES};
use super::sends::Sends;
use super::table::Table;
use crate::store::{DeviceAddress, Invite, StoreError, StoreErrorKind};

/// Bytes of memory that a keyspace's newest writes take before they go to a table on disk.
const MEMTABLE_BYTES: u64 = 32 * 1024 * 1024;

/// Bytes of the engine's own journals above which keyspaces are told to write their tables: an idle one would pin them
/// for ever.
const JOURNAL_BYTES_HIGH: u64 = 256 * 1024 * 1024;

/// Directory of the journal, in the store's.
const JOURNAL_DIR: &str = "journal";

/// Directory of the runs of sends, in the store's.
const SENDS_DIR: &str = "sends";

/// Keys of the keyspace that knows how far the engine has come.
const CHECKPOINT: &str = "up-to";
const JOURNAL_KEY: &str = "key";

/// The open tables.
#[derive(Clone)]
pub(super) struct Tables {
    pub(super) db: Database,
    /// Accounts, devices, prekeys; told apart by a first byte.
    pub(super) directory: Table,
    /// A record for each mailbox: epoch, generation, watermarks.
    pub(super) mailboxes: Table,
    /// The messages waiting: mailbox, lane, seq.
    pub(super) rows: Table,
    /// Idempotency records: sending device, message id. The engine has only those that no run takes.
    pub(super) sends: Table,
    /// The others, once they are not in the journal any more.
    pub(super) sent: Arc<Sends>,
    /// What groups were sent, once each: group, place in the conversation. And the entries of channels that are in no page.
    pub(super) bodies: Table,
    /// The journal's key, and the last of its records that the engine has.
    checkpoints: Keyspace,
    /// What the engine does not have yet.
    pub(super) recent: Arc<Recent>,
}

impl Tables {
    /// Opens them with what the journal holds, and the end through which commits go. `failed` is set when nothing can be
    /// written any more.
    pub(super) fn open(dir: &Path, failed: &Arc<AtomicBool>) -> Result<(Self, Commits), EmbeddedStoreError> {
        let engine = |error: fjall::Error| match error {
            fjall::Error::Locked => EmbeddedStoreError::Locked,
            error => EmbeddedStoreError::Engine(error.to_string()),
        };
        let io = |error: std::io::Error| EmbeddedStoreError::Engine(error.to_string());
        let db = behind_others(|| Database::builder(dir).worker_threads(WORKERS).open()).map_err(engine)?;
        let keyspace = |name| {
            db.keyspace(name, || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)).map_err(engine)
        };
        let checkpoints = keyspace("checkpoints")?;
        let key = match checkpoints.get(JOURNAL_KEY).map_err(engine)? {
            Some(key) => key[..].try_into().map_err(|_| EmbeddedStoreError::Engine("a damaged key".into()))?,
            None => {
                let key = crate::node::random();
                checkpoints.insert(JOURNAL_KEY, key).map_err(engine)?;
                db.persist(PersistMode::SyncAll).map_err(engine)?;
                key
            }
        };
        let seen = match checkpoints.get(CHECKPOINT).map_err(engine)? {
            Some(number) => number[..].try_into().map(u64::from_be_bytes),
            None => Ok(0),
        };
        let seen = seen.map_err(|_| EmbeddedStoreError::Engine("a damaged checkpoint".into()))?;
        let sent = Arc::new(Sends::open(&dir.join(SENDS_DIR), &key).map_err(io)?);
        let (journal, mut replayed) = Journal::open(&dir.join(JOURNAL_DIR), key, seen).map_err(io)?;
        let frozen = (!replayed.batches.is_empty()).then(Arc::<Generation>::default);
        if let Some(generation) = &frozen {
            info!(records = replayed.batches.len(), "the journal holds what the tables do not");
            replayed.batches.drain(..).for_each(|batch| generation.apply(batch, true));
        }
        let recent = Arc::new(Recent::with_frozen(frozen));
        let table = |number, name| Ok(Table::new(number, keyspace(name)?, recent.clone()));
        let tables = Self {
            directory: table(0, "directory")?,
            mailboxes: table(1, "mailboxes")?,
            rows: table(ROWS, "rows")?,
            sends: table(SENDS, "sends")?,
            sent,
            bodies: table(4, "bodies")?,
            checkpoints,
            recent: recent.clone(),
            db: db.clone(),
        };
        let commits = Commits::start(journal, replayed, recent, tables.clone(), failed.clone()).map_err(io)?;
        Ok((tables, commits))
    }

    /// All tables, by number.
    pub(super) fn all(&self) -> [&Table; TABLES] {
        [&self.directory, &self.mailboxes, &self.rows, &self.sends, &self.bodies]
    }

    /// Notes that the engine has every record of the journal up to `up_to`: durably so, and all that it was given before.
    pub(super) fn note_checkpoint(&self, up_to: u64, durability: Option<PersistMode>) -> fjall::Result<()> {
        let mut batch = self.db.batch().durability(durability);
        batch.insert(&self.checkpoints, CHECKPOINT, up_to.to_be_bytes());
        batch.commit()
    }

    /// Lets the engine remove old journals of its own when they have grown.
    pub(super) fn relieve_journal(&self) -> fjall::Result<()> {
        let bytes = self.db.journal_disk_space()?;
        if bytes > JOURNAL_BYTES_HIGH {
            info!(journal_bytes = bytes, "writing tables so that journals can go");
            for keyspace in self.all().map(Table::keyspace).into_iter().chain([&self.checkpoints]) {
                keyspace.rotate_memtable()?;
            }
        }
        Ok(())
    }
}

/// Threads that write and merge the engine's tables. It halts every write when four full memtables wait; with one thread
/// for each core, as is its default, a merge of some seconds on a small machine can keep that many waiting.
const WORKERS: usize = 4;

/// How much the threads that write tables yield to those that serve, which they would else share a core with as equals.
/// They still get a tenth of a core that is always busy. Nothing that serves waits for them.
#[cfg(target_os = "linux")]
const WORKERS_NICE: i32 = 10;

/// Does `work` on this thread, and on the threads that it starts, behind those of others.
pub(super) fn yielding<T>(work: impl FnOnce() -> T) -> T {
    // On Linux a thread has a priority of its own, and those it starts begin with it. Elsewhere it is the whole process's
    // and stays as it is.
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(WORKERS_NICE) {
        tracing::debug!(%error, "the store's threads run at the priority of all others");
    }
    work()
}

/// Runs `open` on a thread whose threads in turn yield to others.
fn behind_others<T: Send>(open: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| yielding(open));
        opening.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// What the engine said, as a store's error.
pub(super) fn engine_error(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(StoreErrorKind::Other, error)
}

/// A record that does not say what it should.
pub(super) fn corrupt(what: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format_args!("the record of {what} is damaged"))
}

/// Bytes of a device's address in a key.
pub(super) const ADDRESS_BYTES: usize = 20;

/// First bytes of the directory's keys.
pub(super) mod tag {
    /// Account id to account.
    pub(in crate::store::embedded) const ACCOUNT: u8 = b'a';
    /// Handle to account id.
    pub(in crate::store::embedded) const HANDLE: u8 = b'h';
    /// Account and device to device.
    pub(in crate::store::embedded) const DEVICE: u8 = b'd';
    /// Device and a rising number to one-time prekey.
    pub(in crate::store::embedded) const ONE_TIME: u8 = b'o';
    /// Device to fallback prekey.
    pub(in crate::store::embedded) const FALLBACK: u8 = b'f';
    /// Device and key to the moment a one-time prekey was handed out.
    pub(in crate::store::embedded) const USED: u8 = b'u';
    /// Account to what it lets others know.
    pub(in crate::store::embedded) const PREFERENCES: u8 = b's';
    /// Account and account it has written to.
    pub(in crate::store::embedded) const WRITTEN: u8 = b'w';
    /// Account and account that has written to it: the other way round.
    pub(in crate::store::embedded) const WRITTEN_BY: u8 = b'v';
    /// Account and account it has blocked.
    pub(in crate::store::embedded) const BLOCKED: u8 = b'b';
    /// Number of an invite code to who used it and when the code ends.
    pub(in crate::store::embedded) const INVITE: u8 = b'i';
    /// Account that was deleted, or account and device that was removed, until everything of it is erased.
    pub(in crate::store::embedded) const DELETED: u8 = b'x';
    /// Group to its state.
    pub(in crate::store::embedded) const GROUP: u8 = b'g';
    /// Group to the last place given in its conversation.
    pub(in crate::store::embedded) const CONVERSATION: u8 = b'n';
    /// Group and epoch to the change that made it.
    pub(in crate::store::embedded) const CHANGE: u8 = b'l';
    /// Group and account to how far it has got and seen the conversation.
    pub(in crate::store::embedded) const PROGRESS: u8 = b'p';
    /// Account and group it is in.
    pub(in crate::store::embedded) const MEMBER: u8 = b'm';
    /// Device to where its wakes go.
    pub(in crate::store::embedded) const WAKE_TARGET: u8 = b't';
    /// Place of wakes to the device that is woken there.
    pub(in crate::store::embedded) const WAKE_PLACE: u8 = b'q';
    /// Channel to how far its log has come.
    pub(in crate::store::embedded) const CHANNEL: u8 = b'k';
    /// Channel and epoch to charter.
    pub(in crate::store::embedded) const CHARTER: u8 = b'e';
    /// Channel and last entry of a page to the page.
    pub(in crate::store::embedded) const CHANNEL_PAGE: u8 = b'y';
    /// Account and channel it owns or writes in.
    pub(in crate::store::embedded) const AUTHOR: u8 = b'r';
    /// Mailbox, lane, sending device and coalesce key to seq.
    pub(in crate::store::embedded) const COALESCE: u8 = b'c';
}

pub(super) fn address(address: DeviceAddress) -> [u8; ADDRESS_BYTES] {
    let mut key = [0; ADDRESS_BYTES];
    key[..16].copy_from_slice(address.account.as_bytes());
    key[16..].copy_from_slice(&address.device.get().to_be_bytes());
    key
}

/// The address at the beginning of a key.
pub(super) fn address_of(key: &[u8]) -> Option<DeviceAddress> {
    let (account, device) = key.get(..ADDRESS_BYTES)?.split_at(16);
    let device = u32::from_be_bytes(device.try_into().ok()?);
    Some(DeviceAddress { account: AccountId::from_slice(account).ok()?, device: device.try_into().ok()? })
}

/// The key of a message.
pub(super) type RowKey = [u8; ADDRESS_BYTES + 9];

pub(super) fn row(mailbox: DeviceAddress, lane: Lane, seq: u64) -> RowKey {
    let mut key = [0; ADDRESS_BYTES + 9];
    key[..ADDRESS_BYTES].copy_from_slice(&address(mailbox));
    key[ADDRESS_BYTES] = u8::from(lane == Lane::Urgent);
    key[ADDRESS_BYTES + 1..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// The seq at the end of a row's key.
pub(super) fn seq_of(key: &[u8]) -> Option<u64> {
    let seq = key.get(ADDRESS_BYTES + 1..)?;
    Some(u64::from_be_bytes(seq.try_into().ok()?))
}

pub(super) fn send(from: DeviceAddress, msg_id: MsgId) -> [u8; ADDRESS_BYTES + 16] {
    let mut key = [0; ADDRESS_BYTES + 16];
    key[..ADDRESS_BYTES].copy_from_slice(&address(from));
    key[ADDRESS_BYTES..].copy_from_slice(msg_id.as_bytes());
    key
}

pub(super) fn account(account: AccountId) -> Vec<u8> {
    [&[tag::ACCOUNT], &account.as_bytes()[..]].concat()
}

pub(super) fn preferences(account: AccountId) -> Vec<u8> {
    [&[tag::PREFERENCES], &account.as_bytes()[..]].concat()
}

pub(super) fn written(account: AccountId, peer: AccountId) -> Vec<u8> {
    [&[tag::WRITTEN], &account.as_bytes()[..], peer.as_bytes()].concat()
}

/// The other way round: who has written to `account`.
pub(super) fn written_by(account: AccountId, peer: AccountId) -> Vec<u8> {
    [&[tag::WRITTEN_BY], &account.as_bytes()[..], peer.as_bytes()].concat()
}

/// Everybody whom `account` has blocked, or `peer` alone.
pub(super) fn blocked(account: AccountId, peer: Option<AccountId>) -> Vec<u8> {
    let peer = peer.as_ref().map_or(&[][..], |peer| &peer.as_bytes()[..]);
    [&[tag::BLOCKED], &account.as_bytes()[..], peer].concat()
}

/// The second account of a pair.
pub(super) fn second_account(key: &[u8]) -> Option<AccountId> {
    AccountId::from_slice(key.get(17..)?).ok()
}

pub(super) fn invite(invite: &Invite) -> Vec<u8> {
    [&[tag::INVITE], &invite.number[..]].concat()
}

pub(super) fn deleted(account: AccountId) -> Vec<u8> {
    [&[tag::DELETED], &account.as_bytes()[..]].concat()
}

pub(super) fn removed(device: DeviceAddress) -> Vec<u8> {
    of_device(tag::DELETED, device, &[])
}

/// Everybody who has written to an account.
pub(super) fn writers(account: AccountId) -> Vec<u8> {
    [&[tag::WRITTEN_BY], &account.as_bytes()[..]].concat()
}

/// Where the seq stands of the row that a later one with the same key replaces. `from_device` is none for rows that the
/// server makes.
pub(super) fn coalesce(
    mailbox: DeviceAddress,
    lane: Lane,
    from: AccountId,
    from_device: Option<DeviceId>,
    key: &[u8],
) -> Vec<u8> {
    let device = from_device.map_or(0, DeviceId::get).to_be_bytes();
    [&[tag::COALESCE], &address(mailbox)[..], &[u8::from(lane == Lane::Urgent)], from.as_bytes(), &device, key].concat()
}

/// The seq under a coalesce key.
pub(super) fn coalesced_seq(value: &[u8]) -> Result<u64, StoreError> {
    value.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("a coalesced message"))
}

/// The mailbox and lane of a coalesce key.
pub(super) fn coalesce_lane(key: &[u8]) -> Option<(DeviceAddress, Lane)> {
    let (lane, mailbox) = (key.get(1 + ADDRESS_BYTES)?, address_of(key.get(1..)?)?);
    Some((mailbox, if *lane == 0 { Lane::Normal } else { Lane::Urgent }))
}

pub(super) fn group(group: GroupId) -> Vec<u8> {
    [&[tag::GROUP], &group.as_bytes()[..]].concat()
}

pub(super) fn conversation(group: GroupId) -> Vec<u8> {
    [&[tag::CONVERSATION], &group.as_bytes()[..]].concat()
}

pub(super) fn change(group: GroupId, epoch: u64) -> Vec<u8> {
    [&[tag::CHANGE], &group.as_bytes()[..], &epoch.to_be_bytes()].concat()
}

/// How far everybody in a group is, or `account` alone.
pub(super) fn progress(group: GroupId, account: Option<AccountId>) -> Vec<u8> {
    let account = account.as_ref().map_or(&[][..], |account| &account.as_bytes()[..]);
    [&[tag::PROGRESS], &group.as_bytes()[..], account].concat()
}

/// Every group that `account` is in, or `group` alone.
pub(super) fn member(account: AccountId, group: Option<GroupId>) -> Vec<u8> {
    let group = group.as_ref().map_or(&[][..], |group| &group.as_bytes()[..]);
    [&[tag::MEMBER], &account.as_bytes()[..], group].concat()
}

pub(super) fn handle(handle: &Handle) -> Vec<u8> {
    [&[tag::HANDLE], handle.as_str().as_bytes()].concat()
}

pub(super) fn devices(account: AccountId) -> Vec<u8> {
    [&[tag::DEVICE], &account.as_bytes()[..]].concat()
}

/// A directory key of a device: its tag and address, and what follows.
pub(super) fn of_device(tag: u8, device: DeviceAddress, rest: &[u8]) -> Vec<u8> {
    [&[tag], &address(device)[..], rest].concat()
}

/// Which of a mailbox's two lanes.
pub(in crate::store) fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Normal => 0,
        Lane::Urgent => 1,
    }
}
