//! An edge amid chaos: killed and cut off from power at random, before an origin that lives on.
//!
//! What an edge promises is not that anything survives, but that nothing wrong is served by what did: no byte that is not
//! the blob's, nothing that was purged, never more on disk than it may take; and that it serves again at once. The oracle
//! is this process, which made the blobs and is never killed.

use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use reqwest::StatusCode;
use reqwest::blocking::Client;

use super::disk::Disk;
use super::uploader::{Dice, content};
use crate::support::{Service, register, wait_for, waxwing};

/// What the edge may take: the least it can be given, and less than its blobs.
const DISK_BYTES: u64 = 64 << 20;

/// Blobs, and how large each is at most: together half as much again as the edge may take.
const BLOBS: u64 = 32;
const BLOB_BYTES_MAX: u64 = 6 << 20;

/// Clients at once.
const READERS: u64 = 3;

/// What was seen.
#[derive(Debug, Default)]
pub struct Seen {
    strikes: usize,
    whole: AtomicUsize,
    cut: AtomicUsize,
    from_disk: AtomicUsize,
    /// Whole answers out of the disk with the origin gone, after the last strike.
    left: usize,
    purged: usize,
}

/// A blob that the origin has.
struct Blob {
    id: String,
    bytes: Vec<u8>,
}

struct Stage {
    edge: Option<Service>,
    origin: Option<Service>,
    disk: Option<Disk>,
    dir: tempfile::TempDir,
    config: PathBuf,
    url: String,
    upload_grant: String,
    media_grant: String,
    client: Client,
}

impl Stage {
    fn set(has_power_cuts: bool) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let disk = has_power_cuts.then(|| Disk::mount(dir.path()));
        let origin = Service::start(dir.path());
        register(dir.path(), &origin.url, "alice");
        let say = |args: &[&str]| waxwing(dir.path(), args).ok().stdout.trim().to_owned();
        let upload_grant = say(&["grant", "upload", "--home", "alice"]);
        let media_grant = say(&["grant", "media", "--home", "alice"]);
        let data = dir.path().join("data");
        let edge_grant = say(&["admin", "grant", "edge", "--node", "e", "--data", data.to_str().expect("UTF-8")]);
        let client = Client::builder().timeout(Duration::from_secs(60)).build().expect("a client needs nothing");
        let jwks = client.get(format!("{}/.well-known/jwks.json", origin.url)).send();
        let jwks = jwks.and_then(reqwest::blocking::Response::text).expect("the origin's keys");
        for (name, text) in [("edge.grant", &edge_grant), ("jwks.json", &jwks)] {
            std::fs::write(dir.path().join(name), text).expect("the directory is writable");
        }
        let config = dir.path().join("edge.toml");
        let mut stage = Self {
            edge: None,
            origin: Some(origin),
            disk,
            dir,
            config,
            url: String::new(),
            upload_grant,
            media_grant,
            client,
        };
        stage.start("127.0.0.1:0");
        stage
    }

    /// Starts the edge at an address; where that is, readers know from now on.
    fn start(&mut self, listen: &str) {
        let dir = self.dir.path();
        let origin_url = self.origin.as_ref().map(|origin| origin.url.clone()).unwrap_or_default();
        let text = format!(
            "roles = [\"edge\"]\nlisten = {listen:?}\ndata = {:?}\n[cluster]\norigin_url = {origin_url:?}\n\
             jwks_file = {:?}\nedge_grant_file = {:?}\n[edge]\nmemory_bytes = 4194304\ndisk_bytes = {DISK_BYTES}\n\
             purge_poll_ms = 20\nabsent_ms = 0\n",
            self.data(),
            dir.join("jwks.json"),
            dir.join("edge.grant"),
        );
        std::fs::write(&self.config, text).expect("the directory is writable");
        let edge = Service::serve(&self.config);
        self.url.clone_from(&edge.url);
        self.edge = Some(edge);
    }

    fn data(&self) -> PathBuf {
        self.disk.as_ref().map_or(self.dir.path(), Disk::path).join("edge-data")
    }

    fn upload(&self, seed: u64, len: u64) -> Blob {
        let bytes = content(seed, len);
        let origin = &self.origin.as_ref().expect("it lives").url;
        let put = self.client.put(format!("{origin}/v1/blobs")).bearer_auth(&self.upload_grant).body(bytes.clone());
        let answer = put.send().expect("the origin lives");
        assert_eq!(answer.status(), StatusCode::CREATED);
        let id = answer.headers()["waxwing-blob"].to_str().expect("an id").to_owned();
        Blob { id, bytes }
    }

    /// Its owner lets go of a blob, and the origin of it.
    fn delete(&self, blob: &Blob) {
        let origin = &self.origin.as_ref().expect("it lives").url;
        let delete = self.client.delete(format!("{origin}/v1/blobs/{}/keep", blob.id)).bearer_auth(&self.upload_grant);
        assert!(delete.send().expect("the origin lives").status().is_success());
    }

    fn status(&self, blob: &Blob) -> Option<StatusCode> {
        let get = self.client.get(format!("{}/v1/blobs/{}", self.url, blob.id)).bearer_auth(&self.media_grant);
        get.send().ok().map(|answer| answer.status())
    }

    /// Kills the edge, or cuts its power, and starts it again.
    fn strike(&mut self) {
        let edge = self.edge.take().expect("it runs");
        let listen = edge.address().to_owned();
        if let Some(disk) = &self.disk {
            edge.freeze();
            disk.cut().expect("it worked when availability was checked");
        }
        edge.kill();
        if let Some(disk) = &self.disk {
            disk.restore();
        }
        assert_within_its_bounds(&self.data());
        self.start(&listen);
    }
}

