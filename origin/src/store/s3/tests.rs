//! The store on a real server. The promises all engines share are in `suite.rs`.

mod chaos;
mod ends;
mod file_server;
mod moments;
mod proofs;
mod proxy;
mod server;

use bytes::Bytes;
use futures_util::stream::TryStreamExt as _;
use waxwing_protocol::blob::{CV_BYTES, Outboard};
use waxwing_protocol::{BlobId, OwnerTag};

use self::server::{bucket, endpoint, settings, wait};
use super::objects::{Pointer, blob_key, decode, random_name};
use super::*;
use crate::store::suite::{ALICE, BOB, Harness, NOW, blob_of, bytes, engine_suite, id, read, receiving};
use crate::store::{NewBlob, OutboardPart, UploadState};

/// A store under a prefix of its own.
struct OnSeaweed {
    store: S3Store,
    settings: Settings,
}

impl OnSeaweed {
    fn open(settings: Settings) -> Self {
        let store = wait(S3Store::open(settings.clone())).unwrap();
        Self { store, settings }
    }
}

impl Harness for OnSeaweed {
    const KEEPS_UNCOMMITTED: bool = false;

    fn start() -> Self {
        Self::try_start().expect("SeaweedFS is installed")
    }

    fn try_start() -> Option<Self> {
        let prefix = format!("{}/", random_name().unwrap());
        Some(Self::open(settings(endpoint()?, &prefix)))
    }

    fn store(&self) -> &dyn BlobStore {
        &self.store
    }

    fn reopen(self) -> Self {
        let Self { store, settings } = self;
        drop(store);
        Self::open(settings)
    }

    fn owners(&self, blob: BlobId) -> Vec<OwnerTag> {
        owners_of(&self.settings, blob)
    }
}

/// Who has a blob, by its pointer.
fn owners_of(settings: &Settings, blob: BlobId) -> Vec<OwnerTag> {
    let key = blob_key(blob);
    let found = wait(bucket(settings).get(&key)).unwrap().unwrap();
    let pointer: Pointer = decode(&key, &found.bytes).unwrap();
    pointer.owners.into_keys().collect()
}

engine_suite!(OnSeaweed);

const MIB: u64 = 1 << 20;

impl OnSeaweed {
    /// A store with parts of 5 MiB, the smallest there are, and memory for `parts` of them.
    fn with_parts(parts: usize) -> Option<Self> {
        let prefix = format!("{}/", random_name().unwrap());
        let mut settings = settings(endpoint()?, &prefix);
        settings.config.part_bytes = 5 * MIB;
        settings.blob_bytes_max = 1 << 30;
        settings.config.memory_bytes = parts * 5 * MIB as usize;
        Some(Self::open(settings))
    }

    /// Another origin on the same bucket.
    fn other_node(&self) -> Self {
        Self::open(self.settings.clone())
    }

    /// Keys that are there, but for those of ledgers, purges and turns.
    fn keys(&self) -> Vec<String> {
        let bucket = bucket(&self.settings);
        let mut keys = Vec::new();
        for listed in wait(bucket.list("", None, PAGE)).unwrap() {
            if !["owners/", "purges/", "turns/"].iter().any(|under| listed.key.starts_with(under)) {
                keys.push(listed.key.split(['/', '.']).next().unwrap().to_owned());
            }
        }
        keys.extend(wait(bucket.multiparts("")).unwrap().into_iter().map(|upload| format!("multipart {}", upload.key)));
        keys
    }
}

/// Takes in `data` from byte `at` on, in batches as the engine does.
async fn take_in(writer: &mut dyn UploadWriter, data: &Bytes, at: u64, end: u64) -> Result<(), StoreError> {
    let mut at = at as usize;
    while at < end as usize {
        let next = (at + MIB as usize).min(end as usize);
        writer.write(at as u64, vec![data.slice(at..next)]).await?;
        at = next;
    }
    Ok(())
}

/// The record of an upload with the first `offset` bytes of `data`, and the outboard's values after those of `from`.
fn progress(data: &Bytes, from: u64, offset: u64) -> (UploadRecord, OutboardPart) {
    let (record, mut outboard) = receiving(&data[..offset as usize]);
    let first_group = (receiving(&data[..from as usize]).1.cvs.len() / CV_BYTES) as u64;
    outboard.cvs.drain(..first_group as usize * CV_BYTES);
    outboard.first_group = first_group;
    (record, outboard)
}

