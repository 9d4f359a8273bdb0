//! Groups on the wire: who may change one, who hears of it, and what strangers learn, which is nothing.

use bytes::Bytes;
use ed25519_dalek::{Signer as _, SigningKey};
use http::{Method, StatusCode};
use serde_json::{Value, json};
use waxwing_protocol::frames::{
    Class, ErrorCode, Frame, Group, Lane, ReadMark, ReceiptSummary, Send, Urgency, frame::Body, send,
};
use waxwing_protocol::group::{
    GROUP_CHANGE_DOMAIN, GROUP_LINK_DOMAIN, GroupChange, GroupState, LinkProof, NewMember, Role, SignedGroupChange,
    What, devices_hash,
};
use waxwing_protocol::identity::{Base64, PublicKey, signed_bytes};
use waxwing_protocol::{DeviceId, GroupId, Timestamp};

use crate::client::{Client, msg_id};
use crate::node::{Person, TestNode, open_config, slug};
use crate::transport::on_every_transport;

on_every_transport!(
    a_group_is_founded_grows_and_shrinks_and_its_messages_reach_whoever_is_in_it,
    a_send_for_another_epoch_or_other_devices_is_refused_with_what_it_takes_to_do_better,
    malformed_sends_to_a_group_are_refused,
);

fn group() -> GroupId {
    GroupId::from_bytes([9; 16])
}

fn joining(person: &Person, role: Role) -> NewMember {
    NewMember { account: person.account, account_key: person.account_key(), role }
}

/// A change as a good client makes it, and the state it makes.
fn signed(by: &Person, before: Option<&GroupState>, what: What) -> (SignedGroupChange, GroupState) {
    let (change, after) =
        GroupChange::make(group(), before, by.account, what, Timestamp::from_secs(1_800_000_000)).unwrap();
    let bytes = change.to_bytes();
    (SignedGroupChange { signature: by.sign(GROUP_CHANGE_DOMAIN, &bytes), change: Base64(bytes) }, after)
}

fn changes_path() -> String {
    format!("/v1/groups/{}/changes", group())
}

/// Makes a change, which the node takes.
async fn change(node: &TestNode, by: &Person, before: Option<&GroupState>, what: What) -> GroupState {
    let (signed, after) = signed(by, before, what);
    let path = if before.is_some() { changes_path() } else { "/v1/groups".to_owned() };
    let (status, body) = node.call(Method::POST, &path, Some(by), &signed).await;
    assert_eq!((status, &body["epoch"]), (StatusCode::CREATED, &json!(after.epoch)), "{body}");
    after
}

/// A group of these people, the first of them its admin.
pub async fn found(node: &TestNode, people: &[&Person]) -> GroupState {
    let role = |at| if at == 0 { Role::Admin } else { Role::Member };
    let members = people.iter().enumerate().map(|(at, person)| joining(person, role(at))).collect();
    change(node, people[0], None, What::Found { members, profile: None }).await
}

/// A message to the group, as good as the sender knows.
pub fn to_group(state: &GroupState, people: &[&Person], n: u64) -> Send {
    let mut people = people.to_vec();
    people.sort_by_key(|person| person.account);
    let devices: Vec<_> = people.iter().map(|it| (it.account, [(DeviceId::FIRST, it.reg_id)])).collect();
    let hash = devices_hash(devices.iter().map(|(account, devices)| (*account, &devices[..])));
    let target = Group {
        group: Bytes::copy_from_slice(group().as_bytes()),
        epoch: state.epoch,
        devices_hash: Bytes::copy_from_slice(&hash),
        body: Bytes::from(format!("message {n}")),
    };
    let target = Some(send::Target::Group(target));
    Send { msg_id: msg_id(n), target, class: Class::Message.into(), urgency: Urgency::None.into(), ..Send::default() }
}

