//! What every engine promises of groups: each message once in the store and once in every mailbox that it is for, and
//! nothing of it left when nobody needs it.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use waxwing_protocol::GroupId;
use waxwing_protocol::group::{GroupChange, GroupState, NewMember, Role, SignedGroupChange, What, devices_hash};

use super::*;

const QUOTA: Quota = Quota { msgs: 1000, bytes: 1 << 20 };

pub(crate) fn group() -> GroupId {
    GroupId::from_bytes([200; 16])
}

pub(crate) fn address(n: u8, device: u32) -> DeviceAddress {
    DeviceAddress { account: AccountId::from_bytes([n; 16]), device: device.try_into().unwrap() }
}

pub(crate) fn member(n: u8) -> NewMember {
    let role = if n == 1 { Role::Admin } else { Role::Member };
    NewMember { account: AccountId::from_bytes([n; 16]), account_key: PublicKey([n; 32]), role }
}

/// A change by account 1, as the domain passes it on. The store checks no signatures.
pub(crate) fn commit(before: Option<&GroupState>, what: What) -> GroupCommit {
    let (change, after) = GroupChange::make(group(), before, mailbox(1).account, what, NOW).unwrap();
    let signed = SignedGroupChange { change: Base64(change.to_bytes()), signature: Base64(vec![1; 64]) };
    let envelope = Envelope {
        class: Class::GroupChange.into(),
        body: signed.to_bytes().into(),
        expires_at: NOW.plus(Duration::from_secs(1000)).as_millis(),
        ..Envelope::default()
    };
    GroupCommit { change: signed, previous: change.previous, after, envelope, quota: QUOTA }
}

pub(crate) fn send(from: DeviceAddress, n: u64, state: &GroupState, devices_hash: [u8; 32]) -> GroupSend {
    let mut msg_id = [0; 16];
    msg_id[8..].copy_from_slice(&n.to_be_bytes());
    GroupSend {
        from,
        msg_id: MsgId::from_bytes(msg_id),
        content_hash: *blake3::hash(&n.to_be_bytes()).as_bytes(),
        group: state.group,
        epoch: state.epoch,
        devices_hash,
        envelope: Envelope {
            msg_id: Bytes::copy_from_slice(&msg_id),
            server_ts: NOW.as_millis() + n,
            expires_at: NOW.plus(Duration::from_secs(1000)).as_millis(),
            body: Bytes::from(n.to_be_bytes().repeat(100)),
            ..Envelope::default()
        },
        quota: QUOTA,
    }
}

/// The hash of a state whose members have one device each.
pub(crate) fn one_each(state: &GroupState) -> [u8; 32] {
    let devices = [(DeviceId::FIRST, REG_ID)];
    devices_hash(state.members.iter().map(|member| (member.account, &devices[..])))
}

impl<H: Harness> Engine<H> {
    async fn change(&self, before: Option<&GroupState>, what: What) -> GroupState {
        let commit = commit(before, what);
        let after = commit.after.clone();
        assert_eq!(self.store.change_group(commit).await.unwrap(), GroupCommitted::Done);
        after
    }

    async fn stored(&self) -> Stored {
        self.store.stored().await.unwrap()
    }

    async fn rows_of(&self, mailbox: DeviceAddress, now: Timestamp) -> Vec<Envelope> {
        let request = PageRequest { mailbox, lane: Lane::Normal, after: 0, msgs: 4000, bytes: 1 << 30, now };
        self.store.read(request).await.unwrap().rows
    }

    async fn ack_all(&self, mailbox: DeviceAddress) {
        let up_to = self.store.view(mailbox).await.unwrap().unwrap().lanes[0].last;
        let ack = AckRequest { mailbox, lane: Lane::Normal, up_to, ranges: Vec::new(), receipts: receipts() };
        self.store.ack(ack).await.unwrap();
    }
}

/// A group of accounts 1 to 3.
async fn founded<H: Harness>(engine: Engine<H>) -> (Engine<H>, GroupState) {
    let engine = engine.with_account(1).await.with_account(2).await.with_account(3).await.with_account(4).await;
    let members = [1, 2, 3].map(member).to_vec();
    let state = engine.change(None, What::Found { members, profile: None }).await;
    (engine, state)
}

