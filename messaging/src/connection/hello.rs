//! The first frame of a connection: who speaks, what it holds, how much it takes.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};
use waxwing_protocol::frames::{
    ErrorCode, FRAME_BYTES_MAX, Frame, Hello, Lane, Pending, WINDOW_BYTES_DEFAULT, WINDOW_BYTES_MAX,
    WINDOW_MSGS_DEFAULT, WINDOW_MSGS_MAX, Welcome, Window, close, frame::Body,
};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Timestamp};

use super::flow::{Credit, Flow};
use super::replies::{rate_limited, refusal, store_refusal};
use super::{Connection, End};
use crate::accounts::Caller;
use crate::config::seconds;
use crate::fabric::Outbox;
use crate::metrics::closed;
use crate::node::{Node, random};
use crate::presence::ConnectionId;
use crate::store::{DeviceAddress, Held, LaneView, Opened, StoreError};
use crate::wire::{Inbound, Wire};

/// Messages of the urgent lane that may be unacked at once, whatever the client's window.
const URGENT_MSGS: usize = 32;

/// What this server knows beside the first frames of the protocol.
const FEATURES: [&str; 3] = ["delivery", "coalesce", "presence"];

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
    let receipts = node.delivery.receipts(node.clock.now());
    let held = hello.have.unwrap_or_default();
    let held = Held { epoch: held.epoch, up_to: [held.normal, held.urgent], receipts };
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
    // The route comes after the mailbox was opened and before the first page is read: what commits between is in the
    // page, what commits later comes by the route, and what comes by both is told apart by its seq. So each lane reads
    // a page, also one that was empty when it was opened.
    let outbox = Arc::new(Outbox::default());
    let route = node.fabric.announce(device, opened.generation, outbox.clone());
    let connection = ConnectionId { device, generation: opened.generation };
    let attendance = node.presence.enter(connection, wire.is_poll(), hello.foreground);
    let heartbeat = node.config.heartbeat(hello.foreground);
    let mut window = granted(hello.window.as_ref());
    if wire.is_poll() {
        // Its answer is one body, held in memory as a whole.
        window.bytes = window.bytes.min(WINDOW_BYTES_DEFAULT);
    }
    let mut flows = flows(&opened, &window);
    flows.iter_mut().for_each(Flow::missed);
    let welcome = welcome(&opened, window, heartbeat.as_secs(), node.clock.wall());
    let connection = Connection::new(node, wire, attendance, route, outbox, flows, heartbeat, inbox);
    Box::new(connection).welcome(Frame::with_id(id, Body::Welcome(welcome))).await
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

fn welcome(opened: &Opened, window: Window, heartbeat_s: u64, now: Timestamp) -> Welcome {
    let pending = |lane: Lane, view: &LaneView| Pending {
        lane: lane.into(),
        count_estimate: view.waiting,
        tail_seq: if view.waiting > 0 { view.last } else { 0 },
    };
    Welcome {
        session_id: data_encoding::HEXLOWER.encode(&random::<8>()),
        server_time: now.as_millis(),
        heartbeat_s: u32::try_from(heartbeat_s).unwrap_or(u32::MAX),
        window: Some(window),
        frame_bytes_max: u32::try_from(FRAME_BYTES_MAX).unwrap_or(u32::MAX),
        epoch: opened.epoch,
        pending: vec![pending(Lane::Normal, &opened.lanes[0]), pending(Lane::Urgent, &opened.lanes[1])],
        features: FEATURES.map(str::to_owned).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

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
    use crate::store::{
        AccountRecord, AckRequest, Append, AppendError, Appended, Body as Ciphertext, Directory as _, EmbeddedStore,
        MailboxStore, MailboxView, NewAccount, Page, PageRequest, Quota, Swept,
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
            presence: Arc::new(Presence::new(store.clone(), fabric.clone(), clock)),
            fabric,
            mailboxes: Arc::new(CommitsAfterOpen { store, message }),
            hellos: Limit::new("hellos", config.hellos_per_minute, Duration::from_secs(60)),
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
