//! The JSON bodies of groups, at `/v1/groups`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::AccountView;
use crate::group::SignedGroupChange;
use crate::identity::{Base64, PublicKey};
use crate::{AccountId, GroupId};

/// Changes that one answer shows at most.
pub const GROUP_CHANGES_MAX: usize = 256;

/// Accounts that one [`GroupDevicesView`] shows at most: their device lists can be long.
pub const GROUP_ACCOUNTS_MAX: usize = 64;

/// Answer of `GET /v1/groups`: the groups that the calling account is in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupsView {
    /// By rising id.
    pub groups: Vec<GroupId>,
}

/// Answer of `POST /v1/groups` and `POST /v1/groups/{id}/changes`, whose body is a [`SignedGroupChange`]: 201, or 200
/// when the same change was made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChanged {
    /// The group.
    pub group: GroupId,
    /// The epoch that the change made.
    pub epoch: u64,
}

/// Answer of `GET /v1/groups/{id}/changes?after=N`, to members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupChanges {
    /// By rising epoch from N + 1 on, [`GROUP_CHANGES_MAX`] at most.
    pub changes: Vec<SignedGroupChange>,
    /// The epoch that stands.
    pub epoch: u64,
}

/// Answer of `GET /v1/groups/{id}/states/{epoch}`, to whoever was a member in that epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStateView {
    /// The bytes of the state.
    pub state: Base64,
    /// The change that made it.
    pub change: SignedGroupChange,
}

/// Body of `POST /v1/groups/{id}/link`: somebody with the link asks for what it takes to come in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupLinkRequest {
    /// The epoch that the link names: the one it was made in.
    pub epoch: u64,
    /// The caller's account key, which the proof covers.
    pub account_key: PublicKey,
    /// By the link's key, as in a change that joins.
    pub proof: Base64,
    /// Changes above this epoch only, for pages after the first.
    pub after: u64,
}

/// Answer of `POST /v1/groups/{id}/link`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupLinkView {
    /// The bytes of the state in the link's epoch, whose BLAKE3 the link names.
    pub state: Base64,
    /// The changes above the epoch asked for, [`GROUP_CHANGES_MAX`] at most.
    pub changes: Vec<SignedGroupChange>,
    /// The epoch that stands.
    pub epoch: u64,
}

/// Body of `POST /v1/groups/{id}/devices`, by a member: whose devices does it know not, or no longer?
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupDevicesRequest {
    /// Revisions of the device lists it has, by account.
    pub known: BTreeMap<AccountId, u64>,
}

/// Answer of `POST /v1/groups/{id}/devices`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupDevicesView {
    /// Members whose list is another revision than the known one, [`GROUP_ACCOUNTS_MAX`] at most.
    pub accounts: Vec<AccountView>,
    /// Members whose accounts are no more, of those that were said to be known with a revision above 0.
    pub gone: Vec<AccountId>,
    /// There are more: ask again with these.
    pub more: bool,
}
