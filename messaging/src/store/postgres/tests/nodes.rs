//! Several nodes on one database, and a database that dies.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::Mutex;
use waxwing_protocol::frames::{Class, Lane};
use waxwing_protocol::group::What;

use super::CLUSTER;
use super::server::Server;
use crate::store::postgres::PostgresStore;
use crate::store::suite::groups::{commit, member, one_each, send};
use crate::store::suite::{Heard, NOW, account, mailbox, message, of_class, one_time, receipts};
use crate::store::{
    AckRequest, Append, AppendError, Directory as _, GroupCommitted, GroupStore as _, Held, MailboxStore as _,
    PageRequest, StoreErrorKind, Stored,
};

/// Nodes on one database, with accounts 1 and 2.
async fn nodes<const N: usize>(server: &Server) -> [(PostgresStore, Arc<Heard>); N] {
    let nodes = join_all((0..N).map(|_| async {
        let heard = Arc::new(Heard::default());
        (PostgresStore::open(&server.url(), None, &CLUSTER, heard.clone()).await.unwrap(), heard)
    }));
    let nodes = nodes.await;
    for n in [1, 2] {
        nodes[0].0.register(account(n)).await.unwrap();
    }
    nodes.try_into().ok().unwrap()
}

/// What waits for account 1.
async fn waiting(node: &PostgresStore) -> Vec<(u64, u64)> {
    let request =
        PageRequest { mailbox: mailbox(1), lane: Lane::Normal, after: 0, msgs: 4096, bytes: 1 << 24, now: NOW };
    let mut rows = Vec::new();
    let mut after = 0;
    loop {
        let page = node.read(PageRequest { after, ..request }).await.unwrap();
        let number = |body: &[u8]| u64::from_be_bytes(body.try_into().unwrap());
        rows.extend(page.rows.iter().map(|row| (row.seq, number(&row.body))));
        after = page.up_to;
        if page.end {
            return rows;
        }
    }
}

#[tokio::test]
async fn nodes_that_start_at_once_make_the_tables_once() {
    let Some(server) = Server::start() else { return };
    let nodes = nodes::<4>(&server).await;
    for (node, _) in &nodes {
        assert_eq!(node.account(mailbox(1).account).await.unwrap(), Some(account(1).record));
    }
}

#[tokio::test]
async fn a_send_that_reaches_two_nodes_at_once_is_stored_once() {
    let Some(server) = Server::start() else { return };
    let [(one, _), (other, _)] = nodes(&server).await;
    let sends = (1..=200).flat_map(|n| [one.append(message(n)), other.append(message(n))]);
    let sends = join_all(sends).await;
    for pair in sends.chunks(2) {
        let duplicates = pair.iter().filter(|sent| sent.as_ref().unwrap().duplicate).count();
        assert_eq!(duplicates, 1, "{pair:?}");
    }
    let waiting = waiting(&one).await;
    assert_eq!(waiting.iter().map(|(seq, _)| *seq).collect::<Vec<_>>(), (1..=200).collect::<Vec<_>>());
    assert_eq!(waiting.iter().map(|(_, n)| *n).collect::<BTreeSet<_>>().len(), 200);
    let changed = Append { content_hash: [1; 32], ..message(1) };
    assert!(matches!(other.append(changed).await, Err(AppendError::OtherContent)));
}

/// A reader that has seen a seq has been able to see every lower one, whoever wrote them.
#[tokio::test]
async fn a_mailbox_that_two_nodes_write_to_is_read_without_gaps() {
    let Some(server) = Server::start() else { return };
    let [(one, heard), (other, _)] = nodes(&server).await;
    let writing = async {
        for round in 0..40 {
            let sends = (0..20).map(|n| (round * 20 + n, if n % 2 == 0 { &one } else { &other }));
            join_all(sends.map(|(n, node)| node.append(message(n)))).await.into_iter().for_each(|sent| {
                sent.unwrap();
            });
        }
    };
    let reading = async {
        let mut seen = 0;
        while seen < 800 {
            let request = PageRequest {
                mailbox: mailbox(1),
                lane: Lane::Normal,
                after: seen,
                msgs: 64,
                bytes: 1 << 20,
                now: NOW,
            };
            let page = other.read(request).await.unwrap();
            for row in page.rows {
                assert_eq!(row.seq, seen + 1, "a later row was seen before an earlier one");
                seen = row.seq;
            }
        }
    };
    tokio::join!(writing, reading);
    let told: Vec<_> = heard.0.lock().unwrap().iter().map(|row| row.envelope.seq).collect();
    assert_eq!(told.len(), 400, "a node hears of what it stored");
    assert!(told.is_sorted());
}

#[tokio::test]
async fn prekeys_are_claimed_once_whichever_node_is_asked() {
    let Some(server) = Server::start() else { return };
    let [(one, _), (other, _)] = nodes(&server).await;
    one.add_prekeys(mailbox(1), one_time(0..60), None, NOW).await.unwrap();
    let claims = (0..60).map(|n| if n % 2 == 0 { &one } else { &other }.claim_prekey(mailbox(1), true, NOW));
    let claimed = join_all(claims).await.into_iter().map(|claimed| claimed.unwrap().unwrap().prekey.key.0);
    assert_eq!(claimed.collect::<BTreeSet<_>>().len(), 60);
    assert_eq!(other.claim_prekey(mailbox(1), true, NOW).await.unwrap(), None);
}

