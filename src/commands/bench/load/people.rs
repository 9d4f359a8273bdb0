//! The people of a benchmark: made-up accounts with one device each, the same every time.

use anyhow::{Context as _, ensure};
use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use axum::http::{Method, Request};
use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use waxwing_protocol::api::{PushTarget, RegisterRequest};
use waxwing_protocol::frames::{DeviceBody, Direct};
use waxwing_protocol::identity::{
    Base64, DEVICE_LIST_DOMAIN, Device, DeviceList, PublicKey, REGISTER_DOMAIN, SignedDeviceList, signed_bytes,
};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Timestamp};

/// Registrations under way at once: each waits for its own commit.
const REGISTERING_AT_ONCE: u32 = 32;

/// Somebody with one device.
#[derive(Clone)]
pub(super) struct Person {
    pub(super) account: AccountId,
    pub(super) token: DeviceToken,
    number: u32,
}

impl Person {
    /// The person of that number.
    pub(super) fn nth(number: u32) -> Self {
        let mut id = [0xbe; 16];
        id[..4].copy_from_slice(&number.to_be_bytes());
        let account = AccountId::from_bytes(id);
        Self { account, token: DeviceToken::new(account, DeviceId::FIRST, Self::secret(number)), number }
    }

    pub(super) fn reg_id(&self) -> u32 {
        self.number
    }

    /// A target that is this person, with `body` for the one device.
    pub(super) fn target(&self, body: Bytes) -> Direct {
        let device = DeviceBody { device: DeviceId::FIRST.get(), reg_id: self.reg_id(), ciphertext: body };
        Direct { account: Bytes::copy_from_slice(self.account.as_bytes()), devices: vec![device] }
    }

    fn secret(number: u32) -> [u8; 32] {
        let mut secret = [0x5a; 32];
        secret[..4].copy_from_slice(&number.to_be_bytes());
        secret
    }

    /// The account's key.
    pub(super) fn account_key(&self) -> SigningKey {
        SigningKey::from_bytes(&Self::secret(self.number))
    }

    fn registration(&self) -> anyhow::Result<RegisterRequest> {
        let key = self.account_key();
        let public = PublicKey(key.verifying_key().to_bytes());
        self.registration_with(public, |domain, message| key.sign(&signed_bytes(domain, message)).to_bytes())
    }

    fn registration_with(
        &self,
        public: PublicKey,
        sign: impl Fn(&str, &[u8]) -> [u8; 64],
    ) -> anyhow::Result<RegisterRequest> {
        let sign = |domain, message: &[u8]| Base64(sign(domain, message).to_vec());
        let device = Device { id: DeviceId::FIRST, reg_id: self.reg_id(), curve25519: public, ed25519: public };
        let list = DeviceList {
            account: self.account,
            revision: 1,
            signed_at: Timestamp::from_secs(1_800_000_000),
            devices: vec![device],
        };
        let list = list.to_bytes();
        let signature = sign(DEVICE_LIST_DOMAIN, &list);
        let (token_hash, handle) = (self.token.hash(), format!("load{}", self.number).parse()?);
        let proof = sign(REGISTER_DOMAIN, &RegisterRequest::proof_message(self.account, &token_hash, &handle));
        Ok(RegisterRequest {
            account: self.account,
            handle,
            account_key: public,
            device_list: SignedDeviceList { list: Base64(list), signature },
            token_hash: Base64(token_hash.to_vec()),
            proof,
            invite: None,
        })
    }
}

/// The registration of the person of that number, as long as a genuine one but signed by nobody, and the reg_id of its
/// device: for a store that is filled without asking.
pub(in crate::commands::bench) fn unsigned(number: u32) -> anyhow::Result<(RegisterRequest, u32)> {
    let person = Person::nth(number);
    let registration = person.registration_with(PublicKey(Person::secret(number)), |_, _| [0; 64])?;
    Ok((registration, person.reg_id()))
}

/// Registers the people `first..first + count`.
pub(super) async fn register(address: &str, first: u32, count: u32) -> anyhow::Result<()> {
    register_each(address, first, count, None).await
}

/// Registers the people `0..count`, each to be woken by Apple at a token that is their number.
pub(super) async fn register_wakeable(address: &str, count: u32, topic: &str) -> anyhow::Result<()> {
    register_each(address, 0, count, Some(topic)).await
}

async fn register_each(address: &str, first: u32, count: u32, topic: Option<&str>) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    for lane in 0..REGISTERING_AT_ONCE.min(count) {
        let (address, topic) = (address.to_owned(), topic.map(str::to_owned));
        running.spawn(async move {
            let mut clerk = Clerk::connect(&address).await?;
            for number in (first + lane..first + count).step_by(REGISTERING_AT_ONCE as usize) {
                let person = Person::nth(number);
                clerk.register(&person).await?;
                if let Some(topic) = &topic {
                    let (token, topic, voip_token) = (format!("{number:064x}"), topic.clone(), None);
                    let target = PushTarget::Apns { token, topic, sandbox: false, voip_token };
                    clerk.send(Method::PUT, Some(&person), "/v1/push", &target).await?;
                }
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

/// Posts something as a person.
pub(super) async fn post(address: &str, by: &Person, path: &str, body: &impl Serialize) -> anyhow::Result<()> {
    Clerk::connect(address).await?.send(Method::POST, Some(by), path, body).await
}

/// A connection for registrations.
struct Clerk {
    address: String,
    send: SendRequest<Body>,
}

impl Clerk {
    async fn connect(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = handshake(TokioIo::new(stream)).await?;
        // An error of the connection is one of the request on it as well, which tells.
        tokio::spawn(connection);
        Ok(Self { address: address.to_owned(), send })
    }

    async fn register(&mut self, person: &Person) -> anyhow::Result<()> {
        self.send(Method::POST, None, "/v1/register", &person.registration()?).await
    }

    async fn send(
        &mut self,
        method: Method,
        by: Option<&Person>,
        path: &str,
        body: &impl Serialize,
    ) -> anyhow::Result<()> {
        self.send.ready().await?;
        let body = serde_json::to_vec(body)?;
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.address);
        if let Some(by) = by {
            request = request.header(AUTHORIZATION, format!("Bearer {}", by.token.to_text()));
        }
        let request = request.header(CONTENT_TYPE, "application/json").body(Body::from(body))?;
        let response = self.send.send_request(request).await?;
        let status = response.status();
        // The connection is free for the next request only when the answer is read.
        let body = axum::body::to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await;
        let body = body.context("an answer too long")?;
        ensure!(status.is_success(), "{path} was answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(())
    }
}

/// The longest answer that is read: a line of JSON.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
