//! The heads of a blob's answers.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{
    ACCEPT_RANGES, AGE, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use waxwing_protocol::range::ByteRange;

use super::asked::etag;
use super::body::{BlobBody, Sent};
use super::parts::{MEDIA_TYPE, Parts};
use super::pass::Pass;
use super::{BLOB_POLICY, CACHE_STATUS, SERVER_TIMING};
use crate::blobs::{Found, How, Reading};

/// How long a client may use its copy without asking, at most: a purge reaches every copy within a day.
const CLIENT_LIFETIME_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// 200 with a whole blob, 206 with a range of it.
pub(super) fn bytes(pass: Pass, reading: Reading, is_range: bool, took: Duration, sent: Sent) -> Response {
    let Reading { found, range, cache_status, content } = reading;
    let content_bytes = range.end - range.start;
    let mut headers = head(pass, Some(found), took, StatusCode::PARTIAL_CONTENT);
    prepend_hop(&mut headers, cache_status.as_deref());
    let status = if is_range {
        let range = ByteRange { start: range.start, end: range.end };
        set(&mut headers, CONTENT_RANGE, range.content_range(found.blob_bytes));
        StatusCode::PARTIAL_CONTENT
    } else {
        StatusCode::OK
    };
    (status, headers, Body::new(BlobBody::new(content, content_bytes, sent))).into_response()
}

/// 206 with several ranges.
pub(super) fn parts(pass: Pass, found: Found, how: How, parts: Parts, took: Duration, sent: Sent) -> Response {
    let mut headers = head(pass, Some(Found { how, ..found }), took, StatusCode::PARTIAL_CONTENT);
    set(&mut headers, CONTENT_TYPE, parts.content_type());
    let content_bytes = parts.content_bytes();
    let body = BlobBody::streamed(Box::pin(parts.into_stream()), content_bytes, sent);
    (StatusCode::PARTIAL_CONTENT, headers, Body::new(body)).into_response()
}

/// 200 without the bytes: the answer to HEAD.
pub(super) fn no_bytes(pass: Pass, found: Found, took: Duration) -> Response {
    let mut headers = head(pass, Some(found), took, StatusCode::OK);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(found.blob_bytes));
    (headers, Body::empty()).into_response()
}

/// 304: the client's copy is this blob.
pub(super) fn unmodified(pass: Pass, took: Duration) -> Response {
    let mut headers = head(pass, None, took, StatusCode::OK);
    headers.remove(CONTENT_TYPE);
    (StatusCode::NOT_MODIFIED, headers, Body::empty()).into_response()
}

/// What all answers about blob `pass.id` say. `origin_status` is what the origin answers when it is asked for this.
fn head(pass: Pass, found: Option<Found>, took: Duration, origin_status: StatusCode) -> HeaderMap {
    let age = found.and_then(|found| found.stored).map(|stored| pass.now.since(stored));
    let how = found.map_or(How::Hit { is_from_disk: false }, |found| found.how);
    let mut headers = HeaderMap::with_capacity(16);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, BLOB_POLICY);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    set(&mut headers, ETAG, etag(pass.id));
    set(&mut headers, CACHE_CONTROL, cache_control(pass.time_left, age.unwrap_or_default()));
    if let Some(age) = age {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    set(&mut headers, CACHE_STATUS, cache_status(how, origin_status));
    let step = match how {
        How::Hit { is_from_disk: false } => "cache",
        How::Hit { is_from_disk: true } => "disk",
        How::Missed { .. } => "origin",
    };
    set(&mut headers, SERVER_TIMING, format!("{step};dur={:.3}", took.as_secs_f64() * 1000.0));
    headers
}

/// A client's cache counts `max-age` from the moment `Age` points back to, RFC 9111 §4.2.3. So that the copy stays fresh
/// for as long from *now* as the grant lasts, the age is added; without it a blob that the edge has had for an hour
/// would be stale on arrival, and be asked for again each time it is shown.
fn cache_control(time_left: Duration, age: Duration) -> String {
    format!("private, max-age={}, immutable", client_lifetime(time_left, age).as_secs())
}

/// That `max-age`, in whole seconds.
pub(crate) fn client_lifetime(time_left: Duration, age: Duration) -> Duration {
    Duration::from_secs(time_left.min(CLIENT_LIFETIME_MAX).as_secs() + age.as_secs())
}

/// RFC 9211 §2. The answers of the origin that a fill takes are always stored.
pub(super) fn cache_status(how: How, origin_status: StatusCode) -> String {
    match how {
        How::Hit { is_from_disk: false } => "waxwing; hit".to_owned(),
        How::Hit { is_from_disk: true } => "waxwing; hit; detail=disk".to_owned(),
        How::Missed { known, collapsed } => {
            let why = if known { "partial" } else { "uri-miss" };
            let collapsed = if collapsed { "; collapsed" } else { "" };
            format!("waxwing; fwd={why}; fwd-status={}; stored{collapsed}", origin_status.as_u16())
        }
    }
}

/// Puts what the edge before did in front of what this one did: the list's first is nearest the origin, RFC 9211 §2.
pub(super) fn prepend_hop(headers: &mut HeaderMap, hop: Option<&str>) {
    let own = headers.get(CACHE_STATUS).and_then(|own| own.to_str().ok());
    if let (Some(hop), Some(own)) = (hop, own)
        && let Ok(both) = HeaderValue::try_from(format!("{hop}, {own}"))
    {
        headers.insert(CACHE_STATUS, both);
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: String) {
    headers.insert(name, HeaderValue::try_from(value).expect("ids, numbers and fixed words are a header value"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn a_copy_stays_fresh_for_as_long_as_the_grant_and_never_over_a_day() {
        assert_eq!(cache_control(MINUTE, Duration::ZERO), "private, max-age=60, immutable");
        assert_eq!(cache_control(45 * DAY, Duration::ZERO), "private, max-age=86400, immutable");
        assert_eq!(cache_control(Duration::ZERO, Duration::ZERO), "private, max-age=0, immutable");
    }

    #[test]
    fn what_the_edge_has_had_for_long_is_not_stale_on_arrival() {
        assert_eq!(cache_control(MINUTE, 60 * MINUTE), "private, max-age=3660, immutable");
    }

    #[test]
    fn the_cache_says_what_it_did() {
        let said = |known, collapsed| cache_status(How::Missed { known, collapsed }, StatusCode::PARTIAL_CONTENT);
        assert_eq!(cache_status(How::Hit { is_from_disk: false }, StatusCode::OK), "waxwing; hit");
        assert_eq!(said(false, false), "waxwing; fwd=uri-miss; fwd-status=206; stored");
        assert_eq!(said(false, true), "waxwing; fwd=uri-miss; fwd-status=206; stored; collapsed");
        assert_eq!(said(true, false), "waxwing; fwd=partial; fwd-status=206; stored");
    }
}
