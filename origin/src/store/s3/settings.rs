//! What an [`S3Store`](super::S3Store) is told, and the client made of it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use aws_smithy_http_client::{Builder, tls};

use super::counted::CountRequests;
use super::garbage::RECOUNT_POINTERS_MAX;
use crate::config::S3Config;
use crate::fault::Faults;

/// How often a request is made at most: again after a failure of the server, of the network, or when the server asks
/// to slow down. A budget over all requests, which failures use up faster than successes fill it, bounds it further.
const ATTEMPTS_MAX: u32 = 5;

/// The first pause between two attempts; the client doubles it and makes it random.
const BACKOFF: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one attempt may take: time for a part of 8 MiB at 280 KB/s.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// How long all attempts may take together. A request to an origin waits no longer than this for one step.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);

/// Parts of an upload at most. S3 allows 10,000; the rest is for numbers that are given up when an upload changes hands.
const PARTS_MAX: u64 = 9_000;

/// How far the bucket's clock may be ahead of this one.
const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60 * 60);

/// How often pointers are looked through for owners whose time is over.
const WALK_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How often uploads are looked through, by one origin for all: so late they expire at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10 * 60);

/// How long after a count of everything its result is compared with the ledgers: longer than a request that was under
/// way takes with all its attempts.
const SETTLE: Duration = Duration::from_secs(3 * 60);

/// How often the bucket is looked for.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// What a store is told.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) config: S3Config,
    pub(crate) keys: Keys,
    /// Bytes of the largest blob.
    pub(crate) blob_bytes_max: u64,
    pub(super) clock_ahead_max: Duration,
    pub(super) walk_interval: Duration,
    pub(super) settle: Duration,
    pub(super) recount_pointers_max: usize,
    pub(super) sweep_interval: Duration,
    pub(super) health_interval: Duration,
    pub(super) attempt_timeout: Duration,
    /// Whether a server is refused that ends no multipart upload which lacks a part number. Only a test of one origin alone
    /// can do without.
    pub(super) needs_part_gaps: bool,
    pub(super) faults: Arc<Faults>,
}

/// What requests are signed with.
#[derive(Clone)]
pub(crate) struct Keys {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: String,
    pub(crate) session_token: Option<String>,
}

impl Keys {
    /// The keys in the files that `config` names, else in the environment.
    pub(crate) fn find(config: &S3Config) -> Result<Self, String> {
        let key = |file: &Option<PathBuf>, variable: &str| {
            let found = match file {
                Some(path) => {
                    std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?
                }
                None => std::env::var(variable).map_err(|_| format!("set {variable}, or name a file that has it"))?,
            };
            match found.trim() {
                "" => Err(format!("{variable} is empty")),
                found => Ok(found.to_owned()),
            }
        };
        Ok(Self {
            access_key_id: key(&config.access_key_id_file, "AWS_ACCESS_KEY_ID")?,
            secret_access_key: key(&config.secret_access_key_file, "AWS_SECRET_ACCESS_KEY")?,
            session_token: std::env::var("AWS_SESSION_TOKEN").ok().filter(|token| !token.is_empty()),
        })
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("access_key_id", &self.access_key_id).finish_non_exhaustive()
    }
}

impl Settings {
    pub(crate) fn new(config: S3Config, keys: Keys, blob_bytes_max: u64, faults: Arc<Faults>) -> Self {
        Self {
            config,
            keys,
            blob_bytes_max,
            clock_ahead_max: CLOCK_AHEAD_MAX,
            walk_interval: WALK_INTERVAL,
            settle: SETTLE,
            recount_pointers_max: RECOUNT_POINTERS_MAX,
            sweep_interval: SWEEP_INTERVAL,
            health_interval: HEALTH_INTERVAL,
            attempt_timeout: ATTEMPT_TIMEOUT,
            needs_part_gaps: true,
            faults,
        }
    }

    /// Finds what cannot work.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        self.config.check(self.part_bytes(self.blob_bytes_max))
    }

    /// Bytes of each part of an upload of at most `bytes_max` bytes.
    pub(super) fn part_bytes(&self, bytes_max: u64) -> u64 {
        let mut part_bytes = self.config.part_bytes;
        while bytes_max.div_ceil(part_bytes) > PARTS_MAX {
            part_bytes *= 2;
        }
        part_bytes
    }

    pub(super) fn client(&self) -> Client {
        let Keys { access_key_id, secret_access_key, session_token } = self.keys.clone();
        let credentials = Credentials::new(access_key_id, secret_access_key, session_token, None, "waxwing");
        let transport =
            Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc)).build_https();
        let retries = RetryConfig::standard()
            .with_max_attempts(ATTEMPTS_MAX)
            .with_initial_backoff(BACKOFF)
            .with_max_backoff(BACKOFF_MAX);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(self.attempt_timeout)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let mut config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(transport)
            .region(Region::new(self.config.region.clone()))
            .credentials_provider(credentials)
            .force_path_style(self.config.path_style)
            .retry_config(retries)
            .timeout_config(timeouts)
            .interceptor(CountRequests)
            // It would end uploads of slow clients; our own timeouts are above.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            // Trailing checksums, the client's default, are refused by some servers. Every blob has its hash.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        config.set_endpoint_url(self.config.endpoint.clone());
        Client::from_conf(config.build())
    }
}
