//! Bad networks, dead batteries: what was interrupted goes on where it stood.

use std::fs;
use std::path::Path;

use crate::support::{
    Service, bytes_under, finish, interrupt, register, sample_file, start_waxwing, wait_for, waxwing,
};

/// Large enough that a kill lands in the middle.
const FILM_BYTES: usize = 400_000_000;

/// Bytes of blobs that the server holds: its tables have files of tens of megabytes from the start.
fn stored(dir: &Path) -> u64 {
    bytes_under(&dir.join("data/origin/blobs"))
}

/// Starts to send a film and kills the sender with -9 when some of it is stored.
fn send_and_kill(dir: &Path) {
    let mut sending = start_waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]);
    wait_for("a part to be stored", || (stored(dir) > 20_000_000).then_some(()));
    sending.kill().unwrap();
    let done = finish(sending);
    assert!(!done.status.success(), "it was killed too late to be a test");
}

fn set_up(dir: &Path) -> Service {
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    sample_file(dir, "film.mp4", FILM_BYTES);
    service
}

fn assert_bob_has_the_film(dir: &Path) {
    waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();
    assert!(fs::read(dir.join("inbox/film.mp4")).unwrap() == fs::read(dir.join("film.mp4")).unwrap());
}

/// `send` typed again goes on, and says from where.
#[test]
fn a_killed_send_typed_again_goes_on_where_the_server_stands() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _service = set_up(dir);
    send_and_kill(dir);

    let again = waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]).ok();

    assert!(again.stdout.contains("resumed at"), "{}", again.stdout);
    assert_bob_has_the_film(dir);
}

/// `resume` needs no arguments: the profile knows.
#[test]
fn resume_knows_what_is_unfinished() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _service = set_up(dir);
    send_and_kill(dir);

    let listed = waxwing(dir, &["resume", "--list", "--home", "alice"]).ok();
    assert!(listed.stdout.contains("film.mp4") && listed.stdout.contains("bob"), "{}", listed.stdout);
    let resumed = waxwing(dir, &["--json", "resume", "--home", "alice"]).ok().json();

    assert!(resumed["resumed_at"].as_u64().unwrap() > 0, "{resumed}");
    assert_bob_has_the_film(dir);
    let listed = waxwing(dir, &["resume", "--list", "--home", "alice"]).ok();
    assert_eq!(listed.stdout, "");
}

/// A transfer that can never be sent does not stay on the list for ever, nor its bytes on the server.
#[test]
fn a_transfer_whose_file_is_gone_can_be_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _service = set_up(dir);
    send_and_kill(dir);
    assert!(stored(dir) > 0);
    fs::remove_file(dir.join("film.mp4")).unwrap();
    waxwing(dir, &["resume", "--home", "alice"]).fails_saying(&["film.mp4"]);
    let listed = waxwing(dir, &["--json", "resume", "--list", "--home", "alice"]).ok().json();
    let id = listed["id"].to_string();

    let dropped = waxwing(dir, &["resume", "--drop", &id, "--home", "alice"]).ok();

    assert!(dropped.stdout.contains("dropped") && dropped.stdout.contains("film.mp4"), "{}", dropped.stdout);
    assert_eq!(waxwing(dir, &["resume", "--list", "--home", "alice"]).ok().stdout, "");
    assert_eq!(fs::read_dir(dir.join("alice/plans")).unwrap().count(), 0, "the digests go with it");
    wait_for("the server to free what it held", || (stored(dir) == 0).then_some(()));
    waxwing(dir, &["resume", "--drop", &id, "--home", "alice"]).fails_saying(&["no unfinished transfer"]);
}

/// While a file is only being read there is nothing to resume, and nobody is told to.
#[test]
fn ctrl_c_while_a_file_is_read_says_that_nothing_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _service = set_up(dir);
    // A hole: reading it takes long, storing it takes nothing.
    fs::File::create(dir.join("archive.tar")).unwrap().set_len(60 << 30).unwrap();
    let sending = start_waxwing(dir, &["send", "archive.tar", "--to", "bob", "--home", "alice"]);
    wait_for("the file to be read", || (bytes_under(&dir.join("alice/plans")) > 0).then_some(()));
    interrupt(&sending);
    let done = finish(sending);

    assert_eq!(done.status.code(), Some(130), "{}", done.stderr);
    assert!(done.stderr.contains("nothing was sent") && !done.stderr.contains("resume"), "{}", done.stderr);
    assert_eq!(waxwing(dir, &["resume", "--list", "--home", "alice"]).ok().stdout, "");
}

/// Once the upload began, Ctrl-C names the command that goes on.
#[test]
fn ctrl_c_amid_an_upload_names_the_command_that_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let _service = set_up(dir);
    let sending = start_waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]);
    wait_for("a part to be stored", || (stored(dir) > 20_000_000).then_some(()));
    interrupt(&sending);
    let done = finish(sending);

    assert_eq!(done.status.code(), Some(130), "{}", done.stderr);
    assert!(done.stderr.contains("resume --home alice"), "{}", done.stderr);
}

/// The server dies in the middle and comes back: the sender waits and goes on by itself.
#[test]
fn a_server_that_restarts_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = set_up(dir);
    let address = service.address().to_owned();
    let sending = start_waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]);
    wait_for("a part to be stored", || (stored(dir) > 20_000_000).then_some(()));
    service.kill();
    let _service = Service::dev(dir, &address, &[]);

    finish(sending).ok();

    assert_bob_has_the_film(dir);
}

/// Everything that stood on the server before it was killed stands there after.
#[test]
fn accounts_and_messages_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = set_up(dir);
    fs::write(dir.join("note.txt"), "still here").unwrap();
    waxwing(dir, &["send", "note.txt", "--to", "bob", "--home", "alice"]).ok();
    let address = service.address().to_owned();
    service.kill();
    let service = Service::dev(dir, &address, &[]);

    waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();

    assert_eq!(fs::read_to_string(dir.join("inbox/note.txt")).unwrap(), "still here");
    assert!(service.stop().success(), "SIGTERM is an orderly end");
}
