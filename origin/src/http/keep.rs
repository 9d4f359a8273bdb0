//! `/v1/blobs/{id}/keep`: being an owner of a blob.
//!
//! Forwarding a photo sends no photo: whoever sends it on keeps the blob that is there, at the cost of their own quota,
//! and it stays as long as they have it.

use axum::extract::State;
use axum::http::StatusCode;

use super::error::HttpError;
use super::grants::UploadGrant;
use super::{App, BlobPath, now};

/// `POST`: the caller has the blob from now on, or for the whole time again. 404 when it is not here; to know its id is
/// to be allowed.
pub(super) async fn keep(
    State(app): State<App>,
    grant: UploadGrant,
    BlobPath(id): BlobPath,
) -> Result<StatusCode, HttpError> {
    if app.blobs.keep(id, &grant.allowance, now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(HttpError::no_blob())
    }
}

/// `DELETE`: the caller has the blob no more. It goes, from edges too, when nobody else has it. 404 when the caller had
/// it not, whether or not anybody else has.
pub(super) async fn let_go(
    State(app): State<App>,
    grant: UploadGrant,
    BlobPath(id): BlobPath,
) -> Result<StatusCode, HttpError> {
    if app.blobs.let_go(id, grant.allowance.owner, now()).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(HttpError::no_blob())
    }
}
