//! Groups in the database: read by whoever asks, changed under the lock of the group's row.
//!
//! Places in a conversation are given under that lock, and the lanes of everybody in the group are locked after it, in
//! the order in which everybody locks them. So two nodes that send to one group wait for one another, and what is
//! committed later has the later place in every mailbox.

use std::collections::BTreeMap;

use deadpool_postgres::Object;
use futures_util::future::BoxFuture;
use waxwing_protocol::group::{GroupState, SignedGroupChange};
use waxwing_protocol::{AccountId, GroupId};

use super::connections::Failure;
use super::values::{account, big, damaged, uuid};
use super::writer::Command;
use super::{PostgresStore, fan_out};
use crate::store::{
    AppendError, Appended, GroupCommit, GroupCommitted, GroupProgress, GroupRecord, GroupSend, GroupStore, StoreError,
    Stored,
};

/// Bytes of changes in one answer, unless one is larger.
const PAGE_BYTES_MAX: usize = 256 * 1024;

/// Bytes that a row which stands for a body counts for: its key and where the body lies.
const POINTER_BYTES: i64 = 72;

impl GroupStore for PostgresStore {
    fn change_group(&self, commit: GroupCommit) -> BoxFuture<'static, Result<GroupCommitted, StoreError>> {
        let line = line_of(commit.after.group);
        self.write(line, |reply| Command::ChangeGroup { commit: Box::new(commit), reply })
    }

    fn send_group(&self, send: GroupSend) -> BoxFuture<'static, Result<Appended, AppendError>> {
        self.write(line_of(send.group), |reply| Command::SendGroup { send: Box::new(send), reply })
    }

    fn mark_read(&self, by: AccountId, group: GroupId, conv_seq: u64) -> BoxFuture<'static, Result<(), StoreError>> {
        let (marked, sink) =
            (self.with(move |client| async move { mark_read(&client, by, group, conv_seq).await }), self.sink.clone());
        Box::pin(async move {
            if marked.await? {
                sink.progressed(group);
            }
            Ok(())
        })
    }

    fn progress(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupProgress>, StoreError>> {
        self.with(move |client| async move { progress(&client, group).await })
    }

    fn group(&self, group: GroupId) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        self.with(move |client| async move {
            let sql = "SELECT state, change FROM groups WHERE id = $1";
            let row = client.query_opt(&client.prepare_cached(sql).await?, &[&id(group)]).await?;
            let record = row.map(|row| {
                Ok::<_, Failure>(GroupRecord { state: state_of(row.try_get(0)?)?, change: change_of(row.try_get(1)?)? })
            });
            record.transpose()
        })
    }

    fn group_changes(
        &self,
        group: GroupId,
        after: u64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<SignedGroupChange>, StoreError>> {
        self.with(move |client| async move {
            let mut bytes = 0;
            let mut page = changes(&client, group, after, i64::try_from(limit).unwrap_or(i64::MAX)).await?;
            let fits = page.iter().take_while(|signed| {
                bytes += signed.change.0.len();
                bytes <= PAGE_BYTES_MAX
            });
            let fits = fits.count().max(1);
            page.truncate(fits);
            Ok(page)
        })
    }

    fn group_at(&self, group: GroupId, epoch: u64) -> BoxFuture<'static, Result<Option<GroupRecord>, StoreError>> {
        self.with(move |client| async move {
            let mut at: Option<GroupRecord> = None;
            // Made anew from the changes: they were checked when they were taken.
            for signed in changes(&client, group, 0, i64::MAX).await? {
                let before = at.as_ref().map(|record| &record.state);
                let state = signed.read().map_err(damaged)?.apply(before).map_err(damaged)?;
                let reached = state.epoch == epoch;
                at = Some(GroupRecord { state, change: signed });
                if reached {
                    return Ok(at);
                }
            }
            Ok(None)
        })
    }

    fn groups_of(&self, account: AccountId) -> BoxFuture<'static, Result<Vec<GroupId>, StoreError>> {
        self.with(move |client| async move {
            let sql = "SELECT id FROM group_members WHERE account = $1 ORDER BY id";
            let rows = client.query(&client.prepare_cached(sql).await?, &[&uuid(account)]).await?;
            rows.iter().map(|row| Ok(GroupId::from_bytes(*row.try_get::<_, uuid::Uuid>(0)?.as_bytes()))).collect()
        })
    }

    fn stored(&self) -> BoxFuture<'static, Result<Stored, StoreError>> {
        self.with(|client| async move {
            let sql = "SELECT m.rows, m.bytes, b.rows, b.bytes FROM
                (SELECT count(*) AS rows, coalesce(sum(length(envelope) + $1::bigint), 0)::bigint AS bytes FROM messages) m,
                (SELECT count(*) AS rows, coalesce(sum(length(envelope)), 0)::bigint AS bytes FROM group_bodies) b";
            let row = client.query_one(sql, &[&POINTER_BYTES]).await?;
            let number = |at| Ok::<_, Failure>(usize::try_from(big(&row, at)?).unwrap_or(usize::MAX));
            Ok(Stored { rows: number(0)?, bodies: number(2)?, bytes: number(1)?.saturating_add(number(3)?) })
        })
    }
}

/// Under which name a group's commands are put in line: all of one group go through one writer.
fn line_of(group: GroupId) -> AccountId {
    AccountId::from_bytes(*group.as_bytes())
}

pub(super) fn id(group: GroupId) -> uuid::Uuid {
    uuid::Uuid::from_bytes(*group.as_bytes())
}

