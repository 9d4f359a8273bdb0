//! Channels: founded by their owners, written by their authors, read by whoever knows their ids.
//!
//! A broadcast has more readers than a server wants to have rows for. So there is nothing of them here: a reader says where
//! they are and is given what follows, ciphertext that is of use only with the channel's key. Entries are checked as every
//! reader checks them, so that a fault of one author is found before it is in everybody's way. Full pages are closed by
//! authors, who alone put bytes into the origin: a node knows the id that the blob must have, and never sees it.
//!
//! Promises: an entry is durable before it is answered, and taken once; it leaves the node only once a page is named that has
//! it; what waits for that is bounded.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use waxwing_protocol::api::{
    CHANNEL_CHARTERS_MAX, CHANNEL_PAGES_MAX, ChannelChanged, ChannelEntries, ChannelManifest, ChannelPageView,
    ChannelView,
};
use waxwing_protocol::channel::{
    CHANNEL_PAGE_BYTES, CHANNEL_PAGE_ENTRIES, ChannelError, Entry, Page, SignedCharter, SignedEntry, fills_page,
};
use waxwing_protocol::frames::{BODY_BYTES_MAX, Channel, ChannelGap, ChannelState, Class, Send};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{AccountId, ChannelId, MsgId, Timestamp};

use crate::config::Config;
use crate::fabric::Relay;
use crate::limits::{Limit, LimitView};
use crate::metrics::handles;
use crate::node::Node;
use crate::store::{
    Appended, ChannelRecord, ChannelStore, CharterCommit, CharterCommitted, DeviceAddress, Directory, EntryAppend,
    EntryError, PageCommitted, Quota, StoreError,
};

/// Channels that one account may own: each can hold [`TAIL`] for good when nobody closes its pages.
const OWNED_MAX: usize = 64;

/// What may be held of a channel that is in no page: sixteen pages, so that an author who cannot reach the origin for a while
/// can still write.
const TAIL: Quota = Quota { msgs: 16 * CHANNEL_PAGE_ENTRIES as u64, bytes: 16 * CHANNEL_PAGE_BYTES as u64 };

/// Time between two looks whether the node is still there.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Founds, changes and shows channels, and takes what is written in them.
pub(crate) struct Channels {
    store: Arc<dyn ChannelStore>,
    directory: Arc<dyn Directory>,
    appends: Limit<ChannelId>,
    changes: Limit<DeviceAddress>,
    reads: Limit<AccountId>,
}

