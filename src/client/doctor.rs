//! The doctor: why messages or files do not get through, looked at one step at a time.
//!
//! "It does not work" can be a wrong address, a clock, a proxy that lets no WebSocket through, a revoked device or a host
//! that nobody reaches; each has its own cure, and the first error that a command meets seldom names it. So every step of
//! the way is tried by itself, and each finding says what to do.
//!
//! Promise: nothing is changed by looking, and no connection of this device is displaced.

use std::time::{Duration, Instant};

use http::header::DATE;
use waxwing_protocol::api::PrekeyCount;

use crate::account::now;
use crate::socket::{Handshake, try_handshake};
use crate::{Client, ClientError};

/// A clock that is off by more than this orders messages wrongly, and finds grants expired that are not.
const CLOCK_OFF_MAX: Duration = Duration::from_secs(60);

/// One-time keys below which strangers soon share the fallback key.
const PREKEYS_FEW: usize = 20;

/// What one step found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Which step.
    pub check: &'static str,
    /// How it stands.
    pub verdict: Verdict,
    /// For a person: what was found, and what to do about it.
    pub detail: String,
    /// How long the step took, in milliseconds.
    pub took_ms: u64,
}

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works, but not as well as it could.
    Warning,
    /// It does not work.
    Bad,
}

/// What a step says.
type Said = Result<(Verdict, String), ClientError>;

impl Client {
    /// Looks at every step between this profile and its service. When the service is not reached, the steps after that are
    /// left out: they would say the same.
    pub async fn examine(&self) -> Vec<Finding> {
        let mut findings = vec![finding("service", self.look_at_service()).await];
        if findings[0].verdict == Verdict::Bad {
            return findings;
        }
        findings.push(finding("clock", self.look_at_clock()).await);
        findings.push(finding("device", self.look_at_device()).await);
        findings.push(finding("prekeys", self.look_at_prekeys()).await);
        findings.push(finding("socket", Box::pin(self.look_at_socket())).await);
        findings.push(finding("uploads", self.look_at_uploads()).await);
        findings.push(finding("downloads", self.look_at_downloads()).await);
        findings
    }

    async fn look_at_service(&self) -> Said {
        let info = self.service.info().await?;
        good(format!("{} at {}", info.server, self.service.server()))
    }

    async fn look_at_clock(&self) -> Said {
        let url = self.service.api_url("/v1/info").await?;
        let response = self.service.send(self.service.http().get(url)).await?;
        let here = now();
        let date = response.headers().get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        let Some(there) = date else { return good("the service does not tell the time".to_owned()) };
        let there = waxwing_protocol::Timestamp::from(there);
        let off = here.since(there).max(there.since(here));
        if off > CLOCK_OFF_MAX {
            let way = if here > there { "ahead of" } else { "behind" };
            let detail = format!("{} s {way} the service's: set this machine's clock", off.as_secs());
            return Ok((Verdict::Warning, detail));
        }
        good("agrees with the service's".to_owned())
    }

    async fn look_at_device(&self) -> Said {
        let me = self.whoami()?;
        let devices = self.devices().await?;
        if !devices.iter().any(|device| device.is_this) {
            let detail = format!("device {} is the account's no more: link it again", me.device);
            return Ok((Verdict::Bad, detail));
        }
        good(format!("device {} of {}, of {} in all", me.device, me.handle, devices.len()))
    }

    async fn look_at_prekeys(&self) -> Said {
        let url = self.service.api_url("/v1/keys").await?;
        let held: PrekeyCount = self.service.json(self.service.authorized(self.service.http().get(url))).await?;
        match held {
            PrekeyCount { one_time: 0, fallback: false } => {
                Ok((Verdict::Bad, "none: nobody new can write to this device; `waxwing watch` uploads some".to_owned()))
            }
            PrekeyCount { one_time, .. } if one_time < PREKEYS_FEW => {
                Ok((Verdict::Warning, format!("{one_time} one-time keys left: `waxwing watch` uploads more")))
            }
            PrekeyCount { one_time, .. } => good(format!("{one_time} one-time keys")),
        }
    }

    async fn look_at_socket(&self) -> Said {
        match try_handshake(&self.service).await? {
            Handshake::Open => good("WebSocket gets through".to_owned()),
            Handshake::Proxied(refused) => Ok((
                Verdict::Warning,
                format!("a proxy on the way refuses WebSocket ({refused}): messages come by polls, some seconds later"),
            )),
        }
    }

    async fn look_at_uploads(&self) -> Said {
        let url = self.service.info().await?.uploads_url.clone();
        self.answers(&url, self.service.http().request(http::Method::OPTIONS, &url)).await
    }

    /// An edge that is asked for nothing refuses, which it can only do when it is there.
    async fn look_at_downloads(&self) -> Said {
        let url = self.service.info().await?.blobs_url.clone();
        self.answers(&url, self.service.http().head(format!("{url}/none"))).await
    }

    async fn answers(&self, url: &str, request: reqwest::RequestBuilder) -> Said {
        let response = request.send().await.map_err(|source| self.service.unreachable(source))?;
        match response.status().as_u16() {
            status @ 500.. => Ok((Verdict::Bad, format!("{url} answers {status}: ask the operator"))),
            _ => good(format!("{url} answers")),
        }
    }
}

fn good(detail: String) -> Said {
    Ok((Verdict::Good, detail))
}

async fn finding(check: &'static str, look: impl Future<Output = Said>) -> Finding {
    let began = Instant::now();
    let (verdict, detail) = look.await.unwrap_or_else(|error| (Verdict::Bad, error.to_string()));
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Finding { check, verdict, detail, took_ms }
}