/// Acks of two people to each other's messages lock both mailboxes, from two nodes, in both directions at once.
#[tokio::test]
async fn nodes_that_need_the_same_mailboxes_wait_for_one_another_and_not_for_ever() {
    let Some(server) = Server::start() else { return };
    let [(one, _), (other, _)] = nodes(&server).await;
    let there = |n| of_class(Class::Message, n);
    let back = |n| {
        let from_account = bytes::Bytes::copy_from_slice(mailbox(1).account.as_bytes());
        let append = of_class(Class::Message, 10_000 + n);
        let envelope = waxwing_protocol::frames::Envelope { from_account, ..append.envelope };
        Append { from: mailbox(1), to: mailbox(2).account, envelope, ..append }
    };
    for n in 1..=60 {
        let (a, b) = tokio::join!(one.append(there(n)), other.append(back(n)));
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
        let ack = |n, up_to| AckRequest {
            mailbox: mailbox(n),
            lane: Lane::Normal,
            up_to,
            ranges: Vec::new(),
            receipts: receipts(),
        };
        let last = |node: &PostgresStore, n| node.view(mailbox(n));
        let (of_one, of_two) = tokio::join!(last(&one, 1), last(&other, 2));
        let (of_one, of_two) = (of_one.unwrap().unwrap().lanes[0].last, of_two.unwrap().unwrap().lanes[0].last);
        let (a, b) = tokio::join!(other.ack(ack(1, of_one)), one.ack(ack(2, of_two)));
        assert!(a.is_ok() && b.is_ok(), "{a:?} {b:?}");
    }
    let opened = one.open(mailbox(1), Held::default()).await.unwrap().unwrap();
    let again = other.open(mailbox(1), Held::default()).await.unwrap().unwrap();
    assert!(again.generation > opened.generation, "generations grow over nodes");
}

#[tokio::test]
async fn a_database_of_another_cluster_or_of_a_newer_version_is_refused() {
    let Some(server) = Server::start() else { return };
    let [(_one, _)] = nodes(&server).await;
    let open = |cluster: [u8; 32]| {
        let url = server.url();
        async move { PostgresStore::open(&url, None, &cluster, Arc::new(Heard::default())).await.err() }
    };
    assert!(open(CLUSTER).await.is_none());
    let error = open([8; 32]).await.unwrap().to_string();
    assert!(error.contains("other secrets") && error.contains("owner.key"), "{error}");
    server.connect().await.execute("INSERT INTO waxwing_schema VALUES (99)", &[]).await.unwrap();
    let error = open(CLUSTER).await.unwrap().to_string();
    assert!(error.contains("version 99"), "{error}");
}

