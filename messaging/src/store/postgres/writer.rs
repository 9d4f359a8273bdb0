//! The writers of a node: each takes what waits for its accounts and has it done in one transaction.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use waxwing_protocol::AccountId;

use super::connections::Connections;
use super::groups;
use super::sweep::Sweeper;
use super::turn::{self, Outcome};
use crate::metrics::handles;
use crate::store::{
    AckRequest, Append, AppendError, Appended, CommitSink, DeviceAddress, GroupCommit, GroupCommitted, GroupSend, Held,
    Opened, StoreError, StoreErrorKind,
};

/// Writers of a node: transactions that it may have under way at once.
const WRITERS: usize = 4;

/// Commands that may wait for a writer; more are refused at once, and clients try again.
const COMMANDS_WAITING_MAX: usize = 4 * 1024;

/// Bytes of ciphertext that may wait for all writers.
const BYTES_WAITING_MAX: usize = 64 * 1024 * 1024;

/// Commands in one transaction at most: it holds its locks for some milliseconds, not longer.
const TURN_COMMANDS_MAX: usize = 512;

/// Bytes of ciphertext in one transaction at most.
const TURN_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where an answer goes.
type Reply<T, E = StoreError> = oneshot::Sender<Result<T, E>>;

/// Something for a writer to do.
pub(super) enum Command {
    Append { append: Box<Append>, reply: Reply<Appended, AppendError> },
    Open { mailbox: DeviceAddress, held: Held, reply: Reply<Option<Opened>> },
    Ack { ack: AckRequest, reply: Reply<()> },
    SendGroup { send: Box<GroupSend>, reply: Reply<Appended, AppendError> },
    ChangeGroup { commit: Box<GroupCommit>, reply: Reply<GroupCommitted> },
    Close { reply: Reply<()> },
}

impl Command {
    /// Bytes of ciphertext it carries.
    fn bytes(&self) -> usize {
        match self {
            Self::Append { append, .. } => append.bodies.iter().map(|body| body.ciphertext.len()).sum(),
            Self::SendGroup { send, .. } => send.envelope.body.len(),
            Self::ChangeGroup { commit, .. } => commit.envelope.body.len(),
            _ => 0,
        }
    }

    /// Whether it has a transaction of its own: it locks a thousand lanes.
    fn comes_alone(&self) -> bool {
        matches!(self, Self::SendGroup { .. } | Self::ChangeGroup { .. })
    }

    /// Answers it. Nobody waits any more when the connection is gone; what was stored stays stored.
    fn answer(self, outcome: Result<Outcome, StoreError>) {
        match (self, outcome) {
            (Self::Append { reply, .. } | Self::SendGroup { reply, .. }, Ok(Outcome::Appended(appended))) => {
                drop(reply.send(appended));
            }
            (Self::Append { reply, .. } | Self::SendGroup { reply, .. }, Err(error)) => {
                drop(reply.send(Err(error.into())));
            }
            (Self::ChangeGroup { reply, .. }, Ok(Outcome::Changed(changed))) => drop(reply.send(Ok(changed))),
            (Self::ChangeGroup { reply, .. }, Err(error)) => drop(reply.send(Err(error))),
            (Self::Open { reply, .. }, Ok(Outcome::Opened(opened))) => drop(reply.send(Ok(opened))),
            (Self::Open { reply, .. }, Err(error)) => drop(reply.send(Err(error))),
            (Self::Ack { reply, .. } | Self::Close { reply }, outcome) => drop(reply.send(outcome.map(drop))),
            (_, Ok(_)) => unreachable!("an outcome is of its command's kind"),
        }
    }
}

/// The store refuses everything from now on.
pub(super) fn closed() -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, "the store has closed")
}

/// The handles through which commands reach the writers. They end with the last handle.
#[derive(Clone)]
pub(super) struct Writers {
    commands: Arc<[mpsc::Sender<Command>]>,
    bytes_waiting: Arc<AtomicUsize>,
}

impl Writers {
    pub(super) fn start(connections: &Connections, sweeper: &Arc<Sweeper>, sink: &Arc<dyn CommitSink>) -> Self {
        let bytes_waiting = Arc::new(AtomicUsize::new(0));
        let writer = |_| {
            let (commands, waiting) = mpsc::channel(COMMANDS_WAITING_MAX);
            let writer = Writer {
                connections: connections.clone(),
                sweeper: sweeper.clone(),
                sink: sink.clone(),
                waiting,
                bytes_waiting: bytes_waiting.clone(),
            };
            tokio::spawn(writer.run());
            commands
        };
        Self { commands: (0..WRITERS).map(writer).collect(), bytes_waiting }
    }

