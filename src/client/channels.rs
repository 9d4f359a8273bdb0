//! Channels: founded, written in, followed and read.
//!
//! The server is asked for nothing but to keep a log and to hand it out. Who owns a channel is in the invite; who writes in it
//! the owner has signed (`book`); each entry names the one before it, so from the entry at which this device began every later
//! one is checked, wherever it came from: a node, a page at an edge, a live connection (`log`). An author's posts are stored
//! here before they are sent (`post`); full pages are closed on the way (`pages`).
//!
//! Promise: what this device shows of a channel was written by its authors, in this order, with nothing left out between. A
//! server that withholds the newest entries is not noticed until it stops.

mod book;
mod inbox;
mod link;
mod live;
mod log;
mod owner;
mod pages;
mod post;
#[cfg(test)]
mod tests;

pub use self::book::{ChannelInfo, ChannelPost, ChannelRole};
pub(crate) use self::inbox::{Invited, take_invite};
pub use self::link::{ChannelLink, ChannelLinkError};
pub(crate) use self::live::Live;
