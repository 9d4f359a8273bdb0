//! A large group whose members are all connected, or all away.

use std::time::Instant;

use anyhow::{bail, ensure};
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use waxwing_protocol::frames::{Ack, Class, Frame, Group, Lane, Send, Urgency, frame::Body, send};
use waxwing_protocol::group::{
    GROUP_CHANGE_DOMAIN, GroupChange, GroupState, NewMember, Role, SignedGroupChange, What, devices_hash,
};
use waxwing_protocol::identity::{Base64, PublicKey, signed_bytes};
use waxwing_protocol::{DeviceId, GroupId, Timestamp};

use super::people::{Person, post, register};
use super::socket::Socket;
use super::{BODY_BYTES, Told, source};

/// Connections under way at once.
const CONNECTING_AT_ONCE: usize = 64;

/// A group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Grouping {
    pub(in crate::commands::bench) address: String,
    /// People in it; the first one sends.
    pub(in crate::commands::bench) members: u32,
    /// Messages that are timed, one after the other.
    pub(in crate::commands::bench) messages: u32,
    /// Messages that are stored for members who are away.
    pub(in crate::commands::bench) stored: u32,
}

/// How messages to members who are connected went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Fanned {
    /// From the write of each message to the read of it, by every member.
    pub(in crate::commands::bench) each_ms: Vec<f64>,
    /// The same to the last member's read, by message.
    pub(in crate::commands::bench) last_ms: Vec<f64>,
    /// From the write to the answer that it is durable, by message.
    pub(in crate::commands::bench) answer_ms: Vec<f64>,
}

/// Founds the group and says so; at the next line times messages with everybody connected and tells how it went; at the
/// next stores messages with everybody away.
pub(super) async fn run(job: Grouping, told: &mut Told) -> anyhow::Result<()> {
    register(&job.address, 0, job.members).await?;
    let people: Vec<_> = (0..job.members).map(Person::nth).collect();
    let state = found(&job.address, GroupId::from_bytes([0xb6; 16]), &people, &people[0]).await?;
    told.tell(&json!("founded"));
    if told.next().await?.is_none() {
        return Ok(());
    }
    told.tell(&fan_out(&job, &people, &state).await?);
    if told.next().await?.is_none() {
        return Ok(());
    }
    let (mut from, _) = Socket::connect(&job.address, source(0), &people[0], 0).await?;
    for n in 0..job.stored {
        from.put(&Frame::with_id(1, Body::Send(message(&people, &state, job.messages + n))));
        from.flush().await?;
        answered(&mut from).await?;
    }
    told.tell(&json!("stored"));
    Ok(())
}

/// Founds a group of these people, one of whom does so.
pub(super) async fn found(address: &str, group: GroupId, people: &[Person], by: &Person) -> anyhow::Result<GroupState> {
    let members = people.iter().map(|person| NewMember {
        account: person.account,
        account_key: PublicKey(person.account_key().verifying_key().to_bytes()),
        role: if person.account == by.account { Role::Admin } else { Role::Member },
    });
    let what = What::Found { members: members.collect(), profile: None };
    let now = Timestamp::from(std::time::SystemTime::now());
    let (change, state) = GroupChange::make(group, None, by.account, what, now)?;
    let bytes = change.to_bytes();
    let signature = by.account_key().sign(&signed_bytes(GROUP_CHANGE_DOMAIN, &bytes));
    let signed = SignedGroupChange { change: Base64(bytes), signature: Base64(signature.to_bytes().to_vec()) };
    post(address, by, "/v1/groups", &signed).await?;
    Ok(state)
}

