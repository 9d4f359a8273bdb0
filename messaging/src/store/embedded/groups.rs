//! Groups: their states and changes, and messages to them.
//!
//! The writer keeps the groups it works on in memory, with the devices of their members and the hash that senders name
//! them by, since going through a thousand accounts for each message would cost more than storing it. Whatever changes
//! an account's devices forgets the devices of the groups it is in.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use prost::Message;
use waxwing_protocol::frames::{Envelope, Lane};
use waxwing_protocol::group::{GroupState, SignedGroupChange, devices_hash};
use waxwing_protocol::{AccountId, GroupId, Timestamp};

use super::records::{SEND_HASH_BYTES, SendRow};
use super::tables::{self, Tables, corrupt, engine_error, lane_index};
use super::writer::{Command, Turn};
use super::{EmbeddedStore, bodies, channels, progress};
use crate::metrics::handles;
use crate::store::{
    AppendError, Appended, DeviceAddress, GroupCommit, GroupCommitted, GroupProgress, GroupRecord, GroupSend,
    GroupStore, Quota, StoreError, Stored,
};

/// Earlier sets of devices that a group remembers, to say whose devices changed since.
const PAST_MAX: usize = 32;

/// Bytes of changes in one page, unless a single one is larger: most have 300, but one that lets a thousand in has 57 KB.
const PAGE_BYTES_MAX: usize = 384 * 1024;

/// A group's record.
#[derive(Clone, PartialEq, Message)]
struct GroupRow {
    #[prost(bytes = "vec", tag = "1")]
    state: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    change: Vec<u8>,
}

/// A group as the writer remembers it; all of it but the past can be read again.
#[derive(Debug)]
pub(super) struct GroupMemory {
    state: Arc<GroupState>,
    hash: [u8; 32],
    /// The last place given in the conversation.
    last: u64,
    /// The devices of its members.
    audience: Option<Audience>,
    /// Earlier sets of devices, oldest first, each with the account that changed it.
    past: VecDeque<([u8; 32], AccountId)>,
}

/// The devices that a group's messages are for.
#[derive(Clone, Debug)]
struct Audience {
    hash: [u8; 32],
    devices: Arc<[DeviceAddress]>,
}

impl GroupStore for EmbeddedStore {
    fn change_group(&self, commit: GroupCommit) -> BoxFuture<'static, Result<GroupCommitted, StoreError>> {
        self.write(|reply| Command::ChangeGroup { commit: Box::new(commit), reply })
    }

    fn send_group(&self, send: GroupSend) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.write(|reply| Command::SendGroup { send: Box::new(send), reply })
    }

    fn mark_read(&self, by: AccountId, group: GroupId, conv_seq: u64) -> BoxFuture<'static, Result<(), StoreError>> {
        self.write(|reply| Command::MarkRead { by, group, conv_seq, reply })
    }

    fn progress(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupProgress>, StoreError>> {
        self.read_with(move |tables| progress::read(tables, group))
    }

    fn group(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        self.read_with(move |tables| record(tables, group))
    }

    fn group_changes(
        &self,
        group: GroupId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedGroupChange>, StoreError>> {
        self.read_with(move |tables| {
            let (mut page, mut bytes) = (Vec::new(), 0);
            for signed in changes(tables, group, after).take(limit) {
                let signed = signed?;
                bytes += signed.change.0.len();
                if bytes > PAGE_BYTES_MAX && !page.is_empty() {
                    break;
                }
                page.push(signed);
            }
            Ok(page)
        })
    }

    fn group_at(&self, group: GroupId, epoch: u64) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        self.read_with(move |tables| record_at(tables, group, epoch))
    }

    fn groups_of(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<GroupId>, StoreError>> {
        self.read_with(move |tables| {
            let groups = tables.directory.prefix(tables::member(account, None)).map(|guard| {
                let key = guard.key().map_err(engine_error)?;
                key.get(17..).and_then(|id| GroupId::from_slice(id).ok()).ok_or_else(|| corrupt("a membership"))
            });
            groups.collect()
        })
    }

    fn stored(&self) -> BoxFuture<'static, Result<Stored, StoreError>> {
        self.read_with(|tables| {
            let (mut stored, mut parts) = (Stored::default(), 0_usize);
            for (table, count) in [(&tables.rows, &mut stored.rows), (&tables.bodies, &mut parts)] {
                for guard in table.range::<&[u8], _>(..) {
                    let (key, value) = guard.into_inner().map_err(engine_error)?;
                    if channels::is_entry(&key) {
                        continue;
                    }
                    *count += 1;
                    stored.bytes += key.len() + value.len();
                }
            }
            // An envelope, and how many rows stand for it.
            stored.bodies = parts.div_ceil(2);
            Ok(stored)
        })
    }
}

