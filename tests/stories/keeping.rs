//! Keeping what was received, and taking back what was sent.

use std::fs;

use crate::support::{Service, register, sample_file, waxwing};

/// Bob keeps what Alice sent and then drops: it stays as long as somebody has it, and no longer.
#[test]
fn a_blob_stays_as_long_as_somebody_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    for handle in ["alice", "bob", "carol"] {
        register(dir, &service.url, handle);
    }
    let film = sample_file(dir, "film.mp4", 2_000_000);
    waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]).ok();
    let received = waxwing(dir, &["--json", "watch", "--once", "--save", "inbox", "--home", "bob"]).ok().json();
    let blob = received["blob"].as_str().unwrap();
    let act = |verb: &str, home: &str| waxwing(dir, &[verb, blob, "--home", home]);

    act("drop", "bob").fails_saying(&["no such blob"]);
    act("keep", "bob").ok();
    act("drop", "alice").ok();
    act("drop", "alice").fails_saying(&["no such blob"]);
    waxwing(dir, &["get", blob, "-o", "again.mp4", "--home", "bob"]).ok();
    assert_eq!(fs::read(dir.join("again.mp4")).unwrap(), fs::read(film).unwrap());

    let dropped = waxwing(dir, &["--json", "drop", blob, "--home", "bob"]).ok().json();
    assert_eq!(dropped["dropped"], blob);
    act("keep", "carol").fails_saying(&["no such blob"]);
    waxwing(dir, &["keep", "photo.jpg", "--home", "bob"]).fails_saying(&["photo.jpg"]);
}
