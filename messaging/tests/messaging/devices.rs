//! An account's further devices: linked, written to, renamed, revoked; and their tokens.

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use waxwing_messaging::Config;
use waxwing_protocol::api::{DevicesView, KeysCheckRequest, LinkRequest, PrekeyClaim, PrekeyUpload, RevokeRequest};
use waxwing_protocol::frames::{Class, ErrorCode, Frame, Refresh, close, frame};
use waxwing_protocol::identity::{Base64, PrekeyKind, PublicKey};

use crate::client::{Client, hello, message, message_to, number, upgrade};
use crate::node::{Person, TestNode, open_config, slug};

const LINK: &str = "/v1/devices/link";

/// Adds a device by a list of these devices.
async fn link(node: &TestNode, by: &Person, request: &LinkRequest) -> (StatusCode, Value) {
    node.call(Method::POST, LINK, Some(by), request).await
}

async fn revoke(node: &TestNode, by: &Person, device: u32, revision: u64, left: &[&Person]) -> (StatusCode, Value) {
    let request = RevokeRequest { device_list: by.list(revision, left) };
    node.call(Method::DELETE, &format!("/v1/devices/{device}"), Some(by), &request).await
}

/// Alice with a second device, and bob with one.
async fn town() -> (TestNode, Person, Person, Person) {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let phone = alice.device(2);
    let (status, body) = link(&node, &alice, &phone.link(alice.list(2, &[&alice, &phone]))).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    (node, alice, phone, bob)
}

impl Client {
    /// The revision in the next DevicesChanged.
    async fn devices_changed(&mut self) -> (Vec<u8>, u64) {
        loop {
            if let Some(frame::Body::DevicesChanged(changed)) = self.next().await.unwrap().body {
                return (changed.account.to_vec(), changed.revision);
            }
        }
    }
}

#[tokio::test]
async fn a_second_device_is_linked_once_and_everybody_must_write_to_both() {
    let (mut node, alice, phone, bob) = town().await;
    let mut from_bob = Client::connect(&node, &bob).await;
    let short = from_bob.send(message(&alice, 1, b"x")).await.unwrap_err();
    assert_eq!((short.code(), &short.missing[..], &short.extra[..]), (ErrorCode::DeviceMismatch, &[2][..], &[][..]));
    let mut foreign = bob.device(3);
    foreign.account = alice.account;
    let long = from_bob.send(message_to(&[&alice, &phone, &foreign], 1, b"x")).await.unwrap_err();
    assert_eq!((long.code(), &long.missing[..], &long.extra[..]), (ErrorCode::DeviceMismatch, &[][..], &[3][..]));
    let mut replaced = alice.device(2);
    replaced.reg_id ^= 1;
    let stale = from_bob.send(message_to(&[&alice, &replaced], 1, b"x")).await.unwrap_err();
    assert_eq!((stale.code(), &stale.stale[..]), (ErrorCode::StaleDevices, &[2][..]));
    from_bob.send(message_to(&[&alice, &phone], 1, b"x")).await.unwrap();

    node.crash_and_restart().await;
    for device in [&alice, &phone] {
        let mut client = Client::connect(&node, device).await;
        assert_eq!(number(&client.messages(1).await[0].1), 1);
    }
    let (status, _) = link(&node, &alice, &phone.link(alice.list(2, &[&alice, &phone]))).await;
    assert_eq!(status, StatusCode::OK, "the same request again is the same device");
    // What one device sends, the other gets as its own account's.
    let mut at_phone = Client::connect(&node, &phone).await;
    let mut sync = message(&alice, 7, b"copy");
    sync.class = Class::Sync.into();
    at_phone.send(sync).await.unwrap();
    let mut at_home = Client::connect(&node, &alice).await;
    let copies = at_home.messages(2).await;
    assert_eq!(copies.iter().map(|(_, row)| row.from_device).collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test]
async fn a_link_must_be_the_next_list_with_one_device_more() {
    let node = TestNode::start().await;
    let (alice, mallory) = (node.register("alice").await, node.register("mallory").await);
    let (two, three) = (alice.device(2), alice.device(3));
    let good = two.link(alice.list(2, &[&alice, &two]));
    let mut other = alice.device(1);
    other.reg_id ^= 1;
    let foreign_list = mallory.list(2, &[&mallory, &two]);
    let signed_by_mallory = {
        let mut twin = mallory.device(9);
        twin.account = alice.account;
        twin.list(2, &[&alice, &two])
    };
    let bad = [
        (two.link(foreign_list), "identity-invalid"),
        (two.link(signed_by_mallory), "identity-invalid"),
        (two.link(alice.list(3, &[&alice, &two])), "revision-conflict"),
        (two.link(alice.list(1, &[&alice, &two])), "revision-conflict"),
        (two.link(alice.list(2, &[&alice])), "devices-malformed"),
        (two.link(alice.list(2, &[&alice, &two, &three])), "devices-malformed"),
        (two.link(alice.list(2, &[&other, &two])), "devices-malformed"),
        (LinkRequest { fallback: three.prekey(1, PrekeyKind::Fallback), ..good.clone() }, "identity-invalid"),
        (LinkRequest { fallback: two.prekey(1, PrekeyKind::OneTime), ..good.clone() }, "devices-malformed"),
        (LinkRequest { token_hash: Base64(vec![1; 31]), ..good.clone() }, "devices-malformed"),
        (LinkRequest { name: Base64(vec![1; 257]), ..good.clone() }, "devices-malformed"),
    ];
    for (request, expected) in bad {
        let (status, body) = link(&node, &alice, &request).await;
        assert_eq!(slug(&body), expected, "{status} {body}");
    }
    assert_eq!(link(&node, &alice, &good).await.0, StatusCode::CREATED);
    let (_, body) = link(&node, &alice, &three.link(alice.list(2, &[&alice, &three]))).await;
    assert_eq!((slug(&body), &body["revision"], &body["next_device"]), ("revision-conflict", &json!(2), &json!(3)));
}

/// Two devices that add a third one each at the same moment: one list wins, and the other learns of it.
#[tokio::test]
async fn of_two_links_that_race_one_wins() {
    let (node, alice, phone, _bob) = town().await;
    let (three, four) = (alice.device(3), alice.device(4));
    let requests =
        [three.link(alice.list(3, &[&alice, &phone, &three])), four.link(alice.list(3, &[&alice, &phone, &four]))];
    let answers = join_all([&alice, &phone].into_iter().zip(&requests).map(|(by, it)| link(&node, by, it))).await;
    let mut statuses: Vec<_> = answers.iter().map(|(status, _)| status.as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409]);
}

