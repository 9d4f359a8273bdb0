//! Changes of what owners hold, many in one write and mostly without a read.
//!
//! Each small blob changes its owner's ledger, and a phone that sends twenty photos changes it twenty times. Read and
//! written for each of them, ledgers would be a third of all requests.
//!
//! Changes that wait for their owner's turn are made by whoever has it, together, by one write. What this process wrote
//! last is what it expects to find, so that it need not read: a write on the condition that it is still so is its own proof.
//! What is only expected refuses nobody, and calls nothing made: where a change would be refused, or be none, the ledger is
//! read first.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache;
use tokio::sync::oneshot;
use waxwing_protocol::OwnerTag;

use super::bucket::{Bucket, Expect, Swap, Tag};
use super::ledger::{Entry, Ledger};
use super::objects::{encode, owner_key};
use super::retry::{Attempts, Turns};
use crate::store::{StoreError, StoreErrorKind};

/// Memory for ledgers that were written of late.
const KNOWN_BYTES_MAX: u64 = 8 << 20;

/// Changes made by one write at most: half of those whose names a ledger remembers, so that one that is made again because
/// its answer was lost is still known.
const BATCH_MAX: usize = 32;

/// What this process does to ledgers.
#[derive(Debug)]
pub(super) struct Ledgers {
    turns: Turns,
    waiting: Mutex<HashMap<OwnerTag, Vec<Change>>>,
    known: Cache<OwnerTag, Arc<(Ledger, Tag)>>,
    /// Charges whose blobs are there, which the ledgers do not know yet.
    proven: Mutex<HashMap<OwnerTag, Vec<String>>>,
}

/// Owners of whom it is remembered which charges were proven. Those of more are looked up, once a day.
const PROVEN_MAX: usize = 16 * 1024;

/// A change that waits for its owner's turn.
#[derive(Debug)]
struct Change {
    entry: Entry,
    /// What the owner may hold.
    quota_bytes: u64,
    answer: oneshot::Sender<Result<(), StoreError>>,
}

impl Default for Ledgers {
    fn default() -> Self {
        let known = Cache::builder()
            .max_capacity(KNOWN_BYTES_MAX)
            .weigher(|_, known: &Arc<(Ledger, Tag)>| u32::try_from(known.0.weight()).unwrap_or(u32::MAX))
            .build();
        Self { turns: Turns::default(), waiting: Mutex::default(), known, proven: Mutex::default() }
    }
}

impl Ledgers {
    /// The blob that `owner` was charged for by `charge` is theirs. Their ledger is told when it is written next.
    pub(super) fn prove(&self, owner: OwnerTag, charge: &str) {
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.len() < PROVEN_MAX || proven.contains_key(&owner) {
            proven.entry(owner).or_default().push(charge.to_owned());
        }
    }

    fn take_proven(&self, owner: OwnerTag) -> Vec<String> {
        self.proven.lock().unwrap_or_else(PoisonError::into_inner).remove(&owner).unwrap_or_default()
    }

    fn wait(&self, owner: OwnerTag, change: Change) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).entry(owner).or_default().push(change);
    }

    /// The next changes of `owner`'s ledger; those that nobody waits for any more are given up.
    fn next(&self, owner: OwnerTag) -> Vec<Change> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(changes) = waiting.get_mut(&owner) else { return Vec::new() };
        changes.retain(|change| !change.answer.is_closed());
        let next = changes.drain(..changes.len().min(BATCH_MAX)).collect();
        if changes.is_empty() {
            waiting.remove(&owner);
        }
        next
    }
}

