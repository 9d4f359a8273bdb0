//! The worst moments, one by one: each fault where it hurts most.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use waxwing_protocol::{BlobId, Timestamp};

use super::chaos::node;
use super::proxy::{ATTEMPT_TIMEOUT, Fault, Proxy};
use super::server::{bucket, endpoint, settings, wait};
use super::{MIB, OnSeaweed, assert_is, ending, memory_was_kept_to, progress, take_in, upload};
use crate::store::s3::S3Store;
use crate::store::s3::objects::{new_name, random_name, tail_key};
use crate::store::suite::{ALICE, NOW, blob_of, bytes, id, receiving};
use crate::store::{BlobStore as _, Claim, Lives, NewBlob, StoreError, StoreErrorKind, UploadRecord};

/// A store over a proxy that does nothing until it is ordered to.
pub(super) fn over_proxy() -> Option<(Proxy, OnSeaweed, String)> {
    let proxy = Proxy::start(endpoint()?, 1, 0);
    let prefix = format!("{}/", random_name().unwrap());
    let store = node(&proxy, &prefix);
    Some((proxy, store, prefix))
}

/// Until every late request has arrived.
async fn all_arrived() {
    tokio::time::sleep(2 * ATTEMPT_TIMEOUT).await;
}

/// A write of a pointer that was given up and made again, and arrives when the blob has gone.
#[tokio::test]
async fn a_write_that_comes_late_brings_no_blob_back() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    proxy.order("PUT", "/blobs/", Fault::Late);
    let data = bytes(1000);
    let blob = upload(&engine.store, id(1), &data, ALICE).await.unwrap();
    assert!(engine.store.disown(blob, ALICE, NOW).await.unwrap());
    all_arrived().await;
    assert!(proxy.has_delivered() && engine.store.blob(blob).await.unwrap().is_none());
    engine.store.remove(id(1)).await.unwrap();
    engine.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(engine.keys(), [""; 0]);
}

/// A part of a request that was given up arrives after its successor sent that part of the upload anew.
#[tokio::test]
async fn a_part_that_comes_late_replaces_none_that_was_acknowledged() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    let (record, outboard) = receiving(&[]);
    engine.store.begin(id(1)).await.unwrap().commit(record, outboard).await.unwrap();
    proxy.order("UploadPart", "/data/", Fault::Late);
    let Claim { mut writer, .. } = engine.store.claim(id(1)).await.unwrap().unwrap();
    let other = Bytes::from(vec![9; 6 * MIB as usize]);
    take_in(&mut *writer, &other, 0, 6 * MIB).await.unwrap();
    // Time for it to be under way; then its request goes.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(writer);
    let Claim { mut writer, .. } = engine.store.claim(id(1)).await.unwrap().unwrap();
    let data = bytes(11 * MIB);
    take_in(&mut *writer, &data, 0, 6 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 0, 6 * MIB);
    writer.commit(record, outboard).await.unwrap();
    all_arrived().await;
    assert!(proxy.has_delivered());
    take_in(&mut *writer, &data, 6 * MIB, 11 * MIB).await.unwrap();
    let (blob, record, outboard) = ending(&data, 6 * MIB, ALICE);
    writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap();
    assert_is(&engine.store, blob.id, &data).await;
}

/// S3 refuses a conditional write also because another was under way that came to nothing: nobody was first.
#[tokio::test]
async fn a_write_that_met_another_is_made_again() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    for _ in 0..2 {
        proxy.order("PUT", "/uploads/", Fault::Conflict409);
    }
    let (record, outboard) = receiving(&[]);
    engine.store.begin(id(1)).await.unwrap().commit(record, outboard).await.unwrap();
    assert!(proxy.has_delivered());
}