/// Reads a group.
pub(super) fn record(tables: &Tables, group: GroupId) -> Result<Option<GroupRecord>, StoreError> {
    let Some(value) = tables.directory.get(tables::group(group)).map_err(engine_error)? else { return Ok(None) };
    let row = GroupRow::decode(&value[..]).map_err(|_| corrupt("a group"))?;
    let state = GroupState::from_bytes(&row.state).map_err(|_| corrupt("a group"))?;
    let change = SignedGroupChange::from_bytes(&row.change).map_err(|_| corrupt("a group"))?;
    Ok(Some(GroupRecord { state, change }))
}

/// Reads the changes of a group above an epoch.
fn changes(
    tables: &Tables,
    group: GroupId,
    after: u64,
) -> impl Iterator<Item = Result<SignedGroupChange, StoreError>> + use<> {
    let (from, to) = (tables::change(group, after), tables::change(group, u64::MAX));
    let range = (Bound::Excluded(from), Bound::Included(to));
    tables.directory.range::<Vec<u8>, _>(range).map(|guard| {
        let (_, value) = guard.into_inner().map_err(engine_error)?;
        SignedGroupChange::from_bytes(&value).map_err(|_| corrupt("a change of a group"))
    })
}

/// A group as it was in an epoch, made anew from its changes: they were checked when they were taken.
fn record_at(tables: &Tables, group: GroupId, epoch: u64) -> Result<Option<GroupRecord>, StoreError> {
    let mut at = None;
    for signed in changes(tables, group, 0) {
        let signed = signed?;
        let damaged = |_| corrupt("a change of a group");
        let change = signed.read().map_err(damaged)?;
        let before = at.as_ref().map(|record: &GroupRecord| &record.state);
        let state = change.apply(before).map_err(damaged)?;
        let reached = state.epoch == epoch;
        at = Some(GroupRecord { state, change: signed });
        if reached {
            return Ok(at);
        }
    }
    Ok(None)
}

