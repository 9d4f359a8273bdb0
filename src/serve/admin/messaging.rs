//! What an operator asks about messaging: who is there, what waits for whom, and what limits refuse.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};
use waxwing_messaging::{Messaging, SurveyError};
use waxwing_protocol::AccountId;

use super::{AdminFailure, Node, PAGE};

impl From<SurveyError> for AdminFailure {
    fn from(error: SurveyError) -> Self {
        Self::new(500, "store-failed", error.to_string())
    }
}

fn messaging(node: &Node) -> Result<&Messaging, AdminFailure> {
    let detail = "this node does not play the messaging role; ask one that does";
    node.messaging().ok_or_else(|| AdminFailure::new(404, "no-messaging", detail))
}

/// Which accounts are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccountsAsked {
    after: Option<AccountId>,
}

/// `GET /admin/v1/accounts`: those after `after`; `next` is what to ask after, until it is null.
pub(super) async fn accounts(
    State(node): State<Node>,
    asked: Result<Query<AccountsAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Query(asked) = asked?;
    let page = messaging(&node)?.accounts(asked.after, PAGE).await?;
    let next = page.last().filter(|_| page.len() == PAGE).map(|last| last.account);
    Ok(Json(json!({ "accounts": page, "next": next })))
}

/// `GET /admin/v1/accounts/{id or handle}/devices`: its devices, and what waits for each.
pub(super) async fn devices(
    State(node): State<Node>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Path(name) = path?;
    match messaging(&node)?.devices(&name).await? {
        Some(devices) => Ok(Json(json!({ "devices": devices }))),
        None => Err(AdminFailure::new(404, "account-not-found", "there is no such account")),
    }
}

/// `GET /admin/v1/limits`: what each allows and has refused.
pub(super) async fn limits(State(node): State<Node>) -> Result<Json<Value>, AdminFailure> {
    Ok(Json(json!({ "limits": messaging(&node)?.limits() })))
}
