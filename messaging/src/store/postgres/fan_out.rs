//! What is sent to a group: one body, and a row in the mailbox of every device it is for, in one transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use deadpool_postgres::{Object, Transaction};
use prost::Message as _;
use uuid::Uuid;
use waxwing_protocol::frames::{Envelope, Lane};
use waxwing_protocol::group::{GroupState, devices_hash};
use waxwing_protocol::{AccountId, DeviceId, GroupId, Timestamp};

use super::connections::Failure;
use super::directory::commit;
use super::groups::{id, state_of};
use super::loading::{self, SendKey, Sent, lock_lanes};
use super::saving::{insert_sends, save_lanes};
use super::values::{Columns, LaneAddress, big, number, uuid};
use crate::metrics::handles;
use crate::store::embedded::LaneRow;
use crate::store::{AppendError, Appended, Committed, DeviceAddress, GroupCommit, GroupCommitted, GroupSend, Quota};

/// Sets of devices remembered of a group.
const AUDIENCES_MAX: i64 = 8;

/// Bytes of a member in a remembered set: the account, and some of a hash of its devices.
const MEMBER_BYTES: usize = 16 + 8;

/// A group whose row is locked.
struct Group {
    id: Uuid,
    state: GroupState,
    hash: Vec<u8>,
    last: u64,
}

/// The devices of some accounts, their lanes locked.
struct Audience {
    devices: HashMap<AccountId, Vec<(DeviceId, u32)>>,
    lanes: HashMap<LaneAddress, LaneRow>,
}

/// Takes a message, or nothing of it.
pub(super) async fn send(
    client: &mut Object,
    send: &GroupSend,
    again: bool,
) -> Result<(Result<Appended, AppendError>, Vec<Committed>), Failure> {
    let refused = |error| Ok((Err(error), Vec::new()));
    let transaction = client.transaction().await?;
    let (key, server_ts) = ((send.from, send.msg_id), send.envelope.server_ts);
    let sent = Sent { content_hash: send.content_hash.to_vec(), server_ts };
    if insert_sends(&transaction, &BTreeMap::from([(key, sent)])).await?.is_empty() {
        return earlier(&transaction, key, send, again).await;
    }
    // Whatever is refused from here on takes its id back by ending the transaction.
    let Some(group) = lock(&transaction, send.group).await? else { return refused(AppendError::UnknownGroup) };
    if group.state.member(send.from.account).is_none() {
        return refused(AppendError::UnknownGroup);
    }
    if group.state.epoch != send.epoch {
        return refused(AppendError::EpochConflict { epoch: group.state.epoch });
    }
    let members: BTreeSet<_> = group.state.members.iter().map(|member| member.account).collect();
    let mut audience = lock_audience(&transaction, &members).await?;
    let none = Vec::new();
    let sets = || group.state.members.iter().map(|it| (it.account, audience.devices.get(&it.account).unwrap_or(&none)));
    let hash = devices_hash(sets().map(|(account, devices)| (account, &devices[..])));
    if hash != send.devices_hash {
        let accounts = changed_since(&transaction, group.id, &send.devices_hash, sets()).await?;
        return refused(AppendError::GroupMismatch { accounts });
    }
    let devices: Vec<_> = sets().flat_map(|(account, devices)| addresses(account, devices)).collect();
    // A device that was removed a moment ago still has a connection.
    if !devices.contains(&send.from) {
        return refused(AppendError::UnknownGroup);
    }
    remember(&transaction, &group, &hash, sets()).await?;
    let blocking = blocking(&transaction, &members, send.from.account).await?;
    let to: Vec<_> = devices.into_iter().filter(|it| *it != send.from && !blocking.contains(&it.account)).collect();
    let rows = put(&transaction, &group, &send.envelope, &to, &mut audience.lanes, send.quota).await?;
    let conv_seq = group.last + 1;
    let sql = "UPDATE sends SET conv_seq = $4 WHERE account = $1 AND device = $2 AND msg_id = $3";
    let msg_id = Uuid::from_bytes(*send.msg_id.as_bytes());
    let place = conv_seq.cast_signed();
    let by = (uuid(send.from.account), number(send.from.device));
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&by.0, &by.1, &msg_id, &place]).await?;
    commit(transaction).await?;
    Ok((Ok(Appended { server_ts: Timestamp::from_millis(server_ts), duplicate: false, conv_seq }), rows))
}

