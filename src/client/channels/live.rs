//! Channels while watching: entries shown as they come, and what was missed read from the log.
//!
//! The connection hands entries over and goes on at once; another task checks and shows them. What does not follow the last
//! one shown, because the connection was gone or too slow, is read from the log instead, so nothing here may be lost.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;
use waxwing_protocol::ChannelId;
use waxwing_protocol::channel::Position;
use waxwing_protocol::frames::{ChannelBatch, ChannelGap, ChannelSub, frame::Body};

use super::book::{self, ChannelPost};
use super::log;
use crate::{Client, ClientError};

/// Bytes of entries that wait to be checked at most; what comes beyond is read from the log.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// What came of channels on the connection of a watch.
#[derive(Debug, Default)]
pub(crate) struct Live {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Entries that came, with the seq of the first, by channel.
    batches: HashMap<ChannelId, Vec<(u64, Vec<Bytes>)>>,
    /// Channels of which more is in the log.
    behind: HashSet<ChannelId>,
    bytes: usize,
    /// The mailbox of this connection was drained: keys that waited there are known.
    open: bool,
    /// How often something came, and up to which of these it was shown.
    called: u64,
    done: u64,
}

impl Live {
    /// What to ask for on a new connection: all channels, each from the entry that was shown last.
    pub(crate) fn subscriptions(&self, client: &Client) -> Result<Vec<Body>, ClientError> {
        let cursors = client.profile.read(|tx| log::cursors(tx))?;
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).open = false;
        let subs = cursors.into_iter().map(|(channel, at)| {
            // Told live from here on; what is there already is read without waiting for the server to say so.
            self.behind(channel);
            let channel = channel.as_bytes().to_vec().into();
            Body::ChannelSub(ChannelSub { channel, after_seq: at.seq, live: true })
        });
        Ok(subs.collect())
    }

    /// Shows what comes from now on: the mailbox was drained.
    pub(crate) fn open(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).open = true;
        self.news.notify_one();
    }

    /// Takes entries that came.
    pub(crate) fn batch(&self, batch: ChannelBatch) {
        let Ok(channel) = ChannelId::from_slice(&batch.channel) else { return };
        self.change(|waiting| {
            let bytes: usize = batch.entries.iter().map(Bytes::len).sum();
            if waiting.bytes + bytes > WAITING_BYTES_MAX {
                waiting.behind.insert(channel);
                return;
            }
            waiting.bytes += bytes;
            waiting.batches.entry(channel).or_default().push((batch.first_seq, batch.entries));
        });
    }

    /// Takes note of entries that do not come.
    pub(crate) fn gap(&self, gap: &ChannelGap) {
        if let Ok(channel) = ChannelId::from_slice(&gap.channel) {
            self.behind(channel);
        }
    }

    /// Looks into the log of a channel, such as one whose key has come.
    pub(crate) fn behind(&self, channel: ChannelId) {
        self.change(|waiting| {
            waiting.behind.insert(channel);
        });
    }

    /// Whether everything that came was shown.
    pub(crate) fn is_done(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.called == waiting.done
    }

    /// Shows what comes, for as long as it is polled. `done` hears when all of it was shown; `show` is given posts, and channels that are not to be believed.
    pub(crate) async fn show(
        &self,
        client: &Client,
        done: impl Fn(),
        show: impl Fn(Result<ChannelPost, ClientError>),
    ) -> Result<(), ClientError> {
        loop {
            self.news.notified().await;
            let (batches, behind, called) = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if !waiting.open {
                    continue;
                }
                waiting.bytes = 0;
                (std::mem::take(&mut waiting.batches), std::mem::take(&mut waiting.behind), waiting.called)
            };
            let mut channels: Vec<_> = behind.into_iter().collect();
            for (channel, batches) in &batches {
                if !channels.contains(channel) && !self.show_live(client, *channel, batches, &show).await? {
                    channels.push(*channel);
                }
            }
            for channel in channels {
                let read = client.read_channel(channel, false, |post| show(Ok(post.clone()))).await;
                match read {
                    Ok(_) => {}
                    Err(error @ ClientError::Profile { .. }) => return Err(error),
                    // The connection is back some time, and with it this.
                    Err(error) if error.is_transient() => tracing::warn!("{channel} is read later: {error}"),
                    // Given up meanwhile.
                    Err(ClientError::UnknownChannel { .. }) => {}
                    Err(error) => show(Err(error)),
                }
            }
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).done = called;
            done();
        }
    }

    /// Checks and shows entries that came, if they follow what was shown last; tells whether they do.
    async fn show_live(
        &self,
        client: &Client,
        channel: ChannelId,
        batches: &[(u64, Vec<Bytes>)],
        show: &impl Fn(Result<ChannelPost, ClientError>),
    ) -> Result<bool, ClientError> {
        for (first_seq, entries) in batches {
            let Some(book) = client.profile.read(|tx| book::load(tx, channel))? else { return Ok(true) };
            let at: Position = book.seen;
            if *first_seq > at.seq + 1 {
                return Ok(false);
            }
            // What was shown before: read from the log while it was on its way, or this device's own.
            let known = usize::try_from(at.seq + 1 - first_seq).unwrap_or(usize::MAX);
            let entries: Vec<_> = entries.iter().skip(known).map(|entry| entry.to_vec()).collect();
            let run = match client.check(channel, at, &entries).await {
                Ok(run) => run,
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                // Whether it is the connection or the log that lies shows when the log is read.
                Err(error) => {
                    tracing::warn!("{channel}: {error}");
                    return Ok(false);
                }
            };
            let (open, last) = log::shown(&run);
            open.iter().for_each(|checked| show(Ok(checked.post.clone())));
            if let Some(last) = last {
                client.profile.write(|tx| book::note(tx, channel, |book| book.reached(last, true)))?;
            }
            if open.len() < run.len() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn change(&self, change: impl FnOnce(&mut Waiting)) {
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut waiting);
            waiting.called += 1;
        }
        self.news.notify_one();
    }
}
