//! The upload engine: what happens to an upload, whatever dialect asks for it.
//!
//! A phone uploads through tunnels, network changes and dead batteries. Without an engine that is strict about what it
//! has acknowledged, a resume would skip bytes nobody has, or two connections of the same phone would write over one
//! another.
//!
//! Promises:
//! - An offset that was told is durable, bytes and record; it never decreases.
//! - A request that is cut keeps the bytes that came.
//! - One request at a time has an upload. A newer one takes over: the older stops reading, what it received is
//!   committed, and the newer goes on from there.
//! - Completing is idempotent: asked again, it gives the same answer.
//!
//! HTTP is the business of the dialects above, durability of the stores below.

mod appender;
mod concat;
mod content;
mod digest;
mod error;
mod idle;
mod intake;
mod pace;
mod request;
pub(crate) mod sweeper;
mod turns;
mod whole;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use waxwing_protocol::blob::HasherState;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use self::appender::Appender;
pub(crate) use self::concat::{NewFinal, PARTS_MAX};
pub(crate) use self::content::at_most;
pub(crate) use self::digest::{ContentDigest, Digest, DigestAlgorithm, DigestToCome};
pub(crate) use self::error::UploadError;
use self::intake::{BUFFER_BYTES_MAX, BUFFER_UNIT_BYTES, Intake, Pause};
pub(crate) use self::intake::{Content, ContentError};
use self::pace::Patience;
use self::request::RequestClock;
pub(crate) use self::request::{Allowance, Append, At, NewContent, NewUpload, Progress};
use self::turns::{Turn, Turns};
use crate::config::Config;
use crate::metrics::handles;
pub(crate) use crate::store::Concat;
use crate::store::{
    BlobStore, COMMIT_BYTES, Claim, NewBlob, OutboardPart, Plan, UploadRecord, UploadState, UploadWriter,
};

/// Bytes of a request that counts only with its digest at most. They are on the disk without being acknowledged, so a
/// client could fill it with what it never lets count.
const CHECKED_BYTES_MAX: u64 = 1 << 30;

/// All uploads of an origin. Clones share them.
#[derive(Clone)]
pub(crate) struct Uploads(Arc<Inner>);

struct Inner {
    store: Arc<dyn BlobStore>,
    limits: Limits,
    turns: Turns,
    /// Memory for bytes on their way to the store, shared by all requests, in units of [`BUFFER_UNIT_BYTES`].
    buffers: Arc<Semaphore>,
    /// Requests in progress; they outlive the connections they came on.
    tasks: TaskTracker,
    closing: CancellationToken,
}

/// What uploads are held to.
#[derive(Clone, Copy, Debug)]
struct Limits {
    blob_bytes_max: u64,
    upload_expiry: Duration,
    unacknowledged_expiry: Duration,
    patience: Patience,
    /// Whether somebody waits to be told of what became a blob.
    announces: bool,
}

impl Uploads {
    /// The uploads in `store`.
    pub(crate) fn new(store: Arc<dyn BlobStore>, config: &Config) -> Self {
        let closing = CancellationToken::new();
        Self(Arc::new(Inner {
            store,
            limits: Limits {
                blob_bytes_max: config.blob_bytes_max,
                upload_expiry: config.upload_expiry(),
                unacknowledged_expiry: config.unacknowledged_expiry(),
                patience: Patience {
                    idle_timeout: config.idle_timeout(),
                    bytes_per_s_min: config.slow_bytes_per_s,
                    window: config.slow_window(),
                },
                announces: config.webhook.is_some(),
            },
            turns: Turns::new(closing.clone()),
            buffers: Arc::new(Semaphore::new(BUFFER_BYTES_MAX / BUFFER_UNIT_BYTES)),
            tasks: TaskTracker::new(),
            closing,
        }))
    }

    /// Bytes of the largest blob that may come.
    pub(crate) fn blob_bytes_max(&self, allowance: &Allowance) -> u64 {
        self.0.limits.blob_bytes_max.min(allowance.blob_bytes_max)
    }

