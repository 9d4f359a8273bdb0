//! What was received, for whoever shows or searches it.

use waxwing_protocol::{AccountId, MsgId, Timestamp};
use waxwing_seal::message::Content;

use crate::inbox::{RECEIVED, Said};
use crate::profile::Rows as _;
use crate::{Client, ClientError};

/// A message that this device has received.
#[derive(Clone, Debug)]
pub struct ReceivedMessage {
    /// Who wrote it.
    pub from: AccountId,
    /// Its id, chosen by its sender: unique together with `from`.
    pub msg_id: MsgId,
    /// When the server took it.
    pub server_ts: Timestamp,
    /// What it says, or why it cannot be read.
    pub content: Result<Content, String>,
}

impl Client {
    /// Every message this device has received, in the order in which the server took them.
    ///
    /// # Errors
    /// [`ClientError::Profile`] when the profile cannot be read.
    pub fn messages(&self) -> Result<Vec<ReceivedMessage>, ClientError> {
        let rows = self.profile.read(|tx| tx.list(&RECEIVED))?;
        let mut messages = Vec::with_capacity(rows.len());
        for (key, row) in rows {
            let (from, msg_id) = key.split_at_checked(16).ok_or(ClientError::Damaged { what: "a received message" })?;
            let content = match row.said {
                Said::Content(bytes) => Ok(Content::from_bytes(&bytes.0)?),
                Said::Unreadable(reason) => Err(reason),
            };
            messages.push(ReceivedMessage {
                from: AccountId::from_slice(from)?,
                msg_id: MsgId::from_slice(msg_id)?,
                server_ts: row.server_ts,
                content,
            });
        }
        messages.sort_by_key(|message| (message.server_ts, message.msg_id));
        Ok(messages)
    }
}
