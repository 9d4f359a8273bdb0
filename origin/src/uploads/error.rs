//! Why an upload could not move forward, in words that tell the caller what to do.

use waxwing_protocol::{BlobId, UploadId};

use crate::store::{StoreError, StoreErrorKind};

/// Why an upload could not move forward.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    /// No such upload of this owner.
    #[error("there is no such upload")]
    NotFound,
    /// It was there, and its time is over.
    #[error("the upload has expired; begin a new one")]
    Expired,
    /// The client's view of the upload is not ours.
    #[error("client is at offset {claimed}, server at {stored}")]
    OffsetMismatch { claimed: u64, stored: u64 },
    /// It takes no more bytes.
    #[error("the upload is complete and takes no more bytes")]
    AlreadyComplete,
    /// Its length is known, or has been passed.
    #[error("the length contradicts what is known of the upload: {stored} bytes")]
    LengthConflict { stored: u64 },
    /// Another blob id was declared before.
    #[error("the upload was declared to be blob {stored}")]
    ExpectedConflict { stored: BlobId },
    /// More bytes than the upload, the grant or this origin allows.
    #[error("more than the {limit} bytes allowed")]
    TooLarge { limit: u64 },
    /// The owner holds as much as they may.
    #[error("the owner's quota is used up; delete something, or let uploads under way end")]
    QuotaExceeded,
    /// The bytes are not those announced. The upload is gone.
    #[error("the bytes received are blob {actual}, not {expected}; begin a new upload")]
    BlobMismatch { expected: BlobId, actual: BlobId },
    /// The request's bytes are not those its digest is of. Nothing of them is kept.
    #[error("the request's bytes do not have the digest it names; send them again")]
    DigestMismatch,
    /// The digest announced for the end of the request did not come. Nothing of it is kept.
    #[error("the digest announced for the end of the request is not there")]
    DigestMissing,
    /// Its bytes are those of its parts.
    #[error("the upload is made of others and takes no bytes of its own")]
    MadeOfParts,
    /// A part that is not there, or not a part of this owner's.
    #[error("there is no partial upload {part}")]
    PartNotFound { part: UploadId },
    /// A part whose bytes are not all there.
    #[error("the partial upload {part} has not all its bytes yet")]
    PartUnfinished { part: UploadId },
    /// The upload has not the digest announced for all of it. It is gone.
    #[error("the bytes received do not have the digest announced for the whole; begin a new upload")]
    WholeDigestMismatch,
    /// A newer request has the upload.
    #[error("a newer request has taken over the upload")]
    TakenOver,
    /// A write under way did not make way.
    #[error("the upload is busy")]
    Busy,
    /// The request's content ended before its time; what came is kept.
    #[error("the request was cut")]
    Cut,
    /// No byte for too long; what came is kept.
    #[error("no bytes came for too long")]
    Idle,
    /// Too few bytes for too long; what came is kept.
    #[error("the bytes came too slowly; go on where the upload stands")]
    Slow,
    /// The origin is about to stop; what came is kept.
    #[error("the server is restarting; ask again")]
    Closing,
    /// The operating system gave no random bytes for an id.
    #[error("no randomness for a new id")]
    NoRandomness,
    /// A bug ended the request's task.
    #[error("the request ended unexpectedly")]
    Aborted,
    /// The store failed.
    #[error("the blob store failed")]
    Store(#[source] StoreError),
}

impl From<StoreError> for UploadError {
    fn from(error: StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Stale => Self::TakenOver,
            StoreErrorKind::Busy => Self::Busy,
            StoreErrorKind::Quota => Self::QuotaExceeded,
            _ => Self::Store(error),
        }
    }
}
