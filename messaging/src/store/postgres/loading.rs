//! What a turn needs of the database, read before it decides anything, and locked as far as it may change it.
//!
//! A turn of five hundred commands asks as often as one of a single command: each question here is about all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use deadpool_postgres::Transaction;
use tokio_postgres::Row;
use uuid::Uuid;
use waxwing_protocol::frames::{Class, Lane};
use waxwing_protocol::{AccountId, DeviceId, MsgId, Timestamp};

use super::connections::Failure;
use super::pages::{LANE, envelope_of, lane_of};
use super::values::{self, LaneAddress, big, damaged, device, lane_number, mailbox, number, uuid};
use super::writer::Command;
use crate::store::embedded::LaneRow;
use crate::store::{AckRequest, Append, DeviceAddress};

/// Rows of one ack that are looked at for receipts: the largest window. Whoever claims to hold more gets none made for it.
pub(super) const ROWS_SEEN_MAX: i64 = 4096;

/// What makes a send the same as another.
pub(super) type SendKey = (DeviceAddress, MsgId);

/// A send that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) content_hash: Vec<u8>,
    pub(super) server_ts: u64,
}

/// A mailbox.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mailbox {
    pub(super) epoch: u64,
    pub(super) generation: u64,
}

/// Under which key a later row finds the one that it replaces. The device is 0 for rows that the server makes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CoalesceKey {
    pub(super) lane: LaneAddress,
    pub(super) sender: AccountId,
    pub(super) sender_device: i32,
    pub(super) key: Bytes,
}

/// The row under a coalesce key.
#[derive(Clone, Debug)]
pub(super) struct Coalesced {
    pub(super) seq: u64,
    /// What it tells, if it is a delivery receipt and of an earlier turn.
    pub(super) told: Vec<Bytes>,
}

/// A row that an ack may cover, of somebody who may be told of it.
#[derive(Clone, Debug)]
pub(super) struct Acked {
    pub(super) seq: u64,
    pub(super) expires_at: Timestamp,
    pub(super) sender: AccountId,
    pub(super) msg_id: Bytes,
}

/// What a turn knows of the database. Lanes and mailboxes are locked until the transaction ends.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Sends that were taken before this turn.
    pub(super) sends: HashMap<SendKey, Sent>,
    /// Ids that this turn has taken on behalf of the first append with each.
    pub(super) fresh: HashMap<SendKey, Sent>,
    pub(super) written: HashSet<(AccountId, AccountId)>,
    /// Who has blocked whom.
    pub(super) blocked: HashSet<(AccountId, AccountId)>,
    pub(super) devices: HashMap<AccountId, Vec<(DeviceId, u32)>>,
    pub(super) mailboxes: HashMap<DeviceAddress, Mailbox>,
    pub(super) lanes: HashMap<LaneAddress, LaneRow>,
    pub(super) coalesced: HashMap<CoalesceKey, Coalesced>,
    pub(super) acked: HashMap<LaneAddress, Vec<Acked>>,
}

