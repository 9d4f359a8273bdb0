//! The frames that answer a client's.

use std::time::Duration;

use bytes::Bytes;
use tracing::error;
use waxwing_protocol::frames::{Error, ErrorCode, Frame, SendResult, frame::Body};
use waxwing_protocol::{DeviceId, MsgId};

use crate::channels::ChannelsError;
use crate::delivery::SendError;
use crate::presence::PresenceError;
use crate::store::{AppendError, Appended, StoreError, StoreErrorKind};

/// When a client whose request could not be taken just now may try again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// An error in answer to the frame `id`.
pub(crate) fn refusal(id: u32, code: ErrorCode, message: impl Into<String>) -> Frame {
    Frame::with_id(id, Body::Error(error_of(code, message)))
}

/// The answer to the Send in frame `id`.
pub(crate) fn send_result(id: u32, msg_id: MsgId, outcome: Result<Appended, AppendError>) -> Frame {
    let body = match outcome {
        Ok(appended) => Body::SendResult(SendResult {
            msg_id: Bytes::copy_from_slice(msg_id.as_bytes()),
            server_ts: appended.server_ts.as_millis(),
            duplicate: appended.duplicate,
            conv_seq: appended.conv_seq,
        }),
        Err(refused) => Body::Error(append_error(&refused)),
    };
    Frame::with_id(id, body)
}

/// The answer to a Send that the store never saw.
pub(crate) fn send_refusal(id: u32, refused: SendError) -> Frame {
    let code = match refused {
        SendError::Malformed(_) => ErrorCode::BadRequest,
        SendError::TooLarge => ErrorCode::TooLarge,
        SendError::TooMany { retry_after } => return rate_limited(id, refused.to_string(), retry_after),
    };
    refusal(id, code, refused.to_string())
}

/// The answer to whoever may not write in a channel, or follow it.
pub(crate) fn channel_refusal(id: u32, refused: &ChannelsError) -> Frame {
    let code = match refused {
        ChannelsError::NotFound => ErrorCode::NotFound,
        ChannelsError::Forbidden(_) => ErrorCode::Forbidden,
        ChannelsError::Conflict { epoch } => {
            let conflict = Error { epoch: *epoch, ..error_of(ErrorCode::EpochConflict, refused.to_string()) };
            return Frame::with_id(id, Body::Error(conflict));
        }
        ChannelsError::TooLarge => ErrorCode::TooLarge,
        ChannelsError::Full => ErrorCode::MailboxFull,
        ChannelsError::TooOften { retry_after } => return rate_limited(id, refused.to_string(), *retry_after),
        ChannelsError::UnknownAuthor
        | ChannelsError::Malformed(_)
        | ChannelsError::Refused(_)
        | ChannelsError::OtherContent
        | ChannelsError::TooMany => ErrorCode::BadRequest,
        ChannelsError::Store(failed) => return store_refusal(id, failed),
    };
    refusal(id, code, refused.to_string())
}

/// The answer to whoever asks too often.
pub(crate) fn rate_limited(id: u32, message: impl Into<String>, retry_after: Duration) -> Frame {
    // Rounded up: who comes back a moment early is refused again.
    let retry_after_ms = u32::try_from(retry_after.as_millis().saturating_add(1)).unwrap_or(u32::MAX);
    Frame::with_id(id, Body::Error(Error { retry_after_ms, ..error_of(ErrorCode::RateLimited, message) }))
}

/// The answer to a frame about presence that was refused.
pub(crate) fn presence_refusal(id: u32, refused: &PresenceError) -> Frame {
    let code = match refused {
        PresenceError::Malformed(_) => ErrorCode::BadRequest,
        PresenceError::TooMany | PresenceError::TooLarge => ErrorCode::TooLarge,
        PresenceError::Store(failed) => return store_refusal(id, failed),
    };
    refusal(id, code, refused.to_string())
}

/// The answer to anything that failed because the store did. Logged here, once.
pub(crate) fn store_refusal(id: u32, failed: &StoreError) -> Frame {
    Frame::with_id(id, Body::Error(store_error(failed)))
}

fn append_error(refused: &AppendError) -> Error {
    let numbers = |devices: &[DeviceId]| devices.iter().map(|device| device.get()).collect();
    let code = match refused {
        AppendError::UnknownAccount | AppendError::UnknownGroup => ErrorCode::NotFound,
        AppendError::EpochConflict { .. } => ErrorCode::EpochConflict,
        AppendError::DeviceMismatch { .. } | AppendError::GroupMismatch { .. } => ErrorCode::DeviceMismatch,
        AppendError::StaleDevices { .. } => ErrorCode::StaleDevices,
        AppendError::MailboxFull { .. } => ErrorCode::MailboxFull,
        AppendError::OtherContent => ErrorCode::BadRequest,
        AppendError::Store(failed) => return store_error(failed),
    };
    let plain = error_of(code, refused.to_string());
    match refused {
        AppendError::DeviceMismatch { missing, extra } => {
            Error { missing: numbers(missing), extra: numbers(extra), ..plain }
        }
        AppendError::EpochConflict { epoch } => Error { epoch: *epoch, ..plain },
        AppendError::GroupMismatch { accounts } => {
            let accounts = accounts.iter().map(|account| Bytes::copy_from_slice(account.as_bytes()));
            Error { accounts: accounts.collect(), ..plain }
        }
        AppendError::StaleDevices { stale } => Error { stale: numbers(stale), ..plain },
        _ => plain,
    }
}

fn store_error(failed: &StoreError) -> Error {
    if failed.kind == StoreErrorKind::Unavailable {
        let retry_after_ms = u32::try_from(RETRY_AFTER.as_millis()).unwrap_or(u32::MAX);
        return Error { retry_after_ms, ..error_of(ErrorCode::Unavailable, "try again") };
    }
    error!(error = %failed, "the store failed");
    error_of(ErrorCode::Internal, "a fault of the server")
}

fn error_of(code: ErrorCode, message: impl Into<String>) -> Error {
    Error { code: code.into(), message: message.into(), ..Error::default() }
}
