//! Whom the requests go to: an edge of this binary, or a peer that has files of the same sizes.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use axum::http::Uri;
use reqwest::StatusCode;
use tokio::process::Child;
use waxwing_client::{Client, RegisterOptions};
use waxwing_protocol::BlobId;
use waxwing_protocol::api::GrantRequest;
use waxwing_protocol::headers::WAXWING_BLOB;

use super::{Files, Kind};
use crate::commands::bench::noise;
use crate::commands::bench::server::{Process, pin_generator, pinned};
use crate::commands::own_service;

/// The edge as an operator would run it alone: both tiers, an access log, metrics.
const EDGE_ALONE: &str = r#"
roles = ["edge"]
admin_listen = "127.0.0.1:0"
connections_max = 100000
[edge]
memory_bytes = 268435456
disk_bytes = 2147483648
access_log = "access.log"
[cluster]
jwks_file = "jwks.json"
edge_grant_file = "edge.grant"
"#;

/// How long the edge's grant lasts.
const GRANT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Media grants that the connections show: as many clients as there are connections.
const CLIENTS: usize = 64;

/// A server that is measured.
pub(super) struct Target {
    /// Its name in the figures.
    pub(super) who: String,
    pub(super) address: SocketAddr,
    pub(super) process: Process,
    /// Whether it and the generator have a core each.
    pub(super) is_apart: bool,
    paths: Paths,
}

/// How its files are asked for.
enum Paths {
    /// By their blobs' ids, with a grant.
    Own { files: Files<String>, grants: Vec<String> },
    /// By their names, in the place of `{}`.
    Named { host: String, pattern: String },
}

/// An edge before an origin of its own.
pub(super) struct Service {
    pub(super) edge: SocketAddr,
    pub(super) process: Process,
    pub(super) origin: SocketAddr,
    /// Whether edge and generator have a core each.
    pub(super) is_apart: bool,
    /// What the edge shows the origin.
    pub(super) edge_grant: String,
    grants: Vec<String>,
    client: Client,
    http: reqwest::Client,
    _processes: [Child; 2],
}

impl Service {
    /// Starts both: the edge on the first core; this process, the generator, and the origin, which idles while hits are
    /// counted, on the second.
    pub(super) async fn start(dir: &Path) -> anyhow::Result<Self> {
        let (origin_dir, edge_dir) = (dir.join("origin"), dir.join("edge"));
        std::fs::create_dir_all(&origin_dir)?;
        std::fs::create_dir_all(&edge_dir)?;
        let is_apart = pin_generator().await;
        let program = std::env::current_exe()?;
        let (origin_process, origin) = own_service::start(tokio::process::Command::new(program), &origin_dir).await?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let jwks = http.get(format!("http://{origin}/.well-known/jwks.json")).send().await?.bytes().await?;
        std::fs::write(edge_dir.join("jwks.json"), jwks)?;
        let messaging = origin_dir.join("data/messaging");
        let edge_grant = waxwing_messaging::mint_edge_grant(&messaging, "bench", GRANT_LIFETIME)?.text;
        std::fs::write(edge_dir.join("edge.grant"), &edge_grant)?;
        let config = edge_dir.join("edge.toml");
        std::fs::write(&config, format!("{EDGE_ALONE}origin_url = \"http://{origin}\"\n"))?;
        let (edge_process, edge) = own_service::start_with(pinned().await?, &edge_dir, &config).await?;
        let process = Process { pid: edge_process.id().context("the edge ended by itself")? };
        let options = RegisterOptions { server: format!("http://{origin}"), handle: "bench".parse()?, invite: None };
        let client = Client::register(&dir.join("profile"), options).await?;
        let mut grants = Vec::with_capacity(CLIENTS);
        for _ in 0..CLIENTS {
            grants.push(client.grant(GrantRequest::Media).await?.grant.to_string());
        }
        let (edge, origin) = (edge.parse()?, origin.parse()?);
        let _processes = [origin_process, edge_process];
        Ok(Self { edge, process, origin, is_apart, edge_grant, grants, client, http, _processes })
    }

    /// Stores a blob at the origin.
    pub(super) async fn store(&self, bytes: usize, seed: usize) -> anyhow::Result<String> {
        let grant = self.client.grant(GrantRequest::Upload).await?.grant.to_string();
        let put = self.http.put(format!("http://{}/v1/blobs", self.origin)).bearer_auth(grant).body(noise(bytes, seed));
        let answer = put.send().await?;
        ensure!(answer.status() == StatusCode::CREATED, "the origin did not take a blob: {}", answer.status());
        let id = answer.headers().get(WAXWING_BLOB).context("the origin did not name the blob")?.to_str()?;
        Ok(id.parse::<BlobId>()?.to_string())
    }