fn assert_within_its_bounds(data: &Path) {
    let Ok(files) = std::fs::read_dir(data.join("edge")) else { return };
    let taken: u64 = files.filter_map(|file| Some(file.ok()?.metadata().ok()?.blocks() * 512)).sum();
    assert!(taken <= DISK_BYTES, "{taken} bytes in a tier of {DISK_BYTES}");
}

/// Asks for a blob and holds against it what comes, however it ends. Whether it came whole; `None` without an answer.
fn read(client: &Client, url: &str, grant: &str, blob: &Blob, seen: &Seen) -> Option<bool> {
    let mut answer = client.get(format!("{url}/v1/blobs/{}", blob.id)).bearer_auth(grant).send().ok()?;
    if answer.status().is_server_error() {
        return Some(false);
    }
    assert_eq!(answer.status(), StatusCode::OK);
    let is_from_disk = answer.headers()["cache-status"].to_str().is_ok_and(|said| said.contains("detail=disk"));
    let (mut at, mut piece) = (0, vec![0; 64 << 10]);
    let is_whole = loop {
        match answer.read(&mut piece) {
            Ok(0) => break true,
            Ok(n) => {
                assert!(blob.bytes[at..].starts_with(&piece[..n]), "wrong bytes of {} at {at}", blob.id);
                at += n;
            }
            Err(_) => break false,
        }
    };
    assert!(!is_whole || at == blob.bytes.len(), "a clean end of {} after {at} bytes", blob.id);
    let counter = if is_whole { &seen.whole } else { &seen.cut };
    counter.fetch_add(1, Relaxed);
    seen.from_disk.fetch_add(usize::from(is_whole && is_from_disk), Relaxed);
    Some(is_whole)
}

/// Lets readers read, and strikes `strikes` times.
pub fn edges(strikes: usize, has_power_cuts: bool) -> Seen {
    let mut stage = Stage::set(has_power_cuts);
    let seed = u64::from(std::process::id());
    eprintln!("seed {seed}");
    let mut dice = Dice::new(seed);
    let blobs: Vec<_> = (0..BLOBS).map(|n| stage.upload(n, 1 + dice.below(BLOB_BYTES_MAX))).collect();
    let (blobs, seen, is_over) = (Arc::new(blobs), Arc::new(Seen::default()), Arc::new(AtomicBool::new(false)));
    let readers: Vec<JoinHandle<()>> = (0..READERS)
        .map(|reader| {
            let (blobs, seen, is_over) = (Arc::clone(&blobs), Arc::clone(&seen), Arc::clone(&is_over));
            let (client, url, grant) = (stage.client.clone(), stage.url.clone(), stage.media_grant.clone());
            let mut dice = Dice::new(seed + 1 + reader);
            std::thread::spawn(move || {
                while !is_over.load(Relaxed) {
                    // The first ones again and again, so that some are on disk when they are asked for.
                    let n = dice.below(BLOBS).min(dice.below(BLOBS));
                    let blob = &blobs[usize::try_from(n).expect("a few")];
                    if read(&client, &url, &grant, blob, &seen).is_none() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            })
        })
        .collect();
    let mut purged: Vec<Blob> = Vec::new();
    for strike in 0..strikes {
        let soon = stage.upload(1_000 + strike as u64, 3 << 20);
        let there = read(&stage.client, &stage.url, &stage.media_grant, &soon, &seen);
        assert_eq!(there, Some(true), "it serves again");
        std::thread::sleep(Duration::from_millis(dice.below(400)));
        if has_power_cuts && dice.below(2) == 0 {
            // What the kernel does by itself every few seconds: some of it is durable then, and some of it is not.
            let path = stage.disk.as_ref().expect("it has one").path();
            assert!(Command::new("sync").arg("-f").arg(path).status().is_ok_and(|status| status.success()));
        }
        stage.delete(&soon);
        if dice.below(2) == 0 {
            wait_for("a purge", || (stage.status(&soon)? == StatusCode::NOT_FOUND).then_some(()));
        }
        purged.push(soon);
        stage.strike();
        for gone in &purged {
            wait_for("a purge to be known again", || (stage.status(gone)? == StatusCode::NOT_FOUND).then_some(()));
        }
    }
    let has_served = || read(&stage.client, &stage.url, &stage.media_grant, &blobs[0], &seen);
    assert_eq!(has_served(), Some(true));
    is_over.store(true, Relaxed);
    readers.into_iter().for_each(|reader| reader.join().expect("a reader saw something wrong"));
    let mut seen = Arc::into_inner(seen).expect("the readers are gone");
    (seen.strikes, seen.purged) = (strikes, purged.len());
    seen.left = stage.what_is_left(&blobs);
    seen
}

impl Stage {
    /// Strikes once more, and takes the origin away: what the edge has now is what its index found.
    fn what_is_left(&mut self, blobs: &[Blob]) -> usize {
        let path = self.disk.as_ref().map_or(self.dir.path(), Disk::path);
        assert!(Command::new("sync").arg("-f").arg(path).status().is_ok_and(|status| status.success()));
        self.strike();
        self.origin.take().expect("it lives").kill();
        let seen = Seen::default();
        blobs.iter().filter(|blob| read(&self.client, &self.url, &self.media_grant, blob, &seen) == Some(true)).count()
    }
}

impl Seen {
    /// Whether enough happened to say anything.
    pub fn shows_something(&self) -> Result<(), String> {
        eprintln!("{self:?}");
        let (whole, from_disk) = (self.whole.load(Relaxed), self.from_disk.load(Relaxed));
        let enough = whole > 2 * self.strikes && from_disk > 0 && self.left > 0 && self.purged == self.strikes;
        enough.then_some(()).ok_or_else(|| format!("that shows nothing: {self:?}"))
    }
}
