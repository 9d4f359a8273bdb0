//! The room: who is in it, who watches whom, and what the watchers have not been told yet. No I/O, and time is passed in.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use waxwing_protocol::frames::{PRESENCE_SUBSCRIPTIONS_MAX, PresenceItem, PresenceState};
use waxwing_protocol::{AccountId, DeviceId, Timestamp};

use super::{ConnectionId, rounded};
use crate::store::DeviceAddress;

/// How long somebody who left is still shown: longer than a phone needs to change networks.
const GRACE: Duration = Duration::from_secs(30);

/// How long a subscription lasts that nobody renews.
const SUBSCRIPTION: Duration = Duration::from_secs(10 * 60);

/// How long it is remembered when somebody was last seen.
const LAST_SEEN_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Time between two rounds of forgetting.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);

/// Who is there and who is told.
#[derive(Debug, Default)]
pub(super) struct Room {
    people: HashMap<AccountId, Person>,
    /// By watched account: the watching devices, and when each subscription lapses.
    watchers: HashMap<AccountId, HashMap<DeviceAddress, Timestamp>>,
    /// By watching device: which of its connections, and whom it watches.
    watching: HashMap<DeviceAddress, Watching>,
    /// When those who left are gone.
    leaving: BTreeSet<(Timestamp, AccountId)>,
    /// What each device has not been told yet: the accounts, and whether they may be shown.
    untold: HashMap<DeviceAddress, HashMap<AccountId, bool>>,
    next_prune: Timestamp,
}

#[derive(Debug, Default)]
struct Person {
    /// Devices in the foreground, each with the generation of its connection.
    foreground: Vec<(DeviceId, u64)>,
    /// When the last device left the foreground.
    last_seen: Timestamp,
    /// Until when the person is shown all the same.
    leaves: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Watching {
    generation: u64,
    accounts: HashSet<AccountId>,
}

impl Person {
    fn is_online(&self) -> bool {
        !self.foreground.is_empty() || self.leaves.is_some()
    }
}

impl Room {
    pub(super) fn set_foreground(&mut self, connection: ConnectionId, foreground: bool, now: Timestamp) {
        let ConnectionId { device: DeviceAddress { account, device }, generation } = connection;
        let known = self.people.get(&account).and_then(|person| person.foreground.iter().find(|(it, _)| *it == device));
        if known.is_some_and(|(_, newer)| *newer > generation) {
            return;
        }
        if foreground {
            let person = self.people.entry(account).or_default();
            let was_online = person.is_online();
            person.foreground.retain(|(it, _)| *it != device);
            person.foreground.push((device, generation));
            if let Some(leaves) = person.leaves.take() {
                self.leaving.remove(&(leaves, account));
            }
            if !was_online {
                self.changed(account);
            }
        } else if known.is_some() {
            let person = self.people.entry(account).or_default();
            person.foreground.retain(|(it, _)| *it != device);
            if person.foreground.is_empty() {
                let leaves = now.plus(GRACE);
                (person.last_seen, person.leaves) = (now, Some(leaves));
                self.leaving.insert((leaves, account));
            }
        }
    }

    /// A connection has begun. One that `continues` the one before it has its subscriptions.
    pub(super) fn enter(&mut self, connection: ConnectionId, continues: bool, foreground: bool, now: Timestamp) {
        self.set_foreground(connection, foreground, now);
        let ConnectionId { device, generation } = connection;
        match self.watching.get_mut(&device) {
            Some(watching) if watching.generation >= generation => {}
            Some(watching) if continues => watching.generation = generation,
            Some(_) => self.unwatch_all(device),
            None => {}
        }
    }

    /// A connection has ended. Its subscriptions last until they lapse, for the one that continues it.
    pub(super) fn leave(&mut self, connection: ConnectionId, now: Timestamp) {
        self.set_foreground(connection, false, now);
    }

