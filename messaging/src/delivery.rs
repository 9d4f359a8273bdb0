//! Delivery: from a Send frame to rows in mailboxes.
//!
//! Here a frame from anyone becomes a request that the store can trust: ids parsed, sizes bounded, devices in order. A
//! [`SendResult`](waxwing_protocol::frames::SendResult) says that the message is durable, never that somebody has it,
//! and nothing about who is online: that would betray presence.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use prost::Message as _;
use waxwing_protocol::frames::{
    BODY_BYTES_MAX, COALESCE_KEY_BYTES_MAX, Class, Direct, Envelope, Group, Lane, Send, Urgency, send,
};
use waxwing_protocol::identity::DEVICES_MAX;
use waxwing_protocol::{AccountId, DeviceId, GroupId, MsgId, Timestamp};

use crate::config::Config;
use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::metrics::handles;
use crate::store::{
    Append, AppendError, Appended, Body, DeviceAddress, GroupSend, GroupStore, MailboxStore, Quota, ReceiptRows,
};

/// How long a message is kept that is for connected devices only. It goes through the mailbox like any other, so that
/// order and acks hold; this is the time a connected device has to take it.
const ONLINE_ONLY_KEPT: Duration = Duration::from_secs(30);

/// Delivers messages.
pub(crate) struct Delivery {
    store: Arc<dyn MailboxStore>,
    groups: Arc<dyn GroupStore>,
    fabric: Arc<Fabric>,
    retention_s: u32,
    quota: Quota,
    by_device: Limit<DeviceAddress>,
    by_account: Limit<AccountId>,
    by_pair: Limit<(AccountId, AccountId)>,
    by_group: Limit<GroupId>,
}

/// Why a Send is refused before the store sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SendError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error("a body is over 96 KiB; send it as a blob")]
    TooLarge,
    #[error("too many messages")]
    TooMany { retry_after: Duration },
}

impl Delivery {
    pub(crate) fn new(
        store: Arc<dyn MailboxStore>,
        groups: Arc<dyn GroupStore>,
        fabric: Arc<Fabric>,
        config: &Config,
    ) -> Self {
        let quota = Quota { msgs: config.mailbox_msgs_max, bytes: config.mailbox_bytes_max };
        let minute = Duration::from_secs(60);
        Self {
            store,
            groups,
            fabric,
            retention_s: config.retention_s,
            quota,
            by_device: Limit::new("sends-of-device", config.sends_per_minute, minute),
            by_account: Limit::new("sends-of-account", config.account_sends_per_minute, minute),
            by_pair: Limit::new("sends-of-pair", config.pair_sends_per_minute, minute),
            by_group: Limit::new("sends-of-group", config.group_sends_per_minute, minute),
        }
    }