#[tokio::test]
async fn a_new_device_can_be_written_to_at_once_and_has_an_opaque_name() {
    let (node, alice, phone, bob) = town().await;
    let path = format!("/v1/keys/{}/2/claim", alice.account);
    let (_, body) = node.call(Method::POST, &path, Some(&bob), &json!({})).await;
    let claim: PrekeyClaim = serde_json::from_value(body).unwrap();
    assert_eq!(claim.prekey, phone.prekey(250, PrekeyKind::Fallback));

    let name = json!({ "name": Base64(b"another".to_vec()) });
    assert_eq!(node.call(Method::PUT, "/v1/devices/2/name", Some(&alice), &name).await.0, StatusCode::NO_CONTENT);
    let (status, body) = node.call(Method::PUT, "/v1/devices/9/name", Some(&alice), &name).await;
    assert_eq!((status, slug(&body)), (StatusCode::NOT_FOUND, "device-not-found"));
    Client::connect(&node, &phone).await;
    let view: DevicesView = serde_json::from_value(node.get("/v1/devices", &phone).await.1).unwrap();
    assert_eq!((view.device_list, view.next_device.get()), (alice.list(2, &[&alice, &phone]), 3));
    assert_eq!(view.devices.iter().map(|it| it.name.0.clone()).collect::<Vec<_>>(), [vec![], b"another".to_vec()]);
    let connected: Vec<_> = view.devices.iter().map(|it| it.connected_at.as_millis() > 0).collect();
    assert_eq!(connected, [false, true]);
}

