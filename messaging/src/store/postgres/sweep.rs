//! Erasing in bulk what nobody can read any more.
//!
//! Lanes acked through this node since the last round come first. A full round over everything, once an hour, finds what
//! has expired and what a crash left; of all nodes the one that finds it due makes it.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deadpool_postgres::{Object, Transaction};
use waxwing_protocol::Timestamp;

use super::connections::Failure;
use super::deletion;
use super::directory::commit;
use super::groups::{body_of, release};
use super::pages::{LANE, lane_of};
use super::saving::{bytes_given, save_lanes};
use super::values::{Columns, LaneAddress, big, number, uuid};
use crate::metrics::Depth;
use crate::store::Swept;
use crate::store::embedded::LaneRow;

/// How long a send is remembered: 48 h are promised.
const SENDS_KEPT: Duration = Duration::from_secs(50 * 60 * 60);

/// How long a handed-out one-time key is remembered, so that a repeated upload does not bring it back.
const USED_KEYS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Time between full rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Lanes swept in one step.
const LANES: usize = 128;

/// Rows erased in one step, of each lane and in all the rest.
const STEP: u64 = 1024;

/// Lanes remembered for the next round; what is beyond is found by the full one.
const UNSWEPT_MAX: usize = 100_000;

/// Where the sweeper of this node is.
#[derive(Debug, Default)]
pub(super) struct Sweeper {
    /// Lanes with rows at or below their watermark.
    unswept: Mutex<HashSet<LaneAddress>>,
    round: Mutex<Round>,
}

/// A full round goes through the tables.
#[derive(Clone, Debug, Default)]
struct Round {
    stage: Stage,
    depth: Depth,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Idle,
    /// Lanes after this one.
    Lanes(Option<LaneAddress>),
    Rest(usize),
}

/// What a full round erases besides, with the age of what goes as its only parameter.
const REST: [(&str, Duration); 4] = [
    ("DELETE FROM used_prekeys WHERE used_at < $1", USED_KEYS_KEPT),
    ("DELETE FROM invites WHERE expires_at < $1", Duration::ZERO),
    ("DELETE FROM sends WHERE server_ts < $1", SENDS_KEPT),
    (
        "DELETE FROM coalesced c USING lanes l
         WHERE l.account = c.account AND l.device = c.device AND l.lane = c.lane AND c.seq <= l.acked
             AND $1::bigint IS NOT NULL",
        Duration::ZERO,
    ),
];

/// Which of [`REST`] are sends: their number is told.
const SENDS: usize = 2;

impl Sweeper {
    /// Takes note of lanes whose watermark has moved.
    pub(super) fn note(&self, lanes: impl IntoIterator<Item = LaneAddress>) {
        let mut unswept = lock(&self.unswept);
        for lane in lanes {
            if unswept.len() >= UNSWEPT_MAX {
                return;
            }
            unswept.insert(lane);
        }
    }

    /// One step of sweeping.
    pub(super) async fn step(&self, client: &mut Object, now: Timestamp) -> Result<Swept, Failure> {
        let mut swept = Swept::default();
        let deleting = deletion::sweep(client).await?;
        let mut acked: Vec<_> = lock(&self.unswept).iter().copied().take(LANES).collect();
        acked.sort_unstable();
        if !acked.is_empty() {
            let left = self.sweep_lanes(client, &acked, now, &mut swept).await?;
            let mut unswept = lock(&self.unswept);
            acked.iter().filter(|lane| !left.contains(lane)).for_each(|lane| {
                unswept.remove(lane);
            });
        }
        if swept.rows < STEP {
            self.step_of_round(client, now, &mut swept).await?;
        }
        let idle = matches!(lock(&self.round).stage, Stage::Idle);
        swept.more = deleting || !idle || !lock(&self.unswept).is_empty();
        Ok(swept)
    }

