//! What a connection can ask for in its Hello: to go on where the last one ended, to be sent nothing old, to be told what
//! waits; and what a poll acks out of order.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;
use waxwing_protocol::frames::{
    DrainMode, ErrorCode, Frame, Have, Hello, Lane, PresenceSub, QueueSummary, Send, SeqRange, Window, frame::Body,
};

use crate::client::{Client, have, hello, message, number};
use crate::node::{Person, TestNode, slug};
use crate::transport::{on_both_sockets, on_every_transport};

on_every_transport!(
    welcome_tells_how_much_waits,
    what_is_stored_out_of_order_is_acked_by_hello_and_does_not_come_again,
    which_conversations_wait_is_told_to_who_asks,
);

on_both_sockets!(
    a_resumed_connection_has_its_window_and_its_subscriptions,
    who_wants_nothing_old_gets_what_is_new_and_acks_nothing_else,
);

fn id(person: &Person) -> Bytes {
    Bytes::copy_from_slice(person.account.as_bytes())
}

async fn welcome_tells_how_much_waits() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=5 {
        from.send(message(&bob, n, &[7; 100])).await.unwrap();
    }
    let epoch = Client::connect(&node, &bob).await.welcome.epoch;
    let to = Client::connect_with(&node, &bob, Hello { have: have(epoch, 2), ..hello(&bob) }).await;
    let [normal, urgent] = &to.welcome.pending[..] else { panic!("two lanes") };
    assert_eq!((normal.count_estimate, normal.head_seq, normal.tail_seq, normal.bytes), (3, 3, 5, 300));
    assert_eq!((urgent.count_estimate, urgent.head_seq, urgent.tail_seq, urgent.bytes), (0, 0, 0, 0));
}

async fn what_is_stored_out_of_order_is_acked_by_hello_and_does_not_come_again() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=6 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    let epoch = Client::connect(&node, &bob).await.welcome.epoch;
    let span = |first, last| SeqRange { first, last };
    let ranges = |epoch, normal_ranges| Some(Have { epoch, normal: 1, normal_ranges, ..Have::default() });
    let of_another_mailbox = Hello { have: ranges(epoch + 1, vec![span(1, 6)]), ..hello(&bob) };
    assert_eq!(Client::connect_with(&node, &bob, of_another_mailbox).await.drained().await.0.len(), 6);
    // The last span was never given: nothing of it counts.
    let held = Hello { have: ranges(epoch, vec![span(3, 4), span(6, 6), span(6, 99)]), ..hello(&bob) };
    let mut to = Client::connect_with(&node, &bob, held).await;
    let seqs = |waiting: Vec<(Lane, _)>| waiting.iter().map(|(_, envelope)| number(envelope)).collect::<Vec<_>>();
    assert_eq!(seqs(to.drained().await.0), [2, 5]);
    let mut again = Client::connect(&node, &bob).await;
    assert_eq!(seqs(again.drained().await.0), [2, 5], "it is durable");
}

fn in_conversation(to: &Person, n: u64, conversation: u8) -> Send {
    Send { conv_id: vec![conversation; 16].into(), ..message(to, n, b"sealed") }
}

async fn which_conversations_wait_is_told_to_who_asks() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for (n, conversation) in (1..).zip([1, 2, 1, 3, 1, 2]) {
        from.send(in_conversation(&bob, n, conversation)).await.unwrap();
    }
    from.send(message(&bob, 7, b"of no conversation")).await.unwrap();
    let asking = Hello { features: vec!["queue-summary".into()], ..hello(&bob) };
    let mut to = Client::connect_with(&node, &bob, asking).await;
    let QueueSummary { conversations, complete } = loop {
        if let Some(Body::QueueSummary(summary)) = to.next().await.unwrap().body {
            break summary;
        }
    };
    let told: Vec<_> = conversations.iter().map(|it| (it.conv_id[0], it.count, it.last_seq)).collect();
    assert_eq!((told, complete), (vec![(2, 2, 6), (1, 3, 5), (3, 1, 4)], true));
}

