//! What every engine promises of channels: charters and entries follow one another, each entry is stored once and goes into
//! one page, and there is nothing by follower.

use futures_util::future::join_all;
use waxwing_protocol::api::ChannelPageView;
use waxwing_protocol::channel::{Author, CHANNEL_PAGE_ENTRIES, Charter, Page, Position, SignedCharter};
use waxwing_protocol::{BlobId, ChannelId};

use super::*;
use crate::store::embedded::tests::Embedded;

type Engine = super::Engine<Embedded>;

const TAIL: Quota = Quota { msgs: 300, bytes: 1 << 20 };

fn channel(n: u8) -> ChannelId {
    ChannelId::from_bytes([n; 16])
}

fn author(n: u8) -> Author {
    Author { account: mailbox(n).account, account_key: PublicKey([n; 32]) }
}

/// A channel's first charter, as the domain passes it on. The store checks no signatures.
fn first(n: u8) -> Charter {
    let Author { account: owner, account_key: owner_key } = author(1);
    Charter {
        channel: channel(n),
        epoch: 1,
        previous: None,
        owner,
        owner_key,
        authors: vec![author(1), author(2)],
        key_id: [1; 32],
        title: Vec::new(),
        after: Position::default(),
        made_at: NOW,
    }
}

fn next(before: &Charter, after: Position) -> Charter {
    Charter { epoch: before.epoch + 1, previous: Some(before.hash()), after, ..before.clone() }
}

fn commit(charter: &Charter) -> CharterCommit {
    let signed = SignedCharter { charter: Base64(charter.to_bytes()), signature: Base64(vec![1; 64]) };
    CharterCommit { signed, charter: charter.clone(), owned_max: 2 }
}

fn append(charter: &Charter, after: Position, n: u64) -> EntryAppend {
    let mut msg_id = [0; 16];
    msg_id[8..].copy_from_slice(&n.to_be_bytes());
    EntryAppend {
        from: mailbox(1),
        msg_id: MsgId::from_bytes(msg_id),
        content_hash: *blake3::hash(&n.to_be_bytes()).as_bytes(),
        channel: charter.channel,
        epoch: charter.epoch,
        after,
        body: Bytes::from(n.to_be_bytes().repeat(10)),
        server_ts: NOW,
        tail: TAIL,
    }
}

fn behind(entry: &EntryAppend) -> Position {
    Position { seq: entry.after.seq + 1, hash: *blake3::hash(&entry.body).as_bytes() }
}

impl Engine {
    async fn charter(&self, charter: &Charter) -> CharterCommitted {
        self.store.put_charter(commit(charter)).await.unwrap()
    }

    /// Appends `count` entries behind `at`.
    async fn write(&self, charter: &Charter, mut at: Position, count: usize) -> Position {
        for _ in 0..count {
            let entry = append(charter, at, at.seq + 1);
            at = behind(&entry);
            assert_eq!(self.store.append_entry(entry).await.unwrap().conv_seq, at.seq);
        }
        at
    }

    /// The page that the entries from the first one held make.
    async fn next_page(&self, n: u8) -> ChannelPageView {
        let record = self.store.channel(channel(n)).await.unwrap().unwrap();
        let entries = self.store.entries(channel(n), record.tail_seq - 1).await.unwrap();
        let (first_seq, last_seq) = (record.tail_seq, record.tail_seq + entries.len() as u64 - 1);
        let entries = entries.into_iter().map(Into::into).collect();
        ChannelPageView { page: record.pages + 1, first_seq, last_seq, blob: Page { first_seq, entries }.blob() }
    }
}

async fn founded() -> (Engine, Charter) {
    let engine = Engine::start().await.unwrap().with_account(1).await.with_account(2).await;
    assert_eq!(engine.charter(&first(7)).await, CharterCommitted::Done);
    (engine, first(7))
}

#[tokio::test]
async fn an_entry_follows_the_last_one_under_the_charter_that_stands_or_is_not_taken() {
    let (engine, charter) = founded().await;
    let (one, rival) = (append(&charter, Position::default(), 1), append(&charter, Position::default(), 2));
    let raced = join_all([&one, &rival].map(|entry| engine.store.append_entry(entry.clone()))).await;
    assert_eq!(raced[0].as_ref().unwrap().conv_seq, 1);
    assert!(matches!(raced[1], Err(EntryError::Conflict { epoch: 1 })), "{raced:?}");
    let at = engine.write(&charter, behind(&one), 2).await;

    let early = next(&charter, behind(&one));
    assert_eq!(engine.charter(&early).await, CharterCommitted::Conflict { epoch: 1 }, "the log has gone on");
    let later = next(&charter, at);
    assert_eq!(engine.charter(&later).await, CharterCommitted::Done);
    let stale = engine.store.append_entry(append(&charter, at, 9)).await;
    assert!(matches!(stale, Err(EntryError::Conflict { epoch: 2 })), "{stale:?}");

    let engine = engine.reopened().await;
    let again = engine.store.append_entry(one.clone()).await.unwrap();
    assert_eq!((again.conv_seq, again.duplicate), (1, true), "also when much has changed since");
    let otherwise = engine.store.append_entry(EntryAppend { content_hash: [0; 32], ..one }).await;
    assert!(matches!(otherwise, Err(EntryError::OtherContent)));
    let at = engine.write(&later, at, 1).await;
    let record = engine.store.channel(channel(7)).await.unwrap().unwrap();
    assert_eq!(record, ChannelRecord { charter: later, head: at, tail_seq: 1, tail_bytes: 4 * 80, pages: 0 });
    assert_eq!(engine.store.entries(channel(7), 0).await.unwrap().len(), 4);
    assert_eq!(engine.store.entries(channel(7), 3).await.unwrap().len(), 1);
    assert!(engine.store.entries(channel(7), 4).await.unwrap().is_empty());
    let unknown = engine.store.append_entry(append(&first(8), Position::default(), 50)).await;
    assert!(matches!(unknown, Err(EntryError::Unknown)));
}

