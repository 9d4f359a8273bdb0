//! Grants: short-lived permissions that messaging mints and origin and edge verify without asking anybody.
//!
//! An edge serves tens of thousands of requests a second and must not call home for any of them. So a permission is a
//! JWT (RFC 7519) signed with Ed25519 (RFC 8037); whoever holds the public key can check it. The algorithm is pinned:
//! a token never chooses how it is verified. Grants travel as `Authorization: Bearer`, never in a URL, and are never
//! logged.

use std::collections::HashMap;
use std::time::Duration;

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use ed25519_dalek::SigningKey;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::{BlobId, OwnerTag, Timestamp};

/// How long an upload grant lasts: a phone on a bad network finishes a large part within it.
pub const UPLOAD_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How long a media grant lasts.
pub const MEDIA_LIFETIME: Duration = Duration::from_secs(15 * 60);

/// How long a share grant lasts when nothing shorter is asked for: as long as the origin keeps blobs.
pub const SHARE_LIFETIME: Duration = Duration::from_secs(45 * 24 * 60 * 60);

/// How far two servers' clocks may be apart.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Bytes of a grant at most; a longer one is refused before it is parsed.
pub const GRANT_BYTES_MAX: usize = 2048;

/// What a grant allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// To upload blobs as an owner.
    Upload {
        /// Who will own them.
        owner: OwnerTag,
        /// Bytes of one blob at most.
        blob_bytes_max: u64,
        /// Bytes this owner may have stored and under way at once.
        quota_bytes: u64,
    },
    /// To download any blob whose id one knows.
    Media,
    /// To download one blob.
    Share {
        /// The blob.
        blob: BlobId,
    },
    /// To read from an origin or a peer as an edge.
    Edge {
        /// The edge's name, for logs and metrics.
        node: String,
    },
}

impl Grant {
    /// Whom a grant is for: the `aud` claim.
    pub const fn audience(&self) -> Audience {
        match self {
            Self::Upload { .. } => Audience::Upload,
            Self::Media => Audience::Media,
            Self::Share { .. } => Audience::Share,
            Self::Edge { .. } => Audience::Edge,
        }
    }
}

/// Whom a grant is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Audience {
    /// The origin's uploads.
    Upload,
    /// An edge, any blob.
    Media,
    /// An edge, one blob.
    Share,
    /// An origin or a peer edge.
    Edge,
}

/// The claims of a grant as they stand in the JWT.
#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    aud: Audience,
    sub: String,
    iat: u64,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob: Option<BlobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    blob_bytes_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quota_bytes: Option<u64>,
}

/// Why a grant was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Not a JWT of ours.
    #[error("the grant is malformed")]
    Malformed,
    /// Signed with a key that this server does not know.
    #[error("the grant is signed by an unknown key")]
    UnknownKey,
    /// Changed on the way, or forged.
    #[error("the grant's signature is not valid")]
    Signature,
    /// Its time is over.
    #[error("the grant has expired; ask for a new one")]
    Expired,
    /// Genuine, but for something else.
    #[error("this is a grant for {actual:?}, which does not allow this")]
    Audience {
        /// What it is for.
        actual: Audience,
    },
}

/// A grant that was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedGrant {
    /// What it allows.
    pub grant: Grant,
    /// When it ends.
    pub expires: Timestamp,
}

/// Mints grants. Messaging alone holds one.
pub struct GrantSigner {
    kid: String,
    key: EncodingKey,
    public: Jwk,
}

impl GrantSigner {
    /// The signer whose Ed25519 secret key is `seed` (RFC 8032: 32 random bytes).
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let public = SigningKey::from_bytes(seed).verifying_key().to_bytes();
        let kid = key_id(&public);
        let public =
            Jwk { kty: "OKP".into(), crv: "Ed25519".into(), kid: kid.clone(), x: BASE64URL_NOPAD.encode(&public) };
        Self { kid, key: EncodingKey::from_ed_der(&pkcs8(seed)), public }
    }

    /// The public half, for [`GrantKeys`] and `/.well-known/jwks.json`.
    pub fn jwks(&self) -> Jwks {
        Jwks { keys: vec![self.public.clone()] }
    }

    /// Mints `grant` at `now` for `lifetime`. `nonce` becomes the subject of a media grant: random for each, so that an
    /// edge's log draws no picture of who fetches what.
    pub fn mint(&self, grant: &Grant, now: Timestamp, lifetime: Duration, nonce: [u8; 16]) -> GrantToken {
        let expires = now.plus(lifetime);
        let mut claims = Claims {
            aud: grant.audience(),
            sub: BASE64URL_NOPAD.encode(&nonce),
            iat: now.as_secs(),
            exp: expires.as_secs(),
            blob: None,
            blob_bytes_max: None,
            quota_bytes: None,
        };
        match grant {
            Grant::Upload { owner, blob_bytes_max, quota_bytes } => {
                claims.sub = owner.to_string();
                claims.blob_bytes_max = Some(*blob_bytes_max);
                claims.quota_bytes = Some(*quota_bytes);
            }
            Grant::Media => {}
            Grant::Share { blob } => claims.blob = Some(*blob),
            Grant::Edge { node } => claims.sub.clone_from(node),
        }
        let header = Header { kid: Some(self.kid.clone()), ..Header::new(Algorithm::EdDSA) };
        let text = jsonwebtoken::encode(&header, &claims, &self.key).expect("an Ed25519 key signs any claims");
        GrantToken { text, expires: Timestamp::from_secs(claims.exp) }
    }
}

