//! A turn: commands that commit together, decided in memory between what was locked and what is written.
//!
//! The rules are those of every engine (`store.rs`): the difference to the embedded one is where the facts come from.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;
use deadpool_postgres::Transaction;
use waxwing_protocol::frames::{DELIVERY_IDS_MAX, Envelope, Lane};
use waxwing_protocol::{AccountId, GroupId, Timestamp};

use super::connections::{Connections, Failure};
use super::loading::{self, CoalesceKey, Coalesced, Loaded, Sent};
use super::saving;
use super::values::{LaneAddress, big, damaged, uuid};
use super::writer::Command;
use crate::metrics::handles;
use crate::store::embedded::{LaneRow, compare_devices};
use crate::store::{
    AckRequest, Append, AppendError, Appended, Committed, DeviceAddress, GroupCommitted, Held, LaneView, Opened,
    ReceiptRows,
};

/// What became of a command.
#[derive(Debug)]
pub(super) enum Outcome {
    Appended(Result<Appended, AppendError>),
    Opened(Option<Opened>),
    Changed(GroupCommitted),
    Done,
}

/// What became of a turn.
#[derive(Debug)]
pub(super) struct Done {
    /// Command by command.
    pub(super) outcomes: Vec<Outcome>,
    /// Rows that are there now, by rising seq in each lane.
    pub(super) committed: Vec<Committed>,
    /// Lanes whose watermark has moved.
    pub(super) moved: BTreeSet<LaneAddress>,
    /// Groups in which somebody has got more.
    pub(super) progressed: BTreeSet<GroupId>,
}

/// A row at the end of a lane. The seqs of its envelope are not set.
#[derive(Debug)]
pub(super) struct PutRow {
    pub(super) lane: LaneAddress,
    pub(super) seq: u64,
    pub(super) bytes_given: u64,
    pub(super) envelope: Envelope,
}

/// Does `commands` in one transaction. `again`: the turn may have been committed before.
pub(super) async fn work(connections: &Connections, commands: &[Command], again: bool) -> Result<Done, Failure> {
    let mut client = connections.get().await?;
    let transaction = client.transaction().await?;
    let mut turn = Turn { loaded: Box::pin(loading::load(&transaction, commands)).await?, ..Turn::default() };
    let outcomes: Vec<_> = commands.iter().map(|command| turn.take(command)).collect();
    turn.write_deliveries();
    let mut committed =
        if again { turn.committed_before(&transaction, commands, &outcomes).await? } else { Vec::new() };
    let progressed = saving::note_delivered(&transaction, &turn.acks_of(commands)).await?;
    turn.save(&transaction).await?;
    transaction.commit().await.map_err(|error| Failure::of_commit(&error))?;
    committed.extend(turn.put.into_iter().map(|row| {
        let envelope = Envelope { seq: row.seq, prev_seq: row.seq - 1, ..row.envelope };
        Committed { to: row.lane.mailbox, lane: row.lane.lane(), envelope }
    }));
    Ok(Done { outcomes, committed, moved: turn.moved, progressed })
}

/// What a client that opens a mailbox acks by saying what it holds.
pub(super) fn held_acks(mailbox: DeviceAddress, held: &Held) -> [AckRequest; 2] {
    [(Lane::Normal, held.up_to[0]), (Lane::Urgent, held.up_to[1])].map(|(lane, up_to)| AckRequest {
        mailbox,
        lane,
        up_to,
        ranges: Vec::new(),
        receipts: held.receipts,
    })
}

/// A turn under way.
#[derive(Debug, Default)]
struct Turn {
    loaded: Loaded,
    /// Lanes to be written.
    changed: BTreeSet<LaneAddress>,
    /// Of those, the ones whose watermark has moved.
    moved: BTreeSet<LaneAddress>,
    put: Vec<PutRow>,
    /// Bytes given to lanes up to and with rows of this turn.
    put_bytes: HashMap<(LaneAddress, u64), u64>,
    taken: BTreeSet<loading::SendKey>,
    introduced: BTreeSet<(AccountId, AccountId)>,
    coalesced: BTreeMap<CoalesceKey, u64>,
    /// Generations and times.
    opened: BTreeMap<DeviceAddress, (u64, u64)>,
    /// Message ids to tell of, by sender and reader.
    deliveries: BTreeMap<(AccountId, AccountId), Vec<Bytes>>,
    receipts: Option<ReceiptRows>,
}

