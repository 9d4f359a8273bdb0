//! What an operator can watch of messaging: every metric, named once. `infra/metrics.md` is checked against this table.
//!
//! Labels name kinds of things, never people: who writes to whom is nobody's business, an operator's neither.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use waxwing_protocol::frames::Class;

/// Names and meanings. The kind is in the name: `_total` counts, `_fsync_seconds` is a histogram, anything else a gauge.
pub const METRICS: [(&str, &str); 22] = [
    (CONNECTIONS, "Devices with a connection to this node."),
    (CLOSED, "Connections that this node closed, by WebSocket close code."),
    (SENDS, "Sends that were well-formed and went to the mailboxes' store, by class of message."),
    (STORED, "Envelopes made durable, one for each device they go to."),
    (FULL, "Messages of groups that a full mailbox did not get."),
    (CHANNEL_ENTRIES, "Entries of channels made durable, each once however many follow."),
    (CHANNEL_PAGES, "Pages of channels that authors have closed, so that their entries are at the origin alone."),
    (ACKED, "Envelopes that their devices have acked."),
    (COMMIT_TIME, "Time of a commit of mailboxes to disk; one commit takes whatever waits."),
    (PAGES, "Pages of mailboxes that were read, since the delivery path alone could not serve a connection."),
    (DRAINS, "Lanes that had messages when their device came and were sent to it whole."),
    (ROWS, "Envelopes that wait in mailboxes, as of the last full round of the sweeper."),
    (DEEPEST, "Envelopes that wait in the deepest lane of a mailbox, as of the last full round of the sweeper."),
    (OLDEST, "When the oldest envelope that waits was taken, as of that round; 0 when none waits."),
    (SWEPT, "Envelopes that were erased because they were acked or had expired."),
    (PRESENCE, "Presence told: one for each account and each connection that is told of it."),
    (PUSH_WAKES, "Wakes that a push provider was asked for, or was not, by provider and by what came of it."),
    (PUSH_COALESCED, "Envelopes that needed no wake of their own, since one was outstanding."),
    (PUSH_DEVICES, "Devices that can be woken."),
    (PUSH_DUE, "Wakes that wait for their time."),
    (PUSH_CLOSED, "Push providers and origins that are left alone for a while, since they fail or refuse this server."),
    (REFUSALS, "Requests and frames refused because somebody asked too often, by limit."),
];

const CONNECTIONS: &str = "waxwing_connections";
const CLOSED: &str = "waxwing_connections_closed_total";
const SENDS: &str = "waxwing_sends_total";
const STORED: &str = "waxwing_envelopes_stored_total";
const FULL: &str = "waxwing_group_mailboxes_full_total";
const CHANNEL_ENTRIES: &str = "waxwing_channel_entries_total";
const CHANNEL_PAGES: &str = "waxwing_channel_pages_total";
const ACKED: &str = "waxwing_envelopes_acked_total";
const COMMIT_TIME: &str = "waxwing_mailbox_fsync_seconds";
const PAGES: &str = "waxwing_mailbox_pages_total";
const DRAINS: &str = "waxwing_drains_total";
const ROWS: &str = "waxwing_mailbox_rows";
const DEEPEST: &str = "waxwing_mailbox_deepest_rows";
const OLDEST: &str = "waxwing_mailbox_oldest_timestamp_seconds";
const SWEPT: &str = "waxwing_envelopes_swept_total";
const PRESENCE: &str = "waxwing_presence_items_total";
const PUSH_WAKES: &str = "waxwing_push_wakes_total";
const PUSH_COALESCED: &str = "waxwing_push_coalesced_total";
const PUSH_DEVICES: &str = "waxwing_push_devices";
const PUSH_DUE: &str = "waxwing_push_due";
const PUSH_CLOSED: &str = "waxwing_push_closed";
const REFUSALS: &str = "waxwing_limit_refusals_total";

