//! A connection: one device, one socket, one task.
//!
//! Everything a connection does happens in one loop: it reads frames, puts Sends in line, takes rows from the delivery
//! path and from the mailbox, and writes. So nothing needs a lock, what is written has an order, and an idle connection
//! costs one small task.
//!
//! Promises: a client is sent a row only when every live row below it was sent before; unacked rows never exceed its
//! window; rows go only on its Ack; a socket that says nothing for 2.5 heartbeats is closed.

mod channels;
mod flow;
mod hello;
mod replies;
mod sending;
mod summary;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::time::{Instant, Sleep, sleep_until};
use tracing::debug;
use waxwing_protocol::frames::{
    Ack, Deliver, DevicesChanged, Drain, Envelope, ErrorCode, Frame, KeysLow, Lane, Ok as Done, Ping, Pong,
    PresenceSet, PresenceUpdate, QueueEmpty, ReadMark, Send, Window, close, frame::Body, send,
};
use waxwing_protocol::{GroupId, MsgId};

use self::channels::Followed;
use self::flow::Flow;
use self::sending::Sending;
use crate::accounts::Caller;
use crate::admission::Room;
use crate::fabric::{Outbox, Route, Stop};
use crate::fault;
use crate::metrics::{closed, handles};
use crate::node::Node;
use crate::presence::Attendance;
use crate::sessions::SessionId;
use crate::store::{ACK_RANGES_MAX, AckRequest, DeviceAddress, Page, PageRequest, StoreError};
use crate::wire::{Inbound, Wire, WireError};

/// Sends of one connection that may wait for their commit. Beyond them its frames wait, and then its socket.
const SENDS_IN_FLIGHT_MAX: usize = 64;

/// How long a draining connection waits for the commits under way.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);

/// Clients of a node that goes away come back after this at the earliest: a restart takes as long.
const RECONNECT_AFTER_MS: u32 = 500;

/// The suite of [`KeysLow`]: Olm.
const SUITE_OLM: u32 = 1;

/// Serves a socket until it ends. `shown` is who showed a token with the request, if anybody.
pub(crate) fn serve(node: Arc<Node>, wire: Wire, shown: Option<Caller>) -> impl Future<Output = ()> {
    // Boxed before the task begins: what greeting needs is gone when the connection idles.
    let greeting = Box::pin(hello::greet(node, wire, shown));
    async move {
        if let Some(connection) = greeting.await {
            connection.run().await;
        }
    }
}

/// What comes of a frame that took a while: its answer, if it gets one.
type Answer = Option<Frame>;

/// A page that was read: of which lane, what, and the room it takes until it is written.
type Read = (usize, Result<Page, StoreError>, Room);

/// Something has happened.
enum Event {
    /// The connection was welcomed.
    Begun,
    Received(Result<Inbound, WireError>),
    /// The outbox has something.
    Woken,
    Answered(Answer),
    Read(Read),
    Alarm,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Nobody is there any more, or a poll has its answer.
    Gone,
    /// With a close frame.
    Close(u16, &'static str),
}

impl End {
    /// Tells the client, if anybody is there.
    pub(crate) async fn say(self, wire: Wire) {
        match self {
            Self::Close(code, reason) => {
                closed(code);
                wire.close(code, reason).await;
            }
            Self::Gone => wire.end(),
        }
    }

