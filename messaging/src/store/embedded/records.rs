//! The embedded store's records, as protobuf: fields can be added later, and old records still read.

use bytes::Bytes;
use prost::Message;
use waxwing_protocol::api::{Preferences, Visibility};
use waxwing_protocol::frames::Envelope;
use waxwing_protocol::identity::{Base64, PrekeyKind, PublicKey, SignedDeviceList, SignedPrekey, Suite};
use waxwing_protocol::{AccountId, Timestamp};

use super::tables::corrupt;
use crate::store::{AccountRecord, StoreError};

/// An account.
#[derive(Clone, PartialEq, Message)]
pub(super) struct AccountRow {
    #[prost(string, tag = "1")]
    pub(super) handle: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) account_key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) device_list: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(super) signature: Vec<u8>,
    /// The highest number that a device of it ever had; 0 while it has had only the first.
    #[prost(uint32, tag = "5")]
    pub(super) last_device: u32,
}

impl AccountRow {
    pub(super) fn new(record: &AccountRecord, last_device: u32) -> Self {
        Self {
            last_device,
            handle: record.handle.to_string(),
            account_key: record.account_key.0.to_vec(),
            device_list: record.device_list.list.0.clone(),
            signature: record.device_list.signature.0.clone(),
        }
    }

    pub(super) fn into_record(self, account: AccountId) -> Result<AccountRecord, StoreError> {
        Ok(AccountRecord {
            account,
            handle: self.handle.parse().map_err(|_| corrupt("an account"))?,
            account_key: PublicKey::from_slice(&self.account_key).map_err(|_| corrupt("an account"))?,
            device_list: SignedDeviceList { list: Base64(self.device_list), signature: Base64(self.signature) },
        })
    }
}

/// What an account lets others know. Zeros are the defaults.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PreferencesRow {
    #[prost(bool, tag = "1")]
    no_delivery_receipts: bool,
    /// 0: contacts, 1: everyone, 2: nobody.
    #[prost(uint32, tag = "2")]
    presence: u32,
}

impl PreferencesRow {
    pub(super) fn new(preferences: Preferences) -> Self {
        let presence = match preferences.presence {
            Visibility::Contacts => 0,
            Visibility::Everyone => 1,
            Visibility::Nobody => 2,
        };
        Self { no_delivery_receipts: !preferences.delivery_receipts, presence }
    }

    pub(super) fn into_preferences(self) -> Result<Preferences, StoreError> {
        let presence = match self.presence {
            0 => Visibility::Contacts,
            1 => Visibility::Everyone,
            2 => Visibility::Nobody,
            _ => return Err(corrupt("an account's preferences")),
        };
        Ok(Preferences { delivery_receipts: !self.no_delivery_receipts, presence })
    }
}

/// A device of an account.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DeviceRow {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) token_hash: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub(super) reg_id: u32,
    /// Of the token that takes the place of the other once it is used; empty when there is none.
    #[prost(bytes = "vec", tag = "3")]
    pub(super) next_token_hash: Vec<u8>,
    /// Sealed: for the account's devices alone.
    #[prost(bytes = "vec", tag = "4")]
    pub(super) name: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub(super) added_at: u64,
}

/// A prekey.
#[derive(Clone, PartialEq, Message)]
pub(super) struct PrekeyRow {
    /// 1 is Olm.
    #[prost(uint32, tag = "1")]
    suite: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    signature: Vec<u8>,
}

impl PrekeyRow {
    pub(super) fn new(prekey: &SignedPrekey) -> Self {
        let suite = match prekey.suite {
            Suite::OlmV1 => 1,
        };
        Self { suite, key: prekey.key.0.to_vec(), signature: prekey.signature.0.clone() }
    }

    pub(super) fn into_prekey(self, kind: PrekeyKind) -> Result<SignedPrekey, StoreError> {
        let suite = match self.suite {
            1 => Suite::OlmV1,
            _ => return Err(corrupt("a prekey")),
        };
        let key = PublicKey::from_slice(&self.key).map_err(|_| corrupt("a prekey"))?;
        Ok(SignedPrekey { suite, kind, key, signature: Base64(self.signature) })
    }
}

/// A mailbox: everything about it but its rows.
#[derive(Clone, PartialEq, Message)]
pub(super) struct MailboxRow {
    #[prost(uint64, tag = "1")]
    pub(super) epoch: u64,
    #[prost(uint64, tag = "2")]
    pub(super) generation: u64,
    /// Normal, then urgent.
    #[prost(message, repeated, tag = "3")]
    pub(super) lanes: Vec<LaneRow>,
    /// When it was opened last.
    #[prost(uint64, tag = "4")]
    pub(super) opened_at: u64,
}

