//! What is the disk's own: files, recovery, faults. The promises all engines share are in `suite.rs`.

use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use tempfile::TempDir;
use waxwing_protocol::OwnerTag;

use super::*;
use crate::store::OutboardPart;
use crate::store::suite::{ALICE, BOB, Harness, NOW, blob_of, bytes, engine_suite, id, put, read, receiving};

const RESERVE: u64 = 1 << 20;

/// More than is packed: such a blob has a file of its own.
const LARGE: u64 = (1 << 20) + 1000;

/// A store in a directory of its own, whose faults can be switched.
struct Disks {
    store: DiskStore,
    faults: Arc<Faults>,
    directory: TempDir,
}

impl Harness for Disks {
    fn start() -> Self {
        Self::open(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> &dyn BlobStore {
        &self.store
    }

    fn reopen(self) -> Self {
        let Self { store, directory, .. } = self;
        drop(store);
        Self::open(directory)
    }

    fn owners(&self, blob: BlobId) -> Vec<OwnerTag> {
        self.store.0.records.blob_owners(blob).unwrap()
    }
}

impl Disks {
    fn open(directory: TempDir) -> Self {
        let faults = Arc::new(Faults::default());
        let store = DiskStore::open(directory.path(), RESERVE, Arc::clone(&faults)).unwrap();
        Self { store, faults, directory }
    }

    fn file(&self, upload: UploadId) -> std::path::PathBuf {
        let name = upload.to_string();
        self.directory.path().join("blobs").join(&name[..2]).join(name)
    }

    /// An unfinished upload with `data` committed, and nobody on it.
    async fn unfinished(&self, upload: UploadId, data: &Bytes) {
        let (record, outboard) = receiving(data);
        let mut writer = self.store.begin(upload).await.unwrap();
        writer.write(0, vec![data.clone()]).await.unwrap();
        writer.commit(record, outboard).await.unwrap();
    }
}

engine_suite!(Disks);

#[test]
fn a_directory_serves_one_process() {
    let first = Disks::start();
    let second = DiskStore::open(first.directory.path(), RESERVE, Arc::default());
    assert!(matches!(second, Err(DiskOpenError::Records(RecordsError::Locked { .. }))));
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let Err(error) = DiskStore::open(file.path(), RESERVE, Arc::default()) else { panic!("a file is no directory") };
    assert!(error.to_string().contains(file.path().to_str().unwrap()));
}

/// Bytes that a crash left beyond the record were never acknowledged: the next claim cuts them off.
#[tokio::test]
async fn a_file_is_cut_to_its_record() {
    let disks = Disks::start();
    let data = bytes(1000);
    disks.unfinished(id(1), &data).await;
    let file = std::fs::File::options().write(true).open(disks.file(id(1))).unwrap();
    file.write_all_at(b"never acknowledged", 1000).unwrap();
    drop(disks.store.claim(id(1)).await.unwrap().unwrap());
    assert_eq!(std::fs::read(disks.file(id(1))).unwrap(), data);
}

/// A file shorter than its record has lost acknowledged bytes; going on would make a blob with a hole.
#[tokio::test]
async fn lost_bytes_are_told_as_damage() {
    let disks = Disks::start();
    disks.unfinished(id(1), &bytes(1000)).await;
    std::fs::File::options().write(true).open(disks.file(id(1))).unwrap().set_len(999).unwrap();
    let Err(error) = disks.store.claim(id(1)).await else { panic!("claimed an upload with a hole") };
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);

    let blob = put(&disks.store, id(2), &bytes(LARGE), ALICE).await;
    std::fs::remove_file(disks.file(id(2))).unwrap();
    let Err(error) = disks.store.blob(blob).await else { panic!("opened a blob without bytes") };
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
}

/// Whoever sends the bytes again has just what is missing.
#[tokio::test]
async fn a_damaged_blob_is_mended_by_its_next_upload() {
    for cut in [true, false] {
        let disks = Disks::start();
        let data = bytes(LARGE);
        let blob = put(&disks.store, id(1), &data, ALICE).await;
        if cut {
            std::fs::File::options().write(true).open(disks.file(id(1))).unwrap().set_len(999).unwrap();
        } else {
            std::fs::remove_file(disks.file(id(1))).unwrap();
        }
        assert_eq!(put(&disks.store, id(2), &data, BOB).await, blob);
        let disks = disks.reopen();
        let reader = disks.store.blob(blob).await.unwrap().unwrap();
        assert_eq!(read(&*reader, 0, LARGE).await, data);
        let outboard: Vec<Bytes> = futures_util::TryStreamExt::try_collect(reader.outboard()).await.unwrap();
        assert_eq!(outboard.concat().len() as u64, waxwing_protocol::blob::outboard_bytes(LARGE));
        assert_eq!(disks.owners(blob).len(), 2);
        // What is left of the damaged copy is named by nothing.
        disks.store.collect(Timestamp::from_millis(u64::MAX)).await.unwrap();
        assert!(!disks.file(id(1)).exists());
        assert!(disks.file(id(2)).exists());
    }
}

#[tokio::test]
async fn the_second_copy_of_a_blob_leaves_no_file() {
    let disks = Disks::start();
    let data = bytes(LARGE);
    put(&disks.store, id(1), &data, ALICE).await;
    put(&disks.store, id(2), &data, BOB).await;
    assert!(disks.file(id(1)).exists());
    assert!(!disks.file(id(2)).exists());
}

/// Expiry or termination while an edge is reading must not tear the bytes away under it.
#[tokio::test]
async fn an_open_blob_is_read_to_its_end_though_its_file_goes() {
    let disks = Disks::start();
    let data = bytes(LARGE);
    let blob = put(&disks.store, id(1), &data, ALICE).await;
    let reader = disks.store.blob(blob).await.unwrap().unwrap();
    std::fs::remove_file(disks.file(id(1))).unwrap();
    assert_eq!(read(&*reader, 0, LARGE).await, data);
}

#[tokio::test]
async fn a_full_disk_refuses_bytes_and_heals() {
    let disks = Disks::start();
    let data = bytes(1000);
    disks.unfinished(id(1), &data).await;
    let mut claim = disks.store.claim(id(1)).await.unwrap().unwrap();
    disks.faults.set(Fault::DiskFull, true);
    let refused = claim.writer.write(1000, vec![bytes(10)]).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Full);
    assert!(disks.store.is_writable());
    disks.faults.set(Fault::DiskFull, false);
    claim.writer.write(1000, vec![bytes(10)]).await.unwrap();
    claim.writer.commit(claim.record, OutboardPart::default()).await.unwrap();
}

