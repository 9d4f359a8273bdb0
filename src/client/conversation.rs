//! The order of messages between two accounts: a hybrid logical clock, and what was seen last.
//!
//! Phones' clocks are wrong, so sorting by time puts answers before questions. A hybrid logical clock (Kulkarni et al.,
//! 2014) stays near the wall clock and never behind a message seen: milliseconds since 1970 in the upper 48 bits, a
//! counter in the lower 16. And each message names up to eight that its sender had seen last, so that a reader can tell
//! that one is still on its way.

use std::time::Duration;

use waxwing_protocol::{AccountId, MsgId, Timestamp};
use waxwing_seal::message::PARENTS_MAX;

use crate::ClientError;
use crate::account::SELF;
use crate::profile::{Rows as _, Table, WriteTx};

/// The highest clock given out or seen.
const CLOCK: Table<u64> = Table::new("clock");

/// Per account, the messages that none seen since names as seen before it.
const HEADS: Table<Vec<MsgId>> = Table::new("heads");

/// How far ahead of this device's clock another's is believed.
const AHEAD_MAX: Duration = Duration::from_secs(600);

/// The clock of a message about to be sent: later than any sent or seen.
pub(crate) fn tick(tx: &WriteTx<'_>, now: Timestamp) -> Result<u64, ClientError> {
    let seen = tx.get(&CLOCK, SELF)?.unwrap_or(0);
    let next = (now.as_millis() << 16).max(seen.saturating_add(1));
    tx.put(&CLOCK, SELF, &next)?;
    Ok(next)
}

/// Takes note of a message's clock, and gives it back, moved down when it lies too far ahead to be true.
pub(crate) fn observe(tx: &WriteTx<'_>, clock: u64, now: Timestamp) -> Result<u64, ClientError> {
    let clock = clock.min(now.plus(AHEAD_MAX).as_millis() << 16);
    let seen = tx.get(&CLOCK, SELF)?.unwrap_or(0);
    if clock > seen {
        tx.put(&CLOCK, SELF, &clock)?;
    }
    Ok(clock)
}

/// The messages that the next one to `account` names as seen; from now on that is the message `id`.
pub(crate) fn follow(tx: &WriteTx<'_>, account: AccountId, id: MsgId) -> Result<Vec<MsgId>, ClientError> {
    let heads = tx.get(&HEADS, account.as_bytes())?.unwrap_or_default();
    tx.put(&HEADS, account.as_bytes(), &vec![id])?;
    Ok(heads)
}

/// Takes note of a message from `account` that names `parents`.
pub(crate) fn seen(tx: &WriteTx<'_>, account: AccountId, id: MsgId, parents: &[MsgId]) -> Result<(), ClientError> {
    let mut heads = tx.get(&HEADS, account.as_bytes())?.unwrap_or_default();
    heads.retain(|head| !parents.contains(head));
    heads.push(id);
    let surplus = heads.len().saturating_sub(PARENTS_MAX);
    heads.drain(..surplus);
    tx.put(&HEADS, account.as_bytes(), &heads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Profile;

    #[test]
    fn a_clock_set_back_still_moves_on_and_a_wild_one_is_not_believed() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let now = Timestamp::from_secs(1_000_000);
        let tick = |now| profile.write(|tx| tick(tx, now)).unwrap();
        let first = tick(now);
        assert_eq!(first, now.as_millis() << 16);
        assert_eq!(tick(Timestamp::from_secs(1)), first + 1);

        let observe = |clock| profile.write(|tx| observe(tx, clock, now)).unwrap();
        let ahead = now.plus(Duration::from_secs(60)).as_millis() << 16;
        assert_eq!(observe(ahead), ahead);
        assert_eq!(tick(now), ahead + 1);
        assert_eq!(observe(u64::MAX), now.plus(AHEAD_MAX).as_millis() << 16);
    }

    #[test]
    fn a_message_names_what_was_seen_last() {
        let home = tempfile::tempdir().unwrap();
        let profile = Profile::create(home.path()).unwrap();
        let bob = AccountId::from_bytes([8; 16]);
        let id = |n: u8| MsgId::from_bytes([n; 16]);
        profile
            .write(|tx| {
                assert_eq!(follow(tx, bob, id(1))?, []);
                seen(tx, bob, id(2), &[id(1)])?;
                seen(tx, bob, id(3), &[])?;
                assert_eq!(follow(tx, bob, id(4))?, [id(2), id(3)]);
                for n in 10..30 {
                    seen(tx, bob, id(n), &[])?;
                }
                let parents = follow(tx, bob, id(5))?;
                assert_eq!(parents, (22..30).map(id).collect::<Vec<_>>());
                Ok(())
            })
            .unwrap();
    }
}
