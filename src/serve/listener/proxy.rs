//! The PROXY protocol, versions 1 and 2: what a load balancer says of the connection it passes on.
//!
//! Behind a load balancer every connection comes from the load balancer, and limits for each address would meet all
//! clients as one. So it writes a header before the client's first byte. Whoever else could write one could be anybody:
//! it is read only from networks that an operator named, and there it has to be.
//!
//! Promises: the parser is strict, since what two parsers read differently somebody will use; it reads not one byte
//! beyond the header; and a header has a bound.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Bytes of a header of version 1 at most, its line's end included, as the protocol says.
const LINE_BYTES_MAX: usize = 107;

/// Bytes before the addresses of version 2.
const FIXED_BYTES: usize = 16;

/// Bytes of a header of version 2 at most. Addresses take 36 and what load balancers add (a server name, an endpoint's
/// id, a client's certificate name) some hundred; the protocol would let it be 64 KiB.
const HEADER_BYTES_MAX: usize = 2048;

/// The bytes that are read first: `PROXY UNKNOWN` with its line's end, no header being shorter.
const FIRST_BYTES: usize = 15;

/// Why what came is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the connection does not begin with a PROXY header")]
    NoHeader,
    #[error("the line of version 1 is malformed")]
    Line,
    #[error("the header has an unknown version or command")]
    Command,
    #[error("the header names addresses that no TCP connection has")]
    Family,
    #[error("the header is shorter than what it should hold")]
    Short,
    #[error("the header is longer than {HEADER_BYTES_MAX} bytes")]
    Long,
}

/// What to do after what was read so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Read this many bytes more.
    Read(usize),
    /// Read to the end of the line.
    ReadLine,
    /// The header is all there: the client it names, or none when the load balancer speaks for itself.
    Done(Option<SocketAddr>),
}

/// Reads the header of a connection. Gives the client it names; none when the load balancer speaks for itself.
///
/// # Errors
/// [`Malformed`] within the error when there is none; the connection has to be closed then.
pub(super) async fn read_header(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::with_capacity(LINE_BYTES_MAX);
    loop {
        let begun = header.len();
        match next(&header).map_err(io::Error::other)? {
            Next::Done(client) => return Ok(client),
            Next::Read(bytes) => {
                header.resize(begun + bytes, 0);
                stream.read_exact(&mut header[begun..]).await?;
            }
            Next::ReadLine => {
                let mut ahead = [0; LINE_BYTES_MAX];
                let room = LINE_BYTES_MAX - begun;
                let there = stream.peek(&mut ahead[..room]).await?;
                let end = ahead[..there].iter().position(|byte| *byte == b'\n').map(|at| at + 1);
                // All of it is the line's: nothing of what follows is taken. An end of the stream is an error here.
                header.resize(begun + end.unwrap_or(there.max(1)), 0);
                stream.read_exact(&mut header[begun..]).await?;
            }
        }
    }
}

fn next(header: &[u8]) -> Result<Next, Malformed> {
    if header.len() < FIRST_BYTES {
        return Ok(Next::Read(FIRST_BYTES - header.len()));
    }
    if header.starts_with(SIGNATURE) {
        return next_of_v2(header);
    }
    if !header.starts_with(b"PROXY ") {
        return Err(Malformed::NoHeader);
    }
    match header.iter().position(|byte| *byte == b'\n') {
        Some(end) if end + 1 == header.len() => line(header).map(Next::Done).ok_or(Malformed::Line),
        // A line that ended within the first bytes, with others behind it: no line is that short.
        Some(_) => Err(Malformed::Line),
        None if header.len() < LINE_BYTES_MAX => Ok(Next::ReadLine),
        None => Err(Malformed::Line),
    }
}

/// A whole line of version 1, such as `PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n`. `None` when it is malformed,
/// `Some(None)` when it names nobody.
fn line(header: &[u8]) -> Option<Option<SocketAddr>> {
    let text = std::str::from_utf8(header.strip_suffix(b"\r\n")?).ok()?;
    let rest = text.strip_prefix("PROXY ")?;
    // What follows is to be passed over, as the protocol says.
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        return Some(None);
    }
    let mut words = rest.split(' ');
    let family = words.next()?;
    let mut address = || {
        let word = words.next()?;
        match family {
            "TCP4" => word.parse().ok().map(IpAddr::V4),
            "TCP6" => word.parse().ok().map(IpAddr::V6),
            _ => None,
        }
    };
    let (client, _server) = (address()?, address()?);
    let (client_port, _server_port) = (port(words.next()?)?, port(words.next()?)?);
    words.next().is_none().then_some(Some(SocketAddr::new(client, client_port)))
}

/// A port without a sign and without leading zeroes.
fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| is_plain)
}

fn next_of_v2(header: &[u8]) -> Result<Next, Malformed> {
    let Some((fixed, body)) = header.split_at_checked(FIXED_BYTES) else {
        return Ok(Next::Read(FIXED_BYTES - header.len()));
    };
    let body_bytes = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if FIXED_BYTES + body_bytes > HEADER_BYTES_MAX {
        return Err(Malformed::Long);
    }
    let is_local = match fixed[12] {
        0x20 => true,
        0x21 => false,
        _ => return Err(Malformed::Command),
    };
    if body.len() < body_bytes {
        return Ok(Next::Read(body_bytes - body.len()));
    }
    // A load balancer that looks whether this server lives: whatever it says of addresses means nothing.
    if is_local {
        return Ok(Next::Done(None));
    }
    let (client, extras) = match fixed[13] {
        // Unspecified: to be taken as it came.
        0x00 => (None, body),
        // TCP over IPv4: source, destination, their ports.
        0x11 => {
            let (addresses, extras) = body.split_first_chunk::<12>().ok_or(Malformed::Short)?;
            let [a, b, c, d, _, _, _, _, port @ .., _, _] = *addresses;
            (Some(SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes(port))), extras)
        }
        // TCP over IPv6.
        0x21 => {
            let (addresses, extras) = body.split_first_chunk::<36>().ok_or(Malformed::Short)?;
            let (source, _) = addresses.split_first_chunk::<16>().ok_or(Malformed::Short)?;
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            (Some(SocketAddr::new(Ipv6Addr::from(*source).into(), port)), extras)
        }
        _ => return Err(Malformed::Family),
    };
    check_extras(extras)?;
    Ok(Next::Done(client))
}