async fn a_group_is_founded_grows_and_shrinks_and_its_messages_reach_whoever_is_in_it() {
    let mut node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let state = found(&node, &[&alice, &bob]).await;
    let mut to_bob = Client::connect(&node, &bob).await;
    let (_, founded) = to_bob.messages(1).await.remove(0);
    assert_eq!((founded.class(), founded.conv_seq, founded.epoch), (Class::GroupChange, 1, 1));
    let told = SignedGroupChange::from_bytes(&founded.body).unwrap();
    assert_eq!(told.verify(None).unwrap().1, state, "a client need not believe the server");

    let mut from = Client::connect(&node, &alice).await;
    let first = from.send(to_group(&state, &[&alice, &bob], 1)).await.unwrap();
    assert_eq!((first.conv_seq, first.duplicate), (2, false));
    let again = from.send(to_group(&state, &[&alice, &bob], 1)).await.unwrap();
    assert_eq!((again.conv_seq, again.duplicate), (2, true));
    let (_, heard) = to_bob.messages(1).await.remove(0);
    assert_eq!((heard.conv_seq, &heard.body[..], &heard.conv_id[..]), (2, &b"message 1"[..], &group().as_bytes()[..]));

    let state = change(&node, &alice, Some(&state), What::Add(vec![joining(&carol, Role::Member)])).await;
    from.send(to_group(&state, &[&alice, &bob, &carol], 2)).await.unwrap();
    node.crash_and_restart().await;
    let state = change(&node, &alice, Some(&state), What::Remove(vec![bob.account])).await;
    let mut from = Client::connect(&node, &alice).await;
    from.send(to_group(&state, &[&alice, &carol], 3)).await.unwrap();

    // Carol: let in, what came then, the removal, what came after it.
    let (came, _) = Client::connect(&node, &carol).await.drained().await;
    assert_eq!(came.iter().map(|(_, row)| row.conv_seq).collect::<Vec<_>>(), [3, 4, 5, 6]);
    // Bob: everything up to his removal, and nothing after it.
    let (came, _) = Client::connect(&node, &bob).await.drained().await;
    assert_eq!(came.iter().map(|(_, row)| row.conv_seq).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let mut bobs = Client::connect(&node, &bob).await;
    let refused = bobs.send(to_group(&state, &[&alice, &carol], 4)).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::NotFound);
}

async fn a_send_for_another_epoch_or_other_devices_is_refused_with_what_it_takes_to_do_better() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let state = found(&node, &[&alice, &bob]).await;
    let later = change(&node, &alice, Some(&state), What::Profile(Some([1; 32]))).await;
    let mut from = Client::connect(&node, &alice).await;
    let refused = from.send(to_group(&state, &[&alice, &bob], 1)).await.unwrap_err();
    assert_eq!((refused.code(), refused.epoch), (ErrorCode::EpochConflict, 2));
    let good = || to_group(&later, &[&alice, &bob], 1);
    from.send(to_group(&later, &[&alice, &bob], 0)).await.unwrap();
    let phone = bob.device(2);
    let linked = phone.link(bob.list(2, &[&bob, &phone]));
    let (status, body) = node.call(Method::POST, "/v1/devices/link", Some(&bob), &linked).await;
    assert_eq!(status, StatusCode::CREATED, "{body}");
    let refused = from.send(good()).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::DeviceMismatch);
    assert_eq!(refused.accounts, [Bytes::copy_from_slice(bob.account.as_bytes())]);
    let known = json!({ "known": { alice.account.to_string(): 1, bob.account.to_string(): 1 } });
    let path = format!("/v1/groups/{}/devices", group());
    let (status, body) = node.call(Method::POST, &path, Some(&alice), &known).await;
    assert_eq!((status, &body["accounts"][0]["handle"]), (StatusCode::OK, &json!("bob")), "{body}");
    assert_eq!(body["accounts"].as_array().map(Vec::len), Some(1));
}

