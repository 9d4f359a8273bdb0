//! Bodies of groups: stored once, and gone with the last row that points at them.
//!
//! A message to a thousand people copied into a thousand mailboxes would cost a hundred megabytes. So its envelope and
//! body lie here, under group and place in the conversation, with a count of the rows in mailboxes that stand for it. A
//! row is erased once, by the sweeper or with its mailbox, in the same commit that counts it off; the one that counts off
//! the last erases the body. There is nothing else that a crash could leave.

use std::collections::HashMap;

use bytes::Bytes;
use prost::Message as _;
use waxwing_protocol::GroupId;
use waxwing_protocol::frames::{Envelope, Lane};

use super::records::{LaneRow, RowHead, row_envelope};
use super::tables::{self, RowKey, Tables, corrupt, engine_error};
use super::writer::Turn;
use crate::store::{Committed, DeviceAddress, StoreError};

/// Where a body lies: group and place in the conversation.
pub(super) type BodyKey = [u8; 24];

/// What stands in a row before the key of a body. No envelope begins with it: a protobuf field has no number 0.
const POINTER: u8 = 0;

/// Last bytes of keys: the envelope, and how many rows stand for it.
const ENVELOPE: u8 = 0;
const ROWS: u8 = 1;

/// What a turn does to bodies.
#[derive(Debug, Default)]
pub(super) struct Bodies {
    /// Put in this turn: the encoded envelope and its rows so far.
    put: HashMap<BodyKey, (Vec<u8>, u32)>,
    /// Rows erased of bodies.
    released: HashMap<BodyKey, u32>,
    /// Rows of this turn, which the engine does not show yet.
    pointers: HashMap<RowKey, BodyKey>,
}

pub(super) fn key(group: GroupId, conv_seq: u64) -> BodyKey {
    let mut key = [0; 24];
    key[..16].copy_from_slice(group.as_bytes());
    key[16..].copy_from_slice(&conv_seq.to_be_bytes());
    key
}

fn part(key: &BodyKey, part: u8) -> [u8; 25] {
    let mut whole = [part; 25];
    whole[..24].copy_from_slice(key);
    whole
}

/// The body that a row stands for, if it does. `row` is what follows the row's head.
pub(super) fn pointer(row: &[u8]) -> Option<BodyKey> {
    let (first, key) = row.split_first()?;
    if *first == POINTER { key.try_into().ok() } else { None }
}

/// The envelope of a row; `None` when the body that it stands for is gone.
pub(super) fn envelope(tables: &Tables, row: &[u8]) -> Result<Option<Envelope>, StoreError> {
    let Some(key) = pointer(RowHead::body(row)?) else { return row_envelope(row).map(Some) };
    let Some(value) = tables.bodies.get(part(&key, ENVELOPE)).map_err(engine_error)? else {
        return Ok(None);
    };
    let envelope = Envelope::decode(Bytes::copy_from_slice(&value)).map_err(|_| corrupt("a group's message"))?;
    Ok(Some(envelope))
}

impl Turn<'_> {
    /// Begins a body; without a row it is not stored.
    pub(super) fn begin_body(&mut self, key: BodyKey, envelope: &Envelope) {
        self.bodies.put.insert(key, (envelope.encode_to_vec(), 0));
    }

    /// Puts a row for a body begun in this turn at the end of a lane of a mailbox that this turn has looked at.
    pub(super) fn put_pointer(&mut self, to: DeviceAddress, lane: Lane, body: BodyKey, envelope: &Envelope) {
        let place = self.place(to, lane, envelope.body.len() as u64);
        let mut row = Vec::with_capacity(16 + 1 + body.len());
        row.extend_from_slice(&place.bytes_given.to_be_bytes());
        row.extend_from_slice(&envelope.expires_at.to_be_bytes());
        row.push(POINTER);
        row.extend_from_slice(&body);
        self.batch.insert(&self.tables.rows, place.key, row);
        self.bodies.pointers.insert(place.key, body);
        if let Some((_, rows)) = self.bodies.put.get_mut(&body) {
            *rows += 1;
        }
        let counts = &mut self.changed(to).lanes[tables::lane_index(lane)];
        if counts.pointers_first == 0 {
            counts.pointers_first = place.seq;
        }
        counts.pointers_last = place.seq;
        let envelope = Envelope { seq: place.seq, prev_seq: place.prev_seq, ..envelope.clone() };
        self.committed.push(Committed { to, lane, envelope });
    }

    /// Counts off the rows of a lane that are about to be erased: those above the ones erased already, up to `until`.
    pub(super) fn release_swept(
        &mut self,
        address: DeviceAddress,
        lane: Lane,
        row: &mut LaneRow,
        until: u64,
    ) -> Result<(), StoreError> {
        if row.pointers_first == 0 {
            return Ok(());
        }
        for seq in row.pointers_first.max(row.swept + 1)..=row.pointers_last.min(until) {
            let key = tables::row(address, lane, seq);
            let body = match self.bodies.pointers.remove(&key) {
                Some(body) => Some(body),
                None => match self.tables.rows.get(key).map_err(engine_error)? {
                    Some(value) => pointer(RowHead::body(&value)?),
                    None => None,
                },
            };
            if let Some(body) = body {
                self.release(body);
            }
        }
        if until >= row.pointers_last {
            (row.pointers_first, row.pointers_last) = (0, 0);
        } else {
            row.pointers_first = row.pointers_first.max(until + 1);
        }
        Ok(())
    }

    /// Erases rows of mailboxes that are no more, under a prefix of their keys, as many as are `left` of the step.
    pub(super) fn erase_rows(&mut self, prefix: &[u8], left: &mut usize) -> Result<(), StoreError> {
        for guard in self.tables.rows.prefix(prefix).take(*left) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            if let Some(body) = pointer(RowHead::body(&value)?) {
                self.release(body);
            }
            self.batch.remove(&self.tables.rows, key);
            *left -= 1;
        }
        Ok(())
    }

    fn release(&mut self, body: BodyKey) {
        *self.bodies.released.entry(body).or_default() += 1;
    }

    /// Writes what this turn has put, and erases what nothing stands for any more.
    pub(super) fn write_bodies(&mut self) -> Result<(), StoreError> {
        let Bodies { put, mut released, .. } = std::mem::take(&mut self.bodies);
        let bodies = &self.tables.bodies;
        for (key, (envelope, rows)) in put {
            let left = rows.saturating_sub(released.remove(&key).unwrap_or(0));
            if left > 0 {
                self.batch.insert(bodies, part(&key, ENVELOPE), envelope);
                self.batch.insert(bodies, part(&key, ROWS), left.to_be_bytes());
            }
        }
        for (key, gone) in released {
            let Some(value) = bodies.get(part(&key, ROWS)).map_err(engine_error)? else { continue };
            let rows = value[..].try_into().map(u32::from_be_bytes).map_err(|_| corrupt("a group's message"))?;
            match rows.saturating_sub(gone) {
                0 => {
                    self.batch.remove(bodies, part(&key, ENVELOPE));
                    self.batch.remove(bodies, part(&key, ROWS));
                }
                left => self.batch.insert(bodies, part(&key, ROWS), left.to_be_bytes()),
            }
        }
        Ok(())
    }
}
