//! The IETF dialect: Resumable Uploads for HTTP, draft-ietf-httpbis-resumable-upload, interop versions 5 to 8.
//!
//! It is what operating systems build in: an ordinary request becomes resumable by one header, `Upload-Complete`. Its
//! header fields are structured fields (RFC 9651); one that cannot be read counts as absent.
//!
//! A client that sends everything in one request learns the URL of its upload by a 104 (Upload Resumption Supported)
//! while it is still sending, where the connection can carry one: over HTTP/1.1. Elsewhere it begins with an empty or a
//! partial creation, which every version allows.

use std::ops::RangeInclusive;

use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use sfv::{BareItem, Item, Parser};
use waxwing_protocol::headers::WAXWING_BLOB;
use waxwing_protocol::{BlobId, Timestamp, UploadId};

use super::error::HttpError;
use super::grants::UploadGrant;
use super::interim::Interim;
use super::{App, content, digests, headers, now};
use crate::uploads::{Append, At, NewUpload, Progress, UploadError};

/// The media type of content that is a part of an upload.
pub(super) const PARTIAL_UPLOAD: &str = "application/partial-upload";

/// Header fields that no other dialect sends.
pub(super) const MARKERS: [&str; 3] = ["upload-draft-interop-version", "upload-complete", "upload-incomplete"];

/// The draft's interop versions that are spoken here.
const VERSIONS: RangeInclusive<u64> = 5..=8;

const DRAFT_VERSION: HeaderName = HeaderName::from_static(Interim::ASKED_BY);
pub(super) const UPLOAD_LIMIT: HeaderName = HeaderName::from_static("upload-limit");
const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");

/// What the draft registers for an offset that is not ours.
const MISMATCHING_OFFSET: &str = "https://iana.org/assignments/http-problem-types#mismatching-upload-offset";
/// What it registers for lengths that contradict one another.
const INCONSISTENT_LENGTH: &str = "https://iana.org/assignments/http-problem-types#inconsistent-upload-length";
/// What its versions up to 8 have for appending to a finished upload.
const COMPLETED_UPLOAD: &str = "https://iana.org/assignments/http-problem-types#completed-upload";

/// Body of the answer to a finished upload.
#[derive(Serialize)]
struct Stored {
    /// The blob's id.
    blob: BlobId,
}

/// `POST` or `PUT` with `Upload-Complete`: a new upload, whole or only its beginning.
pub(super) async fn create(app: &App, grant: &UploadGrant, request: Request) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let base_url = headers::base_url(&app.config, &parts)?;
    let ends = completes(&parts.headers)?;
    let content_bytes = if body.is_end_stream() { Some(0) } else { headers::content_length(&parts.headers)? };
    let mut length = integer(&parts.headers, &UPLOAD_LENGTH);
    if ends && let Some(bytes) = content_bytes {
        if length.is_some_and(|length| length != bytes) {
            return Err(
                inconsistent(&UploadError::LengthConflict { stored: bytes }).header(UPLOAD_COMPLETE, "?1".into())
            );
        }
        length = Some(bytes);
    }
    let new = NewUpload {
        allowance: grant.allowance,
        length,
        ends,
        expected: headers::blob_id(&parts.headers, WAXWING_BLOB)?,
        metadata: None,
        partial: false,
        content_digest: digests::content_digest(&parts.headers),
        digest: digests::whole_digest(&parts.headers),
    };
    let limit = length.unwrap_or_else(|| app.uploads.blob_bytes_max(&grant.allowance));
    if content_bytes.is_some_and(|bytes| bytes > limit) {
        return Err(refused_for_good(app, grant, UploadError::TooLarge { limit }));
    }
    let location = |id: UploadId| headers::plain(&format!("{base_url}/v1/uploads/{id}"));
    let interim = parts.extensions.get::<Interim>().cloned().zip(spoken_version(&parts.headers));
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    let progress = match interim.filter(|_| content_bytes != Some(0)) {
        None => {
            let content = (content_bytes != Some(0)).then(|| content(body));
            app.uploads.create(new, content, now()).await.map_err(|error| refused_for_good(app, grant, error))?
        }
        Some((interim, version)) => {
            // What a 104 names has to be there, so the upload is made first and its content appended.
            let (expected, content_digest) = (new.expected, new.content_digest.clone());
            let begun = NewUpload { ends: false, content_digest: None, ..new };
            let progress =
                app.uploads.create(begun, None, now()).await.map_err(|error| refused_for_good(app, grant, error))?;
            if progress.blob.is_some() {
                // Nothing of the content is needed.
                progress
            } else {
                let mut told = HeaderMap::new();
                told.insert(LOCATION, location(progress.id));
                told.insert(UPLOAD_LIMIT, limits(app, grant, &progress, now()));
                told.insert(DRAFT_VERSION, version.into());
                interim.send(resumption_supported(), "Upload Resumption Supported", &told);
                let append = Append {
                    id: progress.id,
                    allowance: grant.allowance,
                    at: At::Offset(0),
                    ends,
                    length: None,
                    expected,
                    content_bytes,
                    content_digest,
                };
                app.uploads.append(append, content(body), now()).await.map_err(refusal)?
            }
        }
    };
    let mut response = answer(app, grant, StatusCode::CREATED, ends, &progress);
    response.headers_mut().insert(LOCATION, location(progress.id));
    Ok(response)
}

