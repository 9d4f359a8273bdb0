//! What an operator can set about messaging.
//!
//! Every key has a default that suits one small server. Bounds are part of the configuration on purpose: a server
//! whose queues grow as long as strangers like is one that strangers can stop.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::push::{ApnsConfig, FcmConfig, PushConfig, WebConfig};
use waxwing_protocol::api::Registration;
use waxwing_protocol::grant::SHARE_LIFETIME;

/// The messaging core's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Who may register: `open`, `invite` (default) or `closed`.
    pub registration: Registration,
    /// Browser origins allowed on the socket beside the server's own, such as `https://chat.example`.
    pub origins: Vec<String>,
    /// The largest blob an upload grant allows, in bytes. Default 10 GiB.
    pub blob_bytes_max: u64,
    /// What one account may have stored at the origin and under way, in bytes. Default 100 GiB.
    pub quota_bytes: u64,
    /// The longest a share grant lasts, in seconds. Default 45 days: as long as the origin keeps blobs.
    pub share_lifetime_s_max: u64,
    /// How long an undelivered message is kept, in seconds. Default 30 days.
    pub retention_s: u32,
    /// Messages that may wait in one lane of a mailbox. Default 100,000.
    pub mailbox_msgs_max: u64,
    /// Bytes of bodies that may wait in one lane of a mailbox. Default 256 MiB.
    pub mailbox_bytes_max: u64,
    /// Seconds of quiet before a ping, while a person is looking. Default 55: below the minute of common proxies.
    pub heartbeat_foreground_s: u32,
    /// Seconds of quiet before a ping, in the background. Default 240: phones sleep, and NATs forget after 5 minutes.
    pub heartbeat_background_s: u32,
    /// Seconds a new socket has to say Hello. Default 10.
    pub hello_timeout_s: u32,
    /// Seconds one write to a socket may take before its reader counts as too slow. Default 20.
    pub slow_reader_s: u32,
    /// Seconds a poll waits for something to tell. Default 25: proxies end requests that are silent for 30.
    pub poll_s: u32,
    /// Devices that may stand in line to open their mailboxes, as when everybody reconnects after an outage; who finds it
    /// full is told to come back at a random moment. Default 4,096: a few seconds' worth on a small machine.
    pub connecting_max: u32,
    /// Bytes that pages of mailboxes on their way to clients may take in all; who finds them taken waits. Default 64 MiB.
    pub pages_bytes_max: u64,
    /// Messages a device may send a minute; as many again in a burst. Default 60,000: no person's device comes near it.
    pub sends_per_minute: u32,
    /// Messages that all devices of an account may send a minute; as many again in a burst. Default 120,000.
    pub account_sends_per_minute: u32,
    /// Messages an account may send to one other a minute; as many again in a burst. Default 30,000: a mailbox takes a
    /// while to fill, and its owner can block meanwhile.
    pub pair_sends_per_minute: u32,
    /// Messages that a group takes a minute; as many again in a burst. Default 6,000: each is a row for everybody in it.
    pub group_sends_per_minute: u32,
    /// Connections a device may open a minute, polls among them; as many again in a burst. Default 600: each costs a
    /// commit, and a client that does not back off is a loop.
    pub hellos_per_minute: u32,
    /// Requests, upgrades and polls among them, that one address may make a minute; as many again in a burst. Loopback
    /// addresses are not limited: behind one may stand a proxy, and so everybody. Default 6,000: an office shares one.
    pub address_requests_per_minute: u32,
    /// Accounts that may be registered from one address an hour; as many again in a burst. Default 100.
    pub address_registrations_per_hour: u32,
    /// Accounts a device may look up a minute; as many again in a burst. Default 60.
    pub look_ups_per_minute: u32,
    /// One-time prekeys of one device handed out an hour; beyond that a claim gets the fallback key, so that nobody
    /// empties a stranger's directory. Default 100.
    pub one_time_claims_per_hour: u32,
    /// Prekeys of one device handed out an hour at all, the fallback key included; beyond that a claim is refused for a
    /// while. Default 10,000.
    pub claims_per_hour: u32,
    /// Changes of groups that a device may make a minute; as many again in a burst. Default 120: each is a row for
    /// everybody in the group.
    pub group_changes_per_minute: u32,
    /// Links of groups that an account may try a minute; as many again in a burst. Default 60: nobody guesses a link, and
    /// nobody should try.
    pub group_links_per_minute: u32,
    /// Entries that a channel takes a minute; as many again in a burst. Default 600: everybody who follows is told of each.
    pub channel_appends_per_minute: u32,
    /// Charters and pages of channels that a device may make a minute; as many again in a burst. Default 120.
    pub channel_changes_per_minute: u32,
    /// Times that an account may ask a channel for something a minute; as many again in a burst. Default 1,200, of up to 256
    /// entries each: nobody guesses a channel's id, and nobody should try.
    pub channel_reads_per_minute: u32,
    /// The database that holds mailboxes and directory in place of the data directory: any number of nodes share it.
    /// Default: none.
    pub postgres: Option<PostgresConfig>,
    /// Seconds between two rounds of the sweeper, which erases what was acked or has expired. Default 60.
    pub sweep_interval_s: u32,
    /// How devices are woken for which something waits.
    pub push: PushConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            registration: Registration::Invite,
            origins: Vec::new(),
            blob_bytes_max: 10 << 30,
            quota_bytes: 100 << 30,
            share_lifetime_s_max: SHARE_LIFETIME.as_secs(),
            retention_s: 30 * 24 * 60 * 60,
            mailbox_msgs_max: 100_000,
            mailbox_bytes_max: 256 << 20,
            heartbeat_foreground_s: 55,
            heartbeat_background_s: 240,
            hello_timeout_s: 10,
            slow_reader_s: 20,
            poll_s: 25,
            connecting_max: 4_096,
            pages_bytes_max: 64 << 20,
            sends_per_minute: 60_000,
            account_sends_per_minute: 120_000,
            pair_sends_per_minute: 30_000,
            group_sends_per_minute: 6_000,
            hellos_per_minute: 600,
            address_requests_per_minute: 6_000,
            address_registrations_per_hour: 100,
            look_ups_per_minute: 60,
            one_time_claims_per_hour: 100,
            claims_per_hour: 10_000,
            group_changes_per_minute: 120,
            group_links_per_minute: 60,
            channel_appends_per_minute: 600,
            channel_changes_per_minute: 120,
            channel_reads_per_minute: 1_200,
            postgres: None,
            sweep_interval_s: 60,
            push: PushConfig::default(),
        }
    }
}

