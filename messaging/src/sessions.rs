//! Resume tokens: what a connection had is there for the next one of the same device.
//!
//! A phone that loses its network for a moment would ask for everything anew: its window, and the presence of up to 512
//! people, each a look-up. With the token of its last Welcome it is as if the connection had never ended. Messages need
//! none of this: the mailbox knows what was acked.
//!
//! A token says which connection it was of, under a MAC that only this process can make, so that nobody takes over what a
//! connection had by guessing. What it stands for is memory, and goes after five minutes or with the process: a device
//! whose token is not known any more asks again, as it would without one.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use subtle::ConstantTimeEq as _;
use waxwing_protocol::Timestamp;
use waxwing_protocol::frames::Window;

use crate::node::random;
use crate::store::DeviceAddress;

/// How long a connection that ended can be resumed: the expiry that the protocol names.
const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Connections remembered at most, some 100 bytes each. When a crowd leaves, the last to leave are not remembered.
const PARKED_MAX: usize = 100_000;

/// Bytes of a session's id and of its MAC.
const ID_BYTES: usize = 8;
const MAC_BYTES: usize = 16;

/// A connection's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SessionId([u8; ID_BYTES]);

impl SessionId {
    /// For logs and Welcome.
    pub(crate) fn to_text(self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }
}

/// The connections that can be resumed.
pub(crate) struct Sessions {
    key: [u8; 32],
    parked: Mutex<Parked>,
}

#[derive(Default)]
struct Parked {
    by_device: HashMap<DeviceAddress, Session>,
    next_prune: Timestamp,
}

/// What a connection had.
struct Session {
    id: SessionId,
    window: Window,
    ends_at: Timestamp,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { key: random(), parked: Mutex::default() }
    }
}

impl Sessions {
    /// A new connection's id.
    pub(crate) fn begin() -> SessionId {
        SessionId(random())
    }

    /// The token with which a device resumes the connection `id`.
    pub(crate) fn token(&self, device: DeviceAddress, id: SessionId) -> Bytes {
        [&id.0[..], &self.mac(device, id)].concat().into()
    }

    /// A connection has ended and can be resumed from now on.
    pub(crate) fn park(&self, device: DeviceAddress, id: SessionId, window: Window, now: Timestamp) {
        let mut parked = self.lock(now);
        if parked.by_device.len() < PARKED_MAX || parked.by_device.contains_key(&device) {
            parked.by_device.insert(device, Session { id, window, ends_at: now.plus(LIFETIME) });
        }
    }

    /// The window of the connection that `token` resumes, once; `None` when it resumes none.
    pub(crate) fn resume(&self, device: DeviceAddress, token: &[u8], now: Timestamp) -> Option<Window> {
        let (id, mac) = token.split_at_checked(ID_BYTES)?;
        let id = SessionId(id.try_into().ok()?);
        let genuine: bool = self.mac(device, id)[..].ct_eq(mac).into();
        let mut parked = self.lock(now);
        let session = parked.by_device.remove(&device)?;
        (genuine && session.id == id && session.ends_at > now).then_some(session.window)
    }

    fn mac(&self, device: DeviceAddress, id: SessionId) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(device.account.as_bytes()).update(&device.device.get().to_be_bytes()).update(&id.0);
        let mut mac = [0; MAC_BYTES];
        mac.copy_from_slice(&hasher.finalize().as_bytes()[..MAC_BYTES]);
        mac
    }

    fn lock(&self, now: Timestamp) -> MutexGuard<'_, Parked> {
        let mut parked = self.parked.lock().unwrap_or_else(PoisonError::into_inner);
        if parked.next_prune <= now {
            parked.next_prune = now.plus(LIFETIME);
            parked.by_device.retain(|_, session| session.ends_at > now);
        }
        parked
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use waxwing_protocol::{AccountId, DeviceId};

    const NOW: Timestamp = Timestamp::from_secs(1_000_000);
    const WINDOW: Window = Window { msgs: 7, bytes: 9 };

    fn device(n: u8) -> DeviceAddress {
        DeviceAddress { account: AccountId::from_bytes([n; 16]), device: DeviceId::FIRST }
    }

    #[test]
    fn a_token_resumes_the_last_connection_of_its_device_once_and_for_five_minutes() {
        let sessions = Sessions::default();
        let (first, second) = (Sessions::begin(), Sessions::begin());
        let token = |id| sessions.token(device(1), id);
        assert_eq!(sessions.resume(device(1), &token(first), NOW), None, "it has not ended");
        sessions.park(device(1), first, WINDOW, NOW);
        assert_eq!(sessions.resume(device(1), &token(first), NOW), Some(WINDOW));
        assert_eq!(sessions.resume(device(1), &token(first), NOW), None, "resumed already");
        sessions.park(device(1), first, WINDOW, NOW);
        sessions.park(device(1), second, WINDOW, NOW);
        assert_eq!(sessions.resume(device(1), &token(first), NOW), None, "another came after it");
        sessions.park(device(1), second, WINDOW, NOW);
        assert_eq!(sessions.resume(device(1), &token(second), NOW.plus(LIFETIME)), None);
    }

    #[test]
    fn nobody_makes_a_token_up() {
        let sessions = Sessions::default();
        let id = Sessions::begin();
        let of_another_process = Sessions::default().token(device(1), id);
        let of_another_device = sessions.token(device(2), id);
        for forged in [&of_another_process[..], &of_another_device, &id.0, b"", &[0; 24], &[0; 99]] {
            sessions.park(device(1), id, WINDOW, NOW);
            assert_eq!(sessions.resume(device(1), forged, NOW), None);
        }
    }
}
