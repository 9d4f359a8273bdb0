//! The lines that a client can have: a socket in either subprotocol, or polls. The same tests run over each.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{Deliver, Frame, Have, Hello, Lane, Welcome, frame::Body};

use crate::client::CloseCode;

/// How a client speaks to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Socket(Codec),
    Poll(Codec),
}

impl Transport {
    pub fn codec(self) -> Codec {
        match self {
            Self::Socket(codec) | Self::Poll(codec) => codec,
        }
    }
}

tokio::task_local! {
    /// The transport of the test that runs.
    pub static TRANSPORT: Transport;
}

/// The transport of the test that runs; protobuf on a socket when it names none.
pub fn current() -> Transport {
    TRANSPORT.try_with(|transport| *transport).unwrap_or(Transport::Socket(Codec::Protobuf))
}

/// Makes tests of functions, one for each transport.
macro_rules! on_every_transport {
    ($($name:ident),* $(,)?) => {
        $crate::transport::on_transport!(protobuf, Socket(Protobuf), $($name),*);
        $crate::transport::on_transport!(json, Socket(Json), $($name),*);
        $crate::transport::on_transport!(poll, Poll(Protobuf), $($name),*);
        $crate::transport::on_transport!(json_poll, Poll(Json), $($name),*);
    };
}

/// The same for sockets alone: for what holds within one connection.
macro_rules! on_both_sockets {
    ($($name:ident),* $(,)?) => {
        $crate::transport::on_transport!(protobuf_only, Socket(Protobuf), $($name),*);
        $crate::transport::on_transport!(json_only, Socket(Json), $($name),*);
    };
}

macro_rules! on_transport {
    ($module:ident, $kind:ident($codec:ident), $($name:ident),*) => {
        mod $module {
            $(#[tokio::test]
            async fn $name() {
                use waxwing_protocol::frames::codec::Codec;
                use $crate::transport::{TRANSPORT, Transport};
                TRANSPORT.scope(Transport::$kind(Codec::$codec), Box::pin(super::$name())).await;
            })*
        }
    };
}

pub(crate) use {on_both_sockets, on_every_transport, on_transport};

/// A client's end.
pub enum Line {
    Socket(Box<WebSocketStream<TcpStream>>, Codec),
    Poll(Box<Polls>),
}

/// Polls, one after the other: Hello again each time, and what has come again is left out.
pub struct Polls {
    address: SocketAddr,
    authorization: Option<String>,
    codec: Codec,
    hello: Option<Hello>,
    /// Frames for the next poll.
    waiting: BytesMut,
    /// The highest seq seen of each lane.
    seen: [u64; 2],
    welcomed: bool,
    closed: Option<CloseCode>,
}

impl Line {
    pub fn poll(address: SocketAddr, authorization: Option<String>, codec: Codec) -> Self {
        let (hello, waiting, seen, welcomed, closed) = (None, BytesMut::new(), [0; 2], false, None);
        Self::Poll(Box::new(Polls { address, authorization, codec, hello, waiting, seen, welcomed, closed }))
    }

    pub async fn put(&mut self, frame: Frame) {
        match self {
            Self::Socket(socket, codec) => {
                let mut out = BytesMut::new();
                codec.pack(&frame, &mut out);
                let message = match codec {
                    Codec::Protobuf => Message::Binary(out.freeze()),
                    Codec::Json => Message::Text(Utf8Bytes::try_from(out.freeze()).unwrap()),
                };
                let _ = socket.send(message).await;
            }
            Self::Poll(polls) => polls.put(&frame),
        }
    }

    /// More frames, or how it ended.
    pub async fn receive(&mut self) -> Result<Vec<Frame>, CloseCode> {
        let (mut message, codec) = match self {
            Self::Poll(polls) => return polls.receive().await,
            Self::Socket(socket, codec) => match socket.next().await {
                Some(Ok(Message::Binary(message))) if *codec == Codec::Protobuf => (message, *codec),
                Some(Ok(Message::Text(message))) if *codec == Codec::Json => (message.into(), *codec),
                Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
                Some(Ok(Message::Binary(_) | Message::Text(_))) => panic!("a message of the other subprotocol"),
                Some(Ok(_)) => return Ok(Vec::new()),
                Some(Err(_)) | None => return Err(None),
            },
        };
        Ok(frames(codec, &mut message))
    }
}

