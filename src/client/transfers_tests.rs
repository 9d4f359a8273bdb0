//! Whole transfers against a service on a real socket that fails where it is told to.

mod server;

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use server::{Faults, TestServer};
use tempfile::TempDir;
use waxwing_protocol::BlobId;

use crate::http::{Backoff, CREDENTIALS, Credentials, Token};
use crate::upload::PART_BYTES;
use crate::{Client, ClientError, Profile, Progress, ShareSource, fetch_link};

/// A device with a directory for its profile and its files.
struct Device {
    dir: TempDir,
    server: TestServer,
}

impl Device {
    async fn new() -> Self {
        let (dir, server) = (tempfile::tempdir().unwrap(), TestServer::start().await);
        let credentials = Credentials { server: server.url.clone(), token: Token::new("device-token".into()) };
        let profile = Profile::create(&dir.path().join("home")).unwrap();
        profile.write(|tx| tx.put(&CREDENTIALS, Credentials::KEY, &credentials)).unwrap();
        Self { dir, server }
    }

    /// Opens the profile, as a process that starts does. Pauses are short, so that failing tests end.
    fn start(&self) -> Client {
        let mut client = Client::open(&self.dir.path().join("home")).unwrap();
        let backoff = Backoff { tries: 4, first: Duration::from_millis(1), most: Duration::from_millis(5) };
        client.service = client.service.with_backoff(backoff);
        client
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, content).unwrap();
        std::fs::canonicalize(path).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn faults(&self, faults: Faults) {
        self.server.world().faults = faults;
    }

    /// Uploads until the server holds `at` bytes, and is killed there.
    async fn upload_killed_at(&self, path: &Path, at: u64) {
        self.faults(Faults { stall_upload_at: Some(at), ..Faults::default() });
        let client = self.start();
        let upload = client.upload_file(path, &silent);
        tokio::select! {
            done = upload => panic!("the upload ended: {done:?}"),
            () = self.server.stalled() => {}
        }
    }

    /// Fetches a blob and compares it with what it should be.
    async fn assert_arrives(&self, blob: &BlobId, content: &[u8]) {
        let fetched = self.start().fetch(blob, &self.path("arrived"), &silent).await.unwrap();
        assert!(std::fs::read(fetched.path).unwrap() == content, "the file is not the one that was sent");
    }
}

fn silent(_: Progress) {}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// Just over two parts.
const LARGE: usize = 17_000_000;

#[tokio::test]
async fn a_file_arrives_as_it_was_sent_at_every_size() {
    let device = Device::new().await;
    for len in [0, 1, 541, 65_480, 65_481, LARGE] {
        let content = content(len);
        let path = device.file(&format!("{len}.jpg"), &content);
        let (reference, report) = device.start().upload_file(&path, &silent).await.unwrap();
        assert_eq!((report.file_bytes, report.resumed_at), (len as u64, None));
        assert_eq!(report.sealed_bytes, reference.layout().unwrap().sealed_bytes());
        assert_eq!(
            (reference.media_type.as_str(), reference.file_name.as_deref()),
            ("image/jpeg", path.file_name().unwrap().to_str())
        );
        device.assert_arrives(&reference.id, &content).await;
        assert_eq!(device.start().unfinished().unwrap(), []);
    }
    assert_eq!(std::fs::read_dir(device.path("home/plans")).unwrap().count(), 0, "digests go with their transfer");
}

#[tokio::test]
async fn a_lost_connection_costs_nothing_but_time() {
    let device = Device::new().await;
    let content = content(LARGE);
    let path = device.file("film.mp4", &content);
    for cut in [1, 39, 65_536, PART_BYTES - 1, PART_BYTES, PART_BYTES + 100_001] {
        device.faults(Faults { cut_upload_at: Some(cut), ..Faults::default() });
        let told = Mutex::new(Vec::new());
        let on = |progress| told.lock().unwrap().push(progress);
        let (reference, report) = device.start().upload_file(&path, &on).await.unwrap();
        assert_eq!(report.resumed_at, Some(cut));
        assert!(told.lock().unwrap().iter().any(|progress| matches!(progress, Progress::Waiting { attempt: 1, .. })));
        device.assert_arrives(&reference.id, &content).await;
    }
    device.server.assert_no_place_was_sealed_twice();
}

