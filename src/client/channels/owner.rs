//! What a channel's owner does: found it, say who writes, turn its key.
//!
//! A charter begins at the last entry, so the owner reads up to there first, and makes it anew when an author was quicker. A
//! new key is stored before the server is asked, and whoever is to have it is written down with the charter: a crash in
//! between only makes it be given later.

use http::StatusCode;
use waxwing_protocol::api::ChannelChanged;
use waxwing_protocol::channel::{Author, Charter, Position, SignedCharter};
use waxwing_protocol::{AccountId, ChannelId, Handle, MsgId};
use waxwing_seal::channel::ChannelKey;
use waxwing_seal::message::{ChannelInvite, Content};

use super::book::{self, Book};
use super::link::ChannelLink;
use super::log::{absent, take_charter};
use crate::account::{me, now};
use crate::contacts::{self, Asked, Contact};
use crate::outbox::{enqueue_aside, is_about_message};
use crate::route::Line;
use crate::{Client, ClientError};

/// How often a charter is made anew when authors were quicker.
const CHARTER_TRIES: usize = 10;

/// What the next charter says.
#[derive(Clone, Debug)]
struct Next {
    authors: Vec<Author>,
    /// Whom the owner has invited, beside the authors.
    followers: Vec<AccountId>,
    /// Whether what comes from here on has another key.
    turn: bool,
}

impl Client {
    /// Founds a channel.
    ///
    /// # Errors
    /// [`ClientError::Message`] when the title is too long, and those of asking.
    pub async fn create_channel(&self, title: &str) -> Result<ChannelId, ClientError> {
        let own = self.whoami()?;
        // Random all over: whoever knows the id may ask for the ciphertext.
        let (channel, key) = (ChannelId::from(uuid::Uuid::new_v4()), ChannelKey::generate());
        let owner = Author { account: own.account, account_key: own.account_key };
        let charter = Charter {
            channel,
            epoch: 1,
            previous: None,
            owner: owner.account,
            owner_key: owner.account_key,
            authors: vec![owner],
            key_id: key.id(),
            title: key.seal_title(title)?,
            after: Position::default(),
            made_at: now(),
        };
        let signed = self.profile.write(|tx| {
            book::put_key(tx, channel, &key)?;
            Ok(me(tx)?.account_key()?.sign_charter(&charter))
        })?;
        self.ask_for_charter(channel, "/v1/channels", &signed).await?;
        self.profile.write(|tx| {
            book::put_charter(tx, channel, &signed)?;
            let (begun, followers, owed) = (Position::default(), Vec::new(), Vec::new());
            let charters = vec![charter];
            book::store(tx, &Book { channel, owner, charters, begun, head: begun, seen: begun, followers, owed })
        })?;
        Ok(channel)
    }

    /// Lets people write in a channel, and gives them its key.
    ///
    /// # Errors
    /// [`ClientError::NotChannelOwner`], [`ClientError::UnknownRecipient`], and those of asking.
    pub async fn add_channel_authors(&self, channel: ChannelId, who: &[Handle]) -> Result<(), ClientError> {
        let joining = self.people(who).await?;
        self.change_charter(channel, |book| {
            let mut authors = book.charter().authors.clone();
            for contact in &joining {
                let author = Author { account: contact.account, account_key: contact.account_key };
                authors.retain(|it| it.account != author.account);
                authors.push(author);
            }
            authors.sort_unstable_by_key(|author| author.account);
            let changed = authors != book.charter().authors;
            let followers = book.followers.clone();
            changed.then_some(Next { authors, followers, turn: false })
        })
        .await?;
        self.owe(channel, joining.iter().map(|contact| contact.account)).await
    }

    /// Gives people a channel's key, so that they can follow it.
    ///
    /// # Errors
    /// As [`Client::add_channel_authors`].
    pub async fn invite_to_channel(&self, channel: ChannelId, who: &[Handle]) -> Result<(), ClientError> {
        let joining: Vec<_> = self.people(who).await?.into_iter().map(|contact| contact.account).collect();
        self.owned(channel)?;
        self.profile.write(|tx| {
            book::note(tx, channel, |book| {
                book.followers.extend(joining.iter().copied());
                book.followers.sort_unstable();
                book.followers.dedup();
            })
        })?;
        self.owe(channel, joining.into_iter()).await
    }

    /// Removes people, authors or not: from here on the channel has another key, which the other authors and everybody who
    /// was invited by name are given. Whoever came by a link needs the new one.
    ///
    /// # Errors
    /// As [`Client::add_channel_authors`].
    pub async fn remove_from_channel(&self, channel: ChannelId, who: &[Handle]) -> Result<(), ClientError> {
        let leaving: Vec<_> = self.people(who).await?.into_iter().map(|contact| contact.account).collect();
        self.change_charter(channel, |book| {
            let mut authors = book.charter().authors.clone();
            authors.retain(|it| it.account == book.owner.account || !leaving.contains(&it.account));
            let followers = book.followers.iter().copied().filter(|account| !leaving.contains(account)).collect();
            Some(Next { authors, followers, turn: true })
        })
        .await?;
        self.give_keys(channel).await
    }

    /// The link with which anybody can follow a channel until its key is replaced.
    ///
    /// # Errors
    /// [`ClientError::UnknownChannel`]; [`ClientError::NoChannelKey`] when this device lacks its newest key.
    pub async fn channel_link(&self, channel: ChannelId) -> Result<ChannelLink, ClientError> {
        self.sync_charters(channel).await?;
        let base = self.service.server().to_owned();
        self.profile.read(|tx| {
            let book = book::known(tx, channel)?;
            let charter = book.charter();
            let key = book::key(tx, channel, &charter.key_id)?.ok_or(ClientError::NoChannelKey { channel })?;
            Ok(ChannelLink { base, channel, owner: book.owner, epoch: charter.epoch, key })
        })
    }

