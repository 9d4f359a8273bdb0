//! The heads of hits as bytes: what [`crate::http`] answers, written without the detour over a map of fields.
//!
//! A differential test holds both to the same answers.

use std::cell::RefCell;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use waxwing_protocol::BlobId;
use waxwing_protocol::range::ByteRange;

/// What every answer with a blob says.
const SAME: &str = "content-type: application/octet-stream\r\n\
    x-content-type-options: nosniff\r\n\
    content-security-policy: default-src 'none'; sandbox\r\n\
    accept-ranges: bytes\r\n\
    access-control-allow-origin: *\r\n\
    access-control-expose-headers: content-range,cache-status,etag,age,server-timing,content-length,accept-ranges\r\n";

/// What the head of a hit tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Told {
    pub(super) id: BlobId,
    pub(super) blob_bytes: u64,
    /// The part that is sent, when it is a part.
    pub(super) part: Option<ByteRange>,
    pub(super) is_from_disk: bool,
    pub(super) max_age_s: u64,
    pub(super) age_s: u64,
    pub(super) took: Duration,
    pub(super) keeps: bool,
}

impl Told {
    /// The status it is told with.
    pub(super) const fn status(&self) -> u16 {
        if self.part.is_some() { 206 } else { 200 }
    }

    /// Its `Cache-Status`.
    pub(super) const fn cache_status(&self) -> &'static str {
        if self.is_from_disk { "waxwing; hit; detail=disk" } else { "waxwing; hit" }
    }

    /// Writes the head behind what `head` holds.
    pub(super) fn write(&self, head: &mut Vec<u8>) {
        let status = if self.part.is_some() { "206 Partial Content" } else { "200 OK" };
        let content_bytes = self.part.map_or(self.blob_bytes, ByteRange::byte_count);
        let (id, age, took_ms) = (self.id, self.age_s, self.took.as_secs_f64() * 1000.0);
        let step = if self.is_from_disk { "disk" } else { "cache" };
        let (max_age, cache_status) = (self.max_age_s, self.cache_status());
        // A Vec takes whatever is written to it.
        let _ = write!(
            head,
            "HTTP/1.1 {status}\r\n{SAME}etag: \"{id}\"\r\ncache-control: private, max-age={max_age}, immutable\r\n\
             age: {age}\r\ncache-status: {cache_status}\r\nserver-timing: {step};dur={took_ms:.3}\r\n\
             content-length: {content_bytes}\r\n"
        );
        if let Some(part) = self.part {
            let _ = write!(head, "content-range: bytes {}-{}/{}\r\n", part.start, part.end - 1, self.blob_bytes);
        }
        end(head, self.keeps);
    }
}

/// Ends a head: the date, and whether the connection ends with this answer.
pub(super) fn end(head: &mut Vec<u8>, keeps: bool) {
    thread_local! {
        /// The second it is, and how it is written.
        static DATE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
    }
    if !keeps {
        head.extend_from_slice(b"connection: close\r\n");
    }
    let now = SystemTime::now();
    let second = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    DATE.with_borrow_mut(|(at, text)| {
        if *at != second || text.is_empty() {
            (*at, *text) = (second, httpdate::fmt_http_date(now));
        }
        head.extend_from_slice(b"date: ");
        head.extend_from_slice(text.as_bytes());
        head.extend_from_slice(b"\r\n\r\n");
    });
}
