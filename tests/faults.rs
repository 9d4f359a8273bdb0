//! Disks that fail, and processes that die at the worst moment: each fault is injected for real, and counted.
//!
//! `kill.rs` kills at random, and so meets a window of a microsecond now and then. Here the windows have names, and each
//! is met: between the sync of bytes and the record of them, between a record and its answer, between a copy and the
//! removal of what it was copied from. And disks do what they do in the field: they are full, and they fail to sync.
//!
//! What was acknowledged is written down here, outside of the process that promised it. A test whose injector did nothing
//! fails. What cannot be injected here, for want of root or a tool, is said and skipped; on CI as root it is a failure.

#![allow(unreachable_pub, reason = "a test binary shows nothing to anybody")]
#![allow(dead_code, reason = "the test binaries share their support and use different parts of it")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

mod support;

mod harness {
    pub mod recorder;
    pub mod uploader;
}

mod injected {
    pub mod full_disk;
    pub mod kill_points;
    pub mod scene;
    pub mod sync_errors;
}

use std::process::ExitCode;

use injected::{full_disk, kill_points, sync_errors};
use libtest_mimic::{Arguments, Trial};

fn main() -> ExitCode {
    let trials: Vec<Trial> =
        [kill_points::trials(), full_disk::trials(), sync_errors::trials()].into_iter().flatten().collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
