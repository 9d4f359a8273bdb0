//! Firebase Cloud Messaging, HTTP v1: a token of Google's, fetched with a signature of ours, and a request a wake.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;
use waxwing_protocol::Timestamp;

use super::config::FcmConfig;
use super::credentials::{CredentialsError, FromFile};
use super::jwt::Rs256;
use super::net::{Answer, Ask, Net, NetError, Place};
use super::schedule::Loudness;
use super::verdict::{Verdict, retry_after};

/// What the token is for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// How long what we sign is good: Google's limit.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(3600);

/// How far back it says it was made: clocks differ, and one from the future is refused.
const CLOCK_SLACK: Duration = Duration::from_secs(30);

/// How long before its end a token is fetched anew.
const TOKEN_MARGIN: Duration = Duration::from_secs(300);

/// The shortest time that those wait whom FCM sends away without saying how long.
const RETRY_MIN: Duration = Duration::from_secs(10);

/// The same when it was for asking too often.
const QUOTA_RETRY: Duration = Duration::from_secs(60);

/// Wakes by Firebase.
pub(super) struct Fcm {
    account: FromFile<ServiceAccount>,
    place: Place,
    token: Mutex<Fetched>,
}

/// What is in the file that Google gives.
struct ServiceAccount {
    email: String,
    key: Rs256,
    key_id: String,
    project: String,
    token_place: Place,
    token_path: String,
    token_uri: String,
}

#[derive(Default)]
struct Fetched {
    token: Option<Token>,
    /// When fetching failed last, and how.
    failed: Option<(Instant, Verdict)>,
}

#[derive(Clone)]
struct Token {
    text: String,
    until: Instant,
    version: u64,
}

impl Fcm {
    pub(super) fn open(config: &FcmConfig) -> Result<Self, CredentialsError> {
        let account = FromFile::open(&config.service_account_file, service_account)?;
        let place = Place::configured(&config.url);
        let place = place.map_err(|error| CredentialsError::new(Path::new("messaging.push.fcm.url"), &error))?;
        Ok(Self { account, place, token: Mutex::default() })
    }

    /// Which account is shown, counted.
    pub(super) fn version(&self) -> u64 {
        self.account.get().1
    }

    /// Sends a wake.
    pub(super) async fn send(&self, net: &Net, device: &str, loudness: Loudness, now: Timestamp) -> Verdict {
        let mut refused = None;
        loop {
            let token = match self.token(net, refused.as_deref(), now).await {
                Ok(token) => token,
                Err(verdict) => return verdict,
            };
            let project = &self.account.get().0.project;
            let Some(ask) = ask(project, device, loudness, &token) else { return Verdict::refused("bad-target") };
            let verdict = match net.post(&self.place, ask).await {
                Ok(answer) => verdict(&answer),
                Err(error) => Verdict::from(&error),
            };
            // Once more with another token: this one was taken back before its time.
            if verdict.reason != UNAUTHENTICATED || refused.is_some() {
                return verdict;
            }
            refused = Some(token);
        }
    }

    /// The token to show, another than `refused`. Of many that ask at once, one fetches it; when it fails, it fails for
    /// all who wait.
    async fn token(&self, net: &Net, refused: Option<&str>, now: Timestamp) -> Result<String, Verdict> {
        let asked = Instant::now();
        let mut fetched = self.token.lock().await;
        let (account, version) = self.account.get();
        if let Some(token) = &fetched.token
            && token.version == version
            && token.until > Instant::now()
            && refused != Some(token.text.as_str())
        {
            return Ok(token.text.clone());
        }
        if let Some((at, verdict)) = fetched.failed
            && at >= asked
        {
            return Err(verdict);
        }
        match fetch(net, &account, now).await {
            Ok((text, lifetime)) => {
                let until = Instant::now() + lifetime.saturating_sub(TOKEN_MARGIN);
                *fetched = Fetched { token: Some(Token { text: text.clone(), until, version }), failed: None };
                Ok(text)
            }
            Err(verdict) => {
                fetched.failed = Some((Instant::now(), verdict));
                Err(verdict)
            }
        }
    }
}

