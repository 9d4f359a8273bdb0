//! Leases: what is being sent from a cache file is not punched away meanwhile.
//!
//! A hole reads as zeroes, and the kernel sends a file's own pages without copying them: on a file system with large
//! folios (ext4, XFS) a hole writes zeroes into pages that lie in a socket's queue already. So a unit that is leased is
//! not evicted, and when it is purged its room comes back later.
//!
//! A lease ends by itself, so that a reader who dawdles keeps no room: whoever sends renews it for each slice and before
//! each call once it is no longer fresh, and is refused when the unit is gone.
//!
//! Promise: room is given back [`QUEUED_MAX`] after the last call that sent from it, at the earliest. The listener ends
//! connections whose bytes stay unacknowledged for half of that. A receiver on this very host that reads nothing for
//! longer than that holds the file's pages and no copy: behind a proxy on the same host whose readers stall, what was
//! evicted meanwhile arrives as zeroes, and fails the readers' own check.

use std::collections::HashMap;
use std::fs::File;
use std::io::IoSliceMut;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::{ReadWriteFlags, preadv2};

use super::index::Place;

/// How long a lease may be used.
const FRESH: Duration = Duration::from_secs(60);

/// How long bytes may lie in sockets' queues after the last use.
const QUEUED_MAX: Duration = Duration::from_secs(60);

/// Leases held before those that have ended are looked for again.
const TIDY_MIN: usize = 1024;

/// A unit to be sent from its file.
#[derive(Clone, Debug)]
pub(crate) struct Lease {
    pub(crate) file: Arc<File>,
    /// Where it begins.
    pub(crate) offset: u64,
    /// Its bytes.
    pub(crate) bytes: u64,
    /// No call may send from it later than this.
    pub(crate) fresh_until: Instant,
}

impl Lease {
    /// Whether the kernel has the unit's first and last pages in memory, and so most likely all: then sending waits for no
    /// disk.
    pub(crate) fn is_read_ahead(&self) -> bool {
        let mut byte = [0];
        let ends = [self.offset, self.offset + self.bytes.saturating_sub(1)];
        ends.into_iter().all(|at| {
            let read = preadv2(&self.file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT);
            read == Ok(1)
        })
    }
}

/// The leases given.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Until when the room of each must stay.
    until: HashMap<Place, Instant>,
    tidy_at: usize,
}

impl Leases {
    /// Gives a lease of `place`, or more time to one that was given. Gives how long it is fresh.
    pub(super) fn renew(&mut self, place: Place, now: Instant) -> Instant {
        if self.until.len() >= self.tidy_at.max(TIDY_MIN) {
            self.until.retain(|_, until| *until > now);
            self.tidy_at = 2 * self.until.len();
        }
        let fresh_until = now + FRESH;
        self.until.insert(place, fresh_until + QUEUED_MAX);
        fresh_until
    }

    /// Whether the room at `place` must stay.
    pub(super) fn hold(&self, place: Place, now: Instant) -> bool {
        self.until.get(&place).is_some_and(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_stays_until_what_was_sent_from_it_has_left_the_queues() {
        let place = |block| Place { file: 1, block, bytes: 9 };
        let (mut leases, begin) = (Leases::default(), Instant::now());
        let fresh_until = leases.renew(place(0), begin);
        assert!(leases.hold(place(0), fresh_until + QUEUED_MAX - Duration::from_secs(1)));
        assert!(!leases.hold(place(0), fresh_until + QUEUED_MAX));
        assert!(!leases.hold(place(1), begin));
        // Renewed, it holds longer; and those that ended are forgotten.
        leases.renew(place(0), begin + FRESH);
        assert!(leases.hold(place(0), fresh_until + QUEUED_MAX));
        for block in 0..3 * u32::try_from(TIDY_MIN).unwrap() {
            leases.renew(place(block), begin + FRESH * (3 * (block / 1000)));
        }
        assert!(leases.until.len() <= 2 * TIDY_MIN + 1000, "{}", leases.until.len());
    }
}
