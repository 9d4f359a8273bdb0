//! Heads of requests that may be answered here, taken apart where they lie.
//!
//! This is no parser for HTTP/1.1 at large: it knows the requests that readers of blobs send, and says `Other` to all
//! else, however well-formed; a strict parser gets that. So it can be small, and nothing is copied.
//!
//! Promise: what is taken for a request has no other reading (RFC 9112): lines end by CR and LF, none is folded, no
//! content follows.

use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use waxwing_protocol::http1::{is_field_content, is_token};

/// Where blobs are.
pub(super) const BLOBS: &str = "/v1/blobs/";

/// What stands at the beginning of what was read.
#[derive(Debug)]
pub(super) enum Parsed<'b> {
    /// Not enough to tell.
    Partial,
    /// A request that can be answered here.
    Request(Request<'b>),
    /// Anything else.
    Other,
}

/// A request without content for something under [`BLOBS`].
#[derive(Debug)]
pub(super) struct Request<'b> {
    pub(super) method: Method,
    pub(super) target: &'b str,
    /// The lines of its fields.
    fields: &'b [u8],
    /// Bytes of the head, its empty line included.
    pub(super) bytes: usize,
    /// Whether the connection may stay open.
    pub(super) keeps: bool,
    /// `Authorization`, when it is there once.
    pub(super) authorization: Option<&'b str>,
    /// `Range`, when it is there once.
    pub(super) range: Option<&'b str>,
    /// Whether nothing but those two says what the answer is.
    pub(super) is_plain: bool,
}

impl Request<'_> {
    /// All its fields; `None` should one not be a field for the `http` crate.
    pub(super) fn headers(&self) -> Option<HeaderMap> {
        let mut headers = HeaderMap::with_capacity(16);
        let mut rest = self.fields;
        while let Some((name, value, taken)) = field(rest).ok().flatten() {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.try_append(name, HeaderValue::from_bytes(value).ok()?).ok()?;
            rest = &rest[taken..];
        }
        rest.is_empty().then_some(headers)
    }
}

/// Something that is not looked at here.
#[derive(Debug)]
struct Unknown;

/// Looks at the beginning of `bytes`.
pub(super) fn parse(bytes: &[u8]) -> Parsed<'_> {
    match request(bytes) {
        Ok(Some(request)) => Parsed::Request(request),
        Ok(None) => Parsed::Partial,
        Err(Unknown) => Parsed::Other,
    }
}

fn request(bytes: &[u8]) -> Result<Option<Request<'_>>, Unknown> {
    let Some((method, rest)) = method(bytes)? else { return Ok(None) };
    let target_bytes = rest.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(rest.len());
    let begins = rest.len().min(BLOBS.len());
    if rest[..begins] != BLOBS.as_bytes()[..begins] {
        return Err(Unknown);
    }
    let (target, rest) = rest.split_at(target_bytes);
    let target = str::from_utf8(target).map_err(|_| Unknown)?;
    const VERSION: &[u8] = b" HTTP/1.1\r\n";
    let Some(mut rest) = rest.strip_prefix(VERSION) else {
        return if VERSION.starts_with(rest) { Ok(None) } else { Err(Unknown) };
    };
    let fields = rest;
    let (mut authorization, mut range, mut has_host) = (None, None, false);
    let (mut keeps, mut is_plain) = (true, true);
    while let Some((name, value, taken)) = field(rest)? {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        // The length tells most names apart.
        match name.len() {
            13 if is("authorization") => is_plain &= once(&mut authorization, value),
            5 if is("range") => is_plain &= once(&mut range, value),
            4 if is("host") => {
                if std::mem::replace(&mut has_host, true) {
                    return Err(Unknown);
                }
            }
            10 if is("connection") => match value {
                value if value.eq_ignore_ascii_case(b"keep-alive") => {}
                value if value.eq_ignore_ascii_case(b"close") => keeps = false,
                _ => return Err(Unknown),
            },
            14 if is("content-length") => return Err(Unknown),
            17 if is("transfer-encoding") => return Err(Unknown),
            7 if is("upgrade") || is("trailer") => return Err(Unknown),
            6 if is("expect") => return Err(Unknown),
            // `If-Range` and the other conditions.
            _ => is_plain &= !name.get(..3).is_some_and(|begin| begin.eq_ignore_ascii_case("if-")),
        }
        rest = &rest[taken..];
    }
    const END: &[u8] = b"\r\n";
    if !rest.starts_with(END) {
        // A field that has not come whole, or the empty line.
        return Ok(None);
    }
    let fields = &fields[..fields.len() - rest.len()];
    let head_bytes = bytes.len() - rest.len() + END.len();
    Ok(Some(Request { method, target, fields, bytes: head_bytes, keeps, authorization, range, is_plain }))
}

