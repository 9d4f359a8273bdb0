//! Wakes: who gets one, how many, and what becomes of those that their provider does not take.

use http::{Method, StatusCode};
use serde_json::{Value, json};
use waxwing_messaging::{ApnsConfig, Config, PushConfig};
use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::{Class, Lane, Send, Urgency};

use crate::client::{Client, message, msg_id};
use crate::groups::{found, to_group};
use crate::node::{Person, TestNode, open_config, slug};
use crate::provider::{Asked, Provider, answer};

/// A node whose wakes go to `provider`, at once and with little patience.
fn config(provider: &Provider) -> Config {
    let apns = ApnsConfig {
        key_file: provider.p256_key(),
        key_id: "KEYID12345".into(),
        team_id: "TEAMID1234".into(),
        topics: vec!["chat.example".into()],
        url: provider.url(),
        sandbox_url: provider.url(),
    };
    let push = PushConfig {
        hold_ms_max: 0,
        quiet_s: 1,
        authorities_file: Some(provider.authorities_file()),
        apns: Some(apns),
        ..PushConfig::default()
    };
    Config { push, ..open_config() }
}

async fn set(node: &TestNode, person: &Person, token: &str) -> StatusCode {
    let target = json!({ "provider": "apns", "token": token, "topic": "chat.example" });
    node.call(Method::PUT, "/v1/push", Some(person), &target).await.0
}

/// A message that shows.
fn loud(to: &Person, n: u64) -> Send {
    Send { urgency: Urgency::High.into(), ..message(to, n, b"sealed") }
}

fn devices(asked: &[Asked]) -> Vec<&str> {
    asked.iter().map(|asked| asked.path.strip_prefix("/3/device/").unwrap()).collect()
}

#[tokio::test]
async fn who_is_away_is_woken_once_and_again_after_coming() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    assert_eq!(set(&node, &bob, "b0b").await, StatusCode::NO_CONTENT);
    let mut from = Client::connect(&node, &alice).await;
    for n in 0..20 {
        from.send(loud(&bob, n)).await.unwrap();
    }
    let asked = provider.asked(1).await;
    assert_eq!(devices(&asked), ["b0b"]);
    let wake = &asked[0];
    assert_eq!(wake.headers["apns-push-type"], "alert");
    assert_eq!(wake.headers["apns-topic"], "chat.example");
    assert!(wake.headers["authorization"].to_str().unwrap().starts_with("bearer ey"));
    let body: Value = serde_json::from_slice(&wake.body).unwrap();
    assert_eq!(body, json!({ "aps": { "mutable-content": 1, "alert": { "loc-key": "WAXWING_WAKE" } } }));

    // Bob comes, takes what there is, and goes; the next message wakes him again.
    let mut to = Client::connect(&node, &bob).await;
    let (_, empty) = to.drained().await;
    to.ack(Lane::Normal, empty.up_to).await;
    to.settled(&alice, 100).await;
    drop(to);
    // A call is another reason, and rings besides.
    let call = Send { class: Class::Call.into(), urgency: Urgency::High.into(), ..message(&bob, 50, b"ring") };
    from.send(call).await.unwrap();
    let asked = provider.asked(2).await;
    assert_eq!(devices(&asked), ["b0b", "b0b"]);
    let expires: u64 = asked[1].headers["apns-expiration"].to_str().unwrap().parse().unwrap();
    let shown: u64 = asked[0].headers["apns-expiration"].to_str().unwrap().parse().unwrap();
    assert!(expires < shown, "nobody rings for a month");
}

/// Alice's wake is due before Bob's: when his has come, hers would have.
#[tokio::test]
async fn who_is_there_and_acks_is_not_woken_nor_is_anybody_for_what_is_silent() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    for (person, token) in [(&alice, "a11ce"), (&bob, "b0b")] {
        set(&node, person, token).await;
    }
    let mut from = Client::connect(&node, &carol).await;
    let mut to = Client::connect(&node, &alice).await;
    from.send(loud(&alice, 1)).await.unwrap();
    to.messages(1).await;
    to.ack(Lane::Normal, 1).await;
    to.settled(&carol, 2).await;
    from.send(message(&bob, 3, b"silent")).await.unwrap();
    let receipt = Send { class: Class::Receipt.into(), ..loud(&bob, 4) };
    from.send(receipt).await.unwrap();
    // Connected, and nothing is acked: a socket that nobody reads any more.
    let mut gone = Client::connect(&node, &bob).await;
    gone.messages(2).await;
    gone.ack(Lane::Normal, 2).await;
    gone.settled(&carol, 5).await;
    from.send(loud(&bob, 6)).await.unwrap();
    let asked = provider.asked(1).await;
    assert_eq!(devices(&asked), ["b0b"]);
    drop(gone);
}

