//! Erasing in bulk what nobody can read any more.
//!
//! Acked rows lie below a watermark and expired ones are skipped, so erasing is never urgent and never part of an ack.
//! It happens here, a bounded part at a time, between the commits of others. Mailboxes acked since the last round come
//! first; a full pass over everything, once an hour and after a start, finds what has expired and what a crash left.

use std::ops::Bound;
use std::time::Duration;

use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::Lane;

use prost::Message;
use tracing::error;

use super::records::{MailboxRow, RowHead, SendRow};
use super::sends::SENDS_KEPT;
use super::tables::{self, corrupt, engine_error, tag};
use super::writer::Turn;
use crate::metrics::Depth;
use crate::store::{DeviceAddress, StoreError, StoreErrorKind, Swept};

/// How long a handed-out one-time key is remembered, so that a repeated upload does not bring it back.
const USED_KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Time between full passes.
const PASS_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Runs of sends unlinked in one step.
const RUNS_AT_ONCE: usize = 16;

/// Records looked at in one step, and rows erased in one step: a millisecond or so of the writer's time.
const STEP: usize = 1024;

/// Where the sweeper is.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    stage: Stage,
    next_pass: Timestamp,
    /// What waits, as far as this pass has seen it.
    depth: Depth,
}

/// What the age of a row needs to know of it: prost passes over the rest.
#[derive(Clone, PartialEq, Message)]
struct Taken {
    #[prost(uint64, tag = "7")]
    server_ts: u64,
}

/// A full pass goes through the keyspaces, each from where the last step stopped.
#[derive(Clone, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    Mailboxes(Vec<u8>),
    Sends(Vec<u8>),
    Runs,
    UsedKeys(Vec<u8>),
    Invites(Vec<u8>),
    CoalesceKeys(Vec<u8>),
}

