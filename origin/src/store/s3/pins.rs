//! Bytes that are being read: they are removed when nobody reads them any more.
//!
//! A blob that somebody opened can be read to its end even when it goes meanwhile. This holds for readers of the same
//! process; those of another see their answer break off, as at any failure of the store.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Names of data, each with how many read it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Mutex<HashMap<String, usize>>>);

/// Somebody reads; dropped when they have done.
pub(super) struct Pin {
    pins: Pins,
    name: String,
    /// What to do once nobody reads it any more.
    on_last: Box<dyn Fn() + Send + Sync>,
}

impl Pins {
    /// Keeps the data of this name; `on_last` is called when the last reader has done.
    pub(super) fn pin(&self, name: &str, on_last: impl Fn() + Send + Sync + 'static) -> Pin {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(name.to_owned()).or_default() += 1;
        Pin { pins: self.clone(), name: name.to_owned(), on_last: Box::new(on_last) }
    }

    /// Whether somebody reads the data of this name.
    pub(super) fn is_pinned(&self, name: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(name)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = pins.get_mut(&self.name).map_or(0, |readers| {
            *readers -= 1;
            *readers
        });
        if left == 0 {
            pins.remove(&self.name);
            drop(pins);
            (self.on_last)();
        }
    }
}
