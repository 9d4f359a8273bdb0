//! The engine over a real disk store, with time moved by hand and content that comes when the test says.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

mod model;

use super::sweeper::Swept;
use super::*;
use crate::fault::{Fault, Faults};
use crate::store::StoreErrorKind;
use crate::store::disk::DiskStore;
use crate::store::suite::{ALICE, BOB, NOW, blob_of, bytes, read};

const MIB: u64 = 1 << 20;
const HOUR: Duration = Duration::from_secs(60 * 60);

struct Engine {
    uploads: Uploads,
    store: Arc<dyn BlobStore>,
    faults: Arc<Faults>,
    directory: TempDir,
}

/// A client that is sending: its content comes piece by piece.
struct Sending {
    pieces: mpsc::Sender<Result<Bytes, ContentError>>,
    request: JoinHandle<Result<Progress, UploadError>>,
}

impl Engine {
    fn start() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn open(directory: TempDir) -> Self {
        let faults = Arc::new(Faults::default());
        let store: Arc<dyn BlobStore> = Arc::new(DiskStore::open(directory.path(), MIB, Arc::clone(&faults)).unwrap());
        let config = Config { blob_bytes_max: 64 * MIB, ..Config::default() };
        Self { uploads: Uploads::new(Arc::clone(&store), &config), store, faults, directory }
    }

    /// As after kill -9: what was in memory is gone.
    fn restart(self) -> Self {
        let Self { uploads, store, directory, .. } = self;
        drop((uploads, store));
        Self::open(directory)
    }

    fn new_upload(length: Option<u64>) -> NewUpload {
        NewUpload {
            allowance: alice(),
            length,
            ends: false,
            expected: None,
            metadata: None,
            partial: false,
            content_digest: None,
            digest: None,
        }
    }

    async fn create(&self, length: u64) -> UploadId {
        self.uploads.create(Self::new_upload(Some(length)), None, NOW).await.unwrap().id
    }

    async fn append(&self, id: UploadId, offset: u64, data: Bytes) -> Result<Progress, UploadError> {
        self.uploads.append(to(id, offset), whole(data), NOW).await
    }

    async fn offset(&self, id: UploadId) -> u64 {
        self.uploads.status(ALICE, id, NOW).await.unwrap().offset
    }

    /// Begins to send; every piece handed over later is taken when the engine has taken the one before.
    fn send(&self, id: UploadId, offset: u64) -> Sending {
        let (pieces, content) = mpsc::channel(1);
        let content = stream::unfold(content, |mut content| async move { Some((content.recv().await?, content)) });
        let uploads = self.uploads.clone();
        let request = tokio::spawn(async move { uploads.append(to(id, offset), content.boxed(), NOW).await });
        Sending { pieces, request }
    }

    async fn blob_bytes(&self, blob: BlobId) -> Vec<u8> {
        let reader = self.store.blob(blob).await.unwrap().expect("the blob is there");
        read(&*reader, 0, reader.blob_bytes()).await
    }

    /// Bytes of the disk that all uploads' files hold.
    fn held_bytes(&self) -> u64 {
        let directories = std::fs::read_dir(self.directory.path().join("blobs")).unwrap();
        let files = directories.flat_map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap());
        files.map(|file| std::os::unix::fs::MetadataExt::blocks(&file.unwrap().metadata().unwrap()) * 512).sum()
    }

    fn files(&self) -> usize {
        let directories = std::fs::read_dir(self.directory.path().join("blobs")).unwrap();
        directories.map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap().count()).sum()
    }
}

impl Sending {
    async fn piece(&self, data: Bytes) {
        self.pieces.send(Ok(data)).await.unwrap();
    }
}

/// Everything that Alice wants.
const fn alice() -> Allowance {
    Allowance { owner: ALICE, blob_bytes_max: u64::MAX, quota_bytes: u64::MAX }
}