/// The server is killed again and again amid sends. What was acknowledged is there once, in order; what failed may be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills_of_the_database() {
    let Some(mut server) = Server::start() else { return };
    let [(one, _), (other, _)] = nodes(&server).await;
    let (taken, next, over) = (Mutex::new(BTreeSet::new()), AtomicU64::new(1), AtomicBool::new(false));
    let sending = async |node: &PostgresStore| {
        while !over.load(Ordering::Relaxed) {
            let n = next.fetch_add(1, Ordering::Relaxed);
            let roomy = crate::store::Quota { msgs: 1 << 20, bytes: 1 << 30 };
            loop {
                match node.append(Append { quota: roomy, ..message(n) }).await {
                    Ok(_) => break,
                    // As a client does whose answer does not come: the same send again.
                    Err(AppendError::Store(error)) => assert_eq!(error.kind, StoreErrorKind::Unavailable, "{error}"),
                    Err(other) => panic!("{other:?}"),
                }
            }
            taken.lock().await.insert(n);
        }
    };
    let mut kills = 0;
    let killing = async {
        while kills < 3 {
            let before = taken.lock().await.len();
            // Well under way again.
            while taken.lock().await.len() < before + 50 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            tokio::task::block_in_place(|| server.kill());
            tokio::task::block_in_place(|| server.restart());
            kills += 1;
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(sending(&one), sending(&one), sending(&other), sending(&other), killing);
    let waiting = waiting(&other).await;
    let mut times = BTreeMap::new();
    for (seq, n) in &waiting {
        *times.entry(*n).or_insert(0) += 1;
        assert!(*seq as usize <= waiting.len(), "seqs are dense");
    }
    let taken = taken.into_inner();
    assert!(kills == 3 && taken.len() >= 150);
    let lost: Vec<_> = taken.iter().filter(|n| !times.contains_key(n)).collect();
    assert!(lost.is_empty(), "of {} acknowledged: {lost:?}", taken.len());
    assert!(times.values().all(|times| *times == 1), "stored twice");
}

/// Whichever node takes a message to a group gives it the next place; what is acked at one is swept at another.
#[tokio::test]
async fn a_group_that_two_nodes_write_to_has_one_order_and_leaves_nothing() {
    let Some(server) = Server::start() else { return };
    let [(one, heard), (other, _)] = nodes(&server).await;
    let founding = commit(None, What::Found { members: [1, 2].map(member).to_vec(), profile: None });
    let founded = join_all([one.change_group(founding.clone()), other.change_group(founding.clone())]).await;
    let founded: BTreeSet<_> = founded.into_iter().map(|done| format!("{:?}", done.unwrap())).collect();
    assert_eq!(founded, BTreeSet::from(["Done".to_owned(), "Repeated".to_owned()]));
    let state = founding.after;
    let hash = one_each(&state);
    let sends =
        (1..=50).flat_map(|n| [(&one, send(mailbox(1), n, &state, hash)), (&other, send(mailbox(2), n, &state, hash))]);
    let sends: Vec<_> = sends.collect();
    let sent = join_all(sends.iter().map(|(node, send)| node.send_group(send.clone()))).await;
    let places: BTreeSet<_> = sent.iter().map(|sent| sent.as_ref().unwrap().conv_seq).collect();
    assert_eq!(places, (2..=101).collect(), "each place once");
    for ((_, send), sent) in sends.iter().zip(&sent) {
        let again = one.send_group(send.clone()).await.unwrap();
        assert_eq!((again.conv_seq, again.duplicate), (sent.as_ref().unwrap().conv_seq, true));
    }
    // Of two changes at once one is made, and both nodes know which.
    let changes = [What::Receipts(true), What::Profile(Some([5; 32]))].map(|what| commit(Some(&state), what));
    let made = join_all([one.change_group(changes[0].clone()), other.change_group(changes[1].clone())]).await;
    let made: Vec<_> = made.into_iter().map(Result::unwrap).collect();
    let done = made.iter().position(|made| *made == GroupCommitted::Done).unwrap();
    assert_eq!(made[1 - done], GroupCommitted::Conflict { epoch: 2 });
    for node in [&one, &other] {
        assert_eq!(node.group(state.group).await.unwrap().unwrap().state, changes[done].after);
    }

    assert!(heard.0.lock().unwrap().iter().any(|row| row.envelope.conv_seq > 1), "who is connected is told");
    for (reader, n) in [(&one, 2), (&other, 1)] {
        let request =
            PageRequest { mailbox: mailbox(n), lane: Lane::Normal, after: 0, msgs: 4096, bytes: 1 << 24, now: NOW };
        let rows = reader.read(request).await.unwrap().rows;
        assert_eq!(rows.len(), 52, "the founding, fifty messages of the other, the change");
        assert!(rows.iter().all(|row| !row.body.is_empty()));
        assert!(rows.is_sorted_by(|a, b| a.seq < b.seq && a.conv_seq < b.conv_seq), "one order for all");
        let up_to = rows.last().unwrap().seq;
        let (lane, ranges) = (Lane::Normal, Vec::new());
        let ack = AckRequest { mailbox: mailbox(n), lane, up_to, ranges, receipts: receipts() };
        // At the other node than it was read from.
        let acker = if n == 1 { &one } else { &other };
        acker.ack(ack).await.unwrap();
    }
    for node in [&one, &other] {
        while node.sweep(NOW).await.unwrap().more {}
    }
    assert_eq!(one.stored().await.unwrap(), Stored::default());
}

/// Receipts of a group count who has got what, at whichever node.
#[tokio::test]
async fn how_far_a_group_is_is_counted_over_all_nodes() {
    let Some(server) = Server::start() else { return };
    let [(one, _), (other, _)] = nodes(&server).await;
    let founding = commit(None, What::Found { members: [1, 2].map(member).to_vec(), profile: None });
    one.change_group(founding.clone()).await.unwrap();
    assert_eq!(one.progress(founding.after.group).await.unwrap(), None, "it has no receipts");
    let on = commit(Some(&founding.after), What::Receipts(true));
    one.change_group(on.clone()).await.unwrap();
    let (state, group) = (&on.after, on.after.group);
    let place = one.send_group(send(mailbox(1), 1, state, one_each(state))).await.unwrap().conv_seq;
    let far = || async { other.progress(group).await.unwrap().map(|it| (it.conv_seq, it.delivered, it.read)).unwrap() };
    assert_eq!(far().await, (place, 0, 0));
    let ack = |n: u8, up_to| {
        let (lane, ranges) = (Lane::Normal, Vec::new());
        AckRequest { mailbox: mailbox(n), lane, up_to, ranges, receipts: receipts() }
    };
    other.ack(ack(2, 2)).await.unwrap();
    assert_eq!(far().await, (place, 0, 0), "what came before the message");
    other.ack(ack(2, 3)).await.unwrap();
    assert_eq!(far().await, (place, 1, 0));
    one.mark_read(mailbox(1).account, group, place + 100).await.unwrap();
    one.mark_read(mailbox(9).account, group, place).await.unwrap();
    assert_eq!(far().await, (place, 2, 1), "what was seen has come, and a stranger counts for nothing");
}
