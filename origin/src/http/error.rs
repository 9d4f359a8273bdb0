//! The one place where failures meet HTTP: a status, a slug that clients match on, and the values needed to act.
//!
//! Every error is a problem, RFC 9457. What went wrong inside is logged here, once; clients are told no more than they
//! can use.

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::ext::ReasonPhrase;
use serde_json::Value;
use waxwing_protocol::Problem;
use waxwing_protocol::grant::GrantError;
use waxwing_protocol::problem::PROBLEM_MEDIA_TYPE;

use crate::store::{StoreError, StoreErrorKind};
use crate::uploads::UploadError;

/// Seconds after which a client may ask again when the server is short of something.
const RETRY_AFTER_S: &str = "5";

/// A failure as an answer. Boxed, since most results are none.
#[derive(Debug)]
pub(super) struct HttpError(Box<Failure>);

#[derive(Debug)]
struct Failure {
    problem: Problem,
    headers: HeaderMap,
    /// Words for a status that hyper does not know.
    reason: Option<ReasonPhrase>,
}

impl HttpError {
    /// A failure with a status, a slug and an explanation.
    pub(super) fn new(status: StatusCode, slug: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            problem: Problem::new(status.as_u16(), slug, detail),
            headers: HeaderMap::new(),
            reason: None,
        }))
    }

    /// A request that says something it must not, or in a way it must not.
    pub(super) fn bad_request(slug: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, slug, detail)
    }

    /// No such upload, or none of the caller's.
    pub(super) fn no_upload() -> Self {
        UploadError::NotFound.into()
    }

    /// No such blob.
    pub(super) fn no_blob() -> Self {
        Self::new(StatusCode::NOT_FOUND, "blob-not-found", "there is no such blob")
    }

    /// Content of a type that does not belong here.
    pub(super) fn media_type(expected: &str) -> Self {
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media-type", format!("send the content as {expected}"))
    }

    /// A range that a blob of `blob_bytes` does not have.
    pub(super) fn no_range(blob_bytes: u64) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", "the blob has no such bytes")
            .header(CONTENT_RANGE, format!("bytes */{blob_bytes}"))
    }

    /// A request without a grant.
    pub(super) fn no_grant() -> Self {
        Self::unauthorized("grant-missing", "send a grant as Authorization: Bearer")
    }

    fn unauthorized(slug: &str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, slug, detail).header(WWW_AUTHENTICATE, "Bearer".to_owned())
    }

    /// Something broke that the client can do nothing about.
    fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %chain(error), "a request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the server failed; it has been logged")
    }

    /// The same with an extension member.
    #[must_use]
    pub(super) fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.problem.extensions.insert(name.to_owned(), value.into());
        self
    }

    /// The same with a header.
    #[must_use]
    pub(super) fn header(mut self, name: HeaderName, value: String) -> Self {
        if let Ok(value) = HeaderValue::try_from(value) {
            self.0.headers.insert(name, value);
        }
        self
    }

    /// The same with the type that a standard gives it, instead of ours.
    #[must_use]
    pub(super) fn of_type(mut self, uri: &str) -> Self {
        uri.clone_into(&mut self.0.problem.kind);
        self
    }

    /// The same with the status that a dialect has for it.
    #[must_use]
    pub(super) fn of_status(mut self, status: StatusCode) -> Self {
        self.0.problem.status = status.as_u16();
        self
    }

    /// The same with words for a status that is a dialect's own.
    #[must_use]
    pub(super) fn in_words(mut self, reason: &'static [u8]) -> Self {
        self.0.reason = Some(ReasonPhrase::from_static(reason));
        self
    }

    /// The same with the advice to ask again after a while.
    #[must_use]
    pub(super) fn retry(self) -> Self {
        self.header(RETRY_AFTER, RETRY_AFTER_S.to_owned())
    }
}