/// A send whose id was taken before.
async fn earlier(
    transaction: &Transaction<'_>,
    (from, msg_id): SendKey,
    send: &GroupSend,
    again: bool,
) -> Result<(Result<Appended, AppendError>, Vec<Committed>), Failure> {
    let sql = "SELECT content_hash, server_ts, conv_seq FROM sends WHERE account = $1 AND device = $2 AND msg_id = $3";
    let key = (uuid(from.account), number(from.device), Uuid::from_bytes(*msg_id.as_bytes()));
    let row = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[&key.0, &key.1, &key.2]).await?;
    let Some(row) = row else {
        let reason = "a send was forgotten while it was repeated".to_owned();
        return Err(Failure::Passing { unknown: false, reason });
    };
    if row.try_get::<_, &[u8]>(0)? != send.content_hash {
        return Ok((Err(AppendError::OtherContent), Vec::new()));
    }
    let (server_ts, conv_seq) = (Timestamp::from_millis(big(&row, 1)?), big(&row, 2)?);
    // Nobody was told of what a commit of unknown outcome has put.
    let rows = if again { put_before(transaction, send.group, conv_seq).await? } else { Vec::new() };
    Ok((Ok(Appended { server_ts, duplicate: true, conv_seq }), rows))
}

/// Makes a change.
pub(super) async fn change(
    client: &mut Object,
    change: &GroupCommit,
    again: bool,
) -> Result<(GroupCommitted, Vec<Committed>), Failure> {
    let GroupCommit { change: signed, previous, after, envelope, quota } = change;
    let transaction = client.transaction().await?;
    let (key, bytes) = (id(after.group), after.to_bytes());
    let hash = blake3::hash(&bytes);
    let epoch = after.epoch.cast_signed();
    let before = lock(&transaction, after.group).await?;
    let stands = before.as_ref().map(|group| &group.hash[..]);
    let mut founded = false;
    if previous.is_none() && before.is_none() {
        let sql = "INSERT INTO groups (id, state, change, hash, epoch, receipts) VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT DO NOTHING";
        let statement = transaction.prepare_cached(sql).await?;
        let (made, hash) = (signed.to_bytes(), &hash.as_bytes()[..]);
        founded = transaction.execute(&statement, &[&key, &bytes, &made, &hash, &epoch, &after.receipts]).await? > 0;
    }
    if !founded && (stands.is_none() || stands != previous.as_ref().map(|hash| &hash[..])) {
        let sql = "SELECT g.epoch, c.change FROM groups g
                   LEFT JOIN group_changes c ON c.id = g.id AND c.epoch = $2 WHERE g.id = $1";
        let row = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[&key, &epoch]).await?;
        let Some(row) = row else { return Ok((GroupCommitted::Conflict { epoch: 0 }, Vec::new())) };
        if row.try_get::<_, Option<&[u8]>>(1)? != Some(&signed.to_bytes()[..]) {
            return Ok((GroupCommitted::Conflict { epoch: big(&row, 0)? }, Vec::new()));
        }
        let rows = if again { put_before_epoch(&transaction, after.group, after.epoch).await? } else { Vec::new() };
        return Ok((GroupCommitted::Repeated, rows));
    }
    if !founded {
        let sql = "UPDATE groups SET state = $2, change = $3, hash = $4, epoch = $5, receipts = $6 WHERE id = $1";
        let statement = transaction.prepare_cached(sql).await?;
        let (made, hash) = (signed.to_bytes(), &hash.as_bytes()[..]);
        transaction.execute(&statement, &[&key, &bytes, &made, &hash, &epoch, &after.receipts]).await?;
    }
    let sql = "INSERT INTO group_changes (id, epoch, change) VALUES ($1, $2, $3)";
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&key, &epoch, &signed.to_bytes()]).await?;
    let members: BTreeSet<_> = after.members.iter().map(|member| member.account).collect();
    let were = before.iter().flat_map(|group| &group.state.members).map(|member| member.account);
    let gone: BTreeSet<_> = were.filter(|account| !members.contains(account)).collect();
    let everybody: BTreeSet<_> = members.union(&gone).copied().collect();
    // After the lanes: whoever acks takes them in this order too.
    let mut audience = lock_audience(&transaction, &everybody).await?;
    let column = |accounts: &BTreeSet<AccountId>| accounts.iter().map(|it| uuid(*it)).collect::<Vec<_>>();
    let sql = "INSERT INTO group_members (account, id) SELECT account, $2 FROM unnest($1::uuid[]) AS k (account)
               ORDER BY account ON CONFLICT DO NOTHING";
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&column(&members), &key]).await?;
    let sql = "DELETE FROM group_members WHERE account = ANY ($1::uuid[]) AND id = $2";
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&column(&gone), &key]).await?;
    let to: Vec<_> = everybody
        .iter()
        .flat_map(|account| addresses(*account, audience.devices.get(account).map_or(&[], |devices| &devices[..])))
        .collect();
    let last = before.map_or(0, |group| group.last);
    let group = Group { id: key, state: after.clone(), hash: Vec::new(), last };
    let rows = put(&transaction, &group, envelope, &to, &mut audience.lanes, *quota).await?;
    commit(transaction).await?;
    Ok((GroupCommitted::Done, rows))
}

