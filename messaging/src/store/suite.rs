//! The engine suite: the guarantees of [`MailboxStore`] and [`Directory`], as tests that every engine passes.
//!
//! `store_suite!(Harness)` in an engine's own tests makes a test of each function here.

mod channels;
pub(crate) mod groups;
mod sends;
mod targets;

pub(crate) use self::groups::{
    a_body_is_stored_once_with_a_small_row_for_each_device_and_goes_with_the_last_of_them,
    a_groups_messages_reach_whoever_is_in_it_and_leave_nothing,
    a_send_is_checked_against_members_epoch_and_devices_and_a_repeat_is_the_same_send,
    of_changes_that_race_one_is_made_and_a_repeat_of_it_is_no_conflict,
    one_full_mailbox_silences_nobody_and_a_deleted_account_leaves_nothing,
    whose_devices_changed_is_told_as_long_as_it_is_remembered,
};
pub(crate) use self::sends::*;
pub(crate) use self::targets::*;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use waxwing_protocol::api::ONE_TIME_KEYS_MAX;
use waxwing_protocol::frames::{Class, Envelope, Lane};
use waxwing_protocol::identity::{Base64, PrekeyKind, PublicKey, SignedDeviceList, SignedPrekey, Suite};
use waxwing_protocol::{AccountId, DeviceId, MsgId, Timestamp};

use super::*;

pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(crate) const EPOCH: u64 = 77;
pub(crate) const REG_ID: u32 = 5;

/// What an engine told its sink.
#[derive(Default)]
pub(crate) struct Heard(pub(crate) Mutex<Vec<Committed>>);

impl CommitSink for Heard {
    fn committed(&self, row: Committed) {
        self.0.lock().unwrap().push(row);
    }

    fn appended(&self, _: CommittedEntry) {}

    fn progressed(&self, _: GroupId) {}
}

/// An engine under test, in a place of its own.
pub(crate) trait Harness: Sized + Send {
    /// Random lives of a mailbox that are tried.
    const LIVES: u32;

    type Store: MailboxStore + Directory + GroupStore + WakeTargets;

    /// An empty store; `None` when what it stores to is not installed, which it says.
    fn start(sink: Arc<dyn CommitSink>) -> impl Future<Output = Option<(Self, Self::Store)>> + Send;

    /// What the store left, opened again after nobody has it any more.
    fn reopen(&self, sink: Arc<dyn CommitSink>) -> impl Future<Output = Self::Store> + Send;

    /// Records that name an account, wherever they are.
    fn records_under(&self, store: &Self::Store, account: AccountId) -> impl Future<Output = usize> + Send;
}

macro_rules! store_suite {
    ($harness:ty) => {
        $crate::store::suite::store_suite!($harness:
            rows_come_back_in_the_order_of_their_seqs_and_survive_a_reopen,
            a_page_holds_what_was_asked_for_and_says_where_it_ends,
            a_repeated_send_is_stored_once_even_when_both_wait_for_the_same_commit,
            message_ids_are_each_senders_own,
            a_message_for_the_wrong_devices_is_not_stored_and_the_difference_is_told,
            the_senders_own_device_is_not_among_its_accounts_recipients,
            a_full_mailbox_refuses_until_something_was_acked,
            acked_rows_are_gone_after_a_reopen_and_unacked_ones_are_there,
            what_a_client_holds_counts_as_acked_only_in_the_same_epoch,
            expired_rows_are_skipped_at_once_and_swept_later,
            sends_are_remembered_for_two_days,
            a_send_is_remembered_over_restarts_whatever_time_its_id_tells,
            what_a_deleted_account_sent_is_not_taken_for_its_successors,
            a_closed_store_refuses_and_has_kept_what_it_took,
            registering_is_idempotent_and_handles_and_ids_are_unique,
            of_many_who_want_one_handle_at_once_one_gets_it,
            fifty_claims_at_once_get_fifty_different_keys_and_none_comes_back,
            prekeys_are_counted_once_bounded_and_handed_out_oldest_first,
            an_ack_tells_the_sender_in_one_row_as_long_as_that_waits,
            nobody_is_told_of_what_is_no_message_or_expired_or_from_a_stranger_or_not_to_be_told,
            a_message_with_a_coalesce_key_replaces_the_one_that_waits_also_within_one_commit,
            what_a_deleted_account_leaves_is_erased_also_when_a_crash_comes_between,
            a_target_stays_over_a_restart_and_goes_with_its_device_and_its_account,
            a_body_is_stored_once_with_a_small_row_for_each_device_and_goes_with_the_last_of_them,
            a_send_is_checked_against_members_epoch_and_devices_and_a_repeat_is_the_same_send,
            of_changes_that_race_one_is_made_and_a_repeat_of_it_is_no_conflict,
            whose_devices_changed_is_told_as_long_as_it_is_remembered,
            one_full_mailbox_silences_nobody_and_a_deleted_account_leaves_nothing,
            of_two_devices_at_one_place_the_later_has_it,
            a_target_that_was_set_again_is_not_removed_for_what_was_said_of_the_one_before,
        );

        /// Whatever happens, the mailbox shows exactly what was taken and not acked, in order.
        #[test]
        fn a_mailbox_holds_what_a_list_would() {
            $crate::store::suite::a_mailbox_holds_what_a_list_would::<$harness>();
        }

        #[test]
        fn a_groups_messages_reach_whoever_is_in_it_and_leave_nothing() {
            $crate::store::suite::a_groups_messages_reach_whoever_is_in_it_and_leave_nothing::<$harness>();
        }
    };
    ($harness:ty: $($test:ident,)+) => {
        $(#[tokio::test]
        async fn $test() {
            if let Some(engine) = $crate::store::suite::Engine::<$harness>::start().await {
                $crate::store::suite::$test(engine).await;
            }
        })+
    };
}
pub(crate) use store_suite;