#[tokio::test]
async fn a_restart_forgets_no_wake() {
    let provider = Provider::start().await;
    let mut node = TestNode::with(config(&provider)).await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    for (person, token) in [(&carol, "ca401"), (&bob, "b0b")] {
        set(&node, person, token).await;
    }
    // The provider fails, so that the wake is still to come when the node dies.
    provider.answer(|_| answer(503, r#"{"reason":"ServiceUnavailable"}"#));
    Client::connect(&node, &alice).await.send(loud(&bob, 1)).await.unwrap();
    provider.asked(1).await;
    let before = provider.all().len();
    node.crash_and_restart().await;
    provider.answer(|_| answer(200, ""));
    let asked = provider.asked(before + 1).await;
    assert!(devices(&asked).iter().all(|device| *device == "b0b"), "nothing waits for carol: {:?}", devices(&asked));
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.messages(1).await[0].1.msg_id, msg_id(1), "the mailbox is as it was");
}

#[tokio::test]
async fn a_token_that_is_gone_is_forgotten_unless_it_came_later_than_that() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let bob = node.register("bob").await;
    let since =
        |ms: u64| move |_: &Asked| answer(410, &json!({ "reason": "Unregistered", "timestamp": ms }).to_string());
    let test = || node.call(Method::POST, "/v1/push/test", Some(&bob), &());
    assert_eq!(test().await.0, StatusCode::NOT_FOUND);

    // Of a time before the app was installed again.
    provider.answer(since(1_000));
    set(&node, &bob, "b0b").await;
    let (_, told) = test().await;
    assert_eq!(told, json!({ "provider": "apns", "accepted": false, "reason": "Unregistered" }));
    assert_eq!(node.get("/v1/push", &bob).await.1["provider"], "apns");

    provider.answer(since(Timestamp::from(std::time::SystemTime::now()).as_millis() + 3_600_000));
    test().await;
    let (_, view) = node.get("/v1/push", &bob).await;
    assert_eq!(view, json!({ "providers": ["apns"] }));
    assert_eq!(slug(&test().await.1), "push-target-not-found");
}

#[tokio::test]
async fn targets_are_checked_before_they_are_taken() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let bob = node.register("bob").await;
    let put = |target: Value| {
        let (node, bob) = (&node, &bob);
        async move {
            let (status, body) = node.call(Method::PUT, "/v1/push", Some(bob), &target).await;
            (status.as_u16(), slug(&body).to_owned())
        }
    };
    let apns = |token: &str, topic: &str| json!({ "provider": "apns", "token": token, "topic": topic });
    for refused in [apns("", "chat.example"), apns("../x", "chat.example"), apns("b0b", "evil.example")] {
        assert_eq!(put(refused).await, (422, "push-target-refused".into()));
    }
    assert_eq!(put(apns(&"a".repeat(5000), "chat.example")).await, (422, "push-target-refused".into()));
    assert_eq!(put(json!({ "provider": "fcm", "token": "x" })).await, (422, "push-not-offered".into()));
    assert_eq!(put(json!({ "provider": "pigeon", "token": "x" })).await.1, "body-malformed");
    let (status, _) = node.call(Method::PUT, "/v1/push", None, &apns("b0b", "chat.example")).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);

    assert_eq!(set(&node, &bob, "b0b").await, StatusCode::NO_CONTENT);
    for _ in 0..2 {
        assert_eq!(node.call(Method::DELETE, "/v1/push", Some(&bob), &()).await.0, StatusCode::NO_CONTENT);
    }
    assert_eq!(node.get("/v1/push", &bob).await.1, json!({ "providers": ["apns"] }));
    assert!(provider.all().is_empty(), "nobody was asked");
}

/// A node without providers says so, and takes nothing.
#[tokio::test]
async fn where_nobody_can_be_woken_that_is_said() {
    let node = TestNode::start().await;
    let bob = node.register("bob").await;
    assert_eq!(node.get("/v1/push", &bob).await.1, json!({ "providers": [] }));
    assert_eq!(set(&node, &bob, "b0b").await, StatusCode::UNPROCESSABLE_ENTITY);
}

