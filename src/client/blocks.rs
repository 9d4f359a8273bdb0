//! Whom this account wants to hear nothing of. The service keeps the list and leaves out what they send; they are not told.

use waxwing_protocol::api::BlockList;
use waxwing_protocol::{AccountId, Handle};

use crate::{Client, ClientError};

impl Client {
    /// Hears nothing more of `handle`: no messages, no typing, and they do not see this account's presence or receipts.
    ///
    /// # Errors
    /// [`ClientError::UnknownRecipient`], [`ClientError::Refused`] or [`ClientError::Unreachable`].
    pub async fn block(&self, handle: &Handle) -> Result<(), ClientError> {
        let url = self.block_url(handle).await?;
        self.service.retry(|| self.service.done(self.service.authorized(self.service.http().put(&url)))).await
    }

    /// Hears of `handle` again. What they sent meanwhile is gone.
    ///
    /// # Errors
    /// As [`Client::block`].
    pub async fn unblock(&self, handle: &Handle) -> Result<(), ClientError> {
        let url = self.block_url(handle).await?;
        self.service.retry(|| self.service.done(self.service.authorized(self.service.http().delete(&url)))).await
    }

    /// Everybody who is blocked.
    ///
    /// # Errors
    /// [`ClientError::Refused`] or [`ClientError::Unreachable`].
    pub async fn blocks(&self) -> Result<Vec<AccountId>, ClientError> {
        let url = self.service.api_url("/v1/blocks").await?;
        let list = self.service.retry(|| self.service.json(self.service.authorized(self.service.http().get(&url))));
        let BlockList { blocked } = list.await?;
        Ok(blocked)
    }

    async fn block_url(&self, handle: &Handle) -> Result<String, ClientError> {
        let account = self.contact(handle).await?.account;
        self.service.api_url(&format!("/v1/blocks/{account}")).await
    }
}
