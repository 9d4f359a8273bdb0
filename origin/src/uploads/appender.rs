//! One claim on an upload at work: bytes in, hash and outboard along, commits on the way.
//!
//! A long request commits as it goes, so that a crash costs the client seconds and not the whole; and the next batch is
//! taken from the network while the last is hashed and written.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use waxwing_protocol::blob::{BlobHasher, CV_BYTES, GROUP_BYTES, HasherState};
use waxwing_protocol::{BlobId, UploadId};

use super::digest::{Checker, Verdict};
use super::intake::{Batch, Intake, Pause};
use super::whole::WholeDigest;
use super::{Allowance, Concat, ContentDigest, Progress, RequestClock, UploadError};
use crate::metrics::handles;
use crate::store::{
    Claim, DigestProgress, NewBlob, OutboardPart, StoreError, StoreErrorKind, UploadRecord, UploadState, UploadWriter,
};

/// Time after which a slow request commits on its way.
const COMMIT_AGE_MAX: Duration = Duration::from_secs(5);

/// Batches up to this size are hashed where they are; the way to another thread and back would take as long.
const HASH_INLINE_BYTES: u64 = 128 * 1024;

/// Bytes that are read back at once for a digest that covers them.
const READ_BYTES: u64 = 256 * 1024;

/// A claim on an upload, and where it stands.
pub(super) struct Appender {
    id: UploadId,
    writer: Box<dyn UploadWriter>,
    record: UploadRecord,
    /// On the heap: it is large, and whatever awaits an appender holds it more than once.
    hasher: Box<BlobHasher>,
    /// Chaining values that no commit has carried yet.
    outboard: OutboardPart,
    /// Bytes taken in, committed or not; those of `last` are not written yet.
    written: u64,
    /// The last batch, when nothing before it waits for a commit: the store gets it together with the end, so that it
    /// can choose a place knowing the whole.
    last: Option<Batch>,
    committed_at: Instant,
    clock: RequestClock,
    /// How long the upload lives after a commit.
    expiry: Duration,
    /// Checks the request's bytes: until they are found good, none of them is committed.
    checker: Option<Checker>,
    /// The digest of the whole upload, when one was named or wanted.
    whole: Option<WholeDigest>,
    /// False for a blob in one request: it is all or nothing, and leaves no record of an upload.
    resumable: bool,
}

impl Appender {
    /// At the start of a new upload.
    pub(super) fn begin(id: UploadId, claim: Claim, clock: RequestClock, expiry: Duration) -> Self {
        Self {
            id,
            whole: claim.record.digest.as_ref().and_then(WholeDigest::resume),
            writer: claim.writer,
            record: claim.record,
            hasher: Box::default(),
            outboard: OutboardPart::default(),
            written: 0,
            last: None,
            committed_at: Instant::now(),
            clock,
            expiry,
            checker: None,
            resumable: true,
        }
    }

    /// At the start of a blob that comes in one request.
    pub(super) fn whole(
        id: UploadId,
        writer: Box<dyn UploadWriter>,
        allowance: &Allowance,
        expected: Option<BlobId>,
        clock: RequestClock,
    ) -> Self {
        let record = UploadRecord {
            owner: allowance.owner,
            quota_bytes: allowance.quota_bytes,
            length: None,
            offset: 0,
            epoch: 0,
            created: clock.now(),
            expires: clock.now(),
            acknowledged: true,
            expected,
            metadata: None,
            concat: None,
            digest: None,
            state: UploadState::Receiving { hash: HasherState::default() },
        };
        Self { resumable: false, ..Self::begin(id, Claim { writer, record }, clock, Duration::ZERO) }
    }

    /// Where an upload was left. Reads back less than one chunk group, to bring the hash to the offset.
    pub(super) async fn resume(
        id: UploadId,
        claim: Claim,
        clock: RequestClock,
        expiry: Duration,
    ) -> Result<Self, UploadError> {
        let mut appender = Self::begin(id, claim, clock, expiry);
        appender.written = appender.record.offset;
        if let UploadState::Receiving { hash } = &appender.record.state {
            let hashed = hash.offset();
            appender.hasher = Box::new(BlobHasher::resume(hash.clone()));
            appender.outboard.first_group = hashed / GROUP_BYTES;
            let tail = appender.writer.read(hashed, appender.written - hashed).await?;
            appender.hasher.update(&tail, |_| ());
        }
        Ok(appender)
    }

    /// The same, taking bytes only together with a digest that proves them.
    pub(super) fn checked_by(self, digest: Option<ContentDigest>) -> Self {
        Self { checker: digest.map(Checker::new), ..self }
    }

