//! Where devices are woken: a record a device, beside the directory's.

use futures_util::future::BoxFuture;
use waxwing_protocol::Timestamp;

use super::{DeviceAddress, StoreError};

/// Names a place where devices are woken.
pub(crate) type Place = [u8; 16];

/// Where a device is woken. What it says is the push part's business; a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WakeTarget {
    pub target: Vec<u8>,
    /// What two targets share that wake the same app on the same phone; unknown of those that an older version stored.
    pub place: Option<Place>,
    /// When the device said so last.
    pub set_at: Timestamp,
}

/// The devices that can be woken.
pub(crate) trait WakeTargets: Send + Sync + 'static {
    /// Sets where a device is woken; `None` when there is no such device. Another device that is woken at the same place
    /// is woken there no more, and returned. It goes with the device. Durable on return.
    fn set_wake_target(
        &self,
        device: DeviceAddress,
        target: WakeTarget,
    ) -> BoxFuture<'static, Result<Option<Vec<DeviceAddress>>, StoreError>>;

    /// Forgets where a device is woken; with `only`, if it was set just then: one that came later stays. Returns whether
    /// it was forgotten. Durable on return.
    fn remove_wake_target(
        &self,
        device: DeviceAddress,
        only: Option<Timestamp>,
    ) -> BoxFuture<'static, Result<bool, StoreError>>;

    /// Where a device is woken.
    fn wake_target(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<WakeTarget>, StoreError>>;

    /// Devices above `after` that can be woken, by rising address, `limit` at most.
    fn wakeable(
        &self,
        after: Option<DeviceAddress>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<DeviceAddress>, StoreError>>;
}
