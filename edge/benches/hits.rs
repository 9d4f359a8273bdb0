//! What a hit costs, without sockets: requests straight into the router, bodies read to their ends, on one thread.
//!
//! One JSON line a figure. `ns` of a request from memory, small and large, and from disk into memory. Run it on this
//! tree and on another, in turns: only ratios mean anything.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a bench prints, and ends at the first surprise"
)]
#![allow(missing_docs, reason = "a bench has no readers of its documentation")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::get;
use http_body_util::BodyExt as _;
use tower::ServiceExt as _;
use waxwing_edge::{Config, Edge};
use waxwing_protocol::blob::{BlobHasher, GROUP_BYTES};
use waxwing_protocol::grant::{Grant, GrantKeys, GrantSigner, MEDIA_LIFETIME};
use waxwing_protocol::headers::WAXWING_BLOB_BYTES;
use waxwing_protocol::range::parse_ranges;
use waxwing_protocol::{BlobId, Timestamp};

type Blobs = Arc<Mutex<HashMap<String, (Bytes, Bytes)>>>;

fn store(blobs: &Blobs, seed: u64, len: usize) -> BlobId {
    let mut bytes = Vec::with_capacity(len);
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill({
        bytes.resize(len, 0);
        &mut bytes
    });
    let mut outboard = Vec::new();
    let mut hasher = BlobHasher::new();
    hasher.update(&bytes, |cv| outboard.extend_from_slice(cv));
    let id = hasher.finish(|cv| outboard.extend_from_slice(cv));
    if len as u64 <= GROUP_BYTES {
        outboard.clear();
    }
    blobs.lock().unwrap().insert(id.to_string(), (bytes.into(), outboard.into()));
    id
}

async fn origin(blobs: Blobs) -> String {
    let blob = async |State(blobs): State<Blobs>, Path(id): Path<String>, headers: HeaderMap| {
        let bytes = blobs.lock().unwrap()[&id].0.clone();
        let spec = parse_ranges(headers[RANGE].to_str().unwrap()).unwrap()[0];
        let range = spec.resolve(bytes.len() as u64).unwrap();
        let told = [(CONTENT_RANGE, range.content_range(bytes.len() as u64))];
        (StatusCode::PARTIAL_CONTENT, told, bytes.slice(range.start as usize..range.end as usize)).into_response()
    };
    let outboard = async |State(blobs): State<Blobs>, Path(id): Path<String>| {
        let (bytes, outboard) = blobs.lock().unwrap()[&id].clone();
        ([(WAXWING_BLOB_BYTES, bytes.len().to_string())], outboard).into_response()
    };
    let router = Router::new()
        .route("/origin/v1/blobs/{id}", get(blob))
        .route("/origin/v1/blobs/{id}/outboard", get(outboard))
        .with_state(blobs);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

async fn ask(router: &Router, id: BlobId, bearer: &str, range: Option<&str>) -> usize {
    let mut request = Request::get(format!("/v1/blobs/{id}")).header(AUTHORIZATION, bearer);
    if let Some(range) = range {
        request = request.header(RANGE, range);
    }
    let mut body = router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap().into_body();
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.unwrap().into_data().unwrap().len();
    }
    bytes
}

fn tell(metric: &str, rounds: &mut [f64]) {
    rounds.sort_by(f64::total_cmp);
    let (n, median) = (rounds.len(), rounds[rounds.len() / 2]);
    println!(
        r#"{{"bench": "edge", "metric": "{metric}", "value": {median:.0}, "unit": "ns", "who": "waxwing", "n": {n}, "min": {:.0}, "max": {:.0}}}"#,
        rounds[0],
        rounds[n - 1]
    );
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let blobs = Blobs::default();
    let url = origin(Arc::clone(&blobs)).await;
    let signer = GrantSigner::from_seed(&[5; 32]);
    let keys = Arc::new(GrantKeys::from_jwks(&signer.jwks()).unwrap());
    let grant = signer.mint(&Grant::Media, Timestamp::from(SystemTime::now()), MEDIA_LIFETIME, [1; 16]).text;
    let bearer = format!("Bearer {grant}");
    let edge = open(url.clone(), Arc::clone(&keys), 0, 512 << 20).await;
    let router = edge.router();
    let large = store(&blobs, 3, 64 << 20);
    for (metric, id, range, expected, times) in [
        ("hit_ns_4k", store(&blobs, 1, 4 << 10), None, 4 << 10, 40_000),
        ("hit_ns_100k", store(&blobs, 2, 100 << 10), None, 100 << 10, 40_000),
        ("hit_ns_1m_of_64m", large, Some("bytes=5242880-6291455"), 1 << 20, 40_000),
        ("hit_ns_64m", large, None, 64 << 20, 400),
    ] {
        let mut rounds = Vec::new();
        for _ in 0..7 {
            assert_eq!(ask(&router, id, &bearer, range).await, expected);
            let began = Instant::now();
            for _ in 0..times {
                ask(&router, id, &bearer, range).await;
            }
            rounds.push(began.elapsed().as_nanos() as f64 / f64::from(times));
        }
        tell(metric, &mut rounds);
    }
    disk(&blobs, url, keys, &bearer).await;
}

async fn open(url: String, keys: Arc<GrantKeys>, disk_bytes: u64, memory_bytes: u64) -> Edge {
    let dir = tempfile::tempdir().unwrap().keep();
    let config = Config { disk_bytes, memory_bytes, ..Config::default() };
    Edge::open(config, &dir, url, "grant".into(), keys).await.unwrap()
}

/// A memory too small for what is read in turns, so that every read comes from disk.
async fn disk(blobs: &Blobs, url: String, keys: Arc<GrantKeys>, bearer: &str) {
    let edge = open(url, keys, 1 << 30, 4 << 20).await;
    let router = edge.router();
    let large = store(blobs, 4, 64 << 20);
    ask(&router, large, bearer, None).await;
    edge.close().await;
    let before = edge.stats();
    let mut rounds = Vec::new();
    for _ in 0..7 {
        let began = Instant::now();
        assert_eq!(ask(&router, large, bearer, None).await, 64 << 20);
        rounds.push(began.elapsed().as_nanos() as f64);
    }
    tell("disk_ns_64m", &mut rounds);
    let asked = edge.stats().origin_bytes - before.origin_bytes;
    assert!(asked < 64 << 20, "{asked} bytes came from the origin: that was no measure of the disk");
}
