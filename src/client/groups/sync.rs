//! Asking the server what this profile has not been told of a group: changes, states, devices.

use std::collections::BTreeMap;

use waxwing_protocol::GroupId;
use waxwing_protocol::api::{GroupChanges, GroupDevicesRequest, GroupDevicesView, GroupStateView, GroupsView};
use waxwing_protocol::frames::{Class, Deliver, Envelope};
use waxwing_protocol::group::{GROUP_MEMBERS_MAX, GroupState, What};

use super::book::{self, Applied, GroupNews};
use crate::contacts;
use crate::profile::Rows;
use crate::{Client, ClientError};

/// Pages of devices asked for in a row at most: a full group has 16.
const PAGES_MAX: usize = 2 * GROUP_MEMBERS_MAX / 64;

/// The group that an envelope is of, if it is of one.
pub(crate) fn group_of(envelope: &Envelope) -> Option<GroupId> {
    let of_one = envelope.conv_seq > 0 || envelope.class() == Class::GroupChange;
    if of_one { GroupId::from_slice(&envelope.conv_id).ok() } else { None }
}

/// Groups of a delivered frame of which this profile knows too little to read it, each with the epoch at which it begins.
pub(crate) fn unknown(tx: &impl Rows, deliver: &Deliver) -> Result<Vec<(GroupId, u64)>, ClientError> {
    let mut epochs: BTreeMap<GroupId, u64> = BTreeMap::new();
    let mut unknown = Vec::new();
    for envelope in &deliver.envelopes {
        let Some(group) = group_of(envelope) else { continue };
        let known = match epochs.get(&group) {
            Some(epoch) => *epoch,
            None => book::load(tx, group)?.map_or(0, |book| book.state.epoch),
        };
        let follows = envelope.class() == Class::GroupChange && envelope.epoch == known + 1;
        if envelope.epoch > known && !follows && !unknown.iter().any(|(it, _)| *it == group) {
            unknown.push((group, envelope.epoch));
        }
        epochs.insert(group, known.max(envelope.epoch));
    }
    Ok(unknown)
}

/// Whether a delivered frame has the change that made an epoch of a group.
pub(crate) fn brings(deliver: &Deliver, group: GroupId, epoch: u64) -> bool {
    let changes = deliver.envelopes.iter().filter(|envelope| envelope.class() == Class::GroupChange);
    changes.filter(|envelope| group_of(envelope) == Some(group)).any(|envelope| envelope.epoch == epoch)
}

impl Client {
    /// Fetches the changes of a group that this profile does not know and takes them, from its founding on when it knows
    /// none.
    ///
    /// # Errors
    /// [`ClientError::NotInGroup`] when this account is not in it, [`ClientError::GroupForged`] when a change is not what
    /// it should be.
    pub(crate) async fn catch_up(&self, group: GroupId) -> Result<(), ClientError> {
        loop {
            let after = self.profile.read(|tx| Ok(book::load(tx, group)?.map_or(0, |book| book.state.epoch)))?;
            let path = format!("/v1/groups/{group}/changes?after={after}");
            let page: GroupChanges = self.group_get(group, &path).await?;
            let (count, epoch) = (page.changes.len(), page.epoch);
            self.profile.write(|tx| {
                for signed in &page.changes {
                    if let Applied::Refused(source) = book::apply(tx, group, signed)? {
                        return Err(ClientError::GroupForged { group, source });
                    }
                }
                Ok(())
            })?;
            if count == 0 || after + count as u64 >= epoch {
                return Ok(());
            }
        }
    }

    /// Begins to know a group at an epoch, or catches up with it. Gives the change that it begins with.
    pub(crate) async fn learn_group(&self, group: GroupId, epoch: u64) -> Result<Option<GroupNews>, ClientError> {
        let known = self.profile.read(|tx| Ok(book::load(tx, group)?.is_some_and(|book| !book.left)))?;
        if !known {
            let path = format!("/v1/groups/{group}/states/{epoch}");
            let view: GroupStateView = self.group_get(group, &path).await?;
            let state = GroupState::from_bytes(&view.state.0);
            let verified = state.and_then(|state| Ok((view.change.verify_result(&state)?, state)));
            if let Ok((change, state)) = verified
                && (state.group, state.epoch) == (group, epoch)
            {
                self.profile.write(|tx| book::begin(tx, state))?;
                let (by, what) = (change.actor, change.what);
                return Ok(Some(GroupNews { group, epoch, by, what, left: false }));
            }
            // Whoever left by that change is not in the state to vouch for it: the whole history does.
        }
        self.catch_up(group).await?;
        Ok(None)
    }

