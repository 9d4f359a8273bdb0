//! `/v1/register`, `/v1/accounts`, and what an account does to itself at `/v1/account`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Path, State};
use http::StatusCode;
use waxwing_protocol::ClientAddress;
use waxwing_protocol::api::{AccountView, DeleteRequest, RegisterRequest, RegisterResponse, RenameRequest};

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::accounts::AccountName;
use crate::node::{Node, random};

/// `POST /v1/register`: 201 for a new account, 200 when the identical request was taken before.
pub(crate) async fn register(
    State(node): State<Arc<Node>>,
    client: Option<Extension<ClientAddress>>,
    Json(request): Json<RegisterRequest>,
) -> Result<(StatusCode, axum::Json<RegisterResponse>), HttpError> {
    if let Some(Extension(client)) = client {
        node.addresses.registration(client, node.clock.now())?;
    }
    let (response, created) = node.accounts.register(request, u64::from_be_bytes(random()), node.clock.now()).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(response)))
}

/// `GET /v1/accounts/{handle or account id}`: what one needs to write to somebody.
pub(crate) async fn view(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(name): Path<String>,
) -> Result<axum::Json<AccountView>, HttpError> {
    // An account id has 36 characters and a handle at most 32: no text is both.
    let by_id = name.parse().map(AccountName::Id);
    let name = by_id.or_else(|_| name.parse().map(AccountName::Handle));
    let name = name.map_err(|_| HttpError::new(StatusCode::NOT_FOUND, "account-not-found", "no such account"))?;
    Ok(axum::Json(node.accounts.look_up(caller.device, name, node.clock.now()).await?))
}

/// `PUT /v1/account/handle`: another handle for the calling account; the one it had is free.
pub(crate) async fn rename(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(request): Json<RenameRequest>,
) -> Result<StatusCode, HttpError> {
    node.accounts.rename(caller.device.account, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/account/delete`: the calling account goes, with everything that waits for it.
pub(crate) async fn delete(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(request): Json<DeleteRequest>,
) -> Result<StatusCode, HttpError> {
    node.accounts.delete(caller.device.account, &request).await?;
    node.fabric.revoke(caller.device.account, None);
    Ok(StatusCode::NO_CONTENT)
}
