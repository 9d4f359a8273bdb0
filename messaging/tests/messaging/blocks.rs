//! Blocks and message requests: what strangers and unwanted people get to know, which is nothing.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;
use waxwing_protocol::AccountId;
use waxwing_protocol::frames::{Class, DeviceBody, Direct, ErrorCode, Lane, Send, send};

use crate::client::{Client, message, msg_id};
use crate::node::{Person, TestNode, slug};
use crate::transport::on_every_transport;

on_every_transport!(
    a_blocked_sender_is_answered_as_everybody_is_and_nothing_arrives,
    a_block_ends_what_the_blocked_one_is_told_of_deliveries,
    a_first_message_of_a_stranger_is_marked_until_it_is_answered,
);

/// A target that names a device which `person` does not have.
fn to_device_two(person: &Person) -> send::Target {
    let body = DeviceBody { device: 2, reg_id: person.reg_id, ciphertext: Bytes::from_static(b"sealed") };
    send::Target::Direct(Direct { account: Bytes::copy_from_slice(person.account.as_bytes()), devices: vec![body] })
}

async fn block(node: &TestNode, person: &Person, peer: AccountId) -> StatusCode {
    node.call(Method::PUT, &format!("/v1/blocks/{peer}"), Some(person), &()).await.0
}

async fn a_blocked_sender_is_answered_as_everybody_is_and_nothing_arrives() {
    let mut node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    assert_eq!(block(&node, &bob, alice.account).await, StatusCode::NO_CONTENT);
    // A block outlives the process.
    node.crash_and_restart().await;
    let mut from = Client::connect(&node, &alice).await;
    let first = from.send(message(&bob, 1, b"let me in")).await.unwrap();
    assert!(!first.duplicate);
    let again = from.send(message(&bob, 1, b"let me in")).await.unwrap();
    assert_eq!((again.duplicate, again.server_ts), (true, first.server_ts), "as for everybody");
    let call = Send { class: Class::Call.into(), ..message(&bob, 2, b"ring") };
    from.send(call).await.unwrap();
    let mistaken = message(&carol, 3, b"to nobody's device");
    let mistaken = Send { target: Some(to_device_two(&bob)), ..mistaken };
    let refused = from.send(mistaken).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DeviceMismatch, "the same checks come first");
    Client::connect(&node, &carol).await.send(message(&bob, 4, b"hello")).await.unwrap();

    let mut to = Client::connect(&node, &bob).await;
    let (_, only) = to.messages(1).await.remove(0);
    assert_eq!((only.msg_id, only.seq), (msg_id(4), 1), "not even a gap tells of the others");

    let path = format!("/v1/blocks/{}", alice.account);
    assert_eq!(node.call(Method::DELETE, &path, Some(&bob), &()).await.0, StatusCode::NO_CONTENT);
    from.send(message(&bob, 5, b"better")).await.unwrap();
    to.ack(Lane::Normal, 1).await;
    let (_, next) = to.messages(1).await.remove(0);
    assert_eq!(next.msg_id, msg_id(5));
}

async fn a_block_ends_what_the_blocked_one_is_told_of_deliveries() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    // Bob writes, so that his acks tell alice.
    Client::connect(&node, &bob).await.send(message(&alice, 1, b"hello")).await.unwrap();
    let mut from = Client::connect(&node, &alice).await;
    from.messages(1).await;
    from.ack(Lane::Normal, 1).await;
    from.send(message(&bob, 2, b"before")).await.unwrap();
    assert_eq!(block(&node, &bob, alice.account).await, StatusCode::NO_CONTENT);
    let mut to = Client::connect(&node, &bob).await;
    let before = to.next_delivered(|envelope| envelope.msg_id == msg_id(2)).await;
    to.ack(Lane::Normal, before.seq).await;
    to.settled(&alice, 3).await;
    // Bob's next message comes after the receipt would have.
    let next = from.next_delivered(|envelope| envelope.msg_id != msg_id(1)).await;
    assert_eq!(next.class(), Class::Message, "{next:?}");
}

async fn a_first_message_of_a_stranger_is_marked_until_it_is_answered() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let (mut from, mut to) = (Client::connect(&node, &alice).await, Client::connect(&node, &bob).await);
    from.send(message(&bob, 1, b"may I?")).await.unwrap();
    let (_, asked) = to.messages(1).await.remove(0);
    assert!(asked.request, "{asked:?}");
    to.send(message(&alice, 2, b"of course")).await.unwrap();
    let answered = from.next_delivered(|envelope| envelope.msg_id == msg_id(2)).await;
    assert!(!answered.request, "alice has written to bob");
    from.send(message(&bob, 3, b"thank you")).await.unwrap();
    let next = to.next_delivered(|envelope| envelope.msg_id == msg_id(3)).await;
    assert!(!next.request, "{next:?}");
}

#[tokio::test]
async fn blocks_are_listed_and_refused_where_they_make_no_sense() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    for peer in [&bob, &carol, &bob] {
        assert_eq!(block(&node, &alice, peer.account).await, StatusCode::NO_CONTENT);
    }
    let mut blocked = [bob.account, carol.account];
    blocked.sort();
    assert_eq!(node.get("/v1/blocks", &alice).await, (StatusCode::OK, json!({ "blocked": blocked })));
    assert_eq!(node.get("/v1/blocks", &bob).await.1, json!({ "blocked": [] }), "nobody sees another's");

    let refused = |path: String| {
        let (node, alice) = (&node, &alice);
        async move {
            let (status, body) = node.call(Method::PUT, &path, Some(alice), &()).await;
            (status.as_u16(), slug(&body).to_owned())
        }
    };
    assert_eq!(refused(format!("/v1/blocks/{}", alice.account)).await, (422, "block-of-itself".into()));
    let nobody = AccountId::from_bytes([7; 16]);
    assert_eq!(refused(format!("/v1/blocks/{nobody}")).await, (404, "account-not-found".into()));
    assert_eq!(refused("/v1/blocks/nobody".into()).await, (404, "account-not-found".into()));
    let (status, _) = node.call(Method::PUT, &format!("/v1/blocks/{}", bob.account), None, &()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    // An account that is deleted takes its list along.
    let proof = json!({ "proof": alice.sign(waxwing_protocol::identity::DELETE_DOMAIN, alice.account.as_bytes()) });
    assert_eq!(node.call(Method::POST, "/v1/account/delete", Some(&alice), &proof).await.0, StatusCode::NO_CONTENT);
}