/// An engine, and what it told of.
pub(crate) struct Engine<H: Harness> {
    harness: H,
    heard: Arc<Heard>,
    store: H::Store,
}

impl<H: Harness> Engine<H> {
    /// An empty one, if it is installed.
    pub(crate) async fn start() -> Option<Self> {
        let heard = Arc::new(Heard::default());
        let (harness, store) = H::start(heard.clone()).await?;
        Some(Self { harness, heard, store })
    }

    /// Another one.
    async fn another(&self) -> Self {
        Self::start().await.expect("what was installed a moment ago")
    }

    /// Drops the engine as it is, and opens what it left.
    async fn reopened(self) -> Self {
        let Self { harness, heard, store } = self;
        drop(store);
        let store = harness.reopen(heard.clone()).await;
        Self { harness, heard, store }
    }

    async fn with_account(self, n: u8) -> Self {
        assert_eq!(self.store.register(account(n)).await.unwrap(), Registered::Created);
        self
    }

    async fn page(&self, after: u64, msgs: usize, now: Timestamp) -> Page {
        let request = PageRequest { mailbox: mailbox(1), lane: Lane::Normal, after, msgs, bytes: 1 << 20, now };
        self.store.read(request).await.unwrap()
    }

    async fn seqs(&self) -> Vec<u64> {
        self.page(0, 1000, NOW).await.rows.iter().map(|row| row.seq).collect()
    }

    async fn ack(&self, up_to: u64, ranges: &[(u64, u64)]) {
        let ack = AckRequest {
            mailbox: mailbox(1),
            lane: Lane::Normal,
            up_to,
            ranges: ranges.to_vec(),
            receipts: receipts(),
        };
        self.store.ack(ack).await.unwrap();
    }

    async fn open(&self, held: Held) -> Opened {
        self.store.open(mailbox(1), held).await.unwrap().unwrap()
    }

    /// Sweeps until nothing is left to do.
    async fn sweep(&self, now: Timestamp) -> Swept {
        let mut total = Swept::default();
        loop {
            let swept = self.store.sweep(now).await.unwrap();
            total.rows += swept.rows;
            total.sends += swept.sends;
            if !swept.more {
                return total;
            }
        }
    }
}

pub(crate) fn receipts() -> ReceiptRows {
    ReceiptRows {
        now: NOW,
        expires_at: NOW.plus(Duration::from_secs(1000)),
        quota: Quota { msgs: 1000, bytes: 1 << 20 },
    }
}

pub(crate) fn mailbox(n: u8) -> DeviceAddress {
    DeviceAddress { account: AccountId::from_bytes([n; 16]), device: DeviceId::FIRST }
}

pub(crate) fn account(n: u8) -> NewAccount {
    let record = AccountRecord {
        account: AccountId::from_bytes([n; 16]),
        handle: format!("account-{n}").parse().unwrap(),
        account_key: PublicKey([n; 32]),
        device_list: SignedDeviceList { list: Base64(vec![n]), signature: Base64(vec![n; 64]) },
    };
    NewAccount { record, device: DeviceId::FIRST, reg_id: REG_ID, token_hash: [n; 32], epoch: EPOCH, invite: None }
}

