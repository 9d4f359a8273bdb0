//! Digests on the wire: tus's `Upload-Checksum`, also as a trailer, `Content-Digest` and
//! `Repr-Digest` (RFC 9530).

use std::future::ready;

use axum::body::Body;
use axum::http::header::TRAILER;
use axum::http::{HeaderMap, HeaderName};
use data_encoding::BASE64;
use futures_util::stream::StreamExt as _;
use http_body::Frame;
use http_body_util::BodyStream;
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::error::HttpError;
use super::{content, headers};
use crate::store::{DigestProgress, StoredDigest, WholeAlgorithm};
use crate::uploads::{Content, ContentDigest, ContentError, Digest, DigestAlgorithm, DigestToCome};

const UPLOAD_CHECKSUM: &str = "upload-checksum";
/// The digest of a whole upload.
pub(super) const REPR_DIGEST: HeaderName = HeaderName::from_static("repr-digest");
const WANT_REPR_DIGEST: HeaderName = HeaderName::from_static("want-repr-digest");

/// Algorithms in use for whole uploads, RFC 9530 §5, with how many bytes their digests have.
const WHOLE_ALGORITHMS: [(&str, WholeAlgorithm, usize); 2] =
    [("sha-512", WholeAlgorithm::Sha512, 64), ("sha-256", WholeAlgorithm::Sha256, 32)];

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");

/// What tus clients may name, as `Tus-Checksum-Algorithm` lists it.
pub(super) const CHECKSUM_ALGORITHMS: &str = "sha1,sha256,md5,crc32,blake3";

/// A tus request's content, and the checksum it must have. A checksum announced by `Trailer` comes after the content.
pub(super) fn checked(headers: &HeaderMap, body: Body) -> Result<(Content, Option<ContentDigest>), HttpError> {
    if let Some(text) = headers::single(headers, UPLOAD_CHECKSUM)? {
        return Ok((content(body), Some(ContentDigest::Told(checksum(text)?))));
    }
    let announced = headers.get_all(TRAILER).iter().filter_map(|value| value.to_str().ok());
    if !announced.flat_map(|names| names.split(',')).any(|name| name.trim().eq_ignore_ascii_case(UPLOAD_CHECKSUM)) {
        return Ok((content(body), None));
    }
    let to_come = DigestToCome::default();
    Ok((content_and_trailer(body, to_come.clone()), Some(ContentDigest::ToCome(to_come))))
}

/// The content of `body`; the checksum in its trailers is put where it is waited for. One that makes no sense is as good
/// as none.
fn content_and_trailer(body: Body, to_come: DigestToCome) -> Content {
    let pieces = BodyStream::new(body).filter_map(move |frame| {
        ready(match frame.map(Frame::into_data) {
            Ok(Ok(data)) => Some(Ok(data)),
            Ok(Err(other)) => {
                if let Some(trailers) = other.trailers_ref()
                    && let Ok(Some(text)) = headers::single(trailers, UPLOAD_CHECKSUM)
                    && let Ok(digest) = checksum(text)
                {
                    to_come.tell(digest);
                }
                None
            }
            Err(_) => Some(Err(ContentError)),
        })
    });
    pieces.boxed()
}

/// `Upload-Checksum`: an algorithm's name and the digest in base64.
fn checksum(text: &str) -> Result<Digest, HttpError> {
    let bad = |what: &str| HttpError::bad_request("bad-checksum", format!("header {UPLOAD_CHECKSUM} {what}"));
    let (name, value) = text.split_once(' ').ok_or_else(|| bad("is not an algorithm and a base64 value"))?;
    let algorithm = match name {
        "sha1" => DigestAlgorithm::Sha1,
        "sha256" => DigestAlgorithm::Sha256,
        "md5" => DigestAlgorithm::Md5,
        "crc32" => DigestAlgorithm::Crc32,
        "blake3" => DigestAlgorithm::Blake3,
        _ => return Err(bad(&format!("names an algorithm that is none of {CHECKSUM_ALGORITHMS}"))),
    };
    let value = BASE64.decode(value.as_bytes()).map_err(|_| bad("has a value that is not base64"))?;
    Digest::new(algorithm, value).ok_or_else(|| bad("has a value that is too long or too short for its algorithm"))
}

/// `Content-Digest`, a structured dictionary: the strongest digest in it that is in use, RFC 9530 §5. Others, and a field
/// that cannot be read, are ignored.
pub(super) fn content_digest(headers: &HeaderMap) -> Option<ContentDigest> {
    let digests = dictionary(headers, &CONTENT_DIGEST)?;
    let known = [("sha-512", DigestAlgorithm::Sha512), ("sha-256", DigestAlgorithm::Sha256)];
    known.into_iter().find_map(|(name, algorithm)| match digests.get(name)? {
        ListEntry::Item(item) => match &item.bare_item {
            BareItem::ByteSequence(value) => Digest::new(algorithm, value.clone()).map(ContentDigest::Told),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    })
}

/// The digest of a whole upload that a client names (`Repr-Digest`) or wants to be told (`Want-Repr-Digest`), RFC 9530.
/// Whoever names one wants it checked, and is told the same.
pub(super) fn whole_digest(headers: &HeaderMap) -> Option<StoredDigest> {
    let named = WHOLE_ALGORITHMS.into_iter().find_map(|(name, algorithm, bytes)| {
        match dictionary(headers, &REPR_DIGEST)?.get(name)? {
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::ByteSequence(value) if value.len() == bytes => {
                    Some(StoredDigest::new(algorithm, Some(BASE64.encode(value))))
                }
                _ => None,
            },
            ListEntry::InnerList(_) => None,
        }
    });
    named.or_else(|| wanted(headers).map(|algorithm| StoredDigest::new(algorithm, None)))
}

/// The algorithm that `Want-Repr-Digest` prefers: the highest weight, of which 0 means "not at all".
fn wanted(headers: &HeaderMap) -> Option<WholeAlgorithm> {
    let weights = dictionary(headers, &WANT_REPR_DIGEST)?;
    let weight = |name| match weights.get(name)? {
        ListEntry::Item(item) => match item.bare_item {
            BareItem::Integer(weight) => u64::try_from(i64::from(weight)).ok().filter(|weight| *weight > 0),
            _ => None,
        },
        ListEntry::InnerList(_) => None,
    };
    let weighed = WHOLE_ALGORITHMS.into_iter().filter_map(|(name, algorithm, _)| Some((weight(name)?, algorithm)));
    weighed.max_by_key(|(weight, _)| *weight).map(|(_, algorithm)| algorithm)
}

/// `Repr-Digest` of a finished upload.
pub(super) fn repr_digest(digest: &StoredDigest) -> Option<String> {
    let DigestProgress::Done { value } = &digest.progress else { return None };
    let (name, ..) = WHOLE_ALGORITHMS.into_iter().find(|(_, algorithm, _)| *algorithm == digest.algorithm)?;
    Some(format!("{name}=:{value}:"))
}

/// A field that is a dictionary; `None` when it is absent or cannot be read.
fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Option<Dictionary> {
    let lines: Vec<_> = headers.get_all(name).iter().map(|line| line.as_bytes()).collect();
    Parser::new(&lines.join(&b", "[..])).parse().ok()
}
