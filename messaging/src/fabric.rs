//! Routes: which connection a device has right now.
//!
//! Without routes every message would wait for its recipient to ask. The fabric hears of each row after its commit and
//! puts it into the [`Outbox`] of the recipient's connection, if there is one. It is memory only and may lose
//! everything: what counts is in the mailbox, and a connection that notices a gap reads it there.
//!
//! A device has one connection. Its generation comes from the mailbox, so that of two that race the later one stays,
//! however late the earlier one gets here.

mod outbox;
mod relay;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use waxwing_protocol::{AccountId, DeviceId, GroupId};

pub(crate) use self::outbox::{Outbox, Stop};
pub(crate) use self::relay::{ChannelNews, Following, Relay};
use crate::metrics::handles;
use crate::push::Wakes;
use crate::store::{CommitSink, Committed, CommittedEntry, DeviceAddress};

/// Waves in which connections are told to go: a crowd that leaves at once comes back at once.
const WAVES: usize = 10;

/// Connections of a wave at least: fewer are no crowd.
const WAVE_MIN: usize = 64;

/// Connections that a node on a small machine takes in a second, each with a commit.
const RECONNECTS_PER_S: u64 = 1_000;

/// Over how long those who are told to go come back: long enough for few not to meet, and not longer than people wait.
const JITTER_MIN_MS: u32 = 1_000;
const JITTER_MAX_MS: u32 = 60_000;

/// Connections that are stopped in waves: how far that is.
#[derive(Debug)]
pub(crate) struct Waves {
    after: Option<DeviceAddress>,
    size: usize,
    jitter_ms: u32,
}

/// The routes of this process.
#[derive(Debug, Default)]
pub(crate) struct Fabric {
    routes: Mutex<Routes>,
    /// Notified when a connection has ended.
    left: Notify,
    /// Groups in which somebody has got or seen more, not told of yet.
    progressed: Mutex<HashSet<GroupId>>,
    /// Notified when there is one.
    progress: Notify,
    /// Who follows channels here.
    pub(crate) relay: Arc<Relay>,
    /// Who is told of devices that are not there; nobody where none can be woken.
    wakes: OnceLock<Arc<Wakes>>,
}

#[derive(Debug, Default)]
struct Routes {
    /// By account, then device: an account's devices stand side by side.
    by_device: BTreeMap<DeviceAddress, Entrance>,
    /// Whoever connects is told at once to come back later, within so many milliseconds.
    draining: Option<u32>,
}

/// Where a device's rows go.
#[derive(Debug)]
struct Entrance {
    generation: u64,
    outbox: Arc<Outbox>,
}

/// The route of a connection: gone when this is dropped, unless a newer connection has its place.
#[derive(Debug)]
pub(crate) struct Route {
    fabric: Arc<Fabric>,
    device: DeviceAddress,
    generation: u64,
}

impl Drop for Route {
    fn drop(&mut self) {
        let mut routes = self.fabric.lock();
        if routes.by_device.get(&self.device).is_some_and(|entrance| entrance.generation == self.generation) {
            routes.by_device.remove(&self.device);
            handles().connections.decrement(1);
            self.fabric.left.notify_waiters();
            drop(routes);
            if let Some(wakes) = self.fabric.wakes.get() {
                wakes.left(self.device);
            }
        }
    }
}

impl Fabric {
    /// Tells `wakes` from now on who comes and goes, and what is committed for whom.
    pub(crate) fn wake_by(&self, wakes: Arc<Wakes>) {
        // Set once, as the node opens.
        let _ = self.wakes.set(wakes);
    }

    /// A device has acked something.
    pub(crate) fn acked(&self, device: DeviceAddress) {
        if let Some(wakes) = self.wakes.get() {
            wakes.acked(device);
        }
    }

