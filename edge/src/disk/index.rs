//! The index: which unit is where on disk, in memory, at about a hundred bytes a unit.
//!
//! Every look at the disk tier begins here, so this answers without touching the disk. It holds no bytes of blobs and
//! does no I/O; the writer keeps the log in step with it.
//!
//! Promise: `blocks()` is the sum of what the units take, in blocks of the file system.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;
use waxwing_protocol::BlobId;

use super::queues::{Queues, State, Ticket, USES_MAX, Units};
use super::unit::Key;

/// Bytes of a block: units begin at multiples of it, so that a hole punched for one touches no other. The size that
/// ext4, XFS and btrfs use; larger blocks would make holes smaller than they are counted.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// Where a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The number of its cache file.
    pub(super) file: u32,
    /// Its first block there.
    pub(super) block: u32,
    /// Its bytes.
    pub(super) bytes: u32,
}

impl Place {
    /// How many blocks it takes.
    pub(super) const fn blocks(self) -> u64 {
        (self.bytes as u64).div_ceil(BLOCK_BYTES)
    }

    /// Where its first byte is.
    pub(super) const fn offset(self) -> u64 {
        self.block as u64 * BLOCK_BYTES
    }

    /// The bytes it takes on disk, its last block to the end.
    pub(super) const fn span(self) -> std::ops::Range<u64> {
        self.offset()..self.offset() + self.blocks() * BLOCK_BYTES
    }
}

/// No slot: the end of a chain.
const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Unit {
    key: Key,
    place: Place,
    /// The neighbours among the units of a blob that has several.
    next: u32,
    previous: u32,
    turn: u32,
    uses: u8,
    is_main: bool,
    is_verified: bool,
    is_live: bool,
}

/// What happened to make room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Evicted {
    pub(super) key: Key,
    pub(super) place: Place,
}

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    slots: Slots,
    /// Slots by key.
    table: HashTable<u32>,
    /// The first slot of each blob that has outboard and slices here.
    blobs: HashTable<u32>,
    hasher: RandomState,
    queues: Queues,
    blocks: u64,
    /// Live blocks of each cache file.
    files: HashMap<u32, u64>,
}

#[derive(Debug, Default)]
struct Slots {
    units: Vec<Unit>,
    free: Vec<u32>,
    /// Units promoted since they were last asked for.
    promoted: Vec<Key>,
    prints: RandomState,
}

impl Index {
    /// An index of nothing.
    pub(super) fn new() -> Self {
        Self::with_room(0)
    }

    /// An index of nothing with room for `units`: growing by doubling would hash each of them several times.
    pub(super) fn with_room(units: usize) -> Self {
        let slots = Slots { units: Vec::with_capacity(units), ..Slots::default() };
        Self {
            slots,
            table: HashTable::with_capacity(units),
            blobs: HashTable::new(),
            hasher: RandomState::new(),
            queues: Queues::default(),
            blocks: 0,
            files: HashMap::new(),
        }
    }

    /// Where the unit is, and whether it has been verified since the start.
    pub(super) fn get(&self, key: Key) -> Option<(Place, bool)> {
        let unit = &self.slots.units[self.find(key)? as usize];
        Some((unit.place, unit.is_verified))
    }

    /// Counts a use of the unit. Gives whether it is here.
    pub(super) fn touch(&mut self, key: Key) -> bool {
        let Some(slot) = self.find(key) else { return false };
        let unit = &mut self.slots.units[slot as usize];
        unit.uses = (unit.uses + 1).min(USES_MAX);
        true
    }

    /// Files a unit that is not here. Gives whether it went straight to the main queue, as one that came back.
    pub(super) fn insert(&mut self, key: Key, place: Place, is_verified: bool) -> bool {
        self.remove(key, None);
        let ticket = self.add(key, place, is_verified);
        let is_main = self.queues.insert(ticket, place.blocks(), self.slots.prints.hash_one(key));
        self.slots.units[ticket.slot as usize].is_main = is_main;
        is_main
    }

