//! How well the tier chooses, on a trace like a chat's, beside LRU and SLRU.
//!
//! The trace is made by a seeded generator: blobs are posted one after another, most for one or two readers, a few for
//! groups of hundreds; most readers come soon, some after days; videos are read in slices, often only their beginning.
//!
//! Kept beside the tier, and not with its tests alone, since `waxwing bench edge` tells the figures.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "draws of a generator, all far from any bound"
)]

use std::collections::{BTreeMap, BinaryHeap, HashMap};

use waxwing_protocol::BlobId;

use super::index::{BLOCK_BYTES, Index, Place};
use super::unit::Key;

/// Blobs posted. The hit ratios of a trace ten times as long differ by a percent.
const BLOBS: u64 = 40_000;

/// A reader who comes soon does so within about this many posts; one who comes the same day, one who comes later.
const DELAYS: [(f64, f64); 3] = [(0.55, 60.0), (0.85, 1_500.0), (1.0, 15_000.0)];

/// SplitMix64: numbers that are the same everywhere.
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Between two numbers, each magnitude as likely.
    fn between(&mut self, low: f64, high: f64) -> f64 {
        low * (high / low).powf(self.share())
    }
}

#[derive(Clone, Copy)]
struct Access {
    key: Key,
    bytes: u64,
}

/// Readers of a blob: one or two of a direct message, the members of a group, once in a while a large one.
fn readers(dice: &mut Dice) -> u64 {
    match dice.share() {
        x if x < 0.50 => 1,
        x if x < 0.72 => 2,
        x if x < 0.93 => dice.between(3.0, 15.0) as u64,
        x if x < 0.995 => dice.between(15.0, 150.0) as u64,
        _ => dice.between(150.0, 1000.0) as u64,
    }
}

/// Thumbnails and voice, photos, videos.
fn blob_bytes(dice: &mut Dice) -> u64 {
    match dice.share() {
        x if x < 0.40 => dice.between(4_000.0, 60_000.0) as u64,
        x if x < 0.95 => dice.between(80_000.0, 600_000.0) as u64,
        _ => dice.between(1_500_000.0, 25_000_000.0) as u64,
    }
}

fn trace(seed: u64) -> Vec<Access> {
    let mut dice = Dice(seed);
    let mut visits = BinaryHeap::new();
    for n in 0..BLOBS {
        let bytes = blob_bytes(&mut dice);
        for _ in 0..readers(&mut dice) {
            let kind = dice.share();
            let mean = DELAYS.iter().find(|(until, _)| kind < *until).map_or(1.0, |(_, mean)| *mean);
            let delay = -mean * (1.0 - dice.share()).ln();
            let watched = if dice.share() < 0.4 { 0.2 } else { 1.0 };
            let at = ((n as f64 + delay) * 1000.0) as u64;
            if at < BLOBS * 1000 {
                visits.push((std::cmp::Reverse(at), n, bytes, (bytes as f64 * watched) as u64));
            }
        }
    }
    let mut trace = Vec::new();
    while let Some((_, n, bytes, watched)) = visits.pop() {
        let id = BlobId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes());
        if bytes <= 65_536 {
            trace.push(Access { key: Key::whole(id), bytes });
            continue;
        }
        trace.push(Access { key: Key::outboard(id), bytes: bytes.div_ceil(65_536) * 32 });
        for index in 0..watched.div_ceil(1 << 20).max(1) {
            trace.push(Access { key: Key::slice(id, index), bytes: (bytes - (index << 20)).min(1 << 20) });
        }
    }
    trace
}

/// A cache as a trace meets it: gives whether the access was a hit.
trait Policy {
    fn access(&mut self, access: Access) -> bool;
}

struct Ours {
    index: Index,
    capacity: u64,
    next: u32,
}

impl Policy for Ours {
    fn access(&mut self, Access { key, bytes }: Access) -> bool {
        if self.index.touch(key) {
            return true;
        }
        let place = Place { file: self.next, block: 0, bytes: u32::try_from(bytes).expect("a unit is 1 MiB at most") };
        self.next += 1;
        while self.index.blocks() + place.blocks() > self.capacity {
            assert!(self.index.evict(self.capacity).1.is_some());
        }
        self.index.insert(key, place, true);
        assert!(self.index.blocks() <= self.capacity);
        false
    }
}