impl Turn<'_> {
    /// One step of sweeping.
    pub(super) fn sweep(&mut self, now: Timestamp) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let deleting = self.sweep_deleted()?;
        let acked: Vec<_> = self.unswept.iter().copied().take(STEP / 8).collect();
        for address in acked {
            if self.sweep_past_damage(address, now, &mut swept)? {
                self.unswept.remove(&address);
            }
            if swept.rows >= STEP as u64 {
                break;
            }
        }
        if swept.rows < STEP as u64 {
            self.step(now, &mut swept)?;
        }
        swept.more = deleting || !self.unswept.is_empty() || !matches!(self.memory.sweep.stage, Stage::Idle);
        Ok(swept)
    }

    /// A step of the full pass.
    fn step(&mut self, now: Timestamp, swept: &mut Swept) -> Result<(), StoreError> {
        let next = match std::mem::take(&mut self.memory.sweep.stage) {
            Stage::Idle if now < self.memory.sweep.next_pass => Stage::Idle,
            Stage::Idle => {
                self.memory.sweep.next_pass = now.plus(PASS_INTERVAL);
                Stage::Mailboxes(Vec::new())
            }
            Stage::Mailboxes(from) => match self.sweep_mailboxes(&from, now, swept)? {
                Some(from) => Stage::Mailboxes(from),
                None => {
                    std::mem::take(&mut self.memory.sweep.depth).tell();
                    Stage::Sends(Vec::new())
                }
            },
            Stage::Sends(from) => match self.sweep_sends(&from, now, swept)? {
                Some(from) => Stage::Sends(from),
                None => Stage::Runs,
            },
            Stage::Runs => {
                let (runs, sends) = self.tables.sent.expire(now, RUNS_AT_ONCE).map_err(engine_error)?;
                swept.sends += sends;
                if runs == RUNS_AT_ONCE { Stage::Runs } else { Stage::UsedKeys(vec![tag::USED]) }
            }
            Stage::UsedKeys(from) => match self.sweep_used_keys(&from, now)? {
                Some(from) => Stage::UsedKeys(from),
                None => Stage::Invites(vec![tag::INVITE]),
            },
            Stage::Invites(from) => match self.sweep_invites(&from, now)? {
                Some(from) => Stage::Invites(from),
                None => Stage::CoalesceKeys(vec![tag::COALESCE]),
            },
            Stage::CoalesceKeys(from) => match self.sweep_coalesce_keys(&from)? {
                Some(from) => Stage::CoalesceKeys(from),
                None => Stage::Idle,
            },
        };
        self.memory.sweep.stage = next;
        Ok(())
    }

    /// Sweeps mailboxes after the key `from`; returns where to go on.
    fn sweep_mailboxes(
        &mut self,
        from: &[u8],
        now: Timestamp,
        swept: &mut Swept,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let mut last = None;
        let range = (Bound::Excluded(from), Bound::Unbounded);
        let mut seen = 0;
        for guard in self.tables.mailboxes.range::<&[u8], _>(range).take(STEP) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let address = tables::address_of(&key).ok_or_else(|| corrupt("a mailbox"))?;
            seen += 1;
            // Most mailboxes are empty and swept: those need no place in the cache.
            let idle = MailboxRow::read(&value).is_ok_and(|row| row.is_empty());
            if !idle && !self.sweep_past_damage(address, now, swept)? {
                self.unswept.insert(address);
            }
            if !idle {
                self.measure(address)?;
            }
            last = Some(key.to_vec());
            if swept.rows >= STEP as u64 {
                return Ok(last);
            }
        }
        Ok(if seen == STEP { last } else { None })
    }

    /// Takes note of what waits in a mailbox.
    fn measure(&mut self, address: DeviceAddress) -> Result<(), StoreError> {
        for lane in [Lane::Normal, Lane::Urgent] {
            let Ok(Some(mailbox)) = self.mailbox(address) else { continue };
            let row = &mailbox.lanes[tables::lane_index(lane)];
            let (waiting, head) = (row.waiting(), tables::row(address, lane, row.acked + 1));
            let head = self.tables.rows.get(head).map_err(engine_error)?;
            // A row that cannot be read counts, but has no age.
            let taken = head.and_then(|head| Taken::decode(RowHead::body(&head).ok()?).ok()).map(|it| it.server_ts);
            let depth = &mut self.memory.sweep.depth;
            depth.waiting(waiting);
            taken.into_iter().for_each(|at| depth.taken(at));
        }
        Ok(())
    }

    /// As [`Self::sweep_mailbox`]; a damaged mailbox is told of and left as it is, since the others are not to grow
    /// without end because of it.
    fn sweep_past_damage(
        &mut self,
        address: DeviceAddress,
        now: Timestamp,
        swept: &mut Swept,
    ) -> Result<bool, StoreError> {
        match self.sweep_mailbox(address, now, swept) {
            Err(error) if error.kind == StoreErrorKind::Corrupt => {
                error!(device = %address, %error, "a mailbox is damaged and not swept");
                Ok(true)
            }
            other => other,
        }
    }

    /// Moves a mailbox's watermark over expired rows at its head and erases what lies below it; returns whether
    /// nothing is left to erase.
    fn sweep_mailbox(&mut self, address: DeviceAddress, now: Timestamp, swept: &mut Swept) -> Result<bool, StoreError> {
        let mut done = true;
        for lane in [Lane::Normal, Lane::Urgent] {
            let index = tables::lane_index(lane);
            let Some(mailbox) = self.mailbox(address)? else {
                return Ok(true);
            };
            let before = mailbox.lanes[index].clone();
            let mut row = before.clone();
            for _ in 0..STEP {
                let head = tables::row(address, lane, row.acked + 1);
                let Some(value) = self.tables.rows.get(head).map_err(engine_error)? else { break };
                let head = RowHead::read(&value)?;
                if head.expires_at > now {
                    break;
                }
                row.ack_up_to(row.acked + 1);
                row.bytes_acked = head.bytes_given;
            }
            if row.acked > before.acked {
                // Ranges acked early may have joined: the bytes are those at the new watermark.
                let at = tables::row(address, lane, row.acked);
                if let Some(value) = self.tables.rows.get(at).map_err(engine_error)? {
                    row.bytes_acked = RowHead::read(&value)?.bytes_given;
                }
            }
            let until = row.acked.min(row.swept + STEP as u64);
            self.release_swept(address, lane, &mut row, until)?;
            for seq in row.swept + 1..=until {
                self.batch.remove(&self.tables.rows, tables::row(address, lane, seq));
            }
            swept.rows += until - row.swept;
            row.swept = until;
            done &= row.swept == row.acked;
            if row != before {
                self.changed(address).lanes[index] = row;
            }
        }
        Ok(done)
    }

    /// Erases old idempotency records after the key `from`; returns where to go on.
    fn sweep_sends(&mut self, from: &[u8], now: Timestamp, swept: &mut Swept) -> Result<Option<Vec<u8>>, StoreError> {
        let range = (Bound::Excluded(from), Bound::Unbounded);
        let (mut seen, mut last) = (0, None);
        for guard in self.tables.sends.range::<&[u8], _>(range).take(STEP) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let send = SendRow::decode(&value[..]).map_err(|_| corrupt("a send"))?;
            if Timestamp::from_millis(send.server_ts).plus(SENDS_KEPT) < now {
                self.batch.remove(&self.tables.sends, key.clone());
                swept.sends += 1;
            }
            seen += 1;
            last = Some(key.to_vec());
        }
        Ok(if seen == STEP { last } else { None })
    }

    /// Forgets one-time keys handed out long ago, after the key `from`; returns where to go on.
    fn sweep_used_keys(&mut self, from: &[u8], now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        let end = [tag::USED + 1];
        let range = (Bound::Excluded(from), Bound::Excluded(&end[..]));
        let (mut seen, mut last) = (0, None);
        for guard in self.tables.directory.range::<&[u8], _>(range).take(STEP) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let at = value.first_chunk().copied().map(u64::from_be_bytes).ok_or_else(|| corrupt("a used prekey"))?;
            if Timestamp::from_millis(at).plus(USED_KEYS_KEPT) < now {
                self.batch.remove(&self.tables.directory, key.clone());
            }
            seen += 1;
            last = Some(key.to_vec());
        }
        Ok(if seen == STEP { last } else { None })
    }

    /// Forgets used invites whose codes have ended, after the key `from`; returns where to go on.
    fn sweep_invites(&mut self, from: &[u8], now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        let end = [tag::INVITE + 1];
        let range = (Bound::Excluded(from), Bound::Excluded(&end[..]));
        let (mut seen, mut last) = (0, None);
        for guard in self.tables.directory.range::<&[u8], _>(range).take(STEP) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let ends = value.first_chunk().copied().map(u64::from_be_bytes).ok_or_else(|| corrupt("an invite"))?;
            if Timestamp::from_millis(ends) < now {
                self.batch.remove(&self.tables.directory, key.clone());
            }
            seen += 1;
            last = Some(key.to_vec());
        }
        Ok(if seen == STEP { last } else { None })
    }

    /// Forgets coalesce keys whose row is acked, after the key `from`; returns where to go on.
    fn sweep_coalesce_keys(&mut self, from: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let end = [tag::COALESCE + 1];
        let range = (Bound::Excluded(from), Bound::Excluded(&end[..]));
        let (mut seen, mut last) = (0, None);
        for guard in self.tables.directory.range::<&[u8], _>(range).take(STEP) {
            let (key, value) = guard.into_inner().map_err(engine_error)?;
            let (mailbox, lane) = tables::coalesce_lane(&key).ok_or_else(|| corrupt("a coalesced message"))?;
            let seq = tables::coalesced_seq(&value)?;
            let acked = self.mailbox(mailbox)?.is_none_or(|row| row.lanes[tables::lane_index(lane)].is_acked(seq));
            // One set in this turn points at a newer row.
            if acked && !self.coalesced.contains_key(&key[..]) {
                self.batch.remove(&self.tables.directory, key.clone());
            }
            seen += 1;
            last = Some(key.to_vec());
        }
        Ok(if seen == STEP { last } else { None })
    }
}
