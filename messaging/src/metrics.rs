//! What an operator can watch of messaging: every metric, named once. `infra/metrics.md` is checked against this table.

use std::sync::LazyLock;

use metrics::{Counter, Gauge, counter, gauge};

/// Names and meanings. The kind is in the name: `_total` counts, anything else is a gauge.
pub const METRICS: [(&str, &str); 3] = [
    (CONNECTIONS, "Devices with a connection to this node."),
    (SENDS, "Sends that were well-formed and went to the mailboxes' store."),
    (STORED, "Envelopes made durable, one for each device they go to."),
];

const CONNECTIONS: &str = "waxwing_connections";
const SENDS: &str = "waxwing_sends_total";
const STORED: &str = "waxwing_envelopes_stored_total";

/// The handles of this process. They count nothing until a recorder is installed, which comes before messaging opens.
static HANDLES: LazyLock<Handles> =
    LazyLock::new(|| Handles { connections: gauge!(CONNECTIONS), sends: counter!(SENDS), stored: counter!(STORED) });

/// A handle for each series.
pub(crate) struct Handles {
    pub(crate) connections: Gauge,
    pub(crate) sends: Counter,
    pub(crate) stored: Counter,
}

/// The handles.
pub(crate) fn handles() -> &'static Handles {
    &HANDLES
}
