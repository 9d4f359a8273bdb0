//! Receipts: what became of messages sent, and telling others what was read of theirs.
//!
//! Three things can be known of a message: the server has it, a device of its recipient has it, a person has seen it.
//! The second is the server's word (class DELIVERY); the third is said by the reader, encrypted, as "read up to here",
//! so that one receipt stands for a hundred messages and only the newest one matters.
//!
//! A receipt replaces the one before it as long as the other side has not fetched that (a coalesce key), so that a
//! device that was off for a month finds one and not thousands. But each replaced one is a step of the ratchet that the
//! other side never sees, and it follows a limited number of those: so every [`COALESCED_MAX`]th receipt stays.

use std::collections::HashMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use waxwing_protocol::{AccountId, MsgId};
use waxwing_seal::message::Content;

use crate::account::SELF;
use crate::profile::{Rows, Table, WriteTx};
use crate::{Client, ClientError, contacts, outbox};

/// The key under which read receipts of a conversation between two accounts replace one another.
pub(crate) const COALESCE_KEY: &[u8] = b"read";

/// Receipts in a row that may replace one another: half of the ratchet steps that a session follows across a gap.
const COALESCED_MAX: u64 = 1000;

/// What is known of messages sent, by message id.
pub(crate) const TICKS: Table<Tick> = Table::new("ticks");

/// Ticks that came before the copy of the message they are about, which another device of this account has sent: by
/// message id, from whom.
const EARLY: Table<(AccountId, Tick)> = Table::new("early_ticks");

/// Ticks kept that way at most: a server can make up as many as it likes.
const EARLY_MAX: usize = 1024;

/// How far people have read what this account wrote to them, by their account.
const READ_BY: Table<u64> = Table::new("read_by");

/// Messages not read yet as far as this profile knows: recipient, clock (big-endian), message id.
const UNREAD: Table<()> = Table::new("unread");

/// How far others' messages were read, by their account.
const READ: Table<ReadRow> = Table::new("read");

/// Whether others are told what was read; they are when there is no row.
const TELL: Table<bool> = Table::new("read_receipts");

/// What became of a message sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Tick {
    /// The server has it.
    Sent,
    /// A device of the recipient has it.
    Delivered,
    /// The recipient has seen it.
    Read,
}

/// Messages of which more is known now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ticked {
    pub(crate) peer: AccountId,
    pub(crate) msg_ids: Vec<MsgId>,
    pub(crate) tick: Tick,
}

/// How far somebody's messages were read.
#[derive(Serialize, Deserialize)]
struct ReadRow {
    up_to: MsgId,
    client_hlc: u64,
    /// Receipts made so far.
    told: u64,
    /// The clock that the last one named.
    told_hlc: u64,
    /// The clock that this account's other devices know of.
    #[serde(default)]
    synced_hlc: u64,
}

/// A receipt to be sent.
pub(crate) struct Due {
    pub(crate) content: Content,
    pub(crate) coalesce: bool,
}

impl Client {
    /// Whether people are told that their messages were read.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn read_receipts(&self) -> Result<bool, ClientError> {
        self.profile.read(|tx| tells(tx))
    }

    /// Changes whether people are told that their messages were read. What was read before is not told later.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be written.
    pub fn set_read_receipts(&self, tell: bool) -> Result<(), ClientError> {
        self.profile.write(|tx| tx.put(&TELL, SELF, &tell))
    }
}

pub(crate) fn tells(tx: &impl Rows) -> Result<bool, ClientError> {
    Ok(tx.get(&TELL, SELF)?.unwrap_or(true))
}

/// What is known of a message that the server has.
pub(crate) fn tick(tx: &impl Rows, msg_id: MsgId) -> Result<Tick, ClientError> {
    Ok(tx.get(&TICKS, msg_id.as_bytes())?.unwrap_or(Tick::Sent))
}

/// A message is on its way to `to`.
pub(crate) fn sending(tx: &WriteTx<'_>, to: AccountId, msg_id: MsgId, client_hlc: u64) -> Result<(), ClientError> {
    tx.put(&UNREAD, &unread_key(to, client_hlc, Some(msg_id)), &())
}

/// Another device of this account has sent a message to `to`; what is known of it already counts.
pub(crate) fn sent_elsewhere(
    tx: &WriteTx<'_>,
    to: AccountId,
    msg_id: MsgId,
    client_hlc: u64,
) -> Result<(), ClientError> {
    let early = tx.get(&EARLY, msg_id.as_bytes())?;
    tx.remove(&EARLY, msg_id.as_bytes())?;
    let is_read = tx.get(&READ_BY, to.as_bytes())?.is_some_and(|read| read >= client_hlc);
    if is_read {
        return tx.put(&TICKS, msg_id.as_bytes(), &Tick::Read);
    }
    if let Some((_, tick)) = early.filter(|(peer, _)| *peer == to) {
        tx.put(&TICKS, msg_id.as_bytes(), &tick)?;
    }
    sending(tx, to, msg_id, client_hlc)
}

