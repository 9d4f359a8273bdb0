//! Which upload protocol a request speaks.
//!
//! The three dialects share paths, methods and even header names: PATCH and `Upload-Offset` mean nearly the same in tus
//! and in the IETF's protocol, and not quite. Answering in the wrong one makes a client give up an upload that is fine.
//! So each request is told apart once, here, by what only one dialect sends; what none sends is answered in a way that
//! suits all.

use axum::extract::{FromRequestParts, Request};
use axum::http::header::{CONTENT_RANGE, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;

use super::counted::counted;
use super::error::HttpError;
use super::{content_range, ietf, tus};

/// An upload protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// tus 1.0.
    Tus,
    /// Resumable Uploads for HTTP, draft-ietf-httpbis-resumable-upload.
    Ietf,
    /// `PUT` with `Content-Range`, answered by 308 and `Range`.
    ContentRange,
    /// A bare HEAD, DELETE or OPTIONS, as clients of a finished RFC would send it: answered for all dialects at once.
    Any,
}

impl Dialect {
    fn of(method: &Method, headers: &HeaderMap, query: &str) -> Self {
        let is_media_type = |expected: &str| {
            headers
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .is_some_and(|value| value.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(expected))
        };
        if headers.contains_key(tus::TUS_RESUMABLE) || is_media_type(tus::OFFSET_STREAM) {
            Self::Tus
        } else if ietf::MARKERS.iter().any(|name| headers.contains_key(*name)) || is_media_type(ietf::PARTIAL_UPLOAD) {
            Self::Ietf
        } else if method == Method::PUT
            || method == Method::POST
                && (headers.contains_key(CONTENT_RANGE) || content_range::initiates(headers, query).is_some())
        {
            Self::ContentRange
        } else if matches!(*method, Method::HEAD | Method::DELETE | Method::OPTIONS) {
            Self::Any
        } else {
            // Told by tus which version to speak.
            Self::Tus
        }
    }
}

/// Tells the dialect of a request to its handler, and says what tus wants said on every answer.
pub(super) async fn tell(mut request: Request, next: Next) -> Response {
    let dialect = Dialect::of(request.method(), request.headers(), request.uri().query().unwrap_or_default());
    request.extensions_mut().insert(dialect);
    let whole = request.uri().path() == "/v1/blobs";
    let request = request.map(|body| counted(body, dialect, whole));
    match dialect {
        Dialect::Tus => tus::protocol_version(request, next).await,
        Dialect::Any => tus::named(next.run(request).await),
        Dialect::Ietf | Dialect::ContentRange => next.run(request).await,
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Dialect {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, HttpError> {
        Ok(parts.extensions.get().copied().unwrap_or(Self::Any))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderName;

    fn dialect(method: &Method, headers: &[(&'static str, &str)], query: &str) -> Dialect {
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect();
        Dialect::of(method, &headers, query)
    }

    #[test]
    fn each_dialect_is_known_by_what_it_alone_sends() {
        use Dialect::{Any, ContentRange, Ietf, Tus};
        let draft = ("upload-draft-interop-version", "6");
        let offset_stream = ("content-type", "Application/Offset+Octet-Stream; x=y");
        for (method, headers, query, expected) in [
            (Method::PATCH, &[("tus-resumable", "1.0.0"), ("upload-complete", "?1")][..], "", Tus),
            (Method::PATCH, &[offset_stream], "", Tus),
            (Method::PATCH, &[("content-type", "application/partial-upload")], "", Ietf),
            (Method::POST, &[("upload-complete", "?1")], "", Ietf),
            (Method::PUT, &[("upload-complete", "?0")], "", Ietf),
            (Method::HEAD, &[draft], "", Ietf),
            (Method::PUT, &[("content-range", "bytes */*")], "", ContentRange),
            (Method::POST, &[("content-range", "bytes 0-4/5")], "", ContentRange),
            (Method::PUT, &[], "", ContentRange),
            (Method::POST, &[], "uploadType=resumable&name=x", ContentRange),
            (Method::POST, &[("x-goog-resumable", "start")], "", ContentRange),
            (Method::HEAD, &[], "", Any),
            (Method::DELETE, &[], "", Any),
            (Method::OPTIONS, &[], "", Any),
            (Method::POST, &[("upload-length", "5")], "", Tus),
            (Method::PATCH, &[("upload-offset", "5")], "", Tus),
        ] {
            assert_eq!(dialect(&method, headers, query), expected, "{method} {headers:?} {query}");
        }
    }
}