    /// Puts a command in line for the writer of `account`, at once or not at all.
    pub(super) fn submit(&self, account: AccountId, command: Command) -> Result<(), StoreError> {
        let mut hasher = DefaultHasher::new();
        account.hash(&mut hasher);
        let bytes = command.bytes();
        if self.bytes_waiting.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > BYTES_WAITING_MAX {
            self.bytes_waiting.fetch_sub(bytes, Ordering::Relaxed);
            return Err(StoreError::new(StoreErrorKind::Unavailable, "too much waits to be stored"));
        }
        let writer = usize::try_from(hasher.finish() % WRITERS as u64).expect("there are few writers");
        self.commands[writer].try_send(command).map_err(|error| {
            self.bytes_waiting.fetch_sub(bytes, Ordering::Relaxed);
            match error {
                mpsc::error::TrySendError::Full(_) => {
                    StoreError::new(StoreErrorKind::Unavailable, "too much waits to be stored")
                }
                mpsc::error::TrySendError::Closed(_) => closed(),
            }
        })
    }

    /// Waits for what was asked so far; everything later is refused.
    pub(super) async fn close(&self) {
        let closing = self.commands.iter().map(|commands| async {
            let (reply, closed) = oneshot::channel();
            // Closed before is closed as well.
            if commands.send(Command::Close { reply }).await.is_ok() {
                let _ = closed.await;
            }
        });
        join_all(closing).await;
    }
}

/// One writer.
struct Writer {
    connections: Connections,
    sweeper: Arc<Sweeper>,
    sink: Arc<dyn CommitSink>,
    waiting: mpsc::Receiver<Command>,
    bytes_waiting: Arc<AtomicUsize>,
}

impl Writer {
    async fn run(mut self) {
        let mut next = None;
        loop {
            let first = match next.take() {
                Some(taken) => taken,
                None => match self.waiting.recv().await {
                    Some(taken) => taken,
                    None => return,
                },
            };
            if first.comes_alone() {
                self.bytes_waiting.fetch_sub(first.bytes(), Ordering::Relaxed);
                self.work_alone(first).await;
                continue;
            }
            let (mut turn, mut bytes) = (Vec::new(), 0);
            let mut command = Some(first);
            let mut open = true;
            while let Some(taken) = command {
                if taken.comes_alone() {
                    next = Some(taken);
                    break;
                }
                open = !matches!(taken, Command::Close { .. });
                bytes += taken.bytes();
                self.bytes_waiting.fetch_sub(taken.bytes(), Ordering::Relaxed);
                turn.push(taken);
                let full = turn.len() >= TURN_COMMANDS_MAX || bytes >= TURN_BYTES_MAX || !open;
                command = if full { None } else { self.waiting.try_recv().ok() };
            }
            if !open {
                self.waiting.close();
            }
            self.work(turn).await;
        }
    }

    /// Has a group's command done, and answers it.
    async fn work_alone(&mut self, command: Command) {
        let began = Instant::now();
        let (connections, asked) = (&self.connections, &command);
        let done = connections.retried(|again| Box::pin(groups::work(connections, asked, again))).await;
        handles().commit_time.record(began.elapsed());
        match done {
            Ok((outcome, rows)) => {
                for row in rows {
                    self.sink.committed(row);
                }
                command.answer(Ok(outcome));
            }
            Err(error) => command.answer(Err(error)),
        }
    }

    /// Has the commands done in one transaction, and answers them.
    async fn work(&mut self, commands: Vec<Command>) {
        let began = Instant::now();
        let (connections, asked) = (&self.connections, &commands[..]);
        let done = connections.retried(|again| Box::pin(turn::work(connections, asked, again))).await;
        handles().commit_time.record(began.elapsed());
        match done {
            Ok(done) => {
                self.sweeper.note(done.moved);
                for row in done.committed {
                    self.sink.committed(row);
                }
                for group in done.progressed {
                    self.sink.progressed(group);
                }
                commands.into_iter().zip(done.outcomes).for_each(|(command, outcome)| command.answer(Ok(outcome)));
            }
            Err(error) => commands.into_iter().for_each(|command| command.answer(Err(error.clone()))),
        }
    }
}
