//! `GET /v1/ws`: from an HTTP request to a connection.
//!
//! A browser sends cookies and opens sockets for any page it shows, so a socket is checked here for where its page came
//! from. A client that offers no subprotocol we speak is told which we do: a silent fallback would leave both sides
//! talking past each other. Compression is never negotiated: bodies are ciphertext.

#[cfg(test)]
mod conformance;

use std::sync::Arc;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{State, WebSocketUpgrade};
use axum::response::Response;
use http::{HeaderMap, StatusCode, Uri, header};
use waxwing_protocol::frames::codec::Codec;

use super::error::HttpError;
use super::extract::caller;
use crate::config::seconds;
use crate::connection;
use crate::node::Node;
use crate::wire::{READ_BUFFER_BYTES, Wire, message_bytes_max};

/// Subprotocols that this server speaks, the preferred one first.
const SUBPROTOCOLS: [&str; 2] = [Codec::Protobuf.subprotocol(), Codec::Json.subprotocol()];

/// `GET /v1/ws`.
pub(crate) async fn upgrade(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, HttpError> {
    let upgrade = upgrade.map_err(|refused| {
        HttpError::new(refused.status(), "not-a-websocket", "this path is a WebSocket: send an upgrade request")
    })?;
    check_origin(&headers, &node)?;
    let upgrade = upgrade.protocols(SUBPROTOCOLS);
    let selected = upgrade.selected_protocol().cloned();
    let Some(codec) =
        Codec::ALL.into_iter().find(|codec| selected.as_ref().is_some_and(|it| it == codec.subprotocol()))
    else {
        let detail = "offer a subprotocol that this server speaks";
        let refused = HttpError::new(StatusCode::BAD_REQUEST, "subprotocol-unsupported", detail);
        return Err(refused.with("supported", SUBPROTOCOLS.to_vec()));
    };
    node.admission.check().map_err(HttpError::crowded)?;
    let shown = caller(&headers, &node).await?;
    let write_limit = seconds(node.config.slow_reader_s);
    Ok(bounded(upgrade, codec).on_upgrade(move |socket| {
        // A task of its own: that of the upgrade carries what upgrading needed for as long as it lives.
        tokio::spawn(connection::serve(node, Wire::socket(socket, codec, write_limit), shown));
        std::future::ready(())
    }))
}

/// The memory a socket may take.
fn bounded(upgrade: WebSocketUpgrade, codec: Codec) -> WebSocketUpgrade {
    upgrade
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        // One message is written at a time: this only has to hold one.
        .max_write_buffer_size(2 * message_bytes_max(codec))
        .max_message_size(message_bytes_max(codec))
        .max_frame_size(message_bytes_max(codec))
}

/// Refuses pages that may not connect.
pub(super) fn check_origin(headers: &HeaderMap, node: &Node) -> Result<(), HttpError> {
    if origin_allowed(headers, &node.config.origins) {
        return Ok(());
    }
    Err(HttpError::new(StatusCode::FORBIDDEN, "origin-refused", "pages of this origin may not connect"))
}

/// Whether the page that opens the socket may: not a page at all, one of this host, or one that the operator allows.
fn origin_allowed(headers: &HeaderMap, allowed: &[String]) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let Ok(origin) = origin.to_str() else {
        return false;
    };
    if allowed.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
        return true;
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.parse::<Uri>().ok().and_then(|origin| origin.into_parts().authority);
    matches!((origin, host), (Some(origin), Some(host)) if origin.as_str().eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origin: Option<&str>, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        origin_allowed(&headers, &["https://chat.example".into()])
    }

    #[test]
    fn only_pages_of_this_host_and_of_allowed_origins_may_connect() {
        assert!(allowed(None, "waxwing.example"), "not a browser");
        assert!(allowed(Some("https://waxwing.example"), "waxwing.example"));
        assert!(allowed(Some("http://127.0.0.1:8460"), "127.0.0.1:8460"));
        assert!(allowed(Some("https://chat.example"), "waxwing.example"));
        for foreign in [
            "https://evil.example",
            "https://chat.example.evil.example",
            "https://chat.example:444",
            "http://chat.example",
            "http://127.0.0.1:9",
            "null",
            "waxwing.example.evil",
            "",
        ] {
            assert!(!allowed(Some(foreign), "waxwing.example"), "{foreign}");
        }
    }
}
