//! The wire: requests in, answers out.
//!
//! | path | who | what |
//! |---|---|---|
//! | `/v1/uploads`, `/v1/uploads/{id}` | clients, `upload` grant | resumable uploads (`uploads.rs`) in the dialect that a request speaks (`dialect.rs`): tus 1.0 (`tus.rs`), the IETF's (`ietf.rs`), Content-Range (`content_range.rs`) |
//! | `/v1/blobs` | clients, `upload` grant | a blob in one request (`put.rs`) |
//! | `/v1/blobs/{id}/keep` | clients, `upload` grant | having a blob, and letting it go (`keep.rs`) |
//! | `/origin/v1/blobs/{id}`, `…/outboard` | edges, `edge` grant | reading (`blobs.rs`) |
//! | `/origin/v1/purges` | edges, `edge` grant | which blobs went (`purges.rs`) |
//! | `/v1/openapi.json` | anybody | all of this, for programs (`openapi.rs`) |
//!
//! Handlers translate; what a failure means in HTTP stands in `error.rs` alone.

mod blobs;
mod content_range;
mod cors;
mod counted;
mod dialect;
mod digests;
mod error;
mod grants;
mod headers;
mod ietf;
mod interim;
mod keep;
mod linger;
mod openapi;
mod purges;
mod put;
mod tus;
mod uploads;

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;
use axum::middleware::{from_fn, map_request};
use axum::routing::{get, post, put};
use futures_util::stream::StreamExt as _;
use waxwing_protocol::grant::GrantKeys;
use waxwing_protocol::{BlobId, Timestamp, UploadId};

use self::error::HttpError;
use self::grants::GrantMemory;
pub use self::interim::Interim;
use crate::blobs::Blobs;
use crate::config::Config;
use crate::uploads::{Content, ContentError, Uploads};

/// What handlers work with.
#[derive(Clone)]
pub(crate) struct App {
    uploads: Uploads,
    blobs: Blobs,
    config: Arc<Config>,
    grants: GrantMemory,
}

impl App {
    /// Handlers over these uploads and blobs.
    pub(crate) fn new(uploads: Uploads, blobs: Blobs, config: Arc<Config>, keys: Arc<GrantKeys>) -> Self {
        Self { uploads, blobs, config, grants: GrantMemory::new(keys) }
    }
}

/// All paths of the origin.
pub(crate) fn router(app: App) -> Router {
    let uploads = Router::new()
        .route("/v1/uploads", post(uploads::create).put(uploads::create).options(uploads::discover))
        .route(
            "/v1/uploads/{id}",
            post(uploads::post)
                .head(uploads::status)
                .patch(uploads::append)
                .put(uploads::send)
                .delete(uploads::terminate)
                .options(uploads::discover),
        )
        .route("/v1/blobs", put(uploads::put_blob))
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(from_fn(dialect::tell));
    let blobs = Router::new()
        .route("/v1/blobs/{id}/keep", post(keep::keep).delete(keep::let_go))
        .route("/origin/v1/purges", get(purges::list))
        .route("/origin/v1/blobs/{id}", get(blobs::get).head(blobs::head))
        .route("/origin/v1/blobs/{id}/outboard", get(blobs::outboard).head(blobs::outboard_head))
        .method_not_allowed_fallback(error::method_not_allowed);
    let description = Router::new()
        .route("/v1/openapi.json", get(openapi::get))
        .method_not_allowed_fallback(error::method_not_allowed);
    uploads
        .merge(blobs)
        .merge(description)
        .with_state(app)
        .layer(from_fn(cors::cors))
        .layer(map_request(linger::linger))
}

/// The moment of a request.
fn now() -> Timestamp {
    SystemTime::now().into()
}

/// A request's body as the domain reads it.
fn content(body: Body) -> Content {
    body.into_data_stream().map(|piece| piece.map_err(|_| ContentError)).boxed()
}

/// The upload a path names. A name that is no id names no upload.
struct UploadPath(UploadId);

impl<S: Send + Sync> FromRequestParts<S> for UploadPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let Path(id) = Path::<UploadId>::from_request_parts(parts, state).await.map_err(|_| HttpError::no_upload())?;
        Ok(Self(id))
    }
}

/// The blob a path names. A name that is no id names no blob.
struct BlobPath(BlobId);

impl<S: Send + Sync> FromRequestParts<S> for BlobPath {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, HttpError> {
        let Path(id) = Path::<BlobId>::from_request_parts(parts, state).await.map_err(|_| HttpError::no_blob())?;
        Ok(Self(id))
    }
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
