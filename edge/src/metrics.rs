//! What an operator can watch of an edge: every metric, named once. `infra/metrics.md` is checked against this table.
//!
//! What is counted stands in one place, [`Stats`]; the recorder is told when somebody asks it. Only times are recorded as
//! they come.

use std::sync::LazyLock;

use metrics::{Histogram, counter, gauge, histogram};

use crate::stats::Stats;

/// Names and meanings. The kind is in the name: `_total` counts.
pub const METRICS: [(&str, &str); 30] = [
    (
        READS,
        "Requests for a blob that was found, by how the cache took part: hit, disk, miss, or collapsed into a fill under way.",
    ),
    (FILLS, "Requests to the origin for a run of slices."),
    (FILL_BYTES, "Bytes that came from the origin and were verified."),
    (ABSENT, "Requests for a blob that there is not."),
    (SENT_BYTES, "Bytes of blobs sent to clients."),
    (ACCESS_LINES_LOST, "Lines of the access log that were lost, since the disk was slower than the requests."),
    (ORIGIN_REQUESTS, "Requests to the origins, those for outboards and purges included."),
    (ORIGIN_BYTES, "Bytes of bodies that came from the origins."),
    (ORIGIN_FAILOVERS, "Requests that another origin had to answer, since the one before failed."),
    (PEER_REQUESTS, "Requests to peers and shields."),
    (PEER_BYTES, "Bytes of bodies that came from peers and shields."),
    (PEER_FAILOVERS, "Requests that the next in line had to answer, since a peer or shield did not."),
    (PEER_LIES, "Answers of peers and shields that were refused: false bytes, ranges or sizes."),
    (PEERS_USABLE, "Peers and shields that take requests."),
    (SERVED_EDGES, "Requests of other edges that were answered."),
    (CIRCLES, "Requests of other edges that were refused, since they go in circles: a mistake in some edge's lists."),
    (FILLS_FAILED, "Fills that ended without their bytes."),
    (ORIGIN_LIES, "Answers of the origin that were refused: false bytes, ranges or sizes."),
    (DISK_WRITTEN, "Blobs, slices and outboards written to disk."),
    (DISK_BYPASSED, "Those not written: too much at once, too large, or a disk that is full or failing."),
    (DISK_EVICTED, "Those that went from disk to make room."),
    (DISK_CORRUPT, "Those that were found damaged on disk and dropped."),
    (DISK_ERRORS, "Reads and writes of the disk that failed."),
    (SCRUBBED, "Those that the scrub has looked through."),
    (PURGES, "Blobs purged because they went from an origin, whether they were here or not."),
    (PURGED_ALL, "Times that everything was dropped, since purges were missed."),
    (MEMORY, "Bytes that the memory tier holds."),
    (DISK_BYTES, "Bytes that the disk tier holds, whole blocks counted."),
    (ORIGIN_ANSWER, "Time from a request to an origin to the head of its answer."),
    (PURGE, "Time from a blob's end at its origin to its end here."),
];

/// Upper bounds of the buckets of this crate's histograms, in seconds: from an origin next door to purges made up for after
/// an hour without it.
pub const SECONDS_BUCKETS: [f64; 12] = [0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0];

