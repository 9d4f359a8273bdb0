//! Limits: whoever does too much is told when to go on, and nobody else notices.

use axum::body::Body;
use bytes::BytesMut;
use http::Request;
use waxwing_messaging::Config;
use waxwing_protocol::ClientAddress;
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{self, ErrorCode, Frame, close};

use crate::client::{Client, hello, message, upgrade};
use crate::node::{Person, TestNode, open_config, slug};
use crate::transport::post;

#[tokio::test]
async fn who_floods_one_mailbox_is_told_to_wait_and_can_write_to_others() {
    let node = TestNode::with(Config { pair_sends_per_minute: 5, ..open_config() }).await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=5 {
        from.send(message(&bob, n, b"flood")).await.unwrap();
    }
    let refused = from.send(message(&bob, 6, b"flood")).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::RateLimited);
    assert!((10_000..=12_001).contains(&refused.retry_after_ms), "one comes back every 12 s: {refused:?}");
    from.send(message(&carol, 7, b"hello")).await.unwrap();
}

#[tokio::test]
async fn a_device_and_an_account_have_limits_over_all_they_write_to() {
    for config in
        [Config { sends_per_minute: 2, ..open_config() }, Config { account_sends_per_minute: 2, ..open_config() }]
    {
        let node = TestNode::with(config).await;
        let (alice, bob, carol) =
            (node.register("alice").await, node.register("bob").await, node.register("carol").await);
        let mut from = Client::connect(&node, &alice).await;
        from.send(message(&bob, 1, b"one")).await.unwrap();
        from.send(message(&carol, 2, b"two")).await.unwrap();
        let refused = from.send(message(&bob, 3, b"three")).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::RateLimited);
        Client::connect(&node, &bob).await.send(message(&alice, 4, b"mine")).await.unwrap();
    }
}

#[tokio::test]
async fn a_device_that_reconnects_in_a_loop_is_told_when_to_come_back() {
    let node = TestNode::with(Config { hellos_per_minute: 2, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    for _ in 0..2 {
        drop(Client::connect(&node, &alice).await);
    }
    let token = alice.token.to_text();
    let mut client = Client::open(node.address(), upgrade(node.address(), Some(&token))).await.unwrap();
    let refused = client.say_hello(hello(&alice)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::RateLimited);
    assert!(refused.retry_after_ms > 20_000, "{refused:?}");
    assert_eq!(client.closed().await, Some(close::RATE_LIMITED));

    let mut body = BytesMut::new();
    Codec::Json.pack(&Frame::with_id(1, frames::frame::Body::Hello(hello(&alice))), &mut body);
    let authorization = format!("Bearer {}", &*token);
    let answer = post(node.address(), Some(&authorization), Codec::Json.media_type(), &body).await;
    assert_eq!((answer.status, answer.close), (429, Some(close::RATE_LIMITED)));
    assert!(answer.retry_after.is_some_and(|seconds| seconds > 20), "{:?}", answer.retry_after);

    Client::connect(&node, &bob).await.send(message(&alice, 1, b"hello")).await.unwrap();
}

#[tokio::test]
async fn an_address_that_registers_without_end_is_told_to_wait_and_its_neighbour_is_not() {
    let node = TestNode::with(Config { address_registrations_per_hour: 2, ..open_config() }).await;
    let register = async |handle: &str, from: &str| {
        let request = Request::builder().method("POST").uri("/v1/register").header("content-type", "application/json");
        let body = serde_json::to_vec(&Person::new(handle).registration()).unwrap();
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(ClientAddress::new(from.parse().unwrap()));
        node.request(request).await
    };
    for handle in ["one", "two"] {
        assert_eq!(register(handle, "192.0.2.1:1000").await.0, 201);
    }
    let (status, headers, body) = register("three", "192.0.2.1:2000").await;
    assert_eq!((status.as_u16(), slug(&body)), (429, "rate-limited"));
    let wait: u32 = headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1700..=1801).contains(&wait), "one comes back in half an hour: {wait}");
    assert_eq!(register("four", "192.0.2.2:1000").await.0, 201);
}
