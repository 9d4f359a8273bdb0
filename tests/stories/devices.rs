//! One person, several devices: linked by a code, written to together, removed again; and a server that lies about them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Child;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use data_encoding::BASE64;
use serde_json::{Value, json};
use waxwing_protocol::DeviceId;
use waxwing_seal::device::DeviceKeys;
use waxwing_seal::link::{LinkCode, Offer};

use crate::support::{Done, Service, finish, register, start_waxwing, waxwing};

/// Starts `waxwing link` with a profile in `dir/home`; gives the process and its code.
fn linking(dir: &Path, server: &str, home: &str) -> (Child, String) {
    let args = ["--json", "link", "--home", home, "--server", server, "--name", home];
    let mut child = start_waxwing(dir, &args);
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    child.stdout = Some(stdout.into_inner());
    let code = serde_json::from_str::<Value>(&first).unwrap()["code"].as_str().unwrap().to_owned();
    (child, code)
}

/// Links a device with a profile in `dir/home` to the account of the profile in `dir/by`.
pub fn link(dir: &Path, server: &str, by: &str, home: &str) {
    let (child, code) = linking(dir, server, home);
    waxwing(dir, &["devices", "link", &code, "--home", by]).ok();
    finish(child).ok();
}

fn say(dir: &Path, from: &str, to: &str, words: &str) -> Done {
    waxwing(dir, &["send", "--text", words, "--to", to, "--home", from])
}

fn watch(dir: &Path, home: &str) -> String {
    waxwing(dir, &["watch", "--once", "--home", home]).ok().stdout
}

fn messages(dir: &Path, home: &str) -> String {
    waxwing(dir, &["messages", "--home", home]).ok().stdout
}

#[test]
fn a_second_device_knows_the_past_and_shares_the_future() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    say(dir, "alice", "bob", "before").ok();
    assert_eq!(watch(dir, "bob"), "alice: before  (message request)\n");
    say(dir, "bob", "alice", "long ago").ok();
    assert_eq!(watch(dir, "alice"), "bob: long ago\n");
    std::fs::write(dir.join("photo.jpg"), "a picture").unwrap();
    waxwing(dir, &["send", "photo.jpg", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["verify", "bob", "--equal", "--home", "alice"]).ok();

    link(dir, &service.url, "alice", "phone");
    let past = messages(dir, "phone");
    assert!(past.contains("bob: long ago") && past.contains("to bob: before"), "{past}");
    let sent = waxwing(dir, &["--json", "messages", "--home", "alice"]).ok().stdout;
    let blob = sent
        .lines()
        .find_map(|line| serde_json::from_str::<Value>(line).unwrap()["content"]["blob"].as_str().map(str::to_owned));
    waxwing(dir, &["get", &blob.unwrap(), "-o", "again.jpg", "--home", "phone"]).ok();
    assert_eq!(std::fs::read_to_string(dir.join("again.jpg")).unwrap(), "a picture");
    let known = waxwing(dir, &["--json", "contacts", "--home", "phone"]).ok().json();
    assert_eq!((&known["handle"], &known["verified"]), (&json!("bob"), &json!(true)));

    // Bob still believes in one device; the server tells him better, and both get it.
    say(dir, "bob", "alice", "to both").ok();
    assert_eq!(watch(dir, "alice"), "bob: to both\n");
    assert_eq!(watch(dir, "phone"), "bob: to both\n");
    say(dir, "phone", "bob", "from the phone").ok();
    assert!(watch(dir, "bob").ends_with("alice: from the phone\n"));
    assert_eq!(watch(dir, "alice"), "to bob, from another device: from the phone\n");
    say(dir, "alice", "bob", "from home").ok();
    assert!(watch(dir, "phone").contains("to bob, from another device: from home\n"));
    assert_eq!(watch(dir, "bob"), "alice: from home\n");

    let listed = |home: &str| waxwing(dir, &["devices", "list", "--home", home]).ok().stdout;
    assert!(listed("alice").contains("2  phone  connected") && listed("phone").contains("(this one)"));
    waxwing(dir, &["devices", "name", "2", "tablet", "--home", "phone"]).ok();
    assert!(listed("alice").contains("2  tablet"));

    waxwing(dir, &["devices", "rm", "2", "--home", "alice"]).ok();
    waxwing(dir, &["watch", "--once", "--home", "phone"]).fails_saying(&["removed from its account"]);
    say(dir, "phone", "bob", "still me").fails_saying(&["removed from its account"]);
    say(dir, "bob", "alice", "to one").ok();
    assert_eq!(watch(dir, "alice"), "bob: to one\n");
    waxwing(dir, &["devices", "rm", "1", "--home", "alice"]).fails_saying(&["no device 1 beside others"]);
    link(dir, &service.url, "alice", "laptop");
    assert!(listed("laptop").contains("3  laptop"), "numbers are never used again");
}

