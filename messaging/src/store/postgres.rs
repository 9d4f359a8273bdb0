//! The PostgreSQL engine: mailboxes and directory of many nodes, in one database.
//!
//! What several nodes write to must not be decided in the memory of any of them. A lane's seq is given under the lock of
//! that lane's row, held to the end of the transaction, so that what commits later has a higher seq and a reader sees a
//! seq only when every lower one is there. A send's id is taken by a unique key before anything else, so that of two
//! nodes that get the same send one stores it.
//!
//! A transaction costs some round trips and a sync however much it holds. So each node's writers take whatever waits,
//! work it into one transaction, and answer after its commit. Appends to one account go through one writer, in the order
//! in which they came. Locks are taken in one order everywhere (sends, mailboxes, lanes, each by rising key), so that
//! transactions wait for one another and never in a circle; where one does, the database ends it and it is tried again.

mod channels;
mod connections;
mod deletion;
mod devices;
mod directory;
mod fan_out;
mod groups;
mod loading;
mod pages;
mod prekeys;
mod saving;
mod schema;
mod sweep;
mod targets;
#[cfg(test)]
mod tests;
mod turn;
mod values;
mod writer;

use std::sync::Arc;

use deadpool_postgres::Object;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use waxwing_protocol::api::Preferences;
use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::{AccountId, DeviceId, Handle, Timestamp};

use self::connections::{Connections, Failure};
use self::sweep::Sweeper;
use self::writer::{Command, Writers};
use super::{
    AccountRecord, AckRequest, Append, AppendError, Appended, Blocked, Claimed, CommitSink, DeviceAddress,
    DeviceDetails, DeviceRecord, Directory, Held, ListChange, ListChanged, MailboxStore, MailboxView, NewAccount,
    Opened, Page, PageRequest, PrekeysHeld, Regard, Registered, Renamed, StoreError, Swept, WakeTarget, WakeTargets,
};

/// Why a database could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostgresStoreError {
    /// The address is not one of PostgreSQL's.
    #[error("not the URL of a PostgreSQL database: write postgres://user@host/database")]
    Url,
    /// The database could not be reached, or refused.
    #[error("the database cannot be opened: {0}")]
    Engine(String),
}

/// Mailboxes and directory on PostgreSQL.
#[derive(Clone)]
pub(crate) struct PostgresStore {
    connections: Connections,
    writers: Writers,
    sweeper: Arc<Sweeper>,
    sink: Arc<dyn CommitSink>,
}

impl PostgresStore {
    /// Opens the database at `url` for the cluster with this id, with a password beside those in it if there is one, and makes or updates its tables.
    pub(crate) async fn open(
        url: &str,
        password: Option<&str>,
        cluster: &[u8; 32],
        sink: Arc<dyn CommitSink>,
    ) -> Result<Self, PostgresStoreError> {
        let connections = Connections::open(url, password)?;
        let opened = connections.retried(|_| async {
            let mut client = connections.get().await?;
            schema::migrate(&mut client).await?;
            schema::claim(&mut client, cluster).await
        });
        opened.await.map_err(|error| PostgresStoreError::Engine(error.message))?;
        let sweeper = Arc::new(Sweeper::default());
        let writers = Writers::start(&connections, &sweeper, &sink);
        Ok(Self { connections, writers, sweeper, sink })
    }

    /// Does `work` on a connection, again if need be.
    fn with<T, F>(
        &self,
        work: impl Fn(Object) -> F + Send + Sync + 'static,
    ) -> BoxFuture<'static, Result<T, StoreError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let connections = self.connections.clone();
        Box::pin(async move { connections.retried(|_| async { work(connections.get().await?).await }).await })
    }

    /// Gives a writer a command now, and waits for its answer when polled.
    fn write<T, E>(
        &self,
        account: AccountId,
        command: impl FnOnce(oneshot::Sender<Result<T, E>>) -> Command,
    ) -> BoxFuture<'static, Result<T, E>>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let submitted = self.writers.submit(account, command(reply));
        Box::pin(async move {
            submitted?;
            answer.await.map_err(|_| writer::closed())?
        })
    }
}

impl MailboxStore for PostgresStore {
    fn is_writable(&self) -> bool {
        self.connections.are_reachable()
    }

    fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.write(append.to, |reply| Command::Append { append: Box::new(append), reply })
    }

    fn open(&self, mailbox: DeviceAddress, held: Held) -> BoxFuture<'static, Result<Option<Opened>, StoreError>> {
        self.write(mailbox.account, |reply| Command::Open { mailbox, held, reply })
    }

    fn read(&self, page: PageRequest) -> BoxFuture<'static, Result<Page, StoreError>> {
        self.with(move |client| async move { pages::read(&client, &page).await })
    }

    fn ack(&self, ack: AckRequest) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(ack.mailbox.account, |reply| Command::Ack { ack, reply })
    }

    fn view(&self, mailbox: DeviceAddress) -> BoxFuture<'static, Result<Option<MailboxView>, StoreError>> {
        self.with(move |client| async move { pages::view(&client, mailbox).await })
    }

    fn sweep(&self, now: Timestamp) -> BoxFuture<'static, Result<Swept, StoreError>> {
        let sweeper = self.sweeper.clone();
        self.with(move |mut client| {
            let sweeper = sweeper.clone();
            async move { sweeper.step(&mut client, now).await }
        })
    }

    fn close(&self) -> BoxFuture<'static, ()> {
        let writers = self.writers.clone();
        Box::pin(async move { writers.close().await })
    }
}

