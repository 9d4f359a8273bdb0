//! The arithmetic of a lane: how acks move its watermark.
//!
//! Erasing a row at every ack would cost a delete each and leave tombstones for every later read to step over. So an
//! ack only moves a number; what lies at or below it counts as gone at once and is erased in bulk later.

use super::records::{LaneRow, RangeRow};
use crate::store::ACK_RANGES_MAX;

impl LaneRow {
    /// Rows that wait: above the watermark and not acked out of order.
    pub(in crate::store) fn waiting(&self) -> u64 {
        let out_of_order: u64 = self.ranges.iter().map(|range| range.last - range.first + 1).sum();
        self.last - self.acked - out_of_order
    }

    /// Bytes of bodies above the watermark.
    pub(in crate::store) fn bytes_waiting(&self) -> u64 {
        self.bytes_given.saturating_sub(self.bytes_acked)
    }

    /// Whether the row is acked.
    pub(in crate::store) fn is_acked(&self, seq: u64) -> bool {
        seq <= self.acked || self.ranges.iter().any(|range| (range.first..=range.last).contains(&seq))
    }

    /// Takes an ack of `first..=last`; returns whether anything changed. Seqs never given are ignored, and a range
    /// beyond the bound is forgotten: its rows will be delivered again.
    pub(in crate::store) fn ack_range(&mut self, first: u64, last: u64) -> bool {
        let (mut first, mut last) = (first.max(self.acked + 1), last.min(self.last));
        if first > last || self.ranges.iter().any(|range| range.first <= first && last <= range.last) {
            return false;
        }
        self.ranges.retain(|range| {
            let apart = range.last + 1 < first || last + 1 < range.first;
            if !apart {
                first = first.min(range.first);
                last = last.max(range.last);
            }
            apart
        });
        if first == self.acked + 1 {
            self.acked = last;
            return true;
        }
        if self.ranges.len() >= ACK_RANGES_MAX {
            return false;
        }
        let at = self.ranges.partition_point(|range| range.first < first);
        self.ranges.insert(at, RangeRow { first, last });
        true
    }

    /// Takes a cumulative ack, and whatever was acked right above it; returns whether the watermark moved.
    pub(in crate::store) fn ack_up_to(&mut self, up_to: u64) -> bool {
        up_to > self.acked && self.ack_range(self.acked + 1, up_to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn lane(last: u64) -> LaneRow {
        LaneRow { last, ..LaneRow::default() }
    }

    #[test]
    fn a_gap_that_closes_carries_the_watermark_over_what_was_acked_early() {
        let mut lane = lane(10);
        assert!(lane.ack_range(3, 4));
        assert!(lane.ack_range(6, 9));
        assert_eq!((lane.acked, lane.waiting()), (0, 4));
        assert!(lane.ack_up_to(2));
        assert_eq!((lane.acked, lane.waiting()), (4, 2));
        assert!(lane.ack_range(5, 5));
        assert_eq!((lane.acked, lane.ranges.len()), (9, 0));
    }

    #[test]
    fn seqs_never_given_cannot_be_acked() {
        let mut lane = lane(3);
        assert!(lane.ack_up_to(u64::MAX));
        assert_eq!(lane.acked, 3);
        assert!(!lane.ack_range(4, 9));
        assert!(!lane.ack_range(9, 4));
        assert!(!lane.ack_up_to(2), "a watermark never goes back");
    }

    #[test]
    fn ranges_are_bounded_and_forgetting_one_acks_nothing() {
        let mut lane = lane(1000);
        for n in 1..=ACK_RANGES_MAX as u64 {
            assert!(lane.ack_range(n * 3, n * 3));
        }
        assert!(!lane.ack_range(900, 900));
        assert!(!lane.is_acked(900));
        assert!(lane.ack_range(4, 4), "one that touches another needs no room");
        assert_eq!(lane.ranges.len(), ACK_RANGES_MAX);
    }

    proptest! {
        #[test]
        fn a_lane_acks_what_a_set_of_numbers_would(acks in prop::collection::vec((0u64..40, 0u64..40), 0..30)) {
            let mut lane = lane(30);
            let mut model = BTreeSet::new();
            for (first, last) in acks {
                let before = lane.acked;
                lane.ack_range(first, last);
                model.extend((first.max(1)..=last).filter(|seq| *seq <= 30));
                prop_assert!(lane.acked >= before);
                for seq in 1..=30 {
                    prop_assert_eq!(lane.is_acked(seq), model.contains(&seq), "{} of {:?}", seq, lane);
                }
                prop_assert_eq!(lane.waiting(), 30 - model.len() as u64);
            }
        }
    }
}
