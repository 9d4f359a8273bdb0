//! Presence and typing, over sockets. How time passes is tested beside the code.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use waxwing_protocol::api::{Preferences, Visibility};
use waxwing_protocol::frames::{
    Ephemeral, EphemeralKind, EphemeralPush, Error, ErrorCode, Frame, Hello, Ok as Done, PresenceItem, PresenceSet,
    PresenceState, PresenceSub, frame::Body,
};

use crate::client::{Client, hello, message};
use crate::node::{Person, TestNode};
use crate::transport::on_every_transport;

on_every_transport!(who_was_written_to_sees_when_the_writer_comes_and_strangers_do_not,);

fn id(person: &Person) -> Bytes {
    Bytes::copy_from_slice(person.account.as_bytes())
}

/// Of nothing to come one can only say that it did not come in this time: two batches.
const QUIET: Duration = Duration::from_millis(2_500);

impl Client {
    async fn ask(&mut self, id: u32, body: Body) -> Result<Done, Error> {
        self.put(Frame::with_id(id, body)).await;
        loop {
            match self.next().await.unwrap() {
                Frame { id: answered, body: Some(Body::Ok(done)), .. } if answered == id => return Ok(done),
                Frame { id: answered, body: Some(Body::Error(error)), .. } if answered == id => return Err(error),
                _ => {}
            }
        }
    }

    async fn watch(&mut self, people: &[&Person]) -> Result<Done, Error> {
        let add = people.iter().map(|person| id(person)).collect();
        self.ask(7, Body::PresenceSub(PresenceSub { add, remove: Vec::new() })).await
    }

    async fn presence(&mut self) -> Vec<PresenceItem> {
        loop {
            if let Some(Body::PresenceUpdate(update)) = self.next().await.unwrap().body {
                return update.items;
            }
        }
    }

    async fn state(&mut self) -> PresenceState {
        let items = self.presence().await;
        assert_eq!(items.len(), 1, "{items:?}");
        items[0].state()
    }

    async fn typing(&mut self, to: &Person) {
        let ephemeral = Ephemeral { account: id(to), kind: EphemeralKind::Typing.into(), payload: b"soon"[..].into() };
        self.put(Frame::push(Body::Ephemeral(ephemeral))).await;
    }

    /// The next frame for the moment, if one comes in time.
    async fn moment(&mut self, limit: Duration) -> Option<EphemeralPush> {
        let next = async {
            loop {
                if let Some(Body::EphemeralPush(push)) = self.next().await.unwrap().body {
                    return push;
                }
            }
        };
        tokio::time::timeout(limit, next).await.ok()
    }
}

async fn who_was_written_to_sees_when_the_writer_comes_and_strangers_do_not() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let nobody = Person::new("nobody");
    let background = Hello { foreground: false, ..hello(&bob) };
    let mut of_bob = Client::connect_with(&node, &bob, background).await;
    of_bob.send(message(&alice, 1, b"hello")).await.unwrap();

    let (mut a, mut c) = (Client::connect(&node, &alice).await, Client::connect(&node, &carol).await);
    a.watch(&[&bob]).await.unwrap();
    let first = a.presence().await;
    assert_eq!((first[0].state(), first[0].last_seen), (PresenceState::Offline, 0), "connected in the background");
    assert!(first[0].expires_ms > 590_000 && first[0].expires_ms <= 600_000, "{first:?}");
    c.watch(&[&bob, &nobody]).await.unwrap();
    let hidden = c.presence().await;
    assert!(hidden.len() == 2 && hidden.iter().all(|item| item.state() == PresenceState::Hidden), "{hidden:?}");

    let done = of_bob.ask(8, Body::PresenceSet(PresenceSet { foreground: true })).await.unwrap();
    assert_eq!(done.heartbeat_s, 55);
    assert_eq!(a.state().await, PresenceState::Online);
    assert!(tokio::time::timeout(QUIET, c.presence()).await.is_err());

    // To everyone; who asked before has to ask again.
    let show = async |presence| {
        let preferences = Preferences { presence, ..Preferences::default() };
        let (status, _) = node.call(Method::PUT, "/v1/preferences", Some(&bob), &preferences).await;
        assert!(status.is_success());
    };
    show(Visibility::Everyone).await;
    assert_eq!(a.state().await, PresenceState::Hidden);
    for client in [&mut a, &mut c] {
        client.watch(&[&bob]).await.unwrap();
        assert_eq!(client.state().await, PresenceState::Online);
    }
    show(Visibility::Nobody).await;
    for client in [&mut a, &mut c] {
        assert_eq!(client.state().await, PresenceState::Hidden);
        client.watch(&[&bob]).await.unwrap();
        assert_eq!(client.state().await, PresenceState::Hidden);
    }
}