    /// Makes the next charter of a channel; `next` is asked again when it changes meanwhile, and says `None` when there is
    /// nothing left to do.
    async fn change_charter(
        &self,
        channel: ChannelId,
        next: impl Fn(&Book) -> Option<Next>,
    ) -> Result<(), ClientError> {
        let path = format!("/v1/channels/{channel}/charters");
        for _ in 0..CHARTER_TRIES {
            self.owned(channel)?;
            self.reach_head(channel).await?;
            let made = self.profile.write(|tx| {
                let book = book::known(tx, channel)?;
                let Some(next) = next(&book) else { return Ok(None) };
                let before = book.charter();
                let missing = ClientError::NoChannelKey { channel };
                let old = book::key(tx, channel, &before.key_id)?.ok_or(missing)?;
                let mut charter = Charter {
                    epoch: before.epoch + 1,
                    previous: Some(before.hash()),
                    authors: next.authors.clone(),
                    after: book.head,
                    made_at: now(),
                    ..before.clone()
                };
                if next.turn {
                    let key = ChannelKey::generate();
                    let title = old.open_title(&before.title)?;
                    charter.key_id = key.id();
                    charter.title = key.seal_title(&title)?;
                    // Before anybody can know of it: a lost answer must not leave a channel without its key.
                    book::put_key(tx, channel, &key)?;
                }
                Ok(Some((me(tx)?.account_key()?.sign_charter(&charter), next)))
            })?;
            let Some((signed, next)) = made else { return Ok(()) };
            match self.ask_for_charter(channel, &path, &signed).await {
                Ok(()) => {
                    return self.profile.write(|tx| {
                        let mut book = book::known(tx, channel)?;
                        take_charter(tx, &mut book, &signed)?;
                        book.followers.clone_from(&next.followers);
                        if next.turn {
                            book.owed = book.readers();
                        }
                        book::store(tx, &book)
                    });
                }
                Err(ClientError::Refused { problem, .. })
                    if problem.status == StatusCode::PRECONDITION_FAILED.as_u16() => {}
                Err(error) => return Err(error),
            }
        }
        Err(ClientError::ChannelBusy { channel })
    }

    /// Asks for a charter. Asked again after a lost answer, it is the same charter.
    async fn ask_for_charter(&self, channel: ChannelId, path: &str, signed: &SignedCharter) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url(path).await?;
        let ask = || service.json(service.authorized(service.http().post(&url)).json(signed));
        let answer: Result<ChannelChanged, _> = service.retry(ask).await;
        answer.map(drop).map_err(|error| absent(error, channel))
    }

    /// Says that this account must own the channel.
    fn owned(&self, channel: ChannelId) -> Result<(), ClientError> {
        self.profile.read(|tx| {
            let (book, own) = (book::known(tx, channel)?, me(tx)?.account);
            if book.owner.account == own { Ok(()) } else { Err(ClientError::NotChannelOwner { channel }) }
        })
    }

    /// Gives people the key of a channel.
    async fn owe(&self, channel: ChannelId, to: impl Iterator<Item = AccountId>) -> Result<(), ClientError> {
        let to: Vec<_> = to.collect();
        self.profile.write(|tx| {
            book::note(tx, channel, |book| {
                book.owed.extend(to.iter().copied());
                book.owed.sort_unstable();
                book.owed.dedup();
                let owner = book.owner.account;
                book.owed.retain(|account| *account != owner);
            })
        })?;
        self.give_keys(channel).await
    }

    /// Sends the newest key of a channel to everybody who is still to be given it, over their sessions.
    ///
    /// # Errors
    /// Those of sending: whoever was not reached is given it another time.
    pub(crate) async fn give_keys(&self, channel: ChannelId) -> Result<(), ClientError> {
        let owed = self.profile.read(|tx| Ok(book::load(tx, channel)?.map_or_else(Vec::new, |book| book.owed)))?;
        if owed.is_empty() {
            return Ok(());
        }
        for account in owed {
            let contact = match self.profile.read(|tx| contacts::known(tx, account))? {
                Some(contact) => contact,
                None => self.look_up(Asked::Account(account)).await?,
            };
            let (contact, prekeys) = match self.reach(contact).await {
                Ok(reached) => reached,
                Err(error) if is_about_message(&error) => {
                    tracing::warn!("{account} is not given the key of {channel}: {error}");
                    self.profile.write(|tx| book::note(tx, channel, |book| book.owed.retain(|it| *it != account)))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.profile.write(|tx| {
                let mut book = book::known(tx, channel)?;
                let missing = ClientError::NoChannelKey { channel };
                let key = book::key(tx, channel, &book.charter().key_id)?.ok_or(missing)?;
                let invite = ChannelInvite { channel, epoch: book.charter().epoch, key: key.to_bytes() };
                let content = Content::ChannelInvite(Box::new(invite));
                let msg_id = MsgId::from(uuid::Uuid::now_v7());
                enqueue_aside(tx, &contact, &prekeys, msg_id, &content, None, now())?;
                book.owed.retain(|it| *it != account);
                book::store(tx, &book)
            })?;
        }
        let flush = || async {
            let turn = self.route.turn().await;
            let mut line = Line::open(self).await?;
            let unsent = Box::pin(self.flush(&mut line)).await;
            line.close().await;
            drop(turn);
            unsent.map(drop)
        };
        self.service.retry(flush).await
    }

    /// Who these people are, with the keys that this profile knows them by.
    async fn people(&self, who: &[Handle]) -> Result<Vec<Contact>, ClientError> {
        let mut people = Vec::with_capacity(who.len());
        for handle in who {
            people.push(self.contact(handle).await?);
        }
        Ok(people)
    }
}
