//! A service for tests: grants, uploads and blobs over real sockets, that fails where it is told to and records every
//! byte it was ever sent.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Json;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use waxwing_protocol::BlobId;
use waxwing_protocol::api::{GrantResponse, Registration, ServiceInfo};
use waxwing_protocol::problem::{PROBLEM_MEDIA_TYPE, Problem};
use waxwing_protocol::range::parse_ranges;

use crate::account::now;

/// What goes wrong, and when. Each happens once.
#[derive(Default)]
pub(super) struct Faults {
    /// The connection ends once an upload holds this many bytes.
    pub(super) cut_upload_at: Option<u64>,
    /// An upload that holds this many bytes stands still for good, and [`TestServer::stalled`] tells.
    pub(super) stall_upload_at: Option<u64>,
    /// The answer to the part that completes an upload is lost.
    pub(super) lose_last_answer: bool,
    /// Uploads are forgotten before the next request for one.
    pub(super) forget_uploads: bool,
    /// Uploads are forgotten before the next part.
    pub(super) forget_before_part: bool,
    /// Every request for a part is answered 503, as often as this says.
    pub(super) unavailable: u32,
    /// The next request to the uploads is answered 401.
    pub(super) grant_ended: bool,
    /// A complete upload is given this id.
    pub(super) wrong_id: Option<BlobId>,
    /// The connection ends once this many bytes of a blob are sent.
    pub(super) cut_blob_at: Option<usize>,
    /// This bit of a blob is flipped.
    pub(super) flip_bit_of: Option<usize>,
    /// A range is answered with the whole blob.
    pub(super) ignore_range: bool,
    /// A range is answered with another one.
    pub(super) wrong_range: bool,
}

/// How a request ends before its body does.
#[derive(Clone, Copy)]
enum End {
    Cut,
    Stall,
}

struct Upload {
    length: u64,
    bytes: Vec<u8>,
}

#[derive(Default)]
pub(super) struct World {
    pub(super) faults: Faults,
    uploads: HashMap<String, Upload>,
    pub(super) blobs: HashMap<BlobId, Vec<u8>>,
    /// Every byte that came, also those that were not kept: by upload, with their offsets.
    sent: BTreeMap<String, Vec<(u64, Bytes)>>,
    /// The `Range` of each request for a blob.
    pub(super) ranges: Vec<Option<String>>,
    pub(super) grants: u32,
    pub(super) terminated: Vec<String>,
    next: u32,
}

#[derive(Clone)]
pub(super) struct TestServer {
    pub(super) url: String,
    world: Arc<Mutex<World>>,
    stalled: Arc<watch::Sender<bool>>,
}

/// Ends the connection a request came over.
#[derive(Clone)]
struct Cut(Arc<Notify>);

impl Cut {
    /// Ends it, and the request with it.
    async fn now(&self) -> Response {
        self.0.notify_one();
        std::future::pending().await
    }
}

impl TestServer {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, world: Arc::default(), stalled: Arc::new(watch::Sender::new(false)) };
        let router = server.router();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let cut = Cut(Arc::default());
                let service = TowerToHyperService::new(router.clone().layer(axum::Extension(cut.clone())));
                tokio::spawn(async move {
                    let connection = hyper::server::conn::http1::Builder::new();
                    tokio::select! {
                        _ = connection.serve_connection(TokioIo::new(stream), service) => {}
                        () = cut.0.notified() => {}
                    }
                });
            }
        });
        server
    }

    pub(super) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Waits until an upload stands still, as told.
    pub(super) async fn stalled(&self) {
        self.stalled.subscribe().wait_for(|stalled| *stalled).await.unwrap();
    }

    /// Checks that no place of a blob was ever sent with two values: that would be a nonce used twice. Blobs are told
    /// apart by their headers. Gives the number of different headers.
    pub(super) fn assert_no_place_was_sealed_twice(&self) -> usize {
        let world = self.world();
        let mut blobs: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        for (upload, pieces) in &world.sent {
            let mut sent = Vec::new();
            for (start, piece) in pieces {
                join(&mut sent, *start, piece, upload);
            }
            // A blob of which not even the header came: its places were sent once.
            let Some(header) = sent.get(..40) else { continue };
            join(blobs.entry(header.to_vec()).or_default(), 0, &sent, upload);
        }
        blobs.len()
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/v1/info", get(info))
            .route("/v1/grants", post(grant))
            .route("/v1/uploads", post(create))
            .route("/v1/uploads/{id}", axum::routing::head(head).patch(append).delete(terminate))
            .route("/v1/blobs/{id}", get(blob))
            .with_state(self.clone())
    }
}

