//! What an operator can watch of an edge: every metric, named once. `infra/metrics.md` is checked against this table.
//!
//! Handles are fetched once a process: a hit costs an addition more and no look-up.

use std::sync::LazyLock;

use metrics::{Counter, counter};

/// Names and meanings. The kind is in the name: `_total` counts.
pub const METRICS: [(&str, &str); 3] = [
    (
        READS,
        "Requests for a blob that was found, by how the cache took part: hit, disk, miss, or collapsed into a fill under way.",
    ),
    (FILLS, "Requests to the origin for a run of slices."),
    (FILL_BYTES, "Bytes that came from the origin and were verified."),
];

const READS: &str = "waxwing_edge_reads_total";
const FILLS: &str = "waxwing_edge_fills_total";
const FILL_BYTES: &str = "waxwing_edge_fill_bytes_total";

/// The handles of this process. They count nothing until a recorder is installed, which comes before an edge is made.
static HANDLES: LazyLock<Handles> = LazyLock::new(|| Handles {
    hits: counter!(READS, "cache" => "hit"),
    disk_hits: counter!(READS, "cache" => "disk"),
    misses: counter!(READS, "cache" => "miss"),
    collapsed: counter!(READS, "cache" => "collapsed"),
    fills: counter!(FILLS),
    fill_bytes: counter!(FILL_BYTES),
});

/// A handle for each series.
pub(crate) struct Handles {
    pub(crate) hits: Counter,
    pub(crate) disk_hits: Counter,
    pub(crate) misses: Counter,
    pub(crate) collapsed: Counter,
    pub(crate) fills: Counter,
    pub(crate) fill_bytes: Counter,
}

/// The handles.
pub(crate) fn handles() -> &'static Handles {
    &HANDLES
}
