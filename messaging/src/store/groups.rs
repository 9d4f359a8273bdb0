//! Groups in a store: who is in them, the changes that made them so, and what is sent to them.
//!
//! What goes to a group is stored once, and each recipient's mailbox holds a row that points at it. Whether a change is
//! signed and allowed was decided before; a store sees to it that it follows the state that stands.

use futures_util::future::BoxFuture;
use waxwing_protocol::frames::Envelope;
use waxwing_protocol::group::{GroupState, SignedGroupChange};
use waxwing_protocol::{AccountId, GroupId, MsgId};

use super::{AppendError, Appended, DeviceAddress, Quota, StoreError};

/// A group as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRecord {
    pub state: GroupState,
    /// The change that made it.
    pub change: SignedGroupChange,
}

/// A change of a group that was found to be good.
#[derive(Clone, Debug)]
pub(crate) struct GroupCommit {
    pub change: SignedGroupChange,
    /// BLAKE3 of the state that it follows; `None` when it founds the group.
    pub previous: Option<[u8; 32]>,
    pub after: GroupState,
    /// The row that tells of it; `seq`, `prev_seq` and `conv_seq` are filled in by the store.
    pub envelope: Envelope,
    /// How much may wait in one lane.
    pub quota: Quota,
}

/// What became of a [`GroupCommit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupCommitted {
    Done,
    /// The very same change was made before.
    Repeated,
    /// Another state stands, of this epoch; 0 when there is no such group.
    Conflict {
        epoch: u64,
    },
}

/// A message to a group.
#[derive(Clone, Debug)]
pub(crate) struct GroupSend {
    /// Who sends it. With `msg_id` it is the idempotency key.
    pub from: DeviceAddress,
    pub msg_id: MsgId,
    /// BLAKE3 over what it says: a repeat must say the same, but may name another epoch and other devices.
    pub content_hash: [u8; 32],
    pub group: GroupId,
    /// The epoch that the sender knows.
    pub epoch: u64,
    /// BLAKE3 of the devices that the sender encrypted for.
    pub devices_hash: [u8; 32],
    /// With the body; `seq`, `prev_seq` and `conv_seq` are filled in by the store.
    pub envelope: Envelope,
    /// How much may wait in one lane.
    pub quota: Quota,
}

/// How far a group's conversation has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupProgress {
    /// Who is in it.
    pub members: Vec<AccountId>,
    /// The last place given.
    pub conv_seq: u64,
    /// Members of whom a device has acked everything up to there.
    pub delivered: u32,
    /// Members who have seen everything up to there.
    pub read: u32,
}

/// What a store holds of messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Rows in mailboxes, those that are acked and not swept yet among them.
    pub rows: usize,
    /// Bodies of groups.
    pub bodies: usize,
    /// The bytes of both, with their keys.
    pub bytes: usize,
}

/// Groups, and what is sent to them.
pub(crate) trait GroupStore: Send + Sync + 'static {
    /// Makes a change, if the state that it follows is the one that stands, and puts a row that tells of it into the
    /// mailboxes of everybody who was in the group before or is after. Durable on return, idempotent.
    fn change_group(&self, commit: GroupCommit) -> BoxFuture<'static, Result<GroupCommitted, StoreError>>;

    /// Stores a message once, and a row for it in the mailbox of each device of the members but the one that sends; a full
    /// mailbox and that of an account which blocks the sender are left out. Idempotent on (`from`, `msg_id`) for 48 h. In
    /// one transaction: the repeat is looked for, membership, epoch and devices are checked, and the message gets its place
    /// in the conversation. The body goes with its last row. Sends take their place in order when this is called.
    fn send_group(&self, send: GroupSend) -> BoxFuture<'static, Result<Appended, AppendError>>;

    /// A member has seen everything up to a place in the conversation. Nothing changes in a group that has no receipts, nor
    /// for whoever is not in it. Durable on return.
    fn mark_read(&self, by: AccountId, group: GroupId, conv_seq: u64) -> BoxFuture<'static, Result<(), StoreError>>;

    /// How far the conversation of a group that has receipts has come; `None` of others.
    fn progress(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupProgress>, StoreError>>;

    /// A group as it stands.
    fn group(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>>;

    /// Changes of a group above the epoch `after`, by rising epoch: `limit` at most, fewer when they are large, and one when
    /// there is one.
    fn group_changes(
        &self,
        group: GroupId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedGroupChange>, StoreError>>;

    /// A group as it was in an epoch.
    fn group_at(&self, group: GroupId, epoch: u64) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>>;

    /// The groups that an account is in, by rising id.
    fn groups_of(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<GroupId>, StoreError>>;

    /// Counts what is stored of messages, by reading all of it.
    fn stored(&self) -> BoxFuture<'static, Result<Stored, StoreError>>;
}