impl MailboxRow {
    pub(super) fn new(epoch: u64) -> Self {
        Self { epoch, generation: 0, lanes: vec![LaneRow::default(); 2], opened_at: 0 }
    }

    /// Whether nothing waits in it and nothing is left to be erased.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.swept == lane.last)
    }

    pub(super) fn read(value: &[u8]) -> Result<Self, StoreError> {
        let row = Self::decode(value).map_err(|_| corrupt("a mailbox"))?;
        if row.lanes.len() == 2 { Ok(row) } else { Err(corrupt("a mailbox")) }
    }
}

/// One lane of a mailbox. Its seqs are dense: rows `acked + 1 ..= last` are all there.
#[derive(Clone, PartialEq, Message)]
pub(in crate::store) struct LaneRow {
    /// The last seq given.
    #[prost(uint64, tag = "1")]
    pub(in crate::store) last: u64,
    /// The watermark: everything up to here is acked or has expired.
    #[prost(uint64, tag = "2")]
    pub(in crate::store) acked: u64,
    /// Rows up to here are erased.
    #[prost(uint64, tag = "3")]
    pub(in crate::store) swept: u64,
    /// Bytes of all bodies ever given a seq.
    #[prost(uint64, tag = "4")]
    pub(in crate::store) bytes_given: u64,
    /// The same up to the watermark.
    #[prost(uint64, tag = "5")]
    pub(in crate::store) bytes_acked: u64,
    /// Acked out of order, above the watermark: rising, apart from one another.
    #[prost(message, repeated, tag = "6")]
    pub(in crate::store) ranges: Vec<RangeRow>,
    /// Rows that stand for a group's body lie between these two, both included; both are 0 when none is left. Whoever
    /// erases rows looks there for bodies that are needed no more.
    #[prost(uint64, tag = "7")]
    pub(in crate::store) pointers_first: u64,
    #[prost(uint64, tag = "8")]
    pub(in crate::store) pointers_last: u64,
}

/// A span of seqs, both ends included.
#[derive(Clone, Copy, PartialEq, Message)]
pub(in crate::store) struct RangeRow {
    #[prost(uint64, tag = "1")]
    pub(in crate::store) first: u64,
    #[prost(uint64, tag = "2")]
    pub(in crate::store) last: u64,
}

/// Bytes of a content's hash that are kept for two days. Whoever finds two contents that share them deceives itself alone:
/// the message id is its own.
pub(super) const SEND_HASH_BYTES: usize = 16;

/// That a message was taken.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SendRow {
    /// The first bytes of it.
    #[prost(bytes = "vec", tag = "1")]
    pub(super) content_hash: Vec<u8>,
    #[prost(uint64, tag = "2")]
    pub(super) server_ts: u64,
    /// Its place in a group's conversation, or 0.
    #[prost(uint64, tag = "3")]
    pub(super) conv_seq: u64,
}

/// Bytes before the envelope in a message's record: read at every ack and sweep, which need not the body.
const ROW_HEAD_BYTES: usize = 16;

/// What stands before the envelope in a message's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowHead {
    /// [`LaneRow::bytes_given`] with this row.
    pub(super) bytes_given: u64,
    /// When it expires.
    pub(super) expires_at: Timestamp,
}

impl RowHead {
    pub(super) fn read(value: &[u8]) -> Result<Self, StoreError> {
        let head = value.first_chunk::<ROW_HEAD_BYTES>().ok_or_else(|| corrupt("a message"))?;
        let (bytes, expires) = head.split_at(8);
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("a message"));
        Ok(Self { bytes_given: number(bytes)?, expires_at: Timestamp::from_millis(number(expires)?) })
    }

    /// What stands behind the head: the envelope, encoded.
    pub(super) fn body(value: &[u8]) -> Result<&[u8], StoreError> {
        value.get(ROW_HEAD_BYTES..).ok_or_else(|| corrupt("a message"))
    }
}

/// A message's record.
pub(super) fn row_to_bytes(bytes_given: u64, envelope: &Envelope) -> Vec<u8> {
    let mut value = Vec::with_capacity(ROW_HEAD_BYTES + envelope.encoded_len());
    value.extend_from_slice(&bytes_given.to_be_bytes());
    value.extend_from_slice(&envelope.expires_at.to_be_bytes());
    envelope.encode(&mut value).expect("a vector grows as needed");
    value
}

/// The envelope in a message's record; its body shares one copy of the value.
pub(super) fn row_envelope(value: &[u8]) -> Result<Envelope, StoreError> {
    Envelope::decode(Bytes::copy_from_slice(RowHead::body(value)?)).map_err(|_| corrupt("a message"))
}
