//! What the rest of the node tells of devices: here it becomes moves of the [`Schedule`], under one lock and at once.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::PushConfig;
use super::schedule::{Due, Loudness, Noted, Pace, Schedule, Settled};
use crate::config::seconds;
use crate::metrics::handles;
use crate::store::{Committed, DeviceAddress};

/// The devices that can be woken.
#[derive(Debug)]
pub(crate) struct Wakes {
    schedule: Mutex<Schedule>,
    /// Notified when something may be due earlier than before.
    changed: Notify,
    hold_max: Duration,
}

impl Wakes {
    pub(super) fn new(config: &PushConfig) -> Self {
        let pace = Pace { quiet: seconds(config.quiet_s), again_after: seconds(config.again_after_s) };
        Self {
            schedule: Mutex::new(Schedule::new(pace)),
            changed: Notify::new(),
            hold_max: Duration::from_millis(config.hold_ms_max.into()),
        }
    }

    /// A row was committed.
    pub(crate) fn committed(&self, row: &Committed, connected: bool) {
        let Some(loudness) = Loudness::of(&row.envelope) else { return };
        let hold = self.hold();
        let noted = self.change(|schedule, now| schedule.committed(row.to, loudness, connected, hold, now));
        if noted == Noted::Coalesced {
            handles().push_coalesced.increment(1);
        }
    }

    pub(crate) fn connected(&self, device: DeviceAddress) {
        self.change(|schedule, now| schedule.connected(device, now));
    }

    pub(crate) fn left(&self, device: DeviceAddress) {
        self.change(|schedule, now| schedule.left(device, now));
    }

    pub(crate) fn acked(&self, device: DeviceAddress) {
        self.lock().acked(device, Instant::now());
    }

    pub(super) fn add(&self, device: DeviceAddress) {
        self.lock().add(device);
    }

    pub(super) fn remove(&self, device: DeviceAddress) {
        self.lock().remove(device);
    }

    /// Takes a device in that was there before a restart, and looks at its mailbox after a while.
    pub(super) fn recover(&self, device: DeviceAddress, after: Duration) {
        self.change(|schedule, now| {
            schedule.add(device);
            schedule.suspect(device, after, now);
        });
    }

    /// A wake that is due, or when the next one will be.
    pub(super) fn take(&self) -> Result<Due, Option<Instant>> {
        let mut schedule = self.lock();
        let due = schedule.take(Instant::now()).ok_or_else(|| schedule.next());
        let (devices, waiting) = schedule.counts();
        drop(schedule);
        #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
        {
            handles().push_devices.set(devices as f64);
            handles().push_due.set(waiting as f64);
        }
        due
    }

    /// As [`Schedule::settle`].
    pub(super) fn settle(&self, device: DeviceAddress, settled: Settled) -> bool {
        let hold = self.hold();
        self.change(|schedule, now| schedule.settle(device, settled, hold, now))
    }

    /// Waits until something may be due earlier than before.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends a wait for [`changed`](Self::changed).
    pub(super) fn nudge(&self) {
        self.changed.notify_one();
    }

    /// A random part of the longest hold.
    fn hold(&self) -> Duration {
        self.hold_max.mul_f64(fraction())
    }

    fn change<T>(&self, change: impl FnOnce(&mut Schedule, Instant) -> T) -> T {
        let mut schedule = self.lock();
        let before = schedule.next();
        let changed = change(&mut schedule, Instant::now());
        let after = schedule.next();
        drop(schedule);
        if after.is_some_and(|after| before.is_none_or(|before| after < before)) {
            self.changed.notify_one();
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, Schedule> {
        // A change that panicked half-way may have left a device without its wake, and nothing worse.
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A random number from 0 to 1.
pub(super) fn fraction() -> f64 {
    f64::from(u32::from_be_bytes(crate::node::random())) / f64::from(u32::MAX)
}
