//! Messages to groups on their way: encrypted once, sent until the server has them.
//!
//! As between two people, the moved ratchet and the ciphertext are stored in one transaction before anything leaves, and
//! retries send that ciphertext. Whoever does not have the ratchet's key yet is given it in messages of their own, which
//! are made in the same transaction and are at the server before the message is.
//!
//! A send that the server refuses because the group or somebody's devices have changed was stored nowhere: it is
//! encrypted anew, for the group as it is then, under the same id.

use std::collections::HashMap;

use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use waxwing_protocol::frames::{Class, ErrorCode, Group, Send, SendResult, Urgency, send::Target};
use waxwing_protocol::group::devices_hash;
use waxwing_protocol::identity::{Base64, SignedPrekey};
use waxwing_protocol::{AccountId, DeviceId, GroupId, MsgId, Timestamp};
use waxwing_seal::group::Setting;
use waxwing_seal::message::{Content, GroupKey, Message};

use super::book::{self, Book};
use super::ratchets::{self, Given};
use crate::account::{device_keys, me, now, party};
use crate::contacts::{self, Contact};
use crate::outbox::{self, OUTBOX, Prekeys, Unsent, is_about_message, refusal};
use crate::profile::{Rows, Table, WriteTx};
use crate::route::{Line, Reply};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, conversation, sessions};

/// Messages encrypted for a group and not yet taken by the server, by message id.
const GROUP_OUTBOX: Table<GroupOutRow> = Table::new("group_outbox");

/// Messages to groups that the server has, by message id.
pub(crate) const GROUP_SENT: Table<GroupSentRow> = Table::new("group_sent");

/// Keys given away and not known to have been read, by the id of the message they went in: sent again on request.
const KEYS_SENT: Table<KeySentRow> = Table::new("group_keys_sent");

/// How often a message is fitted to a group that changed before giving up.
const FIT_TRIES: usize = 10;

/// Prekeys claimed at once when a key goes to many strangers.
const CLAIMS_AT_ONCE: usize = 8;

/// A message on its way.
#[derive(Serialize, Deserialize)]
struct GroupOutRow {
    group: GroupId,
    client_hlc: u64,
    parents: Vec<MsgId>,
    /// Kept to encrypt it anew.
    content: SecretBytes,
    epoch: u64,
    devices_hash: Base64,
    body: Base64,
    /// Messages that bring the key to those who lack it: they go first.
    keys: Vec<MsgId>,
}

/// A message that was sent.
#[derive(Serialize, Deserialize)]
pub(crate) struct GroupSentRow {
    group: GroupId,
    client_hlc: u64,
    conv_seq: u64,
    server_ts: Timestamp,
    content: SecretBytes,
}

/// A key that was given.
#[derive(Serialize, Deserialize)]
struct KeySentRow {
    group: GroupId,
    to: AccountId,
    content: SecretBytes,
}

/// A message that this device has sent to a group.
#[derive(Clone, Debug)]
pub struct SentGroupMessage {
    /// The group.
    pub group: GroupId,
    /// Its id.
    pub msg_id: MsgId,
    /// Its place in the conversation.
    pub conv_seq: u64,
    /// When the server took it.
    pub server_ts: Timestamp,
    /// What it says.
    pub content: Content,
}

impl Client {
    /// Sends `content` to everybody in a group, under an id that the caller chose and stored: called again with it, after
    /// a crash too, the message is still sent once. Returns when the server has it durably.
    ///
    /// # Errors
    /// [`ClientError::NotInGroup`], and those of [`Client::send_content`].
    pub async fn send_to_group(&self, group: GroupId, msg_id: MsgId, content: Content) -> Result<MsgId, ClientError> {
        let (queued, sent) = self.profile.read(|tx| Ok((is_queued(tx, msg_id)?, is_sent(tx, msg_id)?)))?;
        if sent {
            return Ok(msg_id);
        }
        if !queued {
            if self.profile.read(|tx| book::load(tx, group))?.is_none() {
                self.catch_up(group).await?;
            }
            let prekeys = self.prepare(group).await?;
            self.profile.write(|tx| enqueue(tx, group, &prekeys, msg_id, &content, now()))?;
        }
        let flush = || async move {
            let unsent = self.flush_all().await?;
            match unsent.into_iter().find(|unsent| unsent.msg_id == msg_id) {
                Some(unsent) => Err(unsent.error),
                None if self.profile.read(|tx| is_sent(tx, msg_id))? => Ok(msg_id),
                // The connection that watches flushed it first, and was refused.
                None => Err(ClientError::NotInGroup { group }),
            }
        };
        self.service.retry(flush).await
    }

