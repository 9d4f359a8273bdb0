//! Web Push (RFC 8030, 8291, 8292) and UnifiedPush, whose endpoints are the same.

pub(super) mod sealing;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use data_encoding::BASE64URL_NOPAD;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::json;
use waxwing_protocol::Timestamp;
use waxwing_protocol::api::Subscription;

use self::sealing::{Keys, SealError};
use super::config::WebConfig;
use super::credentials::{CredentialsError, FromFile};
use super::gates::Health;
use super::jwt::Es256;
use super::net::{Answer, Ask, Endpoint, EndpointRefused, EndpointRules, Net};
use super::schedule::Loudness;
use super::verdict::{Fate, Verdict, retry_after};

/// The file in the data directory with the key that services know this server by, where none is configured.
pub(super) const VAPID_FILE: &str = "vapid.key";

/// How long a token is good: half of what the RFC allows, since clocks differ and Apple is strict.
const TOKEN_LIFETIME: Duration = Duration::from_secs(12 * 3600);

/// How long one is shown again.
const TOKEN_REUSE: Duration = Duration::from_secs(3600);

/// Tokens kept, one an origin; more are made anew.
const TOKENS_MAX: usize = 1024;

/// How long a push service keeps a wake for a device that is off: a week, which several of them have as their limit.
const KEPT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long an origin is left alone that asks for less and does not say how long.
const THROTTLED: Duration = Duration::from_secs(300);

/// Wakes by Web Push.
pub(super) struct Web {
    rules: EndpointRules,
    subject: String,
    key: FromFile<Es256>,
    tokens: Mutex<Tokens>,
}

/// Tokens by origin, with when they were made.
#[derive(Default)]
struct Tokens {
    version: u64,
    by_origin: HashMap<String, (String, Timestamp)>,
}

