//! Connections to the database, and which of its errors pass.
//!
//! A primary that fails over takes some seconds, and every node meets it at once. What was asked is asked again within
//! a budget, so that a client sees a pause and not an error; after it, clients are told to come back later.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod};
use tokio::time::{Instant, sleep};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};
use tracing::warn;

use super::PostgresStoreError;
use crate::store::{StoreError, StoreErrorKind};

/// Connections of one node: writers and readers share them. A primary serves some hundreds, and there are many nodes.
const CONNECTIONS_MAX: usize = 16;

/// How long one thing is tried again for.
const RETRY_BUDGET: Duration = Duration::from_secs(15);

/// The first pause between two tries; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(5);

/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What a connection is told before anything else. Every statement here looks rows up by their keys, in batches whose
/// size the planner cannot know: left alone it may take to reading whole tables when statistics lag behind. Plans are
/// made once. A commit is answered when it is on disk, whatever the database's default is.
const SETTINGS: &str = "-c synchronous_commit=on -c plan_cache_mode=force_generic_plan -c enable_seqscan=off \
    -c enable_hashjoin=off -c enable_mergejoin=off -c jit=off -c lock_timeout=10s \
    -c idle_in_transaction_session_timeout=30s -c default_transaction_isolation=read\\ committed";

/// Connections to one primary.
#[derive(Clone)]
pub(super) struct Connections {
    pool: Pool,
    /// Whether the last thing asked was answered.
    reachable: Arc<AtomicBool>,
}

/// Why something asked of the database was not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another try may go well. `unknown`: the database may have done it all the same.
    Passing { unknown: bool, reason: String },
    /// Another try will not.
    Lasting(StoreError),
}

impl Failure {
    /// A commit of which nobody knows whether it happened.
    pub(super) fn of_commit(error: &tokio_postgres::Error) -> Self {
        match Self::from_error(error) {
            Self::Passing { reason, .. } => Self::Passing { unknown: error.as_db_error().is_none(), reason },
            lasting => lasting,
        }
    }

    fn from_error(error: &tokio_postgres::Error) -> Self {
        let reason = error.as_db_error().map_or_else(|| error.to_string(), ToString::to_string);
        let passing = match error.code() {
            // No word from the database: the connection is gone.
            None => true,
            Some(code) => {
                let passing = [
                    SqlState::T_R_SERIALIZATION_FAILURE,
                    SqlState::T_R_DEADLOCK_DETECTED,
                    SqlState::LOCK_NOT_AVAILABLE,
                    SqlState::ADMIN_SHUTDOWN,
                    SqlState::CRASH_SHUTDOWN,
                    SqlState::CANNOT_CONNECT_NOW,
                    SqlState::TOO_MANY_CONNECTIONS,
                    SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                    // A primary that has become a replica, or is not one yet.
                    SqlState::READ_ONLY_SQL_TRANSACTION,
                ];
                passing.contains(code) || code.code().starts_with("08")
            }
        };
        if passing {
            Self::Passing { unknown: false, reason }
        } else {
            Self::Lasting(StoreError::new(StoreErrorKind::Other, reason))
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::from_error(&error)
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::from_error(&error),
            error => Self::Passing { unknown: false, reason: error.to_string() },
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Lasting(error)
    }
}

impl Connections {
    /// Of the database at `url`. None is made until it is wanted.
    pub(super) fn open(url: &str, password: Option<&str>) -> Result<Self, PostgresStoreError> {
        let mut config: Config = url.parse().map_err(|_| PostgresStoreError::Url)?;
        config.options(SETTINGS).application_name("waxwing").connect_timeout(CONNECT_TIMEOUT);
        config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(10));
        if let Some(password) = password {
            config.password(password);
        }
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let manager = Manager::from_config(config, NoTls, recycling);
        let pool = Pool::builder(manager).max_size(CONNECTIONS_MAX).build();
        let pool = pool.map_err(|error| PostgresStoreError::Engine(error.to_string()))?;
        Ok(Self { pool, reachable: Arc::new(AtomicBool::new(true)) })
    }

    /// A connection, as soon as one is free.
    pub(super) async fn get(&self) -> Result<Object, PoolError> {
        self.pool.get().await
    }

    /// Whether the database answered when it was asked last.
    pub(super) fn are_reachable(&self) -> bool {
        self.reachable.load(Ordering::Relaxed)
    }

    /// Does `work`, again as long as what stands in its way may pass. It is told whether the try before it may have
    /// been done.
    pub(super) async fn retried<T, F>(&self, mut work: impl FnMut(bool) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let until = Instant::now() + RETRY_BUDGET;
        let (mut pause, mut maybe_done) = (PAUSE_MIN, false);
        loop {
            let reason = match work(maybe_done).await {
                Ok(done) => {
                    self.reachable.store(true, Ordering::Relaxed);
                    return Ok(done);
                }
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing { unknown, reason }) => {
                    maybe_done |= unknown;
                    reason
                }
            };
            if Instant::now() + pause > until {
                warn!(%reason, "the database cannot be reached");
                self.lost();
                return Err(StoreError::new(
                    StoreErrorKind::Unavailable,
                    format_args!("the database cannot be reached: {reason}"),
                ));
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Notes that the database does not answer, and asks until it does: nobody else may, as long as this is known.
    fn lost(&self) {
        if !self.reachable.swap(false, Ordering::Relaxed) {
            return;
        }
        let (pool, reachable) = (self.pool.clone(), Arc::downgrade(&self.reachable));
        tokio::spawn(async move {
            while let Some(reachable) = reachable.upgrade() {
                let answered = async { pool.get().await.ok()?.simple_query("SELECT 1").await.ok() };
                if reachable.load(Ordering::Relaxed) || answered.await.is_some() {
                    return reachable.store(true, Ordering::Relaxed);
                }
                drop(reachable);
                sleep(PAUSE_MAX).await;
            }
        });
    }
}
