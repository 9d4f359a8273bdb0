//! Channels: who writes in one, and the log of what they wrote.
//!
//! A channel is read by many whom nobody lists, so a server that could add entries, leave some out or change who writes would
//! be found out by nobody. Hence two chains. Charters, each signed by the owner's account key and naming the one before it,
//! say who writes and under which key ([`Charter`]). Entries, each signed by its author's account key, name the entry before
//! them ([`Entry`]). A charter names the entry at which it begins, so the two chains hold one another.
//!
//! Promises: from one entry that a reader believes, every entry after it is checked, and there is one order of them; whoever
//! is no author any more cannot write under a later charter, nor behind entries that are there. What a server can still do is
//! to withhold the newest entries, and show two readers different ones until they are shown the same charter again.

mod charter;
mod entry;
mod page;

pub use self::charter::{Author, Charter, SignedCharter};
pub use self::entry::{Entry, SignedEntry};
pub use self::page::{Page, fills_page};

/// The domain of charters.
pub const CHANNEL_CHARTER_DOMAIN: &str = "waxwing/channel-charter/v1";

/// The domain of entries.
pub const CHANNEL_ENTRY_DOMAIN: &str = "waxwing/channel-entry/v1";

/// Authors of a channel at most: a broadcast has few, and each is in every charter.
pub const CHANNEL_AUTHORS_MAX: usize = 64;

/// Charters of a channel at most: all are kept for as long as the channel, at 200 bytes and 52 an author.
pub const CHANNEL_EPOCHS_MAX: u64 = 4096;

/// Bytes of a channel's title at most. Only readers see it, so only they can refuse a longer one.
pub const CHANNEL_TITLE_BYTES_MAX: usize = 256;

/// Bytes of a sealed title at most: the title, its padding and what sealing adds.
pub const CHANNEL_SEALED_TITLE_BYTES_MAX: usize = 512;

/// Entries of a page: one is full with these.
pub const CHANNEL_PAGE_ENTRIES: usize = 256;

/// Bytes of entries with which a page is full, if it is not by their number before. The last one may go beyond.
pub const CHANNEL_PAGE_BYTES: usize = 256 * 1024;

/// Channels that one connection is told of at a time.
pub const CHANNEL_SUBSCRIPTIONS_MAX: usize = 256;

/// Why something of a channel is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The bytes do not say what they should.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The signature is not by the key it must be by.
    #[error("the signature is not valid")]
    Signature,
    /// It does not follow what stands.
    #[error("it does not follow what stands: {0}")]
    Follows(&'static str),
    /// It was written under another charter than the one that holds there.
    #[error("it is of epoch {epoch}, where another holds")]
    Epoch {
        /// The epoch that it names.
        epoch: u64,
    },
    /// There is no room.
    #[error("a channel has at most {CHANNEL_AUTHORS_MAX} authors and {CHANNEL_EPOCHS_MAX} charters")]
    Full,
}

/// A place in a channel's log: an entry, or the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// The entry's place; 0 before the first.
    pub seq: u64,
    /// BLAKE3 of the entry; zeros before the first.
    pub hash: [u8; 32],
}

/// The charter under which the entry after `after` is written, of all of a channel's by rising epoch.
///
/// # Errors
/// [`ChannelError::Follows`] when none holds there, or one begins behind another entry: then this is another log than the one
/// that the channel's owner knew.
pub fn charter_for<'a>(charters: &'a [Charter], after: &Position) -> Result<&'a Charter, ChannelError> {
    let holding = charters.iter().rev().find(|charter| charter.after.seq <= after.seq);
    let holding = holding.ok_or(ChannelError::Follows("no charter holds there"))?;
    let same_log = holding.after.seq != after.seq || holding.after == *after;
    if same_log { Ok(holding) } else { Err(ChannelError::Follows("it is another log than the owner's charter is of")) }
}

fn hash(bytes: &[u8]) -> Result<[u8; 32], ChannelError> {
    bytes.try_into().map_err(|_| ChannelError::Malformed("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests;
