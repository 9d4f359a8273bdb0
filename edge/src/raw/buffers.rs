//! What a connection reads into and writes from while it is answered.
//!
//! Idle connections keep none of it, or ten thousand of them would hold megabytes; but making it anew for each request is
//! a good part of what a small hit costs. So each thread keeps a few.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// Kept by a thread at most: as many connections are amid a request there as wait for their readers.
const KEPT_MAX: usize = 16;

/// Bytes of a buffer above which it is not kept.
const KEPT_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    static KEPT: RefCell<Vec<Buffers>> = const { RefCell::new(Vec::new()) };
}

/// The buffers of a connection.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// What was read and not answered yet.
    pub(super) read: BytesMut,
    /// The head being written.
    pub(super) head: Vec<u8>,
}

impl Buffers {
    /// Empty ones, that have room if any were given back.
    pub(super) fn take() -> Self {
        KEPT.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Gives them back for others to take.
    pub(super) fn give_back(mut self) {
        let capacity = self.read.capacity().max(self.head.capacity());
        if capacity == 0 || capacity > KEPT_BYTES_MAX {
            return;
        }
        self.read.clear();
        self.head.clear();
        KEPT.with_borrow_mut(|kept| {
            if kept.len() < KEPT_MAX {
                kept.push(self);
            }
        });
    }

    /// What was read, for another server.
    pub(super) fn into_read(self) -> Bytes {
        self.read.freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one connection said is never another's.
    #[test]
    fn buffers_come_back_empty_with_their_room() {
        let mut buffers = Buffers::take();
        buffers.read.extend_from_slice(b"secret");
        buffers.head.extend_from_slice(b"answer");
        buffers.give_back();
        let again = Buffers::take();
        assert!(again.read.is_empty() && again.head.is_empty());
        assert!(again.read.capacity() >= 6 && again.head.capacity() >= 6);
        assert_eq!(Buffers::take().read.capacity(), 0);
    }

    #[test]
    fn a_thread_keeps_few_and_no_large_ones() {
        let with = |bytes| Buffers { read: BytesMut::with_capacity(bytes), head: Vec::new() };
        with(KEPT_BYTES_MAX + 1).give_back();
        with(0).give_back();
        assert_eq!(KEPT.with_borrow(Vec::len), 0);
        (0..2 * KEPT_MAX).for_each(|_| with(64).give_back());
        assert_eq!(KEPT.with_borrow(Vec::len), KEPT_MAX);
    }
}
