//! Asking a service over HTTP: one connection pool, time limits, problems as errors, retries with back-off.
//!
//! Servers restart and phones change networks. A client that gives up at the first refused connection is useless, and
//! ten thousand that retry in step keep a service down. So a request that may succeed later is repeated, a bounded
//! number of times, each pause drawn at random from a window that doubles (full jitter: AWS Architecture Blog,
//! "Exponential Backoff And Jitter", 2015).

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http::header::RETRY_AFTER;
use reqwest::{RequestBuilder, Response, redirect};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::OnceCell;
use waxwing_protocol::Problem;
use waxwing_protocol::api::ServiceInfo;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ClientError;
use crate::profile::Table;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a small request may take from the first byte to the last of its answer. Bodies of blobs have no such
/// limit: they may take hours and are watched for standing still instead.
pub(crate) const SMALL_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// The kind of a problem that is none: an answer without one, by something on the way.
pub(crate) const NO_DETAILS: &str = "no-details";

/// The kind of a problem that says of a device token that it is not valid, or no longer.
const NOT_A_DEVICE: &str = "unauthenticated";

/// How long a body may stand still.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a small answer at most; a hostile server cannot fill memory.
const SMALL_ANSWER_BYTES_MAX: usize = 1 << 20;

/// The row that says whom to ask and how to prove who asks; put by registration, once it is done.
pub(crate) const CREDENTIALS: Table<Credentials> = Table::new("credentials");

/// Where this device is registered, and its token there.
#[derive(Serialize, Deserialize)]
pub(crate) struct Credentials {
    /// The service's address, such as `https://chat.example`.
    pub(crate) server: String,
    /// The device token.
    pub(crate) token: Token,
}

impl Credentials {
    /// The key of the one row.
    pub(crate) const KEY: &[u8] = b"self";
}

/// A device token in its text form. Wiped from memory when dropped; has no `Debug`, so that no log shows it.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub(crate) struct Token(String);

impl Token {
    /// The token in this text.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// The token as text, for an Authorization header or a Hello.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A service and how to reach it. Clones share connections.
#[derive(Clone)]
pub(crate) struct Service {
    http: reqwest::Client,
    server: Arc<str>,
    /// Clones show the newest: it is replaced while they live.
    token: Option<Arc<Mutex<Token>>>,
    info: Arc<OnceCell<ServiceInfo>>,
    backoff: Backoff,
}

impl Service {
    /// The service at `server`, asked as nobody in particular.
    ///
    /// # Errors
    /// [`ClientError::Address`] when `server` is not an http or https address.
    pub(crate) fn new(server: &str) -> Result<Self, ClientError> {
        let not_one = || ClientError::Address { address: server.to_owned() };
        let url = reqwest::Url::parse(server).map_err(|_| not_one())?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(not_one());
        }
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Services name their addresses in ServiceInfo; a redirect could only carry grants elsewhere.
            .redirect(redirect::Policy::none())
            .user_agent(concat!("waxwing/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|source| ClientError::Unreachable { server: server.to_owned(), source: source.into() })?;
        let server = server.trim_end_matches('/').into();
        Ok(Self { http, server, token: None, info: Arc::default(), backoff: Backoff::DEFAULT })
    }

    /// The same service, asked as the device with this token.
    pub(crate) fn for_device(mut self, token: &Token) -> Self {
        self.token = Some(Arc::new(Mutex::new(token.clone())));
        self
    }

    /// Shows another token from now on.
    pub(crate) fn set_token(&self, token: &Token) {
        if let Some(shown) = &self.token {
            *shown.lock().unwrap_or_else(PoisonError::into_inner) = token.clone();
        }
    }

    /// The same service, with other pauses.
    #[cfg(test)]
    pub(crate) fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// The service's address.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The connection pool.
    pub(crate) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// How long to pause between tries.
    pub(crate) fn backoff(&self) -> Backoff {
        self.backoff
    }

    /// Where the service's roles are; asked once.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn info(&self) -> Result<&ServiceInfo, ClientError> {
        let url = format!("{}/v1/info", self.server);
        self.info
            .get_or_try_init(async || {
                let info: ServiceInfo = self.retry(|| self.json(self.http.get(&url))).await?;
                // A proxy in front speaks TLS, but the server behind it does not know its name: the device token would
                // travel in the clear.
                let is_secure = |url: &str| url.starts_with("https://") || url.starts_with("wss://");
                let told = [&info.api_url, &info.uploads_url, &info.blobs_url, &info.socket_url];
                if is_secure(&self.server) && !told.into_iter().all(|url| is_secure(url)) {
                    return Err(self.nonsense("addresses without TLS; its operator must set `public_url`"));
                }
                Ok(info)
            })
            .await
    }

    /// The URL of `path` (from the root) where accounts, keys and grants are.
    ///
    /// # Errors
    /// Those of [`Self::info`].
    pub(crate) async fn api_url(&self, path: &str) -> Result<String, ClientError> {
        Ok(format!("{}{path}", self.info().await?.api_url.trim_end_matches('/')))
    }

