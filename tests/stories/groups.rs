//! Groups: several people, several devices, one conversation; and those who are no longer in it, or not yet.

use std::path::Path;

use serde_json::Value;

use crate::support::{Service, finish, register, start_waxwing, waxwing};

/// What a person hears: of messages in groups who wrote them and what they say.
fn heard(dir: &Path, home: &str) -> Vec<(String, String)> {
    let lines = waxwing(dir, &["--json", "watch", "--once", "--home", home]).ok().stdout;
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let said = lines.filter(|line| line["message"].is_string() && line["group"].is_string());
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    said.map(|line| (text(&line["from"]), text(&line["content"]["text"]))).collect()
}

fn said(from: &str, words: &str) -> (String, String) {
    (from.to_owned(), words.to_owned())
}

fn say(dir: &Path, home: &str, words: &str) {
    waxwing(dir, &["send", "--group", "Climbing", "--text", words, "--home", home]).ok();
}

fn group(dir: &Path, home: &str, args: &[&str]) -> Value {
    waxwing(dir, &[&["--json", "group"], args, &["--home", home]].concat()).ok().json()
}

/// Handles of the members, as a person sees them.
fn members(dir: &Path, home: &str) -> Vec<String> {
    let info = group(dir, home, &["ls"]);
    let mut names: Vec<_> = info["members"].as_array().unwrap().iter().map(|it| it["handle"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    names.into_iter().map(|name| name.as_str().unwrap_or("?").to_owned()).collect()
}

fn people(dir: &Path, service: &Service, handles: &[&str]) {
    for handle in handles {
        register(dir, &service.url, handle);
    }
}

#[test]
fn a_group_talks_and_whoever_is_removed_hears_no_more_and_whoever_comes_reads_nothing_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob", "carol", "dave"]);
    let made = group(dir, "alice", &["create", "Climbing", "--with", "bob", "--with", "carol"]);
    let id = made["group"].as_str().unwrap().to_owned();
    say(dir, "alice", "who comes?");
    assert_eq!(heard(dir, "bob"), [said("alice", "who comes?")]);
    say(dir, "bob", "I do");
    assert_eq!(heard(dir, "alice"), [said("bob", "I do")]);
    assert_eq!(heard(dir, "carol"), [said("alice", "who comes?"), said("bob", "I do")]);
    assert_eq!(members(dir, "carol"), ["alice", "bob", "carol"]);
    waxwing(dir, &["group", "rm", "Climbing", "alice", "--home", "bob"]).fails_saying(&["only an admin"]);

    group(dir, "alice", &["rm", "Climbing", "carol"]);
    say(dir, "alice", "not for carol");
    say(dir, "bob", "nor is this");
    let carol = waxwing(dir, &["--json", "watch", "--once", "--home", "carol"]).ok();
    assert!(carol.stdout.contains("\"left\":true") && !carol.stdout.contains("for carol"), "{}", carol.stdout);
    waxwing(dir, &["send", "--group", &id, "--text", "let me in", "--home", "carol"])
        .fails_saying(&["not in the group"]);
    assert_eq!(heard(dir, "bob"), [said("alice", "not for carol")]);

    let link = group(dir, "alice", &["link", "Climbing"])["link"].as_str().unwrap().to_owned();
    assert_eq!(group(dir, "alice", &["link", "Climbing"])["link"], link, "the same as long as it holds");
    assert_eq!(group(dir, "dave", &["join", &link])["group"], id);
    say(dir, "alice", "welcome");
    assert_eq!(heard(dir, "dave"), [said("alice", "welcome")]);
    say(dir, "dave", "hello");
    assert_eq!(heard(dir, "bob"), [said("alice", "welcome"), said("dave", "hello")]);
    assert_eq!(members(dir, "dave"), ["alice", "bob", "dave"]);

    group(dir, "alice", &["link", "Climbing", "--off"]);
    waxwing(dir, &["group", "join", &link, "--home", "carol"]).fails_saying(&["not in the group"]);
    group(dir, "alice", &["leave", "Climbing"]);
    waxwing(dir, &["send", "--group", &id, "--text", "bye", "--home", "alice"]).fails_saying(&["not in the group"]);
    let longest = group(dir, "bob", &["ls"]);
    let admins = longest["members"].as_array().unwrap().iter().filter(|it| it["admin"] == true);
    assert_eq!(admins.map(|it| it["handle"].clone()).collect::<Vec<_>>(), ["bob"], "who was in it longest");
}

/// What a device shows of groups' messages of the past, the oldest first.
fn past(dir: &Path, home: &str) -> Vec<String> {
    let lines = waxwing(dir, &["--json", "messages", "--home", home]).ok().stdout;
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let of_groups = lines.filter(|line| line["group"].is_string());
    of_groups.map(|line| line["content"]["text"].as_str().unwrap_or_default().to_owned()).collect()
}

/// A group is its people's, on all their devices; one that comes later has what was said before it came from the device
/// that let it in, and knows the group as that one does.
#[test]
fn all_devices_of_a_member_are_in_the_group() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob"]);
    group(dir, "alice", &["create", "Climbing", "--with", "bob"]);
    say(dir, "alice", "before the phone");
    assert_eq!(heard(dir, "bob"), [said("alice", "before the phone")]);
    say(dir, "bob", "an answer");
    assert_eq!(heard(dir, "alice"), [said("bob", "an answer")]);
    crate::stories::devices::link(dir, &service.url, "alice", "phone");
    assert_eq!(past(dir, "phone"), ["before the phone", "an answer"]);
    let shown = waxwing(dir, &["messages", "--home", "phone"]).ok().stdout;
    assert!(shown.contains("to Climbing: before the phone"), "it knows what the group is called: {shown}");
    assert_eq!(members(dir, "phone"), ["alice", "bob"]);
    say(dir, "bob", "from bob");
    say(dir, "alice", "from the laptop");
    assert_eq!(heard(dir, "phone"), [said("bob", "from bob"), said("alice", "from the laptop")]);
    waxwing(dir, &["group", "ls", "--home", "phone"]).ok();
    say(dir, "phone", "from the phone");
    assert_eq!(heard(dir, "alice"), [said("bob", "from bob"), said("alice", "from the phone")]);
    assert_eq!(heard(dir, "bob"), ["from the laptop", "from the phone"].map(|words| said("alice", words)));

    waxwing(dir, &["devices", "rm", "2", "--home", "alice"]).ok();
    say(dir, "bob", "the phone is gone");
    assert_eq!(heard(dir, "alice"), [said("bob", "the phone is gone")]);
}

