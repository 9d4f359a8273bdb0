//! Minting grants: what an account may do at the origin and at edges.
//!
//! Origin and edge know no accounts. What they see of one is a tag, derived here under a key of its own: the same
//! account always owns its blobs, and nobody without the key can tell whose they are.

use std::path::Path;
use std::time::Duration;

use waxwing_protocol::api::{GrantRequest, GrantResponse};
use waxwing_protocol::grant::{Grant, GrantSigner, GrantToken, Jwks, MEDIA_LIFETIME, UPLOAD_LIFETIME};
use waxwing_protocol::{AccountId, OwnerTag, Timestamp};

use crate::config::Config;
use crate::secrets::{SecretError, load_or_create};

/// File of the seed of the signing key, in the data directory.
const GRANT_KEY_FILE: &str = "grant.key";

/// File of the secret that owner tags are derived under.
const OWNER_KEY_FILE: &str = "owner.key";

/// The context under which BLAKE3 derives the key of owner tags from their secret.
const OWNER_KEY_CONTEXT: &str = "waxwing 2026 owner tag v1";

/// Mints grants.
pub(crate) struct Grants {
    signer: GrantSigner,
    owner_key: [u8; 32],
    blob_bytes_max: u64,
    quota_bytes: u64,
    share_lifetime_max: Duration,
}

impl Grants {
    /// Loads the keys from `data_dir`, making them the first time.
    pub(crate) fn open(config: &Config, data_dir: &Path) -> Result<Self, SecretError> {
        let owner_secret = load_or_create(&data_dir.join(OWNER_KEY_FILE))?;
        Ok(Self {
            signer: signer(data_dir)?,
            owner_key: blake3::derive_key(OWNER_KEY_CONTEXT, &owner_secret),
            blob_bytes_max: config.blob_bytes_max,
            quota_bytes: config.quota_bytes,
            share_lifetime_max: Duration::from_secs(config.share_lifetime_s_max),
        })
    }

    /// Mints what `account` asks for. `nonce` is random.
    pub(crate) fn mint(
        &self,
        account: AccountId,
        request: &GrantRequest,
        now: Timestamp,
        nonce: [u8; 16],
    ) -> GrantResponse {
        let (grant, lifetime) = match request {
            GrantRequest::Upload => {
                let (blob_bytes_max, quota_bytes) = (self.blob_bytes_max, self.quota_bytes);
                (Grant::Upload { owner: self.owner(account), blob_bytes_max, quota_bytes }, UPLOAD_LIFETIME)
            }
            GrantRequest::Media => (Grant::Media, MEDIA_LIFETIME),
            GrantRequest::Share { blob, lifetime_s } => {
                let asked = lifetime_s.map_or(self.share_lifetime_max, Duration::from_secs);
                (Grant::Share { blob: *blob }, asked.min(self.share_lifetime_max))
            }
        };
        let token = self.signer.mint(&grant, now, lifetime, nonce);
        GrantResponse { grant: token.text, expires_at: token.expires }
    }

    /// Mints a grant for the edge named `node`.
    pub(crate) fn mint_edge(&self, node: &str, lifetime: Duration, now: Timestamp) -> GrantToken {
        mint_edge(&self.signer, node, lifetime, now)
    }

    /// The public keys.
    pub(crate) fn jwks(&self) -> Jwks {
        self.signer.jwks()
    }

    /// The key of owner tags: all nodes of a cluster share it.
    pub(crate) fn owner_key(&self) -> [u8; 32] {
        self.owner_key
    }

    fn owner(&self, account: AccountId) -> OwnerTag {
        let hash = blake3::keyed_hash(&self.owner_key, account.as_bytes());
        OwnerTag::from_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
    }
}

/// Mints an edge grant with the signing key of the messaging node whose data is in `data_dir`, which may be running.
///
/// # Errors
/// When the key cannot be read or made.
pub fn mint_edge_grant(data_dir: &Path, node: &str, lifetime: Duration) -> Result<GrantToken, SecretError> {
    Ok(mint_edge(&signer(data_dir)?, node, lifetime, std::time::SystemTime::now().into()))
}

fn signer(data_dir: &Path) -> Result<GrantSigner, SecretError> {
    Ok(GrantSigner::from_seed(&load_or_create(&data_dir.join(GRANT_KEY_FILE))?))
}

fn mint_edge(signer: &GrantSigner, node: &str, lifetime: Duration, now: Timestamp) -> GrantToken {
    // Its subject is the node's name: the nonce is for media grants alone.
    signer.mint(&Grant::Edge { node: node.to_owned() }, now, lifetime, [0; 16])
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_protocol::BlobId;
    use waxwing_protocol::grant::{Audience, GrantKeys};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn verified(grants: &Grants, token: &str, audience: Audience) -> Grant {
        GrantKeys::from_jwks(&grants.jwks()).unwrap().verify(token, &[audience], NOW).unwrap().grant
    }

    #[test]
    fn an_account_keeps_its_owner_tag_over_restarts_and_shares_it_with_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let account = AccountId::from_bytes([1; 16]);
        let tag_of = |account| {
            let grants = Grants::open(&Config::default(), dir.path()).unwrap();
            let response = grants.mint(account, &GrantRequest::Upload, NOW, [0; 16]);
            match verified(&grants, &response.grant, Audience::Upload) {
                Grant::Upload { owner, .. } => owner,
                other => panic!("{other:?}"),
            }
        };
        let tag = tag_of(account);
        assert_eq!(tag_of(account), tag);
        assert_ne!(tag_of(AccountId::from_bytes([2; 16])), tag);
        assert_ne!(tag.as_bytes(), account.as_bytes());
    }

    #[test]
    fn nobody_gets_a_share_for_longer_than_the_server_allows() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { share_lifetime_s_max: 100, ..Config::default() };
        let grants = Grants::open(&config, dir.path()).unwrap();
        let blob = BlobId::from_bytes([3; 32]);
        for (asked, given) in [(None, 100), (Some(7), 7), (Some(u64::MAX), 100)] {
            let request = GrantRequest::Share { blob, lifetime_s: asked };
            let response = grants.mint(AccountId::from_bytes([1; 16]), &request, NOW, [0; 16]);
            assert_eq!(response.expires_at, NOW.plus(Duration::from_secs(given)));
            assert_eq!(verified(&grants, &response.grant, Audience::Share), Grant::Share { blob });
        }
    }

    #[test]
    fn an_edge_grant_minted_beside_the_running_node_is_one_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let grants = Grants::open(&Config::default(), dir.path()).unwrap();
        let token = mint_edge_grant(dir.path(), "edge-1", Duration::from_secs(60)).unwrap();
        let keys = GrantKeys::from_jwks(&grants.jwks()).unwrap();
        let verified = keys.verify(&token.text, &[Audience::Edge], std::time::SystemTime::now().into()).unwrap();
        assert_eq!(verified.grant, Grant::Edge { node: "edge-1".into() });
    }
}
