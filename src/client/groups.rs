//! Groups: made, changed, written to and read by their members.
//!
//! The server is asked for nothing but to keep and pass on. Who is in a group follows from the changes that its members
//! signed, each checked against the one before it (`book`); messages are encrypted under a ratchet that this device gave
//! to exactly those devices (`ratchets`, `outbox`), and read only when they come from somebody who was in the group in
//! the epoch they name, and who saw the same group (`inbox`).
//!
//! Promise: a server that lets somebody in by itself, plays a change again or leaves one out changes nothing here but
//! that messages are refused.

pub(crate) mod book;
mod changes;
pub(crate) mod inbox;
mod link;
pub(crate) mod outbox;
pub(crate) mod ratchets;
mod sync;

pub use self::book::{GroupInfo, GroupMember, GroupNews};
pub use self::link::{GroupLink, GroupLinkError};
pub use self::outbox::SentGroupMessage;
pub(crate) use self::sync::{brings, group_of, unknown};
