//! `waxwing link` and `waxwing devices`: the devices of an account.

use serde_json::json;
use waxwing_client::{Client, DeviceInfo, Linking};
use waxwing_protocol::Timestamp;

use crate::cli::{DevicesCommand, LINK_SCHEME, LinkArgs};
use crate::output::{Output, qr, visible};

/// Makes this machine a further device of an account, once a device of it has taken the code that this one shows.
pub(crate) async fn link(args: LinkArgs, output: Output) -> anyhow::Result<()> {
    let home = args.profile.home;
    let linking = Linking::begin(&home, &args.server, &args.name).await?;
    let code = linking.code().to_string();
    output.result(
        format_args!(
            "{}\non a device of the account:  waxwing devices link {code}\n",
            qr(&format!("{LINK_SCHEME}{code}"))
        ),
        &json!({ "code": code }),
    );
    let client = Box::pin(linking.finish(&|_| {})).await?;
    let identity = client.whoami()?;
    output.result(
        format_args!("device {} of {}  profile {}", identity.device, identity.handle, home.display()),
        &json!({ "account": identity.account, "device": identity.device, "handle": identity.handle }),
    );
    Ok(())
}

/// Does something to the account's devices.
pub(crate) async fn devices(command: DevicesCommand, output: Output) -> anyhow::Result<()> {
    match command {
        DevicesCommand::Link { profile, code, no_history } => {
            let client = Client::open(&profile.home)?;
            let linked = Box::pin(client.link_device(&code, !no_history, &|_| {})).await?;
            let name = visible(&linked.name);
            output.result(
                format_args!("{name} is device {} of this account", linked.device),
                &json!({ "device": linked.device, "name": linked.name }),
            );
        }
        DevicesCommand::List { profile } => {
            for device in Client::open(&profile.home)?.devices().await? {
                print(&device, output);
            }
        }
        DevicesCommand::Name { profile, device, name } => {
            Client::open(&profile.home)?.name_device(device, &name).await?;
            output.result(format_args!("device {device} is called {name}"), &json!({ "device": device, "name": name }));
        }
        DevicesCommand::Rm { profile, device } => {
            Client::open(&profile.home)?.remove_device(device).await?;
            output.result(format_args!("device {device} is gone"), &json!({ "removed": device }));
        }
    }
    Ok(())
}

fn print(device: &DeviceInfo, output: Output) {
    let DeviceInfo { device: number, name, is_this, added_at, connected_at } = device;
    let this = if *is_this { "  (this one)" } else { "" };
    let connected = match *connected_at {
        never if never == Timestamp::default() => "never connected".to_owned(),
        at => format!("connected {at}"),
    };
    output.result(
        format_args!("{number}  {}  {connected}{this}", visible(name)),
        &json!({
            "device": number, "name": name, "this": is_this, "added_at": added_at, "connected_at": connected_at,
        }),
    );
}
