//! An open blob.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use waxwing_protocol::blob::outboard_bytes;
use waxwing_protocol::range::ByteRange;

use super::records::BlobPointer;
use super::{Disk, blocking};
use crate::store::{BlobReader, ByteStream, StoreError, StoreErrorKind};

/// Bytes read from the disk at once. Large enough that the system calls do not matter, small enough that a slow client
/// holds little.
const READ_BYTES: u64 = 256 * 1024;

/// Reads of one client under way at once: the next while the last is being sent.
const READS_AHEAD: usize = 2;

/// An open blob. Holds its file, so that it can be read to the end even when it is removed.
pub(super) struct DiskReader {
    disk: Arc<Disk>,
    pointer: BlobPointer,
    file: Option<Arc<File>>,
}

impl DiskReader {
    pub(super) fn new(disk: Arc<Disk>, pointer: BlobPointer, file: Option<File>) -> Self {
        Self { disk, pointer, file: file.map(Arc::new) }
    }
}

impl BlobReader for DiskReader {
    fn blob_bytes(&self) -> u64 {
        self.pointer.blob_bytes
    }

    fn read(&self, range: ByteRange) -> ByteStream {
        let Some(file) = self.file.clone() else { return stream::empty().boxed() };
        let starts = stream::unfold(range.start, move |at| async move {
            (at < range.end).then(|| (at, (at + READ_BYTES).min(range.end)))
        });
        let pieces = starts.map(move |at| {
            let file = Arc::clone(&file);
            let bytes = usize::try_from(READ_BYTES.min(range.end - at)).expect("READ_BYTES fits usize");
            blocking(move || {
                let mut piece = vec![0; bytes];
                file.read_exact_at(&mut piece, at).map_err(|error| StoreError::io("reading a blob", error))?;
                Ok(Bytes::from(piece))
            })
        });
        pieces.buffered(READS_AHEAD).boxed()
    }

    fn outboard(&self) -> ByteStream {
        let (disk, data) = (Arc::clone(&self.disk), self.pointer.data);
        let total = outboard_bytes(self.pointer.blob_bytes);
        let pieces = stream::try_unfold(0, move |done| {
            let disk = Arc::clone(&disk);
            async move {
                if done == total {
                    return Ok(None);
                }
                let piece = blocking(move || disk.records.outboard(data, done, READ_BYTES)).await?;
                let next = done + piece.len() as u64;
                if piece.is_empty() || next > total {
                    return Err(StoreError::new(StoreErrorKind::Corrupt, "reading an outboard"));
                }
                Ok(Some((Bytes::from(piece), next)))
            }
        });
        pieces.into_stream().boxed()
    }
}
