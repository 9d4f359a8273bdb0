//! Grants in hand: asked for when needed, used until shortly before they end.

use std::time::Duration;

use waxwing_protocol::Timestamp;
use waxwing_protocol::api::{GrantRequest, GrantResponse};

use crate::ClientError;
use crate::http::Service;

/// A grant with less time than this left is not used for another request: clocks differ, and requests wait.
const SPARE: Duration = Duration::from_secs(60);

/// What a transfer shows as `Authorization: Bearer`.
pub(crate) enum Bearer {
    /// A grant that can be asked for again.
    Renewed { request: GrantRequest, held: Option<GrantResponse> },
    /// The one grant of a share link.
    Given(String),
}

impl Bearer {
    /// Grants of one kind, asked for as needed.
    pub(crate) const fn of(request: GrantRequest) -> Self {
        Self::Renewed { request, held: None }
    }

    /// A grant that is good at `now`.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`] when none was to be had.
    pub(crate) async fn grant(&mut self, service: &Service, now: Timestamp) -> Result<String, ClientError> {
        match self {
            Self::Given(grant) => Ok(grant.clone()),
            Self::Renewed { held: Some(held), .. } if held.expires_at.since(now) > SPARE => Ok(held.grant.clone()),
            Self::Renewed { request, held } => {
                let granted = service.grant(request).await?;
                Ok(held.insert(granted).grant.clone())
            }
        }
    }

    /// Lets go of a grant that was refused. Tells whether asking for another makes sense.
    pub(crate) fn refused(&mut self) -> bool {
        match self {
            Self::Given(_) => false,
            Self::Renewed { held, .. } => held.take().is_some(),
        }
    }
}

impl Service {
    /// Asks for a grant, as this device.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub(crate) async fn grant(&self, request: &GrantRequest) -> Result<GrantResponse, ClientError> {
        let url = self.api_url("/v1/grants").await?;
        self.retry(|| self.json(self.authorized(self.http().post(&url)).json(request))).await
    }
}
