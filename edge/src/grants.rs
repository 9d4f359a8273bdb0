//! Who may read what: clients' grants, verified once and remembered.
//!
//! One Ed25519 check costs as much as ten to twenty cached hits, and a client that watches a film shows the same grant
//! hundreds of times. So a grant that was verified is remembered under its BLAKE3 hash, never as text: a dump of this
//! process's memory or logs gives nobody a grant from here.

use std::sync::Arc;

use waxwing_protocol::grant::{Audience, CLOCK_SKEW, Grant, GrantError, GrantKeys, VerifiedGrant};
use waxwing_protocol::{BlobId, Timestamp};

/// Verified grants remembered at once, about 20 MB. One more costs a signature check, nothing else.
const REMEMBERED_MAX: u64 = 100_000;

/// Checks the grants of clients.
#[derive(Debug)]
pub(crate) struct Grants {
    keys: Arc<GrantKeys>,
    remembered: moka::sync::Cache<[u8; 32], VerifiedGrant>,
}

impl Grants {
    /// Checks grants by these public keys.
    pub(crate) fn new(keys: Arc<GrantKeys>) -> Self {
        Self { keys, remembered: moka::sync::Cache::new(REMEMBERED_MAX) }
    }

    /// Whether the grant `token` lets its holder read blob `id` at `now`; until when, if so.
    ///
    /// # Errors
    /// [`GrantError`]: `Audience` for a grant that is genuine but for something else, another blob included.
    pub(crate) fn admit(&self, token: &str, id: BlobId, now: Timestamp) -> Result<Timestamp, GrantError> {
        let verified = self.verify(token, now)?;
        match verified.grant {
            Grant::Media => Ok(verified.expires),
            Grant::Share { blob } if blob == id => Ok(verified.expires),
            other => Err(GrantError::Audience { actual: other.audience() }),
        }
    }

    /// Whether the grant `token` makes its holder an edge at `now`.
    ///
    /// # Errors
    /// [`GrantError`]: `Audience` for one that is genuine but a client's.
    pub(crate) fn admit_edge(&self, token: &str, now: Timestamp) -> Result<(), GrantError> {
        match self.verify(token, now)?.grant {
            Grant::Edge { .. } => Ok(()),
            other => Err(GrantError::Audience { actual: other.audience() }),
        }
    }

    fn verify(&self, token: &str, now: Timestamp) -> Result<VerifiedGrant, GrantError> {
        let hash = *blake3::hash(token.as_bytes()).as_bytes();
        let known = self.remembered.get(&hash).filter(|grant| now < grant.expires.plus(CLOCK_SKEW));
        if let Some(verified) = known {
            return Ok(verified);
        }
        let verified = self.keys.verify(token, &[Audience::Media, Audience::Share, Audience::Edge], now)?;
        self.remembered.insert(hash, verified.clone());
        Ok(verified)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use waxwing_protocol::grant::GrantSigner;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const ID: BlobId = BlobId::from_bytes([1; 32]);
    const OTHER: BlobId = BlobId::from_bytes([2; 32]);
    const MINUTE: Duration = Duration::from_secs(60);

    fn signer() -> GrantSigner {
        GrantSigner::from_seed(&[3; 32])
    }

    fn grants() -> Grants {
        Grants::new(Arc::new(GrantKeys::from_jwks(&signer().jwks()).unwrap()))
    }

    #[test]
    fn a_share_grant_opens_its_own_blob_only_also_when_remembered() {
        let grants = grants();
        let token = signer().mint(&Grant::Share { blob: ID }, NOW, MINUTE, [0; 16]).text;
        for _ in 0..2 {
            assert!(grants.admit(&token, ID, NOW).is_ok());
            assert_eq!(grants.admit(&token, OTHER, NOW), Err(GrantError::Audience { actual: Audience::Share }));
        }
    }

    /// Remembering a grant must not lengthen its life.
    #[test]
    fn a_remembered_grant_ends_when_it_says() {
        let grants = grants();
        let token = signer().mint(&Grant::Media, NOW, MINUTE, [0; 16]);
        assert_eq!(grants.admit(&token.text, ID, NOW), Ok(token.expires));
        let over = token.expires.plus(CLOCK_SKEW);
        assert_eq!(grants.admit(&token.text, ID, over), Err(GrantError::Expired));
    }

    /// What one kind of grant opens stays closed to the other, also when both are remembered.
    #[test]
    fn an_edges_grant_reads_nothing_as_a_client_and_a_clients_nothing_as_an_edge() {
        let grants = grants();
        let edge = signer().mint(&Grant::Edge { node: "e".into() }, NOW, MINUTE, [0; 16]).text;
        let media = signer().mint(&Grant::Media, NOW, MINUTE, [0; 16]).text;
        for _ in 0..2 {
            assert_eq!(grants.admit(&edge, ID, NOW), Err(GrantError::Audience { actual: Audience::Edge }));
            assert_eq!(grants.admit_edge(&media, NOW), Err(GrantError::Audience { actual: Audience::Media }));
            assert!(grants.admit_edge(&edge, NOW).is_ok() && grants.admit(&media, ID, NOW).is_ok());
        }
    }
}
