//! `waxwing block`, `unblock` and `blocks`.

use serde_json::json;
use waxwing_client::Client;

use crate::cli::{BlockArgs, ProfileArgs};
use crate::output::Output;

/// Blocks somebody.
pub(crate) async fn block(args: BlockArgs, output: Output) -> anyhow::Result<()> {
    Client::open(&args.profile.home)?.block(&args.handle).await?;
    output.result(format_args!("{} is blocked, and is not told", args.handle), &json!({ "blocked": args.handle }));
    Ok(())
}

/// Takes a block off.
pub(crate) async fn unblock(args: BlockArgs, output: Output) -> anyhow::Result<()> {
    Client::open(&args.profile.home)?.unblock(&args.handle).await?;
    output.result(format_args!("{} is blocked no more", args.handle), &json!({ "unblocked": args.handle }));
    Ok(())
}

/// Lists who is blocked.
pub(crate) async fn blocks(profile: ProfileArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&profile.home)?;
    for account in client.blocks().await? {
        let handle = client.handle_of(account)?;
        let name = handle.as_ref().map_or_else(|| account.to_string(), ToString::to_string);
        output.result(name, &json!({ "account": account, "handle": handle }));
    }
    Ok(())
}
