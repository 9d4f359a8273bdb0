//! A messaging service for tests: accounts, prekeys and mailboxes in memory, over real sockets, that fails where it is
//! told to and records every Send that ever came.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use axum::extract::{Path, State, WebSocketUpgrade};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use tokio::net::TcpListener;
use tokio::sync::watch;
use waxwing_protocol::api::{
    AccountView, KeysCheck, KeysCheckRequest, PrekeyClaim, PrekeyCount, PrekeyUpload, RegisterRequest,
    RegisterResponse, Registration, ServiceInfo,
};
use waxwing_protocol::frames::{
    Ack, Deliver, Envelope, Error, ErrorCode, Frame, Hello, Lane, Pending, QueueEmpty, SUBPROTOCOL_PB, Send,
    SendResult, Welcome, close, frame::Body, send::Target, unpack,
};
use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::token::DeviceToken;
use waxwing_protocol::{AccountId, DeviceId, Problem};

/// What goes wrong.
#[derive(Default)]
pub(super) struct Faults {
    /// The next registrations are taken and their answers lost.
    pub(super) lose_registrations: u32,
    /// The next messages are taken and the connection ends before their answers.
    pub(super) lose_results: u32,
    /// The next messages are refused with these.
    pub(super) refuse: VecDeque<ErrorCode>,
    /// The next deliveries end the connection before their Ack is heard.
    pub(super) lose_acks: u32,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) faults: Faults,
    pub(super) registrations: Vec<RegisterRequest>,
    pub(super) accounts: Vec<AccountView>,
    one_time: HashMap<AccountId, VecDeque<SignedPrekey>>,
    fallback: HashMap<AccountId, SignedPrekey>,
    mailboxes: HashMap<AccountId, Vec<Envelope>>,
    /// Every Send that came, from whom.
    pub(super) sends: Vec<(AccountId, Send)>,
    /// Every Hello, from whom.
    pub(super) hellos: Vec<(AccountId, Hello)>,
    next_seq: u64,
    next_connection: u64,
    /// The connection that a device has now.
    connections: HashMap<AccountId, u64>,
}

#[derive(Clone)]
pub(super) struct TestServer {
    pub(super) url: String,
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<()>>,
}

impl TestServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, world: Arc::default(), changed: Arc::new(watch::Sender::new(())) };
        let router = Router::new()
            .route("/v1/info", get(info))
            .route("/v1/register", post(register))
            .route("/v1/accounts/{name}", get(account))
            .route("/v1/keys", get(held).put(add))
            .route("/v1/keys/check", post(check))
            .route("/v1/keys/{account}/{device}/claim", post(claim))
            .route("/v1/blobs/{id}", get(async || problem(StatusCode::NOT_FOUND)))
            .route("/v1/grants", post(async || Json(serde_json::json!({ "grant": "jwt", "expires_at": u64::MAX }))))
            .route("/v1/ws", get(socket))
            .with_state(server.clone());
        tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
        server
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Ends every connection, without a word.
    pub(super) fn cut(&self) {
        self.world().connections.clear();
        self.changed.send_replace(());
    }

    /// Waits until the world is as `f` says.
    pub(super) async fn until(&self, f: impl Fn(&World) -> bool) {
        let mut changes = self.changed.subscribe();
        while !f(&self.world()) {
            changes.changed().await.unwrap();
        }
    }

    fn caller(&self, headers: &HeaderMap) -> Option<AccountId> {
        let token = headers.get("authorization")?.to_str().ok()?.strip_prefix("Bearer ")?;
        let token: DeviceToken = token.parse().ok()?;
        let world = self.world();
        let request = world.registrations.iter().find(|request| request.account == token.account)?;
        (request.token_hash.0 == token.hash()).then_some(token.account)
    }
}

fn problem(status: StatusCode) -> Response {
    (status, Problem::new(status.as_u16(), "test", "").to_json()).into_response()
}

async fn info(State(server): State<TestServer>) -> Json<ServiceInfo> {
    let url = &server.url;
    Json(ServiceInfo {
        server: "test".into(),
        uploads_url: format!("{url}/v1/uploads"),
        blobs_url: format!("{url}/v1/blobs"),
        socket_url: format!("{}/v1/ws", url.replace("http", "ws")),
        api_url: url.clone(),
        blob_bytes_max: 1 << 30,
        registration: Registration::Open,
    })
}

async fn register(State(server): State<TestServer>, Json(request): Json<RegisterRequest>) -> Response {
    let mut world = server.world();
    world.registrations.push(request.clone());
    let RegisterRequest { account, handle, account_key, device_list, .. } = request;
    match world.accounts.iter().find(|view| view.handle == handle) {
        Some(view) if view.account != account => return problem(StatusCode::CONFLICT),
        Some(_) => {}
        None => world.accounts.push(AccountView { account, handle: handle.clone(), account_key, device_list }),
    }
    if world.faults.lose_registrations > 0 {
        world.faults.lose_registrations -= 1;
        return problem(StatusCode::BAD_GATEWAY);
    }
    (StatusCode::CREATED, Json(RegisterResponse { account, handle, device: DeviceId::FIRST })).into_response()
}

