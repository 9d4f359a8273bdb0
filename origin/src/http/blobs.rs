//! `/origin/v1/blobs/{id}` and its outboard: what edges fill their caches from.
//!
//! A blob never changes, so its id is its entity tag, and a range of it is as good today as it was yesterday.

use std::future::ready;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use data_encoding::HEXLOWER;
use futures_util::stream::{self, StreamExt as _};
use waxwing_protocol::BlobId;
use waxwing_protocol::blob::outboard_bytes;
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::{ByteRange, Multipart, Selection, select};

use super::error::HttpError;
use super::grants::EdgeGrant;
use super::{App, BlobPath, headers};
use crate::store::BlobReader;
use crate::uploads::UploadError;

/// What servers know of a blob's content: nothing.
const MEDIA_TYPE: &str = "application/octet-stream";

/// `GET`: the blob, or ranges of it.
pub(super) async fn get(
    State(app): State<App>,
    _: EdgeGrant,
    BlobPath(id): BlobPath,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let blob = open(&app, id).await?;
    if is_known(&headers, id) {
        return Ok(not_modified(id));
    }
    let size = blob.blob_bytes();
    let parts = match wanted(&headers, id, size) {
        Selection::Unsatisfiable => return Err(HttpError::no_range(size)),
        Selection::Parts(parts) => parts,
        Selection::Whole => {
            let whole = ByteRange { start: 0, end: size };
            let body = if size == 0 { Body::empty() } else { Body::from_stream(blob.read(whole)) };
            return Ok(answer(StatusCode::OK, id, size, body));
        }
    };
    if let [part] = parts[..] {
        let body = Body::from_stream(blob.read(part));
        let mut response = answer(StatusCode::PARTIAL_CONTENT, id, part.byte_count(), body);
        response.headers_mut().insert(CONTENT_RANGE, headers::plain(&part.content_range(size)));
        return Ok(response);
    }
    multipart(id, blob, parts)
}

/// Several ranges as `multipart/byteranges`, streamed one after the other.
fn multipart(id: BlobId, blob: Box<dyn BlobReader>, parts: Vec<ByteRange>) -> Result<Response, HttpError> {
    let mut random = [0; 16];
    getrandom::fill(&mut random).map_err(|_| UploadError::NoRandomness)?;
    let boundary = HEXLOWER.encode(&random);
    let frame = Multipart { boundary: &boundary, media_type: MEDIA_TYPE, size: blob.blob_bytes() };
    let bytes = frame.byte_count(&parts);
    let content_type = headers::plain(&frame.content_type());
    let heads: Vec<_> = parts.iter().map(|part| Bytes::from(frame.head(*part))).collect();
    let tail = Bytes::from(frame.tail());
    let pieces = stream::iter(heads.into_iter().zip(parts))
        .flat_map(move |(head, part)| stream::once(ready(Ok(head))).chain(blob.read(part)))
        .chain(stream::once(ready(Ok(tail))));
    let mut response = answer(StatusCode::PARTIAL_CONTENT, id, bytes, Body::from_stream(pieces));
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    Ok(response)
}

/// `HEAD`: the same without the bytes. Ranges are for GET alone (RFC 9110 §14.2).
pub(super) async fn head(
    State(app): State<App>,
    _: EdgeGrant,
    BlobPath(id): BlobPath,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let blob = open(&app, id).await?;
    if is_known(&headers, id) {
        return Ok(not_modified(id));
    }
    Ok(answer(StatusCode::OK, id, blob.blob_bytes(), Body::empty()))
}

/// `GET …/outboard`: the chaining value of every chunk group. `Waxwing-Blob-Bytes` tells how many bytes they are for.
pub(super) async fn outboard(
    State(app): State<App>,
    _: EdgeGrant,
    BlobPath(id): BlobPath,
) -> Result<Response, HttpError> {
    let blob = open(&app, id).await?;
    Ok(outboard_answer(id, blob.blob_bytes(), Body::from_stream(blob.outboard())))
}

/// `HEAD …/outboard`.
pub(super) async fn outboard_head(
    State(app): State<App>,
    _: EdgeGrant,
    BlobPath(id): BlobPath,
) -> Result<Response, HttpError> {
    let blob = open(&app, id).await?;
    Ok(outboard_answer(id, blob.blob_bytes(), Body::empty()))
}

async fn open(app: &App, id: BlobId) -> Result<Box<dyn BlobReader>, HttpError> {
    app.blobs.open(id).await?.ok_or_else(HttpError::no_blob)
}

/// Whether the client says it has this blob already.
fn is_known(headers: &HeaderMap, id: BlobId) -> bool {
    let tag = entity_tag(id);
    let values = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Compared weakly, RFC 9110 §13.1.2.
    let known = |candidate: &str| candidate == "*" || candidate.strip_prefix("W/").unwrap_or(candidate) == tag;
    values.flat_map(|value| value.split(',')).any(|candidate| known(candidate.trim()))
}

/// What is asked for. A range of another version of the blob is ignored, as one that is malformed.
fn wanted(headers: &HeaderMap, id: BlobId, size: u64) -> Selection {
    let mut lines = headers.get_all(RANGE).iter();
    let (Some(range), None) = (lines.next(), lines.next()) else { return Selection::Whole };
    if headers.get(IF_RANGE).is_some_and(|tag| tag.as_bytes() != entity_tag(id).as_bytes()) {
        return Selection::Whole;
    }
    range.to_str().map_or(Selection::Whole, |range| select(range, size))
}

fn entity_tag(id: BlobId) -> String {
    format!("\"{id}\"")
}

fn not_modified(id: BlobId) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(ETAG, headers::plain(&entity_tag(id)));
    response
}

fn answer(status: StatusCode, id: BlobId, bytes: u64, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ETAG, headers::plain(&entity_tag(id)));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_LENGTH, bytes.into());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn outboard_answer(id: BlobId, blob_bytes: u64, body: Body) -> Response {
    let mut response = answer(StatusCode::OK, id, outboard_bytes(blob_bytes), body);
    response.headers_mut().insert(HeaderName::from_static(WAXWING_BLOB_BYTES), blob_bytes.into());
    response.headers_mut().remove(ACCEPT_RANGES);
    response
}