impl Bucket {
    /// Makes a change of what `owner` holds. Fails with `Quota`, and changes nothing, when they hold more by it and then
    /// more than `quota_bytes`, or than what an operator set in place of it.
    pub(super) async fn charge(&self, owner: OwnerTag, entry: Entry, quota_bytes: u64) -> Result<(), StoreError> {
        loop {
            let (answer, mut answered) = oneshot::channel();
            self.ledgers.wait(owner, Change { entry: entry.clone(), quota_bytes, answer });
            let _turn = self.ledgers.turns.take(owner).await;
            loop {
                match answered.try_recv() {
                    // Whoever had the turn before made it too.
                    Ok(done) => return done,
                    Err(oneshot::error::TryRecvError::Empty) => {
                        let changes = self.ledgers.next(owner);
                        self.make(owner, changes).await;
                    }
                    // Whoever was making it was given up. Made twice it counts once.
                    Err(oneshot::error::TryRecvError::Closed) => break,
                }
            }
        }
    }

    /// Makes `changes`, in order, and answers those who wait for them.
    async fn make(&self, owner: OwnerTag, changes: Vec<Change>) {
        let made = self.try_make(owner, &changes).await;
        let refusals = made.as_ref().map_or(&[][..], |refusals| refusals);
        for (n, change) in changes.into_iter().enumerate() {
            let answer = match &made {
                Err(error) => Err(StoreError::new(error.kind(), "counting an owner's bytes").because(told(error))),
                Ok(_) if refusals.contains(&n) => {
                    Err(StoreError::new(StoreErrorKind::Quota, "counting an owner's bytes"))
                }
                Ok(_) => Ok(()),
            };
            // Nobody may wait for it any more.
            let _ = change.answer.send(answer);
        }
    }

    /// Makes those of `changes` that the quota has room for. Gives which were refused.
    async fn try_make(&self, owner: OwnerTag, changes: &[Change]) -> Result<Vec<usize>, StoreError> {
        let mut attempts = Attempts::new("counting an owner's bytes");
        let mut expected = self.ledgers.known.remove(&owner);
        loop {
            let is_read = expected.is_none();
            let (before, tag) = match expected.take() {
                Some(known) => (known.0.clone(), Some(known.1.clone())),
                None => {
                    let (ledger, found) = self.ledger(owner).await?;
                    (ledger, found.map(|found| found.tag))
                }
            };
            let (mut after, mut refused) = (before.clone(), Vec::new());
            for (n, change) in changes.iter().enumerate() {
                let mut next = after.clone();
                next.enter(&change.entry);
                let quota_bytes = before.quota_bytes.unwrap_or(change.quota_bytes);
                if next.used() > after.used() && next.used() > quota_bytes {
                    refused.push(n);
                } else {
                    after = next;
                }
            }
            if !is_read && (!refused.is_empty() || after == before) {
                continue;
            }
            if after == before {
                return Ok(refused);
            }
            let expect = tag.as_ref().map_or(Expect::Absent, Expect::Tag);
            // Those of which the write comes to nothing are looked up later.
            for charge in self.ledgers.take_proven(owner) {
                after.prove(&charge);
            }
            if let Swap::Made(tag) = self.swap(&owner_key(owner), expect, encode(&after)?).await? {
                self.ledgers.known.insert(owner, Arc::new((after, tag)));
                return Ok(refused);
            }
            // Another origin was first. What it wrote is read at once, what it writes next after a pause.
            if is_read {
                attempts.pause().await?;
            }
        }
    }

    /// Sets what an operator lets `owner` hold.
    pub(super) async fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> Result<(), StoreError> {
        let mut attempts = Attempts::new("setting an owner's quota");
        let _turn = self.ledgers.turns.take(owner).await;
        loop {
            let (before, found) = self.ledger(owner).await?;
            if before.quota_bytes == quota_bytes {
                return Ok(());
            }
            let expect = found.as_ref().map_or(Expect::Absent, |found| Expect::Tag(&found.tag));
            let mut ledger = before;
            ledger.quota_bytes = quota_bytes;
            if let Swap::Made(_) = self.swap(&owner_key(owner), expect, encode(&ledger)?).await? {
                return Ok(());
            }
            attempts.pause().await?;
        }
    }
}

/// A failure and what caused it, in one line, for each who waited.
fn told(error: &StoreError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
