//! What this profile knows of its groups: their states, as their members signed them.

use serde::{Deserialize, Serialize};
use waxwing_protocol::group::{GroupError, GroupState, Role, SignedGroupChange, What};
use waxwing_protocol::identity::{Base64, Device};
use waxwing_protocol::{AccountId, GroupId, Handle};
use waxwing_seal::group::GroupProfile;

use crate::account::me;
use crate::contacts;
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;
use crate::{Client, ClientError};

/// Groups by id.
pub(crate) const GROUPS: Table<GroupRow> = Table::new("groups");

/// Titles and pictures, by group and the hash that its state has of them.
pub(crate) const PROFILES: Table<SecretBytes> = Table::new("group_profiles");

/// Epochs whose state's hash is remembered, for messages that come after the group has changed.
const HASHES_MAX: usize = 64;

/// Former members remembered, for the same.
const FORMER_MAX: usize = 1024;

/// A group as it is stored.
#[derive(Serialize, Deserialize)]
pub(crate) struct GroupRow {
    state: Base64,
    hashes: Vec<(u64, Base64)>,
    former: Vec<Former>,
    gone: Vec<AccountId>,
    left: bool,
    link: Option<SecretBytes>,
    pub(crate) announce: bool,
}

/// Somebody who was in the group.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Former {
    account: AccountId,
    since: u64,
    /// The epoch that they were not in any more.
    until: u64,
}

/// A group as this profile knows it.
pub(crate) struct Book {
    pub(crate) state: GroupState,
    /// Of the last epochs.
    hashes: Vec<(u64, Base64)>,
    former: Vec<Former>,
    /// Members whose accounts are no more.
    pub(crate) gone: Vec<AccountId>,
    /// This account is in it no more.
    pub(crate) left: bool,
    /// The link that this device made, as text.
    pub(crate) link: Option<SecretBytes>,
    /// Title and picture are to be told to the others.
    pub(crate) announce: bool,
}

/// A group, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupInfo {
    /// Its id.
    pub group: GroupId,
    /// What it is called; empty when it has no title, or nobody has told it to this device yet.
    pub title: String,
    /// Its epoch.
    pub epoch: u64,
    /// This account is in it no more.
    pub left: bool,
    /// Everybody in it.
    pub members: Vec<GroupMember>,
}

/// Somebody in a group, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Their account.
    pub account: AccountId,
    /// What they are called, if this profile knows them.
    pub handle: Option<Handle>,
    /// Whether they may change the group.
    pub admin: bool,
}

/// A change of a group that was found to be good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNews {
    /// Which group.
    pub group: GroupId,
    /// The epoch that it made.
    pub epoch: u64,
    /// Who made it.
    pub by: AccountId,
    /// What it changed.
    pub what: What,
    /// This account is in the group no more.
    pub left: bool,
}

/// What became of a change that was shown.
#[derive(Debug)]
pub(crate) enum Applied {
    News(GroupNews),
    /// It was known.
    Known,
    /// It is none, or none that follows.
    Refused(GroupError),
}

/// Somebody in a group, and their devices; `None` when this profile does not know them.
pub(crate) type Reached = (AccountId, Option<Vec<Device>>);

impl Book {
    fn new(state: GroupState) -> Self {
        let (hashes, former, gone) = (Vec::new(), Vec::new(), Vec::new());
        Self { state, hashes, former, gone, left: false, link: None, announce: false }
    }

    /// Whether an account was in the group in an epoch, as far as is remembered.
    pub(crate) fn had(&self, account: AccountId, epoch: u64) -> bool {
        let is = self.state.member(account).is_some_and(|member| member.since <= epoch);
        is || self.former.iter().any(|it| it.account == account && it.since <= epoch && epoch < it.until)
    }

    /// BLAKE3 of the state in an epoch, if it is remembered.
    pub(crate) fn hash_at(&self, epoch: u64) -> Option<[u8; 32]> {
        if epoch == self.state.epoch {
            return Some(self.state.hash());
        }
        let known = self.hashes.iter().find(|(at, _)| *at == epoch)?;
        known.1.0[..].try_into().ok()
    }

