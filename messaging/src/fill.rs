//! Filling a data directory with accounts: what a node with a million of them costs, without a million registrations.
//!
//! A registration has a commit of its own, so that two that race see each other. A benchmark that wants a large store
//! would wait for minutes; here many accounts share a sync, and nothing is checked. The node is not running meanwhile.

use std::path::Path;

use waxwing_protocol::DeviceId;
use waxwing_protocol::api::RegisterRequest;

use crate::opening::{OpenError, STORE_DIR};
use crate::store::{AccountRecord, EmbeddedStore, EmbeddedStoreError, NewAccount};

/// Puts accounts into the data directory of a node that has none of them, each with its first device and an empty
/// mailbox. What their signatures say is believed; those whose token hash has not 32 bytes are left out.
///
/// # Errors
/// [`OpenError`] tells why the store could not be opened or written.
pub fn fill(data_dir: &Path, people: impl Iterator<Item = (RegisterRequest, u32)>) -> Result<(), OpenError> {
    std::fs::create_dir_all(data_dir).map_err(|source| OpenError::DataDir { dir: data_dir.to_owned(), source })?;
    let accounts = people.filter_map(|(request, reg_id)| {
        let RegisterRequest { account, handle, account_key, device_list, token_hash, .. } = request;
        Some(NewAccount {
            record: AccountRecord { account, handle, account_key, device_list },
            device: DeviceId::FIRST,
            reg_id,
            token_hash: token_hash.0.try_into().ok()?,
            epoch: u64::from_le_bytes(crate::node::random()),
            invite: None,
        })
    });
    EmbeddedStore::fill(&data_dir.join(STORE_DIR), accounts).map_err(|error| match error {
        EmbeddedStoreError::Locked => OpenError::Locked { dir: data_dir.to_owned() },
        EmbeddedStoreError::Engine(reason) => OpenError::Store { dir: data_dir.to_owned(), reason },
    })
}
