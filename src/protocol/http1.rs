//! HTTP/1.1 framing, strictly: where one request ends and the next begins.
//!
//! Two parsers that disagree about that, ours and a proxy's before it, let a client smuggle a request past whatever the
//! proxy checks. RFC 9112 leaves servers room to be lenient, with a bare LF, a folded line, a `Content-Length` beside a
//! `Transfer-Encoding`; each leniency has been such a hole. [`Framing`] follows the bytes of a connection and has none.
//!
//! It keeps no bytes but those of the two fields that frame, so that it costs a connection no memory, and bodies pass it
//! by count.
//!
//! Promise: what it passes has one reading. It decides nothing else: sizes of heads and what a request means are the
//! server's to judge.

/// The first bytes of HTTP/2 on a connection, RFC 9113 §3.4.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The longer of the names that frame a message.
const NAME_BYTES_MAX: usize = "transfer-encoding".len();

/// The longest value of a field that frames a message; a longer one is no length and names no coding that we know.
const VALUE_BYTES_MAX: usize = 32;

/// Digits of a chunk's size at most, in hexadecimal: a u64.
const CHUNK_DIGITS_MAX: u8 = 16;

/// A byte that no request may have where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of those given is not HTTP/1.1: {why}")]
pub struct FramingError {
    /// Its index in the bytes given.
    pub at: usize,
    /// What is wrong.
    pub why: &'static str,
}

/// Follows what a client sends on one connection.
#[derive(Clone, Debug)]
pub struct Framing {
    state: State,
    name: Captured<NAME_BYTES_MAX>,
    value: Captured<VALUE_BYTES_MAX>,
    length: Option<u64>,
    is_chunked: bool,
    has_host: bool,
    is_http_10: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of HTTP/2's preface came.
    Preface(usize),
    /// Before a request.
    Between,
    BetweenCr,
    Method,
    Target,
    /// So many bytes of the version came.
    Version(usize),
    VersionCr,
    /// Before a field, or the end of the head or of the trailers.
    Field(Section),
    Name(Section),
    Value(Section),
    ValueCr(Section),
    EndCr(Section),
    /// So many bytes are left of a body, or of a chunk.
    Body(u64),
    ChunkSize {
        size: u64,
        digits: u8,
    },
    /// Blanks behind a size, which only an extension may follow.
    ChunkBlank(u64),
    ChunkExtension(u64),
    ChunkCr(u64),
    ChunkData(u64),
    ChunkEnd,
    ChunkEndCr,
    /// Everything passes: another protocol.
    Passing,
    Broken,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Section {
    Head,
    Trailers,
}

/// The first bytes of something, and how many there were.
#[derive(Clone, Debug)]
struct Captured<const MAX: usize> {
    bytes: [u8; MAX],
    count: usize,
}

impl<const MAX: usize> Captured<MAX> {
    const fn new() -> Self {
        Self { bytes: [0; MAX], count: 0 }
    }

    fn push(&mut self, bytes: &[u8]) {
        let kept = self.count.min(MAX);
        let fits = bytes.len().min(MAX - kept);
        self.bytes[kept..kept + fits].copy_from_slice(&bytes[..fits]);
        self.count += bytes.len();
    }

    /// All of it, when no more came than was kept.
    fn all(&self) -> Option<&[u8]> {
        self.bytes.get(..self.count)
    }

    fn is(&self, text: &str) -> bool {
        self.all().is_some_and(|bytes| bytes.eq_ignore_ascii_case(text.as_bytes()))
    }
}

impl Default for Framing {
    fn default() -> Self {
        Self::new()
    }
}

impl Framing {
    /// The framing of a connection of which nothing has been read.
    pub const fn new() -> Self {
        Self {
            state: State::Preface(0),
            name: Captured::new(),
            value: Captured::new(),
            length: None,
            is_chunked: false,
            has_host: false,
            is_http_10: false,
        }
    }