/// What is written must leave room for the records that speak of it.
#[tokio::test]
async fn the_reserve_stays_free() {
    let directory = tempfile::tempdir().unwrap();
    let store = DiskStore::open(directory.path(), u64::MAX, Arc::default()).unwrap();
    let mut writer = store.begin(id(1)).await.unwrap();
    assert_eq!(writer.write(0, vec![bytes(10)]).await.unwrap_err().kind(), StoreErrorKind::Full);
    // A record still can be written.
    let (record, outboard) = receiving(&[]);
    writer.commit(record, outboard).await.unwrap();
}

/// After a failed sync nobody knows what the disk has: nothing more is acknowledged, and no second sync is believed.
#[tokio::test]
async fn a_failed_sync_makes_the_store_read_only() {
    let disks = Disks::start();
    let data = bytes(1000);
    disks.unfinished(id(1), &data).await;
    let blob = put(&disks.store, id(2), &data, ALICE).await;
    let mut claim = disks.store.claim(id(1)).await.unwrap().unwrap();
    claim.writer.write(1000, vec![bytes(10)]).await.unwrap();
    disks.faults.set(Fault::FailSync, true);
    let (record, _) = receiving(&bytes(1010));
    let failed = claim.writer.commit(record.clone(), OutboardPart::default()).await;
    assert_eq!(failed.unwrap_err().kind(), StoreErrorKind::ReadOnly);
    disks.faults.set(Fault::FailSync, false);
    assert!(!disks.store.is_writable());
    let again = claim.writer.commit(record, OutboardPart::default()).await;
    assert_eq!(again.unwrap_err().kind(), StoreErrorKind::ReadOnly);
    let Err(error) = disks.store.begin(id(3)).await else { panic!("began on a read-only store") };
    assert_eq!(error.kind(), StoreErrorKind::ReadOnly);

    // Reading goes on, and the acknowledged offset stands.
    let reader = disks.store.blob(blob).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, 1000).await, data);
    assert_eq!(disks.store.upload(id(1)).await.unwrap().unwrap().offset, 1000);
    drop((claim, reader));
    assert!(disks.reopen().store.is_writable());
}