/// Adds a piece to the bytes sent so far, and compares where they overlap.
fn join(sent: &mut Vec<u8>, start: u64, piece: &[u8], upload: &str) {
    let start = start as usize;
    assert!(start <= sent.len(), "a gap before byte {start} of upload {upload}");
    let known = (sent.len() - start).min(piece.len());
    assert!(sent[start..start + known] == piece[..known], "bytes from {start} of upload {upload} were sealed twice");
    sent.extend_from_slice(&piece[known..]);
}

async fn info(State(server): State<TestServer>) -> Json<ServiceInfo> {
    let url = &server.url;
    Json(ServiceInfo {
        server: "test".into(),
        uploads_url: format!("{url}/v1/uploads"),
        blobs_url: format!("{url}/v1/blobs"),
        socket_url: url.replace("http", "ws") + "/v1/ws",
        api_url: url.clone(),
        blob_bytes_max: 1 << 40,
        registration: Registration::Open,
    })
}

async fn grant(State(server): State<TestServer>, headers: HeaderMap) -> Response {
    if headers.get("authorization").is_none_or(|value| value != "Bearer device-token") {
        return problem(401, "token");
    }
    let mut world = server.world();
    world.grants += 1;
    let expires_at = now().plus(std::time::Duration::from_secs(900));
    Json(GrantResponse { grant: format!("grant.{}", world.grants), expires_at }).into_response()
}

fn problem(status: u16, slug: &str) -> Response {
    let body = Problem::new(status, slug, slug.replace('-', " ")).to_json();
    (StatusCode::from_u16(status).unwrap(), [("content-type", PROBLEM_MEDIA_TYPE)], body).into_response()
}

/// The checks that every request to the uploads meets.
fn refused(world: &mut World, headers: &HeaderMap) -> Option<Response> {
    assert_eq!(headers["tus-resumable"], "1.0.0");
    if std::mem::take(&mut world.faults.grant_ended) {
        return Some(problem(401, "grant-expired"));
    }
    if std::mem::take(&mut world.faults.forget_uploads) {
        world.uploads.clear();
    }
    (!headers["authorization"].to_str().unwrap().starts_with("Bearer grant.")).then(|| problem(401, "grant-invalid"))
}

async fn create(State(server): State<TestServer>, headers: HeaderMap) -> Response {
    let mut world = server.world();
    if let Some(refused) = refused(&mut world, &headers) {
        return refused;
    }
    world.next += 1;
    let id = format!("u{}", world.next);
    let length = headers["upload-length"].to_str().unwrap().parse().unwrap();
    world.uploads.insert(id.clone(), Upload { length, bytes: Vec::new() });
    (StatusCode::CREATED, [("location", format!("/v1/uploads/{id}"))]).into_response()
}

fn standing(world: &World, id: &str) -> Option<HeaderMap> {
    let upload = world.uploads.get(id)?;
    let mut headers = HeaderMap::new();
    headers.insert("upload-offset", HeaderValue::from(upload.bytes.len() as u64));
    headers.insert("upload-length", HeaderValue::from(upload.length));
    if upload.bytes.len() as u64 == upload.length {
        let id = world.faults.wrong_id.unwrap_or_else(|| BlobId::from_bytes(*blake3::hash(&upload.bytes).as_bytes()));
        headers.insert("waxwing-blob", HeaderValue::from_str(&id.to_string()).unwrap());
    }
    Some(headers)
}

async fn head(State(server): State<TestServer>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let mut world = server.world();
    if let Some(refused) = refused(&mut world, &headers) {
        return refused;
    }
    standing(&world, &id).map_or_else(|| problem(404, "upload-not-found"), |headers| headers.into_response())
}

