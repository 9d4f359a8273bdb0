//! `GET /s/{id}`: what a person sees who opens a share link in a browser.
//!
//! Key and grant stand in the link's fragment, which browsers keep to themselves. So this page knows nothing worth
//! protecting and must do nothing that could carry the fragment away: no script, no other resource, no referrer.

use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderName, HeaderValue};

use super::pass::BlobPath;

const PAGE: &str = include_str!("share.html");

/// The same for every link, whether its blob exists or not. Not stored: the page is small, and its URL names a blob.
const HEADERS: [(HeaderName, HeaderValue); 5] = [
    (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// The page.
pub(super) async fn page(_: BlobPath) -> Response {
    (HEADERS, PAGE).into_response()
}
