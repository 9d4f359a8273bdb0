//! The outbox: messages encrypted and not yet taken by the server.
//!
//! Encrypting moves a ratchet on. Were the ciphertext lost then, a second encryption of the same message would be
//! another message to the recipient's ratchet, and one rolled back would spend a key twice. So the moved ratchet and the
//! ciphertext are stored in one transaction before anything leaves, and every retry, after a crash too, sends that same
//! ciphertext under the same message id: the server takes it once.
//!
//! Promise: a message for which [`Client::send_content`] returned is durable at the server. A message for which it
//! failed in a way that may pass is sent with the next one, or at the next connect.
//!
//! A message goes to every device of its recipient, and a copy of it to the account's own other devices (`copies`).

use serde::{Deserialize, Serialize};
use waxwing_protocol::api::PrekeyClaim;
use waxwing_protocol::frames::{Class, DeviceBody, Direct, Error, ErrorCode, Send, SendResult, Urgency, send::Target};
use waxwing_protocol::identity::{Base64, Device, SignedPrekey};
use waxwing_protocol::{AccountId, DeviceId, Handle, MsgId, Timestamp};
use waxwing_seal::message::{Content, Message, Party};
use waxwing_seal::session::SessionError;

use crate::account::{device_keys, me, now, party};
use crate::contacts::{self, Asked, Contact};
use crate::profile::{Rows, Table, WriteTx};
use crate::route::{Line, Reply};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, conversation, copies, receipts, sessions};

/// Messages encrypted and not yet taken by the server, by message id: in the order of their making.
pub(crate) const OUTBOX: Table<OutboxRow> = Table::new("outbox");

/// Messages the server has, by message id.
pub(crate) const SENT: Table<SentRow> = Table::new("sent");

/// How often a message is fitted to changed devices before giving up. Each time a device came or went in the moment
/// between asking for the list and sending.
const FIT_TRIES: usize = 5;

/// A message on its way.
#[derive(Serialize, Deserialize)]
pub(crate) struct OutboxRow {
    pub(crate) to: AccountId,
    pub(crate) handle: Handle,
    pub(crate) client_hlc: u64,
    parents: Vec<MsgId>,
    /// Kept to encrypt for a device that is listed only later.
    pub(crate) content: SecretBytes,
    bodies: Vec<BodyRow>,
    /// A receipt that replaces an earlier one which its reader has not got yet.
    #[serde(default)]
    coalesce: bool,
    /// The message that has to be at the server first: what this is a copy of.
    #[serde(default)]
    after: Option<MsgId>,
}

/// A ciphertext for one device.
#[derive(Serialize, Deserialize)]
struct BodyRow {
    device: DeviceId,
    reg_id: u32,
    ciphertext: Base64,
}

/// A message that was sent.
#[derive(Serialize, Deserialize)]
pub(crate) struct SentRow {
    pub(crate) to: AccountId,
    pub(crate) handle: Handle,
    pub(crate) client_hlc: u64,
    pub(crate) server_ts: Timestamp,
    pub(crate) content: SecretBytes,
}

/// A message of the outbox that will not be sent.
#[derive(Debug)]
pub(crate) struct Unsent {
    pub(crate) msg_id: MsgId,
    pub(crate) error: ClientError,
}

impl Client {
    /// Sends `content` to every device of `to`, under an id that the caller chose and stored: called again with it,
    /// after a crash too, the message is still sent once.
    ///
    /// Returns when the server has it durably. Messages left from before go first.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`], [`ClientError::IdentityChanged`] and [`ClientError::NotAccepted`] when it
    /// cannot be sent; it is then forgotten here. Errors that may pass leave it in the outbox.
    pub async fn send_content(&self, to: &Handle, msg_id: MsgId, content: Content) -> Result<MsgId, ClientError> {
        let (queued, sent) = self.profile.read(|tx| Ok((is_queued(tx, msg_id)?, is_sent(tx, msg_id)?)))?;
        if sent {
            return Ok(msg_id);
        }
        if !queued {
            self.queue(to, msg_id, &content).await?;
        }
        let flush = || async move {
            let turn = self.route.turn().await;
            if self.profile.read(|tx| is_sent(tx, msg_id))? {
                return Ok(msg_id);
            }
            let mut line = Line::open(self).await?;
            let unsent = self.flush(&mut line).await;
            line.close().await;
            drop(turn);
            match unsent?.into_iter().find(|unsent| unsent.msg_id == msg_id) {
                Some(unsent) => Err(unsent.error),
                None => self.profile.read(|tx| outcome(tx, msg_id)),
            }
        };
        self.service.retry(flush).await
    }

