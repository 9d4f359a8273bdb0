//! The socket: frames to and from the messaging service, over WebSocket (RFC 6455), or over polls where a proxy on the
//! way does not let one through.
//!
//! A connection can die without a word: a phone leaves its network, a node loses power. Without a heartbeat the client
//! would wait for messages that nobody sends any more. So silence is answered by a Ping, and silence of 2.5 heartbeats
//! ends the connection with an error; the caller decides when to connect again.
//!
//! The handshake is made by the same HTTP client as every other request, so that proxies, trusted roots and time limits
//! are the same; only after it do frames flow.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, HeaderName, StatusCode};
use reqwest::Upgraded;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use waxwing_protocol::frames::{
    self, BATCH_BYTES, Bye, ErrorCode, FRAME_BYTES_MAX, Frame, Have, Hello, Ping, Pong, SUBPROTOCOL_PB, Welcome,
    Window, close, frame::Body,
};

use crate::account::{device_keys, me};
use crate::http::{NO_DETAILS, SMALL_REQUEST_TIMEOUT, Service};
use crate::polls::Polls;
use crate::{Client, ClientError};

/// How long a reply to a frame may take.
pub(crate) const REPLY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long written bytes may stay unacknowledged by the peer's network (RFC 5482): a write on a half-open socket fails
/// early instead of after a quarter of an hour.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// The heartbeat until the server names one, and bounds for what it names.
const HEARTBEAT: Duration = Duration::from_secs(55);
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);
const HEARTBEAT_MAX: Duration = Duration::from_secs(600);

/// Bytes read at once. The default of 128 KiB is meant for bulk.
const READ_BUFFER_BYTES: usize = 4096;

/// An open connection whose Hello was answered.
pub(crate) struct Socket {
    line: Line,
    server: String,
    /// What is left of the last WebSocket message.
    batch: Bytes,
    last_id: u32,
    heartbeat: Duration,
    heard_at: Instant,
    /// A Ping went out since the server was last heard.
    pinged: bool,
}

/// What frames travel over.
enum Line {
    Ws(Box<WebSocketStream<Upgraded>>),
    Polls(Box<Polls>),
}

