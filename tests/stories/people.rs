//! People: how they get in, what they learn of their messages, and how they go.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use crate::support::{Service, register, waxwing};

/// What alice knows of what she sent: words and ticks.
fn ticks(dir: &std::path::Path, home: &str) -> Vec<(String, String)> {
    let lines = waxwing(dir, &["--json", "messages", "--home", home]).ok().stdout;
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    lines
        .filter(|line| line["to"].is_string())
        .map(|line| (text(&line["content"]["text"]), text(&line["tick"])))
        .collect()
}

#[test]
fn a_message_gets_its_ticks_as_it_reaches_a_device_and_a_person() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let say = |from: &str, to: &str, words: &str| {
        waxwing(dir, &["send", "--text", words, "--to", to, "--home", from]).ok();
    };
    let watch = |who: &str, more: &[&str]| {
        waxwing(dir, &[&["--json", "watch", "--once", "--home", who], more].concat()).ok();
    };
    say("bob", "alice", "hello");
    say("alice", "bob", "one");
    assert_eq!(ticks(dir, "alice"), [("one".into(), "sent".into())]);
    watch("bob", &["--background"]);
    watch("alice", &[]);
    assert_eq!(ticks(dir, "alice"), [("one".into(), "delivered".into())], "bob has not looked");

    say("alice", "bob", "two");
    watch("bob", &[]);
    say("bob", "alice", "yes?");
    watch("alice", &[]);
    assert_eq!(ticks(dir, "alice"), [("one".into(), "read".into()), ("two".into(), "read".into())]);

    let off = ["settings", "--read-receipts", "off", "--delivery-receipts", "off", "--presence", "nobody"];
    let shown = waxwing(dir, &[&["--json"], &off[..], &["--home", "bob"]].concat()).ok().json();
    assert_eq!((&shown["read_receipts"], &shown["presence"]), (&false.into(), &"nobody".into()), "{shown}");
    say("alice", "bob", "three");
    watch("bob", &[]);
    say("bob", "alice", "no comment");
    watch("alice", &[]);
    assert_eq!(ticks(dir, "alice")[2], ("three".into(), "sent".into()));
}

#[test]
fn a_strangers_first_message_is_marked_and_whoever_is_blocked_is_heard_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let say = |from: &str, to: &str, words: &str| {
        waxwing(dir, &["send", "--text", words, "--to", to, "--home", from]).ok();
    };
    let hear = |who: &str| {
        let lines = waxwing(dir, &["--json", "watch", "--once", "--home", who]).ok().stdout;
        let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let messages = lines.filter(|line| line["message"].is_string());
        messages.map(|line| (line["content"]["text"].clone(), line["request"].clone())).collect::<Vec<_>>()
    };
    say("alice", "bob", "may I?");
    assert_eq!(hear("bob"), [("may I?".into(), true.into())]);
    say("bob", "alice", "please");
    assert_eq!(hear("alice"), [("please".into(), false.into())]);
    say("alice", "bob", "thanks");
    assert_eq!(hear("bob"), [("thanks".into(), false.into())]);

    waxwing(dir, &["block", "alice", "--home", "bob"]).ok();
    assert_eq!(waxwing(dir, &["blocks", "--home", "bob"]).ok().stdout.trim(), "alice");
    say("alice", "bob", "are you there?");
    waxwing(dir, &["unblock", "alice", "--home", "bob"]).ok();
    assert_eq!(waxwing(dir, &["blocks", "--home", "bob"]).ok().stdout, "");
    say("alice", "bob", "again");
    assert_eq!(hear("bob"), [("again".into(), false.into())], "what was sent meanwhile is gone");
}