/// Everything of a revoked device goes: its connection, token, prekeys and mailbox; its number is never used again.
#[tokio::test]
async fn a_revoked_device_is_gone_for_everybody_at_once_and_for_good() {
    let (mut node, alice, phone, bob) = town().await;
    let mut at_phone = Client::connect(&node, &phone).await;
    let mut from_bob = Client::connect(&node, &bob).await;
    let mut at_home = Client::connect(&node, &alice).await;
    from_bob.send(message_to(&[&alice, &phone], 1, b"for both")).await.unwrap();

    assert_eq!(slug(&revoke(&node, &alice, 2, 4, &[&alice]).await.1), "revision-conflict");
    assert_eq!(slug(&revoke(&node, &alice, 9, 3, &[&alice]).await.1), "device-not-found");
    assert_eq!(slug(&revoke(&node, &alice, 2, 3, &[&phone]).await.1), "devices-malformed");
    assert_eq!(slug(&revoke(&node, &bob, 2, 2, &[&alice]).await.1), "device-not-found", "of another account");
    for _again in 0..2 {
        assert_eq!(revoke(&node, &alice, 2, 3, &[&alice]).await.0, StatusCode::NO_CONTENT);
    }
    assert_eq!(at_phone.closed().await, Some(close::UNAUTHENTICATED));
    assert_eq!(at_home.devices_changed().await, (alice.account.as_bytes().to_vec(), 3));
    assert_eq!(node.get("/v1/keys", &phone).await.0, StatusCode::UNAUTHORIZED);
    let path = format!("/v1/keys/{}/2/claim", alice.account);
    assert_eq!(node.call(Method::POST, &path, Some(&bob), &json!({})).await.0, StatusCode::NOT_FOUND);
    let extra = from_bob.send(message_to(&[&alice, &phone], 2, b"x")).await.unwrap_err();
    assert_eq!((extra.code(), &extra.extra[..]), (ErrorCode::DeviceMismatch, &[2][..]));
    from_bob.send(message(&alice, 2, b"for one")).await.unwrap();

    node.crash_and_restart().await;
    assert_eq!(node.get("/v1/keys", &phone).await.0, StatusCode::UNAUTHORIZED);
    let again = phone.link(alice.list(4, &[&alice, &phone]));
    assert_eq!(slug(&link(&node, &alice, &again).await.1), "revision-conflict", "numbers are never used again");
    let three = alice.device(3);
    assert_eq!(link(&node, &alice, &three.link(alice.list(4, &[&alice, &three]))).await.0, StatusCode::CREATED);
    let mut at_three = Client::connect(&node, &three).await;
    let (waiting, _) = at_three.drained().await;
    assert!(waiting.is_empty(), "a new device starts with nothing");
}

#[tokio::test]
async fn people_who_have_written_hear_of_changed_devices() {
    let node = TestNode::start().await;
    let [alice, bob, carol] = [node.register("alice").await, node.register("bob").await, node.register("carol").await];
    let (mut at_bob, mut at_carol) = (Client::connect(&node, &bob).await, Client::connect(&node, &carol).await);
    at_bob.send(message(&alice, 1, b"hello")).await.unwrap();
    let phone = alice.device(2);
    link(&node, &alice, &phone.link(alice.list(2, &[&alice, &phone]))).await;
    assert_eq!(at_bob.devices_changed().await, (alice.account.as_bytes().to_vec(), 2));
    // Carol has nothing to do with alice: the next she hears is of her own devices.
    let second = carol.device(2);
    link(&node, &carol, &second.link(carol.list(2, &[&carol, &second]))).await;
    assert_eq!(at_carol.devices_changed().await, (carol.account.as_bytes().to_vec(), 2));
}

/// The answer to Refresh may be lost: the old token works until the new one was used, and not a moment longer.
#[tokio::test]
async fn a_token_is_replaced_with_an_overlap_that_ends_when_the_new_one_is_used() {
    let mut node = TestNode::start().await;
    let alice = node.register("alice").await;
    let renewed = alice.with_token([7; 32]);
    let hash = bytes::Bytes::copy_from_slice(&renewed.token.hash());
    let refresh = |token_hash| Frame::with_id(5, frame::Body::Refresh(Refresh { token_hash }));
    for _again in 0..2 {
        let mut client = Client::connect(&node, &alice).await;
        client.put(refresh(hash.clone())).await;
        loop {
            match client.next().await.unwrap() {
                Frame { id: 5, body: Some(frame::Body::Ok(_)), .. } => break,
                Frame { body: Some(frame::Body::Error(error)), .. } => panic!("{error:?}"),
                _ => {}
            }
        }
        node.crash_and_restart().await;
    }
    assert_eq!(node.get("/v1/keys", &alice).await.0, StatusCode::OK, "its answer may have been lost");
    assert_eq!(node.get("/v1/keys", &renewed).await.0, StatusCode::OK);
    assert_eq!(node.get("/v1/keys", &alice).await.0, StatusCode::UNAUTHORIZED);
    node.crash_and_restart().await;
    assert_eq!(node.get("/v1/keys", &alice).await.0, StatusCode::UNAUTHORIZED);
    let mut client =
        Client::open(node.address(), upgrade(node.address(), Some(&renewed.token.to_text()))).await.unwrap();
    client.say_hello(hello(&renewed)).await.unwrap();
    client.put(refresh(bytes::Bytes::from_static(b"short"))).await;
    loop {
        if let Some(frame::Body::Error(error)) = client.next().await.unwrap().body {
            break assert_eq!(error.code(), ErrorCode::BadRequest);
        }
    }
}