    /// The request with this device's token.
    pub(crate) fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token.lock().unwrap_or_else(PoisonError::into_inner).as_str()),
            None => request,
        }
    }

    /// Sends a small request and reads its answer as JSON.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], [`ClientError::Refused`] or [`ClientError::Nonsense`].
    pub(crate) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request.timeout(SMALL_REQUEST_TIMEOUT)).await?;
        let body = self.small_body(response).await?;
        serde_json::from_slice(&body).map_err(|error| self.nonsense(format!("not the JSON expected: {error}")))
    }

    /// The same, where the answer may be that there is none (204).
    ///
    /// # Errors
    /// Those of [`Self::json`].
    pub(crate) async fn maybe_json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
    ) -> Result<Option<T>, ClientError> {
        // The server may wait for as long as for any request.
        let response = self.send(request.timeout(SMALL_REQUEST_TIMEOUT * 2)).await?;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let body = self.small_body(response).await?;
        let answer = serde_json::from_slice(&body);
        answer.map(Some).map_err(|error| self.nonsense(format!("not the JSON expected: {error}")))
    }

    /// Sends a small request whose answer has nothing in it.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn done(&self, request: RequestBuilder) -> Result<(), ClientError> {
        self.send(request.timeout(SMALL_REQUEST_TIMEOUT)).await.map(drop)
    }

    /// Sends a request; an answer that is not a success becomes the problem it carries.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        if response.status().is_success() { Ok(response) } else { Err(self.refusal(response).await) }
    }

    /// The error of an answer that is not a success: the problem it carries.
    pub(crate) async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let problem = match self.small_body(response).await {
            Ok(body) => serde_json::from_slice(&body).ok(),
            Err(_) => None,
        };
        // A proxy on the way may answer without a problem; the status is then all there is.
        let problem = problem.map_or_else(
            || Problem::new(status, NO_DETAILS, format!("status {status}")),
            |problem: Problem| Problem { status, ..problem },
        );
        if status == StatusCode::UNAUTHORIZED.as_u16() && problem.slug() == NOT_A_DEVICE && self.token.is_some() {
            return ClientError::Removed { server: self.server.to_string() };
        }
        let retry_after = retry_after.map(Duration::from_secs);
        ClientError::Refused { server: self.server.to_string(), problem: Box::new(problem), retry_after }
    }

    async fn small_body(&self, response: Response) -> Result<Vec<u8>, ClientError> {
        self.body(response, SMALL_ANSWER_BYTES_MAX).await.map(Into::into)
    }

    /// The body of an answer, if it has no more than so many bytes.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Nonsense`].
    pub(crate) async fn body(&self, mut response: Response, bytes_max: usize) -> Result<Bytes, ClientError> {
        let mut body = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|source| self.unreachable(source))? {
            if body.len() + chunk.len() > bytes_max {
                return Err(self.nonsense(format!("more than {bytes_max} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Repeats `request` while it fails in a way that may pass, with pauses, a bounded number of times.
    ///
    /// # Errors
    /// The last one of `request`.
    pub(crate) async fn retry<T, F>(&self, request: impl Fn() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        for attempt in 1.. {
            match request().await {
                Err(error) if error.is_transient() && attempt < self.backoff.tries => {
                    tokio::time::sleep(self.backoff.pause(attempt, &error)).await;
                }
                done => return done,
            }
        }
        unreachable!("the last try returns")
    }

    /// The error of a connection that failed.
    pub(crate) fn unreachable(&self, source: reqwest::Error) -> ClientError {
        // Without the URL: it may name a blob.
        ClientError::Unreachable { server: self.server.to_string(), source: source.without_url().into() }
    }

    /// The error of a connection that ended, with the reason in words.
    pub(crate) fn lost(&self, why: &'static str) -> ClientError {
        ClientError::Unreachable { server: self.server.to_string(), source: why.into() }
    }

    /// The error of an answer that breaks the protocol.
    pub(crate) fn nonsense(&self, what: impl Into<String>) -> ClientError {
        ClientError::Nonsense { server: self.server.to_string(), what: what.into() }
    }
}

/// How often to try, and how long to pause between tries.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// Tries in a row without any success, the first included.
    pub(crate) tries: u32,
    /// The window the first pause is drawn from.
    pub(crate) first: Duration,
    /// The largest window.
    pub(crate) most: Duration,
}

impl Backoff {
    /// Six tries within about half a minute: enough for a server that restarts.
    pub(crate) const DEFAULT: Self =
        Self { tries: 6, first: Duration::from_millis(500), most: Duration::from_secs(20) };

    /// The pause after try number `attempt` (from 1) failed with `error`: random within a window that doubles, and not
    /// before the server said.
    pub(crate) fn pause(&self, attempt: u32, error: &ClientError) -> Duration {
        let window = self.first.saturating_mul(1 << (attempt - 1).min(16)).min(self.most);
        let drawn = window.mul_f64(random_fraction());
        match error {
            // A server cannot make its clients sleep for good.
            ClientError::Refused { retry_after: Some(after), .. } => drawn + (*after).min(self.most),
            _ => drawn,
        }
    }
}

/// A random number from 0 to 1.
pub(crate) fn random_fraction() -> f64 {
    // Without randomness the pause is half its window: jitter is a courtesy, not a secret.
    let drawn = getrandom::u32().unwrap_or(u32::MAX / 2);
    f64::from(drawn) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound_and_heed_the_server() {
        let backoff = Backoff::DEFAULT;
        let gone = ClientError::Address { address: String::new() };
        for attempt in 1..100 {
            assert!(backoff.pause(attempt, &gone) <= backoff.most);
        }
        assert!(backoff.pause(1, &gone) <= backoff.first);
        let busy = ClientError::Refused {
            server: String::new(),
            problem: Box::new(Problem::new(429, "too-many", "")),
            retry_after: Some(Duration::from_secs(3)),
        };
        assert!(backoff.pause(1, &busy) >= Duration::from_secs(3));
    }

    #[test]
    fn only_http_addresses_are_services() {
        for bad in ["", "chat.example", "ftp://chat.example", "/etc/passwd", "http://"] {
            assert!(matches!(Service::new(bad), Err(ClientError::Address { .. })), "{bad}");
        }
        assert_eq!(
            Service::new("http://127.0.0.1:8460/").map(|it| it.server().to_owned()).ok().as_deref(),
            Some("http://127.0.0.1:8460")
        );
    }
}