impl Turn {
    /// What commands ack: what a client says it holds counts in the same epoch only.
    fn acks_of(&self, commands: &[Command]) -> Vec<AckRequest> {
        let acks = commands.iter().flat_map(|command| match command {
            Command::Ack { ack, .. } => vec![ack.clone()],
            Command::Open { mailbox, held, .. }
                if self.loaded.mailboxes.get(mailbox).is_some_and(|it| it.epoch == held.epoch) =>
            {
                held_acks(*mailbox, held).to_vec()
            }
            _ => Vec::new(),
        });
        acks.collect()
    }

    fn take(&mut self, command: &Command) -> Outcome {
        match command {
            Command::Append { append, .. } => Outcome::Appended(self.append(append)),
            Command::Open { mailbox, held, .. } => Outcome::Opened(self.open(*mailbox, held)),
            Command::Ack { ack, .. } => {
                self.ack(ack);
                Outcome::Done
            }
            Command::Close { .. } => Outcome::Done,
            Command::SendGroup { .. } | Command::ChangeGroup { .. } => unreachable!("groups' commands come alone"),
        }
    }

    /// Takes a message, or nothing of it.
    fn append(&mut self, append: &Append) -> Result<Appended, AppendError> {
        let send_key = (append.from, append.msg_id);
        if let Some(earlier) = self.loaded.sends.get(&send_key) {
            if earlier.content_hash != append.content_hash {
                return Err(AppendError::OtherContent);
            }
            return Ok(Appended { server_ts: Timestamp::from_millis(earlier.server_ts), duplicate: true, conv_seq: 0 });
        }
        let (from, to) = (append.from.account, append.to);
        let devices = self.loaded.devices.get(&to).ok_or(AppendError::UnknownAccount)?;
        compare_devices(append, devices)?;
        let bodies = || append.bodies.iter().filter(|body| !append.absent.contains(&body.device));
        let lane_of = |device| LaneAddress::new(DeviceAddress { account: to, device }, append.lane);
        // Everything that can fail comes before the first change: a message goes into all mailboxes or into none.
        for body in bodies() {
            let lane = self.loaded.lanes.get(&lane_of(body.device)).ok_or_else(|| damaged("a device has no lane"))?;
            let bytes = lane.bytes_waiting().saturating_add(body.ciphertext.len() as u64);
            if lane.waiting() >= append.quota.msgs || bytes > append.quota.bytes {
                return Err(AppendError::MailboxFull { device: body.device });
            }
        }
        let request = append.introduces && from != to && !self.loaded.written.contains(&(to, from));
        let blocked = self.loaded.blocked.contains(&(to, from));
        for body in bodies().filter(|_| !blocked) {
            let lane = lane_of(body.device);
            let key = (!append.coalesce_key.is_empty()).then(|| CoalesceKey::of_append(append, body.device));
            if let Some((seq, _)) = key.as_ref().and_then(|key| self.waiting_row(key)) {
                self.replace(lane, seq);
            }
            let row = Envelope { body: body.ciphertext.clone(), request, ..append.envelope.clone() };
            self.put_row(lane, body.ciphertext.len() as u64, row, key);
        }
        if append.introduces && self.loaded.written.insert((from, to)) {
            self.introduced.insert((from, to));
        }
        let server_ts = append.envelope.server_ts;
        self.loaded.sends.insert(send_key, Sent { content_hash: append.content_hash.to_vec(), server_ts });
        self.taken.insert(send_key);
        Ok(Appended { server_ts: Timestamp::from_millis(server_ts), duplicate: false, conv_seq: 0 })
    }

    /// A lane that is locked, to be changed and written.
    fn changed(&mut self, lane: LaneAddress) -> &mut LaneRow {
        self.changed.insert(lane);
        self.loaded.lanes.get_mut(&lane).expect("only lanes that were looked at are changed")
    }

    /// Puts a row at the end of a lane that this turn has looked at. `bytes` is what it counts for.
    fn put_row(&mut self, lane: LaneAddress, bytes: u64, envelope: Envelope, coalesce: Option<CoalesceKey>) {
        let counts = self.changed(lane);
        counts.last += 1;
        counts.bytes_given += bytes;
        let (seq, bytes_given) = (counts.last, counts.bytes_given);
        if let Some(key) = coalesce {
            let told = envelope.delivery.as_ref().map(|delivery| delivery.msg_ids.clone()).unwrap_or_default();
            self.loaded.coalesced.insert(key.clone(), Coalesced { seq, told });
            self.coalesced.insert(key, seq);
        }
        self.put_bytes.insert((lane, seq), bytes_given);
        self.put.push(PutRow { lane, seq, bytes_given, envelope });
    }

