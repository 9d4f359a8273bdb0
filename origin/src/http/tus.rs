//! The tus dialect: resumable uploads by tus 1.0.0 (tus.io/protocols/resumable-upload).
//!
//! Core and all extensions: creation, creation-with-upload, creation-defer-length, expiration, checksum,
//! checksum-trailer, termination and concatenation.

use axum::body::HttpBody as _;
use axum::extract::Request;
use axum::http::header::{CACHE_CONTROL, LOCATION};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use waxwing_protocol::UploadId;
use waxwing_protocol::headers::WAXWING_BLOB;

use super::error::HttpError;
use super::grants::UploadGrant;
use super::{App, digests, headers, now};
use crate::uploads::{Append, At, Concat, NewFinal, NewUpload, PARTS_MAX, Progress, UploadError};

const VERSION: &str = "1.0.0";
const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,expiration,checksum,checksum-trailer,\
    termination,concatenation";

/// The media type of content, RFC-less and tus's own.
pub(super) const OFFSET_STREAM: &str = "application/offset+octet-stream";

pub(super) const TUS_RESUMABLE: HeaderName = HeaderName::from_static("tus-resumable");
const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const UPLOAD_OFFSET: HeaderName = HeaderName::from_static("upload-offset");
const UPLOAD_LENGTH: HeaderName = HeaderName::from_static("upload-length");
const UPLOAD_DEFER_LENGTH: HeaderName = HeaderName::from_static("upload-defer-length");
const UPLOAD_METADATA: HeaderName = HeaderName::from_static("upload-metadata");
const UPLOAD_EXPIRES: HeaderName = HeaderName::from_static("upload-expires");
const TUS_CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("tus-checksum-algorithm");
const UPLOAD_CONCAT: HeaderName = HeaderName::from_static("upload-concat");
const METHOD_OVERRIDE: &str = "x-http-method-override";

/// Refuses other versions of the protocol (412) where something would change, and names ours on every answer.
pub(super) async fn protocol_version(request: Request, next: Next) -> Response {
    let spoken = request.headers().get(&TUS_RESUMABLE).is_some_and(|version| version == VERSION);
    let changes = matches!(*request.method(), Method::POST | Method::PATCH | Method::DELETE);
    let response = if changes && !spoken {
        let detail = format!("this server speaks tus {VERSION}: send Tus-Resumable: {VERSION}");
        HttpError::new(StatusCode::PRECONDITION_FAILED, "tus-version", detail)
            .header(TUS_VERSION, VERSION.to_owned())
            .into_response()
    } else {
        next.run(request).await
    };
    named(response)
}

/// The same answer with the version of the protocol.
pub(super) fn named(mut response: Response) -> Response {
    response.headers_mut().insert(TUS_RESUMABLE, HeaderValue::from_static(VERSION));
    response
}