/// One or two lists by last use: LRU, and SLRU whose protected list takes four fifths.
struct Lru {
    places: HashMap<Key, (bool, u64, u64)>,
    lists: [BTreeMap<u64, (Key, u64)>; 2],
    blocks: [u64; 2],
    capacity: u64,
    protected: u64,
    clock: u64,
}

impl Lru {
    fn new(capacity: u64, protected: u64) -> Self {
        let (places, lists) = (HashMap::new(), Default::default());
        Self { places, lists, blocks: [0; 2], capacity, protected, clock: 0 }
    }

    fn put(&mut self, key: Key, list: usize, blocks: u64) {
        self.clock += 1;
        self.lists[list].insert(self.clock, (key, blocks));
        self.blocks[list] += blocks;
        self.places.insert(key, (list == 1, self.clock, blocks));
    }

    fn pop(&mut self, list: usize) -> Option<(Key, u64)> {
        let (_, (key, blocks)) = self.lists[list].pop_first()?;
        self.blocks[list] -= blocks;
        self.places.remove(&key);
        Some((key, blocks))
    }
}

impl Policy for Lru {
    fn access(&mut self, Access { key, bytes }: Access) -> bool {
        let upper = usize::from(self.protected > 0);
        if let Some((is_upper, at, blocks)) = self.places.remove(&key) {
            let list = usize::from(is_upper);
            self.lists[list].remove(&at);
            self.blocks[list] -= blocks;
            self.put(key, upper, blocks);
            while self.blocks[1] > self.protected && upper == 1 {
                let (key, blocks) = self.pop(1).expect("what has blocks has entries");
                self.put(key, 0, blocks);
            }
            return true;
        }
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        while self.blocks[0] + self.blocks[1] + blocks > self.capacity {
            if self.pop(0).is_none() {
                self.pop(1);
            }
        }
        self.put(key, 0, blocks);
        false
    }
}

/// Hits in percent.
#[derive(Clone, Copy, Debug)]
pub struct Ratios {
    /// Of accesses.
    pub hits: f64,
    /// Of bytes.
    pub bytes: f64,
}

fn ratios(trace: &[Access], mut policy: impl Policy) -> Ratios {
    let (mut hits, mut hit_bytes, mut bytes) = (0.0, 0.0, 0.0);
    for access in trace {
        let is_hit = f64::from(u8::from(policy.access(*access)));
        hits += is_hit;
        hit_bytes += is_hit * access.bytes as f64;
        bytes += access.bytes as f64;
    }
    Ratios { hits: hits * 100.0 / trace.len() as f64, bytes: hit_bytes * 100.0 / bytes }
}

/// The hit ratios of the disk tier's choice, of LRU and of SLRU, in a cache of `percent` of the bytes that a chat's
/// trace names. The same `seed` gives the same trace.
pub fn compare(percent: u64, seed: u64) -> [(&'static str, Ratios); 3] {
    let trace = trace(seed);
    let unique: HashMap<Key, u64> = trace.iter().map(|access| (access.key, access.bytes)).collect();
    let total: u64 = unique.values().map(|bytes| bytes.div_ceil(BLOCK_BYTES)).sum();
    let capacity = total * percent / 100;
    [
        ("waxwing", ratios(&trace, Ours { index: Index::new(), capacity, next: 0 })),
        ("lru", ratios(&trace, Lru::new(capacity, 0))),
        ("slru", ratios(&trace, Lru::new(capacity, capacity * 4 / 5))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tier_chooses_no_worse_than_lru_and_slru() {
        for seed in [1, 2] {
            for percent in [1, 5] {
                let [(_, ours), others @ ..] = compare(percent, seed);
                for (who, other) in others {
                    println!("{percent} % of bytes, seed {seed}: ours {ours:?}, {who} {other:?}");
                    assert!(ours.hits >= other.hits && ours.bytes >= other.bytes, "{who} chooses better");
                }
            }
        }
    }
}
