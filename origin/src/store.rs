//! Where uploads and blobs are kept: what every engine promises.
//!
//! The upload engine decides *what* is kept and when it may be acknowledged; an engine of this module knows *how* to
//! make it survive. The split keeps policy (owners, expiry, limits) out of the code that talks to disks, and lets the
//! same uploads run over local files and over an object store.
//!
//! Two ideas carry it. A [`UploadWriter`] is a *claim*: the newest claim on an upload is the only one that can write, so
//! a request that a network change left behind cannot touch bytes its successor acknowledged. And [`commit`] makes data
//! durable *before* the record that speaks of it, in this order, so that a record never promises bytes a power cut took.
//!
//! `suite.rs` holds these promises as tests, which every engine runs.
//!
//! [`commit`]: UploadWriter::commit

pub(crate) mod disk;
mod error;
mod record;
pub(crate) mod s3;
mod slots;
#[cfg(test)]
pub(crate) mod suite;

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use waxwing_protocol::range::ByteRange;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

pub(crate) use error::{StoreError, StoreErrorKind};
pub(crate) use record::{Concat, DigestProgress, StoredDigest, UploadRecord, UploadState, WholeAlgorithm};

/// Bytes after which a long request commits on its way, unless an engine has a reason for more.
pub(crate) const COMMIT_BYTES: u64 = 8 << 20;

