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
    /// Bytes a second that a request must bring, on the average over `slow_window_s`; one that brings less is ended and its
    /// prefix kept. 0 takes any pace. Default: 256, a tenth of what the slowest mobile networks carry.
    pub slow_bytes_per_s: u64,
    /// Over how many seconds of waiting for a request its pace is measured. Default: 60.
    pub slow_window_s: u64,
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
            slow_bytes_per_s: 256,
            slow_window_s: 60,
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

    /// [`Self::slow_window_s`] as a duration.
    pub const fn slow_window(&self) -> Duration {
        Duration::from_secs(self.slow_window_s)
    }

    /// [`Self::sweep_interval_s`] as a duration; a second at least, since a timer cannot tick without a pause.
    pub fn sweep_interval(&self) -> Duration {
        Duration::from_secs(self.sweep_interval_s.max(1))
    }
}

/// Where blobs are kept: in the data directory, unless a bucket is named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlobsConfig {
    /// The bucket. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
}

/// Bytes of a part at least, but for the last, by S3.
const S3_PART_BYTES_MIN: u64 = 5 << 20;

/// Bytes of a part at most, by S3.
const S3_PART_BYTES_MAX: u64 = 5 << 30;

/// A bucket of an S3-compatible store. Its keys are in `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, for temporary
/// ones, `AWS_SESSION_TOKEN`, or in the files named here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The server, such as `http://10.0.0.9:8333`. Default: that of AWS in `region`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The bucket, which must be there.
    pub bucket: String,
    /// What begins every key, such as `waxwing/`, when the bucket is not for Waxwing alone. Default: nothing.
    #[serde(default)]
    pub prefix: String,
    /// The region that requests are signed for. Default: us-east-1.
    #[serde(default = "S3Config::default_region")]
    pub region: String,
    /// Whether the bucket stands in the path of a request instead of the host name. Default: true.
    #[serde(default = "S3Config::default_path_style")]
    pub path_style: bool,
    /// The file with the access key's id, instead of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id_file: Option<PathBuf>,
    /// The file with the secret access key, instead of the environment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_access_key_file: Option<PathBuf>,
    /// Memory for bytes on their way to the bucket, over all uploads: at least one part. Default: 256 MiB.
    #[serde(default = "S3Config::default_memory_bytes")]
    pub memory_bytes: usize,
    /// Bytes of a part, doubled for an upload that would have more than 9,000 of them. S3 takes none below 5 MiB.
    /// Default: 8 MiB.
    #[serde(default = "S3Config::default_part_bytes")]
    pub part_bytes: u64,
}

impl S3Config {
    /// A bucket with everything else as it is by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            endpoint: None,
            bucket: bucket.into(),
            prefix: String::new(),
            region: Self::default_region(),
            path_style: Self::default_path_style(),
            access_key_id_file: None,
            secret_access_key_file: None,
            memory_bytes: Self::default_memory_bytes(),
            part_bytes: Self::default_part_bytes(),
        }
    }

    /// Finds what cannot work when the largest upload has parts of `part_bytes_max` bytes.
    pub(crate) fn check(&self, part_bytes_max: u64) -> Result<(), &'static str> {
        if self.part_bytes < S3_PART_BYTES_MIN {
            return Err("`part_bytes` is below 5 MiB, which S3 takes for a part at least");
        }
        if self.part_bytes > S3_PART_BYTES_MAX {
            return Err("`part_bytes` is above 5 GiB, which S3 takes for a part at most");
        }
        // A part is gathered from what was set aside while a piece of the next comes in.
        if (self.memory_bytes as u64) < 2 * part_bytes_max {
            return Err("`memory_bytes` is less than two parts of the largest upload");
        }
        if self.prefix.starts_with('/') {
            return Err("`prefix` begins with a slash, which some servers drop");
        }
        Ok(())
    }

    fn default_region() -> String {
        "us-east-1".to_owned()
    }

    const fn default_path_style() -> bool {
        true
    }

    const fn default_memory_bytes() -> usize {
        256 << 20
    }

    const fn default_part_bytes() -> u64 {
        8 << 20
    }
}