/// One origin is slow to end an upload; another ends it meanwhile, and its owner lets the blob go.
#[tokio::test]
async fn an_origin_that_is_late_to_an_end_brings_no_blob_back() {
    let Some((proxy, slow, prefix)) = over_proxy() else { return };
    let mut direct = settings(endpoint().unwrap(), &prefix);
    direct.config.part_bytes = 5 * MIB;
    let quick = OnSeaweed::open(direct);
    let data = bytes(6 * MIB);
    let mut writer = slow.store.begin(id(1)).await.unwrap();
    take_in(&mut *writer, &data, 0, 6 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 0, 6 * MIB);
    writer.commit(record, outboard).await.unwrap();
    proxy.order("CompleteMultipartUpload", "/data/", Fault::SlowReply);
    let (blob, record, outboard) = ending(&data, 6 * MIB, ALICE);
    let ends = writer.complete(blob, Some(record), Vec::new(), outboard);
    let meanwhile = async {
        while !proxy.has_delivered() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let Claim { record, .. } = quick.store.claim(id(1)).await.unwrap().unwrap();
        assert_eq!(record.offset, 6 * MIB);
        assert!(quick.store.disown(blob.id, ALICE, NOW).await.unwrap());
    };
    let (_ended, ()) = tokio::join!(ends, meanwhile);
    drop(writer);
    assert!(slow.store.blob(blob.id).await.unwrap().is_none(), "its bytes are gone");
    slow.store.remove(id(1)).await.unwrap();
    slow.store.recount().await.unwrap();
    assert_eq!(slow.store.used(ALICE).await.unwrap(), 0);
    slow.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(slow.keys(), [""; 0]);
}

/// Were the bucket's clock taken for this one's, what another origin is just writing would look long abandoned.
#[tokio::test]
async fn a_bucket_whose_clock_is_behind_loses_nothing_that_is_new() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    proxy.set_old_times();
    let elsewhere = bucket(&engine.settings);
    wait(elsewhere.put(&tail_key(&new_name(id(3)).unwrap()), bytes(10))).unwrap();
    let an_hour_ago = Timestamp::from(SystemTime::now()).minus(Duration::from_secs(60 * 60));
    assert_eq!(engine.store.collect(an_hour_ago).await.unwrap(), 0);
    assert!(proxy.counts().contains_key(&Fault::OldTimes));
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 1);
}

/// To look for what is due costs a listing, not a request for each upload, and one origin does it for all.
#[tokio::test]
async fn uploads_too_young_to_be_due_are_not_read() {
    let Some((proxy, engine, prefix)) = over_proxy() else { return };
    for n in 0..20 {
        let (record, outboard) = receiving(&[]);
        engine.store.begin(id(n)).await.unwrap().commit(record, outboard).await.unwrap();
    }
    let (shortest, longest) = (Duration::from_secs(60 * 60), Duration::from_secs(24 * 60 * 60));
    let lives = Lives { shortest, longest };
    let now = Timestamp::from(SystemTime::now());
    proxy.take_requests();
    let page = engine.store.due(None, 100, now, lives).await.unwrap().unwrap();
    assert_eq!((page.entries.len(), page.unread, page.last), (0, 20, None));
    let asked = proxy.take_requests();
    assert_eq!((asked.values().sum::<u64>(), asked["LIST"]), (4, 2), "{asked:?}");
    // Nobody looks again at once, whichever origin it is.
    let other = node(&proxy, &prefix);
    for store in [&engine.store, &other.store] {
        assert!(store.due(None, 100, now, lives).await.unwrap().is_none());
    }
    // Their age is what one of the times is; then they are read.
    let later = |age: Duration| now.plus(age).plus(Duration::from_secs(60));
    for (age, read) in [(shortest, 20), (shortest * 2, 0), (longest, 20), (longest * 2, 20)] {
        let page = engine.store.due(None, 100, later(age), lives).await.unwrap().unwrap();
        assert_eq!((page.entries.len(), page.unread), (read, 20 - read as u32), "at the age of {age:?}");
    }
}

