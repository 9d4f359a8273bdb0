//! The inbox: from a delivered frame to messages that are this device's for good.
//!
//! The server forgets a message once it is acknowledged, and a ratchet opens it once. Acknowledged before it is stored,
//! a message is lost with the next crash; its ratchet stored without it, too. So moved ratchets, messages and the ids
//! that tell a repeat are stored in one transaction, and only after it is the Ack sent.
//!
//! Promises: a message is shown once, however often it is delivered. One that cannot be opened is recorded with the
//! reason and acknowledged: it never holds up what comes after it. A file is remembered until it is saved.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use waxwing_protocol::frames::{Ack, Class, Deliver, Envelope, Have, Lane};
use waxwing_protocol::{AccountId, DeviceId, GroupId, Handle, MsgId, Timestamp};
use waxwing_seal::message::{Content, Message, Party, SentCopy};
use waxwing_seal::session::{SessionError, begun_by};

use crate::account::{DEVICE, SELF, device_keys, me, party};
use crate::channels::{Invited, take_invite};
use crate::contacts::{self, Contact};
use crate::groups::inbox::{Came, Opening, RefusedChange};
use crate::groups::{GroupNews, group_of};
use crate::profile::{Rows, Table, WriteTx};
use crate::receipts::{Tick, Ticked};
use crate::secret::SecretBytes;
use crate::{ClientError, blob_refs, conversation, copies, groups, receipts, repair, sessions};

/// Everything received, by sender's account and message id. Kept: it is what tells a repeat, and the history.
pub(crate) const RECEIVED: Table<ReceivedRow> = Table::new("received");

/// What is still to be shown or saved, by a counter: in the order of its coming.
const PENDING: Table<PendingRow> = Table::new("pending");

/// How far each lane of the mailbox is stored.
const MAILBOX: Table<MailboxRow> = Table::new("mailbox");

/// A message received.
#[derive(Serialize, Deserialize)]
pub(crate) struct ReceivedRow {
    device: u32,
    received_at: Timestamp,
    pub(crate) server_ts: Timestamp,
    pub(crate) client_hlc: u64,
    /// The group it was sent to, if it was.
    #[serde(default)]
    pub(crate) group: Option<GroupId>,
    pub(crate) said: Said,
}

/// What a message said, or why nobody knows.
#[derive(Serialize, Deserialize)]
pub(crate) enum Said {
    Content(SecretBytes),
    Unreadable(String),
    /// Nothing for a person; kept to tell a repeat.
    Nothing,
}

/// A message to be shown, or a file to be saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingRow {
    pub(crate) from: AccountId,
    pub(crate) msg_id: MsgId,
    /// It was shown; only its file is still to be saved.
    pub(crate) shown: bool,
    /// The server says that this account had never written to the sender.
    #[serde(default)]
    pub(crate) request: bool,
    /// The group it was sent to, if it was, and its place in the conversation.
    #[serde(default)]
    pub(crate) group: Option<GroupId>,
    #[serde(default)]
    pub(crate) conv_seq: u64,
}

/// A lane's progress within one mailbox epoch, and the counter of [`PENDING`].
#[derive(Clone, Default, Serialize, Deserialize)]
struct MailboxRow {
    epoch: u64,
    normal: u64,
    urgent: u64,
    next_pending: u64,
}

/// What one delivered frame came to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Receipt {
    /// What became of messages sent from here.
    pub(crate) ticks: Vec<Ticked>,
    /// What to send now that everything is stored.
    pub(crate) ack: Option<Ack>,
    /// How many messages were new and readable.
    pub(crate) new: usize,
    /// What other devices of this account have sent.
    pub(crate) copies: Vec<SentCopy>,
    /// The ones that could not be read.
    pub(crate) unreadable: Vec<Unreadable>,
    /// What became of groups.
    pub(crate) groups: Vec<GroupNews>,
    /// Channels whose keys have come.
    pub(crate) channels: Vec<Invited>,
    /// Changes of groups that are not to be believed.
    pub(crate) refused: Vec<RefusedChange>,
}

