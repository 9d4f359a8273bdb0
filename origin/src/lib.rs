//! The Waxwing origin: takes uploads that survive bad networks, and gives blobs to edges.
//!
//! The code walks one way. `http` turns requests into domain calls and results into answers; `uploads` decides what
//! happens to an upload and `blobs` opens what became of it; `store` makes it survive. See each module for what it
//! promises.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

mod admin;
mod blobs;
mod config;
mod fault;
mod http;
pub mod metrics;
mod store;
mod uploads;
mod webhook;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use waxwing_protocol::grant::GrantKeys;

use self::blobs::Blobs;
use self::store::BlobStore;
use self::store::disk::{DiskOpenError, DiskStore, RecordsError};
use self::uploads::{Uploads, sweeper};

pub use admin::{AdminError, Collected, UploadInfo, UploadStage};
pub use config::{Config, Webhook};
pub use fault::UnknownFault;
pub use http::Interim;

/// An origin that is open. Clones share it.
#[derive(Clone)]
pub struct Origin {
    uploads: Uploads,
    blobs: Blobs,
    config: Arc<Config>,
    keys: Arc<GrantKeys>,
    stop: CancellationToken,
}

/// Why an origin does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has the data directory.
    #[error("the origin's data in {path} is in use by another process")]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The data directory cannot be made or written.
    #[error("the origin cannot use {path}")]
    Directory {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The records do not open: damaged, or written by a later version.
    #[error("the origin's records in {path} do not open")]
    Records {
        /// Where.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The webhook cannot be used as it is configured.
    #[error("the webhook of [origin.webhook] cannot be used")]
    Webhook {
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// `WAXWING_FAULT` names something unknown, in a build that injects faults.
    #[error(transparent)]
    Fault(#[from] UnknownFault),
}

impl Origin {
    /// Opens the origin whose data is in `data_dir`, which is made when it is not there. Grants are verified with
    /// `keys`. Uploads that a crash cut go on from their last acknowledged offset.
    ///
    /// # Errors
    /// [`OpenError`] tells what is wrong with the directory or what is in it.
    pub async fn open(config: Config, data_dir: &Path, keys: Arc<GrantKeys>) -> Result<Self, OpenError> {
        let webhook = config.webhook.as_ref().map(webhook::Webhook::open).transpose();
        let webhook = webhook.map_err(|error| OpenError::Webhook { source: error.into() })?;
        let faults = Arc::new(fault::from_env()?);
        let (path, reserve_bytes) = (data_dir.to_owned(), config.reserve_bytes);
        let opened = tokio::task::spawn_blocking(move || DiskStore::open(&path, reserve_bytes, faults)).await;
        let store = opened
            .map_err(|error| OpenError::Directory { path: data_dir.to_owned(), source: error.into() })?
            .map_err(OpenError::from)?;
        let store: Arc<dyn BlobStore> = Arc::new(store);
        let origin = Self::over(Arc::clone(&store), config, keys);
        if let Some(webhook) = webhook {
            tokio::spawn(webhook::run(webhook, store, origin.stop.clone()));
        }
        Ok(origin)
    }

    /// The origin over `store`, with its sweeper running.
    fn over(store: Arc<dyn BlobStore>, config: Config, keys: Arc<GrantKeys>) -> Self {
        let uploads = Uploads::new(Arc::clone(&store), &config);
        let blobs = Blobs::new(store, &config);
        let stop = CancellationToken::new();
        tokio::spawn(sweeper::run(uploads.clone(), blobs.clone(), config.sweep_interval(), stop.clone()));
        Self { uploads, blobs, config: Arc::new(config), keys, stop }
    }

    /// The origin's paths: `/v1/uploads`, `/v1/uploads/{id}`, `/v1/blobs`, `/v1/blobs/{id}/keep` and, for edges,
    /// `/origin/v1/blobs/{id}`, `/origin/v1/blobs/{id}/outboard` and `/origin/v1/purges`. Reads the clock and answers every error as a problem (RFC 9457).
    pub fn router(&self) -> axum::Router {
        http::router(http::App::new(
            self.uploads.clone(),
            self.blobs.clone(),
            Arc::clone(&self.config),
            Arc::clone(&self.keys),
        ))
    }

    /// Whether uploads can be taken: false while closing, and for good once the store became read-only because it
    /// cannot tell what is durable.
    pub fn is_ready(&self) -> bool {
        self.uploads.is_ready()
    }

    /// Takes no more bytes, and returns when what was received is committed. Blobs can still be read.
    pub async fn close(&self) {
        self.stop.cancel();
        self.uploads.close().await;
    }
}

impl From<DiskOpenError> for OpenError {
    fn from(error: DiskOpenError) -> Self {
        match error {
            DiskOpenError::Directory { path, source } => Self::Directory { path, source },
            DiskOpenError::Records(RecordsError::Locked { path }) => Self::InUse { path },
            DiskOpenError::Records(RecordsError::Database { path, source }) => {
                Self::Records { path, source: source.into() }
            }
            DiskOpenError::Records(RecordsError::Damaged { path, source }) => Self::Records { path, source },
        }
    }
}
