//! Connections that say Hello and then nothing.

use anyhow::ensure;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use super::people::{Person, register};
use super::socket::Socket;
use super::{Told, source};

/// Connections under way at once.
const CONNECTING_AT_ONCE: usize = 64;

/// Connections to be held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in crate::commands::bench) struct Holding {
    pub(in crate::commands::bench) address: String,
    /// The number of the first person.
    pub(in crate::commands::bench) first: u32,
    /// People.
    pub(in crate::commands::bench) count: u32,
    /// Connections to make at each line told.
    pub(in crate::commands::bench) step: u32,
}

/// Registers everybody and says so; then, at each line told, connects some more and says how many are held.
pub(super) async fn run(job: Holding, told: &mut Told) -> anyhow::Result<()> {
    register(&job.address, job.first, job.count).await?;
    told.tell(&0);
    let mut held = Vec::new();
    let mut next = job.first;
    while told.next().await?.is_some() {
        let until = (next + job.step).min(job.first + job.count);
        let mut running = JoinSet::new();
        for number in next..until {
            if running.len() >= CONNECTING_AT_ONCE {
                held.extend(running.join_next().await.transpose()?.transpose()?);
            }
            let address = job.address.clone();
            running.spawn(async move {
                let (socket, _) = Socket::connect(&address, source(number), &Person::nth(number), 0).await?;
                anyhow::Ok(socket)
            });
        }
        while let Some(socket) = running.join_next().await {
            held.push(socket??);
        }
        next = until;
        ensure!(held.len() == (next - job.first) as usize, "a connection is missing");
        told.tell(&json!(held.len()));
    }
    Ok(())
}
