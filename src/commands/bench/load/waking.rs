//! Devices that are away and can be woken, and one who writes to all of them.

use anyhow::bail;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use waxwing_protocol::frames::{Class, Frame, Send, Urgency, frame::Body, send};

use super::people::{Person, register, register_wakeable};
use super::socket::Socket;
use super::{BODY_BYTES, Told, source};

/// Messages sent and not answered.
const IN_FLIGHT: u32 = 64;

/// Devices to be woken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Waking {
    pub(in crate::commands::bench) address: String,
    /// How many.
    pub(in crate::commands::bench) devices: u32,
    /// The app that they run.
    pub(in crate::commands::bench) topic: String,
}

/// Registers them, each to be woken at a token that is its number, and says so; at the next line writes to each once.
pub(super) async fn run(job: Waking, told: &mut Told) -> anyhow::Result<()> {
    register_wakeable(&job.address, job.devices, &job.topic).await?;
    let sender = Person::nth(job.devices);
    register(&job.address, job.devices, 1).await?;
    told.tell(&json!("registered"));
    if told.next().await?.is_none() {
        return Ok(());
    }
    let (mut from, _) = Socket::connect(&job.address, source(0), &sender, 0).await?;
    let (mut sent, mut answered) = (0, 0);
    while answered < job.devices {
        while sent < job.devices && sent < answered + IN_FLIGHT {
            from.put(&message(&Person::nth(sent), sent));
            sent += 1;
        }
        from.flush().await?;
        for frame in from.frames().await? {
            match frame.body {
                Some(Body::SendResult(_)) => answered += 1,
                Some(Body::Error(error)) => bail!("a message was refused: {}", error.message),
                _ => {}
            }
        }
    }
    // The server is watched until the last wake has come.
    told.next().await?;
    Ok(())
}

fn message(to: &Person, n: u32) -> Frame {
    let mut id = [0; 16];
    id[12..].copy_from_slice(&n.to_be_bytes());
    let send = Send {
        msg_id: Bytes::copy_from_slice(&id),
        target: Some(send::Target::Direct(to.target(Bytes::from(vec![0x77; BODY_BYTES])))),
        class: Class::Message.into(),
        urgency: Urgency::High.into(),
        ..Send::default()
    };
    Frame::with_id(n + 1, Body::Send(send))
}
