//! Edges before edges: each byte fetched from the origin once, and no neighbour that dies, lies or points back does harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use http::header::AUTHORIZATION;
use tempfile::TempDir;
use tokio::net::TcpListener;
use waxwing_edge::{Config, Edge, Stats};
use waxwing_protocol::BlobId;
use waxwing_protocol::grant::{Audience, Grant, GrantKeys};

use super::harness::{Answer, GROUP, SLICE, ask_at, media_grant, now, path, sample_bytes, signer};
use super::origin::{Asked, Manner, Origin};

const DAY: Duration = Duration::from_secs(86_400);

/// An address that an edge will serve at.
struct Place(TcpListener);

/// A running edge.
struct Node {
    url: String,
    edge: Edge,
    _dir: TempDir,
}

impl Place {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// An edge here, before `origin`, with these neighbours.
    async fn serve(self, origin: &Origin, config: Config) -> Node {
        let url = self.url();
        let keys = Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap());
        let dir = TempDir::new().unwrap();
        let config = Config { own_url: Some(url.clone()), ..config };
        let edge = Edge::open(config, dir.path(), origin.url(), edge_grant(), keys).await.unwrap();
        let router = edge.router();
        tokio::spawn(async move { axum::serve(self.0, router).await.unwrap() });
        Node { url, edge, _dir: dir }
    }
}

impl Node {
    async fn get(&self, id: BlobId) -> Answer {
        let addr = self.url.strip_prefix("http://").unwrap().parse().unwrap();
        ask_at(addr, id, &media_grant()).await.expect("an answer")
    }

    fn stats(&self) -> Stats {
        self.edge.stats()
    }
}

fn edge_grant() -> String {
    signer().mint(&Grant::Edge { node: "e".into() }, now(), DAY, [0; 16]).text
}

/// Edges that are one another's peers.
async fn peers(origin: &Origin, count: usize, config: Config) -> Vec<Node> {
    let mut places = Vec::new();
    for _ in 0..count {
        places.push(Place::new().await);
    }
    let peers: Vec<_> = places.iter().map(Place::url).collect();
    let mut nodes = Vec::new();
    for place in places {
        nodes.push(place.serve(origin, Config { peers: peers.clone(), ..config.clone() }).await);
    }
    nodes
}

/// An edge that asks `neighbour` before the origin, whatever is asked for.
async fn before(neighbour: &Origin, origin: &Origin, config: Config) -> Node {
    Place::new().await.serve(origin, Config { peers: vec![neighbour.url()], ..config }).await
}