fn to(id: UploadId, offset: u64) -> Append {
    Append {
        id,
        allowance: alice(),
        at: At::Offset(offset),
        ends: false,
        length: None,
        expected: None,
        content_bytes: None,
        content_digest: None,
    }
}

fn whole(data: Bytes) -> Content {
    stream::iter([Ok(data)]).boxed()
}

/// `data`, and then the connection breaks.
fn cut(data: Bytes) -> Content {
    stream::iter([Ok(data), Err(ContentError)]).boxed()
}

#[tokio::test]
async fn a_cut_request_keeps_the_bytes_that_came() {
    let engine = Engine::start();
    let data = bytes(3 * MIB);
    let id = engine.create(3 * MIB).await;
    let cut = engine.uploads.append(to(id, 0), cut(data.slice(..2_000_001)), NOW).await;
    assert!(matches!(cut, Err(UploadError::Cut)));
    let engine = engine.restart();
    assert_eq!(engine.offset(id).await, 2_000_001);
    let done = engine.append(id, 2_000_001, data.slice(2_000_001..)).await.unwrap();
    assert_eq!(engine.blob_bytes(done.blob.unwrap()).await, data);
}

/// A server drops what serves a connection when the connection is gone; the bytes that came on it must not go with it.
#[tokio::test]
async fn a_request_outlives_its_connection() {
    let engine = Engine::start();
    let id = engine.create(3 * MIB).await;
    let sending = engine.send(id, 0);
    sending.piece(bytes(1000)).await;
    sending.piece(bytes(1000)).await;
    sending.request.abort();
    assert!(sending.request.await.unwrap_err().is_cancelled());
    let offset = engine.offset(id).await;
    assert!([1000, 2000].contains(&offset), "{offset}");
}

/// The client sent everything and then lost the connection: there is nothing left to send, so there is a blob.
#[tokio::test]
async fn an_upload_cut_after_its_last_byte_is_complete() {
    let engine = Engine::start();
    let data = bytes(100);
    let id = engine.create(100).await;
    engine.uploads.append(to(id, 0), cut(data.clone()), NOW).await.unwrap();
    let status = engine.uploads.status(ALICE, id, NOW).await.unwrap();
    assert_eq!(status.blob, Some(blob_of(&data, ALICE).0.id));
}

#[tokio::test]
async fn a_long_request_commits_on_its_way() {
    let engine = Engine::start();
    let id = engine.create(64 * MIB).await;
    let sending = engine.send(id, 0);
    for _ in 0..12 {
        sending.piece(bytes(MIB)).await;
    }
    // The twelfth piece is handed over only after the batch that filled 8 MiB was dealt with.
    let record = engine.store.upload(id).await.unwrap().unwrap();
    assert!(record.offset >= 8 * MIB, "only {} of 12 MiB are safe", record.offset);
}

/// Each commit carries the part of the outboard that came since the last one.
#[tokio::test]
async fn an_outboard_made_of_many_commits_is_whole() {
    let engine = Engine::start();
    let data = bytes(26 * MIB + 5);
    let id = engine.create(26 * MIB + 5).await;
    let pieces: Vec<_> = data.chunks(MIB as usize).map(|piece| Ok(data.slice_ref(piece))).collect();
    let done = engine.uploads.append(to(id, 0), stream::iter(pieces).boxed(), NOW).await.unwrap();
    let (blob, outboard) = blob_of(&data, ALICE);
    assert_eq!(done.blob, Some(blob.id));
    let reader = engine.store.blob(blob.id).await.unwrap().unwrap();
    let stored: Vec<_> = futures_util::TryStreamExt::try_collect(reader.outboard()).await.unwrap();
    assert_eq!(stored.concat(), outboard.cvs);
}

