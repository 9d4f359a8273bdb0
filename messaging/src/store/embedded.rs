//! The embedded engine: mailboxes and directory on fjall, in one directory, with no other software.
//!
//! An `fdatasync` costs about a millisecond however much it covers. Were every send to pay for its own, a server would
//! take a thousand messages a second; here one writer thread commits whatever waits with one sync (group commit), and
//! a hundred thousand fit.
//!
//! The writer thread is also the lock under which seqs are given: it alone appends, so what commits later has a higher
//! seq, and a reader sees a seq only when every lower one is there.

mod acks;
mod batch;
mod blocks;
mod bodies;
mod channels;
mod checkpoint;
mod deletion;
mod devices;
mod directory;
mod groups;
mod journal;
mod lane;
mod mailboxes;
mod pace;
mod pages;
mod progress;
mod receipts;
mod recent;
mod records;
mod sends;
mod sweep;
mod table;
mod tables;
mod targets;
#[cfg(test)]
pub(super) mod tests;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, oneshot};
use waxwing_protocol::api::Preferences;
use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::{AccountId, DeviceId, Handle, Timestamp};

pub(super) use self::mailboxes::compare_devices;
pub(super) use self::records::{LaneRow, RangeRow};
pub(super) use self::tables::lane_index;

use self::batch::Batch;
use self::tables::Tables;
use self::writer::{Command, Writer};
use super::{
    AccountRecord, AckRequest, Append, AppendError, Appended, Blocked, Claimed, CommitSink, DeviceAddress,
    DeviceDetails, DeviceRecord, Directory, Held, ListChange, ListChanged, MailboxStore, MailboxView, NewAccount,
    Opened, Page, PageRequest, PrekeysHeld, Regard, Registered, Renamed, StoreError, StoreErrorKind, Swept,
};

/// Reads that may be under way at once. Each takes a thread of tokio's blocking pool: a crowd that reconnects waits
/// here and not in hundreds of threads.
const READS_MAX: usize = 8;

/// Accounts put with one sync when a store is filled.
const FILLED_AT_ONCE: usize = 1024;

/// Why the embedded store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EmbeddedStoreError {
    /// Another process has it open.
    #[error("another process uses this data directory")]
    Locked,
    /// The engine could not open or create it.
    #[error("the store cannot be opened: {0}")]
    Engine(String),
}

/// Mailboxes and directory on fjall.
#[derive(Clone)]
pub(crate) struct EmbeddedStore {
    tables: Tables,
    writer: Writer,
    reads: Arc<Semaphore>,
}

impl EmbeddedStore {
    /// Opens the store in `dir`, creating it if it is not there. Blocks while the journal is replayed.
    pub(crate) fn open(dir: &Path, sink: Arc<dyn CommitSink>) -> Result<Self, EmbeddedStoreError> {
        let failed = Arc::new(AtomicBool::new(false));
        let (tables, commits) = Tables::open(dir, &failed)?;
        let writer = Writer::start(tables.clone(), commits, failed, sink);
        let writer = writer.map_err(|error| EmbeddedStoreError::Engine(error.to_string()))?;
        Ok(Self { tables, writer, reads: Arc::new(Semaphore::new(READS_MAX)) })
    }

    /// Puts accounts into a store that has none of them, many with each sync. Nothing is checked.
    pub(crate) fn fill(dir: &Path, accounts: impl Iterator<Item = NewAccount>) -> Result<(), EmbeddedStoreError> {
        let (tables, mut commits) = Tables::open(dir, &Arc::default())?;
        let mut accounts = accounts.peekable();
        while accounts.peek().is_some() {
            let mut batch = Batch::default();
            accounts.by_ref().take(FILLED_AT_ONCE).for_each(|account| directory::put(&mut batch, &tables, &account));
            commits.commit(batch).map_err(|error| EmbeddedStoreError::Engine(error.to_string()))?;
        }
        Ok(())
    }

    /// Runs `read` on a thread that may block.
    fn read_with<T, F>(&self, read: F) -> BoxFuture<'static, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: FnOnce(&Tables) -> Result<T, StoreError> + Send + 'static,
    {
        let (tables, reads) = (self.tables.clone(), self.reads.clone());
        Box::pin(async move {
            let _permit = reads.acquire().await.map_err(|error| StoreError::new(StoreErrorKind::Unavailable, error))?;
            tokio::task::spawn_blocking(move || read(&tables))
                .await
                .map_err(|error| StoreError::new(StoreErrorKind::Other, error))?
        })
    }

    /// Records whose keys name an account, in all keyspaces.
    #[cfg(test)]
    pub(super) fn records_under(&self, account: AccountId) -> usize {
        let tables = &self.tables;
        let keyspaces = [&tables.directory, &tables.mailboxes, &tables.rows, &tables.sends, &tables.bodies];
        let keys = keyspaces.into_iter().flat_map(|keyspace| keyspace.iter());
        let names = |key: &[u8]| key.windows(16).any(|id| id == account.as_bytes());
        keys.map(|guard| guard.key().expect("a sound store")).filter(|key| names(key)).count()
    }

    /// Gives the writer a command now, and waits for its answer when polled.
    fn write<T, E>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Command,
    ) -> BoxFuture<'static, Result<T, E>>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let submitted = self.writer.submit(command(reply));
        Box::pin(async move {
            submitted?;
            answer.await.map_err(|_| StoreError::new(StoreErrorKind::Unavailable, "the store has closed"))?
        })
    }
}