    fn of(error: WireError) -> Self {
        error.close_code().map_or(Self::Gone, |(code, reason)| Self::Close(code, reason))
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        Self::of(error)
    }
}

/// A welcomed connection.
pub(crate) struct Connection {
    node: Arc<Node>,
    wire: Wire,
    device: DeviceAddress,
    attendance: Attendance,
    /// Held so that it ends with the connection.
    _route: Route,
    outbox: Arc<Outbox>,
    /// Normal, urgent.
    flows: [Flow; 2],
    /// By which it can be resumed, and what it had then.
    session: SessionId,
    window: Window,
    heartbeat: Duration,
    /// Frames that were received and not looked at yet.
    inbox: Bytes,
    /// Sends and other frames whose answer takes a while.
    sending: Sending,
    followed: Followed,
    reading: Option<BoxFuture<'static, Read>>,
    heard: Instant,
    pinged: bool,
    /// Fires at the next moment that might call for a ping or an end; not moved at every sign of life.
    alarm: Pin<Box<Sleep>>,
}

impl Connection {
    #[expect(clippy::too_many_arguments, reason = "the parts of a Hello, put together in one place")]
    fn new(
        node: Arc<Node>,
        wire: Wire,
        attendance: Attendance,
        route: Route,
        outbox: Arc<Outbox>,
        flows: [Flow; 2],
        (session, window): (SessionId, Window),
        heartbeat: Duration,
        inbox: Bytes,
    ) -> Self {
        let heard = Instant::now();
        let alarm = Box::pin(sleep_until(heard + heartbeat));
        let (sending, followed, reading, pinged) = (Sending::default(), None, None, false);
        Self {
            node,
            wire,
            device: attendance.connection().device,
            attendance,
            _route: route,
            outbox,
            flows,
            session,
            window,
            heartbeat,
            inbox,
            sending,
            followed,
            reading,
            heard,
            pinged,
            alarm,
        }
    }

    /// Sends Welcome.
    /// With `summary_after`, tells which conversations wait above that seq as well.
    async fn welcome(mut self: Box<Self>, welcome: Frame, summary_after: Option<u64>) -> Option<Box<Self>> {
        debug!(device = %self.device, "connected");
        if let Some(after) = summary_after {
            self.sending.push(summary::summary(self.node.clone(), self.device, after).boxed());
        }
        match self.wire.feed(&welcome).await {
            Ok(()) => Some(self),
            Err(_) => None,
        }
    }

    async fn run(mut self: Box<Self>) {
        let end = self.serve().await;
        debug!(device = %self.device, ?end, "connection ended");
        let (session, window, now) = (self.session, self.window, self.node.clock.now());
        self.node.sessions.park(self.device, session, window, now);
        Box::pin(end.say(self.into_wire())).await;
    }

    /// The socket alone. The route goes before the goodbye: nothing may be sent this way any more.
    fn into_wire(self: Box<Self>) -> Wire {
        self.wire
    }

    async fn serve(&mut self) -> End {
        let mut event = Event::Begun;
        loop {
            // Boxed, so that the task is as large as waiting needs and not as large as working does.
            if let Err(end) = Box::pin(self.advance(event)).await {
                return end;
            }
            // A poll is answered when there is something to tell and nothing under way that might soon be.
            let idle = self.sending.is_empty() && self.reading.is_none() && self.inbox.is_empty();
            if idle && self.wire.has_answer() {
                return End::Gone;
            }
            event = self.wait().await;
        }
    }

    /// Waits for something to do.
    async fn wait(&mut self) -> Event {
        tokio::select! {
            inbound = self.wire.receive(), if self.inbox.is_empty() => Event::Received(inbound),
            () = self.outbox.woken() => Event::Woken,
            Some(answer) = self.sending.next() => Event::Answered(answer),
            page = read(&mut self.reading) => {
                self.reading = None;
                Event::Read(page)
            }
            () = self.alarm.as_mut() => Event::Alarm,
        }
    }

    /// Takes what has happened, and does everything that can be done without waiting for anything but the socket to
    /// take what is written.
    async fn advance(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Begun | Event::Woken => {}
            Event::Received(inbound) => self.take_message(inbound?)?,
            Event::Answered(answer) => self.answer(answer).await?,
            Event::Read((at, page, room)) => {
                self.take_page(at, page).await?;
                // Written before the room is free for others.
                self.wire.flush().await?;
                drop(room);
            }
            Event::Alarm => {
                self.sending.rest();
                self.check_heartbeat().await?;
            }
        }
        while let Some(Some(answer)) = self.sending.next().now_or_never() {
            self.answer(answer).await?;
        }
        self.take_frames().await?;
        self.take_outbox().await?;
        self.start_reading();
        self.wire.flush().await?;
        if fault::delete_before_ack() {
            self.ack_what_was_sent();
        }
        Ok(())
    }