async fn a_resumed_connection_has_its_window_and_its_subscriptions() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut of_bob = Client::connect(&node, &bob).await;
    of_bob.send(message(&alice, 1, b"hello")).await.unwrap();

    let mut first = Client::connect(&node, &alice).await;
    assert!(!first.welcome.resumed);
    first.put(Frame::push(Body::Window(Window { msgs: 3, bytes: 5_000 }))).await;
    let sub = PresenceSub { add: vec![id(&bob)], remove: Vec::new() };
    first.put(Frame::with_id(7, Body::PresenceSub(sub))).await;
    while !matches!(first.next().await.unwrap().body, Some(Body::PresenceUpdate(_))) {}
    let token = first.welcome.resume_token.clone();
    drop(first);
    not_connected(&node, &alice).await;
    drop(of_bob);

    let resuming = |resume_token| Hello { resume_token, ..hello(&alice) };
    let mut second = Client::connect_with(&node, &alice, resuming(token.clone())).await;
    assert!(second.welcome.resumed);
    assert_eq!(second.welcome.window, Some(Window { msgs: 3, bytes: 5_000 }));
    // In the grace of having left; who comes back in the background goes at once when that ends. It is told either way.
    let preferences = json!({ "presence": "nobody" });
    let (status, _) = node.call(Method::PUT, "/v1/preferences", Some(&bob), &preferences).await;
    assert_eq!(status, StatusCode::OK);
    let told = loop {
        if let Some(Body::PresenceUpdate(update)) = second.next().await.unwrap().body {
            break update.items;
        }
    };
    assert_eq!(told[0].account, id(&bob), "without having subscribed again");
    drop(second);
    not_connected(&node, &alice).await;

    for worthless in [token, Bytes::from_static(b"made up")] {
        let third = Client::connect_with(&node, &alice, resuming(worthless)).await;
        assert!(!third.welcome.resumed && third.welcome.window != Some(Window { msgs: 3, bytes: 5_000 }));
    }
}

/// Waits until the node knows that a device has gone.
async fn not_connected(node: &TestNode, person: &Person) {
    while node.messaging().devices(&person.handle).await.unwrap().unwrap()[0].connected {
        tokio::task::yield_now().await;
    }
}

async fn who_wants_nothing_old_gets_what_is_new_and_acks_nothing_else() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=3 {
        from.send(message(&bob, n, b"old")).await.unwrap();
    }
    let live = Hello { drain: DrainMode::LiveOnly.into(), ..hello(&bob) };
    let mut to = Client::connect_with(&node, &bob, live).await;
    from.send(message(&bob, 4, b"new")).await.unwrap();
    let (lane, envelope) = to.messages(1).await.remove(0);
    assert_eq!((number(&envelope), envelope.seq), (4, 4));
    to.ack(lane, envelope.seq).await;
    to.settled(&alice, 1).await;
    let mut again = Client::connect(&node, &bob).await;
    let waiting: Vec<_> = again.drained().await.0.iter().map(|(_, envelope)| number(envelope)).collect();
    assert_eq!(waiting, [1, 2, 3], "an ack covers nothing that was not sent");
}

#[tokio::test]
async fn a_report_is_kept_for_the_operator_with_what_was_given_away_and_nothing_else() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let report = json!({
        "account": bob.account, "reason": "threats",
        "messages": [{"msg_id": "00000000-0000-7000-8000-000000000001", "text": "or else"}],
    });
    let (status, _) = node.call(Method::POST, "/v1/report", Some(&alice), &report).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    let kept = std::fs::read_to_string(node.data().join("reports.jsonl")).unwrap();
    let kept: serde_json::Value = serde_json::from_str(kept.trim()).unwrap();
    assert_eq!((&kept["reason"], &kept["messages"][0]["text"]), (&json!("threats"), &json!("or else")));
    assert_eq!((&kept["by"], &kept["account"]), (&json!(alice.account), &json!(bob.account)));

    let (status, _) = node.call(Method::POST, "/v1/report", None, &report).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    for reason in ["", "   ", &"x".repeat(20_000)] {
        let malformed = json!({ "account": bob.account, "reason": reason });
        let (status, body) = node.call(Method::POST, "/v1/report", Some(&alice), &malformed).await;
        assert_eq!((status.as_u16(), slug(&body)), (422, "report-malformed"), "{}", reason.len());
    }
    let again = json!({ "account": bob.account, "reason": "again" });
    let mut refused = None;
    for _ in 0..30 {
        let (status, body) = node.call(Method::POST, "/v1/report", Some(&alice), &again).await;
        if status == StatusCode::TOO_MANY_REQUESTS {
            refused = Some(slug(&body).to_owned());
        }
    }
    assert_eq!(refused.as_deref(), Some("rate-limited"));
}

#[tokio::test]
async fn more_ranges_than_a_mailbox_keeps_are_refused() {
    let node = TestNode::start().await;
    let bob = node.register("bob").await;
    let first = Client::connect(&node, &bob).await;
    let normal_ranges = (1..=65).map(|n| SeqRange { first: 2 * n, last: 2 * n }).collect();
    let have = Some(Have { epoch: first.welcome.epoch, normal_ranges, ..Have::default() });
    let request = crate::client::upgrade(node.address(), Some(&bob.token.to_text()));
    let mut client = Client::open(node.address(), request).await.unwrap();
    let refused = client.say_hello(Hello { have, ..hello(&bob) }).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::BadRequest);
}

#[tokio::test]
async fn the_documents_are_served() {
    let node = TestNode::start().await;
    for (path, member) in [("/v1/asyncapi.json", "asyncapi"), ("/v1/messaging/openapi.json", "openapi")] {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let (status, headers, document) = node.request(request).await;
        assert_eq!((status, &headers["content-type"]), (StatusCode::OK, &"application/json".parse().unwrap()));
        assert!(document[member].is_string(), "{path}");
    }
}
