//! Groups: changed by their members, shown to their members, and to nobody else.
//!
//! The server makes no change of its own: it takes what a member's account key signed, checks it by the rules that every
//! client checks it by as well, and hands it on as a message like any other, in its place among them. Two changes of the
//! same epoch are a conflict for the second, whose maker looks and tries again.
//!
//! Promise: whoever is not in a group learns nothing of it, not even that it is there: the same answer for a group that
//! is none and for one of others. A link shows a group to whoever can sign with its key.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tracing::warn;
use waxwing_protocol::api::{
    AccountView, GROUP_ACCOUNTS_MAX, GROUP_CHANGES_MAX, GroupChanged, GroupChanges, GroupDevicesView, GroupLinkRequest,
    GroupLinkView, GroupStateView,
};
use waxwing_protocol::frames::{Class, Envelope, ReceiptSummary};
use waxwing_protocol::group::{GROUP_MEMBERS_MAX, GroupError, GroupState, LinkProof, SignedGroupChange, What};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{AccountId, GroupId, Timestamp};

use crate::config::Config;
use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::node::Node;
use crate::store::{
    DeviceAddress, Directory, GroupCommit, GroupCommitted, GroupRecord, GroupStore, Quota, StoreError, Stored,
};

/// Time between two of what a group's members are told of receipts.
const RECEIPTS_EVERY: Duration = Duration::from_secs(1);

/// Time between two looks whether the node is still there.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Changes and shows groups.
pub(crate) struct Groups {
    store: Arc<dyn GroupStore>,
    directory: Arc<dyn Directory>,
    retention_s: u32,
    quota: Quota,
    changes: Limit<DeviceAddress>,
    links: Limit<AccountId>,
}