/// What completing an upload of `data` takes whose first `from` bytes were committed.
fn ending(data: &Bytes, from: u64, owner: OwnerTag) -> (NewBlob, UploadRecord, OutboardPart) {
    let (blob, mut outboard) = blob_of(data, owner);
    outboard.first_group = (receiving(&data[..from as usize]).1.cvs.len() / CV_BYTES) as u64;
    outboard.cvs.drain(..outboard.first_group as usize * CV_BYTES);
    let (record, _) = receiving(&[]);
    let state = UploadState::Complete { blob: blob.id };
    (
        blob,
        UploadRecord { owner, offset: data.len() as u64, length: Some(data.len() as u64), state, ..record },
        outboard,
    )
}

/// Uploads `data` in one go.
async fn upload(store: &dyn BlobStore, id: UploadId, data: &Bytes, owner: OwnerTag) -> Result<BlobId, StoreError> {
    let mut writer = store.begin(id).await?;
    take_in(&mut *writer, data, 0, data.len() as u64).await?;
    let (blob, record, outboard) = ending(data, 0, owner);
    writer.complete(blob, Some(record), Vec::new(), outboard).await?;
    Ok(blob.id)
}

/// Until all memory has come back, which may be a moment after an answer; there was never more of it than `total`.
async fn memory_was_kept_to(engine: &OnSeaweed, total: usize) {
    let budget = &engine.store.0.budget;
    while (budget.free_bytes(), budget.held_bytes().0) != (total, 0) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let most = budget.held_bytes().1;
    assert!(most > total / 2 && most <= total, "{most} of {total} bytes were in memory");
}

async fn assert_is(store: &dyn BlobStore, blob: BlobId, data: &Bytes) {
    let reader = store.blob(blob).await.unwrap().expect("the blob is there");
    assert!(read(&*reader, 0, data.len() as u64).await == *data, "the bytes are those that were sent");
    let (start, end) = (5 * MIB - 3, 5 * MIB + 3);
    if end < data.len() as u64 {
        assert_eq!(read(&*reader, start, end).await, data[start as usize..end as usize]);
    }
    let outboard = reader.outboard().try_collect::<Vec<_>>().await.unwrap().concat();
    assert!(Outboard::verify(blob, reader.blob_bytes(), &outboard).is_ok());
}

/// A phone that changed networks reaches another origin, and that goes on; what the first still does harms nothing.
#[tokio::test]
async fn any_node_goes_on_with_an_upload_and_the_first_cannot() {
    let Some(first) = OnSeaweed::with_parts(8) else { return };
    let second = first.other_node();
    let data = bytes(17 * MIB + 77);
    let mut old = first.store.begin(id(1)).await.unwrap();
    take_in(&mut *old, &data, 0, 7 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 0, 7 * MIB);
    old.commit(record, outboard).await.unwrap();
    assert_eq!(second.store.upload(id(1)).await.unwrap().unwrap().offset, 7 * MIB);

    let Claim { writer: mut new, record } = second.store.claim(id(1)).await.unwrap().unwrap();
    assert_eq!(record.offset, 7 * MIB);
    assert_eq!(new.read(7 * MIB - 100, 100).await.unwrap(), data[7 * MIB as usize - 100..7 * MIB as usize]);
    // The first sends a whole part of other bytes, which it cannot commit.
    let forged = Bytes::from(vec![9; 8 * MIB as usize]);
    take_in(&mut *new, &data, 7 * MIB, 12 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 7 * MIB, 12 * MIB);
    new.commit(record.clone(), outboard.clone()).await.unwrap();
    let late = async {
        old.write(7 * MIB, vec![forged]).await?;
        old.commit(UploadRecord { offset: 15 * MIB, ..record }, outboard).await
    };
    assert_eq!(late.await.unwrap_err().kind(), StoreErrorKind::Stale);

    take_in(&mut *new, &data, 12 * MIB, 16 * MIB).await.unwrap();
    let (blob, record, outboard) = ending(&data, 12 * MIB, ALICE);
    new.complete(blob, Some(record), vec![data.slice(16 * MIB as usize..)], outboard).await.unwrap();
    drop((old, new));
    for node in [&first, &second] {
        assert_is(&node.store, blob.id, &data).await;
        assert_eq!(node.store.upload(id(1)).await.unwrap().unwrap().state, UploadState::Complete { blob: blob.id });
    }
    second.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(second.keys(), ["blobs", "data", "named", "uploads"]);
    second.store.remove(id(1)).await.unwrap();
    assert_eq!(first.store.collect(Timestamp::MAX).await.unwrap(), 0);
    assert!(first.store.disown(blob.id, ALICE, NOW).await.unwrap());
    assert_eq!(second.keys(), ["blobs"], "of what went a grave is left");
    assert_eq!(first.store.collect(Timestamp::MAX).await.unwrap(), 0);
    assert_eq!(second.keys(), [""; 0], "what went is gone");
}

