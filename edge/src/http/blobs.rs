//! `GET` and `HEAD /v1/blobs/{id}`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, StatusCode};
use waxwing_protocol::range::{ByteRange, RangeSpec, Selection, select};

use super::answer;
use super::asked::{Asked, Wanted, asked};
use super::error::HttpError;
use super::parts::Parts;
use super::pass::Pass;
use crate::Edge;
use crate::blobs::{How, ReadError};

/// `GET /v1/blobs/{id}`: the blob, ranges of it, or word that the client's copy stands.
pub(super) async fn get(State(edge): State<Edge>, pass: Pass, headers: HeaderMap) -> Result<Response, HttpError> {
    let began = Instant::now();
    let answered = match asked(&headers, pass.id) {
        Asked::Unmodified => Ok(answer::unmodified(pass, began.elapsed())),
        Asked::UnmodifiedIfThere => {
            edge.blobs().find(pass.id, pass.now).await?;
            Ok(answer::unmodified(pass, began.elapsed()))
        }
        Asked::Failed => Err(HttpError::precondition_failed()),
        Asked::Bytes(Wanted::All) => one(&edge, pass, None, began).await,
        Asked::Bytes(Wanted::One(range)) => one(&edge, pass, Some(range), began).await,
        Asked::Bytes(Wanted::Several(ranges)) => several(&edge, pass, ranges, began).await,
    };
    count_absent(&edge, &answered);
    answered
}

/// `HEAD /v1/blobs/{id}`: whether the blob is there and how large it is. Ranges do not apply, RFC 9110 §14.2.
pub(super) async fn head(State(edge): State<Edge>, pass: Pass, headers: HeaderMap) -> Result<Response, HttpError> {
    let began = Instant::now();
    match asked(&headers, pass.id) {
        Asked::Unmodified => Ok(answer::unmodified(pass, began.elapsed())),
        Asked::Failed => Err(HttpError::precondition_failed()),
        asked => {
            let found = edge.blobs().find(pass.id, pass.now).await?;
            match asked {
                Asked::UnmodifiedIfThere => Ok(answer::unmodified(pass, began.elapsed())),
                _ => {
                    edge.count_read(found.how);
                    Ok(answer::no_bytes(pass, found, began.elapsed()))
                }
            }
        }
    }
}

async fn one(edge: &Edge, pass: Pass, range: Option<RangeSpec>, began: Instant) -> Result<Response, HttpError> {
    let reading = edge.blobs().read(pass.id, range, pass.now).await?;
    edge.count_read(reading.found.how);
    Ok(answer::bytes(pass, reading, range.is_some(), began.elapsed(), edge.sent()))
}

/// Several ranges: what they come to is known once the size is.
async fn several(edge: &Edge, pass: Pass, ranges: &str, began: Instant) -> Result<Response, HttpError> {
    let found = edge.blobs().find(pass.id, pass.now).await?;
    match select(ranges, found.blob_bytes) {
        Selection::Whole => one(edge, pass, None, began).await,
        Selection::Unsatisfiable => Err(ReadError::Unsatisfiable { blob_bytes: found.blob_bytes }.into()),
        Selection::Parts(parts) => match parts.as_slice() {
            [part] => one(edge, pass, Some(spec(*part)), began).await,
            _ => {
                // The first is there before anything is said, so that a blob that cannot be had is an error.
                let first = edge.blobs().read(pass.id, parts.first().copied().map(spec), pass.now).await?;
                let how = if matches!(found.how, How::Missed { .. }) { found.how } else { first.found.how };
                let parts = Parts::new(edge.clone(), pass, found.blob_bytes, parts, first.content);
                edge.count_read(how);
                Ok(answer::parts(pass, first.found, how, parts, began.elapsed(), edge.sent()))
            }
        },
    }
}

/// The range that asks for exactly this.
pub(super) const fn spec(range: ByteRange) -> RangeSpec {
    RangeSpec::From { first: range.start, last: Some(range.end - 1) }
}

fn count_absent(edge: &Edge, answered: &Result<Response, HttpError>) {
    if answered.as_ref().is_err_and(|error| error.status() == StatusCode::NOT_FOUND) {
        edge.count_absent();
    }
}
