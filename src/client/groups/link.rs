//! Links that let people into a group.
//!
//! A link names the group, its state in the epoch in which the link was made, and holds a secret whose public half stands
//! in the group's state since then. So whoever comes in by it need not believe the server about who else is there: from
//! the state that the link names on, every change is checked as everywhere.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use waxwing_protocol::GroupId;
use waxwing_protocol::api::{GroupLinkRequest, GroupLinkView};
use waxwing_protocol::group::{GroupChange, GroupState, LinkProof, What};
use waxwing_seal::group::LinkSecret;

use super::book::{self, Applied};
use super::sync::outside;
use crate::account::{me, now};
use crate::secret::SecretBytes;
use crate::{Client, ClientError};

/// What a link begins with.
const SCHEME: &str = "waxwing-group:";

/// Bytes of a link: group, epoch, hash of the state, secret.
const LINK_BYTES: usize = 16 + 8 + 32 + 32;

/// How often joining is tried again when others were quicker.
const JOIN_TRIES: usize = 10;

/// A text is not a group's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the link of a group (waxwing-group:…)")]
pub struct GroupLinkError;

/// A link that lets whoever has it into a group.
#[derive(Clone)]
pub struct GroupLink {
    group: GroupId,
    /// The epoch it was made in.
    epoch: u64,
    /// BLAKE3 of the state in that epoch.
    state: [u8; 32],
    secret: zeroize::Zeroizing<[u8; 32]>,
}

impl GroupLink {
    /// Which group it leads to.
    pub const fn group(&self) -> GroupId {
        self.group
    }
}

impl fmt::Debug for GroupLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GroupLink({})", self.group)
    }
}

impl fmt::Display for GroupLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.group.as_bytes()[..], &self.epoch.to_be_bytes(), &self.state, &*self.secret].concat();
        write!(f, "{SCHEME}{}", BASE64URL_NOPAD.encode(&zeroize::Zeroizing::new(bytes)))
    }
}

impl FromStr for GroupLink {
    type Err = GroupLinkError;

    fn from_str(text: &str) -> Result<Self, GroupLinkError> {
        let text = text.trim().strip_prefix(SCHEME).ok_or(GroupLinkError)?;
        let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).map_err(|_| GroupLinkError)?;
        let bytes: &[u8; LINK_BYTES] = bytes[..].try_into().map_err(|_| GroupLinkError)?;
        let (group, rest) = bytes.split_at(16);
        let (epoch, rest) = rest.split_at(8);
        let (state, secret) = rest.split_at(32);
        Ok(Self {
            group: GroupId::from_slice(group).map_err(|_| GroupLinkError)?,
            epoch: epoch.try_into().map(u64::from_be_bytes).map_err(|_| GroupLinkError)?,
            state: state.try_into().map_err(|_| GroupLinkError)?,
            secret: zeroize::Zeroizing::new(secret.try_into().map_err(|_| GroupLinkError)?),
        })
    }
}