    /// The devices of everybody in the group, by rising account, this one among them. `None` stands for whom this profile
    /// does not know.
    pub(crate) fn audience(&self, tx: &impl Rows) -> Result<Vec<Reached>, ClientError> {
        let own = contacts::own(tx)?;
        let mut audience = Vec::with_capacity(self.state.members.len());
        for member in &self.state.members {
            let contact = if member.account == own.account {
                Some(own.clone())
            } else if self.gone.contains(&member.account) {
                continue;
            } else {
                contacts::known(tx, member.account)?
            };
            if let Some(contact) = &contact
                && contact.account_key != member.account_key
            {
                // Somebody vouched for another key than the one that this profile knows: one of the two is a lie.
                return Err(ClientError::IdentityChanged { handle: contact.handle.clone() });
            }
            audience.push((member.account, contact.map(|contact| contact.devices.devices)));
        }
        Ok(audience)
    }

    /// Takes a state, which follows the one before.
    fn advance(&mut self, after: GroupState, own: AccountId) {
        let hash = Base64(self.state.hash().to_vec());
        self.hashes.push((self.state.epoch, hash));
        let surplus = self.hashes.len().saturating_sub(HASHES_MAX);
        self.hashes.drain(..surplus);
        let until = after.epoch;
        for member in self.state.members.iter().filter(|member| after.member(member.account).is_none()) {
            self.former.push(Former { account: member.account, since: member.since, until });
        }
        let surplus = self.former.len().saturating_sub(FORMER_MAX);
        self.former.drain(..surplus);
        self.left = after.member(own).is_none();
        self.state = after;
    }
}

/// Reads a group.
pub(crate) fn load(tx: &impl Rows, group: GroupId) -> Result<Option<Book>, ClientError> {
    let Some(row) = tx.get(&GROUPS, group.as_bytes())? else { return Ok(None) };
    let state = GroupState::from_bytes(&row.state.0).map_err(|_| ClientError::Damaged { what: "a group" })?;
    let GroupRow { hashes, former, gone, left, link, announce, .. } = row;
    Ok(Some(Book { state, hashes, former, gone, left, link, announce }))
}

/// Writes a group.
pub(crate) fn store(tx: &WriteTx<'_>, book: Book) -> Result<(), ClientError> {
    let group = book.state.group;
    let Book { state, hashes, former, gone, left, link, announce } = book;
    let row = GroupRow { state: Base64(state.to_bytes()), hashes, former, gone, left, link, announce };
    tx.put(&GROUPS, group.as_bytes(), &row)
}

/// The group, if this account is in it.
pub(crate) fn mine(tx: &impl Rows, group: GroupId) -> Result<Book, ClientError> {
    load(tx, group)?.filter(|book| !book.left).ok_or(ClientError::NotInGroup { group })
}

/// Every group this profile knows.
pub(crate) fn all(tx: &impl Rows) -> Result<Vec<GroupId>, ClientError> {
    tx.list(&GROUPS)?.into_iter().map(|(key, _)| Ok(GroupId::from_slice(&key)?)).collect()
}

/// Takes a change, if it is signed by whoever may make it and follows the state that is known.
pub(crate) fn apply(tx: &WriteTx<'_>, group: GroupId, signed: &SignedGroupChange) -> Result<Applied, ClientError> {
    let change = match signed.read() {
        Ok(change) if change.group == group => change,
        Ok(_) => return Ok(Applied::Refused(GroupError::Malformed("a change of another group"))),
        Err(refused) => return Ok(Applied::Refused(refused)),
    };
    let before = load(tx, group)?;
    if before.as_ref().is_some_and(|book| book.state.epoch >= change.epoch) {
        return Ok(Applied::Known);
    }
    let (change, after) = match signed.verify(before.as_ref().map(|book| &book.state)) {
        Ok(verified) => verified,
        Err(refused) => return Ok(Applied::Refused(refused)),
    };
    let own = me(tx)?.account;
    let book = match before {
        Some(mut book) => {
            book.advance(after, own);
            book
        }
        None => Book { left: after.member(own).is_none(), ..Book::new(after) },
    };
    let left = book.left;
    store(tx, book)?;
    Ok(Applied::News(GroupNews { group, epoch: change.epoch, by: change.actor, what: change.what, left }))
}

