//! `/v1/report`: abuse reports.

use std::sync::Arc;

use axum::extract::State;
use http::StatusCode;
use waxwing_protocol::api::ReportRequest;

use super::error::HttpError;
use super::extract::{Authenticated, Json};
use crate::node::Node;

/// `POST /v1/report`: 204 once an operator can read it.
pub(crate) async fn report(
    State(node): State<Arc<Node>>,
    Authenticated(caller): Authenticated,
    Json(report): Json<ReportRequest>,
) -> Result<StatusCode, HttpError> {
    node.reports.take(caller.device, &report, node.clock.now(), node.clock.wall()).await?;
    Ok(StatusCode::NO_CONTENT)
}
