//! Sessions in the profile: a ratchet is loaded, used and stored within one transaction, or not at all.

use waxwing_protocol::AccountId;
use waxwing_protocol::identity::Device;
use waxwing_seal::session::Sessions;

use crate::ClientError;
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;

/// Sessions by peer device: account id, then device number, big-endian.
const SESSIONS: Table<SecretBytes> = Table::new("sessions");

fn key(account: AccountId, device: &Device) -> Vec<u8> {
    [&account.as_bytes()[..], &device.id.get().to_be_bytes()].concat()
}

/// The sessions with a device; none when its keys were replaced since.
///
/// # Errors
/// [`ClientError::Profile`] or [`ClientError::Damaged`].
pub(crate) fn load(tx: &WriteTx<'_>, account: AccountId, device: &Device) -> Result<Sessions, ClientError> {
    let stored = tx.get(&SESSIONS, &key(account, device))?;
    let sessions = stored.map(|bytes| read(&bytes)).transpose()?;
    Ok(sessions.filter(|sessions| sessions.are_with(device)).unwrap_or_else(|| Sessions::with(device)))
}

/// Stores sessions that moved on.
///
/// # Errors
/// [`ClientError::Profile`] when the store fails.
pub(crate) fn store(
    tx: &WriteTx<'_>,
    account: AccountId,
    device: &Device,
    sessions: Sessions,
) -> Result<(), ClientError> {
    tx.put(&SESSIONS, &key(account, device), &SecretBytes(sessions.into_bytes()))
}

/// Whether there is a session to encrypt with; a look that leaves no ratchet behind.
///
/// # Errors
/// [`ClientError::Profile`] or [`ClientError::Damaged`].
pub(crate) fn exists(tx: &impl Rows, account: AccountId, device: &Device) -> Result<bool, ClientError> {
    let Some(bytes) = tx.get(&SESSIONS, &key(account, device))? else { return Ok(false) };
    let sessions = read(&bytes)?;
    Ok(sessions.are_with(device) && !sessions.is_empty())
}

/// Loses every session, as a profile set back by its owner does.
#[cfg(test)]
pub(crate) fn lose_all(tx: &WriteTx<'_>) -> Result<(), ClientError> {
    tx.list(&SESSIONS)?.iter().try_for_each(|(key, _)| tx.remove(&SESSIONS, key).map(drop))
}

fn read(bytes: &SecretBytes) -> Result<Sessions, ClientError> {
    Sessions::from_bytes(&bytes.0).map_err(|_| ClientError::Damaged { what: "a session" })
}
