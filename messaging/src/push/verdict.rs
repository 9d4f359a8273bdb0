//! What a provider's answer to a wake means.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};
use waxwing_protocol::Timestamp;

use super::gates::Health;
use super::net::NetError;

/// What an answer means, for the device and for the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) fate: Fate,
    pub(super) health: Health,
    /// For metrics and operators: the provider's word, or ours.
    pub(super) reason: &'static str,
}

/// What becomes of a wake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The provider has it.
    Accepted,
    /// Where the device is woken is no more: since then, if the provider says so.
    Gone { since: Option<Timestamp> },
    /// To be tried again, after a while if the provider says so.
    Later(Option<Duration>),
    /// A mistake of this server: trying again changes nothing.
    Refused,
}

/// The longest that a provider can make us wait with one device. Longer ones are mistakes of theirs.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long those are left alone who ask for less and do not say how long.
pub(super) const THROTTLED: Duration = Duration::from_secs(60);

impl Verdict {
    pub(super) const fn accepted() -> Self {
        Self { fate: Fate::Accepted, health: Health::Well, reason: "accepted" }
    }

    pub(super) const fn gone(reason: &'static str, since: Option<Timestamp>) -> Self {
        Self { fate: Fate::Gone { since }, health: Health::Well, reason }
    }

    /// A mistake of ours, which the provider has understood.
    pub(super) const fn refused(reason: &'static str) -> Self {
        Self { fate: Fate::Refused, health: Health::Well, reason }
    }

    /// The provider fails.
    pub(super) const fn ill(reason: &'static str, after: Option<Duration>) -> Self {
        Self { fate: Fate::Later(after), health: Health::Ill, reason }
    }

    /// The provider does not accept who we are. The wake waits for an operator.
    pub(super) const fn misconfigured(reason: &'static str) -> Self {
        Self { fate: Fate::Later(None), health: Health::Misconfigured, reason }
    }

    /// The provider asks for less.
    pub(super) fn throttled(reason: &'static str, after: Option<Duration>) -> Self {
        let wait = after.unwrap_or(THROTTLED);
        Self { fate: Fate::Later(Some(wait)), health: Health::Throttles(wait), reason }
    }
}

impl From<&NetError> for Verdict {
    fn from(error: &NetError) -> Self {
        match error {
            // Nobody was asked: where it leads is the device's doing, and may be another place tomorrow.
            NetError::NotPublic => Self { fate: Fate::Refused, health: Health::Unknown, reason: error.name() },
            NetError::Malformed(_) => Self { fate: Fate::Refused, health: Health::Unknown, reason: error.name() },
            error => Self::ill(error.name(), None),
        }
    }
}

/// How long the answer asks to wait: `Retry-After`, in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(RETRY_AFTER_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_comes_in_seconds_or_as_a_date_and_has_a_bound() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
            retry_after(&headers, now)
        };
        assert_eq!(of("120"), Some(Duration::from_secs(120)));
        assert_eq!(of("Sun, 09 Sep 2001 01:47:10 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(of("Sun, 09 Sep 2001 01:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(of("99999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(of("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