/// A phone changed networks: its old connection is still open, and must not lock it out.
#[tokio::test]
async fn a_newer_request_takes_over_and_keeps_what_came() {
    let engine = Engine::start();
    let data = bytes(3 * MIB);
    let id = engine.create(3 * MIB).await;
    let old = engine.send(id, 0);
    old.piece(data.slice(..1_000_000)).await;
    old.piece(data.slice(1_000_000..1_500_000)).await;

    let offset = engine.offset(id).await;
    assert_eq!(offset, 1_500_000, "what had reached the origin is kept");
    assert!(matches!(old.request.await.unwrap(), Err(UploadError::TakenOver)));

    let at = usize::try_from(offset).unwrap();
    let newer = engine.send(id, offset);
    newer.piece(data.slice(at..at + 1000)).await;
    newer.piece(data.slice(at + 1000..at + 2000)).await;
    // A third, which believes an old offset, stops the second and is told where things stand.
    let Err(UploadError::OffsetMismatch { stored, .. }) = engine.append(id, 0, Bytes::new()).await else {
        panic!("appended at an offset that is long past")
    };
    assert_eq!(stored, offset + 2000);
    assert!(matches!(newer.request.await.unwrap(), Err(UploadError::TakenOver)));
    let done = engine.append(id, stored, data.slice(stored as usize..)).await.unwrap();
    assert_eq!(engine.blob_bytes(done.blob.unwrap()).await, data);
}

#[tokio::test]
async fn termination_stops_a_request_and_leaves_nothing() {
    let engine = Engine::start();
    let id = engine.create(3 * MIB).await;
    let sending = engine.send(id, 0);
    sending.piece(bytes(100)).await;
    sending.piece(bytes(100)).await;
    engine.uploads.terminate(ALICE, id, NOW).await.unwrap();
    assert!(matches!(sending.request.await.unwrap(), Err(UploadError::TakenOver)));
    assert!(matches!(engine.uploads.status(ALICE, id, NOW).await, Err(UploadError::NotFound)));
    assert_eq!(engine.files(), 0);
}

/// Whoever learns an upload's id without being its owner must not even be able to disturb it.
#[tokio::test]
async fn a_stranger_cannot_stop_an_upload() {
    let engine = Engine::start();
    let data = bytes(1000);
    let id = engine.create(1000).await;
    let sending = engine.send(id, 0);
    sending.piece(data.slice(..500)).await;
    assert!(matches!(engine.uploads.status(BOB, id, NOW).await, Err(UploadError::NotFound)));
    assert!(matches!(engine.uploads.terminate(BOB, id, NOW).await, Err(UploadError::NotFound)));
    let append = Append { allowance: Allowance { owner: BOB, ..alice() }, ..to(id, 0) };
    assert!(matches!(engine.uploads.append(append, whole(bytes(1)), NOW).await, Err(UploadError::NotFound)));
    sending.piece(data.slice(500..)).await;
    drop(sending.pieces);
    assert_eq!(engine.blob_bytes(sending.request.await.unwrap().unwrap().blob.unwrap()).await, data);
}

/// The answer to the last request may be lost; asked again it must come again.
#[tokio::test]
async fn completing_is_idempotent() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    let first = engine.append(id, 0, bytes(100)).await.unwrap();
    let engine = engine.restart();
    assert_eq!(engine.append(id, 100, Bytes::new()).await.unwrap(), first);
    assert_eq!(engine.uploads.status(ALICE, id, NOW).await.unwrap().blob, first.blob);
    assert!(matches!(engine.append(id, 100, bytes(1)).await, Err(UploadError::AlreadyComplete)));
    assert!(matches!(engine.append(id, 0, bytes(100)).await, Err(UploadError::OffsetMismatch { stored: 100, .. })));
}