pub(crate) async fn a_body_is_stored_once_with_a_small_row_for_each_device_and_goes_with_the_last_of_them<
    H: Harness,
>(
    engine: Engine<H>,
) {
    let (engine, state) = founded(engine).await;
    for n in [1, 2, 3] {
        engine.ack_all(address(n, 1)).await;
    }
    engine.sweep(NOW).await;
    assert_eq!(engine.stored().await, Stored::default());
    let sent = engine.store.send_group(send(address(1, 1), 1, &state, one_each(&state))).await.unwrap();
    assert_eq!((sent.conv_seq, sent.duplicate), (2, false), "the founding has the first place");
    let Stored { rows, bodies, bytes } = engine.stored().await;
    assert_eq!((rows, bodies), (2, 1));
    assert!(bytes < 800 + 400, "{bytes} bytes for a body of 800 and two rows");

    let engine = engine.reopened().await;
    let row = engine.rows_of(address(2, 1), NOW).await.remove(0);
    assert_eq!((row.conv_seq, row.body.len()), (2, 800));
    engine.ack_all(address(2, 1)).await;
    engine.sweep(NOW).await;
    assert_eq!(engine.stored().await.bodies, 1, "one has not got it yet");
    assert_eq!(engine.rows_of(address(3, 1), NOW).await.len(), 1);
    engine.ack_all(address(3, 1)).await;
    engine.sweep(NOW).await;
    assert_eq!(engine.stored().await, Stored::default());
}

pub(crate) async fn a_send_is_checked_against_members_epoch_and_devices_and_a_repeat_is_the_same_send<H: Harness>(
    engine: Engine<H>,
) {
    let (engine, state) = founded(engine).await;
    let hash = one_each(&state);
    let outsider = engine.store.send_group(send(address(4, 1), 1, &state, hash)).await;
    assert!(matches!(outsider, Err(AppendError::UnknownGroup)), "{outsider:?}");
    let old = GroupState { epoch: 7, ..state.clone() };
    let early = engine.store.send_group(send(address(1, 1), 1, &old, hash)).await;
    assert!(matches!(early, Err(AppendError::EpochConflict { epoch: 1 })), "{early:?}");
    let other = engine.store.send_group(send(address(1, 1), 1, &state, [0; 32])).await;
    assert!(matches!(&other, Err(AppendError::GroupMismatch { accounts }) if accounts.is_empty()), "{other:?}");

    let first = engine.store.send_group(send(address(1, 1), 1, &state, hash)).await.unwrap();
    let next = engine.change(Some(&state), What::Remove(vec![mailbox(3).account])).await;
    let again = engine.store.send_group(send(address(1, 1), 1, &state, hash)).await.unwrap();
    assert_eq!(again, Appended { duplicate: true, ..first }, "also when the group has changed since");
    let mut otherwise = send(address(1, 1), 1, &next, one_each(&next));
    otherwise.content_hash = [1; 32];
    assert!(matches!(engine.store.send_group(otherwise).await, Err(AppendError::OtherContent)));

    // Whoever was removed gets what tells of it and nothing more, and may send nothing.
    engine.store.send_group(send(address(1, 1), 2, &next, one_each(&next))).await.unwrap();
    let rows = engine.rows_of(address(3, 1), NOW).await;
    assert_eq!(rows.iter().map(|row| row.conv_seq).collect::<Vec<_>>(), [1, 2, 3]);
    let gone = engine.store.send_group(send(address(3, 1), 3, &next, one_each(&next))).await;
    assert!(matches!(gone, Err(AppendError::UnknownGroup)));
    assert_eq!(engine.store.groups_of(mailbox(3).account).await.unwrap(), []);
    assert_eq!(engine.store.groups_of(mailbox(2).account).await.unwrap(), [group()]);
}