/// A message that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unreadable {
    pub(crate) from: AccountId,
    pub(crate) msg_id: MsgId,
    pub(crate) reason: String,
}

/// Whom this frame is from that this profile should ask about first: strangers, and devices it does not know or knows
/// with other keys.
pub(crate) fn strangers(tx: &impl Rows, deliver: &Deliver) -> Result<Vec<AccountId>, ClientError> {
    let mut strangers = Vec::new();
    for envelope in deliver.envelopes.iter().filter(|envelope| envelope.class() != Class::Delivery) {
        let (Ok(account), Ok(device)) =
            (AccountId::from_slice(&envelope.from_account), DeviceId::new(envelope.from_device))
        else {
            continue;
        };
        if let Some(group) = group_of(envelope) {
            // Who may have written it follows from the group and its keys; who that is, is worth knowing all the same.
            let of_known = groups::book::load(tx, group)?.is_some_and(|book| book.had(account, envelope.epoch));
            let stranger = contacts::known(tx, account)?.is_none() && contacts::own(tx)?.account != account;
            if of_known && stranger && envelope.class() == Class::Message && !strangers.contains(&account) {
                strangers.push(account);
            }
            continue;
        }
        let device = contacts::known(tx, account)?.and_then(|contact| contact.devices.device(device).copied());
        let known = device.is_some_and(|device| begun_by(&envelope.body).is_none_or(|key| key == device.curve25519));
        if !known && !strangers.contains(&account) {
            strangers.push(account);
        }
    }
    Ok(strangers)
}

/// Opens and stores a delivered frame. `refused` says why people could not be looked up.
pub(crate) fn receive(
    tx: &WriteTx<'_>,
    deliver: &Deliver,
    epoch: u64,
    refused: &HashMap<AccountId, String>,
    now: Timestamp,
) -> Result<Receipt, ClientError> {
    let mut mailbox = mailbox(tx, epoch)?;
    let mut keys = device_keys(tx)?;
    let me = party(&me(tx)?, &keys);
    let mut keys_changed = false;
    let mut receipt = Receipt::default();
    for envelope in &deliver.envelopes {
        let lane = if deliver.lane() == Lane::Urgent { &mut mailbox.urgent } else { &mut mailbox.normal };
        *lane = envelope.seq.max(*lane);
        receipt.ack = Some(Ack { lane: deliver.lane, up_to: *lane, ranges: Vec::new() });
        if let Some(delivery) = envelope.delivery.as_ref().filter(|_| envelope.class() == Class::Delivery) {
            let ids: Vec<_> = delivery.msg_ids.iter().filter_map(|id| MsgId::from_slice(id).ok()).collect();
            if let Ok(peer) = AccountId::from_slice(&delivery.account) {
                let msg_ids = receipts::delivered(tx, peer, &ids)?;
                receipt.ticked(peer, msg_ids, Tick::Delivered);
            }
            continue;
        }
        let (Ok(from), Ok(msg_id)) =
            (AccountId::from_slice(&envelope.from_account), MsgId::from_slice(&envelope.msg_id))
        else {
            // Nothing to file it under; the server made it up.
            tracing::warn!(seq = envelope.seq, "a delivered message without sender or id was dropped");
            continue;
        };
        if let Some(group) = group_of(envelope).filter(|_| envelope.class() == Class::GroupChange) {
            match groups::inbox::take_change(tx, group, envelope)? {
                Ok(news) => receipt.groups.extend(news),
                Err(refused) => receipt.refused.push(refused),
            }
            continue;
        }
        let before = tx.get(&RECEIVED, &received_key(from, msg_id))?;
        if before.as_ref().is_some_and(|row| !matches!(row.said, Said::Unreadable(_))) {
            continue;
        }
        if let Some(group) = group_of(envelope) {
            let Some(came) = Came::new(group, from, msg_id, envelope) else { continue };
            let mut filer = Filer::new(tx, &mut mailbox, &mut receipt, Source::of_group(&came, now), me.account);
            filer.file_from_group(&came, before.is_some())?;
            continue;
        }
        let mut opener = Opener { tx, keys: &mut keys, me: &me, keys_changed: &mut keys_changed };
        let opened = opener.open(envelope, from, msg_id, refused)?;
        let server_ts = Timestamp::from_millis(envelope.server_ts);
        let request = envelope.request;
        let (device, group, conv_seq) = (envelope.from_device, None, 0);
        let source = Source { device, received_at: now, server_ts, request, group, conv_seq };
        match opened {
            Ok((message, party)) => {
                let mut filer = Filer::new(tx, &mut mailbox, &mut receipt, source, me.account);
                filer.file(party, message)?;
            }
            // Told once; what could not be read may still come readable.
            Err(_) if before.is_some() => continue,
            Err(Unopened { reason, ask }) => {
                // Only what somebody would miss: a receipt is followed by the next one.
                let missed = matches!(envelope.class(), Class::Message | Class::Sync | Class::Control);
                if let (true, true, Ok(device)) = (ask, missed, DeviceId::new(envelope.from_device)) {
                    repair::unreadable(tx, from, device, msg_id)?;
                }
                receipt.unreadable.push(Unreadable { from, msg_id, reason: reason.clone() });
                source.put(tx, from, msg_id, envelope.client_hlc, Said::Unreadable(reason))?;
            }
        }
    }
    if keys_changed {
        tx.put(&DEVICE, SELF, &SecretBytes(keys.into_bytes()))?;
    }
    tx.put(&MAILBOX, SELF, &mailbox)?;
    Ok(receipt)
}

