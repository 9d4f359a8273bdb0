//! Channels on the wire: who may found, change and write in one, what followers are told, and what is in the way of guessing.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use waxwing_protocol::api::{ChannelEntries, ChannelPageView};
use waxwing_protocol::channel::{
    Author, CHANNEL_CHARTER_DOMAIN, CHANNEL_ENTRY_DOMAIN, CHANNEL_PAGE_ENTRIES, Charter, Entry, Page, Position,
    SignedCharter, SignedEntry,
};
use waxwing_protocol::frames::{
    Channel, ChannelBatch, ChannelGap, ChannelState, ChannelSub, Class, ErrorCode, Frame, Send, Urgency, frame::Body,
    send,
};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{BlobId, ChannelId, MsgId, Timestamp};

use crate::client::{Client, msg_id};
use crate::node::{Person, TestNode, open_config, slug};
use crate::transport::{on_both_sockets, on_every_transport};

on_every_transport!(
    entries_are_taken_once_in_one_order_and_survive_a_crash,
    whoever_may_not_write_or_writes_what_does_not_follow_is_refused,
);

on_both_sockets!(
    a_follower_is_told_of_what_comes_and_of_what_was_there_before,
    a_connection_follows_a_bounded_number_of_channels,
);

fn channel() -> ChannelId {
    ChannelId::from_bytes([9; 16])
}

fn author(person: &Person) -> Author {
    Author { account: person.account, account_key: person.account_key() }
}

fn charter(owner: &Person, authors: &[&Person]) -> Charter {
    let mut authors: Vec<_> = authors.iter().map(|person| author(person)).collect();
    authors.sort_by_key(|author| author.account);
    Charter {
        channel: channel(),
        epoch: 1,
        previous: None,
        owner: owner.account,
        owner_key: owner.account_key(),
        authors,
        key_id: [1; 32],
        title: b"sealed".to_vec(),
        after: Position::default(),
        made_at: Timestamp::from_secs(1_800_000_000),
    }
}

fn signed(owner: &Person, charter: &Charter) -> SignedCharter {
    let bytes = charter.to_bytes();
    SignedCharter { signature: owner.sign(CHANNEL_CHARTER_DOMAIN, &bytes), charter: Base64(bytes) }
}

/// Founds the channel or takes its next charter.
async fn put(node: &TestNode, owner: &Person, charter: &Charter) -> (StatusCode, Value) {
    let path = if charter.epoch == 1 { "/v1/channels".to_owned() } else { path("charters") };
    node.call(Method::POST, &path, Some(owner), &signed(owner, charter)).await
}

fn path(what: &str) -> String {
    format!("/v1/channels/{}/{what}", channel())
}

/// An entry as a good author writes it.
fn entry(charter: &Charter, by: &Person, after: Position, n: u64) -> Bytes {
    let author = charter.author(by.account).unwrap_or(0);
    let (msg_id, body) = (MsgId::from_slice(&msg_id(n)).unwrap(), format!("entry {n}").into_bytes());
    let entry = Entry { epoch: charter.epoch, after, author, msg_id, body }.to_bytes();
    let signature = by.sign(CHANNEL_ENTRY_DOMAIN, &Entry::signed_message(channel(), &entry)).0;
    SignedEntry { entry, signature }.to_bytes().into()
}

fn behind(after: Position, entry: &[u8]) -> Position {
    Position { seq: after.seq + 1, hash: *blake3::hash(entry).as_bytes() }
}

fn send(charter: &Charter, body: Bytes, n: u64) -> Send {
    let target = Channel { channel: Bytes::copy_from_slice(channel().as_bytes()), epoch: charter.epoch, body };
    let target = Some(send::Target::Channel(target));
    Send { msg_id: msg_id(n), target, class: Class::Message.into(), urgency: Urgency::None.into(), ..Send::default() }
}

/// Writes entries `from..=to`, and says where that ends.
async fn write(line: &mut Client, charter: &Charter, by: &Person, mut at: Position, to: u64) -> Position {
    while at.seq < to {
        let bytes = entry(charter, by, at, at.seq + 1);
        at = behind(at, &bytes);
        let sent = line.send(send(charter, bytes, at.seq)).await.unwrap();
        assert_eq!((sent.conv_seq, sent.duplicate), (at.seq, false));
    }
    at
}

async fn entries(node: &TestNode, by: &Person, after: u64) -> ChannelEntries {
    let (status, body) = node.get(&path(&format!("entries?after={after}")), by).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    serde_json::from_value(body).unwrap()
}

