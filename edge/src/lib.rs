//! The edge: a cache of sealed blobs near their readers, that serves no byte it has not checked.
//!
//! Without it every reader would travel to the origin, and a photo sent to a large group would travel hundreds of
//! times in the same second. With a careless one, a bit flipped on the way would be served to all of them for hours.
//!
//! A request walks `http -> blobs -> cache`, and on a miss `fill -> upstream`, the origin's wire.
//!
//! Promises:
//! - Nobody gets a byte of a chunk group before it is checked against the blob's id.
//! - The origin is asked once for what many miss at once, and a reader who hangs up or dawdles holds nobody back.
//! - A blob that cannot be had whole ends in a visible error, never in a clean end of file.
//! - Clients' grants end here: the origin sees the edge's own.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

mod access_log;
mod blobs;
mod cache;
mod config;
mod cursors;
mod disk;
mod fill;
mod grants;
mod http;
pub mod metrics;
#[cfg(test)]
#[path = "../../tests/fuzz/mutations.rs"]
mod mutations;
mod peers;
mod purges;
pub mod raw;
mod reader;
mod scrub;
mod slice;
mod stats;
mod tombstones;
mod trust;
mod upstream;
mod via;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio_util::sync::{CancellationToken, DropGuard};
use waxwing_protocol::BlobId;
use waxwing_protocol::grant::GrantKeys;

pub use cache::held::{Held, Part, Tier};
pub use config::Config;
pub use stats::Stats;

/// How well the disk tier chooses what to keep.
pub mod trace {
    pub use crate::disk::trace::{Ratios, compare};
}

use access_log::AccessLog;
use blobs::{Blobs, How};
use cache::Cache;
use disk::{Disk, Opened, Settings};
use fill::Fills;
use grants::Grants;
use http::body::Sent;
use purges::Purges;
use stats::Counters;
use tombstones::Tombstones;
use upstream::Upstream;

/// How often the disk tier looks whether room that waited for readers can be given back: well below how long it waits.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);

/// A running edge. Clones share one cache.
#[derive(Clone, Debug)]
pub struct Edge {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    blobs: Blobs,
    grants: Grants,
    cache: Arc<Cache>,
    counters: Arc<Counters>,
    access_log: Option<Arc<AccessLog>>,
    upstream: Arc<Upstream>,
    /// Whether it takes no further requests of other edges.
    is_draining: AtomicBool,
    /// Ends what runs beside the requests when the last clone of the edge is gone.
    _tasks: DropGuard,
}

/// Why an edge could not be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EdgeError {
    /// The origin's URL cannot be asked.
    #[error("origin URL {url:?} is not usable: {reason}")]
    OriginUrl {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The edge's grant cannot stand in a header. The grant itself is not repeated here: it is a secret.
    #[error("the edge's own grant holds characters that no header can carry")]
    EdgeGrant,
    /// A configured value makes no sense.
    #[error("edge.{key} {reason}")]
    Config {
        /// The key.
        key: &'static str,
        /// What is wrong with its value.
        reason: &'static str,
    },
    /// Nobody can be believed over TLS.
    #[error("the authorities that vouch for origins and other edges cannot be used: {reason}")]
    Authorities {
        /// What is wrong with them.
        reason: String,
    },
    /// The access log cannot be opened.
    #[error("the edge's access log {path} cannot be opened: {reason}")]
    AccessLog {
        /// The file.
        path: String,
        /// What the operating system said.
        reason: String,
    },
    /// The disk tier cannot be used.
    #[error("the edge's disk tier in {dir} cannot be used: {reason}")]
    Disk {
        /// Its directory.
        dir: String,
        /// What the operating system said.
        reason: String,
    },
}

