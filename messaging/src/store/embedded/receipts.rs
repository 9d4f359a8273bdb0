//! Delivery receipts: what an ack tells the senders of the rows it covers.
//!
//! A sender who was away when a message reached its reader must learn of it all the same, so a receipt is a row like any
//! other, in the same transaction as the ack that caused it. One row for each ack would fill a mailbox with noise: all
//! acks of a turn make one row per pair of accounts, and a row that still waits grows instead of being followed by
//! another.
//!
//! Only people whom the reader has written to and not blocked are told, and only when the reader's account allows it:
//! otherwise a stranger could find out when somebody's phone is on.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use waxwing_protocol::AccountId;
use waxwing_protocol::frames::{Class, DELIVERY_IDS_MAX, Lane};

use super::bodies;
use super::directory;
use super::records::{LaneRow, RowHead, row_envelope};
use super::tables::{self, corrupt, engine_error};
use super::writer::Turn;
use crate::store::{AckRequest, DeviceAddress, ReceiptRows, StoreError};

/// Rows of one ack that are looked at: the largest window. Whoever claims to hold more gets no receipts made for it.
const ROWS_SEEN_MAX: usize = 4096;

/// What a receipt needs to know of a row: prost passes over the rest, the body too.
#[derive(Clone, PartialEq, Message)]
struct Origin {
    #[prost(bytes = "bytes", tag = "3")]
    msg_id: Bytes,
    #[prost(bytes = "vec", tag = "4")]
    from_account: Vec<u8>,
    #[prost(enumeration = "Class", tag = "9")]
    class: i32,
}

/// Receipts that the acks of a turn call for.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    /// Message ids, by sender and reader.
    by_pair: BTreeMap<(AccountId, AccountId), Vec<Bytes>>,
    rows: Option<ReceiptRows>,
}

impl Turn<'_> {
    /// Takes note of the rows that `ack` covers and `before` did not.
    pub(super) fn note_deliveries(
        &mut self,
        ack: &AckRequest,
        before: &LaneRow,
        after: &LaneRow,
    ) -> Result<(), StoreError> {
        let reader = ack.mailbox.account;
        if !self.preferences(reader)?.delivery_receipts {
            return Ok(());
        }
        let spans = after.ranges.iter().map(|range| (range.first, range.last));
        let spans: Vec<_> = std::iter::once((before.acked + 1, after.acked)).chain(spans).collect();
        let mut seen = 0;
        for (first, last) in spans {
            if first > last {
                continue;
            }
            let keys = tables::row(ack.mailbox, ack.lane, first)..=tables::row(ack.mailbox, ack.lane, last);
            for guard in self.tables.rows.range(keys).take(ROWS_SEEN_MAX - seen) {
                seen += 1;
                let (key, value) = guard.into_inner().map_err(engine_error)?;
                let seq = tables::seq_of(&key).ok_or_else(|| corrupt("a message"))?;
                // A cumulative ack also covers what expired before anybody saw it.
                if before.is_acked(seq) || RowHead::read(&value)?.expires_at <= ack.receipts.now {
                    continue;
                }
                // Groups tell of deliveries in sums.
                if let Some(body) = bodies::pointer(RowHead::body(&value)?) {
                    self.note_delivered(reader, &body)?;
                    continue;
                }
                let origin = Origin::decode(RowHead::body(&value)?).map_err(|_| corrupt("a message"))?;
                let sender = AccountId::from_slice(&origin.from_account);
                let (Class::Message | Class::Call, Ok(sender)) = (origin.class(), sender) else { continue };
                if sender == reader || !self.has_written(reader, sender)? || self.blocks(reader)?.contains(&sender) {
                    continue;
                }
                self.deliveries.by_pair.entry((sender, reader)).or_default().push(origin.msg_id);
                self.deliveries.rows = Some(ack.receipts);
            }
        }
        Ok(())
    }

    /// Puts the receipts of this turn into the senders' mailboxes.
    pub(super) fn write_deliveries(&mut self) -> Result<(), StoreError> {
        let Deliveries { by_pair, rows } = std::mem::take(&mut self.deliveries);
        let Some(rows) = rows else { return Ok(()) };
        for ((sender, reader), ids) in by_pair {
            let devices = self.devices(sender)?;
            for (device, _) in devices.iter() {
                let to = DeviceAddress { account: sender, device: *device };
                for ids in ids.chunks(DELIVERY_IDS_MAX) {
                    self.write_delivery(to, reader, ids, rows)?;
                }
            }
        }
        Ok(())
    }

    fn write_delivery(
        &mut self,
        to: DeviceAddress,
        reader: AccountId,
        ids: &[Bytes],
        rows: ReceiptRows,
    ) -> Result<(), StoreError> {
        let key = tables::coalesce(to, Lane::Normal, reader, None, &[]);
        let mut msg_ids = Vec::new();
        let waiting = self.waiting_row(to, Lane::Normal, &key)?;
        if let Some(seq) = waiting
            && let Some(value) = self.tables.rows.get(tables::row(to, Lane::Normal, seq)).map_err(engine_error)?
        {
            let earlier = row_envelope(&value)?.delivery.unwrap_or_default().msg_ids;
            if earlier.len() + ids.len() <= DELIVERY_IDS_MAX {
                self.replace(to, Lane::Normal, seq)?;
                msg_ids = earlier;
            }
        }
        let Some(mailbox) = self.mailbox(to)? else { return Ok(()) };
        let lane = &mailbox.lanes[tables::lane_index(Lane::Normal)];
        // A mailbox that is full takes no receipts either: its owner has other worries.
        if lane.waiting() >= rows.quota.msgs || lane.bytes_waiting() >= rows.quota.bytes {
            return Ok(());
        }
        msg_ids.extend_from_slice(ids);
        let bytes = msg_ids.iter().map(Bytes::len).sum::<usize>() as u64;
        self.put_row(to, Lane::Normal, bytes, rows.envelope(reader, msg_ids), Some(key));
        Ok(())
    }

    /// Whether `account` has ever written to `peer`.
    pub(super) fn has_written(&mut self, account: AccountId, peer: AccountId) -> Result<bool, StoreError> {
        if let Some(written) = self.memory.written.get(&(account, peer)) {
            return Ok(*written);
        }
        let written = directory::has_written(self.tables, account, peer)?;
        self.memory.written.insert((account, peer), written);
        Ok(written)
    }
}
