//! `PUT /v1/blobs`: a small blob in one request.
//!
//! For a thumbnail or a voice message the three requests of a resumable upload cost more than sending it again would.

use axum::Json;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use waxwing_protocol::BlobId;
use waxwing_protocol::headers::WAXWING_BLOB;

use super::error::HttpError;
use super::grants::UploadGrant;
use super::{App, content, digests, headers, now};
use crate::uploads::NewContent;

/// Body of the answer.
#[derive(Serialize)]
struct Stored {
    /// The blob's id.
    blob: BlobId,
}

/// Stores the request's content as a blob, whole or not at all. The same content again is the same blob: a lost answer
/// costs a repetition. 201 also when somebody else stored it before, since who stored what is nobody's business.
pub(super) async fn put(app: &App, grant: &UploadGrant, request: Request) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let new = NewContent {
        allowance: grant.allowance,
        expected: headers::blob_id(&parts.headers, WAXWING_BLOB)?,
        content_bytes: headers::content_length(&parts.headers)?,
        content_digest: digests::content_digest(&parts.headers),
    };
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    let blob = app.uploads.put(new, content(body), now()).await?;
    Ok((StatusCode::CREATED, [(WAXWING_BLOB, headers::plain(&blob))], Json(Stored { blob })).into_response())
}
