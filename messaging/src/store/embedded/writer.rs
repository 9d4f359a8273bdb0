//! The writer: one thread through which every change goes.
//!
//! It takes whatever commands wait, works them into one batch, commits the batch with one sync, and only then answers
//! and hands rows on. So nobody hears of anything that a power cut could still undo, and seqs are given by one hand.
//!
//! When the engine fails to sync, no command of the batch is acknowledged, the sync is not tried again (what a failed
//! fsync left behind is unknown), and every later write is refused: the store has become read-only and says so.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use prost::Message as _;
use tokio::sync::oneshot;
use tracing::error;
use waxwing_protocol::api::{ChannelPageView, Preferences};
use waxwing_protocol::identity::SignedPrekey;
use waxwing_protocol::{AccountId, ChannelId, DeviceId, GroupId, Handle, Timestamp};

use super::acks::{Acks, GATHERED_FOR};
use super::batch::Batch;
use super::bodies::Bodies;
use super::channels::ChannelMemory;
use super::checkpoint::Commits;
use super::groups::GroupMemory;
use super::progress::Progress;
use super::receipts::Deliveries;
use super::records::{MailboxRow, SendRow};
use super::sweep::Sweep;
use super::tables::{self, RowKey, Tables};
use crate::metrics::handles;
use crate::store::{
    AckRequest, Append, AppendError, Appended, Blocked, CharterCommit, CharterCommitted, Claimed, CommitSink,
    Committed, CommittedEntry, DeviceAddress, EntryAppend, EntryError, GroupCommit, GroupCommitted, GroupSend, Held,
    ListChange, ListChanged, NewAccount, Opened, PageCommitted, PrekeysHeld, Registered, Renamed, StoreError,
    StoreErrorKind, Swept, WakeTarget,
};

/// Commands that may wait for the writer; more are refused at once, and clients try again.
const COMMANDS_WAITING_MAX: usize = 16 * 1024;

/// Bytes of ciphertext that may wait for the writer.
const BYTES_WAITING_MAX: usize = 64 * 1024 * 1024;

/// Commands in one turn at most: some milliseconds of work, so that a sync is never long in coming.
const TURN_COMMANDS_MAX: usize = 1024;

/// Bytes of ciphertext in one turn at most.
const TURN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Mailboxes and device sets kept in memory between turns. All of them are on disk too, so a full cache is emptied.
const CACHED_MAX: usize = 100_000;

/// Groups kept in memory between turns: the largest take 150 KB.
const GROUPS_CACHED_MAX: usize = 1000;

/// Channels kept in memory between turns: the largest take 4 KB.
const CHANNELS_CACHED_MAX: usize = 10_000;

/// Where an answer goes.
pub(super) type Reply<T, E = StoreError> = oneshot::Sender<Result<T, E>>;

