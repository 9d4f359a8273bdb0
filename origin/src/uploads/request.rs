//! What is asked of an upload, and what is answered.

use std::time::Instant;

use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::{Concat, ContentDigest};
use crate::store::{StoredDigest, UploadRecord, UploadState};

/// What the bearer of a grant may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowance {
    /// Who will own what comes.
    pub(crate) owner: OwnerTag,
    /// Bytes of one blob at most.
    pub(crate) blob_bytes_max: u64,
    /// Bytes that this owner may have stored and under way at once.
    pub(crate) quota_bytes: u64,
}

/// An upload to be created.
#[derive(Clone, Debug)]
pub(crate) struct NewUpload {
    /// Who asks, and what they may.
    pub(crate) allowance: Allowance,
    /// Bytes it will have; `None` to say later.
    pub(crate) length: Option<u64>,
    /// Whether the content that comes along is all there will be.
    pub(crate) ends: bool,
    /// The id its creator expects.
    pub(crate) expected: Option<BlobId>,
    /// Kept and given back; means nothing here.
    pub(crate) metadata: Option<String>,
    /// Whether it is one of several that will be put together.
    pub(crate) partial: bool,
    /// What the content that comes along must be; else none of it counts.
    pub(crate) content_digest: Option<ContentDigest>,
    /// The digest of all of it, named or wanted.
    pub(crate) digest: Option<StoredDigest>,
}

/// Where the bytes of a request begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// At the offset the client believes we hold; another is a mismatch.
    Offset(u64),
    /// At this byte of the blob. Bytes that we hold already are passed over, and a finished upload takes it all as
    /// known: dialects in which a client sends a range again need not ask first.
    Byte(u64),
}

impl At {
    /// The first byte's place.
    pub(super) const fn first(self) -> u64 {
        match self {
            Self::Offset(first) | Self::Byte(first) => first,
        }
    }
}

/// Bytes to be appended to an upload.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    /// Which.
    pub(crate) id: UploadId,
    /// Who asks, and what they may.
    pub(crate) allowance: Allowance,
    /// Where its bytes begin.
    pub(crate) at: At,
    /// Whether its content is the last there will be.
    pub(crate) ends: bool,
    /// The upload's length, when it was deferred.
    pub(crate) length: Option<u64>,
    /// The id the client expects.
    pub(crate) expected: Option<BlobId>,
    /// How many bytes are announced, when they are.
    pub(crate) content_bytes: Option<u64>,
    /// What the content must be; else none of it counts.
    pub(crate) content_digest: Option<ContentDigest>,
}

/// A blob brought in one request.
#[derive(Clone, Debug)]
pub(crate) struct NewContent {
    /// Who asks, and what they may.
    pub(crate) allowance: Allowance,
    /// The id the client expects.
    pub(crate) expected: Option<BlobId>,
    /// How many bytes are announced, when they are.
    pub(crate) content_bytes: Option<u64>,
    /// What the content must be; else none of it counts.
    pub(crate) content_digest: Option<ContentDigest>,
}

/// Where an upload stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Which.
    pub(crate) id: UploadId,
    /// Bytes that are durable.
    pub(crate) offset: u64,
    /// Bytes it will have, when known.
    pub(crate) length: Option<u64>,
    /// When it is forgotten.
    pub(crate) expires: Timestamp,
    /// What its creator sent along.
    pub(crate) metadata: Option<String>,
    /// What it has to do with a concatenation.
    pub(crate) concat: Option<Concat>,
    /// The digest of all of it, as far as it has come.
    pub(crate) digest: Option<StoredDigest>,
    /// What it became, once it is complete.
    pub(crate) blob: Option<BlobId>,
}

impl Progress {
    /// The progress that `record` tells of upload `id`.
    pub(super) fn of(id: UploadId, record: UploadRecord) -> Self {
        let blob = match record.state {
            UploadState::Complete { blob } => Some(blob),
            UploadState::Receiving { .. } => None,
        };
        Self {
            id,
            offset: record.offset,
            length: record.length,
            expires: record.expires,
            metadata: record.metadata,
            concat: record.concat,
            digest: record.digest,
            blob,
        }
    }
}

/// A wall clock for the time of one request: the moment it began and what has passed since.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestClock {
    began: Timestamp,
    since: Instant,
}

impl RequestClock {
    /// The clock of a request that begins at `now`.
    pub(super) fn start(now: Timestamp) -> Self {
        Self { began: now, since: Instant::now() }
    }

    /// The moment now.
    pub(super) fn now(&self) -> Timestamp {
        self.began.plus(self.since.elapsed())
    }
}