/// A page of what is held from its first entry on.
async fn page(node: &TestNode, by: &Person, number: u64, first_seq: u64) -> ChannelPageView {
    let held = entries(node, by, first_seq - 1).await.entries;
    let last_seq = first_seq + held.len() as u64 - 1;
    let entries = held.into_iter().map(|entry| entry.0).collect();
    ChannelPageView { page: number, first_seq, last_seq, blob: Page { first_seq, entries }.blob() }
}

async fn entries_are_taken_once_in_one_order_and_survive_a_crash() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let charter = charter(&alice, &[&alice]);
    assert_eq!(put(&node, &alice, &charter).await.0, StatusCode::CREATED);
    assert_eq!(put(&node, &alice, &charter).await.0, StatusCode::OK, "the same again is no error");
    let mut line = Client::connect(&node, &alice).await;
    let at = write(&mut line, &charter, &alice, Position::default(), 3).await;
    node.crash_and_restart().await;
    let mut line = Client::connect(&node, &alice).await;
    let first = entry(&charter, &alice, Position::default(), 1);
    let again = line.send(send(&charter, first.clone(), 1)).await.unwrap();
    assert_eq!((again.conv_seq, again.duplicate), (1, true));
    // A stranger who has the id reads, and believes nobody.
    let read = entries(&node, &bob, 0).await;
    assert_eq!((read.head_seq, read.tail_seq, read.entries.len()), (3, 1, 3));
    let mut reached = Position::default();
    for bytes in read.entries {
        reached = SignedEntry::verify(&bytes.0, &charter, &reached).unwrap().1;
    }
    assert_eq!(reached, at);
    let (_, view) = node.get(&format!("/v1/channels/{}?after=0", channel()), &bob).await;
    assert_eq!((&view["epoch"], &view["head_seq"]), (&json!(1), &json!(3)));
    let told: SignedCharter = serde_json::from_value(view["charters"][0].clone()).unwrap();
    assert_eq!(told.verify(None).unwrap(), charter);
    assert_eq!(node.get("/v1/channels", &alice).await.1, json!({ "channels": [channel()] }));
    assert_eq!(node.get("/v1/channels", &bob).await.1, json!({ "channels": [] }), "followers are not listed");
}

async fn whoever_may_not_write_or_writes_what_does_not_follow_is_refused() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let first = charter(&alice, &[&alice, &bob]);
    put(&node, &alice, &first).await;
    let mut from_bob = Client::connect(&node, &bob).await;
    let at = write(&mut from_bob, &first, &bob, Position::default(), 1).await;
    let refused = from_bob.send(send(&first, entry(&first, &bob, Position::default(), 2), 2)).await.unwrap_err();
    assert_eq!((refused.code(), refused.epoch), (ErrorCode::EpochConflict, 1), "it follows another entry");

    let (epoch, previous, authors) = (2, Some(first.hash()), vec![author(&alice)]);
    let second = Charter { epoch, previous, authors, key_id: [2; 32], after: at, ..first.clone() };
    assert_eq!(put(&node, &alice, &second).await.0, StatusCode::CREATED);
    let refused = from_bob.send(send(&second, entry(&second, &bob, at, 2), 2)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Forbidden, "he was removed");
    let mut from_alice = Client::connect(&node, &alice).await;
    let refused = from_alice.send(send(&first, entry(&first, &alice, at, 3), 3)).await.unwrap_err();
    assert_eq!((refused.code(), refused.epoch), (ErrorCode::EpochConflict, 2), "a charter that stands no more");
    let mut from_carol = Client::connect(&node, &carol).await;
    let refused = from_carol.send(send(&second, entry(&second, &carol, at, 4), 4)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Forbidden, "whoever reads does not write");

    // Entries that would stand in the way of every reader.
    let good = entry(&second, &alice, at, 5);
    for at in [2, good.len() - 1] {
        let mut changed = good.to_vec();
        changed[at] ^= 1;
        let refused = from_alice.send(send(&second, changed.into(), 5)).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::BadRequest);
    }
    let other_id = from_alice.send(send(&second, good.clone(), 6)).await.unwrap_err();
    assert_eq!(other_id.code(), ErrorCode::BadRequest, "{}", other_id.message);
    let mut kept = send(&second, good.clone(), 5);
    kept.ttl_s = Some(60);
    assert_eq!(from_alice.send(kept).await.unwrap_err().code(), ErrorCode::BadRequest);
    let too_large = send(&second, vec![0; 96 * 1024 + 1].into(), 7);
    assert_eq!(from_alice.send(too_large).await.unwrap_err().code(), ErrorCode::TooLarge);
    let mut unknown = send(&second, good.clone(), 5);
    let Some(send::Target::Channel(target)) = unknown.target.as_mut() else { unreachable!() };
    target.channel = Bytes::from_static(&[8; 16]);
    assert_eq!(from_alice.send(unknown).await.unwrap_err().code(), ErrorCode::NotFound);
    assert_eq!(from_alice.send(send(&second, good, 5)).await.unwrap().conv_seq, 2);
}

