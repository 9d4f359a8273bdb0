//! Bytes to a socket by the fewest system calls and copies: one `writev` for what is in memory, `sendfile` for what is in
//! a file.

use std::io::{self, IoSlice};
use std::time::Instant;

use bytes::Bytes;
use rustix::net::{SendFlags, sockopt};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::disk::Lease;

/// Pieces of one `writev` at most: those of a slice and its head.
const PIECES_MAX: usize = 32;

/// Bytes of one `sendfile` at most, so that one fast reader does not keep a thread from the others.
const SENDFILE_BYTES_MAX: u64 = 2 << 20;

/// Sends `head` and `pieces` behind it. Gives by `sent` how many bytes of the pieces went.
pub(super) async fn send_pieces(stream: &TcpStream, head: &[u8], pieces: &[Bytes], sent: &mut u64) -> io::Result<()> {
    let (mut at, mut offset) = (0, 0);
    let piece = |at: usize| if at == 0 { head } else { &pieces[at - 1] };
    while at <= pieces.len() {
        if offset == piece(at).len() {
            (at, offset) = (at + 1, 0);
            continue;
        }
        let mut n = stream
            .async_io(Interest::WRITABLE, || {
                let mut slices = [IoSlice::new(&[]); PIECES_MAX];
                let count = (pieces.len() + 1 - at).min(PIECES_MAX);
                for (n, slice) in slices[..count].iter_mut().enumerate() {
                    *slice = IoSlice::new(if n == 0 { &piece(at)[offset..] } else { piece(at + n) });
                }
                Ok(rustix::io::writev(stream, &slices[..count])?)
            })
            .await?;
        while n > 0 {
            let now = n.min(piece(at).len() - offset);
            if at > 0 {
                *sent += now as u64;
            }
            (n, offset) = (n - now, offset + now);
            if offset == piece(at).len() {
                (at, offset) = (at + 1, 0);
            }
        }
    }
    Ok(())
}

/// Sends `head`, and tells the kernel that more is to follow, so that both share their segments.
pub(super) async fn send_head(stream: &TcpStream, head: &[u8]) -> io::Result<()> {
    let mut offset = 0;
    while offset < head.len() {
        let flags = SendFlags::MORE | SendFlags::NOSIGNAL;
        let send = || Ok(rustix::net::send(stream, &head[offset..], flags)?);
        offset += stream.async_io(Interest::WRITABLE, send).await?;
    }
    Ok(())
}

/// A socket that sends full segments only (`TCP_CORK`), until this is dropped: then whatever is left goes out.
///
/// Of a large body each `sendfile` would end in a small segment otherwise, and each segment costs its receipt on the way back.
pub(super) struct Corked<'s>(&'s TcpStream);

impl<'s> Corked<'s> {
    /// Corks `stream`; one that cannot be is sent to as it is.
    pub(super) fn new(stream: &'s TcpStream) -> Option<Self> {
        sockopt::set_tcp_cork(stream, true).ok().map(|()| Self(stream))
    }
}

impl Drop for Corked<'_> {
    fn drop(&mut self) {
        // It only fails for what is no TCP socket; after 200 ms the kernel sends what is left by itself.
        let _ = sockopt::set_tcp_cork(self.0, false);
    }
}

/// Sends some bytes of a leased file, `left` at most, beginning at `offset`. Gives how many went: none when the lease has
/// to be renewed first.
pub(super) async fn send_file(stream: &TcpStream, lease: &Lease, offset: u64, left: u64) -> io::Result<u64> {
    let count = usize::try_from(left.min(SENDFILE_BYTES_MAX)).expect("2 MiB are a usize");
    let send = || {
        // It may have waited long for the reader.
        if Instant::now() > lease.fresh_until {
            return Ok(None);
        }
        let mut at = offset;
        Ok(Some(rustix::fs::sendfile(stream, &lease.file, Some(&mut at), count)?))
    };
    match stream.async_io(Interest::WRITABLE, send).await? {
        None => Ok(0),
        // The file is shorter than the index has it.
        Some(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(n) => Ok(n as u64),
    }
}
