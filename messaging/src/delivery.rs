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
    BODY_BYTES_MAX, COALESCE_KEY_BYTES_MAX, Class, Direct, Envelope, Lane, Send, Urgency, send,
};
use waxwing_protocol::identity::DEVICES_MAX;
use waxwing_protocol::{AccountId, DeviceId, MsgId, Timestamp};

use crate::config::Config;
use crate::fabric::Fabric;
use crate::limits::{Limit, LimitView};
use crate::metrics::handles;
use crate::store::{Append, AppendError, Appended, Body, DeviceAddress, MailboxStore, Quota, ReceiptRows};

/// How long a message is kept that is for connected devices only. It goes through the mailbox like any other, so that
/// order and acks hold; this is the time a connected device has to take it.
const ONLINE_ONLY_KEPT: Duration = Duration::from_secs(30);

/// Delivers messages.
pub(crate) struct Delivery {
    store: Arc<dyn MailboxStore>,
    fabric: Arc<Fabric>,
    retention_s: u32,
    quota: Quota,
    by_device: Limit<DeviceAddress>,
    by_account: Limit<AccountId>,
    by_pair: Limit<(AccountId, AccountId)>,
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
    pub(crate) fn new(store: Arc<dyn MailboxStore>, fabric: Arc<Fabric>, config: &Config) -> Self {
        let quota = Quota { msgs: config.mailbox_msgs_max, bytes: config.mailbox_bytes_max };
        let minute = Duration::from_secs(60);
        Self {
            store,
            fabric,
            retention_s: config.retention_s,
            quota,
            by_device: Limit::new("sends-of-device", config.sends_per_minute, minute),
            by_account: Limit::new("sends-of-account", config.account_sends_per_minute, minute),
            by_pair: Limit::new("sends-of-pair", config.pair_sends_per_minute, minute),
        }
    }

    /// Puts `send` in line for its mailboxes, in the order of these calls. The future ends after the durable commit.
    pub(crate) fn send(
        &self,
        from: DeviceAddress,
        send: &Send,
        now: Timestamp,
    ) -> Result<BoxFuture<'static, Result<Appended, AppendError>>, SendError> {
        let append = self.checked(from, send, now)?;
        let spent = self.by_device.spend(from, now).and_then(|()| self.by_account.spend(from.account, now));
        let spent = spent.and_then(|()| self.by_pair.spend((from.account, append.to), now));
        spent.map_err(|retry_after| SendError::TooMany { retry_after })?;
        handles().sent(send.class());
        Ok(self.store.append(append))
    }

    fn checked(&self, from: DeviceAddress, send: &Send, now: Timestamp) -> Result<Append, SendError> {
        let malformed = SendError::Malformed;
        let msg_id = MsgId::from_slice(&send.msg_id).map_err(|_| malformed("msg_id has 16 bytes"))?;
        let class = Class::try_from(send.class).map_err(|_| malformed("unknown class"))?;
        Urgency::try_from(send.urgency).map_err(|_| malformed("unknown urgency"))?;
        if !matches!(send.conv_id.len(), 0 | 16) {
            return Err(malformed("conv_id has 16 bytes, or none"));
        }
        if class == Class::Delivery {
            return Err(malformed("DELIVERY is made by the server"));
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
            delivery: None,
            request: false,
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
    pub(crate) fn limits(&self) -> [LimitView; 3] {
        [self.by_device.view(), self.by_account.view(), self.by_pair.view()]
    }

    /// What the rows are like that an ack at `now` puts into senders' mailboxes.
    pub(crate) fn receipts(&self, now: Timestamp) -> ReceiptRows {
        let expires_at = now.plus(Duration::from_secs(self.retention_s.into()));
        ReceiptRows { now, expires_at, quota: self.quota }
    }
}

/// The lane of a class: what cannot wait behind a long queue has its own.
fn lane_of(class: Class) -> Lane {
    match class {
        Class::Message | Class::Receipt | Class::Sync | Class::Delivery => Lane::Normal,
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