/// Message `n` of account 2 to account 1.
pub(crate) fn message(n: u64) -> Append {
    let mut msg_id = [0; 16];
    msg_id[8..].copy_from_slice(&n.to_be_bytes());
    let body = Body { device: DeviceId::FIRST, reg_id: REG_ID, ciphertext: Bytes::from(n.to_be_bytes().to_vec()) };
    Append {
        from: mailbox(2),
        msg_id: MsgId::from_bytes(msg_id),
        content_hash: *blake3::hash(&n.to_be_bytes()).as_bytes(),
        to: mailbox(1).account,
        bodies: vec![body],
        absent: Vec::new(),
        lane: Lane::Normal,
        coalesce_key: Bytes::new(),
        introduces: true,
        envelope: Envelope {
            msg_id: Bytes::copy_from_slice(&msg_id),
            server_ts: NOW.as_millis() + n,
            expires_at: NOW.plus(Duration::from_secs(1000)).as_millis(),
            ..Envelope::default()
        },
        quota: Quota { msgs: 1000, bytes: 1 << 20 },
    }
}

pub(crate) fn prekey(n: u8, kind: PrekeyKind) -> SignedPrekey {
    SignedPrekey { suite: Suite::OlmV1, kind, key: PublicKey([n; 32]), signature: Base64(vec![n; 64]) }
}

pub(crate) fn one_time(range: std::ops::Range<u8>) -> Vec<SignedPrekey> {
    range.map(|n| prekey(n, PrekeyKind::OneTime)).collect()
}

pub(crate) async fn rows_come_back_in_the_order_of_their_seqs_and_survive_a_reopen<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    // Not awaited one by one: place in line is taken by the call.
    let sends: Vec<_> = (1..=20).map(|n| engine.store.append(message(n))).collect();
    for (sent, n) in join_all(sends).await.into_iter().zip(1..) {
        let server_ts = Timestamp::from_millis(NOW.as_millis() + n);
        assert_eq!(sent.unwrap(), Appended { server_ts, duplicate: false, conv_seq: 0 });
    }
    let heard: Vec<_> = {
        let heard = engine.heard.0.lock().unwrap();
        heard.iter().map(|row| (row.envelope.seq, row.envelope.prev_seq)).collect()
    };
    assert_eq!(heard, (1..=20).map(|seq| (seq, seq - 1)).collect::<Vec<_>>());

    let engine = engine.reopened().await;
    let page = engine.page(0, 1000, NOW).await;
    assert!(page.end);
    for (row, n) in page.rows.iter().zip(1u64..) {
        assert_eq!((row.seq, &row.body[..]), (n, &n.to_be_bytes()[..]));
    }
    assert_eq!(page.rows.len(), 20);
}

pub(crate) async fn a_page_holds_what_was_asked_for_and_says_where_it_ends<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    for n in 1..=5 {
        engine.store.append(message(n)).await.unwrap();
    }
    let page = engine.page(1, 2, NOW).await;
    assert_eq!((page.rows.len(), page.up_to, page.end), (2, 3, false));
    let page = engine.page(3, 2, NOW).await;
    assert_eq!((page.rows.len(), page.up_to, page.end), (2, 5, true));
    let page = engine.page(5, 2, NOW).await;
    assert_eq!((page.rows.len(), page.up_to, page.end), (0, 5, true));
    let request = PageRequest { mailbox: mailbox(1), lane: Lane::Normal, after: 0, msgs: 9, bytes: 20, now: NOW };
    assert_eq!(engine.store.read(request).await.unwrap().rows.len(), 2, "8 bytes each");
    let small = PageRequest { bytes: 1, ..request };
    assert_eq!(engine.store.read(small).await.unwrap().rows.len(), 1, "one always comes");
    let other_lane = PageRequest { lane: Lane::Urgent, ..request };
    assert!(engine.store.read(other_lane).await.unwrap().rows.is_empty());
}

