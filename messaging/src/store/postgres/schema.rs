//! The tables, and how an older database gets them.
//!
//! Several nodes of a new version start at once, beside some of the old. So migrations run under a lock of the
//! database's own, each in one transaction with the number that says it ran, and a node that finds a number it does not
//! know stops before it writes anything.

use deadpool_postgres::Object;
use tracing::info;

use super::connections::Failure;
use crate::store::{StoreError, StoreErrorKind};

/// Every migration, by its number from 1 on. Once released, none is ever changed.
const MIGRATIONS: [&str; 3] =
    [include_str!("migrations/0001.sql"), include_str!("migrations/0002.sql"), include_str!("migrations/0003.sql")];

/// Key of the lock that whoever migrates holds. Advisory locks are a database's own: any number will do.
const LOCK: i64 = 0x6f3a_57c1_88d2_0b4e;

/// Brings the database's tables to what this version knows.
pub(super) async fn migrate(client: &mut Object) -> Result<(), Failure> {
    // Held to the end of the transaction, also when this process dies within it.
    let transaction = client.transaction().await?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await?;
    transaction.batch_execute("CREATE TABLE IF NOT EXISTS waxwing_schema (version int NOT NULL)").await?;
    let found = transaction.query_opt("SELECT max(version) FROM waxwing_schema HAVING count(*) > 0", &[]).await?;
    let found = found.map(|row| row.try_get::<_, i32>(0)).transpose()?.unwrap_or(0);
    let known = MIGRATIONS.len();
    let found = usize::try_from(found).ok().filter(|found| *found <= known).ok_or_else(|| {
        let reason = format_args!("the database has tables of version {found}, newer than this program");
        StoreError::new(StoreErrorKind::Other, reason)
    })?;
    for (sql, version) in MIGRATIONS.iter().zip(1i32..).skip(found) {
        transaction.batch_execute(sql).await?;
        transaction.execute("INSERT INTO waxwing_schema VALUES ($1)", &[&version]).await?;
        info!(version, "the database has this version of the tables now");
    }
    super::directory::commit(transaction).await
}

/// Makes the database `cluster`'s, or sees that it is.
pub(super) async fn claim(client: &mut Object, cluster: &[u8; 32]) -> Result<(), Failure> {
    let id = &cluster[..];
    client.execute("INSERT INTO cluster (id) VALUES ($1) ON CONFLICT DO NOTHING", &[&id]).await?;
    let owner = client.query_one("SELECT id FROM cluster", &[]).await?;
    if owner.try_get::<_, &[u8]>(0)? != id {
        let reason = "the database belongs to a cluster with other secrets: copy owner.key and invite.key from one of \
            its nodes into the data directory, or give this one a database of its own";
        return Err(StoreError::new(StoreErrorKind::Other, reason).into());
    }
    Ok(())
}
