//! Bytes that are being read: they are removed when nobody reads them any more.
//!
//! A blob that somebody opened can be read to its end even when it goes meanwhile. This holds for readers of the same
//! process; those of another see their answer break off, as at any failure of the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Names of data, each with who reads it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<String, Readers>>>);

/// Who reads some data.
#[derive(Debug, Default)]
struct Readers {
    count: usize,
    /// Whether somebody was kept from removing it.
    is_awaited: bool,
}

/// Somebody reads; dropped when they have done.
pub(super) struct Pin {
    pins: Pins,
    name: String,
    /// What to do once nobody reads it any more, when somebody waits for that.
    on_last: Box<dyn Fn() + Send + Sync>,
}

impl Pins {
    /// Keeps the data of this name; `on_last` is called when the last reader has done and somebody waits for that.
    pub(super) fn pin(&self, name: &str, on_last: impl Fn() + Send + Sync + 'static) -> Pin {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default().count += 1;
        Pin { pins: self.clone(), name: name.to_owned(), on_last: Box::new(on_last) }
    }

    /// Whether somebody reads the data of this name; then the last of them will say so.
    pub(super) fn is_pinned(&self, name: &str) -> bool {
        let mut pins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let readers = pins.get_mut(name);
        readers.map(|readers| readers.is_awaited = true).is_some()
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(readers) = pins.get_mut(&self.name) else { return };
        readers.count -= 1;
        if readers.count == 0 {
            let is_awaited = pins.remove(&self.name).is_some_and(|readers| readers.is_awaited);
            drop(pins);
            if is_awaited {
                (self.on_last)();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Most blobs are read and stay: nobody need look after each reader whether theirs went.
    #[test]
    fn the_last_reader_is_waited_for_only_by_whoever_removes() {
        let (pins, called) = (Pins::default(), Arc::new(AtomicUsize::new(0)));
        let pin = || {
            let called = Arc::clone(&called);
            pins.pin("data", move || {
                called.fetch_add(1, Ordering::SeqCst);
            })
        };
        drop(pin());
        assert!(!pins.is_pinned("data"));
        let (first, last) = (pin(), pin());
        assert!(pins.is_pinned("data"));
        drop(first);
        assert_eq!(called.load(Ordering::SeqCst), 0, "somebody still reads");
        drop(last);
        assert_eq!(called.load(Ordering::SeqCst), 1);
        drop(pin());
        assert_eq!(called.load(Ordering::SeqCst), 1);
    }
}
