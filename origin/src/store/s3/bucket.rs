//! A bucket: the few requests the store makes of S3, with what their answers mean.
//!
//! Everything that changes is an object written only on the condition that it is still what was read
//! ([`Bucket::swap`]). A server that took such a write and whose answer was lost refuses the same write when it is sent
//! again; taken at its word, a change that was made would be called lost. So every such object carries a random number,
//! and a refusal is believed only when the object that is there is not the one that was sent.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_smithy_types::error::display::DisplayErrorContext;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use waxwing_protocol::Timestamp;
use waxwing_protocol::range::ByteRange;

use super::ledgers::Ledgers;
use super::retry::Attempts;
use crate::store::{StoreError, StoreErrorKind};

/// How often a whole answer is asked for again whose body broke off; the request itself is tried again by the client.
const BODY_ATTEMPTS: u32 = 3;

/// How often the end of a multipart upload is asked for when the answer does not tell whether it came.
const COMPLETE_ATTEMPTS: u32 = 6;

/// How long to wait before the second of these attempts; twice as long before each further one.
const COMPLETE_PAUSE: Duration = Duration::from_millis(200);

/// How often a conditional write is made that is refused although what is there is what it expects.
const REFUSALS_MAX: u32 = 8;

/// How long a body that is read may bring nothing.
pub(super) const READ_STALL: Duration = Duration::from_secs(30);

/// Keys in one page of a listing: what S3 gives at most.
pub(super) const PAGE: usize = 1000;

/// A bucket, or the part of it under a prefix.
#[derive(Debug)]
pub(super) struct Bucket {
    client: Client,
    name: String,
    prefix: String,
    /// What owners hold, as this process changes it.
    pub(super) ledgers: Ledgers,
}

/// An object and which version of it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) bytes: Bytes,
    pub(super) tag: Tag,
}

/// An entity tag: names one version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag(String);

impl Tag {
    /// Whether both name the same version. Some servers quote tags in one answer and not in another.
    fn is(&self, other: &Self) -> bool {
        self.0.trim_matches('"') == other.0.trim_matches('"')
    }
}

/// What must be there for a write to be made.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expect<'a> {
    Absent,
    Tag(&'a Tag),
}

/// What became of a conditional write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Swap {
    /// The object is what was written.
    Made(Tag),
    /// Somebody else was first.
    Lost,
}

/// An object in a listing.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    /// Its key, without the store's prefix.
    pub(super) key: String,
    /// When it was written, by the clock of the store.
    pub(super) modified: Timestamp,
    pub(super) bytes: u64,
}

/// A multipart upload in a listing.
#[derive(Clone, Debug)]
pub(super) struct ListedUpload {
    pub(super) key: String,
    pub(super) upload: String,
    pub(super) initiated: Timestamp,
}

/// A part of a multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartTag {
    pub(super) number: u16,
    pub(super) tag: String,
}

