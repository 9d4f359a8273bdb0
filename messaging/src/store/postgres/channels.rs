//! Channels, which this engine does not keep yet: there are none, and none can be made.

use bytes::Bytes;
use futures_util::future::BoxFuture;
use waxwing_protocol::api::ChannelPageView;
use waxwing_protocol::channel::SignedCharter;
use waxwing_protocol::{AccountId, ChannelId};

use super::PostgresStore;
use crate::store::{
    Appended, ChannelRecord, ChannelStore, CharterCommit, CharterCommitted, EntryAppend, EntryError, PageCommitted,
    StoreError, StoreErrorKind,
};

fn answer<T: Send + 'static>(answer: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(answer))
}

impl ChannelStore for PostgresStore {
    fn put_charter(&self, _: CharterCommit) -> BoxFuture<'static, Result<CharterCommitted, StoreError>> {
        answer(Err(StoreError::new(StoreErrorKind::Unsupported, "channels are not kept in PostgreSQL yet")))
    }

    fn append_entry(&self, _: EntryAppend) -> BoxFuture<'static, Result<Appended, EntryError>> {
        answer(Err(EntryError::Unknown))
    }

    fn put_page(&self, _: ChannelId, _: ChannelPageView) -> BoxFuture<'static, Result<PageCommitted, StoreError>> {
        answer(Ok(PageCommitted::Conflict))
    }

    fn channel(&self, _: ChannelId) -> BoxFuture<'static, Result<Option<ChannelRecord>, StoreError>> {
        answer(Ok(None))
    }

    fn charters(&self, _: ChannelId, _: u64, _: usize) -> BoxFuture<'static, Result<Vec<SignedCharter>, StoreError>> {
        answer(Ok(Vec::new()))
    }

    fn entries(&self, _: ChannelId, _: u64) -> BoxFuture<'static, Result<Vec<Bytes>, StoreError>> {
        answer(Ok(Vec::new()))
    }

    fn pages(&self, _: ChannelId, _: u64, _: usize) -> BoxFuture<'static, Result<Vec<ChannelPageView>, StoreError>> {
        answer(Ok(Vec::new()))
    }

    fn channels_of(&self, _: AccountId) -> BoxFuture<'static, Result<Vec<ChannelId>, StoreError>> {
        answer(Ok(Vec::new()))
    }
}
