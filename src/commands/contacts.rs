//! `waxwing verify` and `waxwing contacts`: who others are, and whether that was checked.

use serde_json::json;
use waxwing_client::{Client, KnownContact};

use crate::cli::{ContactsArgs, ContactsCommand, VerifyArgs};
use crate::output::{Output, qr};

/// Shows the safety number with somebody, and takes note of whether it was compared.
pub(crate) async fn verify(args: VerifyArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let number = client.safety_number(&args.with).await?;
    if args.equal || args.undo {
        client.set_verified(&args.with, args.equal)?;
    }
    let verified = client.contacts()?.into_iter().any(|known| known.handle == args.with && known.verified);
    let said = if verified { "compared: equal" } else { "not compared yet" };
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    let with = &args.with;
    output.result(
        format_args!("{}\n{}\n\nwith {with}: {said}", qr(&digits), groups(&number)),
        &json!({ "with": with, "safety_number": number, "verified": verified }),
    );
    if !verified {
        output.note(format_args!(
            "ask {with} for theirs, by voice or in person; when both are equal, `waxwing verify {with} --equal`"
        ));
    }
    Ok(())
}

/// Lists whom this profile knows, or accepts a changed key.
pub(crate) async fn contacts(args: ContactsArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    match args.command {
        None => {
            for KnownContact { handle, account, verified, devices } in client.contacts()? {
                let mark = if verified { "verified" } else { "not verified" };
                output.result(
                    format_args!("{handle}  {mark}  devices {devices}"),
                    &json!({ "handle": handle, "account": account, "verified": verified, "devices": devices }),
                );
            }
        }
        Some(ContactsCommand::Accept { handle }) => {
            let number = client.accept_identity(&handle).await?;
            output.result(
                format_args!("{handle} is trusted as the service shows them now; the new safety number is {number}"),
                &json!({ "accepted": handle, "safety_number": number }),
            );
        }
    }
    Ok(())
}

/// Four groups a line, as people read it to one another.
fn groups(number: &str) -> String {
    let groups: Vec<_> = number.split(' ').collect();
    groups.chunks(4).map(|line| line.join(" ")).collect::<Vec<_>>().join("\n")
}
