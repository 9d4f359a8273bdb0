//! `waxwing push`: where this device is woken.

use anyhow::bail;
use serde_json::json;
use waxwing_client::Client;
use waxwing_protocol::api::{PushProvider, PushTarget};

use crate::cli::PushCommand;
use crate::output::Output;

/// Does something about where this device is woken.
pub(crate) async fn run(command: PushCommand, output: Output) -> anyhow::Result<()> {
    match command {
        PushCommand::Set { profile, target } => {
            let target = PushTarget::from(target);
            Client::open(&profile.home)?.set_push(&target).await?;
            let provider = target.provider();
            output.result(format_args!("woken by {}", provider.name()), &json!({ "provider": provider }));
        }
        PushCommand::Show { profile } => {
            let view = Client::open(&profile.home)?.push().await?;
            let names: Vec<_> = view.providers.iter().copied().map(PushProvider::name).collect();
            let offered = if names.is_empty() { "nobody".to_owned() } else { names.join(", ") };
            let by = view.provider.map_or("nobody", PushProvider::name);
            output.result(format_args!("woken by {by}; the service can wake by {offered}"), &view);
        }
        PushCommand::Test { profile } => {
            let test = Client::open(&profile.home)?.test_push().await?;
            let provider = test.provider.name();
            if !test.accepted {
                bail!("{provider} did not take the wake: {}", test.reason);
            }
            output.result(format_args!("{provider} took the wake"), &test);
        }
        PushCommand::Rm { profile } => {
            Client::open(&profile.home)?.remove_push().await?;
            output.result("woken no more", &json!({ "provider": null }));
        }
    }
    Ok(())
}
