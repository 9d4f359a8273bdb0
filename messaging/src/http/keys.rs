//! `/v1/keys`: the key directory.

use std::sync::Arc;

use axum::extract::{Path, State};
use waxwing_protocol::api::{KeysCheck, KeysCheckRequest, PrekeyClaim, PrekeyCount, PrekeyUpload};

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::Node;
use crate::store::DeviceAddress;

/// `GET /v1/keys`: what the directory holds for the calling device.
pub(crate) async fn held(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<PrekeyCount>, HttpError> {
    Ok(axum::Json(node.keys.held(caller.device).await?))
}

/// `PUT /v1/keys`: adds prekeys of the calling device.
pub(crate) async fn add(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(upload): Json<PrekeyUpload>,
) -> Result<axum::Json<PrekeyCount>, HttpError> {
    Ok(axum::Json(node.keys.add(caller.device, upload, node.clock.now()).await?))
}

/// `POST /v1/keys/check`: whether the directory has of the calling device what the device believes.
pub(crate) async fn check(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(believed): Json<KeysCheckRequest>,
) -> Result<axum::Json<KeysCheck>, HttpError> {
    Ok(axum::Json(node.keys.check(caller.device, &believed).await?))
}

/// `POST /v1/keys/{account}/{device}/claim`: one prekey of somebody's device.
pub(crate) async fn claim(
    State(node): State<Arc<Node>>,
    Authenticated(_): Authenticated,
    Path((account, device)): Path<(String, String)>,
) -> Result<axum::Json<PrekeyClaim>, HttpError> {
    let (Ok(account), Ok(device)) = (account.parse(), device.parse()) else {
        return Err(HttpError::not_found("no such device"));
    };
    Ok(axum::Json(node.keys.claim(DeviceAddress { account, device }, node.clock.now()).await?))
}
