//! The JSON bodies of channels, at `/v1/channels`.

use serde::{Deserialize, Serialize};

use crate::channel::SignedCharter;
use crate::identity::Base64;
use crate::{BlobId, ChannelId};

/// Charters that one answer shows at most: 64 with 64 authors each are 230 KB.
pub const CHANNEL_CHARTERS_MAX: usize = 64;

/// Pages that one answer names at most.
pub const CHANNEL_PAGES_MAX: usize = 256;

/// Answer of `GET /v1/channels`: the channels that the calling account owns or writes in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelsView {
    /// By rising id.
    pub channels: Vec<ChannelId>,
}

/// Answer of `POST /v1/channels` and `POST /v1/channels/{id}/charters`, whose body is a [`SignedCharter`]: 201, or 200 when
/// the same charter was taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelChanged {
    /// The channel.
    pub channel: ChannelId,
    /// The charter's epoch.
    pub epoch: u64,
}

/// Answer of `GET /v1/channels/{id}?after=N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelView {
    /// By rising epoch from N + 1 on, [`CHANNEL_CHARTERS_MAX`] at most.
    pub charters: Vec<SignedCharter>,
    /// The epoch that stands.
    pub epoch: u64,
    /// The last entry; 0 when there is none.
    pub head_seq: u64,
    /// The first entry that nodes hold; those before it are in pages.
    pub tail_seq: u64,
    /// Pages so far.
    pub pages: u64,
    /// What nodes hold fills a page, which an author should close.
    pub full_page: bool,
}

/// Answer of `GET /v1/channels/{id}/entries?after=N`: entries that nodes hold, as many as fill a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelEntries {
    /// By rising seq from N + 1 on. None when N is the last, and when what follows N is in pages: then N + 1 is below
    /// `tail_seq`.
    pub entries: Vec<Base64>,
    /// The last entry; 0 when there is none.
    pub head_seq: u64,
    /// The first entry that nodes hold; those before it are in pages.
    pub tail_seq: u64,
}

/// A page, as a manifest names it. Also the body of `POST /v1/channels/{id}/pages`, by an author who has put the blob into the
/// origin: 201, or 200 when it was named before. The node lets go of the entries then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelPageView {
    /// Its number, from 1.
    pub page: u64,
    /// Its first entry.
    pub first_seq: u64,
    /// Its last entry.
    pub last_seq: u64,
    /// The blob, which is a [`Page`](crate::channel::Page).
    pub blob: BlobId,
}

/// Answer of `GET /v1/channels/{id}/manifest?after=N`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelManifest {
    /// By rising number, from the page that has entry N + 1 on, [`CHANNEL_PAGES_MAX`] at most.
    pub pages: Vec<ChannelPageView>,
    /// The first entry that nodes hold.
    pub tail_seq: u64,
}
