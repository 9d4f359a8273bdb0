//! A client's line as a stream of frames: a WebSocket, or a poll, which is one message in and one out.
//!
//! What goes wrong without it: a reader that never reads stops its writer for ever, and one large message leaves its
//! buffer behind in every idle connection. So each write has a time limit, and a message's memory is given back before
//! the connection waits for the next.

use std::future::poll_fn;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{BATCH_BYTES, Frame, close, frame::Body};

/// Bytes a connection reads at once: the whole read buffer of an idle one.
pub(crate) const READ_BUFFER_BYTES: usize = 768;

/// Bytes of a WebSocket message at most: a frame of the largest size with its prefix.
pub(crate) const fn message_bytes_max(codec: Codec) -> usize {
    codec.frame_bytes_max() + 8
}

/// How long a closing connection waits for the other side to close as well. Without the wait, bytes that the peer has
/// sent meanwhile reset the connection, and it never learns why it was closed.
const LINGER: Duration = Duration::from_secs(2);

/// How long a client that sends what is not WebSocket, or too much, has to read why it is cut off.
const UNREAD_LINGER: Duration = Duration::from_millis(500);

/// Close codes of WebSocket's own (RFC 6455 §7.4.1): the peer breaks its rules, or sends text that is none.
const PROTOCOL_ERROR: u16 = 1002;
const NOT_UTF8: u16 = 1007;

/// A WebSocket message from the client.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// Frames, packed.
    Frames(Bytes),
    /// A ping or pong of WebSocket's own: a sign of life.
    Alive,
    /// Text in a subprotocol of binary messages, or the other way round.
    WrongKind,
}

/// Why a connection cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireError {
    /// The client is gone.
    Gone,
    /// It sent a message over the limit.
    TooLarge,
    /// It does not speak WebSocket.
    NotWebSocket,
    /// It sent text that is not UTF-8.
    NotUtf8,
    /// It does not read.
    SlowReader,
    /// A poll has waited as long as it may.
    Over,
}

/// The server's end of a line.
pub(crate) struct Wire {
    line: Line,
    codec: Codec,
    write_limit: Duration,
    /// The last message, kept until the socket was polled once more: tungstenite then finds its buffer shared and
    /// takes a new small one, where it would otherwise keep one as large as the largest message.
    held: Bytes,
    out: BytesMut,
}

#[expect(
    clippy::large_enum_variant,
    reason = "nearly every connection is a socket; a box would be one more allocation each"
)]
enum Line {
    Socket(WebSocket),
    Poll(Poll),
}

/// A request that waits for its answer.
struct Poll {
    /// The frames in it, until they are taken.
    asked: Option<Bytes>,
    /// When it is answered at the latest.
    until: Instant,
    /// Something was fed that is worth an answer.
    news: bool,
    answer: oneshot::Sender<PollAnswer>,
}

/// What a poll is answered.
#[derive(Debug)]
pub(crate) struct PollAnswer {
    pub(crate) frames: Bytes,
    /// The code with which a socket would have been closed.
    pub(crate) close: Option<u16>,
}

impl Wire {
    /// A socket. `write_limit`: how long one write may take.
    pub(crate) fn socket(socket: WebSocket, codec: Codec, write_limit: Duration) -> Self {
        Self::new(Line::Socket(socket), codec, write_limit)
    }

    /// A poll that holds the frames `asked` and waits for `limit` at most. The answer comes when the connection ends.
    pub(crate) fn poll(asked: Bytes, codec: Codec, limit: Duration) -> (Self, oneshot::Receiver<PollAnswer>) {
        let (answer, answered) = oneshot::channel();
        let poll = Poll { asked: Some(asked), until: Instant::now() + limit, news: false, answer };
        (Self::new(Line::Poll(poll), codec, limit), answered)
    }

    fn new(line: Line, codec: Codec, write_limit: Duration) -> Self {
        Self { line, codec, write_limit, held: Bytes::new(), out: BytesMut::new() }
    }

    /// How frames are written.
    pub(crate) fn codec(&self) -> Codec {
        self.codec
    }

    /// Whether this is a poll.
    pub(crate) fn is_poll(&self) -> bool {
        matches!(self.line, Line::Poll(_))
    }

    /// Whether this is a poll that has something to answer.
    pub(crate) fn has_answer(&self) -> bool {
        matches!(&self.line, Line::Poll(poll) if poll.news)
    }

    /// The next message. Cancelling loses nothing.
    pub(crate) async fn receive(&mut self) -> Result<Inbound, WireError> {
        if let Line::Poll(poll) = &mut self.line {
            let Some(frames) = poll.asked.take() else {
                sleep_until(poll.until).await;
                return Err(WireError::Over);
            };
            return Ok(Inbound::Frames(frames));
        }
        match self.message().await? {
            Message::Binary(message) if self.codec == Codec::Protobuf => Ok(Inbound::Frames(message)),
            Message::Text(message) if self.codec == Codec::Json => Ok(Inbound::Frames(message.into())),
            Message::Binary(_) | Message::Text(_) => Ok(Inbound::WrongKind),
            Message::Ping(_) | Message::Pong(_) => Ok(Inbound::Alive),
            Message::Close(_) => Err(WireError::Gone),
        }
    }

