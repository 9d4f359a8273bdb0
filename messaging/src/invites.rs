//! Invites: codes with which one person each may register.
//!
//! A code is its own record: a random number, when it ends, and a MAC under the node's invite key. So whoever has the
//! data directory makes codes without asking the running node, and what the node keeps is only which were used. A code
//! that was read over a shoulder serves once, and nobody can guess one.

use std::path::Path;
use std::time::Duration;

use data_encoding::BASE32_NOPAD;
use subtle::ConstantTimeEq as _;
use waxwing_protocol::Timestamp;

use crate::node::random;
use crate::secrets::{SecretError, load_or_create};
use crate::store::Invite;

/// File of the secret under which codes are made, in the data directory.
const INVITE_KEY_FILE: &str = "invite.key";

/// The context under which BLAKE3 derives the key of codes from their secret.
const INVITE_KEY_CONTEXT: &str = "waxwing 2026 invite v1";

/// Bytes of a code's random number.
const NUMBER_BYTES: usize = 10;

/// Bytes of a code's MAC: 80 bits, tried over a network.
const MAC_BYTES: usize = 10;

/// Bytes of a code: its number, the second in which it ends, its MAC.
const CODE_BYTES: usize = NUMBER_BYTES + 4 + MAC_BYTES;

/// Checks invite codes.
pub(crate) struct Invites {
    key: [u8; 32],
}

/// A code for one person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InviteCode {
    /// What the person types.
    pub code: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl Invites {
    /// Loads the key from `data_dir`, making it the first time.
    pub(crate) fn open(data_dir: &Path) -> Result<Self, SecretError> {
        let secret = load_or_create(&data_dir.join(INVITE_KEY_FILE))?;
        Ok(Self { key: blake3::derive_key(INVITE_KEY_CONTEXT, &secret) })
    }

    /// The key of codes: all nodes of a cluster share it.
    pub(crate) fn key(&self) -> [u8; 32] {
        self.key
    }

    fn mint(&self, number: [u8; NUMBER_BYTES], expires: Timestamp) -> InviteCode {
        let seconds = u32::try_from(expires.as_secs()).unwrap_or(u32::MAX);
        let mut code = [0; CODE_BYTES];
        code[..NUMBER_BYTES].copy_from_slice(&number);
        code[NUMBER_BYTES..][..4].copy_from_slice(&seconds.to_be_bytes());
        let mac = self.mac(&code[..NUMBER_BYTES + 4]);
        code[NUMBER_BYTES + 4..].copy_from_slice(&mac);
        let text = BASE32_NOPAD.encode(&code).to_lowercase();
        let groups: Vec<_> = text.as_bytes().chunks(8).map(String::from_utf8_lossy).collect();
        InviteCode { code: groups.join("-"), expires_at: Timestamp::from_secs(seconds.into()) }
    }

    /// Reads a code; `None` when this node's key did not make it. Whether it has ended or was used is for the caller.
    pub(crate) fn read(&self, code: &str) -> Option<Invite> {
        let text: String = code.chars().filter(|c| !c.is_whitespace() && *c != '-').collect();
        let bytes = BASE32_NOPAD.decode(text.to_uppercase().as_bytes()).ok()?;
        let bytes: [u8; CODE_BYTES] = bytes.try_into().ok()?;
        let (said, mac) = bytes.split_at(NUMBER_BYTES + 4);
        if !bool::from(self.mac(said)[..].ct_eq(mac)) {
            return None;
        }
        let (number, seconds) = said.split_at(NUMBER_BYTES);
        let seconds = u32::from_be_bytes(seconds.try_into().ok()?);
        Some(Invite { number: number.try_into().ok()?, expires_at: Timestamp::from_secs(seconds.into()) })
    }

    fn mac(&self, said: &[u8]) -> [u8; MAC_BYTES] {
        *blake3::keyed_hash(&self.key, said).as_bytes().first_chunk().expect("a hash has 32 bytes")
    }
}

/// Makes an invite code of the messaging node whose data is in `data_dir`, which may be running.
///
/// # Errors
/// When the key cannot be read or made.
pub fn mint_invite(data_dir: &Path, lifetime: Duration) -> Result<InviteCode, SecretError> {
    let now = Timestamp::from(std::time::SystemTime::now());
    Ok(Invites::open(data_dir)?.mint(random(), now.plus(lifetime)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_read_as_people_type_it_and_only_where_it_was_made() {
        let (invites, others) = (Invites { key: [1; 32] }, Invites { key: [2; 32] });
        let made = invites.mint([7; 10], Timestamp::from_secs(1_800_000_000));
        let read = invites.read(&made.code).unwrap();
        assert_eq!((read.number, read.expires_at), ([7; 10], made.expires_at));
        assert_eq!(invites.read(&made.code.to_uppercase().replace('-', " ")), Some(read));
        assert_eq!(others.read(&made.code), None);
        for at in 0..made.code.len() {
            let mut changed = made.code.clone().into_bytes();
            changed[at] = if changed[at] == b'a' { b'b' } else { b'a' };
            // The last character has bits that carry nothing; changing a group's dash makes the code longer.
            if let Some(other) = invites.read(&String::from_utf8(changed).unwrap()) {
                panic!("{other:?} from a changed character at {at}");
            }
        }
        for nonsense in ["", "a", "waxwing", &"a".repeat(39)] {
            assert_eq!(invites.read(nonsense), None);
        }
    }
}