/// An engine that keeps uploads and blobs.
pub(crate) trait BlobStore: Send + Sync + 'static {
    /// A claim on an upload that is not there yet. Nothing is kept until its first [`UploadWriter::commit`] or
    /// [`UploadWriter::complete`]; what is left by a crash before is found by [`Self::collect`].
    fn begin(&self, id: UploadId) -> BoxFuture<'_, Result<Box<dyn UploadWriter>, StoreError>>;

    /// The record of an upload, left undisturbed; `None` when there is none.
    fn upload(&self, id: UploadId) -> BoxFuture<'_, Result<Option<UploadRecord>, StoreError>>;

    /// Claims an upload and gives its record; `None` when there is none.
    ///
    /// Promise: once this has returned, no earlier claim writes or commits anything. It waits briefly for a write that
    /// is under way, and fails with `Busy` when that takes too long.
    fn claim(&self, id: UploadId) -> BoxFuture<'_, Result<Option<Claim>, StoreError>>;

    /// Removes an upload: its record and, unless they became a blob's, its bytes. Fences earlier claims as
    /// [`Self::claim`] does. Durable on return; idempotent.
    fn remove(&self, id: UploadId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Gives back the room that upload `id` took beyond its committed bytes ([`UploadWriter::reserve`]), and what was written
    /// there. Fences earlier claims as [`Self::claim`] does. Gives how many bytes came back. An engine that takes no room
    /// lets it be.
    fn give_back(&self, _id: UploadId) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    /// Records of uploads in the order of their ids, at most `limit`, those after `after`.
    fn uploads(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(UploadId, UploadRecord)>, StoreError>>;

    /// The next uploads that may have expired by `now`, in the order of their ids, about `limit`, those after `after`; what
    /// is told apart from them without reading their records is left out. `None` when another process that shares the store
    /// sees to it.
    fn due(
        &self,
        after: Option<UploadId>,
        limit: usize,
        _now: Timestamp,
        _lives: Lives,
    ) -> BoxFuture<'_, Result<Option<DuePage>, StoreError>> {
        Box::pin(async move {
            let entries = self.uploads(after, limit).await?;
            Ok(Some(DuePage { last: entries.last().map(|(id, _)| *id), entries, unread: 0 }))
        })
    }

    /// Opens a blob; `None` when there is none. A blob that was opened can be read to its end even when it is removed.
    fn blob(&self, id: BlobId) -> BoxFuture<'_, Result<Option<Box<dyn BlobReader>>, StoreError>>;

    /// Bytes of blob `id` if `owner` is one of its owners.
    fn owned(&self, id: BlobId, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;

    /// Makes `owner` an owner of blob `id` from `now` on, or lets them be one from `now` on again. False when there is
    /// no such blob; fails with `Quota` when they would hold more than `quota_bytes`. Durable on return.
    fn keep(
        &self,
        id: BlobId,
        owner: OwnerTag,
        quota_bytes: u64,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Ends that `owner` has blob `id`; with its last owner the blob goes, and a purge is logged. False when they were
    /// no owner. Durable on return.
    fn disown(&self, id: BlobId, owner: OwnerTag, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Removes blob `id`, whoever has it, and logs a purge. False when there is none. Durable on return.
    fn remove_blob(&self, id: BlobId, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// Which blobs `owner` has, of those behind `after` in the engine's order. Looks at about `limit` records and then
    /// ends, however few it found: no engine files blobs by their owners.
    fn blobs_of(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<OwnedPage, StoreError>>;

    /// Ends, as [`Self::disown`] does, for at most `limit` owners what they have had since `until` or longer. Gives how
    /// many were due.
    fn expire_owners(&self, until: Timestamp, limit: usize, now: Timestamp)
    -> BoxFuture<'_, Result<usize, StoreError>>;

    /// How many times [`Self::expire_owners`] would end that somebody has a blob. May read every blob's record.
    fn due_owners(&self, until: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// What went after the purge numbered `after`, at most `limit`.
    fn purges(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Purges, StoreError>>;

    /// Forgets purges before `until`, at most `limit`; the newest stays, since numbers go on from it. Gives how many.
    fn forget_purges(&self, until: Timestamp, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>>;

    /// Bytes that `owner` holds: the sizes of their blobs, and of what is being uploaded.
    fn used(&self, owner: OwnerTag) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// What an operator set for `owner` in place of what their grants say; `None` when it is what grants say.
    fn quota(&self, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;

    /// Sets that `owner` may hold `quota_bytes`, whatever grants say; what they hold beyond stays. `None`: grants say it
    /// again. Durable on return; it counts from the next commit on.
    fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Bytes that `owner` may still add by a grant of `quota_bytes`.
    fn room(&self, owner: OwnerTag, quota_bytes: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let quota_bytes = self.quota(owner).await?.unwrap_or(quota_bytes);
            Ok(quota_bytes.saturating_sub(self.used(owner).await?))
        })
    }

    /// Owners who hold anything, in the order of their tags, at most `limit`, those after `after`.
    fn owners(&self, after: Option<OwnerTag>, limit: usize) -> BoxFuture<'_, Result<Vec<(OwnerTag, u64)>, StoreError>>;

    /// Events that were not settled, the oldest first, at most `limit`.
    fn events(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Event>, StoreError>>;

    /// Forgets an event. Durable on return.
    fn settle(&self, event: Event) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Frees bytes that no record names, which a crash left behind, when they were last written before `older_than`.
    /// Gives how many uploads' bytes were freed.
    fn collect(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// As [`Self::collect`], called again and again: an engine may look only at what came since it was called last, and now
    /// and then at everything.
    fn collect_again(&self, older_than: Timestamp, _now: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        self.collect(older_than)
    }

    /// Of how many uploads [`Self::collect`] would free the bytes.
    fn leftovers(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Gives back space that blobs left when they went, as far as it is worth it; ends early at `stop`. Gives how many bytes
    /// came back. Reads and uploads go on meanwhile.
    fn compact(&self, urgency: Urgency, stop: CancellationToken) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// How many bytes [`Self::compact`] would give back when asked by somebody who waits.
    fn compactable(&self) -> BoxFuture<'_, Result<u64, StoreError>>;

    /// Whether writing is possible; false while what the engine stores to is not there, and for good once it cannot tell
    /// any more what is durable.
    fn is_writable(&self) -> bool;

    /// Why writing is not possible, for operators; `None` while it is.
    fn trouble(&self) -> Option<String> {
        (!self.is_writable()).then(|| "its store is read-only until a restart".to_owned())
    }
}

/// Who asks for space to be given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// Whoever asks again and again: an engine may find that it has looked long enough for now.
    NowAndThen,
    /// Somebody who waits for it.
    Waiting,
}

/// How long uploads stay after their last commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lives {
    /// The least that any does.
    pub(crate) shortest: Duration,
    /// The most that any does.
    pub(crate) longest: Duration,
}

/// Uploads that may have expired.
#[derive(Clone, Debug)]
pub(crate) struct DuePage {
    /// The uploads.
    pub(crate) entries: Vec<(UploadId, UploadRecord)>,
    /// How many others stand between them, which have not.
    pub(crate) unread: u32,
    /// After which upload to go on; `None` when these were the last.
    pub(crate) last: Option<UploadId>,
}

/// Blobs that an owner has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OwnedPage {
    /// The blobs.
    pub(crate) blobs: Vec<BlobId>,
    /// Behind which blob to go on; `None` when all were looked at.
    pub(crate) last: Option<BlobId>,
}

/// A claim on an upload, and its record at that moment.
pub(crate) struct Claim {
    /// The claim.
    pub(crate) writer: Box<dyn UploadWriter>,
    /// The record.
    pub(crate) record: UploadRecord,
}

/// A claim on an upload. Every method fails with `Stale`, and changes nothing, once a newer claim was made.
///
/// A call that was begun ends by itself: dropping its future gives up the answer, not the work.
pub(crate) trait UploadWriter: Send + Sync {
    /// Takes room for `bytes` bytes in all, so that an upload finds out before it begins, and not half-way, that there is
    /// none: then it fails with `Full`. To be called again by each claim. An engine may let it be where it cannot or need
    /// not.
    fn reserve(&mut self, bytes: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Gives back room beyond the first `kept` bytes, which are those that were committed.
    fn give_back(&mut self, kept: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Tells what is to come, before the first byte of a new upload does. Without it an engine expects the largest blob.
    fn expect(&mut self, _plan: Plan) {}

    /// Bytes after which a long request commits on its way: what a crash costs at most.
    fn commit_bytes(&self) -> u64 {
        COMMIT_BYTES
    }

    /// Writes `data` at byte `at`. Not durable until [`Self::commit`]; a failure may leave part of it.
    fn write(&mut self, at: u64, data: Vec<Bytes>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads back `bytes` bytes at byte `at`, which were committed.
    fn read(&mut self, at: u64, bytes: u64) -> BoxFuture<'_, Result<Vec<u8>, StoreError>>;

    /// Makes everything written durable, then the record together with `outboard`.
    ///
    /// Promise: on `Ok` both survive kill -9 and a power cut. Fails with `Quota` when the record holds more than the one
    /// before, and its owner then more than its `quota_bytes`. On `Err` the record is what it was, or, when the failure
    /// hid the outcome, the new one; never a mixture.
    fn commit(&mut self, record: UploadRecord, outboard: OutboardPart) -> BoxFuture<'_, Result<(), StoreError>>;

    /// As [`Self::commit`], and makes the bytes the blob `blob`, in one step: those written and behind them `tail`. When
    /// the blob is there already, its owner is added to it and the bytes are dropped. Without a `record` the upload
    /// itself leaves none. An owner's quota counts a blob once, in place of what its upload held.
    ///
    /// Bytes that come with this call need not be written before an engine knows what they will be: a small blob given
    /// whole as `tail` is the cheapest.
    fn complete(
        &mut self,
        blob: NewBlob,
        record: Option<UploadRecord>,
        tail: Vec<Bytes>,
        outboard: OutboardPart,
    ) -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What is known of an upload that begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bytes it will have at most.
    pub(crate) bytes_max: u64,
    /// Whether all of it will be read back, for a concatenation, instead of becoming a blob.
    pub(crate) is_part: bool,
}

/// Consecutive chaining values of an upload's outboard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutboardPart {
    /// The chunk group the first value belongs to.
    pub(crate) first_group: u64,
    /// The values, 32 bytes each.
    pub(crate) cvs: Vec<u8>,
}

/// A blob that went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Purge {
    /// Its place among all that went; each is higher than the one before.
    pub(crate) number: u64,
    /// Which blob.
    pub(crate) blob: BlobId,
    /// When it went.
    pub(crate) at: Timestamp,
}

/// A piece of the log of what went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Purges {
    /// The lowest number that is still remembered; that of the next purge when none is.
    pub(crate) oldest: u64,
    /// The number that the next purge will have.
    pub(crate) next: u64,
    /// The purges, by number.
    pub(crate) entries: Vec<Purge>,
}

/// What an upload became.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewBlob {
    /// The hash of its bytes.
    pub(crate) id: BlobId,
    /// How many they are.
    pub(crate) blob_bytes: u64,
    /// Who uploaded it.
    pub(crate) owner: OwnerTag,
    /// Bytes that this owner may hold.
    pub(crate) quota_bytes: u64,
    /// When.
    pub(crate) stored_at: Timestamp,
    /// Whether somebody waits to be told of it: then it is among [`BlobStore::events`] from the same commit on.
    #[serde(default)]
    pub(crate) announced: bool,
}

/// An upload that became a blob, to be told to whoever waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    /// The upload; each becomes a blob once.
    pub(crate) upload: UploadId,
    /// When it did.
    pub(crate) at: Timestamp,
    /// The blob.
    pub(crate) blob: BlobId,
    /// Its size.
    pub(crate) blob_bytes: u64,
    /// Who uploaded it.
    pub(crate) owner: OwnerTag,
}

/// Bytes of a blob or an outboard, in pieces of bounded size; their length is known beforehand, so a stream that ends
/// early is an error and says so.
pub(crate) type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// An open blob.
pub(crate) trait BlobReader: Send + Sync {
    /// Its size in bytes.
    fn blob_bytes(&self) -> u64;

    /// The bytes of `range`, which must lie within it.
    fn read(&self, range: ByteRange) -> ByteStream;

    /// Its outboard: `waxwing_protocol::blob::outboard_bytes` of its size.
    fn outboard(&self) -> ByteStream;
}
