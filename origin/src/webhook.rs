//! Telling somebody of each upload that became a blob.
//!
//! A backend that wants to know must not have to ask, and must not miss one because it was down. So the event is in the
//! commit that made the blob, and stays until somebody answered 2xx: at least once, whatever dies meanwhile. Every try of
//! an event has the same id, by which the receiver knows a repetition.
//!
//! The request is that of [Standard Webhooks](https://www.standardwebhooks.com) 1.0: `webhook-id`, `webhook-timestamp`,
//! and `webhook-signature: v1,` with an HMAC-SHA256 over the three of id, timestamp and body.
//!
//! One that is refused waits longer each time, up to an hour; after three days it is given up, which the log tells. It
//! holds no other back as long as fewer than [`PAGE`] wait: more only do when the receiver takes nothing.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use data_encoding::BASE64;
use futures_util::stream::{self, StreamExt as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::redirect::Policy;
use serde::Serialize;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use crate::config::Webhook as Config;
use crate::store::{BlobStore, Event, StoreError};

/// How often events are looked for.
const POLL: Duration = Duration::from_secs(1);

/// Events looked at in one go; those that wait for another try count.
const PAGE: usize = 1000;

/// Requests under way at once at most.
const AT_ONCE_MAX: usize = 8;

/// How long a receiver may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The pause after the first try; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_secs(2);

/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(60 * 60);

/// How long an event is tried.
const GIVE_UP: Duration = Duration::from_secs(3 * 24 * 60 * 60);

/// Bytes that a secret has.
const SECRET_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Why a webhook cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    #[error("{url} is no URL")]
    Url { url: String },
    #[error("the secret cannot be read")]
    Unreadable(#[source] std::io::Error),
    #[error("the secret is not whsec_ and 24 to 64 bytes in base64")]
    Secret,
    #[error("no connection can be made")]
    Client(#[source] reqwest::Error),
}

/// What is sent.
#[derive(Serialize)]
struct Payload {
    r#type: &'static str,
    timestamp: String,
    data: Data,
}

#[derive(Serialize)]
struct Data {
    blob: BlobId,
    blob_bytes: u64,
    owner: OwnerTag,
    upload: UploadId,
    stored_at: Timestamp,
}

/// Whoever is told.
pub(crate) struct Webhook {
    url: reqwest::Url,
    secret: Secret,
    client: reqwest::Client,
}

/// The key of signatures.
struct Secret(Vec<u8>);

impl Webhook {
    /// Reads the secret, and gets ready.
    pub(crate) fn open(config: &Config) -> Result<Self, WebhookError> {
        let url = reqwest::Url::parse(&config.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let url = url.ok_or_else(|| WebhookError::Url { url: config.url.clone() })?;
        let secret = Secret::read(&config.secret_file)?;
        let client = reqwest::Client::builder().redirect(Policy::none()).timeout(ANSWER_TIMEOUT).build();
        Ok(Self { url, secret, client: client.map_err(WebhookError::Client)? })
    }

    /// Tells of `event`, as of `now`. An error says what the receiver answered, or why it did not.
    async fn tell(&self, event: &Event, now: Timestamp) -> Result<(), String> {
        let (id, timestamp) = (format!("evt_{}", event.upload), now.as_secs().to_string());
        let data = Data {
            blob: event.blob,
            blob_bytes: event.blob_bytes,
            owner: event.owner,
            upload: event.upload,
            stored_at: event.at,
        };
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(event.at.as_millis());
        let happened = humantime::format_rfc3339_millis(at).to_string();
        let payload = Payload { r#type: "blob.stored", timestamp: happened, data };
        let body = serde_json::to_vec(&payload).map_err(|error| error.to_string())?;
        let signature = self.secret.sign(&id, &timestamp, &body);
        let request = self.client.post(self.url.clone()).body(body);
        let request = request
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
        // Without its URL, which may be secret.
        let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
        if answer.status().is_success() { Ok(()) } else { Err(format!("it answered {}", answer.status())) }
    }
}

impl Secret {
    fn read(path: &Path) -> Result<Self, WebhookError> {
        let text = std::fs::read_to_string(path).map_err(WebhookError::Unreadable)?;
        Self::parse(text.trim())
    }

    fn parse(text: &str) -> Result<Self, WebhookError> {
        let bytes = text.strip_prefix("whsec_").and_then(|text| BASE64.decode(text.as_bytes()).ok());
        bytes.filter(|bytes| SECRET_BYTES.contains(&bytes.len())).map(Self).ok_or(WebhookError::Secret)
    }

    /// The value of `webhook-signature`.
    fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("an HMAC takes keys of any length");
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
            mac.update(part);
        }
        format!("v1,{}", BASE64.encode(&mac.finalize().into_bytes()))
    }
}

/// Tries that failed.
struct Setback {
    tries: u32,
    again: Instant,
}

/// Tells `webhook` of every event in `store` until `stop`. Reads the clock.
pub(crate) async fn run(webhook: Webhook, store: Arc<dyn BlobStore>, stop: CancellationToken) {
    let mut setbacks = HashMap::new();
    while stop.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
        if let Err(error) = tell_all(&webhook, &*store, &mut setbacks, &stop).await {
            tracing::warn!(error = %error, "events were not told");
        }
    }
}

/// Tells of every event whose time it is, until there is none more.
async fn tell_all(
    webhook: &Webhook,
    store: &dyn BlobStore,
    setbacks: &mut HashMap<UploadId, Setback>,
    stop: &CancellationToken,
) -> Result<(), StoreError> {
    loop {
        let (began, now) = (Instant::now(), Timestamp::from(SystemTime::now()));
        let page = store.events(PAGE).await?;
        let is_due = |event: &Event| setbacks.get(&event.upload).is_none_or(|setback| setback.again <= began);
        let due: Vec<_> = page.into_iter().filter(is_due).collect();
        if due.is_empty() || stop.is_cancelled() {
            return Ok(());
        }
        let told = stream::iter(due).map(|event| async move { (event, webhook.tell(&event, now).await) });
        let told: Vec<_> = told.buffer_unordered(AT_ONCE_MAX).collect().await;
        for (event, outcome) in told {
            let Err(error) = outcome else {
                setbacks.remove(&event.upload);
                store.settle(event).await?;
                continue;
            };
            if now.since(event.at) > GIVE_UP {
                tracing::error!(upload.id = %event.upload, error, "gave up telling of an upload after three days");
                setbacks.remove(&event.upload);
                store.settle(event).await?;
                continue;
            }
            let setback = setbacks.entry(event.upload).or_insert(Setback { tries: 0, again: began });
            setback.again = Instant::now() + pause(setback.tries);
            setback.tries += 1;
            tracing::warn!(upload.id = %event.upload, tries = setback.tries, error, "the webhook did not take an event");
        }
    }
}

/// The pause after as many failed tries.
fn pause(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(tries)).min(PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference implementations.
    #[test]
    fn a_signature_is_the_specifications() {
        let secret = Secret::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        for text in ["", "whsec_", "whsec_AAAA", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_!!!!"] {
            assert!(matches!(Secret::parse(text), Err(WebhookError::Secret)), "{text}");
        }
        assert!(Secret::parse(&format!("whsec_{}", BASE64.encode(&[7; 65]))).is_err());
    }

    #[test]
    fn pauses_grow_to_an_hour() {
        assert_eq!(pause(0), Duration::from_secs(2));
        assert_eq!(pause(3), Duration::from_secs(16));
        assert_eq!(pause(40), PAUSE_MAX);
    }
}
