//! The Content-Range dialect: `PUT` of a range, answered by 308 and the `Range` that is stored.
//!
//! Google Cloud Storage, Drive and YouTube made it common, so clients of every language speak it, and `curl` does with
//! one header. A session is begun with `uploadType=resumable` (JSON style) or `x-goog-resumable: start` (XML style).
//! Ranges may overlap what is stored; a client that lost track asks with an empty `bytes */*`. The forms, and what
//! answers real clients insist on, are those of Google's documentation of resumable uploads and of its own client
//! libraries.

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, CONTENT_RANGE, LOCATION, RANGE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use http_body_util::{BodyExt as _, Limited};
use serde::{Deserialize, Serialize};
use waxwing_protocol::headers::WAXWING_BLOB;
use waxwing_protocol::{BlobId, UploadId};

use super::error::HttpError;
use super::grants::UploadGrant;
use super::{App, content, digests, headers, now};
use crate::store::{DigestProgress, StoreErrorKind, StoredDigest, WholeAlgorithm};
use crate::uploads::{Append, At, NewUpload, Progress, UploadError, at_most};

const GOOG_RESUMABLE: &str = "x-goog-resumable";
const CONTENT_LENGTH_TO_COME: &str = "x-upload-content-length";
const STATUS_OVERRIDE: HeaderName = HeaderName::from_static("x-http-status-code-override");
const NO_308: HeaderName = HeaderName::from_static("x-guploader-no-308");

/// Bytes of a new session's JSON metadata at most.
const METADATA_BYTES_MAX: usize = 16 * 1024;

/// How a session is begun, which decides how that is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Json,
    Xml,
}

/// Whether a request begins a session, and in which style.
pub(super) fn initiates(headers: &HeaderMap, query: &str) -> Option<Style> {
    if headers.get(GOOG_RESUMABLE).is_some_and(|value| value == "start") {
        return Some(Style::Xml);
    }
    query.split('&').any(|pair| pair == "uploadType=resumable").then_some(Style::Json)
}

/// What a `Content-Range` of a request says, RFC 9110 §14.4, and the form of a status query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// `bytes A-B/T` or `bytes A-B/*`: bytes from `first` on.
    Bytes { first: u64, bytes: u64, length: Option<u64> },
    /// `bytes */T` or `bytes */*`: none, how far are we?
    Nothing { length: Option<u64> },
}

impl Sent {
    fn parse(text: &str) -> Option<Self> {
        let (unit, rest) = text.split_once(' ')?;
        let (range, length) = rest.split_once('/')?;
        if !unit.eq_ignore_ascii_case("bytes") {
            return None;
        }
        let length = if length == "*" { None } else { Some(digits(length)?) };
        if range == "*" {
            return Some(Self::Nothing { length });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last) = (digits(first)?, digits(last)?);
        if first > last || length.is_some_and(|length| last >= length) {
            return None;
        }
        Some(Self::Bytes { first, bytes: last - first + 1, length })
    }
}

/// A number of digits only, below 2^63.
fn digits(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten().filter(|number| i64::try_from(*number).is_ok())
}

/// A new session's metadata, of which only the name is kept.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Metadata {
    name: Option<String>,
}

/// What a finished upload is told to be. `size` is text, as Google's clients expect; the digests are in base64, and there when
/// the upload was begun in this dialect by somebody who named no blob id to compare.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Resource {
    id: BlobId,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    size: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    md5_hash: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crc32c: Option<String>,
}

/// `POST` that begins a session.
pub(super) async fn create(app: &App, grant: &UploadGrant, request: Request) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default();
    let Some(style) = initiates(&parts.headers, query).filter(|_| parts.method == Method::POST) else {
        let detail = "begin an upload with POST, and uploadType=resumable in the query or x-goog-resumable: start";
        return Err(HttpError::bad_request("bad-request", detail));
    };
    let base_url = headers::base_url(&app.config, &parts)?;
    let name = match style {
        Style::Json => metadata(&parts.headers, body).await?.name,
        Style::Xml => None,
    };
    let expected = headers::blob_id(&parts.headers, WAXWING_BLOB)?;
    let new = NewUpload {
        allowance: grant.allowance,
        length: headers::integer(&parts.headers, CONTENT_LENGTH_TO_COME)?,
        ends: false,
        expected,
        metadata: name.map(|name| format!("name {}", BASE64.encode(name.as_bytes()))),
        partial: false,
        content_digest: None,
        // Whoever names the blob's id compares that, which costs less.
        digest: expected.is_none().then(|| StoredDigest::new(WholeAlgorithm::Md5Crc32c, None)),
    };
    let progress = app.uploads.create(new, None, now()).await.map_err(refusal)?;
    let status = match style {
        Style::Json => StatusCode::OK,
        Style::Xml => StatusCode::CREATED,
    };
    let location = headers::plain(&format!("{base_url}/v1/uploads/{}", progress.id));
    Ok((status, [(LOCATION, location)]).into_response())
}

