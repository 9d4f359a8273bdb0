//! The edges that stand nearer than the origin: peers, which share the work, and shields, which stand before it.
//!
//! Ten edges that each ask the origin for the same film cost it ten films. With peers, one of them is responsible for
//! each stretch of a blob, all reckon the same one (rendezvous hashing, so that a peer that goes moves only its own
//! share), and the origin is asked once. Shields are asked next, then the origin.
//!
//! Promises:
//! - A peer is asked for a client only, and asks no other peer: a request passes one peer, whatever lists say.
//! - What comes from a neighbour is checked as if it came from the origin; one that lies is left out and counted.
//! - A neighbour that is gone costs its askers one time-out, and no more until a check has found it again.

mod health;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use waxwing_protocol::BlobId;

use crate::fill::FillError;
use crate::stats::Counters;
use crate::upstream::Upstream;
use crate::via::Via;
use crate::{Config, EdgeError};
use health::Health;

/// Slices of a stretch: 64 MiB. Small enough that a long film is spread, large enough that neighbouring slices are
/// still asked for together.
const STRETCH_SLICES: u64 = 64;

/// Whether slice `index` begins a stretch: another edge may be responsible for it than for the one before.
pub(crate) const fn begins_stretch(index: u64) -> bool {
    index.is_multiple_of(STRETCH_SLICES)
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Peers {
    /// This edge's own URL, as others name it.
    own: Option<String>,
    /// Whether this edge is itself one of the peers.
    is_peer: bool,
    /// Whether this edge is a shield: nothing stands between it and the origin.
    is_shield: bool,
    peers: Vec<Arc<Neighbour>>,
    shields: Vec<Arc<Neighbour>>,
    /// How often each is asked whether it lives.
    pub(crate) check_pause: Duration,
}

/// Another edge.
#[derive(Debug)]
pub(crate) struct Neighbour {
    /// As it is configured.
    url: String,
    pub(crate) health: Health,
}

/// Who is to be asked for something, the nearest first, until one gives it. The origin comes after all of them.
#[derive(Debug)]
pub(crate) struct Route {
    nearer: VecDeque<Arc<Neighbour>>,
    /// Whose answer is being read; `None` when it is the origin's.
    from: Option<Arc<Neighbour>>,
    /// The way that what is asked has come.
    pub(crate) via: Arc<Via>,
}

impl Peers {
    /// The neighbours that `config` names.
    ///
    /// # Errors
    /// When a URL cannot be asked.
    pub(crate) fn new(config: &Config) -> Result<Self, EdgeError> {
        let own = config.own_url.as_deref().map(trimmed);
        let (fall, rise) = (config.peer_fall, config.peer_rise);
        let others = |urls: &[String]| {
            let others = urls.iter().map(|url| trimmed(url)).filter(|url| Some(url) != own.as_ref());
            let neighbours = others.map(|url| {
                crate::upstream::check_url(&url)?;
                Ok(Arc::new(Neighbour { url, health: Health::new(fall, rise) }))
            });
            neighbours.collect::<Result<Vec<_>, EdgeError>>()
        };
        let is_among = |urls: &[String]| urls.iter().any(|url| Some(trimmed(url)) == own);
        Ok(Self {
            is_peer: is_among(&config.peers),
            is_shield: is_among(&config.shields),
            peers: others(&config.peers)?,
            shields: others(&config.shields)?,
            check_pause: Duration::from_millis(config.peer_check_ms),
            own,
        })
    }

    /// Everyone, for whoever looks whether they live.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Neighbour>> {
        self.peers.iter().chain(&self.shields)
    }

    /// How many take requests now.
    pub(crate) fn usable(&self) -> u64 {
        self.all().filter(|neighbour| neighbour.health.is_usable()).count() as u64
    }

    /// Who is to be asked for slice `index` of blob `id`, and for its outboard with the first.
    pub(crate) fn route(&self, id: BlobId, index: u64, via: &Arc<Via>) -> Route {
        let mut nearer = VecDeque::new();
        let score = |url: &str| score(url, id, index / STRETCH_SLICES);
        if via.is_from_client() {
            let alive = self.peers.iter().filter(|peer| peer.health.is_usable());
            let best = alive.max_by_key(|peer| score(&peer.url));
            let own = self.own.as_deref().filter(|_| self.is_peer).map(score);
            // Responsible itself, it asks no other.
            nearer.extend(best.filter(|best| own.is_none_or(|own| score(&best.url) > own)).cloned());
        }
        if !self.is_shield {
            let mut shields: Vec<_> = self.shields.iter().filter(|shield| shield.health.is_usable()).cloned().collect();
            // The same for the same blob, so that shields share the work too.
            shields.sort_by_cached_key(|shield| std::cmp::Reverse(score(&shield.url)));
            nearer.extend(shields);
        }
        Route { nearer, from: None, via: Arc::clone(via) }
    }
}

