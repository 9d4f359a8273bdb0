//! An open blob: ranges of one object, as they come.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream as Body;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use waxwing_protocol::BlobId;
use waxwing_protocol::range::ByteRange;

use super::Shared;
use super::bucket::{READ_STALL, cut};
use super::objects::{Place, data_key, outboard_key};
use super::pins::Pin;
use crate::store::{BlobReader, ByteStream, StoreError, StoreErrorKind};

/// An open blob.
pub(super) struct S3Reader {
    shared: Arc<Shared>,
    place: Place,
    blob_bytes: u64,
    /// Keeps the bytes while there are readers.
    pin: Option<Arc<Pin>>,
}

/// An answer's body, and how much of it is to come.
struct Rest {
    body: Body,
    bytes: u64,
    _pin: Option<Arc<Pin>>,
}

impl S3Reader {
    pub(super) fn new(shared: Arc<Shared>, id: BlobId, place: Place, blob_bytes: u64) -> Self {
        let store = Arc::downgrade(&shared);
        let clean = move || {
            // The store may be gone before its readers.
            if let Some(store) = store.upgrade() {
                store.clean_later(id);
            }
        };
        let pin = place.data.as_ref().map(|name| Arc::new(shared.pins.pin(name, clean)));
        Self { shared, place, blob_bytes, pin }
    }
}

impl BlobReader for S3Reader {
    fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    fn read(&self, range: ByteRange) -> ByteStream {
        let Some(name) = self.place.data.as_ref().filter(|_| range.start < range.end) else {
            return stream::empty().boxed();
        };
        let (shared, key, pin) = (Arc::clone(&self.shared), data_key(name), self.pin.clone());
        let opened = async move {
            let body = shared.bucket.read(&key, range).await?;
            Ok(Rest { body, bytes: range.end - range.start, _pin: pin }.into_stream())
        };
        stream::once(opened).try_flatten().boxed()
    }

    fn outboard(&self) -> ByteStream {
        let objects: Vec<_> = self.place.outboard.objects.clone();
        let inline = Bytes::from(self.place.outboard.inline.clone());
        let (shared, pin) = (Arc::clone(&self.shared), self.pin.clone());
        let objects = stream::iter(objects).then(move |object| {
            let (shared, pin) = (Arc::clone(&shared), pin.clone());
            async move {
                let _pin = pin;
                let range = ByteRange { start: 0, end: object.bytes };
                shared.bucket.read_all(&outboard_key(&object.name), range).await
            }
        });
        let inline = stream::iter((!inline.is_empty()).then_some(Ok(inline)));
        objects.chain(inline).boxed()
    }
}

impl Rest {
    /// The pieces. One that does not come in time, too few and too many of them are errors.
    fn into_stream(self) -> ByteStream {
        stream::try_unfold(self, |mut rest| async move {
            let next = tokio::time::timeout(READ_STALL, rest.body.next()).await.map_err(cut)?;
            let Some(piece) = next.transpose().map_err(cut)? else {
                return match rest.bytes {
                    0 => Ok(None),
                    missing => Err(cut(format!("{missing} bytes are missing"))),
                };
            };
            let Some(left) = rest.bytes.checked_sub(piece.len() as u64) else {
                return Err(StoreError::new(
                    StoreErrorKind::Corrupt,
                    "reading a range that has more bytes than asked for",
                ));
            };
            rest.bytes = left;
            Ok(Some((piece, rest)))
        })
        .boxed()
    }
}
