//! Posting: sealed and signed, stored, then sent until the server has it.
//!
//! An entry names the one before it, so it has to be signed anew when another author was quicker; what was refused was not
//! stored, and keeps its id. What may have been stored is sent again as it is: the server takes it once.

use serde::{Deserialize, Serialize};
use waxwing_protocol::channel::{Entry, Position};
use waxwing_protocol::frames::{Channel, Class, ErrorCode, Send, Urgency, send::Target};
use waxwing_protocol::identity::Base64;
use waxwing_protocol::{ChannelId, MsgId};
use waxwing_seal::channel::{Byline, Post};
use waxwing_seal::message::Content;

use super::book;
use crate::account::{me, now};
use crate::outbox::refusal;
use crate::profile::{Rows, Table, WriteTx};
use crate::route::{Line, Reply};
use crate::secret::SecretBytes;
use crate::{Client, ClientError, conversation};

/// Posts that the server has not taken yet, by message id: in the order of their making.
const POSTS: Table<PostRow> = Table::new("channel_outbox");

/// How often a post is signed anew when others were quicker.
const POST_TRIES: usize = 20;

/// A post on its way.
#[derive(Serialize, Deserialize)]
struct PostRow {
    channel: ChannelId,
    client_hlc: u64,
    content: SecretBytes,
    /// The entry that it follows, the charter's epoch, and the entry itself; none before the first try.
    after_seq: u64,
    after_hash: Base64,
    epoch: u64,
    entry: Base64,
}

impl Client {
    /// Writes in a channel. Returns the post's id, and its place there, when the server has it durably.
    ///
    /// # Errors
    /// [`ClientError::NotChannelAuthor`], [`ClientError::NoChannelKey`], [`ClientError::ChannelForged`]. Errors that may pass
    /// leave it stored: it is sent before the next one.
    pub async fn post_to_channel(&self, channel: ChannelId, content: Content) -> Result<(MsgId, u64), ClientError> {
        let msg_id = MsgId::from(uuid::Uuid::now_v7());
        self.profile.read(|tx| book::known(tx, channel)).map(drop)?;
        self.flush_posts().await?;
        self.profile.write(|tx| {
            let row = PostRow {
                channel,
                client_hlc: conversation::tick(tx, now())?,
                content: content.to_bytes().into(),
                after_seq: 0,
                after_hash: Base64::default(),
                epoch: 0,
                entry: Base64::default(),
            };
            tx.put(&POSTS, msg_id.as_bytes(), &row)
        })?;
        let seq = self.service.retry(|| self.deliver_post(msg_id)).await?;
        if let Err(error) = self.tend_pages(channel).await {
            // The next post, or another author's, closes it.
            tracing::warn!("a page of {channel} was not closed: {error}");
        }
        Ok((msg_id, seq))
    }

    /// Sends posts left from before, oldest first. What the server will never take is forgotten, and told.
    ///
    /// # Errors
    /// Those that may pass.
    pub(crate) async fn flush_posts(&self) -> Result<(), ClientError> {
        let left: Vec<_> = self.profile.read(|tx| tx.list(&POSTS))?;
        for (key, _) in left {
            match self.deliver_post(MsgId::from_slice(&key)?).await {
                Ok(_) => {}
                Err(error) if error.is_transient() || matches!(error, ClientError::Profile { .. }) => {
                    return Err(error);
                }
                Err(error) => tracing::warn!("a post left from before was not taken: {error}"),
            }
        }
        Ok(())
    }

    /// Sends one post until the server has it.
    async fn deliver_post(&self, msg_id: MsgId) -> Result<u64, ClientError> {
        let turn = self.route.turn().await;
        let mut line = Line::open(self).await?;
        let sent = Box::pin(self.deliver_post_by(&mut line, msg_id)).await;
        line.close().await;
        drop(turn);
        match sent {
            Err(error) if !error.is_transient() && !matches!(error, ClientError::Profile { .. }) => {
                self.profile.write(|tx| tx.remove(&POSTS, msg_id.as_bytes()))?;
                Err(error)
            }
            sent => sent,
        }
    }

