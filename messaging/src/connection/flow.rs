//! The flow of one lane to one client: what may be sent next, and what must be read first.
//!
//! Two sources feed a lane, the mailbox and the delivery path beside it, and the client bounds both by its window. The
//! danger is a row overtaken by a later one: the client would ack the later, and a cumulative ack would erase the
//! earlier unseen. So a lane has a *position*, up to which every live row was sent, and sends a row from the delivery
//! path only when the row given before it lies at or below that position; otherwise it is *behind* and reads pages
//! until it has caught up.
//!
//! No I/O here: the connection asks and tells.

use std::collections::VecDeque;

use waxwing_protocol::frames::{Envelope, Lane};

use crate::store::{LaneView, Page};

/// Rows read at once at most.
const PAGE_MSGS: usize = 256;

/// Bytes of bodies read at once at most: the memory a long drain takes.
const PAGE_BYTES: usize = 256 * 1024;

/// How much may be unacked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Credit {
    pub(crate) msgs: usize,
    pub(crate) bytes: usize,
}

/// One lane's way to the client.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) lane: Lane,
    credit: Credit,
    /// Every live row up to here was sent on this connection, or was acked before it.
    position: u64,
    /// The last seq sent on this connection; 0 before the first.
    last_sent: u64,
    /// The highest seq heard of.
    known: u64,
    /// The mailbox has rows that were not sent and that the delivery path will not bring again.
    behind: bool,
    /// A page is being read.
    reading: bool,
    /// The next row did not fit the window although half of it was free: only an ack changes that.
    waits_for_ack: bool,
    /// Of a lane whose pending rows are left for another connection: the last of them. Acks never reach it.
    skipped: u64,
    /// What was sent and not acked: seq and bytes.
    unacked: VecDeque<(u64, usize)>,
    unacked_bytes: usize,
    /// The last seq present at Hello, until everything up to it was sent.
    present_at_hello: Option<u64>,
    /// A page has been read. Before that nobody knows what came between the opening of the mailbox and the route.
    looked: bool,
}

impl Flow {
    /// A lane as the mailbox was opened.
    pub(crate) fn new(lane: Lane, view: LaneView, credit: Credit) -> Self {
        Self {
            lane,
            credit,
            position: view.acked,
            last_sent: 0,
            known: view.last,
            behind: view.last > view.acked,
            reading: false,
            waits_for_ack: false,
            skipped: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            present_at_hello: Some(if view.waiting > 0 { view.last } else { 0 }),
            looked: false,
        }
    }

    /// Leaves what waits now for another connection: only what comes later is sent.
    pub(crate) fn skip_pending(&mut self) {
        if self.present_at_hello.take().is_some_and(|tail| tail > 0) {
            (self.skipped, self.position) = (self.known, self.known);
        }
    }

    /// A row from the delivery path: returned to be sent now, or left to the mailbox.
    pub(crate) fn offer(&mut self, row: Envelope) -> Option<Envelope> {
        if row.seq <= self.position {
            return None;
        }
        self.known = self.known.max(row.seq);
        if self.reading {
            // The page may hold it; if not, `known` tells.
            return None;
        }
        // The row before may lie below the position, being acked or expired; above it, it was missed.
        if self.behind || row.prev_seq > self.position || !self.fits(&row) {
            self.behind = true;
            return None;
        }
        Some(self.send(row))
    }

    /// Rows were forgotten on the way here.
    pub(crate) fn missed(&mut self) {
        self.behind = true;
    }

    /// What to read now: rows above a seq, so many and so many bytes. Marks the lane as being read.
    pub(crate) fn next_page(&mut self) -> Option<(u64, usize, usize)> {
        let half_free = self.unacked.len() <= self.credit.msgs / 2 && self.unacked_bytes <= self.credit.bytes / 2;
        if !self.behind || self.reading || self.waits_for_ack || !half_free {
            return None;
        }
        self.reading = true;
        // Whatever is missed from here on counts again.
        self.behind = false;
        let msgs = (self.credit.msgs - self.unacked.len()).min(PAGE_MSGS);
        let bytes = (self.credit.bytes - self.unacked_bytes).min(PAGE_BYTES);
        Some((self.position, msgs, bytes))
    }