async fn follow(line: &mut Client, id: u32, after_seq: u64, live: bool) -> ChannelState {
    let sub = ChannelSub { channel: Bytes::copy_from_slice(channel().as_bytes()), after_seq, live };
    line.put(Frame::with_id(id, Body::ChannelSub(sub))).await;
    loop {
        match line.next().await.unwrap() {
            Frame { id: answered, body: Some(Body::ChannelState(state)), .. } if answered == id => return state,
            Frame { body: Some(Body::Error(error)), .. } => panic!("{error:?}"),
            _ => {}
        }
    }
}

async fn told(line: &mut Client) -> Result<ChannelBatch, ChannelGap> {
    loop {
        match line.next().await.unwrap().body {
            Some(Body::ChannelBatch(batch)) => return Ok(batch),
            Some(Body::ChannelGap(gap)) => return Err(gap),
            _ => {}
        }
    }
}

async fn a_follower_is_told_of_what_comes_and_of_what_was_there_before() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let charter = charter(&alice, &[&alice]);
    put(&node, &alice, &charter).await;
    let mut from = Client::connect(&node, &alice).await;
    let at = write(&mut from, &charter, &alice, Position::default(), 2).await;
    let mut to_bob = Client::connect(&node, &bob).await;
    let state = follow(&mut to_bob, 50, 1, true).await;
    assert_eq!((state.epoch, state.head_seq, state.tail_seq), (1, 2, 1));
    let gap = told(&mut to_bob).await.unwrap_err();
    assert_eq!((gap.from, gap.to), (2, 2), "what he lacks is to be read");

    let third = entry(&charter, &alice, at, 3);
    let at = behind(at, &third);
    from.send(send(&charter, third.clone(), 3)).await.unwrap();
    let batch = told(&mut to_bob).await.unwrap();
    assert_eq!((batch.first_seq, batch.epoch, &batch.entries[..]), (3, 1, &[third][..]));

    follow(&mut to_bob, 51, 3, false).await;
    let at = write(&mut from, &charter, &alice, at, 4).await;
    follow(&mut to_bob, 52, 4, true).await;
    write(&mut from, &charter, &alice, at, 5).await;
    assert_eq!(told(&mut to_bob).await.unwrap().first_seq, 5, "and nothing of the time between");
}

async fn a_connection_follows_a_bounded_number_of_channels() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut line = Client::connect(&node, &alice).await;
    let mut refused = 0;
    for n in 0..260_u16 {
        let mut id = [7; 16];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let sub = ChannelSub { channel: Bytes::copy_from_slice(&id), after_seq: 0, live: true };
        line.put(Frame::with_id(1000 + u32::from(n), Body::ChannelSub(sub))).await;
        let answer = loop {
            let frame = line.next().await.unwrap();
            if frame.id == 1000 + u32::from(n) {
                break frame.body;
            }
        };
        let Some(Body::Error(error)) = answer else { panic!("{answer:?}") };
        let known = [ErrorCode::NotFound, ErrorCode::TooLarge];
        assert!(known.contains(&error.code()), "{error:?}");
        refused += u32::from(error.code() == ErrorCode::TooLarge);
    }
    assert_eq!(refused, 4);
}

#[tokio::test]
async fn a_full_page_goes_once_its_blob_is_named_by_an_author() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let charter = charter(&alice, &[&alice]);
    put(&node, &alice, &charter).await;
    let mut from = Client::connect(&node, &alice).await;
    let size = CHANNEL_PAGE_ENTRIES as u64;
    let at = write(&mut from, &charter, &alice, Position::default(), size - 1).await;
    let close =
        async |by: &Person, page: ChannelPageView| node.call(Method::POST, &path("pages"), Some(by), &page).await;
    let early = page(&node, &alice, 1, 1).await;
    let (status, body) = close(&alice, early).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "channel-malformed"), "it is not full");
    let view = format!("/v1/channels/{}?after=1", channel());
    assert_eq!(node.get(&view, &alice).await.1["full_page"], json!(false));
    write(&mut from, &charter, &alice, at, size + 2).await;
    assert_eq!(node.get(&view, &alice).await.1["full_page"], json!(true));
    let good = page(&node, &alice, 1, 1).await;
    assert_eq!((good.first_seq, good.last_seq), (1, size));
    assert_eq!(close(&bob, good).await.0, StatusCode::FORBIDDEN);
    for wrong in [
        ChannelPageView { blob: BlobId::from_bytes([0; 32]), ..good },
        ChannelPageView { last_seq: size - 1, ..good },
        ChannelPageView { last_seq: size + 1, ..good },
        ChannelPageView { last_seq: 0, ..good },
        ChannelPageView { last_seq: u64::MAX, ..good },
    ] {
        assert_eq!(close(&alice, wrong).await.0, StatusCode::UNPROCESSABLE_ENTITY, "{wrong:?}");
    }
    assert_eq!(close(&alice, ChannelPageView { page: 2, ..good }).await.0, StatusCode::PRECONDITION_FAILED);
    assert_eq!(entries(&node, &bob, 0).await.entries.len() as u64, size, "nothing was let go of");
    assert_eq!(close(&alice, good).await.0, StatusCode::CREATED);
    assert_eq!(close(&alice, good).await.0, StatusCode::OK);

    let read = entries(&node, &bob, 0).await;
    assert_eq!((read.entries.len(), read.tail_seq, read.head_seq), (0, size + 1, size + 2));
    let (_, manifest) = node.get(&path("manifest?after=0"), &bob).await;
    assert_eq!(manifest, json!({ "pages": [good], "tail_seq": size + 1 }));
    let (_, manifest) = node.get(&path(&format!("manifest?after={size}")), &bob).await;
    assert_eq!(manifest["pages"], json!([]));
    assert_eq!(entries(&node, &bob, size).await.entries.len(), 2);
}

