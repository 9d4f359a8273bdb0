//! Whom an account wants to hear nothing of.
//!
//! A block that its target could notice would be worse than none. So a blocked sender is answered as everybody is, with
//! the same checks before and the same record behind it; only the rows are left out.

use std::collections::HashSet;
use std::sync::Arc;

use waxwing_protocol::AccountId;
use waxwing_protocol::api::BLOCKS_MAX;

use super::directory;
use super::tables::{self, Tables, corrupt, engine_error};
use super::writer::Turn;
use crate::store::{Blocked, StoreError};

/// Reads whom an account has blocked.
pub(super) fn blocks(tables: &Tables, account: AccountId) -> Result<Vec<AccountId>, StoreError> {
    let rows = tables.directory.prefix(tables::blocked(account, None)).map(|guard| {
        let key = guard.key().map_err(engine_error)?;
        tables::second_account(&key).ok_or_else(|| corrupt("a block"))
    });
    rows.collect()
}

/// Whether an account has blocked another.
pub(super) fn has_blocked(tables: &Tables, account: AccountId, peer: AccountId) -> Result<bool, StoreError> {
    tables.directory.contains_key(tables::blocked(account, Some(peer))).map_err(engine_error)
}

impl Turn<'_> {
    /// Sets whether `account` wants to hear of `peer`.
    pub(super) fn set_blocked(
        &mut self,
        account: AccountId,
        peer: AccountId,
        blocked: bool,
    ) -> Result<Blocked, StoreError> {
        let mut blocks = HashSet::clone(&*self.blocks(account)?);
        let key = tables::blocked(account, Some(peer));
        if !blocked {
            self.batch.remove(&self.tables.directory, key);
            blocks.remove(&peer);
        } else if !blocks.contains(&peer) {
            if directory::account(self.tables, peer)?.is_none() {
                return Ok(Blocked::NotFound);
            }
            if blocks.len() >= BLOCKS_MAX {
                return Ok(Blocked::TooMany);
            }
            self.batch.insert(&self.tables.directory, key, []);
            blocks.insert(peer);
        }
        self.memory.blocks.insert(account, Arc::new(blocks));
        Ok(Blocked::Done)
    }

    /// Whom an account has blocked, as this turn has it.
    pub(super) fn blocks(&mut self, account: AccountId) -> Result<Arc<HashSet<AccountId>>, StoreError> {
        if let Some(blocks) = self.memory.blocks.get(&account) {
            return Ok(blocks.clone());
        }
        let blocks: Arc<HashSet<_>> = Arc::new(blocks(self.tables, account)?.into_iter().collect());
        self.memory.blocks.insert(account, blocks.clone());
        Ok(blocks)
    }
}
