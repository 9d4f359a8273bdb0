//! `GET` and `HEAD /v1/blobs/{id}`.

use std::time::Instant;

use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;

use super::answer;
use super::asked::{Asked, asked, has_copy};
use super::error::HttpError;
use super::pass::Pass;
use crate::Edge;

/// `GET /v1/blobs/{id}`: the blob, a range of it, or word that the client's copy stands.
pub(super) async fn get(State(edge): State<Edge>, pass: Pass, headers: HeaderMap) -> Result<Response, HttpError> {
    let began = Instant::now();
    match asked(&headers, pass.id) {
        Asked::Unmodified => Ok(answer::unmodified(pass, began.elapsed())),
        Asked::Bytes(range) => {
            let reading = edge.blobs().read(pass.id, range, pass.now).await?;
            Ok(answer::bytes(pass, reading, range.is_some(), began.elapsed()))
        }
    }
}

/// `HEAD /v1/blobs/{id}`: whether the blob is there and how large it is. Ranges do not apply, RFC 9110 §14.2.
pub(super) async fn head(State(edge): State<Edge>, pass: Pass, headers: HeaderMap) -> Result<Response, HttpError> {
    let began = Instant::now();
    if has_copy(&headers, pass.id) {
        return Ok(answer::unmodified(pass, began.elapsed()));
    }
    let found = edge.blobs().find(pass.id, pass.now).await?;
    Ok(answer::no_bytes(pass, found, began.elapsed()))
}