/// `OPTIONS`: what this server can do.
pub(super) fn discover(app: &App) -> Response {
    let headers = [
        (TUS_VERSION, HeaderValue::from_static(VERSION)),
        (TUS_EXTENSION, HeaderValue::from_static(EXTENSIONS)),
        (TUS_CHECKSUM_ALGORITHM, HeaderValue::from_static(digests::CHECKSUM_ALGORITHMS)),
        (TUS_MAX_SIZE, app.config.blob_bytes_max.into()),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

/// `POST /v1/uploads`: a new upload, with its first bytes if the request has any.
pub(super) async fn create(app: &App, grant: &UploadGrant, request: Request) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    let base_url = headers::base_url(&app.config, &parts)?;
    let concat = headers::single(headers, UPLOAD_CONCAT.as_str())?;
    if let Some(list) = concat.and_then(|concat| concat.strip_prefix("final;")) {
        let new = NewFinal {
            allowance: grant.allowance,
            parts: parts_named(list)?,
            named: list.to_owned(),
            metadata: headers::metadata(headers)?,
        };
        if headers.contains_key(UPLOAD_LENGTH) || headers.contains_key(UPLOAD_DEFER_LENGTH) || !body.is_end_stream() {
            return Err(bad_concat("of a final upload comes without a length and without content"));
        }
        let progress = app.uploads.concatenate(new, now()).await.map_err(refusal)?;
        let location = headers::plain(&format!("{base_url}/v1/uploads/{}", progress.id));
        return Ok((StatusCode::CREATED, [(LOCATION, location)], moved(&progress)).into_response());
    }
    if concat.is_some_and(|concat| concat != "partial") {
        return Err(bad_concat("is neither partial nor final;URL URL…"));
    }
    let new = NewUpload {
        allowance: grant.allowance,
        partial: concat.is_some(),
        length: declared_length(headers)?,
        ends: false,
        expected: headers::blob_id(headers, WAXWING_BLOB)?,
        metadata: headers::metadata(headers)?,
        content_digest: None,
        digest: None,
    };
    let has_content = !body.is_end_stream();
    if has_content && !headers::is_media_type(headers, OFFSET_STREAM)? {
        return Err(HttpError::media_type(OFFSET_STREAM));
    }
    let limit = new.length.unwrap_or_else(|| app.uploads.blob_bytes_max(&grant.allowance));
    if headers::content_length(headers)?.is_some_and(|bytes| bytes > limit) {
        return Err(UploadError::TooLarge { limit }.into());
    }
    let (content, content_digest) = digests::checked(headers, body)?;
    let new = NewUpload { content_digest: content_digest.filter(|_| has_content), ..new };
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    let progress = app.uploads.create(new, has_content.then_some(content), now()).await.map_err(refusal)?;
    let location = headers::plain(&format!("{base_url}/v1/uploads/{}", progress.id));
    Ok((StatusCode::CREATED, [(LOCATION, location)], moved(&progress)).into_response())
}

/// `HEAD /v1/uploads/{id}`: where to go on.
pub(super) fn status(progress: &Progress) -> Response {
    let mut headers = moved(progress);
    match progress.length {
        Some(length) => headers.insert(UPLOAD_LENGTH, length.into()),
        None => headers.insert(UPLOAD_DEFER_LENGTH, HeaderValue::from_static("1")),
    };
    match &progress.concat {
        None => {}
        Some(Concat::Partial) => drop(headers.insert(UPLOAD_CONCAT, HeaderValue::from_static("partial"))),
        Some(Concat::Final { named }) => {
            headers.insert(UPLOAD_CONCAT, headers::plain(&format!("final;{named}")));
            if progress.blob.is_none() {
                headers.remove(UPLOAD_OFFSET);
            }
        }
    }
    if let Some(metadata) = &progress.metadata {
        headers.insert(UPLOAD_METADATA, headers::plain(metadata));
    }
    // 200 and not 204: some clients accept nothing else here.
    (StatusCode::OK, headers).into_response()
}

/// `PATCH /v1/uploads/{id}`: bytes at the offset the client believes we hold.
pub(super) async fn append(
    app: &App,
    grant: &UploadGrant,
    id: UploadId,
    request: Request,
) -> Result<Response, HttpError> {
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    if !headers::is_media_type(headers, OFFSET_STREAM)? {
        return Err(HttpError::media_type(OFFSET_STREAM));
    }
    let offset = headers::integer(headers, UPLOAD_OFFSET.as_str())?
        .ok_or_else(|| HttpError::bad_request("bad-header", "header upload-offset is missing"))?;
    let (content, content_digest) = digests::checked(headers, body)?;
    let append = Append {
        id,
        allowance: grant.allowance,
        at: At::Offset(offset),
        ends: false,
        length: headers::integer(headers, UPLOAD_LENGTH.as_str())?,
        expected: headers::blob_id(headers, WAXWING_BLOB)?,
        content_bytes: headers::content_length(headers)?,
        content_digest,
    };
    // A head keeps the buffer it was read into, 16 KiB for as long as its content comes.
    drop(parts);
    let progress = app.uploads.append(append, content, now()).await.map_err(refusal)?;
    Ok((StatusCode::NO_CONTENT, moved(&progress)).into_response())
}

/// The method that a POST stands for, for clients behind something that lets only GET and POST through.
pub(super) fn overridden_method(headers: &HeaderMap) -> Result<Option<&str>, HttpError> {
    headers::single(headers, METHOD_OVERRIDE)
}

/// The headers of every answer that tells where an upload stands.
fn moved(progress: &Progress) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(UPLOAD_OFFSET, progress.offset.into());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    match progress.blob {
        Some(blob) => headers.insert(WAXWING_BLOB, headers::plain(&blob)),
        None => headers.insert(UPLOAD_EXPIRES, headers::plain(&headers::http_date(progress.expires))),
    };
    headers
}

/// `Upload-Length`, or `None` for `Upload-Defer-Length: 1`; exactly one of them.
fn declared_length(headers: &HeaderMap) -> Result<Option<u64>, HttpError> {
    let length = headers::integer(headers, UPLOAD_LENGTH.as_str())?;
    let deferred = headers::single(headers, UPLOAD_DEFER_LENGTH.as_str())?;
    match (length, deferred) {
        (Some(length), None) => Ok(Some(length)),
        (None, Some("1")) => Ok(None),
        _ => Err(HttpError::bad_request("bad-header", "send either Upload-Length or Upload-Defer-Length: 1")),
    }
}

/// The uploads whose URLs, absolute or relative, stand in `list`. Each has to be one of ours.
fn parts_named(list: &str) -> Result<Vec<UploadId>, HttpError> {
    let name = |url: &str| url.rsplit_once("/v1/uploads/").and_then(|(_, id)| id.parse().ok());
    let parts: Option<Vec<_>> = list.split_ascii_whitespace().map(name).collect();
    match parts {
        Some(parts) if !parts.is_empty() && parts.len() <= PARTS_MAX => Ok(parts),
        Some(_) => Err(bad_concat(&format!("names no upload, or more than {PARTS_MAX}"))),
        None => Err(bad_concat("names something that is no upload here")),
    }
}

fn bad_concat(what: &str) -> HttpError {
    HttpError::bad_request("bad-concat", format!("header {UPLOAD_CONCAT} {what}"))
}

/// What an engine's refusal is in this dialect.
pub(super) fn refusal(error: UploadError) -> HttpError {
    match error {
        UploadError::DigestMismatch | UploadError::BlobMismatch { .. } | UploadError::WholeDigestMismatch => {
            HttpError::from(error).of_status(checksum_mismatch()).in_words(b"Checksum Mismatch")
        }
        error => error.into(),
    }
}

/// 460, tus's own status.
fn checksum_mismatch() -> StatusCode {
    StatusCode::from_u16(460).expect("460 is a status code")
}

/// What is read of a concatenation is bounded, and never nothing.
#[cfg(test)]
pub(super) fn check_parts_named(list: &str) {
    if let Ok(parts) = parts_named(list) {
        assert!(!parts.is_empty() && parts.len() <= PARTS_MAX);
    }
}