    /// Adds accounts, each with whether it may be shown, and removes others; false, and nothing done, when that would
    /// be too many.
    pub(super) fn subscribe(
        &mut self,
        connection: ConnectionId,
        add: Vec<(AccountId, bool)>,
        remove: &[AccountId],
        now: Timestamp,
    ) -> bool {
        let ConnectionId { device, generation } = connection;
        let current = self.watching.get(&device).map_or(0, |watching| watching.generation);
        if current > generation {
            // Of a connection that is gone already.
            return true;
        }
        if current < generation {
            self.unwatch_all(device);
            self.watching.insert(device, Watching { generation, accounts: HashSet::new() });
        }
        let watching = self.watching.entry(device).or_default();
        let mut wanted: HashSet<_> = watching.accounts.iter().filter(|it| !remove.contains(it)).copied().collect();
        wanted.extend(add.iter().map(|(account, _)| *account));
        if wanted.len() > PRESENCE_SUBSCRIPTIONS_MAX {
            return false;
        }
        for account in remove {
            self.unwatch(device, *account);
            if let Some(untold) = self.untold.get_mut(&device) {
                untold.remove(account);
            }
        }
        for (account, shown) in add {
            if shown {
                self.watchers.entry(account).or_default().insert(device, now.plus(SUBSCRIPTION));
                self.watching.entry(device).or_default().accounts.insert(account);
            } else {
                self.unwatch(device, account);
            }
            self.untold.entry(device).or_default().insert(account, shown);
        }
        true
    }

    /// Ends every subscription of others to an account.
    pub(super) fn hide(&mut self, account: AccountId) {
        self.end_subscriptions(account, |watcher| watcher != account);
    }

    /// Ends every subscription of `peer` to an account.
    pub(super) fn hide_from(&mut self, account: AccountId, peer: AccountId) {
        self.end_subscriptions(account, |watcher| watcher == peer);
    }

    fn end_subscriptions(&mut self, account: AccountId, of: impl Fn(AccountId) -> bool) {
        let watchers = self.watchers.get(&account);
        let ended = watchers.into_iter().flat_map(HashMap::keys).filter(|it| of(it.account));
        for device in ended.copied().collect::<Vec<_>>() {
            self.unwatch(device, account);
            self.untold.entry(device).or_default().insert(account, false);
        }
    }

    /// What every device is to be told now that is `connected`; the others are told later.
    pub(super) fn batches(
        &mut self,
        connected: impl Fn(DeviceAddress) -> bool,
        now: Timestamp,
    ) -> Vec<(DeviceAddress, Vec<PresenceItem>)> {
        while let Some((leaves, account)) = self.leaving.first().copied().filter(|(leaves, _)| *leaves <= now) {
            self.leaving.remove(&(leaves, account));
            if let Some(person) = self.people.get_mut(&account) {
                person.leaves = None;
            }
            self.changed(account);
        }
        let (told, later) = std::mem::take(&mut self.untold).into_iter().partition(|(device, _)| connected(*device));
        self.untold = later;
        let told: HashMap<_, _> = told;
        let batches = told.into_iter().map(|(device, accounts)| (device, self.items(device, accounts, now)));
        let batches = batches.filter(|(_, items)| !items.is_empty()).collect();
        if self.next_prune <= now {
            self.next_prune = now.plus(PRUNE_INTERVAL);
            self.prune(now);
        }
        batches
    }

    /// What one device has not been told yet.
    pub(super) fn batch_of(&mut self, device: DeviceAddress, now: Timestamp) -> Vec<PresenceItem> {
        let accounts = self.untold.remove(&device).unwrap_or_default();
        self.items(device, accounts, now)
    }

    fn items(&self, device: DeviceAddress, accounts: HashMap<AccountId, bool>, now: Timestamp) -> Vec<PresenceItem> {
        let items = accounts.into_iter().filter_map(|(account, shown)| {
            if !shown {
                return Some(self.item(account, None, now));
            }
            let lapses = self.watchers.get(&account)?.get(&device).filter(|lapses| **lapses > now)?;
            Some(self.item(account, Some(*lapses), now))
        });
        items.collect()
    }