#[tokio::test]
async fn bytes_that_are_not_the_blob_declared_are_gone() {
    let engine = Engine::start();
    let (expected, _) = blob_of(b"what was meant", ALICE);
    let new = NewUpload { expected: Some(expected.id), ..Engine::new_upload(Some(100)) };
    let id = engine.uploads.create(new, None, NOW).await.unwrap().id;
    let other = Append { expected: Some(blob_of(b"x", ALICE).0.id), ..to(id, 0) };
    let refused = engine.uploads.append(other, whole(bytes(1)), NOW).await;
    assert!(matches!(refused, Err(UploadError::ExpectedConflict { stored }) if stored == expected.id));
    let Err(UploadError::BlobMismatch { actual, .. }) = engine.append(id, 0, bytes(100)).await else {
        panic!("took other bytes than declared")
    };
    assert!(matches!(engine.uploads.status(ALICE, id, NOW).await, Err(UploadError::NotFound)));
    assert!(engine.store.blob(actual).await.unwrap().is_none());
    assert_eq!(engine.files(), 0);
}

#[tokio::test]
async fn more_than_announced_is_refused_and_never_kept() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    let announced = Append { content_bytes: Some(101), ..to(id, 0) };
    let refused = engine.uploads.append(announced, whole(bytes(101)), NOW).await;
    assert!(matches!(refused, Err(UploadError::TooLarge { limit: 100 })));
    // Without an announcement the bytes are counted.
    assert!(matches!(engine.append(id, 0, bytes(101)).await, Err(UploadError::TooLarge { limit: 100 })));
    let sending = engine.send(id, 0);
    sending.piece(bytes(100)).await;
    sending.piece(bytes(1)).await;
    assert!(matches!(sending.request.await.unwrap(), Err(UploadError::TooLarge { limit: 100 })));
    assert_eq!(engine.offset(id).await, 0);
    let small = NewUpload { allowance: Allowance { blob_bytes_max: 99, ..alice() }, ..Engine::new_upload(Some(100)) };
    assert!(matches!(engine.uploads.create(small, None, NOW).await, Err(UploadError::TooLarge { limit: 99 })));
}

#[tokio::test]
async fn a_deferred_length_is_set_once() {
    let engine = Engine::start();
    let data = bytes(100);
    let id = engine.uploads.create(Engine::new_upload(None), None, NOW).await.unwrap().id;
    engine.append(id, 0, data.slice(..60)).await.unwrap();
    let with = |length| Append { length: Some(length), ..to(id, 60) };
    let short = engine.uploads.append(with(59), whole(Bytes::new()), NOW).await;
    assert!(matches!(short, Err(UploadError::LengthConflict { stored: 60 })));
    let set = engine.uploads.append(with(100), whole(Bytes::new()), NOW).await.unwrap();
    assert_eq!((set.length, set.blob), (Some(100), None));
    let other = engine.uploads.append(with(101), whole(Bytes::new()), NOW).await;
    assert!(matches!(other, Err(UploadError::LengthConflict { stored: 100 })));
    let done = engine.uploads.append(with(100), whole(data.slice(60..)), NOW).await.unwrap();
    assert_eq!(engine.blob_bytes(done.blob.unwrap()).await, data);

    // Known at last, when all bytes are there: that completes it.
    let id = engine.uploads.create(Engine::new_upload(None), None, NOW).await.unwrap().id;
    engine.append(id, 0, data.clone()).await.unwrap();
    let last = Append { length: Some(100), ..to(id, 100) };
    assert_eq!(engine.uploads.append(last, whole(Bytes::new()), NOW).await.unwrap().blob, done.blob);
}

#[tokio::test]
async fn an_empty_upload_is_complete_at_once() {
    let engine = Engine::start();
    let done = engine.uploads.create(Engine::new_upload(Some(0)), None, NOW).await.unwrap();
    assert_eq!(done.blob, Some(blob_of(b"", ALICE).0.id));
    assert!(engine.blob_bytes(done.blob.unwrap()).await.is_empty());
}