/// Reads and locks what `commands` need.
pub(super) async fn load(transaction: &Transaction<'_>, commands: &[Command]) -> Result<Loaded, Failure> {
    let appends: Vec<_> = commands.iter().filter_map(append_of).collect();
    let acks = acks_of(commands);
    let mut loaded = Loaded::default();
    take_sends(transaction, &appends, &mut loaded).await?;
    (loaded.written, loaded.blocked) = tokio::try_join!(
        pairs(transaction, "pairs", appends.iter().flat_map(|it| [(it.from.account, it.to), (it.to, it.from.account)])),
        pairs(transaction, "blocks", appends.iter().map(|it| (it.to, it.from.account))),
    )?;
    loaded.acked = acked_rows(transaction, &acks).await?;
    let opened: BTreeSet<_> = commands.iter().filter_map(opened_by).collect();
    loaded.mailboxes = lock_mailboxes(transaction, &opened).await?;
    // Lanes are locked for all devices of an account at once: what is locked then does not depend on who they are.
    let mut wanted: BTreeSet<(AccountId, i16)> = BTreeSet::new();
    wanted.extend(appends.iter().map(|append| (append.to, lane_number(append.lane))));
    wanted.extend(acks.iter().map(|ack| (ack.mailbox.account, lane_number(ack.lane))));
    wanted.extend(opened.iter().flat_map(|it| [(it.account, 0), (it.account, 1)]));
    wanted.extend(loaded.acked.values().flatten().map(|row| (row.sender, lane_number(Lane::Normal))));
    loop {
        loaded.lanes = lock_lanes(transaction, &wanted).await?;
        loaded.devices = devices(transaction, &wanted).await?;
        // A device that was added while this waited for a lock has lanes that are not locked yet.
        let locked = wanted.iter().all(|(account, lane)| {
            let devices = loaded.devices.get(account).into_iter().flatten();
            let mut lanes = devices.map(|(device, _)| DeviceAddress { account: *account, device: *device });
            lanes.all(|mailbox| loaded.lanes.contains_key(&LaneAddress { mailbox, lane: *lane }))
        });
        if locked {
            break;
        }
    }
    let keys = coalesce_keys(&appends, &loaded);
    loaded.coalesced = coalesced(transaction, &keys).await?;
    Ok(loaded)
}

fn append_of(command: &Command) -> Option<&Append> {
    match command {
        Command::Append { append, .. } => Some(append),
        _ => None,
    }
}

fn opened_by(command: &Command) -> Option<DeviceAddress> {
    match command {
        Command::Open { mailbox, .. } => Some(*mailbox),
        _ => None,
    }
}

/// What commands may ack. Whether what a client says it holds is of the mailbox's epoch shows later.
fn acks_of(commands: &[Command]) -> Vec<AckRequest> {
    let acks = commands.iter().flat_map(|command| match command {
        Command::Ack { ack, .. } => vec![ack.clone()],
        Command::Open { mailbox, held, .. } => super::turn::held_acks(*mailbox, held).to_vec(),
        _ => Vec::new(),
    });
    acks.collect()
}

/// The keys of devices and messages as columns.
pub(super) struct SendColumns {
    pub(super) accounts: Vec<Uuid>,
    pub(super) devices: Vec<i32>,
    pub(super) ids: Vec<Uuid>,
}

impl SendColumns {
    pub(super) fn of<'a>(keys: impl IntoIterator<Item = &'a SendKey>) -> Self {
        let mut columns = Self { accounts: Vec::new(), devices: Vec::new(), ids: Vec::new() };
        for (from, id) in keys {
            columns.accounts.push(uuid(from.account));
            columns.devices.push(number(from.device));
            columns.ids.push(Uuid::from_bytes(*id.as_bytes()));
        }
        columns
    }
}

fn send_key(row: &Row) -> Result<SendKey, Failure> {
    let id: Uuid = row.try_get(2)?;
    Ok((mailbox(row)?, MsgId::from_bytes(*id.as_bytes())))
}