/// Two origins take the same upload at once: one of them commits, and the bytes are its own.
#[tokio::test]
async fn of_two_nodes_that_race_one_wins() {
    let Some(first) = OnSeaweed::with_parts(8) else { return };
    let second = first.other_node();
    let data = bytes(13 * MIB);
    for round in 0..4 {
        let (record, outboard) = receiving(&[]);
        first.store.begin(id(round)).await.unwrap().commit(record, outboard).await.unwrap();
        let attempts = [&first, &second].map(|node| {
            let data = data.clone();
            async move {
                let Claim { mut writer, .. } = node.store.claim(id(round)).await?.unwrap();
                take_in(&mut *writer, &data, 0, 6 * MIB).await?;
                let (record, outboard) = progress(&data, 0, 6 * MIB);
                writer.commit(record, outboard).await?;
                take_in(&mut *writer, &data, 6 * MIB, 13 * MIB).await?;
                let (blob, record, outboard) = ending(&data, 6 * MIB, ALICE);
                writer.complete(blob, Some(record), Vec::new(), outboard).await?;
                Ok::<_, StoreError>(blob.id)
            }
        });
        let [one, other] = attempts;
        let (one, other) = tokio::join!(one, other);
        let (won, lost) = if one.is_ok() { (one, other) } else { (other, one) };
        assert_eq!(lost.unwrap_err().kind(), StoreErrorKind::Stale);
        assert_is(&first.store, won.unwrap(), &data).await;
    }
    for round in 0..4 {
        first.store.remove(id(round)).await.unwrap();
    }
    first.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(first.keys(), ["blobs", "data", "named"], "one copy, and nothing of the losers'");
    assert_eq!(first.store.used(ALICE).await.unwrap(), 13 * MIB);
}

/// More uploads at once than there is memory for, some of them pausing at odd places.
#[tokio::test]
async fn memory_stays_within_its_bound_and_nobody_waits_for_ever() {
    let Some(engine) = OnSeaweed::with_parts(2) else { return };
    let uploads = (0..6).map(|n| {
        let store = &engine.store;
        let data: Bytes = bytes(11 * MIB + u64::from(n)).iter().map(|byte| byte ^ n).collect();
        async move {
            let mut writer = store.begin(id(n)).await.unwrap();
            let mut from = 0;
            for pause in [3 * MIB + 1, 7 * MIB + 5, 9 * MIB] {
                take_in(&mut *writer, &data, from, pause).await.unwrap();
                let (record, outboard) = progress(&data, from, pause);
                writer.commit(record, outboard).await.unwrap();
                from = pause;
            }
            take_in(&mut *writer, &data, from, data.len() as u64).await.unwrap();
            let (blob, record, outboard) = ending(&data, from, ALICE);
            writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap();
            (blob.id, data)
        }
    });
    for (blob, data) in futures_util::future::join_all(uploads).await {
        assert_is(&engine.store, blob, &data).await;
    }
    memory_was_kept_to(&engine, 2 * 5 * MIB as usize).await;
    engine.store.collect(Timestamp::MAX).await.unwrap();
    assert!(engine.keys().iter().all(|key| ["blobs", "data", "named", "uploads"].contains(&key.as_str())));
}

