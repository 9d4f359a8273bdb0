//! Whether the bucket is there and takes writes, looked at again and again.
//!
//! Keys are revoked, buckets removed and servers stopped while an origin runs. A balancer should learn of it from the
//! origin, not from phones whose uploads fail, and an operator should read why.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use super::Shared;
use crate::store::StoreError;

/// Written to see whether writing is possible; always the same bytes, so that it matters to nobody who comes last.
const WRITTEN: &str = "turns/health";

/// How often in a row a look must fail before the bucket counts as gone: one is a network that hiccups.
const FAILURES_MAX: u32 = 2;

/// In every how manieth look something is written too: writes cost more than listings. In all of them after a failure.
const LOOKS_A_WRITE: u64 = 12;

/// Why the bucket cannot be used, when it cannot.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<String>>);

impl Health {
    pub(super) fn trouble(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Enters what is wrong, and gives what was.
    fn enter(&self, trouble: Option<String>) -> Option<String> {
        std::mem::replace(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), trouble)
    }
}

impl Shared {
    /// Looks at the bucket as long as the store lives.
    pub(super) fn watch_bucket(self: &Arc<Self>) {
        let (shared, interval) = (Arc::downgrade(self), self.settings.health_interval);
        tokio::spawn(async move {
            let (mut looks, mut failures) = (0_u64, 0_u32);
            loop {
                tokio::time::sleep(interval).await;
                let Some(shared) = shared.upgrade() else { return };
                looks += 1;
                match shared.look(failures > 0 || looks.is_multiple_of(LOOKS_A_WRITE)).await {
                    Ok(()) => {
                        failures = 0;
                        if shared.health.enter(None).is_some() {
                            tracing::info!("the bucket can be used again");
                        }
                    }
                    Err(error) => {
                        failures += 1;
                        if failures < FAILURES_MAX {
                            continue;
                        }
                        let why = told(&error);
                        if shared.health.enter(Some(why.clone())).is_none() {
                            tracing::error!("not ready until this is put right: {why}");
                        }
                    }
                }
            }
        });
    }

    /// One look; `writes`: with a write.
    async fn look(&self, writes: bool) -> Result<(), StoreError> {
        self.bucket.list("", None, 1).await?;
        if writes {
            self.bucket.put(WRITTEN, Bytes::from_static(b"-")).await?;
        }
        Ok(())
    }
}

/// What went wrong with the bucket, in one line.
fn told(error: &StoreError) -> String {
    let mut why = format!("the bucket cannot be used: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(beneath) = cause {
        why = format!("{why}: {beneath}");
        cause = beneath.source();
    }
    why.replace(['\r', '\n'], " ")
}