/// Reads a service account.
fn service_account(bytes: &[u8]) -> Result<ServiceAccount, String> {
    #[derive(Deserialize)]
    struct File {
        client_email: String,
        private_key: String,
        private_key_id: String,
        project_id: String,
        token_uri: String,
    }
    // The parser's error could show a line of the file.
    let file: File = serde_json::from_slice(bytes).map_err(|_| "not a service account's JSON")?;
    if !file.project_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.:".contains(&byte)) {
        return Err("project_id is not one".into());
    }
    let url = url::Url::parse(&file.token_uri).map_err(|_| "token_uri is not a URL")?;
    Ok(ServiceAccount {
        email: file.client_email,
        key: Rs256::from_pem(file.private_key.as_bytes()).map_err(|error| error.to_string())?,
        key_id: file.private_key_id,
        project: file.project_id,
        token_place: Place::configured(&file.token_uri).map_err(|error| format!("token_uri: {error}"))?,
        token_path: url.path().to_owned(),
        token_uri: file.token_uri,
    })
}

/// Fetches a token.
async fn fetch(net: &Net, account: &ServiceAccount, now: Timestamp) -> Result<(String, Duration), Verdict> {
    #[derive(Deserialize)]
    struct Granted {
        access_token: String,
        expires_in: u64,
    }
    let made = now.minus(CLOCK_SLACK);
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": account.key_id });
    let claims = json!({
        "iss": account.email,
        "scope": SCOPE,
        "aud": account.token_uri,
        "iat": made.as_secs(),
        "exp": made.plus(ASSERTION_LIFETIME).as_secs(),
    });
    let assertion = account.key.sign(&header, &claims).map_err(|_| Verdict::misconfigured("unsignable"))?;
    let body = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
    let form = HeaderValue::from_static("application/x-www-form-urlencoded");
    let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, form)]);
    let ask = Ask { path: account.token_path.clone(), headers, body: body.into() };
    let answer = net.post(&account.token_place, ask).await.map_err(|error: NetError| Verdict::from(&error))?;
    let after = retry_after(&answer.headers, SystemTime::now());
    match answer.status.as_u16() {
        200 => match serde_json::from_slice::<Granted>(&answer.body) {
            Ok(granted) => Ok((granted.access_token, Duration::from_secs(granted.expires_in))),
            Err(_) => Err(Verdict::ill("token-malformed", after)),
        },
        429 => Err(Verdict::throttled("token-throttled", after.or(Some(QUOTA_RETRY)))),
        500.. => Err(Verdict::ill("token-server-error", after)),
        _ => Err(Verdict::misconfigured("token-refused")),
    }
}

fn ask(project: &str, device: &str, loudness: Loudness, token: &str) -> Option<Ask> {
    let priority = match loudness {
        Loudness::Background => "NORMAL",
        Loudness::Visible | Loudness::Call => "HIGH",
    };
    let ttl = format!("{}s", loudness.worth().as_secs());
    let android = json!({ "priority": priority, "ttl": ttl, "collapse_key": "wake" });
    let body = json!({ "message": { "token": device, "data": { "wake": "" }, "android": android } });
    let mut authorization = HeaderValue::try_from(format!("Bearer {token}")).ok()?;
    authorization.set_sensitive(true);
    let json = HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(header::AUTHORIZATION, authorization), (header::CONTENT_TYPE, json)]);
    let path = format!("/v1/projects/{project}/messages:send");
    Some(Ask { path, headers, body: Bytes::from(body.to_string()) })
}

/// Google's word for a token that it does not take.
const UNAUTHENTICATED: &str = "UNAUTHENTICATED";

