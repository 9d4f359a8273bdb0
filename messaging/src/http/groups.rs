//! `/v1/groups`: founding, changing and showing groups.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use waxwing_protocol::GroupId;
use waxwing_protocol::api::{
    GroupChanged, GroupChanges, GroupDevicesRequest, GroupDevicesView, GroupLinkRequest, GroupLinkView, GroupStateView,
    GroupsView,
};
use waxwing_protocol::group::SignedGroupChange;

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::Node;

/// Bytes of a change or of a list of known devices at most: a thousand members founded at once, in base64, fit.
pub(crate) const GROUP_JSON_BYTES_MAX: usize = 256 * 1024;

/// `POST /v1/groups`: 201 for a new group, 200 when the identical request was taken before.
pub(crate) async fn found(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(signed): Json<SignedGroupChange>,
) -> Result<(StatusCode, axum::Json<GroupChanged>), HttpError> {
    let (changed, is_new) = node.groups.change(caller.device, None, signed, node.clock.now()).await?;
    Ok((status(is_new), axum::Json(changed)))
}

/// `POST /v1/groups/{id}/changes`: 201, or 200 for the identical one. `If-Match` may name the epoch that it follows.
pub(crate) async fn change(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(group): Path<String>,
    headers: HeaderMap,
    Json(signed): Json<SignedGroupChange>,
) -> Result<(StatusCode, axum::Json<GroupChanged>), HttpError> {
    let group = parsed(&group)?;
    if let Some(named) = headers.get(header::IF_MATCH) {
        let named = named.to_str().ok().and_then(|named| named.trim_matches('"').parse::<u64>().ok());
        let made = signed.read().map_err(crate::groups::GroupsError::from)?.epoch;
        if named.and_then(|named| named.checked_add(1)) != Some(made) {
            let detail = "If-Match names another epoch than the change follows";
            return Err(HttpError::new(StatusCode::BAD_REQUEST, "group-change-malformed", detail));
        }
    }
    let (changed, is_new) = node.groups.change(caller.device, Some(group), signed, node.clock.now()).await?;
    Ok((status(is_new), axum::Json(changed)))
}

/// `GET /v1/groups`: the groups that the caller is in.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<GroupsView>, HttpError> {
    Ok(axum::Json(GroupsView { groups: node.groups.of(caller.device.account).await? }))
}

/// From which change on.
#[derive(Debug, Deserialize)]
pub(crate) struct After {
    #[serde(default)]
    pub(super) after: u64,
}

/// `GET /v1/groups/{id}/changes?after=N`.
pub(crate) async fn changes(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(group): Path<String>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<axum::Json<GroupChanges>, HttpError> {
    let Query(After { after }) =
        after.map_err(|refused| HttpError::new(StatusCode::BAD_REQUEST, "malformed-query", refused.body_text()))?;
    Ok(axum::Json(node.groups.changes(caller.device.account, parsed(&group)?, after).await?))
}

/// `GET /v1/groups/{id}/states/{epoch}`.
pub(crate) async fn state(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path((group, epoch)): Path<(String, String)>,
) -> Result<axum::Json<GroupStateView>, HttpError> {
    let epoch = epoch.parse().map_err(|_| not_found())?;
    Ok(axum::Json(node.groups.state(caller.device.account, parsed(&group)?, epoch).await?))
}

/// `POST /v1/groups/{id}/link`: what whoever has the link needs to come in.
pub(crate) async fn link(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(group): Path<String>,
    Json(request): Json<GroupLinkRequest>,
) -> Result<axum::Json<GroupLinkView>, HttpError> {
    let group = parsed(&group)?;
    Ok(axum::Json(node.groups.by_link(caller.device.account, group, &request, node.clock.now()).await?))
}

/// `POST /v1/groups/{id}/devices`: whose devices the caller does not know, or no longer.
pub(crate) async fn devices(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(group): Path<String>,
    Json(request): Json<GroupDevicesRequest>,
) -> Result<axum::Json<GroupDevicesView>, HttpError> {
    let group = parsed(&group)?;
    Ok(axum::Json(node.groups.devices(caller.device.account, group, &request.known).await?))
}

const fn status(is_new: bool) -> StatusCode {
    if is_new { StatusCode::CREATED } else { StatusCode::OK }
}

fn parsed(group: &str) -> Result<GroupId, HttpError> {
    group.parse().map_err(|_| not_found())
}

fn not_found() -> HttpError {
    HttpError::new(StatusCode::NOT_FOUND, "group-not-found", "no such group")
}
