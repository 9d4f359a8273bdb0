//! Parts on their way to S3, whose fate is not known yet.
//!
//! A part that was given up may still arrive, over whatever was sent under its number meanwhile, and the multipart upload
//! would not end with the bytes that were acknowledged. So a new claim uses none of the numbers that may be in the air.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use waxwing_protocol::UploadId;

use super::Shared;

/// How many parts of which uploads are on their way from this process.
#[derive(Debug, Default)]
pub(super) struct Flights(Mutex<HashMap<UploadId, usize>>);

/// A part on its way. Dropped before it landed, it may arrive at any time.
pub(super) struct Flight {
    shared: Arc<Shared>,
    id: UploadId,
    landed: bool,
}

impl Flights {
    /// Whether parts of upload `id` are on their way.
    pub(super) fn are_any(&self, id: UploadId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }
}

impl Flight {
    /// A part of upload `id` sets off.
    pub(super) fn begin(shared: &Arc<Shared>, id: UploadId) -> Self {
        *shared.flights.0.lock().unwrap_or_else(PoisonError::into_inner).entry(id).or_default() += 1;
        Self { shared: Arc::clone(shared), id, landed: false }
    }

    /// It was answered: nothing of it comes later.
    pub(super) fn land(mut self) {
        self.landed = true;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        if !self.landed {
            // Before it counts as ended: a claim that comes between would take its number.
            self.shared.become_another_node();
        }
        let mut flights = self.shared.flights.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = flights.get_mut(&self.id) {
            *left -= 1;
            if *left == 0 {
                flights.remove(&self.id);
            }
        }
    }
}