    /// Sends words, and returns when the server has them durably. Cut before that, they may have been put into the
    /// outbox already, and are sent at the next chance.
    ///
    /// # Errors
    /// Those of [`Client::send_content`].
    pub async fn send_text(&self, to: &Handle, words: &str) -> Result<MsgId, ClientError> {
        let msg_id = MsgId::from(uuid::Uuid::now_v7());
        Box::pin(self.send_content(to, msg_id, Content::Text(words.to_owned()))).await
    }

    /// Sends everything in the outbox, oldest first. What the server will never take is removed and told. Whoever calls
    /// it has the [turn](crate::route::Route::turn).
    pub(crate) async fn flush(&self, line: &mut Line<'_>) -> Result<Vec<Unsent>, ClientError> {
        let mut unsent = Vec::new();
        for msg_id in self.profile.read(|tx| queued(tx))? {
            match self.profile.write(|tx| turn(tx, msg_id))? {
                Turn::Now => {}
                Turn::Later => continue,
            }
            // A receipt or a copy is nobody's message: whether it arrives is not worth telling.
            let quiet = self.profile.read(|tx| is_quiet(tx, msg_id))?;
            match self.deliver(line, msg_id).await {
                Ok(()) => {}
                // This one must wait, and those behind it need not.
                Err(error @ (ClientError::NotNow { .. } | ClientError::DevicesUnsettled { .. })) => {
                    unsent.extend((!quiet).then_some(Unsent { msg_id, error }));
                }
                Err(error) if is_about_message(&error) => {
                    self.profile.write(|tx| tx.remove(&OUTBOX, msg_id.as_bytes()))?;
                    unsent.extend((!quiet).then_some(Unsent { msg_id, error }));
                }
                // The network, the service or the profile: no message is to blame.
                Err(error) => return Err(error),
            }
        }
        unsent.extend(Box::pin(self.flush_groups(line)).await?);
        Ok(unsent)
    }

    /// Encrypts a message into the outbox.
    async fn queue(&self, to: &Handle, msg_id: MsgId, content: &Content) -> Result<(), ClientError> {
        let contact = self.contact(to).await?;
        let (contact, prekeys) = self.reach(contact).await?;
        let own = self.reach_own().await?;
        self.profile.write(|tx| {
            if enqueue(tx, &contact, &prekeys, msg_id, content, now())? {
                copies::enqueue(tx, msg_id, &own, now())?;
            }
            Ok(())
        })
    }

    /// Encrypts receipts of what was read since the last ones into the outbox. Whom they cannot be encrypted for now is
    /// told with the next ones.
    pub(crate) async fn queue_receipts(&self) -> Result<(), ClientError> {
        for account in self.profile.read(|tx| receipts::due(tx))? {
            let Some(contact) = self.profile.read(|tx| contacts::known(tx, account))? else { continue };
            match self.reach(contact).await {
                Ok((contact, prekeys)) => {
                    let msg_id = MsgId::from(uuid::Uuid::now_v7());
                    self.profile.write(|tx| enqueue_receipt(tx, &contact, &prekeys, msg_id, now()))?;
                }
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                Err(error) => tracing::debug!("a receipt to {account} waits: {error}"),
            }
        }
        Ok(())
    }

    /// Encrypts into the outbox, for this account's other devices, how far messages were read since they were last told.
    pub(crate) async fn queue_read_marks(&self) -> Result<(), ClientError> {
        for account in self.profile.read(|tx| receipts::unsynced(tx))? {
            let Some(contact) = self.profile.read(|tx| contacts::known(tx, account))? else { continue };
            match self.reach_own().await {
                Ok(own) => self.profile.write(|tx| copies::enqueue_mark(tx, &contact, &own, now()))?,
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                Err(error) => tracing::debug!("the other devices learn later what was read: {error}"),
            }
        }
        Ok(())
    }

