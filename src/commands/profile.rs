//! `waxwing register`, `waxwing account` and `waxwing grant`: the account and what it may do.

use serde_json::json;
use waxwing_client::{Client, RegisterOptions};
use waxwing_protocol::api::GrantRequest;

use crate::cli::{AccountCommand, GrantArgs, GrantKind, RegisterArgs};
use crate::output::Output;

/// Makes an account.
pub(crate) async fn register(args: RegisterArgs, output: Output) -> anyhow::Result<()> {
    let options = RegisterOptions { server: args.server, handle: args.handle, invite: args.invite };
    let client = Client::register(&args.profile.home, options).await?;
    let identity = client.whoami()?;
    output.result(
        format_args!("registered {} at {}  profile {}", identity.handle, identity.server, args.profile.home.display()),
        &json!({
            "account": identity.account,
            "device": identity.device,
            "handle": identity.handle,
            "server": identity.server,
        }),
    );
    Ok(())
}

/// Changes the account or deletes it.
pub(crate) async fn account(command: AccountCommand, output: Output) -> anyhow::Result<()> {
    match command {
        AccountCommand::Handle { profile, handle } => {
            let client = Client::open(&profile.home)?;
            client.rename(&handle).await?;
            output.result(format_args!("this account is called {handle} now"), &json!({ "handle": handle }));
        }
        AccountCommand::Delete { profile, yes: _ } => {
            let client = Client::open(&profile.home)?;
            let handle = client.whoami()?.handle;
            client.delete_account().await?;
            output.result(format_args!("the account {handle} is gone"), &json!({ "deleted": handle }));
        }
    }
    Ok(())
}

/// Prints a grant.
pub(crate) async fn grant(args: GrantArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let request = match args.kind {
        GrantKind::Upload => GrantRequest::Upload,
        GrantKind::Media => GrantRequest::Media,
        GrantKind::Share { blob } => GrantRequest::Share { blob, lifetime_s: None },
    };
    let response = client.grant(request).await?;
    output.result(&response.grant, &response);
    Ok(())
}