    /// Puts `send` in line for its mailboxes, in the order of these calls. The future ends after the durable commit.
    pub(crate) fn send(
        &self,
        from: DeviceAddress,
        send: &Send,
        now: Timestamp,
    ) -> Result<BoxFuture<'static, Result<Appended, AppendError>>, SendError> {
        let spend = || self.by_device.spend(from, now).and_then(|()| self.by_account.spend(from.account, now));
        let too_many = |retry_after| SendError::TooMany { retry_after };
        if let Some(send::Target::Group(target)) = &send.target {
            let to = self.checked_group(from, send, target, now)?;
            spend().and_then(|()| self.by_group.spend(to.group, now)).map_err(too_many)?;
            handles().sent(send.class());
            return Ok(self.groups.send_group(to));
        }
        let append = self.checked(from, send, now)?;
        spend().and_then(|()| self.by_pair.spend((from.account, append.to), now)).map_err(too_many)?;
        handles().sent(send.class());
        Ok(self.store.append(append))
    }

    /// A message to a group, as the store can trust it.
    fn checked_group(
        &self,
        from: DeviceAddress,
        send: &Send,
        target: &Group,
        now: Timestamp,
    ) -> Result<GroupSend, SendError> {
        let malformed = SendError::Malformed;
        let msg_id = checked_id(send)?;
        let group = GroupId::from_slice(&target.group).map_err(|_| malformed("group has 16 bytes"))?;
        let devices_hash = target.devices_hash[..].try_into().map_err(|_| malformed("devices_hash has 32 bytes"))?;
        if Class::try_from(send.class) != Ok(Class::Message) {
            return Err(malformed("a group takes the class MESSAGE"));
        }
        if !(send.conv_id.is_empty() || send.conv_id == target.group) {
            return Err(malformed("conv_id of a group's message is the group, or left out"));
        }
        if !send.coalesce_key.is_empty() || send.ttl_s == Some(0) {
            return Err(malformed(
                "a group's message is kept and replaces none: leave out coalesce_key and a ttl_s of 0",
            ));
        }
        if target.body.is_empty() {
            return Err(malformed("an empty ciphertext"));
        }
        if target.body.len() > BODY_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        let kept = Duration::from_secs(send.ttl_s.unwrap_or(u32::MAX).min(self.retention_s).into());
        let envelope = Envelope {
            msg_id: Bytes::copy_from_slice(msg_id.as_bytes()),
            from_account: Bytes::copy_from_slice(from.account.as_bytes()),
            from_device: from.device.get(),
            conv_id: Bytes::copy_from_slice(group.as_bytes()),
            server_ts: now.as_millis(),
            client_hlc: send.client_hlc,
            class: send.class,
            expires_at: now.plus(kept).as_millis(),
            // A copy: a slice would keep the whole WebSocket message in memory for as long as anybody is slow.
            body: Bytes::copy_from_slice(&target.body),
            epoch: target.epoch,
            urgency: send.urgency,
            ..Envelope::default()
        };
        let said = Group { epoch: 0, devices_hash: Bytes::new(), ..target.clone() };
        let said = Send { target: Some(send::Target::Group(said)), ..send.clone() };
        let content_hash = *blake3::hash(&said.encode_to_vec()).as_bytes();
        let (epoch, quota) = (target.epoch, self.quota);
        Ok(GroupSend { from, msg_id, content_hash, group, epoch, devices_hash, envelope, quota })
    }

    fn checked(&self, from: DeviceAddress, send: &Send, now: Timestamp) -> Result<Append, SendError> {
        let malformed = SendError::Malformed;
        let msg_id = checked_id(send)?;
        let class = Class::try_from(send.class).map_err(|_| malformed("unknown class"))?;
        if !matches!(send.conv_id.len(), 0 | 16) {
            return Err(malformed("conv_id has 16 bytes, or none"));
        }
        if matches!(class, Class::Delivery | Class::GroupChange) {
            return Err(malformed("DELIVERY and GROUP_CHANGE are made by the server"));
        }
        if send.coalesce_key.len() > COALESCE_KEY_BYTES_MAX {
            return Err(malformed("coalesce_key has at most 16 bytes"));
        }
        if class == Class::Message && !send.coalesce_key.is_empty() {
            return Err(malformed("a MESSAGE replaces none: leave out coalesce_key"));
        }
        let Some(send::Target::Direct(direct)) = &send.target else {
            return Err(malformed("a message needs a target"));
        };
        let to = AccountId::from_slice(&direct.account).map_err(|_| malformed("account has 16 bytes"))?;
        if class == Class::Sync && to != from.account {
            return Err(malformed("SYNC is for the account's own devices"));
        }
        let bodies = bodies(direct)?;
        let (kept, absent) = match send.ttl_s {
            Some(0) => {
                let devices = bodies.iter().map(|body| body.device);
                let absent = devices.filter(|device| !self.fabric.is_connected(to, *device)).collect();
                (ONLINE_ONLY_KEPT, absent)
            }
            ttl_s => (Duration::from_secs(ttl_s.unwrap_or(u32::MAX).min(self.retention_s).into()), Vec::new()),
        };
        let envelope = Envelope {
            seq: 0,
            prev_seq: 0,
            msg_id: Bytes::copy_from_slice(msg_id.as_bytes()),
            from_account: Bytes::copy_from_slice(from.account.as_bytes()),
            from_device: from.device.get(),
            conv_id: Bytes::copy_from_slice(&send.conv_id),
            server_ts: now.as_millis(),
            client_hlc: send.client_hlc,
            class: send.class,
            expires_at: now.plus(kept).as_millis(),
            body: Bytes::new(),
            urgency: send.urgency,
            ..Envelope::default()
        };
        let content_hash = *blake3::hash(&send.encode_to_vec()).as_bytes();
        let lane = lane_of(class);
        let coalesce_key = Bytes::copy_from_slice(&send.coalesce_key);
        // Who reads somebody's messages has not thereby agreed to be heard of by them; who writes or calls has.
        let introduces = matches!(class, Class::Message | Class::Call);
        let quota = self.quota;
        Ok(Append { from, msg_id, content_hash, to, bodies, absent, lane, coalesce_key, introduces, envelope, quota })
    }

    /// The limits of sends.
    pub(crate) fn limits(&self) -> [LimitView; 4] {
        [self.by_device.view(), self.by_account.view(), self.by_pair.view(), self.by_group.view()]
    }

    /// What the rows are like that an ack at `now` puts into senders' mailboxes.
    pub(crate) fn receipts(&self, now: Timestamp) -> ReceiptRows {
        let expires_at = now.plus(Duration::from_secs(self.retention_s.into()));
        ReceiptRows { now, expires_at, quota: self.quota }
    }
}

/// A message's id, when what every message has is well-formed.
fn checked_id(send: &Send) -> Result<MsgId, SendError> {
    Urgency::try_from(send.urgency).map_err(|_| SendError::Malformed("unknown urgency"))?;
    MsgId::from_slice(&send.msg_id).map_err(|_| SendError::Malformed("msg_id has 16 bytes"))
}

/// The lane of a class: what cannot wait behind a long queue has its own.
fn lane_of(class: Class) -> Lane {
    match class {
        Class::Message | Class::Receipt | Class::Sync | Class::Delivery | Class::GroupChange => Lane::Normal,
        Class::Call | Class::Control => Lane::Urgent,
    }
}

/// The ciphertexts of a target, by rising device.
fn bodies(direct: &Direct) -> Result<Vec<Body>, SendError> {
    if direct.devices.len() > DEVICES_MAX {
        return Err(SendError::Malformed("more devices than an account can have"));
    }
    let bodies = direct.devices.iter().map(|body| {
        let device = DeviceId::new(body.device).map_err(|_| SendError::Malformed("device 0"))?;
        if body.ciphertext.is_empty() {
            return Err(SendError::Malformed("an empty ciphertext"));
        }
        if body.ciphertext.len() > BODY_BYTES_MAX {
            return Err(SendError::TooLarge);
        }
        // A copy: the frame's bytes are a slice of a whole WebSocket message, which a short body would keep in memory
        // for as long as it waits for a slow recipient.
        Ok(Body { device, reg_id: body.reg_id, ciphertext: Bytes::copy_from_slice(&body.ciphertext) })
    });
    let mut bodies = bodies.collect::<Result<Vec<_>, _>>()?;
    bodies.sort_by_key(|body| body.device);
    if bodies.windows(2).any(|pair| pair[0].device == pair[1].device) {
        return Err(SendError::Malformed("a device is named twice"));
    }
    Ok(bodies)
}
