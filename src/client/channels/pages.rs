//! Closing pages: an author puts a full page into the origin, and the node lets go of its entries.
//!
//! A page's bytes are its entries and nothing else, so its blob has one id, whoever closes it: two authors who do at once put
//! the same blob there. It stays for as long as somebody has it, which whoever closed it sees to.

use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use waxwing_protocol::api::{ChannelEntries, ChannelPageView, GrantRequest};
use waxwing_protocol::channel::{Page, fills_page};
use waxwing_protocol::{BlobId, ChannelId, Timestamp};

use super::book::{self, ChannelRole};
use crate::account::{me, now};
use crate::profile::{Rows as _, Table};
use crate::{Client, ClientError, kept};

/// Pages that this profile has closed, by channel and number, and when it last had the origin keep them.
const CLOSED: Table<ClosedRow> = Table::new("channel_pages");

/// Pages closed in a row at most: as many as a node holds, and a few that come meanwhile.
const PAGES_AT_ONCE: usize = 20;

/// How long a page is left alone before the origin is asked to keep it for its whole time again, 45 days by default.
const KEPT_FOR_MS: u64 = 15 * 24 * 60 * 60 * 1000;

/// Pages kept in a row at most; the others have their turn with the next post.
const KEPT_AT_ONCE: usize = 64;

/// A page that was closed.
#[derive(Serialize, Deserialize)]
struct ClosedRow {
    blob: BlobId,
    kept_at: Timestamp,
}

impl Client {
    /// Closes what is full of a channel in which this account writes, and has the origin keep what this profile closed.
    ///
    /// # Errors
    /// Those of asking, of the node and of the origin.
    pub(crate) async fn tend_pages(&self, channel: ChannelId) -> Result<(), ClientError> {
        for _ in 0..PAGES_AT_ONCE {
            let (epoch, writes) = self.profile.read(|tx| {
                let book = book::known(tx, channel)?;
                Ok((book.charter().epoch, book.role(me(tx)?.account) != ChannelRole::Follower))
            })?;
            let view = self.channel_view(channel, epoch).await?;
            if !writes || !view.full_page {
                break;
            }
            let rest = format!("/entries?after={}", view.tail_seq - 1);
            let held: ChannelEntries = self.channel_get(channel, &rest).await?;
            let entries: Vec<_> = held.entries.into_iter().map(|entry| entry.0).collect();
            let (count, bytes) = (entries.len(), entries.iter().map(Vec::len).sum());
            if held.tail_seq != view.tail_seq || !fills_page(count, bytes) {
                // Another author was quicker.
                continue;
            }
            let page = Page { first_seq: view.tail_seq, entries };
            let (first_seq, last_seq) = (page.first_seq, page.first_seq + count as u64 - 1);
            let blob = self.put_page(&page).await?;
            let named = ChannelPageView { page: view.pages + 1, first_seq, last_seq, blob };
            let service = &self.service;
            let url = service.api_url(&format!("/v1/channels/{channel}/pages")).await?;
            let ask = || service.json(service.authorized(service.http().post(&url)).json(&named));
            match service.retry(ask).await {
                Ok(ChannelPageView { .. }) => self.closed(channel, &named)?,
                // Another author was quicker, with the same page.
                Err(ClientError::Refused { problem, .. }) if problem.status == 412 => {}
                Err(error) => return Err(error),
            }
        }
        self.keep_pages().await
    }

    /// Puts a page into the origin.
    async fn put_page(&self, page: &Page) -> Result<BlobId, ClientError> {
        let service = &self.service;
        let (bytes, blob) = (page.to_bytes(), page.blob());
        let url = format!("{}/v1/blobs", kept::origin(service).await?);
        let grant = service.grant(&GrantRequest::Upload).await?.grant;
        let put = || {
            let request = service.http().put(&url).bearer_auth(&grant).body(bytes.clone());
            service.done(
                request
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(waxwing_protocol::headers::WAXWING_BLOB, blob.to_string()),
            )
        };
        service.retry(put).await?;
        Ok(blob)
    }

    fn closed(&self, channel: ChannelId, page: &ChannelPageView) -> Result<(), ClientError> {
        let key = [&channel.as_bytes()[..], &page.page.to_be_bytes()].concat();
        self.profile.write(|tx| tx.put(&CLOSED, &key, &ClosedRow { blob: page.blob, kept_at: now() }))
    }

    /// Has the origin keep pages that it may soon forget.
    async fn keep_pages(&self) -> Result<(), ClientError> {
        let due = self.profile.read(|tx| tx.list(&CLOSED))?;
        let is_due = |row: &ClosedRow| now().as_millis().saturating_sub(row.kept_at.as_millis()) >= KEPT_FOR_MS;
        for (key, row) in due.into_iter().filter(|(_, row)| is_due(row)).take(KEPT_AT_ONCE) {
            match self.keep(&row.blob).await {
                Ok(()) => self.profile.write(|tx| tx.put(&CLOSED, &key, &ClosedRow { kept_at: now(), ..row }))?,
                Err(ClientError::Refused { problem, .. }) if problem.status == 404 => {
                    tracing::warn!("a page of a channel is gone from the origin: {}", row.blob);
                    self.profile.write(|tx| tx.remove(&CLOSED, &key)).map(drop)?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