    /// Makes `outbox` the way to `device`, and stops the connection it had, unless that is the newer one.
    pub(crate) fn announce(self: &Arc<Self>, device: DeviceAddress, generation: u64, outbox: Arc<Outbox>) -> Route {
        let mut routes = self.lock();
        if let Some(jitter_ms) = routes.draining {
            outbox.stop(Stop::Draining { jitter_ms });
        }
        match routes.by_device.entry(device) {
            Entry::Occupied(newer) if newer.get().generation > generation => outbox.stop(Stop::Displaced),
            Entry::Occupied(mut older) => {
                older.insert(Entrance { generation, outbox }).outbox.stop(Stop::Displaced);
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Entrance { generation, outbox });
                handles().connections.increment(1);
            }
        }
        drop(routes);
        if let Some(wakes) = self.wakes.get() {
            wakes.connected(device);
        }
        Route { fabric: self.clone(), device, generation }
    }

    /// Whether a device has a connection.
    pub(crate) fn is_connected(&self, account: AccountId, device: DeviceId) -> bool {
        self.lock().by_device.contains_key(&DeviceAddress { account, device })
    }

    /// Tells a device that few of its one-time keys are left.
    pub(crate) fn keys_low(&self, device: DeviceAddress, remaining: usize) {
        if let Some(outbox) = self.outbox(device) {
            outbox.keys_low(u32::try_from(remaining).unwrap_or(u32::MAX));
        }
    }

    /// Tells an account's connections that the devices of `changed` have changed.
    pub(crate) fn devices_changed(&self, told: AccountId, changed: AccountId, revision: u64) {
        for outbox in self.outboxes(told) {
            outbox.devices_changed(changed, revision);
        }
    }

    /// Stops the connections of an account, or of one device of it, that may not connect any more.
    pub(crate) fn revoke(&self, account: AccountId, device: Option<DeviceId>) {
        let from = DeviceAddress { account, device: DeviceId::FIRST };
        let routes = self.lock();
        for (address, entrance) in routes.by_device.range(from..).take_while(|(it, _)| it.account == account) {
            if device.is_none_or(|device| device == address.device) {
                entrance.outbox.stop(Stop::Revoked);
            }
        }
    }

    /// Stops every connection that comes from now on; those that are there are stopped in waves.
    pub(crate) fn drain(&self) -> Waves {
        let mut routes = self.lock();
        let connections = routes.by_device.len();
        // Whoever left comes back over as long as their mailboxes take to be opened again.
        let jitter_ms = u32::try_from(connections as u64 * 1000 / RECONNECTS_PER_S).unwrap_or(u32::MAX);
        let jitter_ms = jitter_ms.clamp(JITTER_MIN_MS, JITTER_MAX_MS);
        routes.draining = Some(jitter_ms);
        Waves { after: None, size: connections.div_ceil(WAVES).max(WAVE_MIN), jitter_ms }
    }

    /// Stops the connections of the next wave; false when it was the last.
    pub(crate) fn drain_wave(&self, waves: &mut Waves) -> bool {
        let routes = self.lock();
        let from = waves.after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = routes.by_device.range((from, Bound::Unbounded));
        for (device, entrance) in rest.by_ref().take(waves.size) {
            entrance.outbox.stop(Stop::Draining { jitter_ms: waves.jitter_ms });
            waves.after = Some(*device);
        }
        rest.next().is_some()
    }

    /// Waits until no connection is left, but not longer than `limit`.
    pub(crate) async fn emptied(&self, limit: Duration) {
        let emptied = async {
            loop {
                let changed = self.left.notified();
                if self.lock().by_device.is_empty() {
                    return;
                }
                changed.await;
            }
        };
        // Who is still there then loses its socket with the process.
        let _ = tokio::time::timeout(limit, emptied).await;
    }

    /// The ways to an account's connected devices.
    pub(crate) fn outboxes(&self, account: AccountId) -> Vec<Arc<Outbox>> {
        let from = DeviceAddress { account, device: DeviceId::FIRST };
        let routes = self.lock();
        let devices = routes.by_device.range(from..).take_while(|(device, _)| device.account == account);
        devices.map(|(_, entrance)| entrance.outbox.clone()).collect()
    }

    /// The groups in which somebody has got or seen more since the last call; waits until there is one.
    pub(crate) async fn progressed(&self) -> HashSet<GroupId> {
        loop {
            let news = self.progress.notified();
            let groups = std::mem::take(&mut *self.progressed.lock().unwrap_or_else(PoisonError::into_inner));
            if !groups.is_empty() {
                return groups;
            }
            news.await;
        }
    }

    /// The way to a device's connection.
    pub(crate) fn outbox(&self, device: DeviceAddress) -> Option<Arc<Outbox>> {
        self.lock().by_device.get(&device).map(|entrance| entrance.outbox.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        // Every change is one insert or removal: a panic elsewhere leaves nothing half done.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CommitSink for Fabric {
    fn committed(&self, row: Committed) {
        handles().stored.increment(1);
        let outbox = self.outbox(row.to);
        if let Some(wakes) = self.wakes.get() {
            wakes.committed(&row, outbox.is_some());
        }
        if let Some(outbox) = outbox {
            outbox.push(row);
        }
    }

    fn appended(&self, entry: CommittedEntry) {
        handles().channel_entries.increment(1);
        self.relay.appended(&entry);
    }

    fn progressed(&self, group: GroupId) {
        self.progressed.lock().unwrap_or_else(PoisonError::into_inner).insert(group);
        self.progress.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> DeviceAddress {
        DeviceAddress { account: AccountId::from_bytes([1; 16]), device: DeviceId::FIRST }
    }

    #[test]
    fn of_two_connections_the_later_generation_stays_in_whatever_order_they_come() {
        for order in [[1, 2], [2, 1]] {
            let fabric = Arc::new(Fabric::default());
            let outboxes = order.map(|generation| {
                let outbox = Arc::new(Outbox::default());
                (generation, fabric.announce(device(), generation, outbox.clone()), outbox)
            });
            for (generation, _route, outbox) in &outboxes {
                let displaced = outbox.take().stop == Some(Stop::Displaced);
                assert_eq!(displaced, *generation == 1, "{order:?}");
            }
        }
    }

    #[test]
    fn an_old_connection_that_ends_late_does_not_take_the_new_ones_route() {
        let fabric = Arc::new(Fabric::default());
        let old = fabric.announce(device(), 1, Arc::default());
        let new = fabric.announce(device(), 2, Arc::default());
        drop(old);
        assert!(fabric.is_connected(device().account, device().device));
        drop(new);
        assert!(!fabric.is_connected(device().account, device().device));
    }

    #[test]
    fn whoever_connects_while_the_node_drains_is_told_so() {
        let fabric = Arc::new(Fabric::default());
        let (early, late) = (Arc::new(Outbox::default()), Arc::new(Outbox::default()));
        let _early = fabric.announce(device(), 1, early.clone());
        let mut waves = fabric.drain();
        let draining = Some(Stop::Draining { jitter_ms: JITTER_MIN_MS });
        assert!(!fabric.drain_wave(&mut waves));
        assert_eq!(early.take().stop, draining);
        let _late = fabric.announce(device(), 2, late.clone());
        assert_eq!(late.take().stop, draining);
    }

    #[test]
    fn a_crowd_is_told_to_go_in_waves_and_to_come_back_over_as_long_as_it_takes() {
        let fabric = Arc::new(Fabric::default());
        let crowd = (0..5_000_u128).map(|n| {
            let device = DeviceAddress { account: AccountId::from_bytes(n.to_be_bytes()), device: DeviceId::FIRST };
            let outbox = Arc::new(Outbox::default());
            (fabric.announce(device, 1, outbox.clone()), outbox)
        });
        let crowd: Vec<_> = crowd.collect();
        let stopped = || crowd.iter().filter(|(_, outbox)| outbox.take().stop.is_some()).count();
        let (mut waves, mut told) = (fabric.drain(), Vec::new());
        loop {
            let more = fabric.drain_wave(&mut waves);
            told.push(stopped());
            if !more {
                break;
            }
        }
        assert_eq!(told, (1..=WAVES).map(|wave| wave * 500).collect::<Vec<_>>());
        assert_eq!(crowd[7].1.take().stop, Some(Stop::Draining { jitter_ms: 5_000 }));
    }
}