    /// Takes a sign of life, and the frames in it.
    fn take_message(&mut self, inbound: Inbound) -> Result<(), End> {
        (self.heard, self.pinged) = (Instant::now(), false);
        match inbound {
            Inbound::Frames(message) => self.inbox = message,
            Inbound::Alive => {}
            Inbound::WrongKind => return Err(End::Close(close::BAD_FRAME, "not the subprotocol's kind of message")),
        }
        Ok(())
    }

    /// Looks at received frames, as long as Sends have room.
    async fn take_frames(&mut self) -> Result<(), End> {
        while self.sending.len() < SENDS_IN_FLIGHT_MAX {
            match self.wire.codec().unpack(&mut self.inbox) {
                Ok(None) => break,
                Ok(Some(frame)) => self.take_frame(frame).await?,
                Err(error) => {
                    debug!(device = %self.device, %error, "malformed frame");
                    return Err(End::Close(close::BAD_FRAME, "not a frame"));
                }
            }
        }
        Ok(())
    }

    async fn take_frame(&mut self, frame: Frame) -> Result<(), End> {
        let id = frame.id;
        match frame.body {
            Some(Body::Send(send)) => self.send(id, &send).await?,
            Some(Body::Ack(ack)) => match self.ack(&ack) {
                Ok(()) => {}
                Err(message) => self.wire.feed(&replies::refusal(id, ErrorCode::BadRequest, message)).await?,
            },
            Some(Body::Window(window)) => {
                self.window = hello::granted(Some(&window));
                let credits = hello::credits(&self.window);
                for (flow, credit) in self.flows.iter_mut().zip(credits) {
                    flow.set_credit(credit);
                }
            }
            Some(Body::Ping(ping)) => {
                self.wire.feed(&Frame::with_id(id, Body::Pong(Pong { nonce: ping.nonce }))).await?;
            }
            Some(Body::Pong(_)) => {}
            Some(body @ (Body::PresenceSet(_) | Body::PresenceSub(_) | Body::Ephemeral(_))) => {
                self.take_presence(id, body).await?;
            }
            Some(Body::ChannelSub(sub)) => self.follow(id, &sub).await?,
            Some(Body::ReadMark(mark)) => self.mark_read(id, &mark).await?,
            Some(Body::Refresh(refresh)) => self.refresh(id, &refresh.token_hash).await?,
            Some(Body::Bye(_)) => {
                self.wire.flush().await?;
                return Err(End::Close(1000, "bye"));
            }
            Some(Body::Hello(_)) => {
                self.wire.feed(&replies::refusal(id, ErrorCode::BadRequest, "Hello was said already")).await?;
            }
            _ if frame.optional => {}
            _ => self.wire.feed(&replies::refusal(id, ErrorCode::Unsupported, "unknown frame")).await?,
        }
        Ok(())
    }

    /// Puts a Send in line; its answer comes with its commit.
    async fn send(&mut self, id: u32, send: &Send) -> Result<(), WireError> {
        if let Some(send::Target::Channel(target)) = &send.target {
            self.append(id, send, target);
            return Ok(());
        }
        match self.node.delivery.send(self.device, send, self.node.clock.now()) {
            Ok(sending) => {
                let msg_id = MsgId::from_slice(&send.msg_id).expect("delivery has checked the id");
                self.sending.push(sending.map(move |outcome| Some(replies::send_result(id, msg_id, outcome))).boxed());
                Ok(())
            }
            Err(refused) => self.wire.feed(&replies::send_refusal(id, refused)).await,
        }
    }

