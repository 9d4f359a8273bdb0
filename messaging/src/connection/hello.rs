//! The first frame of a connection: who speaks, what it holds, how much it takes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::debug;
use waxwing_protocol::frames::{
    DrainMode, Error, ErrorCode, FRAME_BYTES_MAX, Frame, Have, Hello, Lane, Pending, WINDOW_BYTES_DEFAULT,
    WINDOW_BYTES_MAX, WINDOW_MSGS_DEFAULT, WINDOW_MSGS_MAX, Welcome, Window, close, frame::Body,
};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Timestamp};

use super::flow::{Credit, Flow};
use super::replies::{rate_limited, refusal, store_refusal};
use super::{Connection, End, summary};
use crate::accounts::Caller;
use crate::admission::Crowded;
use crate::config::seconds;
use crate::fabric::Outbox;
use crate::metrics::{closed, refusals};
use crate::node::Node;
use crate::presence::ConnectionId;
use crate::sessions::Sessions;
use crate::store::{ACK_RANGES_MAX, AckRequest, DeviceAddress, Held, LaneView, Opened, StoreError};
use crate::wire::{Inbound, Wire};

/// Messages of the urgent lane that may be unacked at once, whatever the client's window.
const URGENT_MSGS: usize = 32;

/// What this server knows beside the first frames of the protocol.
const FEATURES: [&str; 6] = ["delivery", "coalesce", "presence", "resume", "drain-mode", summary::FEATURE];

/// How a Hello that found the line full stands in the metric of refusals.
const CROWDED: &str = "connecting";

/// Why a Hello was not welcomed: what to answer, and how to close.
struct Refused {
    answer: Frame,
    code: u16,
    reason: &'static str,
}

/// Waits for Hello and answers it. `shown` is who showed a token with the request, if anybody.
pub(crate) async fn greet(node: Arc<Node>, mut wire: Wire, shown: Option<Caller>) -> Option<Box<Connection>> {
    let received = tokio::select! {
        received = first_message(&mut wire) => received,
        () = sleep_until(Instant::now() + seconds(node.config.hello_timeout_s)) => {
            Err(End::Close(close::SILENT, "no Hello"))
        }
    };
    let mut inbox = match received {
        Ok(message) => message,
        Err(end) => {
            end.say(wire).await;
            return None;
        }
    };
    let (id, hello) = match wire.codec().unpack(&mut inbox) {
        Ok(Some(Frame { id, body: Some(Body::Hello(hello)), .. })) => (id, hello),
        _ => {
            let answer = refusal(0, ErrorCode::BadRequest, "the first frame is Hello");
            refuse(wire, Refused { answer, code: close::BAD_FRAME, reason: "the first frame is Hello" }).await;
            return None;
        }
    };
    let device = match identify(&node, id, &hello, shown).await {
        Ok(device) => device,
        Err(refused) => {
            refuse(wire, refused).await;
            return None;
        }
    };
    if let Err(retry_after) = node.hellos.spend(device, node.clock.now()) {
        let answer = rate_limited(id, "too many connections", retry_after);
        refuse(wire, Refused { answer, code: close::RATE_LIMITED, reason: "too many connections" }).await;
        return None;
    }
    let turn = match node.admission.turn().await {
        Ok(turn) => turn,
        Err(Crowded { retry_after }) => {
            refusals(CROWDED).increment(1);
            let answer = crowded(id, retry_after);
            refuse(wire, Refused { answer, code: close::DRAINING, reason: "too many connect at once" }).await;
            return None;
        }
    };
    let receipts = node.delivery.receipts(node.clock.now());
    let have = hello.have.clone().unwrap_or_default();
    let held = Held { epoch: have.epoch, up_to: [have.normal, have.urgent], receipts };
    let opened = match node.mailboxes.open(device, held).await {
        Ok(Some(opened)) => opened,
        Ok(None) => {
            let answer = refusal(id, ErrorCode::NotFound, "the device has no mailbox");
            refuse(wire, Refused { answer, code: close::REFUSED, reason: "no mailbox" }).await;
            return None;
        }
        Err(failed) => {
            refuse(wire, unavailable(id, &failed)).await;
            return None;
        }
    };
    if have.epoch == opened.epoch
        && let Err(message) = ack_ranges(&node, device, &have, &opened).await
    {
        let answer = refusal(id, ErrorCode::BadRequest, message);
        refuse(wire, Refused { answer, code: close::BAD_FRAME, reason: message }).await;
        return None;
    }
    drop(turn);
    // The route comes after the mailbox was opened and before the first page is read: what commits between is in the
    // page, what commits later comes by the route, and what comes by both is told apart by its seq. So each lane reads
    // a page, also one that was empty when it was opened.
    let outbox = Arc::new(Outbox::default());
    let route = node.fabric.announce(device, opened.generation, outbox.clone());
    let connection = ConnectionId { device, generation: opened.generation };
    let before = node.sessions.resume(device, &hello.resume_token, node.clock.now());
    let resumed = before.is_some();
    let attendance = node.presence.enter(connection, resumed || wire.is_poll(), hello.foreground);
    let heartbeat = node.config.heartbeat(hello.foreground);
    let mut window = granted(hello.window.as_ref().or(before.as_ref()));
    if wire.is_poll() {
        // Its answer is one body, held in memory as a whole.
        window.bytes = window.bytes.min(WINDOW_BYTES_DEFAULT);
    }
    let mut flows = flows(&opened, &window);
    if hello.drain() == DrainMode::LiveOnly {
        flows.iter_mut().for_each(Flow::skip_pending);
    }
    flows.iter_mut().for_each(Flow::missed);
    let session = Sessions::begin();
    let welcome = Welcome {
        session_id: session.to_text(),
        resume_token: node.sessions.token(device, session),
        resumed,
        ..welcome(&opened, bytes_waiting(&node, device, &opened).await, window, heartbeat.as_secs(), node.clock.wall())
    };
    let [LaneView { acked, waiting, .. }, _] = opened.lanes;
    let summary_after = (waiting > 0 && hello.features.iter().any(|it| it == summary::FEATURE)).then_some(acked);
    let connection = Connection::new(node, wire, attendance, route, outbox, flows, (session, window), heartbeat, inbox);
    Box::new(connection).welcome(Frame::with_id(id, Body::Welcome(welcome)), summary_after).await
}

