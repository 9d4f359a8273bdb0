//! Switches that break a promise on purpose, so that the fault tests can be seen to fail.
//!
//! A harness that looks for lost messages proves something only if it finds some when messages do get lost. Built with
//! the feature `fault-injection`, `WAXWING_FAULT` names the promises to break, separated by commas: `skip-sync` commits
//! without a sync, `delete-before-ack` forgets a message once it was written to the socket. Without the feature, which
//! no release has, both are constants that are false.

#[cfg(feature = "fault-injection")]
fn injected(name: &str) -> bool {
    std::env::var("WAXWING_FAULT").is_ok_and(|names| names.split(',').any(|given| given.trim() == name))
}

/// Whether commits go without a sync.
#[cfg(feature = "fault-injection")]
pub(crate) fn skip_sync() -> bool {
    static INJECTED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| injected("skip-sync"));
    *INJECTED
}

/// Whether commits go without a sync.
#[cfg(not(feature = "fault-injection"))]
pub(crate) const fn skip_sync() -> bool {
    false
}

/// Whether a message counts as acked once it was written to the socket.
#[cfg(feature = "fault-injection")]
pub(crate) fn delete_before_ack() -> bool {
    static INJECTED: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| injected("delete-before-ack"));
    *INJECTED
}

/// Whether a message counts as acked once it was written to the socket.
#[cfg(not(feature = "fault-injection"))]
pub(crate) const fn delete_before_ack() -> bool {
    false
}
