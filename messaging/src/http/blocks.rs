//! `/v1/blocks`: whom an account wants to hear nothing of.

use std::sync::Arc;

use axum::extract::{Path, State};
use http::StatusCode;
use waxwing_protocol::AccountId;
use waxwing_protocol::api::BlockList;

use super::error::HttpError;
use super::extract::Authenticated;
use crate::node::Node;

/// `GET /v1/blocks`.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<BlockList>, HttpError> {
    Ok(axum::Json(BlockList { blocked: node.accounts.blocks(caller.device.account).await? }))
}

/// `PUT /v1/blocks/{account}`.
pub(crate) async fn add(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(peer): Path<String>,
) -> Result<StatusCode, HttpError> {
    let peer = parsed(&peer)?;
    node.accounts.set_blocked(caller.device.account, peer, true).await?;
    node.presence.blocked(caller.device.account, peer);
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/blocks/{account}`: also when it was not blocked.
pub(crate) async fn remove(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(peer): Path<String>,
) -> Result<StatusCode, HttpError> {
    node.accounts.set_blocked(caller.device.account, parsed(&peer)?, false).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parsed(account: &str) -> Result<AccountId, HttpError> {
    account.parse().map_err(|_| HttpError::new(StatusCode::NOT_FOUND, "account-not-found", "no such account"))
}
