//! What an operator sees of a node: accounts, devices, mailboxes, limits.
//!
//! When somebody asks why a message has not come, the operator needs to know whether it waits, for whom and how long;
//! never what it says or who wrote it, and neither is here.

use serde::Serialize;
use waxwing_protocol::{AccountId, DeviceId, Handle, Timestamp};

use crate::Messaging;
use crate::limits::LimitView;
use crate::store::{AccountRecord, DeviceAddress, Directory, LaneDepth, StoreError, Stored};

/// Why nothing can be told: the store failed.
#[derive(Debug, thiserror::Error)]
#[error("the mailboxes' store cannot be read: {0}")]
pub struct SurveyError(String);

impl From<StoreError> for SurveyError {
    fn from(failed: StoreError) -> Self {
        Self(failed.to_string())
    }
}

/// An account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountSurvey {
    /// Its id.
    pub account: AccountId,
    /// Its handle.
    pub handle: Handle,
    /// Devices that it has.
    pub devices: usize,
    /// Devices of it that are connected to this node.
    pub connected: usize,
}

/// A device and its mailbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceSurvey {
    /// Its number.
    pub device: DeviceId,
    /// The reg_id its account lists it with.
    pub reg_id: u32,
    /// Whether it is connected to this node.
    pub connected: bool,
    /// How often it has connected.
    pub connections: u64,
    /// The epoch of its mailbox.
    pub epoch: u64,
    /// Its mailbox, lane by lane: normal, urgent.
    pub lanes: [LaneSurvey; 2],
}

/// A lane of a mailbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LaneSurvey {
    /// Everything up to this seq is acked.
    pub acked: u64,
    /// The last seq given.
    pub last: u64,
    /// Messages that wait.
    pub waiting: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// When the oldest of them was taken.
    pub oldest: Option<Timestamp>,
}

impl From<LaneDepth> for LaneSurvey {
    fn from(LaneDepth { acked, last, waiting, bytes, oldest }: LaneDepth) -> Self {
        Self { acked, last, waiting, bytes, oldest }
    }
}

/// What a node holds of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StoredSurvey {
    /// Rows in mailboxes, those that are acked and not swept yet among them.
    pub rows: usize,
    /// Bodies of messages to groups: each once, until the last row that stands for it is swept.
    pub bodies: usize,
    /// The bytes of both.
    pub bytes: usize,
}

impl Messaging {
    /// Counts what is stored of messages, by reading all of it: not for a busy node.
    ///
    /// # Errors
    /// [`SurveyError`] when the store cannot be read.
    pub async fn stored(&self) -> Result<StoredSurvey, SurveyError> {
        let Stored { rows, bodies, bytes } = self.node.groups.stored().await?;
        Ok(StoredSurvey { rows, bodies, bytes })
    }

    /// Accounts with an id above `after`, by rising id, `limit` at most.
    ///
    /// # Errors
    /// [`SurveyError`] when the store cannot be read.
    pub async fn accounts(&self, after: Option<AccountId>, limit: usize) -> Result<Vec<AccountSurvey>, SurveyError> {
        let mut surveys = Vec::new();
        for AccountRecord { account, handle, .. } in self.directory().accounts(after, limit).await? {
            let devices = self.directory().devices(account).await?.len();
            let connected = self.node.fabric.outboxes(account).len();
            surveys.push(AccountSurvey { account, handle, devices, connected });
        }
        Ok(surveys)
    }

    /// The devices of the account with this id or handle; `None` when there is no such account.
    ///
    /// # Errors
    /// [`SurveyError`] when the store cannot be read.
    pub async fn devices(&self, name: &str) -> Result<Option<Vec<DeviceSurvey>>, SurveyError> {
        let record = match (name.parse::<AccountId>(), name.parse::<Handle>()) {
            (Ok(account), _) => self.directory().account(account).await?,
            (_, Ok(handle)) => self.directory().account_by_handle(handle).await?,
            _ => None,
        };
        let Some(AccountRecord { account, .. }) = record else { return Ok(None) };
        let mut surveys = Vec::new();
        for (device, reg_id) in self.directory().devices(account).await? {
            let address = DeviceAddress { account, device };
            let Some(mailbox) = self.node.mailboxes.view(address).await? else { continue };
            surveys.push(DeviceSurvey {
                device,
                reg_id,
                connected: self.node.fabric.is_connected(account, device),
                connections: mailbox.generation,
                epoch: mailbox.epoch,
                lanes: mailbox.lanes.map(LaneSurvey::from),
            });
        }
        Ok(Some(surveys))
    }

    /// Every limit of this node, and what it has refused since the start.
    pub fn limits(&self) -> Vec<LimitView> {
        let node = &self.node;
        let [device, account, pair, group] = node.delivery.limits();
        let [changes, links] = node.groups.limits();
        let [appends, charters, reads] = node.channels.limits();
        let [requests, registrations] = node.addresses.limits();
        let [claims, one_time_claims] = node.keys.claim_limits();
        vec![
            device,
            account,
            pair,
            group,
            changes,
            links,
            appends,
            charters,
            reads,
            node.hellos.view(),
            node.accounts.look_up_limit(),
            claims,
            one_time_claims,
            node.presence.typing_limit(),
            node.push.test_limit(),
            node.reports.limit(),
            requests,
            registrations,
        ]
    }

    fn directory(&self) -> &dyn Directory {
        self.node.accounts.directory()
    }
}
