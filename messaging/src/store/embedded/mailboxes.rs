//! What a turn of the writer does to mailboxes.

use std::sync::Arc;

use waxwing_protocol::frames::{Envelope, Lane};
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use super::directory;
use super::records::{LaneRow, MailboxRow, RowHead, SEND_HASH_BYTES, SendRow, row_to_bytes};
use super::tables::{self, RowKey, corrupt, engine_error, lane_index};
use super::writer::Turn;
use crate::metrics::handles;
use crate::store::{
    AckRequest, Append, AppendError, Appended, Committed, DeviceAddress, Held, LaneView, Opened, StoreError,
};
use prost::Message as _;

/// Rows that an ack erases at most: the largest window. What a client acks beyond that waits for the sweeper.
const ERASED_AT_ONCE: usize = 4096;

impl Turn<'_> {
    /// Takes a message, or nothing of it.
    pub(super) fn append(&mut self, append: &Append) -> Result<Appended, AppendError> {
        let send_key = tables::send(append.from, append.msg_id);
        if let Some(earlier) = self.earlier_send(&send_key)? {
            if !append.content_hash.starts_with(&earlier.content_hash) {
                return Err(AppendError::OtherContent);
            }
            let server_ts = Timestamp::from_millis(earlier.server_ts);
            return Ok(Appended { server_ts, duplicate: true, conv_seq: earlier.conv_seq });
        }
        let devices = self.devices(append.to)?;
        if devices.is_empty() {
            return Err(AppendError::UnknownAccount);
        }
        compare_devices(append, &devices)?;
        let bodies = || append.bodies.iter().filter(|body| !append.absent.contains(&body.device));
        // Everything that can fail comes before the first change: a message goes into all mailboxes or into none.
        for body in bodies() {
            let to = DeviceAddress { account: append.to, device: body.device };
            let mailbox = self.mailbox(to)?.ok_or_else(|| corrupt("a mailbox"))?;
            let lane = &mailbox.lanes[lane_index(append.lane)];
            let bytes = lane.bytes_waiting().saturating_add(body.ciphertext.len() as u64);
            if lane.waiting() >= append.quota.msgs || bytes > append.quota.bytes {
                return Err(AppendError::MailboxFull { device: body.device });
            }
        }
        let (from, to) = (append.from.account, append.to);
        let introduces = append.introduces && !self.has_written(from, to)?;
        let request = append.introduces && from != to && !self.has_written(to, from)?;
        let blocked = self.blocks(to)?.contains(&from);
        let bodies = || bodies().filter(|_| !blocked);
        let mut replaced = Vec::new();
        for body in bodies().filter(|_| !append.coalesce_key.is_empty()) {
            let mailbox = DeviceAddress { account: to, device: body.device };
            let key = tables::coalesce(mailbox, append.lane, from, Some(append.from.device), &append.coalesce_key);
            replaced.push((body.device, self.waiting_row(mailbox, append.lane, &key)?, key));
        }
        for (device, waiting, _) in &replaced {
            if let Some(seq) = waiting {
                self.replace(DeviceAddress { account: to, device: *device }, append.lane, *seq)?;
            }
        }
        for body in bodies() {
            let mailbox = DeviceAddress { account: to, device: body.device };
            let row = Envelope { body: body.ciphertext.clone(), request, ..append.envelope.clone() };
            let key = replaced.iter().position(|(device, ..)| *device == body.device);
            let key = key.map(|at| replaced.swap_remove(at).2);
            self.put_row(mailbox, append.lane, body.ciphertext.len() as u64, row, key);
        }
        if introduces {
            self.batch.insert(&self.tables.directory, tables::written(from, to), []);
            self.batch.insert(&self.tables.directory, tables::written_by(to, from), []);
            self.memory.written.insert((from, to), true);
        }
        let server_ts = append.envelope.server_ts;
        let content_hash = append.content_hash[..SEND_HASH_BYTES].to_vec();
        let send = SendRow { content_hash, server_ts, conv_seq: 0 };
        self.batch.insert(&self.tables.sends, send_key, send.encode_to_vec());
        self.sends.insert(send_key, send);
        Ok(Appended { server_ts: Timestamp::from_millis(server_ts), duplicate: false, conv_seq: 0 })
    }

    /// Puts a row at the end of a lane of a mailbox that this turn has looked at. `bytes` is what it counts for,
    /// `coalesce` the key under which a later one finds it.
    pub(super) fn put_row(
        &mut self,
        to: DeviceAddress,
        lane: Lane,
        bytes: u64,
        row: Envelope,
        coalesce: Option<Vec<u8>>,
    ) {
        let Place { key, seq, prev_seq, bytes_given } = self.place(to, lane, bytes);
        self.batch.insert(&self.tables.rows, key, row_to_bytes(bytes_given, &row));
        if let Some(key) = coalesce {
            self.batch.insert(&self.tables.directory, key.clone(), seq.to_be_bytes());
            self.coalesced.insert(key, seq);
        }
        self.committed.push(Committed { to, lane, envelope: Envelope { seq, prev_seq, ..row } });
    }

    /// The next place in a lane of a mailbox that this turn has looked at.
    pub(super) fn place(&mut self, to: DeviceAddress, lane: Lane, bytes: u64) -> Place {
        let counts = &mut self.changed(to).lanes[lane_index(lane)];
        let prev_seq = counts.last;
        counts.last += 1;
        counts.bytes_given += bytes;
        let (seq, bytes_given) = (counts.last, counts.bytes_given);
        let key = tables::row(to, lane, seq);
        self.put.insert(key, bytes_given);
        Place { key, seq, prev_seq, bytes_given }
    }

    /// The seq of the row with this coalesce key, as long as it is not acked.
    pub(super) fn waiting_row(&mut self, to: DeviceAddress, lane: Lane, key: &[u8]) -> Result<Option<u64>, StoreError> {
        let seq = match self.coalesced.get(key) {
            Some(seq) => Some(*seq),
            None => match self.tables.directory.get(key).map_err(engine_error)? {
                Some(value) => Some(tables::coalesced_seq(&value)?),
                None => None,
            },
        };
        let Some(mailbox) = self.mailbox(to)? else { return Ok(None) };
        Ok(seq.filter(|seq| !mailbox.lanes[lane_index(lane)].is_acked(*seq)))
    }

    /// Takes a row out of a lane: what replaces it comes after. When there are too many gaps already it stays, and its
    /// reader gets both.
    pub(super) fn replace(&mut self, to: DeviceAddress, lane: Lane, seq: u64) -> Result<(), StoreError> {
        let Some(mailbox) = self.mailbox(to)? else { return Ok(()) };
        let mut counts = mailbox.lanes[lane_index(lane)].clone();
        let before = counts.acked;
        if !counts.ack_range(seq, seq) {
            return Ok(());
        }
        if counts.acked > before {
            let Some(bytes) = self.bytes_given(to, lane, counts.acked)? else { return Ok(()) };
            counts.bytes_acked = bytes;
            self.unswept.insert(to);
        }
        self.changed(to).lanes[lane_index(lane)] = counts;
        Ok(())
    }

    /// Bytes given to a lane up to and with a row, of this turn or committed; `None` when there is no such row.
    fn bytes_given(&self, to: DeviceAddress, lane: Lane, seq: u64) -> Result<Option<u64>, StoreError> {
        let key = tables::row(to, lane, seq);
        if let Some(bytes) = self.put.get(&key) {
            return Ok(Some(*bytes));
        }
        let row = self.tables.rows.get(key).map_err(engine_error)?;
        row.map(|row| Ok(RowHead::read(&row)?.bytes_given)).transpose()
    }

    /// Opens a mailbox for a new connection.
    pub(super) fn open(&mut self, address: DeviceAddress, held: Held) -> Result<Option<Opened>, StoreError> {
        let Some(mailbox) = self.mailbox(address)? else {
            return Ok(None);
        };
        if held.epoch == mailbox.epoch {
            let last = [mailbox.lanes[0].last, mailbox.lanes[1].last];
            for (lane, up_to) in [Lane::Normal, Lane::Urgent].into_iter().zip(held.up_to) {
                // Nobody can hold what was never given; whoever claims to speaks of another mailbox.
                if up_to > last[lane_index(lane)] {
                    continue;
                }
                self.ack(&AckRequest { mailbox: address, lane, up_to, ranges: Vec::new(), receipts: held.receipts })?;
            }
        }
        self.opened.push(address);
        let mailbox = self.changed(address);
        mailbox.generation += 1;
        mailbox.opened_at = held.receipts.now.as_millis();
        let view = |lane: &LaneRow| LaneView { acked: lane.acked, last: lane.last, waiting: lane.waiting() };
        Ok(Some(Opened {
            epoch: mailbox.epoch,
            generation: mailbox.generation,
            lanes: [view(&mailbox.lanes[0]), view(&mailbox.lanes[1])],
        }))
    }

    /// Moves a watermark.
    pub(super) fn ack(&mut self, ack: &AckRequest) -> Result<(), StoreError> {
        let index = lane_index(ack.lane);
        let Some(mailbox) = self.mailbox(ack.mailbox)? else {
            return Ok(());
        };
        let before = mailbox.lanes[index].clone();
        let mut lane = before.clone();
        for (first, last) in ack.ranges.iter().copied() {
            lane.ack_range(first, last);
        }
        lane.ack_up_to(ack.up_to);
        if lane == before {
            return Ok(());
        }
        if lane.acked > before.acked {
            // A row that is not committed yet was shown to nobody: whoever acks it is guessing.
            if self.put.contains_key(&tables::row(ack.mailbox, ack.lane, ack.up_to)) {
                return Ok(());
            }
            let Some(bytes) = self.bytes_given(ack.mailbox, ack.lane, lane.acked)? else {
                return Ok(());
            };
            lane.bytes_acked = bytes;
        }
        handles().acked.increment(before.waiting() - lane.waiting());
        self.note_deliveries(ack, &before, &lane)?;
        self.erase_fresh(ack.mailbox, ack.lane, &mut lane)?;
        if lane.swept < lane.acked {
            self.unswept.insert(ack.mailbox);
        }
        self.changed(ack.mailbox).lanes[index] = lane;
        Ok(())
    }

    /// Erases acked rows that stand in memory alone: most do, and leave nothing behind. Others wait for the sweeper.
    fn erase_fresh(&mut self, mailbox: DeviceAddress, lane: Lane, counts: &mut LaneRow) -> Result<(), StoreError> {
        let keys = (counts.swept + 1..=counts.acked).map(|seq| tables::row(mailbox, lane, seq));
        let fresh: Vec<_> = keys.take(ERASED_AT_ONCE).take_while(|key| self.tables.rows.is_fresh(key)).collect();
        let until = counts.swept + fresh.len() as u64;
        self.release_swept(mailbox, lane, counts, until)?;
        fresh.into_iter().for_each(|key| self.batch.remove(&self.tables.rows, key));
        handles().swept.increment(until - counts.swept);
        counts.swept = until;
        Ok(())
    }

    /// The record of an earlier send with this key, of this turn or committed.
    pub(super) fn earlier_send(&mut self, key: &[u8; 36]) -> Result<Option<SendRow>, StoreError> {
        if let Some(send) = self.sends.get(key) {
            return Ok(Some(send.clone()));
        }
        let value = match self.tables.sends.recent(key) {
            Some(entry) => entry.value().cloned(),
            None => {
                if let Some(found) = self.tables.sent.find(key).map_err(engine_error)? {
                    let from = tables::address_of(key).ok_or_else(|| corrupt("a send"))?;
                    // An account that was deleted may be registered anew: what it sent before is another's.
                    if found.epoch == self.mailbox(from)?.map_or(0, |mailbox| mailbox.epoch) {
                        return Ok(Some(found.row));
                    }
                }
                self.tables.sends.keyspace().get(key).map_err(engine_error)?
            }
        };
        value.map(|value| SendRow::decode(&value[..]).map_err(|_| corrupt("a send"))).transpose()
    }

    /// An account's devices and their reg_ids; none when it is unknown.
    pub(super) fn devices(&mut self, account: AccountId) -> Result<Arc<[(DeviceId, u32)]>, StoreError> {
        if self.deleted == Some(account) {
            return Ok(Arc::new([]));
        }
        if let Some(devices) = self.memory.devices.get(&account) {
            return Ok(devices.clone());
        }
        let devices: Arc<[_]> = directory::devices(self.tables, account)?.into();
        if !devices.is_empty() {
            self.memory.devices.insert(account, devices.clone());
        }
        Ok(devices)
    }

    /// A mailbox as this turn has it.
    pub(super) fn mailbox(&mut self, address: DeviceAddress) -> Result<Option<&MailboxRow>, StoreError> {
        if self.deleted == Some(address.account) || self.removed == Some(address) {
            return Ok(None);
        }
        if !self.memory.mailboxes.contains_key(&address) {
            let Some(value) = self.tables.mailboxes.get(tables::address(address)).map_err(engine_error)? else {
                return Ok(None);
            };
            let row = MailboxRow::read(&value)?;
            self.memory.mailboxes.insert(address, row);
        }
        Ok(self.memory.mailboxes.get(&address))
    }

    /// A mailbox that [`Turn::mailbox`] has just shown, to be changed and written at the end of the turn.
    pub(super) fn changed(&mut self, address: DeviceAddress) -> &mut MailboxRow {
        self.changed.insert(address);
        self.memory.mailboxes.get_mut(&address).expect("the mailbox was loaded in this turn")
    }
}

