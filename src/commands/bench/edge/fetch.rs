//! The generator: connections kept open, on each one request after the other, on one thread.
//!
//! A client that understands HTTP costs more than the hits it asks for, and then measures itself. This one knows how long
//! each answer's body is, finds the end of a head where the one before ended, and lets the kernel throw bodies away
//! (`MSG_TRUNC`). Where it has a core of its own it never sleeps: on a virtual machine being woken takes longer than a hit.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::time::Timespec;

/// Bytes received at once where the head is: a small body comes with it.
const HEAD_READ_BYTES: usize = 8 * 1024;

/// Bytes thrown away at once.
const SKIP_BYTES: usize = 4 << 20;

/// Events taken at once.
const EVENTS_MAX: usize = 256;

/// How long an answer may take before the run is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// What ends a head.
const END: &[u8] = b"\r\n\r\n";

/// What is asked, over and over.
#[derive(Clone)]
pub(super) struct Load {
    /// Whom.
    pub(super) address: SocketAddr,
    /// The requests as they are sent; each connection begins at another of them.
    pub(super) requests: Vec<Vec<u8>>,
    /// Bytes of the body of each answer.
    pub(super) body_bytes: usize,
    /// Connections.
    pub(super) connections: usize,
    /// Whether this thread has a core of its own.
    pub(super) spins: bool,
}

/// What came of it.
pub(super) struct Ran {
    /// Whole answers.
    pub(super) answers: usize,
    /// Seconds that it took.
    pub(super) took_s: f64,
    /// Share of that in which this thread had answers to take.
    pub(super) busy: f64,
}

/// A connection.
struct Connection {
    stream: TcpStream,
    /// The next request.
    next: usize,
    /// Bytes of the answer that are still to come; `None` amid its head.
    left: Option<usize>,
    head: Vec<u8>,
    /// How long the last head was: the next one is likely to be as long.
    head_bytes: usize,
}

