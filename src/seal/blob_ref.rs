//! References to blobs: what a message carries so that its recipient can fetch and open a file.
//!
//! A reference comes from another person and decides how much is fetched, decoded and shown. So decoding checks every
//! size and bounds every text; what it lets through is well-formed, if not yet friendly: a file name is still whatever
//! its sender chose.

use prost::Message as _;
use waxwing_protocol::BlobId;
use zeroize::{Zeroize as _, Zeroizing};

use crate::blob::{BlobHeader, BlobKey, Layout, TooLarge};

mod generated {
    #![allow(unreachable_pub, unused_qualifications, clippy::all, reason = "generated")]
    include!(concat!(env!("OUT_DIR"), "/waxwing.blob.v1.rs"));
}

/// What it takes to fetch and open a blob, and what is known about the file in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef {
    /// The blob's id.
    pub id: BlobId,
    /// The blob's key.
    pub key: BlobKey,
    /// The blob's header.
    pub header: BlobHeader,
    /// Bytes of the file.
    pub true_bytes: u64,
    /// The media type, such as `image/jpeg`; empty when not known.
    pub media_type: String,
    /// The file's name as its sender has it. Not to be used as a path before it is made safe.
    pub file_name: Option<String>,
    /// Pixels.
    pub width: Option<u32>,
    /// Pixels.
    pub height: Option<u32>,
    /// How long it plays, in milliseconds.
    pub duration_ms: Option<u64>,
    /// ThumbHash of the picture, or empty.
    pub thumbhash: Vec<u8>,
    /// A small picture to show at once, encoded as a file of its own; or empty.
    pub preview: Vec<u8>,
    /// The same content in other sizes or formats. They have no renditions themselves.
    pub renditions: Vec<BlobRef>,
}

/// Why bytes are not a reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobRefError {
    /// Not the protobuf of one.
    #[error("not a reference to a blob")]
    Malformed,
    /// A field has the wrong length.
    #[error("the {field} of a reference has {actual} bytes, not {expected}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Bytes it must have.
        expected: usize,
        /// Bytes it has.
        actual: usize,
    },
    /// The header is not one.
    #[error("the header in a reference is not that of a sealed blob")]
    Header,
    /// A field is over its limit.
    #[error("the {field} of a reference is over its limit of {limit}")]
    TooMuch {
        /// Which field.
        field: &'static str,
        /// What it may have.
        limit: usize,
    },
    /// A rendition has renditions.
    #[error("a rendition has renditions of its own")]
    Nested,
    /// No blob can hold a file of that size.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
}

impl BlobRef {
    /// Bytes of an encoded reference at most: it fits a message of 96 KiB.
    pub const BYTES_MAX: usize = 64 * 1024;
    /// Bytes of a file name at most; file systems allow 255.
    pub const FILE_NAME_BYTES_MAX: usize = 255;
    /// Bytes of a media type at most: 127 each side of the slash (RFC 6838 §4.2).
    pub const MEDIA_TYPE_BYTES_MAX: usize = 255;
    /// Bytes of a thumbhash at most; 25 in practice.
    pub const THUMBHASH_BYTES_MAX: usize = 64;
    /// Bytes of a preview at most.
    pub const PREVIEW_BYTES_MAX: usize = 32 * 1024;
    /// Renditions at most.
    pub const RENDITIONS_MAX: usize = 8;

    /// The reference to a blob of which no more is known than how to open it.
    pub fn new(id: BlobId, key: BlobKey, header: BlobHeader, true_bytes: u64) -> Self {
        Self {
            id,
            key,
            header,
            true_bytes,
            media_type: String::new(),
            file_name: None,
            width: None,
            height: None,
            duration_ms: None,
            thumbhash: Vec::new(),
            preview: Vec::new(),
            renditions: Vec::new(),
        }
    }

    /// The blob's sizes.
    ///
    /// # Errors
    /// [`TooLarge`] when no blob can hold a file of that size; a decoded reference never fails here.
    pub fn layout(&self) -> Result<Layout, TooLarge> {
        Layout::of(self.true_bytes)
    }