/// A claim waits for a write under way, but not for ever.
#[tokio::test(start_paused = true)]
async fn a_claim_does_not_wait_for_ever() {
    let disks = Disks::start();
    disks.unfinished(id(1), &bytes(10)).await;
    let slot = disks.store.0.slots.get(id(1));
    let _stuck = slot.lock(CLAIM_WAIT).await.unwrap();
    let Err(error) = disks.store.claim(id(1)).await else { panic!("claimed what another writes to") };
    assert_eq!(error.kind(), StoreErrorKind::Busy);
}

#[tokio::test]
async fn a_damaged_record_stops_its_upload_and_no_other() {
    let disks = Disks::start();
    disks.unfinished(id(1), &bytes(10)).await;
    disks.unfinished(id(2), &bytes(10)).await;
    disks.store.0.records.damage(id(1));
    let Err(error) = disks.store.claim(id(1)).await else { panic!("read a torn record") };
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    let listed = disks.store.uploads(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [id(2)]);
    // Its bytes are kept for whoever repairs it.
    assert_eq!(disks.store.collect(Timestamp::from_millis(u64::MAX)).await.unwrap(), 0);
    assert!(disks.file(id(1)).exists());
}

#[tokio::test]
async fn an_outboard_with_a_gap_is_told_as_damage() {
    let disks = Disks::start();
    let data = bytes(LARGE);
    let (blob, mut outboard) = blob_of(&data, ALICE);
    let mut writer = disks.store.begin(id(1)).await.unwrap();
    writer.write(0, vec![data]).await.unwrap();
    outboard.first_group = 1;
    writer.complete(blob, None, Vec::new(), outboard).await.unwrap();
    let reader = disks.store.blob(blob.id).await.unwrap().unwrap();
    let read: Result<Vec<_>, _> = futures_util::TryStreamExt::try_collect(reader.outboard()).await;
    assert_eq!(read.unwrap_err().kind(), StoreErrorKind::Corrupt);
}

/// A small blob has no file of its own, whether its bytes came at once or in pieces.
#[tokio::test]
async fn a_small_blob_is_packed() {
    let disks = Disks::start();
    let data = bytes(1000);
    let (blob, outboard) = blob_of(&data, ALICE);
    let mut writer = disks.store.begin(id(1)).await.unwrap();
    writer.complete(blob, None, vec![data.clone()], outboard).await.unwrap();
    drop(writer);
    let pieces = put(&disks.store, id(2), &bytes(1 << 20), ALICE).await;
    assert!(!disks.file(id(1)).exists());
    assert!(!disks.file(id(2)).exists());
    let disks = disks.reopen();
    for (blob, data) in [(blob.id, data), (pieces, bytes(1 << 20))] {
        let reader = disks.store.blob(blob).await.unwrap().unwrap();
        assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
    }
}

/// Bytes that are stored already are not written once more: packs do not grow by being sent the same again and again.
#[tokio::test]
async fn a_repeated_small_blob_takes_no_room() {
    let disks = Disks::start();
    let pack = disks.directory.path().join("packs/0.pack");
    put(&disks.store, id(1), &bytes(1000), ALICE).await;
    let before = std::fs::metadata(&pack).unwrap().len();
    for n in 2..10 {
        put(&disks.store, id(n), &bytes(1000), BOB).await;
        assert!(!disks.file(id(n)).exists());
    }
    assert_eq!(std::fs::metadata(&pack).unwrap().len(), before);
}

#[tokio::test]
async fn a_damaged_pack_is_mended_by_the_next_upload() {
    let disks = Disks::start();
    let blob = put(&disks.store, id(1), &bytes(1000), ALICE).await;
    let pack = std::fs::File::options().write(true).open(disks.directory.path().join("packs/0.pack")).unwrap();
    pack.write_all_at(b"????", 0).unwrap();
    let Err(error) = disks.store.blob(blob).await else { panic!("opened a damaged entry") };
    assert_eq!(error.kind(), StoreErrorKind::Corrupt);
    put(&disks.store, id(2), &bytes(1000), BOB).await;
    let disks = disks.reopen();
    let reader = disks.store.blob(blob).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, 1000).await, bytes(1000));
}

