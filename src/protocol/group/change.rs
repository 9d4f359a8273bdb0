//! A change of a group: what it says, who may make it, and what becomes of the group.

use prost::Message as _;
use serde::{Deserialize, Serialize};

use super::{
    GROUP_CHANGE_DOMAIN, GROUP_EPOCHS_MAX, GROUP_LINK_DOMAIN, GROUP_MEMBERS_MAX, GroupState, Member, Role, wire,
};
use crate::identity::{Base64, PublicKey};
use crate::{AccountId, GroupId, Timestamp, frames};

/// Why a change does not make the next state of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The bytes do not say what they should.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The signature is not by the account key of whoever makes the change.
    #[error("the signature is not valid")]
    Signature,
    /// It follows another state than the one that stands.
    #[error("it does not follow the group as it is, which is at epoch {epoch}")]
    Conflict {
        /// The epoch that stands.
        epoch: u64,
    },
    /// Whoever makes it may not.
    #[error("not allowed: {0}")]
    Forbidden(&'static str),
    /// There is no room.
    #[error("a group has at most {GROUP_MEMBERS_MAX} members and {GROUP_EPOCHS_MAX} changes")]
    Full,
}

/// Somebody about to come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewMember {
    /// Their account.
    pub account: AccountId,
    /// Its key.
    pub account_key: PublicKey,
    /// What they may do.
    pub role: Role,
}

/// What a change changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Founds the group.
    Found {
        /// Everybody in it, the actor among them as admin.
        members: Vec<NewMember>,
        /// BLAKE3 of title and picture.
        profile: Option<[u8; 32]>,
    },
    /// Lets people in.
    Add(Vec<NewMember>),
    /// Removes people.
    Remove(Vec<AccountId>),
    /// The actor leaves. The last admin leaves the group to whoever has been in it longest.
    Leave,
    /// Gives somebody a role.
    Role(AccountId, Role),
    /// Another link, or none.
    Link(Option<PublicKey>),
    /// Another title or picture.
    Profile(Option<[u8; 32]>),
    /// Whether everybody is told how many have a message and how many have seen it.
    Receipts(bool),
    /// The actor comes in by the link.
    Join {
        /// The actor's account key.
        account_key: PublicKey,
        /// By the link's key, over [`LinkProof::message`].
        proof: Base64,
    },
}

/// A change of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupChange {
    /// Which group.
    pub group: GroupId,
    /// The epoch that it makes.
    pub epoch: u64,
    /// BLAKE3 of the state before; `None` when it founds the group.
    pub previous: Option<[u8; 32]>,
    /// BLAKE3 of the state after.
    pub result: [u8; 32],
    /// Who makes it.
    pub actor: AccountId,
    /// When, as the actor says.
    pub made_at: Timestamp,
    /// What it changes.
    pub what: What,
}

impl GroupChange {
    /// The change that `actor` makes of `before`, and the state it makes. The change is still to be signed.
    ///
    /// # Errors
    /// [`GroupError`] when it may not be made.
    pub fn make(
        group: GroupId,
        before: Option<&GroupState>,
        actor: AccountId,
        what: What,
        made_at: Timestamp,
    ) -> Result<(Self, GroupState), GroupError> {
        let after = apply(group, before, actor, &what)?;
        let previous = before.map(GroupState::hash);
        Ok((Self { group, epoch: after.epoch, previous, result: after.hash(), actor, made_at, what }, after))
    }

