//! An open blob.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use waxwing_protocol::blob::outboard_bytes;
use waxwing_protocol::range::ByteRange;
use waxwing_protocol::{BlobId, UploadId};

use super::records::{BlobPointer, Location, Records};
use super::{Disk, blocking};
use crate::store::{BlobReader, ByteStream, StoreError, StoreErrorKind};

/// Bytes read from the disk at once. Large enough that the system calls do not matter, small enough that a slow client
/// holds little.
const READ_BYTES: u64 = 256 * 1024;

/// Reads of one client under way at once: the next while the last is being sent.
const READS_AHEAD: usize = 2;

/// An open blob. Holds its file, so that it can be read to the end even when it is removed.
pub(super) struct DiskReader {
    blob_bytes: u64,
    /// The file, and where in it the blob begins; an empty blob may have none.
    data: Option<(Arc<File>, u64)>,
    outboard: OutboardSource,
}

/// Where an outboard is read from.
enum OutboardSource {
    /// The records of this upload.
    Records(Arc<Records>, UploadId),
    /// The blob's own file, from this byte.
    Pack(u64),
}

impl DiskReader {
    /// Opens blob `id` where `pointer` leads.
    pub(super) fn open(disk: &Disk, id: BlobId, pointer: BlobPointer) -> Result<Self, StoreError> {
        let blob_bytes = pointer.blob_bytes;
        let (data, outboard) = match pointer.data {
            Location::File(upload) => {
                let file = disk.files.open_whole(upload, blob_bytes)?;
                (file.map(|file| (Arc::new(file), 0)), OutboardSource::Records(Arc::clone(&disk.records), upload))
            }
            Location::Pack(location) => {
                let entry = disk.packs.entry(location, id, blob_bytes)?;
                (Some((Arc::new(entry.file), entry.data_at)), OutboardSource::Pack(entry.outboard_at))
            }
        };
        Ok(Self { blob_bytes, data, outboard })
    }
}

impl BlobReader for DiskReader {
    fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    fn read(&self, range: ByteRange) -> ByteStream {
        let Some((file, base)) = self.data.clone() else { return stream::empty().boxed() };
        let starts = stream::unfold(range.start, move |at| async move {
            (at < range.end).then(|| (at, (at + READ_BYTES).min(range.end)))
        });
        let pieces = starts.map(move |at| {
            let file = Arc::clone(&file);
            let bytes = usize::try_from(READ_BYTES.min(range.end - at)).expect("READ_BYTES fits usize");
            blocking(move || read_at(&file, base + at, bytes))
        });
        pieces.buffered(READS_AHEAD).boxed()
    }

    fn outboard(&self) -> ByteStream {
        let total = outboard_bytes(self.blob_bytes);
        let (records, upload) = match (&self.outboard, &self.data) {
            (OutboardSource::Pack(at), Some((file, _))) if total > 0 => {
                let (at, file) = (*at, Arc::clone(file));
                let bytes = usize::try_from(total).expect("a packed blob has few chunk groups");
                return stream::once(blocking(move || read_at(&file, at, bytes))).boxed();
            }
            (OutboardSource::Pack(_), _) => return stream::empty().boxed(),
            (OutboardSource::Records(records, upload), _) => (Arc::clone(records), *upload),
        };
        let pieces = stream::try_unfold(0, move |done| {
            let records = Arc::clone(&records);
            async move {
                if done == total {
                    return Ok(None);
                }
                let piece = blocking(move || records.outboard(upload, done, READ_BYTES)).await?;
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

/// `bytes` bytes of `file` at byte `at`.
pub(super) fn read_at(file: &File, at: u64, bytes: usize) -> Result<Bytes, StoreError> {
    let mut piece = vec![0; bytes];
    file.read_exact_at(&mut piece, at).map_err(|error| StoreError::io("reading a blob", error))?;
    Ok(Bytes::from(piece))
}
