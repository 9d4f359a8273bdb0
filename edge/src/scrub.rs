//! The scrub: looks the disk tier through for damage, slowly and for ever.
//!
//! A unit that is asked for is checked at its first use; one that nobody asks for rots unseen, and a bit that flips
//! after the first use would be served for as long as the process lives. So every unit is read and checked again and
//! again, at a pace that no reader feels.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use crate::cache::{self, Cache, Card};
use crate::disk::{Disk, Key};
use crate::stats::Counters;

/// How long the scrub rests when there is nothing to look at, and between two rounds.
const REST: Duration = Duration::from_secs(10);

/// Looks units through, `bytes_per_s` of them; never ends.
pub(crate) async fn run(cache: Arc<Cache>, counters: Arc<Counters>, bytes_per_s: u64) {
    let Some(disk) = cache.disk().filter(|_| bytes_per_s > 0) else { return };
    loop {
        tokio::time::sleep(REST).await;
        let (mut slot, mut last) = (0, None);
        // Slots may come and go meanwhile: what is passed over now is seen the next time.
        while slot < disk.slot_count() {
            if let Some((key, bytes)) = disk.at_slot(slot) {
                check(disk, key, &mut last).await;
                counters.scrubbed.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64)).await;
            }
            slot += 1;
        }
    }
}

/// Checks one unit; it is dropped and counted when it is damaged. `last` is the card of the blob looked at last: its
/// slices mostly follow one another.
pub(crate) async fn check(disk: &Disk, key: Key, last: &mut Option<Arc<Card>>) {
    let id = key.id;
    match key.slice_index() {
        None if key == Key::whole(id) => {
            disk.check(key, move |bytes| cache::is_whole_of(id, bytes)).await;
        }
        None => {
            disk.check(key, move |bytes| cache::card_of(id, bytes).is_some()).await;
        }
        Some(index) => {
            // Without its outboard a slice cannot be checked now, nor served before the outboard is fetched anew.
            if last.as_ref().is_none_or(|card| card.outboard.id() != id) {
                let outboard = disk.check(Key::outboard(id), move |bytes| cache::card_of(id, bytes).is_some()).await;
                *last = outboard.and_then(|bytes| cache::card_of(id, &bytes)).map(Arc::new);
            }
            if let Some(card) = last.clone() {
                disk.check(key, move |bytes| card.has_slice(index, bytes)).await;
            }
        }
    }
}
