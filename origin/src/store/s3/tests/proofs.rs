//! Charges whose blobs never came, and those that only look like it.

use std::time::SystemTime;

use bytes::Bytes;
use waxwing_protocol::{BlobId, Timestamp};

use super::moments::{over_proxy, put_whole};
use super::proxy::{Fault, Proxy};
use super::server::bucket;
use super::{OnSeaweed, assert_is, upload};
use crate::store::s3::ledger::{Entry, Open};
use crate::store::suite::{ALICE, BOB, NOW, bytes, id};
use crate::store::{BlobStore as _, StoreErrorKind};

/// How often the client sends a request that fails.
const ATTEMPTS: usize = 5;

/// The shard of `ALICE`'s ledger.
const SHARD: char = '0';

/// Lets every attempt at writing a pointer fail, once.
fn no_pointer_is_written(proxy: &Proxy) {
    for _ in 0..ATTEMPTS {
        proxy.order("PUT", "/blobs/", Fault::Broken);
    }
}

/// How many charges are taken back, of those that were made by now.
async fn prove(engine: &OnSeaweed) -> usize {
    engine.store.0.prove_shard(SHARD, Timestamp::default(), Timestamp::MAX).await.unwrap()
}

/// How many of `ALICE`'s charges are open.
async fn open(engine: &OnSeaweed) -> usize {
    bucket(&engine.settings).ledger(ALICE).await.unwrap().0.open.len()
}

/// Its owner was charged, and then the origin could not write the pointer.
#[tokio::test]
async fn a_charge_whose_blob_never_came_is_taken_back() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    no_pointer_is_written(&proxy);
    let failed = put_whole(&engine.store, 1, &bytes(1000), u64::MAX).await.unwrap_err();
    assert_eq!(failed.kind(), StoreErrorKind::Unavailable);
    assert!(proxy.has_delivered());
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 1000);
    let an_hour_ago = Timestamp::from(SystemTime::now()).minus(super::super::proofs::SETTLED);
    assert_eq!(
        engine.store.0.prove_shard(SHARD, Timestamp::default(), an_hour_ago).await.unwrap(),
        0,
        "it may yet come"
    );
    assert_eq!(prove(&engine).await, 1);
    assert_eq!((engine.store.used(ALICE).await.unwrap(), open(&engine).await), (0, 0));
    assert_eq!(prove(&engine).await, 0);
}

/// The last charge of an owner is open until somebody looks, and stands.
#[tokio::test]
async fn a_charge_whose_blob_is_there_stands() {
    let Some((_, engine, _)) = over_proxy() else { return };
    for n in 1..=3 {
        put_whole(&engine.store, n, &bytes(100 + u64::from(n)), u64::MAX).await.unwrap();
    }
    let blob = upload(&engine.store, id(4), &bytes(50), ALICE).await.unwrap();
    assert_eq!(open(&engine).await, 1, "each write tells that those before it came");
    assert_eq!(prove(&engine).await, 0);
    assert_eq!((engine.store.used(ALICE).await.unwrap(), open(&engine).await), (356, 0));
    assert!(engine.store.disown(blob, ALICE, NOW).await.unwrap());
    assert_eq!(prove(&engine).await, 0, "what was let go is not taken back too");
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 306);
    assert_eq!(engine.store.recount().await.unwrap(), 0);
}

/// A blob that was let go before its charge was proven was given back once.
#[tokio::test]
async fn what_went_before_it_was_proven_is_not_taken_back_twice() {
    let Some((_, engine, prefix)) = over_proxy() else { return };
    let elsewhere = OnSeaweed::open(super::server::settings(super::endpoint().unwrap(), &prefix));
    put_whole(&engine.store, 1, &bytes(500), u64::MAX).await.unwrap();
    let blob = put_whole(&engine.store, 2, &bytes(100), u64::MAX).await.unwrap();
    assert!(elsewhere.store.disown(blob, ALICE, NOW).await.unwrap());
    assert_eq!(prove(&engine).await, 0);
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 500);
}

/// An upload says in its object that it is about to become a blob: it will, whatever happens, and so its charge stands.
#[tokio::test]
async fn an_upload_that_is_about_to_end_ends_instead_of_losing_its_charge() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    let data: Bytes = bytes(2000);
    let mut writer = engine.store.begin(id(1)).await.unwrap();
    let (record, outboard) = super::progress(&data, 0, 0);
    writer.commit(record, outboard).await.unwrap();
    no_pointer_is_written(&proxy);
    let (blob, record, outboard) = super::ending(&data, 0, ALICE);
    writer.complete(blob, Some(record), vec![data.clone()], outboard).await.unwrap_err();
    drop(writer);
    assert!(engine.store.blob(blob.id).await.unwrap().is_none());
    assert_eq!(prove(&engine).await, 0);
    assert_is(&engine.store, blob.id, &data).await;
    assert_eq!(engine.store.used(ALICE).await.unwrap(), 2000);
}

/// Somebody let a blob go, and then their ledger could not be written. The blob's pointer remembers whom to free, and they are
/// told to ask again: nobody else would look at a blob that is gone.
#[tokio::test]
async fn who_let_a_blob_go_is_freed_whatever_comes_between() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    let blob = put_whole(&engine.store, 1, &bytes(1000), u64::MAX).await.unwrap();
    assert!(engine.store.keep(blob, BOB, u64::MAX, NOW).await.unwrap());
    for owner in [ALICE, BOB] {
        for _ in 0..ATTEMPTS {
            proxy.order("PUT", "/owners/", Fault::Broken);
        }
        let told = engine.store.disown(blob, owner, NOW).await.unwrap_err();
        assert_eq!(told.kind(), StoreErrorKind::Unavailable, "{told:?}");
        assert!(proxy.has_delivered());
        assert_eq!(engine.store.used(owner).await.unwrap(), 1000);
        assert!(!engine.store.disown(blob, owner, NOW).await.unwrap());
        assert_eq!(engine.store.used(owner).await.unwrap(), 0);
    }
    assert!(engine.store.blob(blob).await.unwrap().is_none());
    assert_eq!(prove(&engine).await, 0);
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 0);
    assert_eq!(engine.keys(), [""; 0]);
}

/// One origin looks at each shard once a day, at what was written since, and of that only at what is open.
#[tokio::test]
async fn a_look_reads_what_is_open_and_not_every_blob() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    for n in 0..20 {
        put_whole(&engine.store, n, &bytes(100 + u64::from(n)), u64::MAX).await.unwrap();
    }
    let lost = Entry::Add(Open { at: Timestamp::default(), ..Open::new("lost", BlobId::from_bytes([7; 32]), 7, None) });
    bucket(&engine.settings).charge(ALICE, lost, u64::MAX).await.unwrap();
    let now = Timestamp::from(SystemTime::now());
    proxy.take_requests();
    assert_eq!(engine.store.0.prove_if_due(now).await.unwrap(), Some(1));
    let asked = proxy.take_requests();
    // The turn is asked for and taken, a page listed, the ledger read and written, and the one blob asked for.
    assert_eq!((asked["LIST"], asked["GET"], asked["PUT"]), (2, 3, 2), "{asked:?}");
    for shard in 1..16 {
        assert_eq!(engine.store.0.prove_if_due(now).await.unwrap(), Some(0), "shard {shard}");
    }
    assert_eq!(engine.store.0.prove_if_due(now).await.unwrap(), None, "all were looked at");
    let total: u64 = (0..20).map(|n| 100 + n).sum();
    assert_eq!(engine.store.used(ALICE).await.unwrap(), total);
}