/// Why a group was not changed or shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GroupsError {
    #[error("no such group")]
    NotFound,
    #[error("no account of somebody who would come in, or with another key")]
    UnknownMember,
    #[error("{0}")]
    Malformed(&'static str),
    #[error("the change was not taken: {0}")]
    Refused(GroupError),
    #[error("the group is at epoch {epoch}")]
    Conflict { epoch: u64 },
    #[error("too often")]
    TooMany { retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<GroupError> for GroupsError {
    fn from(refused: GroupError) -> Self {
        match refused {
            GroupError::Conflict { epoch } => Self::Conflict { epoch },
            refused => Self::Refused(refused),
        }
    }
}

impl Groups {
    pub(crate) fn new(store: Arc<dyn GroupStore>, directory: Arc<dyn Directory>, config: &Config) -> Self {
        let minute = Duration::from_secs(60);
        Self {
            store,
            directory,
            retention_s: config.retention_s,
            quota: Quota { msgs: config.mailbox_msgs_max, bytes: config.mailbox_bytes_max },
            changes: Limit::new("group-changes", config.group_changes_per_minute, minute),
            links: Limit::new("group-links", config.group_links_per_minute, minute),
        }
    }

    /// The limits of groups.
    pub(crate) fn limits(&self) -> [LimitView; 2] {
        [self.changes.view(), self.links.view()]
    }

    /// Makes a change of `group`, or founds a group when none is given. Tells whether it is new; the identical change
    /// again is no error.
    pub(crate) async fn change(
        &self,
        by: DeviceAddress,
        group: Option<GroupId>,
        signed: SignedGroupChange,
        now: Timestamp,
    ) -> Result<(GroupChanged, bool), GroupsError> {
        self.changes.spend(by, now).map_err(|retry_after| GroupsError::TooMany { retry_after })?;
        let change = signed.read()?;
        if change.actor != by.account {
            return Err(GroupsError::Malformed("a change is made by the one who signs it"));
        }
        let founds = matches!(change.what, What::Found { .. });
        if founds != group.is_none() || group.is_some_and(|group| group != change.group) {
            return Err(GroupsError::Malformed("the change is of another group"));
        }
        let joins = matches!(change.what, What::Join { .. });
        if joins {
            // Whoever guesses links is slowed down before anything is looked at.
            self.links.spend(by.account, now).map_err(|retry_after| GroupsError::TooMany { retry_after })?;
        }
        let record = self.store.group(change.group).await?;
        let before = record.as_ref().map(|record| &record.state);
        if let Some(before) = before {
            // The change of somebody who has left by it, sent again because its answer was lost.
            let repeated = before.epoch == change.epoch && record.as_ref().is_some_and(|it| it.change == signed);
            if repeated {
                return Ok((GroupChanged { group: change.group, epoch: change.epoch }, false));
            }
            // A founder whose id is taken learns no more of the group that has it.
            let visible = before.member(by.account).is_some() || (joins && proves(before, &change.what, by.account));
            if !visible {
                return Err(GroupsError::NotFound);
            }
        } else if !founds {
            return Err(GroupsError::NotFound);
        }
        let (change, after) = match signed.verify(before) {
            Ok(verified) => verified,
            // An earlier change of the same maker, whose answer was lost: the store tells a repeat.
            Err(GroupError::Conflict { epoch }) => {
                return self.repeated(&signed, change.group, change.epoch, epoch).await;
            }
            Err(refused) => return Err(refused.into()),
        };
        self.check_keys(&change.what, by.account).await?;
        let envelope = Envelope {
            msg_id: Bytes::copy_from_slice(&blake3::hash(&signed.change.0).as_bytes()[..16]),
            from_account: Bytes::copy_from_slice(by.account.as_bytes()),
            from_device: by.device.get(),
            conv_id: Bytes::copy_from_slice(change.group.as_bytes()),
            server_ts: now.as_millis(),
            class: Class::GroupChange.into(),
            expires_at: now.plus(Duration::from_secs(self.retention_s.into())).as_millis(),
            body: signed.to_bytes().into(),
            epoch: change.epoch,
            ..Envelope::default()
        };
        let commit = GroupCommit { change: signed, previous: change.previous, after, envelope, quota: self.quota };
        let changed = GroupChanged { group: change.group, epoch: change.epoch };
        match self.store.change_group(commit).await? {
            GroupCommitted::Done => Ok((changed, true)),
            GroupCommitted::Repeated => Ok((changed, false)),
            GroupCommitted::Conflict { epoch } => Err(GroupsError::Conflict { epoch }),
        }
    }

    /// What is stored of messages, counted.
    pub(crate) async fn stored(&self) -> Result<Stored, StoreError> {
        self.store.stored().await
    }

    /// A member has seen everything up to a place in the conversation.
    pub(crate) async fn mark_read(&self, by: AccountId, group: GroupId, conv_seq: u64) -> Result<(), StoreError> {
        self.store.mark_read(by, group, conv_seq).await
    }

    /// Tells a group's connected members how far it is.
    async fn tell_progress(&self, fabric: &Fabric, group: GroupId) -> Result<(), StoreError> {
        let Some(progress) = self.store.progress(group).await? else { return Ok(()) };
        let summary = ReceiptSummary {
            conv_id: Bytes::copy_from_slice(group.as_bytes()),
            conv_seq: progress.conv_seq,
            delivered_n: progress.delivered,
            read_n: progress.read,
        };
        for outbox in progress.members.iter().flat_map(|member| fabric.outboxes(*member)) {
            outbox.receipts(summary.clone());
        }
        Ok(())
    }

    /// The groups that an account is in.
    pub(crate) async fn of(&self, account: AccountId) -> Result<Vec<GroupId>, GroupsError> {
        Ok(self.store.groups_of(account).await?)
    }

    /// The changes of a group above an epoch, for a member.
    pub(crate) async fn changes(&self, by: AccountId, group: GroupId, after: u64) -> Result<GroupChanges, GroupsError> {
        let GroupRecord { state, .. } = self.shown(by, group).await?;
        let changes = self.store.group_changes(group, after, GROUP_CHANGES_MAX).await?;
        Ok(GroupChanges { changes, epoch: state.epoch })
    }

    /// A group as it was in an epoch, for whoever was a member then.
    pub(crate) async fn state(&self, by: AccountId, group: GroupId, epoch: u64) -> Result<GroupStateView, GroupsError> {
        let record = self.store.group_at(group, epoch).await?;
        let record = record.filter(|record| record.state.member(by).is_some()).ok_or(GroupsError::NotFound)?;
        Ok(GroupStateView { state: Base64(record.state.to_bytes()), change: record.change })
    }

    /// What it takes to come in, for whoever has the link.
    pub(crate) async fn by_link(
        &self,
        by: AccountId,
        group: GroupId,
        request: &GroupLinkRequest,
        now: Timestamp,
    ) -> Result<GroupLinkView, GroupsError> {
        self.links.spend(by, now).map_err(|retry_after| GroupsError::TooMany { retry_after })?;
        let record = self.store.group(group).await?.ok_or(GroupsError::NotFound)?;
        let shown = LinkProof { group, account: by, account_key: request.account_key };
        if !record.state.link.is_some_and(|link| shown.is_proven(&link, &request.proof.0)) {
            return Err(GroupsError::NotFound);
        }
        let at = self.store.group_at(group, request.epoch).await?.ok_or(GroupsError::NotFound)?;
        // The link was made in that epoch and is good since: whoever has it may see what came after, and no more.
        if at.state.link != record.state.link {
            return Err(GroupsError::NotFound);
        }
        let after = request.after.max(request.epoch);
        let changes = self.store.group_changes(group, after, GROUP_CHANGES_MAX).await?;
        Ok(GroupLinkView { state: Base64(at.state.to_bytes()), changes, epoch: record.state.epoch })
    }

    /// Whose devices a member does not know, or no longer.
    pub(crate) async fn devices(
        &self,
        by: AccountId,
        group: GroupId,
        known: &BTreeMap<AccountId, u64>,
    ) -> Result<GroupDevicesView, GroupsError> {
        if known.len() > GROUP_MEMBERS_MAX {
            return Err(GroupsError::Malformed("more accounts than a group can have"));
        }
        let GroupRecord { state, .. } = self.shown(by, group).await?;
        let mut view = GroupDevicesView { accounts: Vec::new(), gone: Vec::new(), more: false };
        for member in &state.members {
            let revision = known.get(&member.account).copied().unwrap_or(0);
            let Some(record) = self.directory.account(member.account).await? else {
                if revision > 0 {
                    view.gone.push(member.account);
                }
                continue;
            };
            let list = record.device_list.verify(record.account, &record.account_key);
            if list.is_ok_and(|list| list.revision == revision) {
                continue;
            }
            if view.accounts.len() == GROUP_ACCOUNTS_MAX {
                view.more = true;
                break;
            }
            view.accounts.push(AccountView {
                account: record.account,
                handle: record.handle,
                account_key: record.account_key,
                device_list: record.device_list,
            });
        }
        Ok(view)
    }

    /// A group, for a member.
    async fn shown(&self, by: AccountId, group: GroupId) -> Result<GroupRecord, GroupsError> {
        let record = self.store.group(group).await?;
        record.filter(|record| record.state.member(by).is_some()).ok_or(GroupsError::NotFound)
    }

    /// Tells a change that was made before from one that is too late.
    async fn repeated(
        &self,
        signed: &SignedGroupChange,
        group: GroupId,
        made: u64,
        epoch: u64,
    ) -> Result<(GroupChanged, bool), GroupsError> {
        let there = match made.checked_sub(1) {
            Some(before) => self.store.group_changes(group, before, 1).await?,
            None => Vec::new(),
        };
        if there.first() == Some(signed) {
            return Ok((GroupChanged { group, epoch: made }, false));
        }
        Err(GroupsError::Conflict { epoch })
    }

    /// Checks that whoever comes in is who the change says.
    async fn check_keys(&self, what: &What, actor: AccountId) -> Result<(), GroupsError> {
        let joining = match what {
            What::Found { members, .. } | What::Add(members) => {
                members.iter().map(|member| (member.account, member.account_key)).collect()
            }
            What::Join { account_key, .. } => vec![(actor, *account_key)],
            _ => Vec::new(),
        };
        for (account, account_key) in joining {
            let record = self.directory.account(account).await?;
            if record.is_none_or(|record| record.account_key != account_key) {
                return Err(GroupsError::UnknownMember);
            }
        }
        Ok(())
    }
}

/// Tells members of groups that have receipts how far those are, each group at most once in [`RECEIPTS_EVERY`], for as
/// long as anybody has the node.
pub(crate) async fn tell_receipts(node: Weak<Node>, fabric: Arc<Fabric>) {
    loop {
        let progressed = tokio::select! {
            progressed = fabric.progressed() => progressed,
            // Nobody may have it any more.
            () = tokio::time::sleep(LOOK_EVERY) => HashSet::new(),
        };
        for group in progressed {
            let Some(node) = node.upgrade() else { return };
            if let Err(error) = node.groups.tell_progress(&fabric, group).await {
                warn!(%error, "a group was not told how far it is");
            }
        }
        tokio::time::sleep(RECEIPTS_EVERY).await;
        if node.strong_count() == 0 {
            return;
        }
    }
}

/// Whether a change that joins was made with the group's link.
fn proves(state: &GroupState, what: &What, account: AccountId) -> bool {
    let What::Join { account_key, proof } = what else { return false };
    let shown = LinkProof { group: state.group, account, account_key: *account_key };
    state.link.is_some_and(|link| shown.is_proven(&link, &proof.0))
}
