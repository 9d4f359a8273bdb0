//! The admin address: health, metrics, and what an operator asks of a running node.
//!
//! Whoever can ask here can remove blobs, and nobody shows a grant. So the operator's part answers on loopback alone; an
//! `admin_listen` that others can reach serves probes and metrics, and nothing that tells of users or changes anything.
//!
//! A browser on the same machine is the one stranger who reaches loopback: a page can name `127.0.0.1`, or a host of its
//! own that turns into it. Such a request names a foreign host or says that a page made it, and is refused.

mod edge;
mod messaging;

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::warn;
use waxwing_origin::{AdminError, Origin, UploadStage};
use waxwing_protocol::{BlobId, OwnerTag, Problem, UploadId};

use super::metrics::Recorder;
use super::node::{Node, not_found, problem};

/// Entries of a list in one answer, unless fewer are asked for.
const PAGE: usize = 1000;

/// Everything the admin address answers when it listens on `address`.
pub(super) fn router(node: &Node, recorder: Recorder, address: SocketAddr) -> Router {
    let (probed, told) = (node.clone(), node.clone());
    let ready = move || {
        let troubles = probed.troubles();
        let answer = if troubles.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            let lines = troubles.iter().map(|(role, why)| format!("not ready: {role} ({why})\n"));
            (StatusCode::SERVICE_UNAVAILABLE, lines.collect())
        };
        std::future::ready(answer)
    };
    let metrics = move || {
        if let Some(edge) = told.edge() {
            edge.publish();
        }
        std::future::ready(recorder.render(&told.readiness()))
    };
    let router = Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    if !address.ip().is_loopback() {
        warn!(%address, "others can reach the admin address: it serves probes and metrics, and no admin commands");
        return router.fallback(only_on_loopback);
    }
    let operator = Router::new()
        .route("/admin/v1/uploads", get(uploads))
        .route("/admin/v1/gc", post(collect))
        .route("/admin/v1/owners", get(owners))
        .route("/admin/v1/owners/{owner}", get(owner))
        .route("/admin/v1/owners/{owner}/quota", put(set_quota).delete(unset_quota))
        .route("/admin/v1/owners/{owner}/blobs", delete(purge_owner))
        .route("/admin/v1/blobs/{id}", delete(remove_blob))
        .route("/admin/v1/accounts", get(messaging::accounts))
        .route("/admin/v1/accounts/{name}/devices", get(messaging::devices))
        .route("/admin/v1/edge/stats", get(edge::stats))
        .route("/admin/v1/edge/held", get(edge::held))
        .route("/admin/v1/edge/drain", post(edge::drain).delete(edge::undrain))
        .route("/admin/v1/edge/blobs/{id}", delete(edge::purge))
        .route("/admin/v1/limits", get(messaging::limits))
        .with_state(node.clone());
    router.merge(operator).fallback(not_found).layer(from_fn(no_page))
}

async fn only_on_loopback() -> AdminFailure {
    AdminFailure::new(404, "not-on-loopback", "admin commands are answered where `admin_listen` is a loopback address")
}

/// Refuses what a page in a browser sends.
async fn no_page(request: Request, next: Next) -> Response {
    if is_from_here(request.headers()) {
        return next.run(request).await;
    }
    let detail = "name the host as a loopback address; pages in a browser are not answered";
    AdminFailure::new(403, "host-refused", detail).into_response()
}

/// Whether a request names this machine as its host, and no page as what made it.
fn is_from_here(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value: &axum::http::HeaderValue| value.to_str().unwrap_or_default());
    let host = text(HOST.as_str()).and_then(|host| Authority::from_str(host).ok());
    let is_loopback = host.is_some_and(|host| {
        let name = host.host().trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    });
    // Browsers name the page's origin with what changes something, and whence a request comes with all of them; `none`
    // is an address that a person typed.
    is_loopback && text(ORIGIN.as_str()).is_none() && matches!(text("sec-fetch-site"), None | Some("none"))
}

/// Why a request of an operator failed.
#[derive(Debug)]
struct AdminFailure(Box<Problem>);

impl AdminFailure {
    fn new(status: u16, slug: &str, detail: impl Into<String>) -> Self {
        Self(Box::new(Problem::new(status, slug, detail)))
    }
}

impl From<AdminError> for AdminFailure {
    /// An operator may see what is inside.
    fn from(error: AdminError) -> Self {
        let error = anyhow::Error::new(error);
        Self::new(500, "store-failed", format!("{error:#}"))
    }
}

impl From<QueryRejection> for AdminFailure {
    fn from(error: QueryRejection) -> Self {
        Self::new(400, "bad-query", error.body_text())
    }
}

impl From<PathRejection> for AdminFailure {
    fn from(error: PathRejection) -> Self {
        Self::new(400, "bad-id", error.body_text())
    }
}

impl IntoResponse for AdminFailure {
    fn into_response(self) -> Response {
        problem(&self.0)
    }
}

fn origin(node: &Node) -> Result<&Origin, AdminFailure> {
    let detail = "this node does not play the origin role; ask one that does";
    node.origin().ok_or_else(|| AdminFailure::new(404, "no-origin", detail))
}

/// Which uploads are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UploadsAsked {
    state: Option<UploadStage>,
    after: Option<UploadId>,
    limit: Option<usize>,
}

/// `GET /admin/v1/uploads`: those after `after`; `next` is what to ask after, until it is null.
async fn uploads(
    State(node): State<Node>,
    asked: Result<Query<UploadsAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Query(asked) = asked?;
    let limit = asked.limit.unwrap_or(PAGE).clamp(1, PAGE);
    let page = origin(&node)?.uploads(asked.after, limit).await?;
    let next = page.last().filter(|_| page.len() == limit).map(|last| last.id);
    let wanted = page.iter().filter(|upload| asked.state.is_none_or(|state| upload.state == state));
    Ok(Json(json!({ "uploads": wanted.collect::<Vec<_>>(), "next": next })))
}

