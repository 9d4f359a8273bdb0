//! Clients that connect to mailboxes full of large messages and then read nothing.

use anyhow::{bail, ensure};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;
use waxwing_protocol::frames::{Class, DeviceBody, Direct, Frame, Send, frame::Body, send};

use super::people::{Person, register};
use super::socket::Socket;
use super::{Told, message_id, source};

/// Bytes of each message, and how many wait for each reader: more than the kernel takes off the server's hands.
const BODY: usize = 48 * 1024;
const PENDING: u64 = 4;

/// Mailboxes filled, and connections made, at once.
const AT_ONCE: usize = 32;

/// Bytes that the kernel keeps for a reader: as little as it lets one ask for.
const RECEIVE_BUFFER: u32 = 4096;

/// Readers that read nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Slow {
    pub(in crate::commands::bench) address: String,
    /// The number of the first person.
    pub(in crate::commands::bench) first: u32,
    /// Readers.
    pub(in crate::commands::bench) readers: u32,
}

/// Registers and fills the mailboxes and says so; at the next line connects everybody, says how many, and holds them.
pub(super) async fn run(job: Slow, told: &mut Told) -> anyhow::Result<()> {
    register(&job.address, job.first, job.readers * 2).await?;
    each(&job, |job, nth| async move { fill(&job, nth).await }).await?;
    told.tell(&json!("filled"));
    if told.next().await?.is_none() {
        return Ok(());
    }
    let held = each(&job, |job, nth| async move {
        let reader = Person::nth(job.first + nth * 2 + 1);
        Socket::connect_narrow(&job.address, source(nth), &reader, RECEIVE_BUFFER).await
    });
    let held = held.await?;
    told.tell(&json!(held.len()));
    // They are held until nobody asks any more.
    while told.next().await?.is_some() {}
    drop(held);
    Ok(())
}

async fn each<T: std::marker::Send + 'static, F: Future<Output = anyhow::Result<T>> + std::marker::Send + 'static>(
    job: &Slow,
    work: impl Fn(Slow, u32) -> F,
) -> anyhow::Result<Vec<T>> {
    let (mut running, mut done) = (JoinSet::new(), Vec::new());
    for nth in 0..job.readers {
        if running.len() >= AT_ONCE {
            done.extend(running.join_next().await.transpose()?.transpose()?);
        }
        running.spawn(work(job.clone(), nth));
    }
    while let Some(one) = running.join_next().await {
        done.push(one??);
    }
    ensure!(done.len() == job.readers as usize, "a reader is missing");
    Ok(done)
}

async fn fill(job: &Slow, nth: u32) -> anyhow::Result<()> {
    let (sender, reader) = (Person::nth(job.first + nth * 2), Person::nth(job.first + nth * 2 + 1));
    let (mut socket, _) = Socket::connect(&job.address, source(nth), &sender, 0).await?;
    for number in 1..=PENDING {
        socket.put(&large(&reader, number));
    }
    socket.flush().await?;
    let mut stored = 0;
    while stored < PENDING {
        for frame in socket.frames().await? {
            match frame.body {
                Some(Body::SendResult(_)) => stored += 1,
                Some(Body::Error(error)) => bail!("a send was refused: {}", error.message),
                _ => {}
            }
        }
    }
    Ok(())
}

fn large(to: &Person, number: u64) -> Frame {
    let ciphertext = super::super::noise(BODY, usize::try_from(number).unwrap_or_default()).into();
    let devices = vec![DeviceBody { device: 1, reg_id: to.reg_id(), ciphertext }];
    let target = Direct { account: Bytes::copy_from_slice(to.account.as_bytes()), devices };
    let send = Send {
        msg_id: message_id(number),
        target: Some(send::Target::Direct(target)),
        class: Class::Message.into(),
        ..Send::default()
    };
    Frame::with_id(u32::try_from(number).unwrap_or(u32::MAX), Body::Send(send))
}
