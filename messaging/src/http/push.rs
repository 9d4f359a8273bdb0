//! `/v1/push`: where the calling device is woken.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use waxwing_protocol::api::{PushTarget, PushTest, PushView};

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::Node;

/// `GET /v1/push`.
pub(crate) async fn view(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<PushView>, HttpError> {
    Ok(axum::Json(node.push.view(caller.device).await?))
}

/// `PUT /v1/push`.
pub(crate) async fn set(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(target): Json<PushTarget>,
) -> Result<StatusCode, HttpError> {
    node.push.set(caller.device, &target).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/push`: also when there is nothing to forget.
pub(crate) async fn remove(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<StatusCode, HttpError> {
    node.push.remove(caller.device).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/push/test`.
pub(crate) async fn test(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<PushTest>, HttpError> {
    Ok(axum::Json(Box::pin(node.push.test(caller.device)).await?))
}
