//! Session repair: a message that cannot be read is asked for once more, in a session begun anew.
//!
//! A ratchet can be lost on one side alone: a profile set back by its owner, a session that the other side dropped. From
//! then on every message would be unreadable, and neither side would know. So a device that cannot read a message begins
//! a new session with the device that wrote it, and asks for the message in it; that one sends it again, once, under the
//! id it had.
//!
//! Both are bounded: a message is asked for once, a device at most every [`ASK_INTERVAL`], and a message is sent again
//! once for each device that asks. So nobody makes two devices ask each other without end.

use std::collections::BTreeMap;
use std::time::Duration;

use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::{AccountId, DeviceId, MsgId, Timestamp};
use waxwing_seal::message::{Content, Message, RETRY_IDS_MAX};

use crate::account::{device_keys, me};
use crate::contacts::{self, Contact};
use crate::outbox::{self, OUTBOX, SENT};
use crate::profile::{Rows, Table, WriteTx};
use crate::{Client, ClientError, copies, groups, sessions};

/// Time between two requests to one device.
pub(crate) const ASK_INTERVAL: Duration = Duration::from_secs(10);

/// Messages to be asked for: account, device, message id.
const UNREAD: Table<()> = Table::new("repair_unread");

/// When a device was asked last: account, device.
const ASKED: Table<Timestamp> = Table::new("repair_asked");

/// Messages to be sent again: account, device, message id.
const WANTED: Table<()> = Table::new("repair_wanted");

/// Messages that were sent again: account, device, message id.
const RESENT: Table<()> = Table::new("repair_resent");

fn key(account: AccountId, device: DeviceId, msg_id: Option<MsgId>) -> Vec<u8> {
    let msg_id = msg_id.as_ref().map_or(&[][..], |id| id.as_bytes());
    [&account.as_bytes()[..], &device.get().to_be_bytes(), msg_id].concat()
}

fn parse(key: &[u8]) -> Result<(AccountId, DeviceId, MsgId), ClientError> {
    let damaged = || ClientError::Damaged { what: "a message to be repaired" };
    let (account, rest) = key.split_at_checked(16).ok_or_else(damaged)?;
    let (device, msg_id) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    Ok((AccountId::from_slice(account)?, DeviceId::new(u32::from_be_bytes(*device))?, MsgId::from_slice(msg_id)?))
}

/// A message could not be read: it is to be asked for.
pub(crate) fn unreadable(
    tx: &WriteTx<'_>,
    from: AccountId,
    device: DeviceId,
    msg_id: MsgId,
) -> Result<(), ClientError> {
    tx.put(&UNREAD, &key(from, device, Some(msg_id)), &())
}

/// A device asks for messages of this one.
pub(crate) fn asked(
    tx: &WriteTx<'_>,
    account: AccountId,
    device: DeviceId,
    msg_ids: &[MsgId],
) -> Result<(), ClientError> {
    for msg_id in msg_ids {
        let key = key(account, device, Some(*msg_id));
        if tx.get(&RESENT, &key)?.is_none() && again(tx, account, *msg_id)?.is_some() {
            tx.put(&WANTED, &key, &())?;
        }
    }
    Ok(())
}

/// Whether something is left to repair.
pub(crate) fn is_due(tx: &impl Rows) -> Result<bool, ClientError> {
    Ok(!tx.list(&UNREAD)?.is_empty() || !tx.list(&WANTED)?.is_empty())
}

/// A message that went to `account`, to be sent again.
fn again(tx: &impl Rows, account: AccountId, msg_id: MsgId) -> Result<Option<Message>, ClientError> {
    let message = |client_hlc, content| Message { id: msg_id, client_hlc, parents: Vec::new(), content };
    if let Some(row) = tx.get(&SENT, msg_id.as_bytes())? {
        let content = Content::from_bytes(&row.content.0)?;
        return Ok((row.to == account).then(|| message(row.client_hlc, content)));
    }
    // Taken by the server, and this device has not heard of it yet.
    if let Some(row) = tx.get(&OUTBOX, msg_id.as_bytes())? {
        let content = Content::from_bytes(&row.content.0)?;
        let words = matches!(content, Content::Text(_) | Content::File(_));
        return Ok((row.to == account && words).then(|| message(row.client_hlc, content)));
    }
    if let Some(content) = groups::outbox::key_again(tx, account, msg_id)? {
        return Ok(Some(message(0, content)));
    }
    if me(tx)?.account != account {
        return Ok(None);
    }
    let copy = copies::again(tx, msg_id)?;
    Ok(copy.map(|copy| message(copy.client_hlc, Content::Sent(Box::new(copy)))))
}

