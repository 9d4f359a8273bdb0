//! Acks on their way to the writer: taken many at a time, since nobody waits for any of them.
//!
//! A message to a thousand people comes back as a thousand acks, one from each connection. Each by itself would wake the
//! writer and cost a sync, on the very core that is still handing the message out. So they gather here until the writer
//! comes for another reason, or a moment is over.
//!
//! Promise: an ack is worked in before whatever was put in line after it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::writer::Reply;
use crate::store::{AckRequest, StoreError, StoreErrorKind};

/// How long the writer lets acks gather that nothing else came after: what they tell senders comes that much later.
pub(super) const GATHERED_FOR: Duration = Duration::from_millis(2);

/// Acks that may wait; more are refused, and their rows delivered again.
const WAITING_MAX: usize = 16 * 1024;

/// An ack, and where its answer goes.
pub(super) type WaitingAck = (AckRequest, Reply<()>);

/// What gathers.
#[derive(Default)]
pub(super) struct Acks(Mutex<Gathered>);

#[derive(Default)]
struct Gathered {
    waiting: Vec<WaitingAck>,
    closed: bool,
}

impl Acks {
    /// Adds one; true when it is the first, so that the writer has to be told.
    pub(super) fn push(&self, ack: WaitingAck) -> Result<bool, StoreError> {
        let mut gathered = self.lock();
        if gathered.closed {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "the store has closed"));
        }
        if gathered.waiting.len() >= WAITING_MAX {
            return Err(StoreError::new(StoreErrorKind::Unavailable, "too much waits to be stored"));
        }
        gathered.waiting.push(ack);
        Ok(gathered.waiting.len() == 1)
    }

    /// Takes the oldest, `most` at most.
    pub(super) fn take(&self, most: usize) -> Vec<WaitingAck> {
        let mut gathered = self.lock();
        if gathered.waiting.len() <= most {
            return std::mem::take(&mut gathered.waiting);
        }
        gathered.waiting.drain(..most).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Refuses whatever comes from now on, and drops what waits.
    pub(super) fn close(&self) {
        let mut gathered = self.lock();
        gathered.closed = true;
        gathered.waiting.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        // Every change is one push or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;
    use waxwing_protocol::frames::Lane;
    use waxwing_protocol::{AccountId, DeviceId, Timestamp};

    use super::*;
    use crate::store::{DeviceAddress, Quota, ReceiptRows};

    fn ack(up_to: u64) -> WaitingAck {
        let mailbox = DeviceAddress { account: AccountId::from_bytes([1; 16]), device: DeviceId::FIRST };
        let quota = Quota { msgs: 1, bytes: 1 };
        let receipts = ReceiptRows { now: Timestamp::from_secs(1), expires_at: Timestamp::from_secs(2), quota };
        let request = AckRequest { mailbox, lane: Lane::Normal, up_to, ranges: Vec::new(), receipts };
        (request, oneshot::channel().0)
    }

    #[test]
    fn they_come_out_in_order_a_bounded_number_at_a_time_and_the_writer_is_told_once() {
        let acks = Acks::default();
        let told: Vec<_> = (1..=5).map(|n| acks.push(ack(n)).unwrap()).collect();
        assert_eq!(told, [true, false, false, false, false]);
        let taken = |most| acks.take(most).into_iter().map(|(ack, _)| ack.up_to).collect::<Vec<_>>();
        assert_eq!(taken(2), [1, 2]);
        assert_eq!(acks.len(), 3);
        assert_eq!(taken(9), [3, 4, 5]);
        assert!(taken(9).is_empty());
        assert!(acks.push(ack(6)).unwrap());
    }

    #[test]
    fn too_many_are_refused_and_after_the_end_all_and_whoever_waits_hears_of_it() {
        let acks = Acks::default();
        let (request, _) = ack(0);
        let (reply, mut answer) = oneshot::channel();
        acks.push((request, reply)).unwrap();
        for n in 1..WAITING_MAX as u64 {
            acks.push(ack(n)).unwrap();
        }
        assert_eq!(acks.push(ack(9)).unwrap_err().kind, StoreErrorKind::Unavailable);
        acks.close();
        assert!(answer.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        assert_eq!(acks.push(ack(9)).unwrap_err().kind, StoreErrorKind::Unavailable);
    }
}
