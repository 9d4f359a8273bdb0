//! Sockets: who gets in, and how they end.

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use waxwing_messaging::Config;
use waxwing_protocol::Problem;
use waxwing_protocol::frames::{
    Bye, ErrorCode, FRAME_BYTES_MAX, Frame, Hello, Ping, SUBPROTOCOL_JSON, SUBPROTOCOL_PB, WINDOW_BYTES_MAX,
    WINDOW_MSGS_MAX, Welcome, Window, close, frame::Body,
};

use crate::client::{Client, hello, message, upgrade};
use crate::node::{TestNode, open_config};
use crate::transport::on_both_sockets;

on_both_sockets!(
    a_hello_that_names_another_device_or_other_keys_is_refused,
    a_newer_connection_displaces_the_older_and_gets_its_messages,
    goodbye_closes_normally_after_what_was_asked_before,
    who_says_no_hello_in_time_is_closed,
);

/// The problem with which an upgrade was refused.
fn problem(refused: Result<Client, WsError>) -> Problem {
    match refused {
        Err(WsError::Http(response)) => {
            let problem: Problem = serde_json::from_slice(response.body().as_deref().unwrap()).unwrap();
            assert_eq!(problem.status, response.status().as_u16());
            if problem.status == 401 {
                assert!(response.headers().contains_key("www-authenticate"));
            }
            problem
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("the socket was opened"),
    }
}

#[tokio::test]
async fn a_client_that_offers_no_known_subprotocol_is_told_which_there_are() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    for offered in [None, Some("waxwing.v2.pb"), Some("graphql-ws, waxwing.v1")] {
        let mut request = upgrade(node.address(), Some(&alice.token.to_text()));
        request.headers_mut().remove("sec-websocket-protocol");
        if let Some(offered) = offered {
            request.headers_mut().insert("sec-websocket-protocol", offered.parse().unwrap());
        }
        let problem = problem(Client::open(node.address(), request).await);
        assert_eq!((problem.status, problem.slug()), (400, "subprotocol-unsupported"), "{offered:?}");
        assert_eq!(problem.extensions["supported"], serde_json::json!([SUBPROTOCOL_PB, SUBPROTOCOL_JSON]));
    }
}

#[tokio::test]
async fn pages_of_foreign_origins_are_refused() {
    let node = TestNode::with(Config { origins: vec!["https://chat.example".into()], ..open_config() }).await;
    let alice = node.register("alice").await;
    let with_origin = |origin: &str| {
        let mut request = upgrade(node.address(), Some(&alice.token.to_text()));
        request.headers_mut().insert("origin", origin.parse().unwrap());
        request
    };
    let refused = problem(Client::open(node.address(), with_origin("https://evil.example")).await);
    assert_eq!((refused.status, refused.slug()), (403, "origin-refused"));
    for origin in [format!("http://{}", node.address()), "https://chat.example".into()] {
        assert!(Client::open(node.address(), with_origin(&origin)).await.is_ok(), "{origin}");
    }
}

#[tokio::test]
async fn wrong_tokens_do_not_get_in_by_header_or_by_hello() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let text = alice.token.to_text();
    let (device, secret) = text.rsplit_once('.').unwrap();
    let bobs_secret = bob.token.to_text().rsplit('.').next().unwrap().to_owned();
    let unknown = crate::node::Person::new("nobody").token.to_text();
    let wrong = [
        format!("{device}.{bobs_secret}"),
        format!("{device}.{}", secret.to_lowercase()),
        text.replace(".1.", ".2."),
        unknown,
        "nonsense".into(),
        String::new(),
    ];
    for token in wrong {
        let refused = problem(Client::open(node.address(), upgrade(node.address(), Some(&token))).await);
        assert_eq!((refused.status, refused.slug()), (401, "unauthenticated"), "{token}");
        let mut client = Client::open(node.address(), upgrade(node.address(), None)).await.unwrap();
        let error = client.say_hello(Hello { token, ..hello(&alice) }).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unauthenticated);
        assert_eq!(client.closed().await, Some(close::UNAUTHENTICATED));
    }
    let mut client = Client::open(node.address(), upgrade(node.address(), None)).await.unwrap();
    client.say_hello(Hello { token: text, ..hello(&alice) }).await.unwrap();
}