fn received_key(from: AccountId, msg_id: MsgId) -> Vec<u8> {
    [&from.as_bytes()[..], msg_id.as_bytes()].concat()
}

/// Where and when a message came.
#[derive(Clone, Copy)]
struct Source {
    device: u32,
    received_at: Timestamp,
    server_ts: Timestamp,
    /// Whether it is the first from a stranger, as the server says.
    request: bool,
    group: Option<GroupId>,
    conv_seq: u64,
}

impl Source {
    fn of_group(came: &Came, received_at: Timestamp) -> Self {
        let (device, server_ts, group) = (came.device.get(), came.server_ts, Some(came.group));
        Self { device, received_at, server_ts, request: false, group, conv_seq: came.conv_seq }
    }

    fn put(
        self,
        tx: &WriteTx<'_>,
        from: AccountId,
        msg_id: MsgId,
        client_hlc: u64,
        said: Said,
    ) -> Result<(), ClientError> {
        let Self { device, received_at, server_ts, group, .. } = self;
        tx.put(
            &RECEIVED,
            &received_key(from, msg_id),
            &ReceivedRow { device, received_at, server_ts, client_hlc, group, said },
        )
    }
}

/// What filing needs.
struct Filer<'a> {
    tx: &'a WriteTx<'a>,
    mailbox: &'a mut MailboxRow,
    receipt: &'a mut Receipt,
    source: Source,
    me: AccountId,
}

impl<'a> Filer<'a> {
    fn new(
        tx: &'a WriteTx<'a>,
        mailbox: &'a mut MailboxRow,
        receipt: &'a mut Receipt,
        source: Source,
        me: AccountId,
    ) -> Self {
        Self { tx, mailbox, receipt, source, me }
    }

    /// Opens and files a message of a group. `again` says that it came before and could not be read.
    fn file_from_group(&mut self, came: &Came, again: bool) -> Result<(), ClientError> {
        let (tx, from) = (self.tx, came.from);
        match came.open(tx)? {
            Opening::Waits => Ok(()),
            Opening::Opened(message) => {
                let clock = conversation::observe(tx, message.client_hlc, self.source.received_at)?;
                let said = match message.content {
                    Content::GroupProfile(profile) => {
                        groups::book::take_profile(tx, came.group, &profile)?;
                        Said::Nothing
                    }
                    content => {
                        let thread = groups::outbox::thread(came.group);
                        conversation::seen(tx, thread, came.msg_id, &message.parents)?;
                        self.show(from, came.msg_id, &content)?;
                        Said::Content(content.to_bytes().into())
                    }
                };
                self.source.put(tx, from, came.msg_id, clock, said)
            }
            Opening::Refused(_) if again => Ok(()),
            Opening::Refused(reason) => {
                self.receipt.unreadable.push(Unreadable { from, msg_id: came.msg_id, reason: reason.clone() });
                self.source.put(tx, from, came.msg_id, 0, Said::Unreadable(reason))
            }
        }
    }

