//! Cross-origin access: browsers on any site may upload, with a grant.
//!
//! Grants travel in `Authorization`, never in cookies, so another site can do nothing with a visitor's browser that it
//! could not do itself: every origin is allowed. An answer without these headers is invisible to a script, errors
//! included, so every answer has them.

use axum::extract::Request;
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

const METHODS: &str = "POST, HEAD, PATCH, OPTIONS, GET, PUT, DELETE";

/// Seconds a browser may remember a preflight.
const MAX_AGE_S: &str = "86400";

/// Request headers of all dialects, those to come included: a preflight is remembered for a day.
const ALLOWED: &str = "Authorization, Content-Type, Content-Range, Content-Digest, Repr-Digest, Want-Repr-Digest, \
    Idempotency-Key, Location, Range, If-Range, If-None-Match, Tus-Resumable, Upload-Checksum, Upload-Complete, \
    Upload-Concat, Upload-Defer-Length, Upload-Draft-Interop-Version, Upload-Incomplete, Upload-Length, \
    Upload-Metadata, Upload-Offset, Waxwing-Blob, X-HTTP-Method-Override, X-Request-ID, X-Requested-With";

/// Answer headers that a script may read.
const EXPOSED: &str = "Location, Range, Retry-After, Repr-Digest, Accept-Ranges, Content-Length, Content-Range, ETag, \
    Tus-Checksum-Algorithm, Tus-Extension, Tus-Max-Size, Tus-Resumable, Tus-Version, Upload-Complete, Upload-Concat, \
    Upload-Defer-Length, Upload-Draft-Interop-Version, Upload-Expires, Upload-Length, Upload-Limit, Upload-Metadata, \
    Upload-Offset, Waxwing-Blob, Waxwing-Blob-Bytes";

/// Answers preflights, and adds to every answer what lets a script read it.
pub(super) async fn cors(request: Request, next: Next) -> Response {
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    // A preflight goes on to the handler, so that one for a path that is not there fails, but its answer is ours.
    let mut response = next.run(request).await;
    if preflight && response.status() == StatusCode::METHOD_NOT_ALLOWED {
        response = StatusCode::NO_CONTENT.into_response();
    }
    let headers = response.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if preflight {
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
    } else {
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }
    response
}