impl std::fmt::Debug for GrantSigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GrantSigner").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A minted grant.
#[derive(Clone, PartialEq, Eq)]
pub struct GrantToken {
    /// The JWT.
    pub text: String,
    /// When it ends; whole seconds.
    pub expires: Timestamp,
}

impl std::fmt::Debug for GrantToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GrantToken(until {})", self.expires)
    }
}

/// A JSON Web Key (RFC 7517) of the only kind grants use: Ed25519 (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwk {
    /// Key type: `OKP`.
    pub kty: String,
    /// Curve: `Ed25519`.
    pub crv: String,
    /// Which key: the beginning of its BLAKE3 hash.
    pub kid: String,
    /// The public key, base64url.
    pub x: String,
}

/// A JSON Web Key Set: the body of `/.well-known/jwks.json`. Holds the old key beside the new while keys rotate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<Jwk>,
}

/// Verifies grants. Origin and edge hold public keys only.
pub struct GrantKeys {
    keys: HashMap<String, DecodingKey>,
    validation: Validation,
}

impl GrantKeys {
    /// The keys of a set.
    ///
    /// # Errors
    /// [`GrantError::Malformed`] when a key is not Ed25519; a set is taken whole or not at all.
    pub fn from_jwks(jwks: &Jwks) -> Result<Self, GrantError> {
        let keys = jwks.keys.iter().map(|jwk| {
            let bytes = BASE64URL_NOPAD.decode(jwk.x.as_bytes()).map_err(|_| GrantError::Malformed)?;
            if jwk.kty != "OKP" || jwk.crv != "Ed25519" || bytes.len() != 32 {
                return Err(GrantError::Malformed);
            }
            let key = DecodingKey::from_ed_components(&jwk.x).map_err(|_| GrantError::Malformed)?;
            Ok((jwk.kid.clone(), key))
        });
        let mut validation = Validation::new(Algorithm::EdDSA);
        // Time is checked here against the caller's clock, the audience by type.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.set_required_spec_claims(&["exp", "aud", "sub"]);
        Ok(Self { keys: keys.collect::<Result<_, _>>()?, validation })
    }

    /// Verifies `token` at `now` for any of `audiences`.
    ///
    /// # Errors
    /// [`GrantError`] tells why not. `Expired` and `Audience` are said only of genuine grants.
    pub fn verify(&self, token: &str, audiences: &[Audience], now: Timestamp) -> Result<VerifiedGrant, GrantError> {
        if token.len() > GRANT_BYTES_MAX {
            return Err(GrantError::Malformed);
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| GrantError::Malformed)?;
        if header.alg != Algorithm::EdDSA {
            return Err(GrantError::Malformed);
        }
        let key = header.kid.and_then(|kid| self.keys.get(&kid)).ok_or(GrantError::UnknownKey)?;
        let claims = jsonwebtoken::decode::<Claims>(token, key, &self.validation)
            .map_err(|error| match error.kind() {
                jsonwebtoken::errors::ErrorKind::InvalidSignature => GrantError::Signature,
                _ => GrantError::Malformed,
            })?
            .claims;
        let expires = Timestamp::from_secs(claims.exp);
        if now >= expires.plus(CLOCK_SKEW) {
            return Err(GrantError::Expired);
        }
        if Timestamp::from_secs(claims.iat) > now.plus(CLOCK_SKEW) {
            return Err(GrantError::Malformed);
        }
        if !audiences.contains(&claims.aud) {
            return Err(GrantError::Audience { actual: claims.aud });
        }
        Ok(VerifiedGrant { grant: claims.into_grant()?, expires })
    }
}

impl std::fmt::Debug for GrantKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.keys.keys()).finish()
    }
}

