//! The providers that are configured, and whether a target is one of theirs.

use std::path::Path;
use std::sync::Arc;

use waxwing_protocol::Timestamp;
use waxwing_protocol::api::{PUSH_TOKEN_BYTES_MAX, PushProvider, PushTarget};

use super::apns::{Apns, ApnsTarget, is_token};
use super::config::PushConfig;
use super::credentials::CredentialsError;
use super::fcm::Fcm;
use super::gates::{GateKey, Gates};
use super::net::{Endpoint, Net, Resolver, SystemResolver, client_config};
use super::schedule::Loudness;
use super::verdict::Verdict;
use super::web::{SubscriptionRefused, Web};

/// Who wakes devices.
#[derive(Default)]
pub(crate) struct Providers {
    net: Option<Net>,
    apns: Option<Apns>,
    fcm: Option<Fcm>,
    web: Option<Web>,
}

/// Why a target is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TargetRefused {
    #[error("this service does not wake by {}", .0.name())]
    NotOffered(PushProvider),
    #[error("{0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Subscription(#[from] SubscriptionRefused),
}

/// A target that was looked at, ready to be asked.
pub(super) enum Checked<'a> {
    Apns(&'a Apns, ApnsTarget<'a>),
    Fcm(&'a Fcm, &'a str),
    Web(&'a Web, &'a waxwing_protocol::api::Subscription, Endpoint),
}

impl Providers {
    /// Opens those that are configured; secrets of ours are in `data_dir`. Reads files.
    pub(crate) fn open(config: &PushConfig, data_dir: &Path) -> Result<Self, CredentialsError> {
        Self::open_with(config, data_dir, Arc::new(SystemResolver))
    }

    /// The same with another way to look names up.
    pub(crate) fn open_with(
        config: &PushConfig,
        data_dir: &Path,
        resolver: Arc<dyn Resolver>,
    ) -> Result<Self, CredentialsError> {
        if !config.is_used() {
            return Ok(Self::default());
        }
        let tls = client_config(config.authorities_file.as_deref());
        let tls = tls.map_err(|error| CredentialsError::new(Path::new("messaging.push.authorities_file"), &error))?;
        Ok(Self {
            net: Some(Net::new(tls, resolver)),
            apns: config.apns.as_ref().map(Apns::open).transpose()?,
            fcm: config.fcm.as_ref().map(Fcm::open).transpose()?,
            web: config.web.as_ref().map(|web| Web::open(web, data_dir)).transpose()?,
        })
    }

    /// Who is configured.
    pub(super) fn offered(&self) -> Vec<PushProvider> {
        let web = self.web.is_some();
        [
            (self.apns.is_some(), PushProvider::Apns),
            (self.fcm.is_some(), PushProvider::Fcm),
            (web, PushProvider::WebPush),
            (web, PushProvider::UnifiedPush),
        ]
        .into_iter()
        .filter_map(|(offered, provider)| offered.then_some(provider))
        .collect()
    }

    pub(super) fn vapid_key(&self) -> Option<String> {
        self.web.as_ref().map(Web::public_key)
    }

    /// Whether a target that a device names can be used.
    pub(super) fn check(&self, target: &PushTarget) -> Result<(), TargetRefused> {
        if let Checked::Web(_, subscription, _) = self.checked(target)? {
            Web::check_keys(subscription)?;
        }
        Ok(())
    }

    /// Looks at a target: as it is registered, and again at every send.
    pub(super) fn checked<'a>(&'a self, target: &'a PushTarget) -> Result<Checked<'a>, TargetRefused> {
        let not_offered = TargetRefused::NotOffered(target.provider());
        match target {
            PushTarget::Apns { token, topic, sandbox, voip_token } => {
                let apns = self.apns.as_ref().ok_or(not_offered)?;
                let voip_token = voip_token.as_deref();
                if !is_token(token) || voip_token.is_some_and(|token| !is_token(token)) {
                    return Err(TargetRefused::Malformed("a token of APNs is hexadecimal, of at most 200 digits"));
                }
                if !apns.knows(topic) {
                    return Err(TargetRefused::Malformed("this service wakes no app of that bundle id"));
                }
                Ok(Checked::Apns(apns, ApnsTarget { token, topic, sandbox: *sandbox, voip_token }))
            }
            PushTarget::Fcm { token } => {
                let fcm = self.fcm.as_ref().ok_or(not_offered)?;
                let sound = !token.is_empty()
                    && token.len() <= PUSH_TOKEN_BYTES_MAX
                    && token.bytes().all(|byte| byte.is_ascii_graphic());
                if !sound {
                    return Err(TargetRefused::Malformed("a token of FCM is text of at most 1,000 bytes"));
                }
                Ok(Checked::Fcm(fcm, token))
            }
            PushTarget::WebPush(subscription) | PushTarget::UnifiedPush(subscription) => {
                let web = self.web.as_ref().ok_or(not_offered)?;
                Ok(Checked::Web(web, subscription, web.check(subscription)?))
            }
        }
    }

    /// Asks for a wake.
    pub(super) async fn send(&self, target: &Checked<'_>, loudness: Loudness, works: bool, now: Timestamp) -> Verdict {
        let Some(net) = &self.net else { return Verdict::misconfigured("off") };
        match target {
            Checked::Apns(apns, target) => apns.send(net, *target, loudness, now).await,
            Checked::Fcm(fcm, token) => fcm.send(net, token, loudness, now).await,
            Checked::Web(web, subscription, endpoint) => {
                web.send(net, endpoint, subscription, loudness, works, now).await
            }
        }
    }
}

impl Checked<'_> {
    /// The gate before it, told which credentials are shown.
    pub(super) fn gate(&self, gates: &Gates) -> GateKey {
        let (key, version) = match self {
            Self::Apns(apns, target) => (GateKey::Apns { sandbox: target.sandbox }, apns.version()),
            Self::Fcm(fcm, _) => (GateKey::Fcm, fcm.version()),
            Self::Web(web, _, endpoint) => (GateKey::Web(endpoint.origin.clone()), web.version()),
        };
        gates.credentials(&key, version);
        key
    }
}
