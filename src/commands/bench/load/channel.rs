//! A channel with many followers, of whom some are connected.

use std::time::Instant;

use anyhow::{bail, ensure};
use bytes::Bytes;
use ed25519_dalek::Signer as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use waxwing_protocol::channel::{
    Author, CHANNEL_CHARTER_DOMAIN, CHANNEL_ENTRY_DOMAIN, Charter, Entry, Position, SignedCharter, SignedEntry,
};
use waxwing_protocol::frames::{Channel, ChannelSub, Class, Frame, Send, Urgency, frame::Body, send};
use waxwing_protocol::identity::{Base64, PublicKey, signed_bytes};
use waxwing_protocol::{ChannelId, MsgId, Timestamp};

use super::group::Fanned;
use super::people::{Person, post, register};
use super::socket::Socket;
use super::{BODY_BYTES, Told, source};

/// Connections under way at once.
const CONNECTING_AT_ONCE: usize = 64;

/// Questions of one connection that wait for their answer.
const ASKED_AT_ONCE: u32 = 32;

/// Entries that are there before anybody follows.
const WRITTEN_BEFORE: u32 = 10;

/// A channel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Channeling {
    pub(in crate::commands::bench) address: String,
    /// Everybody who follows: each says where they are and is told what they lack.
    pub(in crate::commands::bench) followers: u32,
    /// Those of them who are connected.
    pub(in crate::commands::bench) live: u32,
    /// Posts that are timed, one after the other.
    pub(in crate::commands::bench) posts: u32,
}

/// The author, and where the log is.
struct Writer {
    owner: Person,
    charter: Charter,
    at: Position,
    line: Socket,
}

/// Founds the channel and connects; at the next line lets every follower say where they are; at the next times posts.
pub(super) async fn run(job: Channeling, told: &mut Told) -> anyhow::Result<()> {
    register(&job.address, 0, job.live + 1).await?;
    let mut writer = found(&job.address).await?;
    for n in 0..WRITTEN_BEFORE {
        let entry = writer.next(n)?;
        writer.write(&entry).await?;
    }
    let mut live = connect(&job).await?;
    told.tell(&json!("connected"));
    if told.next().await?.is_none() {
        return Ok(());
    }
    let began = Instant::now();
    live = ask(live, job.followers, writer.at.seq).await?;
    told.tell(&began.elapsed().as_secs_f64());
    if told.next().await?.is_none() {
        return Ok(());
    }
    told.tell(&fan_out(&job, &mut writer, live).await?);
    Ok(())
}

fn channel() -> ChannelId {
    ChannelId::from_bytes([0xc4; 16])
}

async fn found(address: &str) -> anyhow::Result<Writer> {
    let owner = Person::nth(0);
    let key = owner.account_key();
    let author = Author { account: owner.account, account_key: PublicKey(key.verifying_key().to_bytes()) };
    let charter = Charter {
        channel: channel(),
        epoch: 1,
        previous: None,
        owner: author.account,
        owner_key: author.account_key,
        authors: vec![author],
        key_id: [1; 32],
        title: Vec::new(),
        after: Position::default(),
        made_at: Timestamp::from(std::time::SystemTime::now()),
    };
    let bytes = charter.to_bytes();
    let signature = key.sign(&signed_bytes(CHANNEL_CHARTER_DOMAIN, &bytes)).to_bytes().to_vec();
    let signed = SignedCharter { charter: Base64(bytes), signature: Base64(signature) };
    post(address, &owner, "/v1/channels", &signed).await?;
    let (line, _) = Socket::connect(address, source(0), &owner, 0).await?;
    Ok(Writer { owner, charter, at: Position::default(), line })
}

impl Writer {
    /// The frame of entry `n`, which the next one follows.
    fn next(&mut self, n: u32) -> anyhow::Result<Frame> {
        let mut id = [0; 16];
        id[12..].copy_from_slice(&n.to_be_bytes());
        let msg_id = MsgId::from_bytes(id);
        let entry = Entry { epoch: 1, after: self.at, author: 0, msg_id, body: vec![0x77; BODY_BYTES] }.to_bytes();
        let message = signed_bytes(CHANNEL_ENTRY_DOMAIN, &Entry::signed_message(channel(), &entry));
        let signature = self.owner.account_key().sign(&message).to_bytes().to_vec();
        let bytes = SignedEntry { entry, signature }.to_bytes();
        (_, self.at) = SignedEntry::verify(&bytes, &self.charter, &self.at)?;
        let (channel, epoch) = (Bytes::copy_from_slice(channel().as_bytes()), self.charter.epoch);
        let send = Send {
            msg_id: Bytes::copy_from_slice(&id),
            target: Some(send::Target::Channel(Channel { channel, epoch, body: bytes.into() })),
            class: Class::Message.into(),
            urgency: Urgency::None.into(),
            ..Send::default()
        };
        Ok(Frame::with_id(1, Body::Send(send)))
    }

