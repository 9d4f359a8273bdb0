//! What a client tells while it works, for a progress line or a window.

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
