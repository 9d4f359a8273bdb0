//! `waxwing admin`: what an operator does on a node's machine.

use std::time::Duration;

use serde_json::json;

use crate::cli::{AdminCommand, AdminGrant};
use crate::output::Output;

/// Runs an operator's command.
pub(crate) fn run(command: AdminCommand, output: Output) -> anyhow::Result<()> {
    match command {
        AdminCommand::Grant(AdminGrant::Edge { node, days, data }) => {
            let lifetime = Duration::from_secs(u64::from(days) * 24 * 60 * 60);
            let grant = waxwing_messaging::mint_edge_grant(&data.join("messaging"), &node, lifetime)?;
            output.result(&grant.text, &json!({ "grant": grant.text, "expires_at": grant.expires }));
        }
    }
    Ok(())
}
