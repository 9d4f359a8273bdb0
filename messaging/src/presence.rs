//! Presence: who is there right now, told to those who may know; and who is typing.
//!
//! Told at every change to everybody who ever asked, presence would cost more than messages do, and would let strangers
//! log when somebody sleeps. So it is told only to connections that subscribed in the last ten minutes, at most once a
//! second, and only as far as the watched account allows; going away is told half a minute late, so that a phone which
//! changes networks does not blink.
//!
//! All of it is memory: after a restart nobody is known to have been seen. Promise: no presence and no typing is ever
//! written to a disk.

mod room;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::api::Visibility;
use waxwing_protocol::frames::{
    EPHEMERAL_BYTES_MAX, Ephemeral, EphemeralKind, EphemeralPush, PRESENCE_SUBSCRIPTIONS_MAX, PresenceSub,
};
use waxwing_protocol::{AccountId, Timestamp};

use self::room::Room;
use crate::clock::Clock;
use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::metrics::handles;
use crate::node::Node;
use crate::store::{DeviceAddress, Directory, Regard, StoreError};

/// How often changes are told.
const BATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two signs of typing in one conversation; more often, they are dropped.
const TYPING_INTERVAL: Duration = Duration::from_secs(3);

/// How long a sign of typing holds.
const TYPING_TTL: Duration = Duration::from_secs(5);

/// A connection: a device, and which of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionId {
    pub(crate) device: DeviceAddress,
    pub(crate) generation: u64,
}

/// Knows who is there.
pub(crate) struct Presence {
    directory: Arc<dyn Directory>,
    fabric: Arc<Fabric>,
    clock: Arc<Clock>,
    room: Mutex<Room>,
    typing: Limit<(DeviceAddress, AccountId)>,
}

/// Why a presence or ephemeral frame was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PresenceError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("a connection subscribes to 512 accounts at most")]
    TooMany,
    #[error("a payload has at most 512 bytes")]
    TooLarge,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A connection's being there: over when this is dropped.
pub(crate) struct Attendance {
    presence: Arc<Presence>,
    connection: ConnectionId,
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.presence.room().leave(self.connection, self.presence.clock.now());
    }
}

impl Attendance {
    pub(crate) fn connection(&self) -> ConnectionId {
        self.connection
    }
}

impl Presence {
    pub(crate) fn new(directory: Arc<dyn Directory>, fabric: Arc<Fabric>, clock: Arc<Clock>) -> Self {
        let typing = Limit::new("typing", 1, TYPING_INTERVAL);
        Self { directory, fabric, clock, room: Mutex::default(), typing }
    }

    /// A connection is there. A poll `continues` the one before it, and so does a connection that was resumed.
    pub(crate) fn enter(self: &Arc<Self>, connection: ConnectionId, continues: bool, foreground: bool) -> Attendance {
        let now = self.clock.now();
        self.room().enter(connection, continues, foreground, now);
        if continues {
            // A poll may be over before the next round: what changed meanwhile is told at once.
            let items = self.room().batch_of(connection.device, now);
            if let (false, Some(outbox)) = (items.is_empty(), self.fabric.outbox(connection.device)) {
                handles().presence.increment(items.len() as u64);
                outbox.presence(items);
            }
        }
        Attendance { presence: self.clone(), connection }
    }

    /// Whether a person is looking at a device.
    pub(crate) fn set_foreground(&self, connection: ConnectionId, foreground: bool) {
        self.room().set_foreground(connection, foreground, self.clock.now());
    }

