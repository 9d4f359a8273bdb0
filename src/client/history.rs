//! What was received and sent, for whoever shows or searches it.

use waxwing_protocol::{AccountId, GroupId, Handle, MsgId, Timestamp};
use waxwing_seal::message::Content;

use crate::inbox::{RECEIVED, Said};
use crate::outbox::SENT;
use crate::profile::Rows as _;
use crate::receipts::{self, Tick};
use crate::{Client, ClientError, contacts};

/// A message that this device has received.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// Who wrote it.
    pub from: AccountId,
    /// Its id, chosen by its sender: unique together with `from`.
    pub msg_id: MsgId,
    /// The group it was sent to, if it was.
    pub group: Option<GroupId>,
    /// When the server took it.
    pub server_ts: Timestamp,
    /// What it says, or why it cannot be read.
    pub content: Result<Content, String>,
    /// A person has seen it, on this device or another of the account; not known of messages in groups.
    pub read: bool,
}

/// A message that this device has sent.
#[derive(Clone, Debug)]
pub struct SentMessage {
    /// Whom to.
    pub to: AccountId,
    /// What they were called then.
    pub handle: Handle,
    /// Its id.
    pub msg_id: MsgId,
    /// When the server took it.
    pub server_ts: Timestamp,
    /// What it says.
    pub content: Content,
    /// What became of it.
    pub tick: Tick,
}

impl Client {
    /// What a person is called, if this profile knows them.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn handle_of(&self, account: AccountId) -> Result<Option<Handle>, ClientError> {
        Ok(self.profile.read(|tx| contacts::known(tx, account))?.map(|contact| contact.handle))
    }

    /// Every message this device has sent, in the order in which the server took them, with what became of it.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn sent_messages(&self) -> Result<Vec<SentMessage>, ClientError> {
        let mut messages = self.profile.read(|tx| {
            let sent = tx.list(&SENT)?.into_iter().map(|(key, row)| {
                let msg_id = MsgId::from_slice(&key)?;
                Ok(SentMessage {
                    to: row.to,
                    handle: row.handle,
                    msg_id,
                    server_ts: row.server_ts,
                    content: Content::from_bytes(&row.content.0)?,
                    tick: receipts::tick(tx, msg_id)?,
                })
            });
            sent.collect::<Result<Vec<_>, ClientError>>()
        })?;
        messages.sort_by_key(|message| (message.server_ts, message.msg_id));
        Ok(messages)
    }

    /// Every message this device has received, in the order in which the server took them.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn messages(&self) -> Result<Vec<ReceivedMessage>, ClientError> {
        let (rows, read) = self.profile.read(|tx| Ok((tx.list(&RECEIVED)?, receipts::read_up_to(tx)?)))?;
        let mut messages = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            let (from, msg_id) = key.split_at_checked(16).ok_or(ClientError::Damaged { what: "a received message" })?;
            let content = match row.said {
                Said::Content(bytes) => match Content::from_bytes(&bytes.0)? {
                    // Nobody's words.
                    Content::Read { .. }
                    | Content::Sent(_)
                    | Content::Retry { .. }
                    | Content::Resent(_)
                    | Content::GroupKey(_)
                    | Content::GroupProfile(_)
                    | Content::ChannelInvite(_) => continue,
                    content => Ok(content),
                },
                Said::Unreadable(reason) => Err(reason),
                Said::Nothing => continue,
            };
            let from = AccountId::from_slice(from)?;
            // How far a group was read is the group's, not its members'.
            let read = row.group.is_none() && read.get(&from).is_some_and(|up_to| *up_to >= row.client_hlc);
            messages.push(ReceivedMessage {
                from,
                msg_id: MsgId::from_slice(msg_id)?,
                group: row.group,
                server_ts: row.server_ts,
                content,
                read,
            });
        }
        messages.sort_by_key(|message| (message.server_ts, message.msg_id));
        Ok(messages)
    }
}
