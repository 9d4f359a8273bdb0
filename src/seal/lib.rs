//! Everything that touches users' keys: sealing of blobs, identities, end-to-end sessions.
//!
//! No server depends on this crate, so a server cannot read what people send even by mistake. Nothing here does I/O or
//! reads a clock, so the same code runs on a phone and in the browser.

#![cfg_attr(test, allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers"))]

pub mod blob;
pub mod blob_ref;
pub mod channel;
pub mod device;
mod envelope;
pub mod group;
pub mod identity;
pub mod link;
pub mod message;
mod secret_bytes;
pub mod session;
pub mod share;
