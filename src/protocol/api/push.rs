//! Where a device is woken when something waits for it and it is not connected.
//!
//! Paths: [`PushTarget`] at `PUT /v1/push`, gone with `DELETE /v1/push`; [`PushView`] at `GET /v1/push`; [`PushTest`] at
//! `POST /v1/push/test`. All are about the calling device alone.

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// Bytes of a push token or an endpoint's URL at most. Tokens are opaque and have no fixed length; the longest seen in
/// the field have a few hundred bytes.
pub const PUSH_TOKEN_BYTES_MAX: usize = 1000;

/// Who wakes a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PushProvider {
    /// Apple's push notification service.
    Apns,
    /// Firebase Cloud Messaging.
    Fcm,
    /// A browser's push service.
    WebPush,
    /// A distributor of the user's choice.
    UnifiedPush,
}

impl PushProvider {
    /// Its name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Apns => "apns",
            Self::Fcm => "fcm",
            Self::WebPush => "web-push",
            Self::UnifiedPush => "unified-push",
        }
    }
}

/// Body of `PUT /v1/push`: where the calling device is woken from now on. The same again says that it is still true;
/// apps do so at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "provider", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PushTarget {
    /// By Apple.
    Apns {
        /// The device token, in hex.
        token: String,
        /// The app's bundle id.
        topic: String,
        /// Whether the token is of Apple's development environment.
        #[serde(default)]
        sandbox: bool,
        /// PushKit's token, by which calls ring; without it they come like messages.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        voip_token: Option<String>,
    },
    /// By Firebase.
    Fcm {
        /// The registration token.
        token: String,
    },
    /// By a browser's push service.
    WebPush(Subscription),
    /// By a UnifiedPush distributor.
    UnifiedPush(Subscription),
}

impl PushTarget {
    /// Who wakes.
    pub const fn provider(&self) -> PushProvider {
        match self {
            Self::Apns { .. } => PushProvider::Apns,
            Self::Fcm { .. } => PushProvider::Fcm,
            Self::WebPush(_) => PushProvider::WebPush,
            Self::UnifiedPush(_) => PushProvider::UnifiedPush,
        }
    }
}

/// A subscription at a push service, as a browser's `PushSubscription` tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscription {
    /// Where wakes are posted.
    pub endpoint: String,
    /// The device's P-256 public key, 65 bytes in base64url.
    pub p256dh: String,
    /// Its authentication secret, 16 bytes in base64url.
    pub auth: String,
}

/// Answer of `GET /v1/push`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushView {
    /// Who this service can wake by.
    pub providers: Vec<PushProvider>,
    /// The key that a browser or distributor subscribes with (`applicationServerKey`): 65 bytes in base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vapid_key: Option<String>,
    /// Who wakes the calling device; none when nobody does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<PushProvider>,
    /// When it said so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set_at: Option<Timestamp>,
}

/// Answer of `POST /v1/push/test`: what the provider said to a wake of the calling device, just now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushTest {
    /// Who was asked.
    pub provider: PushProvider,
    /// Whether the wake was accepted, which is not yet that it arrives.
    pub accepted: bool,
    /// Why, in the provider's word or ours.
    pub reason: String,
}