/// The second of two owners sends no part that the first one's blob has.
#[tokio::test]
async fn parts_of_bytes_that_are_here_already_are_given_up() {
    let Some(engine) = OnSeaweed::with_parts(8) else { return };
    let data = bytes(11 * MIB);
    let blob = upload(&engine.store, id(1), &data, ALICE).await.unwrap();
    assert_eq!(upload(&engine.store, id(2), &data, BOB).await.unwrap(), blob);
    assert_eq!(engine.owners(blob), [ALICE, BOB]);
    for n in [1, 2] {
        engine.store.remove(id(n)).await.unwrap();
    }
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 0);
    assert_eq!(engine.keys(), ["blobs", "data", "named"]);
    assert_is(&engine.store, blob, &data).await;
}

/// An origin that dies amid an upload leaves parts and tails; a collection finds them all, and nothing else.
#[tokio::test]
async fn what_a_crash_leaves_is_collected() {
    let Some(engine) = OnSeaweed::with_parts(8) else { return };
    let data = bytes(7 * MIB);
    let mut kept = engine.store.begin(id(1)).await.unwrap();
    take_in(&mut *kept, &data, 0, 7 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 0, 7 * MIB);
    kept.commit(record, outboard).await.unwrap();
    // A blob in one request, cut after its first part.
    let mut cut = engine.store.begin(id(2)).await.unwrap();
    take_in(&mut *cut, &data, 0, 7 * MIB).await.unwrap();
    drop((kept, cut));
    let engine = engine.reopen();
    // What no program ever wrote a record for.
    let bucket = bucket(&engine.settings);
    wait(bucket.put(&objects::tail_key(&objects::new_name(id(3)).unwrap()), data.clone())).unwrap();
    wait(bucket.begin_multipart(&objects::data_key(&objects::new_name(id(4)).unwrap()))).unwrap();

    assert_eq!(engine.store.collect(Timestamp::default()).await.unwrap(), 0, "nothing is that old");
    let listed = engine.store.garbage(Timestamp::MAX).await.unwrap();
    assert_eq!(listed.uploads, 3, "{listed:?}");
    assert_eq!(engine.store.garbage(Timestamp::MAX).await.unwrap(), listed, "listing removes nothing");
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 3);
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 0);
    let Claim { mut writer, record } = engine.store.claim(id(1)).await.unwrap().unwrap();
    assert_eq!(record.offset, 7 * MIB);
    let (blob, record, outboard) = ending(&data, 7 * MIB, ALICE);
    writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap();
    assert_is(&engine.store, blob.id, &data).await;
}

/// An owner who is charged for what a crash kept from being stored is charged right after a count.
#[tokio::test]
async fn a_count_of_everything_sets_charges_right() {
    let Some(engine) = OnSeaweed::try_start() else { return };
    let store = &engine.store;
    upload(store, id(1), &bytes(100), ALICE).await.unwrap();
    upload(store, id(2), &bytes(100), BOB).await.unwrap();
    let (record, outboard) = receiving(&[]);
    let record = UploadRecord { length: Some(50), owner: BOB, ..record };
    store.begin(id(3)).await.unwrap().commit(record, outboard).await.unwrap();
    assert_eq!(store.recount().await.unwrap(), 0);
    let lost = ledger::Entry::Add(ledger::Open::new("never stored", BlobId::from_bytes([7; 32]), 7, None));
    wait(bucket(&engine.settings).charge(ALICE, lost, u64::MAX)).unwrap();
    assert_eq!(store.used(ALICE).await.unwrap(), 107);
    assert_eq!(store.recount().await.unwrap(), 1);
    assert_eq!(store.owners(None, 10).await.unwrap(), [(ALICE, 100), (BOB, 150)]);
}

