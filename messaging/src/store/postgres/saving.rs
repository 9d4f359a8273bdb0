//! What a turn writes, each table once.

use std::collections::{BTreeMap, BTreeSet};

use deadpool_postgres::Transaction;
use prost::Message as _;
use tokio_postgres::Row;
use waxwing_protocol::{AccountId, GroupId};

use super::connections::Failure;
use super::loading::{self, CoalesceKey, SendColumns, SendKey, Sent};
use super::turn::PutRow;
use super::values::{Columns, LaneAddress, big, number, uuid};
use crate::store::embedded::LaneRow;
use crate::store::{AckRequest, DeviceAddress};

/// Inserts sends; returns the keys of those that were not there.
pub(super) async fn insert_sends(
    transaction: &Transaction<'_>,
    sends: &BTreeMap<SendKey, Sent>,
) -> Result<Vec<Row>, Failure> {
    let sql = "INSERT INTO sends (account, device, msg_id, content_hash, server_ts)
               SELECT * FROM unnest($1::uuid[], $2::int[], $3::uuid[], $4::bytea[], $5::bigint[])
               ON CONFLICT DO NOTHING RETURNING account, device, msg_id";
    let columns = SendColumns::of(sends.keys());
    let hashes: Vec<_> = sends.values().map(|sent| &sent.content_hash[..]).collect();
    let times: Vec<_> = sends.values().map(|sent| sent.server_ts.cast_signed()).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, ids) = (&columns.accounts, &columns.devices, &columns.ids);
    Ok(transaction.query(&statement, &[accounts, devices, ids, &hashes, &times]).await?)
}

/// Forgets sends whose ids were taken for what was then refused.
pub(super) async fn delete_sends(transaction: &Transaction<'_>, sends: &BTreeSet<SendKey>) -> Result<(), Failure> {
    if sends.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM sends s USING unnest($1::uuid[], $2::int[], $3::uuid[]) AS k (account, device, msg_id)
               WHERE s.account = k.account AND s.device = k.device AND s.msg_id = k.msg_id";
    let columns = SendColumns::of(sends);
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, &[&columns.accounts, &columns.devices, &columns.ids]).await?;
    Ok(())
}

/// Inserts messages.
pub(super) async fn insert_rows(transaction: &Transaction<'_>, rows: &[PutRow]) -> Result<(), Failure> {
    if rows.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO messages (account, device, lane, seq, bytes_given, expires_at, server_ts, class, sender,
                   msg_id, envelope)
               SELECT * FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[],
                   $7::bigint[], $8::smallint[], $9::uuid[], $10::bytea[], $11::bytea[])";
    let columns = Columns::of(rows.iter().map(|row| row.lane));
    let numbers = |number: fn(&PutRow) -> u64| rows.iter().map(|row| number(row).cast_signed()).collect::<Vec<_>>();
    let seqs = numbers(|row| row.seq);
    let bytes_given = numbers(|row| row.bytes_given);
    let expire = numbers(|row| row.envelope.expires_at);
    let taken = numbers(|row| row.envelope.server_ts);
    let classes: Vec<_> = rows.iter().map(|row| i16::try_from(row.envelope.class).unwrap_or_default()).collect();
    let senders: Vec<_> =
        rows.iter().map(|row| AccountId::from_slice(&row.envelope.from_account).ok().map(uuid)).collect();
    let ids: Vec<_> = rows.iter().map(|row| &row.envelope.msg_id[..]).collect();
    let envelopes: Vec<_> = rows.iter().map(|row| row.envelope.encode_to_vec()).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    transaction
        .execute(
            &statement,
            &[accounts, devices, lanes, &seqs, &bytes_given, &expire, &taken, &classes, &senders, &ids, &envelopes],
        )
        .await?;
    Ok(())
}

/// Writes lanes that are locked.
pub(super) async fn save_lanes(transaction: &Transaction<'_>, lanes: &[(LaneAddress, LaneRow)]) -> Result<(), Failure> {
    if lanes.is_empty() {
        return Ok(());
    }
    // Arrays of arrays must be of one length: spans travel as text.
    let sql = "UPDATE lanes l SET last = k.last, acked = k.acked, swept = k.swept, bytes_given = k.bytes_given,
                   bytes_acked = k.bytes_acked, ranges = k.ranges::bigint[]
               FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[], $6::bigint[],
                   $7::bigint[], $8::bigint[], $9::text[])
                   AS k (account, device, lane, last, acked, swept, bytes_given, bytes_acked, ranges)
               WHERE l.account = k.account AND l.device = k.device AND l.lane = k.lane";
    let columns = Columns::of(lanes.iter().map(|(address, _)| *address));
    let numbers =
        |number: fn(&LaneRow) -> u64| lanes.iter().map(|(_, lane)| number(lane).cast_signed()).collect::<Vec<_>>();
    let last = numbers(|lane| lane.last);
    let acked = numbers(|lane| lane.acked);
    let swept = numbers(|lane| lane.swept);
    let bytes_given = numbers(|lane| lane.bytes_given);
    let bytes_acked = numbers(|lane| lane.bytes_acked);
    let ranges: Vec<_> = lanes.iter().map(|(_, lane)| spans(lane)).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 9] =
        [accounts, devices, lanes, &last, &acked, &swept, &bytes_given, &bytes_acked, &ranges];
    transaction.execute(&statement, &values).await?;
    Ok(())
}

/// A lane's spans as an array literal.
fn spans(lane: &LaneRow) -> String {
    let ends: Vec<_> = lane.ranges.iter().flat_map(|range| [range.first.to_string(), range.last.to_string()]).collect();
    format!("{{{}}}", ends.join(","))
}

