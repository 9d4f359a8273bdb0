//! Who asks, and what they may: grants out of `Authorization`.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use waxwing_protocol::Timestamp;
use waxwing_protocol::grant::{Audience, CLOCK_SKEW, Grant, GrantError, GrantKeys, VerifiedGrant, bearer};

use super::error::HttpError;
use super::{App, headers, now};
use crate::uploads::Allowance;

/// Verified grants remembered at most: some megabytes.
const REMEMBERED_MAX: u64 = 10_000;

/// Verifies grants, and remembers those that were valid until they expire: a signature check costs as much as many
/// small requests. Remembered by the hash of the token, so that no token stays in memory.
#[derive(Clone)]
pub(super) struct GrantMemory {
    keys: Arc<GrantKeys>,
    verified: moka::sync::Cache<[u8; 32], Arc<VerifiedGrant>>,
}

impl GrantMemory {
    pub(super) fn new(keys: Arc<GrantKeys>) -> Self {
        Self { keys, verified: moka::sync::Cache::new(REMEMBERED_MAX) }
    }

    fn verify(&self, token: &str, audience: Audience, now: Timestamp) -> Result<Arc<VerifiedGrant>, GrantError> {
        let key = *blake3::hash(token.as_bytes()).as_bytes();
        if let Some(known) = self.verified.get(&key) {
            if now >= known.expires.plus(CLOCK_SKEW) {
                self.verified.invalidate(&key);
                return Err(GrantError::Expired);
            }
            let actual = known.grant.audience();
            return if actual == audience { Ok(known) } else { Err(GrantError::Audience { actual }) };
        }
        let verified = Arc::new(self.keys.verify(token, &[audience], now)?);
        self.verified.insert(key, Arc::clone(&verified));
        Ok(verified)
    }

    fn of_request(&self, parts: &Parts, audience: Audience) -> Result<Arc<VerifiedGrant>, HttpError> {
        let value = headers::single(&parts.headers, AUTHORIZATION.as_str())?.ok_or_else(HttpError::no_grant)?;
        let token = bearer(value).ok_or_else(HttpError::no_grant)?;
        Ok(self.verify(token, audience, now())?)
    }
}

/// A request that may upload.
pub(super) struct UploadGrant {
    /// What it may.
    pub(super) allowance: Allowance,
}

impl FromRequestParts<App> for UploadGrant {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, HttpError> {
        match app.grants.of_request(parts, Audience::Upload)?.grant {
            Grant::Upload { owner, blob_bytes_max, quota_bytes } => {
                Ok(Self { allowance: Allowance { owner, blob_bytes_max, quota_bytes } })
            }
            ref other => Err(GrantError::Audience { actual: other.audience() }.into()),
        }
    }
}

/// A request that may read as an edge.
pub(super) struct EdgeGrant;

impl FromRequestParts<App> for EdgeGrant {
    type Rejection = HttpError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, HttpError> {
        app.grants.of_request(parts, Audience::Edge)?;
        Ok(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use waxwing_protocol::grant::{GrantSigner, MEDIA_LIFETIME};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    /// Remembering must not make a grant outlive its time or widen what it is for.
    #[test]
    fn a_remembered_grant_expires_and_stays_what_it_is() {
        let signer = GrantSigner::from_seed(&[5; 32]);
        let memory = GrantMemory::new(Arc::new(GrantKeys::from_jwks(&signer.jwks()).unwrap()));
        let token = signer.mint(&Grant::Edge { node: "e".into() }, NOW, MEDIA_LIFETIME, [0; 16]).text;
        assert!(memory.verify(&token, Audience::Edge, NOW).is_ok());
        assert!(memory.verify(&token, Audience::Edge, NOW).is_ok());
        let wrong = memory.verify(&token, Audience::Upload, NOW);
        assert_eq!(wrong.unwrap_err(), GrantError::Audience { actual: Audience::Edge });
        let later = NOW.plus(MEDIA_LIFETIME).plus(CLOCK_SKEW).plus(Duration::from_millis(1));
        assert_eq!(memory.verify(&token, Audience::Edge, later).unwrap_err(), GrantError::Expired);
        assert_eq!(memory.verify(&token, Audience::Edge, later).unwrap_err(), GrantError::Expired);
    }
}