/// A PostgreSQL database, version 15 or newer.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// Where it is, such as `postgres://waxwing@db.example:5432/waxwing`. Several hosts with commas between them are tried
    /// in turn for the one that takes writes: `…/waxwing?target_session_attrs=read-write`.
    pub url: String,
    /// A file with the password, so that it stands in no configuration. Default: the URL's, or none.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

/// Why a configuration makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("messaging.{key} must be at least 1")]
pub struct ConfigError {
    /// The key.
    pub key: &'static str,
}

impl Config {
    /// Checks what serde cannot: a time-out or bound of zero would refuse everything.
    ///
    /// # Errors
    /// [`ConfigError`] names the first key that is zero.
    pub fn check(&self) -> Result<(), ConfigError> {
        let numbers = [
            ("blob_bytes_max", self.blob_bytes_max),
            ("quota_bytes", self.quota_bytes),
            ("share_lifetime_s_max", self.share_lifetime_s_max),
            ("retention_s", self.retention_s.into()),
            ("mailbox_msgs_max", self.mailbox_msgs_max),
            ("mailbox_bytes_max", self.mailbox_bytes_max),
            ("heartbeat_foreground_s", self.heartbeat_foreground_s.into()),
            ("heartbeat_background_s", self.heartbeat_background_s.into()),
            ("hello_timeout_s", self.hello_timeout_s.into()),
            ("slow_reader_s", self.slow_reader_s.into()),
            ("poll_s", self.poll_s.into()),
            ("connecting_max", self.connecting_max.into()),
            ("pages_bytes_max", self.pages_bytes_max),
            ("sends_per_minute", self.sends_per_minute.into()),
            ("account_sends_per_minute", self.account_sends_per_minute.into()),
            ("pair_sends_per_minute", self.pair_sends_per_minute.into()),
            ("group_sends_per_minute", self.group_sends_per_minute.into()),
            ("hellos_per_minute", self.hellos_per_minute.into()),
            ("address_requests_per_minute", self.address_requests_per_minute.into()),
            ("address_registrations_per_hour", self.address_registrations_per_hour.into()),
            ("look_ups_per_minute", self.look_ups_per_minute.into()),
            ("one_time_claims_per_hour", self.one_time_claims_per_hour.into()),
            ("claims_per_hour", self.claims_per_hour.into()),
            ("group_changes_per_minute", self.group_changes_per_minute.into()),
            ("group_links_per_minute", self.group_links_per_minute.into()),
            ("channel_appends_per_minute", self.channel_appends_per_minute.into()),
            ("channel_changes_per_minute", self.channel_changes_per_minute.into()),
            ("channel_reads_per_minute", self.channel_reads_per_minute.into()),
            ("sweep_interval_s", self.sweep_interval_s.into()),
        ];
        match numbers.into_iter().chain(self.push.numbers()).find(|(_, value)| *value == 0) {
            Some((key, _)) => Err(ConfigError { key }),
            None => Ok(()),
        }
    }

    /// The heartbeat of a connection.
    pub(crate) fn heartbeat(&self, foreground: bool) -> Duration {
        seconds(if foreground { self.heartbeat_foreground_s } else { self.heartbeat_background_s })
    }
}

/// So many seconds.
pub(crate) fn seconds(count: u32) -> Duration {
    Duration::from_secs(count.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_a_zero_is_named() {
        assert_eq!(Config::default().check(), Ok(()));
        let config = Config { slow_reader_s: 0, ..Config::default() };
        assert_eq!(config.check(), Err(ConfigError { key: "slow_reader_s" }));
    }

    #[test]
    fn a_misspelt_key_is_an_error() {
        let error = serde_json::from_str::<Config>(r#"{"mailbox_max": 5}"#).unwrap_err().to_string();
        assert!(error.contains("mailbox_max"), "{error}");
    }
}
