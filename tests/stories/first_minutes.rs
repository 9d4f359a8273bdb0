//! The five minutes of the README.

use std::fs;

use crate::support::{Service, register, sample_file, waxwing};

/// The main job: a photo goes from one account to another and arrives as it was.
#[test]
fn a_photo_sent_is_the_photo_received() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let photo = sample_file(dir, "photo.jpg", 3_000_000);

    waxwing(dir, &["send", "photo.jpg", "--to", "bob", "--home", "alice"]).ok();
    waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();

    assert_eq!(fs::read(dir.join("inbox/photo.jpg")).unwrap(), fs::read(photo).unwrap());
}

/// Sizes where segments and parts begin and end; an empty file is a file.
#[test]
fn files_of_every_awkward_size_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let segment = 65_536 - 16;
    for size in [0, 1, 541, segment - 40, segment - 39, 2 * segment, 8 << 20, (8 << 20) + 1, 20_000_000] {
        let name = format!("{size}.bin");
        let file = sample_file(dir, &name, size);
        waxwing(dir, &["send", &name, "--to", "bob", "--home", "alice"]).ok();
        waxwing(dir, &["watch", "--once", "--save", "inbox", "--home", "bob"]).ok();
        assert_eq!(fs::read(dir.join("inbox").join(&name)).unwrap(), fs::read(file).unwrap(), "{size} bytes");
    }
}

/// What is fetched a second time comes from the edge's cache, and says so.
#[test]
fn the_second_download_is_a_hit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    sample_file(dir, "film.mp4", 5_000_000);
    waxwing(dir, &["send", "film.mp4", "--to", "bob", "--home", "alice"]).ok();
    let cold = waxwing(dir, &["--json", "watch", "--once", "--save", "inbox", "--home", "bob"]).ok().json();
    let blob = cold["blob"].as_str().unwrap();
    assert!(!cold["cache_status"].as_str().unwrap().contains("hit"), "{cold}");

    let warm = waxwing(dir, &["--json", "get", blob, "-o", "again.mp4", "--home", "bob"]).ok().json();

    assert!(warm["cache_status"].as_str().unwrap().contains("hit"), "{warm}");
    assert_eq!(fs::read(dir.join("again.mp4")).unwrap(), fs::read(dir.join("film.mp4")).unwrap());
}

/// A link is enough: whoever has it needs no account.
#[test]
fn a_shared_link_opens_for_somebody_without_an_account() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    let file = sample_file(dir, "plan.pdf", 700_000);
    let link = waxwing(dir, &["share", "plan.pdf", "--home", "alice"]).ok().stdout;

    waxwing(dir, &["get", link.trim(), "-o", "got.pdf"]).ok();

    assert_eq!(fs::read(dir.join("got.pdf")).unwrap(), fs::read(file).unwrap());
    let cut = &link.trim()[..link.trim().len() - 4];
    waxwing(dir, &["get", cut, "-o", "no.pdf"]).fails_saying(&["link"]);
}

/// Messages wait for whoever is away, and everybody is told in the order sent.
#[test]
fn what_was_sent_while_one_was_away_arrives_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    for name in ["1.txt", "2.txt", "3.txt"] {
        fs::write(dir.join(name), name).unwrap();
        waxwing(dir, &["send", name, "--to", "bob", "--home", "alice"]).ok();
    }
    let seen = waxwing(dir, &["--json", "watch", "--once", "--save", "inbox", "--home", "bob"]).ok().stdout;
    let saved: Vec<_> = seen.lines().filter(|line| line.contains("\"saved\"")).collect();
    assert_eq!(saved.len(), 3, "{seen}");
    for (line, name) in saved.iter().zip(["1.txt", "2.txt", "3.txt"]) {
        assert!(line.contains(name), "{seen}");
        assert_eq!(fs::read_to_string(dir.join("inbox").join(name)).unwrap(), name);
    }
}

/// Two files of one name are two files; a name cannot leave the directory.
#[test]
fn received_names_never_overwrite_anything() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    fs::create_dir(dir.join("inbox")).unwrap();
    fs::write(dir.join("inbox/photo.jpg"), "bob's own").unwrap();
    fs::write(dir.join("photo.jpg"), "alice's").unwrap();
    waxwing(dir, &["send", "photo.jpg", "--to", "bob", "--home", "alice"]).ok();
    let saved = waxwing(dir, &["--json", "watch", "--once", "--save", "inbox", "--home", "bob"]).ok().json();

    assert_eq!(fs::read_to_string(dir.join("inbox/photo.jpg")).unwrap(), "bob's own");
    assert_eq!(fs::read_to_string(dir.join(saved["saved"].as_str().unwrap())).unwrap(), "alice's");
}

/// The server sees ciphertext only: neither content, nor name, nor key is anywhere in its data.
#[test]
fn nothing_readable_lies_on_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let service = Service::start(dir);
    register(dir, &service.url, "alice");
    register(dir, &service.url, "bob");
    let canary = "the canary sings at dawn, beyond the third hill";
    fs::write(dir.join("canary-name.txt"), canary.repeat(2000)).unwrap();
    waxwing(dir, &["send", "canary-name.txt", "--to", "bob", "--home", "alice"]).ok();
    assert!(service.stop().success());

    let mut seen = 0;
    for_each_file(&dir.join("data"), &mut |bytes| {
        seen += bytes.len();
        for secret in [canary, "canary-name"] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret.as_bytes()), "{secret}");
        }
    });
    assert!(seen > canary.len() * 2000, "the data directory holds the sealed blob");
}

fn for_each_file(dir: &std::path::Path, look: &mut dyn FnMut(&[u8])) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { for_each_file(&path, look) } else { look(&fs::read(path).unwrap()) }
    }
}

/// `make demo` in small.
#[test]
fn the_demo_compares_what_it_moved() {
    let dir = tempfile::tempdir().unwrap();
    let file = sample_file(dir.path(), "photo.jpg", 400_000);
    let done = waxwing(dir.path(), &["--json", "demo", file.to_str().unwrap()]).ok();
    assert_eq!(done.json()["identical"], true);
    for step in ["seal", "upload", "message", "first byte, cold", "first byte, warm"] {
        assert!(done.stdout.contains(step), "{step} is missing: {}", done.stdout);
    }
}
