//! What comes from groups: changes checked and taken, messages opened and believed as far as the group says.
//!
//! A message's key travels apart from it and can come later. Such a message is kept as it came, is the server's no more,
//! and is opened when the key is there.

use std::collections::BTreeMap;
use std::ops::Bound;

use serde::{Deserialize, Serialize};
use waxwing_protocol::frames::{Envelope, ReadMark};
use waxwing_protocol::group::SignedGroupChange;
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{AccountId, DeviceId, GroupId, MsgId, Timestamp};
use waxwing_seal::group::{GroupSealError, RatchetId, ratchet_of};
use waxwing_seal::message::{Claim, Content, GroupKey, Message, MessageError, Party};

use super::book::{self, Applied, GroupNews};
use super::ratchets;
use crate::profile::{Rows, Table, WriteTx};
use crate::{ClientError, receipts};

/// Messages whose key has not come yet: group, account, device, what names the ratchet, place in the conversation.
const WAITING: Table<WaitingRow> = Table::new("group_waiting");

/// Messages that wait for keys in one group at most. More are recorded as unreadable.
const WAITING_MAX: usize = 1000;

/// A message that waits for its key.
#[derive(Serialize, Deserialize)]
struct WaitingRow {
    msg_id: MsgId,
    epoch: u64,
    server_ts: Timestamp,
    body: Base64,
}

/// A message of a group, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Came {
    pub(crate) group: GroupId,
    pub(crate) from: AccountId,
    pub(crate) device: DeviceId,
    pub(crate) msg_id: MsgId,
    pub(crate) epoch: u64,
    pub(crate) conv_seq: u64,
    pub(crate) server_ts: Timestamp,
    body: Vec<u8>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Opening {
    Opened(Message),
    /// Its key has not come.
    Waits,
    /// It is not to be believed, or cannot be read.
    Refused(String),
}

/// A change that was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefusedChange {
    pub(crate) group: GroupId,
    pub(crate) reason: String,
}

/// What to say of messages of groups that a person has seen, in groups that have receipts.
pub(crate) fn read_marks(tx: &impl Rows, seen: &[(GroupId, u64)]) -> Result<Vec<ReadMark>, ClientError> {
    let mut last: BTreeMap<GroupId, u64> = BTreeMap::new();
    for (group, conv_seq) in seen {
        let up_to = last.entry(*group).or_default();
        *up_to = (*up_to).max(*conv_seq);
    }
    if last.is_empty() || !receipts::tells(tx)? {
        return Ok(Vec::new());
    }
    let mut marks = Vec::new();
    for (group, conv_seq) in last {
        if book::load(tx, group)?.is_some_and(|book| book.state.receipts && !book.left) {
            marks.push(ReadMark { conv_id: group.as_bytes().to_vec().into(), conv_seq });
        }
    }
    Ok(marks)
}

/// Takes a change that the server passed on.
pub(crate) fn take_change(
    tx: &WriteTx<'_>,
    group: GroupId,
    envelope: &Envelope,
) -> Result<Result<Option<GroupNews>, RefusedChange>, ClientError> {
    let refused = |reason: String| Ok(Err(RefusedChange { group, reason }));
    let signed = match SignedGroupChange::from_bytes(&envelope.body) {
        Ok(signed) => signed,
        Err(error) => return refused(error.to_string()),
    };
    match book::apply(tx, group, &signed)? {
        Applied::News(news) => Ok(Ok(Some(news))),
        Applied::Known => Ok(Ok(None)),
        Applied::Refused(error) => refused(error.to_string()),
    }
}

impl Came {
    /// A message of `group` as the server passed it on.
    pub(crate) fn new(group: GroupId, from: AccountId, msg_id: MsgId, envelope: &Envelope) -> Option<Self> {
        Some(Self {
            group,
            from,
            device: DeviceId::new(envelope.from_device).ok()?,
            msg_id,
            epoch: envelope.epoch,
            conv_seq: envelope.conv_seq,
            server_ts: Timestamp::from_millis(envelope.server_ts),
            body: envelope.body.to_vec(),
        })
    }

