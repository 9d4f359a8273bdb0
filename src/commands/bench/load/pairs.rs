//! Pairs: one of each sends, the other receives and acks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, sleep, timeout_at};
use waxwing_protocol::frames::{Ack, Class, Frame, Lane, Send, frame::Body, send};

use super::people::{Person, register};
use super::socket::Socket;
use super::{BODY_BYTES, message_id, source};

/// Clients ack every so many messages, or after so long, whichever is first.
const ACK_EVERY: u64 = 64;
const ACK_AFTER: Duration = Duration::from_millis(200);

/// How long pairs run before figures are taken.
const WARM_UP: Duration = Duration::from_secs(1);

/// Pairs that send as fast as they are answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Pairs {
    pub(in crate::commands::bench) address: String,
    /// The number of the first person.
    pub(in crate::commands::bench) first: u32,
    pub(in crate::commands::bench) pairs: u32,
    /// Messages of a pair that were sent and not answered.
    pub(in crate::commands::bench) in_flight: u64,
    pub(in crate::commands::bench) seconds: f64,
}

/// What they reached.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Peak {
    /// Messages that were stored durably, delivered and acked, in each second.
    pub(in crate::commands::bench) per_s: f64,
}

/// Pairs that send at a steady rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Paced {
    pub(in crate::commands::bench) pairs: Pairs,
    /// Messages a second, of all pairs together.
    pub(in crate::commands::bench) per_s: f64,
}

/// How long things took, in milliseconds, one number a message.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Times {
    /// From the sender's write to its `SendResult`.
    pub(in crate::commands::bench) send_ms: Vec<f64>,
    /// From the sender's write to the recipient's read.
    pub(in crate::commands::bench) deliver_ms: Vec<f64>,
}

/// Connects the pairs: sender and receiver.
async fn connect(job: &Pairs) -> anyhow::Result<Vec<(Socket, Socket, Person)>> {
    register(&job.address, job.first, job.pairs * 2).await?;
    let mut pairs = Vec::new();
    for pair in 0..job.pairs {
        let number = job.first + pair * 2;
        let (from, to) = (Person::nth(number), Person::nth(number + 1));
        let (sender, _) = Socket::connect(&job.address, source(0), &from, 0).await?;
        let (receiver, _) = Socket::connect(&job.address, source(0), &to, 0).await?;
        pairs.push((sender, receiver, to));
    }
    Ok(pairs)
}

/// Runs pairs as fast as they go.
pub(super) async fn peak(job: Pairs) -> anyhow::Result<Peak> {
    let (acked, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut running = JoinSet::new();
    for (sender, receiver, to) in connect(&job).await? {
        let (in_flight, over_too) = (job.in_flight, over.clone());
        running.spawn(async move { send_at_once(sender, &to, in_flight, &over_too).await });
        let acked = acked.clone();
        running.spawn(async move { receive(receiver, &acked, None).await.map(|_| ()) });
    }
    measured(&acked, running, job.seconds).await
}

/// What is acked in each second while everybody runs, who never ends.
pub(super) async fn measured(
    acked: &AtomicU64,
    mut running: JoinSet<anyhow::Result<()>>,
    seconds: f64,
) -> anyhow::Result<Peak> {
    let measured = async {
        sleep(WARM_UP).await;
        let (began, before) = (Instant::now(), acked.load(Ordering::Relaxed));
        sleep(Duration::from_secs_f64(seconds)).await;
        #[allow(clippy::cast_precision_loss, reason = "a count far below 2^53")]
        let moved = (acked.load(Ordering::Relaxed) - before) as f64;
        Peak { per_s: moved / began.elapsed().as_secs_f64() }
    };
    tokio::select! {
        peak = measured => Ok(peak),
        ended = running.join_next() => {
            ended.context("there are pairs")???;
            bail!("a pair ended early")
        }
    }
}

/// Sends whenever fewer than `in_flight` are unanswered.
async fn send_at_once(mut socket: Socket, to: &Person, in_flight: u64, over: &AtomicBool) -> anyhow::Result<()> {
    let (mut sent, mut answered) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        while sent < answered + in_flight {
            sent += 1;
            socket.put(&message(to, sent, Class::Message));
        }
        socket.flush().await?;
        answered += results(&socket.frames().await?)?.len() as u64;
    }
    Ok(())
}

/// Runs pairs at a steady rate and takes the time of every message.
pub(super) async fn paced(job: Paced) -> anyhow::Result<Times> {
    let mut running: JoinSet<anyhow::Result<Times>> = JoinSet::new();
    let began = Instant::now();
    let connected = connect(&job.pairs).await?;
    let between = Duration::from_secs_f64(f64::from(job.pairs.pairs) / job.per_s);
    let until = tokio::time::Instant::now() + WARM_UP + Duration::from_secs_f64(job.pairs.seconds);
    let from = began.elapsed() + WARM_UP;
    for (nth, (sender, receiver, to)) in (0..).zip(connected) {
        let start = tokio::time::Instant::now() + between * nth / job.pairs.pairs;
        running.spawn(async move { send_steadily(sender, &to, (start, between, until), (began, from)).await });
        running.spawn(async move {
            let acked = AtomicU64::new(0);
            let receiving = receive(receiver, &acked, Some((began, from)));
            // Longer than any message takes: what is late counts too.
            timeout_at(until + Duration::from_secs(2), receiving).await.unwrap_or_else(|_| bail!("a message is lost"))
        });
    }
    let mut times = Times::default();
    while let Some(done) = running.join_next().await {
        let done = done??;
        times.send_ms.extend(done.send_ms);
        times.deliver_ms.extend(done.deliver_ms);
    }
    Ok(times)
}