impl MailboxStore for EmbeddedStore {
    fn is_writable(&self) -> bool {
        self.writer.is_writable()
    }

    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.write(|reply| Command::Append { append: Box::new(append), reply })
    }

    fn open(&self, mailbox: DeviceAddress, held: Held) -> BoxFuture<'static, Result<Option<Opened>, StoreError>> {
        self.write(|reply| Command::Open { mailbox, held, reply })
    }

    fn read(&self, page: PageRequest) -> BoxFuture<'static, Result<Page, StoreError>> {
        self.read_with(move |tables| pages::read(tables, &page))
    }

    fn ack(&self, ack: AckRequest) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(|reply| Command::Ack { ack, reply })
    }

    fn view(&self, mailbox: DeviceAddress) -> BoxFuture<'static, Result<Option<MailboxView>, StoreError>> {
        self.read_with(move |tables| pages::view(tables, mailbox))
    }

    fn sweep(&self, now: Timestamp) -> BoxFuture<'static, Result<Swept, StoreError>> {
        self.write(|reply| Command::Sweep { now, reply })
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let closed = self.write(|reply| Command::Close { reply });
        Box::pin(async move {
            // Closed before is closed as well.
            let _: Result<(), StoreError> = closed.await;
        })
    }
}

impl Directory for EmbeddedStore {
    fn register(&self, account: NewAccount) -> BoxFuture<'static, Result<Registered, StoreError>> {
        self.write(|reply| Command::Register { account: Box::new(account), reply })
    }

    fn rename(&self, account: AccountId, handle: Handle) -> BoxFuture<'static, Result<Renamed, StoreError>> {
        self.write(|reply| Command::Rename { account, handle, reply })
    }

    fn delete(&self, account: AccountId) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.write(|reply| Command::Delete { account, reply })
    }

    fn account(&self, account: AccountId) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>> {
        self.read_with(move |tables| directory::account(tables, account))
    }

    fn account_by_handle(&self, handle: Handle) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>> {
        self.read_with(move |tables| directory::account_by_handle(tables, &handle))
    }

    fn accounts(
        &self,
        after: Option<AccountId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<AccountRecord>, StoreError>> {
        self.read_with(move |tables| directory::accounts(tables, after, limit))
    }

    fn devices(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<(DeviceId, u32)>, StoreError>> {
        self.read_with(move |tables| directory::devices(tables, account))
    }

    fn change_devices(&self, change: ListChange) -> BoxFuture<'static, Result<ListChanged, StoreError>> {
        self.write(|reply| Command::ChangeDevices { change: Box::new(change), reply })
    }

    fn last_device(&self, account: AccountId) -> BoxFuture<'static, Result<Option<DeviceId>, StoreError>> {
        self.read_with(move |tables| devices::last(tables, account))
    }

    fn device_details(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<DeviceDetails>, StoreError>> {
        self.read_with(move |tables| devices::details(tables, account))
    }

    fn name_device(&self, device: DeviceAddress, name: Vec<u8>) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.write(|reply| Command::NameDevice { device, name, reply })
    }

    fn add_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.write(|reply| Command::AddToken { device, hash, reply })
    }

    fn promote_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(|reply| Command::PromoteToken { device, hash, reply })
    }

    fn writers(&self, account: AccountId, limit: usize) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>> {
        self.read_with(move |tables| devices::writers(tables, account, limit))
    }

    fn fallback_prekey(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<SignedPrekey>, StoreError>> {
        self.read_with(move |tables| directory::fallback_prekey(tables, device))
    }

    fn device(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<DeviceRecord>, StoreError>> {
        self.read_with(move |tables| directory::device(tables, device))
    }

    fn preferences(&self, account: AccountId) -> BoxFuture<'static, Result<Preferences, StoreError>> {
        self.read_with(move |tables| directory::preferences(tables, account))
    }

    fn set_preferences(
        &self,
        account: AccountId,
        preferences: Preferences,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(|reply| Command::SetPreferences { account, preferences, reply })
    }

    fn set_blocked(
        &self,
        account: AccountId,
        peer: AccountId,
        blocked: bool,
    ) -> BoxFuture<'static, Result<Blocked, StoreError>> {
        self.write(|reply| Command::SetBlocked { account, peer, blocked, reply })
    }

    fn blocks(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>> {
        self.read_with(move |tables| blocks::blocks(tables, account))
    }

    fn regards(
        &self,
        accounts: Vec<AccountId>,
        peer: AccountId,
    ) -> BoxFuture<'static, Result<Vec<Option<Regard>>, StoreError>> {
        self.read_with(move |tables| directory::regards(tables, &accounts, peer))
    }

    fn add_prekeys(
        &self,
        device: DeviceAddress,
        one_time: Vec<SignedPrekey>,
        fallback: Option<SignedPrekey>,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>> {
        self.write(|reply| Command::AddPrekeys { device, one_time, fallback: fallback.map(Box::new), now, reply })
    }

    fn prekeys_held(&self, device: DeviceAddress) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>> {
        self.read_with(move |tables| directory::prekeys_held(tables, device))
    }

    fn claim_prekey(
        &self,
        device: DeviceAddress,
        one_time: bool,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<Option<Claimed>, StoreError>> {
        self.write(|reply| Command::ClaimPrekey { device, one_time, now, reply })
    }
}