impl Client {
    /// The link that lets people into a group: the one this device made, as long as it holds, else a new one, which ends
    /// any before it.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn group_link(&self, group: GroupId) -> Result<GroupLink, ClientError> {
        self.catch_up(group).await?;
        let known = self.profile.read(|tx| {
            let book = book::mine(tx, group)?;
            let text = book.link.as_ref().and_then(|link| String::from_utf8(link.0.to_vec()).ok());
            let link = text.and_then(|text| text.parse::<GroupLink>().ok());
            let holds = |link: &GroupLink| book.state.link == Some(LinkSecret::from_bytes(&link.secret).public());
            Ok(link.filter(holds))
        })?;
        if let Some(known) = known {
            return Ok(known);
        }
        let secret = LinkSecret::generate();
        let public = secret.public();
        self.change_group(group, false, |_| Ok(Some(What::Link(Some(public))))).await?;
        self.profile.write(|tx| {
            let book = book::mine(tx, group)?;
            let (epoch, state) = (book.state.epoch, book.state.hash());
            let link = GroupLink { group, epoch, state, secret: secret.to_bytes() };
            let text = SecretBytes(link.to_string().into_bytes().into());
            book::note(tx, group, |book| book.link = Some(text))?;
            Ok(link)
        })
    }

    /// Ends a group's link.
    ///
    /// # Errors
    /// As [`Client::add_to_group`].
    pub async fn end_group_link(&self, group: GroupId) -> Result<(), ClientError> {
        let change = |state: &GroupState| Ok(state.link.is_some().then_some(What::Link(None)));
        self.change_group(group, false, change).await?;
        self.profile.write(|tx| book::note(tx, group, |book| book.link = None))
    }

    /// Comes into a group by its link.
    ///
    /// # Errors
    /// [`ClientError::NotInGroup`] when the link does not hold any more, [`ClientError::GroupForged`] when the server
    /// shows another group than the one it leads to.
    pub async fn join_group(&self, link: &GroupLink) -> Result<GroupId, ClientError> {
        let (group, own, secret) = (link.group, self.whoami()?, LinkSecret::from_bytes(&link.secret));
        let shown = LinkProof { group, account: own.account, account_key: own.account_key };
        let proof = secret.prove(&shown);
        let path = format!("/v1/groups/{group}/changes");
        for _ in 0..JOIN_TRIES {
            let state = self.group_behind(link, &shown, &secret).await?;
            if state.member(own.account).is_some() {
                self.profile.write(|tx| book::begin(tx, state))?;
                return Ok(group);
            }
            let what = What::Join { account_key: own.account_key, proof: proof.clone() };
            let signed = self.profile.read(|tx| {
                let (change, _) = GroupChange::make(group, Some(&state), own.account, what, now())?;
                Ok(me(tx)?.account_key()?.sign_group_change(&change))
            })?;
            match self.ask_for(group, &path, &signed).await {
                Ok(()) => {
                    self.profile.write(|tx| {
                        book::begin(tx, state)?;
                        match book::apply(tx, group, &signed)? {
                            Applied::Refused(source) => Err(ClientError::GroupForged { group, source }),
                            _ => Ok(()),
                        }
                    })?;
                    self.sync_devices(group).await?;
                    return Ok(group);
                }
                Err(ClientError::Refused { problem, .. }) if problem.status == 412 => {}
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::GroupBusy { group })
    }

    /// The group that a link leads to as it stands, every step from the state that the link names checked.
    async fn group_behind(
        &self,
        link: &GroupLink,
        shown: &LinkProof,
        secret: &LinkSecret,
    ) -> Result<GroupState, ClientError> {
        let group = link.group;
        let forged = |source| ClientError::GroupForged { group, source };
        let service = &self.service;
        let url = service.api_url(&format!("/v1/groups/{group}/link")).await?;
        let mut state: Option<GroupState> = None;
        loop {
            let after = state.as_ref().map_or(link.epoch, |state| state.epoch);
            let (epoch, account_key) = (link.epoch, shown.account_key);
            let request = GroupLinkRequest { epoch, account_key, proof: secret.prove(shown), after };
            let ask = || service.json(service.authorized(service.http().post(&url)).json(&request));
            let view: GroupLinkView = service.retry(ask).await.map_err(|error| outside(error, group))?;
            let mut at = match state.take() {
                Some(state) => state,
                None => {
                    let named = GroupState::from_bytes(&view.state.0).map_err(forged)?;
                    if named.group != group || named.hash() != link.state {
                        return Err(service.nonsense("another group than the link leads to"));
                    }
                    named
                }
            };
            for signed in &view.changes {
                at = signed.verify(Some(&at)).map_err(forged)?.1;
            }
            if view.changes.is_empty() || at.epoch >= view.epoch {
                return Ok(at);
            }
            state = Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_reads_as_it_was_written_and_nothing_else_does() {
        let link = GroupLink {
            group: GroupId::from_bytes([1; 16]),
            epoch: 7,
            state: [2; 32],
            secret: LinkSecret::generate().to_bytes(),
        };
        let text = link.to_string();
        assert_eq!(text.parse::<GroupLink>().unwrap().to_string(), text);
        assert!(!format!("{link:?}").contains(&text[20..]), "its secret is not printed by accident");
        for wrong in ["", "waxwing-group:", &text[1..], &text[..text.len() - 1], "waxwing-link:AAAA", "é"] {
            assert!(wrong.parse::<GroupLink>().is_err(), "{wrong}");
        }
    }
}