/// Killed after the blob was packed and before its file went, a process leaves a file that nothing names.
#[tokio::test]
async fn the_file_of_a_packed_blob_is_collected() {
    let disks = Disks::start();
    put(&disks.store, id(1), &bytes(1000), ALICE).await;
    std::fs::create_dir_all(disks.file(id(1)).parent().unwrap()).unwrap();
    std::fs::write(disks.file(id(1)), bytes(1000)).unwrap();
    assert_eq!(disks.store.collect(Timestamp::from_millis(u64::MAX)).await.unwrap(), 1);
    assert!(!disks.file(id(1)).exists());
}

/// Not a check but a measurement: `cargo nextest run -p waxwing-origin small_blobs_a_second --run-ignored all
/// --no-capture`, with `TMPDIR` on the disk to be measured.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of the disk it runs on"]
async fn small_blobs_a_second() {
    const BLOBS: u64 = 20_000;
    const TASKS: u64 = 64;
    let disks = Disks::start();
    let data = bytes(100 << 10);
    let began = std::time::Instant::now();
    let tasks = (0..TASKS).map(|task| {
        let (store, data) = (disks.store.clone(), data.clone());
        tokio::spawn(async move {
            for n in (task..BLOBS).step_by(TASKS as usize) {
                let data: Bytes = [&n.to_le_bytes()[..], &data[8..]].concat().into();
                let (blob, outboard) = blob_of(&data, ALICE);
                let mut upload = [0; 16];
                upload[..8].copy_from_slice(&n.to_le_bytes());
                let mut writer = store.begin(UploadId::from_bytes(upload)).await.unwrap();
                writer.complete(blob, None, vec![data], outboard).await.unwrap();
            }
        })
    });
    futures_util::future::try_join_all(tasks).await.unwrap();
    let seconds = began.elapsed().as_secs_f64();
    println!("{BLOBS} blobs of 100 KiB in {seconds:.2} s: {:.0} durable blobs/s", BLOBS as f64 / seconds);
}

/// A store that was filled before owners' bytes were counted knows them after its first start.
#[tokio::test]
async fn records_of_the_first_version_are_counted_when_they_are_opened() {
    let disks = Disks::start();
    let large = put(disks.store(), id(1), &bytes(3 << 20), ALICE).await;
    put(disks.store(), id(2), &bytes(3 << 20), BOB).await;
    put(disks.store(), id(3), &bytes(5), BOB).await;
    let (record, outboard) = receiving(&bytes(77));
    let mut writer = disks.store().begin(id(4)).await.unwrap();
    writer.write(0, vec![bytes(77)]).await.unwrap();
    writer.commit(record, outboard).await.unwrap();
    drop(writer);
    disks.store.0.records.as_the_first_version_left_them();
    assert_eq!(disks.store().used(BOB).await.unwrap(), 0);

    let disks = disks.reopen();
    assert_eq!(disks.store().used(ALICE).await.unwrap(), (3 << 20) + 77);
    assert_eq!(disks.store().used(BOB).await.unwrap(), (3 << 20) + 5);
    assert_eq!(disks.store().expire_owners(NOW, 10, NOW).await.unwrap(), 3);
    assert!(disks.store().blob(large).await.unwrap().is_none());
}

/// Room is given back under the feet of nobody: whoever had a claim writes nothing any more, and what was committed stays.
#[tokio::test]
async fn giving_back_room_fences_earlier_claims() {
    let disks = Disks::start();
    let mut first = disks.store().begin(id(1)).await.unwrap();
    first.reserve(8 << 20).await.unwrap();
    let data = bytes(2 << 20);
    first.write(0, vec![data.clone()]).await.unwrap();
    let (record, outboard) = receiving(&data);
    first.commit(record, outboard).await.unwrap();
    first.write(2 << 20, vec![bytes(1000)]).await.unwrap();
    let given_back = disks.store().give_back(id(1)).await.unwrap();
    if given_back > 0 {
        assert!(given_back > 5 << 20, "{given_back}");
    }
    assert_eq!(disks.store().give_back(id(1)).await.unwrap(), 0, "there is nothing more");
    let late = first.write((2 << 20) + 1000, vec![bytes(1000)]).await.unwrap_err();
    assert_eq!(late.kind(), StoreErrorKind::Stale);
    drop(first);
    let disks = disks.reopen();
    let mut next = disks.store().claim(id(1)).await.unwrap().unwrap();
    assert_eq!(next.record.offset, 2 << 20);
    assert_eq!(next.writer.read(0, 2 << 20).await.unwrap(), data);
    assert_eq!(disks.store().give_back(id(9)).await.unwrap(), 0, "of an upload that is not there");
}

