//! Why something a client was asked to do did not happen, in words a person can act on.

use std::path::PathBuf;
use std::time::Duration;

use waxwing_protocol::channel::ChannelError;
use waxwing_protocol::frames::close;
use waxwing_protocol::group::GroupError;
use waxwing_protocol::identity::IdentityError;
use waxwing_protocol::{BlobId, ChannelId, DeviceId, GroupId, Handle, IdError, Problem};
use waxwing_seal::blob::{OpenError, TooLarge};
use waxwing_seal::channel::ChannelSealError;
use waxwing_seal::group::GroupSealError;
use waxwing_seal::link::LinkError;
use waxwing_seal::message::MessageError;
use waxwing_seal::session::SessionError;

use crate::profile::StoreError;
use crate::transfer::TransferId;

/// Why a client could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The directory holds no registered account.
    #[error("there is no account in {}: make one with `waxwing register --handle NAME --home {}`", home.display(), home.display())]
    NoProfile {
        /// The profile's directory.
        home: PathBuf,
    },
    /// Another process has the profile open. Two of them would advance the same ratchets.
    #[error("the profile in {} is in use by another waxwing: stop that one first", home.display())]
    ProfileInUse {
        /// The profile's directory.
        home: PathBuf,
    },
    /// The profile could not be read or written.
    #[error("the profile in {} cannot be read or written", home.display())]
    Profile {
        /// The profile's directory.
        home: PathBuf,
        /// What went wrong.
        source: StoreError,
    },
    /// A file or directory could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The address of a server or a link is not one.
    #[error("{address} is not an address of the form http://HOST or https://HOST")]
    Address {
        /// What was given.
        address: String,
    },
    /// No answer: the server or the network is gone. Trying again later makes sense.
    #[error("no answer from {server}: {}", root_cause(source.as_ref()))]
    Unreachable {
        /// The server.
        server: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refused, and said why.
    #[error("{server} refused: {problem}")]
    Refused {
        /// The server.
        server: String,
        /// Why.
        problem: Box<Problem>,
        /// When it says that trying again makes sense.
        retry_after: Option<Duration>,
    },
    /// The server's answer is not what the protocol says.
    #[error("{server} gave an answer that makes no sense: {what}")]
    Nonsense {
        /// The server.
        server: String,
        /// What is wrong with it.
        what: String,
    },
    /// The service does not know this device any more.
    #[error(
        "{server} does not know this device any more: it was removed from its account, or the account was deleted. \
         What was received stays; nothing can be sent or received with this profile"
    )]
    Removed {
        /// The server.
        server: String,
    },
    /// No device of this number can be removed.
    #[error("the account has no device {device} beside others; `waxwing account delete` ends the account itself")]
    NoDevice {
        /// The number asked for.
        device: DeviceId,
    },
    /// No new device waits under the code.
    #[error("no new device waits under this code: compare the two screens, and leave `waxwing link` running there")]
    NobodyToLink,
    /// Two devices met and could not agree.
    #[error("the devices were not linked: {0}")]
    Link(#[from] LinkError),
    /// Nobody is registered under this handle.
    #[error("nobody is called {handle} there")]
    UnknownRecipient {
        /// The handle.
        handle: Handle,
    },
    /// The directory holds an account already.
    #[error("{} holds the account of {handle} already: choose another --home for another account", home.display())]
    AlreadyRegistered {
        /// The profile's directory.
        home: PathBuf,
        /// Whose account it is.
        handle: Handle,
    },
    /// Somebody else's key, or account, stands behind a handle that this profile knows. Nothing was sent.
    #[error(
        "{handle} is not who they were: the account key changed. Ask {handle} in person before trusting the new one; \
         `waxwing contacts accept {handle}` does"
    )]
    IdentityChanged {
        /// The handle.
        handle: Handle,
    },
    /// The server showed an older device list than before, or a second one of the same revision.
    #[error("the server shows a device list of {handle} that is not the newest: nothing was sent")]
    DevicesRolledBack {
        /// The handle.
        handle: Handle,
    },
    /// The server showed a device list that the account did not sign.
    #[error("the server shows devices of {handle} that {handle} did not sign ({source}): nothing was sent")]
    BadIdentity {
        /// The handle.
        handle: Handle,
        /// What is wrong.
        source: IdentityError,
    },
    /// The only recipient is the device that sends.
    #[error("that is this account itself, and it has no other device")]
    OwnAccount,
    /// The server refused a message for good; it is not kept for another try.
    #[error("the message was refused: {message} ({code})")]
    NotAccepted {
        /// The wire's code, such as `FORBIDDEN`.
        code: &'static str,
        /// The server's words.
        message: String,
    },
    /// The server cannot take a message now; it is kept and sent at the next chance.
    #[error("the message is kept for the next try: {message} ({code})")]
    NotNow {
        /// The wire's code, such as `UNAVAILABLE`.
        code: &'static str,
        /// The server's words.
        message: String,
        /// When it says that trying again makes sense.
        retry_after: Option<Duration>,
    },
    /// The recipient's devices changed again at every try.
    #[error("the devices of {handle} keep changing: try again later")]
    DevicesUnsettled {
        /// The handle.
        handle: Handle,
    },
    /// The server closed the connection and said why.
    #[error("{server} closed the connection: {reason} ({code})")]
    Closed {
        /// The server.
        server: String,
        /// The WebSocket close code.
        code: u16,
        /// The server's words.
        reason: String,
    },
    /// No group of this id or title, or more than one of this title.
    #[error("there is no one group called {named}: `waxwing group ls` says what there is")]
    UnknownGroup {
        /// What was asked for.
        named: String,
    },
    /// This account is not in the group, or not any more; or there is none.
    #[error("this account is not in the group {group}")]
    NotInGroup {
        /// The group.
        group: GroupId,
    },
    /// The server shows a change of a group that nobody who may has signed, or that does not follow.
    #[error("the server shows a change of the group {group} that is not to be believed ({source})")]
    GroupForged {
        /// The group.
        group: GroupId,
        /// What is wrong with it.
        source: GroupError,
    },
    /// Others changed the group at every try.
    #[error("the group {group} keeps changing: try again later")]
    GroupBusy {
        /// The group.
        group: GroupId,
    },
    /// The group cannot be changed so.
    #[error("the group cannot be changed so: {0}")]
    Group(#[from] GroupError),
    /// The key of a group's messages could not be used.
    #[error(transparent)]
    GroupSeal(#[from] GroupSealError),
    /// No channel of this id or title that this profile follows, or more than one of this title.
    #[error("this profile follows no one channel called {named}: `waxwing channel ls` says what there is")]
    UnknownChannel {
        /// What was asked for.
        named: String,
    },
    /// The service has no such channel.
    #[error("the service has no channel {channel}")]
    NoChannel {
        /// The channel.
        channel: ChannelId,
    },
    /// Only the owner changes a channel.
    #[error("only its owner changes the channel {channel}")]
    NotChannelOwner {
        /// The channel.
        channel: ChannelId,
    },
    /// Only authors write in a channel.
    #[error("this account is no author of the channel {channel}, or not any more: nothing was posted")]
    NotChannelAuthor {
        /// The channel.
        channel: ChannelId,
    },
    /// The channel's key was replaced, and this device has not been given the new one.
    #[error("this device lacks the newest key of the channel {channel}: ask its owner for a new link")]
    NoChannelKey {
        /// The channel.
        channel: ChannelId,
    },
    /// The server shows something of a channel that its owner or authors have not written so.
    #[error("the server shows something of the channel {channel} that is not to be believed ({source})")]
    ChannelForged {
        /// The channel.
        channel: ChannelId,
        /// What is wrong with it.
        source: ChannelError,
    },
    /// Others wrote in the channel or changed it at every try.
    #[error("the channel {channel} keeps changing: try again later")]
    ChannelBusy {
        /// The channel.
        channel: ChannelId,
    },
    /// Something of a channel could not be opened.
    #[error(transparent)]
    ChannelSeal(#[from] ChannelSealError),
    /// A session with a device could not be begun or used.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A message could not be made.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// This profile has neither received nor sent this blob, so it has no key that opens it.
    #[error("this profile holds no key for the blob {blob}")]
    NoKey {
        /// The blob.
        blob: BlobId,
    },
    /// The blob did not open: it was changed on the way or at the server.
    #[error("the blob {blob} did not open: {source}")]
    Sealed {
        /// The blob.
        blob: BlobId,
        /// What is wrong with it.
        source: OpenError,
    },
    /// The bytes are not those of the blob.
    #[error("{server} has other bytes under the blob id {expected}, or another id for them: {actual}")]
    WrongBlob {
        /// The server.
        server: String,
        /// The id that the bytes should have.
        expected: BlobId,
        /// The id that they have.
        actual: BlobId,
    },
    /// What was given is not a file.
    #[error("{} is not a file", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// No blob can hold the file.
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// The server takes no blob as large as this.
    #[error("{} is sealed to {sealed_bytes} bytes, and {server} takes {limit} at most", path.display())]
    OverLimit {
        /// The file.
        path: PathBuf,
        /// The server.
        server: String,
        /// Bytes of the sealed blob.
        sealed_bytes: u64,
        /// Bytes the server takes.
        limit: u64,
    },
    /// The file is being written to.
    #[error("{} keeps changing: send it when it is finished", path.display())]
    KeepsChanging {
        /// The file.
        path: PathBuf,
    },
    /// Another process downloads the same blob to the same place.
    #[error("{} is being downloaded by another waxwing", path.display())]
    Busy {
        /// Where to.
        path: PathBuf,
    },
    /// The transfer is done, or never was.
    #[error("there is no unfinished transfer {id}")]
    NoTransfer {
        /// Which.
        id: TransferId,
    },
    /// An upload could not go on. What the server has is kept.
    #[error(
        "{} is not sent yet, and nothing is lost: {source}. Go on with `waxwing resume --home {}`",
        path.display(), home.display()
    )]
    Interrupted {
        /// The transfer.
        transfer: TransferId,
        /// The file.
        path: PathBuf,
        /// The profile's directory.
        home: PathBuf,
        /// What went wrong last.
        source: Box<ClientError>,
    },
    /// A row of the profile is not what this version writes.
    #[error("{what} in the profile is damaged or of a newer version")]
    Damaged {
        /// Which.
        what: &'static str,
    },
    /// A text given as an id is none.
    #[error(transparent)]
    Id(#[from] IdError),
}

impl ClientError {
    /// Whether the same request may succeed later: no answer, a fault of the server, or too many requests.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::NotNow { .. } | Self::GroupBusy { .. } | Self::ChannelBusy { .. } => true,
            // Reconnecting to a server that displaced or refused us would only repeat it.
            Self::Closed { code, .. } => !matches!(
                *code,
                close::BAD_FRAME | close::UNAUTHENTICATED | close::REFUSED | close::DISPLACED | close::TOO_LARGE
            ),
            Self::Refused { problem, .. } => problem.status >= 500 || problem.status == 429 || problem.status == 423,
            _ => false,
        }
    }

    /// Whether a blob can never be fetched and opened: it is gone, or it is not what its reference says.
    pub(crate) fn loses_blob(&self) -> bool {
        match self {
            Self::Refused { problem, .. } => matches!(problem.status, 404 | 410 | 416),
            Self::Sealed { .. } | Self::WrongBlob { .. } | Self::TooLarge(_) => true,
            _ => false,
        }
    }

    /// A failure to read or write `path`.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}

/// The innermost cause: `connection refused` tells more than `error sending request`.
fn root_cause(error: &(dyn std::error::Error + Send + Sync + 'static)) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
