//! How far purges have come, as edges tell one another.
//!
//! An edge that has dropped a purged blob would get it back from a peer that has not heard of the purge yet, and keep it
//! for good. So a request to another edge says up to which number of each origin's log its sender is done, and one that
//! is behind says so instead of answering.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use http::{HeaderMap, HeaderName, HeaderValue};

/// The numbers, in the order in which the origins are configured: the same on all edges that ask one another.
const PURGES: HeaderName = HeaderName::from_static("waxwing-purges");

/// The number of the last purge applied here, of each origin.
#[derive(Debug)]
pub(crate) struct Cursors(Vec<AtomicU64>);

impl Cursors {
    /// Of so many origins, from none of which anything is known.
    pub(crate) fn new(origins: usize) -> Self {
        Self((0..origins).map(|_| AtomicU64::new(0)).collect())
    }

    /// Every purge of origin `origin` up to `number` has been applied.
    pub(crate) fn set(&self, origin: usize, number: u64) {
        if let Some(cursor) = self.0.get(origin) {
            cursor.store(number, Relaxed);
        }
    }

    /// Says on a request to another edge how far this one is.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        let numbers: Vec<_> = self.0.iter().map(|cursor| cursor.load(Relaxed).to_string()).collect();
        let value = HeaderValue::try_from(numbers.join(", "));
        headers.insert(PURGES, value.expect("digits and commas are a header value"));
    }

    /// Whether this edge is as far as the one that sent these headers. One that says nothing follows no log.
    pub(crate) fn reach(&self, headers: &HeaderMap) -> bool {
        let Some(told) = headers.get(PURGES) else { return true };
        let told = told.to_str().unwrap_or("?").split(',').map(|number| number.trim().parse::<u64>());
        let mut own = self.0.iter().map(|cursor| cursor.load(Relaxed));
        told.into_iter().all(|number| number.is_ok_and(|number| number <= own.next().unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_that_is_behind_knows_it() {
        let (ahead, behind) = (Cursors::new(2), Cursors::new(2));
        let told = |cursors: &Cursors| {
            let mut headers = HeaderMap::new();
            cursors.tell(&mut headers);
            headers
        };
        assert!(behind.reach(&told(&ahead)));
        ahead.set(1, 7);
        assert!(!behind.reach(&told(&ahead)) && ahead.reach(&told(&behind)));
        behind.set(1, 7);
        assert!(behind.reach(&told(&ahead)));
        assert!(!Cursors::new(1).reach(&told(&ahead)), "of an origin that it does not know, it knows no purge");
        assert!(behind.reach(&HeaderMap::new()));
        let malformed = HeaderMap::from_iter([(PURGES, HeaderValue::from_static("1, x"))]);
        assert!(!behind.reach(&malformed));
    }
}