    /// Takes note of how far a person has seen a group's conversation.
    async fn mark_read(&mut self, id: u32, mark: &ReadMark) -> Result<(), WireError> {
        let Ok(group) = GroupId::from_slice(&mark.conv_id) else {
            return self.wire.feed(&replies::refusal(id, ErrorCode::BadRequest, "conv_id has 16 bytes")).await;
        };
        let (marked, node) = (mark.conv_seq, self.node.clone());
        let by = self.device.account;
        let marking = async move {
            let done = match node.groups.mark_read(by, group, marked).await {
                Ok(()) => Frame::with_id(id, Body::Ok(Done::default())),
                Err(failed) => replies::store_refusal(id, &failed),
            };
            (id > 0).then_some(done)
        };
        self.sending.push(marking.boxed());
        Ok(())
    }

    /// Makes another token of the device valid.
    async fn refresh(&mut self, id: u32, token_hash: &[u8]) -> Result<(), WireError> {
        let Ok(token_hash) = <[u8; 32]>::try_from(token_hash) else {
            return self.wire.feed(&replies::refusal(id, ErrorCode::BadRequest, "token_hash has 32 bytes")).await;
        };
        let (node, device) = (self.node.clone(), self.device);
        let refreshed = async move {
            Some(match node.devices.refresh(device, token_hash).await {
                Ok(true) => Frame::with_id(id, Body::Ok(Done::default())),
                Ok(false) => replies::refusal(id, ErrorCode::NotFound, "no such device"),
                Err(failed) => replies::store_refusal(id, &failed),
            })
        };
        self.sending.push(refreshed.boxed());
        Ok(())
    }

    async fn answer(&mut self, answer: Answer) -> Result<(), WireError> {
        match answer {
            Some(frame) => self.wire.feed(&frame).await,
            None => Ok(()),
        }
    }

    /// Takes a frame about presence, or for the moment.
    async fn take_presence(&mut self, id: u32, body: Body) -> Result<(), WireError> {
        let presence = &self.node.presence;
        let refused = match body {
            Body::PresenceSet(PresenceSet { foreground }) => {
                presence.set_foreground(self.attendance.connection(), foreground);
                self.set_heartbeat(self.node.config.heartbeat(foreground));
                let heartbeat_s = u32::try_from(self.heartbeat.as_secs()).unwrap_or(u32::MAX);
                return self.wire.feed(&Frame::with_id(id, Body::Ok(Done { heartbeat_s }))).await;
            }
            Body::PresenceSub(sub) => match presence.subscribe(self.attendance.connection(), &sub) {
                Ok(done) => {
                    let answer = move |done| match done {
                        Ok(()) => Frame::with_id(id, Body::Ok(Done::default())),
                        Err(refused) => replies::presence_refusal(id, &refused),
                    };
                    self.sending.push(done.map(answer).map(Some).boxed());
                    return Ok(());
                }
                Err(refused) => refused,
            },
            Body::Ephemeral(ephemeral) => match presence.ephemeral(self.device, &ephemeral) {
                Ok(passed) => {
                    self.sending.push(passed.map(|()| None).boxed());
                    return Ok(());
                }
                Err(refused) => refused,
            },
            _ => return Ok(()),
        };
        self.wire.feed(&replies::presence_refusal(id, &refused)).await
    }

    fn set_heartbeat(&mut self, heartbeat: Duration) {
        self.heartbeat = heartbeat;
        self.alarm.as_mut().reset(self.heard + heartbeat);
    }

