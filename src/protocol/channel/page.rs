//! Pages: runs of entries that are closed into blobs.

use prost::Message as _;

use super::{CHANNEL_PAGE_BYTES, CHANNEL_PAGE_ENTRIES, ChannelError};
use crate::BlobId;
use crate::frames::{self, BODY_BYTES_MAX};

/// Whether so many entries of so many bytes fill a page. Each page is closed at the first entry that fills it.
pub const fn fills_page(entries: usize, bytes: usize) -> bool {
    entries >= CHANNEL_PAGE_ENTRIES || bytes >= CHANNEL_PAGE_BYTES
}

/// A page: the bytes of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The first entry's place.
    pub first_seq: u64,
    /// Entries as they lie in the log.
    pub entries: Vec<Vec<u8>>,
}

impl Page {
    /// Bytes of a page at most: entries that fill it, the last of them as long as one can be, and what stands between them.
    pub const BYTES_MAX: usize = CHANNEL_PAGE_BYTES + BODY_BYTES_MAX + 8 * CHANNEL_PAGE_ENTRIES + 16;

    /// The bytes of the blob.
    pub fn to_bytes(&self) -> Vec<u8> {
        let entries = self.entries.iter().map(|entry| entry.clone().into()).collect();
        frames::ChannelPage { first_seq: self.first_seq, entries }.encode_to_vec()
    }

    /// Reads a page; nothing in it is verified.
    ///
    /// # Errors
    /// [`ChannelError::Malformed`] when the bytes are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ChannelError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(ChannelError::Malformed("a page that is too long"));
        }
        let page = frames::ChannelPage::decode(bytes).map_err(|_| ChannelError::Malformed("not a page"))?;
        let entries = page.entries.iter().map(|entry| entry.to_vec()).collect();
        Ok(Self { first_seq: page.first_seq, entries })
    }

    /// The id of the blob.
    pub fn blob(&self) -> BlobId {
        BlobId::from_bytes(*blake3::hash(&self.to_bytes()).as_bytes())
    }
}