type Steady = (tokio::time::Instant, Duration, tokio::time::Instant);

async fn send_steadily(
    mut socket: Socket,
    to: &Person,
    (start, between, until): Steady,
    (began, from): (Instant, Duration),
) -> anyhow::Result<Times> {
    let mut ticks = interval_at(start, between);
    // A generator that was held up sends what it owes, and the server has to cope.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut sent, mut unanswered, mut times) = (0, HashMap::new(), Times::default());
    while tokio::time::Instant::now() < until || !unanswered.is_empty() {
        tokio::select! {
            _ = ticks.tick(), if tokio::time::Instant::now() < until => {
                sent += 1;
                let at = began.elapsed();
                // The recipient reads the time of writing in the message itself.
                socket.put(&stamped(to, sent, at));
                socket.flush().await?;
                unanswered.insert(u32::try_from(sent)?, at);
            }
            frames = socket.frames() => {
                for id in results(&frames?)? {
                    let at = unanswered.remove(&id).context("an answer to nothing")?;
                    if at >= from {
                        times.send_ms.push((began.elapsed() - at).as_secs_f64() * 1000.0);
                    }
                }
            }
        }
    }
    // The last one tells the recipient that there are no more.
    socket.put(&stamped(to, sent + 1, Duration::ZERO));
    socket.flush().await?;
    socket.frames().await?;
    Ok(times)
}

/// Takes messages and acks them as clients do. With the moment at which all began, it also takes the time of each that
/// was written at or after `from`, and ends with the one written at zero.
async fn receive(mut socket: Socket, acked: &AtomicU64, timed: Option<(Instant, Duration)>) -> anyhow::Result<Times> {
    let (mut unacked, mut up_to, mut times) = (0, 0, Times::default());
    let mut due = tokio::time::Instant::now() + ACK_AFTER;
    loop {
        let mut last = false;
        match timeout_at(due, socket.frames()).await {
            Ok(frames) => {
                for frame in frames? {
                    let Some(Body::Deliver(deliver)) = frame.body else { continue };
                    for envelope in deliver.envelopes {
                        unacked += 1;
                        up_to = envelope.seq;
                        let Some((began, from)) = timed else { continue };
                        let at = written_at(&envelope.body)?;
                        last |= at.is_zero();
                        if at >= from {
                            times.deliver_ms.push((began.elapsed() - at).as_secs_f64() * 1000.0);
                        }
                    }
                }
            }
            Err(_) => due = tokio::time::Instant::now() + ACK_AFTER,
        }
        let late = tokio::time::Instant::now() + ACK_AFTER / 10 >= due;
        if unacked >= ACK_EVERY || (unacked > 0 && (late || last)) {
            socket.put(&Frame::push(Body::Ack(Ack { lane: Lane::Normal.into(), up_to, ranges: Vec::new() })));
            socket.flush().await?;
            acked.fetch_add(unacked, Ordering::Relaxed);
            (unacked, due) = (0, tokio::time::Instant::now() + ACK_AFTER);
        }
        if last {
            return Ok(times);
        }
    }
}

/// The ids of the sends that were answered well.
fn results(frames: &[Frame]) -> anyhow::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for frame in frames {
        match &frame.body {
            Some(Body::SendResult(_)) => ids.push(frame.id),
            Some(Body::Error(error)) => bail!("a send was refused: {}", error.message),
            _ => {}
        }
    }
    Ok(ids)
}

/// The message of that number, in frame `number`.
pub(super) fn message(to: &Person, number: u64, class: Class) -> Frame {
    frame(to, number, class, [0; BODY_BYTES])
}

fn stamped(to: &Person, number: u64, at: Duration) -> Frame {
    let mut body = [0; BODY_BYTES];
    body[..16].copy_from_slice(&at.as_nanos().to_be_bytes());
    frame(to, number, Class::Message, body)
}

fn written_at(body: &[u8]) -> anyhow::Result<Duration> {
    let nanos = body.first_chunk().copied().map(u128::from_be_bytes).context("a message without its time")?;
    Ok(Duration::from_nanos(u64::try_from(nanos)?))
}

fn frame(to: &Person, number: u64, class: Class, body: [u8; BODY_BYTES]) -> Frame {
    let send = Send {
        msg_id: message_id(number),
        target: Some(send::Target::Direct(to.target(Bytes::copy_from_slice(&body)))),
        class: class.into(),
        ..Send::default()
    };
    // One id for each of the last four billion sends of a connection.
    Frame::with_id(u32::try_from(number & u64::from(u32::MAX)).unwrap_or(u32::MAX), Body::Send(send))
}