/// Locks a group's row and reads it.
async fn lock(transaction: &Transaction<'_>, group: GroupId) -> Result<Option<Group>, Failure> {
    let sql = "SELECT state, hash, last FROM groups WHERE id = $1 FOR UPDATE";
    let row = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[&id(group)]).await?;
    let Some(row) = row else { return Ok(None) };
    let (state, hash) = (state_of(row.try_get(0)?)?, row.try_get(1)?);
    Ok(Some(Group { id: id(group), state, hash, last: big(&row, 2)? }))
}

/// Locks the normal lanes of accounts, and reads their devices.
async fn lock_audience(transaction: &Transaction<'_>, accounts: &BTreeSet<AccountId>) -> Result<Audience, Failure> {
    let wanted: BTreeSet<_> = accounts.iter().map(|account| (*account, 0)).collect();
    loop {
        let lanes = lock_lanes(transaction, &wanted).await?;
        let devices = loading::devices(transaction, &wanted).await?;
        // A device that was added while this waited for a lock has a lane that is not locked yet.
        let is_locked = |mailbox| lanes.contains_key(&LaneAddress { mailbox, lane: 0 });
        if devices.iter().all(|(account, devices)| addresses(*account, devices).all(is_locked)) {
            return Ok(Audience { devices, lanes });
        }
    }
}

fn addresses(account: AccountId, devices: &[(DeviceId, u32)]) -> impl Iterator<Item = DeviceAddress> {
    devices.iter().map(move |(device, _)| DeviceAddress { account, device: *device })
}

/// Those of some accounts that have blocked a sender.
async fn blocking(
    transaction: &Transaction<'_>,
    members: &BTreeSet<AccountId>,
    sender: AccountId,
) -> Result<HashSet<AccountId>, Failure> {
    let pairs = members.iter().filter(|member| **member != sender).map(|member| (*member, sender));
    let blocked = loading::pairs(transaction, "blocks", pairs).await?;
    Ok(blocked.into_iter().map(|(account, _)| account).collect())
}

/// Puts a body and a row for it into mailboxes, at the next place of the conversation. Those that are full are left out.
async fn put(
    transaction: &Transaction<'_>,
    group: &Group,
    envelope: &Envelope,
    to: &[DeviceAddress],
    lanes: &mut HashMap<LaneAddress, LaneRow>,
    quota: Quota,
) -> Result<Vec<Committed>, Failure> {
    let conv_seq = group.last + 1;
    let envelope = Envelope { conv_seq, ..envelope.clone() };
    let bytes = envelope.body.len() as u64;
    let (mut changed, mut committed) = (Vec::new(), Vec::new());
    for mailbox in to {
        let address = LaneAddress { mailbox: *mailbox, lane: 0 };
        let Some(lane) = lanes.get_mut(&address) else { continue };
        if lane.waiting() >= quota.msgs || lane.bytes_waiting().saturating_add(bytes) > quota.bytes {
            handles().full.increment(1);
            continue;
        }
        lane.last += 1;
        lane.bytes_given += bytes;
        changed.push((address, lane.clone()));
        let envelope = Envelope { seq: lane.last, prev_seq: lane.last - 1, ..envelope.clone() };
        committed.push(Committed { to: *mailbox, lane: Lane::Normal, envelope });
    }
    let place = conv_seq.cast_signed();
    let sql = "UPDATE groups SET last = $2 WHERE id = $1";
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&group.id, &place]).await?;
    if changed.is_empty() {
        return Ok(committed);
    }
    let sql = "INSERT INTO group_bodies (id, conv_seq, rows, envelope) VALUES ($1, $2, $3, $4)";
    let rows = i32::try_from(changed.len()).unwrap_or(i32::MAX);
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, &[&group.id, &place, &rows, &envelope.encode_to_vec()]).await?;
    // No sender and no id: what a group's message is acked tells nobody by itself.
    let sql = "INSERT INTO messages (account, device, lane, seq, bytes_given, expires_at, server_ts, class, msg_id,
                   envelope, body_group, body_seq)
               SELECT k.account, k.device, k.lane, k.seq, k.bytes_given, $6, $7, $8, ''::bytea, ''::bytea, $9, $10
               FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
                   AS k (account, device, lane, seq, bytes_given)";
    let columns = Columns::of(changed.iter().map(|(address, _)| *address));
    let seqs: Vec<_> = changed.iter().map(|(_, lane)| lane.last.cast_signed()).collect();
    let given: Vec<_> = changed.iter().map(|(_, lane)| lane.bytes_given.cast_signed()).collect();
    let (expires_at, server_ts) = (envelope.expires_at.cast_signed(), envelope.server_ts.cast_signed());
    let class = i16::try_from(envelope.class).unwrap_or_default();
    let statement = transaction.prepare_cached(sql).await?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 10] = [
        &columns.accounts,
        &columns.devices,
        &columns.lanes,
        &seqs,
        &given,
        &expires_at,
        &server_ts,
        &class,
        &group.id,
        &place,
    ];
    transaction.execute(&statement, &values).await?;
    save_lanes(transaction, &changed).await?;
    Ok(committed)
}