/// Takes the ids of appends that are new, and reads what those say that are not. Who takes an id first has it: another
/// node with the same send waits here until this transaction ends.
async fn take_sends(transaction: &Transaction<'_>, appends: &[&Append], loaded: &mut Loaded) -> Result<(), Failure> {
    if appends.is_empty() {
        return Ok(());
    }
    let mut offered: BTreeMap<SendKey, Sent> = BTreeMap::new();
    for append in appends {
        let sent = Sent { content_hash: append.content_hash.to_vec(), server_ts: append.envelope.server_ts };
        offered.entry((append.from, append.msg_id)).or_insert(sent);
    }
    let rows = super::saving::insert_sends(transaction, &offered).await?;
    for row in &rows {
        let key = send_key(row)?;
        if let Some(sent) = offered.remove(&key) {
            loaded.fresh.insert(key, sent);
        }
    }
    if offered.is_empty() {
        return Ok(());
    }
    let sql = "SELECT s.account, s.device, s.msg_id, s.content_hash, s.server_ts
               FROM unnest($1::uuid[], $2::int[], $3::uuid[]) AS k (account, device, msg_id)
               JOIN sends s ON s.account = k.account AND s.device = k.device AND s.msg_id = k.msg_id";
    let columns = SendColumns::of(offered.keys());
    let statement = transaction.prepare_cached(sql).await?;
    for row in &transaction.query(&statement, &[&columns.accounts, &columns.devices, &columns.ids]).await? {
        loaded.sends.insert(send_key(row)?, Sent { content_hash: row.try_get(3)?, server_ts: big(row, 4)? });
    }
    if offered.keys().any(|key| !loaded.sends.contains_key(key)) {
        let reason = "a send was forgotten while it was repeated".to_owned();
        return Err(Failure::Passing { unknown: false, reason });
    }
    Ok(())
}

/// Which of these pairs of accounts are in a table of pairs.
pub(super) async fn pairs(
    transaction: &Transaction<'_>,
    table: &str,
    asked: impl Iterator<Item = (AccountId, AccountId)>,
) -> Result<HashSet<(AccountId, AccountId)>, Failure> {
    let asked: BTreeSet<_> = asked.collect();
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    let (accounts, peers): (Vec<_>, Vec<_>) = asked.into_iter().map(|(one, other)| (uuid(one), uuid(other))).unzip();
    let sql = format!(
        "SELECT p.account, p.peer FROM unnest($1::uuid[], $2::uuid[]) AS k (account, peer)
         JOIN {table} p ON p.account = k.account AND p.peer = k.peer"
    );
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction.query(&statement, &[&accounts, &peers]).await?;
    rows.iter().map(|row| Ok((values::account(row.try_get(0)?), values::account(row.try_get(1)?)))).collect()
}

/// What acks cover: spans of lanes.
pub(super) fn spans_of(acks: &[AckRequest]) -> Vec<(LaneAddress, u64, u64)> {
    let spans = acks.iter().flat_map(|ack| {
        let lane = LaneAddress::new(ack.mailbox, ack.lane);
        let cumulative = (ack.up_to > 0).then_some((0, ack.up_to));
        cumulative.into_iter().chain(ack.ranges.iter().copied()).map(move |(first, last)| (lane, first, last))
    });
    spans.collect()
}

/// Rows that acks may cover and whose senders are to be told: people whom the reader has written to and not blocked,
/// if the reader's account allows it.
async fn acked_rows(
    transaction: &Transaction<'_>,
    acks: &[AckRequest],
) -> Result<HashMap<LaneAddress, Vec<Acked>>, Failure> {
    let mut loaded: HashMap<LaneAddress, Vec<Acked>> = HashMap::new();
    let spans = spans_of(acks);
    if spans.is_empty() {
        return Ok(loaded);
    }
    let sql = "SELECT l.account, l.device, l.lane, m.seq, m.expires_at, m.sender, m.msg_id
               FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
                   AS k (account, device, lane, first, last)
               JOIN accounts a ON a.account = k.account AND a.delivery_receipts
               JOIN lanes l ON l.account = k.account AND l.device = k.device AND l.lane = k.lane
               CROSS JOIN LATERAL (
                   SELECT r.seq, r.expires_at, r.sender, r.msg_id, r.class FROM messages r
                   WHERE r.account = l.account AND r.device = l.device AND r.lane = l.lane
                       AND r.seq >= greatest(k.first, l.acked + 1) AND r.seq <= k.last
                   ORDER BY r.seq LIMIT $6
               ) m
               JOIN pairs w ON w.account = k.account AND w.peer = m.sender
               WHERE m.class = ANY ($7::smallint[]) AND m.sender <> k.account
                   AND NOT EXISTS (SELECT FROM blocks b WHERE b.account = k.account AND b.peer = m.sender)
               ORDER BY l.account, l.device, l.lane, m.seq";
    let columns = values::Columns::of(spans.iter().map(|(lane, ..)| *lane));
    let bound = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let first: Vec<_> = spans.iter().map(|(_, first, _)| bound(*first)).collect();
    let last: Vec<_> = spans.iter().map(|(.., last)| bound(*last)).collect();
    let told = [Class::Message, Class::Call].map(class_number).to_vec();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    let rows = transaction.query(&statement, &[accounts, devices, lanes, &first, &last, &ROWS_SEEN_MAX, &told]).await?;
    for row in &rows {
        let acked = Acked {
            seq: big(row, 3)?,
            expires_at: Timestamp::from_millis(big(row, 4)?),
            sender: values::account(row.try_get(5)?),
            msg_id: Bytes::from(row.try_get::<_, Vec<u8>>(6)?),
        };
        let lane = loaded.entry(LaneAddress::of(row)?).or_default();
        // Spans of one lane may overlap.
        if !lane.iter().any(|known| known.seq == acked.seq) {
            lane.push(acked);
        }
    }
    Ok(loaded)
}

