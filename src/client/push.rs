//! Where this device is woken when something waits for it and it is not connected.

use waxwing_protocol::api::{PushTarget, PushTest, PushView};

use crate::{Client, ClientError};

impl Client {
    /// Who the service can wake by, and who wakes this device.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub async fn push(&self) -> Result<PushView, ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/push").await?;
        service.retry(|| service.json(service.authorized(service.http().get(&url)))).await
    }

    /// Has this device woken there from now on. Apps say so at each start: a provider's word of a time before makes the
    /// service forget only what it was told before.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] when the service does not wake by that provider or does
    /// not post to that host.
    pub async fn set_push(&self, target: &PushTarget) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/push").await?;
        service.retry(|| service.done(service.authorized(service.http().put(&url)).json(target))).await
    }

    /// Has this device woken no more.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub async fn remove_push(&self) -> Result<(), ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/push").await?;
        service.retry(|| service.done(service.authorized(service.http().delete(&url)))).await
    }

    /// Has this device woken now, and tells what the provider said.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`], or [`ClientError::Refused`] when the service does not know where to wake it, or was
    /// asked too often.
    pub async fn test_push(&self) -> Result<PushTest, ClientError> {
        let service = &self.service;
        let url = service.api_url("/v1/push/test").await?;
        // Not repeated by itself: each time would wake the device.
        service.json(service.authorized(service.http().post(&url))).await
    }
}