/// Pointers are looked through by one origin for all, and the others ask for its turn, not for the pointers.
#[tokio::test]
async fn one_origin_looks_for_owners_whose_time_is_over() {
    let Some((proxy, first, prefix)) = over_proxy() else { return };
    let blob = upload(&first.store, id(1), &bytes(100), ALICE).await.unwrap();
    let mut settings = settings(&proxy.endpoint, &prefix);
    settings.walk_interval = Duration::from_secs(60 * 60);
    let nodes = [OnSeaweed::open(settings.clone()), OnSeaweed::open(settings)];
    let now = Timestamp::from(SystemTime::now());
    assert_eq!(nodes[0].store.expire_owners(Timestamp::default(), 10, now).await.unwrap(), 0);
    proxy.take_requests();
    assert_eq!(nodes[1].store.expire_owners(Timestamp::MAX, 10, now).await.unwrap(), 0);
    let asked = proxy.take_requests();
    assert_eq!((asked.values().sum::<u64>(), asked["LIST"]), (1, 1), "{asked:?}");
    assert_eq!(nodes[1].store.expire_owners(Timestamp::MAX, 10, now).await.unwrap(), 0);
    assert_eq!(proxy.take_requests().values().sum::<u64>(), 0, "nor does it ask again at once");
    let later = now.plus(Duration::from_secs(2 * 60 * 60));
    let third = OnSeaweed::open(nodes[0].settings.clone());
    assert_eq!(third.store.expire_owners(Timestamp::MAX, 10, later).await.unwrap(), 1);
    assert!(first.store.blob(blob).await.unwrap().is_none());
}

/// A thousand phones that stall and sixty-four that do not share one budget.
#[tokio::test]
async fn a_thousand_idle_uploads_and_many_busy_ones_stay_inside_the_budget() {
    let Some(engine) = OnSeaweed::with_parts(2) else { return };
    let total = 2 * 5 * MIB as usize;
    let piece = bytes(20_000);
    let mut idle = Vec::new();
    let name = |n: u32| waxwing_protocol::UploadId::from_bytes(u128::from(n + 1000).to_be_bytes());
    for some in (0..1000).collect::<Vec<u32>>().chunks(50) {
        let begun = some.iter().map(|n| {
            let (store, piece) = (&engine.store, piece.clone());
            async move {
                let mut writer = store.begin(name(*n)).await.unwrap();
                take_in(&mut *writer, &piece, 0, 20_000).await.unwrap();
                let (record, outboard) = progress(&piece, 0, 20_000);
                // Each has an owner of its own: a thousand at once of one owner would wait for one another.
                let owner = waxwing_protocol::OwnerTag::from_bytes(u128::from(*n).to_be_bytes());
                writer.commit(UploadRecord { owner, ..record }, outboard).await.unwrap();
                writer
            }
        });
        idle.extend(futures_util::future::join_all(begun).await);
    }
    assert!(engine.store.0.budget.free_bytes() >= total / 2, "those who wait leave half of it to those who do not");
    let busy = (0..64).map(|n| {
        let store: &S3Store = &engine.store;
        // Some of them have several parts.
        let len = if n % 8 == 0 { 11 * MIB } else { 3 * MIB / 2 };
        let data: Bytes = bytes(len + u64::from(n));
        async move {
            let blob = upload(store, id(n), &data, ALICE).await.unwrap();
            assert_is(store, blob, &data).await;
        }
    });
    futures_util::future::join_all(busy).await;
    drop(idle);
    memory_was_kept_to(&engine, total).await;
}

/// A part that is sent again, and one that its server is slow to take, have no second copy, and nothing more is taken in
/// than there is memory for.
#[tokio::test]
async fn what_is_kept_to_be_sent_again_counts() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    let total = 4 * 5 * MIB as usize;
    for _ in 0..4 {
        proxy.order("UploadPart", "/data/", Fault::Broken);
        proxy.order("UploadPart", "/data/", Fault::SlowReply);
        proxy.order("UploadPart", "/data/", Fault::TimeOutAfterSuccess);
    }
    let uploads = (0..4).map(|n| {
        let (store, data) = (&engine.store, bytes(17 * MIB + u64::from(n)));
        async move {
            let blob = upload(store, id(n), &data, ALICE).await.unwrap();
            assert_is(store, blob, &data).await;
        }
    });
    futures_util::future::join_all(uploads).await;
    assert!(proxy.has_delivered());
    memory_was_kept_to(&engine, total).await;
}

/// A blob of exactly one part is one object, and no multipart upload is begun for it; one of a byte more is.
#[tokio::test]
async fn a_blob_of_one_part_is_written_at_once() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    for (n, len, begun) in [(1, 5 * MIB, 0), (2, 5 * MIB + 1, 1)] {
        let data = bytes(len);
        proxy.take_requests();
        let mut writer = engine.store.begin(id(n)).await.unwrap();
        take_in(&mut *writer, &data, 0, len).await.unwrap();
        let (blob, _, outboard) = ending(&data, 0, ALICE);
        writer.complete(blob, None, Vec::new(), outboard).await.unwrap();
        let asked = proxy.take_requests();
        assert_eq!(asked.get("CreateMultipartUpload").copied().unwrap_or(0), begun, "{asked:?}");
        assert_is(&engine.store, blob.id, &data).await;
    }
}