impl Bucket {
    pub(super) fn new(client: Client, name: String, prefix: String) -> Self {
        Self { client, name, prefix, ledgers: Ledgers::default() }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The object under `key`, which is small.
    pub(super) async fn get(&self, key: &str) -> Result<Option<Found>, StoreError> {
        let mut attempt = 1;
        loop {
            let sent = self.client.get_object().bucket(&self.name).key(self.key(key)).send().await;
            let found = match sent {
                Err(error) if is_absent(&error) => return Ok(None),
                found => found.map_err(|error| failed("reading an object", &error))?,
            };
            let tag = found.e_tag().map(|tag| Tag(tag.to_owned())).ok_or_else(|| no_tag("reading an object"))?;
            match tokio::time::timeout(READ_STALL, found.body.collect()).await {
                Ok(Ok(body)) => return Ok(Some(Found { bytes: body.into_bytes(), tag })),
                _ if attempt < BODY_ATTEMPTS => attempt += 1,
                Ok(Err(error)) => return Err(cut(error)),
                Err(error) => return Err(cut(error)),
            }
        }
    }

    /// The bytes of `range` of the object under `key`, as they come. What comes is checked only for its length, by
    /// whoever reads it.
    pub(super) async fn read(&self, key: &str, range: ByteRange) -> Result<ByteStream, StoreError> {
        let asked = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let sent = self.client.get_object().bucket(&self.name).key(self.key(key)).range(asked).send().await;
        let found = match sent {
            Err(error) if is_absent(&error) => {
                return Err(StoreError::new(StoreErrorKind::Corrupt, format!("reading {key}, which is not there")));
            }
            found => found.map_err(|error| failed("reading a range", &error))?,
        };
        // A server that ignores ranges would give other bytes than those asked for.
        let expected = format!("bytes {}-{}/", range.start, range.end.saturating_sub(1));
        match found.content_range() {
            Some(given) if given.starts_with(&expected) => Ok(found.body),
            _ => Err(StoreError::new(StoreErrorKind::Corrupt, format!("reading a range of {key}"))
                .because("the answer is another range")),
        }
    }

    /// The bytes of `range`, all at once.
    pub(super) async fn read_all(&self, key: &str, range: ByteRange) -> Result<Bytes, StoreError> {
        let too_many = || StoreError::new(StoreErrorKind::Corrupt, format!("reading a range of {key}"));
        let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).map_err(|_| too_many())?);
        self.read_each(key, range, |piece| bytes.extend_from_slice(piece)).await?;
        Ok(bytes.into())
    }

    /// Gives the bytes of `range` to `take` as they come. When the answer breaks off, what is missing is asked for again.
    pub(super) async fn read_each(
        &self,
        key: &str,
        mut range: ByteRange,
        mut take: impl FnMut(&[u8]) + Send,
    ) -> Result<(), StoreError> {
        let mut attempt = 1;
        while range.start < range.end {
            let mut body = self.read(key, range).await?;
            let broken = loop {
                match tokio::time::timeout(READ_STALL, body.next()).await {
                    Ok(Some(Ok(piece))) => {
                        let Some(left) = (range.end - range.start).checked_sub(piece.len() as u64) else {
                            return Err(StoreError::new(StoreErrorKind::Corrupt, format!("reading a range of {key}")));
                        };
                        range.start = range.end - left;
                        take(&piece);
                    }
                    Ok(None) => break cut("it ended before its end"),
                    Ok(Some(Err(error))) => break cut(error),
                    Err(error) => break cut(error),
                }
            };
            if range.start < range.end && attempt == BODY_ATTEMPTS {
                return Err(broken);
            }
            attempt += 1;
        }
        Ok(())
    }

    /// Whether there is an object under `key`, and of how many bytes.
    pub(super) async fn size(&self, key: &str) -> Result<Option<u64>, StoreError> {
        match self.client.head_object().bucket(&self.name).key(self.key(key)).send().await {
            Err(error) if is_absent(&error) => Ok(None),
            found => {
                let found = found.map_err(|error| failed("looking for an object", &error))?;
                Ok(Some(found.content_length().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0)))
            }
        }
    }

    /// Writes an object under a key that nothing else is ever written to.
    pub(super) async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.client.put_object().bucket(&self.name).key(self.key(key)).body(bytes.into());
        put.send().await.map_err(|error| failed("writing an object", &error))?;
        Ok(())
    }

    /// Writes an object if what is there is still what is expected. `bytes` must be unlike any others ever written
    /// there.
    pub(super) async fn swap(&self, key: &str, expect: Expect<'_>, bytes: Bytes) -> Result<Swap, StoreError> {
        let mut attempts = Attempts::at_most(REFUSALS_MAX, "writing an object");
        loop {
            let put = self.client.put_object().bucket(&self.name).key(self.key(key)).body(bytes.clone().into());
            let put = match expect {
                Expect::Absent => put.if_none_match("*"),
                Expect::Tag(tag) => put.if_match(&tag.0),
            };
            match put.send().await {
                Ok(put) => {
                    let tag = put.e_tag().map(|tag| Tag(tag.to_owned()));
                    return Ok(Swap::Made(tag.ok_or_else(|| no_tag("writing an object"))?));
                }
                // Absent: nothing is there to be what was expected.
                Err(error) if is_conflict(&error) || is_absent(&error) => {}
                Err(error) => return Err(failed("writing an object", &error)),
            }
            let found = self.get(key).await?;
            let as_expected = match (&found, expect) {
                (Some(found), _) if found.bytes == bytes => return Ok(Swap::Made(found.tag.clone())),
                (None, Expect::Absent) => true,
                (Some(found), Expect::Tag(tag)) => found.tag.is(tag),
                _ => false,
            };
            if !as_expected {
                return Ok(Swap::Lost);
            }
            // Nobody was first: S3 refuses a conditional write also when it met another that came to nothing (409).
            attempts.pause().await?;
        }
    }

    /// Removes an object; one that is not there is removed.
    pub(super) async fn remove(&self, key: &str) -> Result<(), StoreError> {
        match self.client.delete_object().bucket(&self.name).key(self.key(key)).send().await {
            Err(error) if !is_absent(&error) => Err(failed("removing an object", &error)),
            _ => Ok(()),
        }
    }

    /// Removes an object if it is still this version. False when it is another by now.
    pub(super) async fn remove_if(&self, key: &str, tag: &Tag) -> Result<bool, StoreError> {
        let remove = self.client.delete_object().bucket(&self.name).key(self.key(key)).if_match(&tag.0);
        match remove.send().await {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(true),
            Err(error) if is_conflict(&error) => Ok(false),
            Err(error) => Err(failed("removing an object", &error)),
        }
    }

    /// Objects whose key begins with `under`, in the order of their keys, at most `limit`, those after `after`.
    pub(super) async fn list(&self, under: &str, after: Option<&str>, limit: usize) -> Result<Vec<Listed>, StoreError> {
        let limit = i32::try_from(limit.min(PAGE)).expect("a page is small");
        let list = self.client.list_objects_v2().bucket(&self.name).prefix(self.key(under)).max_keys(limit);
        let list = list.set_start_after(after.map(|after| self.key(after)));
        let page = list.send().await.map_err(|error| failed("listing objects", &error))?;
        let entries = page.contents().iter().filter_map(|object| {
            Some(Listed {
                key: object.key()?.strip_prefix(&self.prefix)?.to_owned(),
                modified: time_of(object.last_modified()?),
                bytes: object.size().and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0),
            })
        });
        Ok(entries.collect())
    }

    /// Begins a multipart upload, and gives its id.
    pub(super) async fn begin_multipart(&self, key: &str) -> Result<String, StoreError> {
        let doing = "beginning a multipart upload";
        let begin = self.client.create_multipart_upload().bucket(&self.name).key(self.key(key));
        let begun = begin.send().await.map_err(|error| failed(doing, &error))?;
        begun.upload_id().map(str::to_owned).ok_or_else(|| StoreError::new(StoreErrorKind::Other, doing))
    }

    /// Writes a part of a multipart upload.
    pub(super) async fn put_part(
        &self,
        key: &str,
        upload: &str,
        number: u16,
        bytes: Bytes,
    ) -> Result<PartTag, StoreError> {
        let put = self.client.upload_part().bucket(&self.name).key(self.key(key)).upload_id(upload);
        let put = put.part_number(number.into()).body(bytes.into());
        let put = put.send().await.map_err(|error| failed("writing a part", &error))?;
        let tag = put.e_tag().ok_or_else(|| no_tag("writing a part"))?;
        Ok(PartTag { number, tag: tag.to_owned() })
    }

    /// Ends a multipart upload: its parts are the object, which has `bytes` bytes. Asked again after it came, it is
    /// still so: what tells is whether the object is there.
    pub(super) async fn complete(
        &self,
        key: &str,
        upload: &str,
        parts: &[PartTag],
        bytes: u64,
    ) -> Result<(), StoreError> {
        let mut pause = COMPLETE_PAUSE;
        let mut attempt = 1;
        loop {
            let named = parts
                .iter()
                .map(|part| CompletedPart::builder().part_number(part.number.into()).e_tag(&part.tag).build());
            let named = CompletedMultipartUpload::builder().set_parts(Some(named.collect())).build();
            let complete = self.client.complete_multipart_upload().bucket(&self.name).key(self.key(key));
            let (error, lacks_parts) = match complete.upload_id(upload).multipart_upload(named).send().await {
                Ok(done) if done.e_tag().is_some() => return Ok(()),
                Ok(_) => (no_tag("ending a multipart upload"), false),
                Err(error) => {
                    let lacks_parts = matches!(error.code(), Some("InvalidPart" | "NoSuchUpload"));
                    (failed("ending a multipart upload", &error), lacks_parts)
                }
            };
            if self.size(key).await? == Some(bytes) {
                return Ok(());
            }
            if lacks_parts {
                self.compare_parts(key, upload, parts).await?;
            }
            if attempt == COMPLETE_ATTEMPTS {
                return Err(error);
            }
            attempt += 1;
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }

    /// Finds out why a multipart upload does not end: an error when a part is not there any more as it was sent, so that
    /// asking again is in vain.
    async fn compare_parts(&self, key: &str, upload: &str, parts: &[PartTag]) -> Result<(), StoreError> {
        let lost = |why: String| {
            tracing::error!(object.key = key, "acknowledged bytes of an upload are gone from the bucket: {why}");
            Err(StoreError::new(StoreErrorKind::Corrupt, "ending a multipart upload").because(why))
        };
        let Some(stored) = self.parts(key, upload).await? else {
            return lost("the multipart upload is not there".to_owned());
        };
        // Some servers quote tags in one answer and not in another.
        let same = |one: &str, other: &str| one.trim_matches('"') == other.trim_matches('"');
        for part in parts {
            let is_there = |(stored, _): &(PartTag, u64)| stored.number == part.number && same(&stored.tag, &part.tag);
            if !stored.iter().any(is_there) {
                return lost(format!("part {} is not there as it was sent", part.number));
            }
        }
        Ok(())
    }

    /// Gives up a multipart upload and frees its parts; one that is not there is given up.
    pub(super) async fn abort(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        let abort = self.client.abort_multipart_upload().bucket(&self.name).key(self.key(key)).upload_id(upload);
        match abort.send().await {
            Err(error) if !is_absent(&error) => Err(failed("giving up a multipart upload", &error)),
            _ => Ok(()),
        }
    }

    /// The parts that a multipart upload has: each number with its tag and its bytes. `None` when there is no such upload.
    pub(super) async fn parts(&self, key: &str, upload: &str) -> Result<Option<Vec<(PartTag, u64)>>, StoreError> {
        let mut parts = Vec::new();
        let mut marker = None;
        loop {
            let list = self.client.list_parts().bucket(&self.name).key(self.key(key)).upload_id(upload);
            let page = match list.set_part_number_marker(marker).send().await {
                Err(error) if is_absent(&error) => return Ok(None),
                page => page.map_err(|error| failed("listing parts", &error))?,
            };
            parts.extend(page.parts().iter().filter_map(|part| {
                let number = u16::try_from(part.part_number()?).ok()?;
                let tag = PartTag { number, tag: part.e_tag()?.to_owned() };
                Some((tag, u64::try_from(part.size()?).ok()?))
            }));
            marker = page.next_part_number_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || marker.is_none() {
                return Ok(Some(parts));
            }
        }
    }

    /// Whether the server can list multipart uploads.
    pub(super) async fn lists_multiparts(&self) -> Result<bool, StoreError> {
        let list = self.client.list_multipart_uploads().bucket(&self.name).prefix(self.key("")).max_uploads(1);
        match list.send().await {
            Ok(_) => Ok(true),
            Err(error) if error.code() == Some("NotImplemented") || status(&error) == Some(501) => Ok(false),
            Err(error) => Err(failed("listing multipart uploads", &error)),
        }
    }

    /// Multipart uploads that have not ended, for keys that begin with `under`.
    pub(super) async fn multiparts(&self, under: &str) -> Result<Vec<ListedUpload>, StoreError> {
        let mut uploads = Vec::new();
        let (mut key_marker, mut id_marker) = (None, None);
        loop {
            let list = self.client.list_multipart_uploads().bucket(&self.name).prefix(self.key(under));
            let list = list.set_key_marker(key_marker).set_upload_id_marker(id_marker);
            let page = list.send().await.map_err(|error| failed("listing multipart uploads", &error))?;
            uploads.extend(page.uploads().iter().filter_map(|upload| {
                Some(ListedUpload {
                    key: upload.key()?.strip_prefix(&self.prefix)?.to_owned(),
                    upload: upload.upload_id()?.to_owned(),
                    initiated: time_of(upload.initiated()?),
                })
            }));
            key_marker = page.next_key_marker().map(str::to_owned);
            id_marker = page.next_upload_id_marker().map(str::to_owned);
            if page.is_truncated() != Some(true) || key_marker.is_none() {
                return Ok(uploads);
            }
        }
    }
}

