//! The load generator: this binary once more, as processes of their own, so that neither their memory nor their CPU time
//! counts as the server's.
//!
//! A generator is told its [`Job`] as a line of JSON on stdin, tells its figures as lines on stdout, and goes on at each
//! further line, until stdin ends.

mod channel;
mod drain;
mod group;
mod groups;
mod hold;
mod mqtt;
mod pairs;
mod people;
mod slow;
mod socket;
mod waking;

use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, Stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::output::Output;

pub(super) use self::channel::Channeling;
pub(super) use self::drain::{Drained, Draining};
pub(super) use self::group::{Fanned, Grouping};
pub(super) use self::groups::{Talked, Talking};
pub(super) use self::hold::Holding;
pub(super) use self::pairs::{Paced, Pairs, Peak, Times};
pub(super) use self::people::unsigned;
pub(super) use self::slow::Slow;
pub(super) use self::waking::Waking;

/// Bytes of a message's body, as a short text has when it is sealed.
const BODY_BYTES: usize = 300;

/// What a generator does.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Job {
    /// Pairs that send as fast as they are answered.
    Pairs(Pairs),
    /// Pairs that send at a steady rate.
    Paced(Paced),
    /// The same pairs against an MQTT broker.
    MqttPairs(Pairs),
    /// Connections that say nothing.
    Hold(Holding),
    /// Mailboxes that fill and are drained.
    Drain(Draining),
    /// A channel with many followers.
    Channel(Channeling),
    /// A large group.
    Group(Grouping),
    /// Many groups at a steady rate.
    Groups(Talking),
    /// Readers that read nothing.
    Slow(Slow),
    /// Devices that are woken.
    Waking(Waking),
}

/// Runs as a generator.
pub(super) async fn run(output: Output) -> anyhow::Result<()> {
    let mut told = Told { lines: BufReader::new(tokio::io::stdin()).lines(), output };
    let job = told.next().await?.context("no job on stdin")?;
    match serde_json::from_str(&job)? {
        Job::Pairs(job) => told.tell(&pairs::peak(job).await?),
        Job::MqttPairs(job) => told.tell(&mqtt::peak(job).await?),
        Job::Paced(job) => told.tell(&pairs::paced(job).await?),
        Job::Hold(job) => hold::run(job, &mut told).await?,
        Job::Drain(job) => drain::run(job, &mut told).await?,
        Job::Channel(job) => channel::run(job, &mut told).await?,
        Job::Group(job) => group::run(job, &mut told).await?,
        Job::Groups(job) => groups::run(job, &mut told).await?,
        Job::Slow(job) => slow::run(job, &mut told).await?,
        Job::Waking(job) => waking::run(job, &mut told).await?,
    }
    Ok(())
}

/// A generator's line to whoever started it.
struct Told {
    lines: Lines<BufReader<Stdin>>,
    output: Output,
}

impl Told {
    /// Waits for the next line; `None` when it is time to end.
    async fn next(&mut self) -> anyhow::Result<Option<String>> {
        Ok(self.lines.next_line().await?)
    }

    fn tell(&self, figures: &impl Serialize) {
        self.output.result("", figures);
    }
}

/// A generator as its starter sees it.
pub(super) struct Generator {
    _process: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Generator {
    /// Starts one with its job.
    pub(super) async fn start(job: &Job) -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--json", "bench", "load"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = process.stdin.take().context("stdin is piped")?;
        let stdout = process.stdout.take().context("stdout is piped")?;
        let mut generator = Self { _process: process, stdin, lines: BufReader::new(stdout).lines() };
        generator.line(&serde_json::to_string(job)?).await?;
        Ok(generator)
    }

    /// Lets it go on.
    pub(super) async fn go(&mut self) -> anyhow::Result<()> {
        self.line("go").await
    }

    /// What it tells next.
    pub(super) async fn told<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = self.lines.next_line().await?.context("a generator ended early")?;
        let value: Value = serde_json::from_str(&line)?;
        if let Some(error) = value["error"].as_str() {
            bail!("a generator failed: {error}");
        }
        Ok(serde_json::from_value(value)?)
    }

    async fn line(&mut self, line: &str) -> anyhow::Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.stdin.flush().await?)
    }
}

/// Connects as the person of that number, until it is welcomed.
pub(super) async fn greet(address: &str, number: u32) -> anyhow::Result<()> {
    socket::Socket::connect(address, source(0), &people::Person::nth(number), 0).await.map(drop)
}

/// A message's id: a UUIDv7 of this moment, as clients make them, with a number where those have random bits.
fn message_id(number: u64) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    Bytes::copy_from_slice(&(now << 80 | 7 << 76 | 2 << 62 | u128::from(number)).to_be_bytes())
}

/// The address connections come from: one has 28,000 ports, which many connections use up.
fn source(number: u32) -> Ipv4Addr {
    let [.., high, low] = (number / SOURCE_CONNECTIONS + 1).to_be_bytes();
    Ipv4Addr::new(127, 0, high, low)
}

/// Connections from one address.
const SOURCE_CONNECTIONS: u32 = 5_000;
