//! What is the embedded engine's own. The guarantees all engines share are in `suite.rs`.

use std::sync::Arc;

use waxwing_protocol::AccountId;

use super::{EmbeddedStore, EmbeddedStoreError};
use crate::store::CommitSink;
use crate::store::suite::{Harness, Heard, store_suite};

/// A store in a directory of its own.
pub(in crate::store) struct Embedded {
    dir: tempfile::TempDir,
}

impl Harness for Embedded {
    const LIVES: u32 = 24;

    type Store = EmbeddedStore;

    async fn start(sink: Arc<dyn CommitSink>) -> Option<(Self, EmbeddedStore)> {
        let dir = tempfile::tempdir().unwrap();
        let store = EmbeddedStore::open(dir.path(), sink).unwrap();
        Some((Self { dir }, store))
    }

    async fn reopen(&self, sink: Arc<dyn CommitSink>) -> EmbeddedStore {
        // The writer thread lets go of the directory when it sees that nobody is left.
        loop {
            match EmbeddedStore::open(self.dir.path(), sink.clone()) {
                Ok(store) => return store,
                Err(EmbeddedStoreError::Locked) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn records_under(&self, store: &EmbeddedStore, account: AccountId) -> usize {
        store.records_under(account)
    }
}

store_suite!(Embedded);

#[tokio::test]
async fn one_process_at_a_time_has_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let _first = EmbeddedStore::open(dir.path(), Arc::new(Heard::default())).unwrap();
    let second = EmbeddedStore::open(dir.path(), Arc::new(Heard::default()));
    assert!(matches!(second, Err(EmbeddedStoreError::Locked)));
}