    /// Changes what a connection is told of. What is known is told with the next batch.
    pub(crate) fn subscribe(
        self: &Arc<Self>,
        connection: ConnectionId,
        sub: &PresenceSub,
    ) -> Result<BoxFuture<'static, Result<(), PresenceError>>, PresenceError> {
        let (add, remove) = (accounts(&sub.add)?, accounts(&sub.remove)?);
        let presence = self.clone();
        Ok(Box::pin(async move {
            let asker = connection.device.account;
            let regards = presence.directory.regards(add.clone(), asker).await?;
            let added = add.into_iter().zip(regards).map(|(account, regard)| {
                let shown = account == asker || regard.is_some_and(|regard| shows(&regard));
                (account, shown)
            });
            let done = presence.room().subscribe(connection, added.collect(), &remove, presence.clock.now());
            if done { Ok(()) } else { Err(PresenceError::TooMany) }
        }))
    }

    /// An account shows its presence to others than before: who is told of it has to ask again.
    pub(crate) fn visibility_changed(&self, account: AccountId) {
        self.room().hide(account);
    }

    /// An account has blocked another, which is told nothing of it any more.
    pub(crate) fn blocked(&self, account: AccountId, peer: AccountId) {
        self.room().hide_from(account, peer);
    }

    /// Passes something for the moment on to the connected devices of an account, if that has written to the sender.
    /// Whether anybody got it is not told.
    pub(crate) fn ephemeral(
        self: &Arc<Self>,
        from: DeviceAddress,
        ephemeral: &Ephemeral,
    ) -> Result<BoxFuture<'static, ()>, PresenceError> {
        let to = AccountId::from_slice(&ephemeral.account);
        let to = to.map_err(|_| PresenceError::Malformed("account has 16 bytes"))?;
        let kind = EphemeralKind::try_from(ephemeral.kind);
        let Ok(EphemeralKind::Typing) = kind else { return Err(PresenceError::Malformed("unknown kind")) };
        if ephemeral.payload.len() > EPHEMERAL_BYTES_MAX {
            return Err(PresenceError::TooLarge);
        }
        let push = EphemeralPush {
            account: Bytes::copy_from_slice(from.account.as_bytes()),
            kind: ephemeral.kind,
            payload: Bytes::copy_from_slice(&ephemeral.payload),
            ttl_ms: u32::try_from(TYPING_TTL.as_millis()).unwrap_or(u32::MAX),
        };
        let presence = self.clone();
        let too_often = self.typing.spend((from, to), self.clock.now()).is_err();
        Ok(Box::pin(async move {
            if too_often {
                return;
            }
            // A look-up that fails is as good as nobody being there.
            let Ok(regards) = presence.directory.regards(vec![to], from.account).await else { return };
            let heard = regards.first().copied().flatten().is_some_and(|it| it.has_written && !it.has_blocked);
            if heard {
                for outbox in presence.fabric.outboxes(to) {
                    outbox.ephemeral(push.clone());
                }
            }
        }))
    }

    /// The limit of signs of typing.
    pub(crate) fn typing_limit(&self) -> LimitView {
        self.typing.view()
    }

    /// Tells every connection what has changed since the last time.
    fn tell(&self) {
        let connected = |device| self.fabric.outbox(device).is_some();
        let batches = self.room().batches(connected, self.clock.now());
        for (device, items) in batches {
            if let Some(outbox) = self.fabric.outbox(device) {
                handles().presence.increment(items.len() as u64);
                outbox.presence(items);
            }
        }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // A panic elsewhere leaves at worst somebody shown as present a little longer.
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells changes once a second, for as long as the node is there.
pub(crate) async fn run(node: Weak<Node>) {
    loop {
        tokio::time::sleep(BATCH_INTERVAL).await;
        let Some(node) = node.upgrade() else { return };
        node.presence.tell();
    }
}

/// Whether an account shows its presence to the one it regards so.
fn shows(regard: &Regard) -> bool {
    if regard.has_blocked {
        return false;
    }
    match regard.preferences.presence {
        Visibility::Everyone => true,
        Visibility::Contacts => regard.has_written,
        Visibility::Nobody => false,
    }
}

fn accounts(ids: &[Bytes]) -> Result<Vec<AccountId>, PresenceError> {
    if ids.len() > PRESENCE_SUBSCRIPTIONS_MAX {
        return Err(PresenceError::TooMany);
    }
    let ids = ids.iter().map(|id| AccountId::from_slice(id));
    ids.collect::<Result<_, _>>().map_err(|_| PresenceError::Malformed("an account has 16 bytes"))
}

/// The five minutes that a moment lies in: nearer, others could tell who wrote to whom by who left when.
pub(crate) fn rounded(moment: Timestamp) -> u64 {
    const STEP_MS: u64 = 5 * 60 * 1000;
    moment.as_millis() / STEP_MS * STEP_MS
}