#[tokio::test]
async fn a_full_disk_keeps_the_prefix_and_heals() {
    let engine = Engine::start();
    let data = bytes(4 * MIB);
    let id = engine.create(4 * MIB).await;
    let sending = engine.send(id, 0);
    // Handing over the fourth piece means that the first was dealt with.
    for piece in 0..3 {
        sending.piece(data.slice(piece * MIB as usize..(piece + 1) * MIB as usize)).await;
    }
    sending.piece(data.slice(3 * MIB as usize..4 * MIB as usize - 1)).await;
    engine.faults.set(Fault::DiskFull, true);
    // The request may have ended before its last piece: then nobody takes it.
    let _ = sending.pieces.send(Ok(data.slice(4 * MIB as usize - 1..))).await;
    drop(sending.pieces);
    let Err(UploadError::Store(error)) = sending.request.await.unwrap() else { panic!("wrote to a full disk") };
    assert_eq!(error.kind(), StoreErrorKind::Full);
    let offset = engine.offset(id).await;
    assert!((MIB..4 * MIB).contains(&offset), "{offset}");

    engine.faults.set(Fault::DiskFull, false);
    let done = engine.append(id, offset, data.slice(offset as usize..)).await.unwrap();
    assert_eq!(engine.blob_bytes(done.blob.unwrap()).await, data);
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    engine.append(id, 0, bytes(10)).await.unwrap();
    engine.faults.set(Fault::FailSync, true);
    let Err(UploadError::Store(error)) = engine.append(id, 10, bytes(10)).await else { panic!("acknowledged") };
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly);
    assert!(!engine.uploads.is_ready());
    assert_eq!(engine.offset(id).await, 10);
}

#[tokio::test]
async fn uploads_expire_and_free_the_disk() {
    let engine = Engine::start();
    let later = |hours| NOW.plus(HOUR * hours);
    let abandoned = engine.create(100).await;
    let seen = engine.create(100).await;
    engine.uploads.status(ALICE, seen, NOW).await.unwrap();
    let begun = engine.create(100).await;
    engine.append(begun, 0, bytes(10)).await.unwrap();
    let finished = engine.create(2 * MIB).await;
    let blob = engine.append(finished, 0, bytes(2 * MIB)).await.unwrap().blob.unwrap();
    assert_eq!(engine.files(), 2);

    assert_eq!(engine.uploads.sweep(NOW).await.unwrap(), Swept::default());
    assert_eq!(engine.uploads.sweep(later(1)).await.unwrap(), Swept { unfinished: 1, finished: 0 });
    assert!(matches!(engine.uploads.status(ALICE, abandoned, NOW).await, Err(UploadError::NotFound)));
    let status = engine.uploads.status(ALICE, seen, later(23)).await.unwrap();
    assert_eq!(status.offset, 0);

    // Expired and not yet swept: told apart from never having been.
    let late = later(25);
    assert!(matches!(engine.uploads.status(ALICE, begun, late).await, Err(UploadError::Expired)));
    // What an operator is told beforehand is what happens.
    assert_eq!(engine.uploads.due(late).await.unwrap(), Swept { unfinished: 2, finished: 1 });
    assert_eq!(engine.uploads.sweep(late).await.unwrap(), Swept { unfinished: 2, finished: 1 });
    assert_eq!(engine.uploads.due(late).await.unwrap(), Swept::default());
    assert!(matches!(engine.uploads.status(ALICE, begun, late).await, Err(UploadError::NotFound)));
    assert_eq!(engine.files(), 1);
    assert_eq!(engine.blob_bytes(blob).await, bytes(2 * MIB));
}