#[tokio::test]
async fn a_device_finds_out_what_the_directory_lacks() {
    let (node, alice, phone, _bob) = town().await;
    let fallback = phone.prekey(250, PrekeyKind::Fallback).key;
    let key = phone.listed().ed25519;
    let check = async |by: &Person, fallback: Option<PublicKey>| {
        let request = KeysCheckRequest { curve25519: key, ed25519: key, fallback };
        node.call(Method::POST, "/v1/keys/check", Some(by), &request).await.1
    };
    let all = json!({ "identity": true, "fallback": true, "one_time": 0 });
    assert_eq!(check(&phone, Some(fallback)).await, all);
    assert_eq!(check(&phone, None).await["fallback"], false);
    assert_eq!(check(&alice, None).await["identity"], false);
    let upload = PrekeyUpload { one_time: vec![phone.prekey(1, PrekeyKind::OneTime)], fallback: None };
    node.call(Method::PUT, "/v1/keys", Some(&phone), &upload).await;
    assert_eq!(check(&phone, Some(fallback)).await["one_time"], 1);
}

#[tokio::test]
async fn claims_on_one_device_are_limited_whoever_claims() {
    let node = TestNode::with(Config { claims_per_hour: 2, ..open_config() }).await;
    let [alice, bob, carol] = [node.register("alice").await, node.register("bob").await, node.register("carol").await];
    let upload = PrekeyUpload { one_time: Vec::new(), fallback: Some(alice.prekey(1, PrekeyKind::Fallback)) };
    node.call(Method::PUT, "/v1/keys", Some(&alice), &upload).await;
    let path = format!("/v1/keys/{}/1/claim", alice.account);
    for by in [&bob, &carol] {
        assert_eq!(node.call(Method::POST, &path, Some(by), &json!({})).await.0, StatusCode::OK);
    }
    let request = http::Request::builder().method(Method::POST).uri(&path);
    let request = request.header("authorization", format!("Bearer {}", bob.token.to_text()));
    let (status, headers, body) = node.request(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((status, slug(&body)), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"));
    let wait: u64 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=1801).contains(&wait), "{wait}");
}

#[tokio::test]
async fn two_devices_meet_under_a_code_and_nobody_else_can_answer_for_an_account() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let id = waxwing_protocol::LinkId::from_bytes([7; 16]);
    let (door, answer) = (format!("/v1/links/{id}"), format!("/v1/links/{id}/answer"));
    let half = |bytes: &[u8]| json!({ "sealed": Base64(bytes.to_vec()) });
    assert_eq!(slug(&node.get(&door, &alice).await.1), "link-not-found");
    assert_eq!(node.call(Method::PUT, &door, None, &half(b"offer")).await.0, StatusCode::NO_CONTENT);
    assert_eq!(node.call(Method::GET, &door, None, &()).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(node.get(&door, &alice).await.1, half(b"offer"));
    assert_eq!(node.call(Method::GET, &answer, None, &()).await.0, StatusCode::NO_CONTENT);
    assert_eq!(node.call(Method::PUT, &answer, None, &half(b"answer")).await.0, StatusCode::UNAUTHORIZED);
    let (nothing, said) = ((), half(b"answer"));
    let (waited, _) = tokio::join!(
        node.call(Method::GET, &answer, None, &nothing),
        node.call(Method::PUT, &answer, Some(&alice), &said),
    );
    assert_eq!(waited, (StatusCode::OK, half(b"answer")));
    assert_eq!(slug(&node.call(Method::PUT, &door, None, &half(b"other")).await.1), "link-taken");
    assert_eq!(node.call(Method::PUT, "/v1/links/x", None, &half(b"offer")).await.0, StatusCode::NOT_FOUND);
    let large = half(&vec![0; 16 * 1024 + 1]);
    assert_eq!(slug(&node.call(Method::PUT, &door, None, &large).await.1), "link-too-large");
}