/// Two accounts on one phone, or a phone that was sold: its token wakes it once, for whoever said so last.
#[tokio::test]
async fn one_token_is_one_phone() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    for (person, token) in [(&alice, "b0b"), (&bob, "B0B"), (&carol, "ca401")] {
        assert_eq!(set(&node, person, token).await, StatusCode::NO_CONTENT);
    }
    assert_eq!(node.get("/v1/push", &alice).await.1, json!({ "providers": ["apns"] }));
    let dave = node.register("dave").await;
    let mut from = Client::connect(&node, &dave).await;
    for (person, n) in [(&alice, 1), (&bob, 2)] {
        from.send(loud(person, n)).await.unwrap();
    }
    from.send(loud(&carol, 3)).await.unwrap();
    drop(from);
    // Alice's wake would have been due first of all, and then the phone's second one.
    let asked = provider.asked(2).await;
    let mut woken = devices(&asked);
    woken.sort_unstable();
    assert_eq!(woken, ["b0b", "ca401"]);
}

/// What stands before a provider answers too, and in HTML.
#[tokio::test]
async fn an_answer_that_is_no_json_is_one_to_try_again_and_the_wake_comes() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    assert_eq!(set(&node, &bob, "b0b").await, StatusCode::NO_CONTENT);
    provider.answer(|_| answer(502, "<html>\u{0}{\"reason\":</html>"));
    Client::connect(&node, &alice).await.send(loud(&bob, 1)).await.unwrap();
    let tried = provider.asked(1).await.len();
    provider.answer(|_| answer(200, "[1, null"));
    assert!(devices(&provider.asked(tried + 1).await).iter().all(|device| *device == "b0b"));
    assert_eq!(node.get("/v1/push", &bob).await.1["provider"], "apns", "nobody's token was dropped for it");
}

#[tokio::test]
async fn a_token_of_absurd_size_is_refused_and_costs_nothing() {
    let provider = Provider::start().await;
    let node = TestNode::with(config(&provider)).await;
    let bob = node.register("bob").await;
    for (bytes, slug_of) in [(1_001, "push-target-refused"), (200_000, ""), (3_000_000, "")] {
        let target = json!({ "provider": "apns", "token": "a".repeat(bytes), "topic": "chat.example" });
        let (status, body) = node.call(Method::PUT, "/v1/push", Some(&bob), &target).await;
        assert!(status.is_client_error(), "{bytes}: {status}");
        assert!(slug_of.is_empty() || slug(&body) == slug_of, "{bytes}: {body}");
    }
    assert_eq!(node.get("/v1/push", &bob).await.1, json!({ "providers": ["apns"] }));
    assert!(provider.all().is_empty(), "nobody was asked");
}

/// Fifty messages at lunch: whoever is away is woken once, whoever is there not at all.
#[tokio::test]
async fn a_groups_messages_wake_every_member_who_is_away_once() {
    let provider = Provider::start().await;
    // Whoever is connected is given all the time there is.
    let mut config = config(&provider);
    config.push.quiet_s = 3600;
    let node = TestNode::with(config).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let (carol, dave) = (node.register("carol").await, node.register("dave").await);
    let everybody = [&alice, &bob, &carol, &dave];
    let state = found(&node, &everybody).await;
    for (person, token) in [(&bob, "b0b"), (&carol, "ca401"), (&dave, "dada")] {
        // That they were let in wakes them too, and is nothing new any more.
        let mut came = Client::connect(&node, person).await;
        let (_, empty) = came.drained().await;
        came.ack(Lane::Normal, empty.up_to).await;
        came.settled(&alice, 100).await;
        assert_eq!(set(&node, person, token).await, StatusCode::NO_CONTENT);
    }
    let mut from = Client::connect(&node, &alice).await;
    let mut there = Client::connect(&node, &carol).await;
    for n in 1..=50 {
        let send = Send { urgency: Urgency::High.into(), ..to_group(&state, &everybody, n) };
        from.send(send).await.unwrap();
        let rows = there.messages(1).await;
        there.ack(Lane::Normal, rows.last().unwrap().1.seq).await;
    }
    // What comes last to somebody who was not in it has been woken for when those are.
    let erin = node.register("erin").await;
    assert_eq!(set(&node, &erin, "e41").await, StatusCode::NO_CONTENT);
    from.send(loud(&erin, 99)).await.unwrap();
    let asked = provider.asked(3).await;
    let mut woken = devices(&asked);
    woken.sort_unstable();
    assert_eq!(woken, ["b0b", "dada", "e41"]);
    assert!(asked.iter().all(|wake| wake.body == asked[0].body), "and nothing says that it was a group");
}