async fn malformed_sends_to_a_group_are_refused() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let state = found(&node, &[&alice, &bob]).await;
    let good = || to_group(&state, &[&alice, &bob], 1);
    let target = |change: &dyn Fn(&mut Group)| {
        let mut send = good();
        let Some(send::Target::Group(target)) = send.target.as_mut() else { unreachable!() };
        change(target);
        send
    };
    let mut from = Client::connect(&node, &alice).await;
    let malformed = [
        target(&|group| group.group = vec![9; 15].into()),
        target(&|group| group.devices_hash = vec![9; 31].into()),
        target(&|group| group.body = Bytes::new()),
        Send { msg_id: vec![1; 17].into(), ..good() },
        Send { class: Class::GroupChange.into(), ..good() },
        Send { class: Class::Call.into(), ..good() },
        Send { ttl_s: Some(0), ..good() },
        Send { coalesce_key: b"key".as_slice().into(), ..good() },
        Send { conv_id: vec![1; 16].into(), ..good() },
    ];
    for send in malformed {
        let refused = from.send(send.clone()).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::BadRequest, "{send:?}");
    }
    let large = target(&|group| group.body = vec![0; 96 * 1024 + 1].into());
    assert_eq!(from.send(large).await.unwrap_err().code(), ErrorCode::TooLarge);
    let nowhere = target(&|group| group.group = vec![8; 16].into());
    assert_eq!(from.send(nowhere).await.unwrap_err().code(), ErrorCode::NotFound);
    let sent = from.send(good()).await.unwrap();
    let other = target(&|group| group.body = b"another".as_slice().into());
    assert_eq!(from.send(other).await.unwrap_err().code(), ErrorCode::BadRequest, "the id is used");
    let mut to = Client::connect(&node, &bob).await;
    let rows = to.messages(2).await;
    assert_eq!(rows[1].1.conv_seq, sent.conv_seq, "of all of these one came");
    to.ack(Lane::Normal, rows[1].1.seq).await;
}

/// Two admins at once: one of them looks again and tries again.
#[tokio::test]
async fn of_two_changes_of_one_epoch_the_second_is_a_conflict_and_a_lost_answer_is_none() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let state = found(&node, &[&alice, &bob]).await;
    let state = change(&node, &alice, Some(&state), What::Role(bob.account, Role::Admin)).await;
    let (add, _) = signed(&alice, Some(&state), What::Add(vec![joining(&carol, Role::Member)]));
    let (rename, _) = signed(&bob, Some(&state), What::Profile(Some([2; 32])));
    let path = changes_path();
    let (one, two) = tokio::join!(
        node.call(Method::POST, &path, Some(&alice), &add),
        node.call(Method::POST, &path, Some(&bob), &rename)
    );
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [StatusCode::CREATED, StatusCode::PRECONDITION_FAILED], "{one:?} {two:?}");
    let lost = if one.0 == StatusCode::CREATED { two } else { one };
    assert_eq!((slug(&lost.1), &lost.1["epoch"]), ("epoch-conflict", &json!(3)));
    let (status, body) = node.get(&format!("{path}?after=2"), &alice).await;
    assert_eq!(
        (status, &body["epoch"], body["changes"].as_array().map(Vec::len)),
        (StatusCode::OK, &json!(3), Some(1))
    );
    // Whoever made it sends it again, since the answer was lost.
    let made: SignedGroupChange = serde_json::from_value(body["changes"][0].clone()).unwrap();
    let by = if made == add { &alice } else { &bob };
    let (status, body) = node.call(Method::POST, &path, Some(by), &made).await;
    assert_eq!((status, &body["epoch"]), (StatusCode::OK, &json!(3)), "{body}");
}

