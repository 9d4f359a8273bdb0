//! `/v1/preferences`: what an account lets others know of it.

use std::sync::Arc;

use axum::extract::State;
use waxwing_protocol::api::Preferences;

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::Node;

/// `GET /v1/preferences`.
pub(crate) async fn show(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
) -> Result<axum::Json<Preferences>, HttpError> {
    Ok(axum::Json(node.accounts.preferences(caller.device.account).await?))
}

/// `PUT /v1/preferences`.
pub(crate) async fn set(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(preferences): Json<Preferences>,
) -> Result<axum::Json<Preferences>, HttpError> {
    let before = node.accounts.preferences(caller.device.account).await?;
    node.accounts.set_preferences(caller.device.account, preferences).await?;
    if before.presence != preferences.presence {
        node.presence.visibility_changed(caller.device.account);
    }
    Ok(axum::Json(preferences))
}