/// Acks what the client holds out of order: where there is no socket, the next poll says it.
async fn ack_ranges(node: &Node, device: DeviceAddress, have: &Have, opened: &Opened) -> Result<(), &'static str> {
    let of_lanes = [(Lane::Normal, &have.normal_ranges), (Lane::Urgent, &have.urgent_ranges)];
    for ((lane, ranges), view) in of_lanes.into_iter().zip(&opened.lanes) {
        if ranges.len() > ACK_RANGES_MAX {
            return Err("at most 64 ranges");
        }
        // Nobody can hold what was never given; whoever claims to speaks of another mailbox.
        let held = ranges.iter().filter(|range| range.first <= range.last && range.last <= view.last);
        let ranges: Vec<_> = held.map(|range| (range.first, range.last)).collect();
        if !ranges.is_empty() {
            let receipts = node.delivery.receipts(node.clock.now());
            let ack = AckRequest { mailbox: device, lane, up_to: 0, ranges, receipts };
            // Durable before the first page is read. Not taken, it only means that rows are sent again.
            if let Err(error) = node.mailboxes.ack(ack).await {
                debug!(%device, %error, "an ack was not taken");
            }
        }
    }
    Ok(())
}

/// Bytes of bodies that wait in each lane, about; nothing is read when nothing waits.
async fn bytes_waiting(node: &Node, device: DeviceAddress, opened: &Opened) -> [u64; 2] {
    if opened.lanes.iter().all(|lane| lane.waiting == 0) {
        return [0; 2];
    }
    let view = node.mailboxes.view(device).await.ok().flatten();
    view.map(|view| view.lanes.map(|lane| lane.bytes)).unwrap_or_default()
}

fn crowded(id: u32, retry_after: Duration) -> Frame {
    let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX);
    let message = "too many connect at once".to_owned();
    Frame::with_id(
        id,
        Body::Error(Error { code: ErrorCode::Unavailable.into(), message, retry_after_ms, ..Error::default() }),
    )
}