    /// A step of the full round.
    async fn step_of_round(&self, client: &mut Object, now: Timestamp, swept: &mut Swept) -> Result<(), Failure> {
        let stage = lock(&self.round).stage;
        let next = match stage {
            Stage::Idle => {
                let sql = "UPDATE sweeps SET next_round = $2 WHERE next_round <= $1";
                let (now, next) = (now.as_millis().cast_signed(), now.plus(ROUND_INTERVAL).as_millis().cast_signed());
                let due = client.execute(&client.prepare_cached(sql).await?, &[&now, &next]).await? > 0;
                if due { Stage::Lanes(None) } else { Stage::Idle }
            }
            Stage::Lanes(after) => {
                let lanes = lanes_after(client, after).await?;
                let left = self.sweep_lanes(client, &lanes, now, swept).await?;
                self.note(left);
                match lanes.last() {
                    Some(last) if lanes.len() == LANES => Stage::Lanes(Some(*last)),
                    _ => {
                        std::mem::take(&mut lock(&self.round).depth).tell();
                        Stage::Rest(0)
                    }
                }
            }
            Stage::Rest(n) => {
                let (sql, kept) = REST[n];
                let before = now.as_millis().saturating_sub(kept.as_millis().try_into().unwrap_or(u64::MAX));
                let erased = client.execute(&client.prepare_cached(sql).await?, &[&before.cast_signed()]).await?;
                if n == SENDS {
                    swept.sends += erased;
                }
                if n + 1 < REST.len() { Stage::Rest(n + 1) } else { Stage::Idle }
            }
        };
        lock(&self.round).stage = next;
        Ok(())
    }

