//! Failures that no client can bring about: a disk that breaks, a store that cannot keep up. Each dialect tells them so
//! that its clients come back.

use std::sync::Arc;

use axum::body::Body;
use axum::http::header::RETRY_AFTER;
use axum::http::{Request, StatusCode};
use axum::response::{IntoResponse as _, Response};
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use waxwing_protocol::OwnerTag;
use waxwing_protocol::grant::{Grant, GrantSigner, UPLOAD_LIFETIME};

use super::*;
use crate::fault::{Fault, Faults};
use crate::store::disk::DiskStore;
use crate::store::{BlobStore, StoreError, StoreErrorKind};
use crate::uploads::UploadError;

type Headers = &'static [(&'static str, &'static str)];

const TUS: Headers = &[
    ("tus-resumable", "1.0.0"),
    ("content-type", tus::OFFSET_STREAM),
    ("upload-offset", "4"),
    ("upload-length", "10"),
];
const IETF: Headers = &[("content-type", ietf::PARTIAL_UPLOAD), ("upload-offset", "4"), ("upload-complete", "?0")];
const RANGES: Headers = &[("content-range", "bytes 4-5/10")];

struct Scene {
    _directory: tempfile::TempDir,
    faults: Arc<Faults>,
    router: Router,
    grant: String,
}

impl Scene {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let faults = Arc::new(Faults::default());
        let store: Arc<dyn BlobStore> = Arc::new(DiskStore::open(directory.path(), 0, Arc::clone(&faults)).unwrap());
        let signer = GrantSigner::from_seed(&[5; 32]);
        let keys = Arc::new(GrantKeys::from_jwks(&signer.jwks()).unwrap());
        let config = Arc::new(Config::default());
        let app = App::new(Uploads::new(Arc::clone(&store), &config), Blobs::new(store, &config), config, keys);
        let owner = OwnerTag::from_bytes([1; 16]);
        let grant = Grant::Upload { owner, blob_bytes_max: u64::MAX, quota_bytes: u64::MAX };
        let grant = format!("Bearer {}", signer.mint(&grant, now(), UPLOAD_LIFETIME, [0; 16]).text);
        Self { _directory: directory, faults, router: router(app), grant }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &'static str) -> Response {
        let request = Request::builder().method(method).uri(path).header("host", "origin.example");
        let request = request.header("authorization", &self.grant).header("content-length", body.len());
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let body = if body.is_empty() { Body::empty() } else { Body::from(body) };
        self.router.clone().oneshot(request.body(body).unwrap()).await.unwrap()
    }

    /// The path of an upload of 10 bytes that holds 4.
    async fn begun(&self) -> String {
        let headers = [("tus-resumable", "1.0.0"), ("upload-length", "10"), ("content-type", tus::OFFSET_STREAM)];
        let created = self.ask("POST", "/v1/uploads", &headers, "abcd").await;
        assert_eq!(created.status(), StatusCode::CREATED);
        created.headers()["location"].to_str().unwrap().strip_prefix("http://origin.example").unwrap().to_owned()
    }
}

async fn slug(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    serde_json::from_slice::<waxwing_protocol::Problem>(&bytes).unwrap().slug().to_owned()
}

/// The disk reports an error at a sync: nothing of it is acknowledged, then or later, and what was still stands.
#[tokio::test]
async fn a_store_that_became_read_only_is_told_in_every_dialect() {
    for (method, headers) in [("PATCH", TUS), ("PATCH", IETF), ("PUT", RANGES)] {
        let scene = Scene::start();
        let (path, other) = (scene.begun().await, scene.begun().await);
        scene.faults.set(Fault::FailSync, true);
        for path in [&path, &path, &other] {
            let refused = scene.ask(method, path, headers, "ef").await;
            assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE, "{method} {headers:?}");
            assert!(refused.headers().contains_key(RETRY_AFTER));
            assert_eq!(slug(refused).await, "store-read-only");
            scene.faults.set(Fault::FailSync, false);
        }
        let standing = scene.ask("HEAD", &path, &[("tus-resumable", "1.0.0")], "").await;
        assert_eq!((standing.status(), &standing.headers()["upload-offset"]), (StatusCode::OK, &"4".parse().unwrap()));
    }
}

/// The disk does not answer: whoever comes meanwhile is told to come back, in every dialect, and finds everything once it
/// does.
#[tokio::test]
async fn a_store_that_does_not_answer_makes_nobody_wait_for_ever() {
    let mut scenes = JoinSet::new();
    for (method, headers) in [("PATCH", TUS), ("PATCH", IETF), ("PUT", RANGES)] {
        scenes.spawn(async move {
            let scene = Arc::new(Scene::start());
            let path = scene.begun().await;
            scene.faults.set(Fault::HoldSync, true);
            let mut running = JoinSet::new();
            let append = || {
                let (scene, path) = (Arc::clone(&scene), path.clone());
                async move { scene.ask(method, &path, headers, "ef").await }
            };
            running.spawn(append());
            let told = loop {
                // One at a time waits for the disk; the other is answered, as overtaken when it came too early.
                running.spawn(append());
                let answer = running.join_next().await.unwrap().unwrap();
                let (status, again) = (answer.status(), answer.headers().contains_key(RETRY_AFTER));
                if slug(answer).await.ends_with("-busy") {
                    break (status, again);
                }
            };
            assert_eq!(told, (StatusCode::SERVICE_UNAVAILABLE, true), "{method} {headers:?}");
            scene.faults.set(Fault::HoldSync, false);
            while running.join_next().await.is_some() {}
            let standing = scene.ask("HEAD", &path, &[("tus-resumable", "1.0.0")], "").await;
            let offset = standing.headers()["upload-offset"].to_str().unwrap();
            assert_eq!((standing.status(), offset), (StatusCode::OK, "6"), "{method} {headers:?}");
        });
    }
    while let Some(done) = scenes.join_next().await {
        done.unwrap();
    }
}

/// Whatever passes by itself is a 503 with a time to come back at, in every dialect; tus's 423 is never used.
#[test]
fn what_passes_by_itself_asks_the_client_to_come_back() {
    for refusal in [tus::refusal, ietf::refusal, content_range::refusal] {
        let busy = UploadError::Store(StoreError::new(StoreErrorKind::Busy, "writing"));
        for (error, slug) in
            [(UploadError::Busy, "upload-busy"), (busy, "store-busy"), (UploadError::Closing, "closing")]
        {
            let response = refusal(error).into_response();
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{slug}");
            assert!(response.headers().contains_key(RETRY_AFTER), "{slug}");
        }
    }
}
