//! The edge on the wire: requests into typed values, answers out of them. Nothing is decided here but how to say it.

mod answer;
mod asked;
mod blobs;
pub(crate) mod body;
mod error;
mod logged;
mod parts;
mod pass;
mod peers;
mod share;

pub(crate) use answer::client_lifetime;

use std::time::Duration;

use axum::routing::get;
use axum::{Router, middleware};
use http::header::{
    ACCEPT_RANGES, AGE, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use http::{HeaderValue, Method};
use tower_http::cors::{Any, CorsLayer};

use crate::Edge;

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// W3C Server Timing.
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// What a blob's answer may do in a browser that is led to show it: nothing. Blobs are ciphertext from strangers.
const BLOB_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; sandbox");

/// How long a browser may remember what the preflight allowed.
const PREFLIGHT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The edge's paths.
pub(crate) fn router(edge: Edge) -> Router {
    let blob = get(blobs::get).head(blobs::head).fallback(error::method_not_allowed);
    let share = get(share::page).fallback(error::method_not_allowed);
    let router = Router::new().route("/v1/blobs/{id}", blob).route("/s/{id}", share).layer(cors());
    let router = router.merge(peers::router());
    let router = match edge.access_log() {
        Some(log) => router.layer(middleware::from_fn_with_state(log, logged::log)),
        None => router,
    };
    router.with_state(edge)
}

/// Any page may fetch blobs: whoever has id and grant may read, and neither is sent by a browser on its own.
fn cors() -> CorsLayer {
    CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::HEAD, Method::OPTIONS])
        .allow_headers([AUTHORIZATION, RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH])
        .expose_headers([CONTENT_RANGE, CACHE_STATUS, ETAG, AGE, SERVER_TIMING, CONTENT_LENGTH, ACCEPT_RANGES])
        .max_age(PREFLIGHT_LIFETIME)
}
