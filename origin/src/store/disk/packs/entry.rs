//! One entry of a pack: a header that tells whose bytes follow, its outboard, its bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::{BlobHasher, CV_BYTES, GROUP_BYTES, outboard_bytes};

use crate::store::{StoreError, StoreErrorKind};

/// How an entry begins.
const MAGIC: [u8; 4] = *b"WXPK";

/// The version of an entry's form.
const ENTRY_VERSION: u32 = 1;

/// Magic, version, blob id, blob bytes, outboard values, checksum of all these.
const HEADER_BYTES: usize = 4 + 4 + 32 + 8 + 4 + 4;

/// A small blob to be packed.
#[derive(Debug)]
pub(in crate::store::disk) struct Entry {
    /// The hash of `data`.
    pub(in crate::store::disk) id: BlobId,
    /// Its chaining values, all of them.
    pub(in crate::store::disk) outboard: Vec<u8>,
    /// Its bytes, in pieces.
    pub(in crate::store::disk) data: Vec<Bytes>,
}

/// An entry that was opened.
pub(in crate::store::disk) struct OpenEntry {
    /// The pack.
    pub(in crate::store::disk) file: File,
    /// Where its outboard begins.
    pub(in crate::store::disk) outboard_at: u64,
    /// Where its bytes begin.
    pub(in crate::store::disk) data_at: u64,
}

/// Bytes that the entry of a blob of `blob_bytes` takes.
pub(in crate::store::disk) fn entry_bytes(blob_bytes: u64) -> u64 {
    HEADER_BYTES as u64 + outboard_bytes(blob_bytes) + blob_bytes
}

impl Entry {
    pub(super) fn data_bytes(&self) -> u64 {
        self.data.iter().map(|piece| piece.len() as u64).sum()
    }

    pub(super) fn bytes(&self) -> u64 {
        HEADER_BYTES as u64 + self.outboard.len() as u64 + self.data_bytes()
    }

    /// What comes before the data.
    pub(super) fn head(&self) -> Vec<u8> {
        let header = header(self.id, self.data_bytes(), (self.outboard.len() / CV_BYTES) as u64);
        [&header[..], &self.outboard].concat()
    }
}

impl OpenEntry {
    /// Opens the entry of blob `id`, of `blob_bytes`, at byte `at` of the pack `file`.
    pub(super) fn open(file: File, at: u64, id: BlobId, blob_bytes: u64) -> Result<Self, StoreError> {
        let doing = "opening a packed blob";
        let corrupt = |why: &'static str| StoreError::new(StoreErrorKind::Corrupt, doing).because(why);
        let pack_bytes = file.metadata().map_err(|error| StoreError::io(doing, error))?.len();
        let end = at.checked_add(entry_bytes(blob_bytes));
        if end.is_none_or(|end| pack_bytes < end) {
            return Err(corrupt("the pack ends before the blob does"));
        }
        let mut found = [0; HEADER_BYTES];
        file.read_exact_at(&mut found, at).map_err(|error| StoreError::io(doing, error))?;
        if found != header(id, blob_bytes, outboard_bytes(blob_bytes) / CV_BYTES as u64) {
            return Err(corrupt("another entry, or a damaged one, is where the blob should be"));
        }
        let outboard_at = at + HEADER_BYTES as u64;
        Ok(Self { file, outboard_at, data_at: outboard_at + outboard_bytes(blob_bytes) })
    }

    /// Reads all of it, and checks that it is blob `id`, of `blob_bytes`. The outboard is made anew from the bytes.
    pub(super) fn read_checked(&self, id: BlobId, blob_bytes: u64) -> Result<Entry, StoreError> {
        let doing = "reading a packed blob";
        let too_many = || StoreError::new(StoreErrorKind::Corrupt, doing).because("more bytes than are packed");
        let mut data = vec![0; usize::try_from(blob_bytes).map_err(|_| too_many())?];
        self.file.read_exact_at(&mut data, self.data_at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => StoreError::new(StoreErrorKind::Corrupt, doing).because(error),
            _ => StoreError::io(doing, error),
        })?;
        let mut outboard = Vec::new();
        let mut hasher = BlobHasher::new();
        hasher.update(&data, |cv| outboard.extend_from_slice(cv));
        if hasher.finish(|cv| outboard.extend_from_slice(cv)) != id {
            return Err(StoreError::new(StoreErrorKind::Corrupt, doing).because("its bytes are not what its id says"));
        }
        if blob_bytes <= GROUP_BYTES {
            outboard.clear();
        }
        Ok(Entry { id, outboard, data: vec![data.into()] })
    }
}

fn header(id: BlobId, blob_bytes: u64, outboard_values: u64) -> [u8; HEADER_BYTES] {
    let values = u32::try_from(outboard_values).expect("a packed blob has few chunk groups");
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&ENTRY_VERSION.to_le_bytes());
    header[8..40].copy_from_slice(id.as_bytes());
    header[40..48].copy_from_slice(&blob_bytes.to_le_bytes());
    header[48..52].copy_from_slice(&values.to_le_bytes());
    let checksum = crc32fast::hash(&header[..52]);
    header[52..].copy_from_slice(&checksum.to_le_bytes());
    header
}