    async fn deliver_post_by(&self, line: &mut Line<'_>, msg_id: MsgId) -> Result<u64, ClientError> {
        let row = self.profile.read(|tx| tx.get(&POSTS, msg_id.as_bytes()))?;
        let Some(PostRow { channel, entry, .. }) = row else { return Ok(0) };
        let mut signed = !entry.0.is_empty();
        for _ in 0..POST_TRIES {
            if !signed {
                self.reach_head(channel).await?;
                self.profile.write(|tx| sign(tx, msg_id))?;
            }
            let Some(send) = self.profile.read(|tx| frame(tx, msg_id))? else { return Ok(0) };
            let error = match line.exchange(send).await? {
                Reply::Taken(result) => {
                    self.profile.write(|tx| settle(tx, msg_id, result.conv_seq))?;
                    return Ok(result.conv_seq);
                }
                Reply::Refused(error) => error,
                Reply::Done => return Err(self.service.nonsense("a post answered by Ok")),
            };
            match error.code() {
                ErrorCode::EpochConflict => signed = false,
                ErrorCode::Forbidden => return Err(ClientError::NotChannelAuthor { channel }),
                ErrorCode::NotFound => return Err(ClientError::NoChannel { channel }),
                ErrorCode::MailboxFull => {
                    // Nobody has closed pages for long. This device can.
                    self.tend_pages(channel).await?;
                }
                _ => return Err(refusal(&error)),
            }
        }
        Err(ClientError::ChannelBusy { channel })
    }
}

/// Seals and signs a post behind the last entry, as this profile knows the channel.
fn sign(tx: &WriteTx<'_>, msg_id: MsgId) -> Result<(), ClientError> {
    let Some(mut row) = tx.get(&POSTS, msg_id.as_bytes())? else { return Ok(()) };
    let (channel, own) = (row.channel, me(tx)?);
    let book = book::known(tx, channel)?;
    let charter = book.charter();
    let author = charter.author(own.account).ok_or(ClientError::NotChannelAuthor { channel })?;
    let key = book::key(tx, channel, &charter.key_id)?.ok_or(ClientError::NoChannelKey { channel })?;
    let post = Post { client_hlc: row.client_hlc, content: Content::from_bytes(&row.content.0)? };
    let body = key.seal(&Byline { channel, author: own.account, msg_id }, &post)?;
    let entry = Entry { epoch: charter.epoch, after: book.head, author, msg_id, body };
    row.entry = Base64(own.account_key()?.sign_entry(channel, &entry));
    (row.after_seq, row.after_hash, row.epoch) = (book.head.seq, Base64(book.head.hash.to_vec()), charter.epoch);
    tx.put(&POSTS, msg_id.as_bytes(), &row)
}

fn frame(tx: &impl Rows, msg_id: MsgId) -> Result<Option<Send>, ClientError> {
    let Some(PostRow { channel, epoch, entry, .. }) = tx.get(&POSTS, msg_id.as_bytes())? else { return Ok(None) };
    let target = Channel { channel: channel.as_bytes().to_vec().into(), epoch, body: entry.0.into() };
    Ok(Some(Send {
        msg_id: msg_id.as_bytes().to_vec().into(),
        target: Some(Target::Channel(target)),
        class: Class::Message.into(),
        urgency: Urgency::None.into(),
        ..Send::default()
    }))
}

/// The server has the post: the next one follows it. What its author wrote need not be shown to them.
fn settle(tx: &WriteTx<'_>, msg_id: MsgId, seq: u64) -> Result<(), ClientError> {
    let Some(row) = tx.get(&POSTS, msg_id.as_bytes())? else { return Ok(()) };
    tx.remove(&POSTS, msg_id.as_bytes())?;
    let at = Position { seq, hash: *blake3::hash(&row.entry.0).as_bytes() };
    book::note(tx, row.channel, |book| {
        let after = (book.head.seq, &book.head.hash[..]) == (row.after_seq, &row.after_hash.0[..]);
        if after && seq == row.after_seq + 1 {
            let shown = book.seen == book.head;
            book.reached(at, shown);
        }
    })
}