async fn a_hello_that_names_another_device_or_other_keys_is_refused() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let lies = [
        Hello { account: Bytes::copy_from_slice(bob.account.as_bytes()), ..hello(&alice) },
        Hello { account: Bytes::new(), ..hello(&alice) },
        Hello { device: 2, ..hello(&alice) },
        Hello { reg_id: alice.reg_id ^ 1, ..hello(&alice) },
    ];
    for lie in lies {
        let request = upgrade(node.address(), Some(&alice.token.to_text()));
        let mut client = Client::open(node.address(), request).await.unwrap();
        assert_eq!(client.say_hello(lie).await.unwrap_err().code(), ErrorCode::Forbidden);
        assert_eq!(client.closed().await, Some(close::REFUSED));
    }
}

async fn who_says_no_hello_in_time_is_closed() {
    let node = TestNode::with(Config { hello_timeout_s: 1, ..open_config() }).await;
    let alice = node.register("alice").await;
    let request = upgrade(node.address(), Some(&alice.token.to_text()));
    let mut client = Client::open(node.address(), request).await.unwrap();
    assert_eq!(client.closed().await, Some(close::SILENT));
}

async fn a_newer_connection_displaces_the_older_and_gets_its_messages() {
    let node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut older = Client::connect(&node, &bob).await;
    let mut newer = Client::connect(&node, &bob).await;
    assert_eq!(older.closed().await, Some(close::DISPLACED));
    let mut from = Client::connect(&node, &alice).await;
    from.send(message(&bob, 1, b"sealed")).await.unwrap();
    assert_eq!(newer.messages(1).await.len(), 1);
}

#[tokio::test]
async fn what_is_not_frames_closes_the_connection() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut oversized = BytesMut::new();
    prost::encode_length_delimiter(FRAME_BYTES_MAX + 1, &mut oversized).unwrap();
    oversized.put_bytes(0, 100);
    let malformed = [
        Message::Binary(vec![0xFF; 40].into()),
        Message::Binary(vec![5, 1, 2].into()),
        Message::Binary(oversized.freeze()),
        Message::Text("{\"hello\":{}}".into()),
    ];
    for message in malformed {
        let mut client = Client::connect(&node, &alice).await;
        client.put_message(message.clone()).await;
        assert_eq!(client.closed().await, Some(close::BAD_FRAME), "{message:?}");
        // And as the first thing said.
        let request = upgrade(node.address(), Some(&alice.token.to_text()));
        let mut client = Client::open(node.address(), request).await.unwrap();
        client.put_message(message.clone()).await;
        assert_eq!(client.closed().await, Some(close::BAD_FRAME), "{message:?}");
    }
    let mut client = Client::connect(&node, &alice).await;
    client.put_message(Message::Binary(vec![0; FRAME_BYTES_MAX + 100].into())).await;
    assert_eq!(client.closed().await, Some(close::TOO_LARGE));
}

#[tokio::test]
async fn unknown_frames_are_ignored_when_optional_and_answered_when_not() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut client = Client::connect(&node, &alice).await;
    client.drained().await;
    // Field 99 is nothing this server knows: id 5, then the unknown field, with and without `optional`.
    client.put_message(Message::Binary(vec![7, 0x08, 5, 0x10, 1, 0x9a, 0x06, 0].into())).await;
    client.put_message(Message::Binary(vec![5, 0x08, 6, 0x9a, 0x06, 0].into())).await;
    let answer = client.next().await.unwrap();
    // The urgent lane's QueueEmpty may come before.
    let answer = match answer.body {
        Some(Body::QueueEmpty(_)) => client.next().await.unwrap(),
        _ => answer,
    };
    match answer {
        Frame { id: 6, body: Some(Body::Error(error)), .. } => assert_eq!(error.code(), ErrorCode::Unsupported),
        other => panic!("{other:?}"),
    }
    // A frame that only servers send is no more known than that.
    client.put(Frame::with_id(8, Body::Welcome(Welcome::default()))).await;
    match client.next().await.unwrap() {
        Frame { id: 8, body: Some(Body::Error(error)), .. } => assert_eq!(error.code(), ErrorCode::Unsupported),
        other => panic!("{other:?}"),
    }
    client.put(Frame::with_id(9, Body::Hello(hello(&alice)))).await;
    match client.next().await.unwrap() {
        Frame { id: 9, body: Some(Body::Error(error)), .. } => assert_eq!(error.code(), ErrorCode::BadRequest),
        other => panic!("{other:?}"),
    }
}

