//! `GET /origin/v1/purges`: which blobs went, for the edges that may have them.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use serde::Deserialize;
use waxwing_protocol::api::{Purge, PurgeLog};

use super::App;
use super::error::HttpError;
use super::grants::EdgeGrant;

/// Purges in one answer at most: less than a hundred kilobytes.
const PAGE: usize = 1000;

/// What is asked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    /// The number of the last purge that the edge knows.
    #[serde(default)]
    after: u64,
}

/// The purges after `?after=N`; all that are remembered without it.
pub(super) async fn list(
    State(app): State<App>,
    _: EdgeGrant,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<PurgeLog>, HttpError> {
    let Query(Asked { after }) =
        asked.map_err(|error| HttpError::bad_request("bad-query", format!("send after=<number>: {error}")))?;
    let log = app.blobs.purges(after, PAGE).await?;
    let purges = log.entries.into_iter().map(|purge| Purge { number: purge.number, blob: purge.blob, at: purge.at });
    Ok(Json(PurgeLog { oldest: log.oldest, next: log.next, purges: purges.collect() }))
}