async fn account(State(server): State<TestServer>, headers: HeaderMap, Path(name): Path<String>) -> Response {
    if server.caller(&headers).is_none() {
        return problem(StatusCode::UNAUTHORIZED);
    }
    let world = server.world();
    let named = |view: &&AccountView| view.handle.as_str() == name || view.account.to_string() == name;
    match world.accounts.iter().find(named) {
        Some(view) => Json(view.clone()).into_response(),
        None => problem(StatusCode::NOT_FOUND),
    }
}

async fn held(State(server): State<TestServer>, headers: HeaderMap) -> Response {
    let Some(caller) = server.caller(&headers) else { return problem(StatusCode::UNAUTHORIZED) };
    Json(count(&server.world(), caller)).into_response()
}

fn count(world: &World, account: AccountId) -> PrekeyCount {
    PrekeyCount {
        one_time: world.one_time.get(&account).map_or(0, VecDeque::len),
        fallback: world.fallback.contains_key(&account),
    }
}

async fn check(
    State(server): State<TestServer>,
    headers: HeaderMap,
    Json(believed): Json<KeysCheckRequest>,
) -> Response {
    let Some(caller) = server.caller(&headers) else { return problem(StatusCode::UNAUTHORIZED) };
    let world = server.world();
    let fallback = world.fallback.get(&caller).map(|prekey| prekey.key);
    let fallback = fallback.is_some() && fallback == believed.fallback;
    Json(KeysCheck { identity: true, fallback, one_time: count(&world, caller).one_time }).into_response()
}

async fn add(State(server): State<TestServer>, headers: HeaderMap, Json(upload): Json<PrekeyUpload>) -> Response {
    let Some(caller) = server.caller(&headers) else { return problem(StatusCode::UNAUTHORIZED) };
    let mut world = server.world();
    world.one_time.entry(caller).or_default().extend(upload.one_time);
    if let Some(fallback) = upload.fallback {
        world.fallback.insert(caller, fallback);
    }
    Json(count(&world, caller)).into_response()
}

async fn claim(State(server): State<TestServer>, Path((account, _)): Path<(AccountId, u32)>) -> Response {
    let mut world = server.world();
    let one_time = world.one_time.get_mut(&account).and_then(VecDeque::pop_front);
    match one_time.or_else(|| world.fallback.get(&account).cloned()) {
        Some(prekey) => Json(PrekeyClaim { prekey }).into_response(),
        None => problem(StatusCode::NOT_FOUND),
    }
}

async fn socket(State(server): State<TestServer>, headers: HeaderMap, upgrade: WebSocketUpgrade) -> Response {
    let Some(caller) = server.caller(&headers) else { return problem(StatusCode::UNAUTHORIZED) };
    let upgrade = upgrade.protocols([SUBPROTOCOL_PB]);
    upgrade.on_upgrade(async move |socket| Connection { server, caller, socket, sent: 0 }.run().await)
}

struct Connection {
    server: TestServer,
    caller: AccountId,
    socket: WebSocket,
    /// The highest seq written.
    sent: u64,
}

