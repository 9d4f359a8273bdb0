//! Sending, receiving, acking.

use bytes::BytesMut;
use futures_util::future::join_all;
use tokio_tungstenite::tungstenite::Message;
use waxwing_messaging::Config;
use waxwing_protocol::frames::{
    BODY_BYTES_MAX, Class, Direct, ErrorCode, Frame, Hello, Lane, Ping, Send, Window, frame::Body, send,
};

use crate::client::{Client, have, hello, message, number, unfolded, window};
use crate::node::{Person, TestNode, open_config};
use crate::transport::{on_both_sockets, on_every_transport};

on_every_transport!(
    a_message_reaches_a_connected_device_and_goes_when_it_is_acked,
    a_repeated_send_is_delivered_once_and_other_content_is_refused,
    a_message_for_other_devices_than_the_account_has_is_refused_with_the_difference,
    acks_lost_with_a_socket_are_covered_by_what_the_client_has,
    calls_do_not_wait_behind_a_full_window_of_messages,
    a_full_mailbox_is_told_to_the_sender_and_empties_with_acks,
);

on_both_sockets!(
    a_thousand_messages_wait_and_drain_in_order_within_a_small_window,
    a_window_in_bytes_holds_large_bodies_back,
    a_crash_keeps_what_is_unacked_and_forgets_what_is_acked,
    a_client_cannot_ack_what_it_was_not_sent,
    two_senders_race_and_neither_loses_or_overtakes_itself,
    a_message_for_connected_devices_only_is_not_kept_for_an_absent_one,
);

async fn a_message_reaches_a_connected_device_and_goes_when_it_is_acked() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let (mut from, mut to) = (Client::connect(&node, &alice).await, Client::connect(&node, &bob).await);
    let (waiting, empty) = to.drained().await;
    assert_eq!((waiting.len(), empty.up_to), (0, 0));

    let sent = from.send(message(&bob, 1, b"sealed")).await.unwrap();
    assert!(!sent.duplicate);
    let (lane, envelope) = to.messages(1).await.remove(0);
    assert_eq!((lane, envelope.seq, envelope.prev_seq), (Lane::Normal, 1, 0));
    assert_eq!(&envelope.body[..], b"sealed");
    assert_eq!(&envelope.from_account[..], alice.account.as_bytes());
    assert_eq!((envelope.from_device, envelope.server_ts), (1, sent.server_ts));

    to.ack(Lane::Normal, 1).await;
    to.settled(&alice, 1).await;
    let mut again = Client::connect(&node, &bob).await;
    assert_eq!(again.drained().await.0.len(), 0);
}

async fn a_thousand_messages_wait_and_drain_in_order_within_a_small_window() {
    const WINDOW: usize = 10;
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in (1..=1000).step_by(50) {
        for n in n..n + 50 {
            from.start_send(message(&bob, n, &n.to_be_bytes())).await;
        }
        for _ in 0..50 {
            while !matches!(from.next().await.unwrap().body, Some(Body::SendResult(_))) {}
        }
    }
    let mut to = Client::connect_with(&node, &bob, hello_with_window(&bob, window(WINDOW as u32))).await;
    assert_eq!(to.welcome.window, Some(Window { msgs: 10, bytes: 1024 * 1024 }));
    assert_eq!((to.welcome.pending[0].count_estimate, to.welcome.pending[0].tail_seq), (1000, 1000));
    let (mut last, mut unacked) = (0, 0);
    loop {
        match to.next().await.unwrap().body {
            Some(Body::Deliver(deliver)) => {
                for (_, envelope) in unfolded(deliver) {
                    assert_eq!((envelope.seq, envelope.prev_seq, number(&envelope)), (last + 1, last, last + 1));
                    last = envelope.seq;
                    unacked += 1;
                    assert!(unacked <= WINDOW, "{unacked} unacked");
                }
                // Only when it is full: a server that does not count what is unacked would go on.
                if unacked == WINDOW {
                    to.ack(Lane::Normal, last).await;
                    unacked = 0;
                }
            }
            Some(Body::QueueEmpty(empty)) if empty.lane == i32::from(Lane::Normal) => {
                assert_eq!((empty.up_to, last), (1000, 1000));
                break;
            }
            _ => {}
        }
    }
}

