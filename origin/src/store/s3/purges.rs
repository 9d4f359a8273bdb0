//! The purge log: one object for each purge, whose number is its key.
//!
//! A number is taken by writing its object on the condition that there is none, after every number before it is there.
//! So the log has no gaps but at its beginning, where old purges were forgotten, and nobody who asked for what comes
//! after a number misses one that came later.

use std::sync::Mutex;
use std::sync::PoisonError;

use tokio::time::{Duration, Instant};
use waxwing_protocol::{BlobId, Timestamp};

use super::bucket::{Bucket, Expect, PAGE, Swap};
use super::objects::{PURGES, StoredPurge, decode, encode, purge_in, purge_key};
use super::retry::Attempts;
use crate::store::{Purge, Purges, StoreError, StoreErrorKind};

/// How long it is relied on that a number seen is among the newest. Far less than purges are remembered: were all of
/// them forgotten meanwhile, a number could be given that others have gone past.
const NEWEST_FRESH: Duration = Duration::from_secs(60 * 60);

/// The newest number that this process saw, and when.
#[derive(Debug, Default)]
pub(super) struct Newest(Mutex<Option<(u64, Instant)>>);

impl Newest {
    /// A number that is there, if one was seen of late.
    fn get(&self) -> Option<u64> {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.filter(|(_, at)| at.elapsed() < NEWEST_FRESH).map(|(number, _)| number)
    }

    fn saw(&self, number: u64) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.is_none_or(|(known, _)| known <= number) {
            *seen = Some((number, Instant::now()));
        }
    }
}

/// The log.
pub(super) struct PurgeLog<'a> {
    pub(super) bucket: &'a Bucket,
    pub(super) newest: &'a Newest,
}

impl PurgeLog<'_> {
    /// Logs that `blob` went.
    pub(super) async fn append(&self, blob: BlobId, at: Timestamp) -> Result<(), StoreError> {
        let mut attempts = Attempts::new("logging a purge");
        loop {
            let number = match self.newest.get() {
                Some(newest) => newest + 1,
                None => self.numbers(0).await?.last().map_or(1, |newest| newest + 1),
            };
            let purge = encode(&StoredPurge { blob, at })?;
            if let Swap::Made(_) = self.bucket.swap(&purge_key(number), Expect::Absent, purge).await? {
                self.newest.saw(number);
                return Ok(());
            }
            // Others were faster.
            self.numbers(number - 1).await?;
            attempts.pause().await?;
        }
    }

    /// All numbers after `after` that are there.
    async fn numbers(&self, after: u64) -> Result<Vec<u64>, StoreError> {
        let mut numbers = Vec::new();
        let mut from = purge_key(after);
        loop {
            let page = self.bucket.list(PURGES, Some(&from), PAGE).await?;
            numbers.extend(page.iter().filter_map(|listed| purge_in(&listed.key)));
            match page.last() {
                Some(last) if page.len() == PAGE => from.clone_from(&last.key),
                _ => break,
            }
        }
        if let Some(newest) = numbers.last() {
            self.newest.saw(*newest);
        }
        Ok(numbers)
    }

    async fn oldest(&self) -> Result<Option<u64>, StoreError> {
        let first = self.bucket.list(PURGES, None, 1).await?;
        Ok(first.first().and_then(|listed| purge_in(&listed.key)))
    }

    async fn purge(&self, number: u64) -> Result<Option<Purge>, StoreError> {
        let key = purge_key(number);
        let Some(found) = self.bucket.get(&key).await? else { return Ok(None) };
        let StoredPurge { blob, at } = decode(&key, &found.bytes)?;
        Ok(Some(Purge { number, blob, at }))
    }

    /// Purges after number `after`, at most `limit`.
    pub(super) async fn read(&self, after: u64, limit: usize) -> Result<Purges, StoreError> {
        // From the newest that is known on, so that what comes after `after` is not listed to its end each time.
        let known = self.newest.get().unwrap_or(0);
        let newest = self.numbers(known.saturating_sub(1)).await?.last().copied();
        let oldest = self.oldest().await?;
        let next = newest.max(oldest).map_or(1, |newest| newest + 1);
        let oldest = oldest.unwrap_or(next);
        let mut entries = Vec::new();
        for number in after.saturating_add(1).max(oldest)..next {
            if entries.len() >= limit {
                break;
            }
            // One that was forgotten just now is not there any more.
            entries.extend(self.purge(number).await?);
        }
        Ok(Purges { oldest, next, entries })
    }

    /// Forgets purges before `until`, at most `limit`, but for the newest. Gives how many.
    pub(super) async fn forget(&self, until: Timestamp, limit: usize) -> Result<usize, StoreError> {
        let mut forgotten = 0;
        while forgotten < limit {
            let page = self.bucket.list(PURGES, None, PAGE).await?;
            let numbers: Vec<u64> = page.iter().filter_map(|listed| purge_in(&listed.key)).collect();
            if numbers.len() < 2 {
                return Ok(forgotten);
            }
            for number in &numbers[..numbers.len() - 1] {
                // Read one by one: the first that stays ends it.
                let old = match self.purge(*number).await {
                    Ok(purge) => purge.is_none_or(|purge| purge.at < until),
                    Err(error) if error.kind() == StoreErrorKind::Corrupt => false,
                    Err(error) => return Err(error),
                };
                if !old || forgotten >= limit {
                    return Ok(forgotten);
                }
                self.bucket.remove(&purge_key(*number)).await?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }
}
