//! What an operator can watch of an origin: every metric, named once.
//!
//! A name that is typed where it is counted is sooner or later typed in two ways, and a dashboard shows half the truth.
//! So names, kinds and meanings stand in one table, from which `infra/metrics.md` is checked. Handles are fetched once a
//! process: on the way of a byte there is an addition and no look-up.
//!
//! No label names a user, a blob or an upload: metrics are kept for years and shown to many.

use std::sync::LazyLock;
use std::time::Instant;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

/// Names and meanings. The kind is in the name: `_total` counts, `_seconds` is a histogram, anything else a gauge.
pub const METRICS: [(&str, &str); 14] = [
    (
        UPLOADS,
        "Uploads with a record, by state (receiving, complete; unread: in a bucket, too young to be due), as of the last sweep.",
    ),
    (UPLOAD_BYTES, "Bytes of content that upload requests brought, by dialect, whatever became of them."),
    (FSYNC, "Time of a sync, by what is made durable: data of one upload, a pack of blobs, a group of records."),
    (COMPLETED, "Uploads that became a blob."),
    (TAKEOVERS, "Requests that had to make way for a newer one on the same upload."),
    (
        GIVEN_UP,
        "Requests ended before their content did, by why: no byte came for too long (idle), or too few did (slow).",
    ),
    (EXPIRED, "Uploads forgotten by a sweep, by state (receiving, complete)."),
    (
        IDLE_ROOM,
        "Bytes of the disk that were reserved for uploads to which nothing happened for minutes, and given back.",
    ),
    (QUOTA_REFUSALS, "Requests refused because the owner's quota was used up."),
    (PACK_BYTES, "Bytes of the packs that take no more, as of the last look for dead space."),
    (PACK_LIVE, "How many of them belong to blobs that are there."),
    (PACK_FREED, "Bytes of dead space in packs that were given back."),
    (S3_REQUESTS, "Requests to S3, by what they are; one that is tried again counts again."),
    (PURGED, "Times that an owner's having a blob ended because it was never kept again."),
];

/// Upper bounds of the buckets of this crate's histograms, in seconds: from an SSD's sync to one that shows a failing disk.
pub const SECONDS_BUCKETS: [f64; 12] =
    [0.0001, 0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0];

const UPLOADS: &str = "waxwing_uploads";
const UPLOAD_BYTES: &str = "waxwing_upload_bytes_total";
const FSYNC: &str = "waxwing_upload_fsync_seconds";
const COMPLETED: &str = "waxwing_uploads_completed_total";
const TAKEOVERS: &str = "waxwing_upload_takeovers_total";
const GIVEN_UP: &str = "waxwing_upload_requests_given_up_total";
const EXPIRED: &str = "waxwing_uploads_expired_total";
const IDLE_ROOM: &str = "waxwing_upload_idle_room_bytes_total";
const QUOTA_REFUSALS: &str = "waxwing_quota_refusals_total";
const PACK_BYTES: &str = "waxwing_pack_bytes";
const PACK_LIVE: &str = "waxwing_pack_live_bytes";
const PACK_FREED: &str = "waxwing_pack_freed_bytes_total";
const S3_REQUESTS: &str = "waxwing_s3_requests_total";
const PURGED: &str = "waxwing_blob_owners_expired_total";

/// The handles of this process. They count nothing until a recorder is installed, which comes before an origin opens.
static HANDLES: LazyLock<Handles> = LazyLock::new(Handles::fetch);

/// A handle for each series.
pub(crate) struct Handles {
    pub(crate) receiving: Gauge,
    pub(crate) complete: Gauge,
    pub(crate) unread: Gauge,
    pub(crate) bytes_tus: Counter,
    pub(crate) bytes_ietf: Counter,
    pub(crate) bytes_content_range: Counter,
    pub(crate) bytes_put: Counter,
    pub(crate) fsync_data: Histogram,
    pub(crate) fsync_pack: Histogram,
    pub(crate) fsync_record: Histogram,
    pub(crate) completed: Counter,
    pub(crate) takeovers: Counter,
    pub(crate) given_up_idle: Counter,
    pub(crate) given_up_slow: Counter,
    pub(crate) expired_receiving: Counter,
    pub(crate) expired_complete: Counter,
    pub(crate) idle_room_bytes: Counter,
    pub(crate) quota_refusals: Counter,
    pub(crate) pack_bytes: Gauge,
    pub(crate) pack_live_bytes: Gauge,
    pub(crate) pack_freed_bytes: Counter,
    pub(crate) owners_expired: Counter,
    pub(crate) s3: S3Requests,
}

/// Requests to S3, by what they are.
pub(crate) struct S3Requests {
    pub(crate) get: Counter,
    pub(crate) head: Counter,
    pub(crate) put: Counter,
    pub(crate) part: Counter,
    pub(crate) list: Counter,
    pub(crate) multipart: Counter,
    pub(crate) delete: Counter,
}

impl S3Requests {
    fn fetch() -> Self {
        let of = |op: &'static str| counter!(S3_REQUESTS, "op" => op);
        Self {
            get: of("get"),
            head: of("head"),
            put: of("put"),
            part: of("part"),
            list: of("list"),
            multipart: of("multipart"),
            delete: of("delete"),
        }
    }
}

impl Handles {
    fn fetch() -> Self {
        Self {
            receiving: gauge!(UPLOADS, "state" => "receiving"),
            complete: gauge!(UPLOADS, "state" => "complete"),
            unread: gauge!(UPLOADS, "state" => "unread"),
            bytes_tus: counter!(UPLOAD_BYTES, "dialect" => "tus"),
            bytes_ietf: counter!(UPLOAD_BYTES, "dialect" => "ietf"),
            bytes_content_range: counter!(UPLOAD_BYTES, "dialect" => "content-range"),
            bytes_put: counter!(UPLOAD_BYTES, "dialect" => "put"),
            fsync_data: histogram!(FSYNC, "of" => "data"),
            fsync_pack: histogram!(FSYNC, "of" => "pack"),
            fsync_record: histogram!(FSYNC, "of" => "record"),
            completed: counter!(COMPLETED),
            takeovers: counter!(TAKEOVERS),
            given_up_idle: counter!(GIVEN_UP, "why" => "idle"),
            given_up_slow: counter!(GIVEN_UP, "why" => "slow"),
            expired_receiving: counter!(EXPIRED, "state" => "receiving"),
            expired_complete: counter!(EXPIRED, "state" => "complete"),
            idle_room_bytes: counter!(IDLE_ROOM),
            quota_refusals: counter!(QUOTA_REFUSALS),
            pack_bytes: gauge!(PACK_BYTES),
            pack_live_bytes: gauge!(PACK_LIVE),
            pack_freed_bytes: counter!(PACK_FREED),
            owners_expired: counter!(PURGED),
            s3: S3Requests::fetch(),
        }
    }
}

/// The handles.
pub(crate) fn handles() -> &'static Handles {
    &HANDLES
}

/// Enters how many bytes packs have and how many of them live.
#[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
pub(crate) fn watch_packs(bytes: u64, live_bytes: u64) {
    handles().pack_bytes.set(bytes as f64);
    handles().pack_live_bytes.set(live_bytes as f64);
}

/// Does `work`, and enters how long it took.
pub(crate) fn timed<T>(histogram: &Histogram, work: impl FnOnce() -> T) -> T {
    let began = Instant::now();
    let done = work();
    histogram.record(began.elapsed());
    done
}
