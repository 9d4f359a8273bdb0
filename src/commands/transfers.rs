//! `waxwing send`, `resume`, `get` and `share`: files out and in.

use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;
use waxwing_client::{Client, ClientError, FetchedFile, SentFile, ShareLink, ShareSource, Transfer, fetch_link};
use waxwing_protocol::{BlobId, Handle};

use super::groups;
use crate::cli::{GetArgs, ResumeArgs, SendArgs, ShareArgs};
use crate::output::{Interrupted, Output, ProgressLine, bytes, program};

/// Seals a file, uploads it and sends its reference.
pub(crate) async fn send(args: SendArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let home = &args.profile.home;
    let Some(to) = &args.to else {
        let group = args.group.unwrap_or_default();
        return match &args.file {
            Some(file) => send_to_group(&client, file, &group, home, output).await,
            None => groups::send_text(&client, &group, &args.text.unwrap_or_default(), output).await,
        };
    };
    let Some(file) = &args.file else {
        let msg_id = client.send_text(to, &args.text.unwrap_or_default()).await?;
        output.result(format_args!("sent to {to}"), &json!({ "message": msg_id, "to": to }));
        return Ok(());
    };
    let line = ProgressLine::new(file_name(file));
    let on = |progress| line.update(&progress);
    let left = || left_of(&client, file, Some(to), home, "nothing was sent");
    let sent = or_interrupt(Box::pin(client.send_file(file, to, &on)), left).await?;
    drop(line);
    print_sent(&sent, &file_name(file), output);
    Ok(())
}

/// The same to a group.
async fn send_to_group(client: &Client, file: &Path, group: &str, home: &Path, output: Output) -> anyhow::Result<()> {
    let group = groups::found(client, group).await?;
    let line = ProgressLine::new(file_name(file));
    let on = |progress| line.update(&progress);
    let left = || Interrupted::Resumable(resume_command(home));
    let sent = or_interrupt(Box::pin(client.send_file_to_group(file, group, &on)), left).await?;
    drop(line);
    print_sent(&sent, &file_name(file), output);
    Ok(())
}

