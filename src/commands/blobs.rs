//! `waxwing keep` and `drop`: for how long the service has what was sent or received.

use serde_json::json;
use waxwing_client::Client;
use waxwing_protocol::BlobId;

use crate::cli::ProfileArgs;
use crate::output::Output;

/// Which blob.
#[derive(Debug, clap::Args)]
pub(crate) struct BlobArgs {
    #[command(flatten)]
    pub profile: ProfileArgs,
    /// The blob, as `send` and `watch` print it.
    pub id: BlobId,
}

/// Has a blob from now on, or for the whole time again.
pub(crate) async fn keep(args: BlobArgs, output: Output) -> anyhow::Result<()> {
    Client::open(&args.profile.home)?.keep(&args.id).await?;
    output.result(format_args!("kept {}", args.id), &json!({ "kept": args.id }));
    Ok(())
}

/// Has a blob no more.
pub(crate) async fn let_go(args: BlobArgs, output: Output) -> anyhow::Result<()> {
    Client::open(&args.profile.home)?.let_go(&args.id).await?;
    let text = format_args!("dropped {}; it goes from the service unless somebody else keeps it", args.id);
    output.result(text, &json!({ "dropped": args.id }));
    Ok(())
}
