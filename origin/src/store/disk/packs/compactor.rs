//! Compaction: packs give the space of what went back.
//!
//! A pack is a file that many blobs share, so that one of them going frees nothing. Without this module a store whose
//! blobs come and go would grow for ever.
//!
//! A pack that takes no more, and of which more than half is dead, is emptied: what lives in it is read, checked, appended
//! to the pack being filled, and only when that copy is durable do the records lead there; then the old pack goes. So a
//! crash at any moment leaves every blob where its record says. What it leaves beyond that, a copy that no record names or
//! a pack that nothing lives in any more, is dead space, and is given back as any.
//!
//! A record changes only if it still leads to what was copied: a blob that went meanwhile stays gone. A damaged entry
//! stays where it is, and its pack with it, for whoever repairs it.
//!
//! Promise: bytes on the disk are at most twice those that live, and two packs.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use waxwing_protocol::BlobId;

use super::{PackLocation, Packs, entry_bytes};
use crate::fault::kill_point;
use crate::metrics::watch_packs;
use crate::store::disk::changes::{Change, Move};
use crate::store::disk::records::{Location, Records};
use crate::store::{StoreError, StoreErrorKind, Urgency};

/// Bytes that are copied together: what compaction holds in memory, and what an upload waits for at most on its account.
const COPY_BYTES: u64 = 4 << 20;

/// Entries that are copied together: what one commit has to carry.
const COPY_ENTRIES: usize = 512;

/// To find what is dead, the records of all that lives are read; this many times longer nothing is looked for.
const REST_TIMES: u32 = 100;

/// Gives dead space back. One round at a time.
#[derive(Debug, Default)]
pub(in crate::store::disk) struct Compactor(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the records may be read through again.
    due: Option<Instant>,
    /// Packs with something that could not be read, which was told; they are left alone until a restart.
    damaged: BTreeSet<u64>,
}

impl State {
    /// Whether pack `pack` of `pack_bytes`, of which `live_bytes` live, is emptied: more than half of it is dead, and what
    /// lives can be read.
    fn is_worth_emptying(&self, pack: u64, pack_bytes: u64, live_bytes: u64) -> bool {
        live_bytes < pack_bytes.div_ceil(2) && (live_bytes == 0 || !self.damaged.contains(&pack))
    }
}

/// An entry that a record names.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::disk) struct Live {
    /// Where it is.
    pub(in crate::store::disk) location: PackLocation,
    /// Whose bytes it has.
    pub(in crate::store::disk) blob: BlobId,
    /// How many these are.
    pub(in crate::store::disk) blob_bytes: u64,
}

impl Compactor {
    /// Gives back the dead space of `packs`, as far as it is worth it, until `stop`. Gives how many bytes that were. Blocks.
    pub(in crate::store::disk) fn run(
        &self,
        packs: &Packs,
        records: &Records,
        urgency: Urgency,
        stop: &CancellationToken,
    ) -> Result<u64, StoreError> {
        let mut state = match self.0.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) if urgency == Urgency::NowAndThen => return Ok(0),
            Err(TryLockError::WouldBlock) => self.0.lock().unwrap_or_else(PoisonError::into_inner),
        };
        let began = Instant::now();
        let rests = urgency == Urgency::NowAndThen && state.due.is_some_and(|due| began < due);
        // Not worth reading records for when there is no pack that could go.
        if rests || settled(packs)?.is_empty() {
            return Ok(0);
        }
        let live = records.packed_bytes()?;
        state.due = Some(began + REST_TIMES * began.elapsed().max(Duration::from_millis(1)));
        let settled = settled(packs)?;
        let living = settled.iter().filter_map(|(pack, _)| live.get(pack)).sum();
        watch_packs(settled.iter().map(|(_, bytes)| bytes).sum(), living);
        let mut freed = 0;
        for (pack, pack_bytes) in settled {
            let live_bytes = live.get(&pack).copied().unwrap_or(0);
            if !state.is_worth_emptying(pack, pack_bytes, live_bytes) {
                continue;
            }
            match empty(packs, records, pack, stop) {
                Ok(Emptied::Wholly) => freed += pack_bytes - live_bytes.min(pack_bytes),
                Ok(Emptied::NotAll) => drop(state.damaged.insert(pack)),
                Ok(Emptied::Stopped) => return Ok(freed),
                // What went before is told all the same.
                Err(error) if error.kind() == StoreErrorKind::Full && freed > 0 => return Ok(freed),
                Err(error) => return Err(error),
            }
        }
        Ok(freed)
    }

    /// How many bytes a round of [`Self::run`] would give back. Blocks.
    pub(in crate::store::disk) fn worth(&self, packs: &Packs, records: &Records) -> Result<u64, StoreError> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let live = records.packed_bytes()?;
        let mut dead_bytes = 0;
        for (pack, pack_bytes) in settled(packs)? {
            let live_bytes = live.get(&pack).copied().unwrap_or(0);
            if state.is_worth_emptying(pack, pack_bytes, live_bytes) {
                dead_bytes += pack_bytes.saturating_sub(live_bytes);
            }
        }
        Ok(dead_bytes)
    }

    /// Empties the oldest pack that takes no more, whatever of it lives.
    pub(in crate::store::disk) fn churn(&self, packs: &Packs, records: &Records) -> Result<(), StoreError> {
        let _one_at_a_time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match settled(packs)?.first() {
            Some((pack, _)) => empty(packs, records, *pack, &CancellationToken::new()).map(drop),
            None => Ok(()),
        }
    }
}