impl Edge {
    /// An edge before the origin at `origin_url`, which it shows `edge_grant` (a JWT for the audience `edge`); its own
    /// clients' grants are verified by `keys`. What it keeps on disk is in `data_dir`, unless the configuration names
    /// another place. Must be called within a tokio runtime; with a full disk tier it takes seconds.
    ///
    /// # Errors
    /// [`EdgeError`] when the configuration, the URL, the grant or the disk is unusable.
    pub async fn open(
        config: Config,
        data_dir: &Path,
        origin_url: String,
        edge_grant: String,
        keys: Arc<GrantKeys>,
    ) -> Result<Self, EdgeError> {
        config.check()?;
        let counters = Arc::new(Counters::default());
        let upstream = Arc::new(Upstream::new(&config, &origin_url, &edge_grant, Arc::clone(&counters))?);
        let access_log = match &config.access_log {
            Some(path) => Some(Arc::new(open_access_log(path, Arc::clone(&counters))?)),
            None => None,
        };
        let tombstones = Arc::new(Tombstones::default());
        let (disk, found) = match config.disk(data_dir) {
            Some(settings) => open_disk(settings, Arc::clone(&tombstones), Arc::clone(&counters)).await?,
            None => (None, Opened::default()),
        };
        let absent_lifetime = Duration::from_millis(config.absent_ms);
        let cache = Arc::new(Cache::new(config.memory_bytes, absent_lifetime, disk, tombstones));
        let fills = Fills::new(&config, Arc::clone(&cache), Arc::clone(&upstream), Arc::clone(&counters));
        let blobs = Blobs::new(&config, Arc::clone(&cache), fills.clone());
        let tasks = CancellationToken::new();
        let scrub = scrub::run(Arc::clone(&cache), Arc::clone(&counters), config.scrub_bytes_per_s);
        tokio::spawn(tasks.clone().run_until_cancelled_owned(scrub));
        if config.purge_poll_ms > 0 {
            let pause = Duration::from_millis(config.purge_poll_ms);
            let (cache, counters) = (Arc::clone(&cache), Arc::clone(&counters));
            let purges = Purges { cache, fills, upstream: Arc::clone(&upstream), counters };
            for origin in 0..upstream.origin_count() {
                let known = found.purged.get(&upstream.origin_tag(origin)).copied();
                // What is here without a number was fetched when nobody followed the log.
                let known = known.or((found.units > 0).then_some(0));
                let follow = purges.clone().follow(origin, known, pause);
                tokio::spawn(tasks.clone().run_until_cancelled_owned(follow));
            }
        }
        for neighbour in upstream.peers.all() {
            let timeout = Duration::from_millis(config.upstream_connect_timeout_ms);
            let watch = peers::watch(Arc::clone(&upstream), Arc::clone(neighbour), timeout);
            tokio::spawn(tasks.clone().run_until_cancelled_owned(watch));
        }
        if cache.disk().is_some() {
            let settled = Arc::clone(&cache);
            tokio::spawn(tasks.clone().run_until_cancelled_owned(async move {
                while let Some(disk) = settled.disk() {
                    disk.settle();
                    tokio::time::sleep(SETTLE_PAUSE).await;
                }
            }));
        }
        let grants = Grants::new(keys);
        let (is_draining, _tasks) = (AtomicBool::new(false), tasks.drop_guard());
        let parts = Parts { blobs, grants, cache, counters, access_log, upstream, is_draining, _tasks };
        Ok(Self { parts: Arc::new(parts) })
    }

    /// The paths the edge answers, absolute: `/v1/blobs/{id}` and `/s/{id}`. It has no fallback, so that it merges with
    /// the routers of other roles.
    pub fn router(&self) -> axum::Router {
        http::router(self.clone())
    }

    /// What the edge has done since it started, and what it holds.
    pub fn stats(&self) -> Stats {
        stats(&self.parts.cache, &self.parts.counters, &self.parts.upstream)
    }

    /// Tells other edges to ask somebody else from now on. Clients are still answered.
    pub fn drain(&self) {
        self.parts.is_draining.store(true, Relaxed);
    }

