//! Relaying channels: from the commit of an entry to the connections that asked for it.
//!
//! A channel can have more followers on a node than a commit may wait for. So the writer only puts an entry in line here; a
//! task of its own puts it into the followers' outboxes, some hundreds at a time. Everything is bounded, and what finds no
//! room is remembered as a gap alone: the log has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use waxwing_protocol::ChannelId;

use super::Outbox;
use crate::store::{CommittedEntry, DeviceAddress};

/// Entries of one channel that wait for the relay at most.
const ENTRIES_MAX: usize = 64;

/// Bytes of entries that wait for the relay at most, in all.
const BYTES_MAX: usize = 16 << 20;

/// Followers that are given something before other tasks get their turn.
const FOLLOWERS_AT_ONCE: usize = 256;

/// What is new in a channel: entries without gaps between them, then perhaps a gap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChannelNews {
    pub(crate) epoch: u64,
    pub(crate) first_seq: u64,
    pub(crate) entries: Vec<Bytes>,
    /// The first and last of those that found no room.
    pub(crate) missed: Option<(u64, u64)>,
}

impl ChannelNews {
    /// Adds an entry; without `room`, or behind a gap, only that it is there.
    pub(super) fn add(&mut self, epoch: u64, seq: u64, body: &Bytes, room: bool) {
        self.epoch = epoch;
        if !room || self.missed.is_some() {
            self.miss(epoch, seq, seq);
            return;
        }
        if self.entries.is_empty() {
            self.first_seq = seq;
        }
        self.entries.push(body.clone());
    }

    pub(super) fn miss(&mut self, epoch: u64, from: u64, to: u64) {
        self.epoch = epoch;
        let (first, last) = self.missed.unwrap_or((from, to));
        self.missed = Some((first.min(from), last.max(to)));
    }

    /// Whether an entry at `seq` would leave a hole behind what is there.
    pub(super) fn is_behind(&self, seq: u64) -> bool {
        !self.entries.is_empty() && self.first_seq + self.entries.len() as u64 != seq
    }
}

/// Who follows which channel on this node, and what they are still to be told.
#[derive(Debug, Default)]
pub(crate) struct Relay {
    followers: Mutex<HashMap<ChannelId, HashMap<DeviceAddress, Arc<Outbox>>>>,
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    channels: HashMap<ChannelId, ChannelNews>,
    bytes: usize,
}

/// A connection's following of a channel: over when this is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    relay: Arc<Relay>,
    channel: ChannelId,
    device: DeviceAddress,
    outbox: Arc<Outbox>,
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut followers = self.relay.followers();
        let Some(of_channel) = followers.get_mut(&self.channel) else { return };
        // A newer connection of the same device may have its place.
        if of_channel.get(&self.device).is_some_and(|outbox| Arc::ptr_eq(outbox, &self.outbox)) {
            of_channel.remove(&self.device);
            if of_channel.is_empty() {
                followers.remove(&self.channel);
            }
        }
    }
}

impl Relay {
    /// Tells `outbox` of a channel's entries from now on.
    pub(crate) fn follow(
        self: &Arc<Self>,
        channel: ChannelId,
        device: DeviceAddress,
        outbox: Arc<Outbox>,
    ) -> Following {
        self.followers().entry(channel).or_default().insert(device, outbox.clone());
        Following { relay: self.clone(), channel, device, outbox }
    }

    /// Puts an entry in line, if anybody follows the channel here.
    pub(super) fn appended(&self, entry: &CommittedEntry) {
        if !self.followers().contains_key(&entry.channel) {
            return;
        }
        {
            let mut waiting = self.waiting();
            let bytes = waiting.bytes + entry.body.len();
            let news = waiting.channels.entry(entry.channel).or_default();
            let room = bytes <= BYTES_MAX && news.entries.len() < ENTRIES_MAX;
            let adds = room && news.missed.is_none();
            news.add(entry.epoch, entry.seq, &entry.body, room);
            if adds {
                waiting.bytes = bytes;
            }
        }
        self.news.notify_one();
    }

    /// Waits until there is something to relay, and takes it. Cancelling loses nothing.
    pub(crate) async fn news(&self) -> HashMap<ChannelId, ChannelNews> {
        loop {
            let news = self.news.notified();
            let channels = self.take();
            if !channels.is_empty() {
                return channels;
            }
            news.await;
        }
    }