    /// Sends an entry and waits until it is durable. Gives its place.
    async fn write(&mut self, entry: &Frame) -> anyhow::Result<u64> {
        self.line.put(entry);
        self.line.flush().await?;
        loop {
            for frame in self.line.frames().await? {
                match frame.body {
                    Some(Body::SendResult(result)) => return Ok(result.conv_seq),
                    Some(Body::Error(error)) => bail!("an entry was refused: {}", error.message),
                    _ => {}
                }
            }
        }
    }
}

async fn connect(job: &Channeling) -> anyhow::Result<Vec<Socket>> {
    let (mut connecting, mut live) = (JoinSet::new(), Vec::new());
    for number in 1..=job.live {
        if connecting.len() >= CONNECTING_AT_ONCE
            && let Some(socket) = connecting.join_next().await
        {
            live.push(socket??);
        }
        let address = job.address.clone();
        connecting.spawn(async move {
            anyhow::Ok(Socket::connect(&address, source(number), &Person::nth(number), 0).await?.0)
        });
    }
    while let Some(socket) = connecting.join_next().await {
        live.push(socket??);
    }
    Ok(live)
}

/// The question of a follower who is at `after`.
fn follow(id: u32, after_seq: u64, live: bool) -> Frame {
    let channel = Bytes::copy_from_slice(channel().as_bytes());
    Frame::with_id(id, Body::ChannelSub(ChannelSub { channel, after_seq, live }))
}

/// Lets so many followers say where they are, each somewhere else, over the connections that there are.
async fn ask(live: Vec<Socket>, followers: u32, head: u64) -> anyhow::Result<Vec<Socket>> {
    let (lines, mut asking) = (u32::try_from(live.len())?.max(1), JoinSet::new());
    for (number, mut line) in (0..).zip(live) {
        let share = followers / lines + u32::from(number < followers % lines);
        asking.spawn(async move {
            let (mut asked, mut answered) = (0, 0);
            while answered < share {
                while asked < share && asked - answered < ASKED_AT_ONCE {
                    line.put(&follow(asked + 1, u64::from(asked) % (head + 1), false));
                    asked += 1;
                }
                line.flush().await?;
                for frame in line.frames().await? {
                    match frame.body {
                        Some(Body::ChannelState(state)) => {
                            ensure!(state.head_seq == head, "another head than was written");
                            answered += 1;
                        }
                        Some(Body::Error(error)) => bail!("a follower was refused: {}", error.message),
                        _ => {}
                    }
                }
            }
            anyhow::Ok(line)
        });
    }
    let mut live = Vec::new();
    while let Some(line) = asking.join_next().await {
        live.push(line??);
    }
    Ok(live)
}

async fn fan_out(job: &Channeling, writer: &mut Writer, live: Vec<Socket>) -> anyhow::Result<Fanned> {
    let (reads, mut read) = mpsc::unbounded_channel();
    let (mut readers, connected) = (JoinSet::new(), live.len());
    for mut line in live {
        line.put(&follow(1, writer.at.seq, true));
        line.flush().await?;
        readers.spawn(listen(line, reads.clone()));
    }
    for _ in 0..connected {
        ensure!(matches!(read.recv().await, Some((0, _))), "every follower is answered");
    }
    let mut fanned = Fanned { each_ms: Vec::new(), last_ms: Vec::new(), answer_ms: Vec::new() };
    for n in 0..job.posts {
        let entry = writer.next(WRITTEN_BEFORE + n)?;
        let began = Instant::now();
        let seq = writer.write(&entry).await?;
        fanned.answer_ms.push(began.elapsed().as_secs_f64() * 1000.0);
        let mut last = 0.0_f64;
        for _ in 0..connected {
            let Some((heard, at)) = read.recv().await else { bail!("a follower is gone") };
            ensure!(heard == seq, "another entry than the one written");
            let took = at.saturating_duration_since(began).as_secs_f64() * 1000.0;
            fanned.each_ms.push(took);
            last = last.max(took);
        }
        fanned.last_ms.push(last);
    }
    Ok(fanned)
}

/// Tells when each entry was read, by its place; 0 stands for the answer to the question.
async fn listen(mut line: Socket, read: mpsc::UnboundedSender<(u64, Instant)>) -> anyhow::Result<()> {
    loop {
        let frames = line.frames().await?;
        let at = Instant::now();
        for frame in frames {
            let heard = match frame.body {
                Some(Body::ChannelState(_)) => 0..=0,
                Some(Body::ChannelBatch(batch)) => batch.first_seq..=batch.first_seq + batch.entries.len() as u64 - 1,
                Some(Body::ChannelGap(gap)) => bail!("entries {} to {} were dropped", gap.from, gap.to),
                _ => continue,
            };
            for seq in heard {
                if read.send((seq, at)).is_err() {
                    return Ok(());
                }
            }
        }
    }
}
