//! Channels: a few write, many read, and nobody lists the readers.

use std::io::{BufRead as _, BufReader};
use std::path::Path;

use serde_json::Value;

use crate::support::{Service, finish, free_address, interrupt, register, sample_file, start_waxwing, waxwing};

fn people(dir: &Path, service: &Service, handles: &[&str]) {
    for handle in handles {
        register(dir, &service.url, handle);
    }
}

fn channel(dir: &Path, home: &str, args: &[&str]) -> Value {
    waxwing(dir, &[&["--json", "channel"], args, &["--home", home]].concat()).ok().json()
}

fn refused(dir: &Path, home: &str, args: &[&str], words: &[&str]) {
    waxwing(dir, &[&["channel"], args, &["--home", home]].concat()).fails_saying(words);
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Who wrote what, as lines of output tell.
fn posts(output: &str) -> Vec<(String, String)> {
    let lines = output.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let posts = lines.filter(|line| line["channel"].is_string() && line["seq"].is_u64());
    posts.map(|line| (text(&line["from"]), text(&line["content"]["text"]))).collect()
}

/// What somebody has not read yet.
fn read(dir: &Path, home: &str, args: &[&str]) -> Vec<(String, String)> {
    let output = waxwing(dir, &[&["--json", "channel", "read", "News"], args, &["--home", home]].concat());
    posts(&output.ok().stdout)
}

fn said(from: &str, words: &str) -> (String, String) {
    (from.to_owned(), words.to_owned())
}

#[test]
fn followers_read_what_was_written_and_each_goes_on_where_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob", "carol"]);
    let made = channel(dir, "alice", &["create", "News"]);
    let link = text(&made["link"]);
    assert!(link.starts_with(&format!("{}/c/", service.url)) && link.contains('#'), "{link}");
    assert_eq!(channel(dir, "bob", &["follow", &link])["title"], "News");
    assert_eq!(channel(dir, "alice", &["post", "News", "one"])["seq"], 1);
    channel(dir, "alice", &["post", "News", "two"]);
    assert_eq!(read(dir, "bob", &[]), [said("alice", "one"), said("alice", "two")]);
    channel(dir, "alice", &["post", "News", "three"]);
    assert_eq!(read(dir, "bob", &[]), [said("alice", "three")]);
    assert_eq!(read(dir, "bob", &[]), []);
    assert_eq!(read(dir, "bob", &["--all"]).len(), 3);
    // Whoever comes later by the same link reads what is there.
    channel(dir, "carol", &["follow", &link]);
    assert_eq!(read(dir, "carol", &[]).len(), 3);
    refused(dir, "bob", &["post", "News", "me too"], &["no author"]);
    refused(dir, "bob", &["author", "News", "bob"], &["only its owner"]);
    let listed = channel(dir, "bob", &["ls"]);
    assert_eq!((&listed["role"], &listed["owner"], &listed["read"]), (&"follower".into(), &"alice".into(), &3.into()));

    let photo = sample_file(dir, "photo.jpg", 40_000);
    channel(dir, "alice", &["post", "News", "--file", "photo.jpg"]);
    waxwing(dir, &["channel", "read", "News", "--save", "saved", "--home", "bob"]).ok();
    assert_eq!(std::fs::read(dir.join("saved/photo.jpg")).unwrap(), std::fs::read(photo).unwrap());
}

/// A service with an address for its operator.
fn config(dir: &Path, listen: &str) -> (std::path::PathBuf, String) {
    let admin = free_address();
    let (path, data) = (dir.join("waxwing.toml"), dir.join("data"));
    let text = format!(
        "listen = \"{listen}\"\nadmin_listen = \"{admin}\"\ndata = {data:?}\n[messaging]\nregistration = \"open\"\n"
    );
    std::fs::write(&path, text).unwrap();
    (path, admin)
}

fn metric(admin: &str, name: &str) -> String {
    let page = reqwest::blocking::get(format!("http://{admin}/metrics")).unwrap().text().unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or("none").to_owned()
}