pub(crate) async fn a_repeated_send_is_stored_once_even_when_both_wait_for_the_same_commit<H: Harness>(
    engine: Engine<H>,
) {
    let engine = engine.with_account(1).await;
    let repeat = |n| Append { envelope: Envelope { server_ts: 1, ..message(n).envelope }, ..message(n) };
    // Many pairs in line at once: most of them share a commit.
    let pairs = (1..=100).map(|n| (engine.store.append(message(n)), engine.store.append(repeat(n))));
    let pairs: Vec<_> = pairs.collect();
    for ((first, second), n) in pairs.into_iter().zip(1..) {
        let server_ts = Timestamp::from_millis(NOW.as_millis() + n);
        assert_eq!(first.await.unwrap(), Appended { server_ts, duplicate: false, conv_seq: 0 });
        assert_eq!(second.await.unwrap(), Appended { server_ts, duplicate: true, conv_seq: 0 });
    }
    assert_eq!(engine.seqs().await, (1..=100).collect::<Vec<_>>());

    let engine = engine.reopened().await;
    let server_ts = Timestamp::from_millis(NOW.as_millis() + 1);
    assert_eq!(engine.store.append(repeat(1)).await.unwrap(), Appended { server_ts, duplicate: true, conv_seq: 0 });
    let other = Append { content_hash: [9; 32], ..repeat(1) };
    assert!(matches!(engine.store.append(other).await, Err(AppendError::OtherContent)));
    assert_eq!(engine.seqs().await.len(), 100);
}

/// The same id by another device is another message.
pub(crate) async fn message_ids_are_each_senders_own<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    engine.store.append(message(1)).await.unwrap();
    let other = Append { from: mailbox(3), content_hash: [9; 32], ..message(1) };
    assert!(!engine.store.append(other).await.unwrap().duplicate);
    assert_eq!(engine.seqs().await, [1, 2]);
}

pub(crate) async fn a_message_for_the_wrong_devices_is_not_stored_and_the_difference_is_told<H: Harness>(
    engine: Engine<H>,
) {
    let engine = engine.with_account(1).await;
    let second = DeviceId::new(2).unwrap();
    let body = message(1).bodies[0].clone();
    let wrong = Append { bodies: vec![Body { device: second, ..body.clone() }], ..message(1) };
    match engine.store.append(wrong).await {
        Err(AppendError::DeviceMismatch { missing, extra }) => {
            assert_eq!((missing, extra), (vec![DeviceId::FIRST], vec![second]));
        }
        other => panic!("{other:?}"),
    }
    let stale = Append { bodies: vec![Body { reg_id: REG_ID + 1, ..body }], ..message(1) };
    match engine.store.append(stale).await {
        Err(AppendError::StaleDevices { stale }) => assert_eq!(stale, [DeviceId::FIRST]),
        other => panic!("{other:?}"),
    }
    let nobody = Append { to: mailbox(9).account, ..message(1) };
    assert!(matches!(engine.store.append(nobody).await, Err(AppendError::UnknownAccount)));
    assert!(engine.seqs().await.is_empty());
    // The id is not used up: the corrected message goes under it.
    assert!(!engine.store.append(message(1)).await.unwrap().duplicate);
}

pub(crate) async fn the_senders_own_device_is_not_among_its_accounts_recipients<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    let to_self = Append { from: mailbox(1), bodies: Vec::new(), ..message(1) };
    assert!(engine.store.append(to_self).await.is_ok());
    let named = Append { from: mailbox(1), ..message(2) };
    assert!(matches!(engine.store.append(named).await, Err(AppendError::DeviceMismatch { .. })));
}

pub(crate) async fn a_full_mailbox_refuses_until_something_was_acked<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    let by_count = |n| Append { quota: Quota { msgs: 2, bytes: 1000 }, ..message(n) };
    engine.store.append(by_count(1)).await.unwrap();
    engine.store.append(by_count(2)).await.unwrap();
    assert!(matches!(engine.store.append(by_count(3)).await, Err(AppendError::MailboxFull { .. })));
    let by_bytes = |n| Append { quota: Quota { msgs: 100, bytes: 23 }, ..message(n) };
    assert!(matches!(engine.store.append(by_bytes(3)).await, Err(AppendError::MailboxFull { .. })));
    engine.ack(1, &[]).await;
    assert!(engine.store.append(by_count(3)).await.is_ok());
    assert!(matches!(engine.store.append(by_bytes(4)).await, Err(AppendError::MailboxFull { .. })));
    engine.ack(2, &[]).await;
    assert!(engine.store.append(by_bytes(4)).await.is_ok());
}

pub(crate) async fn acked_rows_are_gone_after_a_reopen_and_unacked_ones_are_there<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    for n in 1..=9 {
        engine.store.append(message(n)).await.unwrap();
    }
    engine.ack(3, &[(5, 6), (8, 8)]).await;
    assert_eq!(engine.seqs().await, [4, 7, 9]);
    let engine = engine.reopened().await;
    assert_eq!(engine.seqs().await, [4, 7, 9]);
    engine.ack(4, &[]).await;
    assert_eq!(engine.seqs().await, [7, 9]);
    assert!(engine.sweep(NOW).await.rows >= 3, "4 to 6, and what did not go with its ack");
    assert_eq!(engine.seqs().await, [7, 9], "sweeping changes nothing that can be read");
    engine.ack(u64::MAX, &[]).await;
    assert_eq!(engine.sweep(NOW).await.rows, 3);
    engine.store.append(message(10)).await.unwrap();
    assert_eq!(engine.seqs().await, [10], "seqs go on where they were");
}