fn frames(codec: Codec, message: &mut Bytes) -> Vec<Frame> {
    std::iter::from_fn(|| codec.unpack(message).unwrap()).collect()
}

impl Polls {
    fn put(&mut self, frame: &Frame) {
        match &frame.body {
            // Said anew with each poll.
            Some(Body::Hello(hello)) => self.hello = Some(hello.clone()),
            Some(Body::Ack(ack)) => {
                let have = self.hello.as_mut().unwrap().have.get_or_insert_default();
                let up_to = if ack.lane() == Lane::Urgent { &mut have.urgent } else { &mut have.normal };
                *up_to = ack.up_to.max(*up_to);
            }
            _ => self.codec.pack(frame, &mut self.waiting),
        }
    }

    async fn receive(&mut self) -> Result<Vec<Frame>, CloseCode> {
        if let Some(code) = self.closed {
            return Err(code);
        }
        let mut body = BytesMut::new();
        self.codec.pack(&Frame::with_id(99, Body::Hello(self.hello.clone().unwrap())), &mut body);
        body.extend_from_slice(&std::mem::take(&mut self.waiting));
        let Answer { status, close, mut body, .. } =
            post(self.address, self.authorization.as_deref(), self.codec.media_type(), &body).await;
        assert_eq!(status == 200, close.is_none_or(|code| code == 1000), "{status} {close:?}");
        self.closed = close.map(Some);
        let mut fresh = Vec::new();
        for frame in frames(self.codec, &mut body) {
            match frame.body {
                Some(Body::Welcome(welcome)) => fresh.extend(self.welcome(welcome)),
                Some(Body::Deliver(deliver)) => fresh.extend(self.unseen(deliver)),
                _ => fresh.push(frame),
            }
        }
        if fresh.iter().all(|frame| matches!(frame.body, Some(Body::QueueEmpty(_)))) {
            // Only what is not acked: asked again at once, it would come again at once.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(fresh)
    }

    /// The first Welcome is news.
    fn welcome(&mut self, welcome: Welcome) -> Option<Frame> {
        let have = &mut self.hello.as_mut().unwrap().have;
        let have = have.get_or_insert_default();
        if have.epoch != welcome.epoch {
            *have = Have { epoch: welcome.epoch, ..Have::default() };
        }
        let first = !std::mem::replace(&mut self.welcomed, true);
        first.then(|| Frame::with_id(99, Body::Welcome(welcome)))
    }

    fn unseen(&mut self, mut deliver: Deliver) -> Option<Frame> {
        let seen = &mut self.seen[usize::from(deliver.lane() == Lane::Urgent)];
        deliver.envelopes.retain(|envelope| envelope.seq > *seen);
        *seen = deliver.envelopes.last()?.seq;
        Some(Frame::push(Body::Deliver(deliver)))
    }
}

/// What a poll was answered.
pub struct Answer {
    pub status: u16,
    pub close: Option<u16>,
    pub retry_after: Option<u32>,
    pub body: Bytes,
}

/// One poll, on a connection of its own.
pub async fn post(address: SocketAddr, authorization: Option<&str>, media_type: &str, body: &[u8]) -> Answer {
    let authorization = authorization.map_or_else(String::new, |value| format!("authorization: {value}\r\n"));
    let head = format!(
        "POST /v1/poll HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{authorization}content-type: {media_type}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head") + 4;
    let head = std::str::from_utf8(&answer[..end]).unwrap().to_lowercase();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.map(|value| value.trim().to_owned())
    };
    assert_eq!(header("content-length").unwrap().parse::<usize>().unwrap(), answer.len() - end);
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let close = header("waxwing-close").map(|code| code.parse().unwrap());
    let retry_after = header("retry-after").map(|seconds| seconds.parse().unwrap());
    Answer { status, close, retry_after, body: Bytes::copy_from_slice(&answer[end..]) }
}