impl Client {
    /// Asks for what could not be read, and sends again what was asked for: into the outbox.
    pub(crate) async fn repair(&self, now: Timestamp) -> Result<(), ClientError> {
        let mut unread: BTreeMap<(AccountId, DeviceId), Vec<MsgId>> = BTreeMap::new();
        for (row, ()) in self.profile.read(|tx| tx.list(&UNREAD))? {
            let (account, device, msg_id) = parse(&row)?;
            unread.entry((account, device)).or_default().push(msg_id);
        }
        for ((account, device), mut msg_ids) in unread {
            msg_ids.truncate(RETRY_IDS_MAX);
            let asked = self.profile.read(|tx| tx.get(&ASKED, &key(account, device, None)))?;
            if asked.is_some_and(|at| now.since(at) < ASK_INTERVAL) {
                continue;
            }
            match self.ask_again(account, device, &msg_ids, now).await {
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                Err(error) if error.is_transient() => {
                    tracing::debug!("messages of {account} are asked for later: {error}");
                }
                done => {
                    if let Err(error) = done {
                        tracing::warn!("messages of {account} cannot be asked for: {error}");
                    }
                    let forget = |id: &MsgId| (key(account, device, Some(*id)), ());
                    self.profile.write(|tx| {
                        tx.put(&ASKED, &key(account, device, None), &now)?;
                        msg_ids.iter().map(forget).try_for_each(|(key, ())| tx.remove(&UNREAD, &key).map(drop))
                    })?;
                }
            }
        }
        for (row, ()) in self.profile.read(|tx| tx.list(&WANTED))? {
            let (account, _, msg_id) = parse(&row)?;
            let resent = self.resend(account, msg_id, &row, now).await;
            match resent {
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                Err(error) if error.is_transient() => {
                    tracing::debug!("a message to {account} is sent again later: {error}");
                }
                Err(error) => {
                    tracing::warn!("a message to {account} cannot be sent again: {error}");
                    self.profile.write(|tx| tx.remove(&WANTED, &row))?;
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn ask_again(
        &self,
        account: AccountId,
        device: DeviceId,
        msg_ids: &[MsgId],
        now: Timestamp,
    ) -> Result<(), ClientError> {
        let contact = self.profile.read(|tx| contacts::known(tx, account))?;
        let Some(contact) = contact.filter(|contact| contact.devices.device(device).is_some()) else { return Ok(()) };
        let fresh = self.claim_prekey(account, device).await?;
        let (contact, others) = self.reach(contact).await?;
        self.profile.write(|tx| enqueue_retry(tx, &contact, device, &fresh, &others, msg_ids, now))
    }

    async fn resend(
        &self,
        account: AccountId,
        msg_id: MsgId,
        wanted: &[u8],
        now: Timestamp,
    ) -> Result<(), ClientError> {
        let contact = self.profile.read(|tx| match contacts::known(tx, account)? {
            None if me(tx)?.account == account => contacts::own(tx).map(Some),
            known => Ok(known),
        })?;
        let Some(contact) = contact else { return self.profile.write(|tx| tx.remove(&WANTED, wanted)).map(drop) };
        let (contact, prekeys) = self.reach(contact).await?;
        self.profile.write(|tx| {
            tx.remove(&WANTED, wanted)?;
            let Some(message) = again(tx, account, msg_id)? else { return Ok(()) };
            tx.put(&RESENT, wanted, &())?;
            let id = MsgId::from(uuid::Uuid::now_v7());
            outbox::enqueue_aside(tx, &contact, &prekeys, id, &Content::Resent(Box::new(message)), None, now)
        })
    }
}

/// Begins a session anew and asks in it. The other devices of the account get the request as well, since every message
/// goes to all of them, and see that it is not theirs to answer.
fn enqueue_retry(
    tx: &WriteTx<'_>,
    contact: &Contact,
    device: DeviceId,
    fresh: &SignedPrekey,
    others: &[(DeviceId, SignedPrekey)],
    msg_ids: &[MsgId],
    now: Timestamp,
) -> Result<(), ClientError> {
    let Some(peer) = contact.devices.device(device).copied() else { return Ok(()) };
    let mut anew = sessions::load(tx, contact.account, &peer)?;
    anew.start(&device_keys(tx)?, &peer, fresh)?;
    sessions::store(tx, contact.account, &peer, anew)?;
    let content = Content::Retry { device: me(tx)?.device, msg_ids: msg_ids.to_vec() };
    outbox::enqueue_aside(tx, contact, others, MsgId::from(uuid::Uuid::now_v7()), &content, None, now)
}
