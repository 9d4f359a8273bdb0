//! Channels in a store: charters, the end of the log, and which pages the rest of it is in.
//!
//! Nothing here is by follower: whoever reads says where they are. Whether a charter or an entry is signed and allowed was
//! decided before; a store sees to it that each follows what stands.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::api::ChannelPageView;
use waxwing_protocol::channel::{Charter, Position, SignedCharter};
use waxwing_protocol::{AccountId, ChannelId, MsgId, Timestamp};

use super::{Appended, DeviceAddress, Quota, StoreError};

/// A channel as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChannelRecord {
    pub charter: Charter,
    /// The last entry.
    pub head: Position,
    /// The first entry that is held; those before it are in pages.
    pub tail_seq: u64,
    /// Bytes of what is held.
    pub tail_bytes: u64,
    /// Pages so far.
    pub pages: u64,
}

/// A charter that was found to be good.
#[derive(Clone, Debug)]
pub(crate) struct CharterCommit {
    pub signed: SignedCharter,
    pub charter: Charter,
    /// Channels that one account may own.
    pub owned_max: usize,
}

/// What became of a [`CharterCommit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CharterCommitted {
    Done,
    /// The very same charter was taken before.
    Repeated,
    /// Another charter stands, or the log has gone on; this is the epoch, 0 when there is no such channel.
    Conflict {
        epoch: u64,
    },
    /// The owner has as many channels as one may.
    TooMany,
}

/// An entry that was found to be good.
#[derive(Clone, Debug)]
pub(crate) struct EntryAppend {
    /// Who sends it. With `msg_id` it is the idempotency key.
    pub from: DeviceAddress,
    pub msg_id: MsgId,
    /// BLAKE3 over what it says: a repeat must say the same, in the same place.
    pub content_hash: [u8; 32],
    pub channel: ChannelId,
    /// The epoch of the charter that it is written under.
    pub epoch: u64,
    /// The entry that it follows.
    pub after: Position,
    pub body: Bytes,
    pub server_ts: Timestamp,
    /// How much may be held that is in no page yet.
    pub tail: Quota,
}

/// Why an [`EntryAppend`] stored nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error("no such channel")]
    Unknown,
    #[error("the channel is at epoch {epoch}, or another entry came first")]
    Conflict { epoch: u64 },
    #[error("this message id was used for another message")]
    OtherContent,
    #[error("too much of the channel is in no page: an author has to close some")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An entry that was committed: handed to the [`CommitSink`](super::CommitSink).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommittedEntry {
    pub channel: ChannelId,
    pub epoch: u64,
    pub seq: u64,
    pub body: Bytes,
}

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageCommitted {
    Done,
    /// The very same page was named before.
    Repeated,
    /// It is not the next one.
    Conflict,
}

/// Channels.
pub(crate) trait ChannelStore: Send + Sync + 'static {
    /// Takes a charter, if it follows the one that stands, and begins at the last entry. Durable on return, idempotent.
    fn put_charter(&self, commit: CharterCommit) -> BoxFuture<'static, Result<CharterCommitted, StoreError>>;

    /// Adds an entry, if it is of the epoch that stands and follows the last entry. Idempotent on (`from`, `msg_id`) for 48 h.
    /// Durable on return; the sink hears of entries in their order.
    fn append_entry(&self, append: EntryAppend) -> BoxFuture<'static, Result<Appended, EntryError>>;

    /// Notes that the entries from the first one held to the page's last are in a page, and lets go of them, in one commit.
    fn put_page(
        &self,
        channel: ChannelId,
        page: ChannelPageView,
    ) -> BoxFuture<'static, Result<PageCommitted, StoreError>>;

    /// A channel as it stands.
    fn channel(&self, channel: ChannelId) -> BoxFuture<'static, Result<Option<ChannelRecord>, StoreError>>;

    /// Charters above the epoch `after`, by rising epoch, `limit` at most.
    fn charters(
        &self,
        channel: ChannelId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedCharter>, StoreError>>;

    /// Entries that are held from `after` + 1 on, up to the first that fills a page; none when that one is not held.
    fn entries(&self, channel: ChannelId, after: u64) -> BoxFuture<'static, Result<Vec<Bytes>, StoreError>>;

    /// Pages from the one that has entry `after` + 1 on, `limit` at most.
    fn pages(
        &self,
        channel: ChannelId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ChannelPageView>, StoreError>>;

    /// The channels that an account owns or writes in, by rising id.
    fn channels_of(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<ChannelId>, StoreError>>;
}
