//! Which conversations wait in a mailbox, before all of it was sent.
//!
//! Somebody who was away for a week opens the app and wants to see where something is new, not wait until the last
//! message has come. So the lane is looked through beside the drain, page by page under the same budget of bytes, and only
//! as far as it is worth reading twice.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use waxwing_protocol::frames::{Frame, Lane, QueueSummary, QueuedConversation, frame::Body};

use crate::node::Node;
use crate::store::{DeviceAddress, PageRequest};

/// The feature that asks for it.
pub(super) const FEATURE: &str = "queue-summary";

/// Rows looked at.
const ROWS_MAX: usize = 4096;

/// Conversations told.
const CONVERSATIONS_MAX: usize = 256;

/// Rows and bytes of bodies read at once.
const PAGE_MSGS: usize = 256;
const PAGE_BYTES: usize = 256 * 1024;

/// Looks the normal lane of `device` through, from the first row above `after`. `None` when it cannot be read or no
/// conversation waits.
pub(super) async fn summary(node: Arc<Node>, device: DeviceAddress, after: u64) -> Option<Frame> {
    let mut found = HashMap::new();
    let (mut position, mut rows, mut complete) = (after, 0, false);
    while !complete && rows < ROWS_MAX {
        let room = node.admission.room(PAGE_BYTES).await?;
        let now = node.clock.now();
        let request = PageRequest {
            mailbox: device,
            lane: Lane::Normal,
            after: position,
            msgs: PAGE_MSGS,
            bytes: room.bytes,
            now,
        };
        let page = node.mailboxes.read(request).await.ok()?;
        rows += page.rows.len().max(1);
        for row in page.rows.iter().filter(|row| !row.conv_id.is_empty()) {
            count(&mut found, &row.conv_id, row.seq);
        }
        (position, complete) = (page.up_to, page.end);
    }
    let (conversations, all) = newest_first(found);
    let summary = QueueSummary { conversations, complete: complete && all };
    (!summary.conversations.is_empty()).then(|| Frame::push(Body::QueueSummary(summary)))
}

fn count(found: &mut HashMap<Bytes, QueuedConversation>, conv_id: &Bytes, seq: u64) {
    // A copy: the row's bytes are a slice of what was read.
    let conversation = found.entry(conv_id.clone()).or_insert_with(|| QueuedConversation {
        conv_id: Bytes::copy_from_slice(conv_id),
        count: 0,
        last_seq: 0,
    });
    conversation.count += 1;
    conversation.last_seq = seq;
}

/// The conversations to be told, and whether these are all.
fn newest_first(found: HashMap<Bytes, QueuedConversation>) -> (Vec<QueuedConversation>, bool) {
    let mut conversations: Vec<_> = found.into_values().collect();
    conversations.sort_unstable_by_key(|conversation| std::cmp::Reverse(conversation.last_seq));
    let all = conversations.len() <= CONVERSATIONS_MAX;
    conversations.truncate(CONVERSATIONS_MAX);
    (conversations, all)
}
