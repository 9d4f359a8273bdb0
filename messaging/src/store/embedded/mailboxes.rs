//! What a turn of the writer does to mailboxes.

use std::sync::Arc;

use waxwing_protocol::frames::{Envelope, Lane};
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use super::directory;
use super::records::{LaneRow, MailboxRow, RowHead, SendRow, row_to_bytes};
use super::tables::{self, corrupt, engine_error, lane_index};
use super::writer::Turn;
use crate::store::{
    AckRequest, Append, AppendError, Appended, Committed, DeviceAddress, Held, LaneView, Opened, StoreError,
};
use prost::Message as _;

impl Turn<'_> {
    /// Takes a message, or nothing of it.
    pub(super) fn append(&mut self, append: &Append) -> Result<Appended, AppendError> {
        let send_key = tables::send(append.from, append.msg_id);
        if let Some(earlier) = self.earlier_send(&send_key)? {
            if earlier.content_hash != append.content_hash {
                return Err(AppendError::OtherContent);
            }
            return Ok(Appended { server_ts: Timestamp::from_millis(earlier.server_ts), duplicate: true });
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
        for body in bodies() {
            let to = DeviceAddress { account: append.to, device: body.device };
            let lane = &mut self.changed(to).lanes[lane_index(append.lane)];
            let prev_seq = lane.last;
            lane.last += 1;
            lane.bytes_given += body.ciphertext.len() as u64;
            let (seq, bytes_given) = (lane.last, lane.bytes_given);
            let row = Envelope { body: body.ciphertext.clone(), ..append.envelope.clone() };
            let key = tables::row(to, append.lane, seq);
            self.batch.insert(&self.tables.rows, key, row_to_bytes(bytes_given, &row));
            self.committed.push(Committed { to, lane: append.lane, envelope: Envelope { seq, prev_seq, ..row } });
        }
        let server_ts = append.envelope.server_ts;
        let send = SendRow { content_hash: append.content_hash.to_vec(), server_ts };
        self.batch.insert(&self.tables.sends, send_key, send.encode_to_vec());
        self.sends.insert(send_key, send);
        Ok(Appended { server_ts: Timestamp::from_millis(server_ts), duplicate: false })
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
                self.ack(&AckRequest { mailbox: address, lane, up_to, ranges: Vec::new() })?;
            }
        }
        let mailbox = self.changed(address);
        mailbox.generation += 1;
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
            let key = tables::row(ack.mailbox, ack.lane, lane.acked);
            // A row that is not committed yet was shown to nobody: whoever acks it is guessing.
            let Some(row) = self.tables.rows.get(key).map_err(engine_error)? else {
                return Ok(());
            };
            lane.bytes_acked = RowHead::read(&row)?.bytes_given;
            self.unswept.insert(ack.mailbox);
        }
        self.changed(ack.mailbox).lanes[index] = lane;
        Ok(())
    }

    /// The record of an earlier send with this key, of this turn or committed.
    fn earlier_send(&self, key: &[u8; 36]) -> Result<Option<SendRow>, StoreError> {
        if let Some(send) = self.sends.get(key) {
            return Ok(Some(send.clone()));
        }
        let Some(value) = self.tables.sends.get(key).map_err(engine_error)? else {
            return Ok(None);
        };
        SendRow::decode(&value[..]).map(Some).map_err(|_| corrupt("a send"))
    }

    /// An account's devices and their reg_ids; none when it is unknown.
    fn devices(&mut self, account: AccountId) -> Result<Arc<[(DeviceId, u32)]>, StoreError> {
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

/// Compares the devices a message is for with the account's. The sender's own device is not among its account's
/// recipients: it has the message.
fn compare_devices(append: &Append, devices: &[(DeviceId, u32)]) -> Result<(), AppendError> {
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
