//! A node: the roles it plays, built from one configuration and put on one router.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::trace::TraceLayer;
use tracing::info_span;
use waxwing_edge::Edge;
use waxwing_messaging::Messaging;
use waxwing_origin::Origin;
use waxwing_protocol::api::{Registration, ServiceInfo};
use waxwing_protocol::grant::{GrantKeys, Jwks};
use waxwing_protocol::problem::{PROBLEM_MEDIA_TYPE, Problem};

use super::metrics::measure;
use crate::config::{Cluster, Config, Role};

/// How long the grant lasts that an edge gets from the messaging role in its own process: longer than a process lives.
const OWN_EDGE_GRANT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where this node is reached.
#[derive(Clone, Copy)]
pub(crate) struct Reached {
    /// The public address.
    pub address: SocketAddr,
    /// `http` or `https`, as the public address speaks.
    pub scheme: &'static str,
    /// Where this process reaches its own origin by plain HTTP.
    pub origin_at: SocketAddr,
}

/// The roles of this process.
#[derive(Clone)]
pub(crate) struct Node {
    origin: Option<Origin>,
    edge: Option<Edge>,
    messaging: Option<Messaging>,
    info: InfoBase,
    /// Without a public URL this node is where a client reached it: what it is told follows its `Host`.
    addresses: Arc<Addresses>,
    /// Held as long as the node lives: two processes on one data directory would destroy it.
    _lock: Arc<File>,
}

impl Node {
    /// Opens the data directory and every role of a node that is reached as `reached` says.
    pub(crate) async fn open(config: Config, reached: Reached) -> anyhow::Result<Self> {
        let lock = lock_data(&config.data)?;
        let registration = config.messaging.registration;
        let messaging = match config.plays(Role::Messaging) {
            true => Some(Messaging::open(config.messaging.clone(), &config.data.join("messaging")).await?),
            false => None,
        };
        let keys = Arc::new(grant_keys(messaging.as_ref(), &config.cluster)?);
        // What a grant allows is what a client can upload.
        let blob_bytes_max = config.origin.blob_bytes_max.min(config.messaging.blob_bytes_max);
        let origin = match config.plays(Role::Origin) {
            true => {
                let mut origin = config.origin.clone();
                origin.public_url = origin.public_url.or_else(|| config.public_url.clone());
                Some(match config.blobs.s3.clone() {
                    Some(s3) => Origin::open_bucket(origin, s3, Arc::clone(&keys)).await?,
                    None => Origin::open(origin, &config.data.join("origin"), Arc::clone(&keys)).await?,
                })
            }
            false => None,
        };
        let edge = match config.plays(Role::Edge) {
            true => {
                let own = || format!("http://{}", reachable(reached.origin_at));
                let origin_url = config.cluster.origin_url.clone().unwrap_or_else(own);
                let grant = edge_grant(messaging.as_ref(), &config.cluster)?;
                let data = config.data.join("edge");
                Some(Edge::open(config.edge.clone(), &data, origin_url, grant, keys).await?)
            }
            false => None,
        };
        let addresses = Addresses {
            cluster: config.cluster,
            public_url: config.public_url,
            listen: reachable(reached.address),
            scheme: reached.scheme,
        };
        let info = InfoBase { blob_bytes_max, registration };
        Ok(Self { origin, edge, messaging, info, addresses: Arc::new(addresses), _lock: Arc::new(lock) })
    }

    /// Everything the public address answers.
    pub(crate) fn router(&self) -> Router {
        let (info, addresses) = (self.info, Arc::clone(&self.addresses));
        let tell = move |headers: HeaderMap| async move { Json(addresses.tell(&headers, info)) };
        let mut router = Router::new().route("/v1/info", get(tell));
        if let Some(origin) = &self.origin {
            router = router.merge(origin.router());
        }
        if let Some(edge) = &self.edge {
            router = router.merge(edge.router());
        }
        if let Some(messaging) = &self.messaging {
            router = router.merge(messaging.router());
        }
        // The path alone: headers carry grants, and a query should never have carried anything.
        let trace = TraceLayer::new_for_http().make_span_with(|request: &axum::http::Request<axum::body::Body>| {
            info_span!("request", method = %request.method(), path = request.uri().path())
        });
        router.fallback(not_found).layer(CatchPanicLayer::custom(panicked)).layer(from_fn(measure)).layer(trace)
    }

