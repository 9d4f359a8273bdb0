//! Our types as PostgreSQL's: ids as uuid, numbers as the signed ones it has, bit for bit.

use tokio_postgres::Row;
use uuid::Uuid;
use waxwing_protocol::frames::Lane;
use waxwing_protocol::{AccountId, DeviceId};

use crate::store::embedded::lane_index;
use crate::store::{DeviceAddress, StoreError, StoreErrorKind};

/// One lane of a mailbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct LaneAddress {
    pub(super) mailbox: DeviceAddress,
    /// 0: normal, 1: urgent.
    pub(super) lane: i16,
}

impl LaneAddress {
    pub(super) fn new(mailbox: DeviceAddress, lane: Lane) -> Self {
        Self { mailbox, lane: lane_number(lane) }
    }

    pub(super) fn lane(self) -> Lane {
        if self.lane == 0 { Lane::Normal } else { Lane::Urgent }
    }

    /// From the columns `account`, `device`, `lane`, which come first.
    pub(super) fn of(row: &Row) -> Result<Self, StoreError> {
        Ok(Self { mailbox: mailbox(row)?, lane: row.try_get(2).map_err(damaged)? })
    }
}

pub(super) fn lane_number(lane: Lane) -> i16 {
    i16::from(lane_index(lane) == 1)
}

pub(super) fn uuid(account: AccountId) -> Uuid {
    Uuid::from_bytes(*account.as_bytes())
}

pub(super) fn account(uuid: Uuid) -> AccountId {
    AccountId::from_bytes(*uuid.as_bytes())
}

pub(super) fn number(device: DeviceId) -> i32 {
    device.get().cast_signed()
}

pub(super) fn device(number: i32) -> Result<DeviceId, StoreError> {
    DeviceId::new(number.cast_unsigned()).map_err(damaged)
}

/// A mailbox from the columns `account` and `device`, which come first.
pub(super) fn mailbox(row: &Row) -> Result<DeviceAddress, StoreError> {
    let (id, number): (Uuid, i32) = (row.try_get(0).map_err(damaged)?, row.try_get(1).map_err(damaged)?);
    Ok(DeviceAddress { account: account(id), device: device(number)? })
}

/// A number of 64 bits from a column.
pub(super) fn big(row: &Row, column: usize) -> Result<u64, StoreError> {
    row.try_get::<_, i64>(column).map(i64::cast_unsigned).map_err(damaged)
}

/// A row that does not say what it should.
pub(super) fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::new(StoreErrorKind::Corrupt, format_args!("a row is damaged: {error}"))
}

/// Columns of lanes as parameters.
pub(super) struct Columns {
    pub(super) accounts: Vec<Uuid>,
    pub(super) devices: Vec<i32>,
    pub(super) lanes: Vec<i16>,
}

impl Columns {
    pub(super) fn of(addresses: impl IntoIterator<Item = LaneAddress>) -> Self {
        let mut columns = Self { accounts: Vec::new(), devices: Vec::new(), lanes: Vec::new() };
        for address in addresses {
            columns.accounts.push(uuid(address.mailbox.account));
            columns.devices.push(number(address.mailbox.device));
            columns.lanes.push(address.lane);
        }
        columns
    }
}
