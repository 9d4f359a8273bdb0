//! Groups, which this engine does not keep yet: there are none, and none can be made.

use futures_util::future::BoxFuture;
use waxwing_protocol::group::SignedGroupChange;
use waxwing_protocol::{AccountId, GroupId};

use super::PostgresStore;
use crate::store::{
    AppendError, Appended, GroupCommit, GroupCommitted, GroupProgress, GroupRecord, GroupSend, GroupStore, StoreError,
    StoreErrorKind, Stored,
};

fn answer<T: Send + 'static>(answer: T) -> BoxFuture<'static, T> {
    Box::pin(std::future::ready(answer))
}

impl GroupStore for PostgresStore {
    fn change_group(&self, _: GroupCommit) -> BoxFuture<'static, Result<GroupCommitted, StoreError>> {
        answer(Err(StoreError::new(StoreErrorKind::Unsupported, "groups are not kept in PostgreSQL yet")))
    }

    fn send_group(&self, _: GroupSend) -> BoxFuture<'static, Result<Appended, AppendError>> {
        answer(Err(AppendError::UnknownGroup))
    }

    fn mark_read(&self, _: AccountId, _: GroupId, _: u64) -> BoxFuture<'static, Result<(), StoreError>> {
        answer(Ok(()))
    }

    fn progress(&self, _: GroupId) -> BoxFuture<'static, Result<Option<GroupProgress>, StoreError>> {
        answer(Ok(None))
    }

    fn group(&self, _: GroupId) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        answer(Ok(None))
    }

    fn group_changes(
        &self,
        _: GroupId,
        _: u64,
        _: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedGroupChange>, StoreError>> {
        answer(Ok(Vec::new()))
    }

    fn group_at(&self, _: GroupId, _: u64) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        answer(Ok(None))
    }

    fn groups_of(&self, _: AccountId) -> BoxFuture<'static, Result<Vec<GroupId>, StoreError>> {
        answer(Ok(Vec::new()))
    }

    fn stored(&self) -> BoxFuture<'static, Result<Stored, StoreError>> {
        self.with(|client| async move {
            let row = client
                .query_one("SELECT count(*), coalesce(sum(length(envelope)), 0)::bigint FROM messages", &[])
                .await?;
            let number = |at| usize::try_from(row.get::<_, i64>(at)).unwrap_or_default();
            Ok(Stored { rows: number(0), bodies: 0, bytes: number(1) })
        })
    }
}
