//! Several ranges in one answer: `multipart/byteranges`, streamed part by part.
//!
//! The length is known beforehand, so a part that cannot be had ends in a visible cut, as everywhere.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use waxwing_protocol::range::{ByteRange, Multipart};

use super::blobs::spec;
use super::pass::Pass;
use crate::Edge;
use crate::blobs::{Content, ReadError};
use crate::fill::FillError;
use crate::reader::Reader;

/// The media type of every blob: what is in it nobody here can know.
pub(super) const MEDIA_TYPE: &str = "application/octet-stream";

/// Ranges on their way out.
pub(super) struct Parts {
    edge: Edge,
    pass: Pass,
    boundary: String,
    blob_bytes: u64,
    left: VecDeque<ByteRange>,
    /// What is to be sent next, and what comes behind it.
    ready: VecDeque<Bytes>,
    reader: Option<Box<Reader>>,
    is_at_end: bool,
    content_bytes: u64,
}

impl Parts {
    /// The answer with these `parts`, of which there are several, the bytes of the `first` at hand.
    pub(super) fn new(edge: Edge, pass: Pass, blob_bytes: u64, parts: Vec<ByteRange>, first: Content) -> Self {
        let boundary = boundary();
        let frame = Multipart { boundary: &boundary, media_type: MEDIA_TYPE, size: blob_bytes };
        let content_bytes = frame.byte_count(&parts);
        let (ready, reader, is_at_end) = (VecDeque::new(), None, false);
        let mut made =
            Self { edge, pass, boundary, blob_bytes, left: parts.into(), ready, reader, is_at_end, content_bytes };
        if let Some(part) = made.left.pop_front() {
            made.begin(part, first);
        }
        made
    }

    /// Bytes of the answer, frame included.
    pub(super) const fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// The answer's `Content-Type`.
    pub(super) fn content_type(&self) -> String {
        self.frame().content_type()
    }

    /// The bytes.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, FillError>> + Send {
        stream::unfold(Some(self), async |parts| {
            let mut parts = parts?;
            match parts.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(parts))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, FillError> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Ok(Some(bytes));
            }
            if let Some(reader) = &mut self.reader {
                if let Some(bytes) = reader.next().await? {
                    return Ok(Some(bytes));
                }
                self.reader = None;
            }
            match self.left.pop_front() {
                Some(part) => {
                    let reading = self.edge.blobs().read(self.pass.id, Some(spec(part)), self.pass.now).await;
                    let reading = reading.map_err(|error| match error {
                        ReadError::Fill(error) => error,
                        // The blob turned out to be shorter than it was said to be.
                        ReadError::Unsatisfiable { .. } => FillError::Beyond,
                    })?;
                    self.begin(part, reading.content);
                }
                None if self.is_at_end => return Ok(None),
                None => {
                    self.is_at_end = true;
                    self.ready.push_back(self.frame().tail().into());
                }
            }
        }
    }

    fn begin(&mut self, part: ByteRange, content: Content) {
        self.ready.push_back(self.frame().head(part).into());
        match content {
            Content::Held(held) => self.ready.extend(held),
            Content::Streamed(reader) => self.reader = Some(reader),
        }
    }

    fn frame(&self) -> Multipart<'_> {
        Multipart { boundary: &self.boundary, media_type: MEDIA_TYPE, size: self.blob_bytes }
    }
}

/// What separates the parts: 128 random bits, in hexadecimal.
fn boundary() -> String {
    let mut random = [0; 16];
    getrandom::fill(&mut random).expect("the operating system has randomness");
    format!("{:032x}", u128::from_le_bytes(random))
}
