//! The HTTP interface: accounts, devices, prekeys, grants, polls, and the door to the socket.
//!
//! Handlers pull typed values out of a request, make one call and shape the answer. Browsers may call from any page:
//! whoever has a token sends it in a header, so there is no ambient authority that a foreign page could use.

mod accounts;
mod blocks;
mod channels;
mod devices;
mod documents;
mod error;
mod extract;
mod grants;
mod groups;
mod keys;
mod poll;
mod preferences;
mod push;
mod reports;
mod socket;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{MethodRouter, delete, get, post, put};
use axum::{Extension, Router};
use http::{Method, header};
use tower_http::cors::{Any, CorsLayer};
use waxwing_protocol::ClientAddress;
use waxwing_protocol::frames::codec::Codec;

use self::error::HttpError;
use crate::node::Node;
use crate::wire::message_bytes_max;

/// Bytes of a JSON body at most: a hundred prekeys and their signatures fit twice.
const JSON_BYTES_MAX: usize = 64 * 1024;

/// How long a browser remembers that it may call.
const CORS_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// The routes of a node.
pub(crate) fn router(node: Arc<Node>) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE, header::IF_MATCH])
        .expose_headers([header::RETRY_AFTER, header::WWW_AUTHENTICATE])
        .max_age(CORS_MAX_AGE);
    Router::new()
        .route("/v1/register", only(post(accounts::register)))
        .route("/v1/account/handle", only(put(accounts::rename)))
        .route("/v1/account/delete", only(post(accounts::delete)))
        .route("/v1/accounts/{name}", only(get(accounts::view)))
        .route("/v1/devices", only(get(devices::view)))
        .route("/v1/devices/link", only(post(devices::link)))
        .route("/v1/devices/{device}", only(delete(devices::revoke)))
        .route("/v1/devices/{device}/name", only(put(devices::name)))
        .route("/v1/links/{id}", only(get(devices::offered).put(devices::offer)))
        .route("/v1/links/{id}/answer", only(get(devices::answered).put(devices::answer)))
        .route("/v1/keys/check", only(post(keys::check)))
        .route("/v1/keys", only(get(keys::held).put(keys::add)))
        .route("/v1/keys/{account}/{device}/claim", only(post(keys::claim)))
        .route("/v1/grants", only(post(grants::mint)))
        .route("/v1/groups", only(get(groups::list).post(groups::found)).layer(large()))
        .route("/v1/groups/{id}/changes", only(get(groups::changes).post(groups::change)).layer(large()))
        .route("/v1/groups/{id}/states/{epoch}", only(get(groups::state)))
        .route("/v1/groups/{id}/link", only(post(groups::link)))
        .route("/v1/groups/{id}/devices", only(post(groups::devices)).layer(large()))
        .route("/v1/channels", only(get(channels::list).post(channels::found)))
        .route("/v1/channels/{id}", only(get(channels::view)))
        .route("/v1/channels/{id}/charters", only(post(channels::charter)))
        .route("/v1/channels/{id}/entries", only(get(channels::entries)))
        .route("/v1/channels/{id}/manifest", only(get(channels::manifest)))
        .route("/v1/channels/{id}/pages", only(post(channels::close_page)))
        .route("/v1/preferences", only(get(preferences::show).put(preferences::set)))
        .route("/v1/push", only(get(push::view).put(push::set).delete(push::remove)))
        .route("/v1/push/test", only(post(push::test)))
        .route("/v1/blocks", only(get(blocks::list)))
        .route("/v1/blocks/{account}", only(put(blocks::add).delete(blocks::remove)))
        .route("/v1/report", only(post(reports::report)))
        .route("/v1/asyncapi.json", only(get(documents::asyncapi)))
        .route("/v1/messaging/openapi.json", only(get(documents::openapi)))
        .route("/v1/poll", only(post(poll::poll)).layer(DefaultBodyLimit::max(message_bytes_max(Codec::Json))))
        .route("/v1/ws", only(get(socket::upgrade)))
        .route("/.well-known/jwks.json", only(get(grants::jwks)))
        .layer(DefaultBodyLimit::max(JSON_BYTES_MAX))
        .layer(from_fn_with_state(node.clone(), limited))
        .layer(cors)
        .with_state(node)
}

/// For bodies that speak of a thousand people.
fn large() -> DefaultBodyLimit {
    DefaultBodyLimit::max(groups::GROUP_JSON_BYTES_MAX)
}

/// Refuses addresses that ask too often. The listener says whence a request comes; where none does, nobody is limited.
async fn limited(
    State(node): State<Arc<Node>>,
    client: Option<Extension<ClientAddress>>,
    request: Request,
    next: Next,
) -> Result<Response, HttpError> {
    if let Some(Extension(client)) = client {
        node.addresses.request(client, node.clock.now())?;
    }
    Ok(next.run(request).await)
}

/// Other methods get a problem, as every error does.
fn only(methods: MethodRouter<Arc<Node>>) -> MethodRouter<Arc<Node>> {
    methods.fallback(async || HttpError::method_not_allowed())
}