/// Full pages are blobs: the node lets go of them, and whoever was away reads them from the edge, also after a kill.
#[test]
fn whoever_was_away_for_long_reads_closed_pages_from_the_edge() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (path, admin) = config(dir, "127.0.0.1:0");
    let service = Service::serve(&path);
    people(dir, &service, &["alice", "bob"]);
    let link = text(&channel(dir, "alice", &["create", "News"])["link"]);
    channel(dir, "bob", &["follow", &link]);
    let long = |n: usize| format!("{n} {}", "x".repeat(80_000));
    for n in 1..=9 {
        channel(dir, "alice", &["post", "News", &long(n)]);
    }
    // Four fill a page.
    assert_eq!(metric(&admin, "waxwing_channel_entries_total"), "9");
    assert_eq!(metric(&admin, "waxwing_channel_pages_total"), "2");
    let address = service.address().to_owned();
    service.kill();
    let (path, _) = config(dir, &address);
    let service = Service::serve(&path);
    assert_eq!(read(dir, "bob", &[]), (1..=9).map(|n| said("alice", &long(n))).collect::<Vec<_>>());
    channel(dir, "alice", &["post", "News", "short"]);
    assert_eq!(read(dir, "bob", &[]), [said("alice", "short")]);
    assert_eq!(read(dir, "bob", &["--all"]).len(), 10);
    drop(service);
}

#[test]
fn several_write_and_whoever_was_removed_neither_writes_nor_reads_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob", "carol", "dave"]);
    let made = channel(dir, "alice", &["create", "News"]);
    let (id, link) = (text(&made["channel"]), text(&made["link"]));
    let watch_once = |home: &str| waxwing(dir, &["--json", "watch", "--once", "--home", home]).ok().stdout;

    // Bob writes, Carol is invited by name, Dave has the link.
    channel(dir, "alice", &["author", "News", "bob"]);
    channel(dir, "alice", &["invite", "News", "carol"]);
    channel(dir, "dave", &["follow", &link]);
    assert!(watch_once("bob").contains(&format!("\"channel\":\"{id}\"")));
    assert!(watch_once("carol").contains("\"invited_by\":\"alice\""));
    assert_eq!(channel(dir, "bob", &["post", &id, "from bob"])["seq"], 1);
    channel(dir, "alice", &["post", "News", "from alice"]);
    channel(dir, "bob", &["post", "News", "again"]);
    let all = [said("bob", "from bob"), said("alice", "from alice"), said("bob", "again")];
    channel(dir, "carol", &["follow", &id]);
    assert_eq!(read(dir, "carol", &[]), all);
    assert_eq!(read(dir, "dave", &[]), all);

    // Bob is removed: he writes no more, and what comes has another key. Carol is given it, Dave needs the new link.
    let new_link = text(&channel(dir, "alice", &["rm", "News", "bob"])["link"]);
    assert_ne!(new_link, link);
    refused(dir, "bob", &["post", "News", "still here"], &["no author"]);
    channel(dir, "alice", &["post", "News", "without bob"]);
    refused(dir, "bob", &["read", "News"], &["lacks the newest key"]);
    refused(dir, "dave", &["read", "News"], &["lacks the newest key"]);
    assert_eq!(posts(&watch_once("carol")), [said("alice", "without bob")]);
    channel(dir, "dave", &["follow", &new_link]);
    assert_eq!(read(dir, "dave", &[]), [said("alice", "without bob")]);
    refused(dir, "erin-is-nobody", &["ls"], &["no account"]);
    // The old link opens nothing new.
    channel(dir, "bob", &["follow", &link]);
    refused(dir, "bob", &["read", "News"], &["lacks the newest key"]);
    assert_eq!(channel(dir, "bob", &["ls"])["locked"], true);

    // Carol is removed as well, who was never an author.
    channel(dir, "alice", &["rm", "News", "carol"]);
    channel(dir, "alice", &["post", "News", "without carol"]);
    refused(dir, "carol", &["read", &id], &["lacks the newest key"]);
}