/// A place in a lane.
pub(super) struct Place {
    pub(super) key: RowKey,
    pub(super) seq: u64,
    pub(super) prev_seq: u64,
    /// Bytes given to the lane up to and with it.
    pub(super) bytes_given: u64,
}

/// Compares the devices a message is for with the account's. The sender's own device is not among its account's
/// recipients: it has the message.
pub(in crate::store) fn compare_devices(append: &Append, devices: &[(DeviceId, u32)]) -> Result<(), AppendError> {
    let own = (append.to == append.from.account).then_some(append.from.device);
    let expected = || devices.iter().filter(|(device, _)| Some(*device) != own);
    let named = |device: DeviceId| append.bodies.iter().find(|body| body.device == device);
    let missing: Vec<_> = expected().map(|(device, _)| *device).filter(|device| named(*device).is_none()).collect();
    let extra = append.bodies.iter().map(|body| body.device);
    let extra: Vec<_> = extra.filter(|device| !expected().any(|(known, _)| known == device)).collect();
    if !missing.is_empty() || !extra.is_empty() {
        return Err(AppendError::DeviceMismatch { missing, extra });
    }
    let stale = expected().filter(|(device, reg_id)| named(*device).is_some_and(|body| body.reg_id != *reg_id));
    let stale: Vec<_> = stale.map(|(device, _)| *device).collect();
    if stale.is_empty() { Ok(()) } else { Err(AppendError::StaleDevices { stale }) }
}