    /// What the origin answers, for the edge of this process; it asks for the edge's grant as it does elsewhere.
    pub(super) fn origin_router(&self) -> Router {
        self.origin.as_ref().map(Origin::router).unwrap_or_default().fallback(not_found)
    }

    /// Which roles this node plays that can fail, and whether each should get requests.
    pub(super) fn readiness(&self) -> Vec<(&'static str, bool)> {
        let origin = self.origin.as_ref().map(|origin| ("origin", origin.is_ready()));
        let messaging = self.messaging.as_ref().map(|messaging| ("messaging", messaging.is_ready()));
        let edge = self.edge.as_ref().map(|edge| ("edge", edge.is_ready()));
        origin.into_iter().chain(edge).chain(messaging).collect()
    }

    /// What keeps roles from getting requests, each with why.
    pub(super) fn troubles(&self) -> Vec<(&'static str, String)> {
        let origin = self.origin.as_ref().and_then(Origin::trouble).map(|why| ("origin", why));
        let messaging = self.messaging.as_ref().filter(|messaging| !messaging.is_ready());
        let messaging =
            messaging.map(|_| ("messaging", "its store is read-only until a restart, or it is stopping".to_owned()));
        let edge = self.edge.as_ref().filter(|edge| !edge.is_ready()).map(|_| ("edge", "it drains".to_owned()));
        origin.into_iter().chain(edge).chain(messaging).collect()
    }

    /// The edge, when this node plays it.
    pub(super) const fn edge(&self) -> Option<&Edge> {
        self.edge.as_ref()
    }

    /// The origin, when this node plays it.
    pub(super) const fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Messaging, when this node plays it.
    pub(super) const fn messaging(&self) -> Option<&Messaging> {
        self.messaging.as_ref()
    }

    /// Tells every role to come to an end: sockets drain, running appends commit what they have.
    pub(crate) async fn close(&self) {
        if let Some(messaging) = &self.messaging {
            messaging.close().await;
        }
        if let Some(origin) = &self.origin {
            origin.close().await;
        }
        if let Some(edge) = &self.edge {
            edge.close().await;
        }
    }
}

/// Makes the data directory, and makes sure that no other process uses it.
fn lock_data(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data).with_context(|| format!("cannot make the data directory {}", data.display()))?;
    let path = data.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("the data directory {} is not writable", data.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            bail!("the data directory {} is in use by another process", data.display())
        }
        Err(std::fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Where this process reaches itself: an unspecified address listens everywhere, but names no host.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

fn grant_keys(messaging: Option<&Messaging>, cluster: &Cluster) -> anyhow::Result<GrantKeys> {
    let jwks: Jwks = match (messaging, &cluster.jwks_file) {
        (Some(messaging), _) => messaging.jwks(),
        (None, Some(file)) => {
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            serde_json::from_slice(&text).with_context(|| format!("{} is not a JSON Web Key Set", file.display()))?
        }
        (None, None) => bail!("`cluster.jwks_file` is not set"),
    };
    Ok(GrantKeys::from_jwks(&jwks)?)
}

fn edge_grant(messaging: Option<&Messaging>, cluster: &Cluster) -> anyhow::Result<String> {
    match (&cluster.edge_grant_file, messaging) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            Ok(text.trim().to_owned())
        }
        (None, Some(messaging)) => Ok(messaging.mint_edge_grant("local", OWN_EDGE_GRANT).text),
        (None, None) => bail!("`cluster.edge_grant_file` is not set"),
    }
}