#[tokio::test]
async fn forged_stale_and_foreign_changes_are_refused() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let state = found(&node, &[&alice, &bob]).await;
    let path = changes_path();
    let post = async |by: &Person, body: &SignedGroupChange| {
        let (status, body) = node.call(Method::POST, &path, Some(by), body).await;
        (status.as_u16(), slug(&body).to_owned())
    };
    let refused = |status: u16, slug: &str| (status, slug.to_owned());
    let (add, _) = signed(&alice, Some(&state), What::Add(vec![joining(&carol, Role::Member)]));
    assert_eq!(post(&bob, &add).await, refused(422, "group-change-malformed"), "it is alice's to send");
    let forged = SignedGroupChange { signature: bob.sign(GROUP_CHANGE_DOMAIN, &add.change.0), ..add.clone() };
    assert_eq!(post(&alice, &forged).await, refused(422, "group-signature-invalid"));
    let cut = SignedGroupChange { change: Base64(add.change.0[..40].to_vec()), ..add.clone() };
    assert_eq!(post(&alice, &cut).await, refused(422, "group-change-malformed"));
    let nobody = Person::new("nobody");
    let (ghost, _) = signed(&alice, Some(&state), What::Add(vec![joining(&nobody, Role::Member)]));
    assert_eq!(post(&alice, &ghost).await, refused(422, "group-member-unknown"));
    let other_key = NewMember { account_key: nobody.account_key(), ..joining(&carol, Role::Member) };
    let (other_key, _) = signed(&alice, Some(&state), What::Add(vec![other_key]));
    assert_eq!(post(&alice, &other_key).await, refused(422, "group-member-unknown"));
    let (kick, _) = signed(&alice, Some(&state), What::Remove(vec![bob.account]));
    let mut by_bob = kick.read().unwrap();
    by_bob.actor = bob.account;
    let bytes = by_bob.to_bytes();
    let by_bob = SignedGroupChange { signature: bob.sign(GROUP_CHANGE_DOMAIN, &bytes), change: Base64(bytes) };
    assert_eq!(post(&bob, &by_bob).await, refused(403, "group-change-forbidden"));
    let named = json!({ "change": add.change, "signature": add.signature, "more": 1 });
    let (status, _) = node.call(Method::POST, &path, Some(&alice), &named).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, _) = node.call(Method::POST, &path, Some(&alice), &"x".repeat(300_000)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);

    let later = change(&node, &alice, Some(&state), What::Profile(None)).await;
    assert_eq!(post(&alice, &add).await, refused(412, "epoch-conflict"), "of an epoch that is over");
    let (twice, _) = signed(&alice, None, What::Found { members: vec![joining(&alice, Role::Admin)], profile: None });
    let (status, body) = node.call(Method::POST, "/v1/groups", Some(&alice), &twice).await;
    assert_eq!((status, slug(&body)), (StatusCode::PRECONDITION_FAILED, "epoch-conflict"));
    let (status, body) = node.get(&format!("{path}?after=0"), &alice).await;
    assert_eq!((status, &body["epoch"]), (StatusCode::OK, &json!(later.epoch)), "nothing of it was taken");
}