/// Packs of 2 MiB, so that a test sees many.
fn small_packs(disks: Disks) -> Disks {
    disks.faults.set(Fault::SmallPacks, true);
    disks
}

impl Disks {
    /// Stores the blob of these bytes in one go.
    async fn pack(&self, n: u64, data: &Bytes) -> BlobId {
        let (blob, outboard) = blob_of(data, ALICE);
        let mut upload = [0xAA; 16];
        upload[..8].copy_from_slice(&n.to_le_bytes());
        let mut writer = self.store.begin(UploadId::from_bytes(upload)).await.unwrap();
        writer.complete(blob, None, vec![data.clone()], outboard).await.unwrap();
        blob.id
    }

    async fn drop_blob(&self, blob: BlobId) {
        assert!(self.store.remove_blob(blob, NOW).await.unwrap());
    }

    /// Compacts although it was done a moment ago.
    async fn compact(&self) -> u64 {
        self.store.compact(Urgency::Waiting, CancellationToken::new()).await.unwrap()
    }

    fn packs(&self) -> Vec<String> {
        let packs = std::fs::read_dir(self.directory.path().join("packs")).unwrap();
        let mut names: Vec<_> = packs.map(|pack| pack.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn pack_bytes(&self) -> u64 {
        let packs = std::fs::read_dir(self.directory.path().join("packs")).unwrap();
        packs.map(|pack| pack.unwrap().metadata().unwrap().len()).sum()
    }

    async fn assert_is(&self, blob: BlobId, data: &[u8]) {
        let reader = self.store.blob(blob).await.unwrap().expect("the blob is there");
        assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
        let outboard: Vec<_> = futures_util::TryStreamExt::try_collect(reader.outboard()).await.unwrap();
        assert_eq!(outboard.concat(), blob_of(data, ALICE).1.cvs);
    }
}

/// Half a MiB that is different for every `n`.
fn photo(n: u64) -> Bytes {
    let mut data = vec![0; 500_000];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut data);
    data.into()
}

/// Eight blobs, four in each of two packs, and one in the pack being filled.
async fn nine_photos(disks: &Disks) -> Vec<BlobId> {
    let mut blobs = Vec::new();
    for n in 0..9 {
        blobs.push(disks.pack(n, &photo(n)).await);
    }
    assert_eq!(disks.packs(), ["0.pack", "1.pack", "2.pack"]);
    blobs
}

/// The space of blobs that went comes back, and those that live live on, also for whoever is reading them.
#[tokio::test]
async fn a_pack_that_is_mostly_dead_is_given_back() {
    let disks = small_packs(Disks::start());
    let blobs = nine_photos(&disks).await;
    assert_eq!(disks.compact().await, 0);
    let half_dead = [0, 1];
    for n in half_dead {
        disks.drop_blob(blobs[n]).await;
    }
    assert_eq!(disks.compact().await, 0, "half is not more than half");
    disks.drop_blob(blobs[2]).await;
    let reader = disks.store.blob(blobs[3]).await.unwrap().unwrap();
    let told = disks.store.compactable().await.unwrap();
    assert!(told > 3 * 500_000);
    assert_eq!(disks.store.compact(Urgency::NowAndThen, CancellationToken::new()).await.unwrap(), 0, "it rests");
    assert_eq!(disks.compact().await, told);
    assert_eq!(disks.store.compactable().await.unwrap(), 0);
    assert_eq!(disks.packs(), ["1.pack", "2.pack"]);
    assert_eq!(read(&*reader, 0, 500_000).await, photo(3));
    drop(reader);
    let disks = disks.reopen();
    for n in 3..9 {
        disks.assert_is(blobs[n as usize], &photo(n)).await;
    }
    assert!(disks.store.blob(blobs[0]).await.unwrap().is_none());
}

/// Identical blobs that come at once are packed more than once; all but one of the copies are dead.
#[tokio::test]
async fn copies_of_blobs_that_came_at_once_are_given_back() {
    let disks = small_packs(Disks::start());
    let data = photo(0);
    let puts = (0..16).map(|n| disks.pack(n, &data));
    let blob = futures_util::future::join_all(puts).await[0];
    disks.pack(100, &photo(100)).await;
    disks.pack(101, &photo(101)).await;
    disks.pack(102, &photo(102)).await;
    disks.pack(103, &photo(103)).await;
    disks.compact().await;
    assert!(disks.pack_bytes() < 2 * 5 * 500_500 + 2 * (2 << 20), "{} bytes", disks.pack_bytes());
    disks.assert_is(blob, &data).await;
}

/// Durable and not yet in a record: what is about to be acknowledged looks as dead as what went.
#[tokio::test]
async fn an_entry_on_its_way_to_its_record_keeps_its_pack() {
    let disks = small_packs(Disks::start());
    let data = photo(77);
    let (blob, outboard) = blob_of(&data, ALICE);
    let entry = packs::Entry { id: blob.id, outboard: outboard.cvs.clone(), data: vec![data.clone()] };
    let packed = disks.store.0.packs.append(entry).unwrap();
    for n in 0..8 {
        let blob = disks.pack(n, &photo(n)).await;
        disks.drop_blob(blob).await;
    }
    disks.compact().await;
    assert_eq!(disks.packs(), ["0.pack", "2.pack"]);
    let location = Location::Pack(packed.location);
    let change = Change::Complete { id: id(1), record: None, blob, data: Some(location), outboard, damaged: None };
    assert!(disks.store.0.submit(change).unwrap());
    drop(packed);
    disks.compact().await;
    disks.assert_is(blob.id, &data).await;
    assert_eq!(disks.packs(), ["2.pack"]);
}

/// A copy of bytes that went meanwhile is not the blob again.
#[tokio::test]
async fn a_blob_that_goes_while_it_is_moved_stays_gone() {
    let disks = Disks::start();
    let data = photo(1);
    let (blob, outboard) = blob_of(&data, ALICE);
    disks.pack(1, &data).await;
    let Location::Pack(from) = disks.store.0.records.blob(blob.id).unwrap().unwrap().data else { panic!("not packed") };
    let entry = packs::Entry { id: blob.id, outboard: outboard.cvs, data: vec![data.clone()] };
    let copy = disks.store.0.packs.append(entry).unwrap();
    let moved = || Change::Move { moves: vec![changes::Move { blob: blob.id, from, to: copy.location }] };
    disks.drop_blob(blob.id).await;
    disks.store.0.submit(moved()).unwrap();
    assert!(disks.store.blob(blob.id).await.unwrap().is_none());
    // Nor is it where it was not copied from.
    disks.pack(2, &data).await;
    let now = disks.store.0.records.blob(blob.id).unwrap().unwrap().data;
    disks.store.0.submit(moved()).unwrap();
    assert_eq!(disks.store.0.records.blob(blob.id).unwrap().unwrap().data, now);
    disks.assert_is(blob.id, &data).await;
}

/// What cannot be read is kept for whoever repairs it; what lies beside it moves.
#[tokio::test]
async fn a_damaged_entry_keeps_its_pack() {
    let disks = small_packs(Disks::start());
    let blobs = nine_photos(&disks).await;
    let pack = std::fs::File::options().write(true).open(disks.directory.path().join("packs/0.pack")).unwrap();
    pack.write_all_at(b"????", 1000).unwrap();
    for blob in &blobs[1..4] {
        disks.drop_blob(*blob).await;
    }
    for blob in &blobs[4..8] {
        disks.drop_blob(*blob).await;
    }
    assert!(disks.compact().await > 4 * 500_000);
    assert_eq!(disks.packs(), ["0.pack", "2.pack"]);
    assert!(disks.store.blob(blobs[0]).await.unwrap().is_some());
    disks.drop_blob(blobs[0]).await;
    disks.compact().await;
    assert_eq!(disks.packs(), ["2.pack"]);
}

/// Killed after the last blob of a pack was moved and before the pack went, or between a copy and its record: the next
/// round finds both.
#[tokio::test]
async fn what_a_crash_left_of_compaction_is_given_back() {
    let disks = small_packs(Disks::start());
    let blobs = nine_photos(&disks).await;
    let before = std::fs::read(disks.directory.path().join("packs/0.pack")).unwrap();
    for blob in &blobs[..3] {
        disks.drop_blob(*blob).await;
    }
    disks.compact().await;
    std::fs::write(disks.directory.path().join("packs/0.pack"), &before).unwrap();
    let disks = small_packs(disks.reopen());
    assert_eq!(disks.compact().await, before.len() as u64);
    assert_eq!(disks.packs(), ["1.pack", "2.pack"]);
    disks.assert_is(blobs[3], &photo(3)).await;
}

/// A disk so full that it takes no uploads still compacts: how else would it ever be less full.
#[tokio::test]
async fn compaction_may_use_half_of_the_reserve() {
    let directory = tempfile::tempdir().unwrap();
    let disks = small_packs(Disks::open(directory));
    let blobs = nine_photos(&disks).await;
    for blob in &blobs[..3] {
        disks.drop_blob(*blob).await;
    }
    let Disks { store, directory, .. } = disks;
    drop(store);
    let stat = rustix::fs::statvfs(directory.path()).unwrap();
    // Less than the reserve is free, and more than half of it.
    let reserve = stat.f_bavail * stat.f_frsize / 4 * 5;
    let faults = Arc::new(Faults::default());
    let store = DiskStore::open(directory.path(), reserve, Arc::clone(&faults)).unwrap();
    let disks = small_packs(Disks { store, faults, directory });
    let (blob, outboard) = blob_of(&photo(50), ALICE);
    let mut writer = disks.store.begin(id(1)).await.unwrap();
    let refused = writer.complete(blob, None, vec![photo(50)], outboard).await;
    assert_eq!(refused.unwrap_err().kind(), StoreErrorKind::Full);
    assert!(disks.compact().await > 0);
    disks.assert_is(blobs[3], &photo(3)).await;
}

/// Readers, uploads and removals beside compaction that never rests.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blobs_are_whole_while_packs_churn() {
    let disks = small_packs(Disks::start());
    churn(Arc::downgrade(&disks.store.0));
    let tasks = (0..4).map(|task: u64| {
        let store = disks.store.clone();
        tokio::spawn(async move {
            let mut held = std::collections::VecDeque::new();
            for n in 0..60 {
                let data = photo(1000 * task + n);
                let (blob, outboard) = blob_of(&data, ALICE);
                let upload = UploadId::from_bytes([[task as u8; 8], n.to_le_bytes()].concat().try_into().unwrap());
                let mut writer = store.begin(upload).await.unwrap();
                writer.complete(blob, None, vec![data.clone()], outboard).await.unwrap();
                held.push_back((blob.id, data));
                for (blob, data) in &held {
                    let reader = store.blob(*blob).await.unwrap().expect("it was stored");
                    assert_eq!(read(&*reader, 0, data.len() as u64).await, *data);
                }
                if held.len() > 6 {
                    let (blob, _) = held.pop_front().unwrap();
                    assert!(store.remove_blob(blob, NOW).await.unwrap());
                    assert!(store.blob(blob).await.unwrap().is_none());
                }
            }
            held
        })
    });
    let held: Vec<_> = futures_util::future::try_join_all(tasks).await.unwrap().into_iter().flatten().collect();
    assert!(!disks.packs().contains(&"0.pack".to_owned()), "nothing was compacted: {:?}", disks.packs());
    for (blob, data) in held {
        disks.assert_is(blob, &data).await;
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(24))]
    /// Whatever comes and goes in whatever order: every blob that should be there is whole, and dead bytes never outweigh
    /// those that live by more than two packs.
    #[test]
    fn packs_give_their_space_back(
        steps in proptest::collection::vec((0_u8..10, 0_u64..40, 1_u64..(1 << 20)), 1..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut disks = small_packs(Disks::start());
            let mut model = std::collections::BTreeMap::new();
            for (n, (step, which, len)) in steps.into_iter().enumerate() {
                match step {
                    0..=4 => {
                        let data = Bytes::from([&which.to_le_bytes()[..], &bytes(len)].concat());
                        model.insert(disks.pack(n as u64, &data).await, data);
                    }
                    5..=7 => {
                        if let Some(blob) = model.keys().nth(which as usize).copied() {
                            disks.drop_blob(blob).await;
                            model.remove(&blob);
                        }
                    }
                    8 => drop(disks.compact().await),
                    _ => disks = small_packs(disks.reopen()),
                }
            }
            disks.compact().await;
            let live: u64 = model.values().map(|data| packs::entry_bytes(data.len() as u64)).sum();
            assert!(disks.pack_bytes() <= 2 * live + 2 * (2 << 20), "{} bytes for {live}", disks.pack_bytes());
            let disks = disks.reopen();
            for (blob, data) in model {
                disks.assert_is(blob, &data).await;
            }
        });
    }
}