/// Message `n`: all alike but for the id.
pub(super) fn message(people: &[Person], state: &GroupState, n: u32) -> Send {
    // By rising account, as people are by rising number.
    let devices: Vec<_> = people.iter().map(|person| (person.account, [(DeviceId::FIRST, person.reg_id())])).collect();
    let hash = devices_hash(devices.iter().map(|(account, devices)| (*account, &devices[..])));
    let target = Group {
        group: Bytes::copy_from_slice(state.group.as_bytes()),
        epoch: state.epoch,
        devices_hash: Bytes::copy_from_slice(&hash),
        body: Bytes::from(vec![0x77; BODY_BYTES]),
    };
    Send {
        msg_id: id(n),
        target: Some(send::Target::Group(target)),
        class: Class::Message.into(),
        urgency: Urgency::None.into(),
        ..Send::default()
    }
}

fn id(n: u32) -> Bytes {
    let mut id = [0; 16];
    id[12..].copy_from_slice(&n.to_be_bytes());
    Bytes::copy_from_slice(&id)
}

/// Waits for the answer to a Send.
async fn answered(from: &mut Socket) -> anyhow::Result<()> {
    loop {
        for frame in from.frames().await? {
            match frame.body {
                Some(Body::SendResult(_)) => return Ok(()),
                Some(Body::Error(error)) => bail!("a message was refused: {}", error.message),
                _ => {}
            }
        }
    }
}

async fn fan_out(job: &Grouping, people: &[Person], state: &GroupState) -> anyhow::Result<Fanned> {
    let (reads, mut read) = mpsc::unbounded_channel();
    let mut connecting = JoinSet::new();
    let mut readers = JoinSet::new();
    let mut connected = 0;
    let mut join = async |connecting: &mut JoinSet<anyhow::Result<Socket>>| {
        if let Some(socket) = connecting.join_next().await {
            readers.spawn(listen(socket??, reads.clone()));
            connected += 1;
        }
        anyhow::Ok(())
    };
    for (number, person) in (0..).zip(people).skip(1) {
        if connecting.len() >= CONNECTING_AT_ONCE {
            join(&mut connecting).await?;
        }
        let (address, person) = (job.address.clone(), person.clone());
        connecting.spawn(async move { anyhow::Ok(Socket::connect(&address, source(number), &person, 0).await?.0) });
    }
    while !connecting.is_empty() {
        join(&mut connecting).await?;
    }
    let (mut from, _) = Socket::connect(&job.address, source(0), &people[0], 0).await?;
    // The founding is read by everybody: from then on each is served from memory.
    for _ in 0..connected {
        ensure!(read.recv().await.is_some_and(|(class, ..)| class == Class::GroupChange), "the founding comes first");
    }
    let mut fanned = Fanned { each_ms: Vec::new(), last_ms: Vec::new(), answer_ms: Vec::new() };
    for n in 0..job.messages {
        let frame = Frame::with_id(1, Body::Send(message(people, state, n)));
        let began = Instant::now();
        from.put(&frame);
        from.flush().await?;
        answered(&mut from).await?;
        fanned.answer_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        let mut last = 0.0_f64;
        for _ in 0..connected {
            let Some((Class::Message, msg_id, at)) = read.recv().await else { bail!("a member is gone") };
            ensure!(msg_id == id(n), "another message than the one sent");
            let took = at.saturating_duration_since(began).as_secs_f64() * 1000.0;
            fanned.each_ms.push(took);
            last = last.max(took);
        }
        fanned.last_ms.push(last);
    }
    Ok(fanned)
}

/// Tells when each message was read, and acks it.
async fn listen(mut socket: Socket, read: mpsc::UnboundedSender<(Class, Bytes, Instant)>) -> anyhow::Result<()> {
    loop {
        let frames = socket.frames().await?;
        let at = Instant::now();
        for frame in frames {
            let Some(Body::Deliver(deliver)) = frame.body else { continue };
            for envelope in deliver.envelopes {
                let (lane, up_to) = (Lane::Normal.into(), envelope.seq);
                socket.put(&Frame::push(Body::Ack(Ack { lane, up_to, ranges: Vec::new() })));
                if read.send((envelope.class(), envelope.msg_id, at)).is_err() {
                    return Ok(());
                }
            }
        }
        socket.flush().await?;
    }
}