fn hello_with_window(person: &Person, window: Option<Window>) -> Hello {
    Hello { window, ..hello(person) }
}

async fn a_window_in_bytes_holds_large_bodies_back() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let bytes = 200_000;
    let mut to = Client::connect_with(&node, &bob, hello_with_window(&bob, Some(Window { msgs: 0, bytes }))).await;
    for n in 1..=3 {
        from.send(message(&bob, n, &vec![n as u8; BODY_BYTES_MAX])).await.unwrap();
    }
    assert_eq!(to.messages(2).await.len(), 2);
    // The answer to a ping comes after whatever could be sent.
    to.put(Frame::with_id(7, Body::Ping(Ping { nonce: 5 }))).await;
    loop {
        match to.next().await.unwrap().body {
            Some(Body::Pong(pong)) => break assert_eq!(pong.nonce, 5),
            Some(Body::Deliver(_)) => panic!("three bodies of 96 KiB are more than 200,000 bytes"),
            _ => {}
        }
    }
    to.ack(Lane::Normal, 2).await;
    assert_eq!(to.messages(1).await[0].1.body.len(), BODY_BYTES_MAX);
}

async fn a_repeated_send_is_delivered_once_and_other_content_is_refused() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let first = from.send(message(&bob, 1, b"once")).await.unwrap();
    let second = from.send(message(&bob, 1, b"once")).await.unwrap();
    assert_eq!((first.duplicate, second.duplicate), (false, true));
    assert_eq!(first.server_ts, second.server_ts);
    let error = from.send(message(&bob, 1, b"twice")).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::BadRequest);

    node.crash_and_restart().await;
    let mut from = Client::connect(&node, &alice).await;
    assert!(from.send(message(&bob, 1, b"once")).await.unwrap().duplicate);
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.drained().await.0.len(), 1);
}

async fn a_message_for_other_devices_than_the_account_has_is_refused_with_the_difference() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let with_devices = |change: &dyn Fn(&mut Direct)| {
        let mut send = message(&bob, 1, b"sealed");
        let Some(send::Target::Direct(direct)) = send.target.as_mut() else { unreachable!() };
        change(direct);
        send
    };
    let error = from.send(with_devices(&|direct| direct.devices[0].device = 2)).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), ErrorCode::DeviceMismatch);
    assert_eq!((error.missing, error.extra), (vec![1], vec![2]));
    let error = from.send(with_devices(&|direct| direct.devices[0].reg_id ^= 1)).await;
    let error = error.unwrap_err();
    assert_eq!((error.code(), &error.stale[..]), (ErrorCode::StaleDevices, &[1][..]));
    let nobody = from.send(with_devices(&|direct| direct.account = vec![9; 16].into())).await;
    assert_eq!(nobody.unwrap_err().code(), ErrorCode::NotFound);
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.drained().await.0.len(), 0, "nothing of it was stored");
    assert!(!from.send(message(&bob, 1, b"sealed")).await.unwrap().duplicate);
}

#[tokio::test]
async fn malformed_sends_are_refused_one_by_one_and_the_connection_lives() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let good = || message(&bob, 1, b"sealed");
    let direct = |change: &dyn Fn(&mut Direct)| {
        let mut send = good();
        let Some(send::Target::Direct(target)) = send.target.as_mut() else { unreachable!() };
        change(target);
        send
    };
    let malformed = [
        Send { msg_id: vec![1; 15].into(), ..good() },
        Send { target: None, ..good() },
        Send { class: 77, ..good() },
        Send { urgency: -1, ..good() },
        Send { conv_id: vec![1; 17].into(), ..good() },
        Send { class: Class::Sync.into(), ..good() },
        direct(&|direct| direct.account = vec![1; 4].into()),
        direct(&|direct| direct.devices[0].device = 0),
        direct(&|direct| direct.devices[0].ciphertext = Vec::new().into()),
        direct(&|direct| direct.devices = vec![direct.devices[0].clone(); 2]),
        direct(&|direct| direct.devices = vec![direct.devices[0].clone(); 33]),
    ];
    for send in malformed {
        let error = from.send(send.clone()).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::BadRequest, "{send:?}");
    }
    let error = from.send(message(&bob, 1, &vec![0; BODY_BYTES_MAX + 1])).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::TooLarge);
    assert!(from.send(good()).await.is_ok());
}

