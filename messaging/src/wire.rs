//! A WebSocket as a stream of frames.
//!
//! What goes wrong without it: a reader that never reads stops its writer for ever, and one large message leaves its
//! buffer behind in every idle connection. So each write has a time limit, and a message's memory is given back before
//! the connection waits for the next.

use std::future::poll_fn;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use prost::Message as _;
use waxwing_protocol::frames::{BATCH_BYTES, FRAME_BYTES_MAX, Frame, close};

/// Bytes a connection reads at once: the whole read buffer of an idle one.
pub(crate) const READ_BUFFER_BYTES: usize = 1024;

/// Bytes of a WebSocket message at most: a frame of the largest size with its prefix.
pub(crate) const MESSAGE_BYTES_MAX: usize = FRAME_BYTES_MAX + 8;

/// How long a closing connection waits for the other side to close as well. Without the wait, bytes that the peer has
/// sent meanwhile reset the connection, and it never learns why it was closed.
const LINGER: Duration = Duration::from_secs(2);

/// A WebSocket message from the client.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// Frames, packed.
    Frames(Bytes),
    /// A ping or pong of WebSocket's own: a sign of life.
    Alive,
    /// Text, in a subprotocol of binary messages.
    Text,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The client is gone.
    Gone,
    /// It sent a message over the limit.
    TooLarge,
    /// It does not speak WebSocket.
    Malformed,
    /// It does not read.
    SlowReader,
}

/// The server's end of a socket.
pub(crate) struct Wire {
    socket: WebSocket,
    write_limit: Duration,
    /// The last message, kept until the socket was polled once more: tungstenite then finds its buffer shared and
    /// takes a new small one, where it would otherwise keep one as large as the largest message.
    held: Bytes,
    out: BytesMut,
}

impl Wire {
    /// `write_limit`: how long one write may take.
    pub(crate) fn new(socket: WebSocket, write_limit: Duration) -> Self {
        Self { socket, write_limit, held: Bytes::new(), out: BytesMut::new() }
    }

    /// The next message. Cancelling loses nothing.
    pub(crate) async fn receive(&mut self) -> Result<Inbound, WireError> {
        let received = poll_fn(|context| {
            let polled = self.socket.poll_next_unpin(context);
            if polled.is_pending() {
                self.held = Bytes::new();
            }
            polled
        });
        match received.await {
            Some(Ok(Message::Binary(message))) => {
                if message.len() > READ_BUFFER_BYTES {
                    self.held = message.clone();
                }
                Ok(Inbound::Frames(message))
            }
            Some(Ok(Message::Text(_))) => Ok(Inbound::Text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(Inbound::Alive),
            Some(Ok(Message::Close(_))) | None => Err(WireError::Gone),
            Some(Err(error)) => Err(judge(error)),
        }
    }

    /// Adds a frame to the next write, writing first when that would become too large.
    pub(crate) async fn feed(&mut self, frame: &Frame) -> Result<(), WireError> {
        if !self.out.is_empty() && self.out.len() + frame_bytes(frame) > BATCH_BYTES {
            self.flush().await?;
        }
        frame.pack(&mut self.out);
        Ok(())
    }

    /// Writes what was fed, as one message.
    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        if self.out.is_empty() {
            return Ok(());
        }
        let message = std::mem::take(&mut self.out).freeze();
        match tokio::time::timeout(self.write_limit, self.socket.send(Message::Binary(message))).await {
            Err(_) => Err(WireError::SlowReader),
            Ok(Err(_)) => Err(WireError::Gone),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Closes with `code`, giving the client the time to hear it.
    pub(crate) async fn close(mut self, code: u16, reason: &'static str) {
        let goodbye = async {
            let frame = CloseFrame { code, reason: reason.into() };
            self.socket.send(Message::Close(Some(frame))).await.ok()?;
            while let Some(Ok(_)) = self.socket.next().await {}
            Some(())
        };
        let _ = tokio::time::timeout(LINGER, goodbye).await;
    }
}

/// Bytes of a frame with its prefix, which has five bytes at most.
fn frame_bytes(frame: &Frame) -> usize {
    frame.encoded_len() + 5
}

/// What a WebSocket error says about the client.
fn judge(error: axum::Error) -> WireError {
    use tokio_tungstenite::tungstenite::Error;
    match error.into_inner().downcast_ref() {
        Some(Error::Capacity(_)) => WireError::TooLarge,
        // A client that went away without a close handshake made no mistake that anybody could be told of.
        Some(Error::Protocol(tokio_tungstenite::tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
            WireError::Gone
        }
        Some(Error::Protocol(_) | Error::Utf8(_)) => WireError::Malformed,
        _ => WireError::Gone,
    }
}

impl WireError {
    /// The close code and reason to tell the client; `None` when nobody is there to hear it.
    pub(crate) const fn close_code(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone => None,
            Self::TooLarge => Some((close::TOO_LARGE, "a message is over the limit")),
            Self::Malformed => Some((close::BAD_FRAME, "not WebSocket")),
            Self::SlowReader => Some((close::SLOW_READER, "the client reads too slowly")),
        }
    }
}
