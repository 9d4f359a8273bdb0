//! The client: one registered device and the service it belongs to.

use std::path::Path;

use waxwing_protocol::api::{GrantRequest, GrantResponse};

use crate::http::{CREDENTIALS, Credentials, Service};
use crate::profile::Rows as _;
use crate::route::Route;
use crate::{ClientError, Profile};

/// A registered device, ready to send and receive. Clones share it.
#[derive(Clone)]
pub struct Client {
    pub(crate) profile: Profile,
    pub(crate) service: Service,
    pub(crate) route: Route,
}

impl Client {
    /// Opens the profile in `home`.
    ///
    /// # Errors
    /// [`ClientError::NoProfile`] when no account was registered there, [`ClientError::ProfileInUse`] when another
    /// process holds it.
    pub fn open(home: &Path) -> Result<Self, ClientError> {
        let profile = Profile::open(home)?;
        let credentials = profile.read(|tx| tx.get(&CREDENTIALS, Credentials::KEY))?;
        let credentials = credentials.ok_or_else(|| ClientError::NoProfile { home: home.to_owned() })?;
        Self::with_credentials(profile, &credentials)
    }

    /// The client of an open profile whose registration is done.
    pub(crate) fn with_credentials(profile: Profile, credentials: &Credentials) -> Result<Self, ClientError> {
        let service = Service::new(&credentials.server)?.for_device(&credentials.token);
        Ok(Self { profile, service, route: Route::default() })
    }

    /// Asks the service for a grant.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`] or [`ClientError::Refused`].
    pub async fn grant(&self, request: GrantRequest) -> Result<GrantResponse, ClientError> {
        self.service.grant(&request).await
    }
}