/// Something for the writer to do.
pub(super) enum Command {
    Append {
        append: Box<Append>,
        reply: Reply<Appended, AppendError>,
    },
    SendGroup {
        send: Box<GroupSend>,
        reply: Reply<Appended, AppendError>,
    },
    ChangeGroup {
        commit: Box<GroupCommit>,
        reply: Reply<GroupCommitted>,
    },
    PutCharter {
        commit: Box<CharterCommit>,
        reply: Reply<CharterCommitted>,
    },
    AppendEntry {
        append: Box<EntryAppend>,
        reply: Reply<Appended, EntryError>,
    },
    PutPage {
        channel: ChannelId,
        page: ChannelPageView,
        reply: Reply<PageCommitted>,
    },
    MarkRead {
        by: AccountId,
        group: GroupId,
        conv_seq: u64,
        reply: Reply<()>,
    },
    Open {
        mailbox: DeviceAddress,
        held: Held,
        reply: Reply<Option<Opened>>,
    },
    /// Acks have begun to gather.
    Acks,
    Ack {
        ack: AckRequest,
        reply: Reply<()>,
    },
    Sweep {
        now: Timestamp,
        reply: Reply<Swept>,
    },
    Register {
        account: Box<NewAccount>,
        reply: Reply<Registered>,
    },
    Rename {
        account: AccountId,
        handle: Handle,
        reply: Reply<Renamed>,
    },
    Delete {
        account: AccountId,
        reply: Reply<bool>,
    },
    ChangeDevices {
        change: Box<ListChange>,
        reply: Reply<ListChanged>,
    },
    NameDevice {
        device: DeviceAddress,
        name: Vec<u8>,
        reply: Reply<bool>,
    },
    AddToken {
        device: DeviceAddress,
        hash: [u8; 32],
        reply: Reply<bool>,
    },
    PromoteToken {
        device: DeviceAddress,
        hash: [u8; 32],
        reply: Reply<()>,
    },
    SetPreferences {
        account: AccountId,
        preferences: Preferences,
        reply: Reply<()>,
    },
    SetBlocked {
        account: AccountId,
        peer: AccountId,
        blocked: bool,
        reply: Reply<Blocked>,
    },
    SetWakeTarget {
        device: DeviceAddress,
        target: WakeTarget,
        reply: Reply<Option<Vec<DeviceAddress>>>,
    },
    RemoveWakeTarget {
        device: DeviceAddress,
        only: Option<Timestamp>,
        reply: Reply<bool>,
    },
    AddPrekeys {
        device: DeviceAddress,
        one_time: Vec<SignedPrekey>,
        fallback: Option<Box<SignedPrekey>>,
        now: Timestamp,
        reply: Reply<PrekeysHeld>,
    },
    ClaimPrekey {
        device: DeviceAddress,
        one_time: bool,
        now: Timestamp,
        reply: Reply<Option<Claimed>>,
    },
    Close {
        reply: Reply<()>,
    },
}

impl Command {
    /// Bytes of ciphertext it carries.
    fn bytes(&self) -> usize {
        match self {
            Self::Append { append, .. } => append.bodies.iter().map(|body| body.ciphertext.len()).sum(),
            Self::SendGroup { send, .. } => send.envelope.body.len(),
            Self::ChangeGroup { commit, .. } => commit.envelope.body.len(),
            Self::AppendEntry { append, .. } => append.body.len(),
            _ => 0,
        }
    }

    /// Whether it changes the directory. A turn holds one such command at most.
    fn changes_directory(&self) -> bool {
        matches!(
            self,
            Self::Register { .. }
                | Self::Rename { .. }
                | Self::Delete { .. }
                | Self::ChangeDevices { .. }
                | Self::NameDevice { .. }
                | Self::AddToken { .. }
                | Self::PromoteToken { .. }
                | Self::SetPreferences { .. }
                | Self::SetBlocked { .. }
                | Self::SetWakeTarget { .. }
                | Self::RemoveWakeTarget { .. }
                | Self::AddPrekeys { .. }
                | Self::ClaimPrekey { .. }
                | Self::PutCharter { .. }
        )
    }
}

/// The handle through which commands reach the writer thread. The thread ends with the last handle.
#[derive(Clone)]
pub(super) struct Writer {
    commands: SyncSender<Command>,
    acks: Arc<Acks>,
    bytes_waiting: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
}

impl Writer {
    /// Starts the thread. `failed` is what tells that nothing can be written any more.
    pub(super) fn start(
        tables: Tables,
        commits: Commits,
        failed: Arc<AtomicBool>,
        sink: Arc<dyn CommitSink>,
    ) -> std::io::Result<Self> {
        let (commands, waiting) = sync_channel(COMMANDS_WAITING_MAX);
        let bytes_waiting = Arc::new(AtomicUsize::new(0));
        let bytes = bytes_waiting.clone();
        let acks = Arc::new(Acks::default());
        let work = Work { tables, commits, sink, waiting, acks: acks.clone(), bytes_waiting: bytes, next: None };
        std::thread::Builder::new().name("mailbox-writer".into()).spawn(move || work.run())?;
        Ok(Self { commands, acks, bytes_waiting, failed })
    }

