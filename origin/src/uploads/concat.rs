//! Concatenation: one upload made of several that came side by side.
//!
//! Several connections fill a line that one cannot. Each brings a *partial* upload, which never becomes a blob of its
//! own; a *final* upload names them in order, and its bytes are theirs, copied through the ordinary way in.
//!
//! Promise: asking again for the same final is the same upload. Its id follows from its parts, so that a client whose
//! answer was lost, or whose server died amid the copy, asks again and gets what is there or has the copy go on.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use waxwing_protocol::blob::HasherState;
use waxwing_protocol::{Timestamp, UploadId};

use super::appender::Appender;
use super::request::RequestClock;
use super::{Allowance, Content, ContentError, Progress, UploadError, Uploads};
use crate::store::{BlobStore, Claim, Concat, Plan, UploadRecord, UploadState, UploadWriter};

/// Parts of a final upload at most.
pub(crate) const PARTS_MAX: usize = 1024;

/// Bytes copied from a part at once.
const COPY_BYTES: u64 = 256 * 1024;

/// How long a part stays after a final upload was made of it: another may name it too, but few do.
const USED_PART_EXPIRY: std::time::Duration = std::time::Duration::from_secs(60 * 60);

/// A final upload to be made.
#[derive(Clone, Debug)]
pub(crate) struct NewFinal {
    /// Who asks, and what they may.
    pub(crate) allowance: Allowance,
    /// The parts in order; one may stand there more than once.
    pub(crate) parts: Vec<UploadId>,
    /// How they were named.
    pub(crate) named: String,
    /// What its creator sent along.
    pub(crate) metadata: Option<String>,
}

impl NewFinal {
    /// The id of the final upload of these parts: nobody can guess it who does not know theirs.
    fn id(&self) -> UploadId {
        let mut hasher =
            blake3::Hasher::new_derive_key("waxwing origin: id of a final upload, from its owner and parts");
        hasher.update(self.allowance.owner.as_bytes());
        for part in &self.parts {
            hasher.update(part.as_bytes());
        }
        let mut id = [0; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        UploadId::from_bytes(id)
    }
}

impl Uploads {
    /// Makes an upload of parts, or goes on making it.
    pub(crate) async fn concatenate(&self, new: NewFinal, now: Timestamp) -> Result<Progress, UploadError> {
        let uploads = self.clone();
        self.run(Box::pin(async move { uploads.concatenate_now(new, now).await })).await
    }

    async fn concatenate_now(&self, new: NewFinal, now: Timestamp) -> Result<Progress, UploadError> {
        let (id, store) = (new.id(), &self.0.store);
        let turn = self.0.turns.take(id).await;
        let known = store.upload(id).await?.filter(|record| record.expires > now);
        if let Some(record @ UploadRecord { state: UploadState::Complete { .. }, .. }) = known {
            return Ok(Progress::of(id, record));
        }
        let parts = self.parts(&new, now).await?;
        let length = parts.iter().map(|(_, bytes)| bytes).sum();
        let limit = self.blob_bytes_max(&new.allowance);
        if length > limit {
            return Err(UploadError::TooLarge { limit });
        }
        let expiry = self.0.limits.upload_expiry;
        let clock = RequestClock::start(now);
        let appender = match store.claim(id).await? {
            Some(claim) => Appender::resume(id, claim, clock, expiry).await?,
            None => {
                let record = UploadRecord {
                    owner: new.allowance.owner,
                    quota_bytes: new.allowance.quota_bytes,
                    length: Some(length),
                    offset: 0,
                    epoch: 0,
                    created: now,
                    expires: now.plus(expiry),
                    acknowledged: true,
                    expected: None,
                    metadata: new.metadata,
                    concat: Some(Concat::Final { named: new.named }),
                    digest: None,
                    state: UploadState::Receiving { hash: HasherState::default() },
                };
                let mut writer = store.begin(id).await?;
                writer.expect(Plan { bytes_max: length, is_part: false });
                let mut appender = Appender::begin(id, Claim { writer, record }, clock, expiry);
                appender.commit().await?;
                appender
            }
        };
        let progress = if length == 0 {
            self.complete(appender).await?
        } else {
            let content = copy(Arc::clone(store), parts.clone(), appender.written());
            // Nobody sends anything here: what breaks off is our own reading, which has told why.
            self.receive(appender, content, false, &turn, limit).await.map_err(|error| match error {
                UploadError::Cut => UploadError::Aborted,
                other => other,
            })?
        };
        for (part, _) in parts {
            if let Err(error) = self.use_up(part, now).await {
                tracing::warn!(upload.id = %part, error = %error, "a part that was used up stays until it expires");
            }
        }
        Ok(progress)
    }

    /// The parts, each all there and of the same owner, and how many bytes each has.
    async fn parts(&self, new: &NewFinal, now: Timestamp) -> Result<Vec<(UploadId, u64)>, UploadError> {
        let mut parts = Vec::with_capacity(new.parts.len());
        for &part in &new.parts {
            let record = self.0.store.upload(part).await?;
            let record = record.filter(|record| {
                record.owner == new.allowance.owner && record.expires > now && record.concat == Some(Concat::Partial)
            });
            let record = record.ok_or(UploadError::PartNotFound { part })?;
            if record.length != Some(record.offset) {
                return Err(UploadError::PartUnfinished { part });
            }
            parts.push((part, record.offset));
        }
        Ok(parts)
    }

    /// Lets a part expire soon.
    async fn use_up(&self, part: UploadId, now: Timestamp) -> Result<(), UploadError> {
        let _turn = self.0.turns.take(part).await;
        let Some(Claim { mut writer, mut record }) = self.0.store.claim(part).await? else { return Ok(()) };
        record.expires = record.expires.min(now.plus(USED_PART_EXPIRY));
        Ok(writer.commit(record, Default::default()).await?)
    }
}

/// Where a copy is.
struct Copy {
    store: Arc<dyn BlobStore>,
    parts: std::vec::IntoIter<(UploadId, u64)>,
    /// Bytes to pass over before the next that is wanted.
    passed: u64,
    /// The part being read, how far, and its bytes.
    reading: Option<(Box<dyn UploadWriter>, u64, u64)>,
}

/// The bytes of `parts` one after the other, from byte `from` of the whole.
fn copy(store: Arc<dyn BlobStore>, parts: Vec<(UploadId, u64)>, from: u64) -> Content {
    let copy = Copy { store, parts: parts.into_iter(), passed: from, reading: None };
    stream::unfold(Some(copy), |copy| async {
        let mut copy = copy?;
        match copy.next().await {
            Ok(Some(piece)) => Some((Ok(piece), Some(copy))),
            Ok(None) => None,
            Err(error) => {
                tracing::error!(error = %error, "a part of an upload was not read");
                Some((Err(ContentError), None))
            }
        }
    })
    .boxed()
}

impl Copy {
    async fn next(&mut self) -> Result<Option<Bytes>, UploadError> {
        loop {
            if let Some((writer, at, bytes)) = &mut self.reading
                && *at < *bytes
            {
                let piece = writer.read(*at, COPY_BYTES.min(*bytes - *at)).await?;
                *at += piece.len() as u64;
                return Ok(Some(piece.into()));
            }
            let Some((part, bytes)) = self.parts.next() else { return Ok(None) };
            let skip = self.passed.min(bytes);
            self.passed -= skip;
            if skip < bytes {
                let claim = self.store.claim(part).await?.ok_or(UploadError::PartNotFound { part })?;
                self.reading = Some((claim.writer, skip, bytes));
            }
        }
    }
}
