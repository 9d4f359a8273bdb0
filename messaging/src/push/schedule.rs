//! When a device is woken: one state a device, moved by what happens to its mailbox and its connection.
//!
//! A group at lunch writes fifty messages; fifty wakes would drain the phone and make the provider throttle the app, and
//! their times would tell the provider who talks with whom. One wake says all there is to say: come and fetch. So a
//! device has one outstanding wake at most, a little later than what caused it, and is armed again once it came. What is
//! louder than the outstanding one, a call after a message, is not held back by it.
//!
//! Nothing here is on a disk: what a restart forgets follows from the mailboxes.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use tokio::time::Instant;
use waxwing_protocol::frames::{Class, Envelope, Urgency};

use crate::store::DeviceAddress;

/// How loudly a device is woken, the quietest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loudness {
    /// The app fetches, and shows nothing unless it wants to.
    Background,
    /// A person should see something.
    Visible,
    /// It rings.
    Call,
}

impl Loudness {
    /// How loudly an envelope wakes; `None` when it does not. What a sender asks for is held against what its class can
    /// mean: nobody's receipts light up a screen.
    pub(super) fn of(envelope: &Envelope) -> Option<Self> {
        match (envelope.class(), envelope.urgency()) {
            (_, Urgency::None) | (Class::Delivery | Class::Receipt, _) => None,
            (Class::Call, Urgency::High) => Some(Self::Call),
            (Class::Message, Urgency::High) => Some(Self::Visible),
            _ => Some(Self::Background),
        }
    }

    /// How long such a wake is worth trying, and worth keeping for a phone that is off.
    pub(super) const fn worth(self) -> Duration {
        match self {
            // Nobody rings longer.
            Self::Call => Duration::from_secs(60),
            // As long as FCM keeps one; APNs' limit is two days more.
            Self::Background | Self::Visible => Duration::from_secs(28 * 24 * 3600),
        }
    }
}

/// The longest that attempts at one wake go on.
const ATTEMPTS_LAST: Duration = Duration::from_secs(24 * 3600);

/// A wake to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) device: DeviceAddress,
    /// How loudly; unknown when only the mailbox knows.
    pub(super) loudness: Option<Loudness>,
    /// Attempts before this one.
    pub(super) attempts: u32,
    /// When the device acked something last, as far as is known.
    pub(super) acked_at: Option<Instant>,
}

/// What became of a wake that was due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Nothing waits for the device.
    Needless,
    /// The provider has taken it.
    Sent(Loudness),
    /// To be looked at again then; not an attempt.
    Postponed(Duration),
    /// Nobody could be asked; to be tried again then, not an attempt.
    Held(Duration),
    /// To be tried again then, as an attempt.
    Failed(Duration),
    /// It makes no sense to try again before something new happens.
    GivenUp,
}

/// The devices that can be woken, each with its state.
#[derive(Debug)]
pub(super) struct Schedule {
    devices: HashMap<DeviceAddress, Entry>,
    due: BTreeSet<(Instant, DeviceAddress)>,
    pace: Pace,
}

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long after a connected device was sent something its silence means that nobody is there. Also how long a
    /// device that went has to come back by itself.
    pub(super) quiet: Duration,
    /// After which time an outstanding wake counts as lost.
    pub(super) again_after: Duration,
}

#[derive(Debug, Default)]
struct Entry {
    state: State,
    acked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing waits, or nothing is known to.
    #[default]
    Idle,
    /// A wake is due then.
    Waiting(Wait),
    /// It is being looked at or sent.
    Working {
        wait: Wait,
        /// What came meanwhile.
        again: Option<Loudness>,
        /// The device came meanwhile.
        came: bool,
        /// It went again, perhaps before it took everything.
        went: bool,
    },
    /// The provider has a wake; the device has not come yet.
    Outstanding { loudness: Loudness, since: Instant },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wait {
    at: Instant,
    loudness: Option<Loudness>,
    attempts: u32,
    since: Instant,
}

/// What a row that was committed means for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// It is not one that can be woken.
    Unknown,
    /// It will be woken, or was about to be anyway.
    Armed,
    /// A wake is outstanding that says the same.
    Coalesced,
}