async fn a_crash_keeps_what_is_unacked_and_forgets_what_is_acked() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let mut to = Client::connect(&node, &bob).await;
    for n in 1..=9 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    to.messages(9).await;
    to.ack_ranges(Lane::Normal, 3, &[(5, 6), (8, 8)]).await;
    to.settled(&alice, 1).await;
    let epoch = to.welcome.epoch;

    node.crash_and_restart().await;
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.welcome.epoch, epoch, "a restart loses nothing, so clients' numbers stay good");
    let (messages, empty) = to.drained().await;
    let seqs: Vec<_> = messages.iter().map(|(_, envelope)| (envelope.seq, envelope.prev_seq)).collect();
    assert_eq!(seqs, [(4, 0), (7, 4), (9, 7)]);
    assert_eq!(empty.up_to, 9);
}

async fn acks_lost_with_a_socket_are_covered_by_what_the_client_has() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=5 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    let hello_with = |have| Hello { have, ..hello(&bob) };
    let epoch = Client::connect(&node, &bob).await.welcome.epoch;
    let mut other_epoch = Client::connect_with(&node, &bob, hello_with(have(epoch + 1, 5))).await;
    assert_eq!(other_epoch.drained().await.0.len(), 5, "numbers of another epoch mean nothing");
    let mut to = Client::connect_with(&node, &bob, hello_with(have(epoch, 3))).await;
    assert_eq!(to.drained().await.0.iter().map(|(_, envelope)| envelope.seq).collect::<Vec<_>>(), [4, 5]);
}

/// An ack beyond what was sent would erase messages that nobody has seen.
async fn a_client_cannot_ack_what_it_was_not_sent() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=5 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    let mut to = Client::connect_with(&node, &bob, hello_with_window(&bob, window(2))).await;
    assert_eq!(to.messages(2).await.len(), 2);
    to.ack_ranges(Lane::Normal, u64::MAX, &[(1, u64::MAX), (9, 3)]).await;
    let mut rest = Vec::new();
    while rest.len() < 3 {
        rest.extend(to.messages(1).await.into_iter().map(|(_, envelope)| envelope.seq));
        to.ack(Lane::Normal, *rest.last().unwrap()).await;
    }
    assert_eq!(rest, [3, 4, 5]);
}

async fn calls_do_not_wait_behind_a_full_window_of_messages() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let mut to = Client::connect_with(&node, &bob, hello_with_window(&bob, window(1))).await;
    for n in 1..=5 {
        from.send(message(&bob, n, b"message")).await.unwrap();
    }
    let call = Send { class: Class::Call.into(), ..message(&bob, 6, b"ringing") };
    from.send(call).await.unwrap();
    let received = to.messages(2).await;
    let calls: Vec<_> = received.iter().filter(|(lane, _)| *lane == Lane::Urgent).collect();
    assert_eq!(calls.len(), 1, "{received:?}");
    assert_eq!((&calls[0].1.body[..], calls[0].1.seq), (&b"ringing"[..], 1));
}