#[tokio::test]
async fn who_is_blocked_sees_nobody_and_is_not_seen_typing() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let (mut a, mut b) = (Client::connect(&node, &alice).await, Client::connect(&node, &bob).await);
    b.send(message(&alice, 1, b"hello")).await.unwrap();
    a.watch(&[&bob]).await.unwrap();
    assert_eq!(a.state().await, PresenceState::Online);

    let path = format!("/v1/blocks/{}", alice.account);
    let (status, _) = node.call(Method::PUT, &path, Some(&bob), &()).await;
    assert!(status.is_success());
    assert_eq!(a.state().await, PresenceState::Hidden);
    a.watch(&[&bob]).await.unwrap();
    assert_eq!(a.state().await, PresenceState::Hidden, "asking again shows no more");
    a.typing(&bob).await;
    assert_eq!(b.moment(QUIET).await, None);
}

#[tokio::test]
async fn subscriptions_are_bounded_and_malformed_ones_refused() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut client = Client::connect(&node, &alice).await;
    let sub = |add| Body::PresenceSub(PresenceSub { add, remove: Vec::new() });
    let refused = client.ask(1, sub(vec![id(&alice); 513])).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::TooLarge);
    let refused = client.ask(2, sub(vec![b"short"[..].into()])).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::BadRequest);
    client.watch(&[&alice]).await.unwrap();
    assert_eq!(client.state().await, PresenceState::Online, "one's own other devices may know");
}

#[tokio::test]
async fn typing_reaches_those_who_have_written_at_most_every_three_seconds_and_is_kept_nowhere() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let mut to = Client::connect(&node, &bob).await;
    to.send(message(&alice, 1, b"hello")).await.unwrap();
    let (mut from, mut stranger) = (Client::connect(&node, &alice).await, Client::connect(&node, &carol).await);
    stranger.typing(&bob).await;
    from.typing(&bob).await;
    from.typing(&bob).await;
    let push = to.moment(QUIET).await.unwrap();
    assert_eq!((push.account, &push.payload[..], push.ttl_ms), (id(&alice), &b"soon"[..], 5_000));
    assert_eq!(to.moment(QUIET).await, None, "neither the second nor the stranger's");
    let large = Ephemeral { payload: vec![0; 513].into(), ..Ephemeral::default() };
    let large = Ephemeral { account: id(&bob), kind: EphemeralKind::Typing.into(), ..large };
    assert_eq!(from.ask(3, Body::Ephemeral(large)).await.unwrap_err().code(), ErrorCode::TooLarge);

    // Somebody who has not typed yet, so that no limit stands in the way.
    let dave = node.register("dave").await;
    to.send(message(&dave, 2, b"hello")).await.unwrap();
    let mut other = Client::connect(&node, &dave).await;
    drop(to);
    while node.messaging().devices("bob").await.unwrap().unwrap()[0].connected {
        tokio::task::yield_now().await;
    }
    other.typing(&bob).await;
    other.settled(&bob, 2).await;
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.drained().await.0.len(), 1, "only the message");
    assert_eq!(to.moment(Duration::from_millis(100)).await, None);
}