/// How emptying a pack ended.
enum Emptied {
    /// It is gone.
    Wholly,
    /// Something in it could not be read.
    NotAll,
    /// It was told to stop.
    Stopped,
}

fn settled(packs: &Packs) -> Result<Vec<(u64, u64)>, StoreError> {
    packs.settled().map_err(|error| StoreError::io("listing packs", error))
}

/// Moves everything that lives in `pack`, which is settled, to the pack being filled, and removes it.
fn empty(packs: &Packs, records: &Records, pack: u64, stop: &CancellationToken) -> Result<Emptied, StoreError> {
    let mut after = None;
    loop {
        if stop.is_cancelled() {
            return Ok(Emptied::Stopped);
        }
        let page = next_copy(records.packed(pack, after, COPY_ENTRIES)?);
        let Some(last) = page.last() else { break };
        after = Some(last.location.at);
        copy(packs, records, page)?;
    }
    // Nothing is added to a settled pack, so what is not named now never will be.
    if !records.packed(pack, None, 1)?.is_empty() {
        return Ok(Emptied::NotAll);
    }
    kill_point("pack-emptied");
    packs.remove(pack)?;
    Ok(Emptied::Wholly)
}

/// As many of `page` as are copied together.
fn next_copy(mut page: Vec<Live>) -> Vec<Live> {
    let mut bytes = 0;
    let too_many = page.iter().position(|live| {
        bytes += entry_bytes(live.blob_bytes);
        bytes > COPY_BYTES
    });
    // One is copied in any case.
    page.truncate(too_many.unwrap_or(page.len()).max(1));
    page
}

fn copy(packs: &Packs, records: &Records, page: Vec<Live>) -> Result<(), StoreError> {
    let (mut entries, mut from) = (Vec::new(), Vec::new());
    for live in page {
        match packs.read(live.location, live.blob, live.blob_bytes) {
            Ok(entry) => {
                entries.push(entry);
                from.push(live);
            }
            Err(error) => {
                // It may have gone since the page was read; then nothing was lost.
                let leads_here = records.blob(live.blob)?.map(|pointer| pointer.data);
                if leads_here == Some(Location::Pack(live.location)) {
                    tracing::error!(blob.id = %live.blob, error = %error, "a packed blob cannot be read, and stays where it is");
                }
            }
        }
    }
    if entries.is_empty() {
        return Ok(());
    }
    // Held until the records are committed.
    let copies = packs.append_moved(entries)?;
    kill_point("copies-packed");
    let moves = from.iter().zip(&copies);
    let moves = moves.map(|(live, copy)| Move { blob: live.blob, from: live.location, to: copy.location }).collect();
    records.submit(Change::Move { moves }).map(drop)
}