    /// Passes an ack on, as far as it covers what was sent.
    fn ack(&mut self, ack: &Ack) -> Result<(), &'static str> {
        let lane = Lane::try_from(ack.lane).map_err(|_| "unknown lane")?;
        if ack.ranges.len() > ACK_RANGES_MAX {
            return Err("at most 64 ranges");
        }
        let ranges: Vec<_> = ack.ranges.iter().map(|range| (range.first, range.last)).collect();
        let (up_to, ranges) = self.flows[index(lane)].ack(ack.up_to, &ranges);
        self.node.fabric.acked(self.device);
        let receipts = self.node.delivery.receipts(self.node.clock.now());
        self.store_ack(AckRequest { mailbox: self.device, lane, up_to, ranges, receipts });
        Ok(())
    }

    /// Puts an ack in line. Nobody waits for it: when it is lost, the client is sent again what it has.
    fn store_ack(&self, ack: AckRequest) {
        if let Some(Err(error)) = self.node.mailboxes.ack(ack).now_or_never() {
            debug!(device = %self.device, %error, "an ack was not taken");
        }
    }

    /// The fault `delete-before-ack`: forgets rows because they were written to a socket.
    fn ack_what_was_sent(&self) {
        for flow in &self.flows {
            let (lane, up_to) = (flow.lane, flow.last_sent());
            let receipts = self.node.delivery.receipts(self.node.clock.now());
            self.store_ack(AckRequest { mailbox: self.device, lane, up_to, ranges: Vec::new(), receipts });
        }
    }

    /// Takes what the delivery path brought.
    async fn take_outbox(&mut self) -> Result<(), End> {
        let taken = self.outbox.take();
        let live = !taken.rows.is_empty();
        let mut rows = [Vec::new(), Vec::new()];
        for row in taken.rows {
            let at = index(row.lane);
            rows[at].extend(self.flows[at].offer(row.envelope));
        }
        if taken.overflowed {
            self.flows.iter_mut().for_each(Flow::missed);
        }
        // Urgent first.
        for at in [1, 0] {
            self.deliver(at, std::mem::take(&mut rows[at])).await?;
        }
        let live = live || !taken.channels.is_empty();
        Box::pin(self.tell_channels(taken.channels)).await?;
        if live {
            self.wire.flush().await?;
        }
        drop(taken.held);
        if let Some(remaining) = taken.keys_low {
            self.wire.feed(&Frame::push(Body::KeysLow(KeysLow { suite: SUITE_OLM, remaining }))).await?;
        }
        for (account, revision) in taken.devices_changed {
            let account = Bytes::copy_from_slice(account.as_bytes());
            self.wire.feed(&Frame::push(Body::DevicesChanged(DevicesChanged { account, revision }))).await?;
        }
        if !taken.presence.is_empty() {
            let items = taken.presence;
            self.wire.feed(&Frame::push(Body::PresenceUpdate(PresenceUpdate { items }))).await?;
        }
        for summary in taken.receipts {
            self.wire.feed(&Frame::push(Body::ReceiptSummary(summary))).await?;
        }
        for push in taken.ephemerals {
            self.wire.feed(&Frame::push(Body::EphemeralPush(push))).await?;
        }
        match taken.stop {
            None => Ok(()),
            Some(Stop::Displaced) => Err(End::Close(close::DISPLACED, "a newer connection of this device")),
            Some(Stop::Revoked) => Err(End::Close(close::UNAUTHENTICATED, "this device is the account's no more")),
            Some(Stop::Draining { jitter_ms }) => self.drain(jitter_ms).await,
        }
    }

    /// Answers the Sends under way and says when to come back.
    async fn drain(&mut self, jitter_ms: u32) -> Result<(), End> {
        let limit = Instant::now() + DRAIN_LIMIT;
        while !self.sending.is_empty() {
            let Ok(Some(answer)) = tokio::time::timeout_at(limit, self.sending.next()).await else { break };
            self.answer(answer).await?;
        }
        let drain = Drain { reconnect_after_ms: RECONNECT_AFTER_MS, jitter_ms };
        self.wire.feed(&Frame::push(Body::Drain(drain))).await?;
        self.wire.flush().await?;
        Err(End::Close(close::DRAINING, "the server is going away"))
    }

    /// Starts reading a page, if a lane wants one: one at a time, urgent first.
    fn start_reading(&mut self) {
        if self.reading.is_some() {
            return;
        }
        for at in [1, 0] {
            let flow = &mut self.flows[at];
            if let Some((after, msgs, bytes)) = flow.next_page() {
                let now = self.node.clock.now();
                let mut request = PageRequest { mailbox: self.device, lane: flow.lane, after, msgs, bytes, now };
                let node = self.node.clone();
                let reading = async move {
                    // There is always room some time: the budget is never closed.
                    let Some(room) = node.admission.room(bytes).await else { return std::future::pending().await };
                    request.bytes = room.bytes;
                    (at, node.mailboxes.read(request).await, room)
                };
                self.reading = Some(reading.boxed());
                return;
            }
        }
    }

    async fn take_page(&mut self, at: usize, page: Result<Page, StoreError>) -> Result<(), End> {
        let page = match page {
            Ok(page) => page,
            Err(failed) => {
                self.flows[at].page_failed();
                self.wire.feed(&replies::store_refusal(0, &failed)).await?;
                self.wire.flush().await?;
                // The client comes back later; a loop that reads again at once would only make things worse.
                return Err(End::Close(close::DRAINING, "the mailbox cannot be read"));
            }
        };
        handles().pages.increment(1);
        let rows = self.flows[at].page(page);
        self.deliver(at, rows).await
    }

    /// Writes rows, and QueueEmpty when it is due.
    async fn deliver(&mut self, at: usize, rows: Vec<Envelope>) -> Result<(), End> {
        let lane = self.flows[at].lane;
        let mut rows = rows.into_iter().peekable();
        while rows.peek().is_some() {
            let frame = Frame::push(Body::Deliver(Deliver { lane: lane.into(), envelopes: fill(&mut rows) }));
            self.wire.feed(&frame).await?;
        }
        if let Some(up_to) = self.flows[at].take_queue_empty() {
            handles().drains.increment(u64::from(up_to > 0));
            self.wire.feed(&Frame::push(Body::QueueEmpty(QueueEmpty { lane: lane.into(), up_to }))).await?;
        }
        Ok(())
    }

    /// Pings after a heartbeat of silence, ends after 2.5.
    async fn check_heartbeat(&mut self) -> Result<(), End> {
        let silence = self.heard.elapsed();
        let end = self.heartbeat * 5 / 2;
        if silence >= end {
            return Err(End::Close(close::SILENT, "silent for 2.5 heartbeats"));
        }
        if silence >= self.heartbeat && !self.pinged {
            self.pinged = true;
            let nonce = u64::from_le_bytes(crate::node::random());
            self.wire.feed(&Frame::push(Body::Ping(Ping { nonce }))).await?;
        }
        // Looked at a heartbeat from now, also after a ping: an answer to it does not move the alarm.
        let next = if self.pinged { end.min(silence + self.heartbeat) } else { self.heartbeat };
        self.alarm.as_mut().reset(self.heard + next);
        Ok(())
    }
}

