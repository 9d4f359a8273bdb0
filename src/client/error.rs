//! Why something a client was asked to do did not happen, in words a person can act on.

use std::path::PathBuf;
use std::time::Duration;

use waxwing_protocol::{BlobId, Handle, IdError, Problem};

use crate::profile::StoreError;

/// Why a client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The directory holds no registered account.
    #[error("there is no account in {}: make one with `waxwing register --handle NAME --home {}`", home.display(), home.display())]
    NoProfile {
        /// The profile's directory.
        home: PathBuf,
    },
    /// Another process has the profile open. Two of them would advance the same ratchets.
    #[error("the profile in {} is in use by another waxwing: stop that one first", home.display())]
    ProfileInUse {
        /// The profile's directory.
        home: PathBuf,
    },
    /// The profile could not be read or written.
    #[error("the profile in {} cannot be read or written", home.display())]
    Profile {
        /// The profile's directory.
        home: PathBuf,
        /// What went wrong.
        source: StoreError,
    },
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The address of a server or a link is not one.
    #[error("{address} is not an address of the form http://HOST or https://HOST")]
    Address {
        /// What was given.
        address: String,
    },
    /// No answer: the server or the network is gone. Trying again later makes sense.
    #[error("no answer from {server}: {}", root_cause(source.as_ref()))]
    Unreachable {
        /// The server.
        server: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused, and said why.
    #[error("{server} refused: {problem}")]
    Refused {
        /// The server.
        server: String,
        /// Why.
        problem: Box<Problem>,
        /// When it says that trying again makes sense.
        retry_after: Option<Duration>,
    },
    /// The server's answer is not what the protocol says.
    #[error("{server} gave an answer that makes no sense: {what}")]
    Nonsense {
        /// The server.
        server: String,
        /// What is wrong with it.
        what: String,
    },
    /// Nobody is registered under this handle.
    #[error("nobody is called {handle} there")]
    UnknownRecipient {
        /// The handle.
        handle: Handle,
    },
    /// This profile has neither received nor sent this blob, so it has no key that opens it.
    #[error("this profile holds no key for the blob {blob}")]
    NoKey {
        /// The blob.
        blob: BlobId,
    },
    /// A text given as an id is none.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl ClientError {
    /// Whether the same request may succeed later: no answer, a fault of the server, or too many requests.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { problem, .. } => problem.status >= 500 || problem.status == 429 || problem.status == 423,
            _ => false,
        }
    }

    /// A failure to read or write `path`.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// The innermost cause: `connection refused` tells more than `error sending request`.
fn root_cause(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
