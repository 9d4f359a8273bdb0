//! `/v1/grants` and the public keys that verify them.

use std::sync::Arc;

use axum::extract::State;
use waxwing_protocol::api::{GrantRequest, GrantResponse};
use waxwing_protocol::grant::Jwks;

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::{Node, random};

/// `POST /v1/grants`: mints a grant for the calling device's account.
pub(crate) async fn mint(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(request): Json<GrantRequest>,
) -> Result<axum::Json<GrantResponse>, HttpError> {
    Ok(axum::Json(node.grants.mint(caller.device.account, &request, node.clock.wall(), random())))
}

/// `GET /.well-known/jwks.json`.
pub(crate) async fn jwks(State(node): State<Arc<Node>>) -> axum::Json<Jwks> {
    axum::Json(node.grants.jwks())
}