/// A phone that is switched off after its first part must not hold the disk for a day.
#[tokio::test]
async fn room_that_nobody_fills_is_given_back_and_taken_again() {
    let engine = Engine::start();
    let later = |minutes: u64| NOW.plus(Duration::from_secs(60 * minutes));
    let data = bytes(16 * MIB);
    let id = engine.create(16 * MIB).await;
    engine.append(id, 0, data.slice(..2 << 20)).await.unwrap();
    if engine.held_bytes() < 16 * MIB {
        eprintln!("SKIPPED: this file system takes no room beforehand");
        return;
    }
    engine.uploads.sweep(later(4)).await.unwrap();
    assert!(engine.held_bytes() >= 16 * MIB, "the next part may be on its way");
    let sending = engine.send(id, 2 * MIB);
    sending.piece(data.slice(2 << 20..(2 << 20) + 1000)).await;
    sending.piece(data.slice((2 << 20) + 1000..(2 << 20) + 2000)).await;
    engine.uploads.sweep(later(6)).await.unwrap();
    assert!(engine.held_bytes() >= 16 * MIB, "a request is busy with it");
    drop(sending.pieces);
    let offset = sending.request.await.unwrap().unwrap().offset;

    engine.uploads.sweep(later(6)).await.unwrap();
    assert!(engine.held_bytes() < 3 * MIB, "{}", engine.held_bytes());
    let engine = engine.restart();
    assert_eq!(engine.offset(id).await, offset);
    engine.faults.set(Fault::DiskFull, true);
    let none_left = engine.append(id, offset, data.slice(offset as usize..)).await.unwrap_err();
    assert!(matches!(&none_left, UploadError::Store(store) if store.kind() == StoreErrorKind::Full), "{none_left}");
    engine.faults.set(Fault::DiskFull, false);
    let sending = engine.send(id, offset);
    sending.piece(data.slice(offset as usize..4 << 20)).await;
    sending.piece(data.slice(4 << 20..5 << 20)).await;
    assert!(engine.held_bytes() >= 16 * MIB, "room is there again for all that comes");
    sending.piece(data.slice(5 << 20..)).await;
    drop(sending.pieces);
    let blob = sending.request.await.unwrap().unwrap().blob.unwrap();
    assert_eq!(engine.blob_bytes(blob).await, data);
}

/// Room is taken before the first byte, so it may be all there is of an upload.
#[tokio::test]
async fn room_of_an_upload_without_a_byte_is_given_back() {
    let engine = Engine::start();
    let id = engine.create(16 * MIB).await;
    engine.append(id, 0, Bytes::new()).await.unwrap();
    // A sweep leaves alone what a request has only just let go of, and comes again.
    for _ in 0..500 {
        engine.uploads.sweep(NOW.plus(idle::ROOM_KEPT)).await.unwrap();
        if engine.held_bytes() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(engine.held_bytes(), 0);
    let data = bytes(16 * MIB);
    let blob = engine.append(id, 0, data.clone()).await.unwrap().blob.unwrap();
    assert_eq!(engine.blob_bytes(blob).await, data);
}

#[tokio::test]
async fn an_upload_in_progress_does_not_expire() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    let sending = engine.send(id, 0);
    sending.piece(bytes(50)).await;
    sending.piece(bytes(50)).await;
    assert_eq!(engine.uploads.sweep(NOW.plus(HOUR * 48)).await.unwrap(), Swept::default());
    drop(sending.pieces);
    assert!(sending.request.await.unwrap().unwrap().blob.is_some());
}

/// A stalled client's bytes are made safe and its memory freed long before it is given up.
#[tokio::test(start_paused = true)]
async fn a_stalled_request_is_committed_and_then_ended() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    let content = stream::iter([Ok(bytes(10))]).chain(stream::pending());
    let ended = engine.uploads.append(to(id, 0), content.boxed(), NOW).await;
    assert!(matches!(ended, Err(UploadError::Idle)));
    assert_eq!(engine.offset(id).await, 10);
}

/// A byte a second is never idle, and is not worth a connection.
#[tokio::test(start_paused = true)]
async fn a_request_that_trickles_is_ended_with_its_prefix_kept() {
    let engine = Engine::start();
    let id = engine.create(100_000).await;
    let content = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Some((Ok(bytes(1)), ()))
    });
    let ended = engine.uploads.append(to(id, 0), content.boxed(), NOW).await;
    assert!(matches!(ended, Err(UploadError::Slow)), "{ended:?}");
    let kept = engine.offset(id).await;
    assert!((58..=60).contains(&kept), "{kept} bytes of a minute");
}

