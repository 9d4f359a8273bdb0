//! `ws`, the WebSocket library of Node: a client of the frames that shares no code with ours; and the AsyncAPI project's
//! own parser, which reads the description that such a client would be written from.

use std::process::Command;

use ed25519_dalek::{Signer as _, SigningKey};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use waxwing_protocol::api::RegisterRequest;
use waxwing_protocol::identity::{
    Base64, DEVICE_LIST_DOMAIN, Device, DeviceList, PublicKey, SignedDeviceList, signed_bytes,
};
use waxwing_protocol::{AccountId, DeviceId, DeviceToken, Timestamp};

use super::tools::{Running, installed, node_script, on_path, trial};
use crate::support::Service;

/// In the JSON of the parser: 0 is an error, 1 a warning, 2 and 3 are remarks.
const WARNING: u64 = 1;

pub fn trials() -> Vec<Trial> {
    let there = |package: &str| on_path("node").is_some() && installed().join("node_modules").join(package).is_dir();
    vec![
        trial("ws_speaks_the_frames_from_their_description", "ws", there("ws"), ws_speaks_the_frames),
        trial(
            "the_asyncapi_document_is_without_complaint",
            "@asyncapi/parser",
            there("@asyncapi/parser"),
            asyncapi_is_without_complaint,
        ),
    ]
}

/// Registers somebody whose messages are sealed elsewhere; gives what its device says of itself.
pub fn registered(service: &Service, handle: &str) -> Value {
    let account = AccountId::from(uuid::Uuid::new_v4());
    let seed = |use_: &str| *blake3::hash(format!("{account}/{use_}").as_bytes()).as_bytes();
    let (account_key, device_key) = (SigningKey::from_bytes(&seed("account")), SigningKey::from_bytes(&seed("device")));
    let key = |key: &SigningKey| PublicKey(key.verifying_key().to_bytes());
    let sign = |bytes: &[u8]| Base64(account_key.sign(bytes).to_bytes().to_vec());
    let token = DeviceToken::new(account, DeviceId::FIRST, seed("token"));
    let reg_id = 7;
    let device = Device { id: DeviceId::FIRST, reg_id, curve25519: key(&device_key), ed25519: key(&device_key) };
    let signed_at = Timestamp::from_secs(1_800_000_000);
    let list = DeviceList { account, revision: 1, signed_at, devices: vec![device] }.to_bytes();
    let handle = handle.parse().unwrap();
    let request = RegisterRequest {
        account,
        account_key: key(&account_key),
        device_list: SignedDeviceList { signature: sign(&signed_bytes(DEVICE_LIST_DOMAIN, &list)), list: Base64(list) },
        token_hash: Base64(token.hash().to_vec()),
        proof: sign(&RegisterRequest::proof_bytes(account, &token.hash(), &handle)),
        handle,
        invite: None,
    };
    let url = format!("{}/v1/register", service.url);
    let answer = reqwest::blocking::Client::new().post(url).json(&request).send().unwrap();
    assert_eq!(answer.status(), 201, "{}", answer.text().unwrap());
    json!({"account": account, "device": 1, "reg_id": reg_id, "token": token.to_text()})
}

fn ws_speaks_the_frames() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let people = ["alice", "bob"].map(|handle| registered(&service, handle).to_string());
    let socket = format!("ws://{}/v1/ws", service.address());
    let script = node_script(dir.path(), "frames.mjs");
    let told = Running::start(Command::new("node").arg(script).arg(socket).args(people)).finish();
    assert_eq!(told, [json!({"plain": "passed"}), json!({"done": true})]);
}

fn asyncapi_is_without_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    let script = node_script(dir.path(), "asyncapi.mjs");
    let url = format!("{}/v1/asyncapi.json", service.url);
    let told = Running::start(Command::new("node").arg(script).arg(url)).finish();
    let complaints: Vec<_> =
        told.iter().filter(|line| line["severity"].as_u64().is_some_and(|it| it <= WARNING)).collect();
    assert!(complaints.is_empty(), "{complaints:?}");
    let read = told.last().unwrap();
    assert_eq!((&read["version"], &read["channels"]), (&json!("3.0.0"), &json!(["/v1/poll", "/v1/ws"])));
    assert!(read["operations"].as_u64() >= Some(20) && read["replies"].as_u64() >= Some(6), "{read}");
}