/// The server says that devices of `peer` have these messages; gives those of which that is news.
pub(crate) fn delivered(tx: &WriteTx<'_>, peer: AccountId, msg_ids: &[MsgId]) -> Result<Vec<MsgId>, ClientError> {
    let mut news = Vec::new();
    for msg_id in msg_ids {
        let recipient = outbox::recipient(tx, *msg_id)?;
        if recipient.is_none() && contacts::has_other_devices(tx)? && tx.list(&EARLY)?.len() < EARLY_MAX {
            tx.put(&EARLY, msg_id.as_bytes(), &(peer, Tick::Delivered))?;
        }
        // Of messages to others, and of ones never sent, it knows nothing.
        if recipient == Some(peer) && tick(tx, *msg_id)? < Tick::Delivered {
            tx.put(&TICKS, msg_id.as_bytes(), &Tick::Delivered)?;
            news.push(*msg_id);
        }
    }
    Ok(news)
}

/// `peer` has read everything up to a clock; gives the messages of which that is news.
pub(crate) fn read(tx: &WriteTx<'_>, peer: AccountId, client_hlc: u64) -> Result<Vec<MsgId>, ClientError> {
    let (first, last) = (unread_key(peer, 0, None), unread_key(peer, client_hlc.saturating_add(1), None));
    if tx.get(&READ_BY, peer.as_bytes())?.is_none_or(|read| read < client_hlc) {
        tx.put(&READ_BY, peer.as_bytes(), &client_hlc)?;
    }
    let mut news = Vec::new();
    for (key, ()) in tx.range(&UNREAD, (Bound::Included(&first), Bound::Excluded(&last)))? {
        let msg_id = key.get(24..).ok_or(ClientError::Damaged { what: "a message sent" })?;
        tx.put(&TICKS, msg_id, &Tick::Read)?;
        tx.remove(&UNREAD, &key)?;
        news.push(MsgId::from_slice(msg_id)?);
    }
    Ok(news)
}

fn unread_key(to: AccountId, client_hlc: u64, msg_id: Option<MsgId>) -> Vec<u8> {
    let msg_id = msg_id.as_ref().map_or(&[][..], |msg_id| msg_id.as_bytes());
    [&to.as_bytes()[..], &client_hlc.to_be_bytes(), msg_id].concat()
}

/// A message of `from` was shown to a person.
pub(crate) fn shown(tx: &WriteTx<'_>, from: AccountId, msg_id: MsgId, client_hlc: u64) -> Result<(), ClientError> {
    let row = tx.get(&READ, from.as_bytes())?;
    if row.as_ref().is_some_and(|row| row.client_hlc >= client_hlc) {
        return Ok(());
    }
    let (told, told_hlc, synced_hlc) = row.map_or((0, 0, 0), |row| (row.told, row.told_hlc, row.synced_hlc));
    // What is read while nobody is told counts as told: turning receipts on must not reveal the past.
    let told_hlc = if tells(tx)? { told_hlc } else { client_hlc };
    tx.put(&READ, from.as_bytes(), &ReadRow { up_to: msg_id, client_hlc, told, told_hlc, synced_hlc })
}

/// Another device of this account has shown the messages of `from` up to one. It tells them, and this device does not.
pub(crate) fn read_elsewhere(
    tx: &WriteTx<'_>,
    from: AccountId,
    up_to: MsgId,
    client_hlc: u64,
) -> Result<(), ClientError> {
    let row = tx.get(&READ, from.as_bytes())?;
    if row.as_ref().is_some_and(|row| row.client_hlc >= client_hlc) {
        return Ok(());
    }
    let told = row.map_or(0, |row| row.told);
    let row = ReadRow { up_to, client_hlc, told, told_hlc: client_hlc, synced_hlc: client_hlc };
    tx.put(&READ, from.as_bytes(), &row)
}

/// Whose messages were read further than this account's other devices know; nobody's when there are none.
pub(crate) fn unsynced(tx: &impl Rows) -> Result<Vec<AccountId>, ClientError> {
    if !contacts::has_other_devices(tx)? {
        return Ok(Vec::new());
    }
    let rows = tx.list(&READ)?.into_iter().filter(|(_, row)| row.client_hlc > row.synced_hlc);
    rows.map(|(key, _)| Ok(AccountId::from_slice(&key)?)).collect()
}

/// How far messages of `from` were read, if the other devices are to be told; they count as told, so that has to be
/// stored in the same transaction.
pub(crate) fn mark(tx: &WriteTx<'_>, from: AccountId) -> Result<Option<(MsgId, u64)>, ClientError> {
    let row = tx.get(&READ, from.as_bytes())?;
    let Some(row) = row.filter(|row| row.client_hlc > row.synced_hlc) else { return Ok(None) };
    tx.put(&READ, from.as_bytes(), &ReadRow { synced_hlc: row.client_hlc, ..row })?;
    Ok(Some((row.up_to, row.client_hlc)))
}

