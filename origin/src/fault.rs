//! Switches that break a promise on purpose.
//!
//! A test that looks for lost bytes proves nothing until it has been seen to find some. Built with the feature
//! `fault-injection` and started with `WAXWING_FAULT=skip-sync` the origin acknowledges what no disk has; the fault
//! tests must report it.
//!
//! Other faults are a matter of the moment: the points at which a process is killed have names, and `FAILPOINTS` says at
//! which of them, and at which time it gets there, it kills itself (`data-synced=3*off->return`: the fourth time).
//!
//! Without the feature every switch is off at compile time, points are nothing, and the environment is not read.

#[cfg(any(test, feature = "fault-injection"))]
use std::sync::atomic::{AtomicBool, Ordering};

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `skip-sync`: neither data nor records are synced, and yet acknowledged; to a bucket, tails are not written.
    SkipSync,
    /// `fail-sync`: the disk reports an I/O error at every sync of data.
    FailSync,
    /// `disk-full`: the disk has no room.
    DiskFull,
    /// `small-packs`: packs are so small that a test sees many of them.
    SmallPacks,
    /// `churn-packs`: packs are compacted without end, whatever lives in them.
    ChurnPacks,
    /// `collect-at-once`: what an operator has collected in a bucket need not be old; for a node that nobody uses.
    CollectAtOnce,
    /// `hold-sync`: the disk answers no sync of data as long as this is on.
    HoldSync,
}

/// Which switches are on.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    #[cfg(any(test, feature = "fault-injection"))]
    on: [AtomicBool; 7],
}

/// A name in `WAXWING_FAULT` that is no fault: a misspelt switch would make a harness pass for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("WAXWING_FAULT names an unknown fault: {0}")]
pub struct UnknownFault(pub String);

#[cfg(any(test, feature = "fault-injection"))]
impl Faults {
    /// The switches named in a comma-separated list.
    pub(crate) fn parse(list: &str) -> Result<Self, UnknownFault> {
        let faults = Self::default();
        for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "skip-sync" => faults.set(Fault::SkipSync, true),
                "fail-sync" => faults.set(Fault::FailSync, true),
                "disk-full" => faults.set(Fault::DiskFull, true),
                "small-packs" => faults.set(Fault::SmallPacks, true),
                "churn-packs" => faults.set(Fault::ChurnPacks, true),
                "collect-at-once" => faults.set(Fault::CollectAtOnce, true),
                "hold-sync" => faults.set(Fault::HoldSync, true),
                // Messaging's, named in the same variable.
                "delete-before-ack" => {}
                other => return Err(UnknownFault(other.to_owned())),
            }
        }
        Ok(faults)
    }

    /// Turns a switch.
    pub(crate) fn set(&self, fault: Fault, on: bool) {
        self.on[fault as usize].store(on, Ordering::SeqCst);
    }

    /// Whether a switch is on.
    pub(crate) fn is_on(&self, fault: Fault) -> bool {
        self.on[fault as usize].load(Ordering::SeqCst)
    }
}

#[cfg(not(any(test, feature = "fault-injection")))]
impl Faults {
    /// No switch is ever on in a build without the feature.
    pub(crate) const fn is_on(&self, _: Fault) -> bool {
        false
    }
}

/// A moment at which a test may want this process to be killed, as `kill -9` does: nothing more is written or said.
#[cfg(feature = "fault-injection")]
pub(crate) fn kill_point(name: &'static str) {
    use rustix::process::{Signal, getpid, kill_process};
    fail::fail_point!(name, |_| {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
        // It may take a moment.
        loop {
            std::thread::park();
        }
    });
}

/// A moment at which a test may want this process to be killed.
#[cfg(not(feature = "fault-injection"))]
pub(crate) const fn kill_point(_: &'static str) {}

/// The switches of this process: those in `WAXWING_FAULT` in a build with the feature, else none.
pub(crate) fn from_env() -> Result<Faults, UnknownFault> {
    #[cfg(feature = "fault-injection")]
    static POINTS: std::sync::Once = std::sync::Once::new();
    #[cfg(feature = "fault-injection")]
    // What `FAILPOINTS` names is forgotten when this is dropped, and it holds a lock that a second one would wait for.
    POINTS.call_once(|| std::mem::forget(fail::FailScenario::setup()));
    #[cfg(feature = "fault-injection")]
    let faults = Faults::parse(&std::env::var("WAXWING_FAULT").unwrap_or_default())?;
    #[cfg(not(feature = "fault-injection"))]
    let faults = Faults::default();
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_named_exactly() {
        let faults = Faults::parse("skip-sync, disk-full").unwrap();
        assert!(faults.is_on(Fault::SkipSync) && faults.is_on(Fault::DiskFull) && !faults.is_on(Fault::FailSync));
        assert_eq!(Faults::parse("skip_sync").unwrap_err(), UnknownFault("skip_sync".into()));
    }
}
