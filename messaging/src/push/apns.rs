//! Apple's push notification service: HTTP/2 and a token of ours, made anew every 45 minutes.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};
use serde::Deserialize;
use serde_json::json;
use uuid::Uuid;
use waxwing_protocol::Timestamp;

use super::config::ApnsConfig;
use super::credentials::{CredentialsError, FromFile};
use super::gates::Health;
use super::jwt::Es256;
use super::net::{Answer, Ask, Net, Place};
use super::schedule::Loudness;
use super::verdict::{Fate, Verdict, retry_after};

/// How long a token is shown. Apple refuses one that is older than an hour, and a sender that makes more than one in 20
/// minutes.
const TOKEN_REUSE: Duration = Duration::from_secs(45 * 60);

/// How old a token is at least when another is made because Apple calls it expired. If it is younger, clocks are wrong.
const TOKEN_AGE_MIN: Duration = Duration::from_secs(20 * 60);

/// How far back a token says it was made: clocks differ, and one from the future is refused.
const CLOCK_SLACK: Duration = Duration::from_secs(30);

/// Hexadecimal digits of a device token at most. Apple says not to rely on a length; they have 64 today.
pub(super) const TOKEN_DIGITS_MAX: usize = 200;

/// Wakes by Apple.
pub(super) struct Apns {
    key: FromFile<Es256>,
    key_id: String,
    team_id: String,
    topics: Vec<String>,
    production: Place,
    sandbox: Place,
    token: Mutex<Option<Token>>,
}

/// The token shown at present.
#[derive(Clone)]
struct Token {
    text: String,
    made: Timestamp,
    version: u64,
}

/// Which device of Apple's.
#[derive(Clone, Copy, Debug)]
pub(super) struct ApnsTarget<'a> {
    pub(super) token: &'a str,
    pub(super) topic: &'a str,
    pub(super) sandbox: bool,
    pub(super) voip_token: Option<&'a str>,
}

/// Whether this may be a device token.
pub(super) fn is_token(text: &str) -> bool {
    !text.is_empty() && text.len() <= TOKEN_DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Apns {
    pub(super) fn open(config: &ApnsConfig) -> Result<Self, CredentialsError> {
        let key = FromFile::open(&config.key_file, |bytes| Es256::from_pem(bytes).map_err(|error| error.to_string()))?;
        let place = |key: &str, url: &str| {
            Place::configured(url).map_err(|error| CredentialsError::new(Path::new(key), &error))
        };
        Ok(Self {
            key,
            key_id: config.key_id.clone(),
            team_id: config.team_id.clone(),
            topics: config.topics.clone(),
            production: place("messaging.push.apns.url", &config.url)?,
            sandbox: place("messaging.push.apns.sandbox_url", &config.sandbox_url)?,
            token: Mutex::default(),
        })
    }

    /// Whether this is an app of ours.
    pub(super) fn knows(&self, topic: &str) -> bool {
        self.topics.iter().any(|it| it == topic)
    }

    /// Which key signs, counted.
    pub(super) fn version(&self) -> u64 {
        self.key.get().1
    }

    /// Sends a wake.
    pub(super) async fn send(&self, net: &Net, target: ApnsTarget<'_>, loudness: Loudness, now: Timestamp) -> Verdict {
        let place = if target.sandbox { &self.sandbox } else { &self.production };
        let mut tried = None;
        loop {
            let Some(token) = self.token(tried.as_ref(), now) else { return Verdict::misconfigured("unsignable") };
            let Some(ask) = ask(target, loudness, &token.text, now) else { return Verdict::refused("bad-target") };
            let verdict = match net.post(place, ask).await {
                Ok(answer) => verdict(&answer),
                Err(error) => Verdict::from(&error),
            };
            let expired = verdict.reason == EXPIRED && tried.is_none();
            if !(expired && now.since(token.made) >= TOKEN_AGE_MIN) {
                return verdict;
            }
            tried = Some(token);
        }
    }

    /// The token to show, if it can be signed: another than `refused`, which Apple calls expired. Of many that ask at
    /// once, one makes it.
    fn token(&self, refused: Option<&Token>, now: Timestamp) -> Option<Token> {
        let (key, version) = self.key.get();
        let mut current = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(token) = current.as_ref() {
            let good = token.version == version
                && token.made <= now
                && now.since(token.made) < TOKEN_REUSE
                && refused.is_none_or(|refused| refused.text != token.text);
            if good {
                return Some(token.clone());
            }
        }
        let header = json!({ "alg": "ES256", "kid": self.key_id });
        let claims = json!({ "iss": self.team_id, "iat": now.minus(CLOCK_SLACK).as_secs() });
        let token = Token { text: key.sign(&header, &claims).ok()?, made: now, version };
        *current = Some(token.clone());
        Some(token)
    }
}

fn ask(target: ApnsTarget<'_>, loudness: Loudness, token: &str, now: Timestamp) -> Option<Ask> {
    let mut headers = HeaderMap::new();
    let mut put = |name, value: &str| {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).ok()?);
        Some(())
    };
    let ring = target.voip_token.filter(|_| loudness == Loudness::Call);
    let (kind, priority, body) = match (loudness, ring) {
        (_, Some(_)) => ("voip", "10", json!({ "aps": {} })),
        (Loudness::Background, None) => ("background", "5", json!({ "aps": { "content-available": 1 } })),
        // The app's extension fetches, opens what it got, and puts its words in place of these.
        (_, None) => {
            let alert = json!({ "aps": { "mutable-content": 1, "alert": { "loc-key": "WAXWING_WAKE" } } });
            put("apns-collapse-id", "wake")?;
            ("alert", "10", alert)
        }
    };
    let topic = ring.map_or_else(|| target.topic.to_owned(), |_| format!("{}.voip", target.topic));
    put("apns-topic", &topic)?;
    put("apns-push-type", kind)?;
    put("apns-priority", priority)?;
    put("apns-expiration", &now.plus(loudness.worth()).as_secs().to_string())?;
    put("apns-id", &Uuid::new_v4().to_string())?;
    let mut authorization = HeaderValue::try_from(format!("bearer {token}")).ok()?;
    authorization.set_sensitive(true);
    headers.insert(header::AUTHORIZATION, authorization);
    let device = ring.unwrap_or(target.token).to_ascii_lowercase();
    Some(Ask { path: format!("/3/device/{device}"), headers, body: body.to_string().into() })
}

