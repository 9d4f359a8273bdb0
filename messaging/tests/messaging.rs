//! Messaging over real sockets: a node on port 0, clients that speak its wire.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_futures,
    unreachable_pub,
    reason = "a harness outside of test functions is a test all the same"
)]

#[path = "messaging/accounts.rs"]
mod accounts;
#[path = "messaging/blocks.rs"]
mod blocks;
#[path = "messaging/channels.rs"]
mod channels;
#[path = "messaging/client.rs"]
mod client;
#[path = "messaging/devices.rs"]
mod devices;
#[path = "messaging/groups.rs"]
mod groups;
#[path = "messaging/limits.rs"]
mod limits;
#[path = "messaging/mailboxes.rs"]
mod mailboxes;
#[path = "messaging/node.rs"]
mod node;
#[path = "messaging/polls.rs"]
mod polls;
#[path = "messaging/presence.rs"]
mod presence;
#[path = "messaging/provider.rs"]
mod provider;
#[path = "messaging/push.rs"]
mod push;
#[path = "messaging/push_libraries.rs"]
mod push_libraries;
#[path = "messaging/random.rs"]
mod random;
#[path = "messaging/receipts.rs"]
mod receipts;
#[path = "messaging/resume.rs"]
mod resume;
#[path = "messaging/sockets.rs"]
mod sockets;
#[path = "messaging/transport.rs"]
mod transport;