    /// Gives what was taken to whoever follows.
    pub(crate) async fn give(&self, channels: HashMap<ChannelId, ChannelNews>) {
        for (channel, news) in channels {
            let outboxes: Vec<_> =
                self.followers().get(&channel).into_iter().flat_map(|it| it.values().cloned()).collect();
            for some in outboxes.chunks(FOLLOWERS_AT_ONCE) {
                for outbox in some {
                    outbox.channel(channel, &news);
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn take(&self) -> HashMap<ChannelId, ChannelNews> {
        let mut waiting = self.waiting();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.channels)
    }

    fn followers(&self) -> MutexGuard<'_, HashMap<ChannelId, HashMap<DeviceAddress, Arc<Outbox>>>> {
        // Every change is one insert or removal: a panic elsewhere leaves nothing half done.
        self.followers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_protocol::{AccountId, DeviceId};

    fn device(n: u8) -> DeviceAddress {
        DeviceAddress { account: AccountId::from_bytes([n; 16]), device: DeviceId::FIRST }
    }

    fn channel() -> ChannelId {
        ChannelId::from_bytes([1; 16])
    }

    fn entry(seq: u64, bytes: usize) -> CommittedEntry {
        CommittedEntry { channel: channel(), epoch: 1, seq, body: vec![0; bytes].into() }
    }

    #[tokio::test]
    async fn whoever_follows_is_told_in_order_and_whoever_has_left_is_not() {
        let (relay, outboxes) = (Arc::new(Relay::default()), [(); 3].map(|()| Arc::new(Outbox::default())));
        let mut following: Vec<_> =
            outboxes.iter().zip(1..).map(|(outbox, n)| relay.follow(channel(), device(n), outbox.clone())).collect();
        drop(following.pop());
        (1..=3).for_each(|seq| relay.appended(&entry(seq, 10)));
        relay.give(relay.news().await).await;
        for outbox in &outboxes[..2] {
            let taken = outbox.take();
            let (of, news) = &taken.channels[0];
            assert_eq!((*of, news.first_seq, news.entries.len(), news.missed), (channel(), 1, 3, None));
        }
        assert!(outboxes[2].take().channels.is_empty());
        drop(following);
        assert!(relay.followers().is_empty(), "nothing is left of followers");
    }

    #[tokio::test]
    async fn an_older_connection_that_ends_late_takes_no_place_from_the_newer() {
        let (relay, old, new) = (Arc::new(Relay::default()), Arc::new(Outbox::default()), Arc::new(Outbox::default()));
        let of_old = relay.follow(channel(), device(1), old.clone());
        let _of_new = relay.follow(channel(), device(1), new.clone());
        drop(of_old);
        relay.appended(&entry(1, 10));
        relay.give(relay.news().await).await;
        assert_eq!((old.take().channels.len(), new.take().channels.len()), (0, 1));
    }

    /// Somebody who reads too slowly, or a burst that is too long: what is forgotten is known by its number.
    #[tokio::test]
    async fn what_finds_no_room_is_told_as_a_gap() {
        let (relay, outbox) = (Arc::new(Relay::default()), Arc::new(Outbox::default()));
        let _following = relay.follow(channel(), device(1), outbox.clone());
        let all = ENTRIES_MAX as u64 + 5;
        (1..=all).for_each(|seq| relay.appended(&entry(seq, 10)));
        relay.give(relay.news().await).await;
        relay.appended(&entry(all + 1, 10));
        relay.give(relay.news().await).await;
        let news = outbox.take().channels.remove(0).1;
        assert_eq!((news.entries.len(), news.missed), (ENTRIES_MAX, Some((all - 4, all + 1))));
        relay.appended(&entry(all + 2, 10));
        relay.give(relay.news().await).await;
        assert_eq!(outbox.take().channels[0].1.first_seq, all + 2, "and then it goes on");

        for seq in 1..=4 {
            relay.appended(&entry(seq, 96 * 1024));
            relay.give(relay.news().await).await;
        }
        let news = outbox.take().channels.remove(0).1;
        assert_eq!((news.entries.len(), news.missed), (2, Some((3, 4))), "an outbox has a bound in bytes");
    }
}