    /// The bytes that the actor's account key signs, in the domain [`GROUP_CHANGE_DOMAIN`].
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::change(self).encode_to_vec()
    }

    /// The state after the change, if it follows `before`; who signed it is not looked at.
    ///
    /// # Errors
    /// [`GroupError`] when it does not, or may not be made.
    pub fn apply(&self, before: Option<&GroupState>) -> Result<GroupState, GroupError> {
        let epoch = before.map_or(0, |state| state.epoch);
        let conflict = GroupError::Conflict { epoch };
        if before.is_some_and(|state| state.group != self.group) {
            return Err(GroupError::Malformed("a change of another group"));
        }
        if self.epoch != epoch + 1 || self.previous != before.map(GroupState::hash) {
            return Err(conflict);
        }
        let after = apply(self.group, before, self.actor, &self.what)?;
        if after.hash() == self.result { Ok(after) } else { Err(GroupError::Malformed("it names another result")) }
    }

    /// The account key that the change has to be signed with: as the state before has it, or for whoever comes in as the
    /// change itself says, which the founder or the link vouch for.
    fn signer(&self, before: Option<&GroupState>) -> Option<PublicKey> {
        match &self.what {
            What::Found { members, .. } => {
                members.iter().find(|member| member.account == self.actor).map(|member| member.account_key)
            }
            What::Join { account_key, .. } => Some(*account_key),
            _ => before.and_then(|state| state.member(self.actor)).map(|member| member.account_key),
        }
    }
}

/// A change with its signature, as it travels and is stored: the signed bytes themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedGroupChange {
    /// The bytes of the change.
    pub change: Base64,
    /// Ed25519 by the actor's account key, domain [`GROUP_CHANGE_DOMAIN`].
    pub signature: Base64,
}

impl SignedGroupChange {
    /// Reads the change without believing it.
    ///
    /// # Errors
    /// [`GroupError::Malformed`] when it is none.
    pub fn read(&self) -> Result<GroupChange, GroupError> {
        let change = frames::GroupChange::decode(&self.change.0[..]);
        wire::read_change(change.map_err(|_| GroupError::Malformed("not a group's change"))?)
    }

    /// Checks that the change follows `before` and was signed by the account that makes it, and gives it with the state
    /// after it.
    ///
    /// # Errors
    /// [`GroupError`] tells what is wrong with it.
    pub fn verify(&self, before: Option<&GroupState>) -> Result<(GroupChange, GroupState), GroupError> {
        let change = self.read()?;
        let after = change.apply(before)?;
        let signer = change.signer(before).ok_or(GroupError::Forbidden("whoever is not in the group"))?;
        signer.verify(GROUP_CHANGE_DOMAIN, &self.change.0, &self.signature.0).map_err(|_| GroupError::Signature)?;
        Ok((change, after))
    }

    /// Checks that the change made the state `after`, whatever was before it. For whoever came in by it: the actor of
    /// such a change is in the group after it.
    ///
    /// # Errors
    /// [`GroupError`] tells what is wrong with it.
    pub fn verify_result(&self, after: &GroupState) -> Result<GroupChange, GroupError> {
        let change = self.read()?;
        if (change.group, change.epoch) != (after.group, after.epoch) || change.result != after.hash() {
            return Err(GroupError::Malformed("the state is not the one that the change makes"));
        }
        let signer = after.member(change.actor).ok_or(GroupError::Forbidden("whoever is not in the group"))?;
        signer
            .account_key
            .verify(GROUP_CHANGE_DOMAIN, &self.change.0, &self.signature.0)
            .map_err(|_| GroupError::Signature)?;
        Ok(change)
    }

    /// As protobuf, which is the body of a row of class GROUP_CHANGE.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (change, signature) = (self.change.0.clone().into(), self.signature.0.clone().into());
        frames::SignedGroupChange { change, signature }.encode_to_vec()
    }

    /// Reads what [`Self::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`GroupError::Malformed`] when it is something else.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GroupError> {
        let signed = frames::SignedGroupChange::decode(bytes)
            .map_err(|_| GroupError::Malformed("not a signed change of a group"))?;
        Ok(Self { change: Base64(signed.change.to_vec()), signature: Base64(signed.signature.to_vec()) })
    }
}

/// That somebody has a group's link.
#[derive(Clone, Copy, Debug)]
pub struct LinkProof {
    /// The group.
    pub group: GroupId,
    /// Who wants to come in.
    pub account: AccountId,
    /// Their account key.
    pub account_key: PublicKey,
}

impl LinkProof {
    /// What the link's key signs, in the domain [`GROUP_LINK_DOMAIN`].
    pub fn message(&self) -> Vec<u8> {
        [&self.group.as_bytes()[..], self.account.as_bytes(), &self.account_key.0].concat()
    }

