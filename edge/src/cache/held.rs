//! What the cache holds, as an operator asks: is this blob here, how much of it, in which tier.
//!
//! A tier may hold millions of entries that come and go, so it is walked page by page by place, without stopping anybody;
//! a list that was true at one moment would need a copy of all of it.

use serde::{Deserialize, Serialize};
use waxwing_protocol::BlobId;

use super::{Cache, Content, Head, Key, weight};
use crate::disk;

/// Where something is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// In memory.
    Memory,
    /// On disk.
    Disk,
}

/// Which part of a blob an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All of a blob of one chunk group.
    Whole,
    /// The outboard of a larger one.
    Outboard,
    /// A slice of it, by its index.
    Slice(u64),
}

/// Something that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// Of which blob.
    pub blob: BlobId,
    /// Which part.
    pub part: Part,
    /// Bytes that it takes there.
    pub bytes: u64,
}

impl Cache {
    /// Up to `limit` entries of `tier` from place `after` on, and the place after them until there is none.
    pub(crate) fn held(&self, tier: Tier, after: usize, limit: usize) -> (Vec<Held>, Option<usize>) {
        match (tier, &self.disk) {
            (Tier::Memory, _) => {
                let entries = self.entries.iter().skip(after).take(limit);
                let page: Vec<_> = entries.map(|(key, entry)| in_memory(*key, &entry.content)).collect();
                let next = (page.len() == limit).then_some(after + limit);
                (page, next)
            }
            (Tier::Disk, Some(disk)) => {
                let end = disk.slot_count();
                let mut page = Vec::new();
                let mut at = after;
                while at < end && page.len() < limit {
                    page.extend(disk.at_slot(at).map(|(key, bytes)| on_disk(key, bytes)));
                    at += 1;
                }
                (page, (at < end).then_some(at))
            }
            (Tier::Disk, None) => (Vec::new(), None),
        }
    }
}

fn in_memory(key: Key, content: &Content) -> Held {
    let bytes = u64::from(weight(content));
    match (key, content) {
        (Key::Slice(blob, index), _) => Held { blob, part: Part::Slice(index), bytes },
        (Key::Head(blob), Content::Head(Head::Whole(_))) => Held { blob, part: Part::Whole, bytes },
        (Key::Head(blob), _) => Held { blob, part: Part::Outboard, bytes },
    }
}

fn on_disk(key: disk::Key, bytes: u64) -> Held {
    let part = match key.slice_index() {
        Some(index) => Part::Slice(index),
        None if key.is_whole() => Part::Whole,
        None => Part::Outboard,
    };
    Held { blob: key.id, part, bytes }
}