impl Neighbour {
    /// Where it answers other edges, with `path` behind it.
    pub(crate) fn at(&self, path: &str) -> String {
        format!("{}/peer/v1/{path}", self.url)
    }
}

impl Route {
    /// The next neighbour to ask; `None` when it is the origin's turn.
    pub(crate) fn next(&mut self) -> Option<Arc<Neighbour>> {
        while let Some(next) = self.nearer.front() {
            // It may have been found gone since the route was made.
            if next.health.is_usable() {
                self.from = Some(Arc::clone(next));
                return self.from.clone();
            }
            self.nearer.pop_front();
        }
        self.from = None;
        None
    }

    /// Whose answer is being read; `None` when it is the origin's.
    pub(crate) const fn from(&self) -> Option<&Arc<Neighbour>> {
        self.from.as_ref()
    }

    /// Notes that what was being read ended in `error`. Gives whether there is somebody else to ask at once: when it was
    /// a neighbour's, who is not asked for this again.
    pub(crate) fn failed(&mut self, error: &FillError, counters: &Counters) -> bool {
        let Some(neighbour) = self.from.take() else { return false };
        self.nearer.pop_front();
        neighbour.blame(error, counters);
        counters.peer_failovers.fetch_add(1, Relaxed);
        true
    }
}

impl Neighbour {
    /// Draws the conclusions from `error`, which its answer ended in.
    pub(crate) fn blame(&self, error: &FillError, counters: &Counters) {
        match error {
            FillError::Lie(lie) => {
                counters.peer_lies.fetch_add(1, Relaxed);
                self.health.is_not_to_be_trusted();
                tracing::warn!("the edge {} is left out for a while: {lie}", self.url);
            }
            FillError::Unreachable { .. } | FillError::Silent(_) | FillError::Cut { .. } => {
                tracing::debug!("the edge {} is left out until it is found again: {error}", self.url);
                self.has_failed();
            }
            FillError::Denied { .. } => {
                tracing::error!("the edge {} refuses this edge's grant: an operator must act", self.url);
                self.has_failed();
            }
            FillError::Unavailable { status: 500 } => self.has_failed(),
            FillError::Unavailable { status: 508 } => {
                tracing::warn!("the edge {} and this one point at one another: an operator must act", self.url);
            }
            // It lives, and cannot help: it is busy, behind with purges, or knows no better than the origin.
            _ => {}
        }
    }

    fn has_failed(&self) {
        if self.health.has_failed() {
            tracing::warn!("the edge {} is down", self.url);
        }
    }
}

/// Asks `neighbour` again and again whether it lives; never ends.
pub(crate) async fn watch(upstream: Arc<Upstream>, neighbour: Arc<Neighbour>, timeout: Duration) {
    loop {
        if !upstream.lives(&neighbour, timeout).await {
            neighbour.has_failed();
        } else if neighbour.health.is_found() {
            tracing::info!("the edge {} is up again", neighbour.url);
        }
        tokio::time::sleep(upstream.peers.check_pause).await;
    }
}

