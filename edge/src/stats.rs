//! Counters: what an operator's dashboard asks of an edge.
//!
//! Counted where it happens, read from outside as one plain value, so that no other crate's registry is known here.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters, as they are counted.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: AtomicU64,)*
        }

        /// What an edge has done since it started, and what it holds.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
        #[non_exhaustive]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes that the memory tier holds, as weighed.
            pub memory_bytes: u64,
            /// Peers and shields that take requests.
            pub peers_usable: u64,
            /// Units that the disk tier holds.
            pub disk_units: u64,
            /// Bytes that they take, whole blocks counted.
            pub disk_bytes: u64,
        }

        impl Counters {
            /// What was counted so far.
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.load(Relaxed),)* ..Stats::default() }
            }
        }
    };
}

counters! {
    /// Requests for a blob that was found, answered from memory.
    hits,
    /// Those answered from disk.
    disk_hits,
    /// Those for which something had to be fetched.
    misses,
    /// Those that joined what was being fetched for others.
    collapsed,
    /// Requests for a run of slices.
    fills,
    /// Bytes that were fetched and verified.
    fill_bytes,
    /// Requests for blobs that there are not.
    absent,
    /// Lines of the access log that were lost, since the disk was slower than the requests.
    access_lines_lost,
    /// Bytes of blobs sent to clients.
    sent_bytes,
    /// Requests sent to the origin.
    origin_requests,
    /// Bytes of bodies that the origin sent.
    origin_bytes,
    /// Requests that another origin had to answer, since the first one failed.
    origin_failovers,
    /// Requests sent to peers and shields.
    peer_requests,
    /// Bytes of bodies that peers and shields sent.
    peer_bytes,
    /// Requests that the next in line had to answer, since a peer or shield did not.
    peer_failovers,
    /// Answers of peers and shields that were refused: false bytes, ranges or sizes.
    peer_lies,
    /// Requests of other edges that were answered.
    served_edges,
    /// Requests of other edges that were refused, since they go in circles.
    circles,
    /// Fills that ended without their bytes.
    fills_failed,
    /// Answers of the origin that were refused: false bytes, ranges or sizes.
    origin_lies,
    /// Units written to disk.
    disk_written,
    /// Units not written to disk: too much at once, too large, or a disk that is full or failing.
    disk_bypassed,
    /// Units that went from disk to make room.
    disk_evicted,
    /// Units that were found damaged on disk, dropped and fetched again.
    disk_corrupt,
    /// Reads and writes of the disk that failed.
    disk_errors,
    /// Units that the scrub has looked through.
    scrubbed,
    /// Purges applied.
    purges,
    /// How often everything was dropped, since purges were missed.
    purged_all,
    /// The number of the last purge applied.
    purge_cursor,
}