/// Apple's word for a token of ours that is too old.
const EXPIRED: &str = "ExpiredProviderToken";

#[derive(Deserialize)]
struct Problem {
    reason: String,
    timestamp: Option<u64>,
}

/// What Apple's answer means.
fn verdict(answer: &Answer) -> Verdict {
    if answer.status.is_success() {
        return Verdict::accepted();
    }
    let problem: Option<Problem> = serde_json::from_slice(&answer.body).ok();
    let reason = problem.as_ref().map_or("", |problem| problem.reason.as_str());
    let since = problem.as_ref().and_then(|problem| problem.timestamp).map(Timestamp::from_millis);
    let after = retry_after(&answer.headers, std::time::SystemTime::now());
    let known = |known: &[&'static str]| known.iter().copied().find(|known| *known == reason);
    if let Some(reason) = known(&["BadDeviceToken", "DeviceTokenNotForTopic"]) {
        return Verdict::gone(reason, None);
    }
    if let Some(reason) = known(&["Unregistered", "ExpiredToken"]) {
        return Verdict::gone(reason, since);
    }
    if let Some(reason) = known(&[EXPIRED]) {
        return Verdict::misconfigured(reason);
    }
    if let Some(reason) = known(&[
        "InvalidProviderToken",
        "MissingProviderToken",
        "Forbidden",
        "BadCertificate",
        "BadCertificateEnvironment",
        "UnrelatedKeyIdInToken",
        "BadEnvironmentKeyIdInToken",
        "TopicDisallowed",
        "BadTopic",
    ]) {
        return Verdict::misconfigured(reason);
    }
    if let Some(reason) = known(&["IdleTimeout", "Shutdown", "InternalServerError", "ServiceUnavailable"]) {
        return Verdict::ill(reason, after);
    }
    // The token before is still good, and is kept.
    if let Some(reason) = known(&["TooManyProviderTokenUpdates"]) {
        return Verdict { fate: Fate::Later(after), health: Health::Unknown, reason };
    }
    if let Some(reason) = known(&["TooManyRequests"]) {
        return Verdict::throttled(reason, after);
    }
    if let Some(reason) = known(&[
        "BadCollapseId",
        "BadExpirationDate",
        "BadMessageId",
        "BadPriority",
        "DuplicateHeaders",
        "InvalidPushType",
        "MissingDeviceToken",
        "MissingTopic",
        "PayloadEmpty",
        "PayloadTooLarge",
        "BadPath",
        "MethodNotAllowed",
    ]) {
        return Verdict::refused(reason);
    }
    // Words that Apple added later, or something in between that is not Apple.
    match answer.status.as_u16() {
        403 => Verdict::misconfigured("other-403"),
        410 => Verdict::gone("other-410", since),
        429 => Verdict::throttled("other-429", after),
        500.. => Verdict::ill("other-5xx", after),
        _ => Verdict::refused("other"),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::StatusCode;

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn of(status: u16, reason: &str) -> Verdict {
        verdict(&answer(status, &json!({ "reason": reason }).to_string()))
    }

    /// The table of `infra/push.md`, row by row.
    #[test]
    fn every_reason_does_what_the_table_says() {
        assert_eq!(verdict(&answer(200, "")), Verdict::accepted());
        for reason in ["BadDeviceToken", "DeviceTokenNotForTopic"] {
            assert_eq!(of(400, reason).fate, Fate::Gone { since: None });
        }
        let unregistered = r#"{"reason":"Unregistered","timestamp":1700000000000}"#;
        let since = Some(Timestamp::from_millis(1_700_000_000_000));
        assert_eq!(verdict(&answer(410, unregistered)).fate, Fate::Gone { since });
        assert_eq!(of(410, "ExpiredToken").fate, Fate::Gone { since: None });
        for reason in [
            "InvalidProviderToken",
            "MissingProviderToken",
            "Forbidden",
            "BadCertificate",
            "BadCertificateEnvironment",
            "UnrelatedKeyIdInToken",
            "BadEnvironmentKeyIdInToken",
            "ExpiredProviderToken",
        ] {
            assert_eq!(of(403, reason).health, Health::Misconfigured, "{reason}");
            assert_eq!(of(403, reason).fate, Fate::Later(None), "the token of the device stays");
        }
        for (status, reason) in [
            (400, "BadCollapseId"),
            (400, "BadExpirationDate"),
            (400, "BadMessageId"),
            (400, "BadPriority"),
            (400, "DuplicateHeaders"),
            (400, "InvalidPushType"),
            (400, "MissingDeviceToken"),
            (400, "MissingTopic"),
            (400, "PayloadEmpty"),
            (404, "BadPath"),
            (405, "MethodNotAllowed"),
            (413, "PayloadTooLarge"),
        ] {
            assert_eq!((of(status, reason).fate, of(status, reason).reason), (Fate::Refused, reason));
        }
        for (status, reason) in
            [(400, "IdleTimeout"), (500, "InternalServerError"), (503, "ServiceUnavailable"), (503, "Shutdown")]
        {
            assert_eq!((of(status, reason).fate, of(status, reason).health), (Fate::Later(None), Health::Ill));
        }
        assert!(matches!(of(429, "TooManyRequests").health, Health::Throttles(_)));
        assert_eq!(of(429, "TooManyProviderTokenUpdates").health, Health::Unknown);
    }

    #[test]
    fn what_is_not_json_is_judged_by_its_status() {
        assert_eq!(verdict(&answer(502, "<html>Bad gateway</html>")).health, Health::Ill);
        assert_eq!(verdict(&answer(403, "")).health, Health::Misconfigured);
        assert_eq!(of(410, "SomethingNew").fate, Fate::Gone { since: None });
        assert_eq!(of(400, "SomethingNew").fate, Fate::Refused);
    }

    fn asked(loudness: Loudness, voip_token: Option<&str>) -> (Ask, serde_json::Value) {
        let target = ApnsTarget { token: "ABCDEF", topic: "chat.example", sandbox: false, voip_token };
        let ask = ask(target, loudness, "jwt", Timestamp::from_secs(1_000)).unwrap();
        let body = serde_json::from_slice(&ask.body).unwrap();
        (ask, body)
    }

    #[test]
    fn a_wake_says_how_loudly_and_nothing_else() {
        let (visible, body) = asked(Loudness::Visible, Some("0123"));
        assert_eq!(visible.path, "/3/device/abcdef");
        assert_eq!(visible.headers["apns-push-type"], "alert");
        assert_eq!(visible.headers["apns-priority"], "10");
        assert_eq!(visible.headers["apns-topic"], "chat.example");
        assert_eq!(visible.headers["apns-collapse-id"], "wake");
        assert_eq!(body, json!({ "aps": { "mutable-content": 1, "alert": { "loc-key": "WAXWING_WAKE" } } }));
        let (background, body) = asked(Loudness::Background, None);
        assert_eq!(
            (&background.headers["apns-push-type"], &background.headers["apns-priority"]),
            (&HeaderValue::from_static("background"), &HeaderValue::from_static("5"))
        );
        assert_eq!(body, json!({ "aps": { "content-available": 1 } }));
        let (call, body) = asked(Loudness::Call, Some("0123"));
        assert_eq!(call.path, "/3/device/0123");
        assert_eq!(call.headers["apns-topic"], "chat.example.voip");
        assert_eq!(call.headers["apns-expiration"], "1060", "nobody rings for longer than a minute");
        assert_eq!(body, json!({ "aps": {} }));
        assert_eq!(asked(Loudness::Call, None).0.headers["apns-push-type"], "alert");
    }

    #[test]
    fn a_token_of_ours_is_kept_for_45_minutes_and_one_called_expired_is_replaced_once() {
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("key.p8");
        let pair = aws_lc_rs::signature::EcdsaKeyPair::generate(&aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING);
        let der = pair.unwrap().to_pkcs8v1().unwrap();
        let text = data_encoding::BASE64.encode(der.as_ref());
        std::fs::write(&key_file, format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")).unwrap();
        let apns = Apns::open(&ApnsConfig { key_file, ..ApnsConfig::default() }).unwrap();
        let now = Timestamp::from_secs(1_800_000_000);
        let first = apns.token(None, now).unwrap();
        let minutes = |minutes: u64| now.plus(Duration::from_secs(minutes * 60));
        assert_eq!(apns.token(None, minutes(44)).unwrap().text, first.text);
        let second = apns.token(None, minutes(45)).unwrap();
        assert_ne!(second.text, first.text);
        // Many are told at once that the first has expired: they all get the second.
        assert_eq!(apns.token(Some(&first), minutes(46)).unwrap().text, second.text);
        assert_ne!(apns.token(Some(&second), minutes(66)).unwrap().text, second.text);
    }
}
