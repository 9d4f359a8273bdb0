//! Gates: what stands between wakes and a provider that is slow, overrun or gone.
//!
//! A provider that fails would else be asked once for each of a million devices, each time with a wait to the time-out,
//! and the sick would be beaten by the impatient. A gate lets a bounded number through at once, closes after some
//! failures in a row, and opens for one at a time to see whether it has become better.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Whom a gate stands before.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum GateKey {
    /// Apple, or its development environment.
    Apns {
        sandbox: bool,
    },
    Fcm,
    /// The origin of an endpoint.
    Web(String),
}

/// Failures in a row after which a gate closes: fewer happen by chance.
const FAILURES_MAX: u32 = 5;

/// How long a gate stays closed the first time; then twice as long, up to [`CLOSED_MAX`].
const CLOSED_MIN: Duration = Duration::from_secs(15);

/// The longest a gate stays closed.
const CLOSED_MAX: Duration = Duration::from_secs(10 * 60);

/// How long nobody asks again when a provider does not accept who we are: only an operator can change that.
const MISCONFIGURED: Duration = Duration::from_secs(5 * 60);

/// How long those wait who find all places taken.
const FULL: Duration = Duration::from_millis(250);

/// Refusals for asking too often, in a row, after which a provider as a whole is left alone for a while.
const THROTTLED_MAX: u32 = 3;

/// Gates that are remembered at most: origins of endpoints are chosen by strangers.
const GATES_MAX: usize = 1024;

/// What a provider's answer, or its absence, says about the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    /// It works.
    Well,
    /// It, or the way to it, does not.
    Ill,
    /// It asks for less, if it says so: for that long.
    Throttles(Duration),
    /// It does not accept who we are.
    Misconfigured,
    /// Nothing: the request never got there.
    Unknown,
}

#[derive(Debug, Default)]
struct Gate {
    inside: usize,
    failures: u32,
    throttled: u32,
    /// Times it closed without having worked between.
    closings: u32,
    closed_until: Option<Instant>,
    /// It has worked since it was last told that we are not who we say.
    works: bool,
    credentials: u64,
}

/// The gates of this process.
#[derive(Debug)]
pub(super) struct Gates {
    gates: Mutex<HashMap<GateKey, Gate>>,
    inside_max: usize,
}

impl Gates {
    /// Gates that let `inside_max` through at once, each.
    pub(super) fn new(inside_max: usize) -> Self {
        Self { gates: Mutex::default(), inside_max }
    }

    /// Goes through a gate; whoever did [leaves](Self::leave) it again. Else tells when to come back.
    pub(super) fn enter(&self, key: &GateKey, now: Instant) -> Result<(), Duration> {
        let mut gates = self.lock();
        if !gates.contains_key(key) && gates.len() >= GATES_MAX {
            // Those that have nothing to remember, and nobody in them.
            gates.retain(|_, gate| gate.inside > 0 || gate.closed_until.is_some_and(|until| until > now));
            if gates.len() >= GATES_MAX {
                return Err(CLOSED_MIN);
            }
        }
        let gate = gates.entry(key.clone()).or_default();
        match gate.closed_until {
            Some(until) if until > now => return Err(until - now),
            // One tries whether it has become better.
            Some(_) if gate.inside > 0 => return Err(FULL),
            _ if gate.inside >= self.inside_max => return Err(FULL),
            _ => {}
        }
        gate.inside += 1;
        Ok(())
    }

    /// Leaves a gate, with what became of it. Returns whether that closed it.
    pub(super) fn leave(&self, key: &GateKey, health: Health, now: Instant) -> bool {
        let mut gates = self.lock();
        let Some(gate) = gates.get_mut(key) else { return false };
        let was_open = gate.closed_until.is_none_or(|until| until <= now);
        gate.inside = gate.inside.saturating_sub(1);
        let close = |gate: &mut Gate, time: Duration| {
            gate.closed_until = Some(gate.closed_until.map_or(now + time, |until| until.max(now + time)));
        };
        match health {
            Health::Well => {
                *gate = Gate { inside: gate.inside, works: true, credentials: gate.credentials, ..Gate::default() };
            }
            Health::Ill => {
                gate.failures += 1;
                // Those that went in before it closed fail too, and are one failure with the first.
                if was_open && (gate.failures >= FAILURES_MAX || gate.closings > 0) {
                    let time = CLOSED_MIN.saturating_mul(1 << gate.closings.min(10)).min(CLOSED_MAX);
                    gate.closings += 1;
                    close(gate, time);
                }
            }
            Health::Throttles(time) => {
                gate.throttled += 1;
                if gate.throttled >= THROTTLED_MAX {
                    close(gate, time.min(CLOSED_MAX));
                }
            }
            Health::Misconfigured => {
                gate.works = false;
                close(gate, MISCONFIGURED);
            }
            Health::Unknown => {}
        }
        was_open && gate.closed_until.is_some_and(|until| until > now)
    }

