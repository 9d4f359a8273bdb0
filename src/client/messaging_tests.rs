//! Whole conversations against a service on a real socket that fails where it is told to.

mod server;

use std::sync::Mutex;
use std::time::Duration;

use server::{Faults, TestServer};
use tempfile::TempDir;
use tokio::sync::mpsc;
use waxwing_protocol::frames::{ErrorCode, Send, close, send::Target};
use waxwing_protocol::{BlobId, Handle, MsgId};
use waxwing_seal::blob::{BlobHeader, BlobKey};
use waxwing_seal::blob_ref::BlobRef;

use crate::http::Backoff;
use crate::{
    Client, ClientError, Content, MessageSummary, RegisterOptions, Tick, WatchEvent, WatchOptions, WatchReport,
};

/// A service, and a directory for people's profiles.
struct Town {
    dir: TempDir,
    server: TestServer,
}

impl Town {
    async fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), server: TestServer::start().await }
    }

    async fn register(&self, handle: &str) -> Client {
        let options =
            RegisterOptions { server: self.server.url.clone(), handle: handle.parse().unwrap(), invite: None };
        impatient(Client::register(&self.home(handle), options).await.unwrap())
    }

    async fn pair() -> (Self, Client, Client) {
        let town = Self::new().await;
        let (alice, bob) = (town.register("alice").await, town.register("bob").await);
        (town, alice, bob)
    }

    fn home(&self, handle: &str) -> std::path::PathBuf {
        self.dir.path().join(handle)
    }

    /// The process ends and another one starts.
    fn restart(&self, handle: &str, client: Client) -> Client {
        drop(client);
        impatient(Client::open(&self.home(handle)).unwrap())
    }

    fn faults(&self, faults: Faults) {
        self.server.world().faults = faults;
    }
}

/// Short pauses, so that tests end.
fn impatient(mut client: Client) -> Client {
    let backoff = Backoff { tries: 4, first: Duration::from_millis(1), most: Duration::from_millis(5) };
    client.service = client.service.with_backoff(backoff);
    client
}

fn bob() -> Handle {
    "bob".parse().unwrap()
}

fn msg(n: u8) -> MsgId {
    MsgId::from_bytes([n; 16])
}

fn text(words: &str) -> Content {
    Content::Text(words.to_owned())
}

/// Watches until what waits is received; gives the words that came.
async fn receive(client: &Client) -> (Vec<String>, WatchReport) {
    let words = Mutex::new(Vec::new());
    let on = |event: WatchEvent| {
        if let WatchEvent::Message { content: MessageSummary::Text(text), .. } = event {
            words.lock().unwrap().push(text);
        }
    };
    let report = client.watch(WatchOptions { once: true, ..WatchOptions::default() }, &on).await.unwrap();
    (words.into_inner().unwrap(), report)
}

fn ciphertexts(send: &Send) -> Vec<u8> {
    let Some(Target::Direct(direct)) = &send.target else { panic!("a message to an account") };
    direct.devices[0].ciphertext.to_vec()
}

#[tokio::test]
async fn a_message_arrives_once_and_leaves_the_mailbox() {
    let (town, alice, bob_) = Town::pair().await;
    alice.send_content(&bob(), msg(1), text("hello")).await.unwrap();
    alice.send_content(&bob(), msg(2), text("bob")).await.unwrap();

    let (words, report) = receive(&bob_).await;
    assert_eq!(words, ["hello", "bob"]);
    assert_eq!(report, WatchReport { received: 2, ..WatchReport::default() });

    let bob_ = town.restart("bob", bob_);
    alice.send_content(&bob(), msg(3), text("again")).await.unwrap();
    assert_eq!(receive(&bob_).await.0, ["again"]);
    bob_.send_content(&"alice".parse().unwrap(), msg(4), text("yes?")).await.unwrap();
    assert_eq!(receive(&alice).await.0, ["yes?"]);
    let (number, same) = (alice.safety_number(&bob()).await, bob_.safety_number(&"alice".parse().unwrap()).await);
    assert_eq!(number.unwrap(), same.unwrap());
}

