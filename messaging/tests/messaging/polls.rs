//! Polls: who may, how long they wait, and how they end.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout};
use waxwing_messaging::Config;
use waxwing_protocol::Problem;
use waxwing_protocol::frames::codec::Codec;
use waxwing_protocol::frames::{ErrorCode, Frame, Hello, close, frame::Body};

use crate::client::{Client, hello, message};
use crate::node::{Person, TestNode, open_config};
use crate::transport::{Answer, post};

/// Long enough that a poll which waits for its end is seen to.
fn patient() -> Config {
    Config { poll_s: 30, ..open_config() }
}

async fn poll(node: &TestNode, person: &Person, hello: Hello, codec: Codec) -> (Answer, Vec<Frame>) {
    let mut body = BytesMut::new();
    codec.pack(&Frame::with_id(1, Body::Hello(hello)), &mut body);
    let authorization = format!("Bearer {}", person.token.to_text());
    let mut answer = post(node.address(), Some(&authorization), codec.media_type(), &body).await;
    let frames = std::iter::from_fn(|| codec.unpack(&mut answer.body).unwrap()).collect();
    (answer, frames)
}

#[tokio::test]
async fn a_poll_waits_for_a_message_and_brings_it_at_once() {
    // A poll that waited for its end would outlast every patience.
    let node = TestNode::with(Config { poll_s: 24 * 60 * 60, ..open_config() }).await;
    let alice = node.register("alice").await;
    let mut from = Client::connect(&node, &alice).await;
    // Nothing waits for either: a poll that brought something would be over before anybody saw it.
    for (codec, handle) in Codec::ALL.into_iter().zip(["bob", "carol"]) {
        let to = node.register(handle).await;
        let waiting = poll(&node, &to, hello(&to), codec);
        let sending = async {
            while !node.messaging().devices(handle).await.unwrap().unwrap()[0].connected {
                tokio::task::yield_now().await;
            }
            from.send(message(&to, 1 + codec as u64, b"sealed")).await.unwrap();
        };
        let ((answer, frames), ()) = tokio::join!(waiting, sending);
        assert_eq!((answer.status, answer.close), (200, None));
        assert!(matches!(frames[0].body, Some(Body::Welcome(_))), "{frames:?}");
        assert!(frames.iter().any(|frame| matches!(&frame.body, Some(Body::Deliver(_)))), "{frames:?}");
    }
}

#[tokio::test]
async fn a_poll_with_nothing_to_tell_ends_by_itself() {
    let node = TestNode::start().await;
    let bob = node.register("bob").await;
    let began = Instant::now();
    let (answer, frames) = poll(&node, &bob, hello(&bob), Codec::Protobuf).await;
    assert_eq!((answer.status, answer.close), (200, None));
    assert!(began.elapsed() >= Duration::from_secs(1), "it waited");
    assert_eq!(frames.len(), 3, "Welcome, and that both lanes are empty: {frames:?}");
}

#[tokio::test]
async fn a_newer_connection_ends_a_poll_and_a_poll_ends_an_older_connection() {
    let node = TestNode::with(patient()).await;
    let bob = node.register("bob").await;
    let mut socket = Client::connect(&node, &bob).await;
    let polling = poll(&node, &bob, hello(&bob), Codec::Protobuf);
    let displacing = async {
        assert_eq!(socket.closed().await, Some(close::DISPLACED));
        Client::connect(&node, &bob).await
    };
    let both = async { tokio::join!(polling, displacing) };
    let ((answer, _), _socket) = timeout(Duration::from_secs(20), both).await.unwrap();
    assert_eq!((answer.status, answer.close), (409, Some(close::DISPLACED)));
}

#[tokio::test]
async fn strangers_and_lies_get_their_status_and_an_error_in_frames() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let (answer, frames) = poll(&node, &alice, Hello { device: 2, ..hello(&alice) }, Codec::Json).await;
    assert_eq!((answer.status, answer.close), (403, Some(close::REFUSED)));
    match &frames[..] {
        [Frame { id: 1, body: Some(Body::Error(error)), .. }] => assert_eq!(error.code(), ErrorCode::Forbidden),
        other => panic!("{other:?}"),
    }
    let mut body = BytesMut::new();
    Codec::Protobuf.pack(&Frame::with_id(1, Body::Hello(hello(&alice))), &mut body);
    let answer = post(node.address(), None, Codec::Protobuf.media_type(), &body).await;
    assert_eq!((answer.status, answer.close), (401, Some(close::UNAUTHENTICATED)));
    let answer = post(node.address(), None, Codec::Protobuf.media_type(), b"\xff\xff").await;
    assert_eq!((answer.status, answer.close), (400, Some(close::BAD_FRAME)));
    let answer = post(node.address(), None, Codec::Json.media_type(), b"{").await;
    assert_eq!((answer.status, answer.close), (400, Some(close::BAD_FRAME)));
}

#[tokio::test]
async fn nothing_that_was_not_agreed_on_is_taken() {
    let node = TestNode::start().await;
    let problem = |body: &Bytes| serde_json::from_slice::<Problem>(body).unwrap();
    for media_type in ["application/json", "application/octet-stream", "application/vnd.waxwing.v2.pb"] {
        let answer = post(node.address(), None, media_type, b"{}").await;
        let problem = problem(&answer.body);
        assert_eq!((answer.status, problem.slug()), (415, "media-type-unsupported"), "{media_type}");
        assert_eq!(problem.extensions["supported"], serde_json::json!(Codec::ALL.map(Codec::media_type)));
    }
    let large = vec![b' '; Codec::Json.frame_bytes_max() + 100];
    let answer = post(node.address(), None, Codec::Json.media_type(), &large).await;
    assert_eq!((answer.status, problem(&answer.body).slug()), (413, "body-too-large"));
    let foreign = http::Request::post("/v1/poll")
        .header("origin", "https://evil.example")
        .header("host", "chat.example")
        .header("content-type", Codec::Json.media_type())
        .body(axum::body::Body::empty())
        .unwrap();
    let (status, _, body) = node.request(foreign).await;
    assert_eq!((status.as_u16(), crate::node::slug(&body)), (403, "origin-refused"));
}