pub(crate) async fn of_changes_that_race_one_is_made_and_a_repeat_of_it_is_no_conflict<H: Harness>(engine: Engine<H>) {
    let (engine, state) = founded(engine).await;
    let add = commit(Some(&state), What::Add(vec![member(4)]));
    let remove = commit(Some(&state), What::Remove(vec![mailbox(2).account]));
    let raced = join_all([&add, &remove].map(|change| engine.store.change_group(change.clone()))).await;
    let raced: Vec<_> = raced.into_iter().map(Result::unwrap).collect();
    assert_eq!(raced, [GroupCommitted::Done, GroupCommitted::Conflict { epoch: 2 }]);
    assert_eq!(engine.store.change_group(add.clone()).await.unwrap(), GroupCommitted::Repeated);
    let engine = engine.reopened().await;
    assert_eq!(engine.store.change_group(add.clone()).await.unwrap(), GroupCommitted::Repeated);
    assert_eq!(engine.store.group(group()).await.unwrap().unwrap().state, add.after);
    assert_eq!(engine.store.group_at(group(), 1).await.unwrap().unwrap().state, state);
    assert_eq!(engine.store.group_changes(group(), 1, 9).await.unwrap(), [add.change]);
    let founded_twice = commit(None, What::Found { members: vec![member(1)], profile: None });
    assert_eq!(engine.store.change_group(founded_twice).await.unwrap(), GroupCommitted::Conflict { epoch: 2 });
}

pub(crate) async fn whose_devices_changed_is_told_as_long_as_it_is_remembered<H: Harness>(engine: Engine<H>) {
    let (engine, state) = founded(engine).await;
    let before = one_each(&state);
    engine.store.send_group(send(address(1, 1), 1, &state, before)).await.unwrap();
    engine.store.change_devices(devices_of(2, 1, 2)).await.unwrap();
    let refused = engine.store.send_group(send(address(1, 1), 2, &state, before)).await;
    let Err(AppendError::GroupMismatch { accounts }) = refused else { panic!("{refused:?}") };
    assert_eq!(accounts, [mailbox(2).account]);
    let (one, two) = ([(DeviceId::FIRST, REG_ID)], [(DeviceId::FIRST, REG_ID), (2.try_into().unwrap(), REG_ID)]);
    let sets = state.members.iter().map(|member| {
        let devices = if member.account == mailbox(2).account { &two[..] } else { &one[..] };
        (member.account, devices)
    });
    engine.store.send_group(send(address(1, 1), 2, &state, devices_hash(sets))).await.unwrap();
    assert_eq!(engine.rows_of(address(2, 2), NOW).await.len(), 1, "a device gets what comes after it did");
}

/// Adds device 2 to an account, or removes it: from one revision of its list to another.
fn devices_of(n: u8, from: u8, to: u8) -> ListChange {
    let list = |revision: u8| {
        let tail = if revision == 1 { vec![] } else { vec![revision] };
        SignedDeviceList { list: Base64([vec![n], tail].concat()), signature: Base64(vec![n; 64]) }
    };
    let what = if to.is_multiple_of(2) {
        DeviceChange::Added(Box::new(NewDevice {
            device: 2.try_into().unwrap(),
            reg_id: REG_ID,
            token_hash: [n; 32],
            epoch: EPOCH,
            name: Vec::new(),
            fallback: prekey(n, PrekeyKind::Fallback),
            now: NOW,
        }))
    } else {
        DeviceChange::Removed(2.try_into().unwrap())
    };
    ListChange { account: AccountId::from_bytes([n; 16]), before: list(from), after: list(to), what }
}

/// A mailbox that is full is left out, and the others get the message.
pub(crate) async fn one_full_mailbox_silences_nobody_and_a_deleted_account_leaves_nothing<H: Harness>(
    engine: Engine<H>,
) {
    let (engine, state) = founded(engine).await;
    let hash = one_each(&state);
    let tight = GroupSend { quota: Quota { msgs: 1, bytes: 1 << 20 }, ..send(address(1, 1), 1, &state, hash) };
    engine.store.send_group(tight).await.unwrap();
    assert_eq!(engine.stored().await.rows, 3, "the founding in three mailboxes, the message in none");
    engine.ack_all(address(2, 1)).await;
    let tight = GroupSend { quota: Quota { msgs: 1, bytes: 1 << 20 }, ..send(address(1, 1), 2, &state, hash) };
    engine.store.send_group(tight).await.unwrap();
    assert_eq!(engine.rows_of(address(2, 1), NOW).await.len(), 1);

    for n in [1, 2, 3] {
        assert!(engine.store.delete(mailbox(n).account).await.unwrap());
    }
    let engine = engine.reopened().await;
    engine.sweep(NOW).await;
    assert_eq!(engine.stored().await, Stored::default());
    assert_eq!(engine.harness.records_under(&engine.store, mailbox(2).account).await, 0);
}

