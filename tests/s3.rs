//! Origins over a bucket: the real binary and a real server, both killed; two origins at one upload; a bucket that goes.
//!
//! A store that keeps nothing itself promises what the bucket has. So what was acknowledged is written down by a process
//! that nobody kills, origins and SeaweedFS are killed wherever they happen to be, and at the end two lists are held
//! against what is there: the log of what clients were told, and the server's own listing, in which no byte is missing
//! and none is left that nothing names.
//!
//! SeaweedFS answers a write when the operating system has it, so its own `kill -9` takes nothing back; a power cut
//! would, unless it is told to sync (`-filer.path` rules with `fsync`). These tests do not cut its power.
//!
//! This binary is also its own helper processes: `s3 recorder …`, `s3 uploader …`.

#![allow(unreachable_pub, reason = "a test binary shows nothing to anybody")]
#![allow(dead_code, reason = "the test binaries share their support and use different parts of it")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

mod harness {
    pub mod recorder;
    pub mod uploader;
    pub mod verdict;
}

mod on_s3 {
    pub mod kills;
    pub mod listing;
    pub mod race;
    pub mod readiness;
    pub mod scene;
    pub mod seaweed;
}

use std::process::ExitCode;

use harness::{recorder, uploader};
use libtest_mimic::{Arguments, Trial};
use on_s3::{kills, race, readiness, seaweed};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["recorder", log] => recorder::run(log.as_ref()),
        ["uploader", server, grant, recorder, seed, most] => uploader::run(server, grant, recorder, seed, most),
        _ => {
            let missing = seaweed::missing();
            if let Some(reason) = &missing {
                eprintln!("skipped: {reason}");
            }
            // On CI it could have been installed: there it is a failure.
            let is_skipped = missing.is_some() && std::env::var_os("CI").is_none();
            let trials: Vec<Trial> =
                [kills::trials(), race::trials(), readiness::trials()].into_iter().flatten().collect();
            let trials = trials.into_iter().map(|trial| trial.with_ignored_flag(is_skipped)).collect();
            return libtest_mimic::run(&Arguments::from_args(), trials).exit_code();
        }
    }
    ExitCode::SUCCESS
}