/// Rows that stand for a body, put by a commit of unknown outcome.
async fn put_before(transaction: &Transaction<'_>, group: GroupId, conv_seq: u64) -> Result<Vec<Committed>, Failure> {
    let sql = "SELECT l.account, l.device, l.lane, m.seq, b.envelope
               FROM group_bodies b
               JOIN group_members g ON g.id = b.id
               JOIN lanes l ON l.account = g.account AND l.lane = 0
               JOIN messages m ON m.account = l.account AND m.device = l.device AND m.lane = l.lane
                   AND m.seq > l.acked AND m.body_group = b.id AND m.body_seq = b.conv_seq
               WHERE b.id = $1 AND b.conv_seq = $2 ORDER BY l.account, l.device";
    let statement = transaction.prepare_cached(sql).await?;
    let rows = transaction.query(&statement, &[&id(group), &conv_seq.cast_signed()]).await?;
    let committed = rows.iter().map(|row| {
        let (lane, seq) = (LaneAddress::of(row)?, big(row, 3)?);
        let envelope = Envelope { seq, prev_seq: seq - 1, ..super::pages::envelope_of(row, 4)? };
        Ok(Committed { to: lane.mailbox, lane: Lane::Normal, envelope })
    });
    committed.collect()
}

/// The same of the change that made an epoch. Who was removed by it finds it in the mailbox.
async fn put_before_epoch(
    transaction: &Transaction<'_>,
    group: GroupId,
    epoch: u64,
) -> Result<Vec<Committed>, Failure> {
    let sql = "SELECT last FROM groups WHERE id = $1 AND epoch = $2";
    let statement = transaction.prepare_cached(sql).await?;
    let row = transaction.query_opt(&statement, &[&id(group), &epoch.cast_signed()]).await?;
    match row {
        Some(row) => put_before(transaction, group, big(&row, 0)?).await,
        None => Ok(Vec::new()),
    }
}

/// Accounts and some of a hash of their devices, one behind the other.
fn digests<'a>(sets: impl Iterator<Item = (AccountId, &'a Vec<(DeviceId, u32)>)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (account, devices) in sets {
        bytes.extend_from_slice(account.as_bytes());
        bytes.extend_from_slice(&devices_hash([(account, &devices[..])])[..MEMBER_BYTES - 16]);
    }
    bytes
}

/// Remembers a set of devices that a message is for.
async fn remember<'a>(
    transaction: &Transaction<'_>,
    group: &Group,
    hash: &[u8; 32],
    sets: impl Iterator<Item = (AccountId, &'a Vec<(DeviceId, u32)>)>,
) -> Result<(), Failure> {
    let known = "SELECT FROM group_audiences WHERE id = $1 AND hash = $2";
    let hash = &hash[..];
    if transaction.query_opt(&transaction.prepare_cached(known).await?, &[&group.id, &hash]).await?.is_some() {
        return Ok(());
    }
    let sql = "INSERT INTO group_audiences (id, hash, seen_at, members) VALUES ($1, $2, $3, $4)";
    let seen_at = group.last.cast_signed();
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&group.id, &hash, &seen_at, &digests(sets)]).await?;
    let sql = "DELETE FROM group_audiences WHERE id = $1 AND hash NOT IN
                   (SELECT hash FROM group_audiences WHERE id = $1 ORDER BY seen_at DESC LIMIT $2)";
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&group.id, &AUDIENCES_MAX]).await?;
    Ok(())
}

/// Whose devices changed since a group's were this set; nobody when that is not remembered.
async fn changed_since<'a>(
    transaction: &Transaction<'_>,
    group: Uuid,
    hash: &[u8; 32],
    sets: impl Iterator<Item = (AccountId, &'a Vec<(DeviceId, u32)>)>,
) -> Result<Vec<AccountId>, Failure> {
    let sql = "SELECT members FROM group_audiences WHERE id = $1 AND hash = $2";
    let row = transaction.query_opt(&transaction.prepare_cached(sql).await?, &[&group, &&hash[..]]).await?;
    let Some(row) = row else { return Ok(Vec::new()) };
    let then: HashSet<_> = row.try_get::<_, &[u8]>(0)?.chunks(MEMBER_BYTES).map(<[u8]>::to_vec).collect();
    let now = digests(sets);
    let changed = now.chunks(MEMBER_BYTES).filter(|member| !then.contains(*member));
    Ok(changed.filter_map(|member| AccountId::from_slice(&member[..16]).ok()).collect())
}
