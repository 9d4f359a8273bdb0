//! Whoever may write to us may try to harm us.

use std::fs;

use uuid::Uuid;
use waxwing_client::Client;
use waxwing_protocol::{BlobId, Handle, MsgId};
use waxwing_seal::blob::{BlobHeader, BlobKey};
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::message::Content;

use crate::support::{Service, register, waxwing};

/// Sends a reference that was made up.
fn send_reference(dir: &std::path::Path, reference: BlobRef) {
    let client = Client::open(&dir.join("mallory")).unwrap();
    let content = Content::File(Box::new(reference));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bob: Handle = "bob".parse().unwrap();
    let sent = client.send_content(&bob, MsgId::from(Uuid::now_v7()), content);
    runtime.block_on(sent).unwrap();
}

/// References that can never be opened are given up and told; what comes behind them is saved.
#[test]
fn references_that_lie_do_not_keep_others_from_being_saved() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "mallory");
    register(dir, &service.url, "bob");
    fs::write(dir.join("honest.txt"), "honest").unwrap();
    let sent = waxwing(dir, &["--json", "send", "honest.txt", "--to", "bob", "--home", "mallory"]).ok().json();
    waxwing(dir, &["watch", "--once", "--save", "first", "--home", "bob"]).ok();

    let blob: BlobId = sent["blob"].as_str().unwrap().parse().unwrap();
    let made_up = |id, true_bytes| BlobRef::new(id, BlobKey::generate(), BlobHeader::generate(), true_bytes);
    send_reference(dir, made_up(blob, 5_000_000)); // another size
    send_reference(dir, made_up(blob, 6)); // another key
    send_reference(dir, made_up(BlobId::from_bytes([7; 32]), 6)); // no such blob
    waxwing(dir, &["send", "honest.txt", "--to", "bob", "--home", "mallory"]).ok();

    let watched = waxwing(dir, &["watch", "--once", "--save", "second", "--home", "bob"]);

    let saved: Vec<_> = fs::read_dir(dir.join("second")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(saved.len(), 1, "{saved:?}; {}", watched.stderr);
    assert_eq!(fs::read_to_string(&saved[0]).unwrap(), "honest");
    watched.fails_saying(&["3 of the files received can never be saved"]);
}