    /// Sends words to a group.
    ///
    /// # Errors
    /// Those of [`Client::send_to_group`].
    pub async fn send_text_to_group(&self, group: GroupId, words: &str) -> Result<MsgId, ClientError> {
        let msg_id = MsgId::from(uuid::Uuid::now_v7());
        Box::pin(self.send_to_group(group, msg_id, Content::Text(words.to_owned()))).await
    }

    /// Every message this device has sent to a group, in the order in which the server took them.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn sent_to_groups(&self) -> Result<Vec<SentGroupMessage>, ClientError> {
        let mut messages = self.profile.read(|tx| {
            let mut messages = Vec::new();
            for (key, row) in tx.list(&GROUP_SENT)? {
                let GroupSentRow { group, conv_seq, server_ts, content, .. } = row;
                let (msg_id, content) = (MsgId::from_slice(&key)?, Content::from_bytes(&content.0)?);
                if matches!(content, Content::Text(_) | Content::File(_)) {
                    messages.push(SentGroupMessage { group, msg_id, conv_seq, server_ts, content });
                }
            }
            Ok(messages)
        })?;
        messages.sort_by_key(|message| (message.server_ts, message.conv_seq));
        Ok(messages)
    }

    /// Tells the members of groups what those are called, where that is due.
    pub(crate) async fn announce_groups(&self) -> Result<(), ClientError> {
        self.service.retry(|| async { self.flush_all().await.map(drop) }).await
    }

    /// Sends everything in both outboxes.
    async fn flush_all(&self) -> Result<Vec<Unsent>, ClientError> {
        let turn = self.route.turn().await;
        let mut line = Line::open(self).await?;
        let unsent = Box::pin(self.flush(&mut line)).await;
        line.close().await;
        drop(turn);
        unsent
    }

    /// Sends everything to groups, oldest first. Whoever calls it has the [turn](crate::route::Route::turn).
    pub(crate) async fn flush_groups(&self, line: &mut Line<'_>) -> Result<Vec<Unsent>, ClientError> {
        self.queue_announcements().await?;
        let mut unsent = Vec::new();
        for msg_id in self.profile.read(|tx| queued(tx))? {
            let told = self.profile.read(|tx| is_words(tx, msg_id))?;
            match Box::pin(self.deliver_to_group(line, msg_id)).await {
                Ok(()) => {}
                Err(error @ (ClientError::NotNow { .. } | ClientError::GroupBusy { .. })) => {
                    unsent.extend(told.then_some(Unsent { msg_id, error }));
                }
                Err(error) if is_about_group(&error) => {
                    self.profile.write(|tx| tx.remove(&GROUP_OUTBOX, msg_id.as_bytes()))?;
                    unsent.extend(told.then_some(Unsent { msg_id, error }));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(unsent)
    }

    /// Queues title and picture for the groups where they are to be told.
    async fn queue_announcements(&self) -> Result<(), ClientError> {
        let due = self.profile.read(|tx| {
            let mut due = Vec::new();
            for group in book::all(tx)? {
                if book::load(tx, group)?.is_some_and(|book| book.announce) {
                    due.push(group);
                }
            }
            Ok(due)
        })?;
        for group in due {
            let prekeys = match self.prepare(group).await {
                Ok(prekeys) => prekeys,
                Err(error) if is_about_group(&error) => {
                    self.profile.write(|tx| book::note(tx, group, |book| book.announce = false))?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.profile.write(|tx| {
                let Some(book) = book::load(tx, group)? else { return Ok(()) };
                let profile = book::profile(tx, &book)?;
                book::note(tx, group, |book| book.announce = false)?;
                // Alone in it, there is nobody to tell.
                let Some(profile) = profile.filter(|_| book.state.members.len() > 1 && !book.left) else {
                    return Ok(());
                };
                let msg_id = MsgId::from(uuid::Uuid::now_v7());
                enqueue(tx, group, &prekeys, msg_id, &Content::GroupProfile(profile.0.to_vec()), now())
            })?;
        }
        Ok(())
    }

    /// Learns and claims what it takes to encrypt for a group as this profile knows it: the devices of members it does not
    /// know, and prekeys of devices that lack the key and have no session.
    async fn prepare(&self, group: GroupId) -> Result<HashMap<AccountId, Prekeys>, ClientError> {
        let known = self.profile.read(|tx| {
            let book = book::mine(tx, group)?;
            Ok(book.audience(tx)?.iter().all(|(_, devices)| devices.is_some()))
        })?;
        if !known {
            self.sync_devices(group).await?;
        }
        let lacking = self.profile.read(|tx| lacking(tx, group))?;
        let claims = lacking.into_iter().map(|contact| async {
            let account = contact.account;
            match self.reach(contact).await {
                Ok((_, prekeys)) => Ok(Some((account, prekeys))),
                Err(error) if error.is_transient() || matches!(error, ClientError::Profile { .. }) => Err(error),
                // One member who cannot be reached does not silence the others.
                Err(error) => {
                    tracing::warn!("{account} gets no key of the group for now: {error}");
                    Ok(None)
                }
            }
        });
        let claimed: Vec<_> = futures_util::stream::iter(claims).buffer_unordered(CLAIMS_AT_ONCE).collect().await;
        let mut prekeys = HashMap::new();
        for claim in claimed {
            prekeys.extend(claim?);
        }
        Ok(prekeys)
    }

    /// Sends one message until the server has it, fitting it to the group.
    async fn deliver_to_group(&self, line: &mut Line<'_>, msg_id: MsgId) -> Result<(), ClientError> {
        let mut last = None;
        for _ in 0..FIT_TRIES {
            let Some((group, keys, send)) = self.profile.read(|tx| frame(tx, msg_id))? else { return Ok(()) };
            last = Some(group);
            for key in keys {
                match self.deliver(line, key).await {
                    Ok(()) => {}
                    Err(error) if is_about_message(&error) => {
                        self.profile.write(|tx| tx.remove(&OUTBOX, key.as_bytes()))?;
                    }
                    // Their mailbox is full, or their devices change: the others are not to wait for it.
                    Err(error @ (ClientError::NotNow { .. } | ClientError::DevicesUnsettled { .. })) => {
                        tracing::debug!("a key of a group is given later: {error}");
                    }
                    Err(error) => return Err(error),
                }
            }
            let error = match line.exchange(send).await? {
                Reply::Taken(result) => return self.profile.write(|tx| settle(tx, msg_id, &result)),
                Reply::Refused(error) => error,
                Reply::Done => return Err(self.service.nonsense("a message answered by Ok")),
            };
            match error.code() {
                ErrorCode::EpochConflict => self.catch_up(group).await?,
                ErrorCode::DeviceMismatch => self.sync_devices(group).await?,
                ErrorCode::NotFound => return Err(ClientError::NotInGroup { group }),
                _ => return Err(refusal(&error)),
            }
            let prekeys = self.prepare(group).await?;
            self.profile.write(|tx| fit(tx, &prekeys, msg_id, now()))?;
        }
        last.map_or(Ok(()), |group| Err(ClientError::GroupBusy { group }))
    }
}

/// Whether an error means that this message cannot be sent, rather than that nothing can for now.
fn is_about_group(error: &ClientError) -> bool {
    let of_group =
        matches!(error, ClientError::NotInGroup { .. } | ClientError::GroupForged { .. } | ClientError::GroupSeal(_));
    of_group || is_about_message(error)
}

fn is_queued(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    Ok(tx.get(&GROUP_OUTBOX, msg_id.as_bytes())?.is_some())
}

fn is_sent(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    Ok(tx.get(&GROUP_SENT, msg_id.as_bytes())?.is_some())
}

fn is_words(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    let Some(row) = tx.get(&GROUP_OUTBOX, msg_id.as_bytes())? else { return Ok(false) };
    Ok(matches!(Content::from_bytes(&row.content.0)?, Content::Text(_) | Content::File(_)))
}

fn queued(tx: &impl Rows) -> Result<Vec<MsgId>, ClientError> {
    let rows = tx.list(&GROUP_OUTBOX)?;
    rows.into_iter().map(|(key, _)| Ok(MsgId::from_slice(&key)?)).collect()
}

/// Takes a message out of the outbox, should it be there: it is not sent any more.
pub(crate) fn forget(tx: &WriteTx<'_>, msg_id: MsgId) -> Result<(), ClientError> {
    tx.remove(&GROUP_OUTBOX, msg_id.as_bytes()).map(drop)
}

/// The devices that a group's messages are for, but for this one.
fn others(book: &Book, tx: &impl Rows) -> Result<Vec<Given>, ClientError> {
    let own = me(tx)?;
    let mut others = Vec::new();
    for (account, devices) in book.audience(tx)? {
        for device in devices.into_iter().flatten() {
            if (account, device.id) != (own.account, own.device) {
                others.push(Given { account, device: device.id, reg_id: device.reg_id });
            }
        }
    }
    Ok(others)
}

/// The members that may have to be given a key and that there is no session with.
fn lacking(tx: &impl Rows, group: GroupId) -> Result<Vec<Contact>, ClientError> {
    let book = book::mine(tx, group)?;
    let (given, others) = (ratchets::given(tx, group)?, others(&book, tx)?);
    let all_new = !given.iter().all(|one| others.contains(one));
    let (own, this) = (contacts::own(tx)?, me(tx)?.device);
    let mut lacking: Vec<Contact> = Vec::new();
    for one in others.iter().filter(|one| all_new || !given.contains(one)) {
        if lacking.last().is_some_and(|last| last.account == one.account) {
            continue;
        }
        let contact = if one.account == own.account { Some(own.clone()) } else { contacts::known(tx, one.account)? };
        let Some(contact) = contact else { continue };
        let mut stranger = false;
        for device in contact.devices.devices.iter().filter(|it| (one.account, it.id) != (own.account, this)) {
            stranger |= !sessions::exists(tx, one.account, device)?;
        }
        if stranger {
            lacking.push(contact);
        }
    }
    Ok(lacking)
}

/// Encrypts a message for a group, and stores ciphertext, moved ratchet and the keys for those who lack it together.
fn enqueue(
    tx: &WriteTx<'_>,
    group: GroupId,
    prekeys: &HashMap<AccountId, Prekeys>,
    msg_id: MsgId,
    content: &Content,
    now: Timestamp,
) -> Result<(), ClientError> {
    // Another task may have been quicker.
    if is_queued(tx, msg_id)? || is_sent(tx, msg_id)? {
        return Ok(());
    }
    let mut row = GroupOutRow {
        group,
        client_hlc: conversation::tick(tx, now)?,
        parents: conversation::follow(tx, thread(group), msg_id)?,
        content: content.to_bytes().into(),
        epoch: 0,
        devices_hash: Base64::default(),
        body: Base64::default(),
        keys: Vec::new(),
    };
    encrypt(tx, prekeys, msg_id, &mut row, now)?;
    tx.put(&GROUP_OUTBOX, msg_id.as_bytes(), &row)
}

/// A group's conversation, where those between two accounts are kept by account.
pub(crate) fn thread(group: GroupId) -> AccountId {
    AccountId::from_bytes(*group.as_bytes())
}

/// Encrypts a message anew for the group as it is now.
fn fit(
    tx: &WriteTx<'_>,
    prekeys: &HashMap<AccountId, Prekeys>,
    msg_id: MsgId,
    now: Timestamp,
) -> Result<(), ClientError> {
    let Some(mut row) = tx.get(&GROUP_OUTBOX, msg_id.as_bytes())? else { return Ok(()) };
    encrypt(tx, prekeys, msg_id, &mut row, now)?;
    tx.put(&GROUP_OUTBOX, msg_id.as_bytes(), &row)
}

fn encrypt(
    tx: &WriteTx<'_>,
    prekeys: &HashMap<AccountId, Prekeys>,
    msg_id: MsgId,
    row: &mut GroupOutRow,
    now: Timestamp,
) -> Result<(), ClientError> {
    let group = row.group;
    let book = book::mine(tx, group)?;
    let me = party(&me(tx)?, &device_keys(tx)?);
    let audience = book.audience(tx)?;
    let listed: Vec<_> = audience
        .iter()
        .map(|(account, devices)| {
            let devices = devices.iter().flatten().map(|device| (device.id, device.reg_id)).collect::<Vec<_>>();
            (*account, devices)
        })
        .collect();
    let others = others(&book, tx)?;
    let mut out = ratchets::load_out(tx, group, &others, now)?;
    if out.fresh {
        forget_keys(tx, group)?;
    }
    let profile = book::profile(tx, &book)?.map_or_else(Vec::new, |profile| profile.0.to_vec());
    let key = GroupKey { group, session_key: out.ratchet.key().to_vec(), profile };
    let key = Content::GroupKey(Box::new(key));
    for account in audience.iter().map(|(account, _)| *account) {
        let of_account = others.iter().filter(|one| one.account == account);
        if of_account.clone().all(|one| out.given.contains(one)) {
            continue;
        }
        let Some(id) = give(tx, group, account, prekeys.get(&account).map_or(&[], |it| &it[..]), &key, now)? else {
            continue;
        };
        row.keys.push(id);
        out.given.retain(|one| one.account != account);
        out.given.extend(of_account);
    }
    let message = Message {
        id: msg_id,
        client_hlc: row.client_hlc,
        parents: row.parents.clone(),
        content: Content::from_bytes(&row.content.0)?,
    };
    let setting = Setting { group, epoch: book.state.epoch, state: book.state.hash() };
    let plaintext = message.seal_for_group(&me, &setting)?;
    row.body = Base64(out.ratchet.encrypt(&plaintext)?);
    row.epoch = setting.epoch;
    let hash = devices_hash(listed.iter().map(|(account, devices)| (*account, &devices[..])));
    row.devices_hash = Base64(hash.to_vec());
    ratchets::store_out(tx, group, out)
}

/// Puts the key for one account into the outbox. `None` when it cannot be encrypted for: that account reads nothing until
/// it can.
fn give(
    tx: &WriteTx<'_>,
    group: GroupId,
    account: AccountId,
    prekeys: &[(DeviceId, SignedPrekey)],
    key: &Content,
    now: Timestamp,
) -> Result<Option<MsgId>, ClientError> {
    let own = contacts::own(tx)?;
    let contact = if account == own.account { Some(own) } else { contacts::known(tx, account)? };
    let Some(contact) = contact else { return Ok(None) };
    let id = MsgId::from(uuid::Uuid::now_v7());
    match outbox::enqueue_aside(tx, &contact, prekeys, id, key, None, now) {
        Ok(()) => {}
        Err(error @ (ClientError::Session(_) | ClientError::Message(_))) => {
            tracing::warn!("{} gets no key of the group for now: {error}", contact.handle);
            return Ok(None);
        }
        Err(error) => return Err(error),
    }
    let row = KeySentRow { group, to: account, content: key.to_bytes().into() };
    tx.put(&KEYS_SENT, id.as_bytes(), &row)?;
    Ok(Some(id))
}

/// Forgets the keys of a ratchet that is replaced: nobody is given them again.
fn forget_keys(tx: &WriteTx<'_>, group: GroupId) -> Result<(), ClientError> {
    for (id, row) in tx.list(&KEYS_SENT)? {
        if row.group == group {
            tx.remove(&KEYS_SENT, &id)?;
        }
    }
    Ok(())
}

/// The key that went to `account` in the message `msg_id`, to be given again.
pub(crate) fn key_again(tx: &impl Rows, account: AccountId, msg_id: MsgId) -> Result<Option<Content>, ClientError> {
    let row = tx.get(&KEYS_SENT, msg_id.as_bytes())?.filter(|row| row.to == account);
    row.map(|row| Ok(Content::from_bytes(&row.content.0)?)).transpose()
}

/// The frame of a message, with its group and the keys that go first.
fn frame(tx: &impl Rows, msg_id: MsgId) -> Result<Option<(GroupId, Vec<MsgId>, Send)>, ClientError> {
    let Some(row) = tx.get(&GROUP_OUTBOX, msg_id.as_bytes())? else { return Ok(None) };
    let words = matches!(Content::from_bytes(&row.content.0)?, Content::Text(_) | Content::File(_));
    let target = Group {
        group: row.group.as_bytes().to_vec().into(),
        epoch: row.epoch,
        devices_hash: row.devices_hash.0.into(),
        body: row.body.0.into(),
    };
    let send = Send {
        msg_id: msg_id.as_bytes().to_vec().into(),
        target: Some(Target::Group(target)),
        class: Class::Message.into(),
        urgency: if words { Urgency::High } else { Urgency::None }.into(),
        client_hlc: row.client_hlc,
        ..Send::default()
    };
    Ok(Some((row.group, row.keys, send)))
}

/// The server has the message.
fn settle(tx: &WriteTx<'_>, msg_id: MsgId, result: &SendResult) -> Result<(), ClientError> {
    let Some(row) = tx.get(&GROUP_OUTBOX, msg_id.as_bytes())? else { return Ok(()) };
    let GroupOutRow { group, client_hlc, content, .. } = row;
    let (conv_seq, server_ts) = (result.conv_seq, Timestamp::from_millis(result.server_ts));
    tx.put(&GROUP_SENT, msg_id.as_bytes(), &GroupSentRow { group, client_hlc, conv_seq, server_ts, content })?;
    tx.remove(&GROUP_OUTBOX, msg_id.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests;