fn method(bytes: &[u8]) -> Result<Option<(Method, &[u8])>, Unknown> {
    for (text, method) in [("GET ", Method::GET), ("HEAD ", Method::HEAD), ("OPTIONS ", Method::OPTIONS)] {
        if let Some(rest) = bytes.strip_prefix(text.as_bytes()) {
            return Ok(Some((method, rest)));
        }
        if text.as_bytes().starts_with(bytes) {
            return Ok(None);
        }
    }
    Err(Unknown)
}

/// A field's name, its value without blanks around it, and how many bytes its line has.
type Field<'b> = (&'b str, &'b [u8], usize);

/// The field at the beginning of `bytes`; `None` when there is none, or not all of it.
fn field(bytes: &[u8]) -> Result<Option<Field<'_>>, Unknown> {
    let name_bytes = bytes.iter().position(|byte| !is_token(*byte)).unwrap_or(bytes.len());
    let (name, rest) = bytes.split_at(name_bytes);
    let Some((colon, rest)) = rest.split_first() else { return Ok(None) };
    if name.is_empty() && *colon == b'\r' {
        return if rest.first().is_none_or(|byte| *byte == b'\n') { Ok(None) } else { Err(Unknown) };
    }
    if name.is_empty() || *colon != b':' {
        return Err(Unknown);
    }
    let value_bytes = rest.iter().position(|byte| !is_field_content(*byte)).unwrap_or(rest.len());
    let (value, end) = rest.split_at(value_bytes);
    match end {
        [] | [b'\r'] => Ok(None),
        [b'\r', b'\n', ..] => {
            let name = str::from_utf8(name).map_err(|_| Unknown)?;
            Ok(Some((name, value.trim_ascii(), name_bytes + 1 + value_bytes + 2)))
        }
        _ => Err(Unknown),
    }
}

/// Notes a value that should be there once and be text. Gives whether so far it is.
fn once<'b>(noted: &mut Option<&'b str>, value: &'b [u8]) -> bool {
    let text = str::from_utf8(value).ok().filter(|text| text.is_ascii());
    let is_first = noted.is_none();
    *noted = text;
    is_first && text.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use waxwing_protocol::http1::Framing;

    const HEAD: &str =
        "GET /v1/blobs/x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a.b\r\nrange:bytes=0-4 \r\nX: y\r\n\r\n";

    #[test]
    fn what_a_reader_sends_is_taken_apart_once_all_of_it_is_there() {
        let Parsed::Request(request) = parse(HEAD.as_bytes()) else { panic!("it is a request") };
        assert_eq!((request.method.as_str(), request.target, request.bytes), ("GET", "/v1/blobs/x", HEAD.len()));
        assert_eq!((request.authorization, request.range), (Some("Bearer a.b"), Some("bytes=0-4")));
        assert!(request.keeps && request.is_plain);
        assert_eq!(request.headers().unwrap().len(), 4);
        for end in 0..HEAD.len() {
            assert!(matches!(parse(&HEAD.as_bytes()[..end]), Parsed::Partial), "{:?}", &HEAD[..end]);
        }
    }

    #[test]
    fn what_is_not_plain_is_left_to_others() {
        let with = |line: &str| HEAD.replace("X: y", line);
        for text in [
            with("Content-Length: 0"),
            with("Transfer-Encoding: chunked"),
            with("Upgrade: h2c"),
            with("Expect: 100-continue"),
            with("Connection: upgrade"),
            with("Host: b"),
            with(" folded"),
            with("X : y"),
            with("X: \0"),
            with("X: y\n"),
            HEAD.replace("1.1\r\n", "1.1\n"),
            HEAD.replace("1.1", "1.0"),
            HEAD.replace("GET", "POST"),
            HEAD.replace("blobs", "uploads"),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
        ] {
            assert!(matches!(parse(text.as_bytes()), Parsed::Other), "{text:?}");
        }
        for line in ["If-None-Match: \"x\"", "IF-RANGE: \"x\"", "Range: bytes=0-1", "Authorization: Bearer c"] {
            let text = with(line);
            assert!(matches!(parse(text.as_bytes()), Parsed::Request(request) if !request.is_plain), "{line}");
        }
    }

    proptest! {
        /// Whatever is taken for a request here is one, as long, for the strict framing that all others meet.
        #[test]
        fn what_is_taken_for_a_request_is_one_for_the_strict_parser(
            at in 0..HEAD.len(),
            length in 0..8_usize,
            put in proptest::collection::vec(any::<u8>(), 0..4),
            known in 0..6_usize,
        ) {
            let mut bytes = HEAD.as_bytes().to_vec();
            let known = ["", "\n", "\r\n", "\0", "\r\nContent-Length: 1", ":"][known].as_bytes();
            bytes.splice(at..(at + length).min(HEAD.len()), known.iter().copied().chain(put));
            if let Parsed::Request(request) = parse(&bytes) {
                let mut framing = Framing::new();
                prop_assert!(framing.follow(&bytes[..request.bytes]).is_ok());
                prop_assert!(framing.is_between());
            }
        }
    }
}