/// The JSON a session is begun with; it may be left out.
async fn metadata(headers: &HeaderMap, body: Body) -> Result<Metadata, HttpError> {
    if body.is_end_stream() {
        return Ok(Metadata::default());
    }
    if !headers::is_media_type(headers, "application/json")? {
        return Err(HttpError::media_type("application/json"));
    }
    let bad = |detail: String| HttpError::bad_request("bad-metadata", detail);
    let read = Limited::new(body, METADATA_BYTES_MAX).collect().await;
    let bytes = read.map_err(|error| bad(format!("the metadata was not read: {error}")))?.to_bytes();
    if bytes.is_empty() {
        return Ok(Metadata::default());
    }
    serde_json::from_slice(&bytes).map_err(|error| bad(format!("the metadata is no JSON of ours: {error}")))
}

/// `PUT` of a range, of everything, or of nothing to ask how far we are.
pub(super) async fn send(
    app: &App,
    grant: &UploadGrant,
    id: UploadId,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let content_bytes = headers::content_length(&parts.headers)?;
    let sent = match headers::single(&parts.headers, CONTENT_RANGE.as_str())? {
        Some(text) => Some(Sent::parse(text).ok_or_else(|| bad_range("is not one this dialect knows"))?),
        None => None,
    };
    let append = Append {
        id,
        allowance: grant.allowance,
        at: At::Byte(0),
        ends: false,
        length: None,
        expected: headers::blob_id(&parts.headers, WAXWING_BLOB)?,
        content_bytes,
        content_digest: digests::content_digest(&parts.headers),
    };
    let bears_308 = parts.headers.get(&NO_308).is_none_or(|value| value != "yes");
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    let progress = match sent {
        None => {
            let append = Append { ends: true, length: content_bytes, ..append };
            app.uploads.append(append, content(body), now()).await
        }
        Some(Sent::Bytes { first, bytes, length }) => {
            if content_bytes.is_some_and(|announced| announced != bytes) {
                return Err(bad_range("names more or fewer bytes than the content has"));
            }
            let append = Append { at: At::Byte(first), length, content_bytes: Some(bytes), ..append };
            app.uploads.append(append, at_most(content(body), bytes), now()).await
        }
        Some(Sent::Nothing { length }) => {
            if !body.is_end_stream() {
                return Err(bad_range("of a query comes without content"));
            }
            ask(app, append, length).await
        }
    };
    Ok(answer(bears_308, &progress.map_err(refusal)?))
}

/// Tells how far an upload is. A total that was not known and is just what is stored finishes it: a client that streams
/// learns only at its end that there was nothing more.
async fn ask(app: &App, append: Append, length: Option<u64>) -> Result<Progress, UploadError> {
    let progress = app.uploads.status(append.allowance.owner, append.id, now()).await?;
    let finishes = progress.blob.is_none() && progress.length.is_none() && length == Some(progress.offset);
    if !finishes {
        return Ok(progress);
    }
    let append = Append { at: At::Offset(progress.offset), length, content_digest: None, ..append };
    app.uploads.append(append, content(Body::empty()), now()).await
}

fn answer(bears_308: bool, progress: &Progress) -> Response {
    let Some(blob) = progress.blob else {
        let mut response = StatusCode::PERMANENT_REDIRECT.into_response();
        if !bears_308 {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().insert(STATUS_OVERRIDE, HeaderValue::from_static("308"));
        }
        response.headers_mut().extend(stored(progress.offset));
        response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        return response;
    };
    let name = progress.metadata.as_deref().and_then(|metadata| metadata.strip_prefix("name "));
    let name = name.and_then(|name| BASE64.decode(name.as_bytes()).ok()).and_then(|name| String::from_utf8(name).ok());
    let (md5_hash, crc32c) = progress.digest.as_ref().and_then(compared).unzip();
    let resource = Resource { id: blob, name, size: progress.offset.to_string(), md5_hash, crc32c };
    (StatusCode::OK, [(WAXWING_BLOB, headers::plain(&blob))], Json(resource)).into_response()
}