/// What FCM's answer means.
fn verdict(answer: &Answer) -> Verdict {
    if answer.status.is_success() {
        return Verdict::accepted();
    }
    // A gateway's error is a page of HTML.
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let error = &body["error"];
    let details = error["details"].as_array().map_or(&[][..], Vec::as_slice);
    let code = details.iter().find_map(|detail| detail["errorCode"].as_str());
    let code = code.or_else(|| error["status"].as_str()).unwrap_or_default();
    let names_token = details
        .iter()
        .flat_map(|detail| detail["fieldViolations"].as_array().map_or(&[][..], Vec::as_slice))
        .any(|violation| violation["field"] == "message.token");
    let after = retry_after(&answer.headers, SystemTime::now());
    match (answer.status.as_u16(), code) {
        (_, "UNREGISTERED") => Verdict::gone("UNREGISTERED", None),
        (_, "SENDER_ID_MISMATCH") => Verdict::gone("SENDER_ID_MISMATCH", None),
        (_, "INVALID_ARGUMENT") if names_token => Verdict::gone("INVALID_ARGUMENT", None),
        (_, "INVALID_ARGUMENT") => Verdict::refused("INVALID_ARGUMENT"),
        (_, "THIRD_PARTY_AUTH_ERROR") => Verdict::misconfigured("THIRD_PARTY_AUTH_ERROR"),
        (401, _) => Verdict::misconfigured(UNAUTHENTICATED),
        (403, _) => Verdict::misconfigured("PERMISSION_DENIED"),
        // A project that is not there: no device's fault.
        (404, _) => Verdict::misconfigured("NOT_FOUND"),
        (429, _) => Verdict::throttled("QUOTA_EXCEEDED", after.or(Some(QUOTA_RETRY))),
        (503, _) => Verdict::ill("UNAVAILABLE", after.or(Some(RETRY_MIN))),
        (500.., _) => Verdict::ill("INTERNAL", after.or(Some(RETRY_MIN))),
        _ => Verdict::refused("other"),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::gates::Health;
    use super::super::verdict::Fate;
    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    fn of(status: u16, name: &str, code: Option<&str>, field: Option<&str>) -> Verdict {
        let mut details = Vec::new();
        if let Some(code) = code {
            let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
            details.push(json!({ "@type": kind, "errorCode": code }));
        }
        if let Some(field) = field {
            let violations = [json!({ "field": field, "description": "…" })];
            details
                .push(json!({ "@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": violations }));
        }
        let error = json!({ "code": status, "message": "…", "status": name, "details": details });
        verdict(&answer(status, &json!({ "error": error }).to_string()))
    }

    /// The table of `infra/push.md`, row by row.
    #[test]
    fn every_error_does_what_the_table_says() {
        assert_eq!(verdict(&answer(200, r#"{"name":"projects/p/messages/1"}"#)), Verdict::accepted());
        let gone = Fate::Gone { since: None };
        assert_eq!(of(404, "NOT_FOUND", Some("UNREGISTERED"), None).fate, gone);
        assert_eq!(of(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"), None).fate, gone);
        assert_eq!(of(400, "INVALID_ARGUMENT", Some("INVALID_ARGUMENT"), Some("message.token")).fate, gone);
        let ours = of(400, "INVALID_ARGUMENT", None, Some("message.android.ttl"));
        assert_eq!(ours.fate, Fate::Refused, "our mistake is no reason to forget a device");
        assert_eq!(of(401, "UNAUTHENTICATED", None, None).reason, UNAUTHENTICATED);
        let third = of(401, "UNAUTHENTICATED", Some("THIRD_PARTY_AUTH_ERROR"), None);
        assert_eq!((third.health, third.reason), (Health::Misconfigured, "THIRD_PARTY_AUTH_ERROR"));
        let quota = of(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED"), None);
        assert_eq!(quota.fate, Fate::Later(Some(QUOTA_RETRY)));
        for (status, name) in [(500, "INTERNAL"), (503, "UNAVAILABLE")] {
            let failed = of(status, name, Some(name), None);
            assert_eq!((failed.fate, failed.health), (Fate::Later(Some(RETRY_MIN)), Health::Ill));
        }
        let mut wait = answer(503, "");
        wait.headers.insert(header::RETRY_AFTER, HeaderValue::from_static("90"));
        assert_eq!(verdict(&wait).fate, Fate::Later(Some(Duration::from_secs(90))));
    }

    #[test]
    fn what_is_not_json_or_not_as_expected_is_judged_by_its_status() {
        for body in ["<html>502</html>", "[]", "{\"error\":5}", "{\"error\":{\"details\":{\"a\":1}}}", "\u{fffd}"] {
            assert_eq!(verdict(&answer(502, body)).health, Health::Ill, "{body}");
            assert_eq!(verdict(&answer(400, body)).fate, Fate::Refused, "{body}");
        }
        assert_eq!(verdict(&answer(404, "")).health, Health::Misconfigured, "nobody is forgotten for a wrong URL");
    }

    #[test]
    fn a_wake_says_how_loudly_and_nothing_else() {
        let body =
            |loudness| -> Value { serde_json::from_slice(&ask("p", "token", loudness, "jwt").unwrap().body).unwrap() };
        let android = json!({ "priority": "HIGH", "ttl": "2419200s", "collapse_key": "wake" });
        let message = json!({ "token": "token", "data": { "wake": "" }, "android": android });
        assert_eq!(body(Loudness::Visible), json!({ "message": message }));
        assert_eq!(body(Loudness::Background)["message"]["android"]["priority"], "NORMAL");
        assert_eq!(body(Loudness::Call)["message"]["android"]["ttl"], "60s");
    }

    #[test]
    fn what_is_no_service_account_says_so_and_nothing_of_itself() {
        for text in ["", "secret", "{}", r#"{"private_key":"secret"}"#] {
            let error = service_account(text.as_bytes()).map(drop).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