/// The handles of this process. They count nothing until a recorder is installed, which comes before messaging opens.
static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    connections: gauge!(CONNECTIONS),
    sends: CLASSES.map(|(_, name)| counter!(SENDS, "class" => name)),
    stored: counter!(STORED),
    full: counter!(FULL),
    channel_entries: counter!(CHANNEL_ENTRIES),
    channel_pages: counter!(CHANNEL_PAGES),
    acked: counter!(ACKED),
    commit_time: histogram!(COMMIT_TIME),
    pages: counter!(PAGES),
    drains: counter!(DRAINS),
    rows: gauge!(ROWS),
    deepest: gauge!(DEEPEST),
    oldest: gauge!(OLDEST),
    swept: counter!(SWEPT),
    presence: counter!(PRESENCE),
    push_coalesced: counter!(PUSH_COALESCED),
    push_devices: gauge!(PUSH_DEVICES),
    push_due: gauge!(PUSH_DUE),
    push_closed: gauge!(PUSH_CLOSED),
});

/// Classes that clients send.
const CLASSES: [(Class, &str); 5] = [
    (Class::Message, "message"),
    (Class::Receipt, "receipt"),
    (Class::Sync, "sync"),
    (Class::Call, "call"),
    (Class::Control, "control"),
];

/// A handle for each series.
pub(crate) struct Handles {
    pub(crate) connections: Gauge,
    sends: [Counter; CLASSES.len()],
    pub(crate) stored: Counter,
    pub(crate) full: Counter,
    pub(crate) channel_entries: Counter,
    pub(crate) channel_pages: Counter,
    pub(crate) acked: Counter,
    pub(crate) commit_time: Histogram,
    pub(crate) pages: Counter,
    pub(crate) drains: Counter,
    pub(crate) rows: Gauge,
    pub(crate) deepest: Gauge,
    pub(crate) oldest: Gauge,
    pub(crate) swept: Counter,
    pub(crate) presence: Counter,
    pub(crate) push_coalesced: Counter,
    pub(crate) push_devices: Gauge,
    pub(crate) push_due: Gauge,
    pub(crate) push_closed: Gauge,
}

impl Handles {
    /// Counts a Send.
    pub(crate) fn sent(&self, class: Class) {
        if let Some(at) = CLASSES.iter().position(|(it, _)| *it == class) {
            self.sends[at].increment(1);
        }
    }
}

/// The handles.
pub(crate) fn handles() -> &'static Handles {
    &HANDLES
}

/// What waits in all mailboxes, as a full round of a sweeper sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Depth {
    rows: u64,
    deepest: u64,
    /// When the oldest was taken, in milliseconds since 1970; 0 for none.
    oldest: u64,
}

impl Depth {
    /// So many rows wait in a lane.
    pub(crate) fn waiting(&mut self, rows: u64) {
        self.rows += rows;
        self.deepest = self.deepest.max(rows);
    }

    /// One of them was taken at this time, in milliseconds since 1970.
    pub(crate) fn taken(&mut self, at: u64) {
        let known = Some(self.oldest).filter(|oldest| *oldest > 0);
        self.oldest = known.map_or(at, |oldest| oldest.min(at));
    }

    /// The same of other mailboxes.
    pub(crate) fn add(&mut self, other: Self) {
        self.rows += other.rows;
        self.deepest = self.deepest.max(other.deepest);
        if other.oldest > 0 {
            self.taken(other.oldest);
        }
    }

    /// Tells it to whoever watches metrics.
    #[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
    pub(crate) fn tell(self) {
        handles().rows.set(self.rows as f64);
        handles().deepest.set(self.deepest as f64);
        handles().oldest.set(self.oldest as f64 / 1000.0);
    }
}

/// Counts a connection that this node closes.
pub(crate) fn closed(code: u16) {
    counter!(CLOSED, "code" => code.to_string()).increment(1);
}

/// Counts a wake, with what came of it.
pub(crate) fn wake(provider: &'static str, reason: &'static str) {
    counter!(PUSH_WAKES, "provider" => provider, "reason" => reason).increment(1);
}

/// The counter of what a limit refuses.
pub(crate) fn refusals(limit: &'static str) -> Counter {
    counter!(REFUSALS, "limit" => limit)
}