/// The first message that has frames.
async fn first_message(wire: &mut Wire) -> Result<bytes::Bytes, End> {
    loop {
        match wire.receive().await {
            Ok(Inbound::Frames(message)) => return Ok(message),
            Ok(Inbound::Alive) => {}
            Ok(Inbound::WrongKind) => {
                return Err(End::Close(close::BAD_FRAME, "not the subprotocol's kind of message"));
            }
            Err(error) => return Err(End::of(error)),
        }
    }
}

/// Who speaks: the device of a genuine token, which is the one the Hello names, with the keys its account lists.
async fn identify(node: &Node, id: u32, hello: &Hello, shown: Option<Caller>) -> Result<DeviceAddress, Refused> {
    let unavailable = |failed: StoreError| unavailable(id, &failed);
    let caller = match (shown, hello.token.parse::<DeviceToken>()) {
        (Some(caller), _) => Some(caller),
        (None, Ok(token)) => node.accounts.authenticate(&token).await.map_err(unavailable)?,
        (None, Err(_)) => None,
    };
    let Some(Caller { device, reg_id }) = caller else {
        let answer = refusal(id, ErrorCode::Unauthenticated, "no valid device token");
        return Err(Refused { answer, code: close::UNAUTHENTICATED, reason: "no valid device token" });
    };
    let refused = |message: &'static str| Refused {
        answer: refusal(id, ErrorCode::Forbidden, message),
        code: close::REFUSED,
        reason: message,
    };
    let named = (AccountId::from_slice(&hello.account).ok(), DeviceId::new(hello.device).ok());
    if named != (Some(device.account), Some(device.device)) {
        return Err(refused("the token is of another device than Hello names"));
    }
    if hello.reg_id != reg_id {
        return Err(refused("the account lists this device with another reg_id"));
    }
    Ok(device)
}

fn unavailable(id: u32, failed: &StoreError) -> Refused {
    Refused { answer: store_refusal(id, failed), code: close::DRAINING, reason: "try again later" }
}

async fn refuse(mut wire: Wire, refused: Refused) {
    if wire.feed(&refused.answer).await.is_ok() && wire.flush().await.is_ok() {
        closed(refused.code);
        wire.close(refused.code, refused.reason).await;
    }
}

/// The window a client gets: what it asks for, within bounds.
pub(super) fn granted(asked: Option<&Window>) -> Window {
    let bounded = |asked: u32, default, max| if asked == 0 { default } else { asked.min(max) };
    let asked = asked.copied().unwrap_or_default();
    Window {
        msgs: bounded(asked.msgs, WINDOW_MSGS_DEFAULT, WINDOW_MSGS_MAX),
        bytes: bounded(asked.bytes, WINDOW_BYTES_DEFAULT, WINDOW_BYTES_MAX),
    }
}

/// The credit of each lane under a window: normal, urgent.
pub(super) fn credits(window: &Window) -> [Credit; 2] {
    let normal = Credit { msgs: window.msgs as usize, bytes: window.bytes as usize };
    [normal, Credit { msgs: URGENT_MSGS, ..normal }]
}

fn flows(opened: &Opened, window: &Window) -> [Flow; 2] {
    let [normal, urgent] = credits(window);
    [Flow::new(Lane::Normal, opened.lanes[0], normal), Flow::new(Lane::Urgent, opened.lanes[1], urgent)]
}