/// Goes on with every unfinished transfer, the oldest first.
pub(crate) async fn resume(args: ResumeArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    if let Some(id) = args.drop {
        let dropped = client.drop_transfer(id).await?;
        output.result(format_args!("dropped {}", described(&dropped)), &row(&dropped));
        return Ok(());
    }
    let unfinished = client.unfinished()?;
    if unfinished.is_empty() {
        output.note("nothing is unfinished");
    }
    let command = resume_command(&args.profile.home);
    let mut failed: Option<anyhow::Error> = None;
    for transfer in unfinished {
        let name = file_name(&transfer.path);
        if args.list {
            output.result(described(&transfer), &row(&transfer));
            continue;
        }
        let line = ProgressLine::new(&name);
        let on = |progress| line.update(&progress);
        let resumed =
            or_interrupt(Box::pin(client.resume(transfer.id, &on)), || Interrupted::Resumable(command.clone())).await;
        drop(line);
        match resumed {
            Ok(sent) => print_sent(&sent, &name, output),
            // The server is away: it is for the others too.
            Err(error) if matches!(error.downcast_ref(), Some(ClientError::Interrupted { .. })) => return Err(error),
            // One whose file is gone does not keep the others waiting.
            Err(error) => {
                if let Some(before) = failed.replace(error.context(name)) {
                    output.warn(format_args!("error: {before:#}"));
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Downloads and opens a file.
pub(crate) async fn get(args: GetArgs, output: Output) -> anyhow::Result<()> {
    let line = ProgressLine::new(file_name(&args.output));
    let on = |progress| line.update(&progress);
    let fetched = if let Ok(id) = args.source.parse::<BlobId>() {
        Client::open(&args.profile.home)?.fetch(&id, &args.output, &on).await?
    } else if let Ok(link) = args.source.parse::<ShareLink>() {
        fetch_link(&link, &args.output, &on).await?
    } else {
        bail!("`{}` is neither a share link nor a blob id (52 characters of a-z and 2-7)", args.source);
    };
    drop(line);
    print_fetched(&fetched, None, output);
    Ok(())
}

/// Prints a share link.
pub(crate) async fn share(args: ShareArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    // A file may be called like a blob id; nobody would then expect the id.
    let path = PathBuf::from(&args.source);
    let source = match args.source.parse::<BlobId>() {
        Ok(id) if !path.exists() => ShareSource::Blob(id),
        _ => ShareSource::File(path.clone()),
    };
    let line = ProgressLine::new(file_name(Path::new(&args.source)));
    let on = |progress| line.update(&progress);
    let left = || left_of(&client, &path, None, &args.profile.home, "no link was made");
    let link = or_interrupt(Box::pin(client.share(source, &on)), left).await?;
    drop(line);
    output.result(&link, &json!({ "link": link.to_string() }));
    Ok(())
}

/// Prints what was received; `from` names the sender, where there is one.
pub(crate) fn print_fetched(fetched: &FetchedFile, from: Option<&str>, output: Output) {
    let sender = from.map(|from| format!(" from {from}")).unwrap_or_default();
    output.result(
        format_args!("saved {}{sender}  {}", fetched.path.display(), bytes(fetched.bytes)),
        &json!({
            "saved": fetched.path,
            "from": from,
            "blob": fetched.blob,
            "bytes": fetched.bytes,
            "first_byte_s": fetched.first_byte.as_secs_f64(),
            "total_s": fetched.total.as_secs_f64(),
            "cache_status": fetched.cache_status,
        }),
    );
}

fn print_sent(sent: &SentFile, name: &str, output: Output) {
    let resumed = sent.resumed_at.map(|at| format!("  (resumed at {})", bytes(at))).unwrap_or_default();
    let verb = if sent.msg_id.is_some() { "sent" } else { "uploaded" };
    output.result(
        format_args!("{verb} {name}  {}  blob {}{resumed}", bytes(sent.file_bytes), sent.blob),
        &json!({
            "sent": name,
            "msg_id": sent.msg_id,
            "blob": sent.blob,
            "file_bytes": sent.file_bytes,
            "sealed_bytes": sent.sealed_bytes,
            "resumed_at": sent.resumed_at,
            "seal_s": sent.seal.as_secs_f64(),
            "upload_s": sent.upload.as_secs_f64(),
            "message_s": sent.message.as_secs_f64(),
        }),
    );
}

/// A transfer on one line, its id first: `--drop` takes it.
fn described(transfer: &Transfer) -> String {
    let to = transfer.to.as_ref().map(|to| format!("  to {to}")).unwrap_or_default();
    format!("{}  {}{to}", transfer.id, transfer.path.display())
}

fn row(transfer: &Transfer) -> serde_json::Value {
    json!({ "id": transfer.id, "file": transfer.path, "to": transfer.to })
}

/// What is left of a transfer of `file`: while the file is only being read there is none to go on with, and `nothing`
/// says so.
fn left_of(client: &Client, file: &Path, to: Option<&Handle>, home: &Path, nothing: &'static str) -> Interrupted {
    let begun = std::fs::canonicalize(file).is_ok_and(|path| {
        let is_it = |transfer: &Transfer| transfer.path == path && transfer.to.as_ref() == to;
        // A profile that cannot be read tells nothing: then trying `resume` is the better advice.
        client.unfinished().map_or(true, |unfinished| unfinished.iter().any(is_it))
    });
    if begun { Interrupted::Resumable(resume_command(home)) } else { Interrupted::Nothing(nothing) }
}

/// Runs a transfer; Ctrl-C ends it with what `left` says is left of it.
async fn or_interrupt<T, E>(
    work: impl Future<Output = Result<T, E>>,
    left: impl FnOnce() -> Interrupted,
) -> anyhow::Result<T>
where
    E: std::error::Error + Send + Sync + 'static,
{
    tokio::select! {
        done = work => Ok(done?),
        pressed = tokio::signal::ctrl_c() => {
            pressed?;
            crate::output::interrupted(&left());
        }
    }
}

fn resume_command(home: &Path) -> String {
    format!("{} resume --home {}", program(), home.display())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