async fn append(
    State(server): State<TestServer>,
    axum::Extension(cut): axum::Extension<Cut>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let mut offset: u64 = headers["upload-offset"].to_str().unwrap().parse().unwrap();
    {
        let mut world = server.world();
        if let Some(refused) = refused(&mut world, &headers) {
            return refused;
        }
        if std::mem::take(&mut world.faults.forget_before_part) {
            world.uploads.clear();
        }
        if world.faults.unavailable > 0 {
            world.faults.unavailable -= 1;
            return problem(503, "unavailable");
        }
        match world.uploads.get(&id) {
            None => return problem(404, "upload-not-found"),
            Some(upload) if upload.bytes.len() as u64 != offset => return problem(409, "offset-mismatch"),
            Some(_) => {}
        }
    }
    let mut body = body.into_data_stream();
    while let Some(Ok(mut piece)) = body.next().await {
        let (mut end, mut kept) = (None, piece.len());
        {
            let mut world = server.world();
            let faults = &mut world.faults;
            for (at, then) in [(&mut faults.cut_upload_at, End::Cut), (&mut faults.stall_upload_at, End::Stall)] {
                if let Some(at) = at.take_if(|at| offset + piece.len() as u64 >= *at) {
                    // The bytes after it were sent as well, and are seen by whoever listens.
                    kept = kept.min((at - offset) as usize);
                    end = Some(then);
                }
            }
            world.sent.entry(id.clone()).or_default().push((offset, piece.clone()));
            piece.truncate(kept);
            world.uploads.get_mut(&id).unwrap().bytes.extend_from_slice(&piece);
        }
        offset += piece.len() as u64;
        match end {
            None => {}
            Some(End::Cut) => return cut.now().await,
            Some(End::Stall) => {
                server.stalled.send_replace(true);
                std::future::pending::<()>().await;
            }
        }
    }
    let lost = {
        let mut world = server.world();
        let upload = &world.uploads[&id];
        let complete = upload.bytes.len() as u64 == upload.length;
        if complete {
            let bytes = upload.bytes.clone();
            world.blobs.insert(BlobId::from_bytes(*blake3::hash(&bytes).as_bytes()), bytes);
        }
        complete && std::mem::take(&mut world.faults.lose_last_answer)
    };
    if lost {
        return cut.now().await;
    }
    let headers = standing(&server.world(), &id).unwrap();
    (StatusCode::NO_CONTENT, headers).into_response()
}

async fn terminate(State(server): State<TestServer>, Path(id): Path<String>) -> StatusCode {
    let mut world = server.world();
    world.uploads.remove(&id);
    world.terminated.push(id);
    StatusCode::NO_CONTENT
}

async fn blob(State(server): State<TestServer>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let mut world = server.world();
    if !headers["authorization"].to_str().unwrap().starts_with("Bearer grant.") {
        return problem(401, "grant-invalid");
    }
    let range = headers.get("range").map(|value| value.to_str().unwrap().to_owned());
    world.ranges.push(range.clone());
    let Some(mut bytes) = id.parse().ok().and_then(|id| world.blobs.get(&id).cloned()) else {
        return problem(404, "blob-not-found");
    };
    if let Some(bit) = world.faults.flip_bit_of.take() {
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    let size = bytes.len() as u64;
    let mut answer = HeaderMap::new();
    answer.insert("cache-status", HeaderValue::from_static("waxwing; hit"));
    let ignore = std::mem::take(&mut world.faults.ignore_range);
    let (status, mut start) = match range.filter(|_| !ignore) {
        Some(range) => {
            let range = parse_ranges(&range).unwrap()[0].resolve(size).unwrap();
            let told = if std::mem::take(&mut world.faults.wrong_range) { range.start + 1 } else { range.start };
            let told = format!("bytes {told}-{}/{size}", size - 1);
            answer.insert("content-range", HeaderValue::from_str(&told).unwrap());
            (StatusCode::PARTIAL_CONTENT, range.start as usize)
        }
        None => (StatusCode::OK, 0),
    };
    answer.insert("content-length", HeaderValue::from(size - start as u64));
    let cut = world.faults.cut_blob_at.take();
    let end = cut.unwrap_or(bytes.len());
    let mut pieces: Vec<std::io::Result<Bytes>> = Vec::new();
    while start < end {
        let next = (start + 50_000).min(end);
        pieces.push(Ok(Bytes::copy_from_slice(&bytes[start..next])));
        start = next;
    }
    let pieces = futures_util::stream::iter(pieces);
    if cut.is_none() {
        return (status, answer, Body::from_stream(pieces)).into_response();
    }
    // hyper ends the connection when a body fails, and drops what it has not written by then: the turns in between let
    // it write.
    let failing = futures_util::stream::once(async {
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
        Err(std::io::Error::other("cut"))
    });
    (status, answer, Body::from_stream(pieces.chain(failing))).into_response()
}