    fn item(&self, account: AccountId, lapses: Option<Timestamp>, now: Timestamp) -> PresenceItem {
        let person = self.people.get(&account);
        let (state, last_seen) = match (lapses, person) {
            (None, _) => (PresenceState::Hidden, 0),
            (Some(_), Some(person)) if person.is_online() => (PresenceState::Online, 0),
            (Some(_), person) => (PresenceState::Offline, person.map_or(0, |person| rounded(person.last_seen))),
        };
        let expires = lapses.map_or(Duration::ZERO, |lapses| lapses.since(now));
        PresenceItem {
            account: Bytes::copy_from_slice(account.as_bytes()),
            state: state.into(),
            last_seen,
            expires_ms: u32::try_from(expires.as_millis()).unwrap_or(u32::MAX),
        }
    }

    fn changed(&mut self, account: AccountId) {
        for device in self.watchers.get(&account).into_iter().flat_map(HashMap::keys) {
            self.untold.entry(*device).or_default().insert(account, true);
        }
    }

    fn unwatch(&mut self, device: DeviceAddress, account: AccountId) {
        if let Some(watchers) = self.watchers.get_mut(&account) {
            watchers.remove(&device);
            if watchers.is_empty() {
                self.watchers.remove(&account);
            }
        }
        if let Some(watching) = self.watching.get_mut(&device) {
            watching.accounts.remove(&account);
        }
    }

    fn unwatch_all(&mut self, device: DeviceAddress) {
        for account in self.watching.remove(&device).unwrap_or_default().accounts {
            self.unwatch(device, account);
        }
        self.untold.remove(&device);
    }