    /// Opens it, if its key has come; keeps it, if not.
    pub(crate) fn open(&self, tx: &WriteTx<'_>) -> Result<Opening, ClientError> {
        let refused = |reason: String| Ok(Opening::Refused(reason));
        let Some(book) = book::load(tx, self.group)? else {
            return refused("it is of a group that this device knows nothing of".to_owned());
        };
        if self.epoch > book.state.epoch {
            // Whoever was removed by what this device was not told of may be the one who wrote it.
            return refused("it is of a state of the group that this device has not been told of".to_owned());
        }
        if !book.had(self.from, self.epoch) {
            return refused("it is from somebody who was not in the group then".to_owned());
        }
        let Some(id) = ratchet_of(&self.body) else { return refused(GroupSealError::Malformed.to_string()) };
        let Some(mut used) = ratchets::load_in(tx, self.group, self.from, self.device, &id)? else {
            return self.wait(tx, &id);
        };
        let plaintext = match used.ratchet.decrypt(&self.body) {
            Ok(plaintext) => plaintext,
            Err(error) => return refused(error.to_string()),
        };
        let owner = used.owner;
        // That it was opened is kept, whatever the plaintext turns out to be.
        ratchets::store_in(tx, used)?;
        let (message, setting) = match Message::open_in_group(&plaintext, self.msg_id, &owner, self.group) {
            Ok(opened) => opened,
            Err(error) => return refused(error.to_string()),
        };
        let same = book.hash_at(self.epoch).is_none_or(|hash| hash == setting.state);
        if setting.epoch != self.epoch || !same {
            return refused(MessageError::Mismatch(Claim::GroupState).to_string());
        }
        match &message.content {
            Content::Text(_) | Content::File(_) | Content::GroupProfile(_) | Content::Unsupported => {
                Ok(Opening::Opened(message))
            }
            _ => refused("it says something that is said between two alone".to_owned()),
        }
    }

    fn wait(&self, tx: &WriteTx<'_>, id: &RatchetId) -> Result<Opening, ClientError> {
        if waiting(tx, self.group.as_bytes())?.len() >= WAITING_MAX {
            return Ok(Opening::Refused("its key has not come, nor those of many before it".to_owned()));
        }
        let key = [&prefix(self.group, self.from, self.device, id)[..], &self.conv_seq.to_be_bytes()].concat();
        let (msg_id, epoch, server_ts) = (self.msg_id, self.epoch, self.server_ts);
        tx.put(&WAITING, &key, &WaitingRow { msg_id, epoch, server_ts, body: Base64(self.body.clone()) })?;
        Ok(Opening::Waits)
    }
}

fn prefix(group: GroupId, account: AccountId, device: DeviceId, id: &RatchetId) -> Vec<u8> {
    [&group.as_bytes()[..], account.as_bytes(), &device.get().to_be_bytes(), id].concat()
}

fn waiting(tx: &impl Rows, prefix: &[u8]) -> Result<Vec<(Vec<u8>, WaitingRow)>, ClientError> {
    let end = [prefix, &[0xff; 64]].concat();
    tx.range(&WAITING, (Bound::Included(prefix), Bound::Included(&end)))
}

/// Takes the key of a ratchet that the device `from` gave over a session; returns the messages that have waited for it,
/// which are to be opened now.
pub(crate) fn take_key(
    tx: &WriteTx<'_>,
    from: &Party,
    key: &GroupKey,
    now: Timestamp,
) -> Result<Vec<Came>, ClientError> {
    let GroupKey { group, session_key, profile } = key;
    if !profile.is_empty() {
        book::take_profile(tx, *group, profile)?;
    }
    let Some(id) = ratchets::take_in(tx, *group, from, session_key, now)? else { return Ok(Vec::new()) };
    let (account, device) = (from.account, from.device.id);
    let mut came = Vec::new();
    for (row_key, row) in waiting(tx, &prefix(*group, account, device, &id))? {
        tx.remove(&WAITING, &row_key)?;
        let conv_seq = row_key.last_chunk().copied().map_or(0, u64::from_be_bytes);
        let WaitingRow { msg_id, epoch, server_ts, body } = row;
        came.push(Came { group: *group, from: account, device, msg_id, epoch, conv_seq, server_ts, body: body.0 });
    }
    Ok(came)
}