    /// Moves watermarks over expired rows at the heads of lanes and erases what lies below; returns the lanes of which
    /// something is left to erase.
    async fn sweep_lanes(
        &self,
        client: &mut Object,
        addresses: &[LaneAddress],
        now: Timestamp,
        swept: &mut Swept,
    ) -> Result<Vec<LaneAddress>, Failure> {
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let transaction = client.transaction().await?;
        let before = lock_lanes(&transaction, addresses).await?;
        let mut lanes = before.clone();
        let mut depth = Depth::default();
        for row in &heads(&transaction, addresses, now).await? {
            let Some(lane) = lanes.get_mut(&LaneAddress::of(row)?) else { continue };
            let (seq, expired) = (big(row, 3)?, Timestamp::from_millis(big(row, 5)?) <= now);
            if seq == lane.acked + 1 && expired {
                lane.ack_up_to(seq);
                lane.bytes_acked = big(row, 4)?;
            } else if seq == lane.acked + 1 {
                depth.taken(big(row, 6)?);
            }
        }
        // Ranges acked early may have joined: the bytes are those at the watermark.
        let moved = lanes.iter().filter(|(address, lane)| before.get(address).is_some_and(|it| it.acked < lane.acked));
        let moved: Vec<_> = moved.map(|(address, lane)| (*address, lane.acked)).collect();
        for (address, bytes) in bytes_given(&transaction, &moved).await? {
            if let Some(lane) = lanes.get_mut(&address) {
                lane.bytes_acked = bytes;
            }
        }
        let (mut erased, mut left, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        for (address, lane) in &mut lanes {
            let until = lane.acked.min(lane.swept + STEP);
            if until > lane.swept {
                erased.push((*address, lane.swept, until));
                swept.rows += until - lane.swept;
                lane.swept = until;
            }
            if lane.swept < lane.acked {
                left.push(*address);
            }
            depth.waiting(lane.waiting());
            if before.get(address) != Some(lane) {
                changed.push((*address, lane.clone()));
            }
        }
        erase(&transaction, &erased).await?;
        save_lanes(&transaction, &changed).await?;
        commit(transaction).await?;
        lock(&self.round).depth.add(depth);
        Ok(left)
    }
}

/// Lanes after one that are not both empty and swept, by rising key.
async fn lanes_after(client: &Object, after: Option<LaneAddress>) -> Result<Vec<LaneAddress>, Failure> {
    let sql = "SELECT account, device, lane FROM lanes
               WHERE ($1::uuid IS NULL OR (account, device, lane) > ($1, $2, $3)) AND swept < last
               ORDER BY account, device, lane LIMIT $4";
    let (account, device, lane) = (
        after.map(|after| uuid(after.mailbox.account)),
        after.map_or(0, |after| number(after.mailbox.device)),
        after.map_or(0, |after| after.lane),
    );
    let limit = i64::try_from(LANES).unwrap_or(i64::MAX);
    let rows = client.query(&client.prepare_cached(sql).await?, &[&account, &device, &lane, &limit]).await?;
    Ok(rows.iter().map(LaneAddress::of).collect::<Result<_, _>>()?)
}

/// Locks lanes, in the order of all who do.
async fn lock_lanes(
    transaction: &Transaction<'_>,
    addresses: &[LaneAddress],
) -> Result<HashMap<LaneAddress, LaneRow>, Failure> {
    let sql = format!(
        "SELECT l.account, l.device, l.lane, {LANE}
         FROM lanes l JOIN unnest($1::uuid[], $2::int[], $3::smallint[]) AS k (account, device, lane)
             ON l.account = k.account AND l.device = k.device AND l.lane = k.lane
         ORDER BY l.account, l.device, l.lane FOR UPDATE OF l"
    );
    let columns = Columns::of(addresses.iter().copied());
    let statement = transaction.prepare_cached(&sql).await?;
    let rows = transaction.query(&statement, &[&columns.accounts, &columns.devices, &columns.lanes]).await?;
    rows.iter().map(|row| Ok((LaneAddress::of(row)?, lane_of(row, 3)?))).collect()
}

/// The rows at the heads of lanes up to and with the first that lives, as many of each as may expire in one step.
async fn heads(
    transaction: &Transaction<'_>,
    addresses: &[LaneAddress],
    now: Timestamp,
) -> Result<Vec<tokio_postgres::Row>, Failure> {
    let sql = "SELECT l.account, l.device, l.lane, m.seq, m.bytes_given, m.expires_at, m.server_ts
               FROM unnest($1::uuid[], $2::int[], $3::smallint[]) AS k (account, device, lane)
               JOIN lanes l ON l.account = k.account AND l.device = k.device AND l.lane = k.lane
               LEFT JOIN LATERAL (
                   SELECT r.seq FROM messages r
                   WHERE r.account = l.account AND r.device = l.device AND r.lane = l.lane AND r.seq > l.acked
                       AND r.expires_at > $5
                   ORDER BY r.seq LIMIT 1
               ) live ON true
               CROSS JOIN LATERAL (
                   SELECT r.seq, r.bytes_given, r.expires_at, r.server_ts FROM messages r
                   WHERE r.account = l.account AND r.device = l.device AND r.lane = l.lane AND r.seq > l.acked
                       AND r.seq <= coalesce(live.seq, l.last)
                   ORDER BY r.seq LIMIT $4
               ) m
               ORDER BY l.account, l.device, l.lane, m.seq";
    let columns = Columns::of(addresses.iter().copied());
    let statement = transaction.prepare_cached(sql).await?;
    let (limit, now) = (STEP.cast_signed(), now.as_millis().cast_signed());
    Ok(transaction.query(&statement, &[&columns.accounts, &columns.devices, &columns.lanes, &limit, &now]).await?)
}

/// Erases rows above and up to the two seqs of each lane.
async fn erase(transaction: &Transaction<'_>, spans: &[(LaneAddress, u64, u64)]) -> Result<(), Failure> {
    if spans.is_empty() {
        return Ok(());
    }
    let sql = "DELETE FROM messages m
               USING unnest($1::uuid[], $2::int[], $3::smallint[], $4::bigint[], $5::bigint[])
                   AS k (account, device, lane, above, up_to)
               WHERE m.account = k.account AND m.device = k.device AND m.lane = k.lane
                   AND m.seq > k.above AND m.seq <= k.up_to
               RETURNING m.body_group, m.body_seq";
    let columns = Columns::of(spans.iter().map(|(address, ..)| *address));
    let above: Vec<_> = spans.iter().map(|(_, above, _)| above.cast_signed()).collect();
    let up_to: Vec<_> = spans.iter().map(|(.., up_to)| up_to.cast_signed()).collect();
    let statement = transaction.prepare_cached(sql).await?;
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
        [&columns.accounts, &columns.devices, &columns.lanes, &above, &up_to];
    let erased = transaction.query(&statement, &values).await?;
    let bodies: Result<Vec<_>, _> = erased.iter().map(|row| body_of(row, 0)).collect();
    release(transaction, bodies?.into_iter().flatten()).await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change is one insert, removal or assignment: a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