impl Schedule {
    pub(super) fn new(pace: Pace) -> Self {
        Self { devices: HashMap::new(), due: BTreeSet::new(), pace }
    }

    /// Takes a device in. What it has done before stays.
    pub(super) fn add(&mut self, device: DeviceAddress) {
        self.devices.entry(device).or_default();
    }

    /// Forgets a device.
    pub(super) fn remove(&mut self, device: DeviceAddress) {
        if let Some(Entry { state: State::Waiting(wait), .. }) = self.devices.remove(&device) {
            self.due.remove(&(wait.at, device));
        }
    }

    /// How many devices can be woken, and how many wakes wait for their time.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.devices.len(), self.due.len())
    }

    /// A row for the device was committed. `hold` is how long its wake is held back when the device is away.
    pub(super) fn committed(
        &mut self,
        device: DeviceAddress,
        loudness: Loudness,
        connected: bool,
        hold: Duration,
        now: Instant,
    ) -> Noted {
        let Pace { quiet, again_after } = self.pace;
        let Some(entry) = self.devices.get_mut(&device) else { return Noted::Unknown };
        let hold = match (connected, loudness) {
            (true, _) => quiet,
            // A phone that rings late rings for nobody.
            (false, Loudness::Call) => Duration::ZERO,
            (false, _) => hold,
        };
        match &mut entry.state {
            State::Outstanding { loudness: outstanding, since }
                if loudness <= *outstanding && now.duration_since(*since) < again_after =>
            {
                return Noted::Coalesced;
            }
            State::Working { again, .. } => *again = (*again).max(Some(loudness)),
            State::Waiting(wait) => {
                let louder = wait.loudness.is_some_and(|waiting| waiting < loudness);
                // What backs off goes on backing off, unless this is of another kind.
                let at = if louder || wait.attempts == 0 { wait.at.min(now + hold) } else { wait.at };
                let attempts = if louder { 0 } else { wait.attempts };
                let since = if louder { now } else { wait.since };
                let wait = Wait { at, loudness: wait.loudness.map(|it| it.max(loudness)), attempts, since };
                self.wait(device, wait);
            }
            State::Idle | State::Outstanding { .. } => {
                let wait = Wait { at: now + hold, loudness: Some(loudness), attempts: 0, since: now };
                self.wait(device, wait);
            }
        }
        Noted::Armed
    }

    /// The device may have something waiting; only its mailbox knows. Looked at after `hold`.
    pub(super) fn suspect(&mut self, device: DeviceAddress, hold: Duration, now: Instant) {
        let Some(entry) = self.devices.get(&device) else { return };
        if matches!(entry.state, State::Idle | State::Outstanding { .. }) {
            self.wait(device, Wait { at: now + hold, loudness: None, attempts: 0, since: now });
        }
    }

    /// The device has connected: whatever woke it is spent, and what is due can wait for what it acks.
    pub(super) fn connected(&mut self, device: DeviceAddress, now: Instant) {
        let quiet = self.pace.quiet;
        let Some(entry) = self.devices.get_mut(&device) else { return };
        match &mut entry.state {
            State::Idle => {}
            State::Outstanding { .. } => entry.state = State::Idle,
            State::Working { came, .. } => *came = true,
            State::Waiting(wait) => {
                let wait = Wait { at: wait.at.max(now + quiet), attempts: 0, ..*wait };
                self.wait(device, wait);
            }
        }
    }

    /// The device's connection has ended, perhaps before it took everything.
    pub(super) fn left(&mut self, device: DeviceAddress, now: Instant) {
        if let Some(Entry { state: State::Working { went, .. }, .. }) = self.devices.get_mut(&device) {
            *went = true;
        }
        self.suspect(device, self.pace.quiet, now);
    }

    /// The device has acked something: somebody is there.
    pub(super) fn acked(&mut self, device: DeviceAddress, now: Instant) {
        if let Some(entry) = self.devices.get_mut(&device) {
            entry.acked_at = Some(now);
        }
    }

    /// When the next wake is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The next wake that is due by `now`; it is being worked at from now on, until it is [settled](Self::settle).
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        let (at, device) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, device));
        let entry = self.devices.get_mut(&device)?;
        let State::Waiting(wait) = entry.state else { return None };
        entry.state = State::Working { wait, again: None, came: false, went: false };
        Some(Due { device, loudness: wait.loudness, attempts: wait.attempts, acked_at: entry.acked_at })
    }

    /// A wake that was taken is settled. Returns whether it was given up because it has been tried for too long.
    pub(super) fn settle(&mut self, device: DeviceAddress, settled: Settled, hold: Duration, now: Instant) -> bool {
        let Some(entry) = self.devices.get_mut(&device) else { return false };
        let State::Working { wait, again, came, went } = entry.state else { return false };
        // Whoever is there has time to ack what came meanwhile.
        let hold = if came && !went { hold.max(self.pace.quiet) } else { hold };
        let fresh = |loudness| Wait { at: now + hold, loudness: Some(loudness), attempts: 0, since: now };
        let merged = wait.loudness.map(|loudness| again.map_or(loudness, |again| again.max(loudness)));
        let limit = wait.loudness.map_or(ATTEMPTS_LAST, |loudness| loudness.worth().min(ATTEMPTS_LAST));
        let too_long = |after: Duration| now + after > wait.since + limit;
        let given_up = matches!(settled, Settled::Failed(after) | Settled::Held(after) if too_long(after));
        entry.state = State::Idle;
        match (settled, again) {
            (Settled::Sent(sent), Some(again)) if again > sent => self.wait(device, fresh(again)),
            (Settled::Sent(_), None) if came => {}
            (Settled::Sent(_), Some(again)) if came => self.wait(device, fresh(again)),
            (Settled::Sent(loudness), _) => entry.state = State::Outstanding { loudness, since: now },
            (Settled::Needless | Settled::GivenUp, Some(again)) => self.wait(device, fresh(again)),
            (Settled::Needless | Settled::GivenUp, None) => {}
            (Settled::Failed(_) | Settled::Held(_), Some(again)) if given_up => self.wait(device, fresh(again)),
            (Settled::Failed(_) | Settled::Held(_), None) if given_up => {}
            (Settled::Postponed(after) | Settled::Held(after), _) => {
                self.wait(device, Wait { at: now + after, loudness: merged, ..wait });
            }
            (Settled::Failed(after), _) => {
                let attempts = wait.attempts.saturating_add(1);
                self.wait(device, Wait { at: now + after, loudness: merged, attempts, ..wait });
            }
        }
        if came && went {
            self.suspect(device, self.pace.quiet, now);
        }
        given_up
    }

    fn wait(&mut self, device: DeviceAddress, wait: Wait) {
        let Some(entry) = self.devices.get_mut(&device) else { return };
        if let State::Waiting(before) = entry.state {
            self.due.remove(&(before.at, device));
        }
        entry.state = State::Waiting(wait);
        self.due.insert((wait.at, device));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use waxwing_protocol::{AccountId, DeviceId};

    use super::*;

    const AGAIN_AFTER: Duration = Duration::from_secs(900);
    const QUIET: Duration = Duration::from_secs(10);
    const HOLD: Duration = Duration::from_secs(1);
    const SECOND: Duration = Duration::from_secs(1);

    fn device() -> DeviceAddress {
        DeviceAddress { account: AccountId::from_bytes([1; 16]), device: DeviceId::FIRST }
    }

    /// A schedule with one device, and a clock moved by hand.
    struct Scene {
        schedule: Schedule,
        now: Instant,
    }

    impl Scene {
        fn new() -> Self {
            let mut schedule = Schedule::new(Pace { quiet: QUIET, again_after: AGAIN_AFTER });
            schedule.add(device());
            Self { schedule, now: Instant::now() }
        }

        fn after(&mut self, time: Duration) -> &mut Self {
            self.now += time;
            self
        }

        fn message(&mut self, loudness: Loudness) -> Noted {
            self.schedule.committed(device(), loudness, false, HOLD, self.now)
        }

        fn take(&mut self) -> Option<Option<Loudness>> {
            self.schedule.take(self.now).map(|due| due.loudness)
        }

        fn settle(&mut self, settled: Settled) -> bool {
            self.schedule.settle(device(), settled, HOLD, self.now)
        }

        /// A message that wakes, and its wake taken by the provider.
        fn woken(loudness: Loudness) -> Self {
            let mut scene = Self::new();
            scene.message(loudness);
            assert_eq!(scene.after(HOLD).take(), Some(Some(loudness)));
            scene.settle(Settled::Sent(loudness));
            scene
        }
    }

    fn envelope(class: Class, urgency: Urgency) -> Envelope {
        Envelope { class: class.into(), urgency: urgency.into(), ..Envelope::default() }
    }

    #[test]
    fn only_calls_ring_only_messages_show_and_receipts_are_silent() {
        let of = |class, urgency| Loudness::of(&envelope(class, urgency));
        assert_eq!(of(Class::Call, Urgency::High), Some(Loudness::Call));
        assert_eq!(of(Class::Message, Urgency::High), Some(Loudness::Visible));
        assert_eq!(of(Class::Message, Urgency::Background), Some(Loudness::Background));
        assert_eq!(of(Class::Call, Urgency::Background), Some(Loudness::Background), "a hang-up");
        assert_eq!(of(Class::Control, Urgency::High), Some(Loudness::Background));
        assert_eq!(of(Class::Message, Urgency::None), None);
        assert_eq!(of(Class::Receipt, Urgency::High), None);
        assert_eq!(of(Class::Delivery, Urgency::High), None);
    }

    #[test]
    fn fifty_messages_are_one_wake_a_little_later() {
        let mut scene = Scene::new();
        for _ in 0..50 {
            assert_eq!(scene.message(Loudness::Visible), Noted::Armed);
        }
        assert_eq!(scene.take(), None, "held back");
        assert_eq!(scene.after(HOLD).take(), Some(Some(Loudness::Visible)));
        assert_eq!(scene.take(), None);
        scene.settle(Settled::Sent(Loudness::Visible));
        assert_eq!(scene.message(Loudness::Visible), Noted::Coalesced);
        assert_eq!(scene.after(AGAIN_AFTER - SECOND).take(), None);
    }

    #[test]
    fn a_call_rings_at_once_also_behind_a_wake_that_is_outstanding() {
        let mut scene = Scene::woken(Loudness::Visible);
        assert_eq!(scene.message(Loudness::Call), Noted::Armed);
        assert_eq!(scene.take(), Some(Some(Loudness::Call)), "not held back");
        scene.settle(Settled::Sent(Loudness::Call));
        assert_eq!(scene.message(Loudness::Visible), Noted::Coalesced);
    }

    #[test]
    fn a_device_that_came_is_woken_anew_and_one_that_did_not_after_a_while() {
        let mut scene = Scene::woken(Loudness::Visible);
        scene.schedule.connected(device(), scene.now);
        assert_eq!(scene.message(Loudness::Visible), Noted::Armed);

        let mut scene = Scene::woken(Loudness::Visible);
        scene.after(AGAIN_AFTER);
        assert_eq!(scene.message(Loudness::Visible), Noted::Armed, "the wake was lost");
    }

    /// It connected, lost the network half-way and is gone: no new message will come, yet there is something to fetch.
    #[test]
    fn a_device_that_goes_before_it_has_everything_is_looked_at_again() {
        let mut scene = Scene::woken(Loudness::Visible);
        scene.schedule.connected(device(), scene.now);
        scene.schedule.left(device(), scene.now);
        assert_eq!(scene.after(QUIET).take(), Some(None), "only the mailbox knows how loudly");
        scene.settle(Settled::Needless);
        assert_eq!(scene.schedule.next(), None);
    }

    #[test]
    fn a_connected_device_has_time_to_ack() {
        let mut scene = Scene::new();
        scene.schedule.committed(device(), Loudness::Visible, true, HOLD, scene.now);
        assert_eq!(scene.after(QUIET - SECOND).take(), None);
        scene.schedule.acked(device(), scene.now);
        scene.after(SECOND);
        let due = scene.schedule.take(scene.now).unwrap();
        assert_eq!(due.acked_at, Some(scene.now - SECOND));
    }

    #[test]
    fn what_comes_while_a_wake_is_sent_is_covered_by_it_unless_it_is_louder_or_the_device_came_between() {
        for (again, came, early, late) in [
            (Loudness::Visible, false, None, None),
            (Loudness::Call, false, Some(Some(Loudness::Call)), None),
            // Somebody is there, who may ack it.
            (Loudness::Visible, true, None, Some(Some(Loudness::Visible))),
        ] {
            let mut scene = Scene::new();
            scene.message(Loudness::Visible);
            scene.after(HOLD).take();
            if came {
                scene.schedule.connected(device(), scene.now);
            }
            scene.message(again);
            scene.settle(Settled::Sent(Loudness::Visible));
            assert_eq!(scene.after(HOLD).take(), early, "{again:?} {came}");
            assert_eq!(scene.after(QUIET - HOLD).take(), late, "{again:?} {came}");
        }
    }

    #[test]
    fn a_device_that_came_and_went_while_a_wake_was_sent_is_looked_at_again() {
        let mut scene = Scene::new();
        scene.message(Loudness::Visible);
        scene.after(HOLD).take();
        scene.schedule.connected(device(), scene.now);
        scene.schedule.left(device(), scene.now);
        scene.settle(Settled::Sent(Loudness::Visible));
        assert_eq!(scene.after(QUIET).take(), Some(None));
    }

    /// The mailbox was read before the message was committed.
    #[test]
    fn what_comes_while_the_mailbox_is_looked_at_is_not_forgotten() {
        let mut scene = Scene::new();
        scene.schedule.suspect(device(), HOLD, scene.now);
        scene.after(HOLD).take();
        scene.message(Loudness::Background);
        scene.settle(Settled::Needless);
        assert_eq!(scene.after(HOLD).take(), Some(Some(Loudness::Background)));
    }

    #[test]
    fn a_wake_that_fails_backs_off_counts_its_attempts_and_ends_with_its_worth() {
        let mut scene = Scene::new();
        scene.message(Loudness::Call);
        for attempts in 0..5 {
            let due = scene.schedule.take(scene.now).unwrap();
            assert_eq!(due.attempts, attempts);
            assert!(!scene.settle(Settled::Failed(SECOND * 10)));
            assert_eq!(scene.message(Loudness::Call), Noted::Armed);
            assert_eq!(scene.take(), None, "a new message does not shorten it");
            scene.after(SECOND * 10);
        }
        scene.take();
        scene.after(SECOND * 5);
        assert!(scene.settle(Settled::Failed(SECOND * 10)), "a call of a minute ago rings for nobody");
        assert_eq!(scene.schedule.next(), None);
    }

    #[test]
    fn a_removed_device_leaves_nothing() {
        let mut scene = Scene::new();
        scene.message(Loudness::Visible);
        scene.schedule.remove(device());
        assert_eq!(scene.schedule.counts(), (0, 0));
        assert_eq!(scene.message(Loudness::Visible), Noted::Unknown);
    }

    proptest! {
        /// Whatever happens in whatever order: a device is in the list of what is due exactly when it waits, at most one
        /// wake is worked at, and a message that came after everything is either on its way or covered.
        #[test]
        fn a_message_is_never_forgotten(steps in proptest::collection::vec(0u8..9, 0..60)) {
            let mut scene = Scene::new();
            let mut working = false;
            for step in steps {
                match step {
                    0 => drop(scene.message(Loudness::Background)),
                    1 => drop(scene.message(Loudness::Call)),
                    2 => scene.schedule.connected(device(), scene.now),
                    3 => scene.schedule.left(device(), scene.now),
                    4 => scene.schedule.acked(device(), scene.now),
                    5 => drop(scene.after(SECOND)),
                    6 => drop(scene.after(QUIET)),
                    7 if !working => working = scene.take().is_some(),
                    7 => prop_assert_eq!(scene.take(), None),
                    _ if working => {
                        scene.settle(Settled::Failed(SECOND));
                        working = false;
                    }
                    _ => {}
                }
                let (_, due) = scene.schedule.counts();
                let waits = matches!(scene.schedule.devices[&device()].state, State::Waiting(_));
                prop_assert_eq!(due, usize::from(waits));
            }
            scene.message(Loudness::Visible);
            if working {
                scene.settle(Settled::Needless);
            }
            prop_assert!(scene.schedule.next().is_some());
        }
    }
}
