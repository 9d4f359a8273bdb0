//! Reading a channel's log: from nodes and from pages, every entry checked against the one before it.

use waxwing_protocol::api::{
    CHANNEL_CHARTERS_MAX, ChannelEntries, ChannelManifest, ChannelPageView, ChannelView, GrantRequest,
};
use waxwing_protocol::channel::{ChannelError, Charter, Page, Position, SignedEntry, charter_for};
use waxwing_protocol::{AccountId, BlobId, ChannelId};
use waxwing_seal::channel::Byline;

use super::book::{self, Book, ChannelPost};
use super::link::ChannelLink;
use crate::account::now;
use crate::contacts::{self, Asked};
use crate::profile::{Rows, WriteTx};
use crate::{Client, ClientError, blob_refs, conversation};

/// Pages of charters asked for in a row at most.
const CHARTER_PAGES_MAX: usize = 4096 / CHANNEL_CHARTERS_MAX + 1;

/// Entries that follow one another, as they came.
pub(crate) struct Run {
    pub(crate) entries: Vec<Vec<u8>>,
    /// The last entry that there is, as the server says.
    pub(crate) head_seq: u64,
}

/// An entry that was checked.
pub(crate) struct Checked {
    pub(crate) post: ChannelPost,
    pub(crate) at: Position,
    /// It and what is written now have keys that this device was not given. It waits for them: somebody who is given the key
    /// later goes on here.
    pub(crate) locked: bool,
}

/// How far a run can be shown: the last entry before the first that is locked, if there is one before it.
pub(crate) fn shown(run: &[Checked]) -> (&[Checked], Option<Position>) {
    let open = run.iter().position(|checked| checked.locked).unwrap_or(run.len());
    (&run[..open], run[..open].last().map(|checked| checked.at))
}

pub(crate) fn forged(channel: ChannelId, source: ChannelError) -> ClientError {
    ClientError::ChannelForged { channel, source }
}

impl Client {
    /// Follows the channel that a link leads to, from where its key begins. Following it again gives it the link's key.
    ///
    /// # Errors
    /// [`ClientError::NoChannel`] when there is none, [`ClientError::ChannelForged`] when the server shows another one than
    /// the link leads to.
    pub async fn follow_channel(&self, link: &ChannelLink) -> Result<ChannelId, ClientError> {
        let channel = link.channel;
        let not_its = |what| forged(channel, ChannelError::Follows(what));
        let known = self.profile.read(|tx| book::load(tx, channel))?;
        if let Some(known) = &known
            && known.owner != link.owner
        {
            return Err(not_its("the link names another owner than this profile knows"));
        }
        if known.is_some() {
            self.sync_charters(channel).await?;
        } else {
            let mut charters = Vec::new();
            for _ in 0..CHARTER_PAGES_MAX {
                let view = self.channel_view(channel, charters.len() as u64).await?;
                let count = view.charters.len();
                for signed in view.charters {
                    let before = charters.last().map(|(_, charter)| charter);
                    let charter = signed.verify(before).map_err(|source| forged(channel, source))?;
                    charters.push((signed, charter));
                }
                if count == 0 || charters.len() as u64 >= view.epoch {
                    break;
                }
            }
            let first = charters.first().map(|(_, charter)| charter).ok_or(ClientError::NoChannel { channel })?;
            let owner = waxwing_protocol::channel::Author { account: first.owner, account_key: first.owner_key };
            if first.channel != channel || owner != link.owner {
                return Err(not_its("it is not the channel that the link leads to"));
            }
            let begun = begin(charters.iter().map(|(_, charter)| charter), link).ok_or_else(|| {
                not_its(
                    "no charter has the link's key: it was replaced, ask for a new link, or the server withholds it",
                )
            })?;
            self.profile.write(|tx| {
                for (signed, _) in &charters {
                    book::put_charter(tx, channel, signed)?;
                }
                let charters = charters.iter().map(|(_, charter)| charter.clone()).collect();
                let (followers, owed) = (Vec::new(), Vec::new());
                let book = Book { channel, owner, charters, begun, head: begun, seen: begun, followers, owed };
                book::store(tx, &book)
            })?;
        }
        self.profile.write(|tx| book::put_key(tx, channel, &link.key))?;
        self.learn_authors(channel).await?;
        Ok(channel)
    }

