//! Many groups that talk at a steady rate: few of their members are connected, as at most times of a day.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval_at, timeout_at};
use waxwing_protocol::GroupId;
use waxwing_protocol::frames::{Ack, Frame, Lane, frame::Body};
use waxwing_protocol::group::GroupState;

use super::group::{found, message};
use super::people::{Person, register};
use super::socket::Socket;
use super::{Told, source};

/// Groups that a person is in.
const GROUPS_EACH: u32 = 10;

/// How long answers are waited for after the last message.
const ANSWERS_LIMIT: Duration = Duration::from_secs(20);

/// Groups that talk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Talking {
    pub(in crate::commands::bench) address: String,
    /// How many groups.
    pub(in crate::commands::bench) groups: u32,
    /// People in each; one of them is connected, and sends.
    pub(in crate::commands::bench) members: u32,
    /// Messages a second in each group.
    pub(in crate::commands::bench) per_s: f64,
    pub(in crate::commands::bench) seconds: u32,
}

/// How it went.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Talked {
    /// Messages sent.
    pub(in crate::commands::bench) sent: u32,
    /// From the moment at which each was due to the answer that it is durable.
    pub(in crate::commands::bench) answer_ms: Vec<f64>,
    /// Deliveries to those who are connected.
    pub(in crate::commands::bench) delivered: u64,
    /// From the first message to the last answer.
    pub(in crate::commands::bench) seconds: f64,
}

/// Founds the groups and says so; at the next line lets them talk and tells how it went.
pub(super) async fn run(job: Talking, told: &mut Told) -> anyhow::Result<()> {
    // Blocks of people, each of whom make up several groups.
    let blocks = job.groups.div_ceil(GROUPS_EACH);
    register(&job.address, 0, blocks * job.members).await?;
    let mut talkers = Vec::new();
    for number in 0..job.groups {
        let (first, at) = (number % blocks * job.members, number / blocks);
        let mut people: Vec<_> = (first..first + job.members).map(Person::nth).collect();
        // Another one founds each, and sends; whoever is first of a group is its admin.
        let sender = Person::nth(first + at % job.members);
        let state = found(&job.address, group(number), &people, &sender).await?;
        people.sort_by_key(|person| person.account);
        let (socket, _) = Socket::connect(&job.address, source(0), &sender, 0).await?;
        talkers.push(Talker { socket, people, state, number });
    }
    told.tell(&json!("founded"));
    if told.next().await?.is_none() {
        return Ok(());
    }
    let (began, mut running) = (Instant::now(), JoinSet::new());
    let pause = Duration::from_secs_f64(1.0 / job.per_s);
    for talker in talkers {
        // Evenly over the first pause.
        let first = began + pause.mul_f64(f64::from(talker.number) / f64::from(job.groups));
        running.spawn(talker.talk(first, pause, Duration::from_secs(job.seconds.into())));
    }
    let mut all = Talked::default();
    while let Some(talked) = running.join_next().await {
        let Talked { sent, answer_ms, delivered, .. } = talked??;
        all.sent += sent;
        all.answer_ms.extend(answer_ms);
        all.delivered += delivered;
    }
    all.seconds = began.elapsed().as_secs_f64();
    told.tell(&all);
    // The server is looked at before its connections end.
    told.next().await?;
    Ok(())
}

fn group(number: u32) -> GroupId {
    let mut id = [0xb7; 16];
    id[..4].copy_from_slice(&number.to_be_bytes());
    GroupId::from_bytes(id)
}

/// Whoever sends in a group.
struct Talker {
    socket: Socket,
    people: Vec<Person>,
    state: GroupState,
    number: u32,
}

impl Talker {
    async fn talk(mut self, first: Instant, pause: Duration, lasts: Duration) -> anyhow::Result<Talked> {
        let mut talked = Talked::default();
        let mut due = Vec::new();
        let mut ticks = interval_at(first.into(), pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let end = first + lasts;
        loop {
            let over = Instant::now() >= end;
            if over && talked.answer_ms.len() == due.len() {
                return Ok(talked);
            }
            tokio::select! {
                at = ticks.tick(), if !over => {
                    due.push(at.into_std());
                    talked.sent += 1;
                    let send = message(&self.people, &self.state, talked.sent);
                    self.socket.put(&Frame::with_id(talked.sent, Body::Send(send)));
                }
                frames = timeout_at((end + ANSWERS_LIMIT).into(), self.socket.frames()) => {
                    for frame in frames.context("answers are missing")?? {
                        match frame.body {
                            Some(Body::SendResult(_)) => {
                                let sent = due.get(frame.id as usize - 1).context("an answer to nothing")?;
                                talked.answer_ms.push(sent.elapsed().as_secs_f64() * 1000.0);
                            }
                            Some(Body::Error(error)) => bail!("a message was refused: {}", error.message),
                            Some(Body::Deliver(deliver)) => {
                                talked.delivered += deliver.envelopes.len() as u64;
                                let up_to = deliver.envelopes.last().map_or(0, |envelope| envelope.seq);
                                let ack = Ack { lane: Lane::Normal.into(), up_to, ranges: Vec::new() };
                                self.socket.put(&Frame::push(Body::Ack(ack)));
                            }
                            _ => {}
                        }
                    }
                }
            }
            self.socket.flush().await?;
        }
    }
}