    /// Lets a person see a message.
    fn show(&mut self, from: AccountId, msg_id: MsgId, content: &Content) -> Result<(), ClientError> {
        if let Content::File(file) = content {
            blob_refs::put(self.tx, file)?;
        }
        let Source { request, group, conv_seq, .. } = self.source;
        let row = PendingRow { from, msg_id, shown: false, request, group, conv_seq };
        self.tx.put(&PENDING, &self.mailbox.next_pending.to_be_bytes(), &row)?;
        self.mailbox.next_pending += 1;
        self.receipt.new += 1;
        Ok(())
    }

    /// Files an opened message where it belongs. Whatever it is, its id stays, to tell a repeat.
    fn file(&mut self, party: Party, message: Message) -> Result<(), ClientError> {
        let from = party.account;
        let (tx, now) = (self.tx, self.source.received_at);
        let Message { id: msg_id, client_hlc, parents, content } = message;
        let clock = conversation::observe(tx, client_hlc, now)?;
        let said = match content {
            Content::Read { client_hlc: up_to, up_to: last } => {
                let msg_ids = receipts::read(tx, from, up_to)?;
                self.receipt.ticked(from, msg_ids, Tick::Read);
                Said::Content(Content::Read { up_to: last, client_hlc: up_to }.to_bytes().into())
            }
            // Only an account's own devices say what it has sent.
            Content::Sent(copy) => {
                if from == self.me && copies::take(tx, &copy, self.source.server_ts)? {
                    self.receipt.copies.push(*copy);
                }
                Said::Nothing
            }
            Content::Retry { device, msg_ids } => {
                // The request went to all devices of this account; it is for the one that has what it asks for.
                let sender = DeviceId::new(self.source.device).ok().filter(|sender| *sender == device);
                if let Some(device) = sender {
                    repair::asked(tx, from, device, &msg_ids)?;
                }
                Said::Nothing
            }
            Content::Resent(message) => {
                let before = tx.get(&RECEIVED, &received_key(from, message.id))?;
                if before.is_none_or(|row| matches!(row.said, Said::Unreadable(_))) {
                    self.file(party, *message)?;
                }
                Said::Nothing
            }
            Content::GroupKey(key) => {
                let source = self.source;
                for came in groups::inbox::take_key(tx, &party, &key, now)? {
                    self.source = Source::of_group(&came, now);
                    self.file_from_group(&came, false)?;
                }
                self.source = source;
                Said::Nothing
            }
            Content::ChannelInvite(invite) => {
                self.receipt.channels.extend(take_invite(tx, &party, &invite)?);
                Said::Nothing
            }
            // Said in a group or not at all.
            Content::GroupProfile(_) => Said::Nothing,
            content => {
                conversation::seen(tx, from, msg_id, &parents)?;
                self.show(from, msg_id, &content)?;
                Said::Content(content.to_bytes().into())
            }
        };
        self.source.put(tx, from, msg_id, clock, said)
    }
}

/// A message that did not open.
struct Unopened {
    reason: String,
    /// Whether a new session may help.
    ask: bool,
}

impl Receipt {
    fn ticked(&mut self, peer: AccountId, msg_ids: Vec<MsgId>, tick: Tick) {
        if !msg_ids.is_empty() {
            self.ticks.push(Ticked { peer, msg_ids, tick });
        }
    }
}

/// What opening needs.
struct Opener<'a> {
    tx: &'a WriteTx<'a>,
    keys: &'a mut waxwing_seal::device::DeviceKeys,
    me: &'a Party,
    keys_changed: &'a mut bool,
}