/// How fit the edge at `url` is for a stretch of a blob; the fittest is responsible.
fn score(url: &str, id: BlobId, stretch: u64) -> [u8; 8] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(id.as_bytes()).update(&stretch.to_le_bytes()).update(url.as_bytes());
    let mut score = [0; 8];
    hasher.finalize_xof().fill(&mut score);
    score
}

/// One spelling of a URL.
fn trimmed(url: &str) -> String {
    url.trim_end_matches('/').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    const URLS: [&str; 4] = ["http://a:1", "http://b:1", "http://c:1", "http://d:1"];

    fn peers(own: &str, shields: &[&str]) -> Peers {
        let owned = |urls: &[&str]| urls.iter().map(|url| (*url).to_owned()).collect();
        let config =
            Config { own_url: Some(own.into()), peers: owned(&URLS), shields: owned(shields), ..Config::default() };
        Peers::new(&config).unwrap()
    }

    fn id(n: u64) -> BlobId {
        BlobId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    fn asked(peers: &Peers, id: BlobId, index: u64, via: &Arc<Via>) -> Vec<String> {
        peers.route(id, index, via).nearer.iter().map(|neighbour| neighbour.url.clone()).collect()
    }

    /// All reckon the same edge responsible, the shares are fair, and who goes moves only its own share.
    #[test]
    fn all_agree_who_is_responsible() {
        let all = URLS.map(|url| peers(url, &[]));
        let client = Arc::default();
        let mut shares: HashMap<String, u32> = HashMap::new();
        for n in 0..2000 {
            let routes = all.each_ref().map(|peers| asked(peers, id(n), 0, &client));
            let responsible = routes.iter().position(Vec::is_empty).expect("one is, and asks no other");
            for (at, route) in routes.iter().enumerate().filter(|(at, _)| *at != responsible) {
                assert_eq!(*route, [URLS[responsible]], "for {}", URLS[at]);
            }
            *shares.entry(URLS[responsible].into()).or_default() += 1;
        }
        assert!(shares.values().all(|share| (400..600).contains(share)), "{shares:?}");

        let from_a = &all[0];
        let before: Vec<_> = (0..500).map(|n| asked(from_a, id(n), 0, &client)).collect();
        from_a.peers.iter().find(|peer| peer.url == "http://b:1").unwrap().health.has_failed();
        for (n, before) in before.into_iter().enumerate() {
            let now = asked(from_a, id(n as u64), 0, &client);
            assert!(!now.contains(&"http://b:1".to_owned()));
            assert!(before == ["http://b:1"] || now == before);
        }
    }

    #[test]
    fn a_long_blob_is_spread_by_stretches() {
        let peers = peers("http://a:1", &[]);
        let client = Arc::default();
        let of = |index| asked(&peers, id(1), index, &client);
        let mut seen: Vec<_> = (0..100).map(|stretch| of(stretch * STRETCH_SLICES)).collect();
        assert_eq!(of(0), of(STRETCH_SLICES - 1));
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), URLS.len());
    }

    #[test]
    fn who_is_asked_by_an_edge_asks_shields_and_a_shield_asks_the_origin() {
        let mut told = http::HeaderMap::new();
        Via::default().tell(&crate::via::Name::new(), &mut told);
        let from_edge = Arc::new(Via::of(&told, &crate::via::Name::new()).unwrap());
        let leaf = peers("http://a:1", &["http://s:1/", "http://t:1"]);
        for n in 0..20 {
            let mut shields = asked(&leaf, id(n), 0, &from_edge);
            shields.sort();
            assert_eq!(shields, ["http://s:1", "http://t:1"]);
        }
        let shield = peers("http://s:1", &["http://S:1/", "http://t:1"]);
        assert_eq!(asked(&shield, id(1), 0, &from_edge), Vec::<String>::new());
    }
}