    /// Learns charters that this profile does not know.
    ///
    /// # Errors
    /// [`ClientError::ChannelForged`] when one is not the owner's, does not follow, or shows that entries were another log's.
    pub(crate) async fn sync_charters(&self, channel: ChannelId) -> Result<ChannelView, ClientError> {
        for _ in 0..CHARTER_PAGES_MAX {
            let known = self.profile.read(|tx| book::known(tx, channel))?;
            let view = self.channel_view(channel, known.charter().epoch).await?;
            if view.epoch < known.charter().epoch {
                return Err(forged(channel, ChannelError::Follows("the server shows an older charter than before")));
            }
            if view.charters.is_empty() {
                return Ok(view);
            }
            self.profile.write(|tx| {
                let mut book = book::known(tx, channel)?;
                for signed in &view.charters {
                    take_charter(tx, &mut book, signed)?;
                }
                Ok(())
            })?;
            self.learn_authors(channel).await?;
            if self.profile.read(|tx| book::known(tx, channel))?.charter().epoch >= view.epoch {
                return Ok(view);
            }
        }
        Err(ClientError::ChannelBusy { channel })
    }

    /// Learns what authors are called, as far as that can be had.
    async fn learn_authors(&self, channel: ChannelId) -> Result<(), ClientError> {
        let strangers: Vec<AccountId> = self.profile.read(|tx| {
            let (book, own) = (book::known(tx, channel)?, contacts::own(tx)?.account);
            let mut strangers = Vec::new();
            for author in &book.charter().authors {
                if author.account != own && contacts::known(tx, author.account)?.is_none() {
                    strangers.push(author.account);
                }
            }
            Ok(strangers)
        })?;
        for account in strangers {
            match self.look_up(Asked::Account(account)).await {
                Err(error @ ClientError::Profile { .. }) => return Err(error),
                Err(error) => tracing::debug!("an author is known by number only: {error}"),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// The entries behind one, checked; none when there are none.
    ///
    /// # Errors
    /// [`ClientError::ChannelForged`] when what the server or an edge shows is not what the authors wrote.
    pub(crate) async fn read_on(&self, channel: ChannelId, after: Position) -> Result<Vec<Checked>, ClientError> {
        let run = self.fetch_run(channel, after.seq).await?;
        if run.head_seq < after.seq {
            return Err(forged(channel, ChannelError::Follows("the server has lost entries that were there before")));
        }
        self.check(channel, after, &run.entries).await
    }

    /// Checks entries that came, however they came.
    pub(crate) async fn check(
        &self,
        channel: ChannelId,
        after: Position,
        entries: &[Vec<u8>],
    ) -> Result<Vec<Checked>, ClientError> {
        let book = self.profile.read(|tx| book::known(tx, channel))?;
        match self.profile.write(|tx| checked(tx, &book, after, entries)) {
            // Written under a charter that this profile does not know yet.
            Err(ClientError::ChannelForged { source: ChannelError::Epoch { epoch }, .. })
                if epoch > book.charter().epoch =>
            {
                self.sync_charters(channel).await?;
                let book = self.profile.read(|tx| book::known(tx, channel))?;
                self.profile.write(|tx| checked(tx, &book, after, entries))
            }
            done => done,
        }
    }

    /// Checks everything up to the last entry, without showing it to anybody.
    pub(crate) async fn reach_head(&self, channel: ChannelId) -> Result<(), ClientError> {
        self.sync_charters(channel).await?;
        loop {
            let head = self.profile.read(|tx| Ok(book::known(tx, channel)?.head))?;
            let run = self.read_on(channel, head).await?;
            let Some(Checked { at, .. }) = run.last() else { return Ok(()) };
            self.profile.write(|tx| book::note(tx, channel, |book| book.reached(*at, false)))?;
        }
    }

    /// Reads a channel from where a person was last, or from where this device began with `again`: `show` is given one entry
    /// after the other. What was shown is remembered, run by run.
    ///
    /// # Errors
    /// [`ClientError::UnknownChannel`], [`ClientError::ChannelForged`], [`ClientError::NoChannelKey`] when what follows has a
    /// key that this device was not given, and those of asking.
    pub async fn read_channel(
        &self,
        channel: ChannelId,
        again: bool,
        mut show: impl FnMut(&ChannelPost),
    ) -> Result<u64, ClientError> {
        let book = self.profile.read(|tx| book::known(tx, channel))?;
        let (mut at, mut count) = (if again { book.begun } else { book.seen }, 0);
        loop {
            let run = self.read_on(channel, at).await?;
            if run.is_empty() {
                return Ok(count);
            }
            let (open, last) = shown(&run);
            for Checked { post, .. } in open {
                show(post);
                count += 1;
            }
            if let Some(last) = last {
                at = last;
                self.profile.write(|tx| book::note(tx, channel, |book| book.reached(at, true)))?;
            }
            if open.len() < run.len() {
                return Err(ClientError::NoChannelKey { channel });
            }
        }
    }

    /// Entries behind one, from a node or from a page at an edge.
    async fn fetch_run(&self, channel: ChannelId, after: u64) -> Result<Run, ClientError> {
        let held: ChannelEntries = self.channel_get(channel, &format!("/entries?after={after}")).await?;
        if !held.entries.is_empty() || after.saturating_add(1) >= held.tail_seq {
            let entries = held.entries.into_iter().map(|entry| entry.0).collect();
            return Ok(Run { entries, head_seq: held.head_seq });
        }
        let manifest: ChannelManifest = self.channel_get(channel, &format!("/manifest?after={after}")).await?;
        let nonsense = |what: &str| self.service.nonsense(what);
        let page = manifest.pages.first().ok_or_else(|| nonsense("a channel whose pages are not all named"))?;
        let ChannelPageView { first_seq, last_seq, blob, .. } = *page;
        if !(first_seq..=last_seq).contains(&(after + 1)) {
            return Err(nonsense("a page that does not have the entry asked for"));
        }
        let page = self.fetch_page(&blob).await?;
        let skipped = usize::try_from(after + 1 - first_seq).unwrap_or(usize::MAX);
        let entries: Vec<_> = page.entries.into_iter().skip(skipped).collect();
        if page.first_seq != first_seq || entries.is_empty() {
            return Err(nonsense("a page with other entries than its manifest says"));
        }
        Ok(Run { entries, head_seq: held.head_seq })
    }

    /// A page, from an edge.
    async fn fetch_page(&self, blob: &BlobId) -> Result<Page, ClientError> {
        let service = &self.service;
        let url = format!("{}/{blob}", service.info().await?.blobs_url.trim_end_matches('/'));
        let grant = service.grant(&GrantRequest::Media).await?.grant;
        let fetch = || async {
            let response = service.send(service.http().get(&url).bearer_auth(&grant)).await?;
            service.body(response, Page::BYTES_MAX).await
        };
        let bytes = service.retry(fetch).await?;
        let actual = BlobId::from_bytes(*blake3::hash(&bytes).as_bytes());
        if actual != *blob {
            return Err(ClientError::WrongBlob { server: service.server().to_owned(), expected: *blob, actual });
        }
        Page::from_bytes(&bytes).map_err(|_| service.nonsense("a page that is none"))
    }

    /// Charters above an epoch, and how far the log is.
    pub(crate) async fn channel_view(&self, channel: ChannelId, after: u64) -> Result<ChannelView, ClientError> {
        self.channel_get(channel, &format!("?after={after}")).await
    }

    pub(crate) async fn channel_get<T: serde::de::DeserializeOwned>(
        &self,
        channel: ChannelId,
        rest: &str,
    ) -> Result<T, ClientError> {
        let service = &self.service;
        let url = service.api_url(&format!("/v1/channels/{channel}{rest}")).await?;
        let answer = service.retry(|| service.json(service.authorized(service.http().get(&url)))).await;
        answer.map_err(|error| absent(error, channel))
    }
}

/// A refusal that says that there is no such channel.
pub(crate) fn absent(error: ClientError, channel: ChannelId) -> ClientError {
    match error {
        ClientError::Refused { problem, .. } if problem.status == 404 => ClientError::NoChannel { channel },
        error => error,
    }
}

/// Where whoever comes by a link begins: at the first charter that has its key.
fn begin<'a>(charters: impl Iterator<Item = &'a Charter>, link: &ChannelLink) -> Option<Position> {
    let id = link.key.id();
    charters.into_iter().find(|charter| charter.key_id == id).map(|charter| charter.after)
}

/// Takes a charter, if it is the owner's and agrees with every entry that was checked.
pub(crate) fn take_charter(
    tx: &WriteTx<'_>,
    book: &mut Book,
    signed: &waxwing_protocol::channel::SignedCharter,
) -> Result<(), ClientError> {
    let channel = book.channel;
    let charter = signed.verify(Some(book.charter())).map_err(|source| forged(channel, source))?;
    let same_log = charter.after.seq > book.head.seq || charter.after == book.head;
    if !same_log {
        let source = ChannelError::Follows("it begins at another entry than this device was shown: the log was forked");
        return Err(forged(channel, source));
    }
    book::put_charter(tx, channel, signed)?;
    book.charters.push(charter);
    Ok(())
}

/// Checks entries one after the other, and opens those whose key is here.
pub(crate) fn checked(
    tx: &WriteTx<'_>,
    book: &Book,
    after: Position,
    entries: &[Vec<u8>],
) -> Result<Vec<Checked>, ClientError> {
    let (channel, mut at) = (book.channel, after);
    let keyless = book::key(tx, channel, &book.charter().key_id)?.is_none();
    let mut checked = Vec::with_capacity(entries.len());
    for bytes in entries {
        let verified = charter_for(&book.charters, &at).and_then(|charter| {
            let (entry, position) = SignedEntry::verify(bytes, charter, &at)?;
            let author = charter.authors.get(entry.author as usize);
            let author = author.ok_or(ChannelError::Malformed("an author whom the charter does not have"))?;
            Ok((entry, position, author.account, charter.key_id))
        });
        let (entry, position, author, key_id) = verified.map_err(|source| forged(channel, source))?;
        // Read again from the beginning, or live: the entry that was checked before is the one that is there now.
        if position.seq == book.head.seq && position != book.head {
            return Err(forged(channel, ChannelError::Follows("another entry was there before")));
        }
        let byline = Byline { channel, author, msg_id: entry.msg_id };
        let key = book::key(tx, channel, &key_id)?;
        let locked = key.is_none() && keyless;
        let opened = match key {
            Some(key) => key.open(&byline, &entry.body).map_err(|error| error.to_string()),
            None => Err("its key was not given to this device".to_owned()),
        };
        let (written_at, content) = match opened {
            Ok(post) => (conversation::observe(tx, post.client_hlc, now())? >> 16, Ok(post.content)),
            Err(reason) => (0, Err(reason)),
        };
        if let Ok(waxwing_seal::message::Content::File(file)) = &content {
            blob_refs::put(tx, file)?;
        }
        let handle = Client::author_handle(tx, author)?;
        let (seq, msg_id) = (position.seq, entry.msg_id);
        let post = ChannelPost { channel, seq, msg_id, author, handle, written_at, content };
        at = position;
        checked.push(Checked { post, at, locked });
    }
    Ok(checked)
}

/// The channels that this profile follows, and the last entry of each that was shown.
pub(crate) fn cursors(tx: &impl Rows) -> Result<Vec<(ChannelId, Position)>, ClientError> {
    book::all(tx)?.into_iter().map(|channel| Ok((channel, book::known(tx, channel)?.seen))).collect()
}