#[test]
fn a_watch_hears_what_is_written_while_it_runs_and_goes_on_after_the_server_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob"]);
    let link = text(&channel(dir, "alice", &["create", "News"])["link"]);
    channel(dir, "bob", &["follow", &link]);
    channel(dir, "alice", &["post", "News", "before"]);
    let mut watching = start_waxwing(dir, &["--json", "watch", "--home", "bob"]);
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let mut heard = || loop {
        let line = lines.next().expect("the watch goes on").unwrap();
        if let Some(post) = posts(&line).pop() {
            return post;
        }
    };
    assert_eq!(heard(), said("alice", "before"));
    for n in 1..=5 {
        channel(dir, "alice", &["post", "News", &n.to_string()]);
        assert_eq!(heard(), said("alice", &n.to_string()));
    }
    let address = service.address().to_owned();
    service.kill();
    let service = Service::dev(dir, &address, &[]);
    channel(dir, "alice", &["post", "News", "after"]);
    assert_eq!(heard(), said("alice", "after"));
    interrupt(&watching);
    watching.wait().unwrap();
    assert_eq!(read(dir, "bob", &[]), [], "what was shown is not new");
    drop(service);
}

/// A post is answered once it is durable: the outside log is what the command line said.
#[test]
fn what_was_posted_survives_kills_of_the_server_and_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut service = Service::start(dir);
    people(dir, &service, &["alice", "bob"]);
    let link = text(&channel(dir, "alice", &["create", "News"])["link"]);
    channel(dir, "bob", &["follow", &link]);
    let (mut log, mut kills) = (Vec::new(), 0);
    for round in 0..4 {
        let posting: Vec<_> = (0..3).map(|n| format!("{round}.{n}")).collect();
        for words in &posting {
            let child = start_waxwing(dir, &["--json", "channel", "post", "News", words, "--home", "alice"]);
            if words.ends_with(".1") {
                // In the middle of it, wherever that is: the client tries again for half a minute.
                let address = service.address().to_owned();
                service.kill();
                kills += 1;
                service = Service::dev(dir, &address, &[]);
            }
            finish(child).ok();
            log.push(said("alice", words));
        }
    }
    assert_eq!((kills, log.len()), (4, 12));
    assert_eq!(read(dir, "bob", &[]), log, "each that was acknowledged, once, in order");
}

#[test]
fn what_is_no_channel_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    people(dir, &service, &["alice", "bob"]);
    refused(dir, "alice", &["follow", "https://a/c/b#AAAA"], &["not the link of a channel"]);
    refused(dir, "alice", &["read", "News"], &["follows no one channel called News"]);
    refused(dir, "alice", &["create", &"x".repeat(257)], &["at most 256 bytes"]);
    let link = text(&channel(dir, "alice", &["create", "News"])["link"]);
    // A link to a channel that is none: another id, of the same length.
    let (address, secret) = link.split_once('#').unwrap();
    let (base, id) = address.rsplit_once('/').unwrap();
    let first = if id.starts_with('0') { '1' } else { '0' };
    let other = format!("{base}/{first}{}#{secret}", &id[1..]);
    refused(dir, "bob", &["follow", &other], &["has no channel"]);
    // One with another key, as somebody might hand out to have readers believe it is theirs.
    let changed = format!("{}{}", &link[..link.len() - 4], if link.ends_with("AAAA") { "BBBB" } else { "AAAA" });
    refused(dir, "bob", &["follow", &changed], &["ask for a new link"]);
    channel(dir, "bob", &["follow", &link]);
    channel(dir, "bob", &["unfollow", "News"]);
    refused(dir, "bob", &["read", "News"], &["follows no one channel called News"]);
    let found = finish(start_waxwing(dir, &["channel", "ls", "--home", "alice"])).ok().stdout;
    assert!(found.contains("News") && found.contains("owner"), "{found}");
}