pub(crate) async fn what_a_client_holds_counts_as_acked_only_in_the_same_epoch<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    for n in 1..=5 {
        engine.store.append(message(n)).await.unwrap();
    }
    let opened = engine.open(Held { epoch: EPOCH + 1, up_to: [5, 0], receipts: receipts() }).await;
    assert_eq!(opened.lanes[0], LaneView { acked: 0, last: 5, waiting: 5 });
    let again = engine.open(Held { epoch: EPOCH, up_to: [6, 0], receipts: receipts() }).await;
    assert_eq!(again.lanes[0].acked, 0, "nobody can hold what was never given");
    assert!(again.generation > opened.generation);
    let engine = engine.reopened().await;
    let opened = engine.open(Held { epoch: EPOCH, up_to: [3, 0], receipts: receipts() }).await;
    assert_eq!(opened.lanes[0], LaneView { acked: 3, last: 5, waiting: 2 });
    assert!(opened.generation > again.generation, "generations grow over restarts");
    assert_eq!(opened.epoch, EPOCH);
    assert_eq!(engine.store.open(mailbox(9), Held::default()).await.unwrap(), None);
}

pub(crate) async fn expired_rows_are_skipped_at_once_and_swept_later<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    let short = |n| {
        let message = message(n);
        let expires_at = NOW.plus(Duration::from_secs(10)).as_millis();
        Append { envelope: Envelope { expires_at, ..message.envelope }, ..message }
    };
    for n in [1, 2] {
        engine.store.append(short(n)).await.unwrap();
    }
    engine.store.append(message(3)).await.unwrap();
    engine.store.append(short(4)).await.unwrap();
    let later = NOW.plus(Duration::from_secs(11));
    let page = engine.page(0, 100, later).await;
    assert_eq!(page.rows.iter().map(|row| row.seq).collect::<Vec<_>>(), [3]);
    assert_eq!((page.up_to, page.end), (4, true));
    assert_eq!(engine.seqs().await, [1, 2, 3, 4], "by a clock that has not moved nothing is lost");
    assert_eq!(engine.sweep(later).await.rows, 2, "1 and 2; 4 lies behind a live row");
    assert_eq!(engine.seqs().await, [3, 4]);
}

pub(crate) async fn sends_are_remembered_for_two_days<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    engine.store.append(message(1)).await.unwrap();
    let two_days = NOW.plus(Duration::from_secs(48 * 60 * 60));
    assert_eq!(engine.sweep(two_days).await.sends, 0);
    assert!(engine.store.append(message(1)).await.unwrap().duplicate);
    let three_days = NOW.plus(Duration::from_secs(72 * 60 * 60));
    assert_eq!(engine.sweep(three_days).await.sends, 1);
    assert!(!engine.store.append(message(1)).await.unwrap().duplicate);
}

pub(crate) async fn a_closed_store_refuses_and_has_kept_what_it_took<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    let sent = engine.store.append(message(1));
    engine.store.close().await;
    sent.await.unwrap();
    match engine.store.append(message(2)).await {
        Err(AppendError::Store(error)) => assert_eq!(error.kind, StoreErrorKind::Unavailable),
        other => panic!("{other:?}"),
    }
    engine.store.close().await;
    assert_eq!(engine.reopened().await.seqs().await, [1]);
}

pub(crate) async fn registering_is_idempotent_and_handles_and_ids_are_unique<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    assert_eq!(engine.store.register(account(1)).await.unwrap(), Registered::Repeated);
    let other_token = NewAccount { token_hash: [9; 32], ..account(1) };
    assert_eq!(engine.store.register(other_token).await.unwrap(), Registered::AccountTaken);
    let mut same_handle = account(2);
    same_handle.record.handle = account(1).record.handle;
    assert_eq!(engine.store.register(same_handle).await.unwrap(), Registered::HandleTaken);
    let engine = engine.reopened().await;
    let record = account(1).record;
    assert_eq!(engine.store.account(record.account).await.unwrap(), Some(record.clone()));
    assert_eq!(engine.store.account_by_handle(record.handle.clone()).await.unwrap(), Some(record));
    let device = DeviceRecord { token_hash: [1; 32], next_token_hash: None, reg_id: REG_ID };
    assert_eq!(engine.store.device(mailbox(1)).await.unwrap(), Some(device));
    assert_eq!(engine.store.device(mailbox(2)).await.unwrap(), None);
}

