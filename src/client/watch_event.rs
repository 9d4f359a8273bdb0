//! What watching takes, tells and comes to.

use std::path::PathBuf;
use std::time::Duration;

use waxwing_protocol::{AccountId, BlobId, ChannelId, GroupId, Handle, MsgId};
use waxwing_seal::message::Content;

use crate::{ChannelPost, ClientError, FetchedFile, GroupNews, PresenceView, Tick};

/// How to watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Return once at least one message has come, everything that waited has been received, and every file is saved.
    /// A watch started before anything was sent waits for it. Files left over from a watch that was killed count.
    pub once: bool,
    /// Save files into this directory, made when it is not there. Without it, files stay to be saved by a later watch,
    /// or are fetched one by one with [`Client::fetch`](crate::Client::fetch).
    pub save: Option<PathBuf>,
    /// Nobody is looking: this device is not shown as online, and what comes is not told as read.
    pub background: bool,
    /// Tell of the presence of everybody this profile knows, as far as they show it.
    pub presence: bool,
}

/// What happens while watching.
#[derive(Debug)]
#[non_exhaustive]
pub enum WatchEvent {
    /// Connected; about this many messages wait.
    Connected {
        /// An estimate of the server.
        pending: u64,
    },
    /// A message came. It is stored already.
    Message {
        /// Who wrote it.
        from: Handle,
        /// Its id.
        msg_id: MsgId,
        /// What it says.
        content: MessageSummary,
        /// It is a request: this account has never written to whoever wrote it.
        request: bool,
        /// The group it was sent to, if it was.
        group: Option<GroupId>,
    },
    /// A group was changed, as whoever changed it signed.
    Group(GroupNews),
    /// How far a group that has receipts is, as the server counts.
    GroupReceipts {
        /// Which group.
        group: GroupId,
        /// The last place in its conversation.
        conv_seq: u64,
        /// Members of whom a device has everything up to there.
        delivered: u32,
        /// Members who have seen everything up to there.
        read: u32,
    },
    /// The server showed a change of a group that nobody who may has signed, or that does not follow. It was not taken.
    GroupForged {
        /// Which group.
        group: GroupId,
        /// What is wrong with it.
        reason: String,
    },
    /// Something was written in a channel.
    ChannelPost(Box<ChannelPost>),
    /// A channel cannot be read on: the server shows what is not to be believed, or has it no more.
    ChannelRefused {
        /// Why.
        error: ClientError,
    },
    /// The owner of a channel has invited this account to it, or given it a new key.
    ChannelInvite {
        /// Which channel.
        channel: ChannelId,
        /// Who owns it.
        from: Option<Handle>,
        /// It is followed already: this is its new key.
        followed: bool,
    },
    /// A file was saved.
    Saved {
        /// Who sent it.
        from: Handle,
        /// The message it came in.
        msg_id: MsgId,
        /// Where it is, and how it came.
        file: FetchedFile,
    },
    /// A file could not be saved.
    SaveFailed {
        /// Who sent it.
        from: Handle,
        /// The message it came in.
        msg_id: MsgId,
        /// The blob.
        blob: BlobId,
        /// Why.
        error: ClientError,
        /// When it is tried again; `None` when it never will be.
        retry_in: Option<Duration>,
    },
    /// Another device of this account has sent a message.
    SentElsewhere {
        /// To whom.
        to: Handle,
        /// Its id.
        msg_id: MsgId,
        /// What it says.
        content: MessageSummary,
    },
    /// Somebody's devices are others than before, as their account key signed; of this account they may be yours.
    DevicesChanged {
        /// Whose.
        who: Handle,
        /// How many they are now.
        devices: usize,
        /// Whether it is this account.
        own: bool,
    },
    /// Somebody is not who they were: their account key changed. Nothing of them is believed until it is accepted.
    IdentityChanged {
        /// Who.
        who: Handle,
    },
    /// A message came that cannot be read. It was recorded and acknowledged, and is asked for once more.
    Unreadable {
        /// The account the server says it is from.
        from: AccountId,
        /// Its id.
        msg_id: MsgId,
        /// Why.
        reason: String,
    },
    /// Somebody came or went, as far as they show it.
    Presence {
        /// Who.
        who: Handle,
        /// What is known.
        presence: PresenceView,
    },
    /// Somebody is typing a message to this account.
    Typing {
        /// Who.
        who: Handle,
        /// How long that holds, unless it is said again or a message comes.
        holds: Duration,
    },
    /// More is known of messages sent from here.
    Ticked {
        /// To whom they went.
        to: Handle,
        /// Which.
        msg_ids: Vec<MsgId>,
        /// What.
        tick: Tick,
    },
    /// A message left in the outbox by an earlier command was not taken by the server.
    SendFailed {
        /// Its id.
        msg_id: MsgId,
        /// Why.
        error: ClientError,
    },
    /// The connection is gone.
    Disconnected {
        /// Why.
        error: ClientError,
        /// When the next one is tried.
        retry_in: Duration,
    },
}

/// What a message says, without its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MessageSummary {
    /// Words.
    Text(String),
    /// A file.
    File {
        /// The blob it is sealed in.
        blob: BlobId,
        /// Its name, as its sender has it.
        name: Option<String>,
        /// Its size in bytes.
        bytes: u64,
        /// Its media type; empty when not known.
        media_type: String,
    },
    /// Something a newer version would show.
    Unsupported,
}

/// What a watch came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WatchReport {
    /// Messages shown.
    pub received: u64,
    /// Files saved.
    pub saved: u64,
    /// Messages that could not be read.
    pub unreadable: u64,
    /// Files that can never be saved.
    pub lost: u64,
    /// Messages that other devices of this account have sent.
    pub copied: u64,
    /// Changes of groups.
    pub group_changes: u64,
    /// Entries of channels, and invites to them.
    pub channel_posts: u64,
}

impl MessageSummary {
    /// What a message says, for a person.
    pub(crate) fn of(content: &Content) -> Self {
        match content {
            Content::Text(text) => Self::Text(text.clone()),
            Content::File(file) => Self::File {
                blob: file.id,
                name: file.file_name.clone(),
                bytes: file.true_bytes,
                media_type: file.media_type.clone(),
            },
            // Shown as ticks, not as a message.
            _ => Self::Unsupported,
        }
    }
}
