//! `S3Store`: uploads and blobs in a bucket, which any number of origins share.
//!
//! Nothing is kept on the origin: whichever node a phone reaches next can go on with its upload. What makes this safe is
//! compare-and-swap on a few small objects. An upload has one, which holds its record and says where its bytes are; to
//! claim it is to write it, and a claim that was overtaken finds its own writes refused. A blob has one that leads to its
//! bytes and lists its owners; an owner has one with what they hold; a purge is one whose key is its number.
//!
//! Order, from the bottom up: bytes, then the object that names them; and the other way round when they go. So a crash
//! leaves bytes that nothing names, never a name without bytes, and [`garbage`] finds them.
//!
//! See `objects.rs` for what lies under which key.

mod blobs;
mod bucket;
mod counted;
mod events;
mod expiry;
mod flights;
mod garbage;
mod health;
mod ledger;
mod ledgers;
mod objects;
mod owned;
mod pins;
mod probe;
mod proofs;
mod purges;
mod reader;
mod retry;
mod settings;
mod sweep;
mod uploads;
mod writer;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use waxwing_protocol::{BlobId, OwnerTag, Timestamp, UploadId};

use self::bucket::{Bucket, PAGE};
use self::expiry::Expiry;
use self::flights::Flights;
use self::health::Health;
use self::objects::{OWNERS, event_key, owner_in, owner_key, random_name};
use self::pins::Pins;
use self::probe::Abilities;
use self::purges::Newest;
use self::retry::Turns;
use self::writer::{Budget, S3Writer};
use super::slots::{CLAIM_WAIT, Slots};
use super::{
    BlobReader, BlobStore, Claim, DuePage, Event, Lives, OwnedPage, Purges, StoreError, StoreErrorKind, UploadRecord,
    UploadWriter, Urgency,
};

use crate::fault::Fault;

pub(crate) use self::probe::ProbeError;
pub(crate) use self::settings::{Keys, Settings};

/// How often it is looked whether a look at what owners are charged with is due: often enough for one origin alone to come
/// to every shard within a day.
const LEDGERS_LOOK: Duration = Duration::from_secs(60 * 60);

/// Uploads and blobs in a bucket.
#[derive(Clone)]
pub(crate) struct S3Store(Arc<Shared>);

/// What all parts of a store share.
struct Shared {
    bucket: Bucket,
    settings: Settings,
    slots: Slots,
    budget: Budget,
    pins: Pins,
    flights: Flights,
    newest_purge: Newest,
    /// Turns at changing pointers. Whoever has one may take an owner's turn, never the other way round.
    blob_turns: Turns,
    /// What the bucket's server can do that not all can.
    abilities: Abilities,
    /// What this process is called in the objects of uploads it claims.
    node: Mutex<String>,
    expiry: Expiry,
    /// Work that nobody waits for.
    tasks: TaskTracker,
    health: Health,
}

impl S3Store {
    /// Opens the store in a bucket that is there, and tries what it can do.
    pub(crate) async fn open(settings: Settings) -> Result<Self, ProbeError> {
        let config = &settings.config;
        let bucket = Bucket::new(settings.client(), config.bucket.clone(), config.prefix.clone());
        let abilities = probe::probe(&bucket, settings.needs_part_gaps).await?;
        if !abilities.conditional_delete {
            tracing::warn!(
                "the S3 server removes objects regardless of If-Match: pointers of blobs that went will stay"
            );
        }
        if !abilities.lists_multiparts {
            tracing::warn!(
                "the S3 server lists no multipart uploads: let the bucket give up those older than a week, or parts of \
                 uploads that a crash cut will stay"
            );
        }
        let shared = Arc::new(Shared {
            budget: Budget::new(config.memory_bytes),
            bucket,
            settings,
            slots: Slots::default(),
            pins: Pins::default(),
            flights: Flights::default(),
            newest_purge: Newest::default(),
            blob_turns: Turns::default(),
            abilities,
            node: Mutex::new(random_name().map_err(ProbeError::Unwritable)?),
            expiry: Expiry::default(),
            tasks: TaskTracker::new(),
            health: Health::default(),
        });
        shared.watch_bucket();
        shared.watch_ledgers();
        Ok(Self(shared))
    }

    /// Lists what [`BlobStore::collect`] would remove.
    #[cfg(test)]
    async fn garbage(&self, older_than: Timestamp) -> Result<garbage::Garbage, StoreError> {
        self.0.collect(Timestamp::default(), older_than, true).await
    }

    /// Sets right what owners are charged with. Gives for how many.
    #[cfg(test)]
    async fn recount(&self) -> Result<usize, StoreError> {
        self.0.recount(self.0.settings.settle).await
    }
}

