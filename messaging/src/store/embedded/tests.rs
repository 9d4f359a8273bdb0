//! What is the embedded engine's own. The guarantees all engines share are in `suite.rs`.

use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use waxwing_protocol::AccountId;
use waxwing_protocol::frames::Lane;

use super::{EmbeddedStore, EmbeddedStoreError};
use crate::store::suite::{EPOCH, Harness, Heard, account, mailbox, message, receipts, store_suite};
use crate::store::{AckRequest, CommitSink, Directory as _, Held, MailboxStore as _};

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

/// Nobody waits for an ack, so it waits for others; what is asked for after it must see it all the same.
#[tokio::test]
async fn an_ack_that_gathers_with_others_is_in_before_what_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), Arc::new(Heard::default())).unwrap();
    store.register(account(1)).await.unwrap();
    let sent = join_all((1..=40).map(|n| store.append(message(n)))).await;
    assert!(sent.iter().all(Result::is_ok));
    let ack = |up_to| {
        let (lane, ranges, receipts) = (Lane::Normal, Vec::new(), receipts());
        store.ack(AckRequest { mailbox: mailbox(1), lane, up_to, ranges, receipts })
    };
    for n in 1..=40 {
        assert!(ack(n).now_or_never().is_none_or(|done| done.is_ok()));
        let held = Held { epoch: EPOCH + 1, up_to: [0, 0], receipts: receipts() };
        let opened = store.open(mailbox(1), held).await.unwrap().unwrap();
        assert_eq!((opened.lanes[0].acked, opened.lanes[0].waiting), (n, 40 - n));
    }
    // Also when no command follows, and when the last one is the end.
    join_all((41..=80).map(|n| store.append(message(n)))).await;
    join_all((41..=60).map(ack)).await.into_iter().for_each(|done| done.unwrap());
    assert_eq!(store.view(mailbox(1)).await.unwrap().unwrap().lanes[0].acked, 60);
    let last = ack(70);
    store.close().await;
    last.await.unwrap();
    assert!(ack(80).await.is_err(), "after the end nothing is taken");
    assert_eq!(store.view(mailbox(1)).await.unwrap().unwrap().lanes[0].acked, 70);
}
