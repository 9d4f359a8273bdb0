//! Push: waking devices for which something waits and that are not connected.
//!
//! A phone's system stops an app that waits with an open connection. What is left is the system's own channel, run by
//! Apple, Google, a browser's maker or a distributor of the user's choice, none of whom should learn who writes to whom.
//! So a wake says "come and fetch" and nothing else: no sender, no count, no conversation; all wakes of a kind are alike.
//!
//! Promises: the mailbox is the truth and push a hint, so no failure here loses a message or delays its commit; a device
//! has one outstanding wake at most, and of two devices that name one phone the later has it; endpoints that devices name lead nowhere inside the operator's network; what is
//! waiting follows from the mailboxes, so a restart forgets no wake.
//!
//! A wake walks `fabric -> wakes -> schedule`, and when it is due `worker -> providers -> net`.

mod apns;
mod config;
mod credentials;
mod fcm;
mod gates;
mod jwt;
mod net;
#[cfg(test)]
#[path = "../tests/messaging/provider.rs"]
mod provider;
mod providers;
mod schedule;
#[cfg(test)]
mod tests;
mod verdict;
mod wakes;
mod web;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use waxwing_protocol::api::{PushProvider, PushTarget, PushTest, PushView};

pub use self::config::{ApnsConfig, FcmConfig, PushConfig, WebConfig};
pub use self::credentials::CredentialsError;
use self::gates::Gates;
pub(crate) use self::providers::{Providers, TargetRefused};
use self::schedule::Loudness;
use self::verdict::Fate;
pub(crate) use self::wakes::Wakes;
pub(crate) use self::worker::start;
use crate::clock::Clock;
use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::store::{DeviceAddress, MailboxStore, Place, StoreError, StoreErrorKind, WakeTarget, WakeTargets};

/// Wakes devices.
pub(crate) struct Push {
    targets: Arc<dyn WakeTargets>,
    mailboxes: Arc<dyn MailboxStore>,
    fabric: Arc<Fabric>,
    clock: Arc<Clock>,
    wakes: Arc<Wakes>,
    providers: Providers,
    gates: Gates,
    tests: Limit<DeviceAddress>,
    in_flight_max: usize,
    quiet: Duration,
}

/// Why a device's wake target is not changed or used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PushError {
    #[error(transparent)]
    Target(#[from] TargetRefused),
    #[error("no such device")]
    NotFound,
    #[error("this device has not said where to wake it")]
    NoTarget,
    #[error("too many test wakes")]
    TooMany { retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Push {
    pub(crate) fn new(
        config: &PushConfig,
        providers: Providers,
        targets: Arc<dyn WakeTargets>,
        mailboxes: Arc<dyn MailboxStore>,
        fabric: Arc<Fabric>,
        clock: Arc<Clock>,
    ) -> Self {
        Self {
            targets,
            mailboxes,
            fabric,
            clock,
            wakes: Arc::new(Wakes::new(config)),
            providers,
            gates: Gates::new(config.provider_in_flight_max),
            tests: Limit::new("push-tests", config.tests_per_hour, Duration::from_secs(3600)),
            in_flight_max: config.in_flight_max,
            quiet: crate::config::seconds(config.quiet_s),
        }
    }

    /// Whether anybody can be woken.
    pub(crate) fn is_used(&self) -> bool {
        !self.providers.offered().is_empty()
    }

    /// Who can be woken by, and who wakes this device.
    pub(crate) async fn view(&self, device: DeviceAddress) -> Result<PushView, StoreError> {
        let target = self.target(device).await?;
        Ok(PushView {
            providers: self.providers.offered(),
            vapid_key: self.providers.vapid_key(),
            provider: target.as_ref().map(|(target, _)| target.provider()),
            set_at: target.map(|(_, row)| row.set_at),
        })
    }

    /// Wakes a device there from now on.
    pub(crate) async fn set(&self, device: DeviceAddress, target: &PushTarget) -> Result<(), PushError> {
        self.providers.check(target)?;
        let bytes = serde_json::to_vec(target).map_err(|error| StoreError::new(StoreErrorKind::Other, error))?;
        let row = WakeTarget { target: bytes, place: Some(place(target)), set_at: self.clock.now() };
        let displaced = self.targets.set_wake_target(device, row).await?.ok_or(PushError::NotFound)?;
        for device in displaced {
            // Its phone is this device's now.
            self.wakes.remove(device);
        }
        self.wakes.add(device);
        // It may be what was missing for a message that waits already.
        self.wakes.left(device);
        Ok(())
    }

    /// Wakes a device no more.
    pub(crate) async fn remove(&self, device: DeviceAddress) -> Result<(), PushError> {
        self.targets.remove_wake_target(device, None).await?;
        self.wakes.remove(device);
        Ok(())
    }

    /// Wakes a device now, whether it is connected or not, and tells what its provider says.
    pub(crate) async fn test(&self, device: DeviceAddress) -> Result<PushTest, PushError> {
        let Some((target, row)) = self.target(device).await? else { return Err(PushError::NoTarget) };
        let spent = self.tests.spend(device, self.clock.now());
        spent.map_err(|retry_after| PushError::TooMany { retry_after })?;
        let provider = target.provider();
        let told = |accepted, reason: &str| PushTest { provider, accepted, reason: reason.to_owned() };
        Ok(match self.ask(&target, Loudness::Visible).await {
            Ok(verdict) => {
                if let Fate::Gone { since } = verdict.fate {
                    self.forget(device, &target, &row, since, Loudness::Visible).await?;
                }
                told(verdict.fate == Fate::Accepted, verdict.reason)
            }
            Err(NotAsked::Refused(refused)) => told(false, &refused.to_string()),
            Err(NotAsked::Closed(_)) => told(false, "left alone for a while after failures"),
        })
    }

    /// The limit of test wakes.
    pub(crate) fn test_limit(&self) -> LimitView {
        self.tests.view()
    }

    async fn target(&self, device: DeviceAddress) -> Result<Option<(PushTarget, WakeTarget)>, StoreError> {
        let Some(row) = self.targets.wake_target(device).await? else { return Ok(None) };
        // One of a version that knew other providers is none.
        Ok(serde_json::from_slice(&row.target).ok().map(|target| (target, row)))
    }
}

/// What is alike in all targets that wake the same app on the same phone.
fn place(target: &PushTarget) -> Place {
    let (kind, token) = match target {
        PushTarget::Apns { token, .. } => ("apns", token.to_ascii_lowercase()),
        PushTarget::Fcm { token } => ("fcm", token.clone()),
        PushTarget::WebPush(subscription) | PushTarget::UnifiedPush(subscription) => {
            ("web", subscription.endpoint.clone())
        }
    };
    let mut place = Place::default();
    blake3::Hasher::new().update(kind.as_bytes()).update(&[0]).update(token.as_bytes()).finalize_xof().fill(&mut place);
    place
}

/// Why a provider was not asked for a wake.
#[derive(Clone, Copy, Debug)]
enum NotAsked {
    /// The target is not one that is used, or not any more.
    Refused(TargetRefused),
    /// The provider is left alone for that long.
    Closed(Duration),
}

/// Counts of wakes by whom and why.
fn count(provider: PushProvider, reason: &'static str) {
    crate::metrics::wake(provider.name(), reason);
}