#[tokio::test]
async fn charters_are_the_owners_and_name_accounts_that_are_there() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let first = charter(&alice, &[&alice]);
    let (status, body) = node.call(Method::POST, "/v1/channels", Some(&bob), &signed(&alice, &first)).await;
    assert_eq!((status, slug(&body)), (StatusCode::FORBIDDEN, "channel-forbidden"));
    let (status, body) = node.call(Method::POST, "/v1/channels", Some(&alice), &signed(&bob, &first)).await;
    assert_eq!((status, slug(&body)), (StatusCode::UNPROCESSABLE_ENTITY, "channel-malformed"));
    let ghost = charter(&alice, &[&alice, &Person::new("ghost")]);
    assert_eq!(slug(&put(&node, &alice, &ghost).await.1), "channel-author-unknown");
    assert_eq!(put(&node, &alice, &first).await.0, StatusCode::CREATED);
    // The id is taken: its owner is not told of, and nobody else becomes it.
    let stolen = charter(&bob, &[&bob]);
    assert_eq!(put(&node, &bob, &stolen).await.0, StatusCode::NOT_FOUND);
    let next = Charter { epoch: 2, previous: Some(first.hash()), ..first.clone() };
    let rival = Charter { key_id: [7; 32], ..next.clone() };
    assert_eq!(put(&node, &alice, &next).await.0, StatusCode::CREATED);
    assert_eq!(put(&node, &alice, &next).await.0, StatusCode::OK);
    let (status, body) = put(&node, &alice, &rival).await;
    assert_eq!((status, &body["epoch"]), (StatusCode::PRECONDITION_FAILED, &json!(2)));
    let none = Charter { epoch: 0, previous: None, ..first.clone() };
    assert_eq!(put(&node, &alice, &none).await.0, StatusCode::PRECONDITION_FAILED);
    let ahead = Charter { epoch: 4, previous: Some(next.hash()), ..next };
    assert_eq!(put(&node, &alice, &ahead).await.0, StatusCode::PRECONDITION_FAILED);
    for path in ["/v1/channels/nonsense", "/v1/channels/00000000-0000-4000-8000-000000000000"] {
        assert_eq!(slug(&node.get(path, &bob).await.1), "channel-not-found");
    }
    assert_eq!(slug(&node.get(&path("entries?after=x"), &bob).await.1), "malformed-query");
}

#[tokio::test]
async fn whoever_guesses_or_floods_is_slowed_down() {
    let config = waxwing_messaging::Config {
        channel_reads_per_minute: 5,
        channel_appends_per_minute: 2,
        channel_changes_per_minute: 1,
        ..open_config()
    };
    let node = TestNode::with(config).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let charter = charter(&alice, &[&alice]);
    assert_eq!(put(&node, &alice, &charter).await.0, StatusCode::CREATED);
    assert_eq!(slug(&put(&node, &alice, &charter).await.1), "rate-limited");
    let mut from = Client::connect(&node, &alice).await;
    let at = write(&mut from, &charter, &alice, Position::default(), 2).await;
    let refused = from.send(send(&charter, entry(&charter, &alice, at, 3), 3)).await.unwrap_err();
    assert_eq!((refused.code(), refused.retry_after_ms > 0), (ErrorCode::RateLimited, true));
    for _ in 0..5 {
        let (status, _) = node.get("/v1/channels/00000000-0000-4000-8000-000000000000", &bob).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    assert_eq!(slug(&node.get(&path("entries"), &bob).await.1), "rate-limited");
}
