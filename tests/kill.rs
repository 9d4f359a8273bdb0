//! Nothing acknowledged is lost: servers and clients are killed at random, disks forget what was not synced.
//!
//! A promise about durability cannot be seen from inside the process that made it. So a *recorder*, a process of its
//! own that is never killed, writes down every acknowledgement that reaches a client; *workers* upload and send as fast
//! as they can; the test kills servers and workers with -9 wherever they happen to be; and at the end everything in the
//! recorder's log must be there. `kill -9` leaves the page cache alone, so whether anything was synced is tested by
//! power cuts: an ext4 file system that is shut down without flushing its journal.
//!
//! The harness must be able to fail: with a switch of the `fault-injection` feature on, it has to report the loss.
//!
//! This binary is also its own helper processes: `kill recorder …`, `kill uploader …`, `kill sender …`, `kill group-sender …`,
//! `kill receiver …`.

#![allow(unreachable_pub, reason = "a test binary shows nothing to anybody")]
#![allow(dead_code, reason = "the two test binaries share their support and use different parts of it")]
#![allow(clippy::cast_precision_loss, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod support;

mod harness {
    pub mod couriers;
    pub mod cycles;
    pub mod devices;
    pub mod disk;
    pub mod edges;
    pub mod groups;
    pub mod recorder;
    pub mod uploader;
    pub mod verdict;
}

use std::process::ExitCode;

use harness::cycles::{Chaos, Report, messages, uploads};
use harness::edges::edges;
use harness::{couriers, devices, disk, groups, recorder, uploader};
use libtest_mimic::{Arguments, Failed, Trial};

/// Kills of each kind: often enough that a window of a few microseconds between record and answer is met.
const CYCLES: usize = 50;

/// Packs are compacted without end: whatever was packed is moved again and again.
const COMPACTION: &str = "small-packs,churn-packs";

/// Power cuts: each costs an unmount and a mount.
const CUTS: usize = 6;

/// Kills in a group whose rows go too early: a few are enough to see it.
const GROUP_CYCLES: usize = 12;

/// Kills of an edge: it has no window between record and answer, so fewer will do.
const EDGE_KILLS: usize = 20;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["recorder", log] => recorder::run(log.as_ref()),
        ["uploader", server, grant, recorder, seed, most] => uploader::run(server, grant, recorder, seed, most),
        ["sender", home, to, recorder] => couriers::send(home.as_ref(), to, recorder),
        ["group-sender", home, group, recorder] => couriers::send_to_group(home.as_ref(), group, recorder),
        ["receiver", home, recorder] => couriers::receive(home.as_ref(), recorder),
        _ => return libtest_mimic::run(&Arguments::from_args(), trials()).exit_code(),
    }
    ExitCode::SUCCESS
}

fn trials() -> Vec<Trial> {
    let no_disk = disk::unavailable();
    if let Some(reason) = &no_disk {
        eprintln!("power cuts are not tested: {reason}");
    }
    vec![
        Trial::test("acknowledged_uploads_survive_kill_9", || holds(uploads(Chaos::kills(CYCLES)))),
        Trial::test("acknowledged_uploads_survive_kill_9_amid_compaction", || {
            holds(uploads(Chaos::kills(CYCLES).with_fault(COMPACTION)))
        }),
        Trial::test("acknowledged_messages_survive_kill_9", || holds(messages(Chaos::kills(CYCLES)))),
        Trial::test("two_devices_each_have_every_message_once_whichever_is_killed", || {
            holds(devices::messages(CYCLES))
        }),
        Trial::test("a_groups_messages_reach_everybody_once_over_kill_9_and_leave_no_body", || {
            holds(groups::messages(Chaos::kills(CYCLES)))
        }),
        Trial::test("the_harness_sees_a_groups_messages_deleted_before_their_ack", || {
            breaks(groups::messages(Chaos::kills(GROUP_CYCLES).with_fault("delete-before-ack")))
        }),
        Trial::test("the_harness_sees_messages_deleted_before_their_ack", || {
            breaks(messages(Chaos::kills(CYCLES).with_fault("delete-before-ack")))
        }),
        Trial::test("acknowledged_uploads_survive_power_cuts", || holds(uploads(Chaos::power_cuts(CUTS))))
            .with_ignored_flag(no_disk.is_some()),
        Trial::test("acknowledged_uploads_survive_power_cuts_amid_compaction", || {
            holds(uploads(Chaos::power_cuts(CUTS).with_fault(COMPACTION)))
        })
        .with_ignored_flag(no_disk.is_some()),
        Trial::test("acknowledged_messages_survive_power_cuts", || holds(messages(Chaos::power_cuts(CUTS))))
            .with_ignored_flag(no_disk.is_some()),
        Trial::test("the_harness_sees_uploads_that_were_not_synced", || {
            breaks(uploads(Chaos::power_cuts(CUTS).with_fault("skip-sync")))
        })
        .with_ignored_flag(no_disk.is_some()),
        Trial::test("the_harness_sees_messages_that_were_not_synced", || {
            breaks(messages(Chaos::power_cuts(CUTS).with_fault("skip-sync")))
        })
        .with_ignored_flag(no_disk.is_some()),
        Trial::test("an_edge_killed_with_9_serves_no_wrong_byte", || Ok(edges(EDGE_KILLS, false).shows_something()?)),
        Trial::test("an_edge_whose_power_is_cut_serves_no_wrong_byte", || Ok(edges(CUTS, true).shows_something()?))
            .with_ignored_flag(no_disk.is_some()),
    ]
}

/// The promise was kept, and enough was acknowledged to say so.
fn holds(losses: Result<Report, String>) -> Result<(), Failed> {
    let report = losses?;
    eprintln!("{report}");
    if report.losses.is_empty() { Ok(()) } else { Err(format!("lost: {:#?}", report.losses).into()) }
}

/// The promise was broken on purpose, and the harness noticed.
fn breaks(losses: Result<Report, String>) -> Result<(), Failed> {
    let report = losses?;
    eprintln!("{report}");
    if report.losses.is_empty() {
        Err("the switch broke the promise and the harness saw nothing".into())
    } else {
        Ok(())
    }
}