    /// Sends one message of the outbox until the server has it, fitting it to the recipient's devices.
    pub(crate) async fn deliver(&self, line: &mut Line<'_>, msg_id: MsgId) -> Result<(), ClientError> {
        for _ in 0..FIT_TRIES {
            let Some((to, send)) = self.profile.read(|tx| frame(tx, msg_id))? else { return Ok(()) };
            let error = match line.exchange(send).await? {
                Reply::Taken(result) => return self.profile.write(|tx| settle(tx, msg_id, &result)),
                Reply::Refused(error) => error,
                Reply::Done => return Err(self.service.nonsense("a message answered by Ok")),
            };
            match error.code() {
                ErrorCode::DeviceMismatch | ErrorCode::StaleDevices => {
                    let contact = self.look_up(Asked::Account(to)).await?;
                    match self.claim_prekeys(&contact).await {
                        Ok(prekeys) => self.profile.write(|tx| fit(tx, &contact, &prekeys, msg_id))?,
                        // A device went between the two questions: its account is asked again.
                        Err(error) if is_gone(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
                ErrorCode::NotFound => {
                    // The account is gone. Its handle may be somebody else's by now: that is worth saying.
                    let handle = self.profile.read(|tx| handle(tx, msg_id))?;
                    if let Some(handle) = handle {
                        self.look_up(Asked::Handle(&handle)).await?;
                    }
                    return Err(refusal(&error));
                }
                _ => return Err(refusal(&error)),
            }
        }
        let handle = self.profile.read(|tx| handle(tx, msg_id))?;
        Err(handle.map_or_else(|| refusal(&Error::default()), |handle| ClientError::DevicesUnsettled { handle }))
    }

    /// Claims what it takes to encrypt for every device of `contact`. A device that is gone by then is taken for a sign
    /// that the list is old, and the newest is asked for.
    pub(crate) async fn reach(&self, contact: Contact) -> Result<(Contact, Prekeys), ClientError> {
        match self.claim_prekeys(&contact).await {
            Err(error) if is_gone(&error) => {
                let contact = self.look_up(Asked::Account(contact.account)).await?;
                let prekeys = self.claim_prekeys(&contact).await?;
                Ok((contact, prekeys))
            }
            prekeys => Ok((contact, prekeys?)),
        }
    }

    /// The same for this account's other devices, as far as it can be had: a copy that lacks one is fitted when it is sent.
    async fn reach_own(&self) -> Result<Prekeys, ClientError> {
        let own = self.profile.read(|tx| contacts::own(tx))?;
        match self.claim_prekeys(&own).await {
            Err(error @ ClientError::Profile { .. }) => Err(error),
            Err(error) => {
                tracing::debug!("copies for own devices wait: {error}");
                Ok(Vec::new())
            }
            prekeys => prekeys,
        }
    }

    /// Claims a prekey of a device.
    pub(crate) async fn claim_prekey(&self, account: AccountId, device: DeviceId) -> Result<SignedPrekey, ClientError> {
        let service = &self.service;
        let url = service.api_url(&format!("/v1/keys/{account}/{device}/claim")).await?;
        let claim: PrekeyClaim = service.retry(|| service.json(service.authorized(service.http().post(&url)))).await?;
        Ok(claim.prekey)
    }

    /// Claims a prekey for each device of `contact` that there is no session with.
    async fn claim_prekeys(&self, contact: &Contact) -> Result<Prekeys, ClientError> {
        let strangers = self.profile.read(|tx| {
            let me = party(&me(tx)?, &device_keys(tx)?);
            let mut strangers = Vec::new();
            for device in contact.recipients(&me) {
                if !sessions::exists(tx, contact.account, &device)? {
                    strangers.push(device.id);
                }
            }
            Ok(strangers)
        })?;
        let mut prekeys = Vec::new();
        for device in strangers {
            prekeys.push((device, self.claim_prekey(contact.account, device).await?));
        }
        Ok(prekeys)
    }
}

fn is_queued(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    Ok(tx.get(&OUTBOX, msg_id.as_bytes())?.is_some())
}

/// Prekeys that were claimed, each of a device of one account.
pub(crate) type Prekeys = Vec<(DeviceId, SignedPrekey)>;

/// Whether a claim says that a device is gone, or has nothing to begin a session with.
fn is_gone(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { problem, .. } if problem.status == 404)
}

/// Whether a message of the outbox may leave.
enum Turn {
    Now,
    Later,
}

/// Whether a message may leave; a copy of one that the server will never have is taken out.
fn turn(tx: &WriteTx<'_>, msg_id: MsgId) -> Result<Turn, ClientError> {
    let Some(OutboxRow { after: Some(of), .. }) = tx.get(&OUTBOX, msg_id.as_bytes())? else { return Ok(Turn::Now) };
    if is_sent(tx, of)? {
        return Ok(Turn::Now);
    }
    if !is_queued(tx, of)? {
        tx.remove(&OUTBOX, msg_id.as_bytes())?;
    }
    Ok(Turn::Later)
}

fn is_words(content: &Content) -> bool {
    matches!(content, Content::Text(_) | Content::File(_))
}

fn is_quiet(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    let Some(row) = tx.get(&OUTBOX, msg_id.as_bytes())? else { return Ok(false) };
    Ok(!is_words(&Content::from_bytes(&row.content.0)?))
}

/// To whom a message goes or went, as far as this profile remembers.
pub(crate) fn recipient(tx: &impl Rows, msg_id: MsgId) -> Result<Option<AccountId>, ClientError> {
    if let Some(row) = tx.get(&SENT, msg_id.as_bytes())? {
        return Ok(Some(row.to));
    }
    Ok(tx.get(&OUTBOX, msg_id.as_bytes())?.map(|row| row.to))
}

fn is_sent(tx: &impl Rows, msg_id: MsgId) -> Result<bool, ClientError> {
    Ok(tx.get(&SENT, msg_id.as_bytes())?.is_some())
}

/// What became of a message that the outbox no longer holds.
fn outcome(tx: &impl Rows, msg_id: MsgId) -> Result<MsgId, ClientError> {
    if is_sent(tx, msg_id)? {
        return Ok(msg_id);
    }
    // The connection that watches flushed it first, and was refused.
    Err(ClientError::NotAccepted { code: "REFUSED", message: "the server did not want it".to_owned() })
}

/// Takes a message out of the outbox, should it be there: it is not sent any more. The recipient's ratchet passes over it.
pub(crate) fn forget(tx: &WriteTx<'_>, msg_id: MsgId) -> Result<(), ClientError> {
    tx.remove(&OUTBOX, msg_id.as_bytes()).map(drop)
}

/// The ids in the outbox, oldest first.
fn queued(tx: &impl Rows) -> Result<Vec<MsgId>, ClientError> {
    let rows = tx.list(&OUTBOX)?;
    rows.into_iter().map(|(key, _)| Ok(MsgId::from_slice(&key)?)).collect()
}

fn handle(tx: &impl Rows, msg_id: MsgId) -> Result<Option<Handle>, ClientError> {
    Ok(tx.get(&OUTBOX, msg_id.as_bytes())?.map(|row| row.handle))
}

/// Encrypts a message for every device of `contact`, and stores ciphertexts and moved ratchets together. False when it was
/// there already.
fn enqueue(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    msg_id: MsgId,
    content: &Content,
    now: Timestamp,
) -> Result<bool, ClientError> {
    // Another task may have been quicker.
    if is_queued(tx, msg_id)? || is_sent(tx, msg_id)? {
        return Ok(false);
    }
    let mut row = OutboxRow {
        to: contact.account,
        handle: contact.handle.clone(),
        client_hlc: conversation::tick(tx, now)?,
        parents: conversation::follow(tx, contact.account, msg_id)?,
        content: content.to_bytes().into(),
        bodies: Vec::new(),
        coalesce: false,
        after: None,
    };
    encrypt_missing(tx, contact, prekeys, msg_id, &mut row)?;
    if row.bodies.is_empty() {
        return Err(ClientError::OwnAccount);
    }
    receipts::sending(tx, contact.account, msg_id, row.client_hlc)?;
    tx.put(&OUTBOX, msg_id.as_bytes(), &row)?;
    Ok(true)
}

/// Encrypts something that is nobody's words: a copy, which waits for the message it is `after`, or session repair. It is
/// no part of the conversation.
pub(crate) fn enqueue_aside(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    msg_id: MsgId,
    content: &Content,
    after: Option<MsgId>,
    now: Timestamp,
) -> Result<(), ClientError> {
    let mut row = OutboxRow {
        to: contact.account,
        handle: contact.handle.clone(),
        client_hlc: conversation::tick(tx, now)?,
        parents: Vec::new(),
        content: content.to_bytes().into(),
        bodies: Vec::new(),
        coalesce: false,
        after,
    };
    encrypt_missing(tx, contact, prekeys, msg_id, &mut row)?;
    tx.put(&OUTBOX, msg_id.as_bytes(), &row)
}

/// Encrypts a receipt of what was read of `contact`, if one is due. It is no part of the conversation: no message names
/// it as seen before.
fn enqueue_receipt(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    msg_id: MsgId,
    now: Timestamp,
) -> Result<(), ClientError> {
    let Some(receipts::Due { content, coalesce }) = receipts::take(tx, contact.account)? else { return Ok(()) };
    let mut row = OutboxRow {
        to: contact.account,
        handle: contact.handle.clone(),
        client_hlc: conversation::tick(tx, now)?,
        parents: Vec::new(),
        content: content.to_bytes().into(),
        bodies: Vec::new(),
        coalesce,
        after: None,
    };
    encrypt_missing(tx, contact, prekeys, msg_id, &mut row)?;
    tx.put(&OUTBOX, msg_id.as_bytes(), &row)
}

/// Fits a message to the recipient's newest device list: keeps the ciphertexts of devices that stayed as they are, drops
/// those of devices that went or were replaced, and encrypts for those that came.
fn fit(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    msg_id: MsgId,
) -> Result<(), ClientError> {
    let Some(mut row) = tx.get(&OUTBOX, msg_id.as_bytes())? else { return Ok(()) };
    row.bodies.retain(|body| contact.devices.device(body.device).is_some_and(|device| device.reg_id == body.reg_id));
    encrypt_missing(tx, contact, prekeys, msg_id, &mut row)?;
    tx.put(&OUTBOX, msg_id.as_bytes(), &row)
}

/// Encrypts for each device of `contact` that has no ciphertext yet.
fn encrypt_missing(
    tx: &WriteTx<'_>,
    contact: &Contact,
    prekeys: &[(DeviceId, SignedPrekey)],
    msg_id: MsgId,
    row: &mut OutboxRow,
) -> Result<(), ClientError> {
    let keys = device_keys(tx)?;
    let me = party(&me(tx)?, &keys);
    let content = Content::from_bytes(&row.content.0)?;
    let is_copy = matches!(content, Content::Sent(_));
    let message = Message { id: msg_id, client_hlc: row.client_hlc, parents: row.parents.clone(), content };
    for device in contact.recipients(&me) {
        if row.bodies.iter().any(|body| body.device == device.id) {
            continue;
        }
        let to = Party { account: contact.account, device };
        let plaintext = message.seal(&me, &to)?;
        let mut sessions = sessions::load(tx, to.account, &device)?;
        if sessions.is_empty() {
            match prekeys.iter().find(|(id, _)| *id == device.id) {
                Some((_, prekey)) => sessions.start(&keys, &device, prekey)?,
                // A message must not wait for a copy: the server will say what is missing.
                None if is_copy => continue,
                None => return Err(SessionError::NoSession.into()),
            }
        }
        let ciphertext = sessions.encrypt(&plaintext)?;
        sessions::store(tx, to.account, &device, sessions)?;
        row.bodies.push(body(&device, ciphertext));
    }
    row.bodies.sort_unstable_by_key(|body| body.device);
    Ok(())
}

fn body(device: &Device, ciphertext: Vec<u8>) -> BodyRow {
    BodyRow { device: device.id, reg_id: device.reg_id, ciphertext: Base64(ciphertext) }
}

/// The frame of a message in the outbox, and its recipient.
fn frame(tx: &impl Rows, msg_id: MsgId) -> Result<Option<(AccountId, Send)>, ClientError> {
    let Some(row) = tx.get(&OUTBOX, msg_id.as_bytes())? else { return Ok(None) };
    let devices = row.bodies.into_iter().map(|body| DeviceBody {
        device: body.device.get(),
        reg_id: body.reg_id,
        ciphertext: body.ciphertext.0.into(),
    });
    let (class, urgency) = match Content::from_bytes(&row.content.0)? {
        Content::Read { .. } => (Class::Receipt, Urgency::None),
        Content::Sent(_) => (Class::Sync, Urgency::None),
        Content::Retry { .. } | Content::GroupKey(_) | Content::ChannelInvite(_) => (Class::Control, Urgency::None),
        Content::Resent(_) => (Class::Control, Urgency::Background),
        _ => (Class::Message, Urgency::High),
    };
    let direct = Direct { account: row.to.as_bytes().to_vec().into(), devices: devices.collect() };
    let send = Send {
        msg_id: msg_id.as_bytes().to_vec().into(),
        target: Some(Target::Direct(direct)),
        class: class.into(),
        urgency: urgency.into(),
        ttl_s: None,
        conv_id: Vec::new().into(),
        client_hlc: row.client_hlc,
        coalesce_key: if row.coalesce { receipts::COALESCE_KEY.into() } else { Vec::new().into() },
    };
    Ok(Some((row.to, send)))
}

/// The server has the message.
fn settle(tx: &WriteTx<'_>, msg_id: MsgId, result: &SendResult) -> Result<(), ClientError> {
    let Some(row) = tx.get(&OUTBOX, msg_id.as_bytes())? else { return Ok(()) };
    if !is_words(&Content::from_bytes(&row.content.0)?) {
        return tx.remove(&OUTBOX, msg_id.as_bytes()).map(drop);
    }
    let OutboxRow { to, handle, client_hlc, content, .. } = row;
    let server_ts = Timestamp::from_millis(result.server_ts);
    tx.put(&SENT, msg_id.as_bytes(), &SentRow { to, handle, client_hlc, server_ts, content })?;
    tx.remove(&OUTBOX, msg_id.as_bytes())?;
    Ok(())
}

/// Whether an error means that this message cannot be sent, rather than that nothing can for now.
pub(crate) fn is_about_message(error: &ClientError) -> bool {
    match error {
        // Of a claim: the device is gone, or has no prekeys.
        ClientError::Refused { problem, .. } => problem.status == 404,
        ClientError::NotAccepted { .. }
        | ClientError::UnknownRecipient { .. }
        | ClientError::IdentityChanged { .. }
        | ClientError::DevicesRolledBack { .. }
        | ClientError::BadIdentity { .. }
        | ClientError::OwnAccount
        | ClientError::Session(_)
        | ClientError::Message(_) => true,
        _ => false,
    }
}

/// What a refusal means to the sender.
pub(crate) fn refusal(error: &Error) -> ClientError {
    let code = error.code();
    let message = error.message.clone();
    match code {
        ErrorCode::RateLimited | ErrorCode::MailboxFull | ErrorCode::Unavailable | ErrorCode::Internal => {
            let after = std::time::Duration::from_millis(error.retry_after_ms.into());
            ClientError::NotNow { code: code.as_str_name(), message, retry_after: (!after.is_zero()).then_some(after) }
        }
        _ => ClientError::NotAccepted { code: code.as_str_name(), message },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Profile;
    use crate::account::tests::{registered, view_with};
    use crate::contacts::accept;
    use waxwing_protocol::api::AccountView;
    use waxwing_seal::device::DeviceKeys;

    pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_000_000);

    /// A person with a profile, who is handed frames by the test instead of by a server.
    pub(crate) struct Person {
        home: tempfile::TempDir,
        pub(crate) profile: Profile,
        pub(crate) view: AccountView,
    }

    pub(crate) fn msg(n: u8) -> MsgId {
        MsgId::from_bytes([n; 16])
    }

    pub(crate) fn text(words: &str) -> Content {
        Content::Text(words.to_owned())
    }

    impl Person {
        pub(crate) fn new(handle: &str) -> Self {
            let home = tempfile::tempdir().unwrap();
            let (profile, view) = registered(home.path(), handle);
            Self { home, profile, view }
        }

        /// Two people who know each other.
        pub(crate) fn pair() -> (Self, Self) {
            let (alice, bob) = (Self::new("alice"), Self::new("bob"));
            alice.meet(&bob.view);
            bob.meet(&alice.view);
            (alice, bob)
        }

        pub(crate) fn meet(&self, view: &AccountView) -> Contact {
            self.profile.write(|tx| accept(tx, view.clone())).unwrap()
        }

        /// Ends the process and starts another one.
        pub(crate) fn restarted(self) -> Self {
            let Self { home, profile, view } = self;
            drop(profile);
            let profile = Profile::open(home.path()).unwrap();
            Self { home, profile, view }
        }

        /// A prekey, as the directory would hand it out.
        pub(crate) fn prekey(&self) -> SignedPrekey {
            let take = |tx: &WriteTx<'_>| {
                let mut keys = device_keys(tx)?;
                let prekey = keys.one_time_prekeys(1).remove(0);
                tx.put(&crate::account::DEVICE, crate::account::SELF, &SecretBytes(keys.into_bytes()))?;
                Ok(prekey)
            };
            self.profile.write(take).unwrap()
        }

        /// Encrypts into the outbox; claims a prekey when there is no session.
        pub(crate) fn queue(&self, to: &Self, id: MsgId, content: &Content) -> Result<(), ClientError> {
            let contact = self.meet(&to.view);
            let device = contact.devices.devices[0];
            let stranger = !self.profile.read(|tx| sessions::exists(tx, contact.account, &device))?;
            let prekeys: Vec<_> = stranger.then(|| (device.id, to.prekey())).into_iter().collect();
            self.profile.write(|tx| enqueue(tx, &contact, &prekeys, id, content, NOW)).map(drop)
        }

        pub(crate) fn frame(&self, id: MsgId) -> Option<Send> {
            self.profile.read(|tx| frame(tx, id)).unwrap().map(|(_, send)| send)
        }

        /// Encrypts a message and gives the frame that carries it.
        pub(crate) fn send(&self, to: &Self, id: MsgId, content: &Content) -> Send {
            self.queue(to, id, content).unwrap();
            self.frame(id).unwrap()
        }
    }

    fn bodies(send: &Send) -> Vec<(u32, Vec<u8>)> {
        let Some(Target::Direct(direct)) = &send.target else { panic!("a message to an account") };
        direct.devices.iter().map(|body| (body.device, body.ciphertext.to_vec())).collect()
    }

    /// The rule about ratchets: what was encrypted once is sent, and nothing else.
    #[test]
    fn a_retry_sends_the_same_ciphertext_even_after_a_crash() {
        let (alice, bob) = Person::pair();
        let first = alice.send(&bob, msg(1), &text("hello"));
        let alice = alice.restarted();
        assert_eq!(alice.frame(msg(1)), Some(first.clone()));
        alice.queue(&bob, msg(1), &text("hello")).unwrap();
        assert_eq!(alice.frame(msg(1)), Some(first));
        assert_eq!(alice.profile.read(|tx| queued(tx)).unwrap(), [msg(1)]);
    }

    /// Killed before the commit: neither a moved ratchet nor a ciphertext is left, so no key is used twice.
    #[test]
    fn a_message_that_was_not_stored_was_not_encrypted() {
        let (alice, bob) = Person::pair();
        alice.send(&bob, msg(1), &text("hello"));
        let contact = alice.meet(&bob.view);
        let cut: Result<(), _> = alice.profile.write(|tx| {
            enqueue(tx, &contact, &[], msg(2), &text("cut"), NOW)?;
            Err(ClientError::OwnAccount)
        });
        assert!(cut.is_err());
        assert_eq!(alice.frame(msg(2)), None);
        alice.send(&bob, msg(3), &text("again"));
    }

    #[test]
    fn a_message_the_server_has_is_never_sent_again() {
        let (alice, bob) = Person::pair();
        alice.send(&bob, msg(1), &text("hello"));
        let result =
            SendResult { msg_id: msg(1).as_bytes().to_vec().into(), server_ts: 5, duplicate: false, conv_seq: 0 };
        alice.profile.write(|tx| settle(tx, msg(1), &result)).unwrap();
        let alice = alice.restarted();
        assert_eq!(alice.profile.read(|tx| queued(tx)).unwrap(), []);
        assert_eq!(alice.profile.read(|tx| outcome(tx, msg(1))).unwrap(), msg(1));
        alice.queue(&bob, msg(1), &text("hello")).unwrap();
        assert_eq!(alice.frame(msg(1)), None);
    }

    /// Given up by its sender: it leaves no trace that a later connect would send, and does not spoil the next.
    #[test]
    fn a_forgotten_message_is_not_sent_and_the_next_one_is() {
        let (alice, bob) = Person::pair();
        alice.send(&bob, msg(1), &text("never mind"));
        alice.profile.write(|tx| forget(tx, msg(1))).unwrap();
        let alice = alice.restarted();
        alice.send(&bob, msg(2), &text("hello"));
        assert_eq!(alice.profile.read(|tx| queued(tx)).unwrap(), [msg(2)]);
        assert_eq!(alice.frame(msg(1)), None);
    }

    #[test]
    fn the_outbox_keeps_the_order_of_making() {
        let (alice, bob) = Person::pair();
        for n in [1, 2, 3] {
            alice.send(&bob, msg(n), &text("hello"));
        }
        assert_eq!(alice.profile.read(|tx| queued(tx)).unwrap(), [msg(1), msg(2), msg(3)]);
        let clocks: Vec<_> = [1, 2, 3].map(|n| alice.frame(msg(n)).unwrap().client_hlc).into();
        assert!(clocks.is_sorted_by(|a, b| a < b), "{clocks:?}");
    }

    /// Bob's phone joins between asking for the list and sending, then is replaced, then goes.
    #[test]
    fn a_message_is_fitted_to_the_devices_that_changed_and_no_others() {
        let (alice, bob) = Person::pair();
        let first = bob.profile.read(|tx| device_keys(tx)).unwrap().device();
        let phone = |_| DeviceKeys::generate(DeviceId::new(2).unwrap());
        let [mut phone, mut replaced] = [0, 1].map(phone);
        let before = bodies(&alice.send(&bob, msg(1), &text("hello")));
        let fit_to = |revision, devices: Vec<Device>, prekeys: &[(DeviceId, SignedPrekey)]| {
            let contact = alice.meet(&view_with(&bob.profile, revision, devices));
            alice.profile.write(|tx| fit(tx, &contact, prekeys, msg(1))).unwrap();
            bodies(&alice.frame(msg(1)).unwrap())
        };

        let prekey = (phone.device().id, phone.one_time_prekeys(1).remove(0));
        let joined = fit_to(2, vec![first, phone.device()], &[prekey]);
        assert_eq!((joined.len(), &joined[0]), (2, &before[0]));

        let prekey = (replaced.device().id, replaced.one_time_prekeys(1).remove(0));
        let after = fit_to(3, vec![first, replaced.device()], &[prekey]);
        assert_eq!((after.len(), &after[0]), (2, &before[0]));
        assert_ne!(after[1], joined[1]);

        assert_eq!(fit_to(4, vec![first], &[]), before);
    }

    #[test]
    fn nothing_is_encrypted_without_a_prekey_of_the_listed_device() {
        let (alice, bob) = Person::pair();
        let contact = alice.meet(&bob.view);
        let device = contact.devices.devices[0].id;
        let foreign = Person::new("mallory").prekey();
        for prekeys in [vec![], vec![(device, foreign)]] {
            let refused = alice.profile.write(|tx| enqueue(tx, &contact, &prekeys, msg(1), &text("hello"), NOW));
            assert!(matches!(refused, Err(ClientError::Session(_))));
        }
        assert_eq!(alice.frame(msg(1)), None);
    }

    #[test]
    fn a_message_to_oneself_alone_is_refused() {
        let alice = Person::new("alice");
        let contact = alice.meet(&alice.view);
        let refused = alice.profile.write(|tx| enqueue(tx, &contact, &[], msg(1), &text("note"), NOW));
        assert!(matches!(refused, Err(ClientError::OwnAccount)));
    }

    #[test]
    fn refusals_that_pass_keep_the_message_and_others_do_not() {
        let refused = |code: ErrorCode| {
            let error = Error { code: code.into(), message: "no".to_owned(), retry_after_ms: 7, ..Error::default() };
            refusal(&error)
        };
        for code in [ErrorCode::RateLimited, ErrorCode::MailboxFull, ErrorCode::Unavailable, ErrorCode::Internal] {
            assert!(refused(code).is_transient(), "{code:?}");
        }
        for code in [ErrorCode::BadRequest, ErrorCode::Forbidden, ErrorCode::TooLarge, ErrorCode::Unsupported] {
            assert!(!refused(code).is_transient(), "{code:?}");
        }
    }
}