async fn goodbye_closes_normally_after_what_was_asked_before() {
    let node = TestNode::start().await;
    let alice = node.register("alice").await;
    let mut client = Client::connect(&node, &alice).await;
    client.put(Frame::with_id(3, Body::Ping(Ping { nonce: 8 }))).await;
    client.put(Frame::push(Body::Bye(Bye { reason: "done".into() }))).await;
    loop {
        match client.next().await {
            Ok(Frame { id: 3, body: Some(Body::Pong(pong)), .. }) => assert_eq!(pong.nonce, 8),
            Ok(_) => {}
            Err(code) => break assert_eq!(code, Some(1000)),
        }
    }
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_then_closed_and_one_that_answers_is_not() {
    let node = TestNode::with(Config { heartbeat_foreground_s: 1, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut silent = Client::connect(&node, &alice).await;
    let mut answering = Client::connect(&node, &bob).await;
    assert_eq!(silent.welcome.heartbeat_s, 1);
    let silence = async {
        let mut pings = 0;
        let code = loop {
            match silent.next().await {
                Ok(frame) => pings += usize::from(matches!(frame.body, Some(Body::Ping(_)))),
                Err(code) => break code,
            }
        };
        assert_eq!((pings, code), (1, Some(close::SILENT)));
    };
    let answers = async {
        // More pings than a silent client lives to see.
        for _ in 0..4 {
            let nonce = loop {
                if let Some(Body::Ping(ping)) = answering.next().await.unwrap().body {
                    break ping.nonce;
                }
            };
            answering.put(Frame::push(Body::Pong(waxwing_protocol::frames::Pong { nonce }))).await;
        }
    };
    tokio::join!(silence, answers);
}

/// A client that stops reading must not hold its connection for ever, and loses nothing.
#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_finds_everything_later() {
    const MESSAGES: u64 = 100;
    let node = TestNode::with(Config { slow_reader_s: 1, ..open_config() }).await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let body = vec![7; 90 * 1024];
    for n in 1..=MESSAGES {
        from.send(message(&bob, n, &body)).await.unwrap();
    }
    // The largest window, and little room in the kernel: the server's write stalls before the window does.
    let window = Some(Window { msgs: WINDOW_MSGS_MAX, bytes: WINDOW_BYTES_MAX });
    let everything = Hello { window, ..hello(&bob) };
    let narrow = tokio::net::TcpSocket::new_v4().unwrap();
    narrow.set_recv_buffer_size(4096).unwrap();
    let stream = narrow.connect(node.address()).await.unwrap();
    let request = upgrade(node.address(), Some(&bob.token.to_text()));
    let mut slow = Client::open_on(stream, request).await.unwrap();
    slow.put(Frame::with_id(1, Body::Hello(everything.clone()))).await;
    slow.write_until_cut().await;

    let mut reading = Client::connect_with(&node, &bob, everything).await;
    let mut seen = 0;
    while seen < MESSAGES {
        for (lane, envelope) in reading.messages(1).await {
            assert_eq!(envelope.seq, seen + 1);
            seen = envelope.seq;
            reading.ack(lane, seen).await;
        }
    }
}

#[tokio::test]
async fn closing_tells_clients_to_come_back_and_keeps_what_was_accepted() {
    let mut node = TestNode::start().await;
    let (alice, bob) = (node.register("alice").await, node.register("bob").await);
    let mut from = Client::connect(&node, &alice).await;
    let mut idle = Client::connect(&node, &bob).await;
    idle.drained().await;
    from.send(message(&bob, 1, b"sealed")).await.unwrap();
    idle.messages(1).await;
    let closing = node.messaging().close();
    let leaving = async {
        let mut drained = false;
        let code = loop {
            match idle.next().await {
                Ok(frame) => drained |= matches!(frame.body, Some(Body::Drain(_))),
                Err(code) => break code,
            }
        };
        assert_eq!((drained, code), (true, Some(close::DRAINING)));
    };
    let other = from.closed();
    let ((), (), code) = tokio::join!(closing, leaving, other);
    assert_eq!(code, Some(close::DRAINING));
    let (status, body) = node.get("/v1/keys", &alice).await;
    assert!(status.is_success() || status == 503, "{body}");
    node.crash_and_restart().await;
    let mut again = Client::connect(&node, &bob).await;
    assert_eq!(again.drained().await.0.len(), 1);
}