impl Socket {
    /// Connects as this device, and says what it holds, how much it takes, whether a person is looking, and which
    /// connection it goes on with: the `resume_token` of that one's Welcome, or nothing.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Refused`] or [`ClientError::Closed`].
    pub(crate) async fn connect(
        client: &Client,
        have: Option<Have>,
        window: Window,
        foreground: bool,
        resume_token: Bytes,
    ) -> Result<(Self, Welcome), ClientError> {
        let hello = client.profile.read(|tx| {
            let (row, device) = (me(tx)?, device_keys(tx)?.device());
            Ok(Hello {
                // The token travels in the Authorization header.
                token: String::new(),
                account: row.account.as_bytes().to_vec().into(),
                device: device.id.get(),
                reg_id: device.reg_id,
                client: concat!("waxwing/", env!("CARGO_PKG_VERSION")).to_owned(),
                features: Vec::new(),
                have,
                window: Some(window),
                foreground,
                resume_token: resume_token.clone(),
                ..Hello::default()
            })
        })?;
        let service = &client.service;
        let open = timeout(SMALL_REQUEST_TIMEOUT, handshake(service)).await;
        let line = match open.map_err(|_| service.lost("the handshake took too long"))? {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .read_buffer_size(READ_BUFFER_BYTES)
                    .write_buffer_size(0)
                    .max_message_size(Some(FRAME_BYTES_MAX + BATCH_BYTES))
                    .max_frame_size(Some(FRAME_BYTES_MAX + BATCH_BYTES));
                let ws = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
                Line::Ws(Box::new(ws))
            }
            Err(refused) if is_by_proxy(&refused) => {
                tracing::info!("no WebSocket gets through ({refused}): polling instead");
                Line::Polls(Box::new(Polls::new(service).await?))
            }
            Err(error) => return Err(error),
        };
        let mut socket = Self {
            line,
            server: service.server().to_owned(),
            batch: Bytes::new(),
            last_id: 0,
            heartbeat: HEARTBEAT,
            heard_at: Instant::now(),
            pinged: false,
        };
        match socket.request(Body::Hello(hello)).await? {
            Body::Welcome(welcome) => {
                let named = Duration::from_secs(welcome.heartbeat_s.into());
                socket.heartbeat = named.clamp(HEARTBEAT_MIN, HEARTBEAT_MAX);
                Ok((socket, welcome))
            }
            // The close that follows would say the same, if it gets through.
            Body::Error(error) => Err(refused(service, &error)),
            _ => Err(service.nonsense("Hello answered by another frame")),
        }
    }

    /// Sends a frame that asks for no reply.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the connection is gone.
    pub(crate) async fn push(&mut self, body: Body) -> Result<(), ClientError> {
        self.write(Frame::push(body)).await
    }

    /// Sends a frame and gives the id that its reply will carry.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the connection is gone.
    pub(crate) async fn ask(&mut self, body: Body) -> Result<u32, ClientError> {
        self.last_id = self.last_id.checked_add(1).unwrap_or(1);
        self.write(Frame::with_id(self.last_id, body)).await?;
        Ok(self.last_id)
    }

    /// Sends a frame and waits for its reply. For connections that do nothing else: pushes meanwhile are dropped, and
    /// since they are not acknowledged, the server keeps them.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Closed`].
    pub(crate) async fn request(&mut self, body: Body) -> Result<Body, ClientError> {
        let deadline = Instant::now() + REPLY_TIMEOUT;
        let id = self.ask(body).await?;
        loop {
            let frame = timeout_at(deadline, self.next()).await.map_err(|_| self.lost("no reply"))??;
            if let (true, Some(body)) = (frame.id == id, frame.body) {
                return Ok(body);
            }
        }
    }

    /// The next frame from the server; Pings are answered on the way. Dropping the future loses no frame.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] when the connection is gone or silent, [`ClientError::Closed`] when the server
    /// closed it, [`ClientError::Nonsense`] when it sends what is no frame.
    pub(crate) async fn next(&mut self) -> Result<Frame, ClientError> {
        loop {
            let frame = frames::unpack(&mut self.batch).map_err(|error| self.nonsense(error.to_string()))?;
            match frame {
                Some(Frame { body: Some(Body::Ping(Ping { nonce })), .. }) => {
                    self.push(Body::Pong(Pong { nonce })).await?;
                    continue;
                }
                Some(Frame { body: Some(Body::Pong(_)), .. }) => continue,
                Some(frame) => {
                    if let Line::Polls(polls) = &mut self.line
                        && !polls.is_news(&frame)
                    {
                        continue;
                    }
                    return Ok(frame);
                }
                None => {}
            }
            let ws = match &mut self.line {
                Line::Ws(ws) => ws,
                Line::Polls(polls) => {
                    // Each poll has a time limit of its own, which is all the heartbeat it needs.
                    self.batch = polls.read().await?;
                    continue;
                }
            };
            let silence = if self.pinged { self.heartbeat.mul_f32(2.5) } else { self.heartbeat };
            let message = match timeout_at(self.heard_at + silence, ws.next()).await {
                Ok(Some(message)) => message.map_err(|error| self.broken(error))?,
                Ok(None) => return Err(self.lost("the connection ended")),
                Err(_) if self.pinged => return Err(self.lost("the server is silent")),
                Err(_) => {
                    self.pinged = true;
                    self.push(Body::Ping(Ping { nonce: 0 })).await?;
                    continue;
                }
            };
            (self.heard_at, self.pinged) = (Instant::now(), false);
            match message {
                Message::Binary(batch) => self.batch = batch,
                Message::Close(close) => return Err(self.closed(close)),
                Message::Text(_) => return Err(self.nonsense("a text message".to_owned())),
                // WebSocket's own pings are answered by the library.
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
            }
        }
    }

    /// Says goodbye. Best effort: everything that matters was acknowledged before.
    pub(crate) async fn bye(mut self) {
        if let Line::Polls(_) = self.line {
            // The next poll says what this one stored; nobody waits for it meanwhile.
            return;
        }
        let goodbye = async {
            self.push(Body::Bye(Bye { reason: "done".to_owned() })).await?;
            while self.next().await.is_ok() {}
            Ok::<_, ClientError>(())
        };
        let _ = timeout(HEARTBEAT_MIN, goodbye).await;
    }

    async fn write(&mut self, frame: Frame) -> Result<(), ClientError> {
        match &mut self.line {
            Line::Ws(ws) => ws.send(Message::Binary(frame.to_message())).await.map_err(|error| self.broken(error)),
            Line::Polls(polls) => {
                polls.write(frame);
                Ok(())
            }
        }
    }

    fn broken(&self, error: WsError) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source: error.into() }
    }

    fn lost(&self, why: &'static str) -> ClientError {
        ClientError::Unreachable { server: self.server.clone(), source: why.into() }
    }

    pub(crate) fn nonsense(&self, what: String) -> ClientError {
        ClientError::Nonsense { server: self.server.clone(), what }
    }

    fn closed(&self, close: Option<CloseFrame>) -> ClientError {
        match close {
            Some(CloseFrame { code, .. }) if u16::from(code) == close::UNAUTHENTICATED => {
                ClientError::Removed { server: self.server.clone() }
            }
            Some(CloseFrame { code, reason }) => {
                ClientError::Closed { server: self.server.clone(), code: code.into(), reason: reason.to_string() }
            }
            None => self.lost("the connection was closed"),
        }
    }
}

