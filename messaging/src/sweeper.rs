//! The sweeper's rounds: erasing what was acked or has expired, a step at a time, for as long as the node runs.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, warn};

use crate::metrics::handles;
use crate::node::Node;

/// Sweeps until `stop` is notified, or nobody has the node any more: a sweeper alone must not keep it open.
pub(crate) async fn run(node: Weak<Node>, interval: Duration, stop: Arc<Notify>) {
    loop {
        tokio::select! {
            () = stop.notified() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let Some(node) = node.upgrade() else { return };
        round(&node).await;
    }
}

/// One round: steps until nothing more is to be done at once.
async fn round(node: &Node) {
    let (mut rows, mut sends) = (0, 0);
    loop {
        match node.mailboxes.sweep(node.clock.now()).await {
            Ok(swept) => {
                handles().swept.increment(swept.rows);
                rows += swept.rows;
                sends += swept.sends;
                if !swept.more {
                    break;
                }
            }
            Err(error) => {
                warn!(%error, "sweeping goes on in the next round");
                return;
            }
        }
    }
    if rows + sends > 0 {
        debug!(rows, sends, "swept");
    }
}
