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

mod blobs;
mod cache;
mod config;
mod fill;
mod grants;
mod http;
pub mod metrics;
mod reader;
mod slice;
mod upstream;

use std::sync::Arc;

use waxwing_protocol::grant::GrantKeys;

pub use config::Config;

use blobs::Blobs;
use cache::Cache;
use fill::Fills;
use grants::Grants;
use upstream::Upstream;

/// A running edge. Clones share one cache.
#[derive(Clone, Debug)]
pub struct Edge {
    parts: Arc<Parts>,
}

#[derive(Debug)]
struct Parts {
    blobs: Blobs,
    grants: Grants,
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
}

impl Edge {
    /// An edge before the origin at `origin_url`, which it shows `edge_grant` (a JWT for the audience `edge`); its own
    /// clients' grants are verified by `keys`. Nothing is asked of the origin before the first miss.
    ///
    /// # Errors
    /// [`EdgeError`] when the configuration, the URL or the grant is unusable.
    #[expect(clippy::needless_pass_by_value, reason = "the caller hands over the grant: no second copy of a secret")]
    pub fn new(
        config: Config,
        origin_url: String,
        edge_grant: String,
        keys: Arc<GrantKeys>,
    ) -> Result<Self, EdgeError> {
        config.check()?;
        let cache = Arc::new(Cache::new(config.memory_bytes));
        let upstream = Upstream::new(&config, &origin_url, &edge_grant)?;
        let fills = Fills::new(&config, Arc::clone(&cache), upstream);
        let blobs = Blobs::new(&config, cache, fills);
        Ok(Self { parts: Arc::new(Parts { blobs, grants: Grants::new(keys) }) })
    }

    /// The paths the edge answers, absolute: `/v1/blobs/{id}` and `/s/{id}`. It has no fallback, so that it merges with
    /// the routers of other roles.
    pub fn router(&self) -> axum::Router {
        http::router(self.clone())
    }

    fn blobs(&self) -> &Blobs {
        &self.parts.blobs
    }

    fn grants(&self) -> &Grants {
        &self.parts.grants
    }
}
