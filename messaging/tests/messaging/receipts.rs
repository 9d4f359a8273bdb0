//! Delivery receipts and what replaces what waits, over sockets.

use http::Method;
use waxwing_protocol::api::Preferences;
use waxwing_protocol::frames::{Class, DeliveryUpdate, Envelope, ErrorCode, Lane, Send, frame::Body};

use crate::client::{Client, hello, message, msg_id, unfolded};
use crate::node::{Person, TestNode};
use crate::transport::on_every_transport;

on_every_transport!(
    a_sender_learns_what_was_delivered_also_what_was_while_it_was_away,
    strangers_and_senders_to_whom_it_is_switched_off_are_told_nothing,
    a_receipt_that_waits_is_replaced_and_a_message_never_is,
);

/// The next receipt, and where it stands.
async fn receipt(client: &mut Client) -> (u64, DeliveryUpdate) {
    let envelope = client.next_delivered(|envelope| envelope.class() == Class::Delivery).await;
    (envelope.seq, envelope.delivery.unwrap())
}

/// Two people of whom each has written to the other.
async fn acquainted(node: &TestNode) -> (Person, Person) {
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut client = Client::connect(node, &bob).await;
    client.send(message(&alice, 900, b"hello")).await.unwrap();
    let mut client = Client::connect(node, &alice).await;
    client.messages(1).await;
    client.ack(Lane::Normal, 1).await;
    client.send(message(&bob, 901, b"hello you")).await.unwrap();
    (alice, bob)
}

async fn a_sender_learns_what_was_delivered_also_what_was_while_it_was_away() {
    let mut node = TestNode::start().await;
    let (alice, bob) = acquainted(&node).await;
    {
        let mut from = Client::connect(&node, &alice).await;
        from.send(message(&bob, 1, b"one")).await.unwrap();
        from.send(message(&bob, 2, b"two")).await.unwrap();
    }
    let mut to = Client::connect(&node, &bob).await;
    // A receipt of its own first message lies between: bob has written to alice, and she has acked it.
    let mut last = 0;
    while last < 2 {
        for (_, row) in to.messages(1).await {
            if row.msg_id == msg_id(2) {
                last = 2;
            }
            to.ack(Lane::Normal, row.seq).await;
        }
    }
    to.settled(&alice, 902).await;
    node.crash_and_restart().await;
    let mut from = Client::connect(&node, &alice).await;
    let (mut told, mut acked) = (Vec::new(), 0);
    while told.len() < 3 {
        let (seq, delivery) = receipt(&mut from).await;
        assert_eq!(delivery.account, bob.account.as_bytes()[..]);
        told.extend(delivery.msg_ids);
        acked = seq;
    }
    told.sort();
    assert_eq!(told, [msg_id(1), msg_id(2), msg_id(901)]);
    from.ack(Lane::Normal, acked).await;

    // And at once, now that both are there.
    let mut to = Client::connect(&node, &bob).await;
    from.send(message(&bob, 3, b"three")).await.unwrap();
    let row = to.next_delivered(|row| row.msg_id == msg_id(3)).await;
    to.ack(Lane::Normal, row.seq).await;
    // A poll's ack travels with the next one.
    to.settled(&alice, 903).await;
    assert_eq!(receipt(&mut from).await.1.msg_ids, [msg_id(3)]);
}

async fn strangers_and_senders_to_whom_it_is_switched_off_are_told_nothing() {
    let node = TestNode::start().await;
    let (alice, bob) = acquainted(&node).await;
    let carol = node.register("carol").await;
    let silent = Preferences { delivery_receipts: false, ..Preferences::default() };
    let (status, body) = node.call(Method::PUT, "/v1/preferences", Some(&bob), &silent).await;
    assert!(status.is_success(), "{body}");
    let (_, shown) = node.get("/v1/preferences", &bob).await;
    assert_eq!(serde_json::from_value::<Preferences>(shown).unwrap(), silent);

    let (mut from_alice, mut from_carol) = (Client::connect(&node, &alice).await, Client::connect(&node, &carol).await);
    from_alice.send(message(&bob, 1, b"one")).await.unwrap();
    from_carol.send(message(&bob, 2, b"two")).await.unwrap();
    let mut to = Client::connect(&node, &bob).await;
    let row = to.next_delivered(|row| row.msg_id == msg_id(2)).await;
    to.ack(Lane::Normal, row.seq).await;
    // Whatever was to be told stands before this in their mailboxes.
    to.settled(&alice, 910).await;
    to.settled(&carol, 911).await;
    for (client, last) in [(&mut from_alice, 910), (&mut from_carol, 911)] {
        let told = |row: &Envelope| row.class() == Class::Delivery && row.delivery.as_ref().unwrap().msg_ids.len() == 1;
        let next = client.next_delivered(|row| row.msg_id == msg_id(last) || told(row)).await;
        assert_eq!(next.msg_id, msg_id(last));
    }
}

async fn a_receipt_that_waits_is_replaced_and_a_message_never_is() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let receipt = |n, body: &[u8]| Send {
        class: Class::Receipt.into(),
        coalesce_key: b"read"[..].into(),
        ..message(&bob, n, body)
    };
    from.send(receipt(1, b"up to 1")).await.unwrap();
    from.send(message(&bob, 2, b"words")).await.unwrap();
    from.send(receipt(3, b"up to 3")).await.unwrap();
    assert!(from.send(receipt(3, b"up to 3")).await.unwrap().duplicate);
    let mut to = Client::connect_with(&node, &bob, hello(&bob)).await;
    let (rows, _) = to.drained().await;
    assert_eq!(rows.iter().map(|(_, row)| &row.body[..]).collect::<Vec<_>>(), [&b"words"[..], b"up to 3"]);

    let refused = [
        Send { class: Class::Message.into(), ..receipt(4, b"x") },
        Send { class: Class::Delivery.into(), ..message(&bob, 5, b"x") },
        Send { coalesce_key: vec![1; 17].into(), ..receipt(6, b"x") },
    ];
    for send in refused {
        assert_eq!(from.send(send).await.unwrap_err().code(), ErrorCode::BadRequest);
    }
}

impl Client {
    /// The next row for which `f` holds; others are passed over.
    pub async fn next_delivered(&mut self, f: impl Fn(&Envelope) -> bool) -> Envelope {
        loop {
            if let Some(Body::Deliver(deliver)) = self.next().await.unwrap().body {
                let mut rows = unfolded(deliver).map(|(_, row)| row);
                if let Some(row) = rows.find(|row| f(row)) {
                    return row;
                }
            }
        }
    }
}
