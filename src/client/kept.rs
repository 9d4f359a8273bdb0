//! Having blobs: for how long a service keeps what this account has sent or received.
//!
//! A service forgets a blob once nobody has it. Whoever uploaded it has it for a while; who means to look at a film again
//! next year keeps it, at the cost of their own quota, and who regrets what they sent lets it go.

use http::Method;
use waxwing_protocol::BlobId;
use waxwing_protocol::api::GrantRequest;

use crate::http::Service;
use crate::{Client, ClientError};

/// What a service's address of uploads ends with.
const UPLOADS_PATH: &str = "/v1/uploads";

/// Where the origin is: who has what is its business, so it is asked where uploads are.
pub(crate) async fn origin(service: &Service) -> Result<&str, ClientError> {
    let uploads_url = &service.info().await?.uploads_url;
    let base = uploads_url.trim_end_matches('/').strip_suffix(UPLOADS_PATH);
    base.ok_or_else(|| service.nonsense("an address of uploads that keeps no blobs"))
}

impl Client {
    /// Has blob `id` from now on, or for the whole time again.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when the service has no such blob or this account may not hold as much;
    /// [`ClientError::Unreachable`].
    pub async fn keep(&self, id: &BlobId) -> Result<(), ClientError> {
        self.ask_to_keep(Method::POST, id).await
    }

    /// Has blob `id` no more. When nobody else has it, it goes from the service, and nobody can fetch it; what others have
    /// saved stays with them.
    ///
    /// # Errors
    /// [`ClientError::Refused`] when this account did not have it; [`ClientError::Unreachable`].
    pub async fn let_go(&self, id: &BlobId) -> Result<(), ClientError> {
        self.ask_to_keep(Method::DELETE, id).await
    }

    async fn ask_to_keep(&self, method: Method, id: &BlobId) -> Result<(), ClientError> {
        let service = &self.service;
        let url = format!("{}/v1/blobs/{id}/keep", origin(service).await?);
        let grant = service.grant(&GrantRequest::Upload).await?.grant;
        service.retry(|| service.done(service.http().request(method.clone(), &url).bearer_auth(&grant))).await
    }
}