/// A class as it stands in a column.
pub(super) fn class_number(class: Class) -> i16 {
    i16::try_from(i32::from(class)).expect("classes are few")
}

async fn lock_mailboxes(
    transaction: &Transaction<'_>,
    opened: &BTreeSet<DeviceAddress>,
) -> Result<HashMap<DeviceAddress, Mailbox>, Failure> {
    if opened.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT b.account, b.device, b.epoch, b.generation
               FROM mailboxes b JOIN unnest($1::uuid[], $2::int[]) AS k (account, device)
                   ON b.account = k.account AND b.device = k.device
               ORDER BY b.account, b.device FOR UPDATE OF b";
    let (accounts, devices): (Vec<_>, Vec<_>) =
        opened.iter().map(|mailbox| (uuid(mailbox.account), number(mailbox.device))).unzip();
    let rows = transaction.query(&transaction.prepare_cached(sql).await?, &[&accounts, &devices]).await?;
    let mailboxes =
        rows.iter().map(|row| Ok((mailbox(row)?, Mailbox { epoch: big(row, 2)?, generation: big(row, 3)? })));
    mailboxes.collect()
}

/// Locks one lane of every device of each account.
pub(super) async fn lock_lanes(
    transaction: &Transaction<'_>,
    wanted: &BTreeSet<(AccountId, i16)>,
) -> Result<HashMap<LaneAddress, LaneRow>, Failure> {
    let sql = format!(
        "SELECT l.account, l.device, l.lane, {LANE}
         FROM lanes l JOIN unnest($1::uuid[], $2::smallint[]) AS k (account, lane)
             ON l.account = k.account AND l.lane = k.lane
         ORDER BY l.account, l.device, l.lane FOR UPDATE OF l"
    );
    let (accounts, lanes): (Vec<_>, Vec<_>) = wanted.iter().map(|(account, lane)| (uuid(*account), *lane)).unzip();
    let rows = transaction.query(&transaction.prepare_cached(&sql).await?, &[&accounts, &lanes]).await?;
    rows.iter().map(|row| Ok((LaneAddress::of(row)?, lane_of(row, 3)?))).collect()
}

/// The devices of accounts, as they are once the locks are held.
pub(super) async fn devices(
    transaction: &Transaction<'_>,
    wanted: &BTreeSet<(AccountId, i16)>,
) -> Result<HashMap<AccountId, Vec<(DeviceId, u32)>>, Failure> {
    let accounts: BTreeSet<_> = wanted.iter().map(|(account, _)| uuid(*account)).collect();
    let accounts: Vec<_> = accounts.into_iter().collect();
    let sql = "SELECT d.account, d.device, d.reg_id FROM unnest($1::uuid[]) AS k (account)
               JOIN devices d ON d.account = k.account ORDER BY d.account, d.device";
    let rows = transaction.query(&transaction.prepare_cached(sql).await?, &[&accounts]).await?;
    let mut devices: HashMap<_, Vec<_>> = HashMap::new();
    for row in &rows {
        let reg_id = row.try_get::<_, i32>(2)?.cast_unsigned();
        devices.entry(values::account(row.try_get(0)?)).or_default().push((device(row.try_get(1)?)?, reg_id));
    }
    Ok(devices)
}