/// The server has the message, and the sender does not know: the same bytes go out again.
#[tokio::test]
async fn a_lost_answer_is_asked_for_with_the_same_ciphertext() {
    let (town, alice, bob_) = Town::pair().await;
    town.faults(Faults { lose_results: 2, ..Faults::default() });
    alice.send_content(&bob(), msg(1), text("hello")).await.unwrap();
    {
        let world = town.server.world();
        let sent: Vec<_> = world.sends.iter().map(|(_, send)| ciphertexts(send)).collect();
        assert_eq!(sent.len(), 3);
        assert!(sent.iter().all(|ciphertext| *ciphertext == sent[0]));
    }
    assert_eq!(receive(&bob_).await.0, ["hello"]);
}

/// The program is killed while the server is away; another start of it sends what it had encrypted.
#[tokio::test]
async fn a_message_left_from_a_crash_is_sent_with_the_next_one() {
    let (town, alice, bob_) = Town::pair().await;
    let unavailable = vec![ErrorCode::Unavailable; 4].into();
    town.faults(Faults { refuse: unavailable, ..Faults::default() });
    let kept = alice.send_content(&bob(), msg(1), text("first")).await.unwrap_err();
    assert!(matches!(kept, ClientError::NotNow { .. }), "{kept}");

    let alice = town.restart("alice", alice);
    alice.send_content(&bob(), msg(2), text("second")).await.unwrap();
    assert_eq!(receive(&bob_).await.0, ["first", "second"]);
    // The caller of the first one asks again, as after a crash: nothing is sent twice.
    let before = town.server.world().sends.len();
    alice.send_content(&bob(), msg(1), text("first")).await.unwrap();
    assert_eq!(town.server.world().sends.len(), before);
}

#[tokio::test]
async fn the_outbox_is_emptied_when_watching_begins() {
    let (town, alice, bob_) = Town::pair().await;
    town.faults(Faults { refuse: vec![ErrorCode::Unavailable; 4].into(), ..Faults::default() });
    alice.send_content(&bob(), msg(1), text("late")).await.unwrap_err();
    let quiet = |_: WatchEvent| {};
    tokio::select! {
        ended = alice.watch(WatchOptions::default(), &quiet) => panic!("{ended:?}"),
        (words, _) = receive(&bob_) => assert_eq!(words, ["late"]),
    }
}

#[tokio::test]
async fn a_message_refused_for_good_is_forgotten() {
    let (town, alice, bob_) = Town::pair().await;
    town.faults(Faults { refuse: vec![ErrorCode::Forbidden].into(), ..Faults::default() });
    let refused = alice.send_content(&bob(), msg(1), text("no")).await.unwrap_err();
    assert!(matches!(refused, ClientError::NotAccepted { code: "FORBIDDEN", .. }), "{refused}");
    alice.send_content(&bob(), msg(2), text("yes")).await.unwrap();
    assert_eq!(receive(&bob_).await.0, ["yes"]);
}

#[tokio::test]
async fn devices_that_never_settle_end_the_try() {
    let (town, alice, _bob) = Town::pair().await;
    town.faults(Faults { refuse: vec![ErrorCode::StaleDevices; 50].into(), ..Faults::default() });
    let refused = alice.send_content(&bob(), msg(1), text("hello")).await.unwrap_err();
    assert!(matches!(refused, ClientError::DevicesUnsettled { .. }), "{refused}");
    let sends = town.server.world().sends.len();
    assert!(sends <= 5, "{sends}");
}

#[tokio::test]
async fn an_unknown_recipient_is_told_before_anything_is_sent() {
    let (town, alice, _bob) = Town::pair().await;
    let refused = alice.send_content(&"nobody".parse().unwrap(), msg(1), text("hello")).await.unwrap_err();
    assert!(matches!(refused, ClientError::UnknownRecipient { .. }), "{refused}");
    assert!(town.server.world().sends.is_empty());
}

/// Bob's account is gone and somebody else took his handle: Alice must hear of it, and nothing may reach them.
#[tokio::test]
async fn a_handle_taken_over_by_another_account_is_told_and_gets_nothing() {
    let (town, alice, bob_) = Town::pair().await;
    alice.send_content(&bob(), msg(1), text("to you")).await.unwrap();
    receive(&bob_).await;
    town.server.world().accounts.retain(|view| view.handle != bob());
    drop(bob_);
    std::fs::remove_dir_all(town.home("bob")).unwrap();
    let impostor = town.register("bob").await;

    let refused = alice.send_content(&bob(), msg(2), text("to you alone")).await.unwrap_err();
    assert!(matches!(refused, ClientError::IdentityChanged { .. }), "{refused}");
    alice.send_content(&bob(), msg(3), text("still")).await.unwrap_err();
    // What the impostor gets is what they were sent by somebody who never knew the true Bob.
    let carol = town.register("carol").await;
    carol.send_content(&bob(), msg(4), text("hi")).await.unwrap();
    assert_eq!(receive(&impostor).await.0, ["hi"]);
}