    /// Files a unit that a log speaks of, in the queue it was in.
    pub(super) fn restore(&mut self, key: Key, place: Place) {
        self.remove(key, None);
        let ticket = self.add(key, place, false);
        self.queues.insert(ticket, place.blocks(), 0);
    }

    /// Moves a unit that a log speaks of to the end of the main queue.
    pub(super) fn restore_main(&mut self, key: Key) {
        let Some((place, _)) = self.get(key) else { return };
        self.remove(key, None);
        let ticket = self.add(key, place, false);
        self.slots.units[ticket.slot as usize].is_main = true;
        self.queues.insert_main(ticket, place.blocks());
    }

    /// Forgets the unit, if it is at `place` or no place is given. Gives where it was.
    pub(super) fn remove(&mut self, key: Key, place: Option<Place>) -> Option<Place> {
        let slot = self.find(key)?;
        let unit = &self.slots.units[slot as usize];
        let (at, is_main) = (unit.place, unit.is_main);
        if place.is_some_and(|place| place != at) {
            return None;
        }
        self.take_out(slot);
        self.queues.remove(is_main, at.blocks(), &self.slots);
        Some(at)
    }

    /// All units of blob `id`.
    pub(super) fn units_of(&self, id: BlobId) -> Vec<(Key, Place)> {
        if let Some((place, _)) = self.get(Key::whole(id)) {
            return vec![(Key::whole(id), place)];
        }
        let mut found = Vec::new();
        let mut slot = self.first_of(id).unwrap_or(NONE);
        while let Some(unit) = self.slots.units.get(slot as usize) {
            found.push((unit.key, unit.place));
            slot = unit.next;
        }
        found
    }

    /// Notes that the unit at `place` was verified.
    pub(super) fn set_verified(&mut self, key: Key, place: Place) {
        if let Some(slot) = self.find(key) {
            let unit = &mut self.slots.units[slot as usize];
            unit.is_verified |= unit.place == place;
        }
    }

    /// Makes the next unit go, in a tier of `capacity` blocks. Gives it, after those that were promoted on the way.
    pub(super) fn evict(&mut self, capacity: u64) -> (Vec<Key>, Option<Evicted>) {
        let live = self.len();
        let evicted = self.queues.evict(capacity, live, &mut self.slots).map(|ticket| {
            let unit = &self.slots.units[ticket.slot as usize];
            let evicted = Evicted { key: unit.key, place: unit.place };
            self.take_out(ticket.slot);
            evicted
        });
        (std::mem::take(&mut self.slots.promoted), evicted)
    }

    /// How many units there are.
    pub(super) fn len(&self) -> usize {
        self.table.len()
    }

    /// Blocks that the units take.
    pub(super) const fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Live blocks of cache file `file`.
    pub(super) fn blocks_of_file(&self, file: u32) -> u64 {
        self.files.get(&file).copied().unwrap_or(0)
    }

    /// Slots there are, live or not: what a walk goes through.
    pub(super) fn slot_count(&self) -> usize {
        self.slots.units.len()
    }

    /// The unit in slot `slot`, if one is.
    pub(super) fn at_slot(&self, slot: usize) -> Option<(Key, Place)> {
        let unit = self.slots.units.get(slot).filter(|unit| unit.is_live)?;
        Some((unit.key, unit.place))
    }

    /// The units that the queues name in `places`, in the order in which a log has to name them; `true` for those of the
    /// main queue.
    pub(super) fn in_order(&self, places: std::ops::Range<usize>) -> impl Iterator<Item = (bool, Key, Place)> {
        self.queues.order().skip(places.start).take(places.len()).filter_map(|(is_main, ticket)| {
            let unit = self.slots.live(ticket)?;
            Some((is_main, unit.key, unit.place))
        })
    }

    /// How many places the queues have, those of units that are gone included.
    pub(super) fn queued(&self) -> usize {
        self.queues.len()
    }