impl Opener<'_> {
    /// Opens an envelope; the inner error says why it cannot be read.
    fn open(
        &mut self,
        envelope: &Envelope,
        account: AccountId,
        msg_id: MsgId,
        refused: &HashMap<AccountId, String>,
    ) -> Result<Result<(Message, Party), Unopened>, ClientError> {
        let device = DeviceId::new(envelope.from_device).ok();
        let contact = contacts::known(self.tx, account)?;
        let from = contact.zip(device).and_then(|(contact, device)| contact.party(device));
        let Some(from) = from else {
            let reason = refused.get(&account).cloned();
            let reason = reason.unwrap_or_else(|| "it is from a device that its account does not list".to_owned());
            return Ok(Err(Unopened { reason, ask: false }));
        };
        let mut sessions = sessions::load(self.tx, account, &from.device)?;
        let opened = match sessions.decrypt(self.keys, &envelope.body) {
            Ok(opened) => opened,
            Err(error) => {
                let changed = refused.get(&account).cloned();
                let ask = changed.is_none() && error != SessionError::Malformed;
                return Ok(Err(Unopened { reason: changed.unwrap_or_else(|| error.to_string()), ask }));
            }
        };
        // The ratchet has moved, whatever the plaintext turns out to be.
        sessions::store(self.tx, account, &from.device, sessions)?;
        *self.keys_changed |= opened.keys_changed;
        let message = Message::open(&opened.plaintext, msg_id, &from, self.me);
        let opened = message.map(|message| (message, from));
        Ok(opened.map_err(|error| Unopened { reason: error.to_string(), ask: false }))
    }
}

/// A lane's progress in the mailbox of this epoch. Seqs of another epoch mean nothing in this one.
fn mailbox(tx: &impl Rows, epoch: u64) -> Result<MailboxRow, ClientError> {
    let row = tx.get(&MAILBOX, SELF)?.unwrap_or_default();
    if row.epoch == epoch {
        return Ok(row);
    }
    Ok(MailboxRow { epoch, next_pending: row.next_pending, ..MailboxRow::default() })
}

/// What to say in Hello of what is stored already: it covers Acks that were lost.
pub(crate) fn have(tx: &impl Rows) -> Result<Option<Have>, ClientError> {
    let row = tx.get(&MAILBOX, SELF)?;
    Ok(row.map(|MailboxRow { epoch, normal, urgent, .. }| Have { epoch, normal, urgent, ..Have::default() }))
}

/// A message that waits to be shown or saved.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) key: Vec<u8>,
    pub(crate) row: PendingRow,
    pub(crate) contact: Contact,
    pub(crate) content: Content,
    client_hlc: u64,
}

impl Pending {
    /// Who wrote it.
    pub(crate) fn from(&self) -> Handle {
        self.contact.handle.clone()
    }
}

/// What waits to be shown or saved, in the order of its coming.
pub(crate) fn pending(tx: &impl Rows) -> Result<Vec<Pending>, ClientError> {
    let mut pending = Vec::new();
    for (key, row) in tx.list(&PENDING)? {
        let received = tx.get(&RECEIVED, &received_key(row.from, row.msg_id))?;
        let contact = match contacts::known(tx, row.from)? {
            // From another device of this account, to a group.
            None if row.group.is_some() => Some(contacts::own(tx)?).filter(|own| own.account == row.from),
            contact => contact,
        };
        // Both were stored with the row, or before it.
        if let (Some(ReceivedRow { said: Said::Content(content), client_hlc, .. }), Some(contact)) = (received, contact)
        {
            pending.push(Pending { key, row, contact, content: Content::from_bytes(&content.0)?, client_hlc });
        }
    }
    Ok(pending)
}

/// The message was shown, to a person when it was `seen`; a file in it is still to be saved.
pub(crate) fn shown(tx: &WriteTx<'_>, pending: &Pending, seen: bool) -> Result<(), ClientError> {
    if seen && pending.row.group.is_none() {
        receipts::shown(tx, pending.row.from, pending.row.msg_id, pending.client_hlc)?;
    }
    if matches!(pending.content, Content::File(_)) {
        tx.put(&PENDING, &pending.key, &PendingRow { shown: true, ..pending.row.clone() })
    } else {
        done(tx, pending)
    }
}

