//! The messaging core: accounts, the key directory, grants, and mailboxes delivered over WebSocket.
//!
//! A message is worth something only if it arrives: once, whole, in order, however often servers and clients die on the
//! way. So every device has a durable mailbox, which is the only source of truth; what travels beside it, from sender to
//! a connected recipient, is an optimisation that may lose everything.
//!
//! Promises: what a sender was told is stored is stored (synced) and goes only when the recipient's device has acked it
//! or it has expired; sending twice is storing once; within a lane nothing overtakes. The server sees ciphertext,
//! sizes, times, and who writes to whom; never content or keys.
//!
//! A request walks `http -> accounts | keys | grants -> store`, a message `http::socket -> connection -> delivery ->
//! store`, and from the store's commit by the fabric to the recipient's connection.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

mod accounts;
mod addresses;
mod admission;
mod channels;
mod clock;
mod config;
mod connection;
mod delivery;
mod devices;
mod fabric;
mod fault;
mod fill;
mod grants;
mod groups;
mod http;
mod invites;
mod keys;
mod limits;
mod links;
pub mod metrics;
mod node;
mod opening;
mod presence;
mod push;
mod reports;
mod secrets;
mod sessions;
mod store;
mod survey;
mod sweeper;
mod wire;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::Notify;
use tracing::info;
use waxwing_protocol::grant::{GrantToken, Jwks};

pub use self::config::{ApnsConfig, Config, ConfigError, FcmConfig, PostgresConfig, PushConfig, WebConfig};
pub use self::fill::fill;
pub use self::grants::mint_edge_grant;
pub use self::invites::{InviteCode, mint_invite};
pub use self::limits::LimitView;
pub use self::opening::OpenError;
pub use self::push::CredentialsError;
pub use self::secrets::SecretError;
pub use self::survey::{AccountSurvey, DeviceSurvey, LaneSurvey, StoredSurvey, SurveyError};

use self::accounts::Accounts;
use self::addresses::Addresses;
use self::admission::Admission;
use self::channels::Channels;
use self::clock::Clock;
use self::delivery::Delivery;
use self::devices::Devices;
use self::fabric::Fabric;
use self::groups::Groups;
use self::keys::Keys;
use self::limits::Limit;
use self::links::Links;
use self::node::Node;
use self::opening::{Opened, Stores};
use self::presence::Presence;
use self::push::Push;
use self::reports::Reports;
use self::sessions::Sessions;

/// A messaging node. Clones are the same node.
#[derive(Clone)]
pub struct Messaging {
    node: Arc<Node>,
    stop_sweeper: Arc<Notify>,
    stop_waking: Arc<Notify>,
}

impl Messaging {
    /// Opens the node whose state is in `data_dir`, making it the first time. One process at a time can.
    ///
    /// # Errors
    /// [`OpenError`] tells what stands in the way. Nothing is changed then.
    pub async fn open(config: Config, data_dir: &Path) -> Result<Self, OpenError> {
        config.check()?;
        let fabric = Arc::new(Fabric::default());
        let Opened { stores, grants, invites, providers } = opening::open(&config, data_dir, fabric.clone()).await?;
        let Stores { mailboxes, directory, groups, channels, targets } = stores;
        let interval = config::seconds(config.sweep_interval_s);
        let clock = Arc::new(Clock::start());
        let push = Push::new(&config.push, providers, targets, mailboxes.clone(), fabric.clone(), clock.clone());
        let push = Arc::new(push);
        let node = Arc::new(Node {
            clock: clock.clone(),
            accounts: Accounts::new(directory.clone(), invites, &config),
            addresses: Addresses::new(&config),
            keys: Keys::new(directory.clone(), fabric.clone(), &config),
            devices: Devices::new(directory.clone(), fabric.clone()),
            links: Links::default(),
            grants,
            delivery: Delivery::new(mailboxes.clone(), groups.clone(), fabric.clone(), &config),
            groups: Groups::new(groups, directory.clone(), &config),
            channels: Channels::new(channels, directory.clone(), &config),
            presence: Arc::new(Presence::new(directory, fabric.clone(), clock)),
            push: push.clone(),
            fabric,
            mailboxes,
            hellos: Limit::new("hellos", config.hellos_per_minute, Duration::from_secs(60)),
            admission: Admission::new(&config),
            sessions: Sessions::default(),
            reports: Reports::new(data_dir),
            config,
        });
        let (stop_sweeper, stop_waking) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        tokio::spawn(sweeper::run(Arc::downgrade(&node), interval, stop_sweeper.clone()));
        tokio::spawn(presence::run(Arc::downgrade(&node)));
        tokio::spawn(channels::relay(Arc::downgrade(&node), node.fabric.relay.clone()));
        tokio::spawn(groups::tell_receipts(Arc::downgrade(&node), node.fabric.clone()));
        if push.is_used() {
            push::start(&push, stop_waking.clone());
        }
        info!(data_dir = %data_dir.display(), "messaging is open");
        Ok(Self { node, stop_sweeper, stop_waking })
    }

    /// The HTTP interface and the socket.
    pub fn router(&self) -> Router {
        http::router(self.node.clone())
    }

    /// The public keys that verify this node's grants.
    pub fn jwks(&self) -> Jwks {
        self.node.grants.jwks()
    }

    /// Mints a grant for the edge named `node`, to last `lifetime` from now.
    pub fn mint_edge_grant(&self, node: &str, lifetime: Duration) -> GrantToken {
        self.node.grants.mint_edge(node, lifetime, self.node.clock.wall())
    }

    /// Whether messages can be taken: false for good once the store became read-only.
    pub fn is_ready(&self) -> bool {
        self.node.mailboxes.is_writable()
    }

    /// Goes away in order: connections are told when to come back and closed, what was accepted is committed. Requests
    /// that come later are answered with `unavailable`. The data directory is free when the last clone, router and
    /// connection are dropped.
    pub async fn close(&self) {
        self.stop_sweeper.notify_one();
        self.stop_waking.notify_one();
        let mut waves = self.node.fabric.drain();
        while self.node.fabric.drain_wave(&mut waves) {
            tokio::time::sleep(WAVE_PAUSE).await;
        }
        self.node.fabric.emptied(DRAIN_LIMIT).await;
        self.node.mailboxes.close().await;
        info!("messaging is closed");
    }
}

/// Time between two waves of goodbyes: those of a wave are answered and gone meanwhile.
const WAVE_PAUSE: Duration = Duration::from_millis(200);

/// How long closing waits for connections to say goodbye.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