    fn find(&self, key: Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.table.find(hash, |slot| self.slots.units[*slot as usize].key == key).copied()
    }

    fn first_of(&self, id: BlobId) -> Option<u32> {
        let hash = self.hasher.hash_one(id);
        self.blobs.find(hash, |slot| self.slots.units[*slot as usize].key.id == id).copied()
    }

    fn add(&mut self, key: Key, place: Place, is_verified: bool) -> Ticket {
        let (next, previous) = (NONE, NONE);
        let mut unit =
            Unit { key, place, next, previous, turn: 0, uses: 0, is_main: false, is_verified, is_live: true };
        let slot = match self.slots.free.pop() {
            Some(slot) => {
                unit.turn = self.slots.units[slot as usize].turn.wrapping_add(1);
                self.slots.units[slot as usize] = unit;
                slot
            }
            None => {
                self.slots.units.push(unit);
                u32::try_from(self.slots.units.len() - 1).expect("memory ends before the slots do")
            }
        };
        let (units, hasher) = (&self.slots.units, &self.hasher);
        let hash = hasher.hash_one(key);
        self.table.insert_unique(hash, slot, |slot| hasher.hash_one(units[*slot as usize].key));
        if !key.is_whole() {
            self.link(slot);
        }
        self.blocks += place.blocks();
        *self.files.entry(place.file).or_default() += place.blocks();
        Ticket { slot, turn: self.slots.units[slot as usize].turn }
    }

    fn take_out(&mut self, slot: u32) {
        let unit = &mut self.slots.units[slot as usize];
        unit.is_live = false;
        let (key, place) = (unit.key, unit.place);
        if !key.is_whole() {
            self.unlink(slot);
        }
        if let Ok(entry) = self.table.find_entry(self.hasher.hash_one(key), |other| *other == slot) {
            entry.remove();
        }
        self.slots.free.push(slot);
        self.blocks -= place.blocks();
        if let Some(live) = self.files.get_mut(&place.file) {
            *live -= place.blocks();
            if *live == 0 {
                self.files.remove(&place.file);
            }
        }
    }

    /// Puts a slot at the beginning of its blob's chain.
    fn link(&mut self, slot: u32) {
        let id = self.slots.units[slot as usize].key.id;
        let (units, hasher) = (&mut self.slots.units, &self.hasher);
        let hash = hasher.hash_one(id);
        match self.blobs.find_mut(hash, |first| units[*first as usize].key.id == id) {
            Some(first) => {
                units[*first as usize].previous = slot;
                units[slot as usize].next = *first;
                *first = slot;
            }
            None => {
                self.blobs.insert_unique(hash, slot, |slot| hasher.hash_one(units[*slot as usize].key.id));
            }
        }
    }

    fn unlink(&mut self, slot: u32) {
        let unit = &self.slots.units[slot as usize];
        let (id, next, previous) = (unit.key.id, unit.next, unit.previous);
        if let Some(after) = self.slots.units.get_mut(next as usize) {
            after.previous = previous;
        }
        if let Some(before) = self.slots.units.get_mut(previous as usize) {
            before.next = next;
            return;
        }
        if let Ok(mut first) = self.blobs.find_entry(self.hasher.hash_one(id), |first| *first == slot) {
            if next == NONE {
                first.remove();
            } else {
                *first.get_mut() = next;
            }
        }
    }
}

impl Slots {
    fn live(&self, ticket: Ticket) -> Option<&Unit> {
        self.units.get(ticket.slot as usize).filter(|unit| unit.is_live && unit.turn == ticket.turn)
    }

    fn live_mut(&mut self, ticket: Ticket) -> Option<&mut Unit> {
        self.units.get_mut(ticket.slot as usize).filter(|unit| unit.is_live && unit.turn == ticket.turn)
    }
}

impl Units for Slots {
    fn state(&self, ticket: Ticket) -> Option<State> {
        let unit = self.live(ticket)?;
        Some(State { blocks: unit.place.blocks(), uses: unit.uses, print: self.prints.hash_one(unit.key) })
    }

