//! What owners hold: one object for each, changed by compare-and-swap.
//!
//! A blob and its owner's ledger are two objects, which no request changes together. So whoever adds a blob charges its
//! owner before, and whoever takes one away frees the owner after: a crash between the two leaves an owner charged with
//! bytes they do not hold, never holding bytes they are not charged with. Charges stay *open* in the ledger until it is
//! written again after their blob's pointer was, so that what a crash cut is found by looking at these alone
//! ([`super::proofs`]).
//!
//! A change that is tried again must not count twice: each has a name, and the ledger remembers the last of them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::bucket::{Bucket, Found};
use super::objects::{decode, owner_key};
use crate::store::StoreError;

/// Changes whose names are remembered: more than can be under way for one owner at a time.
const RECENT_MAX: usize = 64;

/// Charges that wait to be proven. The oldest of more are believed: their owner may stay charged with what they do not
/// have, never the other way round.
const OPEN_MAX: usize = 64;

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
    /// Charges for blobs that were not seen to be their owner's yet, the oldest first. What a crash cut is among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) open: Vec<Open>,
}

/// A charge for a blob, and what proves it: the blob's pointer says that its owner has it by this charge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Open {
    pub(super) name: String,
    pub(super) blob: BlobId,
    pub(super) bytes: u64,
    /// The upload that brought it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) upload: Option<UploadId>,
    pub(super) at: Timestamp,
}

impl Open {
    /// A charge that is made now.
    pub(super) fn new(name: &str, blob: BlobId, bytes: u64, upload: Option<UploadId>) -> Self {
        Self { name: name.to_owned(), blob, bytes, upload, at: SystemTime::now().into() }
    }
}

/// A change of a ledger.
#[derive(Clone, Debug)]
pub(super) enum Entry {
    /// This upload holds so many bytes from now on.
    Hold { upload: UploadId, bytes: u64 },
    /// This upload became a blob that its owner did not have.
    Settle(Open),
    /// The owner has a blob more.
    Add(Open),
    /// The owner has a blob less, for which they were charged by `charge`. `is_late`: this may have been entered so long ago
    /// that it is forgotten; then the owner stays charged.
    Free { bytes: u64, name: String, charge: String, is_late: bool },
}

impl Ledger {
    /// What the owner holds.
    pub(super) fn used(&self) -> u64 {
        self.uploads.values().fold(self.blobs, |sum, bytes| sum.saturating_add(*bytes))
    }

    /// What this ledger is after a count of everything.
    pub(super) fn counted(&self, blobs: u64, uploads: BTreeMap<UploadId, u64>) -> Self {
        Self { blobs, uploads, quota_bytes: self.quota_bytes, recent: Vec::new(), open: Vec::new() }
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let names: usize = self.recent.iter().map(|name| name.len() + size_of::<String>()).sum();
        let open: usize = self.open.iter().map(|open| open.name.len() + size_of::<Open>()).sum();
        size_of::<Self>() + names + open + self.uploads.len() * 2 * size_of::<(UploadId, u64)>()
    }

    /// Whether the owner holds the same by `other`.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        self.blobs == other.blobs && self.uploads == other.uploads
    }

    /// Makes a change, unless it was made.
    pub(super) fn enter(&mut self, entry: &Entry) {
        match entry {
            Entry::Hold { upload, bytes: 0 } => drop(self.uploads.remove(upload)),
            Entry::Hold { upload, bytes } => drop(self.uploads.insert(*upload, *bytes)),
            Entry::Settle(charge) => {
                self.add(charge);
                if let Some(upload) = &charge.upload {
                    self.uploads.remove(upload);
                }
            }
            Entry::Add(charge) => self.add(charge),
            Entry::Free { is_late: true, .. } if self.recent.len() >= RECENT_MAX => {}
            Entry::Free { bytes, name, charge, .. } => {
                if self.is_new(name) {
                    self.blobs = self.blobs.saturating_sub(*bytes);
                    self.prove(charge);
                }
            }
        }
    }

    fn add(&mut self, charge: &Open) {
        if self.is_new(&charge.name) {
            self.blobs = self.blobs.saturating_add(charge.bytes);
            if self.open.len() >= OPEN_MAX {
                self.open.remove(0);
            }
            self.open.push(charge.clone());
        }
    }

    /// Whether a change was not made yet; from now on it counts as made.
    fn is_new(&mut self, name: &str) -> bool {
        if self.recent.iter().any(|recent| recent == name) {
            return false;
        }
        if self.recent.len() >= RECENT_MAX {
            self.recent.remove(0);
        }
        self.recent.push(name.to_owned());
        true
    }

    /// Nothing is open any more about the charge `name`.
    pub(super) fn prove(&mut self, name: &str) {
        self.open.retain(|open| open.name != name);
    }

    /// Takes back a charge that is open and stands for nothing.
    pub(super) fn take_back(&mut self, charge: &Open) {
        self.blobs = self.blobs.saturating_sub(charge.bytes);
        self.prove(&charge.name);
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

    fn charge(name: &str, bytes: u64, upload: Option<UploadId>) -> Open {
        Open { name: name.into(), blob: BlobId::from_bytes([2; 32]), bytes, upload, at: Timestamp::default() }
    }

    /// A lost reply makes a change come twice.
    #[test]
    fn a_change_that_comes_twice_counts_once() {
        let mut ledger = Ledger::default();
        for _ in 0..2 {
            ledger.enter(&Entry::Hold { upload: UPLOAD, bytes: 100 });
        }
        assert_eq!(ledger.used(), 100);
        for _ in 0..2 {
            ledger.enter(&Entry::Settle(charge("upload", 100, Some(UPLOAD))));
            ledger.enter(&Entry::Add(charge("keep", 7, None)));
        }
        assert_eq!((ledger.used(), ledger.open.len()), (107, 2));
        for _ in 0..2 {
            ledger.enter(&Entry::Free { bytes: 7, name: "disown".into(), charge: "keep".into(), is_late: false });
        }
        assert_eq!((ledger.used(), ledger.open.len()), (100, 1));
        ledger.prove("upload");
        assert_eq!((ledger.used(), ledger.open.len()), (100, 0));
    }

    #[test]
    fn what_is_remembered_of_changes_is_bounded() {
        let mut ledger = Ledger::default();
        for n in 0..1000 {
            ledger.enter(&Entry::Add(charge(&n.to_string(), 1, None)));
        }
        assert_eq!((ledger.blobs, ledger.recent.len(), ledger.open.len()), (1000, RECENT_MAX, OPEN_MAX));
    }
}