    /// Whether what is behind a gate has accepted who we are.
    pub(super) fn works(&self, key: &GateKey) -> bool {
        self.lock().get(key).is_some_and(|gate| gate.works)
    }

    /// Says which credentials are shown from now on. With others than before, what went wrong is forgotten.
    pub(super) fn credentials(&self, key: &GateKey, version: u64) {
        if let Some(gate) = self.lock().get_mut(key)
            && gate.credentials != version
        {
            *gate = Gate { inside: gate.inside, credentials: version, ..Gate::default() };
        }
    }

    /// How many gates are closed.
    pub(super) fn closed(&self, now: Instant) -> usize {
        self.lock().values().filter(|gate| gate.closed_until.is_some_and(|until| until > now)).count()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<GateKey, Gate>> {
        // Every change is of one gate, and none can panic half-way.
        self.gates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FCM: GateKey = GateKey::Fcm;

    fn fail(gates: &Gates, times: u32, now: Instant) {
        for _ in 0..times {
            gates.enter(&FCM, now).unwrap();
            gates.leave(&FCM, Health::Ill, now);
        }
    }

    #[test]
    fn a_gate_closes_after_failures_in_a_row_and_lets_one_through_to_see() {
        let (gates, now) = (Gates::new(8), Instant::now());
        fail(&gates, FAILURES_MAX - 1, now);
        gates.enter(&FCM, now).unwrap();
        gates.leave(&FCM, Health::Well, now);
        fail(&gates, FAILURES_MAX, now);
        assert_eq!(gates.enter(&FCM, now), Err(CLOSED_MIN));
        assert_eq!(gates.closed(now), 1);
        assert!(gates.enter(&GateKey::Apns { sandbox: false }, now).is_ok(), "each for itself");

        let later = now + CLOSED_MIN;
        gates.enter(&FCM, later).unwrap();
        assert_eq!(gates.enter(&FCM, later), Err(FULL), "one at a time");
        gates.leave(&FCM, Health::Ill, later);
        assert_eq!(gates.enter(&FCM, later), Err(CLOSED_MIN * 2), "at once, and for longer");
        let better = later + CLOSED_MIN * 2;
        gates.enter(&FCM, better).unwrap();
        gates.leave(&FCM, Health::Well, better);
        fail(&gates, FAILURES_MAX - 1, better);
        assert!(gates.enter(&FCM, better).is_ok(), "as if nothing had been");
    }

    #[test]
    fn those_that_were_inside_when_it_closed_do_not_make_it_worse() {
        let (gates, now) = (Gates::new(100), Instant::now());
        for _ in 0..100 {
            gates.enter(&FCM, now).unwrap();
        }
        assert_eq!(gates.enter(&FCM, now), Err(FULL));
        for _ in 0..100 {
            gates.leave(&FCM, Health::Ill, now);
        }
        assert_eq!(gates.enter(&FCM, now), Err(CLOSED_MIN));
    }

    #[test]
    fn new_credentials_are_tried_at_once() {
        let (gates, now) = (Gates::new(8), Instant::now());
        gates.enter(&FCM, now).unwrap();
        gates.credentials(&FCM, 1);
        gates.leave(&FCM, Health::Misconfigured, now);
        gates.credentials(&FCM, 1);
        assert_eq!(gates.enter(&FCM, now), Err(MISCONFIGURED));
        gates.credentials(&FCM, 2);
        assert!(gates.enter(&FCM, now).is_ok());
    }

    #[test]
    fn one_refusal_for_haste_is_one_devices_and_several_are_everybodys() {
        let (gates, now) = (Gates::new(8), Instant::now());
        let minute = Duration::from_secs(60);
        for _ in 0..THROTTLED_MAX {
            gates.enter(&FCM, now).unwrap();
            gates.leave(&FCM, Health::Throttles(minute), now);
        }
        assert_eq!(gates.enter(&FCM, now), Err(minute));
    }

    #[test]
    fn strangers_origins_are_remembered_up_to_a_bound_and_those_that_are_ill_for_longest() {
        let (gates, now) = (Gates::new(8), Instant::now());
        fail(&gates, FAILURES_MAX, now);
        for n in 0..GATES_MAX * 3 {
            let key = GateKey::Web(format!("https://{n}.example"));
            gates.enter(&key, now).unwrap();
            gates.leave(&key, Health::Well, now);
        }
        assert!(gates.lock().len() <= GATES_MAX);
        assert_eq!(gates.enter(&FCM, now), Err(CLOSED_MIN));
    }
}
