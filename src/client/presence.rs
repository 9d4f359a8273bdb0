//! Presence and typing, seen from a client: whom it is told of, and what it lets others see.
//!
//! A subscription lapses after ten minutes, so that a client which was killed is not told of people for ever; a watch
//! renews its own in half that time. Everything here is for the moment: nothing of it is stored.

use std::time::Duration;

use waxwing_protocol::frames::{
    Ephemeral, EphemeralKind, EphemeralPush, PRESENCE_SUBSCRIPTIONS_MAX, PresenceItem, PresenceSet, PresenceState,
    PresenceSub, frame::Body,
};
use waxwing_protocol::{AccountId, Handle, Timestamp};

use crate::account::me;
use crate::contacts;
use crate::profile::Rows;
use crate::watch_event::WatchEvent;
use crate::{Client, ClientError};

/// Time between two renewals of subscriptions, which last ten minutes.
pub(crate) const RENEWAL: Duration = Duration::from_secs(5 * 60);

/// What is known of somebody's being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PresenceView {
    /// They do not show it to this account.
    Hidden,
    /// Not there; last seen in the five minutes that begin here, when that is known.
    Offline(Option<Timestamp>),
    /// There.
    Online,
}

impl Client {
    /// Lets `to` see for five seconds that somebody is typing, if this client watches and they have written to this
    /// account. To be called at most every three seconds; tells whether anything was sent.
    ///
    /// # Errors
    /// Those of looking `to` up.
    pub async fn typing(&self, to: &Handle) -> Result<bool, ClientError> {
        let account = self.contact(to).await?.account.as_bytes().to_vec().into();
        let kind = EphemeralKind::Typing.into();
        Ok(self.route.push(Body::Ephemeral(Ephemeral { account, kind, payload: Vec::new().into() })))
    }

    /// Says whether a person is looking, on the connection that watches; tells whether there is one. Only in the
    /// foreground a device is shown as online.
    pub fn set_foreground(&self, foreground: bool) -> bool {
        self.route.push(Body::PresenceSet(PresenceSet { foreground }))
    }
}

/// Asks to be told of everybody this profile knows, as far as there is room.
pub(crate) fn subscription(tx: &impl Rows) -> Result<Option<PresenceSub>, ClientError> {
    let own = me(tx)?.account;
    let people = contacts::all(tx)?.into_iter().filter(|account| *account != own);
    let add: Vec<_> =
        people.take(PRESENCE_SUBSCRIPTIONS_MAX).map(|account| account.as_bytes().to_vec().into()).collect();
    Ok((!add.is_empty()).then_some(PresenceSub { add, remove: Vec::new() }))
}

/// What an item of presence tells, if it is of somebody this profile knows.
pub(crate) fn view(tx: &impl Rows, item: &PresenceItem) -> Result<Option<WatchEvent>, ClientError> {
    let presence = match item.state() {
        PresenceState::Hidden => PresenceView::Hidden,
        PresenceState::Offline => {
            PresenceView::Offline((item.last_seen > 0).then(|| Timestamp::from_millis(item.last_seen)))
        }
        PresenceState::Online => PresenceView::Online,
    };
    Ok(known(tx, &item.account)?.map(|who| WatchEvent::Presence { who, presence }))
}

/// What a frame for the moment tells, if it is from somebody this profile knows.
pub(crate) fn moment(tx: &impl Rows, push: &EphemeralPush) -> Result<Option<WatchEvent>, ClientError> {
    if push.kind() != EphemeralKind::Typing {
        return Ok(None);
    }
    let holds = Duration::from_millis(push.ttl_ms.into());
    Ok(known(tx, &push.account)?.map(|who| WatchEvent::Typing { who, holds }))
}

fn known(tx: &impl Rows, account: &[u8]) -> Result<Option<Handle>, ClientError> {
    let Ok(account) = AccountId::from_slice(account) else { return Ok(None) };
    Ok(contacts::known(tx, account)?.map(|contact| contact.handle))
}