impl Shared {
    fn node(&self) -> String {
        self.node.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// After a write whose outcome is unknown: what may still arrive is told from what later claims write, as if another
    /// process had sent it.
    fn become_another_node(&self) {
        // Without randomness the old name stays; then the request itself could not have been signed either.
        if let Ok(name) = random_name() {
            *self.node.lock().unwrap_or_else(PoisonError::into_inner) = name;
        }
    }

    /// Sees to it now and then that what owners are charged with is what they hold, one origin for all.
    fn watch_ledgers(self: &Arc<Self>) {
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LEDGERS_LOOK).await;
                let Some(shared) = shared.upgrade() else { return };
                match Box::pin(shared.prove_if_due(SystemTime::now().into())).await {
                    Ok(None | Some(0)) => {}
                    Ok(Some(n)) => tracing::warn!(charges = n, "took back {n} charges for blobs that never came"),
                    Err(error) => tracing::warn!(error = %error, "looking at what owners are charged with failed"),
                }
                match shared.recount_if_due(SystemTime::now().into()).await {
                    Ok(None | Some(0)) => {}
                    Ok(Some(set)) => tracing::warn!(set, "set right what {set} owners are charged with"),
                    Err(error) => tracing::warn!(error = %error, "counting what owners hold failed"),
                }
            }
        });
    }

    /// Removes what is left of blob `id` when nobody waits for it.
    fn clean_later(self: &Arc<Self>, id: BlobId) {
        let shared = Arc::clone(self);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        self.tasks.spawn_on(
            async move {
                if let Err(error) = shared.clean(id).await {
                    tracing::warn!(blob.id = %id, error = %error, "bytes of a blob that went are left to the next sweep");
                }
            },
            &runtime,
        );
    }

    async fn owners(&self, after: Option<OwnerTag>, limit: usize) -> Result<Vec<(OwnerTag, u64)>, StoreError> {
        let mut found = Vec::new();
        let mut from = after.map(owner_key);
        while found.len() < limit {
            let page = self.bucket.list(OWNERS, from.as_deref(), PAGE.min(limit)).await?;
            let Some(last) = page.last() else { break };
            from = Some(last.key.clone());
            for owner in page.iter().filter_map(|listed| owner_in(&listed.key)) {
                let used = self.bucket.ledger(owner).await?.0.used();
                if used > 0 && found.len() < limit {
                    found.push((owner, used));
                }
            }
        }
        Ok(found)
    }
}

