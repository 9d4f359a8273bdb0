//! What an operator can set of an edge.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::EdgeError;
use crate::disk::Settings;
use crate::slice::SLICE_BYTES;

/// Configuration of an edge; every key has a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Bytes that the memory tier holds at most, outboards and bookkeeping included. Default 256 MiB; at least 4 MiB.
    pub memory_bytes: u64,
    /// Bytes that the disk tier takes at most, its index included; 0 for none. What is in it survives a restart. Its file
    /// system needs holes (ext4, XFS, btrfs, tmpfs); its index takes about 100 bytes of memory a blob or slice.
    /// Default 0; at least 64 MiB else.
    pub disk_bytes: u64,
    /// The directory of the disk tier, its own alone. Default: `edge` in the data directory.
    pub disk_path: Option<PathBuf>,
    /// How fast the disk tier is looked through for damage, in bytes a second; 0 for not at all. Default 8 MiB.
    pub scrub_bytes_per_s: u64,
    /// How long the edge remembers that the origin has no such blob, in milliseconds: long enough to shield it from a
    /// storm, short enough that a blob which arrives a moment late is not missed. Default 2,000; 0 for not at all, at
    /// most 60,000.
    pub absent_ms: u64,
    /// How often the origin is asked what was purged, in milliseconds. Default 1,000; 0 for never: then what goes from
    /// the origin stays here until it loses its place.
    pub purge_poll_ms: u64,
    /// The file to which a line of JSON is appended for each request, without grants. Default: none.
    pub access_log: Option<PathBuf>,
    /// Further origins of the same blobs, in the order in which they are asked when those before fail. Default: none.
    pub other_origins: Vec<String>,
    /// The authorities, as certificates in PEM, that vouch for origins, peers and shields whose URLs begin with `https`.
    /// Read at the start. Default: those of the operating system.
    pub ca_file: Option<PathBuf>,
    /// How other edges reach this one, such as `http://10.0.0.3:8460` or `https://edge-3.example`. Needed with `peers`.
    /// Default: none.
    pub own_url: Option<String>,
    /// Edges that share the work: for each stretch of a blob one of them is responsible, and the others ask it. The same
    /// list, this edge's own URL included, on all of them. They must take this edge's grant. Default: none.
    pub peers: Vec<String>,
    /// Edges that stand before the origin and are asked instead of it. Default: none.
    pub shields: Vec<String>,
    /// How often peers and shields are asked whether they live, in milliseconds. Default 2,000.
    pub peer_check_ms: u64,
    /// How many failures in a row make a peer or shield down. Default 3; after each single one it is not asked before it
    /// was found alive.
    pub peer_fall: u32,
    /// How many good checks in a row make it up again. Default 2.
    pub peer_rise: u32,
    /// Bytes that all readers together may have fetched ahead of themselves, and so keep in memory beside the tier. A
    /// reader who finds none left goes on slice by slice. Default 64 MiB.
    pub read_ahead_bytes: u64,
    /// Readers of larger blobs that are served at once at most; further ones are told to come again. Each keeps the slice
    /// it is in (1 MiB, shared by all who are in it), also while its client reads nothing. Default 10,240; at least 1.
    pub readers_max: u32,
    /// Fills under way at once at most; others wait for one to end. Each holds one slice (1 MiB) that is not in the
    /// memory tier yet. Default 256; at least 1.
    pub fills_max: u32,
    /// How long a fill waits for its turn, in milliseconds, before its readers are told to come again. Default 5,000.
    pub fill_wait_ms: u64,
    /// Bytes of a blob at most. A larger one is refused, since its outboard (0.05 % of it) is held in memory whole.
    /// Default 64 GiB.
    pub blob_bytes_max: u64,
    /// How long to wait for a connection to the origin, in milliseconds. Default 3,000.
    pub upstream_connect_timeout_ms: u64,
    /// How long to wait for the head of the origin's answer, in milliseconds, the connection included. Default 10,000.
    pub upstream_answer_timeout_ms: u64,
    /// How long the origin may send nothing amid a body, in milliseconds. Default 15,000.
    pub upstream_idle_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            memory_bytes: 256 << 20,
            disk_bytes: 0,
            disk_path: None,
            scrub_bytes_per_s: 8 << 20,
            absent_ms: 2_000,
            purge_poll_ms: 1_000,
            access_log: None,
            other_origins: Vec::new(),
            ca_file: None,
            own_url: None,
            peers: Vec::new(),
            shields: Vec::new(),
            peer_check_ms: 2_000,
            peer_fall: 3,
            peer_rise: 2,
            read_ahead_bytes: 64 << 20,
            readers_max: 10_240,
            fills_max: 256,
            fill_wait_ms: 5_000,
            blob_bytes_max: 64 << 30,
            upstream_connect_timeout_ms: 3_000,
            upstream_answer_timeout_ms: 10_000,
            upstream_idle_timeout_ms: 15_000,
        }
    }
}

