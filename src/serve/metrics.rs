//! Metrics of a node: the recorder that the roles count into, what the process itself tells, and the requests it answers.
//!
//! Names follow Prometheus (base units, `_total` for counters). No label names a user: routes are templates, statuses
//! are classes. What each metric means stands in `infra/metrics.md`, which a test holds against the tables in the code.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::{MatchedPath, Request};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use metrics::{Counter, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Names and meanings of what the node itself tells.
const METRICS: [(&str, &str); 7] = [
    (REQUESTS, "Requests answered, by route template, method and class of status (2xx, 4xx, ...)."),
    (REQUEST_TIME, "Time from a request's head to its answer's head, by route template; bodies take longer."),
    (REFUSED, "Connections closed before their first request, by why: proxy-header, tls-handshake."),
    (READY, "1 when the role takes requests, 0 when its store is read-only or it is about to stop; by role."),
    (RESIDENT, "Resident memory of the process."),
    (OPEN_FDS, "Open files of the process, connections among them."),
    (MAX_FDS, "Open files that the process may have."),
];

const REQUESTS: &str = "waxwing_http_requests_total";
const REQUEST_TIME: &str = "waxwing_http_request_seconds";
pub(super) const REFUSED: &str = "waxwing_connections_refused_total";
const READY: &str = "waxwing_ready";
const RESIDENT: &str = "process_resident_memory_bytes";
const OPEN_FDS: &str = "process_open_fds";
const MAX_FDS: &str = "process_max_fds";

/// Upper bounds of the buckets of [`REQUEST_TIME`], in seconds: from a hit in memory to an upload of minutes.
const REQUEST_BUCKETS: [f64; 11] = [0.000_25, 0.001, 0.0025, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 300.0];

/// How often what histograms took in is folded into buckets: between scrapes it would pile up.
const UPKEEP: Duration = Duration::from_secs(5);

/// The routes that were asked for; their number is that of the routers' templates.
static ROUTES: LazyLock<RwLock<HashMap<String, Arc<Route>>>> = LazyLock::new(RwLock::default);

/// Every metric of this binary, with its meaning.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    let roles = waxwing_origin::metrics::METRICS.into_iter().chain(waxwing_edge::metrics::METRICS);
    METRICS.into_iter().chain(roles).chain(waxwing_messaging::metrics::METRICS)
}

/// What the roles count into, ready to be read. Clones read the same.
#[derive(Clone, Debug)]
pub(super) struct Recorder(PrometheusHandle);

impl Recorder {
    /// Installs the recorder of this process, before any role opens: handles that were fetched earlier count nothing.
    pub(super) fn install() -> anyhow::Result<Self> {
        static INSTALLED: OnceLock<PrometheusHandle> = OnceLock::new();
        if let Some(handle) = INSTALLED.get() {
            return Ok(Self(handle.clone()));
        }
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(REQUEST_TIME.into()), &REQUEST_BUCKETS)?
            .set_buckets_for_metric(
                Matcher::Suffix("_fsync_seconds".into()),
                &waxwing_origin::metrics::SECONDS_BUCKETS,
            )?
            .set_buckets_for_metric(Matcher::Prefix("waxwing_edge_".into()), &waxwing_edge::metrics::SECONDS_BUCKETS)?
            .install_recorder()
            .context("metrics cannot be recorded")?;
        for (name, meaning) in all() {
            describe(name, meaning);
        }
        let kept = handle.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(UPKEEP).await;
                kept.run_upkeep();
            }
        });
        Ok(Self(INSTALLED.get_or_init(|| handle).clone()))
    }

    /// All metrics in Prometheus' text format. `ready` tells which roles take requests.
    pub(super) fn render(&self, ready: &[(&'static str, bool)]) -> String {
        for (role, ready) in ready {
            gauge!(READY, "role" => *role).set(u8::from(*ready));
        }
        observe_process();
        self.0.render()
    }
}

fn describe(name: &'static str, meaning: &'static str) {
    if name.ends_with("_total") {
        metrics::describe_counter!(name, meaning);
    } else if name.ends_with("_seconds") {
        metrics::describe_histogram!(name, meaning);
    } else {
        metrics::describe_gauge!(name, meaning);
    }
}

/// Where the system does not tell (no `/proc`), the process's own metrics are left out.
fn observe_process() {
    #[allow(clippy::cast_precision_loss, reason = "gauges are floating-point numbers")]
    let set = |name: &'static str, value: u64| gauge!(name).set(value as f64);
    if let Ok(status) = std::fs::read_to_string("/proc/self/status")
        && let Some(line) = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))
        && let Some(kib) = line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok())
    {
        set(RESIDENT, kib * 1024);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        set(OPEN_FDS, entries.count() as u64);
    }
    if let Some(limit) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        set(MAX_FDS, limit);
    }
}