async fn two_senders_race_and_neither_loses_or_overtakes_itself() {
    const EACH: u64 = 200;
    let node = TestNode::start().await;
    let bob = node.register("bob").await;
    let mut to = Client::connect(&node, &bob).await;
    let senders = ["alice", "carol"];
    let mut clients = Vec::new();
    for handle in senders {
        let person = node.register(handle).await;
        clients.push((person.account, Client::connect(&node, &person).await));
    }
    let accounts: Vec<_> = clients.iter().map(|(account, _)| *account).collect();
    let racing = clients.into_iter().map(|(_, mut client)| {
        let bob = &bob;
        async move {
            let mut ids = Vec::new();
            for n in 1..=EACH {
                ids.push(client.start_send(message(bob, n, &n.to_be_bytes())).await);
                // At most 64 in flight, as clients promise.
                if n >= 60 {
                    client.answer(ids.remove(0)).await.unwrap();
                }
            }
            for id in ids {
                client.answer(id).await.unwrap();
            }
        }
    });
    let receiving = async {
        let (mut last_seq, mut last_of) = (0, [0, 0]);
        while last_of != [EACH, EACH] {
            for (_, envelope) in to.messages(1).await {
                assert_eq!((envelope.seq, envelope.prev_seq), (last_seq + 1, last_seq));
                last_seq = envelope.seq;
                let sender = accounts.iter().position(|account| account.as_bytes()[..] == envelope.from_account);
                let last = &mut last_of[sender.unwrap()];
                assert_eq!(number(&envelope), *last + 1);
                *last += 1;
            }
            to.ack(Lane::Normal, last_seq).await;
        }
    };
    tokio::join!(join_all(racing), receiving);
}

/// One commit brings more than may wait for a connection: what was forgotten on the way is read from the mailbox, even
/// when nothing comes after it.
#[tokio::test]
async fn a_burst_larger_than_what_may_wait_arrives_whole() {
    const BURST: u64 = 8;
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    // Pages are read while half of the window is free: the burst is less than that.
    let large = Some(Window { msgs: 0, bytes: 2 * 1024 * 1024 });
    let mut to = Client::connect_with(&node, &bob, hello_with_window(&bob, large)).await;
    to.drained().await;
    let body = vec![7; 90 * 1024];
    let mut last = 0;
    for round in 0..20 {
        // All in one WebSocket message, so that they wait for the same commit.
        let mut burst = BytesMut::new();
        for n in 1..=BURST {
            Frame::push(Body::Send(message(&bob, round * BURST + n, &body))).pack(&mut burst);
        }
        from.put_message(Message::Binary(burst.freeze())).await;
        while last < (round + 1) * BURST {
            for (_, envelope) in to.messages(1).await {
                assert_eq!(envelope.seq, last + 1);
                last = envelope.seq;
            }
        }
        to.ack(Lane::Normal, last).await;
    }
}

async fn a_message_for_connected_devices_only_is_not_kept_for_an_absent_one() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let fleeting = |n| Send { ttl_s: Some(0), ..message(&bob, n, b"now or never") };
    assert!(!from.send(fleeting(1)).await.unwrap().duplicate);
    let mut to = Client::connect(&node, &bob).await;
    assert_eq!(to.drained().await.0.len(), 0);
    from.send(fleeting(2)).await.unwrap();
    assert_eq!(number(&to.messages(1).await[0].1), 2);
}

/// The limit is each device's own, and says when to come back.
#[tokio::test]
async fn who_sends_too_much_is_told_to_wait_and_nobody_else_is() {
    let node = TestNode::with(Config { sends_per_minute: 3, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=3 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    let refused = from.send(message(&bob, 4, b"sealed")).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::RateLimited);
    assert!(refused.retry_after_ms > 15_000 && refused.retry_after_ms <= 20_001, "{refused:?}");
    let mut other = Client::connect(&node, &bob).await;
    other.send(message(&alice, 5, b"sealed")).await.unwrap();
}

async fn a_full_mailbox_is_told_to_the_sender_and_empties_with_acks() {
    let node = TestNode::with(Config { mailbox_msgs_max: 2, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    for n in 1..=2 {
        from.send(message(&bob, n, b"sealed")).await.unwrap();
    }
    assert_eq!(from.send(message(&bob, 3, b"sealed")).await.unwrap_err().code(), ErrorCode::MailboxFull);
    let mut to = Client::connect(&node, &bob).await;
    to.drained().await;
    to.ack(Lane::Normal, 2).await;
    to.settled(&alice, 1).await;
    assert!(!from.send(message(&bob, 3, b"sealed")).await.unwrap().duplicate);
}