/// Bytes of bodies in one Deliver frame, unless one body is larger.
const DELIVER_BYTES: usize = 48 * 1024;

/// Takes as many rows as fit a frame.
fn fill(rows: &mut std::iter::Peekable<impl Iterator<Item = Envelope>>) -> Vec<Envelope> {
    let mut bytes = 0;
    let mut filled = Vec::new();
    while let Some(row) =
        rows.next_if(|row| filled.is_empty() || bytes + row.body.len() + ROW_OVERHEAD <= DELIVER_BYTES)
    {
        bytes += row.body.len() + ROW_OVERHEAD;
        filled.push(row);
    }
    filled
}

/// Bytes of an envelope beside its body, about.
const ROW_OVERHEAD: usize = 128;

/// The page under way, or never.
async fn read(reading: &mut Option<BoxFuture<'static, Read>>) -> Read {
    match reading {
        Some(reading) => reading.await,
        None => std::future::pending().await,
    }
}

/// Where a lane stands in the arrays of two.
fn index(lane: Lane) -> usize {
    match lane {
        Lane::Normal => 0,
        Lane::Urgent => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the future that `function` returns.
    fn future_bytes<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle connection costs its task, its state, a read buffer of 768 bytes, and what hyper and tokio keep of a socket:
    /// 4 KiB are promised for all of it.
    #[test]
    fn the_task_and_the_state_of_a_connection_are_small() {
        let (task, state) = (future_bytes(serve), size_of::<Connection>());
        assert!(task + state <= 1536, "a task of {task} bytes and a state of {state}");
    }
}