#[tokio::test]
async fn a_killed_client_goes_on_where_the_server_stands() {
    let device = Device::new().await;
    let content = content(LARGE);
    let path = device.file("film.mp4", &content);
    device.upload_killed_at(&path, PART_BYTES + 70_000).await;

    let client = device.start();
    let unfinished = client.unfinished().unwrap();
    assert_eq!((unfinished.len(), &unfinished[0].path, &unfinished[0].to), (1, &path, &None));
    let sent = client.resume(unfinished[0].id, &silent).await.unwrap();
    assert_eq!((sent.resumed_at, sent.msg_id), (Some(PART_BYTES + 70_000), None));
    assert_eq!(client.unfinished().unwrap(), []);
    assert!(matches!(client.resume(unfinished[0].id, &silent).await, Err(ClientError::NoTransfer { .. })));
    drop(client);
    device.assert_arrives(&sent.blob, &content).await;
    assert_eq!(device.server.assert_no_place_was_sealed_twice(), 1);
}

/// The rule on which the seal rests: an edited file gets a new key, and no place of a blob is ever sealed twice.
#[tokio::test]
async fn a_file_edited_between_a_kill_and_its_resume_is_sealed_under_a_new_key() {
    // The first edit is of bytes that were sealed and sent, but that the server did not keep: only the digest tells.
    let edits = [(100_000, 110_000), (100_000, 50_000), (PART_BYTES + 70_000, 3), (PART_BYTES, LARGE - 1)];
    for (kill, edit) in edits {
        let device = Device::new().await;
        let mut content = content(LARGE);
        let path = device.file("film.mp4", &content);
        device.upload_killed_at(&path, kill).await;
        content[edit] ^= 0xFF;
        std::fs::write(&path, &content).unwrap();

        let (reference, _) = device.start().upload_file(&path, &silent).await.unwrap();
        device.assert_arrives(&reference.id, &content).await;
        assert_eq!(device.server.assert_no_place_was_sealed_twice(), 2, "two headers, of two plans");
        assert_eq!(device.server.world().terminated, ["u1"], "the server need not keep what nobody will finish");
    }
}

#[tokio::test]
async fn a_file_that_grew_or_shrank_is_planned_again() {
    for len in [LARGE - 1, LARGE + 1, 0] {
        let device = Device::new().await;
        let path = device.file("film.mp4", &content(LARGE));
        device.upload_killed_at(&path, 100_000).await;
        std::fs::write(&path, content(len)).unwrap();
        let (reference, report) = device.start().upload_file(&path, &silent).await.unwrap();
        assert_eq!(report.file_bytes, len as u64);
        device.assert_arrives(&reference.id, &content(len)).await;
        device.server.assert_no_place_was_sealed_twice();
    }
}

#[tokio::test]
async fn a_lost_final_answer_is_asked_for_again() {
    let device = Device::new().await;
    let path = device.file("a.bin", &content(100_000));
    device.faults(Faults { lose_last_answer: true, ..Faults::default() });
    let (reference, report) = device.start().upload_file(&path, &silent).await.unwrap();
    assert_eq!(report.resumed_at, Some(report.sealed_bytes));
    device.assert_arrives(&reference.id, &content(100_000)).await;
}

#[tokio::test]
async fn an_upload_the_server_forgot_begins_again_with_the_same_bytes() {
    let device = Device::new().await;
    let path = device.file("a.bin", &content(LARGE));
    for (forget_uploads, forget_before_part) in [(true, false), (false, true)] {
        device.upload_killed_at(&path, 100_000).await;
        device.faults(Faults { forget_uploads, forget_before_part, ..Faults::default() });
        let (reference, report) = device.start().upload_file(&path, &silent).await.unwrap();
        assert_eq!(report.resumed_at, None);
        device.assert_arrives(&reference.id, &content(LARGE)).await;
    }
    assert_eq!(device.server.assert_no_place_was_sealed_twice(), 2, "one plan a transfer, the same bytes");
}

#[tokio::test]
async fn a_grant_that_ended_is_replaced() {
    let device = Device::new().await;
    let path = device.file("a.bin", &content(1000));
    device.faults(Faults { grant_ended: true, ..Faults::default() });
    device.start().upload_file(&path, &silent).await.unwrap();
    assert_eq!(device.server.world().grants, 2);
}

#[tokio::test]
async fn a_server_that_stays_away_leaves_the_command_that_goes_on() {
    let device = Device::new().await;
    let path = device.file("a.bin", &content(100_000));
    device.faults(Faults { unavailable: u32::MAX, ..Faults::default() });
    let client = device.start();
    let error = client.upload_file(&path, &silent).await.unwrap_err();
    let home = client.profile.home().display().to_string();
    assert!(error.to_string().contains(&format!("waxwing resume --home {home}")), "{error}");
    let ClientError::Interrupted { transfer, .. } = error else { panic!("{error}") };

    device.faults(Faults::default());
    let sent = client.resume(transfer, &silent).await.unwrap();
    drop(client);
    device.assert_arrives(&sent.blob, &content(100_000)).await;
}

