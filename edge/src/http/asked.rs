//! What a request asks of a blob: all, a range, or only whether its copy still stands. RFC 9110 §13 and §14.
//!
//! A blob's entity tag is its id. Blobs never change, so the conditions need no look-up: a copy under this id is this
//! blob.

use http::HeaderMap;
use http::header::{HeaderName, IF_MATCH, IF_NONE_MATCH, IF_RANGE, RANGE};
use waxwing_protocol::BlobId;
use waxwing_protocol::range::{RANGES_MAX, RangeSpec, parse_ranges};

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked<'h> {
    /// Nothing, since the client's copy is this blob.
    Unmodified,
    /// Nothing, if the blob exists, whatever it is.
    UnmodifiedIfThere,
    /// Another blob than this: 412.
    Failed,
    /// The bytes.
    Bytes(Wanted<'h>),
}

/// Which bytes are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted<'h> {
    /// All.
    All,
    /// One range.
    One(RangeSpec),
    /// Several, as the header says it: what they come to depends on the size.
    Several(&'h str),
}

/// Reads the conditions and the range of a GET for blob `id`, in the order of RFC 9110 §13.2.2. Dates are no conditions
/// here: a blob has no time of modification (§13.1.3, §13.1.4 have them ignored then).
pub(super) fn asked(headers: &HeaderMap, id: BlobId) -> Asked<'_> {
    let tag = etag(id);
    // The comparison is a strong one, so a weak tag never matches.
    if headers.contains_key(IF_MATCH) && !lists(headers, &IF_MATCH, |one| one == tag || one == "*") {
        return Asked::Failed;
    }
    if lists(headers, &IF_NONE_MATCH, |one| one.strip_prefix("W/").unwrap_or(one) == tag) {
        return Asked::Unmodified;
    }
    if lists(headers, &IF_NONE_MATCH, |one| one == "*") {
        return Asked::UnmodifiedIfThere;
    }
    let honoured = match one(headers, &IF_RANGE) {
        Given::Nothing => true,
        // The comparison is a strong one, and we give no Last-Modified that a date could match.
        Given::Once(given) => given == tag,
        Given::Unclear => false,
    };
    match one(headers, &RANGE) {
        Given::Once(range) if honoured => Asked::Bytes(wanted(range)),
        _ => Asked::Bytes(Wanted::All),
    }
}

fn lists(headers: &HeaderMap, name: &HeaderName, is_it: impl Fn(&str) -> bool) -> bool {
    let mut lists = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    lists.any(|list| list.split(',').map(str::trim).any(&is_it))
}

/// The entity tag of blob `id`.
pub(super) fn etag(id: BlobId) -> String {
    format!("\"{id}\"")
}

/// What a `Range` header wants. A malformed one is ignored, as RFC 9110 §14.2 has it; of too many ranges the whole is a
/// permitted answer, and what we give.
fn wanted(header: &str) -> Wanted<'_> {
    match parse_ranges(header).as_deref() {
        Some([one]) => Wanted::One(*one),
        Some(several) if several.len() <= RANGES_MAX => Wanted::Several(header),
        _ => Wanted::All,
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
    use http::header::{IF_MODIFIED_SINCE, IF_UNMODIFIED_SINCE};

    const ID: BlobId = BlobId::from_bytes([1; 32]);

    /// What a request with these lines comes to, said short.
    fn ask(lines: &[(HeaderName, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name, value.parse().unwrap());
        }
        match asked(&headers, ID) {
            Asked::Unmodified => "304".into(),
            Asked::UnmodifiedIfThere => "304 if there".into(),
            Asked::Failed => "412".into(),
            Asked::Bytes(Wanted::All) => "all".into(),
            Asked::Bytes(Wanted::One(RangeSpec::From { first, last })) => format!("{first}-{last:?}"),
            Asked::Bytes(Wanted::One(RangeSpec::Suffix { length })) => format!("-{length}"),
            Asked::Bytes(Wanted::Several(_)) => "several".into(),
        }
    }

    #[test]
    fn ranges_are_honoured_and_everything_else_gets_the_whole() {
        for (range, expected) in [
            ("bytes=0-9", "0-Some(9)"),
            ("bytes=5-", "5-None"),
            ("bytes=-5", "-5"),
            ("bytes=0-9,20-29", "several"),
            ("bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14", "several"),
            ("bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16", "all"),
            ("lines=0-9", "all"),
            ("bytes=9-0", "all"),
            ("bytes", "all"),
            ("bytes=0-1,,", "all"),
        ] {
            assert_eq!(ask(&[(RANGE, range)]), expected, "{range}");
        }
        assert_eq!(ask(&[]), "all");
        assert_eq!(ask(&[(RANGE, "bytes=0-9"), (RANGE, "bytes=5-6")]), "all");
    }

    #[test]
    fn conditions_are_read_in_the_order_of_the_rfc() {
        const DATE: &str = "Wed, 21 Oct 2015 07:28:00 GMT";
        let (tag, weak) = (etag(ID), format!("W/{}", etag(ID)));
        let (listed, listed_weak) = (format!("\"a\", {tag}"), format!("\"a\",{weak},\"b\""));
        let range = || (RANGE, "bytes=0-9");
        for (lines, expected) in [
            (vec![(IF_MATCH, &*tag)], "all"),
            (vec![(IF_MATCH, &*listed)], "all"),
            (vec![(IF_MATCH, "*"), range()], "0-Some(9)"),
            (vec![(IF_MATCH, &*weak)], "412"),
            (vec![(IF_MATCH, "\"other\""), (IF_NONE_MATCH, &*tag)], "412"),
            (vec![(IF_MATCH, &*tag), (IF_NONE_MATCH, &*tag)], "304"),
            (vec![(IF_NONE_MATCH, &*tag), range()], "304"),
            (vec![(IF_NONE_MATCH, &*weak)], "304"),
            (vec![(IF_NONE_MATCH, &*listed)], "304"),
            (vec![(IF_NONE_MATCH, &*listed_weak)], "304"),
            (vec![(IF_NONE_MATCH, "\"a\""), (IF_NONE_MATCH, &*tag)], "304"),
            (vec![(IF_NONE_MATCH, "*")], "304 if there"),
            (vec![(IF_NONE_MATCH, "\"other\""), range()], "0-Some(9)"),
            (vec![(IF_MODIFIED_SINCE, DATE)], "all"),
            (vec![(IF_UNMODIFIED_SINCE, DATE)], "all"),
            (vec![(IF_NONE_MATCH, "\"other\""), (IF_MODIFIED_SINCE, DATE)], "all"),
            (vec![(IF_RANGE, &*tag), range()], "0-Some(9)"),
            (vec![(IF_RANGE, &*weak), range()], "all"),
            (vec![(IF_RANGE, "\"other\""), range()], "all"),
            (vec![(IF_RANGE, DATE), range()], "all"),
            (vec![(IF_RANGE, "*"), range()], "all"),
            (vec![(IF_RANGE, &*tag), (IF_RANGE, &*tag), range()], "all"),
        ] {
            assert_eq!(ask(&lines), expected, "{lines:?}");
        }
    }
}
