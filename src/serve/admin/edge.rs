//! What an operator asks of an edge: what it did and holds, that it forget a blob, that others ask it no more.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_edge::{Edge, Tier};
use waxwing_protocol::BlobId;

use super::{AdminFailure, Node, PAGE};

fn edge(node: &Node) -> Result<&Edge, AdminFailure> {
    let detail = "this node does not play the edge role; ask one that does";
    node.edge().ok_or_else(|| AdminFailure::new(404, "no-edge", detail))
}

/// `GET /admin/v1/edge/stats`: what it has done since it started, and what it holds.
pub(super) async fn stats(State(node): State<Node>) -> Result<Json<Value>, AdminFailure> {
    let edge = edge(&node)?;
    Ok(Json(json!({ "ready": edge.is_ready(), "stats": edge.stats() })))
}

/// `DELETE /admin/v1/edge/blobs/{id}`: forgets it here, whether it was here or not.
pub(super) async fn purge(
    State(node): State<Node>,
    path: Result<Path<BlobId>, PathRejection>,
) -> Result<StatusCode, AdminFailure> {
    let Path(id) = path?;
    edge(&node)?.purge(id);
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /admin/v1/edge/drain`: load balancers and other edges are to ask somebody else; whoever asks is answered.
pub(super) async fn drain(State(node): State<Node>) -> Result<StatusCode, AdminFailure> {
    edge(&node)?.drain();
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /admin/v1/edge/drain`: it takes part again.
pub(super) async fn undrain(State(node): State<Node>) -> Result<StatusCode, AdminFailure> {
    edge(&node)?.undrain();
    Ok(StatusCode::NO_CONTENT)
}

/// Which entries are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeldAsked {
    tier: Tier,
    #[serde(default)]
    after: usize,
}

/// `GET /admin/v1/edge/held?tier=memory|disk`: what that tier holds; `next` is what to ask after, until it is null.
pub(super) async fn held(
    State(node): State<Node>,
    asked: Result<Query<HeldAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Query(HeldAsked { tier, after }) = asked?;
    let (held, next) = edge(&node)?.held(tier, after, PAGE);
    let next = next.map(|next| next.to_string());
    Ok(Json(json!({ "held": held, "next": next })))
}
