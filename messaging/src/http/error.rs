//! The one place where messaging's errors meet HTTP: RFC 9457 problems.

use std::fmt::Display;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use tracing::error;
use waxwing_protocol::Problem;
use waxwing_protocol::group::GroupError;
use waxwing_protocol::problem::PROBLEM_MEDIA_TYPE;

use crate::accounts::{BlockError, ChangeError, LookUpError, RegisterError};
use crate::addresses::TooMuch;
use crate::admission::Crowded;
use crate::channels::ChannelsError;
use crate::devices::DevicesError;
use crate::groups::GroupsError;
use crate::keys::KeysError;
use crate::links::LinkError;
use crate::push::{PushError, TargetRefused};
use crate::reports::ReportError;
use crate::store::{StoreError, StoreErrorKind};

/// An error as an answer.
#[derive(Debug)]
pub(crate) struct HttpError {
    problem: Problem,
    retry_after: Option<Duration>,
}

impl HttpError {
    /// A problem of the kind `slug`; `detail` is for a person.
    pub(crate) fn new(status: StatusCode, slug: &str, detail: impl Display) -> Self {
        Self { problem: Problem::new(status.as_u16(), slug, detail.to_string()), retry_after: None }
    }

    /// The same with an extension member.
    pub(crate) fn with(self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        Self { problem: self.problem.with(name, value), ..self }
    }

    /// Too many come at once; they come back at moments of their own.
    pub(crate) fn crowded(crowded: Crowded) -> Self {
        let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, "crowded", "too many connect at once");
        busy.retry_after(crowded.retry_after)
    }

    fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    pub(crate) fn unauthenticated(detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", detail)
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "this path does not take this method")
    }

    pub(crate) fn going_away() -> Self {
        let busy = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the server is busy or going away");
        busy.retry_after(Duration::from_secs(1))
    }

    pub(crate) fn not_found(detail: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, self.problem.to_json()).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"waxwing\""));
        }
        if let Some(wait) = self.retry_after {
            // Rounded up: who comes back a moment early is refused again.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
        }
        response
    }
}

impl From<StoreError> for HttpError {
    fn from(failed: StoreError) -> Self {
        if failed.kind == StoreErrorKind::Unsupported {
            return Self::new(StatusCode::NOT_IMPLEMENTED, "not-kept-here", failed.message);
        }
        if failed.kind == StoreErrorKind::Unavailable {
            return Self::going_away();
        }
        // Logged here, once; its details stay inside.
        error!(error = %failed, "the store failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault of the server")
    }
}

