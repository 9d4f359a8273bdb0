//! What is typed wrong or goes wrong gets an answer one can act on, and loses nothing.

use std::fs;

use crate::support::{Service, free_address, register, sample_file, waxwing};

#[test]
fn a_misspelt_flag_is_answered_with_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    waxwing(dir.path(), &["send", "a", "--too", "bob"]).fails_saying(&["--too", "--to"]);
    waxwing(dir.path(), &["sent", "a"]).fails_saying(&["sent", "send"]);
    waxwing(dir.path(), &["register", "--handle", "Not A Handle"]).fails_saying(&["handle"]);
}

#[test]
fn a_misspelt_key_of_the_configuration_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("waxwing.toml");
    fs::write(&config, "listen = \"127.0.0.1:0\"\n[edge]\nmemory_byte = 5\n").unwrap();
    let config = config.to_str().unwrap();
    for command in [&["config", "check", "--config", config][..], &["serve", "--config", config]] {
        waxwing(dir.path(), command).fails_saying(&["line 3", "memory_byte", "did you mean `memory_bytes`?"]);
    }
}

#[test]
fn a_taken_port_says_so_and_how_to_get_another() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    waxwing(dir.path(), &["dev", "--listen", service.address(), "--data", "other"]).fails_saying(&[
        service.address(),
        "taken",
        "--listen 127.0.0.1:0",
    ]);
}

/// Two servers on one data directory would destroy it: the second is refused, the first goes on.
#[test]
fn a_data_directory_serves_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let service = Service::start(dir.path());
    waxwing(dir.path(), &["dev", "--listen", "127.0.0.1:0", "--data", "data"])
        .fails_saying(&["data", "in use by another process"]);
    register(dir.path(), &service.url, "alice");
}

#[test]
fn a_data_directory_that_cannot_be_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    waxwing(dir.path(), &["dev", "--listen", "127.0.0.1:0", "--data", "file/data"]).fails_saying(&["file/data"]);
}

#[test]
fn a_profile_is_used_by_one_process_and_must_exist() {
    let dir = tempfile::tempdir().unwrap();
    waxwing(dir.path(), &["send", "a", "--to", "bob", "--home", "nobody"])
        .fails_saying(&["nobody", "waxwing register"]);
}

#[test]
fn an_unknown_recipient_is_told_before_anything_is_uploaded() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    sample_file(dir, "photo.jpg", 1000);
    waxwing(dir, &["send", "photo.jpg", "--to", "nobody", "--home", "alice"]).fails_saying(&["nobody"]);
    waxwing(dir, &["send", "missing.jpg", "--to", "alice", "--home", "alice"]).fails_saying(&["missing.jpg"]);
}

#[test]
fn a_taken_handle_and_a_second_registration_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    let again = ["register", "--handle", "alice", "--server", &service.url, "--home"];
    waxwing(dir, &[&again[..], &["other"]].concat()).fails_saying(&["alice"]);
    waxwing(dir, &[&again[..], &["alice"]].concat()).fails_saying(&["alice"]);
    // The profile is as it was.
    waxwing(dir, &["grant", "media", "--home", "alice"]).ok();
}

#[test]
fn a_blob_nobody_sent_us_cannot_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    let id = "a".repeat(52);
    waxwing(dir, &["get", &id, "-o", "x", "--home", "alice"]).fails_saying(&[&id]);
    waxwing(dir, &["get", "not-an-id", "-o", "x", "--home", "alice"]).fails_saying(&["not-an-id"]);
    assert!(!dir.join("x").exists());
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", free_address());
    waxwing(dir.path(), &["register", "--handle", "alice", "--home", "alice", "--server", &url]).fails_saying(&[&url]);
}
