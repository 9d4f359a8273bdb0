//! Opening what a node stands on: its secrets, and the engine that keeps mailboxes and directory.

use std::path::Path;
use std::sync::Arc;

use crate::config::{Config, ConfigError, PostgresConfig};
use crate::fabric::Fabric;
use crate::grants::Grants;
use crate::invites::Invites;
use crate::push::{CredentialsError, Providers};
use crate::secrets::SecretError;
use crate::store::{
    ChannelStore, Directory, EmbeddedStore, EmbeddedStoreError, GroupStore, MailboxStore, PostgresStore, WakeTargets,
};

/// Directory of the embedded store, in the data directory.
pub(crate) const STORE_DIR: &str = "store";

/// The context under which BLAKE3 derives a cluster's id from the secrets that its nodes share.
const CLUSTER_CONTEXT: &str = "waxwing 2026 cluster id v1";

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data directory cannot be made.
    #[error("data directory {dir}: {source}")]
    DataDir {
        /// The directory.
        dir: std::path::PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another process uses the data directory.
    #[error("another process uses the data directory {dir}")]
    Locked {
        /// The directory.
        dir: std::path::PathBuf,
    },
    /// The store in the data directory cannot be opened.
    #[error("data directory {dir}: {reason}")]
    Store {
        /// The directory.
        dir: std::path::PathBuf,
        /// What the engine said.
        reason: String,
    },
    /// The database cannot be opened.
    #[error("messaging.postgres: {reason}")]
    Database {
        /// What stands in the way.
        reason: String,
    },
    /// A secret cannot be read or made.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Credentials for a push provider cannot be used.
    #[error("push: {0}")]
    Push(#[from] CredentialsError),
}

/// What was opened.
pub(crate) struct Opened {
    pub(crate) stores: Stores,
    pub(crate) grants: Grants,
    pub(crate) invites: Invites,
    pub(crate) providers: Providers,
}

/// One engine, by what it keeps.
pub(crate) struct Stores {
    pub(crate) mailboxes: Arc<dyn MailboxStore>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) groups: Arc<dyn GroupStore>,
    pub(crate) channels: Arc<dyn ChannelStore>,
    pub(crate) targets: Arc<dyn WakeTargets>,
}

impl Stores {
    fn of(store: impl MailboxStore + Directory + GroupStore + ChannelStore + WakeTargets) -> Self {
        let store = Arc::new(store);
        let (mailboxes, directory, groups) = (store.clone(), store.clone(), store.clone());
        Self { mailboxes, directory, groups, channels: store.clone(), targets: store }
    }
}

/// Opens what `config` names. `fabric` hears of every row after its commit.
pub(crate) async fn open(config: &Config, data_dir: &Path, fabric: Arc<Fabric>) -> Result<Opened, OpenError> {
    let (dir, settings) = (data_dir.to_owned(), config.clone());
    if let Some(postgres) = &config.postgres {
        let (grants, invites, providers) = blocking(data_dir, move || secrets(&settings, &dir)).await?;
        let cluster = blake3::derive_key(CLUSTER_CONTEXT, &[grants.owner_key(), invites.key()].concat());
        let stores = Stores::of(database(postgres, &cluster, fabric).await?);
        return Ok(Opened { stores, grants, invites, providers });
    }
    let opened = move || {
        // The store first: whoever does not get its lock touches no keys.
        let stores = Stores::of(embedded(&dir, fabric)?);
        let (grants, invites, providers) = secrets(&settings, &dir)?;
        Ok(Opened { stores, grants, invites, providers })
    };
    blocking(data_dir, opened).await
}

/// Runs `open` on a thread that may block, once the data directory is there.
async fn blocking<T: Send + 'static>(
    dir: &Path,
    open: impl FnOnce() -> Result<T, OpenError> + Send + 'static,
) -> Result<T, OpenError> {
    let made = dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&made).map_err(|source| OpenError::DataDir { dir: made, source })?;
        open()
    });
    opened.await.map_err(|error| OpenError::Store { dir: dir.to_owned(), reason: error.to_string() })?
}

fn secrets(config: &Config, dir: &Path) -> Result<(Grants, Invites, Providers), OpenError> {
    let providers = Providers::open(&config.push, dir)?;
    Ok((Grants::open(config, dir)?, Invites::open(dir)?, providers))
}

fn embedded(dir: &Path, fabric: Arc<Fabric>) -> Result<EmbeddedStore, OpenError> {
    EmbeddedStore::open(&dir.join(STORE_DIR), fabric).map_err(|error| match error {
        EmbeddedStoreError::Locked => OpenError::Locked { dir: dir.to_owned() },
        EmbeddedStoreError::Engine(reason) => OpenError::Store { dir: dir.to_owned(), reason },
    })
}

async fn database(
    config: &PostgresConfig,
    cluster: &[u8; 32],
    fabric: Arc<Fabric>,
) -> Result<PostgresStore, OpenError> {
    let password = match &config.password_file {
        Some(file) => {
            let text = tokio::fs::read_to_string(file).await;
            let text = text.map_err(|error| OpenError::Database { reason: format!("{}: {error}", file.display()) })?;
            Some(text.trim_end().to_owned())
        }
        None => None,
    };
    let opened = PostgresStore::open(&config.url, password.as_deref(), cluster, fabric).await;
    opened.map_err(|error| OpenError::Database { reason: error.to_string() })
}
