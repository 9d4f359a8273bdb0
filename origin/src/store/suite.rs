//! What every engine must do: the promises of `store.rs` as tests.
//!
//! `engine_suite!(Harness)` in an engine's own tests makes a test of each function here.

use bytes::Bytes;
use futures_util::stream::TryStreamExt as _;
use waxwing_protocol::blob::{BlobHasher, GROUP_BYTES, HasherState, Outboard};
use waxwing_protocol::range::ByteRange;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use super::{
    BlobReader, BlobStore, Claim, Event, NewBlob, OutboardPart, OwnedPage, StoreError, StoreErrorKind, UploadRecord,
    UploadState, UploadWriter,
};

/// An engine under test.
pub(crate) trait Harness: Sized {
    /// Whether a few bytes that were written and never committed are anywhere but in memory.
    const KEEPS_UNCOMMITTED: bool = true;
    /// An empty store.
    fn start() -> Self;
    /// The same; `None` when what it stores to is not installed, which it says.
    fn try_start() -> Option<Self> {
        Some(Self::start())
    }
    /// The store.
    fn store(&self) -> &dyn BlobStore;
    /// The same store after its process went and came back. No claim and no open blob may be left.
    fn reopen(self) -> Self;
    /// Who owns a blob.
    fn owners(&self, blob: BlobId) -> Vec<OwnerTag>;
}

macro_rules! engine_suite {
    ($harness:ty) => {
        $crate::store::suite::engine_suite!($harness:
            nothing_is_there_before_the_first_commit,
            what_was_committed_comes_back,
            bytes_after_the_last_commit_are_not_there,
            a_stale_claim_changes_nothing,
            a_claim_fences_a_claim_that_never_committed,
            a_completed_upload_is_a_blob,
            an_empty_blob_is_a_blob,
            bytes_may_come_with_the_end,
            the_same_bytes_twice_are_one_blob_of_two_owners,
            the_same_bytes_at_once_are_one_blob,
            a_blob_outlives_the_upload_it_came_with,
            a_removed_upload_leaves_nothing,
            uploads_are_listed_in_pages,
            collecting_spares_what_a_record_names,
            commits_of_many_uploads_run_side_by_side,
            a_blob_goes_with_its_last_owner,
            a_blob_is_removed_whoever_has_it,
            an_owners_blobs_are_found_page_by_page,
            what_is_not_kept_goes_in_time,
            a_quota_holds_what_is_under_way_and_what_is_there,
            what_an_operator_sets_wins_over_grants,
            purges_are_told_in_order_and_forgotten_in_time,
            what_owners_hold_is_counted_right,
            what_is_announced_is_an_event_until_it_is_settled,
        );
    };
    ($harness:ty: $($test:ident,)+) => {
        $(#[tokio::test]
        async fn $test() {
            if let Some(engine) = <$harness as $crate::store::suite::Harness>::try_start() {
                $crate::store::suite::$test(engine).await;
            }
        })+
    };
}
pub(crate) use engine_suite;

pub(crate) const ALICE: OwnerTag = OwnerTag::from_bytes([1; 16]);
pub(crate) const BOB: OwnerTag = OwnerTag::from_bytes([2; 16]);
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

pub(crate) fn id(n: u8) -> UploadId {
    UploadId::from_bytes([n; 16])
}

