//! Who asks for what: the blob id in the path and the grant in `Authorization`, checked before anything is looked up.

use axum::extract::{FromRequestParts, RawPathParams};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::request::Parts;
use std::time::{Duration, SystemTime};
use waxwing_protocol::grant::bearer;
use waxwing_protocol::{BlobId, Timestamp};

use super::error::HttpError;
use crate::Edge;

/// A request that may read a blob.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// The blob.
    pub(super) id: BlobId,
    /// When the request came.
    pub(super) now: Timestamp,
    /// How long the grant lasts from now; zero in the minute in which clocks may differ.
    pub(super) time_left: Duration,
}

impl FromRequestParts<Edge> for Pass {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, edge: &Edge) -> Result<Self, HttpError> {
        let id = BlobPath::from_request_parts(parts, edge).await?.0;
        let now = Timestamp::from(SystemTime::now());
        let token = the_grant(&parts.headers)?;
        let expires = edge.grants().admit(token, id, now).map_err(|error| HttpError::grant(&error))?;
        Ok(Self { id, now, time_left: expires.since(now) })
    }
}

/// The blob id in the path. What is not one names no blob: 404.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlobPath(pub(super) BlobId);

impl<S: Send + Sync> FromRequestParts<S> for BlobPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let params = RawPathParams::from_request_parts(parts, state).await.map_err(|_| HttpError::no_such_blob())?;
        let id = params.iter().find(|(name, _)| *name == "id").and_then(|(_, text)| text.parse().ok());
        id.map(Self).ok_or_else(HttpError::no_such_blob)
    }
}

/// The one grant that was shown. Two are refused: which of them was meant is not ours to guess.
pub(super) fn the_grant(headers: &HeaderMap) -> Result<&str, HttpError> {
    let mut shown = headers.get_all(AUTHORIZATION).iter();
    let first = shown.next().ok_or_else(HttpError::grant_missing)?;
    if shown.next().is_some() {
        return Err(HttpError::grant_malformed());
    }
    first.to_str().ok().and_then(bearer).ok_or_else(HttpError::grant_malformed)
}
