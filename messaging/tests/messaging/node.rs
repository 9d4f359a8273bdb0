//! A node under test, and the people who use it.

use std::net::SocketAddr;
use std::path::PathBuf;

use axum::body::Body;
use ed25519_dalek::{Signer as _, SigningKey};
use http::{Method, Request, StatusCode};
use serde::Serialize;
use serde_json::Value;
use tower::ServiceExt as _;
use waxwing_messaging::{Config, Messaging, OpenError};
use waxwing_protocol::api::{LinkRequest, RegisterRequest, Registration};
use waxwing_protocol::identity::{
    Base64, DEVICE_LIST_DOMAIN, Device, DeviceList, PREKEY_DOMAIN, PrekeyKind, PublicKey, SignedDeviceList,
    SignedPrekey, Suite, signed_bytes,
};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Timestamp};

/// A node that anyone may register with.
pub fn open_config() -> Config {
    Config {
        registration: Registration::Open,
        look_ups_per_minute: 1000,
        hellos_per_minute: 100_000,
        poll_s: 1,
        ..Config::default()
    }
}

/// A node in a runtime of its own, so that it can be stopped dead in the middle of anything.
pub struct TestNode {
    dir: tempfile::TempDir,
    config: Config,
    running: Option<Running>,
}

struct Running {
    runtime: tokio::runtime::Runtime,
    messaging: Messaging,
    address: SocketAddr,
}

impl TestNode {
    pub async fn start() -> Self {
        Self::with(open_config()).await
    }

