//! Ratchets in the profile: this device's own, one for each group, and those that others' devices gave it.
//!
//! As with sessions, a ratchet is loaded, used and stored within one transaction, or not at all.

use std::ops::Bound;

use serde::{Deserialize, Serialize};
use waxwing_protocol::identity::{Device, PublicKey};
use waxwing_protocol::{AccountId, DeviceId, GroupId, Timestamp};
use waxwing_seal::group::{InboundGroup, LIFETIME, MESSAGES_MAX, OutboundGroup, RatchetId};
use waxwing_seal::message::Party;

use crate::ClientError;
use crate::profile::{Rows, Table, WriteTx};
use crate::secret::SecretBytes;

/// This device's ratchet of each group.
const OUT: Table<OutRow> = Table::new("group_ratchets");

/// Whom the key of that ratchet was given to, by group.
const GIVEN: Table<Vec<Given>> = Table::new("group_keys_given");

/// Others' ratchets: group, account, device, what names the ratchet.
const IN: Table<InRow> = Table::new("group_ratchets_in");

/// Ratchets kept of one device in one group. A device that behaves needs two; the rest is for messages still on their way.
const IN_MAX: usize = 16;

#[derive(Serialize, Deserialize)]
struct OutRow {
    ratchet: SecretBytes,
    made_at: Timestamp,
}

/// A device that has the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    pub(super) account: AccountId,
    pub(super) device: DeviceId,
    pub(super) reg_id: u32,
}

/// A ratchet and whose it is, as the session that brought it proved.
#[derive(Serialize, Deserialize)]
struct InRow {
    reg_id: u32,
    curve25519: PublicKey,
    ed25519: PublicKey,
    came_at: Timestamp,
    ratchet: SecretBytes,
}

/// This device's ratchet of a group, about to be used.
pub(super) struct Out {
    pub(super) ratchet: OutboundGroup,
    made_at: Timestamp,
    pub(super) given: Vec<Given>,
    /// It is a new one.
    pub(super) fresh: bool,
}

/// The ratchet to send with to these devices: the one there is, or a new one when somebody who has its key is not among
/// them any more, when an account has another device than it had, or when it has served long enough.
pub(super) fn load_out(tx: &WriteTx<'_>, group: GroupId, to: &[Given], now: Timestamp) -> Result<Out, ClientError> {
    if let Some(row) = tx.get(&OUT, group.as_bytes())? {
        let ratchet = OutboundGroup::from_bytes(&row.ratchet.0)?;
        let given = tx.get(&GIVEN, group.as_bytes())?.unwrap_or_default();
        let served = ratchet.index() >= MESSAGES_MAX || now.since(row.made_at) >= LIFETIME;
        if !served && still_fits(&given, to) {
            return Ok(Out { ratchet, made_at: row.made_at, given, fresh: false });
        }
    }
    Ok(Out { ratchet: OutboundGroup::default(), made_at: now, given: Vec::new(), fresh: true })
}

/// Whether whoever has a key may go on having it.
fn still_fits(given: &[Given], to: &[Given]) -> bool {
    let all_there = given.iter().all(|one| to.contains(one));
    let changed = |one: &Given| !given.contains(one) && given.iter().any(|it| it.account == one.account);
    all_there && !to.iter().any(changed)
}

/// Stores a ratchet that moved on.
pub(super) fn store_out(tx: &WriteTx<'_>, group: GroupId, out: Out) -> Result<(), ClientError> {
    let Out { ratchet, made_at, given, .. } = out;
    tx.put(&OUT, group.as_bytes(), &OutRow { ratchet: SecretBytes(ratchet.into_bytes()), made_at })?;
    tx.put(&GIVEN, group.as_bytes(), &given)
}

/// Who has the key of this device's ratchet; nobody when there is none. A look that leaves no ratchet behind.
pub(super) fn given(tx: &impl Rows, group: GroupId) -> Result<Vec<Given>, ClientError> {
    Ok(tx.get(&GIVEN, group.as_bytes())?.unwrap_or_default())
}