    /// The reference as protobuf; it holds the key.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut wire = self.to_wire();
        let mut bytes = Zeroizing::new(Vec::with_capacity(wire.encoded_len()));
        wire.encode(&mut *bytes).expect("a Vec grows as needed");
        erase(&mut wire);
        bytes
    }

    /// Reads what [`Self::encode`] wrote.
    ///
    /// # Errors
    /// [`BlobRefError`] when the bytes are not a reference, or a part of it is over its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlobRefError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(BlobRefError::TooMuch { field: "whole", limit: Self::BYTES_MAX });
        }
        let mut wire = generated::BlobRef::decode(bytes).map_err(|_| BlobRefError::Malformed)?;
        let read = Self::from_wire(&wire);
        erase(&mut wire);
        read
    }

    fn to_wire(&self) -> generated::BlobRef {
        generated::BlobRef {
            id: self.id.as_bytes().to_vec(),
            key: self.key.as_bytes().to_vec(),
            header: self.header.as_bytes().to_vec(),
            true_bytes: self.true_bytes,
            media_type: self.media_type.clone(),
            file_name: self.file_name.clone().unwrap_or_default(),
            width: self.width.unwrap_or_default(),
            height: self.height.unwrap_or_default(),
            duration_ms: self.duration_ms.unwrap_or_default(),
            thumbhash: self.thumbhash.clone(),
            preview: self.preview.clone(),
            renditions: self.renditions.iter().map(Self::to_wire).collect(),
        }
    }

    fn from_wire(wire: &generated::BlobRef) -> Result<Self, BlobRefError> {
        let known = |number: u32| (number > 0).then_some(number);
        at_most("media type", wire.media_type.len(), Self::MEDIA_TYPE_BYTES_MAX)?;
        at_most("file name", wire.file_name.len(), Self::FILE_NAME_BYTES_MAX)?;
        at_most("thumbhash", wire.thumbhash.len(), Self::THUMBHASH_BYTES_MAX)?;
        at_most("preview", wire.preview.len(), Self::PREVIEW_BYTES_MAX)?;
        at_most("list of renditions", wire.renditions.len(), Self::RENDITIONS_MAX)?;
        Layout::of(wire.true_bytes)?;
        let renditions = wire.renditions.iter().map(|rendition| {
            if rendition.renditions.is_empty() { Self::from_wire(rendition) } else { Err(BlobRefError::Nested) }
        });
        Ok(Self {
            id: BlobId::from_bytes(exactly("id", &wire.id)?),
            key: BlobKey::from_bytes(exactly("key", &wire.key)?),
            header: BlobHeader::parse(&exactly::<40>("header", &wire.header)?).map_err(|_| BlobRefError::Header)?,
            true_bytes: wire.true_bytes,
            media_type: wire.media_type.clone(),
            file_name: Some(wire.file_name.clone()).filter(|name| !name.is_empty()),
            width: known(wire.width),
            height: known(wire.height),
            duration_ms: (wire.duration_ms > 0).then_some(wire.duration_ms),
            thumbhash: wire.thumbhash.clone(),
            preview: wire.preview.clone(),
            renditions: renditions.collect::<Result<_, _>>()?,
        })
    }
}

/// Wipes the keys of a protobuf that is no longer needed.
fn erase(wire: &mut generated::BlobRef) {
    wire.key.zeroize();
    wire.renditions.iter_mut().for_each(erase);
}

fn exactly<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], BlobRefError> {
    bytes.try_into().map_err(|_| BlobRefError::Length { field, expected: N, actual: bytes.len() })
}

fn at_most(field: &'static str, actual: usize, limit: usize) -> Result<(), BlobRefError> {
    if actual > limit { Err(BlobRefError::TooMuch { field, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn photo() -> BlobRef {
        let small = BlobRef::new(BlobId::from_bytes([2; 32]), BlobKey::generate(), BlobHeader::generate(), 9_000);
        BlobRef {
            media_type: "image/jpeg".into(),
            file_name: Some("photo.jpg".into()),
            width: Some(4000),
            height: Some(3000),
            thumbhash: vec![1; 25],
            preview: vec![7; 900],
            renditions: vec![small],
            ..BlobRef::new(BlobId::from_bytes([1; 32]), BlobKey::generate(), BlobHeader::generate(), 3_500_000)
        }
    }

    fn decode(wire: &generated::BlobRef) -> Result<BlobRef, BlobRefError> {
        BlobRef::decode(&wire.encode_to_vec())
    }

    #[test]
    fn a_reference_survives_the_wire() {
        let photo = photo();
        assert_eq!(BlobRef::decode(&photo.encode()), Ok(photo.clone()));
        assert!(!format!("{photo:?}").contains(&format!("{:?}", photo.key.as_bytes())));
    }

    #[test]
    fn every_field_has_its_size_or_the_reference_is_refused() {
        let good = photo().to_wire();
        assert!(decode(&good).is_ok());
        let refused = |change: &dyn Fn(&mut generated::BlobRef)| {
            let mut wire = good.clone();
            change(&mut wire);
            decode(&wire).unwrap_err()
        };
        for error in [refused(&|w| w.id.truncate(31)), refused(&|w| w.key.push(0)), refused(&|w| w.header.clear())] {
            assert!(matches!(error, BlobRefError::Length { .. }), "{error}");
        }
        assert_eq!(refused(&|w| w.header[0] = 0), BlobRefError::Header);
        assert!(matches!(refused(&|w| w.true_bytes = u64::MAX), BlobRefError::TooLarge(_)));
        for error in [
            refused(&|w| w.file_name = "a".repeat(256)),
            refused(&|w| w.media_type = "a".repeat(256)),
            refused(&|w| w.thumbhash = vec![0; 65]),
            refused(&|w| w.preview = vec![0; 32 * 1024 + 1]),
            refused(&|w| w.renditions = vec![w.renditions[0].clone(); 9]),
            refused(&|w| {
                w.renditions = vec![generated::BlobRef { preview: vec![0; 32 * 1024], ..w.renditions[0].clone() }; 8];
            }),
        ] {
            assert!(matches!(error, BlobRefError::TooMuch { .. }), "{error}");
        }
        let nested = |w: &mut generated::BlobRef| w.renditions[0].renditions = vec![w.renditions[0].clone()];
        assert_eq!(refused(&nested), BlobRefError::Nested);
        assert!(matches!(refused(&|w| w.renditions[0].key.clear()), BlobRefError::Length { .. }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = BlobRef::decode(&bytes);
        }
    }
}
