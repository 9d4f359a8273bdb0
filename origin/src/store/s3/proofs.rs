//! Charges that a crash cut: found by the owners' own ledgers.
//!
//! To count what everybody holds, every pointer is read. At eight billion media a day, each kept for weeks, that is
//! hundreds of billions of requests a count. A ledger names what is open about itself: charges whose blobs nobody has seen
//! to be there since. So only ledgers that were written since the last look are read, and of blobs only those that are open
//! in one: the last few of each owner.
//!
//! Ledgers are looked at by shards, each once a day by one origin for all.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use waxwing_protocol::{OwnerTag, Timestamp};

use super::Shared;
use super::bucket::{Expect, Found, PAGE, Swap};
use super::ledger::{Ledger, Open};
use super::objects::{OWNERS, encode, owner_in, owner_key};
use crate::store::{StoreError, StoreErrorKind};

/// The first digits of owners' tags: what divides ledgers into shards.
const SHARDS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];

/// How often each shard is looked at.
const SHARD_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// How far a look reaches back before the one before it: what was too young then is old enough now, and clocks differ.
const OVERLAP: Duration = Duration::from_secs(2 * 60 * 60);

/// How old a charge is that nobody is about to prove: S3 takes no request that was signed an hour ago.
pub(super) const SETTLED: Duration = Duration::from_secs(60 * 60);

/// Ledgers looked at side by side.
const PARALLEL: usize = 16;

impl Shared {
    /// Looks at the next shard of ledgers whose time has come, and takes back charges that stand for nothing. Gives how
    /// many; `None` when none is due.
    pub(super) async fn prove_if_due(self: &Arc<Self>, now: Timestamp) -> Result<Option<usize>, StoreError> {
        for shard in SHARDS {
            if let Some(before) = self.take_turn(&format!("turns/proofs-{shard}"), SHARD_INTERVAL, now).await? {
                return self.prove_shard(shard, before.minus(OVERLAP), now.minus(SETTLED)).await.map(Some);
            }
        }
        Ok(None)
    }

    /// Takes back charges from before `until` that stand for nothing, in those ledgers of a shard which were written from
    /// `since` on.
    pub(super) async fn prove_shard(
        self: &Arc<Self>,
        shard: char,
        since: Timestamp,
        until: Timestamp,
    ) -> Result<usize, StoreError> {
        let (under, mut after, mut taken_back) = (format!("{OWNERS}{shard}"), None::<String>, 0);
        loop {
            let page = self.bucket.list(&under, after.as_deref(), PAGE).await?;
            let written = page.iter().filter(|listed| listed.modified >= since);
            let owners: Vec<_> = written.filter_map(|listed| owner_in(&listed.key)).collect();
            for some in owners.chunks(PARALLEL) {
                let proven = try_join_all(some.iter().map(|owner| self.prove_ledger(*owner, until))).await?;
                taken_back += proven.into_iter().sum::<usize>();
            }
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.key.clone()),
                _ => return Ok(taken_back),
            }
        }
    }

    async fn prove_ledger(self: &Arc<Self>, owner: OwnerTag, until: Timestamp) -> Result<usize, StoreError> {
        let (ledger, found) = match self.bucket.ledger(owner).await {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => {
                tracing::error!(error = %error, "an owner's ledger is damaged");
                return Ok(0);
            }
            ledger => ledger?,
        };
        let Some(Found { tag, .. }) = found else { return Ok(0) };
        let (mut right, mut taken_back): (Ledger, usize) = (ledger.clone(), 0);
        for charge in ledger.open.iter().filter(|charge| charge.at <= until) {
            if self.is_backed(owner, charge).await? {
                right.prove(&charge.name);
            } else {
                right.take_back(charge);
                taken_back += 1;
            }
        }
        if right == ledger {
            return Ok(0);
        }
        // Where its owner is at work it is written anew, and looked at next time.
        let swap = self.bucket.swap(&owner_key(owner), Expect::Tag(&tag), encode(&right)?).await?;
        Ok(if swap == Swap::Lost { 0 } else { taken_back })
    }

    /// Whether `owner` has a blob by this charge. What cannot be read counts as had.
    async fn is_backed(self: &Arc<Self>, owner: OwnerTag, charge: &Open) -> Result<bool, StoreError> {
        let is_had = async || match self.pointer(charge.blob).await {
            Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(true),
            found => {
                let (pointer, _) = found?;
                let share = pointer.owners.get(&owner).filter(|_| pointer.place.is_some());
                Ok::<_, StoreError>(share.is_some_and(|share| share.charge == charge.name))
            }
        };
        if is_had().await? {
            return Ok(true);
        }
        let Some(upload) = charge.upload else { return Ok(false) };
        match self.draft(upload).await {
            // It is about to become the blob, and whoever comes to it brings it there: why not now.
            Ok(Some((draft, tag))) if draft.ending.as_ref().is_some_and(|ending| ending.charge == charge.name) => {
                self.finish_or_see(upload, draft, &tag).await?;
                is_had().await
            }
            Err(error) if error.kind() == StoreErrorKind::Corrupt => Ok(true),
            found => found.map(|_| false),
        }
    }
}
