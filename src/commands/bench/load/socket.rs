//! The generator's WebSocket: as little of RFC 6455 as will do, so that the server is what is measured.
//!
//! Frames to the server are masked, as they must be, with a mask of zeros: the server's work is the same and the
//! generator's is less.

use std::net::Ipv4Addr;

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use waxwing_protocol::frames::{Frame, Hello, SUBPROTOCOL_PB, Welcome, Window, frame::Body, unpack};

use super::people::Person;

/// Bytes of a handshake's answer at most.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// A connection that was welcomed.
pub(super) struct Socket {
    stream: TcpStream,
    read: BytesMut,
    out: BytesMut,
}

impl Socket {
    /// Connects as `person` from `source`, with a window of `msgs`; 0 is the default one.
    pub(super) async fn connect(
        address: &str,
        source: Ipv4Addr,
        person: &Person,
        msgs: u32,
    ) -> anyhow::Result<(Self, Welcome)> {
        Self::connect_on(TcpSocket::new_v4()?, address, source, person, msgs).await
    }

    /// The same with so many bytes in the kernel, and the largest window.
    pub(super) async fn connect_narrow(
        address: &str,
        source: Ipv4Addr,
        person: &Person,
        receive_buffer: u32,
    ) -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(receive_buffer)?;
        Ok(Self::connect_on(socket, address, source, person, u32::MAX).await?.0)
    }

    async fn connect_on(
        socket: TcpSocket,
        address: &str,
        source: Ipv4Addr,
        person: &Person,
        msgs: u32,
    ) -> anyhow::Result<(Self, Welcome)> {
        socket.set_reuseaddr(true)?;
        socket.bind((source, 0).into())?;
        let mut stream = socket.connect(address.parse()?).await?;
        stream.set_nodelay(true)?;
        let token = person.token.to_text();
        let head = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: d2F4d2luZyBiZW5jaG1hcg==\r\n\
             Sec-WebSocket-Protocol: {SUBPROTOCOL_PB}\r\nAuthorization: Bearer {}\r\n\r\n",
            &*token
        );
        stream.write_all(head.as_bytes()).await?;
        let mut read = BytesMut::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(read.len() < HEAD_BYTES_MAX, "the server's handshake does not end");
            ensure!(stream.read_buf(&mut read).await? > 0, "the server hung up during the handshake");
        };
        let answer = read.split_to(end);
        ensure!(
            answer.starts_with(b"HTTP/1.1 101"),
            "no WebSocket: {}",
            String::from_utf8_lossy(&answer).lines().next().unwrap_or_default()
        );
        let mut socket = Self { stream, read, out: BytesMut::new() };
        let hello = Hello {
            account: Bytes::copy_from_slice(person.account.as_bytes()),
            device: person.token.device.get(),
            reg_id: person.reg_id(),
            client: "bench".into(),
            window: Some(Window { msgs, bytes: 0 }),
            foreground: false,
            ..Hello::default()
        };
        socket.put(&Frame::with_id(1, Body::Hello(hello)));
        socket.flush().await?;
        loop {
            for frame in socket.frames().await? {
                match frame.body {
                    Some(Body::Welcome(welcome)) => return Ok((socket, welcome)),
                    Some(Body::Error(error)) => bail!("not welcomed: {}", error.message),
                    _ => {}
                }
            }
        }
    }

    /// Adds a frame to the next message.
    pub(super) fn put(&mut self, frame: &Frame) {
        frame.pack(&mut self.out);
    }

    /// Whether something waits to be written.
    pub(super) fn has_more(&self) -> bool {
        !self.out.is_empty()
    }

    /// Writes what was put, as one message.
    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        let message = self.out.split();
        if message.is_empty() {
            return Ok(());
        }
        let mut frame = BytesMut::with_capacity(message.len() + 14);
        frame.put_u8(0x82);
        match message.len() {
            len @ 0..126 => frame.put_u8(0x80 | u8::try_from(len).context("below 126")?),
            len @ 126..65_536 => {
                frame.put_u8(0x80 | 126);
                frame.put_u16(u16::try_from(len).context("below 65,536")?);
            }
            len => {
                frame.put_u8(0x80 | 127);
                frame.put_u64(len as u64);
            }
        }
        frame.put_u32(0);
        frame.extend_from_slice(&message);
        self.stream.write_all(&frame).await?;
        Ok(())
    }

    /// The frames of the next message. Cancelling loses nothing.
    pub(super) async fn frames(&mut self) -> anyhow::Result<Vec<Frame>> {
        loop {
            if let Some(mut message) = self.message()? {
                let mut frames = Vec::new();
                while let Some(frame) = unpack(&mut message)? {
                    frames.push(frame);
                }
                return Ok(frames);
            }
            self.read.reserve(16 * 1024);
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the server hung up");
        }
    }

    /// Takes a whole message off what was read.
    fn message(&mut self) -> anyhow::Result<Option<Bytes>> {
        let Some([first, second]) = self.read.first_chunk::<2>().copied() else { return Ok(None) };
        let (head, len) = match second & 0x7f {
            126 => match self.read.get(2..4) {
                Some(len) => (4, usize::from(u16::from_be_bytes(len.try_into()?))),
                None => return Ok(None),
            },
            127 => match self.read.get(2..10) {
                Some(len) => (10, usize::try_from(u64::from_be_bytes(len.try_into()?))?),
                None => return Ok(None),
            },
            len => (2, usize::from(len)),
        };
        if self.read.len() < head + len {
            return Ok(None);
        }
        self.read.advance(head);
        let body = self.read.split_to(len).freeze();
        match first {
            0x82 => Ok(Some(body)),
            0x88 => bail!("the server closed: {:?}", body.get(..2).map(|code| u16::from_be_bytes([code[0], code[1]]))),
            _ => bail!("a WebSocket frame of kind {first:#x}"),
        }
    }
}