impl BlobStore for S3Store {
    fn begin(&self, id: UploadId) -> BoxFuture<'_, Result<Box<dyn UploadWriter>, StoreError>> {
        Box::pin(async move {
            let slot = self.0.slots.get(id);
            let epoch = slot.lock(CLAIM_WAIT).await?.bump(0);
            Ok(Box::new(S3Writer::new(Arc::clone(&self.0), id, slot, epoch, None)) as Box<dyn UploadWriter>)
        })
    }

    fn upload(&self, id: UploadId) -> BoxFuture<'_, Result<Option<UploadRecord>, StoreError>> {
        Box::pin(async move {
            let found = self.0.draft(id).await?.map(|(draft, _)| draft).filter(|draft| !draft.removed);
            Ok(found.and_then(|draft| draft.record))
        })
    }

    fn claim(&self, id: UploadId) -> BoxFuture<'_, Result<Option<Claim>, StoreError>> {
        Box::pin(async move {
            let slot = self.0.slots.get(id);
            let guard = slot.lock(CLAIM_WAIT).await?;
            // In a task of its own: given up half-way, it would leave the slot to somebody else.
            let shared = Arc::clone(&self.0);
            let claiming = tokio::spawn(Box::pin(async move {
                let epoch = guard.epoch();
                Ok((shared.claim(id, epoch).await?, guard))
            }));
            let failed = |error| StoreError::new(StoreErrorKind::Other, "a task of the store").because(error);
            let (claimed, mut guard) = claiming.await.map_err(failed)??;
            let Some((draft, tag)) = claimed else { return Ok(None) };
            let Some(record) = draft.record.clone() else { return Ok(None) };
            let epoch = guard.bump(draft.epoch);
            let writer = S3Writer::new(Arc::clone(&self.0), id, slot, epoch, Some((draft, tag)));
            Ok(Some(Claim { writer: Box::new(writer), record }))
        })
    }

    fn events(&self, limit: usize) -> BoxFuture<'_, Result<Vec<Event>, StoreError>> {
        Box::pin(self.0.events(limit))
    }

    fn settle(&self, event: Event) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move { self.0.bucket.remove(&event_key(&event)).await })
    }

    fn remove(&self, id: UploadId) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut guard = self.0.slots.get(id).lock(CLAIM_WAIT).await?;
            guard.bump(0);
            self.0.remove(id).await
        })
    }

    fn uploads(
        &self,
        after: Option<UploadId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<(UploadId, UploadRecord)>, StoreError>> {
        Box::pin(self.0.uploads(after, limit))
    }

    fn due(
        &self,
        after: Option<UploadId>,
        _limit: usize,
        now: Timestamp,
        lives: Lives,
    ) -> BoxFuture<'_, Result<Option<DuePage>, StoreError>> {
        Box::pin(self.0.due(after, now, lives))
    }

    fn blob(&self, id: BlobId) -> BoxFuture<'_, Result<Option<Box<dyn BlobReader>>, StoreError>> {
        Box::pin(async move { Ok(self.0.open_blob(id).await?.map(|reader| Box::new(reader) as Box<dyn BlobReader>)) })
    }

    fn owned(&self, id: BlobId, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move {
            let (pointer, _) = self.0.pointer(id).await?;
            Ok(pointer.owners.contains_key(&owner).then_some(pointer.blob_bytes))
        })
    }

    fn keep(
        &self,
        id: BlobId,
        owner: OwnerTag,
        quota_bytes: u64,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.0.keep(id, owner, quota_bytes, now))
    }

    fn disown(&self, id: BlobId, owner: OwnerTag, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.0.disown(id, owner, Timestamp::MAX, now))
    }

    fn remove_blob(&self, id: BlobId, now: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(self.0.remove_blob(id, now))
    }

    fn blobs_of(
        &self,
        owner: OwnerTag,
        after: Option<BlobId>,
        limit: usize,
    ) -> BoxFuture<'_, Result<OwnedPage, StoreError>> {
        Box::pin(self.0.blobs_of(owner, after, limit))
    }

    fn expire_owners(
        &self,
        until: Timestamp,
        limit: usize,
        now: Timestamp,
    ) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.0.expire(until, limit, now))
    }

    fn due_owners(&self, until: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(self.0.due_owners(until))
    }

    fn purges(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Purges, StoreError>> {
        Box::pin(async move { self.0.purge_log().read(after, limit).await })
    }

    fn forget_purges(&self, until: Timestamp, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(async move { self.0.purge_log().forget(until, limit).await })
    }

    fn used(&self, owner: OwnerTag) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Ok(self.0.bucket.ledger(owner).await?.0.used()) })
    }

    fn quota(&self, owner: OwnerTag) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move { Ok(self.0.bucket.ledger(owner).await?.0.quota_bytes) })
    }

    fn set_quota(&self, owner: OwnerTag, quota_bytes: Option<u64>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.0.bucket.set_quota(owner, quota_bytes))
    }

    fn room(&self, owner: OwnerTag, quota_bytes: u64) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let (ledger, _) = self.0.bucket.ledger(owner).await?;
            Ok(ledger.quota_bytes.unwrap_or(quota_bytes).saturating_sub(ledger.used()))
        })
    }

    fn owners(&self, after: Option<OwnerTag>, limit: usize) -> BoxFuture<'_, Result<Vec<(OwnerTag, u64)>, StoreError>> {
        Box::pin(self.0.owners(after, limit))
    }

    fn collect(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        let at_once = self.0.settings.faults.is_on(Fault::CollectAtOnce);
        let older_than = if at_once { Timestamp::MAX } else { older_than };
        Box::pin(async move { Ok(self.0.collect(Timestamp::default(), older_than, false).await?.uploads) })
    }

    fn collect_again(&self, older_than: Timestamp, now: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move {
            let Some(since) = self.0.collect_since(now).await? else { return Ok(0) };
            Ok(self.0.collect(since, older_than, false).await?.uploads)
        })
    }

    fn leftovers(&self, older_than: Timestamp) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async move { Ok(self.0.collect(Timestamp::default(), older_than, true).await?.uploads) })
    }

    fn compact(&self, _urgency: Urgency, _stop: CancellationToken) -> BoxFuture<'_, Result<u64, StoreError>> {
        // Objects are removed as they are: there is no dead space.
        Box::pin(async { Ok(0) })
    }

    fn compactable(&self) -> BoxFuture<'_, Result<u64, StoreError>> {
        Box::pin(async { Ok(0) })
    }

    fn is_writable(&self) -> bool {
        self.0.health.trouble().is_none()
    }

    fn trouble(&self) -> Option<String> {
        self.0.health.trouble()
    }
}

#[cfg(test)]
mod tests;