    /// Lets the request's digest cover `bytes` held from byte `from` on, which the request brings once more: what is held
    /// must be what it brings.
    pub(super) async fn cover_held(&mut self, from: u64, bytes: u64) -> Result<(), UploadError> {
        let Some(mut checker) = self.checker.take() else { return Ok(()) };
        let (mut at, end) = (from, from + bytes);
        while at < end {
            let piece = self.writer.read(at, READ_BYTES.min(end - at)).await?;
            at += piece.len() as u64;
            checker.update(&piece);
        }
        self.checker = Some(checker);
        Ok(())
    }

    /// Whether what came since the last commit counts only when the request's digest is found right.
    pub(super) const fn is_checked(&self) -> bool {
        self.checker.is_some()
    }

    /// Checks what the request brought, at its end.
    pub(super) fn check(&mut self) -> Result<(), UploadError> {
        match self.checker.take().map(Checker::verdict) {
            None | Some(Verdict::Match) => Ok(()),
            Some(Verdict::Mismatch) => Err(UploadError::DigestMismatch),
            Some(Verdict::Missing) => Err(UploadError::DigestMissing),
        }
    }

    /// Which upload this is.
    pub(super) const fn id(&self) -> UploadId {
        self.id
    }

    /// Bytes taken in, committed or not.
    pub(super) const fn written(&self) -> u64 {
        self.written
    }

    /// Bytes there will be, when known.
    pub(super) const fn length(&self) -> Option<u64> {
        self.record.length
    }

    /// A part whose length was deferred has all its bytes.
    pub(super) fn ends_here(&mut self) {
        self.record.length = Some(self.written);
    }

    /// Whether it is a part, which never becomes a blob.
    pub(super) fn is_partial(&self) -> bool {
        self.record.concat == Some(Concat::Partial)
    }

    /// Where the upload stands by its last commit.
    pub(super) fn progress(&self) -> Progress {
        Progress::of(self.id, self.record.clone())
    }

    /// Takes room for an upload of `length` bytes, if it is known, before any of them is taken in.
    pub(super) async fn reserve(&mut self, length: Option<u64>) -> Result<(), UploadError> {
        match length {
            Some(length) if length > self.written => Ok(self.writer.reserve(length).await?),
            _ => Ok(()),
        }
    }

    /// Gives back the room that was taken for bytes that did not come: who knows whether they ever will.
    pub(super) async fn give_back(&mut self) {
        match self.writer.give_back(self.record.offset).await {
            Ok(()) => {}
            // A newer request has the upload, and its room.
            Err(error) if error.kind() == StoreErrorKind::Stale => {}
            Err(error) => {
                tracing::warn!(upload.id = %self.id, error = %error, "the room of an upload was not given back");
            }
        }
    }

    /// Takes in everything that `intake` gives, committing on the way, and tells how it ended. What came since the last
    /// commit waits for the next, or for [`Self::complete`].
    pub(super) async fn take_in(&mut self, mut intake: Intake<'_>) -> Result<Pause, UploadError> {
        let mut batch = intake.gather(false).await;
        loop {
            let pause = batch.pause;
            if pause.is_last() {
                if pause != Pause::Over {
                    self.absorb(batch).await?;
                }
                return Ok(pause);
            }
            let uncommitted = pause == Pause::Full;
            let gather = async { Ok(intake.gather(uncommitted).await) };
            ((), batch) = tokio::try_join!(self.absorb(batch), gather)?;
        }
    }

    /// Writes and hashes `batch`, side by side, and commits when it is time. The last one may only be hashed: it is
    /// written together with the commit.
    async fn absorb(&mut self, batch: Batch) -> Result<(), UploadError> {
        let pause = batch.pause;
        if batch.bytes > 0 {
            let hashing =
                hash(self.hasher.clone(), self.checker.clone(), self.whole.clone(), batch.chunks.clone(), batch.bytes);
            let is_end = pause.is_last() || self.record.length == Some(self.written + batch.bytes);
            let hold = is_end && self.written == self.record.offset;
            let (writer, at, chunks) = (&mut self.writer, self.written, batch.chunks.clone());
            let writing = async move { if hold { Ok(()) } else { writer.write(at, chunks).await } };
            let (hashed, written) = tokio::join!(hashing, writing);
            if let Err(error) = written {
                return Err(self.keep_prefix(error).await);
            }
            let (hasher, checker, whole, cvs) = hashed?;
            self.whole = whole;
            self.hasher = hasher;
            self.checker = checker;
            self.outboard.cvs.extend(cvs);
            self.written += batch.bytes;
            self.last = hold.then_some(batch);
        }
        let uncommitted = self.written - self.record.offset;
        let due = pause == Pause::Stall
            || uncommitted >= self.writer.commit_bytes()
            || self.committed_at.elapsed() >= COMMIT_AGE_MAX;
        // All bytes and no blob is a state that nobody should see: the last bytes are committed by completing.
        if due && !self.is_checked() && !pause.is_last() && uncommitted > 0 && self.record.length != Some(self.written)
        {
            self.commit().await?;
        }
        Ok(())
    }

