//! The Waxwing client SDK: accounts, sealed transfers that resume, end-to-end messages.
//!
//! A person on a train sends a video; the network goes, the laptop closes, the battery dies. Whatever was not durable
//! at that moment would be lost or, worse, sealed a second time under the same nonces. So every step here is written
//! to the profile before it is taken, and taking it again is harmless.
//!
//! [`Client`] is the whole of it: a [`Profile`] (one directory), the keys in it, and the service it belongs to.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

mod account;
mod archive;
mod blob_refs;
mod blocks;
mod channels;
mod client;
mod contacts;
mod conversation;
mod copies;
mod devices;
mod doctor;
mod download;
mod error;
mod fetch;
mod files;
mod grants;
mod groups;
mod history;
mod http;
mod inbox;
mod kept;
mod linking;
#[cfg(test)]
mod messaging_tests;
mod outbox;
mod part_file;
mod planning;
mod polls;
mod preferences;
mod prekeys;
mod presence;
mod profile;
mod progress;
mod push;
mod receipts;
mod repair;
mod route;
mod sealing;
mod secret;
mod send;
mod sessions;
mod socket;
mod tokens;
mod transfer;
#[cfg(test)]
mod transfers_tests;
mod tus;
mod upload;
mod watch;
mod watch_event;

pub use account::{Identity, RegisterOptions};
pub use channels::{ChannelInfo, ChannelLink, ChannelLinkError, ChannelPost, ChannelRole};
pub use client::Client;
pub use contacts::KnownContact;
pub use devices::DeviceInfo;
pub use doctor::{Finding, Verdict};
pub use download::FetchedFile;
pub use error::ClientError;
pub use fetch::{ShareSource, fetch_link};
pub use groups::{GroupInfo, GroupLink, GroupLinkError, GroupMember, GroupNews, SentGroupMessage};
pub use history::{ReceivedMessage, SentMessage};
pub use linking::Linking;
pub use presence::PresenceView;
pub use profile::{Profile, StoreError};
pub use progress::{OnProgress, Progress};
pub use receipts::Tick;
pub use send::SentFile;
pub use transfer::{Transfer, TransferId};
pub use upload::UploadReport;
pub use watch_event::{MessageSummary, WatchEvent, WatchOptions, WatchReport};
pub use waxwing_seal::blob_ref::BlobRef;
pub use waxwing_seal::link::{LinkCode, LinkError};
pub use waxwing_seal::message::Content;
pub use waxwing_seal::share::{ShareLink, ShareLinkError};
