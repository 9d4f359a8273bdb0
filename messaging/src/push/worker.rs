//! Takes wakes that are due, looks whether they are still needed, and has their providers asked.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, warn};
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::PushTarget;
use waxwing_protocol::frames::Lane;

use super::gates::Health;
use super::schedule::{Due, Loudness, Settled};
use super::verdict::{Fate, Verdict};
use super::wakes::{Wakes, fraction};
use super::{NotAsked, Push, count};
use crate::metrics::handles;
use crate::store::{DeviceAddress, PageRequest, StoreError, WakeTarget};

/// The first wait after a failure; then twice as long, up to [`BACK_OFF_MAX`].
const BACK_OFF_MIN: Duration = Duration::from_secs(1);

/// The longest wait after a failure.
const BACK_OFF_MAX: Duration = Duration::from_secs(30 * 60);

/// Rows of a lane that are looked at for how loudly to wake. Behind more, nobody looks for a call.
const ROWS_SEEN: usize = 32;

/// Bytes of bodies read for it.
const BYTES_SEEN: usize = 64 * 1024;

/// Devices read at once after a restart.
const RECOVERED_AT_ONCE: usize = 1024;

/// The pace at which mailboxes are looked at after a restart, one a device: a million in twenty minutes.
const RECOVERY_PAUSE: Duration = Duration::from_millis(1);

/// How long the schedule rests when the store fails.
const STORE_PAUSE: Duration = Duration::from_secs(5);

/// Tells the fabric of the schedule, and works at it until `stop` is notified or the node is gone.
pub(crate) fn start(push: &Arc<Push>, stop: Arc<Notify>) {
    push.fabric.wake_by(push.wakes.clone());
    tokio::spawn(recover(Arc::downgrade(push)));
    tokio::spawn(run(Arc::downgrade(push), push.wakes.clone(), push.in_flight_max, stop));
}

/// Takes in the devices that could be woken before the restart: what waits for them is in their mailboxes.
async fn recover(push: Weak<Push>) {
    let (mut after, mut count) = (None, 0);
    loop {
        let Some(push) = push.upgrade() else { return };
        match push.targets.wakeable(after, RECOVERED_AT_ONCE).await {
            Ok(devices) if devices.is_empty() => return,
            Ok(devices) => {
                after = devices.last().copied();
                for device in devices {
                    // Those that were connected get the time to come back.
                    push.wakes.recover(device, push.quiet + RECOVERY_PAUSE * count);
                    count += 1;
                }
            }
            Err(failed) => {
                warn!(error = %failed, "the devices to wake cannot be read; trying again");
                drop(push);
                tokio::time::sleep(STORE_PAUSE).await;
            }
        }
    }
}

async fn run(push: Weak<Push>, wakes: Arc<Wakes>, in_flight_max: usize, stop: Arc<Notify>) {
    let places = Arc::new(Semaphore::new(in_flight_max));
    let mut working = JoinSet::new();
    loop {
        while working.try_join_next().is_some() {}
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let next = loop {
            match wakes.take() {
                Ok(due) => break due,
                Err(next) => {
                    let next = next.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
                    tokio::select! {
                        () = stop.notified() => return,
                        () = wakes.changed() => {}
                        () = sleep_until(next) => {}
                    }
                    if push.strong_count() == 0 {
                        return;
                    }
                }
            }
        };
        let Some(push) = push.upgrade() else { return };
        working.spawn(async move {
            let settled = push.work(next).await.unwrap_or_else(|failed| {
                warn!(error = %failed, "a wake waits, since the store failed");
                Settled::Held(STORE_PAUSE)
            });
            if push.wakes.settle(next.device, settled) {
                debug!(device = %next.device, "a wake was given up");
            }
            #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
            handles().push_closed.set(push.gates.closed(Instant::now()) as f64);
            drop(place);
        });
    }
}

impl Drop for Push {
    fn drop(&mut self) {
        // The worker waits for what is due; nothing will be any more.
        self.wakes.nudge();
    }
}

impl Push {
    /// Looks at a wake that is due, and has it sent if it is needed.
    async fn work(&self, due: Due) -> Result<Settled, StoreError> {
        let device = due.device;
        let Some((target, row)) = self.target(device).await? else {
            self.wakes.remove(device);
            return Ok(Settled::Needless);
        };
        let Some(loudness) = self.waiting(due).await? else { return Ok(Settled::Needless) };
        let acked_lately = due.acked_at.is_some_and(|at| at.elapsed() < self.quiet);
        if acked_lately && self.fabric.is_connected(device.account, device.device) {
            return Ok(Settled::Postponed(self.quiet));
        }
        let provider = target.provider();
        let verdict = match self.ask(&target, loudness).await {
            Ok(verdict) => verdict,
            Err(NotAsked::Closed(wait)) => return Ok(Settled::Held(wait + wait.mul_f64(fraction()))),
            Err(NotAsked::Refused(refused)) => {
                debug!(provider = provider.name(), %refused, "a device is not woken");
                count(provider, "not-allowed");
                return Ok(Settled::GivenUp);
            }
        };
        Ok(match verdict.fate {
            Fate::Accepted => Settled::Sent(loudness),
            Fate::Gone { since } => self.forget(device, &target, &row, since, loudness).await?,
            Fate::Later(after) => Settled::Failed(after.unwrap_or_default() + back_off(due.attempts)),
            Fate::Refused => Settled::GivenUp,
        })
    }