/// Begins to know a group at a state that was found to be good.
pub(crate) fn begin(tx: &WriteTx<'_>, state: GroupState) -> Result<(), ClientError> {
    let own = me(tx)?.account;
    let before = load(tx, state.group)?;
    if before.as_ref().is_some_and(|book| book.state.epoch >= state.epoch) {
        return Ok(());
    }
    let mut book = before.unwrap_or_else(|| Book::new(state.clone()));
    book.left = state.member(own).is_none();
    book.state = state;
    store(tx, book)
}

/// Changes what is remembered of a group beside its state.
pub(crate) fn note(tx: &WriteTx<'_>, group: GroupId, change: impl FnOnce(&mut Book)) -> Result<(), ClientError> {
    let Some(mut book) = load(tx, group)? else { return Ok(()) };
    change(&mut book);
    store(tx, book)
}

fn profile_key(group: GroupId, hash: &[u8; 32]) -> Vec<u8> {
    [&group.as_bytes()[..], hash].concat()
}

/// Files a title and picture; which of them are the group's, its state says.
pub(crate) fn put_profile(tx: &WriteTx<'_>, group: GroupId, bytes: &[u8]) -> Result<(), ClientError> {
    tx.put(&PROFILES, &profile_key(group, &GroupProfile::hash(bytes)), &SecretBytes(bytes.to_vec().into()))
}

/// Files a title and picture that somebody else told, if they are the group's.
pub(crate) fn take_profile(tx: &WriteTx<'_>, group: GroupId, bytes: &[u8]) -> Result<(), ClientError> {
    let hash = GroupProfile::hash(bytes);
    let is_its = load(tx, group)?.is_none_or(|book| book.state.profile == Some(hash));
    if is_its && GroupProfile::from_bytes(bytes).is_ok() { put_profile(tx, group, bytes) } else { Ok(()) }
}

/// The bytes of a group's title and picture, if they are known.
pub(crate) fn profile(tx: &impl Rows, book: &Book) -> Result<Option<SecretBytes>, ClientError> {
    match &book.state.profile {
        Some(hash) => tx.get(&PROFILES, &profile_key(book.state.group, hash)),
        None => Ok(None),
    }
}

/// What a group is called; empty when that is not known.
pub(crate) fn title(tx: &impl Rows, book: &Book) -> Result<String, ClientError> {
    let bytes = profile(tx, book)?;
    Ok(bytes.and_then(|bytes| GroupProfile::from_bytes(&bytes.0).ok()).map_or_else(String::new, |it| it.title))
}

impl Client {
    /// Every group this profile knows, those that this account has left among them.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn groups(&self) -> Result<Vec<GroupInfo>, ClientError> {
        self.profile.read(|tx| {
            let own = me(tx)?;
            let mut infos = Vec::new();
            for group in all(tx)? {
                let Some(book) = load(tx, group)? else { continue };
                let mut members = Vec::with_capacity(book.state.members.len());
                for member in &book.state.members {
                    let account = member.account;
                    let handle = match contacts::known(tx, account)? {
                        Some(contact) => Some(contact.handle),
                        None if account == own.account => Some(own.handle.clone()),
                        None => None,
                    };
                    members.push(GroupMember { account, handle, admin: member.role == Role::Admin });
                }
                let (title, epoch, left) = (title(tx, &book)?, book.state.epoch, book.left);
                infos.push(GroupInfo { group, title, epoch, left, members });
            }
            Ok(infos)
        })
    }

    /// What a group is called, if this profile knows it.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn group_title(&self, group: GroupId) -> Result<Option<String>, ClientError> {
        self.profile.read(|tx| {
            let Some(book) = load(tx, group)? else { return Ok(None) };
            title(tx, &book).map(Some)
        })
    }

    /// The group that `named` means: an id, or the title of one group that this account is in.
    ///
    /// # Errors
    /// [`ClientError::UnknownGroup`] when there is none, or more than one.
    pub fn find_group(&self, named: &str) -> Result<GroupId, ClientError> {
        let groups = self.groups()?;
        if let Ok(id) = named.parse::<GroupId>() {
            return Ok(id);
        }
        let mut found = groups.into_iter().filter(|info| !info.left && info.title == named);
        match (found.next(), found.next()) {
            (Some(info), None) => Ok(info.group),
            _ => Err(ClientError::UnknownGroup { named: named.to_owned() }),
        }
    }
}