    /// Creates an upload, with the first of its bytes when there are any.
    pub(crate) async fn create(
        &self,
        new: NewUpload,
        content: Option<Content>,
        now: Timestamp,
    ) -> Result<Progress, UploadError> {
        let uploads = self.clone();
        self.run(Box::pin(async move { uploads.create_now(new, content, now).await })).await
    }

    /// Appends `content` to an upload.
    pub(crate) async fn append(
        &self,
        append: Append,
        content: Content,
        now: Timestamp,
    ) -> Result<Progress, UploadError> {
        let uploads = self.clone();
        self.run(Box::pin(async move { uploads.append_now(append, content, now).await })).await
    }

    /// Stores a blob in one request. There is no upload to resume: cut, nothing of it is kept.
    pub(crate) async fn put(&self, new: NewContent, content: Content, now: Timestamp) -> Result<BlobId, UploadError> {
        let uploads = self.clone();
        self.run(Box::pin(async move { uploads.put_now(new, content, now).await })).await
    }

    /// Where an upload stands. Stops a request that is appending to it, so that the offset told is one that the next
    /// request can go on from.
    pub(crate) async fn status(&self, owner: OwnerTag, id: UploadId, now: Timestamp) -> Result<Progress, UploadError> {
        if let Some(record) = self.final_record(owner, id).await? {
            // Nobody goes on from its offset but the copy, which asking must not disturb.
            return Ok(Progress::of(id, record));
        }
        let (_turn, Claim { mut writer, mut record }) = self.take_over(owner, id, now).await?;
        if !record.acknowledged && self.0.store.is_writable() {
            // Its creator knows where it is: from now on it lives as long as any.
            record.acknowledged = true;
            record.expires = now.plus(self.0.limits.upload_expiry);
            writer.commit(record.clone(), Default::default()).await?;
        }
        Ok(Progress::of(id, record))
    }

    /// Ends an upload. Bytes that became a blob stay, since messages may name it already; an unfinished upload leaves
    /// nothing.
    pub(crate) async fn terminate(&self, owner: OwnerTag, id: UploadId, now: Timestamp) -> Result<(), UploadError> {
        let (_turn, _claim) = self.take_over(owner, id, now).await?;
        Ok(self.0.store.remove(id).await?)
    }

    /// Takes no more bytes, and returns when what was received is committed.
    pub(crate) async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// Whether uploads can be written.
    pub(crate) fn is_ready(&self) -> bool {
        self.0.store.is_writable() && !self.0.closing.is_cancelled()
    }

    /// Why they cannot, for operators.
    pub(crate) fn trouble(&self) -> Option<String> {
        let closing = self.0.closing.is_cancelled().then(|| "it is stopping".to_owned());
        closing.or_else(|| self.0.store.trouble())
    }