/// How far each account's messages were read, on this device or another of its account.
pub(crate) fn read_up_to(tx: &impl Rows) -> Result<HashMap<AccountId, u64>, ClientError> {
    let rows = tx.list(&READ)?.into_iter();
    rows.map(|(key, row)| Ok((AccountId::from_slice(&key)?, row.client_hlc))).collect()
}

/// Whom a receipt is due to.
pub(crate) fn due(tx: &impl Rows) -> Result<Vec<AccountId>, ClientError> {
    if !tells(tx)? {
        return Ok(Vec::new());
    }
    let rows = tx.list(&READ)?.into_iter().filter(|(_, row)| row.client_hlc > row.told_hlc);
    rows.map(|(key, _)| Ok(AccountId::from_slice(&key)?)).collect()
}

/// The receipt that is due to `account`; it counts as made, so it has to be stored in the same transaction.
pub(crate) fn take(tx: &WriteTx<'_>, account: AccountId) -> Result<Option<Due>, ClientError> {
    let row = tx.get(&READ, account.as_bytes())?;
    let Some(row) = row.filter(|row| row.client_hlc > row.told_hlc) else { return Ok(None) };
    let ReadRow { up_to, client_hlc, told, synced_hlc, .. } = row;
    let after = ReadRow { up_to, client_hlc, told: told + 1, told_hlc: client_hlc, synced_hlc };
    tx.put(&READ, account.as_bytes(), &after)?;
    Ok(Some(Due { content: Content::Read { up_to, client_hlc }, coalesce: told % COALESCED_MAX != 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::{Person, msg, text};

    fn bob() -> AccountId {
        AccountId::from_bytes([8; 16])
    }

    #[test]
    fn a_receipt_names_the_last_message_read_and_is_made_once() {
        let alice = Person::new("alice");
        alice
            .profile
            .write(|tx| {
                shown(tx, bob(), msg(2), 20)?;
                shown(tx, bob(), msg(1), 10)?;
                assert_eq!(due(tx)?, [bob()]);
                let receipt = take(tx, bob())?.unwrap();
                assert_eq!(receipt.content, Content::Read { up_to: msg(2), client_hlc: 20 });
                assert!(!receipt.coalesce, "the first is kept, as every thousandth after it");
                assert!(take(tx, bob())?.is_none());
                shown(tx, bob(), msg(3), 30)?;
                assert!(take(tx, bob())?.unwrap().coalesce);
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn what_another_device_has_read_is_told_by_that_one_alone() {
        let alice = Person::new("alice");
        alice
            .profile
            .write(|tx| {
                shown(tx, bob(), msg(1), 10)?;
                read_elsewhere(tx, bob(), msg(3), 30)?;
                assert_eq!(read_up_to(tx)?[&bob()], 30);
                assert_eq!((due(tx)?, mark(tx, bob())?), (vec![], None), "the other one tells");
                read_elsewhere(tx, bob(), msg(2), 20)?;
                shown(tx, bob(), msg(2), 20)?;
                assert_eq!(read_up_to(tx)?[&bob()], 30, "it never goes back");
                shown(tx, bob(), msg(4), 40)?;
                assert_eq!(mark(tx, bob())?, Some((msg(4), 40)));
                assert_eq!((mark(tx, bob())?, due(tx)?), (None, vec![bob()]));
                Ok(())
            })
            .unwrap();
    }

    #[test]
    fn what_is_read_while_receipts_are_off_is_never_told() {
        let alice = Person::new("alice");
        let tell = |on| alice.profile.write(|tx| tx.put(&TELL, SELF, &on)).unwrap();
        tell(false);
        alice.profile.write(|tx| shown(tx, bob(), msg(1), 10)).unwrap();
        tell(true);
        assert_eq!(alice.profile.read(|tx| due(tx)).unwrap(), []);
        alice.profile.write(|tx| shown(tx, bob(), msg(2), 20)).unwrap();
        assert_eq!(alice.profile.read(|tx| due(tx)).unwrap(), [bob()]);
    }

    #[test]
    fn ticks_only_rise_and_only_for_messages_to_that_person() {
        let (alice, bob) = Person::pair();
        let (account, stranger) = (bob.view.account, AccountId::from_bytes([9; 16]));
        let hlc = [1, 2, 3].map(|n| alice.send(&bob, msg(n), &text("hello")).client_hlc);
        alice
            .profile
            .write(|tx| {
                assert_eq!(delivered(tx, stranger, &[msg(1)])?, []);
                assert_eq!(delivered(tx, account, &[msg(1), msg(9)])?, [msg(1)]);
                assert_eq!(delivered(tx, account, &[msg(1)])?, [], "no news");
                assert_eq!(read(tx, stranger, u64::MAX)?, []);
                assert_eq!(read(tx, account, hlc[1])?, [msg(1), msg(2)]);
                assert_eq!(delivered(tx, account, &[msg(2), msg(3)])?, [msg(3)], "read is more than delivered");
                assert_eq!([tick(tx, msg(2))?, tick(tx, msg(3))?], [Tick::Read, Tick::Delivered]);
                Ok(())
            })
            .unwrap();
    }
}
