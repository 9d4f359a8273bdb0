//! Who has to go when the disk tier is full: S3-FIFO, by bytes.
//!
//! Most of what passes a cache is asked for once. An order by last use lets each such thing push out something that is
//! asked for daily. Here a newcomer enters a small queue, and only what is asked for again before it reaches the end of
//! that queue gets into the main one; what went too early is known by its *ghost* and enters the main queue when it
//! comes back. In the main queue a unit that was used since its last turn has another one.
//!
//! Nothing moves on a hit (a counter of two bits does), so a hit needs no list surgery; and since space comes back by
//! punching holes, a unit that stays need not be written again.
//!
//! Promise: pure bookkeeping over slots; every slot put in comes out once, or is forgotten by `remove`.

use std::collections::{HashSet, VecDeque};

/// The share of the tier that newcomers have.
const SMALL_PERCENT: u64 = 10;

/// Uses counted at most: what was popular for a day is forgotten after three turns of the main queue.
pub(super) const USES_MAX: u8 = 3;

/// Ghosts remembered at least, however few units there are.
const GHOSTS_MIN: usize = 1024;

/// A unit as the queues see it. A slot that was freed and used again has another turn, so that what a queue still says
/// of the old one is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    /// The slot.
    pub(super) slot: u32,
    /// How often the slot has been taken.
    pub(super) turn: u32,
}

/// What is known of a ticket's unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    /// Its blocks on disk.
    pub(super) blocks: u64,
    /// Uses counted since it came or since its last turn.
    pub(super) uses: u8,
    /// What to know it again by when it went.
    pub(super) print: u64,
}

/// The units, as the queues need them.
pub(super) trait Units {
    /// The unit of `ticket`; `None` when it is gone.
    fn state(&self, ticket: Ticket) -> Option<State>;
    /// Sets its uses.
    fn set_uses(&mut self, ticket: Ticket, uses: u8);
    /// Notes that it is in the main queue.
    fn promote(&mut self, ticket: Ticket);
}

/// The two queues and the ghosts.
#[derive(Debug, Default)]
pub(super) struct Queues {
    small: VecDeque<Ticket>,
    main: VecDeque<Ticket>,
    small_blocks: u64,
    main_blocks: u64,
    ghosts: VecDeque<u64>,
    ghost_set: HashSet<u64>,
    /// Tickets in the queues whose units are gone.
    stale: usize,
}

impl Queues {
    /// Takes a newcomer in. Gives whether it goes straight to the main queue, as one that came back.
    pub(super) fn insert(&mut self, ticket: Ticket, blocks: u64, print: u64) -> bool {
        if self.ghost_set.remove(&print) {
            self.insert_main(ticket, blocks);
            return true;
        }
        self.small.push_back(ticket);
        self.small_blocks += blocks;
        false
    }

    /// Takes in what was in the main queue before a restart.
    pub(super) fn insert_main(&mut self, ticket: Ticket, blocks: u64) {
        self.main.push_back(ticket);
        self.main_blocks += blocks;
    }

    /// Forgets a unit that left by another way. Its ticket is passed over when its turn comes.
    pub(super) fn remove(&mut self, is_main: bool, blocks: u64, units: &impl Units) {
        let share = if is_main { &mut self.main_blocks } else { &mut self.small_blocks };
        *share = share.saturating_sub(blocks);
        self.stale += 1;
        // Else a tier that never fills would queue every unit that was ever purged.
        if self.stale > GHOSTS_MIN && self.stale > (self.small.len() + self.main.len()) / 2 {
            self.small.retain(|ticket| units.state(*ticket).is_some());
            self.main.retain(|ticket| units.state(*ticket).is_some());
            self.stale = 0;
        }
    }

    /// Who has to go next, in a tier of `capacity` blocks; `None` when there is nobody. The ticket is out of the queues,
    /// its unit still to be removed by the caller. `live` is how many units there are.
    pub(super) fn evict(&mut self, capacity: u64, live: usize, units: &mut impl Units) -> Option<Ticket> {
        loop {
            let from_small = self.small_blocks * 100 > capacity * SMALL_PERCENT || self.main.is_empty();
            let popped = if from_small { self.small.pop_front() } else { self.main.pop_front() };
            let Some(ticket) = popped else {
                if self.main.is_empty() {
                    return None;
                }
                // Nobody is left in the small queue, so it has no share.
                self.small_blocks = 0;
                continue;
            };
            let Some(state) = units.state(ticket) else {
                self.stale = self.stale.saturating_sub(1);
                continue;
            };
            let share = if from_small { &mut self.small_blocks } else { &mut self.main_blocks };
            *share = share.saturating_sub(state.blocks);
            match (from_small, state.uses) {
                (true, 0) => {
                    self.remember(state.print, live);
                    return Some(ticket);
                }
                (true, _) => {
                    units.set_uses(ticket, 0);
                    units.promote(ticket);
                    self.insert_main(ticket, state.blocks);
                }
                (false, 0) => return Some(ticket),
                (false, uses) => {
                    units.set_uses(ticket, uses - 1);
                    self.insert_main(ticket, state.blocks);
                }
            }
        }
    }

    /// The tickets in the order in which a restart has to take them in again: `true` for the main queue.
    pub(super) fn order(&self) -> impl Iterator<Item = (bool, Ticket)> {
        self.main.iter().map(|ticket| (true, *ticket)).chain(self.small.iter().map(|ticket| (false, *ticket)))
    }

    /// How many tickets there are, those of units that are gone included.
    pub(super) fn len(&self) -> usize {
        self.main.len() + self.small.len()
    }

    fn remember(&mut self, print: u64, live: usize) {
        if self.ghost_set.insert(print) {
            self.ghosts.push_back(print);
        }
        while self.ghosts.len() > live.max(GHOSTS_MIN) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }
}
