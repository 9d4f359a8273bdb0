//! `/v1/channels`: founding, changing and reading channels.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use http::StatusCode;
use waxwing_protocol::ChannelId;
use waxwing_protocol::api::{
    ChannelChanged, ChannelEntries, ChannelManifest, ChannelPageView, ChannelView, ChannelsView,
};
use waxwing_protocol::channel::SignedCharter;

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use super::groups::After;
use crate::node::Node;

/// `GET /v1/channels`: the channels that the caller owns or writes in.
pub(crate) async fn list(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<ChannelsView>, HttpError> {
    Ok(axum::Json(ChannelsView { channels: node.channels.of(caller.device.account).await? }))
}

/// `POST /v1/channels`: 201 for a new channel, 200 when the identical charter was taken before.
pub(crate) async fn found(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(signed): Json<SignedCharter>,
) -> Result<(StatusCode, axum::Json<ChannelChanged>), HttpError> {
    let (changed, is_new) = node.channels.charter(caller.device, None, signed, node.clock.now()).await?;
    Ok((status(is_new), axum::Json(changed)))
}

/// `POST /v1/channels/{id}/charters`: 201, or 200 for the identical one.
pub(crate) async fn charter(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(channel): Path<String>,
    Json(signed): Json<SignedCharter>,
) -> Result<(StatusCode, axum::Json<ChannelChanged>), HttpError> {
    let channel = Some(parsed(&channel)?);
    let (changed, is_new) = node.channels.charter(caller.device, channel, signed, node.clock.now()).await?;
    Ok((status(is_new), axum::Json(changed)))
}

/// `GET /v1/channels/{id}?after=N`: charters above epoch N, and how far the log is.
pub(crate) async fn view(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(channel): Path<String>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<axum::Json<ChannelView>, HttpError> {
    let (channel, after, now) = (parsed(&channel)?, number(after)?, node.clock.now());
    Ok(axum::Json(node.channels.view(caller.device.account, channel, after, now).await?))
}

/// `GET /v1/channels/{id}/entries?after=N`: entries behind entry N.
pub(crate) async fn entries(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(channel): Path<String>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<axum::Json<ChannelEntries>, HttpError> {
    let (channel, after, now) = (parsed(&channel)?, number(after)?, node.clock.now());
    Ok(axum::Json(node.channels.entries(caller.device.account, channel, after, now).await?))
}

/// `GET /v1/channels/{id}/manifest?after=N`: pages with entries behind entry N.
pub(crate) async fn manifest(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(channel): Path<String>,
    after: Result<Query<After>, QueryRejection>,
) -> Result<axum::Json<ChannelManifest>, HttpError> {
    let (channel, after, now) = (parsed(&channel)?, number(after)?, node.clock.now());
    Ok(axum::Json(node.channels.manifest(caller.device.account, channel, after, now).await?))
}

/// `POST /v1/channels/{id}/pages`: 201 for a page, 200 when it was named before.
pub(crate) async fn close_page(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Path(channel): Path<String>,
    Json(page): Json<ChannelPageView>,
) -> Result<(StatusCode, axum::Json<ChannelPageView>), HttpError> {
    let (channel, now) = (parsed(&channel)?, node.clock.now());
    let is_new = node.channels.close_page(caller.device, channel, page, now).await?;
    Ok((status(is_new), axum::Json(page)))
}

const fn status(is_new: bool) -> StatusCode {
    if is_new { StatusCode::CREATED } else { StatusCode::OK }
}

fn number(after: Result<Query<After>, QueryRejection>) -> Result<u64, HttpError> {
    let refused = |it: QueryRejection| HttpError::new(StatusCode::BAD_REQUEST, "malformed-query", it.body_text());
    after.map(|Query(After { after })| after).map_err(refused)
}

fn parsed(channel: &str) -> Result<ChannelId, HttpError> {
    channel.parse().map_err(|_| HttpError::new(StatusCode::NOT_FOUND, "channel-not-found", "no such channel"))
}
