//! Groups: who is in one, and the signed changes that make it so.
//!
//! The server keeps a group and hands messages to its members. If it could also say who they are, it could add a reader
//! of its own to any group. So a group is a chain of changes, each signed by the account key of a member who may make it,
//! each naming the state before it and the state after it by their BLAKE3. Everybody checks the same rules: the server,
//! so that mistakes are found early, and every client, so that nobody need believe the server.
//!
//! Promises: a change applies to exactly one state, so that it cannot be replayed; nobody comes in but by an admin's
//! change or by the link that an admin made; account keys stand in the state, so that a server cannot pass off another key.

mod change;
mod wire;

pub use self::change::{GroupChange, GroupError, LinkProof, NewMember, SignedGroupChange, What};

use prost::Message as _;

use crate::identity::PublicKey;
use crate::{AccountId, DeviceId, GroupId, frames};

/// The domain of changes of groups.
pub const GROUP_CHANGE_DOMAIN: &str = "waxwing/group-change/v1";

/// The domain of what a link's key signs to let somebody in.
pub const GROUP_LINK_DOMAIN: &str = "waxwing/group-link/v1";

/// Members of a group at most: each costs a row a message.
pub const GROUP_MEMBERS_MAX: usize = 1024;

/// Changes of a group at most: each is kept for as long as the group, some 300 bytes.
pub const GROUP_EPOCHS_MAX: u64 = 65_536;

/// Bytes of a group's title at most. Only members see it, so only they can refuse a longer one.
pub const GROUP_TITLE_BYTES_MAX: usize = 256;

/// What somebody may do in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Reads, writes, leaves.
    Member,
    /// Changes the group as well.
    Admin,
}

/// Somebody in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Their account.
    pub account: AccountId,
    /// Its key, as whoever let them in knew it.
    pub account_key: PublicKey,
    /// What they may do.
    pub role: Role,
    /// The epoch that let them in.
    pub since: u64,
}

/// A group at one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// Which group.
    pub group: GroupId,
    /// Rises by one with every change; 1 at first.
    pub epoch: u64,
    /// Everybody in it, by rising account.
    pub members: Vec<Member>,
    /// The key of the link that lets people in.
    pub link: Option<PublicKey>,
    /// BLAKE3 of title and picture.
    pub profile: Option<[u8; 32]>,
    /// Everybody is told how many have a message and how many have seen it.
    pub receipts: bool,
}

impl GroupState {
    /// The bytes of the state, of which there is one spelling.
    pub fn to_bytes(&self) -> Vec<u8> {
        wire::state(self).encode_to_vec()
    }

    /// Reads a state.
    ///
    /// # Errors
    /// [`GroupError::Malformed`] when the bytes are none, or not in their one spelling.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, GroupError> {
        let state = frames::GroupState::decode(bytes).map_err(|_| GroupError::Malformed("not a group's state"))?;
        let state = wire::read_state(&state)?;
        if state.to_bytes() == bytes { Ok(state) } else { Err(GroupError::Malformed("a state spelled otherwise")) }
    }

    /// BLAKE3 of the state, which changes name it by.
    pub fn hash(&self) -> [u8; 32] {
        *blake3::hash(&self.to_bytes()).as_bytes()
    }

    /// The member with this account.
    pub fn member(&self, account: AccountId) -> Option<&Member> {
        self.at(account).ok().map(|at| &self.members[at])
    }

    /// Whether an account may change the group.
    pub fn is_admin(&self, account: AccountId) -> bool {
        self.member(account).is_some_and(|member| member.role == Role::Admin)
    }

    fn at(&self, account: AccountId) -> Result<usize, usize> {
        self.members.binary_search_by_key(&account, |member| member.account)
    }
}

/// BLAKE3 of the devices that a group's messages are for: of each member by rising account, the devices by rising
/// number with their reg_ids, the sender's own among them. An account without devices, such as a deleted one, leaves
/// no trace.
pub fn devices_hash<'a>(members: impl IntoIterator<Item = (AccountId, &'a [(DeviceId, u32)])>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("waxwing/group-devices/v1");
    for (account, devices) in members {
        for (device, reg_id) in devices {
            let mut entry = [0; 24];
            entry[..16].copy_from_slice(account.as_bytes());
            entry[16..20].copy_from_slice(&device.get().to_be_bytes());
            entry[20..].copy_from_slice(&reg_id.to_be_bytes());
            hasher.update(&entry);
        }
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests;