/// Keys under which appends and receipts may find rows to replace.
fn coalesce_keys(appends: &[&Append], loaded: &Loaded) -> BTreeSet<CoalesceKey> {
    let appended = appends
        .iter()
        .filter(|append| !append.coalesce_key.is_empty())
        .flat_map(|append| append.bodies.iter().map(|body| CoalesceKey::of_append(append, body.device)));
    let told = loaded.acked.iter().flat_map(|(lane, rows)| rows.iter().map(|row| (row.sender, lane.mailbox.account)));
    let told: BTreeSet<_> = told.collect();
    let told = told.into_iter().flat_map(|(sender, reader)| {
        let devices = loaded.devices.get(&sender).into_iter().flatten();
        devices.map(move |(device, _)| {
            CoalesceKey::of_delivery(DeviceAddress { account: sender, device: *device }, reader)
        })
    });
    appended.chain(told).collect()
}

impl CoalesceKey {
    pub(super) fn of_append(append: &Append, device: DeviceId) -> Self {
        Self {
            lane: LaneAddress::new(DeviceAddress { account: append.to, device }, append.lane),
            sender: append.from.account,
            sender_device: number(append.from.device),
            key: append.coalesce_key.clone(),
        }
    }

    /// Of the row that tells `to` what `reader` has got.
    pub(super) fn of_delivery(to: DeviceAddress, reader: AccountId) -> Self {
        Self { lane: LaneAddress::new(to, Lane::Normal), sender: reader, sender_device: 0, key: Bytes::new() }
    }
}

async fn coalesced(
    transaction: &Transaction<'_>,
    keys: &BTreeSet<CoalesceKey>,
) -> Result<HashMap<CoalesceKey, Coalesced>, Failure> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let sql = "SELECT c.account, c.device, c.lane, c.sender, c.sender_device, c.key, c.seq, m.envelope
               FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::uuid[], $5::int[], $6::bytea[])
                   AS k (account, device, lane, sender, sender_device, key)
               JOIN coalesced c ON c.account = k.account AND c.device = k.device AND c.lane = k.lane
                   AND c.sender = k.sender AND c.sender_device = k.sender_device AND c.key = k.key
               LEFT JOIN messages m ON c.sender_device = 0 AND m.account = c.account AND m.device = c.device
                   AND m.lane = c.lane AND m.seq = c.seq";
    let columns = values::Columns::of(keys.iter().map(|key| key.lane));
    let senders: Vec<_> = keys.iter().map(|key| uuid(key.sender)).collect();
    let sender_devices: Vec<_> = keys.iter().map(|key| key.sender_device).collect();
    let names: Vec<_> = keys.iter().map(|key| &key.key[..]).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    let rows = transaction.query(&statement, &[accounts, devices, lanes, &senders, &sender_devices, &names]).await?;
    let mut coalesced = HashMap::new();
    for row in &rows {
        let key = CoalesceKey {
            lane: LaneAddress::of(row)?,
            sender: values::account(row.try_get(3)?),
            sender_device: row.try_get(4)?,
            key: Bytes::from(row.try_get::<_, Vec<u8>>(5)?),
        };
        let has_row = row.try_get::<_, Option<&[u8]>>(7).map_err(damaged)?.is_some();
        let told = if has_row { envelope_of(row, 7)?.delivery.unwrap_or_default().msg_ids } else { Vec::new() };
        coalesced.insert(key, Coalesced { seq: big(row, 6)?, told });
    }
    Ok(coalesced)
}