#[tokio::test]
async fn a_registration_whose_answer_was_lost_goes_on_with_the_same_keys() {
    let town = Town::new().await;
    town.faults(Faults { lose_registrations: 1, ..Faults::default() });
    let alice = town.register("alice").await;
    {
        let world = town.server.world();
        assert_eq!(world.registrations.len(), 2);
        assert_eq!(world.registrations[0], world.registrations[1]);
    }
    assert_eq!(alice.whoami().unwrap().handle.as_str(), "alice");
}

#[tokio::test]
async fn after_a_taken_handle_another_one_can_be_had() {
    let town = Town::new().await;
    let _first = town.register("alice").await;
    let home = town.home("other");
    let ask = |handle: &str| {
        let options =
            RegisterOptions { server: town.server.url.clone(), handle: handle.parse().unwrap(), invite: None };
        let home = home.clone();
        async move { Client::register(&home, options).await }
    };
    let taken = ask("alice").await.err().unwrap();
    assert!(matches!(&taken, ClientError::Refused { problem, .. } if problem.status == 409), "{taken}");
    assert!(matches!(Client::open(&home), Err(ClientError::NoProfile { .. })));
    let client = ask("alice2").await.unwrap();
    assert_eq!(client.whoami().unwrap().handle.as_str(), "alice2");
    drop(client);
    assert!(matches!(ask("alice3").await, Err(ClientError::AlreadyRegistered { .. })));
}

/// Watches on a task of its own, and tells what happens.
fn watching(client: &Client, options: WatchOptions) -> (mpsc::UnboundedReceiver<WatchEvent>, Watcher) {
    let (events, seen) = mpsc::unbounded_channel();
    let client = client.clone();
    let task = tokio::spawn(async move {
        let on = |event: WatchEvent| drop(events.send(event));
        client.watch(options, &on).await
    });
    (seen, task)
}

type Watcher = tokio::task::JoinHandle<Result<WatchReport, ClientError>>;

async fn next_words(events: &mut mpsc::UnboundedReceiver<WatchEvent>) -> String {
    loop {
        match events.recv().await.unwrap() {
            WatchEvent::Message { content: MessageSummary::Text(text), .. } => return text,
            _ => continue,
        }
    }
}

#[tokio::test]
async fn a_watch_for_one_message_waits_for_it() {
    let (_town, alice, bob_) = Town::pair().await;
    let (mut events, watcher) = watching(&bob_, WatchOptions { once: true, ..WatchOptions::default() });
    assert!(matches!(events.recv().await, Some(WatchEvent::Connected { pending: 0 })));
    alice.send_content(&bob(), msg(1), text("at last")).await.unwrap();
    assert_eq!(watcher.await.unwrap().unwrap().received, 1);
    assert_eq!(next_words(&mut events).await, "at last");
}

/// A second connection of the same device would throw the first one off the server.
#[tokio::test]
async fn a_watching_client_sends_through_the_connection_it_has() {
    let (town, alice, bob_) = Town::pair().await;
    let (mut events, watcher) = watching(&bob_, WatchOptions::default());
    assert!(matches!(events.recv().await, Some(WatchEvent::Connected { .. })));
    bob_.send_content(&"alice".parse().unwrap(), msg(1), text("hi")).await.unwrap();
    assert_eq!(receive(&alice).await.0, ["hi"]);
    alice.send_content(&bob(), msg(2), text("hi you")).await.unwrap();
    assert_eq!(next_words(&mut events).await, "hi you");
    let me = bob_.whoami().unwrap().account;
    assert_eq!(town.server.world().hellos.iter().filter(|(account, _)| *account == me).count(), 1);
    watcher.abort();
}

#[tokio::test]
async fn a_watch_comes_back_when_the_connection_is_lost() {
    let (town, alice, bob_) = Town::pair().await;
    let (mut events, watcher) = watching(&bob_, WatchOptions::default());
    assert!(matches!(events.recv().await, Some(WatchEvent::Connected { .. })));
    town.server.cut();
    assert!(matches!(events.recv().await, Some(WatchEvent::Disconnected { .. })));
    alice.send_content(&bob(), msg(1), text("meanwhile")).await.unwrap();
    assert_eq!(next_words(&mut events).await, "meanwhile");
    watcher.abort();
}

