//! A client that speaks the wire and hides nothing of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::SinkExt as _;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error as WsError, Message, handshake::client::Request};
use waxwing_protocol::MsgId;
use waxwing_protocol::frames::{
    Ack, Class, Deliver, DeviceBody, Direct, Envelope, Error, Frame, Have, Hello, Lane, Ping, QueueEmpty, Send,
    SendResult, SeqRange, Urgency, Welcome, Window, frame::Body, send,
};

use crate::node::{Person, TestNode};
use crate::transport::{Line, Transport, current};

/// How a socket ended: its close code, `None` when it was just cut.
pub type CloseCode = Option<u16>;

/// An upgrade request as a good client sends it.
pub fn upgrade(address: SocketAddr, token: Option<&str>) -> Request {
    let mut request = format!("ws://{address}/v1/ws").into_client_request().unwrap();
    let subprotocol = current().codec().subprotocol();
    request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
    if let Some(token) = token {
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}

/// A Hello as a good client says it.
pub fn hello(person: &Person) -> Hello {
    Hello {
        account: Bytes::copy_from_slice(person.account.as_bytes()),
        device: person.token.device.get(),
        reg_id: person.reg_id,
        client: "test/1".into(),
        foreground: true,
        ..Hello::default()
    }
}

/// A message to one device of somebody.
pub fn message(to: &Person, n: u64, body: &[u8]) -> Send {
    message_to(&[to], n, body)
}

/// A message to several devices of one account.
pub fn message_to(devices: &[&Person], n: u64, body: &[u8]) -> Send {
    let to = devices[0];
    let body_for = |device: &&Person| DeviceBody {
        device: device.token.device.get(),
        reg_id: device.reg_id,
        ciphertext: Bytes::copy_from_slice(body),
    };
    Send {
        msg_id: msg_id(n),
        target: Some(send::Target::Direct(Direct {
            account: Bytes::copy_from_slice(to.account.as_bytes()),
            devices: devices.iter().map(body_for).collect(),
        })),
        class: Class::Message.into(),
        urgency: Urgency::None.into(),
        ..Send::default()
    }
}

pub fn msg_id(n: u64) -> Bytes {
    let mut id = [0; 16];
    id[8..].copy_from_slice(&n.to_be_bytes());
    Bytes::copy_from_slice(MsgId::from_bytes(id).as_bytes())
}

/// The number a message was made with.
pub fn number(envelope: &Envelope) -> u64 {
    u64::from_be_bytes(*envelope.msg_id.last_chunk().unwrap())
}

/// A client on the transport of the test that runs.
pub struct Client {
    line: Line,
    frames: VecDeque<Frame>,
    /// Given by the server.
    pub welcome: Welcome,
    next_id: u32,
}

impl Client {
    /// Opens a line without saying anything.
    pub async fn open(address: SocketAddr, request: Request) -> Result<Self, WsError> {
        if let Transport::Poll(codec) = current() {
            let authorization = request.headers().get("authorization");
            let authorization = authorization.map(|value| value.to_str().unwrap().to_owned());
            return Ok(Self::of(Line::poll(address, authorization, codec)));
        }
        Self::open_on(TcpStream::connect(address).await.unwrap(), request).await
    }

    /// The same on a connection made before.
    pub async fn open_on(stream: TcpStream, request: Request) -> Result<Self, WsError> {
        let (socket, _) = tokio_tungstenite::client_async(request, stream).await?;
        Ok(Self::of(Line::Socket(Box::new(socket), current().codec())))
    }

    fn of(line: Line) -> Self {
        Self { line, frames: VecDeque::new(), welcome: Welcome::default(), next_id: 1 }
    }

    /// Connects `person` and is welcomed.
    pub async fn connect(node: &TestNode, person: &Person) -> Self {
        Self::connect_with(node, person, hello(person)).await
    }

    pub async fn connect_with(node: &TestNode, person: &Person, hello: Hello) -> Self {
        let token = person.token.to_text();
        let mut client = Self::open(node.address(), upgrade(node.address(), Some(&token))).await.unwrap();
        client.say_hello(hello).await.unwrap();
        client
    }

    pub async fn say_hello(&mut self, hello: Hello) -> Result<(), Error> {
        self.put(Frame::with_id(99, Body::Hello(hello))).await;
        match self.next().await.unwrap() {
            Frame { id: 99, body: Some(Body::Welcome(welcome)), .. } => {
                self.welcome = welcome;
                Ok(())
            }
            Frame { body: Some(Body::Error(error)), .. } => Err(error),
            other => panic!("{other:?}"),
        }
    }

    pub async fn put(&mut self, frame: Frame) {
        self.line.put(frame).await;
    }

    /// Sends a raw message. A server that has closed meanwhile is noticed at the next read.
    pub async fn put_message(&mut self, message: Message) {
        let Line::Socket(socket, _) = &mut self.line else { panic!("a poll has no messages") };
        let _ = socket.send(message).await;
    }

    /// Writes until the other side has gone, without reading anything.
    pub async fn write_until_cut(&mut self) {
        let ping = Frame::push(Body::Ping(Ping { nonce: 1 })).to_message();
        let Line::Socket(socket, _) = &mut self.line else { panic!("a poll is written once") };
        while socket.send(Message::Binary(ping.clone())).await.is_ok() {
            // Not as fast as it can: the kernel says that a peer has gone only after it was written to.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Puts a message on its way without waiting for its answer; returns the frame's id.
    pub async fn start_send(&mut self, send: Send) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        self.put(Frame::with_id(id, Body::Send(send))).await;
        id
    }

    /// Sends a message and waits for its answer, keeping whatever comes in between.
    pub async fn send(&mut self, send: Send) -> Result<SendResult, Error> {
        let id = self.start_send(send).await;
        self.answer(id).await
    }

    pub async fn answer(&mut self, id: u32) -> Result<SendResult, Error> {
        let mut passed = VecDeque::new();
        let answer = loop {
            match self.next().await.expect("the connection lives until its answer") {
                Frame { id: answered, body: Some(Body::SendResult(result)), .. } if answered == id => break Ok(result),
                Frame { id: answered, body: Some(Body::Error(error)), .. } if answered == id => break Err(error),
                other => passed.push_back(other),
            }
        };
        passed.append(&mut self.frames);
        self.frames = passed;
        answer
    }

    /// The next frame, or how the socket ended.
    pub async fn next(&mut self) -> Result<Frame, CloseCode> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Ok(frame);
            }
            self.frames.extend(self.line.receive().await?);
        }
    }

    /// Reads until the socket ends, and tells how.
    pub async fn closed(&mut self) -> CloseCode {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// The next `count` messages, whatever else comes.
    pub async fn messages(&mut self, count: usize) -> Vec<(Lane, Envelope)> {
        let mut messages = Vec::new();
        while messages.len() < count {
            if let Some(Body::Deliver(deliver)) = self.next().await.unwrap().body {
                messages.extend(unfolded(deliver));
            }
        }
        messages
    }

    /// All messages until the normal lane is empty.
    pub async fn drained(&mut self) -> (Vec<(Lane, Envelope)>, QueueEmpty) {
        let mut messages = Vec::new();
        loop {
            match self.next().await.unwrap().body {
                Some(Body::Deliver(deliver)) => messages.extend(unfolded(deliver)),
                Some(Body::QueueEmpty(empty)) if empty.lane == i32::from(Lane::Normal) => return (messages, empty),
                _ => {}
            }
        }
    }

    pub async fn ack(&mut self, lane: Lane, up_to: u64) {
        self.ack_ranges(lane, up_to, &[]).await;
    }

    pub async fn ack_ranges(&mut self, lane: Lane, up_to: u64, ranges: &[(u64, u64)]) {
        let ranges = ranges.iter().map(|(first, last)| SeqRange { first: *first, last: *last }).collect();
        self.put(Frame::push(Body::Ack(Ack { lane: lane.into(), up_to, ranges }))).await;
    }

    /// Waits until the server has looked at everything sent before, and its effects are durable: an answer to a Send
    /// comes after the commit that holds the acks before it.
    pub async fn settled(&mut self, to: &Person, n: u64) {
        self.send(message(to, n, b"settled")).await.unwrap();
    }
}

pub fn unfolded(deliver: Deliver) -> impl Iterator<Item = (Lane, Envelope)> {
    let lane = Lane::try_from(deliver.lane).unwrap();
    deliver.envelopes.into_iter().map(move |envelope| (lane, envelope))
}

/// A window of so many messages.
pub fn window(msgs: u32) -> Option<Window> {
    Some(Window { msgs, bytes: 0 })
}

pub fn have(epoch: u64, normal: u64) -> Option<Have> {
    Some(Have { epoch, normal, ..Have::default() })
}