#[test]
fn an_invite_lets_one_person_in_and_an_account_changes_its_handle_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let config = dir.join("waxwing.toml");
    let data = dir.join("data");
    fs::write(&config, format!("listen = \"127.0.0.1:0\"\ndata = {:?}\n", data.display().to_string())).unwrap();
    let service = Service::serve(&config);
    let data = data.to_str().unwrap();
    let codes = waxwing(dir, &["admin", "invite", "--count", "2", "--data", data]).ok().stdout;
    let codes: Vec<_> = codes.lines().collect();
    let join = |handle: &str, more: &[&str]| {
        let args = ["register", "--handle", handle, "--server", &service.url, "--home", handle];
        waxwing(dir, &[&args[..], more].concat())
    };
    join("alice", &[]).fails_saying(&["invite"]);
    join("alice", &["--invite", codes[0]]).ok();
    join("bob", &["--invite", codes[0]]).fails_saying(&["invite code"]);
    join("bob", &["--invite", codes[1]]).ok();

    waxwing(dir, &["account", "handle", "robert", "--home", "bob"]).ok();
    waxwing(dir, &["send", "--text", "hi", "--to", "bob", "--home", "alice"]).fails_saying(&["bob"]);
    waxwing(dir, &["send", "--text", "hi", "--to", "robert", "--home", "alice"]).ok();
    let seen = waxwing(dir, &["watch", "--once", "--home", "bob"]).ok().stdout;
    assert!(seen.contains("alice: hi"), "{seen}");

    waxwing(dir, &["account", "delete", "--home", "bob"]).fails_saying(&["--yes"]);
    waxwing(dir, &["account", "delete", "--yes", "--home", "bob"]).ok();
    waxwing(dir, &["watch", "--once", "--home", "bob"]).fails_saying(&["no account"]);
    waxwing(dir, &["send", "--text", "still there?", "--to", "robert", "--home", "alice"]).fails_saying(&["robert"]);
    // Whoever never knew them finds nobody of that name.
    waxwing(dir, &["send", "--text", "x", "--to", "nobody", "--home", "alice"]).fails_saying(&["nobody"]);
}

/// A proxy that passes requests on and lets no WebSocket through.
pub(super) fn proxy_without_sockets(upstream: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let upstream = upstream.to_owned();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(mut client), upstream) = (client, upstream.clone()) else { return };
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut head = vec![0; 16 * 1024];
                let read = client.read(&mut head)?;
                head.truncate(read);
                if head.starts_with(b"GET /v1/ws") {
                    return client.write_all(b"HTTP/1.1 501 Not Implemented\r\ncontent-length: 0\r\n\r\n");
                }
                let mut server = TcpStream::connect(upstream)?;
                server.write_all(&head)?;
                let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
                std::thread::spawn(move || {
                    let copied = std::io::copy(&mut from_client, &mut to_server);
                    let _ = to_server.shutdown(std::net::Shutdown::Write);
                    copied
                });
                std::io::copy(&mut server, &mut client)?;
                client.shutdown(std::net::Shutdown::Both)
            });
        }
    });
    url
}

#[test]
fn where_no_websocket_gets_through_everything_works_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    let proxied = proxy_without_sockets(service.address());
    register(dir, &proxied, "alice");
    register(dir, &service.url, "bob");
    fs::write(dir.join("photo.jpg"), "sealed").unwrap();
    waxwing(dir, &["send", "photo.jpg", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();
    assert_eq!(fs::read_to_string(dir.join("inbox/photo.jpg")).unwrap(), "sealed");
    for n in 1..=3 {
        waxwing(dir, &["send", "--text", &format!("message {n}"), "--to", "alice", "--home", "bob"]).ok();
    }
    let seen = waxwing(dir, &["watch", "--once", "--home", "alice"]).ok().stdout;
    assert_eq!(seen, "bob: message 1\nbob: message 2\nbob: message 3\n");
    waxwing(dir, &["send", "--text", "got them", "--to", "bob", "--home", "alice"]).ok();
    assert_eq!(waxwing(dir, &["watch", "--once", "--home", "bob"]).ok().stdout, "alice: got them\n");
}