fn time_of(time: &aws_sdk_s3::primitives::DateTime) -> Timestamp {
    Timestamp::from_millis(time.to_millis().ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0))
}

fn status<E>(error: &SdkError<E>) -> Option<u16> {
    error.raw_response().map(|response| response.status().as_u16())
}

/// Whether there is no such object or upload. That the bucket is not there is something else.
fn is_absent<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    match error.code() {
        Some("NoSuchBucket") => false,
        Some("NoSuchKey" | "NoSuchUpload") => true,
        // The answer to HEAD has no body, so no code.
        _ => status(error) == Some(404),
    }
}

/// Whether a condition was not met. 409: another conditional write was under way.
fn is_conflict<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    matches!(status(error), Some(409 | 412)) || error.code() == Some("PreconditionFailed")
}

fn failed<E>(doing: &'static str, error: &SdkError<E>) -> StoreError
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let kind = match error {
        SdkError::ServiceError(_) => match (status(error), error.code()) {
            (Some(507), _) | (_, Some("QuotaExceeded" | "XMinioStorageFull")) => StoreErrorKind::Full,
            (Some(429 | 500..=599), _) | (_, Some("SlowDown" | "InternalError" | "RequestTimeout")) => {
                StoreErrorKind::Unavailable
            }
            // Permissions that are wrong and a bucket that is gone are put right by an operator, not by a client.
            _ => StoreErrorKind::Unavailable,
        },
        _ => StoreErrorKind::Unavailable,
    };
    let why = match (error.code(), error.message()) {
        (Some(code), message) => format!("{code}: {}", message.unwrap_or("no message")),
        _ => match error {
            SdkError::ServiceError(_) => format!("status {}", status(error).unwrap_or(0)),
            _ => DisplayErrorContext(error).to_string(),
        },
    };
    StoreError::new(kind, doing).because(why)
}

fn no_tag(doing: &'static str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, doing).because("the answer has no ETag")
}

/// A body that broke off.
pub(super) fn cut(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "reading the body of an answer").because(error)
}
