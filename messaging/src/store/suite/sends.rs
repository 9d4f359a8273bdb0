//! What every engine remembers of sends.

use std::time::Duration;

use waxwing_protocol::{MsgId, Timestamp};

use super::{EPOCH, Engine, Harness, NOW, account, mailbox, message};
use crate::store::*;

const HOUR: u64 = 60 * 60 * 1000;

/// Message `n` under an id that tells the time `ms`, taken by the server at [`NOW`].
fn stamped(n: u64, ms: u64) -> Append {
    let mut msg_id = *message(n).msg_id.as_bytes();
    msg_id[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    msg_id[6] = 0x70;
    Append { msg_id: MsgId::from_bytes(msg_id), ..message(n) }
}

/// Messages under ids of clocks that go right, of clocks that go wrong, and of none.
fn of_all_clocks() -> Vec<Append> {
    let now = NOW.as_millis();
    let ids = [now, now + 20_000, now - 9 * 60_000, now - HOUR, now + HOUR, now - 60 * HOUR, 0, (1 << 48) - 1];
    (1..).zip(ids).map(|(n, ms)| stamped(n, ms)).collect()
}

async fn closed_and_reopened<H: Harness>(engine: Engine<H>) -> Engine<H> {
    engine.store.close().await;
    engine.reopened().await
}

pub(crate) async fn a_send_is_remembered_over_restarts_whatever_time_its_id_tells<H: Harness>(engine: Engine<H>) {
    let mut engine = engine.with_account(1).await;
    for send in of_all_clocks() {
        assert!(!engine.store.append(send).await.unwrap().duplicate);
    }
    for hours in [0, 1, 48] {
        engine = closed_and_reopened(engine).await;
        assert_eq!(engine.sweep(NOW.plus(Duration::from_millis(hours * HOUR))).await.sends, 0);
        for send in of_all_clocks() {
            let repeated = engine.store.append(send.clone()).await.unwrap();
            assert!(repeated.duplicate, "{send:?} after {hours} hours");
            assert_eq!(repeated.server_ts, Timestamp::from_millis(send.envelope.server_ts));
            let other = Append { content_hash: [0; 32], ..send };
            assert!(matches!(engine.store.append(other).await, Err(AppendError::OtherContent)));
        }
        let never = stamped(99, NOW.as_millis());
        assert!(matches!(
            engine.store.append(Append { bodies: Vec::new(), ..never }).await,
            Err(AppendError::DeviceMismatch { .. })
        ));
    }
    let three_days = NOW.plus(Duration::from_secs(72 * 60 * 60));
    assert_eq!(engine.sweep(three_days).await.sends, of_all_clocks().len() as u64);
    let engine = closed_and_reopened(engine).await;
    for send in of_all_clocks() {
        assert!(!engine.store.append(send).await.unwrap().duplicate);
    }
}

pub(crate) async fn what_a_deleted_account_sent_is_not_taken_for_its_successors<H: Harness>(engine: Engine<H>) {
    let engine = engine.with_account(1).await.with_account(2).await;
    let send = stamped(1, NOW.as_millis());
    engine.store.append(send.clone()).await.unwrap();
    let engine = closed_and_reopened(engine).await;
    assert!(engine.store.delete(mailbox(2).account).await.unwrap());
    engine.sweep(NOW).await;
    let successor = NewAccount { epoch: EPOCH + 1, ..account(2) };
    assert_eq!(engine.store.register(successor).await.unwrap(), Registered::Created);
    assert!(!engine.store.append(send.clone()).await.unwrap().duplicate);
    let engine = closed_and_reopened(engine).await;
    assert!(engine.store.append(send).await.unwrap().duplicate, "its own");
}