fn device_key(group: GroupId, account: AccountId, device: DeviceId) -> Vec<u8> {
    [&group.as_bytes()[..], account.as_bytes(), &device.get().to_be_bytes()].concat()
}

/// Takes a key that the device `from` gave. One that reads from earlier on is kept.
pub(super) fn take_in(
    tx: &WriteTx<'_>,
    group: GroupId,
    from: &Party,
    key: &[u8],
    now: Timestamp,
) -> Result<Option<RatchetId>, ClientError> {
    let Ok((id, ratchet)) = InboundGroup::new(key) else { return Ok(None) };
    let prefix = device_key(group, from.account, from.device.id);
    let row_key = [&prefix[..], &id].concat();
    let mut ratchet = ratchet;
    if let Some(row) = tx.get(&IN, &row_key)? {
        let earlier = InboundGroup::from_bytes(&row.ratchet.0)?;
        if earlier.first_index() <= ratchet.first_index() {
            return Ok(Some(id));
        }
        ratchet.remember_opened_of(earlier);
    }
    let mut end = prefix.clone();
    end.extend_from_slice(&[0xff; 33]);
    let kept = tx.range(&IN, (Bound::Included(&prefix), Bound::Included(&end)))?;
    if kept.len() >= IN_MAX
        && let Some((oldest, _)) = kept.iter().min_by_key(|(_, row)| row.came_at)
    {
        tx.remove(&IN, oldest)?;
    }
    let Device { reg_id, curve25519, ed25519, .. } = from.device;
    let ratchet = SecretBytes(ratchet.into_bytes());
    tx.put(&IN, &row_key, &InRow { reg_id, curve25519, ed25519, came_at: now, ratchet })?;
    Ok(Some(id))
}

/// Another device's ratchet, about to be used, and whose it is.
pub(super) struct In {
    key: Vec<u8>,
    came_at: Timestamp,
    pub(super) ratchet: InboundGroup,
    pub(super) owner: Party,
}

/// The ratchet that a message of this device was encrypted under, if its key has come.
pub(super) fn load_in(
    tx: &WriteTx<'_>,
    group: GroupId,
    account: AccountId,
    device: DeviceId,
    id: &RatchetId,
) -> Result<Option<In>, ClientError> {
    let key = [&device_key(group, account, device)[..], id].concat();
    let Some(row) = tx.get(&IN, &key)? else { return Ok(None) };
    let InRow { reg_id, curve25519, ed25519, came_at, ratchet } = row;
    let ratchet = InboundGroup::from_bytes(&ratchet.0)?;
    let owner = Party { account, device: Device { id: device, reg_id, curve25519, ed25519 } };
    Ok(Some(In { key, came_at, ratchet, owner }))
}

/// Stores a ratchet that has opened something.
pub(super) fn store_in(tx: &WriteTx<'_>, used: In) -> Result<(), ClientError> {
    let In { key, came_at, ratchet, owner } = used;
    let Device { reg_id, curve25519, ed25519, .. } = owner.device;
    let ratchet = SecretBytes(ratchet.into_bytes());
    tx.put(&IN, &key, &InRow { reg_id, curve25519, ed25519, came_at, ratchet })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(account: u8, device: u32, reg_id: u32) -> Given {
        Given { account: AccountId::from_bytes([account; 16]), device: DeviceId::new(device).unwrap(), reg_id }
    }

    #[test]
    fn a_key_is_replaced_when_somebody_goes_or_has_another_device_and_not_when_somebody_comes() {
        let (alice, bob, bobs) = (given(1, 1, 5), given(2, 1, 6), given(2, 2, 7));
        let carol = given(3, 1, 8);
        assert!(still_fits(&[], &[alice, bob]));
        assert!(still_fits(&[alice, bob], &[alice, bob, carol]), "whoever comes gets it as it is then");
        assert!(!still_fits(&[alice, bob], &[alice]));
        assert!(!still_fits(&[alice, bob], &[alice, bob, bobs]));
        assert!(!still_fits(&[alice, bob, bobs], &[alice, bob]));
        assert!(!still_fits(&[alice, bob], &[alice, Given { reg_id: 9, ..bob }]));
    }
}