#[derive(Clone, Debug)]
enum Step {
    /// Account 1 lets an account in, or removes it when it is in.
    Toggle(u8),
    /// An account gets its second device, or loses it.
    Device(u8),
    /// So many messages at once from a device, which live for so many seconds.
    Send(u8, u32, u64, u64),
    /// A device acks this share of what it has, in percent, or only the last of it.
    Ack(u8, u32, usize),
    AckLast(u8, u32),
    /// Time passes.
    Wait(u64),
    Sweep,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => (2u8..=4).prop_map(Step::Toggle),
        1 => (1u8..=4).prop_map(Step::Device),
        5 => (1u8..=4, 1u32..=2, 1u64..5, 1u64..900).prop_map(|(n, d, count, ttl)| Step::Send(n, d, count, ttl)),
        5 => (1u8..=4, 1u32..=2, 0usize..=100).prop_map(|(n, d, share)| Step::Ack(n, d, share)),
        1 => (1u8..=4, 1u32..=2).prop_map(|(n, d)| Step::AckLast(n, d)),
        2 => (1u64..500).prop_map(Step::Wait),
        2 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

/// What should be: the rows of every device, by body and with the moment of their end.
struct Model {
    state: GroupState,
    /// Devices of the accounts, and the revisions of their lists.
    revisions: BTreeMap<u8, u8>,
    rows: BTreeMap<DeviceAddress, Vec<(Bytes, u64)>>,
    now: Timestamp,
}

impl Model {
    fn devices(&self, n: u8) -> Vec<DeviceAddress> {
        let second = self.revisions[&n].is_multiple_of(2);
        [address(n, 1)].into_iter().chain(second.then(|| address(n, 2))).collect()
    }

    fn audience(&self) -> Vec<DeviceAddress> {
        let accounts = (1..=4).filter(|n| self.state.member(mailbox(*n).account).is_some());
        accounts.flat_map(|n| self.devices(n)).collect()
    }

    fn hash(&self) -> [u8; 32] {
        let sets = (1..=4u8).filter(|n| self.state.member(mailbox(*n).account).is_some()).map(|n| {
            let devices: Vec<_> = self.devices(n).iter().map(|address| (address.device, REG_ID)).collect();
            (mailbox(n).account, devices)
        });
        let sets: Vec<_> = sets.collect();
        devices_hash(sets.iter().map(|(account, devices)| (*account, &devices[..])))
    }