    pub async fn with(config: Config) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let running = Some(run(dir.path().join("data"), config.clone()).await);
        Self { dir, config, running }
    }

    pub fn address(&self) -> SocketAddr {
        self.running().address
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub fn messaging(&self) -> &Messaging {
        &self.running().messaging
    }

    /// Stops everything where it stands, as a crash would, and starts again on the same data.
    pub async fn crash_and_restart(&mut self) {
        if let Some(Running { runtime, messaging, .. }) = self.running.take() {
            runtime.shutdown_background();
            drop(messaging);
        }
        self.running = Some(run(self.dir.path().join("data"), self.config.clone()).await);
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the node runs between restarts")
    }

    /// One HTTP request: the status, the headers, and the body as JSON (`Null` when it has none).
    pub async fn request(&self, request: Request<Body>) -> (StatusCode, http::HeaderMap, Value) {
        let response = self.messaging().router().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    /// A request with a JSON body, by `person` if one is given.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        person: Option<&Person>,
        body: &impl Serialize,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder().method(method).uri(path).header("content-type", "application/json");
        if let Some(person) = person {
            request = request.header("authorization", format!("Bearer {}", person.token.to_text()));
        }
        let body = serde_json::to_vec(body).unwrap();
        let (status, _, body) = self.request(request.body(body.into()).unwrap()).await;
        (status, body)
    }

    pub async fn get(&self, path: &str, person: &Person) -> (StatusCode, Value) {
        self.call(Method::GET, path, Some(person), &()).await
    }

    /// Registers somebody.
    pub async fn register(&self, handle: &str) -> Person {
        let person = Person::new(handle);
        let (status, body) = self.call(Method::POST, "/v1/register", None, &person.registration()).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        person
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if let Some(Running { runtime, .. }) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

async fn run(data: PathBuf, config: Config) -> Running {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let started = runtime.spawn(async move {
        let messaging = loop {
            match Messaging::open(config.clone(), &data).await {
                Ok(messaging) => break messaging,
                // The one before is still letting go: its threads end when they notice.
                Err(OpenError::Locked { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = messaging.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (messaging, address)
    });
    let (messaging, address) = started.await.unwrap();
    Running { runtime, messaging, address }
}

/// Somebody with one device.
pub struct Person {
    pub handle: String,
    pub account: AccountId,
    pub reg_id: u32,
    pub token: DeviceToken,
    account_key: SigningKey,
    device_key: SigningKey,
}

impl Person {
    /// Somebody of that name: the same every time.
    pub fn new(handle: &str) -> Self {
        let seed = |use_: &str| *blake3::hash(format!("{handle}/{use_}").as_bytes()).as_bytes();
        let account = AccountId::from_slice(&seed("account")[..16]).unwrap();
        Self {
            handle: handle.to_owned(),
            account,
            reg_id: u32::from_be_bytes(*seed("reg_id").first_chunk().unwrap()),
            token: DeviceToken::new(account, DeviceId::FIRST, seed("token")),
            account_key: SigningKey::from_bytes(&seed("account key")),
            device_key: SigningKey::from_bytes(&seed("device key")),
        }
    }

    /// A further device of this person: the same every time.
    pub fn device(&self, number: u32) -> Self {
        let seed = |use_: &str| *blake3::hash(format!("{}/{number}/{use_}", self.handle).as_bytes()).as_bytes();
        Self {
            handle: self.handle.clone(),
            account: self.account,
            reg_id: u32::from_be_bytes(*seed("reg_id").first_chunk().unwrap()),
            token: DeviceToken::new(self.account, DeviceId::new(number).unwrap(), seed("token")),
            account_key: self.account_key.clone(),
            device_key: SigningKey::from_bytes(&seed("device key")),
        }
    }

    /// The same device with another token.
    pub fn with_token(&self, secret: [u8; 32]) -> Self {
        let (account_key, device_key) = (self.account_key.clone(), self.device_key.clone());
        let token = DeviceToken::new(self.account, self.token.device, secret);
        Self { handle: self.handle.clone(), account: self.account, reg_id: self.reg_id, token, account_key, device_key }
    }

    /// This device as a list names it.
    pub fn listed(&self) -> Device {
        let key = PublicKey(self.device_key.verifying_key().to_bytes());
        Device { id: self.token.device, reg_id: self.reg_id, curve25519: key, ed25519: key }
    }

    /// The account's list of these devices, signed.
    pub fn list(&self, revision: u64, devices: &[&Self]) -> SignedDeviceList {
        let devices = devices.iter().map(|device| device.listed()).collect();
        let signed_at = Timestamp::from_secs(1_800_000_000);
        let list = DeviceList { account: self.account, revision, signed_at, devices }.to_bytes();
        SignedDeviceList { signature: self.sign(DEVICE_LIST_DOMAIN, &list), list: Base64(list) }
    }

    /// What asks for this device to be added by a list.
    pub fn link(&self, device_list: SignedDeviceList) -> LinkRequest {
        LinkRequest {
            device_list,
            token_hash: Base64(self.token.hash().to_vec()),
            name: Base64(b"sealed name".to_vec()),
            fallback: self.prekey(250, PrekeyKind::Fallback),
        }
    }

    pub fn account_key(&self) -> PublicKey {
        PublicKey(self.account_key.verifying_key().to_bytes())
    }

    pub fn registration(&self) -> RegisterRequest {
        self.registration_with(1, &[DeviceId::FIRST])
    }

    /// A registration whose device list is signed with these particulars.
    pub fn registration_with(&self, revision: u64, devices: &[DeviceId]) -> RegisterRequest {
        let key = PublicKey(self.device_key.verifying_key().to_bytes());
        let devices = devices.iter().map(|id| Device { id: *id, reg_id: self.reg_id, curve25519: key, ed25519: key });
        let list = DeviceList {
            account: self.account,
            revision,
            signed_at: Timestamp::from_secs(1_800_000_000),
            devices: devices.collect(),
        };
        let list = list.to_bytes();
        let signature = self.account_key.sign(&signed_bytes(DEVICE_LIST_DOMAIN, &list)).to_bytes().to_vec();
        let (token_hash, handle) = (self.token.hash(), self.handle.parse().unwrap());
        let proof = self.account_key.sign(&RegisterRequest::proof_bytes(self.account, &token_hash, &handle));
        RegisterRequest {
            account: self.account,
            handle,
            account_key: self.account_key(),
            device_list: SignedDeviceList { list: Base64(list), signature: Base64(signature) },
            token_hash: Base64(token_hash.to_vec()),
            proof: Base64(proof.to_bytes().to_vec()),
            invite: None,
        }
    }

    /// The account key's signature.
    pub fn sign(&self, domain: &str, message: &[u8]) -> Base64 {
        Base64(self.account_key.sign(&signed_bytes(domain, message)).to_bytes().to_vec())
    }

    pub fn prekey(&self, n: u8, kind: PrekeyKind) -> SignedPrekey {
        let key = PublicKey([n; 32]);
        let message = SignedPrekey::message(Suite::OlmV1, kind, &key);
        let signature = self.device_key.sign(&signed_bytes(PREKEY_DOMAIN, &message));
        SignedPrekey { suite: Suite::OlmV1, kind, key, signature: Base64(signature.to_bytes().to_vec()) }
    }
}

/// The slug of a problem.
pub fn slug(body: &Value) -> &str {
    body["type"].as_str().and_then(|kind| kind.rsplit(':').next()).unwrap_or_default()
}