/// Whether an upgrade was refused by something on the way that does not know Waxwing: the service gives its reasons.
fn is_by_proxy(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if problem.slug() == NO_DETAILS)
}

/// What a refused Hello means: that trying again is useless, unless it says otherwise.
fn refused(service: &Service, error: &frames::Error) -> ClientError {
    let code = match error.code() {
        ErrorCode::Unauthenticated => return ClientError::Removed { server: service.server().to_owned() },
        ErrorCode::RateLimited | ErrorCode::Unavailable | ErrorCode::Internal => close::DRAINING,
        _ => close::REFUSED,
    };
    ClientError::Closed { server: service.server().to_owned(), code, reason: error.message.clone() }
}

/// Whether a WebSocket gets through.
pub(crate) enum Handshake {
    /// It does.
    Open,
    /// Something on the way refuses it, so that polls are used instead.
    Proxied(ClientError),
}

/// Tries the upgrade and leaves it at that: without a Hello it displaces no connection.
///
/// # Errors
/// Those of connecting.
pub(crate) async fn try_handshake(service: &Service) -> Result<Handshake, ClientError> {
    let open = timeout(SMALL_REQUEST_TIMEOUT, handshake(service)).await;
    match open.map_err(|_| service.lost("the handshake took too long"))? {
        Ok(_) => Ok(Handshake::Open),
        Err(refused) if is_by_proxy(&refused) => Ok(Handshake::Proxied(refused)),
        Err(error) => Err(error),
    }
}

/// Asks for the upgrade and checks that it was understood (RFC 6455 §4.1).
async fn handshake(service: &Service) -> Result<Upgraded, ClientError> {
    let socket_url = &service.info().await?.socket_url;
    let url = match socket_url.split_once("://") {
        Some(("ws", rest)) => format!("http://{rest}"),
        Some(("wss", rest)) => format!("https://{rest}"),
        _ => return Err(ClientError::Address { address: socket_url.clone() }),
    };
    // An upgrade needs HTTP/1.1 and a connection of its own.
    let http = reqwest::Client::builder().http1_only();
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let http = http.tcp_user_timeout(USER_TIMEOUT);
    let http = http.tcp_nodelay(true).build().map_err(|source| service.unreachable(source))?;
    let key = generate_key();
    let request = http
        .get(&url)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_VERSION, "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL_PB);
    let response = service.authorized(request).send().await.map_err(|source| service.unreachable(source))?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(service.refusal(response).await);
    }
    let is = |name: &HeaderName, value: &str, headers: &HeaderMap| headers.get(name).is_some_and(|it| it == value);
    if !is(&SEC_WEBSOCKET_ACCEPT, &derive_accept_key(key.as_bytes()), response.headers())
        || !is(&SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL_PB, response.headers())
    {
        return Err(service.nonsense("a handshake for another key or subprotocol"));
    }
    response.upgrade().await.map_err(|source| service.unreachable(source))
}
