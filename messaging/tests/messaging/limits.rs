//! Limits: whoever does too much is told when to go on, and nobody else notices.

use bytes::BytesMut;
use waxwing_messaging::Config;
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{ErrorCode, Frame, close, frame::Body};

use crate::client::{Client, hello, message, upgrade};
use crate::node::{TestNode, open_config};
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
    Codec::Json.pack(&Frame::with_id(1, Body::Hello(hello(&alice))), &mut body);
    let authorization = format!("Bearer {}", &*token);
    let answer = post(node.address(), Some(&authorization), Codec::Json.media_type(), &body).await;
    assert_eq!((answer.status, answer.close), (429, Some(close::RATE_LIMITED)));
    assert!(answer.retry_after.is_some_and(|seconds| seconds > 20), "{:?}", answer.retry_after);

    Client::connect(&node, &bob).await.send(message(&alice, 1, b"hello")).await.unwrap();
}