pub(crate) async fn of_many_who_want_one_handle_at_once_one_gets_it<H: Harness>(engine: Engine<H>) {
    let wanted = (1..=20).map(|n| {
        let mut new = account(n);
        new.record.handle = "wanted".parse().unwrap();
        engine.store.register(new)
    });
    let outcomes: Vec<_> = join_all(wanted).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Registered::Created).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Registered::HandleTaken).count(), 19);
}

pub(crate) async fn fifty_claims_at_once_get_fifty_different_keys_and_none_comes_back<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    let fallback = prekey(200, PrekeyKind::Fallback);
    let held = engine.store.add_prekeys(mailbox(1), one_time(0..50), Some(fallback.clone()), NOW).await.unwrap();
    assert_eq!(held, PrekeysHeld { one_time: 50, fallback: true });
    let claims = (0..50).map(|_| engine.store.claim_prekey(mailbox(1), true, NOW));
    let mut keys: Vec<_> = join_all(claims).await.into_iter().map(|claim| claim.unwrap().unwrap().prekey).collect();
    keys.sort_by_key(|key| key.key.0);
    assert_eq!(keys, one_time(0..50));

    let engine = engine.reopened().await;
    let claimed = engine.store.claim_prekey(mailbox(1), true, NOW).await.unwrap().unwrap();
    assert_eq!(claimed, Claimed { prekey: fallback, one_time_left: 0 });
    // The device repeats an upload whose answer it lost: used keys stay used.
    let held = engine.store.add_prekeys(mailbox(1), one_time(0..51), None, NOW).await.unwrap();
    assert_eq!(held, PrekeysHeld { one_time: 1, fallback: true });
}

pub(crate) async fn prekeys_are_counted_once_bounded_and_handed_out_oldest_first<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await;
    engine.store.add_prekeys(mailbox(1), one_time(0..60), None, NOW).await.unwrap();
    let held = engine.store.add_prekeys(mailbox(1), one_time(30..130), None, NOW).await.unwrap();
    assert_eq!(held, PrekeysHeld { one_time: ONE_TIME_KEYS_MAX, fallback: false });
    assert_eq!(engine.store.prekeys_held(mailbox(1)).await.unwrap(), held);
    for n in 0..3 {
        let claimed = engine.store.claim_prekey(mailbox(1), true, NOW).await.unwrap().unwrap();
        assert_eq!(claimed.prekey, prekey(n, PrekeyKind::OneTime));
    }
    assert_eq!(engine.store.claim_prekey(mailbox(1), false, NOW).await.unwrap(), None, "no fallback key is there");
    assert_eq!(engine.store.claim_prekey(mailbox(9), true, NOW).await.unwrap(), None);
}

/// Which of two senders sends message `n`.
fn sender(n: u64) -> DeviceAddress {
    if n.is_multiple_of(2) { mailbox(2) } else { mailbox(3) }
}

/// One step of a mailbox's life.
#[derive(Clone, Debug)]
enum Step {
    /// So many messages by two senders, in line together.
    Race(u64),
    AckUpTo(u64),
    AckRange(u64, u64),
    Repeat,
    Sweep,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..12).prop_map(Step::Race),
        3 => (0u64..60).prop_map(Step::AckUpTo),
        2 => (0u64..60, 0u64..8).prop_map(|(first, more)| Step::AckRange(first, first + more)),
        1 => Just(Step::Repeat),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