/// The Ack never arrives, so the message comes again: it is not shown again, and `have` tells the server.
#[tokio::test]
async fn a_lost_ack_shows_nothing_twice() {
    let (town, alice, bob_) = Town::pair().await;
    town.faults(Faults { lose_acks: 1, ..Faults::default() });
    alice.send_content(&bob(), msg(1), text("once")).await.unwrap();
    let (mut events, watcher) = watching(&bob_, WatchOptions::default());
    assert_eq!(next_words(&mut events).await, "once");
    let me = bob_.whoami().unwrap().account;
    town.server.until(|world| world.hellos.iter().filter(|(account, _)| *account == me).count() == 2).await;
    assert_eq!(town.server.world().hellos.last().unwrap().1.have.as_ref().unwrap().normal, 1);
    alice.send_content(&bob(), msg(2), text("twice")).await.unwrap();
    assert_eq!(next_words(&mut events).await, "twice");
    watcher.abort();
}

#[tokio::test]
async fn a_device_displaced_elsewhere_stops_watching() {
    let (town, _alice, bob_) = Town::pair().await;
    let (mut events, watcher) = watching(&bob_, WatchOptions::default());
    assert!(matches!(events.recv().await, Some(WatchEvent::Connected { .. })));
    // A copied profile: the same device twice.
    let copy = town.dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    std::fs::copy(town.home("bob").join("profile.redb"), copy.join("profile.redb")).unwrap();
    let twin = Client::open(&copy).unwrap();
    let (_events, second) = watching(&twin, WatchOptions::default());
    let displaced = watcher.await.unwrap().unwrap_err();
    assert!(matches!(displaced, ClientError::Closed { code: close::DISPLACED, .. }), "{displaced}");
    second.abort();
}

/// What a person has seen is told to its author, as far as they want it told.
#[tokio::test]
async fn a_message_shown_is_told_as_read_unless_receipts_are_off_or_nobody_looks() {
    let (town, alice, bob_) = Town::pair().await;
    alice.send_content(&bob(), msg(1), text("one")).await.unwrap();
    alice.send_content(&bob(), msg(2), text("two")).await.unwrap();
    receive(&bob_).await;
    let (mut events, watcher) = watching(&alice, WatchOptions::default());
    let ticked = loop {
        if let WatchEvent::Ticked { to, msg_ids, tick } = events.recv().await.unwrap() {
            break (to, msg_ids, tick);
        }
    };
    assert_eq!(ticked, (bob(), vec![msg(1), msg(2)], Tick::Read));
    watcher.abort();
    assert!(alice.messages().unwrap().is_empty(), "a receipt is no message");

    bob_.set_read_receipts(false).unwrap();
    alice.send_content(&bob(), msg(3), text("three")).await.unwrap();
    receive(&bob_).await;
    bob_.set_read_receipts(true).unwrap();
    alice.send_content(&bob(), msg(4), text("four")).await.unwrap();
    let background = WatchOptions { once: true, background: true, ..WatchOptions::default() };
    bob_.watch(background, &|_| {}).await.unwrap();
    assert_eq!(town.server.world().sends.len(), 5, "four messages and the first receipt");
    let ticks = || alice.sent_messages().unwrap().into_iter().map(|message| message.tick).collect::<Vec<_>>();
    assert_eq!(ticks(), [Tick::Read, Tick::Read, Tick::Sent, Tick::Sent]);
}