    /// Follows the next `bytes`. A connection that begins with HTTP/2's preface passes from there on.
    ///
    /// # Errors
    /// [`FramingError`] at the first byte that cannot stand where it does; and at once whenever it is called again.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), FramingError> {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(&bytes[at..]) {
                Ok(n) => at += n,
                Err((n, why)) => {
                    self.state = State::Broken;
                    return Err(FramingError { at: at + n, why });
                }
            }
        }
        Ok(())
    }

    /// Lets everything pass from here on: the connection speaks another protocol now.
    pub const fn pass(&mut self) {
        self.state = State::Passing;
    }

    /// Whether the bytes so far end where a request ends, body included, or none has begun.
    pub const fn is_between(&self) -> bool {
        matches!(self.state, State::Between | State::Preface(0))
    }

    /// Takes at least one byte of `bytes`, which are not empty. Gives how many it took.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, (usize, &'static str)> {
        use Section::{Head, Trailers};
        let byte = bytes[0];
        let run = |is_part: fn(u8) -> bool| bytes.iter().position(|byte| !is_part(*byte)).unwrap_or(bytes.len());
        let counted = |left: u64| usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
        let taken = match self.state {
            State::Preface(n) if byte == PREFACE[n] => {
                self.state = if n + 1 == PREFACE.len() { State::Passing } else { State::Preface(n + 1) };
                1
            }
            State::Preface(n) => {
                // Not HTTP/2: what was taken for it is looked at as what it is.
                self.state = State::Between;
                self.follow(&PREFACE[..n]).map_err(|error| (0, error.why))?;
                0
            }
            // RFC 9112 §2.2 has an empty line ignored that some clients send behind a body.
            State::Between if byte == b'\r' => self.to(State::BetweenCr),
            State::BetweenCr => self.expect(byte == b'\n', State::Between, "a CR without its LF")?,
            State::Between => {
                (self.length, self.is_chunked, self.has_host, self.is_http_10) = (None, false, false, false);
                self.expect(is_token(byte), State::Method, "no method")?
            }
            State::Method => match run(is_token) {
                0 => self.expect(byte == b' ', State::Target, "no method")?,
                n => n,
            },
            State::Target => match run(|byte| byte.is_ascii_graphic()) {
                0 => self.expect(byte == b' ', State::Version(0), "no target")?,
                n => n,
            },
            State::Version(n) => {
                const VERSION: &[u8] = b"HTTP/1.";
                let (is_right, next) = match VERSION.get(n) {
                    Some(expected) => (byte == *expected, State::Version(n + 1)),
                    None if n == VERSION.len() => {
                        self.is_http_10 = byte == b'0';
                        (matches!(byte, b'0' | b'1'), State::Version(n + 1))
                    }
                    None => (byte == b'\r', State::VersionCr),
                };
                self.expect(is_right, next, "no version of HTTP/1")?
            }
            State::VersionCr => self.expect(byte == b'\n', State::Field(Head), "a CR without its LF")?,
            State::Field(section) => match byte {
                b'\r' => self.to(State::EndCr(section)),
                b' ' | b'\t' => return Err((0, "a folded line")),
                byte => {
                    (self.name.count, self.value.count) = (0, 0);
                    if !is_token(byte) {
                        return Err((0, "a line that is no field"));
                    }
                    self.state = State::Name(section);
                    0
                }
            },
            State::Name(section) => match run(is_token) {
                0 => self.expect(byte == b':', State::Value(section), "a field's name without its colon")?,
                n => {
                    self.name.push(&bytes[..n]);
                    n
                }
            },
            State::Value(section) => match run(is_field_content) {
                0 => self.expect(byte == b'\r', State::ValueCr(section), "no part of a field")?,
                n => {
                    // Blanks before and behind do not count; those amid a value make it none of ours.
                    let part = &bytes[..n];
                    self.value.push(if self.value.count == 0 { part.trim_ascii_start() } else { part });
                    n
                }
            },
            State::ValueCr(section) => {
                if byte != b'\n' {
                    return Err((0, "a CR without its LF"));
                }
                if section == Head {
                    self.field().map_err(|why| (0, why))?;
                }
                self.to(State::Field(section))
            }
            State::EndCr(section) => {
                let next = match (section, self.is_chunked, self.length) {
                    (Trailers, ..) | (Head, false, None | Some(0)) => State::Between,
                    (Head, true, Some(_)) => return Err((0, "both Content-Length and Transfer-Encoding")),
                    (Head, true, None) if self.is_http_10 => return Err((0, "Transfer-Encoding in HTTP/1.0")),
                    (Head, true, None) => State::ChunkSize { size: 0, digits: 0 },
                    (Head, false, Some(length)) => State::Body(length),
                };
                self.expect(byte == b'\n', next, "a CR without its LF")?
            }
            State::Body(left) => {
                let n = counted(left);
                self.state = if n as u64 == left { State::Between } else { State::Body(left - n as u64) };
                n
            }
            State::ChunkSize { size, digits } => match (byte, char::from(byte).to_digit(16)) {
                (_, Some(digit)) if digits < CHUNK_DIGITS_MAX => {
                    self.to(State::ChunkSize { size: size << 4 | u64::from(digit), digits: digits + 1 })
                }
                (b'\r', _) if digits > 0 => self.to(State::ChunkCr(size)),
                (b';', _) if digits > 0 => self.to(State::ChunkExtension(size)),
                (b' ' | b'\t', _) if digits > 0 => self.to(State::ChunkBlank(size)),
                _ => return Err((0, "no size of a chunk")),
            },
            State::ChunkBlank(size) => match byte {
                b' ' | b'\t' => 1,
                _ => self.expect(byte == b';', State::ChunkExtension(size), "no size of a chunk")?,
            },
            State::ChunkExtension(size) => match run(is_field_content) {
                0 => self.expect(byte == b'\r', State::ChunkCr(size), "no part of a chunk's extension")?,
                n => n,
            },
            State::ChunkCr(size) => {
                let next = if size == 0 { State::Field(Trailers) } else { State::ChunkData(size) };
                self.expect(byte == b'\n', next, "a CR without its LF")?
            }
            State::ChunkData(left) => {
                let n = counted(left);
                self.state = if n as u64 == left { State::ChunkEnd } else { State::ChunkData(left - n as u64) };
                n
            }
            State::ChunkEnd => {
                self.expect(byte == b'\r', State::ChunkEndCr, "a chunk that does not end where it said")?
            }
            State::ChunkEndCr => {
                self.expect(byte == b'\n', State::ChunkSize { size: 0, digits: 0 }, "a CR without its LF")?
            }
            State::Passing => bytes.len(),
            State::Broken => return Err((0, "nothing that follows what is broken")),
        };
        Ok(taken)
    }

    const fn to(&mut self, state: State) -> usize {
        self.state = state;
        1
    }

    fn expect(&mut self, is_right: bool, next: State, why: &'static str) -> Result<usize, (usize, &'static str)> {
        if is_right { Ok(self.to(next)) } else { Err((0, why)) }
    }

    /// A field of the head has ended.
    fn field(&mut self) -> Result<(), &'static str> {
        if self.name.is("content-length") {
            let digits = self.value.all().map(<[u8]>::trim_ascii_end).and_then(|value| str::from_utf8(value).ok());
            let digits = digits.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = digits.and_then(|text| text.parse().ok()).ok_or("a Content-Length that is no length")?;
            if self.length.replace(length).is_some() {
                return Err("two of Content-Length");
            }
        } else if self.name.is("transfer-encoding") {
            let coding = self.value.all().map(<[u8]>::trim_ascii_end).unwrap_or_default();
            if self.is_chunked || !coding.eq_ignore_ascii_case(b"chunked") {
                return Err("a Transfer-Encoding other than chunked");
            }
            self.is_chunked = true;
        } else if self.name.is("host") && std::mem::replace(&mut self.has_host, true) {
            return Err("two of Host");
        }
        Ok(())
    }
}