/// Counts a request and how long it took. To be layered on a router whose routes are all there.
pub(super) async fn measure(request: Request, next: Next) -> Response {
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => route(path.as_str()),
        None => route("other"),
    };
    let method = request.method().clone();
    let began = Instant::now();
    let response = next.run(request).await;
    route.time.record(began.elapsed());
    route.count(&method, response.status().as_u16());
    response
}

/// Counts requests for `template` that no router sees. Looked up once: a hit takes no longer than a look-up.
pub(super) fn measured(template: &'static str) -> impl Fn(&Method, u16, Duration) + Send + Sync {
    let route = route(template);
    move |method, status, took| {
        route.time.record(took);
        route.count(method, status);
    }
}

/// The handles of a route, each fetched when it is first needed.
struct Route {
    template: String,
    time: Histogram,
    counts: [[OnceLock<Counter>; CLASSES.len()]; METHODS.len()],
}

/// Anything else is one more, so that a client cannot make series by inventing methods.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"];

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

impl Route {
    fn count(&self, method: &Method, status: u16) {
        let known = METHODS.iter().position(|known| *known == method.as_str());
        let method = known.unwrap_or(METHODS.len() - 1);
        let class = usize::from(status / 100).saturating_sub(1).min(CLASSES.len() - 1);
        let counter = self.counts[method][class].get_or_init(|| {
            let route = self.template.clone();
            counter!(REQUESTS, "route" => route, "method" => METHODS[method], "status" => CLASSES[class])
        });
        counter.increment(1);
    }
}

fn route(template: &str) -> Arc<Route> {
    if let Some(known) = ROUTES.read().unwrap_or_else(PoisonError::into_inner).get(template) {
        return Arc::clone(known);
    }
    let mut routes = ROUTES.write().unwrap_or_else(PoisonError::into_inner);
    let made = routes.entry(template.to_owned()).or_insert_with(|| {
        Arc::new(Route {
            template: template.to_owned(),
            time: histogram!(REQUEST_TIME, "route" => template.to_owned()),
            counts: Default::default(),
        })
    });
    Arc::clone(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The page that operators read and the code name the same metrics.
    #[test]
    fn every_metric_is_documented_and_every_documented_metric_exists() {
        let page = include_str!("../../infra/metrics.md");
        let documented: BTreeSet<_> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .filter_map(|rest| rest.split(['`', '{']).next())
            .collect();
        let named: BTreeSet<_> = all().map(|(name, _)| name).collect();
        assert_eq!(documented, named);
        assert_eq!(named.len(), all().count(), "a name stands twice");
    }

    /// Names and units as Prometheus wants them.
    #[test]
    fn names_are_well_formed() {
        for (name, meaning) in all() {
            assert!(name.starts_with("waxwing_") || name.starts_with("process_"), "{name}");
            assert!(
                name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
                "{name}"
            );
            assert!(meaning.ends_with('.'), "{name}: {meaning}");
        }
    }
}
