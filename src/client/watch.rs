//! Watching: messages as they come, files saved as they come, for as long as one likes.
//!
//! Three things go on side by side, so that none holds up another: the connection receives, stores and acknowledges;
//! what is stored is shown and its files are saved; the outbox and the prekeys are tended after each connect. What joins
//! them is the profile alone: a watch killed at any moment goes on with what is stored there.
//!
//! Promise: a message is shown at least once after it was received, and in most cases exactly once (a crash between
//! showing and taking note of it shows it again). A file is saved once it can be, by this watch or a later one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep, timeout, timeout_at};
use waxwing_protocol::frames::{
    Ack, Deliver, DevicesChanged, Drain, Frame, Lane, WINDOW_BYTES_DEFAULT, WINDOW_MSGS_DEFAULT, Welcome, Window,
    close, frame::Body,
};
use waxwing_protocol::{AccountId, GroupId};
use waxwing_seal::message::{Content, SentCopy};

use crate::account::now;
use crate::channels::{Invited, Live};
use crate::contacts::{self, Asked};
use crate::groups::inbox::RefusedChange;
use crate::http::Backoff;
use crate::inbox::{self, Pending};
use crate::receipts::Ticked;
use crate::route::{Line, Outgoing, Reply, Watching};
use crate::socket::Socket;
use crate::watch_event::{MessageSummary, WatchEvent, WatchOptions, WatchReport};
use crate::{ChannelPost, Client, ClientError, archive, groups, presence, repair};

/// Pauses between connections and between tries to save a file: full jitter, up to five minutes.
const BACKOFF: Backoff = Backoff { tries: u32::MAX, first: Duration::from_secs(1), most: Duration::from_secs(300) };

/// A connection that held this long was a good one: the next pause starts small again.
const GOOD_CONNECTION: Duration = Duration::from_secs(60);

/// How long saying goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// Where events go. Called from the task that watches: it must not block.
type OnEvent<'a> = &'a (dyn Fn(WatchEvent) + Send + Sync);

impl Client {
    /// Receives messages, shows them and saves their files, and sends what the outbox holds, connecting again whenever
    /// the connection is gone. Without [`WatchOptions::once`] it ends only with an error. Dropping the future at any
    /// moment loses nothing.
    ///
    /// While it runs, messages of this client are sent through its connection.
    ///
    /// # Errors
    /// Whatever trying again does not help against: [`ClientError::Closed`] when the same device connected elsewhere,
    /// [`ClientError::Refused`] when the token is not valid any more, [`ClientError::File`] when a file cannot be
    /// written. With `once`, also a file that could not be fetched for now.
    pub async fn watch(&self, options: WatchOptions, on: OnEvent<'_>) -> Result<WatchReport, ClientError> {
        let watch = Watch {
            client: self,
            options,
            on,
            report: Mutex::default(),
            arrived: Notify::new(),
            shown: Notify::new(),
            tend: Notify::new(),
            stop: Notify::new(),
            channels: Live::default(),
            drained: AtomicBool::new(false),
            keys_due: AtomicBool::new(false),
            // The first connect calls for it as well: nothing is in order before that.
            tend_called: AtomicU64::new(1),
            tend_done: AtomicU64::new(0),
        };
        if let Some(dir) = &watch.options.save {
            // Before anything is received: a wrong directory is told at once.
            tokio::fs::create_dir_all(dir).await.map_err(ClientError::file(dir))?;
        }
        // A watch that was killed may have left something to show.
        watch.arrived.notify_one();
        let mut receive = Box::pin(watch.receive(self.route.watch()));
        let work = async {
            tokio::select! {
                done = watch.show() => done,
                done = watch.tend() => done,
                done = watch.save() => done,
                done = watch.follow() => done,
            }
        };
        tokio::select! {
            gone = &mut receive => gone?,
            done = Box::pin(work) => {
                watch.stop.notify_one();
                // Best effort: what is stored is acknowledged again by the next Hello.
                let _ = timeout(GOODBYE, receive).await;
                done?;
            }
        }
        Ok(watch.with_report(|report| *report))
    }
}

