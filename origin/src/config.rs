//! What an operator can set about an origin, and what holds when nothing is set.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of an origin. Every key has a default; a key that is none of these is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How clients reach this origin, such as `https://up.example`; what `Location` begins with. When it is not set,
    /// `http://` and the `Host` a request names: right without a proxy, and for trying things out.
    pub public_url: Option<String>,
    /// The largest blob in bytes. A grant may allow less. Default: 64 GiB.
    pub blob_bytes_max: u64,
    /// How long an unfinished upload stays after its last acknowledged byte, and how long a finished one remembers its
    /// answer; in seconds. Default: 86,400 (one day).
    pub upload_expiry_s: u64,
    /// How long an upload stays whose creator never came back to it, in seconds. Default: 3,600 (one hour).
    pub unacknowledged_expiry_s: u64,
    /// How long an owner has a blob that was neither uploaded nor kept again, in seconds; it goes with its last owner.
    /// Longer than messages wait for their devices. Default: 3,888,000 (45 days).
    pub blob_retention_s: u64,
    /// How long a request may bring no byte before it is ended and its prefix kept, in seconds. Default: 60.
    pub idle_timeout_s: u64,
    /// How often expired uploads are looked for, in seconds. Default: 60.
    pub sweep_interval_s: u64,
    /// Space on the data disk that uploads leave free, in bytes: journals, tables and compaction of the records, and of
    /// messaging on the same disk. A store whose records find no room is read-only until a restart. Default: 512 MiB.
    pub reserve_bytes: u64,
    /// Who is told of each upload that became a blob. Default: nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// Whom an origin tells of each upload that became a blob: a POST by the Standard Webhooks specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Where to, such as `https://backend.example/uploads`. Not followed elsewhere.
    pub url: String,
    /// The file with the secret that signs: `whsec_` and 24 to 64 bytes in base64. Read once, at the start.
    pub secret_file: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            public_url: None,
            blob_bytes_max: 64 << 30,
            upload_expiry_s: 24 * 60 * 60,
            unacknowledged_expiry_s: 60 * 60,
            blob_retention_s: 45 * 24 * 60 * 60,
            idle_timeout_s: 60,
            sweep_interval_s: 60,
            reserve_bytes: 512 << 20,
            webhook: None,
        }
    }
}

impl Config {
    /// [`Self::upload_expiry_s`] as a duration.
    pub const fn upload_expiry(&self) -> Duration {
        Duration::from_secs(self.upload_expiry_s)
    }

    /// [`Self::unacknowledged_expiry_s`] as a duration.
    pub const fn unacknowledged_expiry(&self) -> Duration {
        Duration::from_secs(self.unacknowledged_expiry_s)
    }

    /// [`Self::blob_retention_s`] as a duration.
    pub const fn blob_retention(&self) -> Duration {
        Duration::from_secs(self.blob_retention_s)
    }

    /// [`Self::idle_timeout_s`] as a duration.
    pub const fn idle_timeout(&self) -> Duration {
        Duration::from_secs(self.idle_timeout_s)
    }

    /// [`Self::sweep_interval_s`] as a duration; a second at least, since a timer cannot tick without a pause.
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s.max(1))
    }
}