/// What the origin was asked since `before`, checked to be no byte twice; how many requests.
#[track_caller]
fn assert_asked_once(asked: &[Asked], blob_bytes: usize) -> usize {
    let mut ranges: Vec<_> = asked
        .iter()
        .filter_map(|asked| match asked {
            Asked::Range(start, end) => Some((*start, (*end).min(blob_bytes as u64))),
            Asked::Outboard => None,
        })
        .collect();
    ranges.sort_unstable();
    let mut at = 0;
    for (start, end) in &ranges {
        assert_eq!(*start, at, "a gap or a byte twice: {ranges:?}");
        at = *end;
    }
    assert_eq!(at, blob_bytes as u64);
    ranges.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_edges_cost_the_origin_each_slice_once() {
    let origin = Origin::start().await;
    let edges = peers(&origin, 3, Config::default()).await;
    // More than a stretch, and so more than one responsible edge for the largest.
    for len in [1, 5_000, GROUP + 1, 3 * SLICE + 77, 70 * SLICE + 5] {
        let bytes = sample_bytes(len);
        let seen = origin.asked().len();
        let id = origin.store(bytes.clone());
        let answers = futures_util::future::join_all(edges.iter().map(|edge| edge.get(id))).await;
        answers.iter().for_each(|answer| answer.assert_is(StatusCode::OK, &bytes));
        let asked = origin.asked().split_off(seen);
        assert_asked_once(&asked, len);
        let outboards = asked.iter().filter(|asked| **asked == Asked::Outboard).count();
        assert!(outboards <= if len > 64 * SLICE { 2 } else { 1 }, "{outboards} outboards for {len} bytes");
    }
    let stats: Vec<_> = edges.iter().map(Node::stats).collect();
    assert!(stats.iter().all(|stats| stats.peer_lies + stats.peer_failovers + stats.circles == 0), "{stats:?}");
    assert!(stats.iter().map(|stats| stats.served_edges).sum::<u64>() > 0);
    // The origin was shown edges' grants alone.
    let keys = GrantKeys::from_jwks(&signer().jwks()).unwrap();
    for shown in origin.authorizations() {
        keys.verify(shown.strip_prefix("Bearer ").unwrap(), &[Audience::Edge], now()).unwrap();
    }
}

#[tokio::test]
async fn a_shield_stands_before_the_origin_and_each_hop_says_what_it_did() {
    let origin = Origin::start().await;
    let shield = Place::new().await;
    let config = Config { shields: vec![shield.url()], ..Config::default() };
    let shield = shield.serve(&origin, config.clone()).await;
    let (first, second) = (Place::new().await, Place::new().await);
    let (first, second) = (first.serve(&origin, config.clone()).await, second.serve(&origin, config).await);
    let bytes = sample_bytes(2 * SLICE);
    let id = origin.store(bytes.clone());
    const MISS: &str = "waxwing; fwd=uri-miss; fwd-status=206; stored";
    let cold = first.get(id).await;
    cold.assert_is(StatusCode::OK, &bytes);
    assert!(cold.header("cache-status").ends_with(&format!(", {MISS}")), "{}", cold.header("cache-status"));
    let warm_there = second.get(id).await;
    warm_there.assert_is(StatusCode::OK, &bytes);
    assert_eq!(warm_there.header("cache-status"), format!("waxwing; hit, {MISS}"));
    assert_eq!(second.get(id).await.header("cache-status"), "waxwing; hit");
    assert_asked_once(&origin.asked(), bytes.len());
    assert_eq!(shield.stats().origin_requests - 1, 1 + 1, "an outboard and the bytes, beside the purge log");
}

/// The bytes before the cut are kept; the rest comes from the next in line, and no client notices.
#[tokio::test]
async fn a_peer_that_dies_amid_a_body_is_replaced_where_it_stood() {
    let (origin, peer) = (Origin::start().await, Origin::start().await);
    let edge = before(&peer, &origin, Config { peer_check_ms: 60_000, ..Config::default() }).await;
    let bytes = sample_bytes(2 * SLICE + 99);
    let id = origin.store(bytes.clone());
    peer.store(bytes.clone());
    peer.behave(Manner::CutAt(SLICE as u64 + 5 * GROUP as u64 + 7));
    edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(
        origin.asked(),
        [Asked::Range((SLICE + 5 * GROUP) as u64, 8 * SLICE as u64)].map(|asked| match asked {
            // A cut may lose what was written last.
            Asked::Range(..) => origin.asked()[0].clone(),
            Asked::Outboard => asked,
        })
    );
    let resumed = origin.ranges_asked()[0].0;
    assert!(resumed > 0 && resumed % GROUP as u64 == 0, "{resumed}");
    let stats = edge.stats();
    assert_eq!((stats.peer_failovers, stats.peer_lies, stats.peers_usable), (1, 0, 0));
    assert!(stats.peer_bytes >= SLICE as u64);
}

#[tokio::test]
async fn a_peer_that_lies_is_found_out_counted_and_left_out() {
    for manner in [
        Manner::FlipAt(SLICE as u64 + 17),
        Manner::ForeignOutboard,
        Manner::IgnoreRange,
        Manner::ShiftRange,
        Manner::NoOutboardSize,
    ] {
        let (origin, peer) = (Origin::start().await, Origin::start().await);
        let edge = before(&peer, &origin, Config { peer_check_ms: 60_000, ..Config::default() }).await;
        let bytes = sample_bytes(2 * SLICE);
        let id = origin.store(bytes.clone());
        peer.store(bytes.clone());
        peer.behave(manner);
        edge.get(id).await.assert_is(StatusCode::OK, &bytes);
        let stats = edge.stats();
        assert!(stats.peer_lies > 0 && stats.peers_usable == 0 && stats.origin_lies == 0, "{manner:?}: {stats:?}");
        let asked = peer.asked().len();
        let other = origin.store(sample_bytes(77));
        edge.get(other).await.assert_is(StatusCode::OK, &sample_bytes(77));
        assert_eq!(peer.asked().len(), asked, "{manner:?}");
    }
}

/// A false size is found out at the last group only. The reader is cut off visibly, once; the next is served.
#[tokio::test]
async fn a_peer_with_a_false_size_spoils_one_answer_at_most() {
    let (origin, peer) = (Origin::start().await, Origin::start().await);
    let edge = before(&peer, &origin, Config { peer_check_ms: 60_000, ..Config::default() }).await;
    // With the byte more it has as many chunk groups, and so an outboard that fits.
    let bytes = sample_bytes(2 * SLICE - 10);
    let id = origin.store(bytes.clone());
    peer.store(bytes.clone());
    peer.behave(Manner::Padded);
    let spoiled = edge.get(id).await;
    assert!(!spoiled.is_whole || spoiled.status == StatusCode::BAD_GATEWAY || spoiled.body == bytes);
    edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert!(edge.stats().peer_lies > 0);
}

/// What a peer does not have, or says it does not, is the origin's to say.
#[tokio::test]
async fn a_peer_has_no_last_word() {
    let (origin, peer) = (Origin::start().await, Origin::start().await);
    let edge = before(&peer, &origin, Config::default()).await;
    let bytes = sample_bytes(GROUP + 1);
    let id = origin.store(bytes.clone());
    edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert!(!peer.asked().is_empty() && edge.stats().peers_usable == 1);
    let absent = Origin::start().await.store(sample_bytes(3));
    assert_eq!(edge.get(absent).await.refusal(), "404 blob-not-found");
}

/// A peer that accepts connections and says nothing costs one time-out, not one a request, until a check finds it.
#[tokio::test]
async fn a_dead_peer_costs_one_time_out() {
    let (origin, peer) = (Origin::start().await, Origin::start().await);
    let config = Config {
        // Long enough that who answers at all has answered by then, also on a machine that has other things to do.
        upstream_answer_timeout_ms: 2_000,
        upstream_connect_timeout_ms: 2_000,
        peer_check_ms: 2_000,
        peer_fall: 1,
        ..Config::default()
    };
    let edge = before(&peer, &origin, config).await;
    // Alive at first, so that the request is what finds it dead.
    let first = origin.store(sample_bytes(3));
    peer.store(sample_bytes(3));
    edge.get(first).await.assert_is(StatusCode::OK, &sample_bytes(3));
    let before = edge.stats().peer_requests;
    peer.behave(Manner::Mute);
    let began = Instant::now();
    for n in 0..30 {
        let bytes = sample_bytes(100 + n);
        let id = origin.store(bytes.clone());
        peer.store(bytes.clone());
        edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    }
    assert!(edge.stats().peer_requests - before <= 2, "outboard and bytes of the first: {:?}", edge.stats());
    // Back, it has to be found good twice.
    peer.behave(Manner::Honest);
    while edge.stats().peers_usable == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(began.elapsed() > Duration::from_millis(2_000));
    let bytes = sample_bytes(9);
    let id = peer.store(bytes.clone());
    origin.store(bytes.clone());
    let asked = origin.asked().len();
    edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert_eq!(origin.asked().len(), asked);
}

/// Two edges that were told that the other stands before the origin, and one that was told so of itself.
#[tokio::test]
async fn edges_that_point_at_one_another_make_no_storm() {
    let origin = Origin::start().await;
    let (a, b) = (Place::new().await, Place::new().await);
    let itself = a.url().replace("127.0.0.1", "localhost");
    let config = |shields: Vec<String>| Config { shields, peer_check_ms: 60_000, ..Config::default() };
    let (a_shields, b_shields) = (vec![b.url(), itself], vec![a.url()]);
    let (a, b) = (a.serve(&origin, config(a_shields)).await, b.serve(&origin, config(b_shields)).await);
    let bytes = sample_bytes(SLICE + 1);
    let id = origin.store(bytes.clone());
    a.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert!(a.stats().circles + b.stats().circles > 0);
    assert_asked_once(&origin.asked(), bytes.len());

    // With nobody at the end of the way, there is an answer, and a bound to what it costs.
    origin.behave(Manner::Status(503));
    let lost = origin.store(sample_bytes(SLICE + 2));
    let (requests, asked) = (a.stats().peer_requests + b.stats().peer_requests, origin.asked().len());
    let refused = a.get(lost).await;
    assert_eq!(refused.refusal(), "504 origin-unavailable");
    let requests = a.stats().peer_requests + b.stats().peer_requests - requests;
    let asked = origin.asked().len() - asked;
    assert!(requests <= 12 && asked <= 12, "{requests} requests among edges, {asked} to the origin");
}

/// A request that has been here, or has passed too many, ends here.
#[tokio::test]
async fn circles_and_long_ways_are_refused() {
    let origin = Origin::start().await;
    let node = Place::new().await.serve(&origin, Config::default()).await;
    let id = origin.store(sample_bytes(10));
    let client = asking(&node);
    assert_eq!(client.ask(id, &edge_grant(), &[("range", "bytes=0-99")]).await.0, 206);
    assert_eq!(client.ask(id, &edge_grant(), &[("range", "bytes=0-99"), ("waxwing-hops", "4")]).await.0, 508);
    assert_eq!(client.ask(id, &edge_grant(), &[("range", "bytes=0-99"), ("waxwing-hops", "x")]).await.0, 400);
    assert_eq!(client.ask(id, &edge_grant(), &[]).await.0, 400);
    // Clients do not ask here.
    assert_eq!(client.ask(id, &media_grant(), &[("range", "bytes=0-99")]).await.0, 403);
    assert_eq!(client.ask(id, "no grant", &[("range", "bytes=0-99")]).await.0, 401);
    // Behind with purges.
    assert_eq!(client.ask(id, &edge_grant(), &[("range", "bytes=0-99"), ("waxwing-purges", "1")]).await.0, 503);
    assert_eq!(node.stats().circles, 2);
}

/// Another edge, by its own bytes.
struct Asking(String);

fn asking(node: &Node) -> Asking {
    Asking(node.url.strip_prefix("http://").unwrap().to_owned())
}

impl Asking {
    /// Status and text of an answer to another edge.
    async fn ask(&self, id: BlobId, grant: &str, headers: &[(&str, &str)]) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.0).await.unwrap();
        let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let path = path(id).replace("/v1/", "/peer/v1/");
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{AUTHORIZATION}: Bearer {grant}\r\n{lines}\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }
}