    /// The disk is full: what was written before still counts.
    async fn keep_prefix(&mut self, error: StoreError) -> UploadError {
        if error.kind() == StoreErrorKind::Full
            && !self.is_checked()
            && self.written > self.record.offset
            && let Err(second) = self.commit().await
        {
            tracing::warn!(error = %second, "the prefix of an upload was not kept on a full disk");
        }
        error.into()
    }

    /// Makes everything taken in durable, and the record of it.
    pub(super) async fn commit(&mut self) -> Result<(), UploadError> {
        if !self.resumable {
            return Ok(());
        }
        if let Some(last) = &self.last {
            self.writer.write(self.record.offset, last.chunks.clone()).await?;
            self.last = None;
        }
        let mut record = self.record.clone();
        record.offset = self.written;
        record.expires = self.clock.now().plus(self.expiry);
        if let (Some(stored), Some(whole)) = (&mut record.digest, &self.whole) {
            stored.progress = whole.progress();
        }
        record.state = UploadState::Receiving { hash: self.hasher.state().clone() };
        let outboard = self.take_outboard();
        self.writer.commit(record.clone(), outboard).await?;
        self.record = record;
        self.committed_at = Instant::now();
        Ok(())
    }

    /// Makes everything taken in a blob, if it is the one expected; `announced` if somebody waits to be told.
    pub(super) async fn complete(&mut self, announced: bool) -> Result<BlobId, UploadError> {
        let cvs = &mut self.outboard.cvs;
        let id = std::mem::take(&mut self.hasher).finish(|cv| cvs.extend_from_slice(cv));
        if let Some(expected) = self.record.expected.filter(|expected| *expected != id) {
            return Err(UploadError::BlobMismatch { expected, actual: id });
        }
        let mut digest = self.record.digest.clone();
        if let Some(stored) = &mut digest {
            let unreadable = || StoreError::new(StoreErrorKind::Corrupt, "going on with an upload's digest");
            let whole = self.whole.take().ok_or_else(unreadable)?;
            let value = whole.finish();
            if stored.expected.as_ref().is_some_and(|expected| *expected != value) {
                return Err(UploadError::WholeDigestMismatch);
            }
            stored.progress = DigestProgress::Done { value };
        }
        let mut outboard = self.take_outboard();
        if self.written <= GROUP_BYTES {
            // Its id checks its only group.
            outboard.cvs.clear();
        }
        let now = self.clock.now();
        let mut record = self.record.clone();
        record.offset = self.written;
        record.length = Some(self.written);
        record.digest = digest;
        record.expires = now.plus(self.expiry);
        record.state = UploadState::Complete { blob: id };
        let UploadRecord { owner, quota_bytes, .. } = record;
        let blob = NewBlob { id, blob_bytes: self.written, owner, quota_bytes, stored_at: now, announced };
        // The batch is kept meanwhile, since its memory counts.
        let last = self.last.take();
        let tail = last.as_ref().map_or_else(Vec::new, |last| last.chunks.clone());
        self.writer.complete(blob, self.resumable.then(|| record.clone()), tail, outboard).await?;
        handles().completed.increment(1);
        self.record = record;
        Ok(id)
    }

    fn take_outboard(&mut self) -> OutboardPart {
        let part = std::mem::take(&mut self.outboard);
        self.outboard.first_group = part.first_group + (part.cvs.len() / CV_BYTES) as u64;
        part
    }
}

/// Hashes `chunks`, and gives the chaining values of the chunk groups they complete.
async fn hash(
    mut hasher: Box<BlobHasher>,
    mut checker: Option<Checker>,
    mut whole: Option<WholeDigest>,
    chunks: Vec<Bytes>,
    bytes: u64,
) -> Result<(Box<BlobHasher>, Option<Checker>, Option<WholeDigest>, Vec<u8>), UploadError> {
    let work = move || {
        let mut cvs = Vec::new();
        for chunk in &chunks {
            hasher.update(chunk, |cv| cvs.extend_from_slice(cv));
            if let Some(checker) = &mut checker {
                checker.update(chunk);
            }
            if let Some(whole) = &mut whole {
                whole.update(chunk);
            }
        }
        (hasher, checker, whole, cvs)
    };
    if bytes <= HASH_INLINE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| UploadError::Aborted)
}