    /// Learns of groups that this account is in and this profile does not know, such as on a new device.
    ///
    /// # Errors
    /// Those of asking.
    pub async fn sync_groups(&self) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/groups").await?;
        let view: GroupsView = service.retry(|| service.json(service.authorized(service.http().get(&url)))).await?;
        for group in view.groups {
            match self.catch_up(group).await {
                Ok(()) => self.sync_devices(group).await?,
                Err(error @ (ClientError::GroupForged { .. } | ClientError::NotInGroup { .. })) => {
                    tracing::warn!("{error}");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Learns the devices of a group's members that this profile does not know, or no longer.
    pub(crate) async fn sync_devices(&self, group: GroupId) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url(&format!("/v1/groups/{group}/devices")).await?;
        for _ in 0..PAGES_MAX {
            let request = self.profile.read(|tx| known_devices(tx, group))?;
            let ask = || service.json(service.authorized(service.http().post(&url)).json(&request));
            let view: GroupDevicesView = service.retry(ask).await.map_err(|error| outside(error, group))?;
            self.profile.write(|tx| {
                let Some(mut book) = book::load(tx, group)? else { return Ok(()) };
                for view in view.accounts {
                    let (account, account_key) = (view.account, view.account_key);
                    let vouched = book.state.member(account).is_some_and(|it| it.account_key == account_key);
                    if !vouched {
                        return Err(service.nonsense("devices of somebody who is not in the group"));
                    }
                    let handle = view.handle.clone();
                    match contacts::accept(tx, view) {
                        Ok(_) => {}
                        // Told when somebody writes to them; the others are not to wait for it.
                        Err(error @ ClientError::Profile { .. }) => return Err(error),
                        Err(error) => tracing::warn!("the devices of {handle} were not accepted: {error}"),
                    }
                }
                book.gone = [book.gone, view.gone].concat();
                book.gone.sort_unstable();
                book.gone.dedup();
                book::store(tx, book)
            })?;
            if !view.more {
                break;
            }
        }
        Ok(())
    }

    /// The same when there is time for it: what is not learnt now is learnt when it is needed.
    pub(crate) async fn learn_members(&self, group: GroupId) -> Result<(), ClientError> {
        match self.sync_devices(group).await {
            Err(error @ ClientError::Profile { .. }) => Err(error),
            Err(error) => {
                tracing::debug!("the members of {group} are learnt later: {error}");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Does what a change of a group calls for; tells whether something is to be sent.
    pub(crate) async fn has_news(&self, news: &GroupNews) -> Result<bool, ClientError> {
        let group = news.group;
        if news.left || !matches!(news.what, What::Found { .. } | What::Add(_) | What::Join { .. }) {
            return Ok(false);
        }
        self.learn_members(group).await?;
        if !matches!(news.what, What::Join { .. }) {
            return Ok(false);
        }
        // Whoever made the link tells those who come by it what the group is called.
        self.profile.write(|tx| {
            let is_mine = book::load(tx, group)?.is_some_and(|book| book.link.is_some());
            if is_mine {
                book::note(tx, group, |book| book.announce = true)?;
            }
            Ok(is_mine)
        })
    }

    async fn group_get<T: serde::de::DeserializeOwned>(&self, group: GroupId, path: &str) -> Result<T, ClientError> {
        let service = &self.service;
        let url = service.api_url(path).await?;
        let answer = service.retry(|| service.json(service.authorized(service.http().get(&url)))).await;
        answer.map_err(|error| outside(error, group))
    }
}

/// A refusal that says that this account is not in the group.
pub(super) fn outside(error: ClientError, group: GroupId) -> ClientError {
    match error {
        ClientError::Refused { problem, .. } if problem.status == 404 => ClientError::NotInGroup { group },
        error => error,
    }
}

/// What this profile knows of the devices of a group's members.
fn known_devices(tx: &impl Rows, group: GroupId) -> Result<GroupDevicesRequest, ClientError> {
    let book = book::load(tx, group)?.ok_or(ClientError::NotInGroup { group })?;
    let own = contacts::own(tx)?;
    let mut known = BTreeMap::new();
    for member in &book.state.members {
        let contact =
            if member.account == own.account { Some(own.clone()) } else { contacts::known(tx, member.account)? };
        if let Some(contact) = contact {
            known.insert(member.account, contact.devices.revision);
        }
    }
    Ok(GroupDevicesRequest { known })
}