/// An edge that has dropped a purged blob must not get it back from one that has not heard of the purge.
#[tokio::test]
async fn a_purged_blob_does_not_come_back_from_a_peer_that_is_behind() {
    let origin = Origin::start().await;
    let shield = Place::new().await;
    let url = shield.url();
    // It never hears of any purge.
    let shield = shield.serve(&origin, Config { purge_poll_ms: 0, ..Config::default() }).await;
    let config = Config { shields: vec![url], purge_poll_ms: 5, absent_ms: 0, ..Config::default() };
    let edge = Place::new().await.serve(&origin, config).await;
    let bytes = sample_bytes(SLICE);
    let id = origin.store(bytes.clone());
    edge.get(id).await.assert_is(StatusCode::OK, &bytes);
    assert!(shield.stats().served_edges > 0);
    origin.purge(id);
    origin.wait_for_purges_known().await;
    assert_eq!(edge.get(id).await.refusal(), "404 blob-not-found");
    assert_eq!(shield.get(id).await.status, StatusCode::OK, "it has it still");
}

/// One that is about to stop answers no checks, so that its share goes elsewhere before it does.
#[tokio::test]
async fn a_draining_edge_is_asked_no_more() {
    let origin = Origin::start().await;
    let edges = peers(&origin, 2, Config { peer_check_ms: 10, ..Config::default() }).await;
    assert!(edges[0].edge.is_ready());
    edges[0].edge.drain();
    assert!(!edges[0].edge.is_ready());
    while edges[1].stats().peers_usable > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let served = edges[0].stats().served_edges;
    for n in 0..10 {
        let bytes = sample_bytes(10 + n);
        let id = origin.store(bytes.clone());
        edges[1].get(id).await.assert_is(StatusCode::OK, &bytes);
    }
    assert_eq!(edges[0].stats().served_edges, served);
}