/// Bytes that a file takes on the disk, whatever its length.
fn taken(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).unwrap().blocks() * 512
}

/// An upload that finds room when it begins has it to its end; what it does not use, others can.
#[tokio::test]
async fn room_is_taken_beforehand_and_given_back() {
    let disks = Disks::start();
    let (length, sent) = (8 << 20, bytes(1 << 20));
    let mut writer = disks.store.begin(id(1)).await.unwrap();
    writer.reserve(length).await.unwrap();
    assert!(taken(&disks.file(id(1))) >= length);
    assert_eq!(std::fs::metadata(disks.file(id(1))).unwrap().len(), 0);
    writer.write(0, vec![sent.clone()]).await.unwrap();
    let (record, outboard) = receiving(&sent);
    writer.commit(record, outboard).await.unwrap();
    assert!(taken(&disks.file(id(1))) >= length, "the next part finds its room");
    writer.write(sent.len() as u64, vec![bytes(5000)]).await.unwrap();
    writer.give_back(sent.len() as u64).await.unwrap();
    assert!(taken(&disks.file(id(1))) < 2 << 20);

    // A restart, and the next request takes it again; one that brings less than it said gives the rest back.
    drop(writer);
    let disks = disks.reopen();
    let mut claim = disks.store.claim(id(1)).await.unwrap().unwrap();
    claim.writer.reserve(length).await.unwrap();
    assert!(taken(&disks.file(id(1))) >= length);
    let data = bytes(2 << 20);
    claim.writer.write(1 << 20, vec![data.slice(1 << 20..)]).await.unwrap();
    let (blob, outboard) = blob_of(&data, ALICE);
    let cvs = outboard.cvs[(1 << 20) / (64 << 10) * 32..].to_vec();
    let outboard = OutboardPart { first_group: (1 << 20) / (64 << 10), cvs };
    claim.writer.complete(blob, None, Vec::new(), outboard).await.unwrap();
    assert!(taken(&disks.file(id(1))) < 3 << 20);
    disks.assert_is(blob.id, &data).await;
}