    /// Forgets subscriptions that lapsed and people not seen for long.
    fn prune(&mut self, now: Timestamp) {
        let lapsed = self.watchers.iter().flat_map(|(account, devices)| {
            let lapsed = devices.iter().filter(|(_, lapses)| **lapses <= now);
            lapsed.map(|(device, _)| (*device, *account))
        });
        for (device, account) in lapsed.collect::<Vec<_>>() {
            self.unwatch(device, account);
        }
        self.watching.retain(|_, watching| !watching.accounts.is_empty());
        self.untold.retain(|device, _| self.watching.contains_key(device));
        self.people.retain(|_, person| person.is_online() || person.last_seen.plus(LAST_SEEN_KEPT) > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_123);

    fn connection(n: u8, generation: u64) -> ConnectionId {
        let account = AccountId::from_bytes([n; 16]);
        ConnectionId { device: DeviceAddress { account, device: DeviceId::FIRST }, generation }
    }

    fn person(n: u8) -> AccountId {
        connection(n, 0).device.account
    }

    fn after(seconds: u64) -> Timestamp {
        NOW.plus(Duration::from_secs(seconds))
    }

    /// What device 1 of account `n` is told now: whose presence, and when last seen.
    fn told(room: &mut Room, n: u8, now: Timestamp) -> Vec<(u8, PresenceState, u64)> {
        let batches = room.batches(|_| true, now).into_iter().filter(|(device, _)| device.account == person(n));
        let mut items: Vec<_> =
            batches.flat_map(|(_, items)| items).map(|item| (item.account[0], item.state(), item.last_seen)).collect();
        items.sort_unstable_by_key(|(account, ..)| *account);
        items
    }

    fn watching(watcher: ConnectionId, accounts: &[u8]) -> Room {
        let mut room = Room::default();
        let add = accounts.iter().map(|n| (person(*n), true)).collect();
        assert!(room.subscribe(watcher, add, &[], NOW));
        room
    }

    #[test]
    fn coming_is_told_at_once_and_leaving_after_a_grace_in_which_coming_back_is_no_news() {
        let mut room = watching(connection(1, 1), &[2]);
        assert_eq!(told(&mut room, 1, NOW), [(2, PresenceState::Offline, 0)]);
        room.set_foreground(connection(2, 1), true, NOW);
        assert_eq!(told(&mut room, 1, NOW), [(2, PresenceState::Online, 0)]);
        room.leave(connection(2, 1), after(10));
        assert_eq!(told(&mut room, 1, after(39)), []);
        room.set_foreground(connection(2, 2), true, after(39));
        assert_eq!(told(&mut room, 1, after(100)), []);
        room.set_foreground(connection(2, 2), false, after(100));
        let seen = Timestamp::from_secs(1_800_000_000).as_millis();
        assert_eq!(told(&mut room, 1, after(130)), [(2, PresenceState::Offline, seen)], "rounded to five minutes");
    }

    #[test]
    fn an_old_connection_that_ends_late_takes_nobody_offline_and_no_subscription_away() {
        let mut room = watching(connection(1, 1), &[2]);
        assert!(room.subscribe(connection(1, 2), vec![(person(2), true)], &[], NOW));
        room.leave(connection(1, 1), NOW);
        room.set_foreground(connection(2, 2), true, NOW);
        room.set_foreground(connection(2, 1), true, NOW);
        room.leave(connection(2, 1), NOW);
        assert_eq!(told(&mut room, 1, after(60)), [(2, PresenceState::Online, 0)]);
    }

    #[test]
    fn a_subscription_lapses_unless_it_is_renewed() {
        let mut room = watching(connection(1, 1), &[2, 3]);
        assert!(room.subscribe(connection(1, 1), vec![(person(3), true)], &[], after(500)));
        told(&mut room, 1, after(500));
        for n in [2, 3] {
            room.set_foreground(connection(n, 1), true, after(601));
        }
        assert_eq!(told(&mut room, 1, after(601)), [(3, PresenceState::Online, 0)]);
        assert_eq!(room.watchers.len(), 1, "nothing is left of the other");
    }

    #[test]
    fn what_is_hidden_is_told_as_such_and_nothing_after_it() {
        let mut room = watching(connection(1, 1), &[2]);
        told(&mut room, 1, NOW);
        room.hide(person(2));
        assert_eq!(told(&mut room, 1, NOW), [(2, PresenceState::Hidden, 0)]);
        room.set_foreground(connection(2, 1), true, NOW);
        assert_eq!(told(&mut room, 1, NOW), []);
        assert!(room.subscribe(connection(1, 1), vec![(person(2), false)], &[], NOW));
        assert_eq!(told(&mut room, 1, NOW), [(2, PresenceState::Hidden, 0)]);
    }

    #[test]
    fn subscriptions_are_bounded_and_removed_ones_make_room() {
        let mut room = Room::default();
        let many = |range: std::ops::Range<u16>| {
            range.map(|n| {
                let mut id = [0; 16];
                id[..2].copy_from_slice(&n.to_be_bytes());
                AccountId::from_bytes(id)
            })
        };
        let shown = |accounts: Vec<AccountId>| accounts.into_iter().map(|account| (account, true)).collect();
        let me = connection(1, 1);
        let max = PRESENCE_SUBSCRIPTIONS_MAX as u16;
        assert!(room.subscribe(me, shown(many(0..max).collect()), &[], NOW));
        assert!(!room.subscribe(me, shown(many(max..max + 1).collect()), &[], NOW));
        assert!(room.subscribe(me, shown(many(0..1).collect()), &[], NOW), "a renewal is no addition");
        let first: Vec<_> = many(0..1).collect();
        assert!(room.subscribe(me, shown(many(max..max + 1).collect()), &first, NOW));
        room.leave(me, NOW);
        room.batches(|_| false, after(601));
        assert!(room.watchers.is_empty() && room.watching.is_empty() && room.untold.is_empty());
    }

    #[test]
    fn between_two_polls_subscriptions_stay_and_what_changes_is_told_with_the_next() {
        let mut room = watching(connection(1, 1), &[2]);
        told(&mut room, 1, NOW);
        room.leave(connection(1, 1), NOW);
        room.set_foreground(connection(2, 1), true, NOW);
        assert!(room.batches(|_| false, NOW).is_empty());
        room.enter(connection(1, 2), true, true, after(1));
        assert_eq!(told(&mut room, 1, after(1)), [(2, PresenceState::Online, 0)]);
        room.leave(connection(1, 2), after(2));
        room.batches(|_| false, after(601));
        assert!(room.watchers.is_empty() && room.watching.is_empty(), "a client that never polls again is forgotten");
        let mut room = watching(connection(1, 1), &[2]);
        room.leave(connection(1, 1), NOW);
        room.enter(connection(1, 2), false, true, NOW);
        assert!(room.watchers.is_empty(), "one that continues nothing begins with none");
    }
}