/// Asks for `time` as fast as answers come.
pub(super) fn run(load: &Load, time: Duration) -> io::Result<Ran> {
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let mut connections = Vec::with_capacity(load.connections);
    for n in 0..load.connections {
        let stream = TcpStream::connect(load.address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll::add(&epoll, &stream, EventData::new_u64(n as u64), EventFlags::IN)?;
        let head = Vec::with_capacity(HEAD_READ_BYTES);
        connections.push(Connection { stream, next: n % load.requests.len(), left: None, head, head_bytes: 0 });
    }
    let mut skipped = Vec::with_capacity(SKIP_BYTES);
    let mut events = Vec::with_capacity(EVENTS_MAX);
    let (began, mut idle, mut quiet_since) = (Instant::now(), Duration::ZERO, Instant::now());
    let patience = if load.spins { Duration::ZERO } else { ANSWER_TIMEOUT };
    let patience = Timespec::try_from(patience).map_err(io::Error::other)?;
    for connection in &mut connections {
        connection.ask(load)?;
    }
    let mut answers = 0;
    loop {
        let now = Instant::now();
        if now - began >= time {
            break;
        }
        events.clear();
        let there = epoll::wait(&epoll, spare_capacity(&mut events), Some(&patience))?;
        if there == 0 || !load.spins {
            idle += now.elapsed();
        }
        if there > 0 {
            quiet_since = now;
        } else if now - quiet_since >= ANSWER_TIMEOUT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        for event in &events {
            let n = usize::try_from(event.data.u64()).map_err(io::Error::other)?;
            if connections[n].receive(load, &mut skipped)? {
                answers += 1;
                connections[n].ask(load)?;
            }
        }
    }
    let took_s = began.elapsed().as_secs_f64();
    Ok(Ran { answers, took_s, busy: 1.0 - idle.as_secs_f64() / took_s })
}

impl Connection {
    fn ask(&mut self, load: &Load) -> io::Result<()> {
        let request = &load.requests[self.next];
        self.next = (self.next + 1) % load.requests.len();
        // One request is under way and far smaller than a socket's buffer: it goes at once.
        let sent = rustix::net::send(&self.stream, request, rustix::net::SendFlags::NOSIGNAL)?;
        if sent < request.len() { Err(io::ErrorKind::WriteZero.into()) } else { Ok(()) }
    }

    /// Receives once. Gives whether the answer is whole.
    fn receive(&mut self, load: &Load, skipped: &mut Vec<u8>) -> io::Result<bool> {
        let received = match self.left {
            Some(_) => {
                skipped.clear();
                rustix::net::recv(&self.stream, spare_capacity(skipped), RecvFlags::TRUNC).map(|(n, _)| n)
            }
            None => {
                let room = HEAD_READ_BYTES - self.head.len();
                self.head.reserve_exact(room);
                rustix::net::recv(&self.stream, spare_capacity(&mut self.head), RecvFlags::empty()).map(|(n, _)| n)
            }
        };
        let received = match received {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let left = match self.left {
            Some(left) => left.checked_sub(received),
            None => match self.head_end()? {
                Some(end) => {
                    self.head_bytes = end;
                    let left = load.body_bytes.checked_sub(self.head.len() - end);
                    self.head.clear();
                    left
                }
                None => return Ok(false),
            },
        };
        let left = left.ok_or_else(|| io::Error::other("an answer was longer than was asked for"))?;
        self.left = (left > 0).then_some(left);
        Ok(left == 0)
    }

    /// Where the head ends, if all of it is here.
    fn head_end(&self) -> io::Result<Option<usize>> {
        if self.head.len() >= 12 && !self.head.starts_with(b"HTTP/1.1 20") {
            return Err(io::Error::other(format!("refused: {}", String::from_utf8_lossy(&self.head[..12]))));
        }
        let guessed = self.head_bytes;
        if guessed >= END.len() && self.head.get(guessed - END.len()..guessed) == Some(END) {
            return Ok(Some(guessed));
        }
        let end = self.head.windows(END.len()).position(|window| window == END);
        if end.is_none() && self.head.len() >= HEAD_READ_BYTES {
            return Err(io::Error::other("a head of more than 8 KiB"));
        }
        Ok(end.map(|at| at + END.len()))
    }
}

/// One request and its answer.
pub(super) struct Once {
    /// Seconds to the first byte of the body, and to the last.
    pub(super) first_s: f64,
    pub(super) took_s: f64,
    pub(super) body_bytes: usize,
    /// The connection, still open.
    pub(super) stream: TcpStream,
}

/// Asks once over a connection of its own.
pub(super) fn once(address: SocketAddr, request: &[u8]) -> io::Result<Once> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    let began = Instant::now();
    stream.write_all(request)?;
    let mut head = Vec::with_capacity(HEAD_READ_BYTES);
    let (body_bytes, received) = loop {
        let mut buffer = [0; HEAD_READ_BYTES];
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => head.extend_from_slice(&buffer[..n]),
        }
        let Some(end) = head.windows(END.len()).position(|window| window == END).map(|at| at + END.len()) else {
            continue;
        };
        let text = String::from_utf8_lossy(&head[..end]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 20") {
            return Err(io::Error::other(format!("refused: {}", text.lines().next().unwrap_or_default())));
        }
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        break (length.ok_or_else(|| io::Error::other("an answer without a length"))?, head.len() - end);
    };
    let mut first_s = (received > 0).then(|| began.elapsed().as_secs_f64());
    let (mut left, mut skipped) = (body_bytes - received.min(body_bytes), Vec::with_capacity(SKIP_BYTES));
    while left > 0 {
        skipped.clear();
        match rustix::net::recv(&stream, spare_capacity(&mut skipped), RecvFlags::TRUNC).map(|(n, _)| n)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => left -= n.min(left),
        }
        first_s.get_or_insert_with(|| began.elapsed().as_secs_f64());
    }
    let took_s = began.elapsed().as_secs_f64();
    Ok(Once { first_s: first_s.unwrap_or(took_s), took_s, body_bytes, stream })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// A server whose answers' heads change their length, and come in pieces.
    #[test]
    fn answers_are_told_apart_however_they_come() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut asked = [0; 3];
            for turn in 0.. {
                if stream.read_exact(&mut asked).is_err() {
                    return turn;
                }
                assert_eq!(&asked, [b"one", b"two"][turn % 2]);
                let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(turn % 3));
                let (first, second) = head.as_bytes().split_at(turn % 20);
                let parts = [first, second, b"bo", b"dy"];
                if parts.iter().any(|part| stream.write_all(part).is_err()) {
                    return turn;
                }
            }
            0
        });
        let requests = vec![b"one".to_vec(), b"two".to_vec()];
        let load = Load { address, requests, body_bytes: 4, connections: 1, spins: false };
        let ran = run(&load, Duration::from_millis(50)).unwrap();
        assert!(ran.answers > 0 && ran.answers <= server.join().unwrap());
    }

    #[test]
    fn a_refusal_is_an_error() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").unwrap();
            stream
        });
        let load = Load { address, requests: vec![b"x".to_vec()], body_bytes: 4, connections: 1, spins: false };
        let error = run(&load, Duration::from_secs(60)).err().unwrap().to_string();
        assert!(error.contains("403"), "{error}");
        drop(server.join());
    }
}
