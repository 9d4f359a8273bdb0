//! Workers that send and receive messages with the real client and report what they were told.

use std::path::Path;
use std::time::Duration;

use uuid::Uuid;
use waxwing_client::{Client, WatchEvent, WatchOptions};
use waxwing_protocol::{GroupId, Handle, MsgId};
use waxwing_seal::message::Content;

use super::recorder::Reporter;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime needs nothing").block_on(work)
}

/// Sends until killed. Lines: `sent MSG_ID`, once the server has acknowledged it.
pub fn send(home: &Path, to: &str, recorder: &str) {
    let reporter = Reporter::connect(recorder);
    let to: Handle = to.parse().expect("the test gives a handle");
    block_on(async {
        let client = Client::open(home).expect("the profile is free");
        loop {
            let msg_id = MsgId::from(Uuid::now_v7());
            loop {
                match client.send_content(&to, msg_id, Content::Text(format!("message {msg_id}"))).await {
                    Ok(_) => break,
                    // The service is down; the same message again, as a person's client would.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
            reporter.say(&format!("sent {msg_id}"));
        }
    });
}

/// Sends to a group until killed. Lines: `sending MSG_ID` before, and `sent MSG_ID` once the server has acknowledged it.
pub fn send_to_group(home: &Path, group: &str, recorder: &str) {
    let reporter = Reporter::connect(recorder);
    let group: GroupId = group.parse().expect("the test gives a group");
    block_on(async {
        let client = Client::open(home).expect("the profile is free");
        loop {
            let msg_id = MsgId::from(Uuid::now_v7());
            reporter.say(&format!("sending {msg_id}"));
            let content = || Content::Text(format!("message {msg_id}"));
            while client.send_to_group(group, msg_id, content()).await.is_err() {
                // The service is down; the same message again, as a person's client would.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            reporter.say(&format!("sent {msg_id}"));
        }
    });
}

/// Receives until killed. Lines: `connected`, `received MSG_ID`.
pub fn receive(home: &Path, recorder: &str) {
    let reporter = Reporter::connect(recorder);
    block_on(async {
        let client = Client::open(home).expect("the profile is free");
        let on = |event: WatchEvent| match event {
            WatchEvent::Connected { .. } => reporter.say("connected"),
            WatchEvent::Message { msg_id, .. } => reporter.say(&format!("received {msg_id}")),
            _ => {}
        };
        loop {
            let options = WatchOptions::default();
            if client.watch(options, &on).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    });
}
