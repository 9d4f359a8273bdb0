//! Why bytes could not be had from the origin, in words that say what to do about it.

use std::sync::Arc;
use std::time::Duration;

use waxwing_protocol::blob::{GroupError, OutboardError};

/// Why a fill ended without its bytes. Cheap to clone: all that waited for the fill get it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum FillError {
    /// The origin has no such blob.
    #[error("the origin has no such blob")]
    NotFound,
    /// The range begins at or after the blob's end.
    #[error("the range asked of the origin lies beyond the blob's end")]
    Beyond,
    /// The origin does not accept this edge's grant: an operator must act.
    #[error("the origin refuses this edge's own grant with status {status}")]
    Denied {
        /// 401 or 403.
        status: u16,
    },
    /// The origin is there and cannot serve now.
    #[error("the origin answered {status}")]
    Unavailable {
        /// The status it answered with.
        status: u16,
    },
    /// No connection, or none that lived to an answer.
    #[error("the origin cannot be reached: {reason}")]
    Unreachable {
        /// What the connection said.
        reason: Arc<str>,
    },
    /// The origin took longer than configured.
    #[error("the origin sent nothing for {} ms", .0.as_millis())]
    Silent(Duration),
    /// A body ended before its time.
    #[error("the origin's answer broke off: {reason}")]
    Cut {
        /// What the connection said.
        reason: Arc<str>,
    },
    /// The answer cannot be true.
    #[error("the origin's answer is refused: {0}")]
    Lie(#[from] Lie),
    /// The blob is larger than this edge is configured for.
    #[error("the blob has {blob_bytes} bytes, more than this edge is configured to serve")]
    TooLarge {
        /// Its size as the origin says.
        blob_bytes: u64,
    },
    /// Too many other fills are under way.
    #[error("too many other fills are under way")]
    Busy,
    /// The task that filled is gone without a word: a bug, or the process is ending.
    #[error("the fill was abandoned")]
    Abandoned,
}

/// An answer of the origin, or of something between, that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Lie {
    /// A range was asked for and the whole was sent.
    #[error("it ignored the range asked for")]
    RangeIgnored,
    /// `Content-Range` is missing, malformed, or another range than the one asked for.
    #[error("it sent another range than the one asked for")]
    WrongRange,
    /// An outboard came without the blob's size.
    #[error("it sent an outboard without the blob's size")]
    SizeMissing,
    /// Two answers tell two sizes for one blob, which cannot change.
    #[error("it told two sizes for one blob")]
    TwoSizes,
    /// A body went on after its end.
    #[error("it sent more bytes than it said")]
    Overlong,
    /// What it sent as its purge log is none.
    #[error("it sent something else than its purge log")]
    PurgeLog,
    /// A status that has no meaning here.
    #[error("it answered with the unexpected status {0}")]
    Status(u16),
    /// The outboard is not the blob's.
    #[error(transparent)]
    Outboard(#[from] OutboardError),
    /// A chunk group is not the blob's.
    #[error(transparent)]
    Group(#[from] GroupError),
}

impl FillError {
    /// Whether asking again at once may well succeed: a cut or a flipped bit is gone the next time, a server that was
    /// restarted is back. What takes time (silence, overload) or an operator is not worth the wait of those in line.
    pub(crate) const fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Unreachable { .. }
                | Self::Cut { .. }
                | Self::Lie(Lie::Group(_) | Lie::Outboard(_) | Lie::Overlong)
        )
    }
}