    /// Runs a request to its end in a task of its own: when the client goes, its connection's task is dropped, and the
    /// bytes that came must still be committed. Boxed, since what waits for the task would keep as much room again.
    async fn run<T: Send + 'static>(
        &self,
        request: Pin<Box<dyn Future<Output = Result<T, UploadError>> + Send>>,
    ) -> Result<T, UploadError> {
        if self.0.closing.is_cancelled() {
            return Err(UploadError::Closing);
        }
        self.0.tasks.spawn(request).await.unwrap_or(Err(UploadError::Aborted))
    }

    async fn create_now(
        &self,
        new: NewUpload,
        content: Option<Content>,
        now: Timestamp,
    ) -> Result<Progress, UploadError> {
        let limit = self.blob_bytes_max(&new.allowance);
        if new.length.is_some_and(|length| length > limit) {
            return Err(UploadError::TooLarge { limit });
        }
        let owned = if content.is_none() { self.owned_already(&new).await? } else { None };
        if owned.is_none() {
            self.refuse_early(&new.allowance, new.length.unwrap_or(0)).await?;
        }
        let id = new_upload_id()?;
        let record = UploadRecord {
            owner: new.allowance.owner,
            quota_bytes: new.allowance.quota_bytes,
            length: new.length,
            offset: 0,
            epoch: 0,
            created: now,
            expires: now.plus(self.0.limits.unacknowledged_expiry),
            acknowledged: false,
            expected: new.expected,
            metadata: new.metadata,
            concat: new.partial.then_some(Concat::Partial),
            digest: new.digest,
            state: UploadState::Receiving { hash: HasherState::default() },
        };
        let turn = self.0.turns.take(id).await;
        let mut writer = self.0.store.begin(id).await?;
        writer.expect(Plan { bytes_max: new.length.unwrap_or(limit), is_part: new.partial });
        if let Some(blob_bytes) = owned {
            let Limits { upload_expiry, announces, .. } = self.0.limits;
            return known(id, &mut *writer, record, blob_bytes, now.plus(upload_expiry), announces).await;
        }
        let clock = RequestClock::start(now);
        let expiry = self.0.limits.unacknowledged_expiry;
        let mut appender = Appender::begin(id, Claim { writer, record }, clock, expiry).checked_by(new.content_digest);
        let checked = appender.is_checked();
        match content {
            Some(content) => {
                let received = self.receive(appender, content, new.ends, &turn, limit).await;
                // Whoever asked was told no URL, and no record names what was written.
                if matches!(received, Err(UploadError::TooLarge { .. })) || (checked && received.is_err()) {
                    self.discard(id).await;
                }
                received
            }
            None if (new.length == Some(0) && !new.partial) || (new.length.is_none() && new.ends) => {
                self.complete(appender).await
            }
            None => {
                appender.commit().await?;
                Ok(appender.progress())
            }
        }
    }

    async fn append_now(&self, append: Append, content: Content, now: Timestamp) -> Result<Progress, UploadError> {
        let Append { id, allowance: Allowance { owner, .. }, at, .. } = append;
        if self.final_record(owner, id).await?.is_some() {
            return Err(UploadError::MadeOfParts);
        }
        let (turn, mut claim) = self.take_over(owner, id, now).await?;
        let record = &mut claim.record;
        let offset = record.offset;
        let known = match at {
            At::Byte(first) => offset.checked_sub(first),
            At::Offset(claimed) => (claimed == offset).then_some(0),
        };
        let Some(known) = known else {
            return Err(UploadError::OffsetMismatch { claimed: at.first(), stored: offset });
        };
        if let UploadState::Complete { .. } = record.state {
            if let At::Byte(_) = at {
                return Ok(Progress::of(id, claim.record));
            }
            // The last request repeated without its bytes: it gets the answer it may have missed.
            let limits = &self.0.limits;
            let mut intake = Intake::new(content, turn.stop(), limits.patience, &self.0.buffers, 0);
            return match intake.gather(false).await.pause {
                Pause::End => Ok(Progress::of(id, claim.record)),
                _ => Err(UploadError::AlreadyComplete),
            };
        }
        let content_bytes = append.content_bytes.map(|bytes| bytes.saturating_sub(known));
        let content = if known > 0 { content::after(content, known) } else { content };
        let limit = self.blob_bytes_max(&append.allowance);
        declare(&mut record.length, append.length, |stored| UploadError::LengthConflict { stored })?;
        declare(&mut record.expected, append.expected, |stored| UploadError::ExpectedConflict { stored })?;
        match record.length {
            Some(length) if length < offset => return Err(UploadError::LengthConflict { stored: offset }),
            Some(length) if length > limit => return Err(UploadError::TooLarge { limit }),
            _ => {}
        }
        let room = record.length.unwrap_or(limit).saturating_sub(offset);
        if content_bytes.is_some_and(|bytes| bytes > room) {
            return Err(UploadError::TooLarge { limit: record.length.unwrap_or(limit) });
        }
        if append.ends
            && let (Some(length), Some(bytes)) = (record.length, content_bytes)
            && offset + bytes != length
        {
            return Err(UploadError::LengthConflict { stored: length });
        }
        record.acknowledged = true;
        record.quota_bytes = append.allowance.quota_bytes;
        let clock = RequestClock::start(now);
        let appender = Appender::resume(id, claim, clock, self.0.limits.upload_expiry).await?;
        let mut appender = appender.checked_by(append.content_digest);
        if appender.is_checked() && known > 0 {
            let again = append.content_bytes.map_or(known, |bytes| bytes.min(known));
            if again > CHECKED_BYTES_MAX {
                return Err(UploadError::TooLarge { limit: CHECKED_BYTES_MAX });
            }
            appender.cover_held(at.first(), again).await?;
        }
        self.receive(appender, content, append.ends, &turn, limit).await
    }

    async fn put_now(&self, new: NewContent, content: Content, now: Timestamp) -> Result<BlobId, UploadError> {
        let limit = self.blob_bytes_max(&new.allowance);
        if new.content_bytes.is_some_and(|bytes| bytes > limit) {
            return Err(UploadError::TooLarge { limit });
        }
        self.refuse_early(&new.allowance, new.content_bytes.unwrap_or(0)).await?;
        let id = new_upload_id()?;
        let mut writer = self.0.store.begin(id).await?;
        writer.expect(Plan { bytes_max: new.content_bytes.unwrap_or(limit), is_part: false });
        let mut appender = Appender::whole(id, writer, &new.allowance, new.expected, RequestClock::start(now))
            .checked_by(new.content_digest);
        let received = async {
            appender.reserve(new.content_bytes).await?;
            let stop = self.0.closing.clone();
            let intake = Intake::new(content, &stop, self.0.limits.patience, &self.0.buffers, limit);
            let pause = appender.take_in(intake).await?;
            match pause {
                // A connection that was torn down can look like an end of content: the announced length tells.
                Pause::End if new.content_bytes.is_none_or(|bytes| bytes == appender.written()) => {}
                Pause::Over => return Err(UploadError::TooLarge { limit }),
                pause => return Err(self.ended_early(pause)),
            }
            appender.check()?;
            appender.complete(self.0.limits.announces).await
        };
        let received = received.await;
        if received.is_err() {
            self.discard(id).await;
        }
        received
    }

    /// Refuses `bytes` that the owner's quota has no room for before they are sent. What is checked for good is the
    /// commit; for less than one it comes as soon.
    async fn refuse_early(&self, allowance: &Allowance, bytes: u64) -> Result<(), UploadError> {
        if bytes > COMMIT_BYTES && self.0.store.room(allowance.owner, allowance.quota_bytes).await? < bytes {
            handles().quota_refusals.increment(1);
            return Err(UploadError::QuotaExceeded);
        }
        Ok(())
    }

    /// The size of the blob that `new` declares itself to be, when its owner has that blob. Whether anybody else has it
    /// is not told.
    async fn owned_already(&self, new: &NewUpload) -> Result<Option<u64>, UploadError> {
        let (Some(expected), false, None) = (new.expected, new.partial, &new.digest) else { return Ok(None) };
        let blob_bytes = self.0.store.owned(expected, new.allowance.owner).await?;
        Ok(blob_bytes.filter(|bytes| new.length.is_none_or(|length| length == *bytes)))
    }

    /// Takes in `content` and commits what came, whichever way it ended. With `ends` the end of the content is that of
    /// the upload.
    async fn receive(
        &self,
        mut appender: Appender,
        content: Content,
        ends: bool,
        turn: &Turn,
        limit: u64,
    ) -> Result<Progress, UploadError> {
        let length = appender.length();
        let limit = length.unwrap_or(limit);
        let mut room = limit.saturating_sub(appender.written());
        if appender.is_checked() {
            room = room.min(CHECKED_BYTES_MAX);
        }
        let ceiling = appender.written().saturating_add(room);
        appender.reserve(length).await?;
        let intake = Intake::new(content, turn.stop(), self.0.limits.patience, &self.0.buffers, room);
        let pause = appender.take_in(intake).await?;
        if pause == Pause::Over {
            // What was sent contradicts what was announced: nothing beyond the last commit counts.
            return Err(UploadError::TooLarge { limit: ceiling });
        }
        if pause == Pause::End {
            appender.check()?;
        }
        let ended = ends && length.is_none() && pause == Pause::End;
        // A request whose digest was not checked because it was cut brings nothing.
        if !appender.is_checked() {
            if (ended || length == Some(appender.written())) && !appender.is_partial() {
                return self.complete(appender).await;
            }
            if ended {
                appender.ends_here();
            }
            appender.commit().await?;
        }
        if pause != Pause::End {
            appender.give_back().await;
        }
        match pause {
            Pause::End => Ok(appender.progress()),
            pause => Err(self.ended_early(pause)),
        }
    }

    /// What is told to a request that did not come to its end.
    fn ended_early(&self, pause: Pause) -> UploadError {
        match pause {
            Pause::Idle => {
                handles().given_up_idle.increment(1);
                UploadError::Idle
            }
            Pause::Slow => {
                handles().given_up_slow.increment(1);
                UploadError::Slow
            }
            Pause::Stopped if self.0.closing.is_cancelled() => UploadError::Closing,
            Pause::Stopped => UploadError::TakenOver,
            _ => UploadError::Cut,
        }
    }

    /// Makes an upload a blob; one that is not what its creator announced is gone.
    async fn complete(&self, mut appender: Appender) -> Result<Progress, UploadError> {
        match appender.complete(self.0.limits.announces).await {
            Ok(blob) => {
                tracing::debug!(blob.id = %blob, size_bytes = appender.written(), "stored blob {blob}");
                Ok(appender.progress())
            }
            Err(error) => {
                if let UploadError::BlobMismatch { .. } | UploadError::WholeDigestMismatch = error {
                    self.discard(appender.id()).await;
                }
                Err(error)
            }
        }
    }

    async fn discard(&self, id: UploadId) {
        if let Err(error) = self.0.store.remove(id).await {
            // Whatever stays is found by expiry or collection.
            tracing::warn!(error = %error, "an upload that came to nothing was not removed");
        }
    }

    /// The record of upload `id` of `owner` if it is made of parts. Asked first where nothing may disturb the copy.
    async fn final_record(&self, owner: OwnerTag, id: UploadId) -> Result<Option<UploadRecord>, UploadError> {
        let record = self.0.store.upload(id).await?.filter(|record| record.owner == owner);
        Ok(record.filter(|record| matches!(record.concat, Some(Concat::Final { .. }))))
    }

    /// The upload `id` of `owner`, taken from whoever is busy with it.
    async fn take_over(&self, owner: OwnerTag, id: UploadId, now: Timestamp) -> Result<(Turn, Claim), UploadError> {
        if self.0.closing.is_cancelled() {
            return Err(UploadError::Closing);
        }
        // Asked before anything is disturbed: a stranger who learned an id must not stop its owner.
        let record = self.0.store.upload(id).await?.filter(|record| record.owner == owner);
        let record = record.ok_or(UploadError::NotFound)?;
        if record.expires <= now && matches!(record.state, UploadState::Receiving { .. }) {
            return Err(UploadError::Expired);
        }
        let turn = self.0.turns.take(id).await;
        let claim = self.0.store.claim(id).await?.ok_or(UploadError::NotFound)?;
        Ok((turn, claim))
    }
}

