//! Clients that other people wrote, as they are: most upload through the real binary and have their connections cut.
//!
//! Our own client and our own reading of a protocol can agree with each other and with nobody else. Whether tus-js-client,
//! Uppy, tuspy, curl and Google's library work is seen only by running them, and resuming is what they differ in.
//!
//! `ws` speaks the frames of messaging, Python's vodozemac and libolm open our messages, schemathesis and the parser of
//! AsyncAPI read what we say of ourselves.
//!
//! Each upload ends the same way: the id that the origin told is the BLAKE3 of the file, and an edge gives the file back.
//! `infra/install-clients.sh` installs the clients. One that is missing is said and skipped; on CI it is a failure.

#![allow(unreachable_pub, reason = "a test binary shows nothing to anybody")]
#![allow(dead_code, reason = "the test binaries share their support and use different parts of it")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

mod clients {
    pub mod browser;
    pub mod curl;
    pub mod frames;
    pub mod node;
    pub mod olm;
    pub mod openapi;
    pub mod proxy;
    pub mod python;
    pub mod scene;
    pub mod tools;
}

use std::process::ExitCode;

use clients::{browser, curl, frames, node, olm, openapi, python};
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let uploads = [node::trials(), python::trials(), curl::trials(), browser::trials()];
    let wires = [openapi::trials(), frames::trials(), olm::trials()];
    let trials = uploads.into_iter().chain(wires).flatten().collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
