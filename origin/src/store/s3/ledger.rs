//! What owners hold: one object for each, changed by compare-and-swap.
//!
//! A blob and its owner's ledger are two objects, which no request changes together. So whoever adds a blob charges its
//! owner before, and whoever takes one away frees the owner after: a crash between the two leaves an owner charged with
//! bytes they do not hold, never holding bytes they are not charged with, until [`recount`](super::garbage) sets it right.
//!
//! A change that is tried again must not count twice: each has a name, and the ledger remembers the last of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use waxwing_protocol::{OwnerTag, UploadId};

use super::bucket::{Bucket, Found};
use super::objects::{decode, owner_key};
use crate::store::StoreError;

/// Changes whose names are remembered: more than can be under way for one owner at a time.
const RECENT_MAX: usize = 64;

/// What an owner holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    /// Bytes of blobs.
    pub(super) blobs: u64,
    /// Bytes of uploads under way.
    pub(super) uploads: BTreeMap<UploadId, u64>,
    /// What an operator lets the owner hold, whatever grants say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) quota_bytes: Option<u64>,
    /// Names of the last changes of `blobs`.
    recent: Vec<String>,
}

/// A change of a ledger.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// This upload holds so many bytes from now on.
    Hold { upload: UploadId, bytes: u64 },
    /// This upload became a blob that its owner did not have.
    Settle { upload: UploadId, bytes: u64, name: String },
    /// The owner has a blob more.
    Add { bytes: u64, name: String },
    /// The owner has a blob less.
    Free { bytes: u64, name: String },
}

impl Ledger {
    /// What the owner holds.
    pub(super) fn used(&self) -> u64 {
        self.uploads.values().fold(self.blobs, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What this ledger is after a count of everything.
    pub(super) fn counted(&self, blobs: u64, uploads: BTreeMap<UploadId, u64>) -> Self {
        Self { blobs, uploads, quota_bytes: self.quota_bytes, recent: Vec::new() }
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let names: usize = self.recent.iter().map(|name| name.len() + size_of::<String>()).sum();
        size_of::<Self>() + names + self.uploads.len() * 2 * size_of::<(UploadId, u64)>()
    }

    /// Whether the owner holds the same by `other`.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.blobs == other.blobs && self.uploads == other.uploads
    }

    /// Makes a change, unless it was made.
    pub(super) fn enter(&mut self, entry: &Entry) {
        let mut once = |name: &str| {
            let known = self.recent.iter().any(|recent| recent == name);
            if !known {
                if self.recent.len() >= RECENT_MAX {
                    self.recent.remove(0);
                }
                self.recent.push(name.to_owned());
            }
            !known
        };
        match entry {
            Entry::Hold { upload, bytes: 0 } => drop(self.uploads.remove(upload)),
            Entry::Hold { upload, bytes } => drop(self.uploads.insert(*upload, *bytes)),
            Entry::Settle { upload, bytes, name } => {
                if once(name) {
                    self.blobs = self.blobs.saturating_add(*bytes);
                }
                self.uploads.remove(upload);
            }
            Entry::Add { bytes, name } => {
                if once(name) {
                    self.blobs = self.blobs.saturating_add(*bytes);
                }
            }
            Entry::Free { bytes, name } => {
                if once(name) {
                    self.blobs = self.blobs.saturating_sub(*bytes);
                }
            }
        }
    }
}

impl Bucket {
    /// What `owner` holds, and which version of it that is.
    pub(super) async fn ledger(&self, owner: OwnerTag) -> Result<(Ledger, Option<Found>), StoreError> {
        let key = owner_key(owner);
        let Some(found) = self.get(&key).await? else { return Ok(Default::default()) };
        Ok((decode(&key, &found.bytes)?, Some(found)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPLOAD: UploadId = UploadId::from_bytes([1; 16]);

    /// A lost reply makes a change come twice.
    #[test]
    fn a_change_that_comes_twice_counts_once() {
        let mut ledger = Ledger::default();
        for _ in 0..2 {
            ledger.enter(&Entry::Hold { upload: UPLOAD, bytes: 100 });
        }
        assert_eq!(ledger.used(), 100);
        for _ in 0..2 {
            ledger.enter(&Entry::Settle { upload: UPLOAD, bytes: 100, name: "upload".into() });
            ledger.enter(&Entry::Add { bytes: 7, name: "keep".into() });
        }
        assert_eq!(ledger.used(), 107);
        for _ in 0..2 {
            ledger.enter(&Entry::Free { bytes: 7, name: "disown".into() });
        }
        assert_eq!(ledger.used(), 100);
    }

    #[test]
    fn what_is_remembered_of_changes_is_bounded() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.enter(&Entry::Add { bytes: 1, name: n.to_string() });
        }
        assert_eq!((ledger.blobs, ledger.recent.len()), (1000, RECENT_MAX));
    }
}