/// A memory tier of fewer slices than this would turn itself over within one reader's window.
const MEMORY_BYTES_MIN: u64 = 4 * SLICE_BYTES;

/// A disk tier of fewer bytes would hold little more than its own cache files' beginnings.
const DISK_BYTES_MIN: u64 = 64 << 20;

/// Whoever waits for a blob longer than a minute after it arrived takes the service for broken.
const ABSENT_MS_MAX: u64 = 60_000;

impl Config {
    /// Refuses values under which nothing could be served.
    pub(crate) fn check(&self) -> Result<(), EdgeError> {
        let refuse = |key, reason| Err(EdgeError::Config { key, reason });
        if self.memory_bytes < MEMORY_BYTES_MIN {
            return refuse("memory_bytes", "must be at least 4 MiB");
        }
        if self.disk_bytes > 0 && self.disk_bytes < DISK_BYTES_MIN {
            return refuse("disk_bytes", "must be 0 or at least 64 MiB");
        }
        if self.absent_ms > ABSENT_MS_MAX {
            return refuse("absent_ms", "must be at most 60,000");
        }
        if self.readers_max == 0 {
            return refuse("readers_max", "must be at least 1");
        }
        if self.fills_max == 0 {
            return refuse("fills_max", "must be at least 1");
        }
        if !self.peers.is_empty() && self.own_url.is_none() {
            return refuse("own_url", "must be set with peers: which of them is this edge, or that it is none");
        }
        for (key, count) in [("peer_fall", self.peer_fall), ("peer_rise", self.peer_rise)] {
            if count == 0 {
                return refuse(key, "must be at least 1");
            }
        }
        for (key, ms) in [
            ("fill_wait_ms", self.fill_wait_ms),
            ("peer_check_ms", self.peer_check_ms),
            ("upstream_connect_timeout_ms", self.upstream_connect_timeout_ms),
            ("upstream_answer_timeout_ms", self.upstream_answer_timeout_ms),
            ("upstream_idle_timeout_ms", self.upstream_idle_timeout_ms),
        ] {
            if ms == 0 {
                return refuse(key, "must be at least 1");
            }
        }
        Ok(())
    }

    /// The disk tier, if there is to be one: in `data_dir` unless it has a directory of its own.
    pub(crate) fn disk(&self, data_dir: &Path) -> Option<Settings> {
        let dir = self.disk_path.clone().unwrap_or_else(|| data_dir.to_owned());
        (self.disk_bytes > 0).then_some(Settings { dir, disk_bytes: self.disk_bytes })
    }

    /// The URLs of peers and shields.
    pub(crate) fn neighbours(&self) -> impl Iterator<Item = &str> {
        self.peers.iter().chain(&self.shields).map(String::as_str)
    }

    /// [`Self::fill_wait_ms`] as a duration.
    pub(crate) const fn fill_wait(&self) -> Duration {
        Duration::from_millis(self.fill_wait_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_usable_and_zeroes_are_not() {
        assert_eq!(Config::default().check(), Ok(()));
        for (key, config) in [
            ("memory_bytes", Config { memory_bytes: MEMORY_BYTES_MIN - 1, ..Config::default() }),
            ("disk_bytes", Config { disk_bytes: 1, ..Config::default() }),
            ("absent_ms", Config { absent_ms: ABSENT_MS_MAX + 1, ..Config::default() }),
            ("fills_max", Config { fills_max: 0, ..Config::default() }),
            ("own_url", Config { peers: vec!["http://a".into()], ..Config::default() }),
            ("peer_rise", Config { peer_rise: 0, ..Config::default() }),
            ("upstream_idle_timeout_ms", Config { upstream_idle_timeout_ms: 0, ..Config::default() }),
        ] {
            let refused = config.check().unwrap_err();
            assert!(refused.to_string().contains(key), "{refused}");
        }
    }
}