/// Whatever happens, the mailbox shows exactly what was taken and not acked, in order.
pub(crate) fn a_mailbox_holds_what_a_list_would<H: Harness>() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lives = prop::collection::vec(step(), 1..25);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(H::LIVES) }, |(steps in lives)| {
        runtime.block_on(async {
            let Some(engine) = Engine::<H>::start().await else { return };
            let mut engine = engine.with_account(1).await;
            // The model: what each seq, from 1 on, should hold, and whether it is acked.
            let mut model: Vec<(Bytes, bool)> = Vec::new();
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Race(count) => {
                        let sends: Vec<_> = (next..next + count).map(|n| {
                            model.push((message(n).bodies[0].ciphertext.clone(), false));
                            engine.store.append(Append { from: sender(n), ..message(n) })
                        }).collect();
                        next += count;
                        for sent in join_all(sends).await {
                            assert!(!sent.unwrap().duplicate);
                        }
                    }
                    Step::AckUpTo(up_to) => {
                        engine.ack(up_to, &[]).await;
                        model.iter_mut().take(up_to as usize).for_each(|(_, acked)| *acked = true);
                    }
                    Step::AckRange(first, last) => {
                        engine.ack(0, &[(first, last)]).await;
                        let first = first.max(1) as usize;
                        let some = model.iter_mut().take(last as usize).skip(first - 1);
                        some.for_each(|(_, acked)| *acked = true);
                    }
                    Step::Repeat if next > 0 => {
                        let n = next - 1;
                        let again = engine.store.append(Append { from: sender(n), ..message(n) }).await.unwrap();
                        assert!(again.duplicate);
                    }
                    Step::Repeat => {}
                    Step::Sweep => { engine.sweep(NOW).await; }
                    Step::Reopen => engine = engine.reopened().await,
                }
                let live = model.iter().zip(1u64..).filter(|((_, acked), _)| !acked);
                let expected: Vec<_> = live.map(|((body, _), seq)| (seq, body.clone())).collect();
                let page = engine.page(0, 1000, NOW).await;
                let actual: Vec<_> = page.rows.into_iter().map(|row| (row.seq, row.body)).collect();
                assert_eq!(actual, expected);
                assert_eq!((page.up_to, page.end), (model.len() as u64, true));
            }
        });
    });
}

/// Two accounts that know each other; message `n` is from 2 to 1.
async fn acquainted<H: Harness>(engine: Engine<H>) -> Engine<H> {
    let engine = engine.with_account(1).await.with_account(2).await;
    let hello = Append { from: mailbox(1), to: mailbox(2).account, ..of_class(Class::Message, 1000) };
    engine.store.append(hello).await.unwrap();
    engine
}

pub(crate) fn of_class(class: Class, n: u64) -> Append {
    let message = message(n);
    let from_account = Bytes::copy_from_slice(mailbox(2).account.as_bytes());
    Append { envelope: Envelope { class: class.into(), from_account, ..message.envelope }, ..message }
}

/// The receipts in the mailbox of account 2: seqs and the numbers of the messages delivered.
async fn delivered<H: Harness>(engine: &Engine<H>) -> Vec<(u64, Vec<u64>)> {
    let request =
        PageRequest { mailbox: mailbox(2), lane: Lane::Normal, after: 0, msgs: 100, bytes: 1 << 20, now: NOW };
    let page = engine.store.read(request).await.unwrap();
    let receipts = page.rows.into_iter().filter_map(|row| row.delivery.map(|delivery| (row.seq, delivery)));
    let number = |id: &Bytes| u64::from_be_bytes(*id.last_chunk().unwrap());
    receipts.map(|(seq, delivery)| (seq, delivery.msg_ids.iter().map(number).collect())).collect()
}

pub(crate) async fn an_ack_tells_the_sender_in_one_row_as_long_as_that_waits<H: Harness>(engine: Engine<H>) {
    let engine = acquainted(engine).await;
    for n in 1..=5 {
        engine.store.append(of_class(Class::Message, n)).await.unwrap();
    }
    engine.ack(2, &[(4, 4)]).await;
    assert_eq!(delivered(&engine).await, [(2, vec![1, 2, 4])]);
    let engine = engine.reopened().await;
    engine.ack(5, &[]).await;
    assert_eq!(
        delivered(&engine).await,
        [(3, vec![1, 2, 4, 3, 5])],
        "the row that waited has grown, and 4 is told once"
    );
    let ack =
        AckRequest { mailbox: mailbox(2), lane: Lane::Normal, up_to: 3, ranges: Vec::new(), receipts: receipts() };
    engine.store.ack(ack).await.unwrap();
    engine.store.append(of_class(Class::Message, 6)).await.unwrap();
    engine.open(Held { epoch: EPOCH, up_to: [6, 0], receipts: receipts() }).await;
    assert_eq!(delivered(&engine).await, [(4, vec![6])], "what a client holds is delivered as well");
    engine.sweep(NOW).await;
    assert_eq!(delivered(&engine).await, [(4, vec![6])]);
}

