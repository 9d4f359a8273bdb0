//! `POST /v1/poll`: a connection as long as one request, for networks that let no WebSocket through.
//!
//! The request holds frames, a Hello first; the answer holds frames. What a socket does over hours, a poll does in one
//! turn: it says Hello, takes what is sent, and waits until there is something to tell, or for 25 seconds. Nothing is
//! kept between polls but the mailbox, so any node can answer: `have` in the next Hello acks what the last answer
//! brought. It is a connection like any other, so it displaces the one before it, and is displaced.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{close, frame};

use super::error::HttpError;
use super::extract::caller;
use super::socket::check_origin;
use crate::config::seconds;
use crate::connection;
use crate::node::Node;
use crate::wire::{PollAnswer, Wire};

/// The code with which a socket would have been closed.
const WAXWING_CLOSE: HeaderName = HeaderName::from_static("waxwing-close");

/// `POST /v1/poll`.
pub(crate) async fn poll(
    State(node): State<Arc<Node>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, HttpError> {
    check_origin(&headers, &node)?;
    let named = headers.get(header::CONTENT_TYPE);
    let Some(codec) = Codec::ALL.into_iter().find(|codec| named.is_some_and(|it| it == codec.media_type())) else {
        let refused = HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "media-type-unsupported",
            "send frames in a media type that this server speaks",
        );
        return Err(refused.with("supported", Codec::ALL.map(Codec::media_type).to_vec()));
    };
    let body = body.map_err(|refused| HttpError::new(refused.status(), "body-too-large", refused.body_text()))?;
    node.admission.check().map_err(HttpError::crowded)?;
    let shown = caller(&headers, &node).await?;
    let (wire, answered) = Wire::poll(body, codec, seconds(node.config.poll_s));
    // Not a task of its own: a client that hangs up takes its connection with it.
    connection::serve(node, wire, shown).await;
    let answer = answered.await.map_err(|_| HttpError::going_away())?;
    Ok(response(answer, codec))
}

fn response(PollAnswer { frames, close }: PollAnswer, codec: Codec) -> Response {
    let later = matches!(close, Some(close::RATE_LIMITED | close::DRAINING));
    let wait = later.then(|| retry_after(frames.clone(), codec)).flatten();
    let mut response = (close.map_or(StatusCode::OK, status), frames).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(codec.media_type()));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(code) = close {
        headers.insert(WAXWING_CLOSE, code.into());
        if code == close::UNAUTHENTICATED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"waxwing\""));
        }
    }
    if let Some(seconds) = wait {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// The seconds after which the error among `frames` asks to try again.
fn retry_after(mut frames: Bytes, codec: Codec) -> Option<u32> {
    while let Ok(Some(frame)) = codec.unpack(&mut frames) {
        if let Some(frame::Body::Error(error)) = frame.body {
            return Some(error.retry_after_ms.div_ceil(1000));
        }
    }
    None
}

/// The status that says what a close code says. The frames say more: they are there whatever the status is.
fn status(close: u16) -> StatusCode {
    match close {
        // Said goodbye.
        1000 => StatusCode::OK,
        close::BAD_FRAME => StatusCode::BAD_REQUEST,
        close::UNAUTHENTICATED => StatusCode::UNAUTHORIZED,
        close::REFUSED => StatusCode::FORBIDDEN,
        close::DISPLACED => StatusCode::CONFLICT,
        close::TOO_LARGE => StatusCode::PAYLOAD_TOO_LARGE,
        close::RATE_LIMITED => StatusCode::TOO_MANY_REQUESTS,
        close::SILENT => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