/// What a load balancer adds: type, length, value, again and again. None is needed here, but they must end where the
/// header does.
fn check_extras(mut extras: &[u8]) -> Result<(), Malformed> {
    while !extras.is_empty() {
        let ([_, high, low], rest) = extras.split_first_chunk::<3>().ok_or(Malformed::Short)?;
        let bytes = usize::from(u16::from_be_bytes([*high, *low]));
        extras = rest.get(bytes..).ok_or(Malformed::Short)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "../../../tests/fuzz/mutations.rs"]
mod mutations;

#[cfg(test)]
mod tests {
    use super::*;

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 1, 187];

    #[test]
    fn both_versions_name_the_client() {
        let four = Some("192.0.2.1:56324".parse().unwrap());
        let six = Some("[2001:db8::1]:443".parse().unwrap());
        assert_eq!(next(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n"), Ok(Next::Done(four)));
        assert_eq!(next(b"PROXY TCP6 2001:db8::1 ::2 443 0\r\n"), Ok(Next::Done(six)));
        assert_eq!(next(&v2(0x21, 0x11, &V4)), Ok(Next::Done(four)));
        // What load balancers add is passed over: an AWS endpoint's id, padding, one without a value.
        let extras = [&V4[..], &[0xEA, 0, 3, 1, 2, 3], &[0x04, 0, 0]].concat();
        assert_eq!(next(&v2(0x21, 0x11, &extras)), Ok(Next::Done(four)));
        let mut long = [0; 36];
        long[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        long[15] = 1;
        long[32..34].copy_from_slice(&443_u16.to_be_bytes());
        assert_eq!(next(&v2(0x21, 0x21, &long)), Ok(Next::Done(six)));
    }

    /// Health checks: the load balancer speaks for itself.
    #[test]
    fn who_speaks_for_itself_names_nobody() {
        for header in [
            &b"PROXY UNKNOWN\r\n"[..],
            b"PROXY UNKNOWN ffff::1 whatever 1 2\r\n",
            &v2(0x20, 0x00, &[]),
            &v2(0x20, 0x11, &V4),
            &v2(0x20, 0x55, &[1, 2, 3]),
            &v2(0x21, 0x00, &[]),
        ] {
            assert_eq!(next(header), Ok(Next::Done(None)), "{header:02x?}");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 056324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +5632 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.1 56324 443\r\n",
            "PROXY TCP4 ::1 ::2 56324 443\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4\r\nGET / HTTP/1.1\r\n",
            "PROXY UNKNOWNS\r\n",
        ] {
            assert_eq!(next(line.as_bytes()), Err(Malformed::Line), "{line:?}");
        }
        let long = format!("PROXY UNKNOWN {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(next(&long.as_bytes()[..LINE_BYTES_MAX]), Err(Malformed::Line));
        assert_eq!(next(b"GET / HTTP/1.1\r\n"), Err(Malformed::NoHeader));
        assert_eq!(next(b"proxy TCP4 192.0.2.1"), Err(Malformed::NoHeader));
        assert_eq!(next(&v2(0x22, 0x11, &V4)), Err(Malformed::Command));
        assert_eq!(next(&v2(0x11, 0x11, &V4)), Err(Malformed::Command));
        assert_eq!(next(&v2(0x21, 0x12, &V4)), Err(Malformed::Family), "UDP");
        assert_eq!(next(&v2(0x21, 0x21, &V4)), Err(Malformed::Short));
        assert_eq!(next(&v2(0x21, 0x11, &[&V4[..], &[1, 0, 9, 0]].concat())), Err(Malformed::Short));
        assert_eq!(next(&v2(0x21, 0x11, &[&V4[..], &[1, 0]].concat())), Err(Malformed::Short));
        assert_eq!(next(&v2(0x21, 0x11, &[0; HEADER_BYTES_MAX])), Err(Malformed::Long));
    }

    #[test]
    fn fuzz_proxy_headers() {
        let (v2_four, v2_local) = (v2(0x21, 0x11, &[&V4[..], &[1, 0, 1, 7]].concat()), v2(0x20, 0, &[]));
        let v2_six = v2(0x21, 0x21, &[7; 36]);
        let corpus: [&[u8]; 6] = [
            b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n",
            b"PROXY TCP6 2001:db8::1 ::2 443 0\r\n",
            b"PROXY UNKNOWN\r\n",
            &v2_four,
            &v2_six,
            &v2_local,
        ];
        mutations::fuzz("PROXY headers", &corpus, |input| {
            // As it is read: never beyond what the header needs, and within its bound.
            let mut read = 0;
            loop {
                let more = match next(&input[..read]) {
                    Ok(Next::Read(bytes)) => bytes,
                    Ok(Next::ReadLine) => {
                        let rest = &input[read..input.len().min(LINE_BYTES_MAX)];
                        rest.iter().position(|byte| *byte == b'\n').map_or(rest.len().max(1), |at| at + 1)
                    }
                    Ok(Next::Done(_)) | Err(_) => return,
                };
                read += more;
                assert!(more > 0 && read <= HEADER_BYTES_MAX);
                if read > input.len() {
                    return;
                }
            }
        });
    }
}
