//! What is PostgreSQL's own: several nodes, and a database that goes. The guarantees all engines share are in `suite.rs`.

mod nodes;
mod server;

use std::sync::Arc;

use waxwing_protocol::AccountId;

use self::server::Server;
use super::PostgresStore;
use crate::store::CommitSink;
use crate::store::suite::{Harness, store_suite};

/// Whose database it is.
const CLUSTER: [u8; 32] = [7; 32];

/// A store on a server of its own.
struct OnPostgres {
    server: Server,
}

impl Harness for OnPostgres {
    const LIVES: u32 = 6;

    type Store = PostgresStore;

    async fn start(sink: Arc<dyn CommitSink>) -> Option<(Self, PostgresStore)> {
        let server = Server::start()?;
        let store = PostgresStore::open(&server.url(), None, &CLUSTER, sink).await.unwrap();
        Some((Self { server }, store))
    }

    async fn reopen(&self, sink: Arc<dyn CommitSink>) -> PostgresStore {
        PostgresStore::open(&self.server.url(), None, &CLUSTER, sink).await.unwrap()
    }

    async fn records_under(&self, _store: &PostgresStore, account: AccountId) -> usize {
        let client = self.server.connect().await;
        let sql = "SELECT table_name, column_name FROM information_schema.columns
                   WHERE table_schema = 'public' AND data_type = 'uuid' AND table_name !~ '_[0-9]$'";
        let mut found = 0;
        for row in client.query(sql, &[]).await.unwrap() {
            let (table, column): (String, String) = (row.get(0), row.get(1));
            let sql = format!("SELECT count(*) FROM {table} WHERE {column} = $1");
            let count: i64 = client.query_one(&sql, &[&super::values::uuid(account)]).await.unwrap().get(0);
            found += usize::try_from(count).unwrap();
        }
        found
    }
}

store_suite!(OnPostgres);
