//! Telling a client something before its request is answered.

use std::fmt;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode};

/// Sends interim responses (1xx, RFC 9110 §15.2) to the client of a request. Whoever serves the router puts one among a
/// request's extensions where its connections can carry them; without it none are sent.
#[derive(Clone)]
pub struct Interim(Arc<dyn Fn(Vec<u8>) + Send + Sync>);

impl Interim {
    /// The header of requests whose client understands interim responses.
    pub const ASKED_BY: &str = "upload-draft-interop-version";

    /// Interim responses go out through `send`, as the bytes of an HTTP/1.1 message.
    pub fn new(send: impl Fn(Vec<u8>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Sends `status`, with `reason` in words, and `headers`.
    pub(super) fn send(&self, status: StatusCode, reason: &str, headers: &HeaderMap) {
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).into_bytes();
        for (name, value) in headers {
            // A header value holds no line break.
            head.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        head.extend(b"\r\n");
        (self.0)(head);
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interim")
    }
}