    /// Whether writing is possible; false for good once a commit failed.
    pub(super) fn is_writable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    /// Puts a command in line, at once or not at all.
    pub(super) fn submit(&self, command: Command) -> Result<(), StoreError> {
        let command = match command {
            Command::Ack { ack, reply } => {
                if !self.acks.push((ack, reply))? {
                    return Ok(());
                }
                Command::Acks
            }
            command => command,
        };
        let bytes = command.bytes();
        if self.bytes_waiting.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > BYTES_WAITING_MAX {
            self.bytes_waiting.fetch_sub(bytes, Ordering::Relaxed);
            return Err(StoreError::new(StoreErrorKind::Unavailable, "too much waits to be stored"));
        }
        self.commands.try_send(command).map_err(|error| {
            self.bytes_waiting.fetch_sub(bytes, Ordering::Relaxed);
            StoreError::new(
                StoreErrorKind::Unavailable,
                match error {
                    TrySendError::Full(_) => "too much waits to be stored",
                    TrySendError::Disconnected(_) => "the store has closed",
                },
            )
        })
    }
}

/// What the writer thread owns.
struct Work {
    tables: Tables,
    commits: Commits,
    sink: Arc<dyn CommitSink>,
    waiting: Receiver<Command>,
    acks: Arc<Acks>,
    bytes_waiting: Arc<AtomicUsize>,
    /// A command that was taken and did not fit its turn.
    next: Option<Command>,
}

/// What the writer remembers from turn to turn; all of it can be read again.
#[derive(Default)]
pub(super) struct Memory {
    pub(super) mailboxes: HashMap<DeviceAddress, MailboxRow>,
    pub(super) devices: HashMap<AccountId, Arc<[(DeviceId, u32)]>>,
    pub(super) preferences: HashMap<AccountId, Preferences>,
    /// Whether an account has ever written to another.
    pub(super) written: HashMap<(AccountId, AccountId), bool>,
    /// Whom an account has blocked; nearly always nobody.
    pub(super) blocks: HashMap<AccountId, Arc<HashSet<AccountId>>>,
    pub(super) groups: HashMap<GroupId, GroupMemory>,
    /// `None` of those that were deleted.
    pub(super) channels: HashMap<ChannelId, Option<ChannelMemory>>,
    pub(super) sweep: Sweep,
}

/// Tells whoever asked, once it is known whether the turn was committed.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

/// One turn: commands that are committed together.
pub(super) struct Turn<'a> {
    pub(super) tables: &'a Tables,
    pub(super) memory: &'a mut Memory,
    /// Mailboxes with rows at or below their watermark.
    pub(super) unswept: &'a mut HashSet<DeviceAddress>,
    pub(super) batch: Batch,
    /// Mailboxes that a connection was opened for.
    pub(super) opened: Vec<DeviceAddress>,
    /// Mailboxes to be written at the end of the turn.
    pub(super) changed: HashSet<DeviceAddress>,
    /// Sends taken in this turn, which the engine does not show yet.
    pub(super) sends: HashMap<[u8; 36], SendRow>,
    /// Rows put in this turn, by key, with the bytes given to their lane up to them.
    pub(super) put: HashMap<RowKey, u64>,
    /// Coalesce keys set in this turn.
    pub(super) coalesced: HashMap<Vec<u8>, u64>,
    /// Bodies of groups that this turn puts or lets go of.
    pub(super) bodies: Bodies,
    /// How far members of groups have come in this turn.
    pub(super) progress: Progress,
    /// What acks of this turn have to tell senders.
    pub(super) deliveries: Deliveries,
    /// The account deleted in this turn: the engine still shows it.
    pub(super) deleted: Option<AccountId>,
    /// The device removed in this turn: the engine still shows its mailbox.
    pub(super) removed: Option<DeviceAddress>,
    pub(super) committed: Vec<Committed>,
    /// Entries of channels taken in this turn.
    pub(super) entries: Vec<CommittedEntry>,
}

