//! Where devices are woken, in the embedded engine.

use std::ops::Bound;

use futures_util::future::BoxFuture;
use waxwing_protocol::Timestamp;

use super::EmbeddedStore;
use super::tables::{self, Tables, corrupt, engine_error, of_device, tag};
use super::writer::{Command, Turn};
use crate::store::{DeviceAddress, Place, StoreError, WakeTarget, WakeTargets};

impl WakeTargets for EmbeddedStore {
    fn set_wake_target(
        &self,
        device: DeviceAddress,
        target: WakeTarget,
    ) -> BoxFuture<'static, Result<Option<Vec<DeviceAddress>>, StoreError>> {
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

/// First byte of a record with a place. Those of older versions begin with the moment, whose first byte is 0.
const WITH_PLACE: u8 = 1;

/// Place and moment stand before the target.
fn read(value: &[u8]) -> Result<WakeTarget, StoreError> {
    let damaged = || corrupt("a wake target");
    let (place, value) = match value.split_first() {
        Some((&WITH_PLACE, rest)) => {
            let (place, rest) = rest.split_first_chunk().ok_or_else(damaged)?;
            (Some(*place), rest)
        }
        _ => (None, value),
    };
    let (set_at, target) = value.split_first_chunk::<8>().ok_or_else(damaged)?;
    Ok(WakeTarget { target: target.to_vec(), place, set_at: Timestamp::from_millis(u64::from_be_bytes(*set_at)) })
}

fn write(target: &WakeTarget) -> Vec<u8> {
    let WakeTarget { target, place, set_at } = target;
    let mut value = Vec::with_capacity(1 + 16 + 8 + target.len());
    if let Some(place) = place {
        value.push(WITH_PLACE);
        value.extend_from_slice(place);
    }
    value.extend_from_slice(&set_at.as_millis().to_be_bytes());
    value.extend_from_slice(target);
    value
}

/// The key of who is woken at a place.
fn at_place(place: &Place) -> Vec<u8> {
    [&[tag::WAKE_PLACE], &place[..]].concat()
}

impl Turn<'_> {
    pub(super) fn set_wake_target(
        &mut self,
        device: DeviceAddress,
        target: &WakeTarget,
    ) -> Result<Option<Vec<DeviceAddress>>, StoreError> {
        // The mailbox as this turn has it: a device that was removed just now has none.
        if self.mailbox(device)?.is_none() {
            return Ok(None);
        }
        let mut displaced = Vec::new();
        self.forget_wake_target(device)?;
        if let Some(place) = &target.place {
            let before = self.tables.directory.get(at_place(place)).map_err(engine_error)?;
            let before =
                before.map(|before| tables::address_of(&before).ok_or_else(|| corrupt("who is woken at a place")));
            if let Some(before) = before.transpose()?.filter(|before| *before != device) {
                self.forget_wake_target(before)?;
                displaced.push(before);
            }
            self.batch.insert(&self.tables.directory, at_place(place), tables::address(device));
        }
        self.batch.insert(&self.tables.directory, key(device), write(target));
        Ok(Some(displaced))
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
        self.forget_wake_target(device)?;
        Ok(true)
    }

    /// Removes where a device is woken, if it is anywhere.
    pub(super) fn forget_wake_target(&mut self, device: DeviceAddress) -> Result<(), StoreError> {
        let Some(target) = wake_target(self.tables, device)? else { return Ok(()) };
        self.batch.remove(&self.tables.directory, key(device));
        if let Some(place) = &target.place {
            self.batch.remove(&self.tables.directory, at_place(place));
        }
        Ok(())
    }
}