/// What one connection leaves to the next.
struct Kept {
    /// With which the next one goes on where this one ended, subscriptions included.
    resume_token: Bytes,
    /// When to ask to be told of presence again.
    subscribe: Interval,
}

impl Kept {
    fn new() -> Self {
        let mut subscribe = interval(presence::RENEWAL);
        subscribe.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { resume_token: Bytes::new(), subscribe }
    }
}

/// One call of [`Client::watch`].
struct Watch<'a> {
    client: &'a Client,
    options: WatchOptions,
    on: OnEvent<'a>,
    report: Mutex<WatchReport>,
    /// Something was stored that may have to be shown.
    arrived: Notify,
    /// Everything stored was shown; there may be files to save.
    shown: Notify,
    /// Connected, or prekeys are low.
    tend: Notify,
    /// Everything is done: say goodbye.
    stop: Notify,
    /// What comes in channels.
    channels: Live,
    /// Everything that waited at connect was received.
    drained: AtomicBool,
    /// Prekeys are to be looked at: after each connect, and when the server says that they are low.
    keys_due: AtomicBool,
    /// How often tending was called for, and up to which call it was done: equal when outbox, receipts and prekeys are in
    /// order.
    tend_called: AtomicU64,
    tend_done: AtomicU64,
}

impl Watch<'_> {
    fn with_report<T>(&self, f: impl FnOnce(&mut WatchReport) -> T) -> T {
        f(&mut self.report.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a connection, and a new one after it, until told to stop.
    async fn receive(&self, mut watching: Watching) -> Result<(), ClientError> {
        let (mut attempt, mut kept) = (0, Kept::new());
        loop {
            let since = Instant::now();
            let mut wait = None;
            let Err(error) = self.connection(&mut watching, &mut kept, &mut wait).await else { return Ok(()) };
            if !error.is_transient() {
                return Err(error);
            }
            attempt = if since.elapsed() >= GOOD_CONNECTION { 1 } else { attempt + 1 };
            let retry_in = wait.unwrap_or_else(|| BACKOFF.pause(attempt, &error));
            (self.on)(WatchEvent::Disconnected { error, retry_in });
            tokio::select! {
                () = sleep(retry_in) => {}
                () = self.stop.notified() => return Ok(()),
            }
        }
    }

    /// One connection: from Hello until it breaks, or until everything is done. `wait` is set when the server says when
    /// to come back.
    async fn connection(
        &self,
        watching: &mut Watching,
        kept: &mut Kept,
        wait: &mut Option<Duration>,
    ) -> Result<(), ClientError> {
        let client = self.client;
        let have = client.profile.read(|tx| inbox::have(tx))?;
        let window = Window { msgs: WINDOW_MSGS_DEFAULT, bytes: WINDOW_BYTES_DEFAULT };
        let token = std::mem::take(&mut kept.resume_token);
        let (mut socket, welcome) = Socket::connect(client, have, window, !self.options.background, token).await?;
        kept.resume_token = welcome.resume_token.clone();
        if !welcome.resumed {
            kept.subscribe.reset_immediately();
        }
        let mut lanes = Lanes::waiting(&welcome);
        let mut replies: HashMap<u32, oneshot::Sender<Reply>> = HashMap::new();
        let pending = welcome.pending.iter().map(|lane| lane.count_estimate).sum();
        (self.on)(WatchEvent::Connected { pending });
        for sub in self.channels.subscriptions(client)? {
            socket.push(sub).await?;
        }
        self.drained(&lanes);
        self.keys_due.store(true, Ordering::Release);
        self.call_for_tending();
        loop {
            let frame = tokio::select! {
                frame = socket.next() => frame?,
                Some(outgoing) = watching.outgoing.recv() => {
                    match outgoing {
                        Outgoing::Ask(body, reply) => {
                            let id = socket.ask(body).await?;
                            replies.insert(id, reply);
                        }
                        Outgoing::Push(body) => socket.push(body).await?,
                    }
                    continue;
                }
                _ = kept.subscribe.tick(), if self.options.presence => {
                    if let Some(sub) = client.profile.read(|tx| presence::subscription(tx))? {
                        socket.push(Body::PresenceSub(sub)).await?;
                    }
                    continue;
                }
                () = self.stop.notified() => {
                    socket.bye().await;
                    return Ok(());
                }
            };
            let Frame { id, body: Some(body), .. } = frame else { continue };
            match body {
                Body::Deliver(deliver) => {
                    if let Some(ack) = Box::pin(self.take(&deliver, welcome.epoch)).await? {
                        lanes.reached(deliver.lane(), ack.up_to);
                        socket.push(Body::Ack(ack)).await?;
                    }
                    self.drained(&lanes);
                }
                Body::QueueEmpty(empty) => {
                    lanes.reached(empty.lane(), u64::MAX);
                    self.drained(&lanes);
                }
                // The sender may have stopped waiting; its message is in the outbox until it learns of this.
                Body::SendResult(result) => {
                    if let Some(reply) = replies.remove(&id) {
                        drop(reply.send(Reply::Taken(result)));
                    }
                }
                Body::Ok(_) => {
                    if let Some(reply) = replies.remove(&id) {
                        drop(reply.send(Reply::Done));
                    }
                }
                Body::Error(error) => match replies.remove(&id) {
                    Some(reply) => drop(reply.send(Reply::Refused(error))),
                    None => tracing::warn!(code = error.code().as_str_name(), "the server reports: {}", error.message),
                },
                Body::KeysLow(_) => {
                    self.keys_due.store(true, Ordering::Release);
                    self.call_for_tending();
                }
                Body::DevicesChanged(changed) => Box::pin(self.look_again(&changed)).await?,
                Body::ChannelBatch(batch) => self.channels.batch(batch),
                Body::ChannelGap(gap) => self.channels.gap(&gap),
                Body::ReceiptSummary(summary) => {
                    if let Ok(group) = GroupId::from_slice(&summary.conv_id) {
                        let (conv_seq, delivered, read) = (summary.conv_seq, summary.delivered_n, summary.read_n);
                        (self.on)(WatchEvent::GroupReceipts { group, conv_seq, delivered, read });
                    }
                }
                Body::PresenceUpdate(update) => {
                    for item in &update.items {
                        client.profile.read(|tx| presence::view(tx, item))?.into_iter().for_each(self.on);
                    }
                }
                Body::EphemeralPush(push) => {
                    client.profile.read(|tx| presence::moment(tx, &push))?.into_iter().for_each(self.on);
                }
                Body::Drain(drain) => {
                    *wait = Some(drain_pause(&drain));
                    let server = client.service.server().to_owned();
                    let reason = "it is about to restart".to_owned();
                    return Err(ClientError::Closed { server, code: close::DRAINING, reason });
                }
                _ => {}
            }
        }
    }

    /// Stores what was delivered; the Ack is for afterwards.
    async fn take(&self, deliver: &Deliver, epoch: u64) -> Result<Option<Ack>, ClientError> {
        let client = self.client;
        let (mut refused, mut learnt) = (HashMap::new(), Vec::new());
        for (group, epoch) in client.profile.read(|tx| groups::unknown(tx, deliver))? {
            match client.learn_group(group, epoch).await {
                Ok(news) => {
                    client.learn_members(group).await?;
                    learnt.extend(news.filter(|_| groups::brings(deliver, group, epoch)));
                }
                Err(error @ (ClientError::NotInGroup { .. } | ClientError::GroupForged { .. })) => {
                    tracing::warn!("{error}");
                }
                // Not known yet who is in it: the message stays at the server.
                Err(error) => return Err(error),
            }
        }
        for account in client.profile.read(|tx| inbox::strangers(tx, deliver))? {
            match client.look_up(Asked::Account(account)).await {
                Ok(_) => {}
                Err(error) if is_verdict(&error) => {
                    refused.insert(account, error.to_string());
                    if let ClientError::IdentityChanged { handle } = error {
                        (self.on)(WatchEvent::IdentityChanged { who: handle });
                    }
                }
                // Not known yet whether they may be believed: the message stays at the server.
                Err(error) => return Err(error),
            }
        }
        let receipt = client.profile.write(|tx| inbox::receive(tx, deliver, epoch, &refused, now()))?;
        for SentCopy { handle, msg_id, content, .. } in receipt.copies {
            self.with_report(|report| report.copied += 1);
            (self.on)(WatchEvent::SentElsewhere { to: handle, msg_id, content: MessageSummary::of(&content) });
        }
        for news in learnt.into_iter().chain(receipt.groups) {
            self.with_report(|report| report.group_changes += 1);
            if client.has_news(&news).await? {
                self.call_for_tending();
            }
            (self.on)(WatchEvent::Group(news));
        }
        for Invited { channel, owner, followed } in receipt.channels {
            self.with_report(|report| report.channel_posts += 1);
            if followed {
                self.channels.behind(channel);
            }
            let from = client.profile.read(|tx| contacts::known(tx, owner))?.map(|contact| contact.handle);
            (self.on)(WatchEvent::ChannelInvite { channel, from, followed });
        }
        for RefusedChange { group, reason } in receipt.refused {
            (self.on)(WatchEvent::GroupForged { group, reason });
        }
        if client.profile.read(|tx| repair::is_due(tx))? {
            self.call_for_tending();
        }
        for inbox::Unreadable { from, msg_id, reason } in receipt.unreadable {
            self.with_report(|report| report.unreadable += 1);
            (self.on)(WatchEvent::Unreadable { from, msg_id, reason });
        }
        for Ticked { peer, msg_ids, tick } in receipt.ticks {
            if let Some(contact) = client.profile.read(|tx| contacts::known(tx, peer))? {
                (self.on)(WatchEvent::Ticked { to: contact.handle, msg_ids, tick });
            }
        }
        self.arrived.notify_one();
        Ok(receipt.ack)
    }

    /// Somebody's devices changed; only people known already are asked about.
    async fn look_again(&self, changed: &DevicesChanged) -> Result<(), ClientError> {
        let Ok(account) = AccountId::from_slice(&changed.account) else { return Ok(()) };
        let (own, before) = self.client.profile.read(|tx| Ok((contacts::own(tx)?, contacts::known(tx, account)?)))?;
        let is_own = own.account == account;
        let Some(before) = before.or_else(|| is_own.then_some(own)) else { return Ok(()) };
        if before.devices.revision >= changed.revision {
            return Ok(());
        }
        match self.client.look_up(Asked::Account(account)).await {
            Err(error @ ClientError::Profile { .. }) => Err(error),
            // Nothing is lost: sending asks again.
            Err(error) => {
                tracing::warn!("the changed devices of {account} were not accepted: {error}");
                Ok(())
            }
            Ok(after) => {
                let (who, devices) = (after.handle, after.devices.devices.len());
                if after.devices.devices != before.devices.devices {
                    (self.on)(WatchEvent::DevicesChanged { who, devices, own: is_own });
                }
                Ok(())
            }
        }
    }

    fn drained(&self, lanes: &Lanes) {
        if lanes.empty() {
            self.drained.store(true, Ordering::Release);
            self.channels.open();
            self.arrived.notify_one();
        }
    }

    /// Shows what is stored and was not shown.
    async fn show(&self) -> Result<(), ClientError> {
        loop {
            self.arrived.notified().await;
            let pending = self.client.profile.read(|tx| inbox::pending(tx))?;
            let fresh: Vec<_> = pending.into_iter().filter(|pending| !pending.row.shown).collect();
            for pending in &fresh {
                self.with_report(|report| report.received += 1);
                (self.on)(WatchEvent::Message {
                    from: pending.from(),
                    msg_id: pending.row.msg_id,
                    content: MessageSummary::of(&pending.content),
                    request: pending.row.request,
                    group: pending.row.group,
                });
            }
            if !fresh.is_empty() {
                let seen = !self.options.background;
                self.client.profile.write(|tx| fresh.iter().try_for_each(|it| inbox::shown(tx, it, seen)))?;
                let of_groups: Vec<_> =
                    fresh.iter().filter_map(|it| Some((it.row.group?, it.row.conv_seq))).filter(|_| seen).collect();
                for mark in self.client.profile.read(|tx| groups::inbox::read_marks(tx, &of_groups))? {
                    // Best effort: the next one says more.
                    self.client.route.push(Body::ReadMark(mark));
                }
                // Receipts are due.
                self.call_for_tending();
            }
            self.shown.notify_one();
        }
    }

    /// Shows what is written in channels.
    async fn follow(&self) -> Result<(), ClientError> {
        let show = |post: Result<ChannelPost, ClientError>| match post {
            Ok(post) => {
                self.with_report(|report| report.channel_posts += 1);
                (self.on)(WatchEvent::ChannelPost(Box::new(post)));
                // A watch of `once` may be done with it.
                self.shown.notify_one();
            }
            Err(error) => (self.on)(WatchEvent::ChannelRefused { error }),
        };
        self.channels.show(self.client, || self.shown.notify_one(), show).await
    }

    /// Saves files, one after the other; with `once`, ends when everything is done. A file that cannot be had now waits
    /// by itself: those behind it are saved meanwhile.
    async fn save(&self) -> Result<(), ClientError> {
        let mut waiting: HashMap<Vec<u8>, (u32, Instant)> = HashMap::new();
        loop {
            let pending = self.client.profile.read(|tx| inbox::pending(tx))?;
            if self.finished(&pending) {
                return Ok(());
            }
            let now = Instant::now();
            let is_due = |it: &&Pending| waiting.get(&it.key).is_none_or(|(_, at)| *at <= now);
            let file = pending.iter().filter(|pending| pending.row.shown).find(is_due);
            let (Some(dir), Some(file)) = (&self.options.save, file) else {
                let news = self.shown.notified();
                match waiting.values().map(|(_, at)| *at).min() {
                    // Either is a reason to look again.
                    Some(at) => drop(timeout_at(at, news).await),
                    None => news.await,
                }
                continue;
            };
            match self.save_one(dir, file).await {
                Ok(()) => drop(waiting.remove(&file.key)),
                Err(error) if error.is_transient() && !self.options.once => {
                    let attempt = waiting.get(&file.key).map_or(1, |(tries, _)| tries + 1);
                    let retry_in = BACKOFF.pause(attempt, &error);
                    waiting.insert(file.key.clone(), (attempt, now + retry_in));
                    self.save_failed(file, error, Some(retry_in));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Saves one file; a file that can never be saved is given up, which is no error.
    async fn save_one(&self, dir: &Path, pending: &Pending) -> Result<(), ClientError> {
        let Content::File(blob) = &pending.content else {
            return self.client.profile.write(|tx| inbox::done(tx, pending));
        };
        match Box::pin(self.client.save(blob, dir, &|_| {})).await {
            Ok(file) => {
                self.client.profile.write(|tx| inbox::done(tx, pending))?;
                self.with_report(|report| report.saved += 1);
                (self.on)(WatchEvent::Saved { from: pending.from(), msg_id: pending.row.msg_id, file });
                Ok(())
            }
            Err(error) if error.loses_blob() => {
                self.client.profile.write(|tx| inbox::done(tx, pending))?;
                self.with_report(|report| report.lost += 1);
                self.save_failed(pending, error, None);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn save_failed(&self, pending: &Pending, error: ClientError, retry_in: Option<Duration>) {
        let Content::File(blob) = &pending.content else { return };
        let (from, msg_id) = (pending.from(), pending.row.msg_id);
        (self.on)(WatchEvent::SaveFailed { from, msg_id, blob: blob.id, error, retry_in });
    }

    /// Whether a watch of `once` has nothing left to do.
    fn finished(&self, pending: &[Pending]) -> bool {
        let report = self.with_report(|report| *report);
        let something = report != WatchReport::default();
        let left = pending.iter().any(|pending| !pending.row.shown || self.options.save.is_some());
        let tended = self.tend_done.load(Ordering::Acquire) == self.tend_called.load(Ordering::Acquire);
        let quiet = self.drained.load(Ordering::Acquire) && tended && self.channels.is_done();
        self.options.once && something && !left && quiet
    }

    fn call_for_tending(&self) {
        self.tend_called.fetch_add(1, Ordering::AcqRel);
        self.tend.notify_one();
    }

    /// After each connect, when messages were shown, and when one could not be read: fills up the prekeys, tells what was
    /// read, repairs sessions, empties the outbox.
    async fn tend(&self) -> Result<(), ClientError> {
        let client = self.client;
        loop {
            let called = self.tend.notified();
            if client.profile.read(|tx| repair::is_due(tx))? {
                // What was asked for lately is asked for later.
                let _ = timeout(repair::ASK_INTERVAL, called).await;
            } else {
                called.await;
            }
            let called = self.tend_called.load(Ordering::Acquire);
            if self.keys_due.swap(false, Ordering::AcqRel)
                && let Err(error) = Box::pin(client.replenish_prekeys(now())).await
            {
                // Strangers get the fallback key meanwhile.
                tracing::warn!("prekeys were not filled up: {error}");
            }
            if let Err(error) = Box::pin(archive::import(client, &|_| {})).await {
                tracing::warn!("contacts and history of the other device were not fetched: {error}");
            }
            if let Err(error) = Box::pin(client.flush_posts()).await {
                tracing::warn!("posts left from before were not sent: {error}");
            }
            Box::pin(client.queue_receipts()).await?;
            Box::pin(client.queue_read_marks()).await?;
            Box::pin(client.repair(now())).await?;
            match Box::pin(self.flush()).await {
                Ok(()) => {}
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                // The next connect brings the next try.
                Err(error) => tracing::warn!("the outbox was not emptied: {error}"),
            }
            self.tend_done.store(called, Ordering::Release);
            self.shown.notify_one();
        }
    }

    async fn flush(&self) -> Result<(), ClientError> {
        let _turn = self.client.route.turn().await;
        let mut line = Line::open(self.client).await?;
        for unsent in self.client.flush(&mut line).await? {
            (self.on)(WatchEvent::SendFailed { msg_id: unsent.msg_id, error: unsent.error });
        }
        self.client.renew_token(&mut line, now()).await
    }
}

/// Up to which seq each lane was filled at connect, and what of that is still to come.
struct Lanes {
    normal: u64,
    urgent: u64,
}

impl Lanes {
    fn waiting(welcome: &Welcome) -> Self {
        let tail = |lane| welcome.pending.iter().filter(|it| it.lane() == lane).map(|it| it.tail_seq).max();
        Self { normal: tail(Lane::Normal).unwrap_or(0), urgent: tail(Lane::Urgent).unwrap_or(0) }
    }

    fn reached(&mut self, lane: Lane, seq: u64) {
        let tail = if lane == Lane::Urgent { &mut self.urgent } else { &mut self.normal };
        if seq >= *tail {
            *tail = 0;
        }
    }

    fn empty(&self) -> bool {
        self.normal == 0 && self.urgent == 0
    }
}

/// Whether a look-up has told that an account is not to be believed, rather than failed.
fn is_verdict(error: &ClientError) -> bool {
    match error {
        ClientError::Refused { problem, .. } => problem.status == 404,
        ClientError::IdentityChanged { .. }
        | ClientError::DevicesRolledBack { .. }
        | ClientError::BadIdentity { .. }
        | ClientError::UnknownRecipient { .. } => true,
        _ => false,
    }
}

/// A random moment within the span that a draining server names, so that not all come back at once.
fn drain_pause(drain: &Drain) -> Duration {
    let jitter = Duration::from_millis(drain.jitter_ms.into()).mul_f64(crate::http::random_fraction());
    // A server cannot send its clients away for good.
    (Duration::from_millis(drain.reconnect_after_ms.into()) + jitter).min(BACKOFF.most)
}
