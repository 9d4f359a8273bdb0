//! What one messaging node is made of: the services that handlers and connections share.

use std::sync::Arc;

use crate::accounts::Accounts;
use crate::addresses::Addresses;
use crate::admission::Admission;
use crate::channels::Channels;
use crate::clock::Clock;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::devices::Devices;
use crate::fabric::Fabric;
use crate::grants::Grants;
use crate::groups::Groups;
use crate::keys::Keys;
use crate::limits::Limit;
use crate::links::Links;
use crate::presence::Presence;
use crate::push::Push;
use crate::reports::Reports;
use crate::sessions::Sessions;
use crate::store::{DeviceAddress, MailboxStore};

/// The services of a node.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) clock: Arc<Clock>,
    pub(crate) accounts: Accounts,
    pub(crate) addresses: Addresses,
    pub(crate) devices: Devices,
    pub(crate) links: Links,
    pub(crate) keys: Keys,
    pub(crate) grants: Grants,
    pub(crate) delivery: Delivery,
    pub(crate) groups: Groups,
    pub(crate) channels: Channels,
    pub(crate) presence: Arc<Presence>,
    pub(crate) push: Arc<Push>,
    pub(crate) fabric: Arc<Fabric>,
    pub(crate) mailboxes: Arc<dyn MailboxStore>,
    pub(crate) hellos: Limit<DeviceAddress>,
    pub(crate) admission: Admission,
    pub(crate) sessions: Sessions,
    pub(crate) reports: Reports,
}

/// Random bytes of the operating system.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system has randomness once it has started");
    bytes
}
