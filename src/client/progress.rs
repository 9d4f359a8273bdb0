//! What a client tells while it works, for a progress line or a window.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A step of progress. Bytes are of the sealed blob, except while planning and where said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Reading the file, so that what is sealed can be told from a later edit.
    Planning {
        /// Bytes of the file read.
        done: u64,
        /// Bytes of the file.
        total: u64,
    },
    /// Sealing and uploading.
    Uploading {
        /// Bytes the server is known, or on the way, to hold.
        done: u64,
        /// Bytes of the sealed blob.
        total: u64,
        /// Where this upload went on, when the server held a part of it already.
        resumed_at: Option<u64>,
    },
    /// The server or the network is gone; trying again after a pause.
    Waiting {
        /// How many tries failed in a row.
        attempt: u32,
        /// The pause.
        delay: Duration,
        /// What failed.
        reason: String,
    },
    /// Sending the message that carries the blob's key.
    Sending,
    /// Downloading and opening.
    Downloading {
        /// Bytes of the file opened.
        done: u64,
        /// Bytes of the file.
        total: u64,
    },
}

/// Where progress goes. Called often and from the task that works: it must not block.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// A count of bytes that another thread or task raises, and the task that waits for it tells.
#[derive(Clone, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits for `work` and tells the count whenever it has grown.
    pub(crate) async fn report_while<T>(&self, work: impl Future<Output = T>, tell: impl Fn(u64)) -> T {
        let mut ticks = tokio::time::interval(TICK);
        let mut told = None;
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => {
                    tell(self.get());
                    return done;
                }
                _ = ticks.tick() => {
                    let count = self.get();
                    if told.replace(count) != Some(count) {
                        tell(count);
                    }
                }
            }
        }
    }
}