impl Work {
    fn run(mut self) {
        let (mut memory, mut unswept) = (Memory::default(), HashSet::new());
        let mut open = true;
        while open {
            let Some(first) = self.next.take().or_else(|| self.waiting.recv().ok()) else { break };
            let first = if matches!(first, Command::Acks) { self.gather() } else { Some(first) };
            if first.is_none() && self.acks.len() == 0 {
                continue;
            }
            let mut turn = Turn {
                tables: &self.tables,
                memory: &mut memory,
                unswept: &mut unswept,
                batch: Batch::default(),
                opened: Vec::new(),
                changed: HashSet::new(),
                sends: HashMap::new(),
                put: HashMap::new(),
                coalesced: HashMap::new(),
                bodies: Bodies::default(),
                progress: Progress::default(),
                deliveries: Deliveries::default(),
                deleted: None,
                removed: None,
                committed: Vec::new(),
                entries: Vec::new(),
            };
            let (mut answers, mut bytes, mut directory_changed) = (Vec::new(), 0, false);
            let mut command = first;
            loop {
                // What was acked before a command was given is acked before it is worked in.
                let acks = self.acks.take(TURN_COMMANDS_MAX.saturating_sub(answers.len()));
                answers.extend(acks.into_iter().map(|(ack, reply)| turn.take(Command::Ack { ack, reply })));
                let Some(taken) = command else { break };
                if self.acks.len() > 0 && answers.len() >= TURN_COMMANDS_MAX {
                    self.next = Some(taken);
                    break;
                }
                if directory_changed && taken.changes_directory() {
                    self.next = Some(taken);
                    break;
                }
                directory_changed |= taken.changes_directory();
                open &= !matches!(taken, Command::Close { .. });
                bytes += taken.bytes();
                self.bytes_waiting.fetch_sub(taken.bytes(), Ordering::Relaxed);
                answers.push(turn.take(taken));
                let full = answers.len() >= TURN_COMMANDS_MAX || bytes >= TURN_BYTES_MAX || !open;
                command = if full { None } else { self.waiting.try_recv().ok() };
            }
            if self.next.is_none() && self.acks.len() > 0 {
                self.next = Some(Command::Acks);
            }
            let entries = std::mem::take(&mut turn.entries);
            let (rows, progressed, done) = turn.commit(&mut self.commits);
            if done.is_err() {
                // What the memory says was not stored.
                memory = Memory::default();
            } else {
                for row in rows {
                    self.sink.committed(row);
                }
                for group in progressed {
                    self.sink.progressed(group);
                }
                for entry in entries {
                    self.sink.appended(entry);
                }
                if memory.mailboxes.len() > CACHED_MAX {
                    memory.mailboxes.clear();
                }
                if memory.devices.len() > CACHED_MAX {
                    memory.devices.clear();
                }
                if memory.preferences.len() > CACHED_MAX {
                    memory.preferences.clear();
                }
                if memory.written.len() > CACHED_MAX {
                    memory.written.clear();
                }
                if memory.blocks.len() > CACHED_MAX {
                    memory.blocks.clear();
                }
                if memory.groups.len() > GROUPS_CACHED_MAX {
                    memory.groups.clear();
                }
                if memory.channels.len() > CHANNELS_CACHED_MAX {
                    memory.channels.clear();
                }
            }
            if !open {
                self.commits.settle();
            }
            for answer in answers {
                answer(done.clone());
            }
        }
    }
}

impl Work {
    /// Lets acks gather until something else is to be done, which is returned, or they have gathered for long enough.
    fn gather(&mut self) -> Option<Command> {
        let until = Instant::now() + GATHERED_FOR;
        while self.acks.len() < TURN_COMMANDS_MAX {
            match self.waiting.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Command::Acks) => {}
                Ok(command) => return Some(command),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        None
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.acks.close();
    }
}