impl Claims {
    fn into_grant(self) -> Result<Grant, GrantError> {
        let missing = GrantError::Malformed;
        Ok(match self.aud {
            Audience::Upload => Grant::Upload {
                owner: self.sub.parse().map_err(|_| GrantError::Malformed)?,
                blob_bytes_max: self.blob_bytes_max.ok_or_else(|| missing.clone())?,
                quota_bytes: self.quota_bytes.ok_or(missing)?,
            },
            Audience::Media => Grant::Media,
            Audience::Share => Grant::Share { blob: self.blob.ok_or(missing)? },
            Audience::Edge => Grant::Edge { node: self.sub },
        })
    }
}

/// The token in an `Authorization: Bearer` header's value (RFC 6750 §2.1), if it is one.
pub fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, token) = authorization.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then(|| token.trim_matches(' '))
}

/// Names a public key by the first 10 bytes of its BLAKE3 hash, in base32.
fn key_id(public: &[u8; 32]) -> String {
    BASE32_NOPAD.encode(&blake3::hash(public).as_bytes()[..10]).to_ascii_lowercase()
}

/// An Ed25519 secret key in the PKCS #8 form of RFC 8410 §7, which is a fixed prefix and the 32 bytes.
fn pkcs8(seed: &[u8; 32]) -> Vec<u8> {
    const PREFIX: [u8; 16] =
        [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
    [&PREFIX[..], seed].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn signer() -> GrantSigner {
        GrantSigner::from_seed(&[5; 32])
    }

    fn keys() -> GrantKeys {
        GrantKeys::from_jwks(&signer().jwks()).unwrap()
    }

    fn all() -> [Grant; 4] {
        [
            Grant::Upload { owner: OwnerTag::from_bytes([8; 16]), blob_bytes_max: 10, quota_bytes: 100 },
            Grant::Media,
            Grant::Share { blob: BlobId::from_bytes([9; 32]) },
            Grant::Edge { node: "edge-1".into() },
        ]
    }

    #[test]
    fn every_grant_comes_back_as_it_was_minted_and_for_its_audience_only() {
        for grant in all() {
            let token = signer().mint(&grant, NOW, MEDIA_LIFETIME, [1; 16]);
            let verified = keys().verify(&token.text, &[grant.audience()], NOW).unwrap();
            assert_eq!(verified, VerifiedGrant { grant: grant.clone(), expires: token.expires });
            for other in all() {
                if other.audience() != grant.audience() {
                    let refused = keys().verify(&token.text, &[other.audience()], NOW);
                    assert_eq!(refused, Err(GrantError::Audience { actual: grant.audience() }));
                }
            }
        }
    }

    #[test]
    fn a_grant_ends_when_it_says() {
        let token = signer().mint(&Grant::Media, NOW, MEDIA_LIFETIME, [1; 16]);
        let last = NOW.plus(MEDIA_LIFETIME).plus(CLOCK_SKEW);
        assert!(keys().verify(&token.text, &[Audience::Media], Timestamp::from_millis(last.as_millis() - 1)).is_ok());
        assert_eq!(keys().verify(&token.text, &[Audience::Media], last), Err(GrantError::Expired));
        let early = Timestamp::from_secs(NOW.as_secs() - 120);
        assert_eq!(keys().verify(&token.text, &[Audience::Media], early), Err(GrantError::Malformed));
    }

    #[test]
    fn no_changed_byte_is_accepted() {
        let token = signer().mint(&all()[0], NOW, UPLOAD_LIFETIME, [1; 16]).text;
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert!(keys().verify(&changed, &[Audience::Upload], NOW).is_err(), "byte {at}");
        }
    }

    #[test]
    fn another_key_another_algorithm_and_none_are_refused() {
        let foreign = GrantSigner::from_seed(&[6; 32]).mint(&Grant::Media, NOW, MEDIA_LIFETIME, [1; 16]);
        assert_eq!(keys().verify(&foreign.text, &[Audience::Media], NOW), Err(GrantError::UnknownKey));
        let token = signer().mint(&Grant::Media, NOW, MEDIA_LIFETIME, [1; 16]).text;
        let mut parts = token.split('.');
        let (_, claims) = (parts.next().unwrap(), parts.next().unwrap());
        for header in [r#"{"alg":"none"}"#, r#"{"alg":"HS256","kid":"x"}"#, "{}"] {
            let forged = format!("{}.{claims}.", BASE64URL_NOPAD.encode(header.as_bytes()));
            assert_eq!(keys().verify(&forged, &[Audience::Media], NOW), Err(GrantError::Malformed));
        }
        for text in ["", ".", "..", "a.b.c", &"x".repeat(GRANT_BYTES_MAX + 1)] {
            assert_eq!(keys().verify(text, &[Audience::Media], NOW), Err(GrantError::Malformed));
        }
    }

    #[test]
    fn bearer_reads_the_scheme_in_any_case() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer "), None);
    }
}
