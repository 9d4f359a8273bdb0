//! Groups as protobuf.

use super::{GROUP_MEMBERS_MAX, GroupChange, GroupError, GroupState, Member, NewMember, Role, What};
use crate::frames::{self, group_change};
use crate::identity::{Base64, PublicKey};
use crate::{AccountId, GroupId, Timestamp};

pub(super) fn state(state: &GroupState) -> frames::GroupState {
    frames::GroupState {
        group: state.group.as_bytes().to_vec().into(),
        epoch: state.epoch,
        members: state.members.iter().map(member).collect(),
        link: state.link.map_or_else(Vec::new, |key| key.0.to_vec()).into(),
        profile: state.profile.map_or_else(Vec::new, |hash| hash.to_vec()).into(),
        receipts: state.receipts,
    }
}

pub(super) fn read_state(state: &frames::GroupState) -> Result<GroupState, GroupError> {
    check_count(&state.members)?;
    let members = state.members.iter().map(|it| Ok(Member { since: it.since, ..as_member(read_member(it)?) }));
    let members = members.collect::<Result<Vec<_>, GroupError>>()?;
    if !members.is_sorted_by(|a, b| a.account < b.account) {
        return Err(GroupError::Malformed("members stand by rising account, each once"));
    }
    Ok(GroupState {
        group: group(&state.group)?,
        epoch: state.epoch,
        members,
        link: key(&state.link)?,
        profile: hash(&state.profile)?,
        receipts: state.receipts,
    })
}

pub(super) fn change(change: &GroupChange) -> frames::GroupChange {
    let what = match &change.what {
        What::Found { members, profile } => group_change::What::Found(frames::GroupFound {
            members: members.iter().map(|new| member(&as_member(*new))).collect(),
            profile: profile.map_or_else(Vec::new, |hash| hash.to_vec()).into(),
        }),
        What::Add(members) => group_change::What::Add(frames::GroupAdd {
            members: members.iter().map(|new| member(&as_member(*new))).collect(),
        }),
        What::Remove(accounts) => group_change::What::Remove(frames::GroupRemove {
            accounts: accounts.iter().map(|account| account.as_bytes().to_vec().into()).collect(),
        }),
        What::Leave => group_change::What::Leave(frames::GroupLeave {}),
        What::Role(account, role) => group_change::What::Role(frames::GroupMember {
            account: account.as_bytes().to_vec().into(),
            role: role_number(*role),
            ..frames::GroupMember::default()
        }),
        What::Link(link) => group_change::What::Link(link.map_or_else(Vec::new, |key| key.0.to_vec()).into()),
        What::Profile(profile) => {
            group_change::What::Profile(profile.map_or_else(Vec::new, |hash| hash.to_vec()).into())
        }
        What::Receipts(on) => group_change::What::Receipts(*on),
        What::Join { account_key, proof } => group_change::What::Join(frames::GroupJoin {
            account_key: account_key.0.to_vec().into(),
            proof: proof.0.clone().into(),
        }),
    };
    frames::GroupChange {
        group: change.group.as_bytes().to_vec().into(),
        epoch: change.epoch,
        previous: change.previous.map_or_else(Vec::new, |hash| hash.to_vec()).into(),
        result: change.result.to_vec().into(),
        actor: change.actor.as_bytes().to_vec().into(),
        made_at: change.made_at.as_millis(),
        what: Some(what),
    }
}

pub(super) fn read_change(change: frames::GroupChange) -> Result<GroupChange, GroupError> {
    let what = match change.what.ok_or(GroupError::Malformed("it changes nothing that is known here"))? {
        group_change::What::Found(found) => {
            What::Found { members: read_members(&found.members)?, profile: hash(&found.profile)? }
        }
        group_change::What::Add(add) => What::Add(read_members(&add.members)?),
        group_change::What::Remove(remove) => {
            let accounts = remove.accounts.iter().take(GROUP_MEMBERS_MAX + 1).map(|bytes| account(bytes));
            What::Remove(accounts.collect::<Result<_, _>>()?)
        }
        group_change::What::Leave(_) => What::Leave,
        group_change::What::Role(given) => What::Role(account(&given.account)?, role(given.role)?),
        group_change::What::Link(link) => What::Link(key(&link)?),
        group_change::What::Profile(profile) => What::Profile(hash(&profile)?),
        group_change::What::Receipts(on) => What::Receipts(on),
        group_change::What::Join(join) => What::Join {
            account_key: key(&join.account_key)?.ok_or(GroupError::Malformed("an account key"))?,
            proof: Base64(join.proof.to_vec()),
        },
    };
    Ok(GroupChange {
        group: group(&change.group)?,
        epoch: change.epoch,
        previous: hash(&change.previous)?,
        result: hash(&change.result)?.ok_or(GroupError::Malformed("it names no result"))?,
        actor: account(&change.actor)?,
        made_at: Timestamp::from_millis(change.made_at),
        what,
    })
}

fn member(member: &Member) -> frames::GroupMember {
    frames::GroupMember {
        account: member.account.as_bytes().to_vec().into(),
        account_key: member.account_key.0.to_vec().into(),
        role: role_number(member.role),
        since: member.since,
    }
}

fn as_member(new: NewMember) -> Member {
    let NewMember { account, account_key, role } = new;
    Member { account, account_key, role, since: 0 }
}

fn read_members(members: &[frames::GroupMember]) -> Result<Vec<NewMember>, GroupError> {
    check_count(members)?;
    members.iter().map(read_member).collect()
}

fn read_member(member: &frames::GroupMember) -> Result<NewMember, GroupError> {
    let account_key = key(&member.account_key)?.ok_or(GroupError::Malformed("an account key"))?;
    Ok(NewMember { account: account(&member.account)?, account_key, role: role(member.role)? })
}

fn check_count(members: &[frames::GroupMember]) -> Result<(), GroupError> {
    if members.len() > GROUP_MEMBERS_MAX { Err(GroupError::Full) } else { Ok(()) }
}

const fn role_number(role: Role) -> u32 {
    match role {
        Role::Member => 0,
        Role::Admin => 1,
    }
}

fn role(number: u32) -> Result<Role, GroupError> {
    match number {
        0 => Ok(Role::Member),
        1 => Ok(Role::Admin),
        _ => Err(GroupError::Malformed("an unknown role")),
    }
}

fn group(bytes: &[u8]) -> Result<GroupId, GroupError> {
    GroupId::from_slice(bytes).map_err(|_| GroupError::Malformed("a group id"))
}

fn account(bytes: &[u8]) -> Result<AccountId, GroupError> {
    AccountId::from_slice(bytes).map_err(|_| GroupError::Malformed("an account id"))
}

fn hash(bytes: &[u8]) -> Result<Option<[u8; 32]>, GroupError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    bytes.try_into().map(Some).map_err(|_| GroupError::Malformed("a hash has 32 bytes"))
}

fn key(bytes: &[u8]) -> Result<Option<PublicKey>, GroupError> {
    Ok(hash(bytes)?.map(PublicKey))
}
