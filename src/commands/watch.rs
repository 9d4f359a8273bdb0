//! `waxwing watch`: messages as they come, files as they are saved.

use anyhow::ensure;
use serde_json::json;
use waxwing_client::{Client, MessageSummary, WatchEvent, WatchOptions};
use waxwing_protocol::{Handle, MsgId};

use super::transfers::print_fetched;
use crate::cli::WatchArgs;
use crate::output::{Output, bytes, visible};

/// Receives until Ctrl-C, or with `--once` until what waits is received and saved.
pub(crate) async fn watch(args: WatchArgs, output: Output) -> anyhow::Result<()> {
    let client = Client::open(&args.profile.home)?;
    let options = WatchOptions { once: args.once, save: args.save };
    let on = |event: WatchEvent| print_event(event, output);
    tokio::select! {
        done = client.watch(options, &on) => {
            let report = done?;
            ensure!(report.lost == 0, "{} of the files received can never be saved", report.lost);
            ensure!(report.unreadable == 0, "{} of the messages received cannot be read", report.unreadable);
        }
        // What is acknowledged is stored; what is not comes again.
        pressed = tokio::signal::ctrl_c() => pressed?,
    }
    Ok(())
}

fn print_event(event: WatchEvent, output: Output) {
    match event {
        WatchEvent::Connected { pending } if pending > 0 => {
            output.note(format_args!("connected; about {pending} waiting"));
        }
        WatchEvent::Connected { .. } => output.note("connected"),
        WatchEvent::Message { from, msg_id, content } => print_message(&from, msg_id, &content, output),
        WatchEvent::Saved { from, file, .. } => print_fetched(&file, Some(from.as_str()), output),
        WatchEvent::SaveFailed { from, blob, error, retry_in, .. } => {
            let retry =
                retry_in.map_or_else(String::new, |pause| format!("; next try in {:.0} s", pause.as_secs_f64()));
            output.warn(format_args!("cannot save blob {blob} from {from}: {}{retry}", visible(&error.to_string())));
        }
        WatchEvent::Unreadable { from, msg_id, reason } => {
            output.warn(format_args!("message {msg_id} of account {from} cannot be read: {}", visible(&reason)));
        }
        WatchEvent::SendFailed { msg_id, error } => {
            output.warn(format_args!("message {msg_id} was not sent: {}", visible(&error.to_string())));
        }
        WatchEvent::Disconnected { error, retry_in } => {
            let error = visible(&error.to_string());
            output.note(format_args!("{error}; connecting again in {:.1} s", retry_in.as_secs_f64()));
        }
        _ => {}
    }
}

fn print_message(from: &Handle, msg_id: MsgId, content: &MessageSummary, output: Output) {
    let (text, value) = match content {
        MessageSummary::Text(text) => (visible(text), json!({ "text": text })),
        MessageSummary::File { blob, name, bytes: size, media_type } => {
            let name = name.as_deref().unwrap_or("a file");
            let value = json!({ "blob": blob, "name": name, "bytes": size, "media_type": media_type });
            (format!("{}  {}  blob {blob}", visible(name), bytes(*size)), value)
        }
        _ => ("something that a newer version would show".to_owned(), json!(null)),
    };
    output.result(format_args!("{from}: {text}"), &json!({ "message": msg_id, "from": from, "content": value }));
}