/// Before a byte is taken, and without a trace.
#[tokio::test]
async fn who_announces_more_than_there_is_room_for_is_refused() {
    let disks = Disks::start();
    let stat = rustix::fs::statvfs(disks.directory.path()).unwrap();
    let too_much = stat.f_blocks * stat.f_frsize;
    let mut writer = disks.store.begin(id(1)).await.unwrap();
    assert_eq!(writer.reserve(too_much).await.unwrap_err().kind(), StoreErrorKind::Full);
    assert!(!disks.file(id(1)).exists());
    // A smaller one is taken all the same, and what is packed needs no room of its own.
    writer.reserve(2 << 20).await.unwrap();
    let mut small = disks.store.begin(id(2)).await.unwrap();
    small.reserve(1 << 20).await.unwrap();
    assert!(!disks.file(id(2)).exists());
}

/// A claim that was overtaken gives back nothing: the room is its successor's.
#[tokio::test]
async fn a_stale_claim_gives_no_room_back() {
    let disks = Disks::start();
    disks.unfinished(id(1), &bytes(1000)).await;
    let mut old = disks.store.claim(id(1)).await.unwrap().unwrap().writer;
    let mut new = disks.store.claim(id(1)).await.unwrap().unwrap().writer;
    new.reserve(8 << 20).await.unwrap();
    assert_eq!(old.give_back(1000).await.unwrap_err().kind(), StoreErrorKind::Stale);
    assert!(taken(&disks.file(id(1))) >= 8 << 20);
}