#[tokio::test]
async fn closing_commits_what_came_and_takes_no_more() {
    let engine = Engine::start();
    let id = engine.create(100).await;
    let sending = engine.send(id, 0);
    sending.piece(bytes(10)).await;
    sending.piece(bytes(10)).await;
    engine.uploads.close().await;
    assert!(matches!(sending.request.await.unwrap(), Err(UploadError::Closing)));
    assert!(matches!(engine.append(id, 0, bytes(1)).await, Err(UploadError::Closing)));
    assert!(!engine.uploads.is_ready());
    assert_eq!(engine.restart().offset(id).await, 20, "what had reached the origin is kept");
}

#[tokio::test]
async fn a_blob_in_one_request_is_whole_or_not_at_all() {
    let engine = Engine::start();
    // Large enough for a file of its own.
    let size = 2 * MIB;
    let new = NewContent { allowance: alice(), expected: None, content_bytes: Some(size), content_digest: None };
    let put = |new, content| engine.uploads.put(new, content, NOW);
    assert!(matches!(put(new.clone(), cut(bytes(size - 1))).await, Err(UploadError::Cut)));
    assert!(matches!(put(new.clone(), whole(bytes(size - 1))).await, Err(UploadError::Cut)));
    let small =
        NewContent { allowance: Allowance { blob_bytes_max: size - 1, ..alice() }, content_bytes: None, ..new.clone() };
    assert!(matches!(put(small, whole(bytes(size))).await, Err(UploadError::TooLarge { limit }) if limit == size - 1));
    let other = NewContent { expected: Some(blob_of(b"x", ALICE).0.id), ..new.clone() };
    assert!(matches!(put(other, whole(bytes(size))).await, Err(UploadError::BlobMismatch { .. })));
    assert_eq!(engine.files(), 0);
    let blob = put(new.clone(), whole(bytes(size))).await.unwrap();
    assert_eq!(put(new.clone(), whole(bytes(size))).await.unwrap(), blob);
    assert_eq!(engine.blob_bytes(blob).await, bytes(size));
    assert_eq!(engine.files(), 1);
}

/// A declared id ends an upload before it began, for its owner alone: to anybody else it must not tell what is there.
#[tokio::test]
async fn an_upload_of_what_its_owner_has_is_complete_at_once() {
    let engine = Engine::start();
    let data = bytes(3 * MIB);
    let id = engine.create(3 * MIB).await;
    let blob = engine.append(id, 0, data.clone()).await.unwrap().blob.unwrap();
    let declared = |length, owner| NewUpload {
        expected: Some(blob),
        allowance: Allowance { owner, ..alice() },
        ..Engine::new_upload(length)
    };
    for length in [Some(3 * MIB), None] {
        let done = engine.uploads.create(declared(length, ALICE), None, NOW).await.unwrap();
        assert_eq!((done.offset, done.length, done.blob), (3 * MIB, Some(3 * MIB), Some(blob)));
        assert_eq!(engine.uploads.status(ALICE, done.id, NOW).await.unwrap().blob, Some(blob));
    }
    let other_size = engine.uploads.create(declared(Some(3 * MIB - 1), ALICE), None, NOW).await.unwrap();
    let others = engine.uploads.create(declared(Some(3 * MIB), BOB), None, NOW).await.unwrap();
    for begun in [other_size, others] {
        assert_eq!((begun.offset, begun.blob), (0, None));
    }
    assert!(engine.store.disown(blob, ALICE, NOW).await.unwrap());
    let gone = engine.uploads.create(declared(Some(3 * MIB), ALICE), None, NOW).await.unwrap();
    assert_eq!((gone.offset, gone.blob), (0, None));
}