/// What `/v1/info` says whoever asks.
#[derive(Clone, Copy)]
struct InfoBase {
    blob_bytes_max: u64,
    registration: Registration,
}

/// Where clients find this node and the others.
struct Addresses {
    cluster: Cluster,
    public_url: Option<String>,
    listen: SocketAddr,
    scheme: &'static str,
}

impl Addresses {
    /// The answer to a client that reached this node with these headers.
    fn tell(&self, headers: &HeaderMap, info: InfoBase) -> ServiceInfo {
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let own = match (&self.public_url, host) {
            (Some(url), _) => url.clone(),
            (None, Some(host)) => format!("{}://{host}", self.scheme),
            (None, None) => format!("{}://{}", self.scheme, self.listen),
        };
        service_info(&self.cluster, &own, info)
    }
}

fn service_info(cluster: &Cluster, own: &str, info: InfoBase) -> ServiceInfo {
    let InfoBase { blob_bytes_max, registration } = info;
    let base = |url: &Option<String>| url.as_deref().unwrap_or(own).trim_end_matches('/').to_owned();
    let messaging = base(&cluster.messaging_base_url);
    // http becomes ws and https wss.
    let socket = messaging.replacen("http", "ws", 1);
    ServiceInfo {
        server: concat!("waxwing/", env!("CARGO_PKG_VERSION")).into(),
        uploads_url: format!("{}/v1/uploads", base(&cluster.uploads_base_url)),
        blobs_url: format!("{}/v1/blobs", base(&cluster.blobs_base_url)),
        socket_url: format!("{socket}/v1/ws"),
        api_url: messaging,
        blob_bytes_max,
        registration,
    }
}

pub(super) async fn not_found() -> Response {
    problem(&Problem::new(404, "not-found", "nothing is here; GET /v1/info tells where things are"))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    problem(&Problem::new(500, "internal", "the server failed at this request"))
}

pub(super) fn problem(problem: &Problem) -> Response {
    let status = StatusCode::from_u16(problem.status).expect("our own problems have valid statuses");
    (status, [(CONTENT_TYPE, PROBLEM_MEDIA_TYPE)], problem.to_json()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_on_other_hosts_are_named_to_clients() {
        let cluster = Cluster { blobs_base_url: Some("https://edge.example/".into()), ..Cluster::default() };
        let base = InfoBase { blob_bytes_max: 10, registration: Registration::Closed };
        let info = service_info(&cluster, "https://chat.example", base);
        assert_eq!(info.blobs_url, "https://edge.example/v1/blobs");
        assert_eq!(info.uploads_url, "https://chat.example/v1/uploads");
        assert_eq!(info.socket_url, "wss://chat.example/v1/ws");
    }

    /// A phone that reaches a laptop by its address on the network must not be sent to its own loopback.
    #[test]
    fn without_a_public_url_clients_are_told_the_host_they_asked() {
        let listen = "127.0.0.1:8460".parse().unwrap();
        let addresses = Addresses { cluster: Cluster::default(), public_url: None, listen, scheme: "http" };
        let base = InfoBase { blob_bytes_max: 10, registration: Registration::Open };
        let headers = HeaderMap::from_iter([(HOST, "192.168.1.5:8460".parse().unwrap())]);
        assert_eq!(addresses.tell(&headers, base).api_url, "http://192.168.1.5:8460");
        assert_eq!(addresses.tell(&HeaderMap::new(), base).socket_url, "ws://127.0.0.1:8460/v1/ws");
        let named = Addresses { public_url: Some("https://media.example".into()), ..addresses };
        assert_eq!(named.tell(&headers, base).blobs_url, "https://media.example/v1/blobs");
    }

    #[test]
    fn an_address_that_listens_everywhere_is_reached_on_loopback() {
        assert_eq!(reachable("0.0.0.0:5".parse().unwrap()).to_string(), "127.0.0.1:5");
        assert_eq!(reachable("[::]:5".parse().unwrap()).to_string(), "[::1]:5");
    }
}
