//! Why a store could not do what it was asked: a kind to act on, and the cause for the log.

use std::fmt;
use std::io;

/// What a caller can do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StoreErrorKind {
    /// No room. Works again once there is.
    Full,
    /// The owner holds as much as they may. Works again once they hold less.
    Quota,
    /// The store has stopped writing for good: it cannot tell what is durable. Reads go on; a restart decides.
    ReadOnly,
    /// A newer claim was made.
    Stale,
    /// Another write took too long to make way. Worth asking again.
    Busy,
    /// What the engine stores to cannot be reached, or has too much to do. Worth asking again.
    Unavailable,
    /// What is kept is not what was written.
    Corrupt,
    /// Anything else.
    Other,
}

impl fmt::Display for StoreErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "the store is full",
            Self::Quota => "the owner's quota is used up",
            Self::ReadOnly => "the store is read-only after a failed write",
            Self::Stale => "a newer claim was made",
            Self::Busy => "another write has not ended",
            Self::Unavailable => "the store cannot be reached",
            Self::Corrupt => "what is stored is damaged",
            Self::Other => "the store failed",
        })
    }
}

/// A failure of a store.
#[derive(Debug, thiserror::Error)]
#[error("{kind} ({doing})")]
pub(crate) struct StoreError {
    kind: StoreErrorKind,
    doing: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl StoreError {
    /// A failure while `doing`, with nothing beneath it.
    pub(crate) fn new(kind: StoreErrorKind, doing: impl Into<String>) -> Self {
        Self { kind, doing: doing.into(), source: None }
    }

    /// The same with what caused it.
    #[must_use]
    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// An I/O failure while `doing`.
    pub(crate) fn io(doing: impl Into<String>, source: io::Error) -> Self {
        let kind = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreErrorKind::Full,
            _ => StoreErrorKind::Other,
        };
        Self::new(kind, doing).because(source)
    }

    /// What can be done about it.
    pub(crate) const fn kind(&self) -> StoreErrorKind {
        self.kind
    }
}