#[tokio::test]
async fn a_quota_is_kept_from_the_first_byte_to_the_last() {
    let engine = Engine::start();
    let allowance = Allowance { quota_bytes: 20 * MIB, ..alice() };
    let new = |length| NewUpload { allowance, ..Engine::new_upload(length) };
    let refused = |outcome| assert!(matches!(outcome, Err(UploadError::QuotaExceeded)), "{outcome:?}");
    let reserved = engine.uploads.create(new(Some(15 * MIB)), None, NOW).await.unwrap().id;
    refused(engine.uploads.create(new(Some(6 * MIB)), None, NOW).await);
    refused(engine.uploads.create(new(Some(21 * MIB)), None, NOW).await);
    // Announced too large, it is refused before its content is asked for.
    let content = stream::once(async { panic!("nobody should ask for this") }).boxed();
    refused(engine.uploads.create(new(Some(21 * MIB)), Some(content), NOW).await);

    // Without a length an upload counts what came; the commit that is too much is refused, the others stand.
    let growing = engine.uploads.create(new(None), None, NOW).await.unwrap().id;
    let append = |offset| Append { allowance, ..to(growing, offset) };
    engine.uploads.append(append(0), whole(bytes(3 * MIB)), NOW).await.unwrap();
    refused(engine.uploads.append(append(3 * MIB), whole(bytes(3 * MIB)), NOW).await);
    assert_eq!(engine.offset(growing).await, 3 * MIB);
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 18 * MIB);

    // What ends gives its room back.
    engine.uploads.terminate(ALICE, reserved, NOW).await.unwrap();
    engine.uploads.append(append(3 * MIB), whole(bytes(3 * MIB)), NOW).await.unwrap();
    assert_eq!(engine.uploads.sweep(NOW.plus(HOUR * 25)).await.unwrap().unfinished, 1);
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 0);
    let put = |size| NewContent { allowance, expected: None, content_bytes: Some(size), content_digest: None };
    let blob = engine.uploads.put(put(19 * MIB), whole(bytes(19 * MIB)), NOW).await.unwrap();
    refused(engine.uploads.put(put(2 * MIB), whole(bytes(2 * MIB)), NOW).await.map(|_| unreachable!()));
    assert_eq!(engine.files(), 1);
    assert!(engine.store.disown(blob, ALICE, NOW).await.unwrap());
    assert_eq!(engine.files(), 0);
    engine.uploads.put(put(2 * MIB), whole(bytes(2 * MIB)), NOW).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// However a network cuts an upload and whenever the server restarts, the blob and its outboard are the same.
    #[test]
    fn an_upload_survives_any_cuts(
        len in 1_u64..400_000,
        cuts in prop::collection::vec((0_u64..200_000, any::<bool>()), 0..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let data = bytes(len);
            let mut engine = Engine::start();
            let id = engine.create(len).await;
            for (sent, restarts) in cuts {
                let offset = engine.offset(id).await;
                let end = (offset + sent).min(len - 1).max(offset);
                let piece = data.slice(offset as usize..end as usize);
                let _ = engine.uploads.append(to(id, offset), cut(piece), NOW).await;
                assert_eq!(engine.offset(id).await, end);
                if restarts {
                    engine = engine.restart();
                }
            }
            let offset = engine.offset(id).await;
            let done = engine.append(id, offset, data.slice(offset as usize..)).await.unwrap();
            let (blob, outboard) = blob_of(&data, ALICE);
            assert_eq!(done.blob, Some(blob.id));
            assert_eq!(engine.blob_bytes(blob.id).await, data);
            let reader = engine.store.blob(blob.id).await.unwrap().unwrap();
            let stored = futures_util::TryStreamExt::try_collect::<Vec<_>>(reader.outboard()).await.unwrap();
            assert_eq!(stored.concat(), outboard.cvs);
        });
    }
}
