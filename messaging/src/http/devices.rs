//! `/v1/devices` and `/v1/links`: an account's devices, and the meetings in which one is added.

use std::sync::Arc;

use axum::extract::{Path, State};
use http::StatusCode;
use waxwing_protocol::api::{DeviceName, DevicesView, LinkRequest, LinkResponse, RevokeRequest, Sealed};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{DeviceId, LinkId};

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::config::seconds;
use crate::node::{Node, random};
use crate::store::DeviceAddress;

/// `POST /v1/devices/link`: 201 for a new device, 200 when the identical request was taken before.
pub(crate) async fn link(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(request): Json<LinkRequest>,
) -> Result<(StatusCode, axum::Json<LinkResponse>), HttpError> {
    let (account, epoch) = (caller.device.account, u64::from_be_bytes(random()));
    let (response, created) = node.devices.link(account, request, epoch, node.clock.now()).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, axum::Json(response)))
}

/// `GET /v1/devices`: the calling account's devices.
pub(crate) async fn view(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<DevicesView>, HttpError> {
    Ok(axum::Json(node.devices.view(caller.device.account).await?))
}

/// `PUT /v1/devices/{device}/name`.
pub(crate) async fn name(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(device): Path<String>,
    Json(request): Json<DeviceName>,
) -> Result<StatusCode, HttpError> {
    let device = DeviceAddress { account: caller.device.account, device: device_id(&device)? };
    node.devices.name(device, request.name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/devices/{device}`: the device goes, with everything that waits for it.
pub(crate) async fn revoke(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(device): Path<String>,
    Json(request): Json<RevokeRequest>,
) -> Result<StatusCode, HttpError> {
    node.devices.revoke(caller.device.account, device_id(&device)?, request).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /v1/links/{id}`: what a new device offers. It is nobody yet, so it shows no token.
pub(crate) async fn offer(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
    Json(half): Json<Sealed>,
) -> Result<StatusCode, HttpError> {
    node.links.offer(link_id(&id)?, half.sealed.0, node.clock.now())?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/links/{id}`: what a new device offered, for a device of an account.
pub(crate) async fn offered(
    State(node): State<Arc<Node>>,
    Authenticated(_): Authenticated,
    Path(id): Path<String>,
) -> Result<axum::Json<Sealed>, HttpError> {
    let sealed = node.links.offered(link_id(&id)?, node.clock.now())?;
    Ok(axum::Json(Sealed { sealed: Base64(sealed) }))
}

/// `PUT /v1/links/{id}/answer`: the answer of a device of an account.
pub(crate) async fn answer(
    State(node): State<Arc<Node>>,
    Authenticated(_): Authenticated,
    Path(id): Path<String>,
    Json(half): Json<Sealed>,
) -> Result<StatusCode, HttpError> {
    node.links.answer(link_id(&id)?, half.sealed.0, node.clock.now())?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/links/{id}/answer`: the answer, waited for as long as a poll waits; 204 when there is none yet.
pub(crate) async fn answered(
    State(node): State<Arc<Node>>,
    Path(id): Path<String>,
) -> Result<Result<axum::Json<Sealed>, StatusCode>, HttpError> {
    let limit = seconds(node.config.poll_s);
    let answer = node.links.answered(link_id(&id)?, node.clock.now(), limit).await?;
    Ok(answer.map(|sealed| axum::Json(Sealed { sealed: Base64(sealed) })).ok_or(StatusCode::NO_CONTENT))
}

fn device_id(text: &str) -> Result<DeviceId, HttpError> {
    text.parse().map_err(|_| HttpError::not_found("no such device"))
}

fn link_id(text: &str) -> Result<LinkId, HttpError> {
    text.parse().map_err(|_| HttpError::not_found("no such meeting"))
}