impl From<UploadError> for HttpError {
    fn from(error: UploadError) -> Self {
        let new = |status, slug| Self::new(status, slug, error.to_string());
        match &error {
            UploadError::NotFound => new(StatusCode::NOT_FOUND, "upload-not-found"),
            UploadError::Expired => new(StatusCode::GONE, "upload-expired"),
            UploadError::OffsetMismatch { stored, .. } => {
                new(StatusCode::CONFLICT, "offset-mismatch").with("offset", *stored)
            }
            UploadError::AlreadyComplete => new(StatusCode::CONFLICT, "upload-complete"),
            UploadError::LengthConflict { stored } => {
                new(StatusCode::BAD_REQUEST, "length-conflict").with("length", *stored)
            }
            UploadError::ExpectedConflict { stored } => {
                new(StatusCode::BAD_REQUEST, "blob-conflict").with("blob", stored.to_string())
            }
            UploadError::TooLarge { limit } => {
                new(StatusCode::PAYLOAD_TOO_LARGE, "too-large").with("bytes_max", *limit)
            }
            UploadError::QuotaExceeded => new(StatusCode::PAYLOAD_TOO_LARGE, "quota-exceeded"),
            UploadError::BlobMismatch { expected, actual } => new(StatusCode::UNPROCESSABLE_ENTITY, "blob-mismatch")
                .with("expected", expected.to_string())
                .with("actual", actual.to_string()),
            UploadError::DigestMismatch => new(StatusCode::BAD_REQUEST, "digest-mismatch"),
            UploadError::DigestMissing => new(StatusCode::BAD_REQUEST, "digest-missing"),
            UploadError::MadeOfParts => new(StatusCode::FORBIDDEN, "final-upload"),
            UploadError::PartNotFound { part } => {
                new(StatusCode::NOT_FOUND, "part-not-found").with("part", part.to_string())
            }
            UploadError::PartUnfinished { part } => {
                new(StatusCode::CONFLICT, "part-unfinished").with("part", part.to_string())
            }
            UploadError::WholeDigestMismatch => new(StatusCode::UNPROCESSABLE_ENTITY, "repr-digest-mismatch"),
            UploadError::TakenOver => new(StatusCode::CONFLICT, "taken-over"),
            // Not 423: clients of every dialect ask again after a 503.
            UploadError::Busy => new(StatusCode::SERVICE_UNAVAILABLE, "upload-busy").retry(),
            UploadError::Cut => new(StatusCode::BAD_REQUEST, "content-cut"),
            UploadError::Idle => new(StatusCode::REQUEST_TIMEOUT, "idle-timeout"),
            UploadError::Slow => new(StatusCode::REQUEST_TIMEOUT, "too-slow"),
            UploadError::Closing => new(StatusCode::SERVICE_UNAVAILABLE, "closing").retry(),
            UploadError::NoRandomness | UploadError::Aborted => Self::internal(&error),
            UploadError::Store(store) => store.into(),
        }
    }
}

impl From<StoreError> for HttpError {
    fn from(error: StoreError) -> Self {
        (&error).into()
    }
}

impl From<&StoreError> for HttpError {
    fn from(error: &StoreError) -> Self {
        match error.kind() {
            StoreErrorKind::Full => {
                tracing::warn!(error = %chain(error), "the store is full");
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "store-full", "no room; what was received is kept").retry()
            }
            StoreErrorKind::Quota => UploadError::QuotaExceeded.into(),
            // Logged where it happened, by the store: each request would say it again.
            StoreErrorKind::ReadOnly => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "store-read-only",
                "the server takes no uploads until it is repaired",
            )
            .retry(),
            StoreErrorKind::Busy => Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-busy", "ask again").retry(),
            StoreErrorKind::Unavailable => {
                tracing::warn!(error = %chain(error), "the store cannot be reached");
                let detail = "what was acknowledged is kept; ask again";
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store-unavailable", detail).retry()
            }
            StoreErrorKind::Stale | StoreErrorKind::Corrupt | StoreErrorKind::Other => Self::internal(error),
        }
    }
}

impl From<GrantError> for HttpError {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Audience { .. } => Self::new(StatusCode::FORBIDDEN, "grant-audience", error.to_string()),
            GrantError::Expired => Self::unauthorized("grant-expired", error.to_string()),
            GrantError::Malformed | GrantError::UnknownKey | GrantError::Signature => {
                Self::unauthorized("grant-invalid", error.to_string())
            }
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let Failure { problem, headers, reason } = *self.0;
        let mut response = Response::new(Body::from(problem.to_json()));
        *response.status_mut() =
            StatusCode::from_u16(problem.status).expect("every problem is made from a status code");
        *response.headers_mut() = headers;
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}

/// Answer to a method that a path does not have. The router adds `Allow`.
pub(super) async fn method_not_allowed() -> HttpError {
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not have that method")
}

/// An error with what caused it, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