    /// Whether it is to get requests.
    pub fn is_ready(&self) -> bool {
        !self.parts.is_draining.load(Relaxed)
    }

    /// Takes requests of other edges again.
    pub fn undrain(&self) {
        self.parts.is_draining.store(false, Relaxed);
    }

    /// Forgets blob `id` here, and what of it is on its way here. The origin still has it, and the next reader brings it
    /// again, unless it went from there.
    pub fn purge(&self, id: BlobId) {
        self.parts.cache.purge(id);
        self.parts.blobs.strike_off(id);
    }

    /// What `tier` holds, `limit` entries beginning at place `after`; and the place after them, until there is none. What
    /// comes or goes meanwhile may be missed or told twice.
    pub fn held(&self, tier: Tier, after: usize, limit: usize) -> (Vec<Held>, Option<usize>) {
        self.parts.cache.held(tier, after, limit)
    }

    /// Waits until what was fetched so far is on disk, so that the next start finds it.
    pub async fn close(&self) {
        if let Some(disk) = self.parts.cache.disk() {
            disk.flush().await;
        }
    }

    /// Tells the recorder of metrics what was counted so far. To be called before it is read.
    pub fn publish(&self) {
        metrics::publish(&self.stats());
    }

    /// Counts a request for a blob that was found.
    fn count_read(&self, how: How) {
        let counters = &self.parts.counters;
        let counter = match how {
            How::Hit { is_from_disk: false } => &counters.hits,
            How::Hit { is_from_disk: true } => &counters.disk_hits,
            How::Missed { collapsed: true, .. } => &counters.collapsed,
            How::Missed { .. } => &counters.misses,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts a request for a blob that there is not.
    fn count_absent(&self) {
        self.parts.counters.absent.fetch_add(1, Relaxed);
    }

    /// What counts the bytes of a body.
    fn sent(&self) -> Sent {
        Sent(Arc::clone(&self.parts.counters))
    }

    fn access_log(&self) -> Option<Arc<AccessLog>> {
        self.parts.access_log.clone()
    }

    fn blobs(&self) -> &Blobs {
        &self.parts.blobs
    }

    fn upstream(&self) -> &Upstream {
        &self.parts.upstream
    }

    fn counters(&self) -> &Counters {
        &self.parts.counters
    }

    fn grants(&self) -> &Grants {
        &self.parts.grants
    }
}

fn stats(cache: &Cache, counters: &Counters, upstream: &Upstream) -> Stats {
    let (disk_units, disk_bytes) = cache.disk().map(Disk::held).unwrap_or_default();
    let (memory_bytes, peers_usable) = (cache.memory_bytes(), upstream.peers.usable());
    Stats { memory_bytes, peers_usable, disk_units, disk_bytes, ..counters.read() }
}

fn open_access_log(path: &Path, counters: Arc<Counters>) -> Result<AccessLog, EdgeError> {
    AccessLog::open(path, counters)
        .map_err(|error| EdgeError::AccessLog { path: path.display().to_string(), reason: error.to_string() })
}

/// Opens the disk tier, on a thread that may block.
async fn open_disk(
    settings: Settings,
    tombstones: Arc<Tombstones>,
    counters: Arc<Counters>,
) -> Result<(Option<Disk>, Opened), EdgeError> {
    let began = Instant::now();
    let dir = settings.dir.display().to_string();
    let opening = tokio::task::spawn_blocking(move || Disk::open(&settings, tombstones, counters));
    let opened = opening.await.map_err(std::io::Error::other).flatten();
    let (disk, found) = opened.map_err(|error| EdgeError::Disk { dir: dir.clone(), reason: error.to_string() })?;
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(units = found.units, took_ms, "the disk tier in {dir} is warm with {} units", found.units);
    if found.damaged > 0 {
        tracing::warn!("{} records of the disk tier's index were damaged and are lost", found.damaged);
    }
    Ok((Some(disk), found))
}