/// How to collect.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CollectAsked {
    #[serde(default)]
    dry_run: bool,
}

/// `POST /admin/v1/gc`: forgets what expired, now; with `dry_run=true` only tells what it would.
async fn collect(
    State(node): State<Node>,
    asked: Result<Query<CollectAsked>, QueryRejection>,
) -> Result<Response, AdminFailure> {
    let Query(CollectAsked { dry_run }) = asked?;
    let origin = origin(&node)?;
    let collected = if dry_run { origin.collectable().await? } else { origin.collect().await? };
    Ok(Json(collected).into_response())
}

/// Which owners are asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OwnersAsked {
    after: Option<OwnerTag>,
}

/// `GET /admin/v1/owners`: who holds how much, and what an operator set for whom.
async fn owners(
    State(node): State<Node>,
    asked: Result<Query<OwnersAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Query(asked) = asked?;
    let origin = origin(&node)?;
    let page = origin.owners(asked.after, PAGE).await?;
    let next = page.last().filter(|_| page.len() == PAGE).map(|(last, _)| *last);
    let mut owners = Vec::with_capacity(page.len());
    for (owner, held_bytes) in page {
        let quota_bytes = origin.quota(owner).await?;
        owners.push(json!({ "owner": owner, "held_bytes": held_bytes, "quota_bytes": quota_bytes }));
    }
    Ok(Json(json!({ "owners": owners, "next": next })))
}

/// `GET /admin/v1/owners/{owner}`: how much one holds; nothing is an answer too.
async fn owner(
    State(node): State<Node>,
    path: Result<Path<OwnerTag>, PathRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Path(owner) = path?;
    tell_owner(origin(&node)?, owner).await
}

async fn tell_owner(origin: &Origin, owner: OwnerTag) -> Result<Json<Value>, AdminFailure> {
    let (held_bytes, quota_bytes) = (origin.held_bytes(owner).await?, origin.quota(owner).await?);
    Ok(Json(json!({ "owner": owner, "held_bytes": held_bytes, "quota_bytes": quota_bytes })))
}

/// What an owner may hold.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaAsked {
    bytes: u64,
}

/// `PUT /admin/v1/owners/{owner}/quota?bytes=N`: lets one hold N bytes, whatever grants say.
async fn set_quota(
    State(node): State<Node>,
    path: Result<Path<OwnerTag>, PathRejection>,
    asked: Result<Query<QuotaAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let (Path(owner), Query(QuotaAsked { bytes })) = (path?, asked?);
    let origin = origin(&node)?;
    origin.set_quota(owner, Some(bytes)).await?;
    tell_owner(origin, owner).await
}

/// `DELETE /admin/v1/owners/{owner}/quota`: grants say again what one may hold.
async fn unset_quota(
    State(node): State<Node>,
    path: Result<Path<OwnerTag>, PathRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let Path(owner) = path?;
    let origin = origin(&node)?;
    origin.set_quota(owner, None).await?;
    tell_owner(origin, owner).await
}

/// Behind which blob to go on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PurgeAsked {
    after: Option<BlobId>,
}

/// `DELETE /admin/v1/owners/{owner}/blobs?after=BLOB`: ends that one has any of the next blobs; to be asked again with
/// `after` as `next` has it, until that is null.
async fn purge_owner(
    State(node): State<Node>,
    path: Result<Path<OwnerTag>, PathRejection>,
    asked: Result<Query<PurgeAsked>, QueryRejection>,
) -> Result<Json<Value>, AdminFailure> {
    let (Path(owner), Query(PurgeAsked { after })) = (path?, asked?);
    let (blobs, next) = origin(&node)?.purge_owner(owner, after).await?;
    Ok(Json(json!({ "blobs": blobs, "next": next })))
}

/// `DELETE /admin/v1/blobs/{id}`: removes a blob, whoever has it.
async fn remove_blob(
    State(node): State<Node>,
    path: Result<Path<BlobId>, PathRejection>,
) -> Result<StatusCode, AdminFailure> {
    let Path(id) = path?;
    if origin(&node)?.remove_blob(id).await? {
        return Ok(StatusCode::NO_CONTENT);
    }
    Err(AdminFailure::new(404, "blob-not-found", "there is no such blob"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_here(headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (axum::http::HeaderName::from_static(name), axum::http::HeaderValue::from_str(value).unwrap())
        });
        is_from_here(&headers.collect())
    }

    #[test]
    fn only_requests_that_name_this_machine_are_answered() {
        for host in ["127.0.0.1:8461", "localhost", "LOCALHOST:8461", "[::1]:8461", "127.9.9.9"] {
            assert!(from_here(&[("host", host)]), "{host}");
        }
        for host in
            ["evil.example", "evil.example:8461", "127.0.0.1.evil.example", "10.0.0.1:8461", "localhost.evil", ""]
        {
            assert!(!from_here(&[("host", host)]), "{host}");
        }
        assert!(!from_here(&[]));
    }

    #[test]
    fn pages_are_not_answered_whatever_host_they_name() {
        let host = ("host", "127.0.0.1:8461");
        assert!(!from_here(&[host, ("origin", "https://evil.example")]));
        assert!(!from_here(&[host, ("origin", "null")]));
        assert!(!from_here(&[host, ("sec-fetch-site", "cross-site")]));
        assert!(from_here(&[host, ("sec-fetch-site", "none")]), "typed by a person");
    }
}
