//! Reading mailboxes: a page of a lane, and how much waits in all. Each is one statement, so that what it shows belongs
//! together.

use bytes::Bytes;
use deadpool_postgres::Object;
use prost::Message as _;
use tokio_postgres::Row;
use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::Envelope;

use super::connections::Failure;
use super::devices::{Key, key};
use super::values::{big, damaged, lane_number};
use crate::store::embedded::{LaneRow, RangeRow};
use crate::store::{DeviceAddress, LaneDepth, MailboxView, Page, PageRequest, StoreError};

/// Columns of a lane, in the order that [`lane_of`] reads; `l` is the table.
pub(super) const LANE: &str = "l.last, l.acked, l.swept, l.bytes_given, l.bytes_acked, l.ranges";

/// Rows looked at for one page at most, so that a run of expired ones is passed over in steps.
const ROWS_SEEN_MAX: usize = 4096;

/// A lane from its columns, the first of them `column`.
pub(super) fn lane_of(row: &Row, column: usize) -> Result<LaneRow, StoreError> {
    let ranges: Vec<i64> = row.try_get(column + 5).map_err(damaged)?;
    Ok(LaneRow {
        last: big(row, column)?,
        acked: big(row, column + 1)?,
        swept: big(row, column + 2)?,
        bytes_given: big(row, column + 3)?,
        bytes_acked: big(row, column + 4)?,
        ranges: ranges.as_chunks().0.iter().map(range).collect(),
        ..LaneRow::default()
    })
}

fn range([first, last]: &[i64; 2]) -> RangeRow {
    RangeRow { first: first.cast_unsigned(), last: last.cast_unsigned() }
}

/// An envelope from its column.
pub(super) fn envelope_of(row: &Row, column: usize) -> Result<Envelope, StoreError> {
    Envelope::decode(Bytes::from(row.try_get::<_, Vec<u8>>(column).map_err(damaged)?)).map_err(damaged)
}

/// Reads the live rows above `request.after`. One body more than fits is read at most.
pub(super) async fn read(client: &Object, request: &PageRequest) -> Result<Page, Failure> {
    let sql = format!(
        "SELECT {LANE}, m.seq, m.expires_at, CASE WHEN m.body_group IS NULL THEN m.envelope ELSE b.envelope END
         FROM lanes l
         LEFT JOIN LATERAL (
             SELECT f.bytes_given FROM messages f
             WHERE f.account = l.account AND f.device = l.device AND f.lane = l.lane AND f.seq > greatest($4, l.acked)
             ORDER BY f.seq LIMIT 1
         ) head ON true
         LEFT JOIN LATERAL (
             SELECT r.seq, r.expires_at, r.envelope, r.body_group, r.body_seq FROM messages r
             WHERE r.account = l.account AND r.device = l.device AND r.lane = l.lane AND r.seq > greatest($4, l.acked)
                 AND r.seq <= l.last AND r.bytes_given <= head.bytes_given + $5
             ORDER BY r.seq LIMIT $6
         ) m ON true
         LEFT JOIN group_bodies b ON b.id = m.body_group AND b.conv_seq = m.body_seq
         WHERE l.account = $1 AND l.device = $2 AND l.lane = $3
         ORDER BY m.seq"
    );
    let statement = client.prepare_cached(&sql).await?;
    let Key(account, device) = key(request.mailbox);
    let after = i64::try_from(request.after).unwrap_or(i64::MAX);
    let bytes = i64::try_from(request.bytes).unwrap_or(i64::MAX / 2);
    let limit = i64::try_from(request.msgs.min(ROWS_SEEN_MAX)).unwrap_or(i64::MAX);
    let lane_number = lane_number(request.lane);
    let rows = client.query(&statement, &[&account, &device, &lane_number, &after, &bytes, &limit]).await?;
    let Some(first) = rows.first() else {
        return Ok(Page { rows: Vec::new(), up_to: request.after, end: true });
    };
    let lane = lane_of(first, 0)?;
    let after = request.after.max(lane.acked);
    let mut page = Page { rows: Vec::new(), up_to: after, end: false };
    let mut used = 0;
    for row in &rows {
        // A lane with nothing above comes alone.
        let Some(seq) = row.try_get::<_, Option<i64>>(6)?.map(i64::cast_unsigned) else { break };
        // The body of a row that was acked and swept by another node a moment ago is gone.
        let is_there = row.try_get::<_, Option<&[u8]>>(8)?.is_some();
        if is_there && Timestamp::from_millis(big(row, 7)?) > request.now && !lane.is_acked(seq) {
            let envelope = Envelope { seq, ..envelope_of(row, 8)? };
            // A body larger than the whole allowance comes alone: it would never come otherwise.
            if used + envelope.body.len() > request.bytes && !page.rows.is_empty() {
                return Ok(page);
            }
            used += envelope.body.len();
            page.rows.push(envelope);
        }
        page.up_to = seq;
    }
    page.end = page.up_to >= lane.last;
    Ok(page)
}

/// How much waits in a mailbox.
pub(super) async fn view(client: &Object, mailbox: DeviceAddress) -> Result<Option<MailboxView>, Failure> {
    let sql = format!(
        "SELECT {LANE}, b.epoch, b.generation, m.server_ts
         FROM mailboxes b
         JOIN lanes l USING (account, device)
         LEFT JOIN messages m
             ON m.account = l.account AND m.device = l.device AND m.lane = l.lane AND m.seq = l.acked + 1
         WHERE b.account = $1 AND b.device = $2
         ORDER BY l.lane"
    );
    let rows = client.query(&client.prepare_cached(&sql).await?, &key(mailbox).each()).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut lanes = [LaneDepth::default(); 2];
    for (row, depth) in rows.iter().zip(&mut lanes) {
        let lane = lane_of(row, 0)?;
        let oldest = row.try_get::<_, Option<i64>>(8)?;
        *depth = LaneDepth {
            acked: lane.acked,
            last: lane.last,
            waiting: lane.waiting(),
            bytes: lane.bytes_waiting(),
            oldest: oldest.map(|oldest| Timestamp::from_millis(oldest.cast_unsigned())),
        };
    }
    Ok(Some(MailboxView { epoch: big(first, 6)?, generation: big(first, 7)?, lanes }))
}