/// Nothing is left to do for the message.
pub(crate) fn done(tx: &WriteTx<'_>, pending: &Pending) -> Result<(), ClientError> {
    tx.remove(&PENDING, &pending.key).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob_refs::BLOB_REFS;
    use crate::outbox::tests::{NOW, Person, msg, text};
    use waxwing_protocol::frames::{Send, send::Target};
    use waxwing_protocol::{BlobId, identity::PublicKey};
    use waxwing_seal::blob::{BlobHeader, BlobKey};
    use waxwing_seal::blob_ref::BlobRef;

    const EPOCH: u64 = 3;

    /// What a server would deliver of `send`, as the message at `seq`.
    fn envelope(from: &Person, send: &Send, seq: u64) -> Envelope {
        let Some(Target::Direct(direct)) = &send.target else { panic!("a message to an account") };
        Envelope {
            seq,
            prev_seq: seq - 1,
            msg_id: send.msg_id.clone(),
            from_account: from.view.account.as_bytes().to_vec().into(),
            from_device: 1,
            server_ts: NOW.as_millis(),
            client_hlc: send.client_hlc,
            body: direct.devices[0].ciphertext.clone(),
            ..Envelope::default()
        }
    }

    fn deliver(envelopes: Vec<Envelope>) -> Deliver {
        Deliver { lane: Lane::Normal.into(), envelopes }
    }

    impl Person {
        fn receive(&self, deliver: &Deliver) -> Receipt {
            self.profile.write(|tx| receive(tx, deliver, EPOCH, &HashMap::new(), NOW)).unwrap()
        }

        fn receive_one(&self, envelope: Envelope) -> Receipt {
            self.receive(&deliver(vec![envelope]))
        }

        fn pending(&self) -> Vec<Content> {
            let pending = self.profile.read(|tx| pending(tx)).unwrap();
            pending.into_iter().map(|pending| pending.content).collect()
        }
    }

    fn acked(up_to: u64) -> Option<Ack> {
        Some(Ack { lane: Lane::Normal.into(), up_to, ranges: Vec::new() })
    }

    fn file(id: u8) -> BlobRef {
        BlobRef::new(BlobId::from_bytes([id; 32]), BlobKey::generate(), BlobHeader::generate(), 1000)
    }

    #[test]
    fn two_people_talk_across_restarts() {
        let (mut alice, mut bob) = Person::pair();
        for n in 1..=4_u8 {
            let there = envelope(&alice, &alice.send(&bob, msg(n), &text("there")), n.into());
            (alice, bob) = (alice.restarted(), bob.restarted());
            assert_eq!(bob.receive_one(there), Receipt { ack: acked(n.into()), new: 1, ..Receipt::default() });
            let back = envelope(&bob, &bob.send(&alice, msg(100 + n), &text("back")), n.into());
            (alice, bob) = (alice.restarted(), bob.restarted());
            assert_eq!(alice.receive_one(back).new, 1);
        }
        assert_eq!(bob.pending(), vec![text("there"); 4]);
        assert_eq!(alice.pending(), vec![text("back"); 4]);
    }

    /// The Ack was lost, or the process killed before it was sent.
    #[test]
    fn a_message_delivered_again_is_acknowledged_and_not_shown_again() {
        let (alice, bob) = Person::pair();
        let one = envelope(&alice, &alice.send(&bob, msg(1), &text("one")), 1);
        let two = envelope(&alice, &alice.send(&bob, msg(2), &text("two")), 2);
        assert_eq!(bob.receive(&deliver(vec![one.clone(), two.clone()])).new, 2);
        let bob = bob.restarted();
        let again = bob.receive(&deliver(vec![one, two]));
        assert_eq!(again, Receipt { ack: acked(2), ..Receipt::default() });
        assert_eq!(bob.pending(), [text("one"), text("two")]);
    }

    /// Killed before the commit, the ratchet has not moved either: the next delivery opens.
    #[test]
    fn a_message_that_was_not_stored_was_not_opened() {
        let (alice, bob) = Person::pair();
        let frame = deliver(vec![envelope(&alice, &alice.send(&bob, msg(1), &text("one")), 1)]);
        let cut: Result<(), _> = bob.profile.write(|tx| {
            assert_eq!(receive(tx, &frame, EPOCH, &HashMap::new(), NOW)?.new, 1);
            Err(ClientError::OwnAccount)
        });
        assert!(cut.is_err());
        assert_eq!(bob.pending(), []);
        let bob = bob.restarted();
        assert_eq!(bob.receive(&frame).new, 1);
        assert_eq!(bob.pending(), [text("one")]);
    }

    #[test]
    fn an_unreadable_message_holds_nothing_up() {
        let (alice, bob) = Person::pair();
        let mut broken = envelope(&alice, &alice.send(&bob, msg(1), &text("one")), 1);
        let whole = broken.clone();
        let last = broken.body.len() - 1;
        broken.body = broken.body[..last].to_vec().into();
        let garbage = Envelope { seq: 2, msg_id: vec![9; 16].into(), body: vec![0; 40].into(), ..whole.clone() };
        let nameless = Envelope { seq: 3, msg_id: vec![9; 3].into(), ..garbage.clone() };
        let good = envelope(&alice, &alice.send(&bob, msg(4), &text("four")), 4);

        let receipt = bob.receive(&deliver(vec![broken, garbage.clone(), nameless, good]));
        assert_eq!((receipt.ack, receipt.new), (acked(4), 1));
        assert_eq!(receipt.unreadable.iter().map(|it| it.msg_id).collect::<Vec<_>>(), [msg(1), msg(9)]);
        assert_eq!(bob.pending(), [text("four")]);

        assert_eq!(bob.receive_one(garbage).unreadable, [], "told once");
        assert_eq!(bob.receive_one(whole).new, 1, "it came whole in the end");
    }

    /// A server that says a message is from somebody else, or another message.
    #[test]
    fn a_relabelled_message_is_not_believed() {
        let (alice, bob) = Person::pair();
        let carol = Person::new("carol");
        bob.meet(&carol.view);
        carol.meet(&bob.view);
        let true_one = envelope(&alice, &alice.send(&bob, msg(1), &text("one")), 1);
        let as_carol = Envelope { from_account: carol.view.account.as_bytes().to_vec().into(), ..true_one.clone() };
        let as_device = Envelope { from_device: 2, ..true_one.clone() };
        for relabelled in [as_carol, as_device] {
            let receipt = bob.receive_one(relabelled);
            assert_eq!((receipt.new, receipt.unreadable.len()), (0, 1));
        }
        // Only the plaintext tells this one; opening it has spent its key.
        let renamed = Envelope { msg_id: vec![5; 16].into(), ..true_one };
        let receipt = bob.receive_one(renamed);
        assert!(receipt.unreadable[0].reason.contains("MessageId"), "{receipt:?}");
        assert_eq!(bob.pending(), []);
    }

    #[test]
    fn a_stranger_is_asked_about_and_then_believed() {
        let (alice, bob) = (Person::new("alice"), Person::new("bob"));
        alice.meet(&bob.view);
        let frame = deliver(vec![envelope(&alice, &alice.send(&bob, msg(1), &text("hello")), 1)]);
        let strangers = || bob.profile.read(|tx| strangers(tx, &frame)).unwrap();
        assert_eq!(strangers(), [alice.view.account]);

        let refused = HashMap::from([(alice.view.account, "the account is gone".to_owned())]);
        let receipt = bob.profile.write(|tx| receive(tx, &frame, EPOCH, &refused, NOW)).unwrap();
        assert_eq!(receipt.unreadable[0].reason, "the account is gone");

        bob.meet(&alice.view);
        assert_eq!(strangers(), []);
        assert_eq!(bob.receive(&frame).new, 1);
    }

    /// A device that was replaced writes with keys that the remembered list does not have.
    #[test]
    fn a_device_with_other_keys_is_asked_about() {
        let (alice, bob) = Person::pair();
        let mut from = bob.profile.read(|tx| contacts::known(tx, alice.view.account)).unwrap().unwrap();
        let frame = deliver(vec![envelope(&alice, &alice.send(&bob, msg(1), &text("hello")), 1)]);
        from.devices.devices[0].curve25519 = PublicKey([9; 32]);
        let view = crate::account::tests::view_with(&alice.profile, 2, from.devices.devices);
        bob.meet(&view);
        assert_eq!(bob.profile.read(|tx| strangers(tx, &frame)).unwrap(), [alice.view.account]);
    }

    #[test]
    fn a_file_is_remembered_until_it_is_saved_and_its_key_for_good() {
        let (alice, bob) = Person::pair();
        let photo = file(1);
        let content = Content::File(Box::new(photo.clone()));
        bob.receive_one(envelope(&alice, &alice.send(&bob, msg(1), &content), 1));
        bob.receive_one(envelope(&alice, &alice.send(&bob, msg(2), &text("nice?")), 2));
        let all = |bob: &Person| bob.profile.read(|tx| pending(tx)).unwrap();
        let waiting = all(&bob);
        assert!(waiting.iter().all(|pending| !pending.row.shown));
        bob.profile.write(|tx| waiting.iter().try_for_each(|pending| shown(tx, pending, true))).unwrap();

        let bob = bob.restarted();
        let waiting = all(&bob);
        assert_eq!((waiting.len(), waiting[0].row.shown, &waiting[0].content), (1, true, &content));
        bob.profile.write(|tx| done(tx, &waiting[0])).unwrap();
        assert!(all(&bob).is_empty());
        let key = bob.profile.read(|tx| tx.get(&BLOB_REFS, photo.id.as_bytes())).unwrap().unwrap();
        assert_eq!(BlobRef::decode(&key.0), Ok(photo));
    }

    /// Somebody who knows a blob's id cannot take its key away by sending another one.
    #[test]
    fn the_first_key_of_a_blob_stays() {
        let (alice, bob) = Person::pair();
        let photo = file(1);
        for (n, file) in [(1, photo.clone()), (2, file(1))] {
            let content = Content::File(Box::new(file));
            bob.receive_one(envelope(&alice, &alice.send(&bob, msg(n), &content), n.into()));
        }
        let key = bob.profile.read(|tx| tx.get(&BLOB_REFS, photo.id.as_bytes())).unwrap().unwrap();
        assert_eq!(BlobRef::decode(&key.0), Ok(photo));
    }

    #[test]
    fn hello_tells_what_is_stored_in_this_epoch() {
        let (alice, bob) = Person::pair();
        let have = |bob: &Person| bob.profile.read(|tx| have(tx)).unwrap();
        assert_eq!(have(&bob), None);
        bob.receive_one(envelope(&alice, &alice.send(&bob, msg(1), &text("one")), 7));
        assert_eq!(have(&bob), Some(Have { epoch: EPOCH, normal: 7, urgent: 0, ..Have::default() }));

        let urgent = Deliver {
            lane: Lane::Urgent.into(),
            envelopes: vec![envelope(&alice, &alice.send(&bob, msg(2), &text("call")), 2)],
        };
        bob.receive(&urgent);
        assert_eq!(have(&bob), Some(Have { epoch: EPOCH, normal: 7, urgent: 2, ..Have::default() }));

        let restored = deliver(vec![envelope(&alice, &alice.send(&bob, msg(3), &text("three")), 1)]);
        bob.profile.write(|tx| receive(tx, &restored, EPOCH + 1, &HashMap::new(), NOW)).unwrap();
        assert_eq!(have(&bob), Some(Have { epoch: EPOCH + 1, normal: 1, urgent: 0, ..Have::default() }));
        assert_eq!(bob.pending().len(), 3);
    }
}