pub(crate) fn bytes(len: u64) -> Bytes {
    (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// An unfinished upload of `ALICE`'s with these bytes committed.
pub(crate) fn receiving(bytes: &[u8]) -> (UploadRecord, OutboardPart) {
    let mut outboard = OutboardPart::default();
    let mut hasher = BlobHasher::new();
    hasher.update(bytes, |cv| outboard.cvs.extend_from_slice(cv));
    let record = UploadRecord {
        owner: ALICE,
        quota_bytes: u64::MAX,
        length: None,
        offset: bytes.len() as u64,
        epoch: 0,
        created: NOW,
        expires: NOW,
        acknowledged: true,
        expected: None,
        metadata: None,
        concat: None,
        digest: None,
        state: UploadState::Receiving { hash: hasher.state().clone() },
    };
    (record, outboard)
}

/// The blob these bytes make, and its outboard.
pub(crate) fn blob_of(bytes: &[u8], owner: OwnerTag) -> (NewBlob, OutboardPart) {
    let mut outboard = OutboardPart::default();
    let mut hasher = BlobHasher::new();
    hasher.update(bytes, |cv| outboard.cvs.extend_from_slice(cv));
    let id = hasher.finish(|cv| outboard.cvs.extend_from_slice(cv));
    if bytes.len() as u64 <= GROUP_BYTES {
        outboard.cvs.clear();
    }
    let (blob_bytes, quota_bytes) = (bytes.len() as u64, u64::MAX);
    (NewBlob { id, blob_bytes, owner, quota_bytes, stored_at: NOW, announced: false }, outboard)
}

/// Makes `bytes` a blob of `owner`'s through upload `upload`.
pub(crate) async fn put(store: &dyn BlobStore, upload: UploadId, bytes: &Bytes, owner: OwnerTag) -> BlobId {
    let mut writer = store.begin(upload).await.unwrap();
    if !bytes.is_empty() {
        writer.write(0, vec![bytes.clone()]).await.unwrap();
    }
    let (blob, outboard) = blob_of(bytes, owner);
    let (mut record, _) = receiving(bytes);
    record.owner = owner;
    record.state = UploadState::Complete { blob: blob.id };
    writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap();
    blob.id
}

pub(crate) async fn read(blob: &dyn BlobReader, start: u64, end: u64) -> Vec<u8> {
    blob.read(ByteRange { start, end }).try_collect::<Vec<_>>().await.unwrap().concat()
}

async fn claimed(store: &dyn BlobStore, upload: UploadId) -> (Box<dyn UploadWriter>, UploadRecord) {
    let Claim { writer, record } = store.claim(upload).await.unwrap().expect("the upload is there");
    (writer, record)
}

pub(crate) async fn nothing_is_there_before_the_first_commit(engine: impl Harness) {
    let mut writer = engine.store().begin(id(1)).await.unwrap();
    writer.write(0, vec![bytes(10)]).await.unwrap();
    assert!(engine.store().upload(id(1)).await.unwrap().is_none());
    assert!(engine.store().claim(id(1)).await.unwrap().is_none());
    assert!(engine.store().claim(id(2)).await.unwrap().is_none());
    assert!(engine.store().blob(BlobId::from_bytes([0; 32])).await.unwrap().is_none());
}

pub(crate) async fn what_was_committed_comes_back(engine: impl Harness) {
    let data = bytes(2 * GROUP_BYTES + 77);
    let (record, outboard) = receiving(&data);
    let mut writer = engine.store().begin(id(1)).await.unwrap();
    writer.write(0, vec![data.slice(..100), data.slice(100..)]).await.unwrap();
    writer.commit(record.clone(), outboard).await.unwrap();
    drop(writer);

    let engine = engine.reopen();
    let (mut writer, found) = claimed(engine.store(), id(1)).await;
    assert_eq!(UploadRecord { epoch: 0, ..found }, UploadRecord { epoch: 0, ..record });
    assert_eq!(writer.read(2 * GROUP_BYTES, 77).await.unwrap(), data[2 * GROUP_BYTES as usize..]);
}

pub(crate) async fn bytes_after_the_last_commit_are_not_there(engine: impl Harness) {
    let data = bytes(100);
    let (record, outboard) = receiving(&data[..60]);
    let mut writer = engine.store().begin(id(1)).await.unwrap();
    writer.write(0, vec![data.slice(..60)]).await.unwrap();
    writer.commit(record, outboard).await.unwrap();
    writer.write(60, vec![data.slice(60..)]).await.unwrap();
    drop(writer);

    let engine = engine.reopen();
    let (mut writer, found) = claimed(engine.store(), id(1)).await;
    assert_eq!(found.offset, 60);
    assert_eq!(writer.read(0, 60).await.unwrap(), data[..60]);
    assert!(writer.read(0, 61).await.is_err());
}

/// The heart of takeover: what an older request still does cannot harm what a newer one acknowledged.
pub(crate) async fn a_stale_claim_changes_nothing(engine: impl Harness) {
    let data = bytes(100);
    let (record, outboard) = receiving(&data);
    let mut old = engine.store().begin(id(1)).await.unwrap();
    old.write(0, vec![data.clone()]).await.unwrap();
    old.commit(record.clone(), outboard.clone()).await.unwrap();

    let (mut new, _) = claimed(engine.store(), id(1)).await;
    let (blob, _) = blob_of(b"forged", BOB);
    assert_eq!(old.write(0, vec![bytes(3)]).await.unwrap_err().kind(), StoreErrorKind::Stale);
    assert_eq!(old.commit(record.clone(), outboard.clone()).await.unwrap_err().kind(), StoreErrorKind::Stale);
    let completed = old.complete(blob, None, Vec::new(), OutboardPart::default()).await;
    assert_eq!(completed.unwrap_err().kind(), StoreErrorKind::Stale);
    assert_eq!(new.read(0, 100).await.unwrap(), data);
    assert!(engine.store().blob(blob.id).await.unwrap().is_none());
    new.commit(record, outboard).await.unwrap();
    let stored = engine.store().upload(id(1)).await.unwrap().unwrap();
    drop((old, new));

    // Also across a restart the numbers of claims grow.
    let engine = engine.reopen();
    let (mut newest, found) = claimed(engine.store(), id(1)).await;
    assert_eq!(found.epoch, stored.epoch);
    newest.commit(found, OutboardPart::default()).await.unwrap();
    assert!(engine.store().upload(id(1)).await.unwrap().unwrap().epoch > stored.epoch);
}

pub(crate) async fn a_claim_fences_a_claim_that_never_committed(engine: impl Harness) {
    let (record, outboard) = receiving(&[]);
    let mut first = engine.store().begin(id(1)).await.unwrap();
    first.commit(record.clone(), outboard.clone()).await.unwrap();
    let (mut second, _) = claimed(engine.store(), id(1)).await;
    let (mut third, _) = claimed(engine.store(), id(1)).await;
    assert_eq!(second.write(0, vec![bytes(5)]).await.unwrap_err().kind(), StoreErrorKind::Stale);
    engine.store().remove(id(1)).await.unwrap();
    assert_eq!(third.commit(record, outboard).await.unwrap_err().kind(), StoreErrorKind::Stale);
    assert!(engine.store().upload(id(1)).await.unwrap().is_none());
}

pub(crate) async fn a_completed_upload_is_a_blob(engine: impl Harness) {
    let data = bytes(5 * GROUP_BYTES + 1);
    let half = data.slice(..3 * GROUP_BYTES as usize);
    let (record, part) = receiving(&half);
    let mut writer = engine.store().begin(id(1)).await.unwrap();
    writer.write(0, vec![half.clone()]).await.unwrap();
    writer.commit(record.clone(), part).await.unwrap();
    writer.write(half.len() as u64, vec![data.slice(half.len()..)]).await.unwrap();
    let (blob, mut outboard) = blob_of(&data, ALICE);
    let outboard = OutboardPart { first_group: 3, cvs: outboard.cvs.split_off(3 * 32) };
    let state = UploadState::Complete { blob: blob.id };
    let record = UploadRecord { offset: data.len() as u64, state, ..record };
    writer.complete(blob, Some(record.clone()), Vec::new(), outboard).await.unwrap();
    drop(writer);

    let engine = engine.reopen();
    let found = engine.store().upload(id(1)).await.unwrap().unwrap();
    assert_eq!(UploadRecord { epoch: 0, ..found }, UploadRecord { epoch: 0, ..record });
    let reader = engine.store().blob(blob.id).await.unwrap().expect("the blob is there");
    assert_eq!(reader.blob_bytes(), data.len() as u64);
    for (start, end) in [(0, data.len() as u64), (0, 1), (GROUP_BYTES - 1, GROUP_BYTES + 1), (300_000, 300_007)] {
        assert_eq!(read(&*reader, start, end).await, data[start as usize..end as usize]);
    }
    let outboard = reader.outboard().try_collect::<Vec<_>>().await.unwrap().concat();
    Outboard::verify(blob.id, reader.blob_bytes(), &outboard).expect("the parts make the blob's outboard");
    assert_eq!(engine.owners(blob.id), [ALICE]);
}

/// Small and large, all at the end or only the last of them: where an engine puts them is its own business.
pub(crate) async fn bytes_may_come_with_the_end(engine: impl Harness) {
    let small = 3 * GROUP_BYTES + 77;
    let large = (1 << 20) + GROUP_BYTES + 1;
    let shapes = [(small, 0), (small, 2 * GROUP_BYTES), (small, small), (large, 0), (large, 2 * GROUP_BYTES)];
    let mut blobs = Vec::new();
    for (n, (len, early)) in shapes.into_iter().enumerate() {
        // Each has bytes of its own.
        let data: Bytes = bytes(len).iter().map(|byte| byte ^ n as u8).collect();
        let (first, tail) = (data.slice(..early as usize), data.slice(early as usize..));
        let (record, part) = receiving(&first);
        let first_group = (part.cvs.len() / 32) as u64;
        let mut writer = engine.store().begin(id(n as u8)).await.unwrap();
        if early > 0 {
            writer.write(0, vec![first]).await.unwrap();
            writer.commit(record.clone(), part).await.unwrap();
        }
        let (blob, mut outboard) = blob_of(&data, ALICE);
        let outboard = OutboardPart { first_group, cvs: outboard.cvs.split_off(first_group as usize * 32) };
        let record = UploadRecord { offset: len, state: UploadState::Complete { blob: blob.id }, ..record };
        let tail = if tail.is_empty() { Vec::new() } else { vec![tail.slice(..10), tail.slice(10..)] };
        writer.complete(blob, Some(record), tail, outboard).await.unwrap();
        blobs.push((blob, data));
    }
    let engine = engine.reopen();
    assert_eq!(engine.store().collect(Timestamp::from_millis(u64::MAX)).await.unwrap(), 0);
    for (n, (blob, data)) in blobs.into_iter().enumerate() {
        engine.store().remove(id(n as u8)).await.unwrap();
        let reader = engine.store().blob(blob.id).await.unwrap().unwrap();
        assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
        assert_eq!(read(&*reader, GROUP_BYTES - 1, GROUP_BYTES + 1).await, data[GROUP_BYTES as usize - 1..][..2]);
        let outboard = reader.outboard().try_collect::<Vec<_>>().await.unwrap().concat();
        assert!(Outboard::verify(blob.id, blob.blob_bytes, &outboard).is_ok());
    }
}

pub(crate) async fn an_empty_blob_is_a_blob(engine: impl Harness) {
    let blob = put(engine.store(), id(1), &Bytes::new(), ALICE).await;
    let engine = engine.reopen();
    let reader = engine.store().blob(blob).await.unwrap().unwrap();
    assert_eq!(reader.blob_bytes(), 0);
    assert!(reader.outboard().try_collect::<Vec<_>>().await.unwrap().is_empty());
}

pub(crate) async fn the_same_bytes_twice_are_one_blob_of_two_owners(engine: impl Harness) {
    let data = bytes(3 * GROUP_BYTES);
    let blob = put(engine.store(), id(1), &data, ALICE).await;
    assert_eq!(put(engine.store(), id(2), &data, BOB).await, blob);
    assert_eq!(put(engine.store(), id(3), &data, BOB).await, blob);
    assert_eq!(engine.owners(blob), [ALICE, BOB]);
    // The second's bytes are gone, and with them nothing of the blob.
    engine.store().remove(id(2)).await.unwrap();
    let reader = engine.store().blob(blob).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
    let outboard = reader.outboard().try_collect::<Vec<_>>().await.unwrap().concat();
    assert!(Outboard::verify(blob, reader.blob_bytes(), &outboard).is_ok());
}

pub(crate) async fn the_same_bytes_at_once_are_one_blob(engine: impl Harness) {
    let data = bytes(GROUP_BYTES + 5);
    let puts = (0..16).map(|n| {
        let (store, data) = (engine.store(), data.clone());
        async move { put(store, id(n), &data, OwnerTag::from_bytes([n; 16])).await }
    });
    let blobs = futures_util::future::join_all(puts).await;
    assert!(blobs.iter().all(|blob| *blob == blobs[0]));
    assert_eq!(engine.owners(blobs[0]).len(), 16);
    for n in 0..16 {
        engine.store().remove(id(n)).await.unwrap();
    }
    let engine = engine.reopen();
    let reader = engine.store().blob(blobs[0]).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
}

pub(crate) async fn a_blob_outlives_the_upload_it_came_with(engine: impl Harness) {
    let data = bytes(2 * GROUP_BYTES);
    let blob = put(engine.store(), id(1), &data, ALICE).await;
    engine.store().remove(id(1)).await.unwrap();
    engine.store().remove(id(1)).await.unwrap();
    assert!(engine.store().upload(id(1)).await.unwrap().is_none());
    let engine = engine.reopen();
    let reader = engine.store().blob(blob).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
}

pub(crate) async fn a_removed_upload_leaves_nothing(engine: impl Harness) {
    let data = bytes(GROUP_BYTES);
    let (record, outboard) = receiving(&data);
    let mut writer = engine.store().begin(id(1)).await.unwrap();
    writer.write(0, vec![data.clone()]).await.unwrap();
    writer.commit(record, outboard).await.unwrap();
    engine.store().remove(id(1)).await.unwrap();
    engine.store().remove(id(1)).await.unwrap();
    drop(writer);
    let engine = engine.reopen();
    assert!(engine.store().upload(id(1)).await.unwrap().is_none());
    assert_eq!(engine.store().collect(Timestamp::from_millis(u64::MAX)).await.unwrap(), 0);
}

pub(crate) async fn uploads_are_listed_in_pages(engine: impl Harness) {
    for n in [3, 1, 2, 255] {
        let (record, outboard) = receiving(&[]);
        engine.store().begin(id(n)).await.unwrap().commit(record, outboard).await.unwrap();
    }
    let page = |after, limit| {
        let listed = engine.store().uploads(after, limit);
        async move { listed.await.unwrap().into_iter().map(|(id, _)| id.as_bytes()[0]).collect::<Vec<_>>() }
    };
    assert_eq!(page(None, 2).await, [1, 2]);
    assert_eq!(page(Some(id(2)), 2).await, [3, 255]);
    assert_eq!(page(Some(id(255)), 2).await, [0; 0]);
}

pub(crate) async fn collecting_spares_what_a_record_names<H: Harness>(engine: H) {
    let data = bytes(10);
    let blob = put(engine.store(), id(1), &data, ALICE).await;
    let (record, outboard) = receiving(&data);
    let mut unfinished = engine.store().begin(id(2)).await.unwrap();
    unfinished.write(0, vec![data.clone()]).await.unwrap();
    unfinished.commit(record, outboard).await.unwrap();
    let mut in_progress = engine.store().begin(id(3)).await.unwrap();
    in_progress.write(0, vec![data.clone()]).await.unwrap();
    let mut crashed = engine.store().begin(id(4)).await.unwrap();
    crashed.write(0, vec![data.clone()]).await.unwrap();
    drop(crashed);

    let far = Timestamp::from_millis(u64::MAX);
    assert_eq!(engine.store().collect(Timestamp::default()).await.unwrap(), 0, "nothing is that old");
    let left = u64::from(H::KEEPS_UNCOMMITTED);
    assert_eq!(engine.store().leftovers(far).await.unwrap(), left);
    assert_eq!(engine.store().collect(far).await.unwrap(), left);
    assert_eq!(engine.store().leftovers(far).await.unwrap(), 0);
    let (done, part) = blob_of(&data, BOB);
    in_progress.complete(done, None, Vec::new(), part).await.unwrap();
    drop((unfinished, in_progress));
    engine.store().remove(id(1)).await.unwrap();

    let engine = engine.reopen();
    assert_eq!(engine.store().collect(far).await.unwrap(), 0);
    let reader = engine.store().blob(blob).await.unwrap().unwrap();
    assert_eq!(read(&*reader, 0, 10).await, data);
    let (mut writer, _) = claimed(engine.store(), id(2)).await;
    assert_eq!(writer.read(0, 10).await.unwrap(), data);
}

pub(crate) async fn commits_of_many_uploads_run_side_by_side(engine: impl Harness) {
    let data = bytes(1000);
    let commits = (0..64).map(|n| {
        let (store, data) = (engine.store(), data.clone());
        async move {
            let mut writer = store.begin(id(n)).await.unwrap();
            for offset in [300, 700, 1000] {
                let (record, outboard) = receiving(&data[..offset]);
                writer.write(0, vec![data.slice(..offset)]).await.unwrap();
                writer.commit(record, outboard).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(commits).await;
    let engine = engine.reopen();
    for n in 0..64 {
        let (mut writer, record) = claimed(engine.store(), id(n)).await;
        assert_eq!(record.offset, 1000);
        assert_eq!(writer.read(0, 1000).await.unwrap(), data);
        let UploadState::Receiving { hash } = record.state else { panic!("not complete yet") };
        assert_eq!(hash, HasherState::default());
    }
}

pub(crate) async fn a_blob_goes_with_its_last_owner(engine: impl Harness) {
    for (n, data) in [bytes(3 * GROUP_BYTES), bytes(2 << 20), Bytes::new()].into_iter().enumerate() {
        let n = 10 * n as u8;
        let store = engine.store();
        let blob = put(store, id(n), &data, ALICE).await;
        put(store, id(n + 1), &data, BOB).await;
        assert_eq!(store.owned(blob, BOB).await.unwrap(), Some(data.len() as u64));
        assert!(store.disown(blob, BOB, NOW).await.unwrap());
        assert!(!store.disown(blob, BOB, NOW).await.unwrap());
        assert_eq!(store.owned(blob, BOB).await.unwrap(), None);
        assert_eq!(store.owned(blob, ALICE).await.unwrap(), Some(data.len() as u64));
        let reader = store.blob(blob).await.unwrap().expect("Alice has it still");
        assert!(store.disown(blob, ALICE, NOW).await.unwrap());
        assert!(store.blob(blob).await.unwrap().is_none());
        assert!(!store.keep(blob, ALICE, u64::MAX, NOW).await.unwrap());
        // Whoever is reading reads on.
        assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
        let last = store.purges(0, 100).await.unwrap().entries.pop().unwrap();
        assert_eq!((last.blob, last.at), (blob, NOW));
        // The same bytes again are the same blob again.
        assert_eq!(put(store, id(n + 2), &data, BOB).await, blob);
        let reader = store.blob(blob).await.unwrap().unwrap();
        assert_eq!(read(&*reader, 0, data.len() as u64).await, data);
    }
    // What went leaves nothing behind that a collection would have to find.
    let engine = engine.reopen();
    assert_eq!(engine.store().collect(Timestamp::MAX).await.unwrap(), 0);
    assert_eq!(engine.store().purges(0, 100).await.unwrap().entries.len(), 3);
}

pub(crate) async fn a_blob_is_removed_whoever_has_it(engine: impl Harness) {
    let data = bytes(2 << 20);
    let blob = put(engine.store(), id(1), &data, ALICE).await;
    put(engine.store(), id(2), &data, BOB).await;
    assert!(engine.store().remove_blob(blob, NOW).await.unwrap());
    assert!(!engine.store().remove_blob(blob, NOW).await.unwrap());
    let engine = engine.reopen();
    assert!(engine.store().blob(blob).await.unwrap().is_none());
    assert_eq!(engine.store().owners(None, 10).await.unwrap(), []);
    assert_eq!(engine.store().owned(blob, ALICE).await.unwrap(), None);
    assert_eq!(engine.store().purges(0, 10).await.unwrap().entries.len(), 1);
    // What it was uploaded with still tells what became of it.
    let record = engine.store().upload(id(1)).await.unwrap().unwrap();
    assert_eq!(record.state, UploadState::Complete { blob });
}

pub(crate) async fn an_owners_blobs_are_found_page_by_page(engine: impl Harness) {
    let store = engine.store();
    let mut expected = Vec::new();
    for n in 0..9_u8 {
        let data = bytes(100 + u64::from(n));
        let owner = if n % 3 == 0 { BOB } else { ALICE };
        let blob = put(store, id(n + 1), &data, owner).await;
        if n == 3 {
            // Two have it: it is told once.
            put(store, id(100), &data, ALICE).await;
        }
        if owner == ALICE || n == 3 {
            expected.push(blob);
        }
    }
    expected.sort_unstable_by_key(|blob| *blob.as_bytes());
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = store.blobs_of(ALICE, after, 2).await.unwrap();
        found.extend(page.blobs);
        pages += 1;
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    found.sort_unstable_by_key(|blob| *blob.as_bytes());
    assert_eq!(found, expected);
    assert!(pages >= 4, "{pages} pages of two records each");
    assert_eq!(store.blobs_of(ALICE, None, 1000).await.unwrap().last, None, "one page has them all");
    for blob in &expected {
        assert!(store.disown(*blob, ALICE, NOW).await.unwrap());
    }
    assert_eq!(store.blobs_of(ALICE, None, 1000).await.unwrap(), OwnedPage::default());
    assert_eq!(store.blobs_of(BOB, None, 1000).await.unwrap().blobs.len(), 3);
    assert_eq!(store.purges(0, 100).await.unwrap().entries.len(), expected.len() - 1, "Bob has one of them still");
}

pub(crate) async fn what_is_not_kept_goes_in_time(engine: impl Harness) {
    let store = engine.store();
    let later = |seconds| NOW.plus(std::time::Duration::from_secs(seconds));
    let kept = put(store, id(1), &bytes(100), ALICE).await;
    let left = put(store, id(2), &bytes(200), ALICE).await;
    assert!(store.keep(kept, BOB, u64::MAX, later(5)).await.unwrap());
    assert!(store.keep(kept, ALICE, u64::MAX, later(10)).await.unwrap());
    // A clock that went back shortens nothing.
    assert!(store.keep(kept, ALICE, u64::MAX, NOW).await.unwrap());
    assert_eq!(store.expire_owners(NOW.minus(std::time::Duration::from_millis(1)), 10, NOW).await.unwrap(), 0);
    assert_eq!(store.due_owners(later(4)).await.unwrap(), 1, "what would end is told beforehand");
    assert_eq!(store.expire_owners(later(4), 10, later(4)).await.unwrap(), 1);
    assert!(store.blob(left).await.unwrap().is_none());
    assert_eq!(engine.owners(kept), [ALICE, BOB]);
    assert_eq!(store.expire_owners(later(5), 10, later(5)).await.unwrap(), 1);
    assert_eq!(engine.owners(kept), [ALICE]);
    let engine = engine.reopen();
    assert_eq!(engine.store().expire_owners(later(10), 10, later(10)).await.unwrap(), 1);
    assert!(engine.store().blob(kept).await.unwrap().is_none());
    assert_eq!(engine.store().owners(None, 10).await.unwrap(), []);
}

pub(crate) async fn a_quota_holds_what_is_under_way_and_what_is_there(engine: impl Harness) {
    let store = engine.store();
    let record = |length, quota_bytes| {
        let (record, outboard) = receiving(&[]);
        (UploadRecord { length: Some(length), quota_bytes, ..record }, outboard)
    };
    let refused = |error: StoreError| assert_eq!(error.kind(), StoreErrorKind::Quota);
    // 60 of 100 are reserved, so 50 more are too many, and 40 are not.
    let mut first = store.begin(id(1)).await.unwrap();
    let (reserved, outboard) = record(60, 100);
    first.commit(reserved.clone(), outboard.clone()).await.unwrap();
    let mut second = store.begin(id(2)).await.unwrap();
    refused(second.commit(record(50, 100).0, outboard.clone()).await.unwrap_err());
    assert!(store.upload(id(2)).await.unwrap().is_none());
    second.commit(record(40, 100).0, outboard.clone()).await.unwrap();
    assert_eq!(store.used(ALICE).await.unwrap(), 100);
    // What was reserved can be used although the quota is smaller by now.
    let data = bytes(60);
    first.write(0, vec![data.clone()]).await.unwrap();
    let (blob, part) = blob_of(&data, ALICE);
    let done = UploadRecord { offset: 60, state: UploadState::Complete { blob: blob.id }, ..reserved };
    let blob = NewBlob { quota_bytes: 1, ..blob };
    first.complete(blob, Some(done), Vec::new(), part).await.unwrap();
    assert_eq!(store.used(ALICE).await.unwrap(), 100);
    // The same again costs nothing, and gives back what was reserved for it.
    store.remove(id(2)).await.unwrap();
    assert_eq!(store.used(ALICE).await.unwrap(), 60);
    put(store, id(3), &data, ALICE).await;
    assert_eq!(store.used(ALICE).await.unwrap(), 60);
    // A blob in one request and one that is kept are counted as any.
    let (other, part) = blob_of(&bytes(50), ALICE);
    let other = NewBlob { quota_bytes: 100, ..other };
    let mut whole = store.begin(id(4)).await.unwrap();
    refused(whole.complete(other, None, vec![bytes(50)], part).await.unwrap_err());
    assert!(store.blob(other.id).await.unwrap().is_none());
    let bobs = put(store, id(5), &bytes(70), BOB).await;
    refused(store.keep(bobs, ALICE, 100, NOW).await.unwrap_err());
    assert_eq!(engine.owners(bobs), [BOB]);
    assert!(store.keep(bobs, ALICE, 130, NOW).await.unwrap());
    assert!(store.keep(bobs, ALICE, 1, NOW).await.unwrap(), "she has it already");
    drop((first, second, whole));
    // Less is always allowed.
    assert!(store.disown(blob.id, ALICE, NOW).await.unwrap());
    let engine = engine.reopen();
    assert_eq!(engine.store().used(ALICE).await.unwrap(), 70);
    assert_eq!(engine.store().owners(None, 10).await.unwrap(), [(ALICE, 70), (BOB, 70)]);
    assert_eq!(engine.store().owners(Some(ALICE), 10).await.unwrap(), [(BOB, 70)]);
    assert_eq!(engine.store().owners(None, 1).await.unwrap(), [(ALICE, 70)]);
}

pub(crate) async fn what_an_operator_sets_wins_over_grants(engine: impl Harness) {
    let store = engine.store();
    let first = put(store, id(1), &bytes(100), ALICE).await;
    let second = put(store, id(2), &bytes(60), BOB).await;
    assert_eq!((store.quota(ALICE).await.unwrap(), store.room(ALICE, 500).await.unwrap()), (None, 400));

    // Less than grants say: what is there stays, nothing comes.
    store.set_quota(ALICE, Some(40)).await.unwrap();
    assert_eq!((store.quota(ALICE).await.unwrap(), store.room(ALICE, 500).await.unwrap()), (Some(40), 0));
    let refused = store.keep(second, ALICE, u64::MAX, NOW).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Quota);
    assert!(store.keep(first, ALICE, u64::MAX, NOW).await.unwrap(), "what she has costs nothing");
    // More than grants say; and nobody else is meant.
    store.set_quota(ALICE, Some(160)).await.unwrap();
    let engine = engine.reopen();
    let store = engine.store();
    assert!(store.keep(second, ALICE, 0, NOW).await.unwrap());
    assert_eq!(store.keep(first, BOB, 0, NOW).await.unwrap_err().kind(), StoreErrorKind::Quota);

    // Set for somebody who holds nothing, it holds as well, and grants say it again afterwards.
    assert!(store.disown(first, ALICE, NOW).await.unwrap() && store.disown(second, ALICE, NOW).await.unwrap());
    assert_eq!(store.quota(ALICE).await.unwrap(), Some(160));
    store.set_quota(ALICE, None).await.unwrap();
    assert_eq!(store.quota(ALICE).await.unwrap(), None);
    assert_eq!(store.keep(second, ALICE, 0, NOW).await.unwrap_err().kind(), StoreErrorKind::Quota);
}

pub(crate) async fn purges_are_told_in_order_and_forgotten_in_time(engine: impl Harness) {
    let store = engine.store();
    let at = |n: u8| NOW.plus(std::time::Duration::from_secs(n.into()));
    let log = store.purges(0, 10).await.unwrap();
    assert_eq!((log.oldest, log.next, log.entries.len()), (1, 1, 0));
    let mut blobs = Vec::new();
    for n in 0..5 {
        let blob = put(store, id(n), &bytes(1 + u64::from(n)), ALICE).await;
        assert!(store.disown(blob, ALICE, at(n)).await.unwrap());
        blobs.push(blob);
    }
    let log = store.purges(2, 2).await.unwrap();
    let told: Vec<_> = log.entries.iter().map(|purge| (purge.number, purge.blob, purge.at)).collect();
    assert_eq!(told, [(3, blobs[2], at(2)), (4, blobs[3], at(3))]);
    assert_eq!((log.oldest, log.next), (1, 6));
    assert_eq!(store.forget_purges(at(2), 10).await.unwrap(), 2);
    assert_eq!(store.purges(0, 10).await.unwrap().oldest, 3);
    // The newest stays, however old: without it numbers would begin anew.
    assert_eq!(store.forget_purges(Timestamp::MAX, 10).await.unwrap(), 2);
    let engine = engine.reopen();
    assert_eq!(engine.store().forget_purges(Timestamp::MAX, 10).await.unwrap(), 0);
    let log = engine.store().purges(0, 10).await.unwrap();
    assert_eq!((log.oldest, log.next, log.entries.len()), (5, 6, 1));
    assert!(engine.store().purges(u64::MAX, 10).await.unwrap().entries.is_empty());
}

pub(crate) async fn what_is_announced_is_an_event_until_it_is_settled(engine: impl Harness) {
    let store = engine.store();
    let complete = async |store: &dyn BlobStore, n: u8, second: u64, announced: bool, record: bool| {
        let data = bytes(10);
        let (blob, outboard) = blob_of(&data, ALICE);
        let stored_at = NOW.plus(std::time::Duration::from_secs(second));
        let blob = NewBlob { announced, stored_at, ..blob };
        let (receiving, _) = receiving(&[]);
        let record = record.then_some(UploadRecord { state: UploadState::Complete { blob: blob.id }, ..receiving });
        store.begin(id(n)).await.unwrap().complete(blob, record, vec![data], outboard).await.unwrap();
        Event { upload: id(n), at: stored_at, blob: blob.id, blob_bytes: 10, owner: ALICE }
    };
    let later = complete(store, 1, 5, true, true).await;
    let earlier = complete(store, 2, 3, true, false).await;
    complete(store, 3, 1, false, true).await;
    assert_eq!(store.events(10).await.unwrap(), [earlier, later]);
    assert_eq!(store.events(1).await.unwrap(), [earlier]);
    // The upload may be forgotten before anybody was told.
    store.remove(later.upload).await.unwrap();
    store.settle(earlier).await.unwrap();
    store.settle(earlier).await.unwrap();
    let engine = engine.reopen();
    assert_eq!(engine.store().events(10).await.unwrap(), [later]);
}

/// Whatever is done in whatever order, an owner's count is what a count of everything gives.
pub(crate) async fn what_owners_hold_is_counted_right(mut engine: impl Harness) {
    use std::collections::{BTreeMap, BTreeSet};
    let owner = |n: u64| OwnerTag::from_bytes([n as u8; 16]);
    let quota = 1000;
    // What each unfinished upload holds and whose it is, and who has which blob (named by its size).
    let mut held: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
    let mut has: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut dice = 0x9E37_79B9_7F4A_7C15_u64;
    let mut roll = |below: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % below
    };
    for step in 0..400 {
        let (upload, who, size) = (roll(8) as u8, roll(3), 1 + 100 * roll(6));
        let blob = blob_of(&bytes(size), ALICE).0.id;
        let count = |held: &BTreeMap<u8, (u64, u64)>, has: &BTreeSet<(u64, u64)>, who: u64| {
            let uploads: u64 = held.values().filter(|(owner, _)| *owner == who).map(|(_, bytes)| bytes).sum();
            uploads + has.iter().filter(|(owner, _)| *owner == who).map(|(_, bytes)| bytes).sum::<u64>()
        };
        let store = engine.store();
        match roll(7) {
            0 | 1 => {
                store.remove(id(upload)).await.unwrap();
                held.remove(&upload);
                let (record, outboard) = receiving(&[]);
                let record = UploadRecord { owner: owner(who), length: Some(size), quota_bytes: quota, ..record };
                let begun = store.begin(id(upload)).await.unwrap().commit(record, outboard).await;
                assert_eq!(begun.is_ok(), count(&held, &has, who) + size <= quota, "step {step}");
                if begun.is_ok() {
                    held.insert(upload, (who, size));
                }
            }
            2 | 3 => {
                let Some((who, size)) = held.remove(&upload) else { continue };
                let (mut writer, record) = claimed(store, id(upload)).await;
                let (new, outboard) = blob_of(&bytes(size), owner(who));
                let record = UploadRecord { offset: size, state: UploadState::Complete { blob: new.id }, ..record };
                let new = NewBlob { quota_bytes: quota, ..new };
                writer.complete(new, Some(record), vec![bytes(size)], outboard).await.unwrap();
                has.insert((who, size));
            }
            4 => {
                let was = store.disown(blob, owner(who), NOW).await.unwrap();
                assert_eq!(was, has.remove(&(who, size)), "step {step}");
            }
            5 => {
                let is_there = has.iter().any(|(_, known)| *known == size);
                let room = has.contains(&(who, size)) || count(&held, &has, who) + size <= quota;
                match store.keep(blob, owner(who), quota, NOW).await {
                    Ok(kept) => assert_eq!(kept, is_there, "step {step}"),
                    Err(error) => assert!(error.kind() == StoreErrorKind::Quota && !room, "step {step}: {error}"),
                }
                if is_there && room {
                    has.insert((who, size));
                }
            }
            _ if roll(4) == 0 => {
                let was = store.remove_blob(blob, NOW).await.unwrap();
                assert_eq!(was, has.iter().any(|(_, known)| *known == size), "step {step}");
                has.retain(|(_, known)| *known != size);
            }
            _ => engine = engine.reopen(),
        }
        for who in 0..3 {
            assert_eq!(engine.store().used(owner(who)).await.unwrap(), count(&held, &has, who), "step {step}");
        }
    }
}
