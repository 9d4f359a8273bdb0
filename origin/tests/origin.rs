//! The origin over HTTP: a real router on a real socket, asked with bytes as clients send them.

#![allow(clippy::cast_possible_truncation, reason = "tests make bytes of numbers")]
#![allow(clippy::unwrap_used, reason = "the harness is test code as well")]

#[path = "origin/blobs.rs"]
mod blobs;
#[path = "origin/concat.rs"]
mod concat;
#[path = "origin/content_range.rs"]
mod content_range;
#[path = "origin/contention.rs"]
mod contention;
#[path = "origin/dialects.rs"]
mod dialects;
#[path = "origin/digests.rs"]
mod digests;
#[path = "origin/errors.rs"]
mod errors;
#[path = "origin/harness.rs"]
mod harness;
#[path = "origin/hostile.rs"]
mod hostile;
#[path = "origin/ietf.rs"]
mod ietf;
#[path = "origin/keep.rs"]
mod keep;
#[path = "origin/tus.rs"]
mod tus;
