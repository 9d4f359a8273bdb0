//! The store on a second server: s3s-fs, files behind S3, in this process.
//!
//! It is refused as a place for uploads: it ends no multipart upload whose part numbers have a gap, and gaps are what
//! keeps two origins apart. For one origin that never changes it is a server like any other, and so the suite runs on it,
//! with that check left out. It checks the condition of a write in one step and writes in another; here requests come to it
//! one at a time. It removes objects whatever `If-Match` says and does not list multipart uploads: the store finds both out
//! and goes its slower ways, which only a server that lacks something can show.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp};

use super::server::{BUCKET, runtime, settings, wait};
use super::{MIB, assert_is, ending, owners_of, progress, take_in, upload};
use crate::store::s3::probe::{Abilities, ProbeError};
use crate::store::s3::{S3Store, Settings};
use crate::store::suite::{ALICE, BOB, Harness, NOW, bytes, engine_suite, id};
use crate::store::{BlobStore, Claim};

/// What the server does not do, though it could.
#[derive(Clone, Copy, Debug, Default)]
struct Lacks {
    /// A condition that it takes for met.
    condition: Option<&'static str>,
    /// It begins no multipart upload.
    multipart: bool,
}

/// The server; its files go with it.
struct FileServer {
    endpoint: String,
    _root: TempDir,
}

impl FileServer {
    fn start(lacks: Lacks) -> Self {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join(BUCKET)).unwrap();
        let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(root.path()).unwrap());
        service.set_auth(s3s::auth::SimpleAuth::from_single("waxwing", "waxwing-secret"));
        let service = service.build();
        let address = wait(async move {
            let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
            let address = listener.local_addr().unwrap();
            runtime().spawn(serve(listener, service, lacks));
            address
        });
        Self { endpoint: format!("http://{address}"), _root: root }
    }
}

async fn serve(listener: TcpListener, service: S3Service, lacks: Lacks) {
    let turn = Arc::new(Mutex::new(()));
    while let Ok((client, _)) = listener.accept().await {
        let (service, turn) = (service.clone(), Arc::clone(&turn));
        let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
            let (service, turn) = (service.clone(), Arc::clone(&turn));
            async move {
                if lacks.multipart && request.uri().query().is_some_and(|query| query.contains("uploads")) {
                    let refused = Response::builder().status(StatusCode::NOT_IMPLEMENTED);
                    return Ok::<_, Infallible>(refused.body(s3s::Body::empty()).unwrap());
                }
                let is_ignored = lacks.condition.is_some_and(|name| request.headers().contains_key(name));
                let _turn = turn.lock().await;
                let answer = service.call(request.map(s3s::Body::from)).await.unwrap_or_else(|_| {
                    Response::builder().status(StatusCode::INTERNAL_SERVER_ERROR).body(s3s::Body::empty()).unwrap()
                });
                if is_ignored && answer.status() == StatusCode::PRECONDITION_FAILED {
                    let taken = Response::builder().header("etag", "\"taken\"");
                    return Ok(taken.body(s3s::Body::empty()).unwrap());
                }
                Ok(answer)
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(client), answer));
    }
}

/// A store on a server of its own.
struct OnFileServer {
    store: S3Store,
    settings: Settings,
    server: FileServer,
}

impl OnFileServer {
    fn open(server: FileServer) -> Self {
        let mut settings = settings(&server.endpoint, "waxwing/");
        settings.config.part_bytes = 5 * MIB;
        settings.config.memory_bytes = 2 * 5 * MIB as usize;
        settings.blob_bytes_max = 1 << 30;
        settings.needs_part_gaps = false;
        let store = wait(S3Store::open(settings.clone())).unwrap();
        Self { store, settings, server }
    }
}

impl Harness for OnFileServer {
    const KEEPS_UNCOMMITTED: bool = false;

    fn start() -> Self {
        Self::open(FileServer::start(Lacks::default()))
    }

    fn store(&self) -> &dyn BlobStore {
        &self.store
    }

    fn reopen(self) -> Self {
        let Self { store, server, .. } = self;
        drop(store);
        Self::open(server)
    }

    fn owners(&self, blob: BlobId) -> Vec<OwnerTag> {
        owners_of(&self.settings, blob)
    }
}

// All but the long random history of what owners hold: it is about the store, not about its server.
engine_suite!(OnFileServer:
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
    what_is_announced_is_an_event_until_it_is_settled,
);

/// An upload of several parts that pauses amid one, goes on with another request, and goes with its owners.
#[tokio::test]
async fn an_upload_in_parts_resumes_ends_and_goes() {
    let engine = OnFileServer::start();
    let data = bytes(13 * MIB + 5);
    let mut writer = engine.store.begin(id(1)).await.unwrap();
    take_in(&mut *writer, &data, 0, 7 * MIB).await.unwrap();
    let (record, outboard) = progress(&data, 0, 7 * MIB);
    writer.commit(record, outboard).await.unwrap();
    drop(writer);
    let Claim { mut writer, record } = engine.store.claim(id(1)).await.unwrap().unwrap();
    assert_eq!(record.offset, 7 * MIB);
    take_in(&mut *writer, &data, 7 * MIB, data.len() as u64).await.unwrap();
    let (blob, record, outboard) = ending(&data, 7 * MIB, ALICE);
    writer.complete(blob, Some(record), Vec::new(), outboard).await.unwrap();
    drop(writer);
    assert_is(&engine.store, blob.id, &data).await;
    assert_eq!(upload(&engine.store, id(2), &data, BOB).await.unwrap(), blob.id);
    assert_eq!(engine.owners(blob.id), [ALICE, BOB]);
    for (n, owner) in [(1, ALICE), (2, BOB)] {
        engine.store.remove(id(n)).await.unwrap();
        assert!(engine.store.disown(blob.id, owner, NOW).await.unwrap());
    }
    assert!(engine.store.blob(blob.id).await.unwrap().is_none());
    assert_eq!(engine.store.collect(Timestamp::MAX).await.unwrap(), 0);
    // What stays is told at the start: the empty pointer, which cannot be removed safely.
    assert_eq!(engine.owners(blob.id), []);
}

/// What it lacks is found out, and what is lacking is used nowhere.
#[tokio::test]
async fn what_a_server_lacks_is_found_out_at_the_start() {
    let engine = OnFileServer::start();
    assert_eq!(engine.store.0.abilities, Abilities { conditional_delete: false, lists_multiparts: false });
}

/// A server that takes conditions for decoration loses acknowledged bytes without an error: it is refused, and told why.
#[tokio::test]
async fn a_server_that_ignores_conditions_is_refused() {
    let refusal = |lacks| {
        let server = FileServer::start(lacks);
        wait(S3Store::open(settings(&server.endpoint, ""))).err().expect("the store does not open")
    };
    let overwrites = refusal(Lacks { condition: Some("if-none-match"), multipart: false });
    assert!(matches!(overwrites, ProbeError::NoConditionalPut), "{overwrites:?}");
    let mixes_up = refusal(Lacks { condition: Some("if-match"), multipart: false });
    assert!(matches!(mixes_up, ProbeError::NoConditionalUpdate), "{mixes_up:?}");
    let in_one_go = refusal(Lacks { condition: None, multipart: true });
    assert!(matches!(in_one_go, ProbeError::NoMultipart(_)), "{in_one_go:?}");
    let as_it_is = refusal(Lacks::default());
    assert!(matches!(as_it_is, ProbeError::NoPartGaps(_)), "{as_it_is:?}");
}