impl Connection {
    async fn run(mut self) {
        let mut changes = self.server.changed.subscribe();
        let mut id = 0;
        loop {
            if id > 0 {
                let now = self.server.world().connections.get(&self.caller).copied();
                match now {
                    Some(newest) if newest == id => {}
                    Some(_) => {
                        let reason = "a newer connection".into();
                        let frame = CloseFrame { code: close::DISPLACED, reason };
                        let _ = self.socket.send(Message::Close(Some(frame))).await;
                        return;
                    }
                    None => return,
                }
                if !self.deliver().await {
                    return;
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                message = self.socket.recv() => {
                    let Some(Ok(Message::Binary(mut batch))) = message else { return };
                    while let Some(frame) = unpack(&mut batch).unwrap() {
                        match self.answer(frame, &mut id).await {
                            Some(answer) => self.write(answer).await,
                            None => return,
                        }
                    }
                }
            }
        }
    }

    async fn write(&mut self, frames: Vec<Frame>) {
        for frame in frames {
            let _ = self.socket.send(Message::Binary(frame.to_message())).await;
        }
    }

    /// What to answer; `None` ends the connection.
    async fn answer(&mut self, frame: Frame, connection: &mut u64) -> Option<Vec<Frame>> {
        let id = frame.id;
        let answer = match frame.body? {
            Body::Hello(hello) => {
                let mut world = self.server.world();
                world.hellos.push((self.caller, hello));
                world.next_connection += 1;
                *connection = world.next_connection;
                let newest = *connection;
                world.connections.insert(self.caller, newest);
                let mailbox = world.mailboxes.get(&self.caller).map_or(&[][..], |mailbox| mailbox);
                let tail_seq = mailbox.last().map_or(0, |envelope| envelope.seq);
                let lane = Lane::Normal.into();
                let head_seq = mailbox.first().map_or(0, |envelope| envelope.seq);
                let bytes = mailbox.iter().map(|envelope| envelope.body.len() as u64).sum();
                let count_estimate = mailbox.len() as u64;
                let pending = vec![Pending { lane, count_estimate, tail_seq, head_seq, bytes }];
                let welcome = Welcome { heartbeat_s: 55, epoch: 1, pending, ..Welcome::default() };
                let empty = Body::QueueEmpty(QueueEmpty { lane, up_to: tail_seq });
                let welcome = Frame::with_id(id, Body::Welcome(welcome));
                if tail_seq == 0 { vec![welcome, Frame::push(empty)] } else { vec![welcome] }
            }
            Body::Send(send) => vec![Frame::with_id(id, self.server.world().take(self.caller, send)?)],
            Body::Ack(Ack { up_to, .. }) => {
                let mut world = self.server.world();
                let mailbox = world.mailboxes.entry(self.caller).or_default();
                mailbox.retain(|envelope| envelope.seq > up_to);
                vec![]
            }
            Body::Bye(_) => return None,
            _ => vec![],
        };
        self.server.changed.send_replace(());
        Some(answer)
    }

    /// Delivers what was not; false when the connection ends instead of hearing an Ack.
    async fn deliver(&mut self) -> bool {
        let (envelopes, cut) = {
            let mut world = self.server.world();
            let mailbox = world.mailboxes.get(&self.caller).cloned().unwrap_or_default();
            let envelopes: Vec<_> = mailbox.into_iter().filter(|envelope| envelope.seq > self.sent).collect();
            let cut = !envelopes.is_empty() && world.faults.lose_acks > 0;
            world.faults.lose_acks -= u32::from(cut);
            (envelopes, cut)
        };
        let Some(last) = envelopes.last() else { return true };
        self.sent = last.seq;
        self.write(vec![Frame::push(Body::Deliver(Deliver { lane: Lane::Normal.into(), envelopes }))]).await;
        if cut {
            // Until the client has acknowledged it, in vain.
            let _ = self.socket.recv().await;
        }
        !cut
    }
}

impl World {
    /// How many one-time prekeys an account has here.
    pub(super) fn prekeys(&self, account: AccountId) -> usize {
        count(self, account).one_time
    }

    /// Strangers claim this many one-time prekeys of an account.
    pub(super) fn spend_prekeys(&mut self, account: AccountId, how_many: usize) {
        self.one_time.entry(account).or_default().drain(..how_many);
    }

    /// Takes a message, or not; `None` loses the answer.
    fn take(&mut self, from: AccountId, send: Send) -> Option<Body> {
        self.sends.push((from, send.clone()));
        if let Some(code) = self.faults.refuse.pop_front() {
            return Some(refusal(code));
        }
        let Some(Target::Direct(direct)) = &send.target else { return Some(refusal(ErrorCode::BadRequest)) };
        let to = AccountId::from_slice(&direct.account).unwrap();
        let Some(view) = self.accounts.iter().find(|view| view.account == to) else {
            return Some(refusal(ErrorCode::NotFound));
        };
        let listed = view.device_list.verify(to, &view.account_key).unwrap().devices;
        let wanted: Vec<_> = listed.iter().map(|device| (device.id.get(), device.reg_id)).collect();
        let given: Vec<_> = direct.devices.iter().map(|body| (body.device, body.reg_id)).collect();
        if wanted != given {
            return Some(refusal(ErrorCode::DeviceMismatch));
        }
        let duplicate =
            self.sends[..self.sends.len() - 1].iter().any(|(who, sent)| *who == from && sent.msg_id == send.msg_id);
        let mailbox = self.mailboxes.entry(to).or_default();
        if !mailbox.iter().any(|envelope| envelope.msg_id == send.msg_id) {
            self.next_seq += 1;
            mailbox.push(Envelope {
                seq: self.next_seq,
                prev_seq: mailbox.last().map_or(0, |envelope| envelope.seq),
                msg_id: send.msg_id.clone(),
                from_account: from.as_bytes().to_vec().into(),
                from_device: 1,
                client_hlc: send.client_hlc,
                body: direct.devices[0].ciphertext.clone(),
                ..Envelope::default()
            });
        }
        if self.faults.lose_results > 0 {
            self.faults.lose_results -= 1;
            return None;
        }
        Some(Body::SendResult(SendResult { msg_id: send.msg_id, server_ts: 1, duplicate, conv_seq: 0 }))
    }
}

fn refusal(code: ErrorCode) -> Body {
    Body::Error(Error { code: code.into(), message: "as the test wants".into(), ..Error::default() })
}