#[tokio::test]
async fn a_server_with_another_id_for_the_bytes_is_not_believed() {
    let device = Device::new().await;
    let path = device.file("a.bin", &content(1000));
    device.faults(Faults { wrong_id: Some(BlobId::from_bytes([7; 32])), ..Faults::default() });
    let client = device.start();
    let error = client.upload_file(&path, &silent).await.unwrap_err();
    assert!(matches!(error, ClientError::WrongBlob { .. }), "{error}");
    device.faults(Faults::default());
    assert!(client.upload_file(&path, &silent).await.is_ok(), "the next try uploads anew");
}

#[tokio::test]
async fn what_is_not_a_file_is_refused_before_anything_is_asked() {
    let device = Device::new().await;
    let client = device.start();
    let missing = client.upload_file(&device.path("missing"), &silent).await;
    assert!(matches!(missing, Err(ClientError::File { .. })));
    let directory = client.upload_file(device.dir.path(), &silent).await;
    assert!(matches!(directory, Err(ClientError::NotAFile { .. })));
    assert_eq!(client.unfinished().unwrap(), []);
}

#[tokio::test]
async fn a_download_goes_on_at_the_border_of_a_segment() {
    let device = Device::new().await;
    let content = content(1_000_000);
    let (reference, _) = device.start().upload_file(&device.file("a.bin", &content), &silent).await.unwrap();
    let mut went_on = 0;
    device.server.world().ranges.clear();
    for cut in [0, 1, 65_536, 500_000] {
        device.faults(Faults { cut_blob_at: Some(cut), ..Faults::default() });
        let fetched = device.start().fetch(&reference.id, &device.path("arrived"), &silent).await.unwrap();
        assert!(std::fs::read(&fetched.path).unwrap() == content);
        assert_eq!(fetched.cache_status.as_deref(), Some("waxwing; hit"));
        let ranges = std::mem::take(&mut device.server.world().ranges);
        assert_eq!((ranges.len(), &ranges[0]), (2, &None), "cut at {cut}");
        let whole = (0..=cut / 65_536).map(|segments| (segments > 0).then(|| format!("bytes={}-", segments * 65_536)));
        assert!(whole.rev().any(|range| range == ranges[1]), "cut at {cut}: {ranges:?}");
        went_on += usize::from(ranges[1].is_some());
    }
    assert!(went_on > 0, "what had come was never used");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_is_read_past_and_one_that_lies_is_refused() {
    let device = Device::new().await;
    let content = content(1_000_000);
    let (reference, _) = device.start().upload_file(&device.file("a.bin", &content), &silent).await.unwrap();
    device.faults(Faults { cut_blob_at: Some(500_000), wrong_range: true, ..Faults::default() });
    let client = device.start();
    let lied = client.fetch(&reference.id, &device.path("b.bin"), &silent).await.unwrap_err();
    assert!(matches!(lied, ClientError::Nonsense { .. }), "{lied}");

    device.faults(Faults { ignore_range: true, ..Faults::default() });
    let fetched = client.fetch(&reference.id, &device.path("b.bin"), &silent).await.unwrap();
    assert!(std::fs::read(&fetched.path).unwrap() == content, "the part of before, and the rest of a whole answer");
}

#[tokio::test]
async fn a_flipped_bit_never_becomes_a_file() {
    let device = Device::new().await;
    let (reference, _) = device.start().upload_file(&device.file("a.bin", &content(300_000)), &silent).await.unwrap();
    device.faults(Faults { flip_bit_of: Some(200_000 * 8 + 3), ..Faults::default() });
    let error = device.start().fetch(&reference.id, &device.path("b.bin"), &silent).await.unwrap_err();
    assert!(matches!(error, ClientError::Sealed { .. }), "{error}");
    assert!(!device.path("b.bin").exists());
    device.assert_arrives(&reference.id, &content(300_000)).await;
}

#[tokio::test]
async fn a_link_opens_the_file_for_anybody_under_its_name() {
    let device = Device::new().await;
    let path = device.file("photo.jpg", &content(100_000));
    let client = device.start();
    let link = client.share(ShareSource::File(path), &silent).await.unwrap();
    let inbox = device.path("inbox");
    std::fs::create_dir(&inbox).unwrap();
    let parsed = link.to_string().parse().unwrap();
    for name in ["photo.jpg", "photo (1).jpg"] {
        let fetched = fetch_link(&parsed, &inbox, &silent).await.unwrap();
        assert_eq!(fetched.path, inbox.join(name));
        assert!(std::fs::read(&fetched.path).unwrap() == content(100_000));
    }
    let again = client.share(ShareSource::Blob(link.blob), &silent).await.unwrap();
    assert_eq!((again.blob, again.key), (link.blob, link.key));
    let unknown = client.share(ShareSource::Blob(BlobId::from_bytes([1; 32])), &silent).await;
    assert!(matches!(unknown, Err(ClientError::NoKey { .. })));
}
