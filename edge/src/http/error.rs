//! The one place where what goes wrong in the edge meets HTTP.

use std::fmt::Display;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use waxwing_protocol::Problem;
use waxwing_protocol::grant::GrantError;
use waxwing_protocol::problem::PROBLEM_MEDIA_TYPE;

use super::{BLOB_POLICY, CACHE_STATUS};
use crate::blobs::ReadError;
use crate::fill::FillError;
use crate::via::Circle;

/// When to come again after the origin could not be asked: it is most often back within seconds, and each client's own
/// back-off spreads them further.
const RETRY_AFTER_ORIGIN: Duration = Duration::from_secs(5);

/// When to come again after too many fills: they end within seconds.
const RETRY_AFTER_BUSY: Duration = Duration::from_secs(1);

/// An answer that is a problem, RFC 9457.
#[derive(Debug)]
pub(super) struct HttpError {
    /// Boxed, so that the results of handlers stay small.
    problem: Box<Problem>,
    headers: HeaderMap,
}

impl HttpError {
    fn new(status: StatusCode, slug: &str, detail: &(impl Display + ?Sized)) -> Self {
        let problem = Problem::new(status.as_u16(), slug, detail.to_string());
        Self { problem: Box::new(problem), headers: HeaderMap::new() }
    }

    fn header(mut self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        self.headers.insert(name, value.into());
        self
    }

    fn retry_after(self, after: Duration) -> Self {
        self.header(RETRY_AFTER, after.as_secs())
    }

    /// The status it is answered with.
    pub(super) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.problem.status).expect("problems here are made from status codes")
    }

    /// The client asked for another blob than this, under this id.
    pub(super) fn precondition_failed() -> Self {
        let detail = "no blob under this id has the entity tag asked for";
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", detail)
    }

    /// No blob has the name in the path.
    pub(super) fn no_such_blob() -> Self {
        Self::new(StatusCode::NOT_FOUND, "blob-not-found", "there is no such blob")
    }

    /// No grant was shown.
    pub(super) fn grant_missing() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "grant-missing", "blobs are read with a media or share grant")
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
    }

    /// What was shown is no grant.
    pub(super) fn grant_malformed() -> Self {
        Self::grant(&GrantError::Malformed)
    }

    /// Another edge's request goes in circles.
    pub(super) fn circle(error: Circle) -> Self {
        let (status, slug) = match error {
            Circle::Closed | Circle::TooLong => (StatusCode::LOOP_DETECTED, "edges-in-circles"),
            Circle::Unreadable => (StatusCode::BAD_REQUEST, "way-malformed"),
        };
        Self::new(status, slug, &error)
    }

    /// Another edge has heard of more purges than this one.
    pub(super) fn behind() -> Self {
        let detail = "this edge has not heard of all purges that the one which asks has";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "purges-behind", detail).retry_after(RETRY_AFTER_BUSY)
    }

    /// This edge is about to stop.
    pub(super) fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "edge-draining", "this edge takes no further requests")
    }

    /// Another edge asked for no range, or for several.
    pub(super) fn no_range() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "range-missing", "edges ask for one range")
    }

    /// A grant was shown and refused. RFC 6750 §3.1 names the challenges.
    pub(super) fn grant(error: &GrantError) -> Self {
        let (status, slug, challenge) = match error {
            GrantError::Expired => (StatusCode::UNAUTHORIZED, "grant-expired", "Bearer error=\"invalid_token\""),
            GrantError::Malformed | GrantError::UnknownKey | GrantError::Signature => {
                (StatusCode::UNAUTHORIZED, "grant-invalid", "Bearer error=\"invalid_token\"")
            }
            GrantError::Audience { .. } => {
                (StatusCode::FORBIDDEN, "grant-insufficient", "Bearer error=\"insufficient_scope\"")
            }
        };
        Self::new(status, slug, error).header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
    }
}

impl From<ReadError> for HttpError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unsatisfiable { blob_bytes } => {
                let range = HeaderValue::try_from(format!("bytes */{blob_bytes}"));
                Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", &error)
                    .header(CONTENT_RANGE, range.expect("digits are a header value"))
            }
            ReadError::Fill(error) => error.into(),
        }
    }
}

impl From<FillError> for HttpError {
    /// What the origin did stays between it and the operator's log; a client is told whether to come again.
    fn from(error: FillError) -> Self {
        let (problem, origin_status) = match error {
            FillError::NotFound => (Self::no_such_blob(), Some(404)),
            FillError::Denied { status } => {
                let detail = "this edge is not admitted by its origin; its operator has been told";
                (Self::new(StatusCode::BAD_GATEWAY, "origin-denied", detail), Some(status))
            }
            FillError::Lie(_) | FillError::Beyond => {
                let detail = "what the origin sent is not this blob";
                (Self::new(StatusCode::BAD_GATEWAY, "origin-untrue", detail), None)
            }
            FillError::TooLarge { .. } => (Self::new(StatusCode::BAD_GATEWAY, "blob-too-large", &error), None),
            FillError::Unavailable { status } => (Self::origin_unavailable(), Some(status)),
            FillError::Unreachable { .. } | FillError::Silent(_) | FillError::Cut { .. } | FillError::Abandoned => {
                (Self::origin_unavailable(), None)
            }
            FillError::Busy => {
                let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, "edge-busy", &error);
                (busy.retry_after(RETRY_AFTER_BUSY), None)
            }
        };
        let status = origin_status.map(|status| format!("; fwd-status={status}")).unwrap_or_default();
        let cache_status = HeaderValue::try_from(format!("waxwing; fwd=uri-miss{status}"));
        problem.header(CACHE_STATUS, cache_status.expect("digits and fixed words are a header value"))
    }
}

impl HttpError {
    fn origin_unavailable() -> Self {
        let detail = "this edge does not have the blob, and its origin cannot be asked now";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "origin-unavailable", detail).retry_after(RETRY_AFTER_ORIGIN)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut headers = self.headers;
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        headers.insert(CONTENT_SECURITY_POLICY, BLOB_POLICY);
        // What is wrong now may be right in a second; 404 and 410 would be kept by some caches otherwise.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        (status, headers, self.problem.to_json()).into_response()
    }
}

/// The answer to methods that blobs and pages do not have.
pub(super) async fn method_not_allowed() -> HttpError {
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "only GET and HEAD are answered here")
        .header(ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"))
}