impl Turn<'_> {
    /// Makes a change.
    pub(super) fn change_group(&mut self, commit: GroupCommit) -> Result<GroupCommitted, StoreError> {
        let GroupCommit { change, previous, after, envelope, quota } = commit;
        let group = after.group;
        self.load_group(group)?;
        let before = self.memory.groups.get(&group).map(|memory| (memory.state.clone(), memory.hash, memory.last));
        let key = tables::change(group, after.epoch);
        if before.as_ref().map(|(_, hash, _)| *hash) != previous {
            let made = self.tables.directory.get(key).map_err(engine_error)?;
            let epoch = before.map_or(0, |(state, ..)| state.epoch);
            let repeated = made.is_some_and(|made| made[..] == change.to_bytes()[..]);
            return Ok(if repeated { GroupCommitted::Repeated } else { GroupCommitted::Conflict { epoch } });
        }
        let (before, last) = before.map_or((None, 0), |(state, _, last)| (Some(state), last));
        let state_bytes = after.to_bytes();
        let row = GroupRow { state: state_bytes.clone(), change: change.to_bytes() };
        let directory = &self.tables.directory;
        self.batch.insert(directory, tables::group(group), row.encode_to_vec());
        self.batch.insert(directory, key, change.to_bytes());
        let was_in = |account| before.as_ref().is_some_and(|state| state.member(account).is_some());
        for member in after.members.iter().filter(|member| !was_in(member.account)) {
            self.batch.insert(directory, tables::member(member.account, Some(group)), []);
        }
        let gone = before.iter().flat_map(|state| &state.members).map(|member| member.account);
        let gone: Vec<_> = gone.filter(|account| after.member(*account).is_none()).collect();
        for account in &gone {
            self.batch.remove(directory, tables::member(*account, Some(group)));
            self.batch.remove(directory, tables::progress(group, Some(*account)));
        }
        let past = self.memory.groups.remove(&group).map(|memory| memory.past).unwrap_or_default();
        let hash = *blake3::hash(&state_bytes).as_bytes();
        let memory = GroupMemory { state: Arc::new(after), hash, last, audience: None, past };
        self.memory.groups.insert(group, memory);
        let mut told = self.audience(group)?.devices.to_vec();
        for account in gone {
            let devices = self.devices(account)?;
            told.extend(devices.iter().map(|(device, _)| DeviceAddress { account, device: *device }));
        }
        self.fan_out(group, envelope, &told, None, quota)?;
        Ok(GroupCommitted::Done)
    }

    /// Takes a message, or nothing of it.
    pub(super) fn send_group(&mut self, send: &GroupSend) -> Result<Appended, AppendError> {
        let send_key = tables::send(send.from, send.msg_id);
        if let Some(earlier) = self.earlier_send(&send_key)? {
            if !send.content_hash.starts_with(&earlier.content_hash) {
                return Err(AppendError::OtherContent);
            }
            let server_ts = Timestamp::from_millis(earlier.server_ts);
            return Ok(Appended { server_ts, duplicate: true, conv_seq: earlier.conv_seq });
        }
        self.load_group(send.group)?;
        let memory = self.memory.groups.get(&send.group).ok_or(AppendError::UnknownGroup)?;
        if memory.state.member(send.from.account).is_none() {
            return Err(AppendError::UnknownGroup);
        }
        if memory.state.epoch != send.epoch {
            return Err(AppendError::EpochConflict { epoch: memory.state.epoch });
        }
        let audience = self.audience(send.group)?;
        if audience.hash != send.devices_hash {
            return Err(AppendError::GroupMismatch { accounts: self.changed_since(send.group, &send.devices_hash) });
        }
        // A device that was removed a moment ago still has a connection.
        if !audience.devices.contains(&send.from) {
            return Err(AppendError::UnknownGroup);
        }
        let envelope = send.envelope.clone();
        let conv_seq = self.fan_out(send.group, envelope, &audience.devices, Some(send.from), send.quota)?;
        let server_ts = send.envelope.server_ts;
        let content_hash = send.content_hash[..SEND_HASH_BYTES].to_vec();
        let row = SendRow { content_hash, server_ts, conv_seq };
        self.batch.insert(&self.tables.sends, send_key, row.encode_to_vec());
        self.sends.insert(send_key, row);
        Ok(Appended { server_ts: Timestamp::from_millis(server_ts), duplicate: false, conv_seq })
    }

    /// Gives a message its place in the conversation and puts a row for it into mailboxes. Those that are full are left
    /// out: one member who is away must not silence the others.
    fn fan_out(
        &mut self,
        group: GroupId,
        envelope: Envelope,
        to: &[DeviceAddress],
        from: Option<DeviceAddress>,
        quota: Quota,
    ) -> Result<u64, StoreError> {
        // Everything that can fail comes before the first change.
        let sender = from.map(|from| from.account);
        let mut rows = Vec::with_capacity(to.len());
        for address in to.iter().copied().filter(|address| Some(*address) != from) {
            if sender.is_some_and(|sender| sender != address.account)
                && self.blocks(address.account)?.iter().any(|blocked| Some(*blocked) == sender)
            {
                continue;
            }
            let Some(mailbox) = self.mailbox(address)? else { continue };
            let lane = &mailbox.lanes[lane_index(Lane::Normal)];
            let bytes = lane.bytes_waiting().saturating_add(envelope.body.len() as u64);
            if lane.waiting() >= quota.msgs || bytes > quota.bytes {
                handles().full.increment(1);
                continue;
            }
            rows.push(address);
        }
        let memory = self.memory.groups.get_mut(&group).ok_or_else(|| corrupt("a group"))?;
        memory.last += 1;
        let conv_seq = memory.last;
        self.batch.insert(&self.tables.directory, tables::conversation(group), conv_seq.to_be_bytes());
        let (body, envelope) = (bodies::key(group, conv_seq), Envelope { conv_seq, ..envelope });
        self.begin_body(body, &envelope);
        for address in rows {
            self.put_pointer(address, Lane::Normal, body, &envelope);
        }
        Ok(conv_seq)
    }

    /// The last place in the conversation of a group that has receipts and this member.
    pub(super) fn counted(&mut self, group: GroupId, member: AccountId) -> Result<Option<u64>, StoreError> {
        self.load_group(group)?;
        let memory = self.memory.groups.get(&group);
        let memory = memory.filter(|it| it.state.receipts && it.state.member(member).is_some());
        Ok(memory.map(|memory| memory.last))
    }

    /// Brings a group to memory, if there is one.
    fn load_group(&mut self, group: GroupId) -> Result<(), StoreError> {
        if self.memory.groups.contains_key(&group) {
            return Ok(());
        }
        let Some(GroupRecord { state, .. }) = record(self.tables, group)? else { return Ok(()) };
        let last = self.tables.directory.get(tables::conversation(group)).map_err(engine_error)?;
        let last = last.and_then(|last| last[..].try_into().ok().map(u64::from_be_bytes));
        let last = last.ok_or_else(|| corrupt("a group's conversation"))?;
        let (hash, state) = (state.hash(), Arc::new(state));
        let memory = GroupMemory { state, hash, last, audience: None, past: VecDeque::new() };
        self.memory.groups.insert(group, memory);
        Ok(())
    }

    /// The devices that a group's messages are for, as this turn has them.
    fn audience(&mut self, group: GroupId) -> Result<Audience, StoreError> {
        let memory = self.memory.groups.get(&group).ok_or_else(|| corrupt("a group"))?;
        if let Some(audience) = &memory.audience {
            return Ok(audience.clone());
        }
        let state = memory.state.clone();
        let mut members = Vec::with_capacity(state.members.len());
        for member in &state.members {
            members.push((member.account, self.devices(member.account)?));
        }
        let hash = devices_hash(members.iter().map(|(account, devices)| (*account, &devices[..])));
        let devices = members.iter().flat_map(|(account, devices)| {
            devices.iter().map(|(device, _)| DeviceAddress { account: *account, device: *device })
        });
        let audience = Audience { hash, devices: devices.collect() };
        if let Some(memory) = self.memory.groups.get_mut(&group) {
            memory.audience = Some(audience.clone());
        }
        Ok(audience)
    }

    /// Whose devices changed since a group's were this set; nobody when that is not remembered.
    fn changed_since(&self, group: GroupId, hash: &[u8; 32]) -> Vec<AccountId> {
        let past = self.memory.groups.get(&group).map(|memory| &memory.past);
        let since = past.and_then(|past| Some((past, past.iter().position(|(set, _)| set == hash)?)));
        let mut accounts: Vec<_> =
            since.into_iter().flat_map(|(past, at)| past.iter().skip(at).map(|(_, account)| *account)).collect();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }

    /// The devices of an account have changed: groups it is in look again whom they are for.
    pub(super) fn forget_audiences(&mut self, account: AccountId) {
        for memory in self.memory.groups.values_mut().filter(|memory| memory.state.member(account).is_some()) {
            let before = memory.audience.take().map(|audience| audience.hash);
            // A second change before anybody asked what the first came to follows the same set.
            if let Some(hash) = before.or_else(|| memory.past.back().map(|(hash, _)| *hash)) {
                memory.past.push_back((hash, account));
                if memory.past.len() > PAST_MAX {
                    memory.past.pop_front();
                }
            }
        }
    }
}