/// Both sides of a meeting are cut, and go on.
#[test]
fn linking_goes_on_after_a_cut_on_either_side() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    let (mut child, code) = linking(dir, &service.url, "phone");
    child.kill().unwrap();
    child.wait().unwrap();
    let linked = || waxwing(dir, &["--json", "devices", "link", &code, "--home", "alice"]).ok().json();
    let first = linked();
    assert_eq!(linked(), first, "the same device, not another one");
    let (child, again) = linking(dir, &service.url, "phone");
    assert_eq!(again, code);
    let done = finish(child).ok();
    assert_eq!(done.json()["device"], 2);
    waxwing(dir, &["link", "--home", "phone", "--server", &service.url]).fails_saying(&["holds the account"]);
    let wrong = LinkCode::generate().to_string();
    waxwing(dir, &["devices", "link", &wrong, "--home", "alice"]).fails_saying(&["no new device waits"]);
    waxwing(dir, &["devices", "link", "ABC", "--home", "alice"]).fails_saying(&["20 letters and digits"]);
}

#[test]
fn two_people_compare_one_number() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let number = |home: &str, with: &str| {
        waxwing(dir, &["--json", "verify", with, "--home", home]).ok().json()["safety_number"].clone()
    };
    assert_eq!(number("alice", "bob"), number("bob", "alice"));
    let shown = waxwing(dir, &["verify", "bob", "--equal", "--home", "alice"]).ok().stdout;
    assert!(shown.contains("compared: equal") && shown.contains('█'), "{shown}");
    assert!(waxwing(dir, &["contacts", "--home", "alice"]).ok().stdout.contains("bob  verified"));
    waxwing(dir, &["verify", "bob", "--undo", "--home", "alice"]).ok();
    assert!(waxwing(dir, &["contacts", "--home", "alice"]).ok().stdout.contains("bob  not verified"));
}

/// Bob's account is gone and somebody else has his handle: alice is warned, and writes to them only once she says so.
#[test]
fn a_changed_identity_stops_everything_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    say(dir, "alice", "bob", "to you").ok();
    watch(dir, "bob");
    waxwing(dir, &["account", "delete", "--yes", "--home", "bob"]).ok();
    std::fs::remove_dir_all(dir.join("bob")).unwrap();
    register(dir, &service.url, "bob");
    say(dir, "alice", "bob", "to you alone").fails_saying(&["is not who they were", "contacts accept bob"]);
    waxwing(dir, &["contacts", "accept", "bob", "--home", "alice"]).ok();
    say(dir, "alice", "bob", "to the new one").ok();
    assert_eq!(watch(dir, "bob"), "alice: to the new one  (message request)\n");
}

/// A server between alice and the service that passes everything on, but for the lies it tells.
fn lying_server(upstream: &str, lie: fn(&str, &mut Value)) -> String {
    #[derive(Clone)]
    struct Liar {
        upstream: String,
        url: String,
        lie: fn(&str, &mut Value),
        http: reqwest::Client,
    }
    async fn pass(State(liar): State<Liar>, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        let mut headers = parts.headers;
        headers.remove("host");
        let url = format!("{}{path}", liar.upstream);
        let answer = liar.http.request(parts.method, url).headers(headers).body(body).send().await.unwrap();
        let (status, kind) = (answer.status(), answer.headers().get("content-type").cloned());
        let body = answer.bytes().await.unwrap();
        let body = match serde_json::from_slice::<Value>(&body) {
            Ok(mut value) => {
                if path == "/v1/info" {
                    value["api_url"] = json!(liar.url);
                }
                (liar.lie)(&path, &mut value);
                Bytes::from(serde_json::to_vec(&value).unwrap())
            }
            Err(_) => body,
        };
        let kind = kind.map(|kind| [("content-type", kind)]);
        match kind {
            Some(kind) => (status, kind, body).into_response(),
            None => (status, body).into_response(),
        }
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let liar = Liar { upstream: upstream.to_owned(), url: url.clone(), lie, http: reqwest::Client::new() };
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, Router::new().fallback(pass).with_state(liar)).await
        })
    });
    url
}