impl From<RegisterError> for HttpError {
    fn from(refused: RegisterError) -> Self {
        let (status, slug) = match &refused {
            RegisterError::InviteOnly => (StatusCode::FORBIDDEN, "registration-invite-only"),
            RegisterError::InviteInvalid => (StatusCode::FORBIDDEN, "invite-invalid"),
            RegisterError::Closed => (StatusCode::FORBIDDEN, "registration-closed"),
            RegisterError::Identity(_) => (StatusCode::UNPROCESSABLE_ENTITY, "identity-invalid"),
            RegisterError::Malformed(_) => (StatusCode::UNPROCESSABLE_ENTITY, "registration-malformed"),
            RegisterError::HandleTaken(_) => (StatusCode::CONFLICT, "handle-taken"),
            RegisterError::AccountTaken(_) => (StatusCode::CONFLICT, "account-taken"),
            RegisterError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<ChangeError> for HttpError {
    fn from(refused: ChangeError) -> Self {
        let (status, slug) = match &refused {
            ChangeError::Identity(_) => (StatusCode::UNPROCESSABLE_ENTITY, "identity-invalid"),
            ChangeError::HandleTaken(_) => (StatusCode::CONFLICT, "handle-taken"),
            ChangeError::NotFound => (StatusCode::NOT_FOUND, "account-not-found"),
            ChangeError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<TooMuch> for HttpError {
    fn from(refused: TooMuch) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(refused.retry_after)
    }
}

impl From<BlockError> for HttpError {
    fn from(refused: BlockError) -> Self {
        let (status, slug) = match &refused {
            BlockError::Itself => (StatusCode::UNPROCESSABLE_ENTITY, "block-of-itself"),
            BlockError::TooMany => (StatusCode::UNPROCESSABLE_ENTITY, "too-many-blocks"),
            BlockError::NotFound => (StatusCode::NOT_FOUND, "account-not-found"),
            BlockError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<DevicesError> for HttpError {
    fn from(refused: DevicesError) -> Self {
        match &refused {
            DevicesError::Identity(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "identity-invalid", refused),
            DevicesError::Malformed(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "devices-malformed", refused),
            DevicesError::Conflict { revision, next_device } => {
                let (revision, next_device) = (*revision, next_device.get());
                let conflict = Self::new(StatusCode::CONFLICT, "revision-conflict", refused);
                conflict.with("revision", revision).with("next_device", next_device)
            }
            DevicesError::NotFound => Self::new(StatusCode::NOT_FOUND, "device-not-found", refused),
            DevicesError::Store(failed) => failed.clone().into(),
        }
    }
}

impl From<GroupsError> for HttpError {
    fn from(refused: GroupsError) -> Self {
        let (status, slug) = match &refused {
            GroupsError::NotFound => (StatusCode::NOT_FOUND, "group-not-found"),
            GroupsError::UnknownMember => (StatusCode::UNPROCESSABLE_ENTITY, "group-member-unknown"),
            GroupsError::Malformed(_) => (StatusCode::UNPROCESSABLE_ENTITY, "group-change-malformed"),
            GroupsError::Refused(GroupError::Forbidden(_)) => (StatusCode::FORBIDDEN, "group-change-forbidden"),
            GroupsError::Refused(GroupError::Full) => (StatusCode::UNPROCESSABLE_ENTITY, "group-full"),
            GroupsError::Refused(GroupError::Signature) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "group-signature-invalid")
            }
            GroupsError::Refused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "group-change-malformed"),
            GroupsError::Conflict { epoch } => {
                let epoch = *epoch;
                return Self::new(StatusCode::PRECONDITION_FAILED, "epoch-conflict", refused).with("epoch", epoch);
            }
            GroupsError::TooMany { retry_after } => {
                let wait = *retry_after;
                return Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(wait);
            }
            GroupsError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<ChannelsError> for HttpError {
    fn from(refused: ChannelsError) -> Self {
        let (status, slug) = match &refused {
            ChannelsError::NotFound => (StatusCode::NOT_FOUND, "channel-not-found"),
            ChannelsError::UnknownAuthor => (StatusCode::UNPROCESSABLE_ENTITY, "channel-author-unknown"),
            ChannelsError::Refused(_) | ChannelsError::Malformed(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, "channel-malformed")
            }
            ChannelsError::Forbidden(_) => (StatusCode::FORBIDDEN, "channel-forbidden"),
            ChannelsError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "channel-entry-too-large"),
            ChannelsError::OtherContent => (StatusCode::UNPROCESSABLE_ENTITY, "channel-message-id-used"),
            ChannelsError::Full => (StatusCode::INSUFFICIENT_STORAGE, "channel-full"),
            ChannelsError::TooMany => (StatusCode::UNPROCESSABLE_ENTITY, "too-many-channels"),
            ChannelsError::Conflict { epoch } => {
                let epoch = *epoch;
                return Self::new(StatusCode::PRECONDITION_FAILED, "epoch-conflict", refused).with("epoch", epoch);
            }
            ChannelsError::TooOften { retry_after } => {
                let wait = *retry_after;
                return Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(wait);
            }
            ChannelsError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<LinkError> for HttpError {
    fn from(refused: LinkError) -> Self {
        let (status, slug) = match refused {
            LinkError::NotFound => (StatusCode::NOT_FOUND, "link-not-found"),
            LinkError::Taken => (StatusCode::CONFLICT, "link-taken"),
            LinkError::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "link-too-large"),
            LinkError::TooMany => return Self::going_away(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<ReportError> for HttpError {
    fn from(refused: ReportError) -> Self {
        match &refused {
            ReportError::Malformed => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "report-malformed", refused),
            ReportError::TooMany { retry_after } => {
                let wait = *retry_after;
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(wait)
            }
            ReportError::Full => Self::new(StatusCode::INSUFFICIENT_STORAGE, "reports-full", refused),
            ReportError::Io(failed) => {
                error!(error = %failed, "a report could not be kept");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "a fault of the server")
            }
        }
    }
}

impl From<PushError> for HttpError {
    fn from(refused: PushError) -> Self {
        let (status, slug) = match &refused {
            PushError::Target(TargetRefused::NotOffered(_)) => (StatusCode::UNPROCESSABLE_ENTITY, "push-not-offered"),
            PushError::Target(_) => (StatusCode::UNPROCESSABLE_ENTITY, "push-target-refused"),
            PushError::NotFound => (StatusCode::NOT_FOUND, "device-not-found"),
            PushError::NoTarget => (StatusCode::NOT_FOUND, "push-target-not-found"),
            PushError::TooMany { retry_after } => {
                let wait = *retry_after;
                return Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(wait);
            }
            PushError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}

impl From<LookUpError> for HttpError {
    fn from(refused: LookUpError) -> Self {
        match refused {
            LookUpError::TooMany { retry_after } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", "too many look-ups").retry_after(retry_after)
            }
            LookUpError::NotFound => Self::new(StatusCode::NOT_FOUND, "account-not-found", "no such account"),
            LookUpError::Store(failed) => failed.into(),
        }
    }
}

impl From<KeysError> for HttpError {
    fn from(refused: KeysError) -> Self {
        let (status, slug) = match &refused {
            KeysError::Malformed(_) => (StatusCode::UNPROCESSABLE_ENTITY, "prekeys-malformed"),
            KeysError::Signature(_) => (StatusCode::UNPROCESSABLE_ENTITY, "prekey-signature-invalid"),
            KeysError::NotFound => (StatusCode::NOT_FOUND, "prekeys-not-found"),
            KeysError::TooMany { retry_after } => {
                let wait = *retry_after;
                return Self::new(StatusCode::TOO_MANY_REQUESTS, "rate-limited", refused).retry_after(wait);
            }
            KeysError::Store(failed) => return failed.clone().into(),
        };
        Self::new(status, slug, refused)
    }
}