/// A listing does not tell that one owner's time is over while another keeps the blob; a count of everything finds it.
#[tokio::test]
async fn an_owner_whose_time_passed_while_another_kept_the_blob_goes_at_the_next_count() {
    let Some(endpoint) = endpoint() else { return };
    let mut settings = settings(endpoint, &format!("{}/", random_name().unwrap()));
    settings.clock_ahead_max = Duration::ZERO;
    let engine = OnSeaweed::open(settings);
    let store = &engine.store;
    let blob = upload(store, id(1), &bytes(100), BOB).await.unwrap();
    // Long before the pointer was written, by anybody's clock.
    assert!(store.keep(blob, ALICE, u64::MAX, Timestamp::from_secs(1000)).await.unwrap());
    store.remove(id(1)).await.unwrap();
    let (until, now) = (Timestamp::from_secs(2000), Timestamp::from_secs(3000));
    assert_eq!(store.recount().await.unwrap(), 0);
    assert_eq!(store.used(ALICE).await.unwrap(), 100, "without word of whose time is over nobody goes");
    assert_eq!(store.expire_owners(until, 10, now).await.unwrap(), 0, "a listing does not tell");
    store.recount().await.unwrap();
    assert_eq!(engine.owners(blob), [BOB]);
    assert_eq!(store.owners(None, 10).await.unwrap(), [(BOB, 100)]);
}

/// A count that would read too much is not begun.
#[tokio::test]
async fn more_blobs_than_can_be_counted_are_not() {
    let Some(endpoint) = endpoint() else { return };
    let mut settings = settings(endpoint, &format!("{}/", random_name().unwrap()));
    settings.recount_pointers_max = 1;
    let engine = OnSeaweed::open(settings);
    let store = &engine.store;
    upload(store, id(1), &bytes(100), ALICE).await.unwrap();
    let lost = ledger::Entry::Add(ledger::Open::new("never stored", BlobId::from_bytes([7; 32]), 7, None));
    wait(bucket(&engine.settings).charge(ALICE, lost, u64::MAX)).unwrap();
    assert_eq!(store.recount().await.unwrap(), 1, "one can be counted");
    let lost = ledger::Entry::Add(ledger::Open::new("nor this", BlobId::from_bytes([8; 32]), 7, None));
    wait(bucket(&engine.settings).charge(ALICE, lost, u64::MAX)).unwrap();
    upload(store, id(2), &bytes(50), BOB).await.unwrap();
    assert_eq!(store.recount().await.unwrap(), 0);
    assert_eq!(store.used(ALICE).await.unwrap(), 107);
}

/// An owner whose time is over goes when somebody else keeps the blob: then its pointer is written anyway.
#[tokio::test]
async fn an_owner_whose_time_passed_goes_when_another_keeps_the_blob() {
    let Some(endpoint) = endpoint() else { return };
    let mut settings = settings(endpoint, &format!("{}/", random_name().unwrap()));
    settings.clock_ahead_max = Duration::ZERO;
    let engine = OnSeaweed::open(settings);
    let store = &engine.store;
    let blob = upload(store, id(1), &bytes(100), BOB).await.unwrap();
    assert!(store.keep(blob, ALICE, u64::MAX, Timestamp::from_secs(1000)).await.unwrap());
    let (until, now) = (Timestamp::from_secs(2000), Timestamp::from_secs(3000));
    assert_eq!(store.expire_owners(until, 10, now).await.unwrap(), 0, "a listing does not tell");
    assert!(store.keep(blob, BOB, u64::MAX, NOW.plus(Duration::from_secs(1))).await.unwrap());
    assert_eq!(engine.owners(blob), [BOB]);
    assert_eq!(store.owners(None, 10).await.unwrap(), [(BOB, 100)]);
}

/// An operator learns at the start what is wrong, not a phone at its first upload.
#[tokio::test]
async fn a_bucket_that_cannot_be_used_is_told_at_the_start() {
    let Some(endpoint) = endpoint() else { return };
    let refused = |change: fn(&mut Settings)| {
        let mut settings = settings(endpoint, "refused/");
        change(&mut settings);
        wait(S3Store::open(settings)).err().expect("the store does not open")
    };
    let nowhere = refused(|settings| settings.config.bucket = "no-such-bucket".into());
    assert!(matches!(nowhere, ProbeError::Unreachable(_)), "{nowhere:?}");
    let wrong_secret = refused(|settings| settings.keys.secret_access_key = "guessed".into());
    assert!(matches!(wrong_secret, ProbeError::Unreachable(_)), "{wrong_secret:?}");
    let reader = refused(|settings| {
        settings.keys.access_key_id = "reader".into();
        settings.keys.secret_access_key = "reader-secret".into();
    });
    assert!(matches!(reader, ProbeError::Unwritable(_)), "{reader:?}");
    assert!(!format!("{:?}", settings(endpoint, "").keys).contains("waxwing-secret"));
}