/// The draft version a client speaks, when it is one of ours.
fn spoken_version(headers: &HeaderMap) -> Option<u64> {
    integer(headers, &DRAFT_VERSION).filter(|version| VERSIONS.contains(version))
}

/// 104 (Upload Resumption Supported).
fn resumption_supported() -> StatusCode {
    StatusCode::from_u16(104).expect("104 is a status code")
}

/// `PATCH` with `Upload-Offset` and `Upload-Complete`: more of an upload's bytes, or its end.
pub(super) async fn append(
    app: &App,
    grant: &UploadGrant,
    id: UploadId,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    if !headers::is_media_type(&parts.headers, PARTIAL_UPLOAD)? {
        return Err(HttpError::media_type(PARTIAL_UPLOAD));
    }
    let offset = integer(&parts.headers, &UPLOAD_OFFSET)
        .ok_or_else(|| HttpError::bad_request("bad-header", "header upload-offset is missing or no integer"))?;
    let ends = completes(&parts.headers)?;
    let append = Append {
        id,
        allowance: grant.allowance,
        at: At::Offset(offset),
        ends,
        length: integer(&parts.headers, &UPLOAD_LENGTH),
        expected: headers::blob_id(&parts.headers, WAXWING_BLOB)?,
        content_bytes: if body.is_end_stream() { Some(0) } else { headers::content_length(&parts.headers)? },
        content_digest: digests::content_digest(&parts.headers),
    };
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    match app.uploads.append(append, content(body), now()).await {
        Ok(progress) => Ok(answer(app, grant, StatusCode::OK, ends, &progress)),
        Err(error @ UploadError::TooLarge { limit }) => {
            // More than the length announced: the draft wants such an upload to be invalid from then on.
            let announced = app.uploads.status(grant.allowance.owner, id, now()).await?.length;
            if announced == Some(limit) {
                app.uploads.terminate(grant.allowance.owner, id, now()).await?;
            }
            Err(refused_for_good(app, grant, error))
        }
        Err(error) => Err(refusal(error)),
    }
}