/// The same answer for a group that is none and for one of others, whatever is asked.
#[tokio::test]
async fn whoever_is_not_in_a_group_learns_nothing_of_it() {
    let node = TestNode::start().await;
    let (alice, bob, eve) = (node.register("alice").await, node.register("bob").await, node.register("eve").await);
    let state = found(&node, &[&alice, &bob]).await;
    let nowhere = GroupId::from_bytes([8; 16]);
    let (bid, _) = signed(&alice, Some(&state), What::Leave);
    let mut bid = bid.read().unwrap();
    bid.actor = eve.account;
    let asks = async |group: GroupId| {
        let mut bid = bid.clone();
        bid.group = group;
        let bytes = bid.to_bytes();
        let leave = SignedGroupChange { signature: eve.sign(GROUP_CHANGE_DOMAIN, &bytes), change: Base64(bytes) };
        let key = SigningKey::from_bytes(&[5; 32]);
        let shown = LinkProof { group, account: eve.account, account_key: eve.account_key() };
        let proof = key.sign(&signed_bytes(GROUP_LINK_DOMAIN, &shown.message())).to_bytes().to_vec();
        let link = json!({ "epoch": 1, "account_key": eve.account_key(), "proof": Base64(proof), "after": 0 });
        let path = |rest: &str| format!("/v1/groups/{group}/{rest}");
        let answers: Vec<(StatusCode, Value)> = vec![
            node.get(&path("changes"), &eve).await,
            node.get(&path("states/1"), &eve).await,
            node.get(&path("states/x"), &eve).await,
            node.call(Method::POST, &path("changes"), Some(&eve), &leave).await,
            node.call(Method::POST, &path("devices"), Some(&eve), &json!({ "known": {} })).await,
            node.call(Method::POST, &path("link"), Some(&eve), &link).await,
        ];
        for (status, body) in &answers {
            assert_eq!((*status, slug(body)), (StatusCode::NOT_FOUND, "group-not-found"), "{body}");
        }
        answers
    };
    assert_eq!(asks(group()).await, asks(nowhere).await);
    let (status, body) = node.get("/v1/groups/not-a-group/changes", &eve).await;
    assert_eq!((status, slug(&body)), (StatusCode::NOT_FOUND, "group-not-found"));
    assert_eq!(node.get("/v1/groups", &eve).await.1, json!({ "groups": [] }));
    assert_eq!(node.get("/v1/groups", &bob).await.1, json!({ "groups": [group()] }));
    let (status, _) = node.call(Method::GET, "/v1/groups", None, &()).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_link_lets_in_whoever_has_it_and_guesses_are_slowed_down() {
    let node = TestNode::with(waxwing_messaging::Config { group_links_per_minute: 5, ..open_config() }).await;
    let (alice, carol, eve) = (node.register("alice").await, node.register("carol").await, node.register("eve").await);
    let key = SigningKey::from_bytes(&[6; 32]);
    let proof = |key: &SigningKey, person: &Person| {
        let shown = LinkProof { group: group(), account: person.account, account_key: person.account_key() };
        Base64(key.sign(&signed_bytes(GROUP_LINK_DOMAIN, &shown.message())).to_bytes().to_vec())
    };
    let state = found(&node, &[&alice]).await;
    let state = change(&node, &alice, Some(&state), What::Link(Some(PublicKey(key.verifying_key().to_bytes())))).await;
    let state = change(&node, &alice, Some(&state), What::Profile(Some([3; 32]))).await;
    let path = format!("/v1/groups/{}/link", group());
    let ask = |proof: &Base64, who: &Person| json!({ "epoch": 2, "account_key": who.account_key(), "proof": proof, "after": 0 });
    let (status, body) = node.call(Method::POST, &path, Some(&carol), &ask(&proof(&key, &carol), &carol)).await;
    assert_eq!(
        (status, &body["epoch"], body["changes"].as_array().map(Vec::len)),
        (StatusCode::OK, &json!(3), Some(1))
    );
    let join = What::Join { account_key: carol.account_key(), proof: proof(&key, &carol) };
    let state = change(&node, &carol, Some(&state), join).await;
    assert!(state.member(carol.account).is_some());

    for _ in 0..5 {
        let guess = ask(&proof(&SigningKey::from_bytes(&[7; 32]), &eve), &eve);
        let (status, _) = node.call(Method::POST, &path, Some(&eve), &guess).await;
        assert_eq!(status, StatusCode::NOT_FOUND);
    }
    let (status, body) = node.call(Method::POST, &path, Some(&eve), &ask(&proof(&key, &eve), &eve)).await;
    assert_eq!((status, slug(&body)), (StatusCode::TOO_MANY_REQUESTS, "rate-limited"));
}

/// Sums, not a receipt for each reader: and none in a group that did not ask for them.
#[tokio::test]
async fn a_group_with_receipts_is_told_how_many_have_a_message_and_how_many_have_seen_it() {
    let node = TestNode::start().await;
    let (alice, bob, carol) = (node.register("alice").await, node.register("bob").await, node.register("carol").await);
    let people = [&alice, &bob, &carol];
    let state = found(&node, &people).await;
    let mut from = Client::connect(&node, &alice).await;
    let (mut bobs, mut carols) = (Client::connect(&node, &bob).await, Client::connect(&node, &carol).await);
    let state = change(&node, &alice, Some(&state), What::Receipts(true)).await;
    let sent = from.send(to_group(&state, &people, 1)).await.unwrap();
    for reader in [&mut bobs, &mut carols] {
        let seq = reader.messages(3).await[2].1.seq;
        reader.ack(Lane::Normal, seq).await;
    }
    let mark = |conv_seq| {
        let conv_id = Bytes::copy_from_slice(group().as_bytes());
        Body::ReadMark(ReadMark { conv_id, conv_seq })
    };
    bobs.put(Frame::push(mark(sent.conv_seq))).await;
    let mut last = ReceiptSummary::default();
    while (last.delivered_n, last.read_n) != (2, 1) {
        if let Some(Body::ReceiptSummary(summary)) = from.next().await.unwrap().body {
            assert!(summary.delivered_n >= last.delivered_n && summary.read_n >= last.read_n, "{summary:?}");
            last = summary;
        }
    }
    assert_eq!((last.conv_seq, &last.conv_id[..]), (sent.conv_seq, &group().as_bytes()[..]));
    // Nobody has seen what was never said, and a stranger has seen nothing.
    let eve = node.register("eve").await;
    let mut eves = Client::connect(&node, &eve).await;
    eves.put(Frame::push(mark(sent.conv_seq))).await;
    carols.put(Frame::push(mark(u64::MAX))).await;
    while last.read_n != 2 {
        if let Some(Body::ReceiptSummary(summary)) = from.next().await.unwrap().body {
            last = summary;
        }
    }
    assert_eq!(last.conv_seq, sent.conv_seq);
}