/// The MD5 and the CRC-32C of a finished upload, as Google's clients compare them.
fn compared(digest: &StoredDigest) -> Option<(String, String)> {
    let (WholeAlgorithm::Md5Crc32c, DigestProgress::Done { value }) = (digest.algorithm, &digest.progress) else {
        return None;
    };
    let value = BASE64.decode(value.as_bytes()).ok()?;
    let (md5, crc32c) = value.split_at_checked(16)?;
    Some((BASE64.encode(md5), BASE64.encode(crc32c)))
}

/// `Range`, inclusive; nothing at all when nothing is stored, since zero bytes have no range.
fn stored(offset: u64) -> Option<(HeaderName, HeaderValue)> {
    let last = offset.checked_sub(1)?;
    Some((RANGE, headers::plain(&format!("bytes=0-{last}"))))
}

/// What an engine's refusal is in this dialect: whatever a client should ask about and go on from is a 503.
pub(super) fn refusal(error: UploadError) -> HttpError {
    let again = |slug| HttpError::new(StatusCode::SERVICE_UNAVAILABLE, slug, error.to_string()).retry();
    match &error {
        UploadError::OffsetMismatch { stored: offset, .. } => {
            let error = again("offset-mismatch").with("offset", *offset);
            match stored(*offset).and_then(|(_, range)| range.to_str().map(str::to_owned).ok()) {
                Some(range) => error.header(RANGE, range),
                None => error,
            }
        }
        UploadError::TakenOver => again("taken-over"),
        UploadError::QuotaExceeded => {
            HttpError::new(StatusCode::TOO_MANY_REQUESTS, "quota-exceeded", error.to_string()).retry()
        }
        UploadError::Store(store) if store.kind() == StoreErrorKind::Full => again("store-full"),
        UploadError::BlobMismatch { .. } => HttpError::from(error).of_status(StatusCode::BAD_REQUEST),
        _ => error.into(),
    }
}

fn bad_range(what: &str) -> HttpError {
    HttpError::bad_request("bad-header", format!("header content-range {what}")).with("header", "content-range")
}

/// What is read of a range has the bytes it says and lies within its total.
#[cfg(test)]
pub(super) fn check_sent(text: &str) {
    if let Some(Sent::Bytes { first, bytes, length }) = Sent::parse(text) {
        let end = first.checked_add(bytes).expect("offsets stay below 2^63");
        assert!(bytes > 0 && length.is_none_or(|length| end <= length));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_are_read_strictly() {
        for (text, sent) in [
            ("bytes 0-4/5", Sent::Bytes { first: 0, bytes: 5, length: Some(5) }),
            ("Bytes 3-3/*", Sent::Bytes { first: 3, bytes: 1, length: None }),
            ("bytes */7", Sent::Nothing { length: Some(7) }),
            ("bytes */*", Sent::Nothing { length: None }),
        ] {
            assert_eq!(Sent::parse(text), Some(sent), "{text}");
        }
        for bad in [
            "",
            "bytes",
            "bytes 0-4",
            "bytes 5-4/9",
            "bytes 0-5/5",
            "bytes -4/5",
            "bytes 0-/5",
            "bytes +0-4/5",
            "bits 0-4/5",
            "bytes 0-4/5,6-7/8",
            "bytes=0-4/5",
            "bytes 0-9223372036854775808/*",
            "bytes  0-4/5",
            "bytes 0-4/-1",
        ] {
            assert_eq!(Sent::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_range_panics(text in "[ -~]{0,48}") {
            let _ = Sent::parse(&text);
        }

        #[test]
        fn what_a_client_writes_is_read(first in 0..1_u64 << 40, bytes in 1..1_u64 << 40, more in 0..1_u64 << 40) {
            let last = first + bytes - 1;
            let length = last + 1 + more;
            let sent = Sent::parse(&format!("bytes {first}-{last}/{length}"));
            prop_assert_eq!(sent, Some(Sent::Bytes { first, bytes, length: Some(length) }));
        }
    }
}