/// Why a channel was not changed, written to or shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChannelsError {
    #[error("no such channel")]
    NotFound,
    #[error("no account of somebody who would write, or with another key")]
    UnknownAuthor,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("not taken: {0}")]
    Refused(#[from] ChannelError),
    #[error("{0}")]
    Forbidden(&'static str),
    #[error("the channel is at epoch {epoch}, or its log has gone on")]
    Conflict { epoch: u64 },
    #[error("an entry is over 96 KiB; send it as a blob")]
    TooLarge,
    #[error("this message id was used for another message")]
    OtherContent,
    #[error("too much of the channel is in no page: an author has to close some")]
    Full,
    #[error("an account owns {OWNED_MAX} channels at most")]
    TooMany,
    #[error("too often")]
    TooOften { retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<EntryError> for ChannelsError {
    fn from(refused: EntryError) -> Self {
        match refused {
            EntryError::Unknown => Self::NotFound,
            EntryError::Conflict { epoch } => Self::Conflict { epoch },
            EntryError::OtherContent => Self::OtherContent,
            EntryError::Full => Self::Full,
            EntryError::Store(failed) => Self::Store(failed),
        }
    }
}

impl Channels {
    pub(crate) fn new(store: Arc<dyn ChannelStore>, directory: Arc<dyn Directory>, config: &Config) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            store,
            directory,
            appends: Limit::new("channel-appends", config.channel_appends_per_minute, minute),
            changes: Limit::new("channel-changes", config.channel_changes_per_minute, minute),
            reads: Limit::new("channel-reads", config.channel_reads_per_minute, minute),
        }
    }

    /// The limits of channels.
    pub(crate) fn limits(&self) -> [LimitView; 3] {
        [self.appends.view(), self.changes.view(), self.reads.view()]
    }

    /// Takes a charter of `channel`, or founds a channel when none is given. Tells whether it is new; the identical charter
    /// again is no error.
    pub(crate) async fn charter(
        &self,
        by: DeviceAddress,
        channel: Option<ChannelId>,
        signed: SignedCharter,
        now: Timestamp,
    ) -> Result<(ChannelChanged, bool), ChannelsError> {
        self.changes.spend(by, now).map_err(|retry_after| ChannelsError::TooOften { retry_after })?;
        let charter = signed.read()?;
        if charter.owner != by.account {
            return Err(ChannelsError::Forbidden("a charter is made by the channel's owner"));
        }
        if (charter.epoch == 1) != channel.is_none() || channel.is_some_and(|channel| channel != charter.channel) {
            return Err(ChannelsError::Malformed("the charter is of another channel"));
        }
        let record = self.store.channel(charter.channel).await?;
        let changed = ChannelChanged { channel: charter.channel, epoch: charter.epoch };
        let before = record.as_ref().map(|record| &record.charter);
        // A founder whose id is taken learns no more of the channel that has it; nor does whoever names another's.
        if before.is_none() != channel.is_none() || before.is_some_and(|before| before.owner != by.account) {
            let repeated = before == Some(&charter);
            return if repeated { Ok((changed, false)) } else { Err(ChannelsError::NotFound) };
        }
        if let Some(before) = before
            && charter.epoch <= before.epoch
        {
            let taken = self.store.charters(charter.channel, charter.epoch.saturating_sub(1), 1).await?;
            let repeated = taken.first() == Some(&signed);
            let epoch = before.epoch;
            return if repeated { Ok((changed, false)) } else { Err(ChannelsError::Conflict { epoch }) };
        }
        let charter = match signed.verify(before) {
            Ok(charter) => charter,
            Err(ChannelError::Follows(_)) => {
                return Err(ChannelsError::Conflict { epoch: before.map_or(0, |before| before.epoch) });
            }
            Err(refused) => return Err(refused.into()),
        };
        for author in &charter.authors {
            if before.is_some_and(|before| before.authors.contains(author)) {
                continue;
            }
            let record = self.directory.account(author.account).await?;
            if record.is_none_or(|record| record.account_key != author.account_key) {
                return Err(ChannelsError::UnknownAuthor);
            }
        }
        match self.store.put_charter(CharterCommit { signed, charter, owned_max: OWNED_MAX }).await? {
            CharterCommitted::Done => Ok((changed, true)),
            CharterCommitted::Repeated => Ok((changed, false)),
            CharterCommitted::Conflict { epoch } => Err(ChannelsError::Conflict { epoch }),
            CharterCommitted::TooMany => Err(ChannelsError::TooMany),
        }
    }

    /// Takes an entry. Durable on return.
    pub(crate) async fn append(
        &self,
        from: DeviceAddress,
        send: &Send,
        target: &Channel,
        now: Timestamp,
    ) -> Result<Appended, ChannelsError> {
        let malformed = ChannelsError::Malformed;
        let msg_id = MsgId::from_slice(&send.msg_id).map_err(|_| malformed("msg_id has 16 bytes"))?;
        let channel = ChannelId::from_slice(&target.channel).map_err(|_| malformed("channel has 16 bytes"))?;
        if Class::try_from(send.class) != Ok(Class::Message) || !send.coalesce_key.is_empty() || send.ttl_s.is_some() {
            return Err(malformed(
                "a channel takes the class MESSAGE, without coalesce_key and ttl_s: its log is kept",
            ));
        }
        if target.body.len() > BODY_BYTES_MAX {
            return Err(ChannelsError::TooLarge);
        }
        let too_often = |retry_after| ChannelsError::TooOften { retry_after };
        self.reads.spend(from.account, now).map_err(too_often)?;
        let signed = SignedEntry::from_bytes(&target.body)?;
        let entry = Entry::from_bytes(&signed.entry)?;
        if entry.msg_id != msg_id || entry.epoch != target.epoch {
            return Err(malformed("the entry names another message id or epoch than the Send"));
        }
        let record = self.store.channel(channel).await?.ok_or(ChannelsError::NotFound)?;
        let Some(author) = record.charter.author(from.account) else {
            return Err(ChannelsError::Forbidden("only authors write in a channel"));
        };
        // An earlier try of an entry that is stored is looked for first, whatever has changed since: by the store. Others
        // are checked before they get there.
        if entry.epoch == record.charter.epoch {
            if entry.author != author {
                return Err(malformed("the entry names another author than the one who sends it"));
            }
            SignedEntry::verify(&target.body, &record.charter, &entry.after)?;
        }
        self.appends.spend(channel, now).map_err(too_often)?;
        let append = EntryAppend {
            from,
            msg_id,
            content_hash: *blake3::hash(&target.body).as_bytes(),
            channel,
            epoch: entry.epoch,
            after: entry.after,
            // A copy: a slice would keep the whole WebSocket message in memory for as long as anybody is slow.
            body: Bytes::copy_from_slice(&target.body),
            server_ts: now,
            tail: TAIL,
        };
        Ok(self.store.append_entry(append).await?)
    }

    /// A channel and its charters above an epoch.
    pub(crate) async fn view(
        &self,
        by: AccountId,
        channel: ChannelId,
        after: u64,
        now: Timestamp,
    ) -> Result<ChannelView, ChannelsError> {
        let record = self.read(by, channel, now).await?;
        let charters = self.store.charters(channel, after, CHANNEL_CHARTERS_MAX).await?;
        let (epoch, head_seq, tail_seq) = (record.charter.epoch, record.head.seq, record.tail_seq);
        let held = usize::try_from(head_seq + 1 - tail_seq).unwrap_or(usize::MAX);
        let full_page = fills_page(held, usize::try_from(record.tail_bytes).unwrap_or(usize::MAX));
        Ok(ChannelView { charters, epoch, head_seq, tail_seq, pages: record.pages, full_page })
    }

    /// Entries behind one, as far as they are held.
    pub(crate) async fn entries(
        &self,
        by: AccountId,
        channel: ChannelId,
        after: u64,
        now: Timestamp,
    ) -> Result<ChannelEntries, ChannelsError> {
        let ChannelRecord { head, tail_seq, .. } = self.read(by, channel, now).await?;
        let entries = self.store.entries(channel, after).await?;
        let entries = entries.into_iter().map(|entry| Base64(entry.into())).collect();
        Ok(ChannelEntries { entries, head_seq: head.seq, tail_seq })
    }

    /// Pages from the one that has the entry behind `after` on.
    pub(crate) async fn manifest(
        &self,
        by: AccountId,
        channel: ChannelId,
        after: u64,
        now: Timestamp,
    ) -> Result<ChannelManifest, ChannelsError> {
        let ChannelRecord { tail_seq, .. } = self.read(by, channel, now).await?;
        let pages = self.store.pages(channel, after, CHANNEL_PAGES_MAX).await?;
        Ok(ChannelManifest { pages, tail_seq })
    }

    /// Takes note that a page is at the origin, as an author says. The blob's id is that of the entries held, or it is none.
    pub(crate) async fn close_page(
        &self,
        by: DeviceAddress,
        channel: ChannelId,
        page: ChannelPageView,
        now: Timestamp,
    ) -> Result<bool, ChannelsError> {
        self.changes.spend(by, now).map_err(|retry_after| ChannelsError::TooOften { retry_after })?;
        let record = self.read(by.account, channel, now).await?;
        if record.charter.author(by.account).is_none() {
            return Err(ChannelsError::Forbidden("only authors close pages"));
        }
        if page.first_seq == record.tail_seq {
            let entries = self.store.entries(channel, page.first_seq - 1).await?;
            let (count, bytes) = (entries.len(), entries.iter().map(Bytes::len).sum());
            if !fills_page(count, bytes) {
                return Err(ChannelsError::Malformed("the page is not full yet"));
            }
            let whole = Page { first_seq: page.first_seq, entries: entries.into_iter().map(Into::into).collect() };
            let spans = page.last_seq.checked_sub(page.first_seq).and_then(|more| more.checked_add(1));
            if spans != Some(count as u64) || whole.blob() != page.blob {
                return Err(ChannelsError::Malformed("the blob is not the page that these entries make"));
            }
        }
        match self.store.put_page(channel, page).await? {
            PageCommitted::Done => {
                handles().channel_pages.increment(1);
                Ok(true)
            }
            PageCommitted::Repeated => Ok(false),
            PageCommitted::Conflict => Err(ChannelsError::Conflict { epoch: record.charter.epoch }),
        }
    }

    /// The channels that an account owns or writes in.
    pub(crate) async fn of(&self, account: AccountId) -> Result<Vec<ChannelId>, ChannelsError> {
        Ok(self.store.channels_of(account).await?)
    }

    /// How far a channel is, for somebody who follows it from `after` on, and what lies between.
    pub(crate) async fn state(
        &self,
        by: AccountId,
        channel: ChannelId,
        after: u64,
        now: Timestamp,
    ) -> Result<(ChannelState, Option<ChannelGap>), ChannelsError> {
        let record = self.read(by, channel, now).await?;
        let (id, epoch) = (Bytes::copy_from_slice(channel.as_bytes()), record.charter.epoch);
        let head_seq = record.head.seq;
        let behind = ChannelGap { channel: id.clone(), epoch, from: after.saturating_add(1), to: head_seq };
        let state = ChannelState { channel: id, epoch, head_seq, tail_seq: record.tail_seq };
        Ok((state, (after < head_seq).then_some(behind)))
    }

    /// A channel, for somebody who names its id. Whoever guesses ids is slowed down before anything is looked at.
    async fn read(&self, by: AccountId, channel: ChannelId, now: Timestamp) -> Result<ChannelRecord, ChannelsError> {
        self.reads.spend(by, now).map_err(|retry_after| ChannelsError::TooOften { retry_after })?;
        self.store.channel(channel).await?.ok_or(ChannelsError::NotFound)
    }
}

/// Gives followers what is new, for as long as anybody has the node.
pub(crate) async fn relay(node: Weak<Node>, relay: Arc<Relay>) {
    while node.strong_count() > 0 {
        // Nobody may have the node any more while nothing comes.
        if let Ok(news) = tokio::time::timeout(LOOK_EVERY, relay.news()).await {
            relay.give(news).await;
        }
    }
}
