//! The same pairs against an MQTT 3.1.1 broker: persistent sessions, QoS 1, a topic for each pair.
//!
//! As much of MQTT as that takes, and no more, so that the broker is what is measured. A message counts when the
//! recipient has acknowledged it, as it does with ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BufMut as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::BODY_BYTES;
use super::pairs::{Pairs, Peak, measured};

/// Kinds of packets with their flags: MQTT 3.1.1, section 2.2.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH_QOS1: u8 = 0x32;
const PUBACK: u8 = 0x40;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;

/// Runs pairs as fast as they go.
pub(super) async fn peak(job: Pairs) -> anyhow::Result<Peak> {
    let acked = Arc::new(AtomicU64::new(0));
    let mut running = JoinSet::new();
    let mut senders = Vec::new();
    for pair in job.first..job.first + job.pairs {
        let topic = format!("pair/{pair}");
        let mut receiver = Client::connect(&job.address, &format!("receiver{pair}")).await?;
        receiver.subscribe(&topic).await?;
        let acked = acked.clone();
        running.spawn(async move { receive(receiver, &acked).await });
        senders.push((Client::connect(&job.address, &format!("sender{pair}")).await?, topic));
    }
    for (sender, topic) in senders {
        let in_flight = job.in_flight;
        running.spawn(async move { send_at_once(sender, &topic, in_flight).await });
    }
    measured(&acked, running, job.seconds).await
}

/// Sends whenever fewer than `in_flight` are unanswered.
async fn send_at_once(mut client: Client, topic: &str, in_flight: u64) -> anyhow::Result<()> {
    let (mut sent, mut answered) = (0u64, 0);
    loop {
        while sent < answered + in_flight {
            sent += 1;
            // Zero is no packet id.
            client.publish(topic, u16::try_from(sent % 65_535)? + 1);
        }
        client.flush().await?;
        for (kind, _) in client.packets().await? {
            ensure!(kind == PUBACK, "a sender got a packet of kind {kind:#x}");
            answered += 1;
        }
    }
}

/// Takes messages and acks them.
async fn receive(mut client: Client, acked: &AtomicU64) -> anyhow::Result<()> {
    loop {
        let packets = client.packets().await?;
        for (kind, packet) in &packets {
            ensure!(kind & 0xf6 == PUBLISH_QOS1, "a receiver got a packet of kind {kind:#x}");
            let topic_bytes = packet.first_chunk().copied().map(u16::from_be_bytes).context("a short packet")?;
            let at = 2 + usize::from(topic_bytes);
            let id = packet.get(at..at + 2).context("a message without its id")?;
            client.put(PUBACK, &[id]);
        }
        client.flush().await?;
        acked.fetch_add(packets.len() as u64, Ordering::Relaxed);
    }
}

/// A connection to the broker.
struct Client {
    stream: TcpStream,
    read: BytesMut,
    out: BytesMut,
}

impl Client {
    /// Connects with a session that outlives the connection.
    async fn connect(address: &str, name: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream, read: BytesMut::new(), out: BytesMut::new() };
        // Level 4; a user and a password, which some brokers want even where anybody may come; the session is kept; no
        // keep-alive.
        client.put(CONNECT, &[&text("MQTT")?, &[4, 0xc0, 0, 0], &text(name)?, &text(name)?, &text("bench")?]);
        client.flush().await?;
        client.expect(CONNACK, 1).await?;
        Ok(client)
    }

    async fn subscribe(&mut self, topic: &str) -> anyhow::Result<()> {
        self.put(SUBSCRIBE, &[&[0, 1], &text(topic)?, &[1]]);
        self.flush().await?;
        self.expect(SUBACK, 2).await
    }

    /// Waits for an answer whose byte `at` says how it went: below 2 is well.
    async fn expect(&mut self, kind: u8, at: usize) -> anyhow::Result<()> {
        match &self.packets().await?[..] {
            [(it, packet)] if *it == kind && packet.get(at).is_some_and(|code| *code < 2) => Ok(()),
            other => bail!("the broker answered {other:?}"),
        }
    }

    fn publish(&mut self, topic: &str, id: u16) {
        let topic_bytes = u16::try_from(topic.len()).unwrap_or(u16::MAX).to_be_bytes();
        self.put(PUBLISH_QOS1, &[&topic_bytes, topic.as_bytes(), &id.to_be_bytes(), &[0; BODY_BYTES]]);
    }

    fn put(&mut self, kind: u8, parts: &[&[u8]]) {
        self.out.put_u8(kind);
        let mut left = parts.iter().map(|part| part.len()).sum::<usize>();
        loop {
            let more = if left > 0x7f { 0x80 } else { 0 };
            self.out.put_u8(u8::try_from(left & 0x7f).unwrap_or_default() | more);
            left >>= 7;
            if left == 0 {
                break;
            }
        }
        parts.iter().for_each(|part| self.out.put_slice(part));
    }

    async fn flush(&mut self) -> anyhow::Result<()> {
        if !self.out.is_empty() {
            let out = self.out.split();
            self.stream.write_all(&out).await?;
        }
        Ok(())
    }

    /// The packets that have come, at least one.
    async fn packets(&mut self) -> anyhow::Result<Vec<(u8, BytesMut)>> {
        let mut packets = Vec::new();
        loop {
            while let Some(packet) = self.packet()? {
                packets.push(packet);
            }
            if !packets.is_empty() {
                return Ok(packets);
            }
            self.read.reserve(16 * 1024);
            ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the broker hung up");
        }
    }

    /// Takes a whole packet off what was read: its first byte, and what follows the length.
    fn packet(&mut self) -> anyhow::Result<Option<(u8, BytesMut)>> {
        let Some(kind) = self.read.first().copied() else { return Ok(None) };
        let mut len = 0;
        for (at, byte) in self.read.iter().enumerate().skip(1) {
            ensure!(at <= 4, "a length of more than four bytes");
            len |= usize::from(byte & 0x7f) << (7 * (at - 1));
            if byte & 0x80 == 0 {
                if self.read.len() < at + 1 + len {
                    return Ok(None);
                }
                self.read.advance(at + 1);
                return Ok(Some((kind, self.read.split_to(len))));
            }
        }
        Ok(None)
    }
}

/// A string as MQTT writes it.
fn text(text: &str) -> anyhow::Result<Vec<u8>> {
    Ok([&u16::try_from(text.len())?.to_be_bytes()[..], text.as_bytes()].concat())
}
