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

/// Ranges of one request that are answered at most; more are answered with everything (RFC 9110 §14.2 leaves it open),
/// since a thousand tiny ranges cost more to answer than the whole.
pub const RANGES_MAX: usize = 8;

/// What a `Range` header comes to for a representation whose size is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything: the header is malformed, of another unit, or asks for more than [`RANGES_MAX`] ranges.
    Whole,
    /// These parts, none of which touches another: one is a plain 206, several are [`Multipart`].
    Parts(Vec<ByteRange>),
    /// Nothing that exists: 416.
    Unsatisfiable,
}

/// What `header` selects of `size` bytes. Ranges that overlap or touch become one, so that no byte is sent twice; else
/// they keep the order asked for.
pub fn select(header: &str, size: u64) -> Selection {
    let specs = match parse_ranges(header) {
        Some(specs) if specs.len() <= RANGES_MAX => specs,
        _ => return Selection::Whole,
    };
    let mut parts: Vec<ByteRange> = Vec::with_capacity(specs.len());
    for mut part in specs.into_iter().filter_map(|spec| spec.resolve(size)) {
        // A part may bridge the gap between others: it takes them in, at the place of the first.
        let mut place = parts.len();
        for at in (0..parts.len()).rev() {
            if part.start <= parts[at].end && parts[at].start <= part.end {
                let other = parts.remove(at);
                part = ByteRange { start: part.start.min(other.start), end: part.end.max(other.end) };
                place = at;
            }
        }
        parts.insert(place.min(parts.len()), part);
    }
    if parts.is_empty() { Selection::Unsatisfiable } else { Selection::Parts(parts) }
}

/// The frame of a `multipart/byteranges` answer, RFC 9110 §14.6: what stands before each part and at the end. Its length
/// is known beforehand, so that the answer can be streamed and a cut one is noticed.
#[derive(Clone, Debug)]
pub struct Multipart<'a> {
    /// Separates the parts. It must not occur in them: 128 random bits do not.
    pub boundary: &'a str,
    /// The media type of the representation.
    pub media_type: &'a str,
    /// Bytes of the whole representation.
    pub size: u64,
}

impl Multipart<'_> {
    /// The value of the answer's `Content-Type`.
    pub fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }

    /// What stands before `part`.
    pub fn head(&self, part: ByteRange) -> String {
        let Self { boundary, media_type, size } = self;
        format!(
            "\r\n--{boundary}\r\ncontent-type: {media_type}\r\ncontent-range: {}\r\n\r\n",
            part.content_range(*size)
        )
    }

    /// What stands after the last part.
    pub fn tail(&self) -> String {
        format!("\r\n--{}--\r\n", self.boundary)
    }

    /// Bytes of the answer with these `parts`, frame included.
    pub fn byte_count(&self, parts: &[ByteRange]) -> u64 {
        let framed = |part: &ByteRange| self.head(*part).len() as u64 + part.byte_count();
        parts.iter().map(framed).sum::<u64>() + self.tail().len() as u64
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
    (first <= last && last < size).then(|| (ByteRange { start: first, end: last + 1 }, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(header: &str, size: u64) -> Option<Vec<Option<Range<u64>>>> {
        Some(parse_ranges(header)?.into_iter().map(|spec| spec.resolve(size).map(ByteRange::as_range)).collect())
    }

    /// The byte after the largest there is has no number.
    #[test]
    fn a_content_range_past_every_size_is_none() {
        assert_eq!(parse_content_range("bytes 0-18446744073709551616/1000"), None);
        assert_eq!(parse_content_range("bytes 0-18446744073709551615/18446744073709551615"), None);
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
    fn ranges_that_touch_become_one_and_others_keep_their_order() {
        let parts = |header: &str| match select(header, 1000) {
            Selection::Parts(parts) => parts.into_iter().map(|part| (part.start, part.end)).collect::<Vec<_>>(),
            other => panic!("{header}: {other:?}"),
        };
        assert_eq!(parts("bytes=5-9"), [(5, 10)]);
        assert_eq!(parts("bytes=500-599,0-9"), [(500, 600), (0, 10)]);
        assert_eq!(parts("bytes=0-9,5-20,21-30"), [(0, 31)]);
        assert_eq!(parts("bytes=0-9,20-29,100-109,10-19"), [(0, 30), (100, 110)]);
        assert_eq!(parts("bytes=5000-,0-0"), [(0, 1)]);
        assert_eq!(select("bytes=5000-,-0", 1000), Selection::Unsatisfiable);
        for whole in ["lines=0-1", "bytes=1-0", "bytes=0-0,2-2,4-4,6-6,8-8,10-10,12-12,14-14,16-16"] {
            assert_eq!(select(whole, 1000), Selection::Whole, "{whole}");
        }
    }

    proptest::proptest! {
        /// Whatever is asked for: every byte of it is selected, no byte twice, and nothing else.
        #[test]
        fn a_selection_is_what_was_asked_for(specs in proptest::collection::vec((0..60_u64, 0..60_u64), 1..=RANGES_MAX)) {
            let size = 50;
            let asked = specs.iter().map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))).collect::<Vec<_>>().join(",");
            let mut wanted = vec![false; 50];
            specs.iter().for_each(|(a, b)| (*a.min(b)..=*a.max(b)).filter(|n| *n < size).for_each(|n| wanted[n as usize] = true));
            let mut found = vec![false; 50];
            if let Selection::Parts(parts) = select(&format!("bytes={asked}"), size) {
                for n in parts.into_iter().flat_map(ByteRange::as_range) {
                    proptest::prop_assert!(!std::mem::replace(&mut found[n as usize], true), "byte {} twice", n);
                }
            }
            proptest::prop_assert_eq!(found, wanted);
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