/// Why a subscription is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SubscriptionRefused {
    #[error(transparent)]
    Endpoint(#[from] EndpointRefused),
    #[error(transparent)]
    Keys(#[from] SealError),
}

impl Web {
    pub(super) fn open(config: &WebConfig, data_dir: &Path) -> Result<Self, CredentialsError> {
        let rules = EndpointRules::new(&config.hosts, &config.hosts_inside);
        let rules = rules.map_err(|reason| CredentialsError::new(Path::new("messaging.push.web"), &reason))?;
        let path = match &config.vapid_key_file {
            Some(path) => path.clone(),
            None => {
                let path = data_dir.join(VAPID_FILE);
                crate::secrets::load_or_create(&path).map_err(|error| CredentialsError::new(&path, &error))?;
                path
            }
        };
        let key = FromFile::open(&path, |bytes| vapid_key(bytes).map_err(|error| error.to_string()))?;
        Ok(Self { rules, subject: config.subject.clone(), key, tokens: Mutex::default() })
    }

    /// The key that devices subscribe with, in base64url.
    pub(super) fn public_key(&self) -> String {
        BASE64URL_NOPAD.encode(self.key.get().0.public())
    }

    /// Holds a subscription against the rules: as its device registers it, and again at every send.
    pub(super) fn check(&self, subscription: &Subscription) -> Result<Endpoint, SubscriptionRefused> {
        Ok(Endpoint::parse(&subscription.endpoint, &self.rules)?)
    }

    /// Whether something can be sealed for a subscription.
    pub(super) fn check_keys(subscription: &Subscription) -> Result<(), SubscriptionRefused> {
        sealing::seal(&Keys::parse(subscription)?, b"").map(drop)?;
        Ok(())
    }

    /// Which key is shown, counted.
    pub(super) fn version(&self) -> u64 {
        self.key.get().1
    }

    /// Posts a wake. `works` says whether the origin has taken wakes of this server.
    pub(super) async fn send(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        subscription: &Subscription,
        loudness: Loudness,
        works: bool,
        now: Timestamp,
    ) -> Verdict {
        let Some(ask) = self.ask(endpoint, subscription, loudness, now) else {
            return Verdict { fate: Fate::Gone { since: None }, health: Health::Unknown, reason: "bad-subscription" };
        };
        match net.post(&endpoint.place, ask).await {
            Ok(answer) => verdict(&answer, works),
            Err(error) => Verdict::from(&error),
        }
    }

    fn ask(&self, endpoint: &Endpoint, subscription: &Subscription, loudness: Loudness, now: Timestamp) -> Option<Ask> {
        // Which of the two the device should do; only it can read that.
        let wake = match loudness {
            Loudness::Background => r#"{"wake":"background"}"#,
            Loudness::Visible => r#"{"wake":"visible"}"#,
            Loudness::Call => r#"{"wake":"call"}"#,
        };
        let urgency = match loudness {
            Loudness::Background => "normal",
            Loudness::Visible | Loudness::Call => "high",
        };
        let body = sealing::seal(&Keys::parse(subscription).ok()?, wake.as_bytes()).ok()?;
        let mut authorization = HeaderValue::try_from(self.authorization(&endpoint.origin, now)?).ok()?;
        authorization.set_sensitive(true);
        let ttl = loudness.worth().min(KEPT_MAX).as_secs();
        let headers = HeaderMap::from_iter([
            (header::AUTHORIZATION, authorization),
            (header::CONTENT_ENCODING, HeaderValue::from_static("aes128gcm")),
            (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (HeaderName::from_static("ttl"), HeaderValue::from(ttl)),
            (HeaderName::from_static("urgency"), HeaderValue::from_static(urgency)),
            // A later wake replaces one that the service still holds: it says the same.
            (HeaderName::from_static("topic"), HeaderValue::from_static("wake")),
        ]);
        Some(Ask { path: endpoint.path.clone(), headers, body: body.into() })
    }

    /// Who we are, for one origin.
    fn authorization(&self, origin: &str, now: Timestamp) -> Option<String> {
        let (key, version) = self.key.get();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.version != version || tokens.by_origin.len() >= TOKENS_MAX {
            *tokens = Tokens { version, ..Tokens::default() };
        }
        let known = tokens.by_origin.get(origin).filter(|(_, made)| {
            // A clock that was set back makes none of them too young.
            now.since(*made) < TOKEN_REUSE && *made <= now
        });
        let token = match known {
            Some((token, _)) => token.clone(),
            None => {
                let exp = now.plus(TOKEN_LIFETIME).as_secs();
                let claims = json!({ "aud": origin, "exp": exp, "sub": self.subject });
                let token = key.sign(&json!({ "typ": "JWT", "alg": "ES256" }), &claims).ok()?;
                tokens.by_origin.insert(origin.to_owned(), (token.clone(), now));
                token
            }
        };
        Some(format!("vapid t={token}, k={}", BASE64URL_NOPAD.encode(key.public())))
    }
}

/// A key as PEM, as the 32 bytes of it, or as those in base64url, as `web-push generate-vapid-keys` prints them.
fn vapid_key(bytes: &[u8]) -> Result<Es256, super::jwt::KeyError> {
    if bytes.len() == 32 {
        return Es256::from_secret(bytes);
    }
    let text = std::str::from_utf8(bytes).unwrap_or_default().trim().trim_end_matches('=');
    match BASE64URL_NOPAD.decode(text.as_bytes()) {
        Ok(secret) if secret.len() == 32 => Es256::from_secret(&secret),
        _ => Es256::from_pem(bytes),
    }
}

/// What a push service's answer means. `works` says whether the origin has taken wakes of this server before.
fn verdict(answer: &Answer, works: bool) -> Verdict {
    let after = || retry_after(&answer.headers, SystemTime::now());
    match answer.status {
        status if status.is_success() => Verdict::accepted(),
        StatusCode::NOT_FOUND | StatusCode::GONE => Verdict::gone("gone", None),
        // It knows us by others, so it is this subscription that is wrong: made for another key, most likely.
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if works => {
            Verdict::gone("rejected", None)
        }
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Verdict::misconfigured("unauthorized")
        }
        StatusCode::PAYLOAD_TOO_LARGE => Verdict::refused("too-large"),
        StatusCode::TOO_MANY_REQUESTS => Verdict::throttled("throttled", after().or(Some(THROTTLED))),
        status if status.is_redirection() => Verdict::ill("redirect", None),
        status if status.is_server_error() => Verdict::ill("server-error", after()),
        _ => Verdict { fate: Fate::Refused, health: Health::Unknown, reason: "other" },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), body: bytes::Bytes::from_static(b"<html>") }
    }

    /// The table of `infra/push.md`, row by row.
    #[test]
    fn every_status_does_what_the_table_says() {
        let of = |status| verdict(&answer(status), false);
        for status in [200, 201, 202, 204] {
            assert_eq!(of(status), Verdict::accepted());
        }
        for status in [404, 410] {
            assert_eq!(of(status).fate, Fate::Gone { since: None });
        }
        for status in [400, 401, 403] {
            assert_eq!(of(status).health, Health::Misconfigured, "{status}: nobody there knows us");
            assert_eq!(of(status).fate, Fate::Later(None), "the subscription stays");
            let known = verdict(&answer(status), true);
            assert_eq!((known.fate, known.health), (Fate::Gone { since: None }, Health::Well));
        }
        assert_eq!(of(413).fate, Fate::Refused);
        assert_eq!(of(429).fate, Fate::Later(Some(THROTTLED)));
        for status in [301, 302, 307, 308, 500, 502, 503] {
            assert_eq!((of(status).fate, of(status).health), (Fate::Later(None), Health::Ill), "{status}");
        }
        let mut wait = answer(429);
        wait.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("7"));
        assert_eq!(verdict(&wait, true).fate, Fate::Later(Some(Duration::from_secs(7))));
    }

    #[test]
    fn a_key_comes_as_bytes_as_base64_or_as_pem() {
        let secret = [7; 32];
        let text = BASE64URL_NOPAD.encode(&secret);
        let keys = [vapid_key(&secret).unwrap(), vapid_key(format!("{text}\n").as_bytes()).unwrap()];
        assert_eq!(keys[0].public(), keys[1].public());
        assert!(vapid_key(b"nonsense").is_err());
    }

    #[test]
    fn a_token_is_for_one_origin_and_made_anew_after_an_hour() {
        let dir = tempfile::tempdir().unwrap();
        let config = WebConfig { subject: "mailto:ops@example.com".into(), ..WebConfig::default() };
        let web = Web::open(&config, dir.path()).unwrap();
        let now = Timestamp::from_secs(1_800_000_000);
        let claims = |authorization: &str| {
            let token = authorization.strip_prefix("vapid t=").unwrap().split_once(',').unwrap().0;
            let claims = BASE64URL_NOPAD.decode(token.split('.').nth(1).unwrap().as_bytes()).unwrap();
            serde_json::from_slice::<serde_json::Value>(&claims).unwrap()
        };
        let first = web.authorization("https://a.example", now).unwrap();
        let expected = json!({
            "aud": "https://a.example", "exp": 1_800_000_000 + 12 * 3600, "sub": "mailto:ops@example.com",
        });
        assert_eq!(claims(&first), expected);
        assert_eq!(web.authorization("https://a.example", now.plus(TOKEN_REUSE / 2)).unwrap(), first);
        assert_ne!(web.authorization("https://b.example", now).unwrap(), first);
        assert_ne!(web.authorization("https://a.example", now.plus(TOKEN_REUSE)).unwrap(), first);
        assert!(first.ends_with(&format!("k={}", web.public_key())));

        // The key is made once.
        assert_eq!(Web::open(&config, dir.path()).unwrap().public_key(), web.public_key());
    }
}
