//! How far the members of a group have come, in groups that have receipts.
//!
//! A receipt for each message and each of a thousand readers would be a thousand times the messages. So a member is two
//! numbers: everything up to here has reached a device, everything up to here was seen. They move with the acks of a turn,
//! in its commit, and what others are told is how many of them are at the end.

use std::collections::{HashMap, HashSet};

use waxwing_protocol::{AccountId, GroupId};

use super::bodies::BodyKey;
use super::groups;
use super::tables::{self, Tables, corrupt, engine_error};
use super::writer::Turn;
use crate::store::{GroupProgress, StoreError};

/// How far members have come in a turn: delivered, read.
pub(super) type Progress = HashMap<(GroupId, AccountId), [u64; 2]>;

fn numbers(value: &[u8]) -> Result<[u64; 2], StoreError> {
    let damaged = || corrupt("how far a member of a group is");
    let (delivered, read) = value.split_first_chunk::<8>().ok_or_else(damaged)?;
    let read = read.try_into().map_err(|_| damaged())?;
    Ok([u64::from_be_bytes(*delivered), u64::from_be_bytes(read)])
}

/// How far a group that has receipts is.
pub(super) fn read(tables: &Tables, group: GroupId) -> Result<Option<GroupProgress>, StoreError> {
    let Some(record) = groups::record(tables, group)?.filter(|record| record.state.receipts) else { return Ok(None) };
    let last = tables.directory.get(tables::conversation(group)).map_err(engine_error)?;
    let last = last.and_then(|last| last[..].try_into().ok().map(u64::from_be_bytes));
    let conv_seq = last.ok_or_else(|| corrupt("a group's conversation"))?;
    let (mut delivered, mut read) = (0, 0);
    for guard in tables.directory.prefix(tables::progress(group, None)) {
        let (_, value) = guard.into_inner().map_err(engine_error)?;
        let [got, seen] = numbers(&value)?;
        delivered += u32::from(got >= conv_seq);
        read += u32::from(seen >= conv_seq);
    }
    let members = record.state.members.iter().map(|member| member.account).collect();
    Ok(Some(GroupProgress { members, conv_seq, delivered, read }))
}

impl Turn<'_> {
    /// A device of `reader` has acked a group's message.
    pub(super) fn note_delivered(&mut self, reader: AccountId, body: &BodyKey) -> Result<(), StoreError> {
        let (group, conv_seq) = body.split_at(16);
        let group = GroupId::from_slice(group).map_err(|_| corrupt("a message"))?;
        let conv_seq = conv_seq.try_into().map(u64::from_be_bytes).map_err(|_| corrupt("a message"))?;
        if self.counted(group, reader)?.is_some() {
            let progress = self.progress.entry((group, reader)).or_default();
            progress[0] = progress[0].max(conv_seq);
        }
        Ok(())
    }

    /// A person has seen everything up to a place.
    pub(super) fn mark_read(&mut self, by: AccountId, group: GroupId, conv_seq: u64) -> Result<(), StoreError> {
        if let Some(last) = self.counted(group, by)? {
            let progress = self.progress.entry((group, by)).or_default();
            // What was seen has come, also to a device that acks later.
            let conv_seq = conv_seq.min(last);
            *progress = progress.map(|before| before.max(conv_seq));
        }
        Ok(())
    }

    /// Writes how far members have come; returns the groups in which somebody has.
    pub(super) fn write_progress(&mut self) -> Result<HashSet<GroupId>, StoreError> {
        let mut progressed = HashSet::new();
        for ((group, account), [delivered, read]) in std::mem::take(&mut self.progress) {
            let key = tables::progress(group, Some(account));
            let before = self.tables.directory.get(&key).map_err(engine_error)?;
            let before = before.map(|value| numbers(&value)).transpose()?.unwrap_or_default();
            let after = [delivered.max(before[0]), read.max(before[1])];
            if after != before {
                let value = [after[0].to_be_bytes(), after[1].to_be_bytes()].concat();
                self.batch.insert(&self.tables.directory, key, value);
                progressed.insert(group);
            }
        }
        Ok(progressed)
    }
}
