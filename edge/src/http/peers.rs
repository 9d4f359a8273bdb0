//! `/peer/v1/…`: what other edges ask of this one. The origin's wire, answered out of the cache, and filled from the next
//! tier when the cache does not have it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use waxwing_protocol::Timestamp;
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, parse_ranges};

use super::CACHE_STATUS;
use super::answer::{cache_status, prepend_hop};
use super::body::BlobBody;
use super::error::{HttpError, method_not_allowed};
use super::parts::MEDIA_TYPE;
use super::pass::{BlobPath, the_grant};
use crate::Edge;
use crate::via::Via;

/// The paths.
pub(super) fn router() -> Router<Edge> {
    Router::new()
        .route("/peer/v1/blobs/{id}", get(range).fallback(method_not_allowed))
        .route("/peer/v1/blobs/{id}/outboard", get(outboard).fallback(method_not_allowed))
        .route("/peer/v1/health", get(health).fallback(method_not_allowed))
}

/// Another edge, which may ask.
struct Asker {
    via: Via,
    now: Timestamp,
}

impl FromRequestParts<Edge> for Asker {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, edge: &Edge) -> Result<Self, HttpError> {
        let now = Timestamp::from(SystemTime::now());
        let token = the_grant(&parts.headers)?;
        edge.grants().admit_edge(token, now).map_err(|error| HttpError::grant(&error))?;
        let via = Via::of(&parts.headers, &edge.upstream().name).map_err(|circle| {
            edge.counters().circles.fetch_add(1, Relaxed);
            HttpError::circle(circle)
        })?;
        Ok(Self { via, now })
    }
}

/// `GET /peer/v1/blobs/{id}` with one range.
async fn range(
    State(edge): State<Edge>,
    asker: Asker,
    BlobPath(id): BlobPath,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    check_purges(&edge, &headers)?;
    let asked = headers.get(RANGE).and_then(|range| parse_ranges(range.to_str().ok()?));
    let Some([asked]) = asked.as_deref() else { return Err(HttpError::no_range()) };
    let reading = edge.blobs().via(asker.via).read(id, Some(*asked), asker.now).await?;
    edge.counters().served_edges.fetch_add(1, Relaxed);
    let range = ByteRange { start: reading.range.start, end: reading.range.end };
    let mut told = HeaderMap::new();
    let text = |text: String| HeaderValue::try_from(text).expect("numbers and fixed words are a header value");
    told.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    told.insert(CONTENT_RANGE, text(range.content_range(reading.found.blob_bytes)));
    told.insert(CACHE_STATUS, text(cache_status(reading.found.how, StatusCode::PARTIAL_CONTENT)));
    prepend_hop(&mut told, reading.cache_status.as_deref());
    let body = BlobBody::new(reading.content, range.byte_count(), edge.sent());
    Ok((StatusCode::PARTIAL_CONTENT, told, Body::new(body)).into_response())
}

/// `GET /peer/v1/blobs/{id}/outboard`.
async fn outboard(
    State(edge): State<Edge>,
    asker: Asker,
    BlobPath(id): BlobPath,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    check_purges(&edge, &headers)?;
    let (blob_bytes, outboard) = edge.blobs().via(asker.via).outboard(id, asker.now).await?;
    edge.counters().served_edges.fetch_add(1, Relaxed);
    let size = [(HeaderName::from_static(WAXWING_BLOB_BYTES), HeaderValue::from(blob_bytes))];
    Ok((size, [(CONTENT_TYPE, MEDIA_TYPE)], outboard).into_response())
}

/// `GET /peer/v1/health`: whether to ask here.
async fn health(State(edge): State<Edge>, _: Asker) -> Result<StatusCode, HttpError> {
    if edge.is_ready() { Ok(StatusCode::NO_CONTENT) } else { Err(HttpError::draining()) }
}

/// What this edge has not heard to be gone may be gone.
fn check_purges(edge: &Edge, headers: &HeaderMap) -> Result<(), HttpError> {
    if edge.upstream().cursors.reach(headers) { Ok(()) } else { Err(HttpError::behind()) }
}