    fn set_uses(&mut self, ticket: Ticket, uses: u8) {
        if let Some(unit) = self.live_mut(ticket) {
            unit.uses = uses;
        }
    }

    fn promote(&mut self, ticket: Ticket) {
        if let Some(unit) = self.live_mut(ticket) {
            unit.is_main = true;
            let key = unit.key;
            self.promoted.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> BlobId {
        BlobId::from_bytes([n; 32])
    }

    fn key(blob: u8, part: u8) -> Key {
        match part {
            0 => Key::whole(id(blob)),
            1 => Key::outboard(id(blob)),
            n => Key::slice(id(blob), u64::from(n)),
        }
    }

    proptest! {
        /// Whatever happens to it, the index says what a plain map says, and its sums are right.
        #[test]
        fn the_index_is_a_map(steps in prop::collection::vec((0..6_u8, 0..4_u8, 0..6_u8, 1..20_000_u32), 0..400)) {
            let (mut index, mut model) = (Index::new(), HashMap::new());
            for (n, (what, blob, part, bytes)) in steps.into_iter().enumerate() {
                let key = key(blob, part);
                match what {
                    // As the cache does: a blob is whole or in parts.
                    0..=2 => {
                        let place = Place { file: u32::try_from(n).unwrap() / 8, block: u32::try_from(n).unwrap(), bytes };
                        if part == 0 {
                            for (key, at) in index.units_of(id(blob)) {
                                prop_assert_eq!((index.remove(key, Some(at)), model.remove(&key)), (Some(at), Some(at)));
                            }
                        } else if let Some(at) = index.remove(Key::whole(id(blob)), None) {
                            prop_assert_eq!(model.remove(&Key::whole(id(blob))), Some(at));
                        }
                        index.insert(key, place, false);
                        model.insert(key, place);
                    }
                    3 => prop_assert_eq!(index.remove(key, None), model.remove(&key)),
                    4 => prop_assert_eq!(index.touch(key), model.contains_key(&key)),
                    _ => {
                        let (_, evicted) = index.evict(20);
                        prop_assert_eq!(evicted.is_none(), model.is_empty());
                        if let Some(evicted) = evicted {
                            prop_assert_eq!(model.remove(&evicted.key), Some(evicted.place));
                        }
                    }
                }
                prop_assert_eq!(index.len(), model.len());
                prop_assert_eq!(index.blocks(), model.values().map(|place| place.blocks()).sum::<u64>());
            }
            for (key, place) in &model {
                prop_assert_eq!(index.get(*key), Some((*place, false)));
            }
            for blob in 0..4 {
                let mut units: Vec<_> = index.units_of(id(blob));
                let mut expected: Vec<_> =
                    model.iter().filter(|(key, _)| key.id == id(blob)).map(|(key, place)| (*key, *place)).collect();
                units.sort_by_key(|(key, _)| key.part);
                expected.sort_by_key(|(key, _)| key.part);
                prop_assert_eq!(units, expected);
            }
            let mut in_order: Vec<_> = index.in_order(0..index.queued()).map(|(_, key, _)| (key.id, key.part)).collect();
            in_order.sort();
            in_order.dedup();
            prop_assert_eq!(in_order.len(), model.len(), "a log written now would name every unit once");
        }
    }

    /// A tier that never fills but is purged all the time must not grow.
    #[test]
    fn what_is_gone_leaves_the_queues() {
        let mut index = Index::new();
        for n in 0..100_000_u32 {
            let key = Key::slice(id(1), u64::from(n));
            index.insert(key, Place { file: 0, block: n, bytes: 10 }, true);
            index.remove(key, None);
        }
        assert_eq!(index.blocks(), 0);
        assert!(index.queued() < 5_000 && index.slot_count() < 10, "{} {}", index.queued(), index.slot_count());
    }
}
