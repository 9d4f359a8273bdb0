//! A connection's channels: what its device writes in them, and what it is told of those it follows.

use std::collections::HashMap;

use bytes::Bytes;
use futures_util::future::FutureExt as _;
use waxwing_protocol::channel::CHANNEL_SUBSCRIPTIONS_MAX;
use waxwing_protocol::frames::{Channel, ChannelBatch, ChannelGap, ChannelSub, ErrorCode, Frame, Send, frame::Body};
use waxwing_protocol::{ChannelId, MsgId};

use super::{Connection, DELIVER_BYTES, replies};
use crate::fabric::{ChannelNews, Following};
use crate::wire::WireError;

/// The channels that a connection follows. Nearly all follow none, and cost no room.
pub(super) type Followed = Option<Box<HashMap<ChannelId, Following>>>;

impl Connection {
    /// Puts an entry in line; its answer comes with its commit.
    pub(super) fn append(&mut self, id: u32, send: &Send, target: &Channel) {
        let (node, from, now) = (self.node.clone(), self.device, self.node.clock.now());
        let (send, target) = (send.clone(), target.clone());
        let appending = async move {
            let appended = node.channels.append(from, &send, &target, now).await;
            Some(match (appended, MsgId::from_slice(&send.msg_id)) {
                (Ok(appended), Ok(msg_id)) => replies::send_result(id, msg_id, Ok(appended)),
                (Err(refused), _) => replies::channel_refusal(id, &refused),
                (Ok(_), Err(error)) => replies::refusal(id, ErrorCode::BadRequest, error.to_string()),
            })
        };
        self.sending.push(appending.boxed());
    }

    /// Follows a channel from now on, or no longer.
    pub(super) async fn follow(&mut self, id: u32, sub: &ChannelSub) -> Result<(), WireError> {
        let Ok(channel) = ChannelId::from_slice(&sub.channel) else {
            return self.wire.feed(&replies::refusal(id, ErrorCode::BadRequest, "channel has 16 bytes")).await;
        };
        let followed = self.followed.get_or_insert_default();
        if sub.live {
            if followed.len() >= CHANNEL_SUBSCRIPTIONS_MAX && !followed.contains_key(&channel) {
                let many = "a connection follows 256 channels at most";
                return self.wire.feed(&replies::refusal(id, ErrorCode::TooLarge, many)).await;
            }
            // Before it is looked how far the channel is: what comes between is told twice rather than not at all.
            let following = self.node.fabric.relay.follow(channel, self.device, self.outbox.clone());
            followed.insert(channel, following);
        } else {
            followed.remove(&channel);
            if followed.is_empty() {
                self.followed = None;
            }
        }
        let (node, by, now) = (self.node.clone(), self.device.account, self.node.clock.now());
        let (outbox, after, live) = (self.outbox.clone(), sub.after_seq, sub.live);
        let looking = async move {
            match node.channels.state(by, channel, after, now).await {
                Ok((state, behind)) => {
                    if let Some(ChannelGap { epoch, from, to, .. }) = behind.filter(|_| live) {
                        let missed = ChannelNews { epoch, missed: Some((from, to)), ..ChannelNews::default() };
                        outbox.channel(channel, &missed);
                    }
                    (id > 0).then(|| Frame::with_id(id, Body::ChannelState(state)))
                }
                Err(refused) => Some(replies::channel_refusal(id, &refused)),
            }
        };
        self.sending.push(looking.boxed());
        Ok(())
    }

    /// Writes what is new in channels.
    pub(super) async fn tell_channels(&mut self, channels: Vec<(ChannelId, ChannelNews)>) -> Result<(), WireError> {
        for (channel, news) in channels {
            // It may have been given up meanwhile.
            if !self.followed.as_ref().is_some_and(|followed| followed.contains_key(&channel)) {
                continue;
            }
            let (id, epoch) = (Bytes::copy_from_slice(channel.as_bytes()), news.epoch);
            let (mut first_seq, mut entries, mut bytes) = (news.first_seq, Vec::new(), 0);
            for entry in news.entries {
                if !entries.is_empty() && bytes + entry.len() > DELIVER_BYTES {
                    let told = entries.len() as u64;
                    self.tell_batch(&id, epoch, first_seq, std::mem::take(&mut entries)).await?;
                    (first_seq, bytes) = (first_seq + told, 0);
                }
                bytes += entry.len();
                entries.push(entry);
            }
            if !entries.is_empty() {
                self.tell_batch(&id, epoch, first_seq, entries).await?;
            }
            if let Some((from, to)) = news.missed {
                let gap = ChannelGap { channel: id, epoch, from, to };
                self.wire.feed(&Frame::push(Body::ChannelGap(gap))).await?;
            }
        }
        Ok(())
    }

    async fn tell_batch(
        &mut self,
        channel: &Bytes,
        epoch: u64,
        first_seq: u64,
        entries: Vec<Bytes>,
    ) -> Result<(), WireError> {
        let batch = ChannelBatch { channel: channel.clone(), epoch, first_seq, entries };
        self.wire.feed(&Frame::push(Body::ChannelBatch(batch))).await
    }
}