    /// The seq of the row with this coalesce key and what it tells, as long as it is not acked.
    fn waiting_row(&self, key: &CoalesceKey) -> Option<(u64, Vec<Bytes>)> {
        let row = self.loaded.coalesced.get(key)?;
        let lane = self.loaded.lanes.get(&key.lane)?;
        (!lane.is_acked(row.seq)).then(|| (row.seq, row.told.clone()))
    }

    /// Takes a row out of a lane: what replaces it comes after. When there are too many gaps already it stays, and its
    /// reader gets both.
    fn replace(&mut self, lane: LaneAddress, seq: u64) {
        let counts = self.changed(lane);
        let before = counts.acked;
        counts.ack_range(seq, seq);
        if counts.acked > before {
            self.moved.insert(lane);
        }
    }

    /// Opens a mailbox for a new connection.
    fn open(&mut self, address: DeviceAddress, held: &Held) -> Option<Opened> {
        let epoch = self.loaded.mailboxes.get(&address)?.epoch;
        if held.epoch == epoch {
            for ack in held_acks(address, held) {
                let lane = self.loaded.lanes.get(&LaneAddress::new(address, ack.lane))?;
                // Nobody can hold what was never given; whoever claims to speaks of another mailbox.
                if ack.up_to <= lane.last {
                    self.ack(&ack);
                }
            }
        }
        let view = |lane| {
            let lane = self.loaded.lanes.get(&LaneAddress::new(address, lane))?;
            Some(LaneView { acked: lane.acked, last: lane.last, waiting: lane.waiting() })
        };
        let lanes = [view(Lane::Normal)?, view(Lane::Urgent)?];
        let mailbox = self.loaded.mailboxes.get_mut(&address)?;
        mailbox.generation += 1;
        self.opened.insert(address, (mailbox.generation, held.receipts.now.as_millis()));
        Some(Opened { epoch, generation: mailbox.generation, lanes })
    }

    /// Moves a watermark.
    fn ack(&mut self, ack: &AckRequest) {
        let address = LaneAddress::new(ack.mailbox, ack.lane);
        let Some(before) = self.loaded.lanes.get(&address).cloned() else { return };
        let mut lane = before.clone();
        for (first, last) in ack.ranges.iter().copied() {
            lane.ack_range(first, last);
        }
        lane.ack_up_to(ack.up_to);
        if lane == before {
            return;
        }
        if lane.acked > before.acked {
            // A row that is not committed yet was shown to nobody: whoever acks it is guessing.
            if self.put_bytes.contains_key(&(address, ack.up_to)) {
                return;
            }
            self.moved.insert(address);
        }
        handles().acked.increment(before.waiting() - lane.waiting());
        self.note_deliveries(address, ack.receipts, &before, &lane);
        *self.changed(address) = lane;
    }

    /// Takes note of the rows that an ack covers.
    fn note_deliveries(&mut self, address: LaneAddress, rows: ReceiptRows, before: &LaneRow, after: &LaneRow) {
        for row in self.loaded.acked.get(&address).into_iter().flatten() {
            // A cumulative ack also covers what expired before anybody saw it.
            if before.is_acked(row.seq) || !after.is_acked(row.seq) || row.expires_at <= rows.now {
                continue;
            }
            let pair = (row.sender, address.mailbox.account);
            self.deliveries.entry(pair).or_default().push(row.msg_id.clone());
            self.receipts = Some(rows);
        }
    }

    /// Puts the receipts of this turn into the senders' mailboxes.
    fn write_deliveries(&mut self) {
        let Some(rows) = self.receipts else { return };
        for ((sender, reader), ids) in std::mem::take(&mut self.deliveries) {
            let devices = self.loaded.devices.get(&sender).cloned().unwrap_or_default();
            for (device, _) in devices {
                for ids in ids.chunks(DELIVERY_IDS_MAX) {
                    self.write_delivery(DeviceAddress { account: sender, device }, reader, ids, rows);
                }
            }
        }
    }