/// The header fields that tell where an upload stands.
pub(super) fn standing(app: &App, grant: &UploadGrant, progress: &Progress, now: Timestamp) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(UPLOAD_OFFSET, progress.offset.into());
    headers.insert(UPLOAD_COMPLETE, boolean(progress.blob.is_some()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(length) = progress.length {
        headers.insert(UPLOAD_LENGTH, length.into());
    }
    headers.insert(UPLOAD_LIMIT, limits(app, grant, progress, now));
    if let Some(blob) = progress.blob {
        headers.insert(WAXWING_BLOB, headers::plain(&blob));
    }
    headers
}

/// `Upload-Limit` of an upload.
fn limits(app: &App, grant: &UploadGrant, progress: &Progress, now: Timestamp) -> HeaderValue {
    let seconds = progress.expires.since(now).as_secs();
    let size = app.uploads.blob_bytes_max(&grant.allowance);
    headers::plain(&format!("max-size={}, max-age={seconds}", structured(size)))
}

/// `Upload-Limit` of this origin, before anything is known of an upload.
pub(super) fn limits_in_general(app: &App) -> String {
    let age = app.config.upload_expiry_s;
    format!("max-size={}, max-age={}", structured(app.config.blob_bytes_max), structured(age))
}

/// The answer to bytes that were stored. An upload that got its last byte is finished, but a client that did not say it
/// was the last is told so only when it asks or says so: `?1` marks the answer it waits for.
fn answer(app: &App, grant: &UploadGrant, status: StatusCode, ends: bool, progress: &Progress) -> Response {
    let mut headers = standing(app, grant, progress, now());
    match progress.blob.filter(|_| ends) {
        Some(blob) => {
            if let Some(digest) = progress.digest.as_ref().and_then(digests::repr_digest) {
                headers.insert(digests::REPR_DIGEST, headers::plain(&digest));
            }
            (status, headers, Json(Stored { blob })).into_response()
        }
        None => {
            headers.insert(UPLOAD_COMPLETE, boolean(false));
            let status = if status == StatusCode::OK { StatusCode::NO_CONTENT } else { status };
            (status, headers).into_response()
        }
    }
}

/// `Upload-Complete`, which every request with content has.
fn completes(headers: &HeaderMap) -> Result<bool, HttpError> {
    if let Some(BareItem::Boolean(complete)) = item(headers, &UPLOAD_COMPLETE) {
        return Ok(complete);
    }
    let detail = "send Upload-Complete: ?1 or ?0; this server speaks the draft's interop versions 5 to 8";
    Err(HttpError::bad_request("bad-header", detail).with("header", UPLOAD_COMPLETE.as_str()))
}

/// A field's integer; `None` when it is absent, negative, or cannot be read.
fn integer(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    match item(headers, name)? {
        BareItem::Integer(number) => u64::try_from(i64::from(number)).ok(),
        _ => None,
    }
}

/// A field's value without its parameters.
fn item(headers: &HeaderMap, name: &HeaderName) -> Option<BareItem> {
    // Several lines are one field, joined by commas, and so no single item.
    let mut lines = headers.get_all(name).iter();
    let (Some(line), None) = (lines.next(), lines.next()) else { return None };
    Parser::new(line.as_bytes()).parse::<Item>().ok().map(|item| item.bare_item)
}

fn boolean(value: bool) -> HeaderValue {
    HeaderValue::from_static(if value { "?1" } else { "?0" })
}

/// The largest integer a structured field can hold, RFC 9651 §3.3.1.
const STRUCTURED_MAX: u64 = 999_999_999_999_999;

fn structured(number: u64) -> u64 {
    number.min(STRUCTURED_MAX)
}

/// What an engine's refusal is in this dialect, for an upload that goes on.
pub(super) fn refusal(error: UploadError) -> HttpError {
    let refused = match &error {
        UploadError::OffsetMismatch { claimed, stored } => {
            let (claimed, stored) = (*claimed, *stored);
            HttpError::from(error)
                .of_type(MISMATCHING_OFFSET)
                .with("expected-offset", stored)
                .with("provided-offset", claimed)
                .header(UPLOAD_OFFSET, stored.to_string())
        }
        UploadError::LengthConflict { .. } => inconsistent(&error),
        UploadError::AlreadyComplete => {
            let completed = HttpError::bad_request("upload-complete", error.to_string()).of_type(COMPLETED_UPLOAD);
            return completed.header(UPLOAD_COMPLETE, "?1".into());
        }
        UploadError::BlobMismatch { .. } | UploadError::WholeDigestMismatch => {
            return HttpError::from(error).header(UPLOAD_COMPLETE, "?1".into());
        }
        _ => HttpError::from(error),
    };
    refused.header(UPLOAD_COMPLETE, "?0".into())
}

fn inconsistent(error: &UploadError) -> HttpError {
    HttpError::bad_request("length-conflict", error.to_string()).of_type(INCONSISTENT_LENGTH)
}

/// A refusal after which there is nothing to resume.
fn refused_for_good(app: &App, grant: &UploadGrant, error: UploadError) -> HttpError {
    let size = structured(app.uploads.blob_bytes_max(&grant.allowance));
    let too_large = matches!(error, UploadError::TooLarge { .. });
    let refused = refusal(error).header(UPLOAD_COMPLETE, "?1".into());
    if too_large { refused.header(UPLOAD_LIMIT, format!("max-size={size}")) } else { refused }
}

/// What is read of a field is no more than a structured field can hold.
#[cfg(test)]
pub(super) fn check_item(headers: &HeaderMap, name: &HeaderName) {
    assert!(integer(headers, name).is_none_or(|number| number <= STRUCTURED_MAX));
    let _ = completes(headers);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::try_from(*line).unwrap())).collect()
    }

    #[test]
    fn a_field_that_cannot_be_read_is_absent() {
        let read = |lines: &[&str]| integer(&headers(&UPLOAD_LENGTH, lines), &UPLOAD_LENGTH);
        assert_eq!(read(&["5"]), Some(5));
        assert_eq!(read(&["5;unit=bytes"]), Some(5));
        assert_eq!(read(&["999999999999999"]), Some(STRUCTURED_MAX));
        for bad in
            [&["-5"][..], &["5.0"], &["five"], &["1000000000000000"], &["5", "5"], &["5, 5"], &["?1"], &[""], &[]]
        {
            assert_eq!(read(bad), None, "{bad:?}");
        }
        let complete = |line: &str| completes(&headers(&UPLOAD_COMPLETE, &[line])).ok();
        assert_eq!(
            (complete("?1"), complete("?0"), complete("1"), complete("true")),
            (Some(true), Some(false), None, None)
        );
    }
}