const READS: &str = "waxwing_edge_reads_total";
const FILLS: &str = "waxwing_edge_fills_total";
const FILL_BYTES: &str = "waxwing_edge_fill_bytes_total";
const ABSENT: &str = "waxwing_edge_absent_total";
const SENT_BYTES: &str = "waxwing_edge_sent_bytes_total";
const ACCESS_LINES_LOST: &str = "waxwing_edge_access_lines_lost_total";
const ORIGIN_REQUESTS: &str = "waxwing_edge_origin_requests_total";
const ORIGIN_BYTES: &str = "waxwing_edge_origin_bytes_total";
const ORIGIN_FAILOVERS: &str = "waxwing_edge_origin_failovers_total";
const PEER_REQUESTS: &str = "waxwing_edge_peer_requests_total";
const PEER_BYTES: &str = "waxwing_edge_peer_bytes_total";
const PEER_FAILOVERS: &str = "waxwing_edge_peer_failovers_total";
const PEER_LIES: &str = "waxwing_edge_peer_lies_total";
const PEERS_USABLE: &str = "waxwing_edge_peers_usable";
const SERVED_EDGES: &str = "waxwing_edge_served_edges_total";
const CIRCLES: &str = "waxwing_edge_circles_total";
const FILLS_FAILED: &str = "waxwing_edge_fills_failed_total";
const ORIGIN_LIES: &str = "waxwing_edge_origin_lies_total";
const DISK_WRITTEN: &str = "waxwing_edge_disk_written_total";
const DISK_BYPASSED: &str = "waxwing_edge_disk_bypassed_total";
const DISK_EVICTED: &str = "waxwing_edge_disk_evicted_total";
const DISK_CORRUPT: &str = "waxwing_edge_disk_corrupt_total";
const DISK_ERRORS: &str = "waxwing_edge_disk_errors_total";
const SCRUBBED: &str = "waxwing_edge_scrubbed_total";
const PURGES: &str = "waxwing_edge_purges_total";
const PURGED_ALL: &str = "waxwing_edge_purged_all_total";
const MEMORY: &str = "waxwing_edge_memory_bytes";
const DISK_BYTES: &str = "waxwing_edge_disk_bytes";
const ORIGIN_ANSWER: &str = "waxwing_edge_origin_answer_seconds";
const PURGE: &str = "waxwing_edge_purge_seconds";

/// The handles of this process. They record nothing until a recorder is installed, which comes before an edge is made.
static HANDLES: LazyLock<Handles> =
    LazyLock::new(|| Handles { origin_answer: histogram!(ORIGIN_ANSWER), purge: histogram!(PURGE) });

/// A handle for each series.
pub(crate) struct Handles {
    pub(crate) origin_answer: Histogram,
    pub(crate) purge: Histogram,
}

/// The handles.
pub(crate) fn handles() -> &'static Handles {
    &HANDLES
}

/// Tells the recorder what an edge has counted by itself. A process has one edge, so its counts are the process's.
#[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
pub(crate) fn publish(stats: &Stats) {
    for (cache, value) in
        [("hit", stats.hits), ("disk", stats.disk_hits), ("miss", stats.misses), ("collapsed", stats.collapsed)]
    {
        counter!(READS, "cache" => cache).absolute(value);
    }
    for (name, value) in [
        (FILLS, stats.fills),
        (FILL_BYTES, stats.fill_bytes),
        (ABSENT, stats.absent),
        (SENT_BYTES, stats.sent_bytes),
        (ACCESS_LINES_LOST, stats.access_lines_lost),
        (ORIGIN_REQUESTS, stats.origin_requests),
        (ORIGIN_BYTES, stats.origin_bytes),
        (ORIGIN_FAILOVERS, stats.origin_failovers),
        (PEER_REQUESTS, stats.peer_requests),
        (PEER_BYTES, stats.peer_bytes),
        (PEER_FAILOVERS, stats.peer_failovers),
        (PEER_LIES, stats.peer_lies),
        (SERVED_EDGES, stats.served_edges),
        (CIRCLES, stats.circles),
        (FILLS_FAILED, stats.fills_failed),
        (ORIGIN_LIES, stats.origin_lies),
        (DISK_WRITTEN, stats.disk_written),
        (DISK_BYPASSED, stats.disk_bypassed),
        (DISK_EVICTED, stats.disk_evicted),
        (DISK_CORRUPT, stats.disk_corrupt),
        (DISK_ERRORS, stats.disk_errors),
        (SCRUBBED, stats.scrubbed),
        (PURGES, stats.purges),
        (PURGED_ALL, stats.purged_all),
    ] {
        counter!(name).absolute(value);
    }
    gauge!(PEERS_USABLE).set(stats.peers_usable as f64);
    gauge!(MEMORY).set(stats.memory_bytes as f64);
    gauge!(DISK_BYTES).set(stats.disk_bytes as f64);
}
