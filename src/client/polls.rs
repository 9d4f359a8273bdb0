//! Polls: the frames of a socket over plain requests, for networks whose proxies let no WebSocket through.
//!
//! Each poll says Hello, carries what is to be sent, and waits at the server until there is something to tell. Nothing
//! joins two polls but the mailbox: an Ack becomes the `have` of the next Hello, and what was not acked comes again. A
//! frame to be sent does not wait for the poll under way, unless that one still owes an answer.

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::header::CONTENT_TYPE;
use waxwing_protocol::frames::{self, Frame, Hello, Lane, Ping, close, frame::Body};

use crate::ClientError;
use crate::http::{SMALL_REQUEST_TIMEOUT, Service};

/// The media type of frames as protobuf.
const MEDIA_TYPE: &str = "application/vnd.waxwing.v1.pb";

/// The code with which a socket would have been closed.
const CLOSE_HEADER: &str = "waxwing-close";

/// Bytes of an answer at most: the window, and room for the rest.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A connection made of polls.
pub(crate) struct Polls {
    service: Service,
    url: String,
    /// Said with each poll, under the id that the first one was asked with.
    hello: Option<(u32, Hello)>,
    welcomed: bool,
    /// Frames for the next poll, and whether one of them asks for an answer.
    waiting: BytesMut,
    asks: bool,
    running: Option<Running>,
}

struct Running {
    answer: BoxFuture<'static, Result<Bytes, ClientError>>,
    asks: bool,
}

impl Polls {
    /// No request is made yet.
    pub(crate) async fn new(service: &Service) -> Result<Self, ClientError> {
        let (service, url) = (service.clone(), service.api_url("/v1/poll").await?);
        let (hello, welcomed, waiting, asks, running) = (None, false, BytesMut::new(), false, None);
        Ok(Self { service, url, hello, welcomed, waiting, asks, running })
    }

    /// Takes a frame for the next poll.
    pub(crate) fn write(&mut self, frame: Frame) {
        match frame.body {
            Some(Body::Hello(hello)) => self.hello = Some((frame.id, hello)),
            Some(Body::Ack(ack)) => {
                let Some((_, hello)) = &mut self.hello else { return };
                let have = hello.have.get_or_insert_default();
                let up_to = if ack.lane() == Lane::Urgent { &mut have.urgent } else { &mut have.normal };
                *up_to = ack.up_to.max(*up_to);
            }
            _ => {
                if let (Some((_, hello)), Some(Body::PresenceSet(set))) = (&mut self.hello, &frame.body) {
                    hello.foreground = set.foreground;
                }
                self.asks |= frame.id > 0;
                frame.pack(&mut self.waiting);
            }
        }
        // The next poll takes its place. One that owes an answer has it soon, and must not be lost.
        self.running.take_if(|running| !running.asks);
    }

    /// The next frames. Dropping the future loses none.
    pub(crate) async fn read(&mut self) -> Result<Bytes, ClientError> {
        let running = match &mut self.running {
            Some(running) => running,
            None => {
                let running = self.start();
                self.running.insert(running)
            }
        };
        let answer = (&mut running.answer).await;
        self.running = None;
        answer
    }

    /// Whether a frame is for the caller: of the Welcomes only the first is.
    pub(crate) fn is_news(&mut self, frame: &Frame) -> bool {
        let Some(Body::Welcome(welcome)) = &frame.body else { return true };
        if let Some((_, hello)) = &mut self.hello {
            let have = hello.have.get_or_insert_default();
            if have.epoch != welcome.epoch {
                *have = frames::Have { epoch: welcome.epoch, ..frames::Have::default() };
            }
        }
        !std::mem::replace(&mut self.welcomed, true)
    }

    fn start(&mut self) -> Running {
        let mut body = BytesMut::new();
        if let Some((id, hello)) = &self.hello {
            Frame::with_id(*id, Body::Hello(hello.clone())).pack(&mut body);
        }
        if !self.welcomed {
            // Its Pong is something to tell: the first poll is answered at once.
            Frame::push(Body::Ping(Ping { nonce: 0 })).pack(&mut body);
        }
        body.extend_from_slice(&std::mem::take(&mut self.waiting));
        let (service, url) = (self.service.clone(), self.url.clone());
        let first = !self.welcomed;
        let answer = Box::pin(async move { poll(&service, &url, body.freeze(), first).await });
        Running { answer, asks: std::mem::take(&mut self.asks) }
    }
}

async fn poll(service: &Service, url: &str, body: Bytes, first: bool) -> Result<Bytes, ClientError> {
    let request = service.authorized(service.http().post(url)).header(CONTENT_TYPE, MEDIA_TYPE).body(body);
    // The server waits for 25 s, and has as long as for any request to answer.
    let request = request.timeout(SMALL_REQUEST_TIMEOUT * 2);
    let response = request.send().await.map_err(|source| service.unreachable(source))?;
    let close = response.headers().get(CLOSE_HEADER).and_then(|code| code.to_str().ok()?.parse::<u16>().ok());
    let framed = response.headers().get(CONTENT_TYPE).is_some_and(|it| it == MEDIA_TYPE);
    if !framed {
        return Err(service.refusal(response).await);
    }
    let frames = service.body(response, ANSWER_BYTES_MAX).await?;
    match close {
        // What came with it counts: the first Hello refused has its reason there, a draining server its answers.
        Some(code) if code != 1000 && (frames.is_empty() || !(first || code == close::DRAINING)) => {
            let reason = "the poll was ended".to_owned();
            Err(ClientError::Closed { server: service.server().to_owned(), code, reason })
        }
        _ => Ok(frames),
    }
}