    fn write_delivery(&mut self, to: DeviceAddress, reader: AccountId, ids: &[Bytes], rows: ReceiptRows) {
        let key = CoalesceKey::of_delivery(to, reader);
        let lane = key.lane;
        let mut msg_ids = Vec::new();
        if let Some((seq, earlier)) = self.waiting_row(&key)
            && earlier.len() + ids.len() <= DELIVERY_IDS_MAX
        {
            self.replace(lane, seq);
            msg_ids = earlier;
        }
        let Some(counts) = self.loaded.lanes.get(&lane) else { return };
        // A mailbox that is full takes no receipts either: its owner has other worries.
        if counts.waiting() >= rows.quota.msgs || counts.bytes_waiting() >= rows.quota.bytes {
            return;
        }
        msg_ids.extend_from_slice(ids);
        let bytes = msg_ids.iter().map(Bytes::len).sum::<usize>() as u64;
        self.put_row(lane, bytes, rows.envelope(reader, msg_ids), Some(key));
    }

    /// Writes everything that this turn has changed.
    async fn save(&mut self, transaction: &Transaction<'_>) -> Result<(), Failure> {
        self.count_acked(transaction).await?;
        let taken = |key: &loading::SendKey| self.taken.contains(key).then(|| self.loaded.sends.get(key)).flatten();
        let wrong = self.loaded.fresh.iter().filter(|(key, sent)| taken(key) != Some(*sent));
        let wrong: BTreeSet<_> = wrong.map(|(key, _)| *key).collect();
        let right = wrong.iter().filter_map(|key| Some((*key, taken(key)?.clone())));
        let right: BTreeMap<_, _> = right.collect();
        saving::delete_sends(transaction, &wrong).await?;
        if !right.is_empty() {
            saving::insert_sends(transaction, &right).await?;
        }
        let lanes = self.changed.iter().filter_map(|lane| Some((*lane, self.loaded.lanes.get(lane)?.clone())));
        let lanes: Vec<_> = lanes.collect();
        // Sent one behind the other, without waiting for each answer.
        tokio::try_join!(
            saving::insert_rows(transaction, &self.put),
            saving::save_lanes(transaction, &lanes),
            saving::insert_pairs(transaction, &self.introduced),
            saving::save_coalesced(transaction, &self.coalesced),
            saving::save_opened(transaction, &self.opened),
        )?;
        Ok(())
    }

    /// Counts the bytes up to the watermarks that have moved.
    async fn count_acked(&mut self, transaction: &Transaction<'_>) -> Result<(), Failure> {
        let mut unknown = Vec::new();
        for address in self.moved.clone() {
            let Some(acked) = self.loaded.lanes.get(&address).map(|lane| lane.acked) else { continue };
            match self.put_bytes.get(&(address, acked)).copied() {
                Some(bytes) => self.changed(address).bytes_acked = bytes,
                None => unknown.push((address, acked)),
            }
        }
        for (address, bytes) in saving::bytes_given(transaction, &unknown).await? {
            self.changed(address).bytes_acked = bytes;
        }
        Ok(())
    }

    /// Rows that a commit of unknown outcome has put, as the repeats of this turn show: nobody was told of them.
    async fn committed_before(
        &self,
        transaction: &Transaction<'_>,
        commands: &[Command],
        outcomes: &[Outcome],
    ) -> Result<Vec<Committed>, Failure> {
        let repeats = commands.iter().zip(outcomes).filter_map(|it| match it {
            (Command::Append { append, .. }, Outcome::Appended(Ok(Appended { duplicate: true, .. }))) => Some(append),
            _ => None,
        });
        let (accounts, ids): (Vec<_>, Vec<_>) =
            repeats.map(|append| (uuid(append.to), append.msg_id.as_bytes().to_vec())).unzip();
        let sql = "SELECT m.account, m.device, m.lane, m.seq, m.envelope
                   FROM unnest($1::uuid[], $2::bytea[]) AS k (account, msg_id)
                   JOIN lanes l ON l.account = k.account
                   JOIN messages m ON m.account = l.account AND m.device = l.device AND m.lane = l.lane
                       AND m.seq > l.acked AND m.msg_id = k.msg_id
                   ORDER BY m.account, m.device, m.lane, m.seq";
        let rows = transaction.query(&transaction.prepare_cached(sql).await?, &[&accounts, &ids]).await?;
        let committed = rows.iter().map(|row| {
            let (lane, seq) = (LaneAddress::of(row)?, big(row, 3)?);
            let envelope = Envelope { seq, prev_seq: seq - 1, ..super::pages::envelope_of(row, 4)? };
            Ok(Committed { to: lane.mailbox, lane: lane.lane(), envelope })
        });
        committed.collect()
    }
}
