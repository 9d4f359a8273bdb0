//! Byte ranges, RFC 9110 §14: what a `Range` header asks for and what of it a blob can satisfy.

use std::ops::Range;

/// One range as a client wrote it, before the size is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-last` or `first-`: from byte `first`, to byte `last` inclusive or to the end.
    From {
        /// The first byte.
        first: u64,
        /// The last byte, inclusive; to the end when `None`.
        last: Option<u64>,
    },
    /// `-length`: the last `length` bytes.
    Suffix {
        /// How many bytes.
        length: u64,
    },
}

impl RangeSpec {
    /// The part of a representation of `size` bytes that this asks for, or `None` when there is none (416).
    pub fn resolve(self, size: u64) -> Option<ByteRange> {
        let (start, end) = match self {
            Self::From { first, last } => (first, last.map_or(size, |last| last.saturating_add(1).min(size))),
            Self::Suffix { length } => (size.saturating_sub(length), size),
        };
        (start < end).then_some(ByteRange { start, end })
    }
}

/// The ranges of a `Range` header, in the order asked for.
///
/// `None` when the unit is not `bytes` or the header is malformed: RFC 9110 §14.2 has the server ignore it then. How
/// many ranges are too many is the caller's policy; parsing is linear in the header, which HTTP already bounds.
pub fn parse_ranges(header: &str) -> Option<Vec<RangeSpec>> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    set.split(',').map(|spec| parse_spec(spec.trim_matches([' ', '\t']))).collect()
}

fn parse_spec(spec: &str) -> Option<RangeSpec> {
    let (first, last) = spec.split_once('-')?;
    if first.is_empty() {
        return Some(RangeSpec::Suffix { length: digits(last)? });
    }
    let first = digits(first)?;
    let last = if last.is_empty() { None } else { Some(digits(last)?) };
    if last.is_some_and(|last| last < first) { None } else { Some(RangeSpec::From { first, last }) }
}

/// A decimal of digits only; one too large for a u64 counts as the largest, since every size is smaller.
fn digits(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

/// A range of bytes that exists: never empty, and within its representation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last.
    pub end: u64,
}

impl ByteRange {
    /// How many bytes; at least one.
    pub const fn byte_count(self) -> u64 {
        self.end - self.start
    }

    /// As a half-open range.
    pub const fn as_range(self) -> Range<u64> {
        self.start..self.end
    }

    /// The value of a `Content-Range` header for a representation of `size` bytes.
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.end - 1)
    }

    /// The value of a `Range` header that asks for exactly this.
    pub fn range_header(self) -> String {
        format!("bytes={}-{}", self.start, self.end - 1)
    }
}

/// Reads a `Content-Range: bytes first-last/size` header into the range and the size.
///
/// `None` for any other form, `*` included: a cache must not guess what it was given.
pub fn parse_content_range(header: &str) -> Option<(ByteRange, u64)> {
    let rest = header.trim().strip_prefix("bytes ")?;
    let (range, size) = rest.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size) = (digits(first)?, digits(last)?, digits(size)?);
    (first <= last && last < size).then_some((ByteRange { start: first, end: last + 1 }, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(header: &str, size: u64) -> Option<Vec<Option<Range<u64>>>> {
        Some(parse_ranges(header)?.into_iter().map(|spec| spec.resolve(size).map(ByteRange::as_range)).collect())
    }

    #[test]
    fn the_forms_of_rfc_9110_are_read() {
        assert_eq!(resolve("bytes=0-499", 1000), Some(vec![Some(0..500)]));
        assert_eq!(resolve("bytes=500-", 1000), Some(vec![Some(500..1000)]));
        assert_eq!(resolve("bytes=-500", 1000), Some(vec![Some(500..1000)]));
        assert_eq!(resolve("Bytes=0-0, -1", 1000), Some(vec![Some(0..1), Some(999..1000)]));
        assert_eq!(resolve("bytes=0-99999999999999999999999", 10), Some(vec![Some(0..10)]));
        assert_eq!(resolve("bytes=-2000", 1000), Some(vec![Some(0..1000)]));
    }

    #[test]
    fn what_cannot_be_satisfied_is_told_apart_from_what_is_malformed() {
        assert_eq!(resolve("bytes=1000-", 1000), Some(vec![None]));
        assert_eq!(resolve("bytes=-0", 1000), Some(vec![None]));
        assert_eq!(resolve("bytes=0-", 0), Some(vec![None]));
        for malformed in
            ["bytes", "bytes=", "items=0-1", "bytes=5-4", "bytes=a-b", "bytes=+1-2", "bytes=1-2,", "bytes=--1"]
        {
            assert_eq!(parse_ranges(malformed), None, "{malformed}");
        }
    }

    #[test]
    fn content_ranges_are_read_only_when_whole() {
        let range = ByteRange { start: 5, end: 10 };
        assert_eq!(parse_content_range(&range.content_range(20)), Some((range, 20)));
        for bad in ["bytes */20", "bytes 5-9/*", "bytes 9-5/20", "bytes 5-20/20", "5-9/20", "bytes 5-9"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }
}