pub(super) fn state_of(bytes: &[u8]) -> Result<GroupState, StoreError> {
    GroupState::from_bytes(bytes).map_err(damaged)
}

fn change_of(bytes: &[u8]) -> Result<SignedGroupChange, StoreError> {
    SignedGroupChange::from_bytes(bytes).map_err(damaged)
}

/// Changes of a group above an epoch.
async fn changes(client: &Object, group: GroupId, after: u64, limit: i64) -> Result<Vec<SignedGroupChange>, Failure> {
    let sql = "SELECT change FROM group_changes WHERE id = $1 AND epoch > $2 ORDER BY epoch LIMIT $3";
    let after = i64::try_from(after).unwrap_or(i64::MAX);
    let rows = client.query(&client.prepare_cached(sql).await?, &[&id(group), &after, &limit]).await?;
    rows.iter().map(|row| Ok(change_of(row.try_get(0)?)?)).collect()
}

/// Notes how far a member has seen the conversation; returns whether that is news.
async fn mark_read(client: &Object, by: AccountId, group: GroupId, conv_seq: u64) -> Result<bool, Failure> {
    // What was seen has come, also to a device that acks later.
    let sql = "UPDATE group_members m SET seen = least($3, g.last), got = greatest(m.got, least($3, g.last))
               FROM groups g WHERE m.account = $1 AND m.id = $2 AND g.id = $2 AND g.receipts
                   AND m.seen < least($3, g.last)";
    let seen = i64::try_from(conv_seq).unwrap_or(i64::MAX);
    Ok(client.execute(&client.prepare_cached(sql).await?, &[&uuid(by), &id(group), &seen]).await? > 0)
}

/// How far a group that has receipts is.
async fn progress(client: &Object, group: GroupId) -> Result<Option<GroupProgress>, Failure> {
    let sql = "SELECT m.account, g.last, m.got >= g.last, m.seen >= g.last
               FROM groups g JOIN group_members m ON m.id = g.id WHERE g.id = $1 AND g.receipts ORDER BY m.account";
    let rows = client.query(&client.prepare_cached(sql).await?, &[&id(group)]).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let mut progress = GroupProgress { members: Vec::new(), conv_seq: big(first, 1)?, delivered: 0, read: 0 };
    for row in &rows {
        progress.members.push(account(row.try_get(0)?));
        progress.delivered += u32::from(row.try_get::<_, bool>(2)?);
        progress.read += u32::from(row.try_get::<_, bool>(3)?);
    }
    Ok(Some(progress))
}

/// Counts rows off that stood for bodies, and erases the bodies that none stands for any more.
pub(super) async fn release(
    transaction: &deadpool_postgres::Transaction<'_>,
    erased: impl IntoIterator<Item = (uuid::Uuid, i64)>,
) -> Result<(), Failure> {
    let mut counts: BTreeMap<(uuid::Uuid, i64), i32> = BTreeMap::new();
    for body in erased {
        *counts.entry(body).or_default() += 1;
    }
    if counts.is_empty() {
        return Ok(());
    }
    let (groups, seqs): (Vec<_>, Vec<_>) = counts.keys().copied().unzip();
    let rows: Vec<_> = counts.values().copied().collect();
    // Locked in order: other nodes count off the same bodies.
    let lock = "SELECT FROM group_bodies b JOIN unnest($1::uuid[], $2::bigint[]) AS k (id, conv_seq)
                    ON b.id = k.id AND b.conv_seq = k.conv_seq ORDER BY b.id, b.conv_seq FOR UPDATE OF b";
    transaction.execute(&transaction.prepare_cached(lock).await?, &[&groups, &seqs]).await?;
    let count = "UPDATE group_bodies b SET rows = b.rows - k.rows
                 FROM unnest($1::uuid[], $2::bigint[], $3::int[]) AS k (id, conv_seq, rows)
                 WHERE b.id = k.id AND b.conv_seq = k.conv_seq";
    transaction.execute(&transaction.prepare_cached(count).await?, &[&groups, &seqs, &rows]).await?;
    let erase = "DELETE FROM group_bodies b USING unnest($1::uuid[], $2::bigint[]) AS k (id, conv_seq)
                 WHERE b.id = k.id AND b.conv_seq = k.conv_seq AND b.rows <= 0";
    transaction.execute(&transaction.prepare_cached(erase).await?, &[&groups, &seqs]).await?;
    Ok(())
}

/// Bodies that erased rows stood for, from two columns.
pub(super) fn body_of(row: &tokio_postgres::Row, column: usize) -> Result<Option<(uuid::Uuid, i64)>, Failure> {
    Ok(row.try_get::<_, Option<uuid::Uuid>>(column)?.zip(row.try_get::<_, Option<i64>>(column + 1)?))
}

/// Does a group's command; returns its outcome and the rows that are there now.
pub(super) async fn work(
    connections: &super::connections::Connections,
    command: &Command,
    again: bool,
) -> Result<(super::turn::Outcome, Vec<crate::store::Committed>), Failure> {
    use super::turn::Outcome;
    let mut client = connections.get().await?;
    match command {
        Command::SendGroup { send, .. } => {
            let (sent, rows) = fan_out::send(&mut client, send, again).await?;
            Ok((Outcome::Appended(sent), rows))
        }
        Command::ChangeGroup { commit, .. } => {
            let (changed, rows) = fan_out::change(&mut client, commit, again).await?;
            Ok((Outcome::Changed(changed), rows))
        }
        _ => unreachable!("only groups' commands come alone"),
    }
}