/// Notes who has written to whom.
pub(super) async fn insert_pairs(
    transaction: &Transaction<'_>,
    pairs: &BTreeSet<(AccountId, AccountId)>,
) -> Result<(), Failure> {
    if pairs.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO pairs (account, peer) SELECT * FROM unnest($1::uuid[], $2::uuid[]) ON CONFLICT DO NOTHING";
    let (accounts, peers): (Vec<_>, Vec<_>) = pairs.iter().map(|(one, other)| (uuid(*one), uuid(*other))).unzip();
    transaction.execute(&transaction.prepare_cached(sql).await?, &[&accounts, &peers]).await?;
    Ok(())
}

/// Writes where coalesce keys point.
pub(super) async fn save_coalesced(
    transaction: &Transaction<'_>,
    coalesced: &BTreeMap<CoalesceKey, u64>,
) -> Result<(), Failure> {
    if coalesced.is_empty() {
        return Ok(());
    }
    let sql = "INSERT INTO coalesced (account, device, lane, sender, sender_device, key, seq)
               SELECT * FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::uuid[], $5::int[], $6::bytea[],
                   $7::bigint[])
               ON CONFLICT (account, device, lane, sender, sender_device, key) DO UPDATE SET seq = excluded.seq";
    let columns = Columns::of(coalesced.keys().map(|key| key.lane));
    let senders: Vec<_> = coalesced.keys().map(|key| uuid(key.sender)).collect();
    let sender_devices: Vec<_> = coalesced.keys().map(|key| key.sender_device).collect();
    let keys: Vec<_> = coalesced.keys().map(|key| &key.key[..]).collect();
    let seqs: Vec<_> = coalesced.values().map(|seq| seq.cast_signed()).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    transaction.execute(&statement, &[accounts, devices, lanes, &senders, &sender_devices, &keys, &seqs]).await?;
    Ok(())
}

/// Writes that mailboxes were opened.
pub(super) async fn save_opened(
    transaction: &Transaction<'_>,
    opened: &BTreeMap<DeviceAddress, (u64, u64)>,
) -> Result<(), Failure> {
    if opened.is_empty() {
        return Ok(());
    }
    let sql = "UPDATE mailboxes b SET generation = k.generation, opened_at = k.opened_at
               FROM unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[])
                   AS k (account, device, generation, opened_at)
               WHERE b.account = k.account AND b.device = k.device";
    let (accounts, devices): (Vec<_>, Vec<_>) =
        opened.keys().map(|mailbox| (uuid(mailbox.account), number(mailbox.device))).unzip();
    let (generations, times): (Vec<_>, Vec<_>) =
        opened.values().map(|(generation, at)| (generation.cast_signed(), at.cast_signed())).unzip();
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, &[&accounts, &devices, &generations, &times]).await?;
    Ok(())
}

/// Bytes given to lanes up to and with one row of each; rows that are not there are left out.
pub(super) async fn bytes_given(
    transaction: &Transaction<'_>,
    rows: &[(LaneAddress, u64)],
) -> Result<Vec<(LaneAddress, u64)>, Failure> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let sql = "SELECT m.account, m.device, m.lane, m.bytes_given
               FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[]) AS k (account, device, lane, seq)
               JOIN messages m ON m.account = k.account AND m.device = k.device AND m.lane = k.lane AND m.seq = k.seq";
    let columns = Columns::of(rows.iter().map(|(lane, _)| *lane));
    let seqs: Vec<_> = rows.iter().map(|(_, seq)| seq.cast_signed()).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let found = transaction.query(&statement, &[&columns.accounts, &columns.devices, &columns.lanes, &seqs]).await?;
    found.iter().map(|row| Ok((LaneAddress::of(row)?, big(row, 3)?))).collect()
}

/// Notes how far members of groups have got by acks, whose lanes still stand as before them; returns the groups in which
/// somebody has.
pub(super) async fn note_delivered(
    transaction: &Transaction<'_>,
    acks: &[AckRequest],
) -> Result<BTreeSet<GroupId>, Failure> {
    let spans = loading::spans_of(acks);
    if spans.is_empty() {
        return Ok(BTreeSet::new());
    }
    let sql = "UPDATE group_members g SET got = a.seq
               FROM (
                   SELECT k.account, m.body_group AS id, max(m.body_seq) AS seq
                   FROM unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
                       AS k (account, device, lane, first, last)
                   JOIN lanes l ON l.account = k.account AND l.device = k.device AND l.lane = k.lane
                   CROSS JOIN LATERAL (
                       SELECT r.body_group, r.body_seq FROM messages r
                       WHERE r.account = l.account AND r.device = l.device AND r.lane = l.lane
                           AND r.seq >= greatest(k.first, l.acked + 1) AND r.seq <= k.last
                       ORDER BY r.seq LIMIT $6
                   ) m
                   JOIN groups q ON q.id = m.body_group AND q.receipts
                   GROUP BY k.account, m.body_group
               ) a
               WHERE g.account = a.account AND g.id = a.id AND g.got < a.seq
               RETURNING g.id";
    let columns = Columns::of(spans.iter().map(|(lane, ..)| *lane));
    let bound = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
    let first: Vec<_> = spans.iter().map(|(_, first, _)| bound(*first)).collect();
    let last: Vec<_> = spans.iter().map(|(.., last)| bound(*last)).collect();
    let (accounts, devices, lanes) = (&columns.accounts, &columns.devices, &columns.lanes);
    let statement = transaction.prepare_cached(sql).await?;
    let limit = loading::ROWS_SEEN_MAX;
    let rows = transaction.query(&statement, &[accounts, devices, lanes, &first, &last, &limit]).await?;
    rows.iter().map(|row| Ok(GroupId::from_bytes(*row.try_get::<_, uuid::Uuid>(0)?.as_bytes()))).collect()
}
