//! What a request asks of a blob: all, a range, or only whether its copy still stands. RFC 9110 §13 and §14.
//!
//! A blob's entity tag is its id. Blobs never change, so the conditions need no look-up: a copy under this id is this
//! blob.

use http::HeaderMap;
use http::header::{HeaderName, IF_NONE_MATCH, IF_RANGE, RANGE};
use waxwing_protocol::BlobId;
use waxwing_protocol::range::{RangeSpec, parse_ranges};

/// What a GET asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Nothing, if the client's copy is this blob, which it is.
    Unmodified,
    /// This of it; all when `None`.
    Bytes(Option<RangeSpec>),
}

/// Reads the conditions and the range of a GET for blob `id`, in the order of RFC 9110 §13.2.2.
pub(super) fn asked(headers: &HeaderMap, id: BlobId) -> Asked {
    if has_copy(headers, id) {
        return Asked::Unmodified;
    }
    let honoured = match one(headers, &IF_RANGE) {
        Given::Nothing => true,
        // The comparison is a strong one, and we give no Last-Modified that a date could match.
        Given::Once(tag) => tag == etag(id),
        Given::Unclear => false,
    };
    match one(headers, &RANGE) {
        Given::Once(range) if honoured => Asked::Bytes(range_of(range)),
        _ => Asked::Bytes(None),
    }
}

/// Whether `If-None-Match` names this blob.
///
/// `*` asks whether the blob exists, which only a look-up can tell; it is left to be answered like a plain GET.
pub(super) fn has_copy(headers: &HeaderMap, id: BlobId) -> bool {
    let tag = etag(id);
    let mut tags = headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    tags.any(|list| list.split(',').map(str::trim).any(|one| one.strip_prefix("W/").unwrap_or(one) == tag))
}

/// The entity tag of blob `id`.
pub(super) fn etag(id: BlobId) -> String {
    format!("\"{id}\"")
}

/// The one range asked for. A malformed header is ignored, as RFC 9110 §14.2 has it; of several ranges the whole is a
/// permitted answer, and what we give.
fn range_of(header: &str) -> Option<RangeSpec> {
    match parse_ranges(header)?.as_slice() {
        [one] => Some(*one),
        _ => None,
    }
}

enum Given<'h> {
    Nothing,
    Once(&'h str),
    /// Several times, or not as text.
    Unclear,
}

fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Given<'h> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Given::Nothing,
        (Some(value), None) => value.to_str().map_or(Given::Unclear, Given::Once),
        (Some(_), Some(_)) => Given::Unclear,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: BlobId = BlobId::from_bytes([1; 32]);

    fn ask(lines: &[(HeaderName, &str)]) -> Asked {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        asked(&headers, ID)
    }

    const FIRST_TEN: Asked = Asked::Bytes(Some(RangeSpec::From { first: 0, last: Some(9) }));
    const ALL: Asked = Asked::Bytes(None);

    #[test]
    fn one_range_is_honoured_and_everything_else_gets_the_whole() {
        assert_eq!(ask(&[]), ALL);
        assert_eq!(ask(&[(RANGE, "bytes=0-9")]), FIRST_TEN);
        assert_eq!(ask(&[(RANGE, "bytes=-5")]), Asked::Bytes(Some(RangeSpec::Suffix { length: 5 })));
        for odd in ["bytes=0-9,20-29", "lines=0-9", "bytes=9-0", "bytes"] {
            assert_eq!(ask(&[(RANGE, odd)]), ALL, "{odd}");
        }
        assert_eq!(ask(&[(RANGE, "bytes=0-9"), (RANGE, "bytes=5-6")]), ALL);
    }

    #[test]
    fn if_range_takes_the_strong_tag_only() {
        let (tag, range) = (etag(ID), (RANGE, "bytes=0-9"));
        assert_eq!(ask(&[range.clone(), (IF_RANGE, &tag)]), FIRST_TEN);
        for other in [&format!("W/{tag}"), "\"other\"", "Wed, 21 Oct 2015 07:28:00 GMT", "*"] {
            assert_eq!(ask(&[range.clone(), (IF_RANGE, other)]), ALL, "{other}");
        }
    }

    #[test]
    fn a_copy_is_recognised_in_any_list_and_before_any_range() {
        let tag = etag(ID);
        for list in [&tag, &format!("W/{tag}"), &format!("\"a\", {tag}"), &format!("\"a\",W/{tag},\"b\"")] {
            assert_eq!(ask(&[(IF_NONE_MATCH, list), (RANGE, "bytes=0-9")]), Asked::Unmodified, "{list}");
        }
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"a\""), (IF_NONE_MATCH, &tag)]), Asked::Unmodified);
        assert_eq!(ask(&[(IF_NONE_MATCH, "\"other\""), (RANGE, "bytes=0-9")]), FIRST_TEN);
    }
}