    /// Whether `proof` was made with the link whose key is `link`.
    pub fn is_proven(&self, link: &PublicKey, proof: &[u8]) -> bool {
        link.verify(GROUP_LINK_DOMAIN, &self.message(), proof).is_ok()
    }
}

/// What a group becomes, if `actor` may change it so.
fn apply(group: GroupId, before: Option<&GroupState>, actor: AccountId, what: &What) -> Result<GroupState, GroupError> {
    let Some(before) = before else {
        let What::Found { members, profile } = what else {
            return Err(GroupError::Malformed("a group begins by being founded"));
        };
        let mut state =
            GroupState { group, epoch: 1, members: Vec::new(), link: None, profile: *profile, receipts: false };
        add(&mut state, members)?;
        if !state.is_admin(actor) {
            return Err(GroupError::Forbidden("a founder is an admin"));
        }
        return Ok(state);
    };
    if before.epoch >= GROUP_EPOCHS_MAX && !matches!(what, What::Leave | What::Remove(_)) {
        return Err(GroupError::Full);
    }
    let mut state = before.clone();
    state.epoch += 1;
    let anybody = matches!(what, What::Leave | What::Join { .. });
    if !anybody && !before.is_admin(actor) {
        return Err(GroupError::Forbidden("only an admin changes a group"));
    }
    match what {
        What::Found { .. } => return Err(GroupError::Malformed("the group is there already")),
        What::Add(members) if members.iter().any(|member| member.role != Role::Member) => {
            return Err(GroupError::Malformed("whoever comes in is a member first"));
        }
        What::Add(members) => add(&mut state, members)?,
        What::Remove(accounts) => {
            if accounts.is_empty() || accounts.contains(&actor) {
                return Err(GroupError::Malformed("somebody else is removed; oneself, one leaves"));
            }
            for account in accounts {
                remove(&mut state, *account)?;
            }
        }
        What::Leave => {
            remove(&mut state, actor)?;
            let admins = state.members.iter().any(|member| member.role == Role::Admin);
            let heir = state.members.iter_mut().min_by_key(|member| (member.since, member.account));
            if let Some(heir) = heir.filter(|_| !admins) {
                heir.role = Role::Admin;
            }
        }
        What::Role(account, role) => {
            let at = state.at(*account).map_err(|_| GroupError::Malformed("whoever gets a role is in the group"))?;
            state.members[at].role = *role;
            if !state.members.iter().any(|member| member.role == Role::Admin) {
                return Err(GroupError::Forbidden("a group has an admin"));
            }
        }
        What::Link(link) => state.link = *link,
        What::Profile(profile) => state.profile = *profile,
        What::Receipts(on) => state.receipts = *on,
        What::Join { account_key, proof } => {
            let shown = LinkProof { group, account: actor, account_key: *account_key };
            if !before.link.is_some_and(|link| shown.is_proven(&link, &proof.0)) {
                return Err(GroupError::Forbidden("the link is not the group's"));
            }
            add(&mut state, &[NewMember { account: actor, account_key: *account_key, role: Role::Member }])?;
        }
    }
    Ok(state)
}

fn add(state: &mut GroupState, members: &[NewMember]) -> Result<(), GroupError> {
    if members.is_empty() {
        return Err(GroupError::Malformed("nobody comes in"));
    }
    if state.members.len() + members.len() > GROUP_MEMBERS_MAX {
        return Err(GroupError::Full);
    }
    for NewMember { account, account_key, role } in members {
        let Err(at) = state.at(*account) else { return Err(GroupError::Malformed("somebody is in the group already")) };
        let (account, account_key, role) = (*account, *account_key, *role);
        state.members.insert(at, Member { account, account_key, role, since: state.epoch });
    }
    Ok(())
}

fn remove(state: &mut GroupState, account: AccountId) -> Result<(), GroupError> {
    let at = state.at(account).map_err(|_| GroupError::Malformed("somebody is not in the group"))?;
    state.members.remove(at);
    Ok(())
}