/// A small blob given whole, as `PUT` does it.
pub(super) async fn put_whole(store: &S3Store, n: u8, data: &Bytes, quota_bytes: u64) -> Result<BlobId, StoreError> {
    let (blob, outboard) = blob_of(data, ALICE);
    let mut writer = store.begin(id(n)).await?;
    writer.complete(NewBlob { quota_bytes, ..blob }, None, vec![data.clone()], outboard).await?;
    Ok(blob.id)
}

/// Each request is paid for, and most blobs are small: bytes, ledger, pointer, and no question in between.
#[tokio::test]
async fn a_small_blob_takes_three_writes_and_no_read() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    put_whole(&engine.store, 1, &bytes(1000), u64::MAX).await.unwrap();
    proxy.take_requests();
    let data = bytes(100_000);
    let blob = put_whole(&engine.store, 2, &data, u64::MAX).await.unwrap();
    let asked = proxy.take_requests();
    assert_eq!((asked.values().sum::<u64>(), asked["PUT"]), (3, 3), "{asked:?}");
    assert_is(&engine.store, blob, &data).await;
    // The same again is found out, charged once, and leaves nothing.
    assert_eq!(put_whole(&engine.store, 3, &data, u64::MAX).await.unwrap(), blob);
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 101_000);
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 0);
    assert_eq!(engine.keys(), ["blobs", "blobs", "data", "data"]);
}

/// A phone sends its holiday: what waits for its ledger is written together.
#[tokio::test]
async fn many_changes_of_one_ledger_are_one_write() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    put_whole(&engine.store, 0, &bytes(1), u64::MAX).await.unwrap();
    // The first of them holds up the others, so that they meet.
    proxy.order("PUT", "/owners/", Fault::SlowReply);
    proxy.take_requests();
    let blobs = (1..=30).map(|n| {
        let store: &S3Store = &engine.store;
        async move { put_whole(store, n, &bytes(1000 + u64::from(n)), u64::MAX).await.unwrap() }
    });
    futures_util::future::join_all(blobs).await;
    let asked = proxy.take_requests();
    // Thirty objects of bytes, thirty pointers, and one ledger each time that somebody had the turn.
    assert!(asked["PUT"] < 60 + 15, "{asked:?}");
    let total = 1 + (1..=30).map(|n| 1000 + n).sum::<u64>();
    assert_eq!(engine.store.used(ALICE).await.unwrap(), total);
    assert_eq!(engine.store.recount().await.unwrap(), 0);
}

/// What an origin remembers of a ledger lets nobody past their quota, nor keeps anybody within who has room.
#[tokio::test]
async fn a_quota_holds_across_origins_that_remember_ledgers() {
    let Some((_, first, prefix)) = over_proxy() else { return };
    let second = OnSeaweed::open(settings(endpoint().unwrap(), &prefix));
    let quota = 1000;
    let blob = put_whole(&first.store, 1, &bytes(600), quota).await.unwrap();
    assert!(second.store.disown(blob, ALICE, NOW).await.unwrap());
    let blob = put_whole(&first.store, 2, &bytes(900), quota).await.expect("there is room by now");
    let refused = put_whole(&second.store, 3, &bytes(200), quota).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Quota);
    let refused = put_whole(&first.store, 4, &bytes(200), quota).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Quota);
    assert_eq!(put_whole(&first.store, 5, &bytes(900), quota).await.unwrap(), blob, "they have it, and need no room");
    second.store.set_quota(ALICE, Some(2000)).await.unwrap();
    put_whole(&first.store, 6, &bytes(200), quota).await.expect("an operator's word counts from now on");
    assert_eq!(first.store.used(ALICE).await.unwrap(), 1100);
    first.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(first.keys(), ["blobs", "blobs", "data", "data"], "what was refused left nothing");
}
