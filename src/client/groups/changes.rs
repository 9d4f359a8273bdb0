//! Changing a group: made of the newest state, signed by this account, and made anew when somebody else was quicker.

use http::StatusCode;
use waxwing_protocol::api::GroupChanged;
use waxwing_protocol::group::{GroupChange, GroupState, NewMember, Role, SignedGroupChange, What};
use waxwing_protocol::{GroupId, Handle};
use waxwing_seal::blob_ref::BlobRef;
use waxwing_seal::group::GroupProfile;

use super::book::{self, Applied};
use super::sync::outside;
use crate::account::{me, now};
use crate::contacts::Asked;
use crate::{Client, ClientError};

/// How often a change is made anew when others were quicker.
const CHANGE_TRIES: usize = 10;

impl Client {
    /// Founds a group with these people, and tells them what it is called.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`], [`ClientError::Group`] when it would be too large, and those of asking.
    pub async fn create_group(
        &self,
        title: &str,
        picture: Option<BlobRef>,
        with: &[Handle],
    ) -> Result<GroupId, ClientError> {
        let profile = GroupProfile { title: title.to_owned(), picture: picture.map(Box::new) }.to_bytes()?;
        let own = self.whoami()?;
        let role = Role::Admin;
        let mut members = vec![NewMember { account: own.account, account_key: own.account_key, role }];
        members.extend(self.joining(with).await?.into_iter().filter(|it| it.account != own.account));
        let group = GroupId::from(uuid::Uuid::now_v7());
        let what = What::Found { members, profile: Some(GroupProfile::hash(&profile)) };
        let signed = self.profile.write(|tx| {
            let (change, _) = GroupChange::make(group, None, own.account, what, now())?;
            book::put_profile(tx, group, &profile)?;
            Ok(me(tx)?.account_key()?.sign_group_change(&change))
        })?;
        self.ask_for(group, "/v1/groups", &signed).await?;
        self.made(group, &signed, true)?;
        self.announce_groups().await?;
        Ok(group)
    }

    /// Lets people in. Those who are in already stay as they are.
    ///
    /// # Errors
    /// As [`Client::create_group`]; [`ClientError::Group`] also when this account may not.
    pub async fn add_to_group(&self, group: GroupId, who: &[Handle]) -> Result<(), ClientError> {
        let joining = self.joining(who).await?;
        self.change_group(group, true, |state| {
            let fresh = joining.iter().filter(|it| state.member(it.account).is_none());
            let fresh: Vec<_> = fresh.copied().collect();
            Ok((!fresh.is_empty()).then_some(What::Add(fresh)))
        })
        .await
    }

    /// Removes people. Whoever is not in it any more is passed over.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn remove_from_group(&self, group: GroupId, who: &[Handle]) -> Result<(), ClientError> {
        let leaving = self.joining(who).await?;
        self.change_group(group, false, |state| {
            let there = leaving.iter().map(|it| it.account).filter(|account| state.member(*account).is_some());
            let there: Vec<_> = there.collect();
            Ok((!there.is_empty()).then_some(What::Remove(there)))
        })
        .await
    }

    /// Lets somebody change the group, or no longer.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn set_group_admin(&self, group: GroupId, who: &Handle, admin: bool) -> Result<(), ClientError> {
        let account = self.contact(who).await?.account;
        let role = if admin { Role::Admin } else { Role::Member };
        self.change_group(group, false, |state| {
            let there = state.member(account).ok_or_else(|| ClientError::UnknownRecipient { handle: who.clone() })?;
            Ok((there.role != role).then_some(What::Role(account, role)))
        })
        .await
    }

    /// Gives the group another title and picture.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn set_group_profile(
        &self,
        group: GroupId,
        title: &str,
        picture: Option<BlobRef>,
    ) -> Result<(), ClientError> {
        let profile = GroupProfile { title: title.to_owned(), picture: picture.map(Box::new) }.to_bytes()?;
        self.profile.write(|tx| book::put_profile(tx, group, &profile))?;
        let hash = Some(GroupProfile::hash(&profile));
        let change = |state: &GroupState| Ok((state.profile != hash).then_some(What::Profile(hash)));
        self.change_group(group, true, change).await
    }

    /// Lets everybody in the group know how many have a message and how many have seen it, or no longer.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn set_group_receipts(&self, group: GroupId, on: bool) -> Result<(), ClientError> {
        self.change_group(group, false, |state| Ok((state.receipts != on).then_some(What::Receipts(on)))).await
    }

    /// Leaves a group.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn leave_group(&self, group: GroupId) -> Result<(), ClientError> {
        self.change_group(group, false, |_| Ok(Some(What::Leave))).await
    }

    /// Makes a change of the group as it stands; `what` is asked again when it changes meanwhile, and says `None` when
    /// there is nothing left to do. With `announce`, the others are told of title and picture afterwards.
    pub(super) async fn change_group(
        &self,
        group: GroupId,
        announce: bool,
        what: impl Fn(&GroupState) -> Result<Option<What>, ClientError>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/groups/{group}/changes");
        for _ in 0..CHANGE_TRIES {
            self.catch_up(group).await?;
            let signed = self.profile.read(|tx| {
                let (book, me) = (book::mine(tx, group)?, me(tx)?);
                let Some(what) = what(&book.state)? else { return Ok(None) };
                let (change, _) = GroupChange::make(group, Some(&book.state), me.account, what, now())?;
                Ok(Some(me.account_key()?.sign_group_change(&change)))
            })?;
            let Some(signed) = signed else { return Ok(()) };
            match self.ask_for(group, &path, &signed).await {
                Ok(()) => {
                    self.made(group, &signed, announce)?;
                    if announce {
                        self.announce_groups().await?;
                    }
                    return Ok(());
                }
                Err(ClientError::Refused { problem, .. })
                    if problem.status == StatusCode::PRECONDITION_FAILED.as_u16() => {}
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::GroupBusy { group })
    }

    /// Asks for a change. Asked again after a lost answer, it is the same change.
    pub(super) async fn ask_for(
        &self,
        group: GroupId,
        path: &str,
        signed: &SignedGroupChange,
    ) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url(path).await?;
        let ask = || service.json(service.authorized(service.http().post(&url)).json(signed));
        let answer: Result<GroupChanged, _> = service.retry(ask).await;
        answer.map(drop).map_err(|error| outside(error, group))
    }

    /// Takes a change that the server has taken.
    pub(super) fn made(&self, group: GroupId, signed: &SignedGroupChange, announce: bool) -> Result<(), ClientError> {
        self.profile.write(|tx| {
            if let Applied::Refused(source) = book::apply(tx, group, signed)? {
                return Err(ClientError::GroupForged { group, source });
            }
            book::note(tx, group, |book| book.announce |= announce)
        })
    }

    /// Who these people are, with the keys that this profile knows them by.
    async fn joining(&self, who: &[Handle]) -> Result<Vec<NewMember>, ClientError> {
        let mut joining = Vec::with_capacity(who.len());
        for handle in who {
            let contact = match self.contact(handle).await {
                Err(ClientError::UnknownRecipient { .. }) => self.look_up(Asked::Handle(handle)).await?,
                contact => contact?,
            };
            let (account, account_key, role) = (contact.account, contact.account_key, Role::Member);
            if !joining.iter().any(|it: &NewMember| it.account == account) {
                joining.push(NewMember { account, account_key, role });
            }
        }
        Ok(joining)
    }
}