    fn give(&mut self, to: &[DeviceAddress], body: &Bytes, expires_at: u64) {
        for address in to {
            self.rows.entry(*address).or_default().push((body.clone(), expires_at));
        }
    }
}

/// Nobody misses what was sent while they were in, nobody gets what was sent while they were not, and when everybody
/// has acked or everything has expired there is no row and no byte left.
pub(crate) fn a_groups_messages_reach_whoever_is_in_it_and_leave_nothing<H: Harness>() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let lives = prop::collection::vec(step(), 1..60);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(H::LIVES) }, |(steps in lives)| {
        runtime.block_on(async {
            let Some(engine) = Engine::<H>::start().await else { return };
            let (mut engine, state) = founded(engine).await;
            let founding = commit(None, What::Found { members: [1, 2, 3].map(member).to_vec(), profile: None });
            let revisions = (1..=4).map(|n| (n, 1)).collect();
            let mut model = Model { state, revisions, rows: BTreeMap::new(), now: NOW };
            let to = model.audience();
            model.give(&to, &founding.envelope.body, founding.envelope.expires_at);
            let mut next = 0;
            for step in steps {
                match step {
                    Step::Toggle(n) => {
                        let account = mailbox(n).account;
                        let inside = model.state.member(account).is_some();
                        let joining = NewMember { role: Role::Member, ..member(n) };
                        let what = if inside { What::Remove(vec![account]) } else { What::Add(vec![joining]) };
                        let mut to = model.audience();
                        let commit = commit(Some(&model.state), what);
                        model.state = commit.after.clone();
                        to.extend(model.audience());
                        to.sort_unstable();
                        to.dedup();
                        model.give(&to, &commit.envelope.body, commit.envelope.expires_at);
                        assert_eq!(engine.store.change_group(commit).await.unwrap(), GroupCommitted::Done);
                    }
                    Step::Device(n) => {
                        let from = model.revisions[&n];
                        let change = devices_of(n, from, from + 1);
                        assert_eq!(engine.store.change_devices(change).await.unwrap(), ListChanged::Done);
                        model.revisions.insert(n, from + 1);
                        model.rows.remove(&address(n, 2));
                        // A removed device's rows go at once, and the number is only used again in this model.
                        engine.sweep(model.now).await;
                    }
                    Step::Send(n, device, count, ttl) => {
                        let (from, hash) = (address(n, device), model.hash());
                        let expires_at = model.now.plus(Duration::from_secs(ttl)).as_millis();
                        let sends: Vec<_> = (next..next + count).map(|n| {
                            let mut send = send(from, n, &model.state, hash);
                            send.envelope.expires_at = expires_at;
                            send
                        }).collect();
                        next += count;
                        let outcomes = join_all(sends.iter().map(|send| engine.store.send_group(send.clone()))).await;
                        let may = model.audience().contains(&from);
                        for (send, outcome) in sends.iter().zip(outcomes) {
                            assert_eq!(outcome.is_ok(), may, "{outcome:?}");
                            if may {
                                let mut to = model.audience();
                                to.retain(|address| *address != from);
                                model.give(&to, &send.envelope.body, expires_at);
                            }
                        }
                    }
                    Step::Ack(n, device, share) => {
                        let mailbox = address(n, device);
                        let rows = engine.rows_of(mailbox, model.now).await;
                        let count = rows.len() * share / 100;
                        if let Some(last) = count.checked_sub(1) {
                            let up_to = rows[last].seq;
                            let lane = Lane::Normal;
                            let ack = AckRequest { mailbox, lane, up_to, ranges: Vec::new(), receipts: receipts() };
                            engine.store.ack(ack).await.unwrap();
                            let now = model.now.as_millis();
                            let live = model.rows.entry(mailbox).or_default();
                            live.retain(|(_, ends)| *ends > now);
                            live.drain(..count);
                        }
                    }
                    Step::AckLast(n, device) => {
                        let mailbox = address(n, device);
                        if let Some(last) = engine.rows_of(mailbox, model.now).await.last() {
                            let (lane, ranges) = (Lane::Normal, vec![(last.seq, last.seq)]);
                            let ack = AckRequest { mailbox, lane, up_to: 0, ranges, receipts: receipts() };
                            engine.store.ack(ack).await.unwrap();
                            let now = model.now.as_millis();
                            let live = model.rows.entry(mailbox).or_default();
                            live.retain(|(_, ends)| *ends > now);
                            live.pop();
                        }
                    }
                    Step::Wait(s) => model.now = model.now.plus(Duration::from_secs(s)),
                    Step::Sweep => { engine.sweep(model.now).await; }
                    Step::Reopen => engine = engine.reopened().await,
                }
                for n in 1..=4 {
                    for mailbox in model.devices(n) {
                        let now = model.now.as_millis();
                        let live = model.rows.get(&mailbox).into_iter().flatten().filter(|(_, ends)| *ends > now);
                        let expected: Vec<_> = live.map(|(body, _)| body.clone()).collect();
                        let rows = engine.rows_of(mailbox, model.now).await;
                        let actual: Vec<_> = rows.into_iter().map(|row| row.body).collect();
                        assert_eq!(actual, expected, "{mailbox}");
                    }
                }
            }
            for n in 1..=4 {
                // Some ack what they have, the others' messages expire.
                if n % 2 == 0 {
                    for mailbox in model.devices(n) {
                        engine.ack_all(mailbox).await;
                    }
                }
            }
            engine.sweep(model.now.plus(Duration::from_secs(100_000))).await;
            assert_eq!(engine.stored().await, Stored::default());
        });
    });
}
