//! What a bucket can do, tried at the start.
//!
//! The store relies on conditional writes for everything it promises. A server that ignores the condition, as some do,
//! would take every write and lose acknowledged bytes without an error; so it is found out before the first upload.

use bytes::Bytes;

use super::bucket::{Bucket, Expect, Swap, Tag};
use super::objects::{PROBES, random_name};
use crate::store::StoreError;

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error("cannot read the bucket: check its name, the endpoint, the region, the keys and their permissions")]
    Unreachable(#[source] StoreError),
    #[error("cannot write to the bucket: check the permissions of the keys")]
    Unwritable(#[source] StoreError),
    #[error(
        "the server takes a write with `If-None-Match: *` over an object that is there; without it nothing is safe"
    )]
    NoConditionalPut,
    #[error("the server takes a write with an `If-Match` that does not match; without it nothing is safe")]
    NoConditionalUpdate,
    #[error("cannot begin a multipart upload: check the permissions of the keys")]
    NoMultipart(#[source] StoreError),
    #[error(
        "the server ends no multipart upload that lacks a part number; no upload that another origin went on with could end"
    )]
    NoPartGaps(#[source] StoreError),
}

/// What a bucket can do that not all can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Abilities {
    /// It removes an object on the condition that it is still the same. Without it, the empty pointer of a blob that went
    /// stays, some hundred bytes of it.
    pub(super) conditional_delete: bool,
    /// It lists multipart uploads. Without it, parts that a crash left are found by nobody here: the bucket's own rules have
    /// to give them up.
    pub(super) lists_multiparts: bool,
}

/// Tries what the store relies on, under a key of its own that is removed afterwards.
pub(super) async fn probe(bucket: &Bucket, needs_part_gaps: bool) -> Result<Abilities, ProbeError> {
    bucket.list("", None, 1).await.map_err(ProbeError::Unreachable)?;
    let name = random_name().map_err(ProbeError::Unwritable)?;
    let key = format!("{PROBES}{name}");
    let probed = conditions(bucket, &key, &name).await;
    let removed = bucket.remove(&key).await.map_err(ProbeError::Unwritable);
    let conditional_delete = probed?;
    removed?;
    let multipart = async {
        let upload = bucket.begin_multipart(&key).await?;
        let lists = bucket.lists_multiparts().await;
        bucket.abort(&key, &upload).await?;
        lists
    };
    let lists_multiparts = multipart.await.map_err(ProbeError::NoMultipart)?;
    if needs_part_gaps {
        part_gaps(bucket, &key).await.map_err(ProbeError::NoPartGaps)?;
    }
    Ok(Abilities { conditional_delete, lists_multiparts })
}

/// Tries whether a multipart upload may lack a part number: those of a claim that was overtaken are given up, since what it
/// still sends must not meet what its successor does.
async fn part_gaps(bucket: &Bucket, key: &str) -> Result<(), StoreError> {
    let upload = bucket.begin_multipart(key).await?;
    let ended = async {
        let part = bucket.put_part(key, &upload, 2, Bytes::from_static(b"-")).await?;
        bucket.complete(key, &upload, &[part], 1).await
    };
    match ended.await {
        Ok(()) => bucket.remove(key).await,
        Err(error) => {
            // A server that refused may have forgotten it already.
            let _ = bucket.abort(key, &upload).await;
            Err(error)
        }
    }
}

/// Tries conditional writes. Gives whether removing takes a condition too.
async fn conditions(bucket: &Bucket, key: &str, name: &str) -> Result<bool, ProbeError> {
    let write = async |expect: Expect<'_>, what: &str| {
        let bytes = Bytes::from(format!("{name} {what}"));
        bucket.swap(key, expect, bytes).await.map_err(ProbeError::Unwritable)
    };
    let made = |swap, refusal: ProbeError| if let Swap::Made(tag) = swap { Ok(tag) } else { Err(refusal) };
    let first: Tag = made(write(Expect::Absent, "first").await?, ProbeError::NoConditionalPut)?;
    if write(Expect::Absent, "second").await? != Swap::Lost {
        return Err(ProbeError::NoConditionalPut);
    }
    made(write(Expect::Tag(&first), "third").await?, ProbeError::NoConditionalUpdate)?;
    if write(Expect::Tag(&first), "fourth").await? != Swap::Lost {
        return Err(ProbeError::NoConditionalUpdate);
    }
    // A server that does not know the condition removes the object, or refuses the request.
    let kept = matches!(bucket.remove_if(key, &first).await, Ok(false))
        && bucket.size(key).await.map_err(ProbeError::Unreachable)?.is_some();
    Ok(kept)
}