impl Turn<'_> {
    /// Works a command into the batch.
    fn take(&mut self, command: Command) -> Answer {
        match command {
            Command::Append { append, reply } => answer(self.append(&append), reply),
            Command::SendGroup { send, reply } => answer(self.send_group(&send), reply),
            Command::ChangeGroup { commit, reply } => answer(self.change_group(*commit), reply),
            Command::PutCharter { commit, reply } => answer(self.put_charter(&commit), reply),
            Command::AppendEntry { append, reply } => answer(self.append_entry(&append), reply),
            Command::PutPage { channel, page, reply } => answer(self.put_page(channel, &page), reply),
            Command::MarkRead { by, group, conv_seq, reply } => answer(self.mark_read(by, group, conv_seq), reply),
            Command::Open { mailbox, held, reply } => answer(self.open(mailbox, held), reply),
            Command::Ack { ack, reply } => answer(self.ack(&ack), reply),
            // Those that have gathered were taken before this.
            Command::Acks => Box::new(|_| {}),
            Command::Sweep { now, reply } => answer(self.sweep(now), reply),
            Command::Register { account, reply } => answer(self.register(&account), reply),
            Command::Rename { account, handle, reply } => answer(self.rename(account, &handle), reply),
            Command::Delete { account, reply } => answer(self.delete(account), reply),
            Command::ChangeDevices { change, reply } => answer(self.change_devices(&change), reply),
            Command::NameDevice { device, name, reply } => answer(self.name_device(device, name), reply),
            Command::AddToken { device, hash, reply } => answer(self.add_token(device, hash), reply),
            Command::PromoteToken { device, hash, reply } => answer(self.promote_token(device, hash), reply),
            Command::SetPreferences { account, preferences, reply } => {
                self.set_preferences(account, preferences);
                answer(Ok(()), reply)
            }
            Command::SetBlocked { account, peer, blocked, reply } => {
                answer(self.set_blocked(account, peer, blocked), reply)
            }
            Command::SetWakeTarget { device, target, reply } => answer(self.set_wake_target(device, &target), reply),
            Command::RemoveWakeTarget { device, only, reply } => answer(self.remove_wake_target(device, only), reply),
            Command::AddPrekeys { device, one_time, fallback, now, reply } => {
                answer(self.add_prekeys(device, &one_time, fallback.as_deref(), now), reply)
            }
            Command::ClaimPrekey { device, one_time, now, reply } => {
                answer(self.claim_prekey(device, one_time, now), reply)
            }
            Command::Close { reply } => answer(Ok(()), reply),
        }
    }

    /// Commits the batch; after that everything in it is durable.
    fn commit(mut self, commits: &mut Commits) -> (Vec<Committed>, HashSet<GroupId>, Result<(), StoreError>) {
        if let Err(error) = self.write_deliveries() {
            // What was acked stays acked; its senders are not told.
            error!(%error, "delivery receipts were not written");
        }
        let progressed = self.write_progress().unwrap_or_else(|error| {
            error!(%error, "how far groups are was not written");
            HashSet::new()
        });
        if let Err(error) = self.write_bodies() {
            // Without its bodies nothing of the turn may count.
            error!(%error, "the store could not read what it holds and takes no more writes");
            return (Vec::new(), HashSet::new(), Err(error));
        }
        for address in &self.changed {
            let row = &self.memory.mailboxes[address];
            self.batch.insert(&self.tables.mailboxes, tables::address(*address), row.encode_to_vec());
        }
        let began = Instant::now();
        let could_write = !commits.has_failed();
        let done = commits.commit(self.batch);
        handles().commit_time.record(began.elapsed());
        if let (true, Err(error)) = (could_write, &done) {
            error!(%error, "the store could not commit and takes no more writes");
        }
        for address in self.opened {
            // Whoever connects often says nothing for hours, and a mailbox that is empty is read again quickly.
            if self.memory.mailboxes.get(&address).is_some_and(MailboxRow::is_empty) {
                self.memory.mailboxes.remove(&address);
            }
        }
        (self.committed, progressed, done)
    }
}

/// The answer to a command whose outcome is `outcome`, if the turn is committed.
fn answer<T, E>(outcome: Result<T, E>, reply: Reply<T, E>) -> Answer
where
    T: 'static,
    E: From<StoreError> + 'static,
{
    Box::new(move |committed| {
        let outcome = match committed {
            Ok(()) => outcome,
            Err(error) => Err(error.into()),
        };
        // Nobody waits any more when the connection is gone; what was stored stays stored.
        let _ = reply.send(outcome);
    })
}
