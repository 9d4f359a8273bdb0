//! What an operator can set about waking devices. Without a section for any provider, nobody is woken.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How devices are woken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushConfig {
    /// The longest that a wake is held back, in milliseconds; each is held back for a random part of it, so that its time
    /// tells little. Calls are not. Default 2,000.
    pub hold_ms_max: u32,
    /// How many seconds a connected device has to ack what it was sent before it is woken, and one that went to come back
    /// by itself. Default 10.
    pub quiet_s: u32,
    /// After how many seconds a wake that brought nobody counts as lost, so that a new message wakes again. Default 900.
    pub again_after_s: u32,
    /// Wakes under way at once. Default 256.
    pub in_flight_max: usize,
    /// Wakes under way at once to one provider, or to one origin of Web Push. Default 128.
    pub provider_in_flight_max: usize,
    /// Test wakes that a device may ask for an hour. Default 20.
    pub tests_per_hour: u32,
    /// Certificates of further authorities to believe, in PEM, beside those of the system. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities_file: Option<PathBuf>,
    /// Apple's service. Default: not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apns: Option<ApnsConfig>,
    /// Google's service. Default: not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fcm: Option<FcmConfig>,
    /// Web Push and UnifiedPush. Default: not used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub web: Option<WebConfig>,
}

impl Default for PushConfig {
    fn default() -> Self {
        Self {
            hold_ms_max: 2_000,
            quiet_s: 10,
            again_after_s: 900,
            in_flight_max: 256,
            provider_in_flight_max: 128,
            tests_per_hour: 20,
            authorities_file: None,
            apns: None,
            fcm: None,
            web: None,
        }
    }
}

impl PushConfig {
    /// Whether anybody is woken.
    pub(crate) fn is_used(&self) -> bool {
        self.apns.is_some() || self.fcm.is_some() || self.web.is_some()
    }

    /// The numbers of which none makes sense as zero.
    pub(crate) fn numbers(&self) -> [(&'static str, u64); 5] {
        [
            ("push.quiet_s", self.quiet_s.into()),
            ("push.again_after_s", self.again_after_s.into()),
            ("push.in_flight_max", self.in_flight_max as u64),
            ("push.provider_in_flight_max", self.provider_in_flight_max as u64),
            ("push.tests_per_hour", self.tests_per_hour.into()),
        ]
    }
}

/// Apple's push notification service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApnsConfig {
    /// The signing key, a `.p8` file. Taken up anew when it changes.
    pub key_file: PathBuf,
    /// The key's id: ten characters.
    pub key_id: String,
    /// The team's id: ten characters.
    pub team_id: String,
    /// Bundle ids of the apps that are woken.
    pub topics: Vec<String>,
    /// Apple's service.
    pub url: String,
    /// Its development environment, for apps built by Xcode.
    pub sandbox_url: String,
}

impl Default for ApnsConfig {
    fn default() -> Self {
        Self {
            key_file: PathBuf::new(),
            key_id: String::new(),
            team_id: String::new(),
            topics: Vec::new(),
            url: "https://api.push.apple.com".into(),
            sandbox_url: "https://api.sandbox.push.apple.com".into(),
        }
    }
}

/// Firebase Cloud Messaging.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct FcmConfig {
    /// The service account, a JSON file. Taken up anew when it changes.
    pub service_account_file: PathBuf,
    /// Google's service.
    pub url: String,
}

impl Default for FcmConfig {
    fn default() -> Self {
        Self { service_account_file: PathBuf::new(), url: "https://fcm.googleapis.com".into() }
    }
}

/// Web Push and UnifiedPush.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct WebConfig {
    /// Whom a push service writes to when something is wrong: `mailto:` or `https:`.
    pub subject: String,
    /// The key that services know this server by: PEM, or 32 bytes in base64url. Another one makes every subscription
    /// useless. Default: `vapid.key` in the data directory, made when it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vapid_key_file: Option<PathBuf>,
    /// Hosts that endpoints may name: a name, `*.` and a name for all below it, or `*` for any that is out on the
    /// internet. Default: the services of the common browsers.
    pub hosts: Vec<String>,
    /// Hosts in the operator's own network that endpoints may name, each as `name:port`. Whoever has an account can make
    /// this server post there. Default: none.
    pub hosts_inside: Vec<String>,
}

impl Default for WebConfig {
    fn default() -> Self {
        let hosts =
            ["fcm.googleapis.com", "updates.push.services.mozilla.com", "*.push.apple.com", "*.notify.windows.com"];
        Self {
            subject: String::new(),
            vapid_key_file: None,
            hosts: hosts.map(str::to_owned).into(),
            hosts_inside: Vec::new(),
        }
    }
}
