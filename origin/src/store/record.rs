//! What is remembered of an upload, and its form on disk.
//!
//! A record outlives the program that wrote it. Its first byte is the version of its form, so that a later program can
//! tell an old record from a damaged one; anything unreadable is an error that says so, never a guess.

use data_encoding::BASE64;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use waxwing_protocol::blob::{GROUP_BYTES, HasherState};
use waxwing_protocol::{BlobId, OwnerTag, Timestamp};

use super::{StoreError, StoreErrorKind};

/// The version of the form written now: JSON after the version byte.
const VERSION: u8 = 1;

/// What is remembered of an upload. Its id is the key it is stored under.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UploadRecord {
    /// Whose it is. For anyone else it does not exist.
    pub(crate) owner: OwnerTag,
    /// Bytes that this owner may hold, by the grant that was shown last.
    #[serde(default = "unlimited")]
    pub(crate) quota_bytes: u64,
    /// Bytes it will have; unknown as long as the client defers it.
    pub(crate) length: Option<u64>,
    /// Bytes that are durable. Never decreases.
    pub(crate) offset: u64,
    /// The claim that committed this. A claim with a lower one is stale.
    pub(crate) epoch: u64,
    /// When it was created.
    pub(crate) created: Timestamp,
    /// When it is forgotten unless something happens.
    pub(crate) expires: Timestamp,
    /// Whether its creator came back to it, and so knows where it is.
    pub(crate) acknowledged: bool,
    /// The blob id its creator expects.
    pub(crate) expected: Option<BlobId>,
    /// `Upload-Metadata` as it was sent.
    pub(crate) metadata: Option<String>,
    /// What it has to do with a concatenation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) concat: Option<Concat>,
    /// The digest of all of it, when its creator named or wanted one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<StoredDigest>,
    /// How far it has come.
    pub(crate) state: UploadState,
}

/// The digest of a whole upload, as far as it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoredDigest {
    /// How it is made.
    pub(crate) algorithm: WholeAlgorithm,
    /// What it must be, in base64.
    pub(crate) expected: Option<String>,
    /// How far it has come.
    pub(crate) progress: DigestProgress,
}

impl StoredDigest {
    /// The digest of an upload that begins.
    pub(crate) const fn new(algorithm: WholeAlgorithm, expected: Option<String>) -> Self {
        Self { algorithm, expected, progress: DigestProgress::Running { state: String::new() } }
    }
}

/// How the digest of a whole upload is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WholeAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
    /// MD5, then CRC-32C with its most significant byte first: what Google's clients compare.
    Md5Crc32c,
}

/// How far the digest of a whole upload has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DigestProgress {
    /// The hash function's state at the record's offset, in base64; empty at the start.
    Running { state: String },
    /// The digest, in base64.
    Done { value: String },
}

/// What an upload has to do with a concatenation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Concat {
    /// It is a part.
    Partial,
    /// It is made of parts.
    Final {
        /// How its creator named them, to be given back.
        named: String,
    },
}

/// How far an upload has come.
///
/// Becoming a blob is one atomic commit in the embedded store, so there is no state between these two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum UploadState {
    /// Taking bytes.
    Receiving {
        /// The hash at the last complete chunk group before `offset`.
        #[serde(with = "base64_state")]
        hash: HasherState,
    },
    /// All there.
    Complete {
        /// What it became.
        blob: BlobId,
    },
}

impl UploadRecord {
    /// Bytes that it takes from its owner's quota: all it will have once that is known, so that an upload that was begun
    /// can be ended. A finished one takes none, since its blob does.
    pub(crate) const fn held_bytes(&self) -> u64 {
        match (&self.state, self.length) {
            (UploadState::Complete { .. }, _) => 0,
            (UploadState::Receiving { .. }, Some(length)) => length,
            (UploadState::Receiving { .. }, None) => self.offset,
        }
    }

    /// The record as bytes to store.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).expect("numbers and strings always serialize, into memory");
        bytes
    }

    /// Reads what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, StoreError> {
        let corrupt = || StoreError::new(StoreErrorKind::Corrupt, "reading an upload's record");
        let Some((&VERSION, json)) = bytes.split_first() else {
            return Err(corrupt().because("unknown version"));
        };
        let record: Self = serde_json::from_slice(json).map_err(|error| corrupt().because(error))?;
        record.checked()
    }

    /// The same, if it says nothing that cannot be.
    pub(crate) fn checked(self) -> Result<Self, StoreError> {
        if let UploadState::Receiving { hash } = &self.state
            && self.offset.checked_sub(hash.offset()).is_none_or(|tail| tail >= GROUP_BYTES)
        {
            let corrupt = StoreError::new(StoreErrorKind::Corrupt, "reading an upload's record");
            return Err(corrupt.because("the hash is not where the bytes are"));
        }
        Ok(self)
    }
}

/// What a record means that was written before there were quotas.
const fn unlimited() -> u64 {
    u64::MAX
}

/// A hasher's state as base64 text.
mod base64_state {
    use super::{BASE64, Deserialize, Deserializer, HasherState, Serializer};

    pub(super) fn serialize<S: Serializer>(state: &HasherState, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&BASE64.encode(&state.to_bytes()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HasherState, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let bytes = BASE64.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        HasherState::from_bytes(&bytes).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_protocol::blob::BlobHasher;

    fn record() -> UploadRecord {
        let mut hasher = BlobHasher::new();
        hasher.update(&vec![7; 3 * GROUP_BYTES as usize + 9], |_| ());
        UploadRecord {
            owner: OwnerTag::from_bytes([1; 16]),
            quota_bytes: 1 << 30,
            length: Some(1 << 20),
            offset: hasher.offset(),
            epoch: 4,
            created: Timestamp::from_secs(1),
            expires: Timestamp::from_secs(2),
            acknowledged: true,
            expected: Some(BlobId::from_bytes([2; 32])),
            metadata: Some("filename d29ybGQ=".into()),
            concat: Some(Concat::Partial),
            digest: Some(StoredDigest::new(WholeAlgorithm::Sha256, Some("eA==".into()))),
            state: UploadState::Receiving { hash: hasher.state().clone() },
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_stored() {
        let receiving = record();
        let complete =
            UploadRecord { state: UploadState::Complete { blob: BlobId::from_bytes([3; 32]) }, ..receiving.clone() };
        for record in [receiving, complete] {
            assert_eq!(UploadRecord::from_bytes(&record.to_bytes()).unwrap(), record);
        }
    }

    /// A torn or foreign record must stop one upload with a clear error, not the process.
    #[test]
    fn a_torn_or_unknown_record_is_told_as_damage() {
        let stored = record().to_bytes();
        let mut newer = stored.clone();
        newer[0] = VERSION + 1;
        let ahead = UploadRecord { offset: 1, ..record() }.to_bytes();
        let behind = UploadRecord { offset: 5 * GROUP_BYTES, ..record() }.to_bytes();
        for bytes in [&stored[..stored.len() / 2], &[], &[VERSION], &newer, &ahead, &behind] {
            assert_eq!(UploadRecord::from_bytes(bytes).unwrap_err().kind(), StoreErrorKind::Corrupt);
        }
    }
}