impl Directory for PostgresStore {
    fn register(&self, account: NewAccount) -> BoxFuture<'static, Result<Registered, StoreError>> {
        let account = Arc::new(account);
        self.with(move |mut client| {
            let account = account.clone();
            async move { directory::register(&mut client, &account).await }
        })
    }

    fn rename(&self, account: AccountId, handle: Handle) -> BoxFuture<'static, Result<Renamed, StoreError>> {
        self.with(move |client| {
            let handle = handle.clone();
            async move { directory::rename(&client, account, &handle).await }
        })
    }

    fn delete(&self, account: AccountId) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.with(move |mut client| async move { deletion::delete(&mut client, account).await })
    }

    fn account(&self, account: AccountId) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>> {
        self.with(move |client| async move { directory::account(&client, account).await })
    }

    fn account_by_handle(&self, handle: Handle) -> BoxFuture<'static, Result<Option<AccountRecord>, StoreError>> {
        self.with(move |client| {
            let handle = handle.clone();
            async move { directory::account_by_handle(&client, &handle).await }
        })
    }

    fn accounts(
        &self,
        after: Option<AccountId>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<AccountRecord>, StoreError>> {
        self.with(move |client| async move { directory::accounts(&client, after, limit).await })
    }

    fn devices(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<(DeviceId, u32)>, StoreError>> {
        self.with(move |client| async move { devices::numbers(&client, account).await })
    }

    fn change_devices(&self, change: ListChange) -> BoxFuture<'static, Result<ListChanged, StoreError>> {
        let change = Arc::new(change);
        self.with(move |mut client| {
            let change = change.clone();
            async move { devices::change(&mut client, &change).await }
        })
    }

    fn last_device(&self, account: AccountId) -> BoxFuture<'static, Result<Option<DeviceId>, StoreError>> {
        self.with(move |client| async move { devices::last(&client, account).await })
    }

    fn device_details(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<DeviceDetails>, StoreError>> {
        self.with(move |client| async move { devices::details(&client, account).await })
    }

    fn name_device(&self, device: DeviceAddress, name: Vec<u8>) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.with(move |client| {
            let name = name.clone();
            async move { devices::name(&client, device, &name).await }
        })
    }

    fn add_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.with(move |client| async move { devices::add_token(&client, device, &hash).await })
    }

    fn promote_token(&self, device: DeviceAddress, hash: [u8; 32]) -> BoxFuture<'static, Result<(), StoreError>> {
        self.with(move |client| async move { devices::promote_token(&client, device, &hash).await })
    }

    fn writers(&self, account: AccountId, limit: usize) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>> {
        self.with(move |client| async move { directory::writers(&client, account, limit).await })
    }

    fn device(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<DeviceRecord>, StoreError>> {
        self.with(move |client| async move { devices::device(&client, device).await })
    }

    fn preferences(&self, account: AccountId) -> BoxFuture<'static, Result<Preferences, StoreError>> {
        self.with(move |client| async move { directory::preferences(&client, account).await })
    }

    fn set_preferences(
        &self,
        account: AccountId,
        preferences: Preferences,
    ) -> BoxFuture<'static, Result<(), StoreError>> {
        self.with(move |client| async move { directory::set_preferences(&client, account, preferences).await })
    }

    fn set_blocked(
        &self,
        account: AccountId,
        peer: AccountId,
        blocked: bool,
    ) -> BoxFuture<'static, Result<Blocked, StoreError>> {
        self.with(move |mut client| async move { directory::set_blocked(&mut client, account, peer, blocked).await })
    }

    fn blocks(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<AccountId>, StoreError>> {
        self.with(move |client| async move { directory::blocks(&client, account).await })
    }

    fn regards(
        &self,
        accounts: Vec<AccountId>,
        peer: AccountId,
    ) -> BoxFuture<'static, Result<Vec<Option<Regard>>, StoreError>> {
        self.with(move |client| {
            let accounts = accounts.clone();
            async move { directory::regards(&client, &accounts, peer).await }
        })
    }

    fn add_prekeys(
        &self,
        device: DeviceAddress,
        one_time: Vec<SignedPrekey>,
        fallback: Option<SignedPrekey>,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>> {
        let keys = Arc::new((one_time, fallback));
        self.with(move |mut client| {
            let keys = keys.clone();
            async move { prekeys::add(&mut client, device, &keys.0, keys.1.as_ref(), now).await }
        })
    }

    fn fallback_prekey(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<SignedPrekey>, StoreError>> {
        self.with(move |client| async move { prekeys::fallback(&client, device).await })
    }

    fn prekeys_held(&self, device: DeviceAddress) -> BoxFuture<'static, Result<PrekeysHeld, StoreError>> {
        self.with(move |client| async move { prekeys::held(&client, device).await })
    }

    fn claim_prekey(
        &self,
        device: DeviceAddress,
        one_time: bool,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<Option<Claimed>, StoreError>> {
        self.with(move |mut client| async move { prekeys::claim(&mut client, device, one_time, now).await })
    }
}

impl WakeTargets for PostgresStore {
    fn set_wake_target(
        &self,
        device: DeviceAddress,
        target: WakeTarget,
    ) -> BoxFuture<'static, Result<Option<Vec<DeviceAddress>>, StoreError>> {
        self.with(move |client| {
            let target = target.clone();
            async move { targets::set(&client, device, &target).await }
        })
    }

    fn remove_wake_target(
        &self,
        device: DeviceAddress,
        only: Option<Timestamp>,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.with(move |client| async move { targets::remove(&client, device, only).await })
    }

    fn wake_target(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<WakeTarget>, StoreError>> {
        self.with(move |client| async move { targets::target(&client, device).await })
    }

    fn wakeable(
        &self,
        after: Option<DeviceAddress>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<DeviceAddress>, StoreError>> {
        self.with(move |client| async move { targets::wakeable(&client, after, limit).await })
    }
}
