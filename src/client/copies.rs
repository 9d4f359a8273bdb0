//! Copies: what one device of an account sends, its others show as well.
//!
//! Half of a conversation is what one said oneself. Without copies a second device would show answers to questions it has
//! never seen. So each message puts a copy for the account's other devices into the outbox, in the transaction that puts
//! the message there, and the copy leaves once the server has the message: no device shows something as sent that was not.
//! What was read on one device counts as read on the others, and its author hears of it once.

use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::{DeviceId, MsgId, Timestamp};
use waxwing_seal::message::{Content, SentCopy};

use crate::contacts::Contact;
use crate::outbox::{self, OUTBOX, SENT, SentRow};
use crate::profile::{Rows, Table, WriteTx};
use crate::{ClientError, blob_refs, contacts, conversation, receipts};

/// Which message a copy is of, by the copy's own id.
const COPIES: Table<MsgId> = Table::new("copies");

/// Puts a copy of a message of the outbox there, if this account has other devices and is not itself the recipient.
pub(crate) fn enqueue(
    tx: &WriteTx<'_>,
    of: MsgId,
    prekeys: &[(DeviceId, SignedPrekey)],
    now: Timestamp,
) -> Result<(), ClientError> {
    let own = contacts::own(tx)?;
    let Some(row) = tx.get(&OUTBOX, of.as_bytes())? else { return Ok(()) };
    if row.to == own.account || own.devices.devices.len() < 2 {
        return Ok(());
    }
    let copy = SentCopy {
        account: row.to,
        handle: row.handle,
        msg_id: of,
        client_hlc: row.client_hlc,
        content: Content::from_bytes(&row.content.0)?,
    };
    let id = MsgId::from(uuid::Uuid::now_v7());
    tx.put(&COPIES, id.as_bytes(), &of)?;
    outbox::enqueue_aside(tx, &own, prekeys, id, &Content::Sent(Box::new(copy)), Some(of), now)
}

/// Tells this account's other devices how far the messages of `contact` were read, as a copy of what its author is told.
pub(crate) fn enqueue_mark(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    now: Timestamp,
) -> Result<(), ClientError> {
    let Some((up_to, client_hlc)) = receipts::mark(tx, contact.account)? else { return Ok(()) };
    let (account, handle, content) = (contact.account, contact.handle.clone(), Content::Read { up_to, client_hlc });
    let copy = Content::Sent(Box::new(SentCopy { account, handle, msg_id: up_to, client_hlc, content }));
    let id = MsgId::from(uuid::Uuid::now_v7());
    outbox::enqueue_aside(tx, &contacts::own(tx)?, prekeys, id, &copy, None, now)
}

/// Files what another device of this account has sent or read; tells whether it is something sent that is news.
pub(crate) fn take(tx: &WriteTx<'_>, copy: &SentCopy, server_ts: Timestamp) -> Result<bool, ClientError> {
    let SentCopy { account, handle, msg_id, client_hlc, content } = copy;
    if let Content::Read { up_to, client_hlc } = content {
        receipts::read_elsewhere(tx, *account, *up_to, *client_hlc)?;
        return Ok(false);
    }
    if !matches!(content, Content::Text(_) | Content::File(_)) || outbox::recipient(tx, *msg_id)?.is_some() {
        return Ok(false);
    }
    if let Content::File(file) = content {
        blob_refs::put(tx, file)?;
    }
    let (to, handle, client_hlc) = (*account, handle.clone(), *client_hlc);
    let row = SentRow { to, handle, client_hlc, server_ts, content: content.to_bytes().into() };
    tx.put(&SENT, msg_id.as_bytes(), &row)?;
    receipts::sent_elsewhere(tx, to, *msg_id, client_hlc)?;
    conversation::follow(tx, to, *msg_id)?;
    Ok(true)
}

/// The copy that had this id, made again.
pub(crate) fn again(tx: &impl Rows, id: MsgId) -> Result<Option<SentCopy>, ClientError> {
    let Some(of) = tx.get(&COPIES, id.as_bytes())? else { return Ok(None) };
    let Some(row) = tx.get(&SENT, of.as_bytes())? else { return Ok(None) };
    let SentRow { to, handle, client_hlc, content, .. } = row;
    let content = Content::from_bytes(&content.0)?;
    Ok(Some(SentCopy { account: to, handle, msg_id: of, client_hlc, content }))
}
