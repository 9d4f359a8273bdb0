//! What this account lets others know, as far as the service decides it.

use waxwing_protocol::api::Preferences;

use crate::{Client, ClientError};

impl Client {
    /// What the service lets others know of this account.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub async fn preferences(&self) -> Result<Preferences, ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/preferences").await?;
        service.retry(|| service.json(service.authorized(service.http().get(&url)))).await
    }

    /// Changes what the service lets others know of this account.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub async fn set_preferences(&self, preferences: Preferences) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/preferences").await?;
        let put = || service.json(service.authorized(service.http().put(&url)).json(&preferences));
        let _: Preferences = service.retry(put).await?;
        Ok(())
    }
}
