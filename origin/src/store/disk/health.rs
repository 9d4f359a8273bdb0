//! Whether the disk can still be believed.
//!
//! After a failed fsync Linux marks the pages it could not write as clean: a second fsync succeeds and the bytes are
//! gone. So nothing here tries again. The first such failure makes the store read-only until the process ends, and what
//! is durable is found out from the disk at the next start.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::store::{StoreError, StoreErrorKind};

/// Whether the store may write. Starts healthy and fails once.
#[derive(Debug, Default)]
pub(super) struct Health {
    read_only: AtomicBool,
}

impl Health {
    /// An error once the store is read-only.
    pub(super) fn writable(&self) -> Result<(), StoreError> {
        if self.read_only.load(Ordering::SeqCst) {
            return Err(StoreError::new(StoreErrorKind::ReadOnly, "writing"));
        }
        Ok(())
    }

    /// Makes the store read-only, says so in the log the first time, and gives the error to return.
    pub(super) fn fail(
        &self,
        doing: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> StoreError {
        let source = source.into();
        if !self.read_only.swap(true, Ordering::SeqCst) {
            tracing::error!(error = %source, "{doing} failed: the store is read-only until a restart");
        }
        StoreError::new(StoreErrorKind::ReadOnly, doing).because(source)
    }
}