    /// The next message of a socket, whatever it is. Cancelling loses nothing.
    pub(super) async fn message(&mut self) -> Result<Message, WireError> {
        let Line::Socket(socket) = &mut self.line else { return Err(WireError::Over) };
        let received = poll_fn(|context| {
            let polled = socket.poll_next_unpin(context);
            if polled.is_pending() {
                self.held = Bytes::new();
            }
            polled
        });
        let message = received.await.ok_or(WireError::Gone)?.map_err(judge)?;
        // See [`Self::held`].
        match &message {
            Message::Binary(bytes) if bytes.len() > READ_BUFFER_BYTES => self.held = bytes.clone(),
            Message::Text(text) if text.len() > READ_BUFFER_BYTES => self.held = text.clone().into(),
            // Boxed: every connection would carry what only its end needs.
            Message::Close(_) => Box::pin(answer_close(socket)).await,
            _ => {}
        }
        Ok(message)
    }

    /// Adds a frame to the next write, writing first when that would become too large.
    pub(crate) async fn feed(&mut self, frame: &Frame) -> Result<(), WireError> {
        match &mut self.line {
            Line::Poll(poll) => poll.news |= is_news(frame),
            Line::Socket(_) if !self.out.is_empty() && self.out.len() + self.codec.bytes(frame) > BATCH_BYTES => {
                self.flush().await?;
            }
            Line::Socket(_) => {}
        }
        self.codec.pack(frame, &mut self.out);
        Ok(())
    }

    /// Writes what was fed, as one message. A poll writes when it ends.
    pub(crate) async fn flush(&mut self) -> Result<(), WireError> {
        if self.is_poll() || self.out.is_empty() {
            return Ok(());
        }
        let message = std::mem::take(&mut self.out).freeze();
        self.write(match self.codec {
            Codec::Protobuf => Message::Binary(message),
            Codec::Json => Message::Text(Utf8Bytes::try_from(message).expect("JSON is UTF-8")),
        })
        .await
    }

    /// Writes a message to a socket.
    pub(super) async fn write(&mut self, message: Message) -> Result<(), WireError> {
        let Line::Socket(socket) = &mut self.line else { return Ok(()) };
        match tokio::time::timeout(self.write_limit, socket.send(message)).await {
            Err(_) => Err(WireError::SlowReader),
            Ok(Err(_)) => Err(WireError::Gone),
            Ok(Ok(())) => Ok(()),
        }
    }

    /// Closes with `code`, giving the client the time to hear it.
    pub(crate) async fn close(self, code: u16, reason: &'static str) {
        let mut socket = match self.line {
            Line::Socket(socket) => socket,
            Line::Poll(poll) => return poll.end(self.out, Some(code)),
        };
        let goodbye = async {
            let frame = CloseFrame { code, reason: reason.into() };
            socket.send(Message::Close(Some(frame))).await.ok()?;
            while let Some(Ok(message)) = socket.next().await {
                if matches!(message, Message::Close(_)) {
                    return Some(());
                }
            }
            // What cannot be read as WebSocket stays unread, and would reset the connection just as well. Such a
            // socket says that it has ended from its first error on: only the client's own goodbye ends the wait.
            sleep(UNREAD_LINGER).await;
            Some(())
        };
        let _ = tokio::time::timeout(LINGER, goodbye).await;
    }

    /// Ends without a close code: a poll is answered, of a socket nobody is there to hear.
    pub(crate) fn end(self) {
        if let Line::Poll(poll) = self.line {
            poll.end(self.out, None);
        }
    }
}

impl Poll {
    fn end(self, frames: BytesMut, close: Option<u16>) {
        // Nobody waits any more when the client hung up.
        let _ = self.answer.send(PollAnswer { frames: frames.freeze(), close });
    }
}

/// Whether a frame ends a poll: what every connection begins with does not.
fn is_news(frame: &Frame) -> bool {
    !matches!(frame.body, Some(Body::Welcome(_) | Body::QueueEmpty(_) | Body::Ping(_)))
}

/// Answers the peer's Close with our own (RFC 6455 §5.5.1), which goes out when the socket is read once more.
async fn answer_close(socket: &mut WebSocket) {
    let answered = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = tokio::time::timeout(LINGER, answered).await;
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
        Some(Error::Protocol(_)) => WireError::NotWebSocket,
        Some(Error::Utf8(_)) => WireError::NotUtf8,
        _ => WireError::Gone,
    }
}

impl WireError {
    /// The close code and reason to tell the client; `None` when nobody is there to hear it.
    pub(crate) const fn close_code(self) -> Option<(u16, &'static str)> {
        match self {
            Self::Gone | Self::Over => None,
            Self::TooLarge => Some((close::TOO_LARGE, "a message is over the limit")),
            Self::NotWebSocket => Some((PROTOCOL_ERROR, "not WebSocket")),
            Self::NotUtf8 => Some((NOT_UTF8, "text that is not UTF-8")),
            Self::SlowReader => Some((close::SLOW_READER, "the client reads too slowly")),
        }
    }
}
