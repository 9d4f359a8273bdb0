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
use self::store::s3::{Keys, S3Store, Settings};
use self::uploads::{Uploads, sweeper};

pub use admin::{AdminError, Collected, UploadInfo, UploadStage};
pub use config::{BlobsConfig, Config, S3Config, Webhook};
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
    /// The keys of the bucket are missing.
    #[error("the keys of bucket {bucket}: {problem}")]
    Keys {
        /// Which bucket.
        bucket: String,
        /// What is missing.
        problem: String,
    },
    /// A setting of the bucket cannot work.
    #[error("the settings of bucket {bucket}: {problem}")]
    Settings {
        /// Which bucket.
        bucket: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// The bucket cannot be used: it is not there, the keys may not use it, or its server cannot do what is needed.
    #[error("the origin cannot use bucket {bucket}")]
    Bucket {
        /// Which bucket.
        bucket: String,
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
        let webhook = open_webhook(&config)?;
        let faults = Arc::new(fault::from_env()?);
        let (path, reserve_bytes) = (data_dir.to_owned(), config.reserve_bytes);
        let opened = tokio::task::spawn_blocking(move || DiskStore::open(&path, reserve_bytes, faults)).await;
        let store = opened
            .map_err(|error| OpenError::Directory { path: data_dir.to_owned(), source: error.into() })?
            .map_err(OpenError::from)?;
        Ok(Self::over(Arc::new(store), config, keys, webhook))
    }

    /// Opens the origin whose uploads and blobs are in a bucket, which it may share with other origins. Nothing is kept
    /// here, so whichever origin a client reaches next goes on with its uploads.
    ///
    /// # Errors
    /// [`OpenError`] tells what is wrong with the bucket, its keys or its server.
    pub async fn open_bucket(config: Config, s3: S3Config, keys: Arc<GrantKeys>) -> Result<Self, OpenError> {
        let webhook = open_webhook(&config)?;
        let bucket = s3.bucket.clone();
        let signing = Keys::find(&s3).map_err(|problem| OpenError::Keys { bucket: bucket.clone(), problem })?;
        let settings = Settings::new(s3, signing, config.blob_bytes_max, Arc::new(fault::from_env()?));
        settings.check().map_err(|problem| OpenError::Settings { bucket: bucket.clone(), problem })?;
        let store = S3Store::open(settings).await;
        let store = store.map_err(|error| OpenError::Bucket { bucket, source: error.into() })?;
        Ok(Self::over(Arc::new(store), config, keys, webhook))
    }

    /// The origin over `store`, with its sweeper running, and `webhook` told of what becomes a blob.
    fn over(
        store: Arc<dyn BlobStore>,
        config: Config,
        keys: Arc<GrantKeys>,
        webhook: Option<webhook::Webhook>,
    ) -> Self {
        let uploads = Uploads::new(Arc::clone(&store), &config);
        let blobs = Blobs::new(Arc::clone(&store), &config);
        let stop = CancellationToken::new();
        if let Some(webhook) = webhook {
            tokio::spawn(webhook::run(webhook, store, stop.clone()));
        }
        tokio::spawn(sweeper::run(uploads.clone(), blobs.clone(), config.sweep_interval(), stop.clone()));
        Self { uploads, blobs, config: Arc::new(config), keys, stop }
    }

    /// The origin's paths: `/v1/uploads`, `/v1/uploads/{id}`, `/v1/blobs`, `/v1/blobs/{id}/keep` and, for edges,
    /// `/origin/v1/blobs/{id}`, `/origin/v1/blobs/{id}/outboard` and `/origin/v1/purges`. Reads the clock and
    /// answers every error as a problem (RFC 9457).
    pub fn router(&self) -> axum::Router {
        http::router(http::App::new(
            self.uploads.clone(),
            self.blobs.clone(),
            Arc::clone(&self.config),
            Arc::clone(&self.keys),
        ))
    }

    /// Whether uploads can be taken: false while closing or while the bucket does not answer, and for good once the store
    /// became read-only because it cannot tell what is durable.
    pub fn is_ready(&self) -> bool {
        self.uploads.is_ready()
    }

    /// Why uploads cannot be taken, in words for an operator; `None` when they can.
    pub fn trouble(&self) -> Option<String> {
        self.uploads.trouble()
    }

    /// Takes no more bytes, and returns when what was received is committed. Blobs can still be read.
    pub async fn close(&self) {
        self.stop.cancel();
        self.uploads.close().await;
    }
}

fn open_webhook(config: &Config) -> Result<Option<webhook::Webhook>, OpenError> {
    let webhook = config.webhook.as_ref().map(webhook::Webhook::open).transpose();
    webhook.map_err(|error| OpenError::Webhook { source: error.into() })
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