pub(crate) async fn nobody_is_told_of_what_is_no_message_or_expired_or_from_a_stranger_or_not_to_be_told<H: Harness>(
    engine: Engine<H>,
) {
    let engine = acquainted(engine).await;
    for (n, class) in [(1, Class::Receipt), (2, Class::Sync), (3, Class::Control), (4, Class::Delivery)] {
        engine.store.append(of_class(class, n)).await.unwrap();
    }
    let expired = of_class(Class::Message, 5);
    let envelope = Envelope { expires_at: NOW.as_millis(), ..expired.envelope };
    engine.store.append(Append { envelope, ..expired }).await.unwrap();
    engine.ack(5, &[]).await;
    assert_eq!(delivered(&engine).await, []);

    let stranger = engine.another().await.with_account(1).await.with_account(2).await;
    // Reading somebody's messages is not writing to them, and a receipt of one's own is neither.
    let receipt = Append { from: mailbox(1), to: mailbox(2).account, introduces: false, ..of_class(Class::Receipt, 9) };
    stranger.store.append(receipt).await.unwrap();
    stranger.store.append(of_class(Class::Message, 1)).await.unwrap();
    stranger.ack(1, &[]).await;
    assert_eq!(delivered(&stranger).await, []);

    let silent = Preferences { delivery_receipts: false, ..Preferences::default() };
    engine.store.set_preferences(mailbox(1).account, silent).await.unwrap();
    let engine = engine.reopened().await;
    assert_eq!(engine.store.preferences(mailbox(1).account).await.unwrap(), silent);
    engine.store.append(of_class(Class::Message, 6)).await.unwrap();
    engine.ack(6, &[]).await;
    assert_eq!(delivered(&engine).await, []);
}

pub(crate) async fn a_message_with_a_coalesce_key_replaces_the_one_that_waits_also_within_one_commit<H: Harness>(
    engine: Engine<H>,
) {
    let engine = acquainted(engine).await;
    let receipt = |n, key: &'static [u8]| Append { coalesce_key: key.into(), ..of_class(Class::Receipt, n) };
    engine.store.append(of_class(Class::Message, 1)).await.unwrap();
    join_all([2, 3, 4].map(|n| engine.store.append(receipt(n, b"read")))).await;
    engine.store.append(receipt(5, b"other")).await.unwrap();
    assert_eq!(engine.seqs().await, [1, 4, 5], "2 and 3 were replaced");
    let engine = engine.reopened().await;
    engine.store.append(receipt(6, b"read")).await.unwrap();
    assert_eq!(engine.seqs().await, [1, 5, 6]);
    let from_elsewhere = Append { from: mailbox(7), ..receipt(7, b"read") };
    engine.store.append(from_elsewhere).await.unwrap();
    assert_eq!(engine.seqs().await, [1, 5, 6, 7], "keys are each device's own");
    engine.ack(7, &[]).await;
    engine.sweep(NOW).await;
    engine.store.append(receipt(8, b"read")).await.unwrap();
    assert_eq!(engine.seqs().await, [8], "what was acked is not replaced");
    let opened = engine.open(Held::default()).await;
    assert_eq!(opened.lanes[0], LaneView { acked: 7, last: 8, waiting: 1 });
}

/// Everything that a deleted account has left goes, a step at a time, and nothing of others.
pub(crate) async fn what_a_deleted_account_leaves_is_erased_also_when_a_crash_comes_between<H: Harness>(
    engine: Engine<H>,
) {
    let engine = acquainted(engine).await.with_account(3).await;
    let roomy = |n| Append { quota: Quota { msgs: 10_000, bytes: 1 << 30 }, ..message(n) };
    join_all((1..=3000).map(|n| engine.store.append(roomy(n)))).await;
    let kept = Append { to: mailbox(3).account, ..message(5000) };
    engine.store.append(kept).await.unwrap();
    // The last message to it waits for the same commit: it is refused or goes with the rest.
    let last = engine.store.append(message(4000));
    assert!(engine.store.delete(mailbox(1).account).await.unwrap());
    let _ = last.await;
    assert!(matches!(engine.store.append(message(4001)).await, Err(AppendError::UnknownAccount)));
    assert_eq!(engine.store.register(account(1)).await.unwrap(), Registered::AccountTaken, "not while it is erased");
    engine.store.sweep(NOW).await.unwrap();
    let engine = engine.reopened().await;
    engine.sweep(NOW).await;
    assert!(!engine.store.delete(mailbox(1).account).await.unwrap());
    assert_eq!(
        engine.harness.records_under(&engine.store, mailbox(1).account).await,
        0,
        "of 3,000 messages and everything else"
    );
    let others = PageRequest { mailbox: mailbox(3), lane: Lane::Normal, after: 0, msgs: 10, bytes: 1 << 20, now: NOW };
    assert_eq!(engine.store.read(others).await.unwrap().rows.len(), 1);
    assert_eq!(engine.store.register(account(1)).await.unwrap(), Registered::Created);
}
