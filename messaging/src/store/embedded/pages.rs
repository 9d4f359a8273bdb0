//! Reading mailboxes: a page of a lane, and how much waits in all.

use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::{Envelope, Lane};

use tracing::error;

use super::bodies;
use super::records::{MailboxRow, RowHead};
use super::tables::{self, Tables, corrupt, engine_error};
use crate::store::{DeviceAddress, LaneDepth, MailboxView, Page, PageRequest, StoreError};

/// Rows looked at for one page, so that a long run of expired ones cannot hold a reading thread.
const ROWS_SEEN_MAX: usize = 4096;

/// Reads the live rows above `request.after`. The watermark is read first: rows that are acked and erased after that are
/// missing, as they may be, and the page then says that it is not the end.
pub(super) fn read(tables: &Tables, request: &PageRequest) -> Result<Page, StoreError> {
    let mailbox = tables.mailboxes.get(tables::address(request.mailbox)).map_err(engine_error)?;
    let Some(mailbox) = mailbox else {
        return Ok(Page { rows: Vec::new(), up_to: request.after, end: true });
    };
    let mailbox = MailboxRow::read(&mailbox)?;
    let lane = &mailbox.lanes[tables::lane_index(request.lane)];
    let after = request.after.max(lane.acked);
    let mut page = Page { rows: Vec::new(), up_to: after, end: false };
    if after >= lane.last {
        page.end = true;
        return Ok(page);
    }
    let first = tables::row(request.mailbox, request.lane, after + 1);
    let last = tables::row(request.mailbox, request.lane, lane.last);
    let mut bytes = 0;
    for guard in tables.rows.range(first..=last).take(ROWS_SEEN_MAX) {
        let (key, value) = guard.into_inner().map_err(engine_error)?;
        let seq = tables::seq_of(&key).ok_or_else(|| corrupt("a message"))?;
        if RowHead::read(&value)?.expires_at > request.now && !lane.is_acked(seq) {
            let Some(envelope) = bodies::envelope(tables, &value)? else {
                // A row that was acked meanwhile may have gone with its body.
                if tables.rows.contains_key(&key).map_err(engine_error)? {
                    error!(device = %request.mailbox, seq, "the body of a group's message is gone: its row is passed over");
                }
                page.up_to = seq;
                continue;
            };
            let envelope = Envelope { seq, ..envelope };
            let fits = page.rows.len() < request.msgs && bytes + envelope.body.len() <= request.bytes;
            // A body larger than the whole allowance comes alone: it would never come otherwise.
            if !fits && !page.rows.is_empty() {
                return Ok(page);
            }
            bytes += envelope.body.len();
            page.rows.push(envelope);
        }
        page.up_to = seq;
    }
    page.end = page.up_to >= lane.last;
    Ok(page)
}

/// How much waits in a mailbox.
pub(super) fn view(tables: &Tables, mailbox: DeviceAddress) -> Result<Option<MailboxView>, StoreError> {
    let Some(row) = tables.mailboxes.get(tables::address(mailbox)).map_err(engine_error)? else {
        return Ok(None);
    };
    let row = MailboxRow::read(&row)?;
    let mut lanes = [LaneDepth::default(); 2];
    for (lane, (row, depth)) in [Lane::Normal, Lane::Urgent].into_iter().zip(row.lanes.iter().zip(&mut lanes)) {
        let head = tables.rows.get(tables::row(mailbox, lane, row.acked + 1)).map_err(engine_error)?;
        let oldest = head.map(|head| bodies::envelope(tables, &head)).transpose()?.flatten();
        *depth = LaneDepth {
            acked: row.acked,
            last: row.last,
            waiting: row.waiting(),
            bytes: row.bytes_waiting(),
            oldest: oldest.map(|oldest| Timestamp::from_millis(oldest.server_ts)),
        };
    }
    Ok(Some(MailboxView { epoch: row.epoch, generation: row.generation, lanes }))
}
