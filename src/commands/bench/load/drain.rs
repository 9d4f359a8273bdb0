//! Mailboxes that fill while their owners are away, and are drained.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use waxwing_protocol::frames::{Ack, Class, Frame, Lane, frame::Body};

use super::pairs::message;
use super::people::{Person, register};
use super::socket::Socket;
use super::{Told, source};

/// Sends of one client unanswered at once while mailboxes are filled: what it may have.
const IN_FLIGHT: u64 = 64;

/// The same of all together: more than twice as many are refused while the disk is busy.
const IN_FLIGHT_OF_ALL: u64 = 8 * 1024;

/// Clients ack every so many messages.
const ACK_EVERY: u64 = 64;

/// How many messages wait for whom.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Draining {
    pub(in crate::commands::bench) address: String,
    /// The number of the first person.
    pub(in crate::commands::bench) first: u32,
    /// People whose mailboxes are drained at once.
    pub(in crate::commands::bench) clients: u32,
    /// Messages for each of them.
    pub(in crate::commands::bench) pending: u64,
    /// Whether a call is offered to the first one amid its drain.
    pub(in crate::commands::bench) call: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Drained {
    /// From the first connection to the moment when a further one of each was told that nothing waits.
    pub(in crate::commands::bench) drain_ms: f64,
    /// From the caller's write to the recipient's read.
    pub(in crate::commands::bench) call_ms: Option<f64>,
}

/// At each line told fills the mailboxes and says so; at the next drains them and tells how it went.
pub(super) async fn run(job: Draining, told: &mut Told) -> anyhow::Result<()> {
    register(&job.address, job.first, job.clients * 2).await?;
    told.tell(&json!("registered"));
    let mut sent = 0;
    while told.next().await?.is_some() {
        each(&job, |job, nth| async move { fill(&job, nth, sent).await }).await?;
        sent += job.pending + 1;
        told.tell(&json!("filled"));
        if told.next().await?.is_none() {
            break;
        }
        let began = Instant::now();
        let calls = each(&job, |job, nth| async move { drain(&job, nth, sent).await }).await?;
        let drain_ms = began.elapsed().as_secs_f64() * 1000.0;
        let call_ms = calls.into_iter().flatten().next().map(|took| took.as_secs_f64() * 1000.0);
        told.tell(&Drained { drain_ms, call_ms });
    }
    Ok(())
}

/// Does it for each client at once.
async fn each<T: Send + 'static, F: Future<Output = anyhow::Result<T>> + Send + 'static>(
    job: &Draining,
    work: impl Fn(Draining, u32) -> F,
) -> anyhow::Result<Vec<T>> {
    let mut running = JoinSet::new();
    for nth in 0..job.clients {
        running.spawn(work(job.clone(), nth));
    }
    let mut done = Vec::new();
    while let Some(one) = running.join_next().await {
        done.push(one??);
    }
    Ok(done)
}

/// The sender and the owner of a mailbox.
fn pair(job: &Draining, nth: u32) -> (Person, Person) {
    (Person::nth(job.first + nth * 2), Person::nth(job.first + nth * 2 + 1))
}

async fn fill(job: &Draining, nth: u32, from: u64) -> anyhow::Result<()> {
    let (sender, owner) = pair(job, nth);
    let (mut socket, _) = Socket::connect(&job.address, source(nth), &sender, 0).await?;
    let in_flight = (IN_FLIGHT_OF_ALL / u64::from(job.clients)).clamp(1, IN_FLIGHT);
    let (mut sent, mut answered) = (0, 0);
    while answered < job.pending {
        while sent < job.pending.min(answered + in_flight) {
            sent += 1;
            socket.put(&message(&owner, from + sent, Class::Message));
        }
        socket.flush().await?;
        answered += stored(&socket.frames().await?)?;
    }
    Ok(())
}

fn stored(frames: &[Frame]) -> anyhow::Result<u64> {
    let mut stored = 0;
    for frame in frames {
        match &frame.body {
            Some(Body::SendResult(_)) => stored += 1,
            Some(Body::Error(error)) => bail!("a send was refused: {}", error.message),
            _ => {}
        }
    }
    Ok(stored)
}

async fn drain(job: &Draining, nth: u32, sent: u64) -> anyhow::Result<Option<Duration>> {
    let (sender, owner) = pair(job, nth);
    let offers = job.call && nth == 0;
    let mut caller = match offers {
        true => Some(Socket::connect(&job.address, source(nth), &sender, 0).await?.0),
        false => None,
    };
    let (mut socket, welcome) = Socket::connect(&job.address, source(nth), &owner, 0).await?;
    let pending = welcome.pending.iter().map(|lane| lane.count_estimate).sum::<u64>();
    ensure!(pending == job.pending, "{pending} messages wait where {} were sent", job.pending);
    let (mut taken, mut unacked, mut up_to) = (0, 0, 0);
    let (mut offered, mut answered) = (None, None);
    while taken < job.pending || (offers && answered.is_none()) {
        for frame in socket.frames().await? {
            let Some(Body::Deliver(deliver)) = frame.body else { continue };
            if deliver.lane() == Lane::Urgent {
                answered = offered.map(|at: Instant| at.elapsed());
                let up_to = deliver.envelopes.last().context("a delivery of nothing")?.seq;
                socket.put(&Frame::push(Body::Ack(Ack { lane: Lane::Urgent.into(), up_to, ranges: Vec::new() })));
                continue;
            }
            for envelope in deliver.envelopes {
                ensure!(envelope.seq > up_to, "a message came twice or out of order");
                (taken, unacked, up_to) = (taken + 1, unacked + 1, envelope.seq);
                if unacked == ACK_EVERY || taken == job.pending {
                    socket.put(&Frame::push(Body::Ack(Ack { lane: Lane::Normal.into(), up_to, ranges: Vec::new() })));
                    unacked = 0;
                }
            }
        }
        if socket.has_more() {
            socket.flush().await?;
        }
        if let (Some(caller), None, true) = (&mut caller, offered, taken >= job.pending / 10) {
            caller.put(&message(&owner, sent, Class::Call));
            caller.flush().await?;
            offered = Some(Instant::now());
        }
    }
    // An ack has no answer: what tells that it is durable is a further Hello, which stands behind it in line.
    let (_, welcome) = Socket::connect(&job.address, source(nth), &owner, 0).await?;
    let left = welcome.pending.iter().map(|lane| lane.count_estimate).sum::<u64>();
    ensure!(left == 0, "{left} messages still wait after all were acked");
    Ok(answered)
}