/// Adds a device to a list, which is protobuf: an entry (field 4) with its number alone, and leaves the signature.
fn add_ghost(list: &mut Value) {
    let mut bytes = BASE64.decode(list["list"].as_str().unwrap().as_bytes()).unwrap();
    let key = [7; 32];
    let entry = [&[0x08, 9, 0x10, 9, 0x1a, 32][..], &key, &[0x22, 32], &key].concat();
    bytes.extend([0x22, u8::try_from(entry.len()).unwrap()]);
    bytes.extend(entry);
    list["list"] = json!(BASE64.encode(&bytes));
}

/// The server can withhold; it can neither add a device to an account nor swap the one that is being linked.
#[test]
fn a_lying_server_gets_no_ghost_device_into_an_account() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "bob");
    let ghost_in_bob = lying_server(&service.url, |path, answer| {
        if path == "/v1/accounts/bob" {
            add_ghost(&mut answer["device_list"]);
        }
    });
    register(dir, &ghost_in_bob, "alice");
    say(dir, "alice", "bob", "for bob alone").fails_saying(&["did not sign", "nothing was sent"]);

    let ghost_in_carol = lying_server(&service.url, |path, answer| {
        if path == "/v1/devices" {
            add_ghost(&mut answer["device_list"]);
        }
    });
    register(dir, &ghost_in_carol, "carol");
    let (mut child, code) = linking(dir, &service.url, "carols-phone");
    waxwing(dir, &["devices", "link", &code, "--home", "carol", "--no-history"]).fails_saying(&["did not sign"]);
    waxwing(dir, &["devices", "list", "--home", "carol"]).fails_saying(&["did not sign"]);
    child.kill().unwrap();
    child.wait().unwrap();

    // Swaps what the new device offers for a device of the server's own, sealed as well as it can without the code.
    let swapping = lying_server(&service.url, |path, answer| {
        if path.starts_with("/v1/links/") && answer["sealed"].is_string() {
            let mut keys = DeviceKeys::generate(DeviceId::FIRST);
            let ghost = Offer::new(&mut keys, [9; 32], "ghost").seal(&LinkCode::generate());
            answer["sealed"] = json!(BASE64.encode(&ghost));
        }
    });
    register(dir, &swapping, "dave");
    let (mut child, code) = linking(dir, &service.url, "daves-phone");
    waxwing(dir, &["devices", "link", &code, "--home", "dave", "--no-history"])
        .fails_saying(&["not sealed under this code"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let listed = waxwing(dir, &["devices", "list", "--home", "dave"]).ok().stdout;
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

/// What was read on one device counts as read on the other, before that one has shown it.
#[test]
fn what_one_device_has_read_the_others_know() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    link(dir, &service.url, "alice", "phone");
    say(dir, "bob", "alice", "read me").ok();
    let read_on_the_phone = || {
        waxwing(dir, &["watch", "--once", "--background", "--home", "phone"]).ok();
        let seen = waxwing(dir, &["--json", "messages", "--home", "phone"]).ok().stdout;
        let mut lines = seen.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["content"]["text"] == "read me").expect("both devices get it")["read"].clone()
    };
    assert_eq!(read_on_the_phone(), json!(false));
    watch(dir, "alice");
    // A watch ends with a message: one comes after what each is to see.
    say(dir, "bob", "alice", "the second").ok();
    assert_eq!(read_on_the_phone(), json!(true));
    // Its author is told once, by the one that has shown it.
    say(dir, "bob", "alice", "the third").ok();
    watch(dir, "phone");
    say(dir, "alice", "bob", "thank you").ok();
    waxwing(dir, &["watch", "--once", "--home", "bob"]).ok();
    let sent = waxwing(dir, &["--json", "messages", "--home", "bob"]).ok().stdout;
    let mut lines = sent.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let first = lines.find(|line| line["content"]["text"] == "read me").expect("what was sent is listed");
    assert_eq!(first["tick"], json!("read"));
}