#[test]
fn a_file_goes_to_everybody_in_a_group() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob", "carol"]);
    let photo = crate::support::sample_file(dir, "photo.jpg", 300_000);
    group(dir, "alice", &["create", "Climbing", "--with", "bob", "--with", "carol"]);
    waxwing(dir, &["send", "photo.jpg", "--group", "Climbing", "--home", "alice"]).ok();
    for who in ["bob", "carol"] {
        waxwing(dir, &["watch", "--once", "--save", who, "--home", who]).ok();
        let saved = dir.join(who).join("photo.jpg");
        assert_eq!(std::fs::read(saved).unwrap(), std::fs::read(&photo).unwrap());
    }
}

/// Two admins at the same moment, and a service that dies: each change is made once.
#[test]
fn changes_at_once_are_all_made_and_survive_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob", "carol", "dave", "erin"]);
    group(dir, "alice", &["create", "Climbing", "--with", "bob"]);
    heard(dir, "bob");
    group(dir, "alice", &["admin", "Climbing", "bob"]);
    let add =
        |by: &str, whom: &[&str]| start_waxwing(dir, &[&["group", "add", "Climbing"], whom, &["--home", by]].concat());
    let adding = [add("alice", &["carol", "dave"]), add("bob", &["erin", "carol"])];
    for added in adding {
        finish(added).ok();
    }
    let address = service.address().to_owned();
    service.kill();
    let service = Service::dev(dir, &address, &[]);
    assert_eq!(members(dir, "alice"), ["alice", "bob", "carol", "dave", "erin"]);
    say(dir, "bob", "all of you");
    for who in ["alice", "carol", "dave", "erin"] {
        assert_eq!(heard(dir, who), [said("bob", "all of you")], "{who}");
    }
    drop(service);
}

#[test]
fn what_is_no_group_link_or_title_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice"]);
    waxwing(dir, &["group", "join", "waxwing-group:AAAA", "--home", "alice"])
        .fails_saying(&["not the link of a group"]);
    waxwing(dir, &["group", "send", "Climbing", "hi", "--home", "alice"])
        .fails_saying(&["no one group called Climbing"]);
    let long = "x".repeat(257);
    waxwing(dir, &["group", "create", &long, "--home", "alice"]).fails_saying(&["at most 256 bytes"]);
    waxwing(dir, &["group", "create", "Climbing", "--with", "nobody", "--home", "alice"])
        .fails_saying(&["nobody is called nobody"]);
    waxwing(dir, &["send", "--text", "hi", "--home", "alice"]).fails_saying(&["--to"]);
}
