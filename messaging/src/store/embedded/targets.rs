//! Where devices are woken, in the embedded engine.

use std::ops::Bound;

use futures_util::future::BoxFuture;
use waxwing_protocol::Timestamp;

use super::EmbeddedStore;
use super::tables::{self, Tables, corrupt, engine_error, of_device, tag};
use super::writer::{Command, Turn};
use crate::store::{DeviceAddress, StoreError, WakeTarget, WakeTargets};

impl WakeTargets for EmbeddedStore {
    fn set_wake_target(
        &self,
        device: DeviceAddress,
        target: WakeTarget,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.write(|reply| Command::SetWakeTarget { device, target, reply })
    }

    fn remove_wake_target(
        &self,
        device: DeviceAddress,
        only: Option<Timestamp>,
    ) -> BoxFuture<'static, Result<bool, StoreError>> {
        self.write(|reply| Command::RemoveWakeTarget { device, only, reply })
    }

    fn wake_target(&self, device: DeviceAddress) -> BoxFuture<'static, Result<Option<WakeTarget>, StoreError>> {
        self.read_with(move |tables| wake_target(tables, device))
    }

    fn wakeable(
        &self,
        after: Option<DeviceAddress>,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<DeviceAddress>, StoreError>> {
        self.read_with(move |tables| wakeable(tables, after, limit))
    }
}

fn key(device: DeviceAddress) -> Vec<u8> {
    of_device(tag::WAKE_TARGET, device, &[])
}

fn wake_target(tables: &Tables, device: DeviceAddress) -> Result<Option<WakeTarget>, StoreError> {
    tables.directory.get(key(device)).map_err(engine_error)?.map(|value| read(&value)).transpose()
}

fn wakeable(tables: &Tables, after: Option<DeviceAddress>, limit: usize) -> Result<Vec<DeviceAddress>, StoreError> {
    let from = match after {
        Some(after) => Bound::Excluded(key(after)),
        None => Bound::Included(vec![tag::WAKE_TARGET]),
    };
    let to = Bound::Excluded(vec![tag::WAKE_TARGET + 1]);
    let devices = tables.directory.range::<Vec<u8>, _>((from, to)).take(limit).map(|guard| {
        let key = guard.key().map_err(engine_error)?;
        key.get(1..).and_then(tables::address_of).ok_or_else(|| corrupt("a wake target"))
    });
    devices.collect()
}

/// The moment stands before the target.
fn read(value: &[u8]) -> Result<WakeTarget, StoreError> {
    let (set_at, target) = value.split_first_chunk::<8>().ok_or_else(|| corrupt("a wake target"))?;
    Ok(WakeTarget { target: target.to_vec(), set_at: Timestamp::from_millis(u64::from_be_bytes(*set_at)) })
}

impl Turn<'_> {
    pub(super) fn set_wake_target(&mut self, device: DeviceAddress, target: &WakeTarget) -> Result<bool, StoreError> {
        // The mailbox as this turn has it: a device that was removed just now has none.
        if self.mailbox(device)?.is_none() {
            return Ok(false);
        }
        let value = [&target.set_at.as_millis().to_be_bytes()[..], &target.target].concat();
        self.batch.insert(&self.tables.directory, key(device), value);
        Ok(true)
    }

    pub(super) fn remove_wake_target(
        &mut self,
        device: DeviceAddress,
        only: Option<Timestamp>,
    ) -> Result<bool, StoreError> {
        let Some(target) = wake_target(self.tables, device)? else { return Ok(false) };
        if only.is_some_and(|only| only != target.set_at) {
            return Ok(false);
        }
        self.batch.remove(&self.tables.directory, key(device));
        Ok(true)
    }
}
