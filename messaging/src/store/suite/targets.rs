//! The suite's part about where devices are woken.

use super::*;

fn target(text: &str, seconds: u64) -> WakeTarget {
    WakeTarget { target: text.into(), place: None, set_at: Timestamp::from_secs(seconds) }
}

pub(crate) async fn a_target_stays_over_a_restart_and_goes_with_its_device_and_its_account<H: Harness>(
    engine: Engine<H>,
) {
    let engine = engine.with_account(1).await.with_account(2).await.with_account(3).await;
    for n in 1..=3 {
        assert_eq!(engine.store.set_wake_target(mailbox(n), target("there", 5)).await.unwrap(), Some(vec![]));
    }
    assert_eq!(engine.store.set_wake_target(mailbox(9), target("nobody", 5)).await.unwrap(), None);
    let engine = engine.reopened().await;
    assert_eq!(engine.store.wake_target(mailbox(1)).await.unwrap(), Some(target("there", 5)));
    assert_eq!(engine.store.wakeable(None, 2).await.unwrap(), [mailbox(1), mailbox(2)]);
    assert_eq!(engine.store.wakeable(Some(mailbox(2)), 2).await.unwrap(), [mailbox(3)]);

    assert!(engine.store.delete(mailbox(1).account).await.unwrap());
    engine.sweep(NOW).await;
    assert_eq!(engine.harness.records_under(&engine.store, mailbox(1).account).await, 0);
    assert_eq!(engine.store.wakeable(None, 9).await.unwrap(), [mailbox(2), mailbox(3)]);
    let late = engine.store.set_wake_target(mailbox(1), target("late", 6)).await.unwrap();
    assert_eq!(late, None, "the account is gone");
}

/// What a provider says of a token takes a while to come; the app may have registered a new one meanwhile.
pub(crate) async fn a_target_that_was_set_again_is_not_removed_for_what_was_said_of_the_one_before<H: Harness>(
    engine: Engine<H>,
) {
    let engine = engine.with_account(1).await;
    engine.store.set_wake_target(mailbox(1), target("old", 5)).await.unwrap();
    engine.store.set_wake_target(mailbox(1), target("new", 6)).await.unwrap();
    assert!(!engine.store.remove_wake_target(mailbox(1), Some(Timestamp::from_secs(5))).await.unwrap());
    assert_eq!(engine.store.wake_target(mailbox(1)).await.unwrap(), Some(target("new", 6)));
    assert!(engine.store.remove_wake_target(mailbox(1), Some(Timestamp::from_secs(6))).await.unwrap());
    assert!(!engine.store.remove_wake_target(mailbox(1), None).await.unwrap());
}

/// A phone that was given to somebody else, or an app that was installed anew: one token is one phone, woken once.
pub(crate) async fn of_two_devices_at_one_place_the_later_has_it<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await.with_account(2).await.with_account(3).await;
    let at = |place: u8, seconds| WakeTarget { place: Some([place; 16]), ..target("there", seconds) };
    let set = |n, target| engine.store.set_wake_target(mailbox(n), target);
    assert_eq!(set(1, at(7, 5)).await.unwrap(), Some(vec![]));
    assert_eq!(set(1, at(7, 6)).await.unwrap(), Some(vec![]), "the same device says so again");
    assert_eq!(set(2, at(7, 7)).await.unwrap(), Some(vec![mailbox(1)]));
    assert_eq!(engine.store.wakeable(None, 9).await.unwrap(), [mailbox(2)]);
    assert_eq!(engine.store.wake_target(mailbox(1)).await.unwrap(), None);
    assert_eq!(set(9, at(7, 8)).await.unwrap(), None, "nobody takes nothing over");
    assert_eq!(engine.store.wake_target(mailbox(2)).await.unwrap(), Some(at(7, 7)));

    // Whoever is woken elsewhere leaves the place to others, and so does whoever is woken no more or is gone.
    assert_eq!(set(2, at(8, 9)).await.unwrap(), Some(vec![]));
    assert_eq!(set(1, at(7, 9)).await.unwrap(), Some(vec![]));
    assert!(engine.store.remove_wake_target(mailbox(2), None).await.unwrap());
    assert_eq!(set(3, at(8, 10)).await.unwrap(), Some(vec![]));
    assert!(engine.store.delete(mailbox(3).account).await.unwrap());
    assert_eq!(set(2, at(8, 11)).await.unwrap(), Some(vec![]));
    assert_eq!(engine.store.wakeable(None, 9).await.unwrap(), [mailbox(1), mailbox(2)]);
}