#[tokio::test]
async fn charters_are_kept_and_a_repeat_is_no_conflict() {
    let (engine, charter) = founded().await;
    let later = Charter { authors: vec![author(1)], ..next(&charter, Position::default()) };
    assert_eq!(engine.charter(&charter).await, CharterCommitted::Repeated);
    assert_eq!(engine.charter(&later).await, CharterCommitted::Done);
    for charter in [&charter, &later] {
        assert_eq!(engine.charter(charter).await, CharterCommitted::Repeated);
    }
    let rival = Charter { key_id: [9; 32], ..later.clone() };
    assert_eq!(engine.charter(&rival).await, CharterCommitted::Conflict { epoch: 2 });
    assert_eq!(engine.store.charters(channel(7), 1, 9).await.unwrap(), [commit(&later).signed]);
    assert_eq!(engine.store.charters(channel(7), 0, 9).await.unwrap().len(), 2);
    assert_eq!(engine.store.channels_of(mailbox(1).account).await.unwrap(), [channel(7)]);
    assert_eq!(engine.store.channels_of(mailbox(2).account).await.unwrap(), [], "no author any more");
    assert_eq!(engine.charter(&first(8)).await, CharterCommitted::Done);
    assert_eq!(engine.charter(&first(9)).await, CharterCommitted::TooMany);
}

#[tokio::test]
async fn a_page_takes_its_entries_away_once_and_makes_room() {
    let (engine, charter) = founded().await;
    let at = engine.write(&charter, Position::default(), 300).await;
    let full = engine.store.append_entry(append(&charter, at, 301)).await;
    assert!(matches!(full, Err(EntryError::Full)), "what is in no page is bounded: {full:?}");
    let page = engine.next_page(7).await;
    assert_eq!((page.page, page.first_seq, page.last_seq), (1, 1, CHANNEL_PAGE_ENTRIES as u64));
    for wrong in [
        ChannelPageView { page: 2, ..page },
        ChannelPageView { first_seq: 2, ..page },
        ChannelPageView { last_seq: 301, ..page },
    ] {
        assert_eq!(engine.store.put_page(channel(7), wrong).await.unwrap(), PageCommitted::Conflict, "{wrong:?}");
    }
    assert_eq!(engine.store.put_page(channel(7), page).await.unwrap(), PageCommitted::Done);
    assert_eq!(engine.store.put_page(channel(7), page).await.unwrap(), PageCommitted::Repeated);
    let other = ChannelPageView { blob: BlobId::from_bytes([0; 32]), ..page };
    assert_eq!(engine.store.put_page(channel(7), other).await.unwrap(), PageCommitted::Conflict);
    let at = engine.write(&charter, at, 256).await;
    let engine = engine.reopened().await;
    assert!(engine.store.entries(channel(7), 0).await.unwrap().is_empty());
    let held = engine.store.entries(channel(7), page.last_seq).await.unwrap();
    assert_eq!(held.len(), CHANNEL_PAGE_ENTRIES, "as many as fill a page");
    let second = engine.next_page(7).await;
    assert_eq!(engine.store.put_page(channel(7), second).await.unwrap(), PageCommitted::Done);
    assert_eq!(engine.store.pages(channel(7), 0, 9).await.unwrap(), [page, second]);
    assert_eq!(engine.store.pages(channel(7), 256, 9).await.unwrap(), [second]);
    assert_eq!(engine.store.pages(channel(7), 255, 1).await.unwrap(), [page]);
    assert_eq!(engine.store.pages(channel(7), second.last_seq, 9).await.unwrap(), []);
    assert_eq!(engine.store.entries(channel(7), second.last_seq).await.unwrap().len() as u64, at.seq - second.last_seq);
}

#[tokio::test]
async fn a_deleted_owners_channels_go_with_all_that_is_in_them() {
    let (engine, charter) = founded().await;
    engine.write(&charter, Position::default(), 260).await;
    engine.store.put_page(channel(7), engine.next_page(7).await).await.unwrap();
    assert!(engine.store.delete(mailbox(1).account).await.unwrap());
    assert_eq!(engine.store.channel(channel(7)).await.unwrap(), None);
    let engine = engine.reopened().await;
    while engine.store.sweep(NOW).await.unwrap().more {}
    assert!(engine.store.entries(channel(7), 256).await.unwrap().is_empty());
    assert!(engine.store.charters(channel(7), 0, 9).await.unwrap().is_empty());
    assert!(engine.store.pages(channel(7), 0, 9).await.unwrap().is_empty());
}