/// Completes an upload that brings nothing new: its owner has the blob it is declared to be, of `blob_bytes`.
async fn known(
    id: UploadId,
    writer: &mut dyn UploadWriter,
    record: UploadRecord,
    blob_bytes: u64,
    expires: Timestamp,
    announced: bool,
) -> Result<Progress, UploadError> {
    let blob = record.expected.ok_or(UploadError::Aborted)?;
    let UploadRecord { owner, quota_bytes, created, .. } = record;
    let state = UploadState::Complete { blob };
    let record = UploadRecord { length: Some(blob_bytes), offset: blob_bytes, expires, state, ..record };
    let blob = NewBlob { id: blob, blob_bytes, owner, quota_bytes, stored_at: created, announced };
    writer.complete(blob, Some(record.clone()), Vec::new(), OutboardPart::default()).await?;
    Ok(Progress::of(id, record))
}

/// Enters what a client declares late, once: the same again is fine, anything else a conflict.
fn declare<T: Copy + PartialEq>(
    stored: &mut Option<T>,
    declared: Option<T>,
    conflict: impl FnOnce(T) -> UploadError,
) -> Result<(), UploadError> {
    match (*stored, declared) {
        (Some(stored), Some(declared)) if stored != declared => Err(conflict(stored)),
        (None, Some(_)) => {
            *stored = declared;
            Ok(())
        }
        _ => Ok(()),
    }
}

fn new_upload_id() -> Result<UploadId, UploadError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| UploadError::NoRandomness)?;
    Ok(UploadId::from_bytes(bytes))
}

#[cfg(test)]
mod tests;
