//! The Waxwing client SDK: accounts, sealed transfers that resume, end-to-end messages.
//!
//! A person on a train sends a video; the network goes, the laptop closes, the battery dies. Whatever was not durable
//! at that moment would be lost or, worse, sealed a second time under the same nonces. So every step here is written
//! to the profile before it is taken, and taking it again is harmless.
//!
//! [`Client`] is the whole of it: a [`Profile`] (one directory), the keys in it, and the service it belongs to.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

mod blob_refs;
mod client;
mod error;
mod http;
mod profile;
mod progress;

pub use client::Client;
pub use error::ClientError;
pub use profile::{Profile, StoreError};
pub use progress::{OnProgress, Progress};