/// RFC 9110 §5.6.2.
pub const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

/// What may stand in a field's value, RFC 9110 §5.5: visible characters, blanks, and bytes that are not ASCII.
pub const fn is_field_content(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || byte == b'\t'
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";

    /// What is wrong with `text`, given whole and byte by byte; nothing when it ends between requests.
    fn wrong(text: &str) -> Option<&'static str> {
        let mut whole = Framing::new();
        let at_once = whole.follow(text.as_bytes());
        let mut dripped = Framing::new();
        let one_by_one = text.bytes().enumerate().find_map(|(at, byte)| {
            let error = dripped.follow(&[byte]).err()?;
            assert_eq!(error.at, 0);
            Some((at, error.why))
        });
        assert_eq!(at_once.err().map(|error| (error.at, error.why)), one_by_one, "{text:?}");
        match one_by_one {
            Some((_, why)) => Some(why),
            None if whole.is_between() => None,
            None => Some("unfinished"),
        }
    }

    #[test]
    fn requests_as_they_should_be_pass() {
        for text in [
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "GET / HTTP/1.0\r\n\r\nGET /a?b HTTP/1.1\r\nHost:x\r\n\r\n",
            "\r\nGET / HTTP/1.1\r\nHost: \t x \t\r\nX:\r\nY: \u{e9}\r\n\r\n",
            "POST / HTTP/1.1\r\ncontent-length: 5 \r\n\r\n\0\n\r\nxGET / HTTP/1.1\r\n\r\n",
            "PRINT / HTTP/1.1\r\n\r\n",
            "PRI / HTTP/1.1\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\0",
        ] {
            assert!(matches!(wrong(text), None | Some("unfinished")), "{text:?}: {:?}", wrong(text));
            assert_eq!(wrong(text).is_some(), text.contains("2.0"), "{text:?}");
        }
        for body in ["0\r\n\r\n", "5\r\nab\0\r\n\r\n0\r\n\r\n", "00A ;x=\"y\"\r\n0123456789\r\n0;z\r\nT: u\r\n\r\n"] {
            assert_eq!(wrong(&format!("{CHUNKED}{body}{CHUNKED}{body}")), None, "{body:?}");
        }
    }

    #[test]
    fn every_leniency_that_a_request_could_be_smuggled_through_is_refused() {
        for (text, why) in [
            ("GET / HTTP/1.1\nHost: x\r\n\r\n", "no version of HTTP/1"),
            ("GET / HTTP/1.1\r\nHost: x\n\r\n", "no part of a field"),
            ("GET / HTTP/1.1\r\nHost: x\r\n\n", "a line that is no field"),
            ("GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n", "a folded line"),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", "a field's name without its colon"),
            ("GET / HTTP/1.1\r\nX: \0\r\n\r\n", "no part of a field"),
            ("GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", "a CR without its LF"),
            ("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", "two of Host"),
            ("GET  / HTTP/1.1\r\n\r\n", "no version of HTTP/1"),
            ("GET / HTTP/2.0\r\n\r\n", "no version of HTTP/1"),
            ("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "two of Content-Length"),
            ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", "a Content-Length that is no length"),
            ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", "a Content-Length that is no length"),
            ("POST / HTTP/1.1\r\nContent-Length:\r\n\r\n", "a Content-Length that is no length"),
            ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551616\r\n\r\n", "a Content-Length that is no length"),
            (
                "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
                "both Content-Length and Transfer-Encoding",
            ),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding in HTTP/1.0"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "a Transfer-Encoding other than chunked"),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: xchunked\r\n\r\n", "a Transfer-Encoding other than chunked"),
        ] {
            assert_eq!(wrong(text), Some(why), "{text:?}");
        }
        for (body, why) in [
            ("5\nbytes\r\n0\r\n\r\n", "no size of a chunk"),
            ("\r\n", "no size of a chunk"),
            ("5 \r\nbytes\r\n0\r\n\r\n", "no size of a chunk"),
            ("5;x\nbytes\r\n0\r\n\r\n", "no part of a chunk's extension"),
            ("00000000000000005\r\nbytes\r\n0\r\n\r\n", "no size of a chunk"),
            ("5\r\nbytesX0\r\n\r\n", "a chunk that does not end where it said"),
            ("5\r\nbytes\r\n0\r\n\n", "a line that is no field"),
            ("0\r\nT: u\n\r\n", "no part of a field"),
        ] {
            assert_eq!(wrong(&format!("{CHUNKED}{body}")), Some(why), "{body:?}");
        }
    }

    #[test]
    fn after_a_byte_that_is_refused_nothing_passes() {
        let mut framing = Framing::new();
        assert_eq!(framing.follow(b"GET / HTTP/1.1\n").unwrap_err().at, 14);
        assert_eq!(framing.follow(b"GET / HTTP/1.1\r\n").unwrap_err().at, 0);
    }
}
