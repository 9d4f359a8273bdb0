//! What handlers pull out of requests, with a problem for whatever does not parse.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;
use waxwing_protocol::DeviceToken;
use waxwing_protocol::grant::bearer;

use super::error::HttpError;
use crate::accounts::Caller;
use crate::node::Node;

/// A JSON body.
pub(crate) struct Json<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = HttpError;

    async fn from_request(request: Request, state: &S) -> Result<Self, HttpError> {
        let refused = match axum::Json::from_request(request, state).await {
            Ok(axum::Json(body)) => return Ok(Self(body)),
            Err(refused) => refused,
        };
        let slug = match (&refused, refused.status()) {
            (_, StatusCode::PAYLOAD_TOO_LARGE) => "body-too-large",
            (JsonRejection::MissingJsonContentType(_), _) => "not-json",
            _ => "body-malformed",
        };
        Err(HttpError::new(refused.status(), slug, refused.body_text()))
    }
}

/// Who asks: a device that has shown its token.
pub(crate) struct Authenticated(pub(crate) Caller);

impl FromRequestParts<Arc<Node>> for Authenticated {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, node: &Arc<Node>) -> Result<Self, HttpError> {
        let caller = caller(&parts.headers, node).await?;
        caller.map(Self).ok_or_else(|| HttpError::unauthenticated("this needs a device token as bearer"))
    }
}

/// The caller whose token is in the `Authorization` header; `None` when there is no such header. A header that is there
/// must hold a genuine token.
pub(crate) async fn caller(headers: &HeaderMap, node: &Node) -> Result<Option<Caller>, HttpError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let token = value.to_str().ok().and_then(bearer).and_then(|token| token.parse::<DeviceToken>().ok());
    // One answer for every kind of wrong: which accounts exist is nobody's business.
    let refused = || HttpError::unauthenticated("the device token is not valid");
    let caller = node.accounts.authenticate(&token.ok_or_else(refused)?).await?;
    caller.map(Some).ok_or_else(refused)
}
