//! Ends of multipart uploads whose answers lie, bytes that are not what was acknowledged, and reads that break off.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::TryStreamExt as _;
use waxwing_protocol::Timestamp;
use waxwing_protocol::range::ByteRange;

use super::moments::over_proxy;
use super::proxy::Fault;
use super::server::bucket;
use super::{MIB, OnSeaweed, assert_is, ending, progress, take_in, upload};
use crate::store::s3::objects::{Parts, data_key};
use crate::store::suite::{ALICE, NOW, bytes, id};
use crate::store::{BlobStore as _, StoreErrorKind, UploadWriter};

/// Collections beside uploads.
const COLLECTIONS: usize = 3;

/// The end came and its answer did not, came too late, or was a 200 that carries an error: asked again, S3 knows of no such
/// upload, and yet it is the blob.
#[tokio::test]
async fn an_end_whose_answer_is_lost_is_an_end() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    for (n, fault) in [Fault::LostReply, Fault::TimeOutAfterSuccess, Fault::ErrorIn200].into_iter().enumerate() {
        proxy.order("CompleteMultipartUpload", "/data/", fault);
        let data = bytes(6 * MIB + n as u64);
        let upload_id = id(n as u8);
        let blob = upload(&engine.store, upload_id, &data, ALICE).await.unwrap();
        assert!(proxy.counts().contains_key(&fault), "{fault:?}");
        assert_is(&engine.store, blob, &data).await;
        engine.store.remove(upload_id).await.unwrap();
        assert!(engine.store.disown(blob, ALICE, NOW).await.unwrap());
    }
    engine.store.collect(Timestamp::MAX).await.unwrap();
    assert_eq!(engine.keys(), [""; 0]);
}

/// An upload of all of `data`, committed and not ended, and its parts by its record.
async fn committed(engine: &OnSeaweed, data: &Bytes) -> (Box<dyn UploadWriter>, Parts) {
    let bytes = data.len() as u64;
    let mut writer = engine.store.begin(id(1)).await.unwrap();
    take_in(&mut *writer, data, 0, bytes).await.unwrap();
    let (record, outboard) = progress(data, 0, bytes);
    writer.commit(record, outboard).await.unwrap();
    let (draft, _) = engine.store.0.draft(id(1)).await.unwrap().unwrap();
    (writer, draft.parts.unwrap())
}

/// Somebody who has the bucket's keys gave the upload up behind the origin's back. It is asked which parts are there, and
/// the error says that acknowledged bytes are gone and waiting is in vain.
#[tokio::test]
async fn parts_that_are_gone_are_told_as_gone() {
    let Some((_, engine, _)) = over_proxy() else { return };
    let data = bytes(10 * MIB);
    let (mut writer, parts) = committed(&engine, &data).await;
    assert_eq!(parts.tags.len(), 2);
    bucket(&engine.settings).abort(&data_key(&parts.name), &parts.upload).await.unwrap();
    let (blob, record, outboard) = ending(&data, 10 * MIB, ALICE);
    let refused = writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap_err();
    assert_eq!(refused.kind(), StoreErrorKind::Corrupt, "{refused:?}");
    assert!(engine.store.blob(blob.id).await.unwrap().is_none());
}

/// A part is replaced by somebody who has the bucket's keys. Its tag was recorded: the blob is made of what was
/// acknowledged, where the server still has it, or of nothing.
#[tokio::test]
async fn a_part_that_was_replaced_is_in_no_blob() {
    let Some((_, engine, _)) = over_proxy() else { return };
    let data = bytes(10 * MIB);
    let (mut writer, parts) = committed(&engine, &data).await;
    let (number, other) = (parts.tags[0].number, Bytes::from(vec![9; 5 * MIB as usize]));
    bucket(&engine.settings).put_part(&data_key(&parts.name), &parts.upload, number, other).await.unwrap();
    let (blob, record, outboard) = ending(&data, 10 * MIB, ALICE);
    match writer.complete(blob, Some(record), Vec::new(), outboard).await {
        Ok(()) => assert_is(&engine.store, blob.id, &data).await,
        Err(refused) => {
            assert_eq!(refused.kind(), StoreErrorKind::Corrupt, "{refused:?}");
            assert!(engine.store.blob(blob.id).await.unwrap().is_none());
        }
    }
}

/// Whoever reads a blob sees that it was cut, and never takes half of it for the whole.
#[tokio::test]
async fn a_read_that_breaks_off_ends_in_an_error() {
    let Some((proxy, engine, _)) = over_proxy() else { return };
    let data = bytes(2 * MIB);
    let blob = upload(&engine.store, id(1), &data, ALICE).await.unwrap();
    let reader = engine.store.blob(blob).await.unwrap().unwrap();
    proxy.order("GET", "/data/", Fault::CutAnswer);
    let (start, end) = (MIB / 2, MIB);
    let mut stream = reader.read(ByteRange { start, end });
    let mut got = Vec::new();
    let ended = loop {
        match stream.try_next().await {
            Ok(Some(piece)) => got.extend_from_slice(&piece),
            ended => break ended,
        }
    };
    assert!(proxy.has_delivered(), "{:?}", proxy.take_requests());
    assert_eq!(ended.unwrap_err().kind(), StoreErrorKind::Unavailable, "after {} bytes", got.len());
    assert!(got.len() < (end - start) as usize && data[start as usize..].starts_with(&got));
    assert_is(&engine.store, blob, &data).await;
}

/// Collecting goes on beside uploads that are under way, at another origin too, and takes nothing of theirs.
#[tokio::test]
async fn collecting_beside_live_uploads_takes_nothing_of_theirs() {
    let Some((_, engine, _)) = over_proxy() else { return };
    let other = engine.other_node();
    let collections = AtomicUsize::new(0);
    let uploads = async {
        for n in 0.. {
            let data = bytes(6 * MIB + u64::from(n));
            let blob = upload(&engine.store, id(n), &data, ALICE).await.unwrap();
            assert_is(&engine.store, blob, &data).await;
            if collections.load(Ordering::SeqCst) >= COLLECTIONS {
                break;
            }
        }
    };
    let collect = async {
        while collections.load(Ordering::SeqCst) < COLLECTIONS {
            // What is under way at another origin is told by its age, what is here by who is at work on it.
            let now = Timestamp::from(std::time::SystemTime::now());
            other.store.collect(now.minus(Duration::from_secs(60 * 60))).await.unwrap();
            engine.store.collect(Timestamp::MAX).await.unwrap();
            collections.fetch_add(1, Ordering::SeqCst);
        }
    };
    tokio::join!(uploads, collect);
}