    /// The edge with files of these kinds, which it has not fetched yet.
    pub(super) async fn target(&self, kinds: &[Kind]) -> anyhow::Result<Target> {
        let mut files = Files::default();
        for kind in kinds {
            for n in 0..kind.files() {
                files.of(*kind).push(self.store(kind.file_bytes(), 1000 * *kind as usize + n).await?);
            }
        }
        let paths = Paths::Own { files, grants: self.grants.clone() };
        let (address, process, is_apart) = (self.edge, self.process, self.is_apart);
        Ok(Target { who: "waxwing".to_owned(), address, process, is_apart, paths })
    }

    /// A request to the edge for a blob.
    pub(super) fn request(&self, id: &str, range: Option<(usize, usize)>) -> Vec<u8> {
        own_request(id, &self.grants[0], range)
    }

    /// The same to the origin, as the edge asks.
    pub(super) fn request_to_origin(&self, id: &str, range: Option<(usize, usize)>) -> Vec<u8> {
        request(&self.origin.to_string(), &format!("/origin/v1/blobs/{id}"), Some(&self.edge_grant), range)
    }
}

impl Target {
    /// A peer, which has to be running.
    pub(super) fn peer(peer: Peer, is_apart: bool) -> Self {
        let Peer { name: who, host, address, pattern, pid } = peer;
        Self { who, address, process: Process { pid }, is_apart, paths: Paths::Named { host, pattern } }
    }

    /// What the connections ask for in turns.
    pub(super) fn requests(&mut self, kind: Kind) -> Vec<Vec<u8>> {
        let ranges = kind.ranges();
        let mut requests = Vec::new();
        let turns = CLIENTS.max(ranges.len() * kind.files());
        for turn in 0..turns {
            let (n, range) = (turn % kind.files(), ranges[turn % ranges.len()]);
            requests.push(match &mut self.paths {
                Paths::Own { files, grants } => own_request(&files.of(kind)[n], &grants[turn % grants.len()], range),
                Paths::Named { host, pattern } => {
                    request(host, &pattern.replace("{}", &format!("{}-{n}", kind.name())), None, range)
                }
            });
        }
        requests
    }
}

fn own_request(id: &str, grant: &str, range: Option<(usize, usize)>) -> Vec<u8> {
    request("edge.example", &format!("/v1/blobs/{id}"), Some(grant), range)
}

fn request(host: &str, path: &str, grant: Option<&str>, range: Option<(usize, usize)>) -> Vec<u8> {
    let grant = grant.map(|grant| format!("Authorization: Bearer {grant}\r\n")).unwrap_or_default();
    let range = range.map(|(first, last)| format!("Range: bytes={first}-{last}\r\n")).unwrap_or_default();
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n{grant}{range}\r\n").into_bytes()
}

/// A running server of another make: `NAME=URL,PID`. In the URL `{}` stands where a file's name goes.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    name: String,
    host: String,
    address: SocketAddr,
    pattern: String,
    pid: u32,
}

impl FromStr for Peer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let shape = "a peer is NAME=http://HOST:PORT/{},PID";
        let (name, rest) = text.split_once('=').context(shape)?;
        let (url, pid) = rest.rsplit_once(',').context(shape)?;
        let rest = url.strip_prefix("http://").context("a peer is reached by http://")?;
        let (host, path) = rest.split_once('/').context(shape)?;
        ensure!(path.contains("{}"), "{shape}: `{{}}` stands where a file's name goes");
        let address = host.to_socket_addrs()?.next().context(shape)?;
        let pattern = format!("/{path}");
        // Whatever is no path fails here and not amid a run.
        pattern.replace("{}", "x").parse::<Uri>()?;
        Ok(Self { name: name.to_owned(), host: host.to_owned(), address, pattern, pid: pid.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peers_files_are_asked_for_by_name() {
        let peer: Peer = "nginx=http://127.0.0.1:81/{}?md5=x&expires=9,4711".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.pid), ("nginx", 4711));
        let requests = Target::peer(peer, true).requests(Kind::Small);
        let first = "GET /4k-0?md5=x&expires=9 HTTP/1.1\r\nHost: 127.0.0.1:81\r\n\r\n";
        assert_eq!(String::from_utf8_lossy(&requests[0]), first);
        assert_ne!(requests[0], requests[1]);
        for wrong in ["", "nginx", "a=http://127.0.0.1:1/,1", "a=https://127.0.0.1:1/{},1", "a=http://x/{},1"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