    /// How loudly what waits for a device wakes it; `None` when nothing does.
    async fn waiting(&self, due: Due) -> Result<Option<Loudness>, StoreError> {
        let (mut loudest, mut seen_all) = (None, true);
        for lane in [Lane::Urgent, Lane::Normal] {
            let now = self.clock.now();
            let page = PageRequest { mailbox: due.device, lane, after: 0, msgs: ROWS_SEEN, bytes: BYTES_SEEN, now };
            let page = self.mailboxes.read(page).await?;
            loudest = page.rows.iter().filter_map(Loudness::of).fold(loudest, |loudest, it| loudest.max(Some(it)));
            seen_all &= page.end;
        }
        // What was not seen may be what the wake was for.
        let unseen = (!seen_all).then(|| due.loudness.unwrap_or(Loudness::Background));
        Ok(loudest.max(unseen))
    }

    /// Asks a provider for a wake, through its gate.
    pub(super) async fn ask(&self, target: &PushTarget, loudness: Loudness) -> Result<Verdict, NotAsked> {
        let checked = self.providers.checked(target).map_err(NotAsked::Refused)?;
        let gate = checked.gate(&self.gates);
        self.gates.enter(&gate, Instant::now()).map_err(NotAsked::Closed)?;
        let inside = Inside { push: self, gate: Some(gate) };
        let works = self.gates.works(inside.gate.as_ref().expect("just entered"));
        let verdict = self.providers.send(&checked, loudness, works, self.clock.wall()).await;
        let closed = inside.leave(verdict.health);
        let (provider, reason) = (target.provider().name(), verdict.reason);
        count(target.provider(), reason);
        match verdict.health {
            Health::Misconfigured if closed => {
                error!(provider, reason, "a push provider does not accept this server; look at its credentials");
            }
            _ if closed => warn!(provider, reason, "a push provider fails and is left alone for a while"),
            _ => {}
        }
        if verdict.fate == Fate::Refused {
            debug!(provider, reason, "a push provider refuses a wake as malformed");
        }
        Ok(verdict)
    }

    /// Forgets where a device is woken, as its provider says that it is no more. What the device has said since stays.
    pub(super) async fn forget(
        &self,
        device: DeviceAddress,
        target: &PushTarget,
        row: &WakeTarget,
        since: Option<Timestamp>,
        loudness: Loudness,
    ) -> Result<Settled, StoreError> {
        // The provider speaks of a time before the device said that it is there: it will see.
        if since.is_some_and(|since| since < row.set_at) {
            return Ok(Settled::Failed(back_off(0)));
        }
        if !self.targets.remove_wake_target(device, Some(row.set_at)).await? {
            return Ok(Settled::Failed(back_off(0)));
        }
        // Of the two tokens of an app, one has gone: calls come like messages then.
        if let (Loudness::Call, PushTarget::Apns { token, topic, sandbox, voip_token: Some(_) }) = (loudness, target) {
            let (token, topic, sandbox) = (token.clone(), topic.clone(), *sandbox);
            let without = PushTarget::Apns { token, topic, sandbox, voip_token: None };
            if let Ok(target) = serde_json::to_vec(&without)
                && self.targets.wake_target(device).await?.is_none()
            {
                self.targets
                    .set_wake_target(device, WakeTarget { target, place: row.place, set_at: row.set_at })
                    .await?;
                return Ok(Settled::Failed(Duration::ZERO));
            }
        }
        debug!(device = %device, provider = target.provider().name(), "a device can be woken no more");
        self.wakes.remove(device);
        // It may have said something new between.
        if self.targets.wake_target(device).await?.is_some() {
            self.wakes.recover(device, Duration::ZERO);
        }
        Ok(Settled::GivenUp)
    }
}

/// A place behind a gate, given back whatever becomes of the request.
struct Inside<'a> {
    push: &'a Push,
    gate: Option<super::gates::GateKey>,
}

impl Inside<'_> {
    fn leave(mut self, health: Health) -> bool {
        self.gate.take().is_some_and(|gate| self.push.gates.leave(&gate, health, Instant::now()))
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            self.push.gates.leave(&gate, Health::Unknown, Instant::now());
        }
    }
}

/// How long to wait after so many failures: doubling, with half of it random so that devices do not come together.
fn back_off(attempts: u32) -> Duration {
    let whole = BACK_OFF_MIN.saturating_mul(1 << attempts.min(20)).min(BACK_OFF_MAX);
    whole / 2 + (whole / 2).mul_f64(fraction())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_an_hour_and_are_not_alike() {
        for (attempts, whole) in [(0, 1), (3, 8), (30, 1800), (u32::MAX, 1800)] {
            let whole = Duration::from_secs(whole);
            let wait = back_off(attempts);
            assert!(whole / 2 <= wait && wait <= whole, "{attempts}: {wait:?}");
        }
        assert_ne!(back_off(9), back_off(9));
    }
}