/// Bob's side of a session is lost. He asks, in a session of his own, for what he cannot read, and gets it once.
#[tokio::test]
async fn what_a_lost_session_cannot_open_is_asked_for_and_comes_once() {
    let (town, alice, bob_) = Town::pair().await;
    alice.send_content(&bob(), msg(1), text("one")).await.unwrap();
    receive(&bob_).await;
    bob_.send_content(&"alice".parse().unwrap(), msg(2), text("two")).await.unwrap();
    receive(&alice).await;
    bob_.profile.write(crate::sessions::lose_all).unwrap();
    alice.send_content(&bob(), msg(3), text("three")).await.unwrap();
    alice.send_content(&bob(), msg(4), text("four")).await.unwrap();

    let (mut at_bob, bob_watches) = watching(&bob_, WatchOptions::default());
    let (_at_alice, alice_watches) = watching(&alice, WatchOptions::default());
    let mut words = [next_words(&mut at_bob).await, next_words(&mut at_bob).await];
    words.sort_unstable();
    assert_eq!(words, ["four", "three"]);
    alice.send_content(&bob(), msg(5), text("five")).await.unwrap();
    assert_eq!(next_words(&mut at_bob).await, "five", "the new session serves on");
    bob_watches.abort();
    alice_watches.abort();
    // A receipt of alice's was lost with the session as well: the next one makes up for it.
    let mut said: Vec<_> = bob_.messages().unwrap().into_iter().filter_map(|message| message.content.ok()).collect();
    said.sort_unstable_by_key(|content| format!("{content:?}"));
    assert_eq!(said, ["five", "four", "one", "three"].map(text));
    // Whatever was sent once more carries an id of its own, and none of it was sent a second time.
    let world = town.server.world();
    let mut ids: Vec<_> = world.sends.iter().map(|(_, send)| send.msg_id.clone()).collect();
    ids.sort_unstable();
    let sends = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), sends);
}

/// A file whose blob is gone is told and given up; what came with it is not held up.
#[tokio::test]
async fn a_file_that_is_gone_is_told_and_given_up() {
    let (town, alice, bob_) = Town::pair().await;
    let blob = BlobId::from_bytes([1; 32]);
    let file = BlobRef::new(blob, BlobKey::generate(), BlobHeader::generate(), 1000);
    alice.send_content(&bob(), msg(1), Content::File(Box::new(file))).await.unwrap();
    alice.send_content(&bob(), msg(2), text("look")).await.unwrap();
    let save = Some(town.dir.path().join("inbox"));
    let (mut events, watcher) = watching(&bob_, WatchOptions { once: true, save, ..WatchOptions::default() });
    let report = watcher.await.unwrap().unwrap();
    assert_eq!(report, WatchReport { received: 2, lost: 1, ..WatchReport::default() });
    let mut failed = 0;
    while let Some(event) = events.recv().await {
        if let WatchEvent::SaveFailed { blob: gone, retry_in, .. } = event {
            assert_eq!((gone, retry_in), (blob, None));
            failed += 1;
        }
    }
    assert_eq!(failed, 1);
}

/// Without a directory files are shown and kept; a later watch that has one saves them, or learns that they are gone.
#[tokio::test]
async fn a_file_shown_without_a_directory_is_left_for_a_later_watch() {
    let (town, alice, bob_) = Town::pair().await;
    let file = BlobRef::new(BlobId::from_bytes([1; 32]), BlobKey::generate(), BlobHeader::generate(), 1000);
    alice.send_content(&bob(), msg(1), Content::File(Box::new(file))).await.unwrap();
    assert_eq!(receive(&bob_).await.1.received, 1);
    let bob_ = town.restart("bob", bob_);
    let options = WatchOptions { once: true, save: Some(town.dir.path().join("inbox")), ..WatchOptions::default() };
    let report = bob_.watch(options, &|_| {}).await.unwrap();
    assert_eq!(report, WatchReport { lost: 1, ..WatchReport::default() });
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_told_before_anything_is_received() {
    let (town, _alice, bob_) = Town::pair().await;
    let in_the_way = town.dir.path().join("file");
    std::fs::write(&in_the_way, b"").unwrap();
    let options = WatchOptions { once: true, save: Some(in_the_way.join("inbox")), ..WatchOptions::default() };
    let refused = bob_.watch(options, &|_| {}).await.unwrap_err();
    assert!(matches!(refused, ClientError::File { .. }), "{refused}");
}

/// Bob is written to by more strangers than he has one-time prekeys left, while he is away.
#[tokio::test]
async fn prekeys_are_filled_up_by_watching() {
    let (town, alice, bob_) = Town::pair().await;
    let account = bob_.whoami().unwrap().account;
    town.server.world().spend_prekeys(account, 60);
    alice.send_content(&bob(), msg(1), text("hello")).await.unwrap();
    receive(&bob_).await;
    assert_eq!(town.server.world().prekeys(account), 100);
    town.server.world().spend_prekeys(account, 100);
    let carol = town.register("carol").await;
    carol.send_content(&bob(), msg(2), text("by fallback")).await.unwrap();
    assert_eq!(receive(&bob_).await.0, ["by fallback"]);
}