fn welcome(opened: &Opened, bytes: [u64; 2], window: Window, heartbeat_s: u64, now: Timestamp) -> Welcome {
    let pending = |lane: Lane, view: &LaneView, bytes| Pending {
        lane: lane.into(),
        count_estimate: view.waiting,
        tail_seq: if view.waiting > 0 { view.last } else { 0 },
        head_seq: if view.waiting > 0 { view.acked + 1 } else { 0 },
        bytes,
    };
    Welcome {
        server_time: now.as_millis(),
        heartbeat_s: u32::try_from(heartbeat_s).unwrap_or(u32::MAX),
        window: Some(window),
        frame_bytes_max: u32::try_from(FRAME_BYTES_MAX).unwrap_or(u32::MAX),
        epoch: opened.epoch,
        pending: vec![
            pending(Lane::Normal, &opened.lanes[0], bytes[0]),
            pending(Lane::Urgent, &opened.lanes[1], bytes[1]),
        ],
        features: FEATURES.map(str::to_owned).into(),
        ..Welcome::default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use futures_util::future::BoxFuture;
    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
    use waxwing_protocol::MsgId;
    use waxwing_protocol::frames::{Envelope, SUBPROTOCOL_PB, unpack};
    use waxwing_protocol::identity::{Base64, PublicKey, SignedDeviceList};

    use super::*;
    use crate::accounts::Accounts;
    use crate::addresses::Addresses;
    use crate::admission::Admission;
    use crate::channels::Channels;
    use crate::clock::Clock;
    use crate::config::Config;
    use crate::delivery::Delivery;
    use crate::devices::Devices;
    use crate::fabric::Fabric;
    use crate::grants::Grants;
    use crate::groups::Groups;
    use crate::invites::Invites;
    use crate::keys::Keys;
    use crate::limits::Limit;
    use crate::links::Links;
    use crate::presence::Presence;
    use crate::push::{Providers, Push};
    use crate::reports::Reports;
    use crate::store::{
        AccountRecord, Append, AppendError, Appended, Body as Ciphertext, Directory as _, EmbeddedStore, MailboxStore,
        MailboxView, NewAccount, Page, PageRequest, Quota, Swept,
    };

    const REG_ID: u32 = 5;

    /// Nothing tells that a message will never come, but that it takes far longer than one does.
    const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

    /// A store in which a message commits in the worst moment of a Hello: when the mailbox was looked at and no route
    /// leads to the connection yet.
    struct CommitsAfterOpen {
        store: Arc<EmbeddedStore>,
        message: Mutex<Option<Append>>,
    }

    impl MailboxStore for CommitsAfterOpen {
        fn open(&self, mailbox: DeviceAddress, held: Held) -> BoxFuture<'static, Result<Option<Opened>, StoreError>> {
            let (store, message) = (self.store.clone(), self.message.lock().unwrap().take());
            Box::pin(async move {
                let opened = store.open(mailbox, held).await?;
                if let Some(message) = message {
                    store.append(message).await.unwrap();
                }
                Ok(opened)
            })
        }

        fn append(&self, append: Append) -> BoxFuture<'static, Result<Appended, AppendError>> {
            self.store.append(append)
        }

        fn view(&self, mailbox: DeviceAddress) -> BoxFuture<'static, Result<Option<MailboxView>, StoreError>> {
            self.store.view(mailbox)
        }

        fn read(&self, page: PageRequest) -> BoxFuture<'static, Result<Page, StoreError>> {
            self.store.read(page)
        }

        fn ack(&self, ack: AckRequest) -> BoxFuture<'static, Result<(), StoreError>> {
            self.store.ack(ack)
        }

        fn sweep(&self, now: Timestamp) -> BoxFuture<'static, Result<Swept, StoreError>> {
            self.store.sweep(now)
        }

        fn is_writable(&self) -> bool {
            self.store.is_writable()
        }

        fn close(&self) -> BoxFuture<'static, ()> {
            self.store.close()
        }
    }

    fn account(token: &DeviceToken, handle: &str) -> NewAccount {
        let record = AccountRecord {
            account: token.account,
            handle: handle.parse().unwrap(),
            account_key: PublicKey([1; 32]),
            device_list: SignedDeviceList { list: Base64(vec![1]), signature: Base64(vec![1; 64]) },
        };
        NewAccount { record, device: token.device, reg_id: REG_ID, token_hash: token.hash(), epoch: 7, invite: None }
    }

    fn message(from: DeviceAddress, to: DeviceAddress) -> Append {
        let msg_id = MsgId::from_bytes([9; 16]);
        Append {
            from,
            msg_id,
            content_hash: [9; 32],
            to: to.account,
            bodies: vec![Ciphertext { device: to.device, reg_id: REG_ID, ciphertext: Bytes::from_static(b"sealed") }],
            absent: Vec::new(),
            lane: Lane::Normal,
            coalesce_key: Bytes::new(),
            introduces: true,
            envelope: Envelope {
                msg_id: Bytes::copy_from_slice(msg_id.as_bytes()),
                expires_at: Timestamp::from(std::time::SystemTime::now()).plus(Duration::from_secs(1000)).as_millis(),
                ..Envelope::default()
            },
            quota: Quota { msgs: 10, bytes: 1 << 20 },
        }
    }

    /// No route leads to the connection yet and the lane looked empty: only reading it once more finds the message.
    #[tokio::test]
    async fn a_message_that_commits_between_the_opening_of_an_empty_lane_and_its_route_is_delivered() {
        let dir = tempfile::tempdir().unwrap();
        let (config, fabric) = (Config::default(), Arc::new(Fabric::default()));
        let store = Arc::new(EmbeddedStore::open(&dir.path().join("store"), fabric.clone()).unwrap());
        let token = |n: u8| DeviceToken::new(AccountId::from_slice(&[n; 16]).unwrap(), DeviceId::FIRST, [n; 32]);
        let address = |token: &DeviceToken| DeviceAddress { account: token.account, device: token.device };
        let (alice, bob) = (token(1), token(2));
        store.register(account(&alice, "alice")).await.unwrap();
        store.register(account(&bob, "bob")).await.unwrap();
        let message = Mutex::new(Some(message(address(&alice), address(&bob))));
        let clock = Arc::new(Clock::start());
        let node = Node {
            clock: clock.clone(),
            accounts: Accounts::new(store.clone(), Invites::open(dir.path()).unwrap(), &config),
            addresses: Addresses::new(&config),
            keys: Keys::new(store.clone(), fabric.clone(), &config),
            devices: Devices::new(store.clone(), fabric.clone()),
            links: Links::default(),
            grants: Grants::open(&config, dir.path()).unwrap(),
            delivery: Delivery::new(store.clone(), store.clone(), fabric.clone(), &config),
            groups: Groups::new(store.clone(), store.clone(), &config),
            channels: Channels::new(store.clone(), store.clone(), &config),
            presence: Arc::new(Presence::new(store.clone(), fabric.clone(), clock.clone())),
            push: Arc::new(Push::new(
                &config.push,
                Providers::default(),
                store.clone(),
                store.clone(),
                fabric.clone(),
                clock,
            )),
            fabric,
            mailboxes: Arc::new(CommitsAfterOpen { store, message }),
            hellos: Limit::new("hellos", config.hellos_per_minute, Duration::from_secs(60)),
            admission: Admission::new(&config),
            sessions: Sessions::default(),
            reports: Reports::new(dir.path()),
            config,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut request = format!("ws://{}/v1/ws", listener.local_addr().unwrap()).into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", SUBPROTOCOL_PB.parse().unwrap());
        let router = crate::http::router(Arc::new(node));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let stream = tokio::net::TcpStream::connect(request.uri().authority().unwrap().as_str()).await.unwrap();
        let (mut socket, _) = tokio_tungstenite::client_async(request, stream).await.unwrap();

        let hello = Hello {
            token: bob.to_text(),
            account: Bytes::copy_from_slice(bob.account.as_bytes()),
            device: bob.device.get(),
            reg_id: REG_ID,
            ..Hello::default()
        };
        socket.send(Message::Binary(Frame::with_id(1, Body::Hello(hello)).to_message())).await.unwrap();
        let delivered = async {
            loop {
                let Message::Binary(mut inbox) = socket.next().await.expect("the connection stays").unwrap() else {
                    continue;
                };
                while let Some(frame) = unpack(&mut inbox).unwrap() {
                    if let Some(Body::Deliver(deliver)) = frame.body {
                        return deliver.envelopes[0].body.clone();
                    }
                }
            }
        };
        let delivered = tokio::time::timeout(DELIVERY_LIMIT, delivered).await;
        assert_eq!(delivered.as_deref().expect("the message is not left lying"), b"sealed");
    }
}