    /// The page asked for; returns the rows to be sent.
    pub(crate) fn page(&mut self, page: Page) -> Vec<Envelope> {
        self.reading = false;
        let mut sent = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            if !self.fits(&row) {
                self.waits_for_ack = true;
                self.behind = true;
                return sent;
            }
            sent.push(self.send(row));
        }
        self.position = self.position.max(page.up_to);
        self.looked = true;
        // What was missed while the page was read stays missed.
        self.behind |= !page.end || self.known > self.position;
        sent
    }

    /// The page could not be read; it is asked for again.
    pub(crate) fn page_failed(&mut self) {
        self.reading = false;
        self.behind = true;
    }

    /// Takes an ack: returns it as far as it covers rows sent on this connection. Whatever lies above was not sent, so
    /// acking it is a mistake or a guess, and must not erase it.
    pub(crate) fn ack(&mut self, up_to: u64, ranges: &[(u64, u64)]) -> (u64, Vec<(u64, u64)>) {
        let up_to = up_to.min(self.position);
        let seen = |first: u64, last: u64| (first.max(self.skipped + 1), last.min(self.position));
        let ranges = ranges.iter().map(|(first, last)| seen(*first, *last));
        // What was skipped is not covered: the ack is one of a span.
        let cumulative = (self.skipped > 0).then(|| seen(0, up_to));
        let ranges: Vec<_> = cumulative.into_iter().chain(ranges).filter(|(first, last)| first <= last).collect();
        while self.unacked.front().is_some_and(|(seq, _)| *seq <= up_to) {
            self.unacked.pop_front();
        }
        if !ranges.is_empty() {
            self.unacked.retain(|(seq, _)| !ranges.iter().any(|(first, last)| (first..=last).contains(&seq)));
        }
        if self.unacked.is_empty() {
            // An idle connection keeps nothing of its busy times.
            self.unacked = VecDeque::new();
        }
        self.unacked_bytes = self.unacked.iter().map(|(_, bytes)| bytes).sum();
        self.waits_for_ack = false;
        (if self.skipped > 0 { 0 } else { up_to }, ranges)
    }

    /// Changes the window.
    pub(crate) fn set_credit(&mut self, credit: Credit) {
        self.credit = credit;
        self.waits_for_ack = false;
    }

    /// The tail at Hello, once, when everything up to it was sent and the lane was looked at since.
    pub(crate) fn take_queue_empty(&mut self) -> Option<u64> {
        self.present_at_hello.take_if(|tail| self.looked && *tail <= self.position)
    }

    /// The last seq sent on this connection; 0 before the first.
    pub(crate) fn last_sent(&self) -> u64 {
        self.last_sent
    }

    /// The one larger than the whole window goes alone: it would never go otherwise.
    fn fits(&self, row: &Envelope) -> bool {
        let bytes = self.unacked_bytes + row.body.len();
        self.unacked.len() < self.credit.msgs && (bytes <= self.credit.bytes || self.unacked.is_empty())
    }

    fn send(&mut self, row: Envelope) -> Envelope {
        let row = Envelope { prev_seq: self.last_sent, ..row };
        self.unacked.push_back((row.seq, row.body.len()));
        self.unacked_bytes += row.body.len();
        self.position = row.seq;
        self.last_sent = row.seq;
        row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seq: u64) -> Envelope {
        Envelope { seq, prev_seq: seq - 1, body: vec![0; 100].into(), ..Envelope::default() }
    }

    fn flow(acked: u64, last: u64, msgs: usize) -> Flow {
        let view = LaneView { acked, last, waiting: last - acked };
        Flow::new(Lane::Normal, view, Credit { msgs, bytes: 10_000 })
    }

    fn page(seqs: std::ops::RangeInclusive<u64>, end: bool) -> Page {
        Page { up_to: *seqs.end(), rows: seqs.map(row).collect(), end }
    }

    #[test]
    fn a_row_after_a_gap_is_left_to_the_mailbox_and_nothing_overtakes() {
        let mut flow = flow(4, 4, 10);
        assert_eq!(flow.offer(row(5)).unwrap().prev_seq, 0, "the first of this connection");
        assert_eq!(flow.offer(row(7)), None);
        assert_eq!(flow.offer(row(8)), None, "behind: 8 must not overtake 6 and 7");
        let (after, ..) = flow.next_page().unwrap();
        assert_eq!(after, 5);
        assert_eq!(flow.page(page(6..=8, true)).len(), 3);
        assert_eq!(flow.offer(row(8)), None, "sent already");
        assert_eq!(flow.offer(row(9)).unwrap().prev_seq, 8);
    }

    /// It committed when the mailbox was open and no route led to the connection yet.
    #[test]
    fn a_lane_that_looked_empty_is_read_before_it_is_called_so() {
        let mut flow = flow(4, 4, 10);
        flow.missed();
        assert_eq!(flow.take_queue_empty(), None);
        flow.next_page().unwrap();
        assert_eq!(flow.take_queue_empty(), None);
        assert_eq!(flow.page(page(5..=5, true)).len(), 1);
        assert_eq!(flow.take_queue_empty(), Some(0));
    }

    /// The row is committed after the page's snapshot was taken, and handed over before the page arrives.
    #[test]
    fn a_row_that_comes_while_a_page_is_read_is_not_forgotten() {
        let mut flow = flow(0, 2, 10);
        flow.next_page().unwrap();
        assert_eq!(flow.offer(row(3)), None);
        assert_eq!(flow.page(page(1..=2, true)).len(), 2);
        assert_eq!(flow.next_page().unwrap().0, 2, "3 is still to be read");
        assert_eq!(flow.page(page(3..=3, true)).len(), 1);
        assert!(flow.next_page().is_none());
    }

    #[test]
    fn an_overflow_while_a_page_is_read_makes_it_read_again() {
        let mut flow = flow(0, 2, 10);
        flow.next_page().unwrap();
        flow.missed();
        flow.page(page(1..=2, true));
        assert!(flow.next_page().is_some());
    }

    #[test]
    fn the_window_is_never_exceeded_and_pages_wait_until_half_of_it_is_free() {
        let mut flow = flow(0, 100, 4);
        assert_eq!(flow.next_page(), Some((0, 4, 10_000)));
        assert_eq!(flow.page(page(1..=4, false)).len(), 4);
        assert!(flow.next_page().is_none());
        flow.ack(1, &[]);
        assert!(flow.next_page().is_none(), "three of four are unacked");
        flow.ack(2, &[]);
        assert_eq!(flow.next_page(), Some((4, 2, 9_800)));
        assert_eq!(flow.take_queue_empty(), None);
    }

    #[test]
    fn a_body_that_does_not_fit_waits_for_an_ack_and_is_not_asked_for_in_a_loop() {
        let mut flow =
            Flow::new(Lane::Normal, LaneView { acked: 0, last: 3, waiting: 3 }, Credit { msgs: 9, bytes: 250 });
        flow.next_page().unwrap();
        assert_eq!(flow.page(page(1..=1, false)).len(), 1);
        flow.next_page().unwrap();
        let large = Envelope { body: vec![0; 200].into(), ..row(2) };
        assert!(flow.page(Page { rows: vec![large.clone()], up_to: 2, end: false }).is_empty());
        assert!(flow.next_page().is_none());
        flow.ack(1, &[]);
        flow.next_page().unwrap();
        assert_eq!(flow.page(Page { rows: vec![large], up_to: 2, end: false }).len(), 1);
    }

    #[test]
    fn a_body_larger_than_the_whole_window_goes_alone() {
        let mut flow = Flow::new(Lane::Normal, LaneView::default(), Credit { msgs: 9, bytes: 50 });
        assert!(flow.offer(row(1)).is_some());
        assert!(flow.offer(row(2)).is_none());
    }

    #[test]
    fn what_is_skipped_is_neither_sent_nor_acked() {
        let mut flow = flow(4, 9, 10);
        flow.skip_pending();
        flow.missed();
        assert_eq!(flow.next_page().unwrap().0, 9);
        assert_eq!(flow.page(page(10..=11, true)).len(), 2);
        assert_eq!(flow.take_queue_empty(), None, "nothing of what was present was sent");
        assert_eq!(flow.ack(11, &[]), (0, vec![(10, 11)]));
        assert_eq!(flow.ack(9, &[(5, 7)]), (0, vec![]));
        assert_eq!(flow.offer(row(12)).unwrap().prev_seq, 11);
        assert_eq!(flow.ack(0, &[(8, 99)]), (0, vec![(10, 12)]));
    }

    #[test]
    fn an_ack_of_what_was_not_sent_covers_only_what_was() {
        let mut flow = flow(0, 10, 4);
        flow.next_page().unwrap();
        flow.page(page(1..=4, false));
        assert_eq!(flow.ack(99, &[]), (4, vec![]));
        assert_eq!(flow.ack(0, &[(2, 9), (7, 8)]), (0, vec![(2, 4)]));
    }

    #[test]
    fn rows_acked_out_of_order_give_their_credit_back() {
        let mut flow = flow(0, 10, 4);
        flow.next_page().unwrap();
        flow.page(page(1..=4, false));
        flow.ack(0, &[(3, 4)]);
        assert_eq!(flow.next_page(), Some((4, 2, 9_800)));
    }

    #[test]
    fn expired_rows_at_the_end_do_not_hold_back_queue_empty() {
        let mut flow = flow(0, 5, 10);
        flow.next_page().unwrap();
        flow.page(Page { rows: vec![row(1)], up_to: 5, end: true });
        assert_eq!(flow.take_queue_empty(), Some(5));
        assert_eq!(flow.take_queue_empty(), None, "said once");
        assert!(flow.offer(row(6)).is_some(), "5 counts as passed");
    }
}
